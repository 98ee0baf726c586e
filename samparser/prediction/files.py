"""Prediction from image files and prompt files to mask files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from samparser._extras import require
from samparser._memory import PREDICTION, advising
from samparser._words import count, shortened
from samparser.drawing.overlays import overlay
from samparser.prompts.checks import check_boxes, check_points
from samparser.sam.wrapped import input_size

from .mask_files import SegmentedImage, write_coco, write_image, write_label_png
from .mask_generation import generate_masks
from .predictor import predict


def predict_files(
    model: nn.Module,
    processor: Any,
    images: Iterable[str | Path],
    output: str | Path,
    *,
    boxes: str | Path | None = None,
    points: str | Path | None = None,
    grid: int | None = None,
    batch: int = 64,
    progress: bool = True,
) -> list[Path]:
    """Segment image files and write label PNGs, overlays and one COCO file.

    Written are `masks/NAME.png` (0 background, mask number from 1), `overlays/NAME.png` and `masks.json` (COCO with
    run-length encoding, masks in the order of the prompts, overlapping masks whole). NAME is the image's path below
    the folder that was given, or its file name.

    Args:
        model: SamModel, or a PeftModel around one.
        processor: Its SamProcessor.
        images: Image files, or folders that are searched for images.
        output: Folder to write to; made if missing.
        boxes: JSON file {image: [[x0, y0, x1, y1], ...]}, pixels of the original image. An image goes by its NAME, by
            its file name or by its path as given.
        points: JSON file {image: [[x, y], ...]}, one point on each object.
        grid: Points per side of a grid, to segment everything without prompts.
        batch: Prompts decoded at a time.
        progress: Show a progress bar.

    Returns:
        The label PNGs written. Images without prompts, and images of a folder that do not open, are left out with a
        warning.

    Raises:
        ValueError: Not exactly one kind of prompt, a malformed prompt file, prompts for an image that is not there,
            prompts outside their image, two images that would be written to one file, or an image given by its own
            name that is none. All of these are found before anything is written.
        FileNotFoundError: An image or prompt file does not exist.
        ImportError: Pillow, pycocotools or tqdm is missing.
    """
    for module in ("PIL.Image", "pycocotools.mask", "tqdm.auto"):
        require(module, "Writing masks")
    given = [name for name, value in {"boxes": boxes, "points": points, "grid": grid}.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"Give exactly one of boxes, points and grid; given: {', '.join(given) or 'none'}.")
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; name a folder to write to.")
    paths = [Path(image) for image in images]
    files = find_images(paths, output)
    prompts: dict[str, Any] = {}
    if grid is None:
        prompts = _prompts_by_name(boxes or points or "", files, columns=2 if points else 4)
        if without := [name for name in files if name not in prompts]:
            some = f"{len(without)} of {count(len(files), 'image')}"
            warnings.warn(f"{some} have no prompts, first {without[0]}.", stacklevel=2)
    failed = _check_before(files, prompts, paths, input_size(processor), kind=given[0])
    todo = [name for name in files if (grid is not None or name in prompts) and name not in failed]
    written: list[Path] = []

    def segment() -> Iterator[SegmentedImage]:
        for name in require("tqdm.auto", "Progress").tqdm(todo, unit="image", disable=not progress):
            try:
                image = _read(files[name])
            except ValueError as error:
                failed[name] = str(error)
                continue
            scores = None
            if grid is not None:
                masks, scores = generate_masks(model, processor, image, points_per_side=grid)
            else:
                masks = predict(model, processor, image, batch=batch, **{given[0]: prompts[name]})
            path = output / "masks" / Path(name).with_suffix(".png")
            write_label_png(masks, path)
            write_image(overlay(image, masks), output / "overlays" / Path(name).with_suffix(".png"))
            written.append(path)
            yield SegmentedImage(name, masks, None if scores is None else scores.tolist())
        if failed and not written:
            raise ValueError(f"None of the images could be read. {next(iter(failed.values()))}")

    with advising(PREDICTION):
        write_coco(output / "masks.json", segment())
    if failed:
        first = next(iter(failed.values()))
        warnings.warn(f"{len(failed)} of {count(len(files), 'image')} left out, first: {first}", stacklevel=2)
    return written


def _check_before(
    files: Mapping[str, Path], prompts: Mapping[str, Any], images: Sequence[Path], target: int, kind: str
) -> dict[str, str]:
    """Look at the head of every image and at its prompts, so that a mistake in the last one is found first.

    Returns:
        What is wrong with the images that do not open, by NAME.

    Raises:
        ValueError: Prompts do not fit their image, or an image given by its own name does not open.
    """
    from samparser.data.readers.images import image_size

    failed = {}
    for name, path in files.items():
        try:
            size = image_size(path)
        except ValueError as error:
            if path in images:
                raise
            failed[name] = str(error)
            continue
        try:
            if kind == "boxes" and name in prompts:
                check_boxes(prompts[name], size, target)
            elif kind == "points" and name in prompts:
                check_points(prompts[name], None, size)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return failed


def find_images(images: Iterable[str | Path], output: Path | None = None) -> dict[str, Path]:
    """Return image files by NAME: for a folder the path below it, for a file its own name.

    What lies in `output` is left out, as it may be a folder below the images and hold an earlier result.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: There is no image, or two images would share the name of their mask file.
    """
    from samparser.data.readers.images import IMAGE_SUFFIXES

    found: dict[str, Path] = {}
    stems: dict[str, Path] = {}
    for given in images:
        path = Path(given)
        if path.is_dir():
            entries = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            below = {p.relative_to(path).as_posix(): p for p in entries if output is None or output not in p.parents}
        elif path.is_file():
            below = {path.name: path}
        else:
            raise FileNotFoundError(f"There is no image or folder {path}.")
        for name, entry in below.items():
            stem = Path(name).with_suffix("").as_posix()
            if stems.setdefault(stem, entry).resolve() != entry.resolve():
                raise ValueError(f"{stems[stem]} and {entry} would both be written to {stem}.png; do them separately.")
            found[name] = entry
    if not found:
        raise ValueError(f"There is no image ({', '.join(sorted(IMAGE_SUFFIXES))}) in {shortened(images)}.")
    return found


def _read(path: Path) -> np.ndarray:
    from samparser.data.readers.images import read_image

    return read_image(path)


def _prompts_by_name(file: str | Path, files: dict[str, Path], columns: int) -> dict[str, Sequence[Any]]:
    shape = "[x, y]" if columns == 2 else "[x0, y0, x1, y1]"
    expected = f'{{"image.png": [{shape}, ...], ...}}'
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no prompt file {file}. It must hold {expected}.")
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON ({error}). It must hold {expected}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; it must hold {expected}.")
    if {"images", "annotations"} <= content.keys():
        raise ValueError(
            f"{file} is a COCO annotation file; prompts are {expected}, with COCO's (x, y, width, height) written as "
            "(x, y, x + width, y + height). To score a model on a COCO file use evaluate."
        )
    prompts: dict[str, Sequence[Any]] = {}
    for key, rows in content.items():
        if not _is_table(rows, columns):
            raise ValueError(f"{file}, {key!r}: expected a list of {shape}, got {str(rows)[:80]}.")
        matching = [n for n, path in files.items() if key in (n, path.name, str(path))]
        if len(matching) != 1:
            state = (
                "matches none of the images"
                if not matching
                else f"matches {len(matching)} images: {shortened(matching, 3)}"
            )
            raise ValueError(f"{file}: {key!r} {state}. Images go by their path below the folder given, or file name.")
        if matching[0] in prompts:
            raise ValueError(f"{file} names the image {matching[0]} twice.")
        prompts[matching[0]] = rows
    return prompts


def _is_table(rows: Any, columns: int) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == columns and all(isinstance(value, int | float) for value in row)
        for row in rows
    )
