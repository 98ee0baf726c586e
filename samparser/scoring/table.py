"""Score table: IoU, F1 (= Dice) and volume DSC of a data set in every usual average, each with its definition."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from samparser._files import write_text

from .counts import InstanceScore
from .report import report

_COLUMNS = (
    "image",
    "instance",
    "class",
    "class_id",
    "area",
    "predicted_area",
    "intersection",
    "union",
    "iou",
    "f1",
    "volume",
)

DEFINITIONS = {
    "instance_image_mean": "The primary score: IoU and F1 (= Dice) of each instance at original image size, mean over "
    "the instances of an image, then mean over images (samplewise macro, with an instance as the class).",
    "instance_mean": "The same per-instance IoU and F1, mean over all instances of the data set at once: macro over "
    "instances.",
    "class_mean": "Mean over the instances of a class, then mean over the classes that occur: macro over classes.",
    "global_pixels": "Intersections, unions and areas summed over all instances first, then one ratio: global micro. "
    "Large objects weigh most.",
    "volume_dsc": "Dice of an organ over the pixels of all scored slices of a volume, mean over the organs of the "
    "volume, then mean over volumes: samplewise macro, with a volume as the sample. Slices in which an organ was not "
    "prompted do not enter.",
    "not_counted": "Instances (and organs of a volume) that are empty in truth and in prediction have no ratio and "
    "enter no mean.",
}


class ScoreTable:
    """Per-instance scores of a data set and their averages.

    Rows are kept as integer counts and sums are exactly rounded (`math.fsum`), so the order of the rows, and how
    they were spread over processes, does not change a single bit of any average. Tables are equal if their rows and
    classes are.

    Args:
        rows: One row per instance; an (image, instance) pair may occur once.
        classes: Names of the class ids; an id without a name goes by its number.
        prompt: What each instance was prompted with, as a sentence to stand beside the definitions.
        masks: Which of a model's masks were scored, as another one.

    Raises:
        ValueError: The same instance of the same image occurs twice.

    Example:
        >>> rows = [InstanceScore("a.png", "0", class_id=1, area=4, predicted_area=4, intersection=2)]
        >>> rows += [InstanceScore("b.png", "0", class_id=1, area=9, predicted_area=9, intersection=9)]
        >>> table = ScoreTable(rows, {1: "ship"})
        >>> round(table.miou, 3), table.f1  # (1/3 + 1) / 2 and (1/2 + 1) / 2
        (0.667, 0.75)
    """

    def __init__(
        self,
        rows: Iterable[InstanceScore],
        classes: Mapping[int, str] | None = None,
        prompt: str | None = None,
        masks: str | None = None,
    ) -> None:
        self.classes, self.prompt, self.masks = dict(classes or {}), prompt, masks
        self.rows = tuple(sorted(rows, key=_key))
        for before, after in zip(self.rows, self.rows[1:], strict=False):
            if _key(before) == _key(after):
                raise ValueError(
                    f"Instance {after.instance} of {after.image} is scored twice. Names of images must be unique in "
                    "the data set and names of instances in their image; to join tables of several processes use "
                    "merge(), which drops equal rows."
                )

    @property
    def miou(self) -> float:
        """The primary mIoU, "instance-image mean", from 0 to 1; not-a-number for an empty table."""
        return _mean(iou for iou, _ in self.image_scores().values())

    @property
    def f1(self) -> float:
        """The primary F1, "instance-image mean", from 0 to 1; not-a-number for an empty table."""
        return _mean(f1 for _, f1 in self.image_scores().values())

    @property
    def dsc(self) -> float:
        """Volume DSC from 0 to 1; not-a-number when no row belongs to a volume."""
        return _mean(_mean(organs.values()) for organs in self.volume_dice().values())

    def image_scores(self) -> dict[str, tuple[float, float]]:
        """Return mean IoU and mean F1 over the instances of each image that has a counted instance."""
        return {image: _means(rows) for image, rows in _group(self._counted, lambda row: row.image).items()}

    def volume_dice(self) -> dict[str, dict[int, float]]:
        """Return Dice by volume and class id of the organ, over whole volumes; organs without a ratio are left out."""
        volumes: dict[str, dict[int, float]] = {}
        in_volume = (row for row in self._counted if row.volume is not None)
        for (volume, class_id), rows in _group(in_volume, lambda row: (row.volume, row.class_id)).items():
            volumes.setdefault(volume, {})[class_id] = _pixel_ratios(rows)[1]
        return volumes

    def merge(self, *others: ScoreTable) -> ScoreTable:
        """Join tables of several processes; the order does not matter.

        Rows that are equal in every number count once: samplers repeat a few images so that all processes have
        equally many.

        Raises:
            ValueError: Two tables hold different counts for one instance, name a class differently, or were made with
                different prompts or masks.
        """
        said = {}
        for word in ("prompt", "masks"):
            found = {getattr(table, word) for table in (self, *others)} - {None}
            if len(found) > 1:
                words = f"{word.removesuffix('s')}s"
                raise ValueError(f"The tables were made with different {words}, {sorted(map(str, found))}: no average.")
            said[word] = next(iter(found), None)
        rows: dict[tuple[str, str], InstanceScore] = {}
        classes: dict[int, str] = {}
        for table in (self, *others):
            for class_id, name in table.classes.items():
                if classes.setdefault(class_id, name) != name:
                    raise ValueError(
                        f"Class {class_id} is {classes[class_id]!r} in one table and {name!r} in another: "
                        "the tables are of different data sets."
                    )
            for row in table.rows:
                known = rows.setdefault(_key(row), row)
                if known != row:
                    raise ValueError(
                        f"Instance {row.instance} of {row.image} has different counts in two tables, {known} and "
                        f"{row}: they come from different models or data sets and have no common average."
                    )
        return ScoreTable(rows.values(), dict(sorted(classes.items())), **said)

    def summary(self) -> dict[str, Any]:
        """Return all averages as plain numbers from 0 to 1, under the names that `definitions` explains.

        Means over nothing are not-a-number. `volume_dsc` is there only when rows belong to volumes.
        """
        per_class = {
            self._class_name(class_id): {"instances": len(rows), **_pair(*_means(rows))}
            for class_id, rows in sorted(_group(self._counted, lambda row: row.class_id).items())
        }
        result: dict[str, Any] = {
            "images": len({row.image for row in self.rows}),
            "instances": len(self.rows),
            "not_counted": len(self.rows) - len(self._counted),
            "instance_image_mean": _pair(self.miou, self.f1),
            "instance_mean": _pair(*_means(self._counted)),
            "class_mean": _pair(
                _mean(scores["miou"] for scores in per_class.values()),
                _mean(scores["f1"] for scores in per_class.values()),
            ),
            "global_pixels": _pair(*_pixel_ratios(self._counted)),
            "per_class": per_class,
        }
        if volumes := self.volume_dice():
            organs: defaultdict[int, list[float]] = defaultdict(list)
            for dice in volumes.values():
                for class_id, value in dice.items():
                    organs[class_id].append(value)
            result["volume_dsc"] = {
                "dsc": self.dsc,
                "volumes": len(volumes),
                "per_class": {self._class_name(organ): _mean(organs[organ]) for organ in sorted(organs)},
            }
        return result

    def definitions(self) -> dict[str, str]:
        """Return what each average of `summary` means, in a sentence to print beside it; prompt and masks if known."""
        summary = self.summary()
        known = {name: text for name, text in (("prompt", self.prompt), ("masks", self.masks)) if text is not None}
        return {name: text for name, text in DEFINITIONS.items() if name in summary} | known

    def to_csv(self, path: str | Path) -> None:
        """Write one line per instance, sorted by image and instance; IoU and F1 from 0 to 1, empty if undefined."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for row in self.rows:
            ratios = [f"{ratio:.6f}" if math.isfinite(ratio) else "" for ratio in (row.iou, row.f1)]
            counts = [row.area, row.predicted_area, row.intersection, row.union]
            names = [row.image, row.instance, self.classes.get(row.class_id, row.class_id), row.class_id]
            writer.writerow([*names, *counts, *ratios, row.volume if row.volume is not None else ""])
        write_text(path, buffer.getvalue())

    @classmethod
    def from_csv(cls, path: str | Path) -> ScoreTable:
        """Read what `to_csv` wrote; ratios are computed again from the counts.

        Raises:
            ValueError: The file lacks columns, or holds something that is not a count.
        """
        rows, classes = [], {}
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := [column for column in _COLUMNS if column not in (reader.fieldnames or ())]:
                raise ValueError(f"{path} is not a table of instance scores: it lacks {', '.join(missing)}.")
            for line in reader:
                try:
                    class_id = int(line["class_id"])
                    row = InstanceScore(
                        image=line["image"],
                        instance=line["instance"],
                        class_id=class_id,
                        area=int(line["area"]),
                        predicted_area=int(line["predicted_area"]),
                        intersection=int(line["intersection"]),
                        volume=line["volume"] or None,
                    )
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
                rows.append(row)
                if line["class"] != str(class_id):
                    classes[class_id] = line["class"]
        return cls(rows, classes)

    def to_json(self, path: str | Path) -> None:
        """Write the averages with their definitions; a mean over nothing becomes null."""
        content = {"scores": _without_nan(self.summary()), "definitions": self.definitions()}
        write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreTable):
            return NotImplemented
        return self.rows == other.rows and self.classes == other.classes

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return report(self.summary(), self.definitions())

    @property
    def _counted(self) -> list[InstanceScore]:
        return [row for row in self.rows if row.union > 0]

    def _class_name(self, class_id: int) -> str:
        name = self.classes.get(class_id, str(class_id))
        shared = list(self.classes.values()).count(name) > 1
        return f"{name} ({class_id})" if shared else name


def _key(row: InstanceScore) -> tuple[str, str]:
    return row.image, row.instance


def _group(rows: Iterable[InstanceScore], key: Callable[[InstanceScore], Any]) -> dict[Any, list[InstanceScore]]:
    groups: dict[Any, list[InstanceScore]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def _means(rows: Iterable[InstanceScore]) -> tuple[float, float]:
    rows = list(rows)
    return _mean(row.iou for row in rows), _mean(row.f1 for row in rows)


def _pixel_ratios(rows: Iterable[InstanceScore]) -> tuple[float, float]:
    rows = list(rows)
    intersection, union = sum(row.intersection for row in rows), sum(row.union for row in rows)
    return (intersection / union, 2 * intersection / (intersection + union)) if union else (math.nan, math.nan)


def _pair(miou: float, f1: float) -> dict[str, float]:
    return {"miou": miou, "f1": f1}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
