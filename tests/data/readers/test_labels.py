import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from samparser.data import DataError
from samparser.data.readers.labels import LabelRules, parse_class_names, read_values, separate
from tests.data.files import full_mask, rectangle, save
from tests.data.readers.test_images import png16


def flood(mask: np.ndarray) -> list[frozenset[tuple[int, int]]]:
    """Connected components with eight neighbours, by a plain flood fill."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left:
        queue, part = [left.pop()], set()
        while queue:
            y, x = queue.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            queue += near
        found.append(frozenset(part))
    return found


def pixels(instance, shape) -> frozenset[tuple[int, int]]:
    return frozenset((int(y), int(x)) for y, x in np.argwhere(full_mask(instance, *shape)))


labels = arrays(np.int64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 0, 1, 4]))


@given(labels)
def test_components_are_those_of_a_flood_fill_of_each_class(array):
    found = separate(array, by_component=True)
    for value in (1, 4):
        ours = [pixels(i, array.shape) for i in found if i.class_id == value]
        assert sorted(map(sorted, ours)) == sorted(map(sorted, flood(array == value)))
    assert len({instance.id for instance in found}) == len(found)


@given(labels)
def test_each_value_as_a_whole_is_one_instance(array):
    found = separate(array, by_component=False)
    assert [i.class_id for i in found] == [v for v in np.unique(array).tolist() if v]
    for instance in found:
        assert np.array_equal(full_mask(instance, *array.shape), array == instance.class_id)
    assert [i.class_id for i in separate(array, by_component=False, one_class=True)] == [1] * len(found)


TWO = rectangle(1, 1, 5, 5) | rectangle(10, 10, 20, 20)


@pytest.mark.parametrize(
    "stored",
    [TWO, TWO * np.uint8(1), TWO * np.uint8(255), TWO * np.uint16(65535), np.dstack([TWO * np.uint8(255)] * 3)],
    ids=["one bit", "0 and 1", "0 and 255", "16 bits", "grey as RGB"],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_binary_mask_may_be_stored_in_any_way(tmp_path, stored, suffix):
    path = save(stored, tmp_path / f"m.{suffix}")
    instances, void, size = LabelRules().split(path)
    assert [(i.class_id, i.box) for i in instances] == [(1, (1, 1, 5, 5)), (1, (10, 10, 20, 20))]
    assert void is None
    assert size == (24, 32)
    whole, _, _ = LabelRules(instances="class").split(path)
    assert [i.box for i in whole] == [(1, 1, 20, 20)]
    assert np.array_equal(full_mask(whole[0], 24, 32), TWO)


def classes_mask() -> np.ndarray:
    array = np.zeros((24, 32), dtype=np.uint8)
    array[0:4, 0:4], array[10:14, 0:4], array[0:4, 20:30] = 1, 1, 7
    return array


def test_named_classes_and_void_are_read_from_values(tmp_path):
    array = classes_mask()
    array[20:, :] = 255
    path = save(array, tmp_path / "m.png")
    rules = LabelRules(classes={1: "road", 7: "car"}, void=255)
    instances, void, _ = rules.split(path)
    assert [(i.class_id, i.box) for i in instances] == [(1, (0, 0, 4, 4)), (1, (0, 10, 4, 14)), (7, (20, 0, 30, 4))]
    assert np.array_equal(void, array == 255)
    assert len(LabelRules(instances="class", classes={1: "road", 7: "car"}, void=255).split(path)[0]) == 2


def test_each_value_may_be_an_instance_in_eight_and_sixteen_bits(tmp_path):
    for dtype, value in ((np.uint8, 200), (np.uint16, 40000), (np.int32, 70000)):
        array = classes_mask().astype(dtype)
        array[array == 7] = value
        path = tmp_path / "m.tif"
        Image.fromarray(array).save(path)
        instances, _, _ = LabelRules(instances="ids").split(path)
        assert [(i.id, i.class_id, i.area) for i in instances] == [("1", 1, 32), (str(value), 1, 40)]


def test_palette_masks_are_read_as_indices(tmp_path):
    picture = Image.fromarray(classes_mask()).convert("P")
    picture.putpalette(list(range(255, -1, -1)) * 3)
    picture.save(tmp_path / "m.png")
    assert np.array_equal(read_values(tmp_path / "m.png"), classes_mask())


def test_values_of_unknown_meaning_are_refused_with_what_to_set(tmp_path):
    path = save(classes_mask(), tmp_path / "m.png")
    with pytest.raises(
        DataError, match=r"m\.png has the values 1, 7 besides 0.*class_names 1=NAME 7=NAME.*instances to ids"
    ):
        LabelRules().split(path)
    with pytest.raises(DataError, match=r"has the values 7, which name no class: 1=road\. Add them"):
        LabelRules(classes={1: "road"}).split(path)


def test_a_single_value_that_is_not_one_or_all_ones_is_refused(tmp_path):
    # In a set with several classes an image may have one of them only.
    with pytest.raises(DataError, match="has the values 7 besides 0"):
        LabelRules().split(save((TWO * 7).astype(np.uint8), tmp_path / "m.png"))


def test_a_jpeg_mask_is_recognised_and_read_with_a_threshold(tmp_path):
    path = save(TWO * np.uint8(255), tmp_path / "m.jpg", quality=60)
    with pytest.raises(DataError, match=r"lost its sharp edges, as JPEG.*mask_threshold to 128"):
        LabelRules().split(path)
    instances, _, _ = LabelRules(threshold=128).split(path)
    assert len(instances) == 2
    assert abs(sum(i.area for i in instances) - TWO.sum()) < 12


def coloured() -> np.ndarray:
    array = np.zeros((24, 32, 3), dtype=np.uint8)
    array[0:4, 0:4], array[10:14, 0:4], array[0:4, 20:30] = (255, 0, 0), (255, 0, 0), (0, 255, 1)
    return array


def test_colour_masks_are_refused_until_their_colours_are_named(tmp_path):
    path = save(coloured(), tmp_path / "m.png")
    with pytest.raises(
        DataError, match=r"colours that name no class: #00ff01, #ff0000.*class_names '#00ff01=building'"
    ):
        LabelRules().split(path)
    classes, colours = parse_class_names(["#ff0000=road", "#00ff01=car"])
    instances, _, _ = LabelRules(classes=classes, colours=colours).split(path)
    assert [(classes[i.class_id], i.area) for i in instances] == [("road", 16), ("road", 16), ("car", 40)]
    assert sorted(i.area for i in LabelRules(instances="ids").split(path)[0]) == [32, 40]


def test_class_names_are_values_or_colours():
    assert parse_class_names(None) == (None, None)
    assert parse_class_names(["1=road", "7=small car"]) == ({1: "road", 7: "small car"}, None)
    assert parse_class_names(["#000001=a", "#000002=b", "#0a0003=a"]) == (
        {1: "a", 2: "b"},
        {(0, 0, 1): 1, (0, 0, 2): 2, (10, 0, 3): 1},
    )
    for entries, message in (
        (["road"], "needs entries like 3=road .* got 'road'"),
        (["0=nothing"], "0 is the background"),
        (["1=a", "#000001=b"], "not both"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_class_names(entries)


def test_fractions_and_negative_values_are_refused(tmp_path):
    for array, message in (
        (np.array([[0.0, 0.5]], dtype=np.float32), "fractions such as 0.5"),
        (np.array([[0, -3]], dtype=np.int32), "negative values, -3 for instance"),
    ):
        Image.fromarray(array).save(tmp_path / "m.tif")
        with pytest.raises(DataError, match=message):
            read_values(tmp_path / "m.tif")


def palette_mask(indices: np.ndarray, colours: list[tuple[int, int, int]], path):
    stored = Image.fromarray(indices.astype(np.uint8)).convert("P")
    stored.putpalette([value for colour in colours for value in colour])
    stored.save(path)
    return path


@pytest.mark.parametrize("object_colour", [(255, 255, 255), (1, 1, 1)])
def test_black_is_the_background_of_a_palette_mask_at_any_index(tmp_path, object_colour):
    # A quantiser sorts colours as it likes: the object may be index 0.
    path = palette_mask(~TWO, [object_colour, (0, 0, 0)], tmp_path / "m.png")
    instances, _, _ = LabelRules().split(path)
    assert [i.box for i in instances] == [(1, 1, 5, 5), (10, 10, 20, 20)]
    assert [i.box for i in LabelRules(instances="class").split(path)[0]] == [(1, 1, 20, 20)]


def test_a_palette_mask_with_the_background_first_is_read_by_its_indices(tmp_path):
    path = palette_mask(TWO, [(0, 0, 0), (128, 0, 0)], tmp_path / "m.png")
    assert len(LabelRules().split(path)[0]) == 2
    path = palette_mask(TWO * 2, [(0, 0, 0), (9, 9, 9), (128, 0, 0)], tmp_path / "m.png")
    assert {i.class_id for i in LabelRules(classes={2: "road"}).split(path)[0]} == {2}


def test_a_palette_mask_without_black_is_a_question(tmp_path):
    path = palette_mask(TWO, [(255, 255, 255), (255, 0, 0)], tmp_path / "m.png")
    with pytest.raises(
        DataError,
        match=r"index 0 being #ffffff.*not known.*class_names 1=NAME.*'#ffffff=NAME' '#ff0000=background'",
    ):
        LabelRules().split(path)
    assert len(LabelRules(classes={1: "road"}).split(path)[0]) == 2
    for names, area in ((["#ff0000=road", "#ffffff=background"], 116), (["#ffffff=road", "#ff0000=background"], 652)):
        classes, colours = parse_class_names(names)
        found = LabelRules("class", classes, colours).split(path)[0]
        assert [(classes[i.class_id], i.area) for i in found] == [("road", area)]


def test_a_threshold_looks_at_the_colours_of_a_palette(tmp_path):
    path = palette_mask(TWO, [(0, 0, 0), (200, 200, 200)], tmp_path / "m.png")
    assert len(LabelRules(threshold=128).split(path)[0]) == 2


def test_grey_and_alpha_of_sixteen_bits_keep_their_ids(tmp_path):
    ids = classes_mask().astype(np.uint16)
    ids[ids == 7] = 40007
    png16(np.dstack([ids, np.full_like(ids, 65535)]), tmp_path / "m.png")
    assert [i.id for i in LabelRules(instances="ids").split(tmp_path / "m.png")[0]] == ["1", "40007"]
    png16(np.dstack([ids, ids // 2, ids]), tmp_path / "m.png")
    with pytest.raises(DataError, match="has colours of 16 bits a channel; masks need grey values"):
        read_values(tmp_path / "m.png")


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_mask_drawn_in_the_alpha_of_one_colour_is_read(tmp_path, mode, colour):
    flat = np.full(TWO.shape, colour, dtype=np.uint8)
    alpha = TWO * np.uint8(255)
    save(np.dstack([flat] * (len(mode) - 1) + [alpha]), tmp_path / "m.png")
    assert [i.box for i in LabelRules().split(tmp_path / "m.png")[0]] == [(1, 1, 5, 5), (10, 10, 20, 20)]
    save(np.dstack([alpha] * (len(mode) - 1) + [np.full_like(flat, 200)]), tmp_path / "m.png")
    assert [i.box for i in LabelRules().split(tmp_path / "m.png")[0]] == [(1, 1, 5, 5), (10, 10, 20, 20)]
