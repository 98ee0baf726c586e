import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from samparser.data import DataError
from samparser.data.readers.labels import LabelRules, parse_class_names, read_values, separate
from tests.data.files import full_mask, rectangle, save


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
