"""Label Studio's brush masks: run lengths of the bytes of an RGBA picture, packed into bits.

The format is that of @thi.ng/rle-pack, whose description is: 32 bits, the number of words; 5 bits, the size of a word
in bits less 1; four times 4 bits, sizes of a length in bits less 1. Then blocks until all words are there: 1 bit that
says whether one word is repeated, 2 bits that choose the size of the length, the length less 1, and the word that is
repeated, or as many words as the length says. The highest bit comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .segmentations import BadMask

_WORD = 8
_SIZES = (3, 4, 8, 16)  # bits of a length


class _Bits:
    """Numbers out of a string of bits."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read(self, bits: int) -> int:
        """Return the number in the next bits."""
        chunk = self._bytes(bits)
        return int.from_bytes(chunk, "big") >> (-self._at % 8) & ((1 << bits) - 1)

    def read_words(self, number: int) -> np.ndarray:
        """Return the next bytes, which may start in the middle of one: uint8 (number,)."""
        skip = self._at % 8
        chunk = np.frombuffer(self._bytes(number * _WORD), dtype=np.uint8)
        return np.packbits(np.unpackbits(chunk)[skip : skip + number * _WORD])

    def _bytes(self, bits: int) -> bytes:
        start, self._at = self._at, self._at + bits
        if self._at > 8 * len(self._data):
            raise BadMask("brush mask that is cut off")
        return self._data[start // 8 : -(-self._at // 8)]


def brush_mask(rle: object, height: int, width: int) -> np.ndarray:
    """Return a brush mask as bool (height, width): the pixels that are not wholly transparent.

    Args:
        rle: A list of bytes, as Label Studio exports it.
        height: Of the image.
        width: Of the image.

    Raises:
        BadMask: It does not decode, or is of another size.
    """
    if not isinstance(rle, list):
        raise BadMask("brush mask that is not a list of bytes")
    try:
        data = bytes(rle)
    except (TypeError, ValueError):
        raise BadMask("brush mask that is not a list of bytes") from None
    bits = _Bits(data)
    words, word = bits.read(32), bits.read(5) + 1
    if words != 4 * height * width:
        raise BadMask("brush mask of another size than its image")
    if word != _WORD:
        raise BadMask(f"brush mask of words of {word} bits; Label Studio's have {_WORD}")
    sizes = [bits.read(4) + 1 for _ in range(4)]
    pixels = np.empty(words, dtype=np.uint8)
    done = 0
    while done < words:
        repeated = bits.read(1)
        length = bits.read(sizes[bits.read(2)]) + 1
        if done + length > words:
            raise BadMask("brush mask longer than its image")
        pixels[done : done + length] = bits.read(_WORD) if repeated else bits.read_words(length)
        done += length
    mask: np.ndarray = pixels.reshape(height, width, 4)[:, :, 3] > 0
    return mask


def brush_rle(mask: np.ndarray) -> list[int]:
    """Return a bool mask (H, W) as Label Studio exports a brush: white where the mask is, transparent elsewhere."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = 4 * np.diff(np.append(starts, len(flat)))
    text = [f"{4 * len(flat):032b}", f"{_WORD - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for value, length in zip(flat[starts].tolist(), lengths.tolist(), strict=True):
        text += (_block(value, part) for part in _parts(length))
    bits = "".join(text)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def _parts(length: int) -> Sequence[int]:
    """Return lengths that fit a block and add up."""
    longest = 1 << _SIZES[-1]
    return [longest] * (length // longest) + ([length % longest] if length % longest else [])


def _block(value: bool, length: int) -> str:
    choice = next(number for number, size in enumerate(_SIZES) if length <= 1 << size)
    return f"1{choice:02b}{length - 1:0{_SIZES[choice]}b}{255 * value:08b}"
