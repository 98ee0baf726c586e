"""What a check finds, and its text of one screen."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samparser._words import count, printable, shortened
from samparser.data.sample import Skipped


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
