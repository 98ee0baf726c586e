"""The palette: colours that can be told apart, and one for each mask."""

import numpy as np

from samparser.drawing.palette import INSTANCE_COLOURS, LINE_COLOURS, instance_colour, rgb


def test_the_colours_are_those_of_okabe_and_ito():
    okabe_ito = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert set(INSTANCE_COLOURS) | set(LINE_COLOURS) <= okabe_ito
    assert len(set(INSTANCE_COLOURS)) == 7


def test_masks_beyond_the_seventh_begin_with_the_first_colour_again():
    assert [instance_colour(number) for number in (0, 6, 7)] == ["#E69F00", "#CC79A7", "#E69F00"]
    assert rgb("#E69F00").tolist() == [230, 159, 0]
    assert rgb("#E69F00").dtype == np.uint8
