"""Read every image and mask of a data set, count, and look for what usually goes wrong."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from samparser.data.dataset import SegmentationDataset
from samparser.data.layouts import available_splits, open_dataset
from samparser.data.readers.images import IMAGE_SUFFIXES
from samparser.data.sample import DataError, DataWarning
from samparser.data.settings import DataSettings
from samparser.drawing.contact_sheet import draw_cell, save_sheet

from .processes import findings
from .report import CheckReport
from .tally import Tally


def check_dataset(
    settings: DataSettings,
    split: str = "all",
    contact_sheet: Path | None = None,
    progress: bool = True,
    processes: int | None = 1,
) -> CheckReport:
    """Read every image and mask of a data set, count, and look for what usually goes wrong.

    Args:
        settings: Where and what to read; `limit` makes it quick on a large set. With `scan`, images that cannot be
            read count as left out, as training would leave them out.
        split: "train", "val", "test", or "all" for each split that there is, compared with one another.
        contact_sheet: Picture to draw, with a few images of each split and their masks, boxes and classes.
        progress: Show a progress bar.
        processes: Processes that read; they change nothing but the time. None takes as many as the set is worth, at
            most one a core. A script that asks for several needs `if __name__ == "__main__"`.

    Returns:
        What was found. Faults of the data are in the report; nothing is raised for them.

    Raises:
        ValueError: The name of the contact sheet is not that of a picture, or there are fewer processes than one.
        RuntimeError: One of several processes was ended from outside, as a system does where memory runs out.
    """
    report = CheckReport(Path(settings.data))
    if contact_sheet is not None and contact_sheet.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(
            f"The contact sheet is a picture, so its name ends in {', '.join(sorted(IMAGE_SUFFIXES))}; got "
            f"{contact_sheet}."
        )
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1.")
    with _warnings_into(report):
        tally, datasets = _read(settings, split, report, progress, processes)
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
    settings: DataSettings, split: str, report: CheckReport, progress: bool, processes: int | None
) -> tuple[Tally | None, dict[str, SegmentationDataset]]:
    """Open the data sets and read all of them; None where they do not open."""
    try:
        parts = (split,) if split != "all" else available_splits(settings)
        datasets = {part: open_dataset(replace(settings, scan=False), part) for part in parts}
    except (DataError, ValueError, ImportError) as error:
        report.errors.append(str(error))
        return None, {}
    tally = Tally(report, datasets)
    images = sum(len(dataset) for dataset in datasets.values())
    with closing(findings(datasets, processes)) as found:
        for one in tqdm(found, "reading", images, unit="image", leave=False, disable=not progress):
            tally.add(one)
    return tally, datasets
