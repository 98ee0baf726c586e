import math

import numpy as np
import pytest

from samparser.compare.statistics import Difference, paired_difference, spread


def test_one_seed_has_no_deviation():
    assert spread([0.5]).deviation is None


def test_the_paired_error_equals_a_computation_by_hand():
    # Differences, seeds by rows:  a: 0.1, 0.3, 0.2   b: 0.0, 0.4, 0.5
    mine = [{"x": 0.6, "y": 0.8, "z": 0.7}, {"x": 0.5, "y": 0.9, "z": 1.0}]
    theirs = [{"x": 0.5, "y": 0.5, "z": 0.5}] * 2
    difference = paired_difference(mine, theirs)
    # Seed means 0.2, 0.3: variance 0.005, over 2 seeds 0.0025.
    # Unit means 0.05, 0.35, 0.35: variance 0.03, over 3 units 0.01.
    # Residuals 0.1, 0, -0.1, -0.1, 0, 0.1: their squares 0.04, over 1 * 2 degrees of freedom 0.02; over 6 cells.
    expected = math.sqrt(0.0025 + 0.01 - 0.02 / 6)
    assert difference.mean == pytest.approx(0.25)
    # The sum is smaller than the units' own part, which is the least that counts.
    assert expected < math.sqrt(0.01)
    assert difference.error == pytest.approx(math.sqrt(0.01))
    assert (difference.seeds, difference.units) == (2, 3)
    # Satterthwaite: 0.01**2 / (0.0025**2 / 1 + 0.01**2 / 2).
    assert difference.freedom == pytest.approx(1e-4 / (6.25e-6 + 5e-5))
    # With so few, two and a half standard errors are not enough.
    assert not difference.clear


def test_the_error_is_that_of_seeds_and_units_without_an_interaction():
    mine = [{"x": 0.1, "y": 0.3}, {"x": 0.2, "y": 0.4}]
    difference = paired_difference(mine, [{"x": 0.0, "y": 0.0}] * 2)
    assert difference.error == pytest.approx(math.sqrt(0.005 / 2 + 0.02 / 2))


def test_with_one_seed_the_error_is_that_of_the_units_alone():
    difference = paired_difference([{"x": 0.2, "y": 0.6}], [{"x": 0.1, "y": 0.1}])
    assert difference.error == pytest.approx(math.sqrt(0.08 / 2))
    assert not difference.clear


@pytest.mark.parametrize(("freedom", "needed"), [(1, 12.706), (2, 4.303), (10, 2.228), (60, 2.0003), (1000, 2.0)])
def test_few_degrees_of_freedom_ask_for_more_than_two_standard_errors(freedom, needed):
    # Table of Student's t, two-sided, 5 %.
    assert Difference(1.0, 0.1, 2, 2, freedom).errors_needed == pytest.approx(needed, abs=1e-3)
    assert Difference(needed * 0.1 + 1e-3, 0.1, 2, 2, freedom).clear
    assert not Difference(-needed * 0.1 + 1e-3, 0.1, 2, 2, freedom).clear


def test_one_pair_supports_nothing():
    difference = paired_difference([{"x": 0.9}], [{"x": 0.1}])
    assert (difference.error, difference.clear) == (None, False)


def test_units_without_a_partner_are_left_out():
    difference = paired_difference([{"x": 0.2, "q": 9.0}], [{"x": 0.1, "p": 9.0}])
    assert (difference.units, round(difference.mean, 6)) == (1, 0.1)
    assert paired_difference([{"x": 1.0}], [{"y": 1.0}]) is None
    assert paired_difference([], []) is None


def test_the_error_has_the_size_of_what_repetitions_give():
    # Effects of seeds (deviation 1), of units (2) and of both (3): variance of the mean 1/4 + 4/25 + 9/100 = 0.5.
    rng = np.random.default_rng(0)
    means, squares = [], []
    for _ in range(300):
        table = rng.normal(0, 1, (4, 1)) + rng.normal(0, 2, (1, 25)) + rng.normal(0, 3, (4, 25))
        rows = [dict(enumerate(line)) for line in table.tolist()]
        difference = paired_difference(rows, [dict.fromkeys(range(25), 0.0)] * 4)
        means.append(difference.mean)
        squares.append(difference.error**2)
    assert np.var(means) == pytest.approx(0.5, rel=0.25)
    # The bound from below makes it a little larger on average, never smaller.
    assert 0.95 * 0.5 < np.mean(squares) < 1.35 * 0.5
