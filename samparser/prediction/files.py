"""Prediction from image files and prompt files to mask files."""

from __future__ import annotations

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
from samparser.sam.frame import Frame, frame_of

from .cropped_mask import CroppedMask
from .mask_files import SegmentedImage, write_coco, write_image, write_label_png
from .mask_generation import check_thresholds, generate_cropped
from .output_folder import OutputFolder
from .predictor import SamPredictor, narrow
from .prompt_files import read_prompts


class PredictedFiles(list[Path]):
    """The label PNGs that `predict_files` wrote, in the order of the images, and what it could not do.

    Attributes:
        left_out: Why images were left out, by NAME: those of a folder that do not open or cannot be segmented.
        empty: The images, by NAME, in which a grid found nothing.
        lowered: That thresholds were lowered for an image, and to what, by NAME; see `generate_masks`.
        replaced: Files of an earlier prediction that were replaced; with `overwrite` any others too.
    """

    def __init__(self, left_out: dict[str, str], replaced: list[Path]) -> None:
        super().__init__()
        self.left_out, self.replaced = left_out, replaced
        self.empty: list[str] = []
        self.lowered: dict[str, str] = {}


def predict_files(
    model: nn.Module,
    processor: Any,
    images: Iterable[str | Path],
    output: str | Path,
    *,
    boxes: str | Path | None = None,
    points: str | Path | None = None,
    grid: int | None = None,
    pred_iou_thresh: float | None = None,
    stability_score_thresh: float | None = None,
    batch: int = 64,
    overwrite: bool = False,
    progress: bool = True,
    intensity_range: str | None = None,
) -> PredictedFiles:
    """Segment image files and write label PNGs, overlays and one COCO file.

    Written are `masks/NAME.png` (0 background, mask number from 1), `overlays/NAME.png` and `masks.json` (COCO with
    run-length encoding, masks in the order of the prompts, overlapping masks whole). NAME is the image's path below
    the folder that was given, or its file name. The `info` of `masks.json` lists the files: a later call knows its own.

    Masks are worked on in pieces and kept packed, so that beside the image, its overlay and its labels memory does not
    grow with the number of masks.

    Args:
        model: A model of a SAM family, or a PeftModel around one.
        processor: Its processor.
        images: Image files, or folders that are searched for images; hidden files and folders are left out.
        output: Folder to write to; made if missing.
        boxes: JSON file {image: [[x0, y0, x1, y1], ...]}, pixels of the original image. An image goes by its NAME, by
            its file name or by its path as given.
        points: JSON file {image: [[x, y], ...]}, one point on each object.
        grid: Points per side of a grid, to segment everything without prompts.
        pred_iou_thresh: For a grid, see `generate_masks`.
        stability_score_thresh: For a grid, see `generate_masks`.
        batch: Prompts decoded at a time.
        overwrite: Replace files of these names that this command did not write, or that changed since.
        progress: Show a progress bar.
        intensity_range: What becomes black and white of images with more than 8 bits, as in training: `0,4095` are
            values, `1%,99%` percentiles of each image; None is `0.1%,99.9%`.

    Returns:
        The label PNGs written. Images without prompts, and images of a folder that do not open or cannot be segmented,
        are left out with a warning.

    Raises:
        ValueError: Not exactly one kind of prompt, a malformed prompt file, prompts for an image that is not there,
            prompts outside their image, two images that would be written to one file, an image given by its own
            name that is none, or a file that would be replaced and is not this command's own. All of these are found
            before anything is written.
        FileNotFoundError: An image or prompt file does not exist.
        BlockingIOError: Another process writes to the folder.
        ImportError: Pillow, pycocotools or tqdm is missing.
    """
    for module in ("PIL.Image", "pycocotools.mask", "tqdm.auto"):
        require(module, "Writing masks")
    given = [name for name, value in {"boxes": boxes, "points": points, "grid": grid}.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"Give exactly one of boxes, points and grid; given: {', '.join(given) or 'none'}.")
    if grid is None and (pred_iou_thresh, stability_score_thresh) != (None, None):
        raise ValueError("pred_iou_thresh and stability_score_thresh choose among the masks of a grid; give grid too.")
    if batch < 1 or (grid is not None and grid < 1):
        raise ValueError(f"batch and grid must be 1 or more; got batch {batch}, grid {grid}.")
    check_thresholds(pred_iou_thresh, stability_score_thresh)
    _check_range(intensity_range)
    folder = OutputFolder(output)
    paths = [Path(image) for image in images]
    files = find_images(paths, folder.path)
    prompts: dict[str, Any] = {}
    if grid is None:
        prompts = read_prompts(boxes or points or "", files, columns=2 if points else 4)
        if without := [name for name in files if name not in prompts]:
            some = f"{len(without)} of {count(len(files), 'image has', 'images have')}"
            warnings.warn(f"{some} no prompts, first {without[0]}.", stacklevel=2)
    left_out = _check_before(files, prompts, paths, frame_of(processor), kind=given[0])
    todo = [name for name in files if (grid is not None or name in prompts) and name not in left_out]
    result = PredictedFiles(left_out, folder.check(todo, overwrite=overwrite))
    predictor = SamPredictor(model, processor)

    def masks_of(name: str, image: np.ndarray) -> tuple[list[CroppedMask], list[float] | None]:
        if grid is None:
            predictor.set_image(image)
            return list(predictor.predict_cropped(**{given[0]: prompts[name]}, batch=batch)), None
        found = generate_cropped(
            model,
            processor,
            image,
            points_per_side=grid,
            batch=batch,
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
        )
        if not found.masks:
            result.empty.append(name)
        elif found.lowered is not None:
            result.lowered[name] = found.lowered
        return found.masks, found.scores.tolist()

    def segment() -> Iterator[SegmentedImage]:
        for name in require("tqdm.auto", "Progress").tqdm(todo, unit="image", disable=not progress):
            try:
                image = _read(files[name], intensity_range)
                masks, scores = masks_of(name, image)
            except ValueError as error:
                left_out[name] = str(error) if str(files[name]) in str(error) else f"{files[name]}: {error}"
                continue
            size = (image.shape[0], image.shape[1])
            with folder.replacing(folder.label_path(name)) as file:
                write_label_png(masks, file, size)
            with folder.replacing(folder.overlay_path(name)) as file:
                write_image(overlay(image, masks), file)
            result.append(folder.label_path(name))
            yield SegmentedImage(name, masks, scores, size=size)
        if left_out and not result:
            raise ValueError(f"None of the images could be read. {next(iter(left_out.values()))}")

    with advising(PREDICTION), folder.writing(), folder.replacing_coco() as file:
        write_coco(file, segment())
    if left_out:
        first = next(iter(left_out.values()))
        warnings.warn(f"{len(left_out)} of {count(len(files), 'image')} left out, first: {first}", stacklevel=2)
    return result


def _check_before(
    files: Mapping[str, Path], prompts: Mapping[str, Any], images: Sequence[Path], frame: Frame, kind: str
) -> dict[str, str]:
    """Look at the head of every image and at its prompts, so that a mistake in the last one is found first.

    Returns:
        What is wrong with the images that cannot be segmented, by NAME.

    Raises:
        ValueError: Prompts do not fit their image, or an image given by its own name cannot be segmented.
    """
    from samparser.data.readers.images import image_size

    failed = {}
    for name, path in files.items():
        try:
            size = image_size(path)
            if min(frame.content(size)) == 0:
                raise ValueError(f"{path}: {narrow(*size, frame.size)}")
        except ValueError as error:
            if path in images:
                raise
            failed[name] = str(error)
            continue
        try:
            if kind == "boxes" and name in prompts:
                check_boxes(prompts[name], size, frame)
            elif kind == "points" and name in prompts:
                check_points(prompts[name], None, size)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return failed


def find_images(images: Iterable[str | Path], output: Path | None = None) -> dict[str, Path]:
    """Return image files by NAME: for a folder the path below it, for a file its own name.

    What lies in `output` is left out, as it may be a folder below the images and hold an earlier result; so are hidden
    files and folders, such as `.ipynb_checkpoints` and what a killed process left.

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
            results = _results_below(path.resolve(), output)
            names = ((p.relative_to(path), p) for p in entries)
            below = {
                name.as_posix(): entry
                for name, entry in names
                if not any(part.startswith(".") for part in name.parts) and not results & set(name.parents)
            }
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


def _results_below(folder: Path, output: Path | None) -> set[Path]:
    """Return what to leave out of a folder of images, relative to it: the output, or its masks and overlays.

    The latter where the images lie in the output folder itself, as in a data set of images/ and masks/.
    """
    if output is None:
        return set()
    output = output.resolve()
    inside = output == folder or output in folder.parents
    places = [output / "masks", output / "overlays"] if inside else [output]
    return {place.relative_to(folder) for place in places if folder in place.parents}


def _check_range(intensity_range: str | None) -> None:
    from samparser.data.intensity import chosen

    chosen(intensity_range)


def _read(path: Path, intensity_range: str | None) -> np.ndarray:
    from samparser.data.intensity import chosen
    from samparser.data.readers.images import read_image

    return read_image(path, chosen(intensity_range))
