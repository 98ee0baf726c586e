"""Read a whole data set once and say whether it can be trained on."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from samparser._words import count, printable, shortened
from samparser.data.dataset import SegmentationDataset
from samparser.data.layouts import available_splits, open_dataset
from samparser.data.readers.images import IMAGE_SUFFIXES
from samparser.data.sample import DataError, DataWarning, Sample, Skipped
from samparser.data.settings import DataSettings
from samparser.drawing.contact_sheet import SHEET_CELLS, draw_cell, save_sheet

SPECK = 10  # pixels
SMALL_BOX = 20  # pixels: as far as the paper moves a box's side


@dataclass
class CheckReport:
    """What `check_dataset` found. `str()` of it is a text of one screen.

    Attributes:
        root: Folder of the data set.
        layout: Its layout.
        images: Split -> images with at least one instance.
        instances: Split -> instances.
        classes: Class name -> instances, in the order of the class ids; 0 for a class that never occurs.
        sizes: (width, height) -> images.
        areas: int64 (instances,), pixels of each instance, sorted.
        most_instances: The most instances of an image.
        skipped: What was left out.
        unreadable: Images that would stop a training run, with the error.
        warnings: What is likely to be a mistake.
        errors: Why the data set cannot be opened at all.
        contact_sheet: The picture, if one was asked for and drawn.
    """

    root: Path
    layout: str = "unknown"
    images: dict[str, int] = field(default_factory=dict)
    instances: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    most_instances: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    unreadable: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    contact_sheet: Path | None = None

    @property
    def usable(self) -> bool:
        """Whether a training run on it would go through: it opens, every image is read, and there are instances."""
        return not self.errors and not self.unreadable and bool(self.instances) and all(self.instances.values())

    def __str__(self) -> str:
        lines = [f"{self.root} (layout {self.layout})"]
        for split, images in self.images.items():
            instances = count(self.instances[split], "instance")
            lines.append(f"  {split:<6} {_aligned(count(images, 'image'), 8)} {_aligned(instances, 10)}")
        if len(self.areas):
            lines.append(
                f"  area of an instance: smallest {self.areas[0]:,}, median {int(np.median(self.areas)):,}, largest "
                f"{self.areas[-1]:,} px; at most {count(self.most_instances, 'instance')} in an image"
            )
            sizes = (f"{width} x {height} ({times:,})" for (width, height), times in self.sizes.most_common())
            lines.append(f"  image sizes: {shortened(sizes, 4)}")
            present = (f"{name} {times:,}" for name, times in self.classes.items() if times)
            lines.append(f"  classes: {printable(shortened(present, 12), keep='')}")
        lines += _grouped("left out", self.skipped, self.root)
        lines += _grouped("cannot be read", self.unreadable, self.root)
        lines += [f"  warning: {text}" for text in self.warnings]
        lines += [f"  error: {text}" for text in self.errors]
        if self.contact_sheet:
            lines.append(f"  contact sheet: {self.contact_sheet}")
        lines.append("This data set can be trained on." if self.usable else self._advice())
        return printable("\n".join(lines))

    def _advice(self) -> str:
        if self.unreadable and not self.errors:
            return (
                f"{count(len(self.unreadable), 'image')} cannot be read and would stop a training run: repair or "
                f"remove, or set scan to leave such images out."
            )
        return "This data set cannot be trained on as it is."


def check_dataset(
    settings: DataSettings, split: str = "all", contact_sheet: Path | None = None, progress: bool = True
) -> CheckReport:
    """Read every image and mask of a data set, counts, and looks for what usually goes wrong.

    Args:
        settings: Where and what to read; `limit` makes it quick on a large set. With `scan`, images that cannot be
            read count as left out, as training would leave them out.
        split: "train", "val", "test", or "all" for each split that there is, compared with one another.
        contact_sheet: Picture to draw, with a few images of each split and their masks, boxes and classes.
        progress: Show a progress bar.

    Returns:
        What was found. Faults of the data are in the report; nothing is raised for them.

    Raises:
        ValueError: The name of the contact sheet is not that of a picture.
    """
    report = CheckReport(Path(settings.data))
    if contact_sheet is not None and contact_sheet.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(
            f"The contact sheet is a picture, so its name ends in {', '.join(sorted(IMAGE_SUFFIXES))}; got "
            f"{contact_sheet}."
        )
    with _warnings_into(report):
        tally, datasets = _read(settings, split, report, progress)
    if tally is None:
        return report
    tally.finish(settings)
    if contact_sheet is not None and tally.shown:
        cells = [
            draw_cell(datasets[part][index], part, datasets[part].classes)
            for part, indices in tally.shown.items()
            for index in sorted(indices)
        ]
        title = f"{report.root} ({report.layout}): {', '.join(f'{n:,} {part}' for part, n in report.images.items())}"
        report.contact_sheet = save_sheet(cells, title, contact_sheet)
    return report


@contextmanager
def _warnings_into(report: CheckReport) -> Iterator[None]:
    """Put what reading warns of into the report; other warnings go their way."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", DataWarning)
        yield
    for warning in found:
        text = str(warning.message)
        if not issubclass(warning.category, DataWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        elif text not in report.warnings:
            report.warnings.append(text)


def _read(
    settings: DataSettings, split: str, report: CheckReport, progress: bool
) -> tuple[_Tally | None, dict[str, SegmentationDataset]]:
    """Open the data sets and read all of them; None where they do not open."""
    try:
        parts = (split,) if split != "all" else available_splits(settings)
        datasets = {part: open_dataset(replace(settings, scan=False), part) for part in parts}
    except (DataError, ValueError, ImportError) as error:
        report.errors.append(str(error))
        return None, {}
    tally = _Tally(report, len(datasets))
    for part, dataset in datasets.items():
        tally.read(part, dataset, progress)
    return tally, datasets


class _Tally:
    """Count what goes by, and keep a random choice of images for the contact sheet."""

    def __init__(self, report: CheckReport, parts: int) -> None:
        self.report = report
        self.shown: dict[str, list[int]] = defaultdict(list)
        self._cells = SHEET_CELLS // parts
        self._rng = np.random.default_rng(0)
        self._areas: list[int] = []
        self._sides: list[int] = []
        self._cover: list[float] = []
        self._rectangles = 0
        self._twice = 0
        self._class_counts: Counter[int] = Counter()
        self._class_names: dict[int, str] = {}
        self._where: dict[bytes, list[tuple[str, str]]] = defaultdict(list)

    def read(self, part: str, dataset: SegmentationDataset, progress: bool) -> None:
        report = self.report
        report.layout = dataset.layout
        report.images[part] = report.instances[part] = 0
        report.skipped += [skip for skip in dataset.skipped if skip not in set(report.skipped)]
        self._class_names |= dataset.classes
        for index in tqdm(range(len(dataset)), desc=f"reading {part}", unit="image", leave=False, disable=not progress):
            try:
                sample, skipped = dataset.examine(index)
            except DataError as error:
                report.unreadable.append(Skipped(dataset.names[index], str(error)))
                continue
            report.skipped += skipped
            self._where[hashlib.sha1(sample.image.tobytes()).digest()].append((part, sample.name))
            if not sample.instances:
                report.skipped.append(Skipped(sample.name, "no instance"))
                continue
            report.images[part] += 1
            report.instances[part] += len(sample.instances)
            self._count(sample)
            self._offer(part, index)

    def _count(self, sample: Sample) -> None:
        height, width = sample.size
        self.report.sizes[width, height] += 1
        self.report.most_instances = max(self.report.most_instances, len(sample.instances))
        masks = set()
        for instance in sample.instances:
            x0, y0, x1, y1 = instance.box
            area = instance.area
            self._areas.append(area)
            self._sides.append(min(x1 - x0, y1 - y0))
            self._cover.append(area / (height * width))
            self._rectangles += area == instance.mask.size
            self._class_counts[instance.class_id] += 1
            masks.add((instance.box, instance.mask.tobytes()))
        self._twice += len(sample.instances) - len(masks)

    def _offer(self, part: str, index: int) -> None:
        """Reservoir sampling: each image of a split has the same chance to be on the sheet."""
        shown = self.shown[part]
        place = len(shown) if len(shown) < self._cells else int(self._rng.integers(self.report.images[part]))
        if place < self._cells:
            shown[place : place + 1] = [index]

    def finish(self, settings: DataSettings) -> None:
        report = self.report
        report.areas = np.sort(np.array(self._areas, dtype=np.int64))
        report.classes = {name: self._class_counts[i] for i, name in sorted(self._class_names.items())}
        if settings.scan:
            report.skipped += report.unreadable
            report.unreadable = []
        report.warnings += self._warnings()

    def _warnings(self) -> list[str]:
        found = []
        across = [places for places in self._where.values() if len({part for part, _ in places}) > 1]
        if across:
            one_of_each = dict(reversed(across[0]))
            places = " and ".join(f"{name} ({part})" for part, name in sorted(one_of_each.items())[:2])
            found.append(
                f"{len(across)} images are in more than one split, {places} for instance: scores will flatter."
            )
        within = [p for p in self._where.values() if len({part for part, _ in p}) == 1 and len(p) > 1]
        if within:
            found.append(
                f"{len(within)} images occur twice in a split, {within[0][0][1]} = {within[0][1][1]} for instance."
            )
        if self._twice:
            found.append(f"{self._twice} instances repeat another one of their image, pixel by pixel.")
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


def _aligned(counted: str, width: int) -> str:
    """Pad a number with its noun to the left, so that numbers stand below one another."""
    number, _, noun = counted.partition(" ")
    return f"{number:>{width}} {noun}"


def _grouped(what: str, skipped: list[Skipped], root: Path) -> list[str]:
    """Return one line per reason: how often, and an example."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for where, why in skipped:
        by_reason[_without_names(where, why, root)].append(where)
    rows = sorted(by_reason.items(), key=lambda row: -len(row[1]))
    lines = [f"  {what}: {len(places):,} x {why} ({places[0]})" for why, places in rows[:8]]
    rest = sum(len(places) for _, places in rows[8:])
    return lines + ([f"  {what}: {rest:,} more, for {len(rows) - 8} more reasons"] if rest else [])


def _without_names(where: str, why: str, root: Path) -> str:
    """Return a reason without the names of its own files, so that one reason is one line however many files have it."""
    base = root if root.is_dir() else root.parent
    why = why.replace(f"{base / where}", "it").replace(where, "it")
    return re.sub(rf"\S*\b{re.escape(Path(where).stem)}\.\w+", f"*{Path(where).suffix}", why)
