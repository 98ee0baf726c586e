"""Means, deviations, and differences of paired scores with standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

from samparser._extras import require


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and standard deviation over them; the deviation is None for one seed."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Difference:
    """A mean difference of paired scores with its standard error.

    `error` is None where there is only one pair. `seeds` and `units` are how many of each went in, `freedom`
    the error's degrees of freedom after Satterthwaite: few where few seeds make up most of the error.
    """

    mean: float
    error: float | None
    seeds: int
    units: int
    freedom: float = 1.0

    @property
    def errors_needed(self) -> float:
        """How many standard errors it takes: two, or the 97.5 % quantile of Student's t where that is more."""
        t = require("scipy.stats", "Telling whether a difference is larger than chance explains").t
        return max(2.0, float(t.ppf(0.975, self.freedom)))

    @property
    def clear(self) -> bool:
        """Whether it is larger than chance explains; otherwise the data support no order."""
        return self.error is not None and abs(self.mean) > self.errors_needed * self.error


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation (n - 1) of one score per seed.

    >>> spread([1.0, 2.0, 3.0])
    Spread(mean=2.0, deviation=1.0)
    """
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None)


def paired_difference(mine: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> Difference | None:
    """Return the mean of `mine - theirs` over seeds and units (images or volumes), with its standard error.

    Each seed contributes one difference per unit, of the same unit and the same seed on both sides. Seeds and units are
    both samples of what could have been, so both count as random: with S seeds and n units, the error's square is

        var(mean per seed) / S + var(mean per unit) / n - var(rest) / (S n),

    the method of moments for a two-way table with one observation per cell. It is never taken smaller than either of
    the first two terms. With one seed only the units are a sample, and with one unit only the seeds.

    Args:
        mine: For each seed, score by unit. Units without a score on one of the sides are left out.
        theirs: The same for the reference, seeds in the same order.

    Returns:
        None where there is no pair.

    >>> a = [{"x": 0.6, "y": 0.8}, {"x": 0.7, "y": 0.9}]
    >>> b = [{"x": 0.5, "y": 0.5}, {"x": 0.5, "y": 0.5}]
    >>> difference = paired_difference(a, b)
    >>> round(difference.mean, 3), round(difference.error, 3)
    (0.25, 0.112)
    """
    pairs = list(zip(mine, theirs, strict=True))
    if not pairs:
        return None
    units = sorted(set.intersection(*(set(left) & set(right) for left, right in pairs)))
    if not units:
        return None
    table = [[left[unit] - right[unit] for unit in units] for left, right in pairs]
    mean = fmean(value for line in table for value in line)
    error, freedom = _error(table, mean)
    return Difference(mean, error, len(table), len(units), freedom)


def _error(table: Sequence[Sequence[float]], mean: float) -> tuple[float | None, float]:
    """Return the standard error and its degrees of freedom."""
    seeds, units = len(table), len(table[0])
    by_seed = [fmean(line) for line in table]
    by_unit = [fmean(column) for column in zip(*table, strict=True)]
    of_seeds = variance(by_seed) / seeds if seeds > 1 else 0.0
    of_units = variance(by_unit) / units if units > 1 else 0.0
    if seeds == 1 and units == 1:
        return None, 1.0
    if seeds == 1 or units == 1:
        return math.sqrt(of_seeds + of_units), float(max(seeds, units) - 1)
    rest = sum(
        (value - by_seed[s] - by_unit[u] + mean) ** 2 for s, line in enumerate(table) for u, value in enumerate(line)
    )
    of_rest = rest / ((seeds - 1) * (units - 1)) / (seeds * units)
    square = max(of_seeds + of_units - of_rest, of_seeds, of_units)
    if square == 0:
        return 0.0, float(min(seeds, units) - 1)
    freedom = square**2 / (of_seeds**2 / (seeds - 1) + of_units**2 / (units - 1))
    return math.sqrt(square), max(1.0, freedom)
