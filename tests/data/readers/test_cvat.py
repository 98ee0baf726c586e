import numpy as np
import pytest
from pycocotools import mask as coco_mask

from samparser.data import DataError, DataSettings, Skipped, open_dataset
from tests.data.files import full_mask, picture, rectangle, save

STAR = ((3.2, 2.1), (20.7, 5.5), (28.1, 21.9), (11.4, 13.0))
POLYGON = '<polygon label="dog" source="manual" occluded="0" points="{}" z_order="0"></polygon>'
BOX = '<box label="cat" xtl="1.00" ytl="1.00" xbr="9.00" ybr="8.00" {}/>'
LABELS = "<labels><label><name>dog</name><color>#fa3253</color></label><label><name>cat</name></label></labels>"


def polygon(points=STAR, **more):
    text = POLYGON.format(";".join(f"{x:.2f},{y:.2f}" for x, y in points))
    return text.replace(" z_order", "".join(f' {name}="{value}"' for name, value in more.items()) + " z_order")


def image(*shapes, name="a.png", number=0, size=(24, 32), more=""):
    head = f'<image id="{number}" name="{name}" width="{size[1]}" height="{size[0]}" {more}>'
    return f"{head}{''.join(shapes)}</image>"


def write(path, *images, labels=LABELS, head='<?xml version="1.0" encoding="utf-8"?>'):
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = f"<meta><task><name>t</name>{labels}</task></meta>"
    path.write_text(f"{head}<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>")
    return path


def opened(root, split="all", **settings):
    return open_dataset(DataSettings(data=str(root), **settings), split)


def pixels(inside):
    """The pixels whose middle is inside, one by one."""
    return np.array([[bool(inside(x + 0.5, y + 0.5)) for x in range(32)] for y in range(24)])


@pytest.fixture
def root(tmp_path):
    save(picture(), tmp_path / "images/a.png")
    return tmp_path


def only(root):
    """The one object of the one image."""
    (instance,) = opened(root)[0].instances
    return full_mask(instance, 24, 32)


def test_polygons_are_drawn_as_by_pycocotools_and_labels_keep_their_order(root):
    write(root / "annotations.xml", image(polygon(), BOX.format("")))
    dataset = opened(root)
    assert (dataset.layout, dataset.classes, dataset.names) == ("cvat", {1: "dog", 2: "cat"}, ["images/a.png"])
    dog, cat = dataset[0].instances
    flat = [round(value, 2) for point in STAR for value in point]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([flat], 24, 32))).astype(bool)
    assert (dog.class_id, dog.id, cat.class_id, cat.id) == (1, "shape 1", 2, "shape 2")
    assert np.array_equal(full_mask(dog, 24, 32), expected)
    assert np.array_equal(full_mask(cat, 24, 32), rectangle(1, 1, 9, 8))


def test_a_box_turns_clockwise_about_its_middle(root):
    write(root / "annotations.xml", image('<box label="cat" xtl="4" ytl="8" xbr="16" ybr="12" rotation="90.0"/>'))
    assert np.array_equal(only(root), rectangle(8, 4, 12, 16))
    write(root / "annotations.xml", image('<box label="cat" xtl="4" ytl="8" xbr="16" ybr="12" rotation="30.0"/>'))
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    # To the right of the middle, clockwise means downwards; each pixel is turned back and compared with the box.
    expected = pixels(
        lambda x, y: abs((x - 10) * cos + (y - 10) * sin) <= 6 and abs((y - 10) * cos - (x - 10) * sin) <= 2
    )
    assert (only(root) != expected).sum() <= 6  # at the edge, where COCO's rule is not that of the pixel's middle
    assert only(root)[12, 13]
    assert not only(root)[7, 13]


def test_an_ellipse_is_the_pixels_whose_middle_is_inside(root):
    shape = '<ellipse label="cat" cx="14.5" cy="11.0" rx="9.0" ry="4.0" rotation="{}"/>'
    write(root / "annotations.xml", image(shape.format(0)))
    assert np.array_equal(only(root), pixels(lambda x, y: ((x - 14.5) / 9) ** 2 + ((y - 11) / 4) ** 2 <= 1))
    write(root / "annotations.xml", image(shape.format(90)))
    assert np.array_equal(only(root), pixels(lambda x, y: ((x - 14.5) / 4) ** 2 + ((y - 11) / 9) ** 2 <= 1))
    write(root / "annotations.xml", image(shape.format(20)))
    assert only(root)[13, 20]
    assert not only(root)[8, 20]


@pytest.mark.parametrize(("left", "top"), [(4, 3), (-2, 20)])
def test_a_mask_counts_along_the_rows_of_its_box(root, left, top):
    crop = np.random.default_rng(0).random((6, 9)) < 0.5
    runs, value = [0], False
    for row in crop:
        for pixel in row:
            if pixel != value:
                runs.append(0)
                value = not value
            runs[-1] += 1
    place = f'left="{left}" top="{top}" width="9" height="6"'
    text = f'<mask label="cat" rle="{", ".join(map(str, runs))}" {place} z_order="0"/>'
    write(root / "annotations.xml", image(text))
    expected = np.zeros((24, 32), bool)
    for y, x in np.argwhere(crop):
        if 0 <= y + top < 24 and 0 <= x + left < 32:
            expected[y + top, x + left] = True
    assert np.array_equal(only(root), expected)


def test_shapes_of_one_group_and_label_are_one_object(root):
    other = '<box label="cat" xtl="12" ytl="2" xbr="15" ybr="5" group_id="3"/>'
    write(root / "annotations.xml", image(BOX.format('group_id="3"'), other, polygon(group_id=3), BOX.format("")))
    group, dog, alone = opened(root)[0].instances
    assert np.array_equal(full_mask(group, 24, 32), rectangle(1, 1, 9, 8) | rectangle(12, 2, 15, 5))
    assert (group.id, dog.id, dog.class_id, alone.id) == ("group 3", "group 3", 1, "shape 4")


def test_without_a_list_of_labels_those_that_are_drawn_count(root):
    write(root / "annotations.xml", image(polygon(), BOX.format("")), labels="")
    assert opened(root).classes == {1: "cat", 2: "dog"}


def test_subsets_of_a_project_are_its_splits(tmp_path):
    images = []
    for number, subset in enumerate(("Train", "Validation", "Train")):
        save(picture(), tmp_path / f"images/{subset}/{number}.png")
        images.append(image(BOX.format(""), name=f"{number}.png", number=number, more=f'subset="{subset}"'))
    write(tmp_path / "annotations.xml", *images)
    assert opened(tmp_path, "train").names == ["images/Train/0.png", "images/Train/2.png"]
    assert opened(tmp_path, "val").names == ["images/Validation/1.png"]


def test_files_named_after_splits_are_the_splits(tmp_path):
    for split in ("train", "val"):
        save(picture(), tmp_path / f"images/{split}.png")
        write(tmp_path / f"{split}.xml", image(BOX.format(""), name=f"{split}.png"))
    assert opened(tmp_path, "val").names == ["images/val.png"]
    assert opened(tmp_path / "val.xml").names == ["images/val.png"]


@pytest.mark.parametrize(
    ("damaged", "why"),
    [
        (polygon(((1, 1), (float("nan"), 2), (3, 3))), "polygon with a number that is not finite"),
        (polygon(((1, 1), (2, 2))), "polygon with fewer than three points"),
        (POLYGON.format("1,1;2;3,3"), "polygon that is not a list of x,y pairs"),
        (POLYGON.format("1,1;2,x;3,3"), "polygon with something that is not a number"),
        (polygon(((1, 1), (1e9, 2), (3, 3))), "polygon far outside of the image"),
        (polygon(((41, 1), (50, 2), (43, 9))), "outside of the image, or empty"),
        ('<box label="cat" xtl="1" ytl="1" xbr="9"/>', "rectangle with something that is not a number"),
        ('<ellipse label="cat" cx="1" cy="1" rx="0" ry="4"/>', "ellipse without a size"),
        ('<cuboid label="cat" xtl1="1"/>', "cuboid, which is no mask"),
        ('<points label="cat" points="1,1"/>', "points, which is no mask"),
        ('<tag label="cat"/>', "tag, which is no mask"),
        ('<blob label="cat"/>', "shape of the unknown type blob"),
        (BOX.format("").replace("cat", "cow"), "label 'cow', which is not in the list of labels"),
        (
            '<mask label="cat" rle="3, 2" left="1" top="1" width="3" height="2"/>',
            "mask whose run lengths do not add up",
        ),
        (
            '<mask label="cat" rle="3, -2, 5" left="1" top="1" width="3" height="2"/>',
            "mask whose run lengths do not add",
        ),
        (
            '<mask label="cat" rle="" left="1" top="1" width="3" height="2"/>',
            "mask whose box or run lengths are not num",
        ),
        ('<mask label="cat" rle="9" left="1" top="1" width="99999" height="99999"/>', "mask larger than its image"),
    ],
    ids=lambda value: value[:30],
)
def test_a_damaged_shape_is_named_and_left_out(root, damaged, why):
    write(root / "annotations.xml", image(damaged, polygon()))
    sample, skipped = opened(root).examine(0)
    (skip,) = skipped
    assert skip.where == "images/a.png: shape 1"
    assert skip.why.startswith(why)
    assert [i.id for i in sample.instances] == ["shape 2"]


def test_images_that_are_not_there_are_counted(root):
    write(
        root / "annotations.xml",
        image(BOX.format("")),
        image(BOX.format(""), name="gone.png"),
        image(name="images/a.png"),
    )
    dataset = opened(root)
    assert dataset.names == ["images/a.png"]
    assert dataset.skipped == [Skipped("gone.png", "image file missing"), Skipped("images/a.png", "no instance")]


def test_an_image_of_another_size_is_refused(root):
    write(root / "annotations.xml", image(BOX.format(""), size=(32, 24)))
    with pytest.raises(DataError, match=r"a\.png has 32 x 24 px, but the XML says 24 x 32"):
        opened(root)[0]


def test_nothing_outside_of_the_folder_is_opened(root):
    save(picture(), root / "secret.png")
    write(root / "set/annotations.xml", image(BOX.format(""), name="../secret.png"))
    with pytest.raises(DataError, match=r"None of the 1 images of .*annotations\.xml, \.\./secret\.png for instance"):
        opened(root / "set")


LAUGHS = '<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("head", [LAUGHS, OUTSIDE], ids=["billion laughs", "other files"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_are_refused_before_any_entity_is_read(root, head, encoding):
    path = write(root / "annotations.xml", image(polygon(), "&b;"), head="")
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{head}{path.read_text()}'.encode(encoding))
    with pytest.raises(DataError, match=r"annotations\.xml declares a document type \((lolz|x)\)"):
        opened(root, layout="cvat")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotations><image id='0'", "is not XML that can be read"),
        ("<annotations>" + "<track></track></annotations>", "is CVAT for video, not CVAT for images 1.1"),
        ("<annotations></annotations>", "None of the 0 images"),
    ],
)
def test_a_file_that_is_cut_off_or_for_video_says_so(root, text, message):
    (root / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(root)
