"""Colour palette that people with any common colour vision tell apart (Okabe and Ito, jfly.uni-koeln.de/color)."""

from __future__ import annotations

import numpy as np

BLACK = "#000000"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"

# Lines are told from one another by colour and dash; instances by colour only, brightest first on dark images.
LINE_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
LINE_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
INSTANCE_COLOURS = (ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE)


def instance_colour(number: int) -> str:
    """Return the colour of mask number i, the same in every picture."""
    return INSTANCE_COLOURS[number % len(INSTANCE_COLOURS)]


def rgb(colour: str) -> np.ndarray:
    """Return a "#RRGGBB" colour as uint8 (3,)."""
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)], dtype=np.uint8)
