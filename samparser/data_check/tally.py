"""What all images of a data set come to: counts, distributions and warnings."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict

import numpy as np

from samparser._words import count, shortened
from samparser.data.dataset import SegmentationDataset
from samparser.data.sample import Skipped
from samparser.data.settings import DataSettings
from samparser.drawing.contact_sheet import SHEET_CELLS

from .finding import Finding
from .report import CheckReport

SPECK = 10  # pixels
SMALL_BOX = 20  # pixels: as far as the paper moves a box's side


class Tally:
    """Count what goes by, and keep a random choice of images for the contact sheet.

    Of an image a number or two are kept for each instance, and one for its pixels, so that a large set fits.

    Args:
        report: What the counts go into.
        datasets: The splits, by name.
    """

    def __init__(self, report: CheckReport, datasets: dict[str, SegmentationDataset]) -> None:
        self.report = report
        self.shown: dict[str, list[int]] = defaultdict(list)
        self._datasets = datasets
        self._cells = SHEET_CELLS // len(datasets)
        self._rng = np.random.default_rng(0)
        self._areas, self._sides, self._cover = array("q"), array("q"), array("d")
        self._rectangles = 0
        self._repeated = 0
        self._class_counts: Counter[int] = Counter()
        self._starts: dict[str, int] = {}  # split -> number of its first image, where all are counted on
        self._first: dict[bytes, int] = {}  # hash of the pixels -> number of the first image that has them
        self._same: dict[int, list[int]] = {}  # that number -> numbers of all of them, where there are several
        start = 0
        for part, dataset in datasets.items():
            self._starts[part], start = start, start + len(dataset)

    def add(self, found: Finding) -> None:
        """Count one image; images come split by split, in order."""
        report, part = self.report, found.part
        if part not in report.images:
            self._begin(part)
        if found.error is not None:
            report.unreadable.append(Skipped(found.name, found.error))
            return
        report.skipped += found.skipped
        number = self._starts[part] + found.index
        first = self._first.setdefault(found.pixels, number)
        if first != number:
            self._same.setdefault(first, [first]).append(number)
        if not len(found.areas):
            report.skipped.append(Skipped(found.name, "no instance"))
            return
        report.images[part] += 1
        report.instances[part] += len(found.areas)
        report.sizes[found.width, found.height] += 1
        report.most_instances = max(report.most_instances, len(found.areas))
        self._areas.extend(found.areas)
        self._sides.extend(found.sides)
        self._cover.extend(area / (found.height * found.width) for area in found.areas)
        self._rectangles += found.rectangles
        self._repeated += found.repeated
        self._class_counts.update(found.class_ids)
        self._offer(part, found.index)

    def _begin(self, part: str) -> None:
        report, dataset = self.report, self._datasets[part]
        report.layout = dataset.layout
        report.images[part] = report.instances[part] = 0
        known = set(report.skipped)
        report.skipped += [skip for skip in dataset.skipped if skip not in known]

    def _offer(self, part: str, index: int) -> None:
        """Reservoir sampling: each image of a split has the same chance to be on the sheet."""
        shown = self.shown[part]
        place = len(shown) if len(shown) < self._cells else int(self._rng.integers(self.report.images[part]))
        if place < self._cells:
            shown[place : place + 1] = [index]

    def _where(self, number: int) -> tuple[str, str]:
        """Return split and name of an image."""
        part = next(part for part in reversed(self._starts) if self._starts[part] <= number)
        return part, self._datasets[part].names[number - self._starts[part]]

    def finish(self, settings: DataSettings) -> None:
        """Put distributions and warnings into the report."""
        report = self.report
        report.areas = np.sort(np.array(self._areas, dtype=np.int64))
        names = {id: name for dataset in self._datasets.values() for id, name in dataset.classes.items()}
        report.classes = {name: self._class_counts[id] for id, name in sorted(names.items())}
        if settings.scan:
            report.skipped += report.unreadable
            report.unreadable = []
        report.warnings += self._warnings()

    def _warnings(self) -> list[str]:
        found = []
        same = [[self._where(number) for number in numbers] for _, numbers in sorted(self._same.items())]
        across = [places for places in same if len({part for part, _ in places}) > 1]
        if across:
            one_of_each = dict(reversed(across[0]))
            places = " and ".join(f"{name} ({part})" for part, name in sorted(one_of_each.items())[:2])
            found.append(
                f"{len(across)} images are in more than one split, {places} for instance: scores will flatter."
            )
        within = [places for places in same if len({part for part, _ in places}) == 1]
        if within:
            found.append(
                f"{len(within)} images occur twice in a split, {within[0][0][1]} = {within[0][1][1]} for instance."
            )
        if self._repeated:
            found.append(f"{self._repeated} instances repeat another one of their image, pixel by pixel.")
        absent = [name for name, times in self.report.classes.items() if times == 0]
        if absent and self._areas:
            found.append(f"{len(absent)} of {len(self.report.classes)} classes never occur: {shortened(absent, 6)}.")
        if len(self._areas) >= 10 and self._rectangles > 0.9 * len(self._areas):
            found.append("nearly all masks are filled rectangles: are these boxes, and not outlines of objects?")
        if self._cover and float(np.median(self._cover)) > 0.8:
            found.append("the median mask covers over 80 % of its image: are object and background exchanged?")
        specks = sum(area < SPECK for area in self._areas)
        if specks:
            have = "has" if specks == 1 else "have"
            found.append(
                f"{count(specks, 'instance')} {have} fewer than {SPECK} px; set min_area to leave such specks out."
            )
        if self._sides and float(np.median(self._sides)) < SMALL_BOX:
            found.append(
                f"the median shorter side of a box is {int(np.median(self._sides))} px, so moving box sides by up to "
                f"{SMALL_BOX} px in training makes prompts that say little: consider jitter_max_fraction 0.1."
            )
        return found
