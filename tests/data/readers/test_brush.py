import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from samparser.data.readers.brush import brush_mask, brush_rle
from samparser.data.readers.segmentations import BadMask


def unpacked(rle):
    """The words of a packed list, read bit by bit from a text of noughts and ones, as its description says."""
    bits = iter("".join(f"{byte:08b}" for byte in rle))

    def number(size):
        return int("".join(next(bits) for _ in range(size)), 2)

    words, word = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    found = []
    while len(found) < words:
        repeated, size = number(1), sizes[number(2)]
        length = number(size) + 1
        found += [number(word)] * length if repeated else [number(word) for _ in range(length)]
    return np.array(found)


def packed(words, blocks, sizes=(3, 4, 8, 16), word=8):
    """Blocks of (repeated, which size, values) as bytes, written as a text of noughts and ones."""
    text = f"{words:032b}{word - 1:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    for repeated, choice, length, values in blocks:
        text += f"{repeated}{choice:02b}{length - 1:0{sizes[choice]}b}" + "".join(
            f"{value:0{word}b}" for value in values
        )
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]


def test_the_start_of_a_real_export_is_understood():
    # The first bytes of a brush of 3332 x 2527 px in alkzar90/cell_benchmark on the hub: its length in words, words of
    # 8 bits, the sizes 3, 4, 8 and 16, and the first of many blocks of 65,536 noughts.
    start = [2, 1, 233, 240, 57, 27, 255, 255, 255, 0]
    assert packed(4 * 3332 * 2527, [(1, 3, 65536, (0,))]) == start
    with pytest.raises(BadMask, match="cut off"):
        brush_mask(start, 2527, 3332)


def test_repeated_and_single_words_of_every_size_are_unpacked():
    on, off = (255, 255, 255, 255), (0, 0, 0, 0)
    blocks = [
        (0, 0, 8, (*on, 7, 7, 7, 0)),  # a colour that is wholly transparent
        (1, 1, 12, (0,)),
        (0, 2, 20, (*on, *on, *off, 9, 9, 9, 1, *off)),
        (1, 3, 40, (255,)),
        (1, 0, 4, (0,)),
    ]
    mask = brush_mask(packed(84, blocks, (4, 4, 7, 16)), 3, 7)
    expected = "1000011" + "0101111" + "1111110"
    assert "".join(str(int(pixel)) for pixel in mask.ravel()) == expected


@given(mask=arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 40))))
def test_packing_is_undone_by_unpacking_and_by_a_reading_bit_by_bit(mask):
    rle = brush_rle(mask)
    assert np.array_equal(brush_mask(rle, *mask.shape), mask)
    words = unpacked(rle)
    assert set(words) <= {0, 255}
    assert np.array_equal(words.reshape(*mask.shape, 4) > 0, np.repeat(mask[:, :, None], 4, axis=2))


def test_runs_longer_than_the_largest_block_are_divided():
    mask = np.zeros((300, 300), dtype=bool)
    mask[100:] = True
    assert np.array_equal(brush_mask(brush_rle(mask), 300, 300), mask)


@pytest.mark.parametrize(
    ("rle", "why"),
    [
        (packed(24, [(1, 3, 24, (255,))])[:-1], "brush mask that is cut off"),
        ([], "brush mask that is cut off"),
        (packed(20, [(1, 3, 20, (255,))]), "brush mask of another size than its image"),
        (packed(2**32 - 1, [(1, 3, 20, (255,))]), "brush mask of another size than its image"),
        (packed(24, [(1, 3, 25, (255,))]), "brush mask longer than its image"),
        (packed(24, [(1, 3, 24, (1,))], word=1), "brush mask of words of 1 bits; Label Studio's have 8"),
        ([1, 2, 300], "brush mask that is not a list of bytes"),
        (["a"], "brush mask that is not a list of bytes"),
        (10**12, "brush mask that is not a list of bytes"),
        ("abc", "brush mask that is not a list of bytes"),
    ],
)
def test_a_damaged_brush_gives_a_reason(rle, why):
    with pytest.raises(BadMask) as caught:
        brush_mask(rle, 2, 3)
    assert str(caught.value) == why
