"""From image and prompt files to mask files."""

import json
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from samparser.prediction import mask_generation, output_folder, predict, predict_files
from samparser.prediction.files import find_images

BOXES = {"a.png": [[2, 3, 30, 28], [0, 0, 40, 30]], "sub/b.jpg": [[5, 5, 20, 20]]}


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.jpg", "sub/c.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_boxes_of_a_file_become_labels_overlays_and_coco_masks(tiny_sam, tiny_processor, images, tmp_path):
    boxes = write(tmp_path / "boxes.json", BOXES)
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match=r"1 of 3 images have no prompts, first sub/c\.png"):
        written = predict_files(tiny_sam, tiny_processor, [images], out, boxes=boxes, progress=False)
    assert written == [out / "masks" / "a.png", out / "masks" / "sub" / "b.png"]
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == [
        "masks.json",
        "masks/a.png",
        "masks/sub/b.png",
        "overlays/a.png",
        "overlays/sub/b.png",
    ]
    coco = COCO(out / "masks.json")
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == list(BOXES)
    image = np.array(Image.open(images / "a.png"))
    expected = predict(tiny_sam, tiny_processor, image, boxes=BOXES["a.png"])
    for annotation, mask in zip(coco.loadAnns(coco.getAnnIds(imgIds=[1])), expected, strict=True):
        assert np.array_equal(coco.annToMask(annotation), mask)
    labels = np.asarray(Image.open(written[0]))
    assert np.array_equal(labels > 0, expected.any(axis=0))
    assert np.asarray(Image.open(out / "overlays" / "a.png")).shape == image.shape


def test_points_go_by_file_name_or_path(tiny_sam, tiny_processor, images, tmp_path):
    points = write(tmp_path / "points.json", {"b.jpg": [[10, 10]], str(images / "a.png"): [[3, 4], [20, 20]]})
    given = [images / "a.png", images / "sub" / "b.jpg"]
    predict_files(tiny_sam, tiny_processor, given, tmp_path / "out", points=points, progress=False)
    content = json.loads((tmp_path / "out" / "masks.json").read_text())
    assert [annotation["image_id"] for annotation in content["annotations"]] == [1, 1, 2]


def test_a_grid_needs_no_prompts_and_gives_scores(tiny_sam, tiny_processor, images, tmp_path, monkeypatch):
    lenient = {"pred_iou_thresh": 0, "stability_score_thresh": 0}
    monkeypatch.setattr(
        mask_generation, "non_maximum_suppression", lambda _, scores, __: scores.argsort(descending=True)
    )
    given, out = [images / "a.png"], tmp_path / "out"
    predict_files(tiny_sam, tiny_processor, given, out, grid=3, progress=False, **lenient)
    content = json.loads((tmp_path / "out" / "masks.json").read_text())
    assert len(content["annotations"]) > 1
    scores = [annotation["score"] for annotation in content["annotations"]]
    assert scores == sorted(scores, reverse=True)


def test_an_image_that_does_not_open_is_left_out_with_a_warning(tiny_sam, tiny_processor, images, tmp_path):
    (images / "a.png").write_bytes(b"not a picture")
    boxes = write(tmp_path / "boxes.json", BOXES)
    given = [images]
    with (
        pytest.warns(UserWarning, match="1 of 3 images have no prompts"),
        pytest.warns(UserWarning, match=r"1 of 3 images left out, first: .*a\.png is not an image"),
    ):
        written = predict_files(tiny_sam, tiny_processor, given, tmp_path / "out", boxes=boxes, progress=False)
    assert [path.name for path in written] == ["b.png"]


def test_an_image_given_by_name_that_does_not_open_is_refused_before_anything_is_written(
    tiny_sam, tiny_processor, images, tmp_path
):
    (images / "junk.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"junk\.png is not an image"):
        predict_files(tiny_sam, tiny_processor, [images / "a.png", images / "junk.png"], tmp_path / "out", grid=2)
    assert not (tmp_path / "out").exists()


def test_when_no_image_can_be_read_there_is_no_result(tiny_sam, tiny_processor, images, tmp_path):
    whole = (images / "a.png").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"None of the images could be read\. .*a\.png does not open"):
        predict_files(tiny_sam, tiny_processor, [tmp_path / "cut"], tmp_path / "out", grid=2, progress=False)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_box_outside_of_the_last_image_leaves_no_mask_of_the_first(tiny_sam, tiny_processor, images, tmp_path):
    given = [images / "a.png", images / "sub" / "c.png"]
    boxes = write(tmp_path / "boxes.json", {"a.png": [[1, 2, 30, 28]], "c.png": [[100, 200, 900, 1000]]})
    with pytest.raises(
        ValueError, match=r"c\.png: Box 0 of 1.* fit the input of the published SAMs \(longest side 1024"
    ):
        predict_files(tiny_sam, tiny_processor, given, tmp_path / "out", boxes=boxes, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_output_folder_or_of_the_prompts_is_named(tiny_sam, tiny_processor, images, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out is a file; remove it, or name another folder"):
        predict_files(tiny_sam, tiny_processor, [images], tmp_path / "out", grid=2)
    with pytest.raises(FileNotFoundError, match=r"no prompt file .*gone\.json. It must hold"):
        predict_files(tiny_sam, tiny_processor, [images], tmp_path / "new", boxes=tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"prompts\.json is not JSON .*\{\"image\.png\": \[\[x0, y0, x1, y1\], \.\.\.\]"),
        ([[1, 2, 3, 4]], r"prompts\.json holds a list; it must hold"),
        ({"a.png": [1, 2, 3, 4]}, r"'a\.png': expected a list of \[x0, y0, x1, y1\], got \[1, 2, 3, 4\]"),
        ({"a.png": [[1, 2]]}, r"'a\.png': expected a list of \[x0, y0, x1, y1\], got \[\[1, 2\]\]"),
        ({"z.png": [[1, 2, 3, 4]]}, r"'z\.png' matches none of the images"),
        ({"b.jpg": [[1, 2, 3, 4]], "sub/b.jpg": [[1, 2, 3, 4]]}, r"names the image sub/b\.jpg twice"),
        ({"images": [], "annotations": []}, r"is a COCO annotation file; .* \(x, y, x \+ width, y \+ height\)"),
        ({"a.png": [[1, 2, 3, 400]]}, r"a\.png: Box 0 of 1, \(1, 2, 3, 400\), is outside the image of 40 x 30"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*have no prompts")
def test_a_malformed_prompt_file_is_refused_before_masks_are_listed(
    tiny_sam, tiny_processor, images, tmp_path, content, message
):
    prompts = write(tmp_path / "prompts.json", content)
    with pytest.raises(ValueError, match=message):
        predict_files(tiny_sam, tiny_processor, [images], tmp_path / "out", boxes=prompts, progress=False)
    assert not (tmp_path / "out" / "masks.json").exists()


def test_exactly_one_kind_of_prompt_is_asked_for(tiny_sam, tiny_processor, images, tmp_path):
    with pytest.raises(ValueError, match=r"exactly one of boxes, points and grid; given: none"):
        predict_files(tiny_sam, tiny_processor, [images], tmp_path)
    with pytest.raises(ValueError, match=r"given: boxes, grid"):
        predict_files(tiny_sam, tiny_processor, [images], tmp_path, boxes="x.json", grid=3)


def test_images_are_found_below_folders_and_clashes_refused(images, tmp_path):
    assert list(find_images([images])) == ["a.png", "sub/b.jpg", "sub/c.png"]
    assert list(find_images([images, images / "a.png"])) == ["a.png", "sub/b.jpg", "sub/c.png"]
    assert list(find_images([images], images / "sub")) == ["a.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"There is no image \(.*\.png.*empty"):
        find_images([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match=r"no image or folder .*nowhere"):
        find_images([tmp_path / "nowhere"])
    (images / "a.jpg").write_bytes((images / "sub" / "b.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png would both be written to a\.png"):
        find_images([images])


def segment(model, processor, images, out, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return predict_files(model, processor, images, out, progress=False, **{"grid": 2, **options})


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["masks/a.png", "overlays/a.png", "masks.json"])
def test_a_file_that_is_not_its_own_is_replaced_only_when_asked(tiny_sam, tiny_processor, images, tmp_path, place):
    own = tmp_path / "own"
    (own / place).parent.mkdir(parents=True)
    (own / place).write_text("ground truth")
    before = tree(own)
    with pytest.raises(ValueError, match=rf"own holds 1 file that this command did not write.*{place}.*--overwrite"):
        segment(tiny_sam, tiny_processor, [images / "a.png"], own)
    assert tree(own) == before
    segment(tiny_sam, tiny_processor, [images / "a.png"], own, overwrite=True)
    assert (own / place).read_bytes() != b"ground truth"


def test_labels_of_a_data_set_survive_a_prediction_into_it(tiny_sam, tiny_processor, images, tmp_path):
    """The layout of the folders reader: images/ and masks/ side by side."""
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full((30, 40), 7, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"masks/a\.png"):
        segment(tiny_sam, tiny_processor, [images / "a.png"], tmp_path)
    assert tree(tmp_path) == before


def test_an_earlier_prediction_is_replaced_with_a_word_and_one_corrected_by_hand_is_not(
    tiny_sam, tiny_processor, images, tmp_path
):
    out, given = tmp_path / "out", [images / "a.png", images / "sub" / "c.png"]
    segment(tiny_sam, tiny_processor, given, out)
    again = segment(tiny_sam, tiny_processor, given[:1], out)
    assert again.replaced == [out / "masks" / "a.png", out / "overlays" / "a.png", out / "masks.json"]
    corrected = np.full((30, 40), 3, dtype=np.uint8)
    Image.fromarray(corrected).save(out / "masks" / "c.png")
    with pytest.raises(ValueError, match=r"1 file that this command did not write, or that changed since.*c\.png"):
        segment(tiny_sam, tiny_processor, given, out)
    assert np.array_equal(np.asarray(Image.open(out / "masks" / "c.png")), corrected)
    content = (out / "masks.json").read_text()
    (out / "masks.json").write_text(content.replace('"area": ', '"area": 1'))
    with pytest.raises(ValueError, match="5 files that this command did not write"):
        segment(tiny_sam, tiny_processor, given, out)


def test_a_link_to_labels_elsewhere_is_not_its_own(tiny_sam, tiny_processor, images, tmp_path):
    out = tmp_path / "out"
    segment(tiny_sam, tiny_processor, [images / "a.png"], out)
    truth = tmp_path / "truth.png"
    (out / "masks" / "a.png").rename(truth)
    (out / "masks" / "a.png").symlink_to(truth)
    with pytest.raises(ValueError, match=r"1 file that this command did not write"):
        segment(tiny_sam, tiny_processor, [images / "a.png"], out)


def test_a_killed_prediction_can_be_done_again_and_its_leftovers_go(tiny_sam, tiny_processor, images, tmp_path):
    out, given = tmp_path / "out", [images / "a.png", images / "sub" / "c.png"]

    def die(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samparser.prediction.files.write_image", die)  # the labels are there, the overlay is not
        with pytest.raises(KeyboardInterrupt):
            segment(tiny_sam, tiny_processor, given[:1], out)
    for place in ("masks/.a.HEX.tmp.png", "overlays/.b.HEX.tmp.png", ".masks.HEX.tmp.json"):
        path = out / place.replace("HEX", "0" * 32)
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    (out / "masks" / ".mine.png").write_text("kept")
    assert len(segment(tiny_sam, tiny_processor, given, out)) == 2
    left = sorted(path.name for path in out.rglob(".*"))
    assert left == [".mine.png"]


def test_a_second_process_is_kept_out_of_the_folder(tiny_sam, tiny_processor, images, tmp_path):
    out = tmp_path / "out"
    with (
        output_folder.OutputFolder(out).writing(),
        pytest.raises(BlockingIOError, match=r"out is being written by another run in this process .*Wait"),
    ):
        segment(tiny_sam, tiny_processor, [images / "a.png"], out)
    assert len(segment(tiny_sam, tiny_processor, [images / "a.png"], out)) == 1


def narrow(path):
    Image.fromarray(np.zeros((4000, 1, 3), dtype=np.uint8)).save(path)


def cut(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(narrow, r"a\.png: The image has 1 x 4000 .*Cut it into pieces"), (cut, r"a\.png does not open")],
)
def test_one_bad_image_of_a_folder_is_named_and_the_others_are_done(
    tiny_sam, tiny_processor, images, tmp_path, damage, reason
):
    damage(images / "a.png")
    with pytest.warns(UserWarning, match=rf"1 of 3 images left out, first: .*{reason}"):
        done = predict_files(tiny_sam, tiny_processor, [images], tmp_path / "out", grid=2, progress=False)
    assert [path.name for path in done] == ["b.png", "c.png"]
    assert list(done.left_out) == ["a.png"]
    content = json.loads((tmp_path / "out" / "masks.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["sub/b.jpg", "sub/c.png"]


def test_hidden_files_and_folders_are_no_images(images):
    for place in (".a.123.tmp.png", ".ipynb_checkpoints/a-checkpoint.png", "sub/.thumbs/c.png"):
        (images / place).parent.mkdir(exist_ok=True)
        (images / place).write_bytes((images / "a.png").read_bytes())
    assert list(find_images([images])) == ["a.png", "sub/b.jpg", "sub/c.png"]
    hidden = images / ".a.123.tmp.png"
    assert find_images([hidden]) == {hidden.name: hidden}


def test_the_output_is_no_image_however_its_path_is_written(images, monkeypatch):
    monkeypatch.chdir(images)
    assert list(find_images(["."], images / "sub")) == ["a.png"]
    assert list(find_images([images], Path("sub"))) == ["a.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 0}, r"must be 1 or more; got batch 64, grid 0"),
        ({"batch": 0}, r"must be 1 or more; got batch 0"),
        ({"pred_iou_thresh": -1}, r"pred_iou_thresh must be 0 or more .*got -1"),
        ({"stability_score_thresh": float("nan")}, r"stability_score_thresh must be 0 or more .*got nan"),
        ({"grid": None, "points": "p.json", "pred_iou_thresh": 0.5}, r"choose among the masks of a grid; give grid"),
    ],
)
def test_numbers_out_of_range_are_refused(tiny_sam, tiny_processor, images, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        segment(tiny_sam, tiny_processor, [images], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_image_in_which_a_grid_finds_nothing_is_said(tiny_sam, tiny_processor, images, tmp_path):
    done = predict_files(
        tiny_sam, tiny_processor, [images], tmp_path / "out", grid=2, pred_iou_thresh=1e9, progress=False
    )
    assert done.empty == ["a.png", "sub/b.jpg", "sub/c.png"]
    assert done.lowered == {}
    assert not np.asarray(Image.open(done[0])).any()


def test_memory_does_not_grow_with_the_number_of_masks(tiny_sam, tiny_processor, tmp_path):
    side = 1500
    Image.fromarray(np.zeros((side, side, 3), dtype=np.uint8)).save(tmp_path / "large.png")
    rows = [[number, number, side, side] for number in range(40)]
    boxes = write(tmp_path / "boxes.json", {"large.png": rows})
    given, out = [tmp_path / "large.png"], tmp_path / "out"
    tracemalloc.start()
    try:
        segment(tiny_sam, tiny_processor, given, out, grid=None, boxes=boxes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    planes = 40 * side * side
    assert peak < 0.5 * planes
    content = json.loads((out / "masks.json").read_text())
    assert sum(annotation["area"] for annotation in content["annotations"]) > 0.1 * planes


def test_what_stands_in_the_way_is_named_before_anything_is_written(tiny_sam, tiny_processor, images, tmp_path):
    given = [images / "a.png"]
    for place, problem in (("masks", "masks is a file"), ("overlays", "is a link to what is not there")):
        out = tmp_path / place
        out.mkdir()
        (out / place).write_text("mine") if place == "masks" else (out / place).symlink_to(tmp_path / "gone")
        with pytest.raises(ValueError, match=problem):
            segment(tiny_sam, tiny_processor, given, out, overwrite=True)
    for place in ("masks.json", "masks/a.png"):
        out = tmp_path / place.replace("/", "-")
        (out / place).mkdir(parents=True)
        with pytest.raises(ValueError, match=rf"{place} is a folder, where a file is to be written"):
            segment(tiny_sam, tiny_processor, given, out, overwrite=True)
        assert tree(out) == {}


def test_images_that_lie_in_the_output_folder_are_found_and_its_results_are_not(
    tiny_sam, tiny_processor, images, tmp_path
):
    assert list(find_images([images], tmp_path)) == ["a.png", "sub/b.jpg", "sub/c.png"]
    assert list(find_images([images], images)) == ["a.png", "sub/b.jpg", "sub/c.png"]
    for _ in range(2):
        done = segment(tiny_sam, tiny_processor, [images], images)
        assert [path.relative_to(images).as_posix() for path in done] == [
            "masks/a.png",
            "masks/sub/b.png",
            "masks/sub/c.png",
        ]


def test_deep_images_are_shown_in_the_stated_range(tiny_sam, tiny_processor, tmp_path):
    values = np.full((30, 40), 1000, dtype=np.uint16)
    values[:5] = 3000
    Image.fromarray(values).save(tmp_path / "a.png")
    boxes = write(tmp_path / "boxes.json", {"a.png": [[30, 20, 40, 30]]})
    expected = {None: 255, "1000,5000": 128, "0%,100%": 255}
    for number, (text, bright) in enumerate(expected.items()):
        out = tmp_path / f"out-{number}"
        given = [tmp_path / "a.png"]
        predict_files(tiny_sam, tiny_processor, given, out, boxes=boxes, intensity_range=text, progress=False)
        shown = np.asarray(Image.open(out / "overlays" / "a.png"))[:4]
        unmarked = np.asarray(Image.open(out / "masks" / "a.png"))[:4] == 0
        assert (shown[unmarked] == bright).all()
    with pytest.raises(ValueError, match="intensity_range='5' is not possible"):
        predict_files(
            tiny_sam, tiny_processor, given, tmp_path / "no", boxes=boxes, intensity_range="5", progress=False
        )
    assert not (tmp_path / "no").exists()
