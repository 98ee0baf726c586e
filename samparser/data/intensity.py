"""How values of more than 8 bits become 0 to 255."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_FORM = re.compile(rf"{_NUMBER}(%?),{_NUMBER}(%?)")


@dataclass(frozen=True)
class Intensity:
    """The values that become black and white; those between them are mapped linearly, those beyond are cut off.

    Attributes:
        low: The value, or the percentile, that becomes 0.
        high: The value, or the percentile, that becomes 255.
        percent: Whether these are percentiles of each image rather than values of all.
    """

    low: float
    high: float
    percent: bool

    @classmethod
    def parse(cls, text: str) -> Intensity:
        """Return what a setting says: `0,4095` are values, `1%,99%` percentiles of each image.

        Raises:
            ValueError: The text has another form, or its range is empty.
        """
        match = _FORM.fullmatch(text.replace(" ", ""))
        if match is None or match[2] != match[4]:
            raise ValueError(
                f"intensity_range={text!r} is not possible; give two values, as 0,4095, which hold for all images, or "
                f"two percentiles of each image, as 1%,99%."
            )
        low, high, percent = float(match[1]), float(match[3]), bool(match[2])
        if not (low < high and math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"intensity_range={text!r} is empty; the first number has to be the smaller one.")
        if percent and not (low >= 0 and high <= 100):
            raise ValueError(f"intensity_range={text!r} has percentiles beyond 0 and 100.")
        return cls(low, high, percent)

    def limits(self, values: np.ndarray) -> tuple[float, float]:
        """Return the values of an image that become 0 and 255; its extremes where the percentiles are one value."""
        if not self.percent:
            return self.low, self.high
        low, high = np.percentile(values, [self.low, self.high])
        if high <= low:
            low, high = values.min(), values.max()
        return float(low), float(high)


EACH_BY_ITSELF = Intensity(0.1, 99.9, percent=True)
"""What holds where nothing is said: each image is stretched between percentiles of its own."""


def chosen(text: str | None) -> Intensity:
    """Return what a setting says, and what holds where nothing is said for None.

    Raises:
        ValueError: The text has another form, or its range is empty.
    """
    return EACH_BY_ITSELF if text is None else Intensity.parse(text)
