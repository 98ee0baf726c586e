"""`samparser predict`: segment images with boxes, points or a grid of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from samparser._options import option
from samparser._words import count
from samparser.prediction import predict_files

from .parser import SettingsParser
from .shared import DEVICE, MODEL, LoadSettings, on_device, output_folder, refuse_less_than_one

_NAMED = 5  # images left out are named up to so many


@dataclass(frozen=True)
class PredictCommand:
    """Segment images with boxes, points or a grid of points."""

    model: str = option(MODEL)
    images: list[str] = option("Image files, or folders of images; hidden files are left out.")
    output: str = option("Folder for masks (label PNG), overlays (PNG) and masks.json (COCO, RLE).")
    boxes: str | None = option(
        "JSON file {image file name: [[x0, y0, x1, y1], ...]}, pixels of the original image.", None
    )
    points: str | None = option("JSON file {image file name: [[x, y], ...]}, one foreground point per object.", None)
    grid: int | None = option("Segment everything from a grid of so many points per side; needs no prompts.", None)
    pred_iou_thresh: float | None = option(
        "With --grid: drop masks of which the model expects less IoU, from 0 (keep all) to 1. Not given: SAM's 0.88, "
        "or what the best of the model's masks reach where none reaches that.",
        None,
    )
    stability_score_thresh: float | None = option(
        "With --grid: drop masks whose area changes more when the threshold on the logits moves, from 0 (keep all) to "
        "1. Not given: SAM's 0.95, lowered likewise.",
        None,
    )
    overwrite: bool = option(
        "Replace files of the same names in --output that this command did not write, or that were changed since.",
        False,
    )
    batch: int = option("Prompts decoded together; bounds the memory, does not change the masks.", 64)
    intensity_range: str | None = option(
        "What becomes black and white of images with more than 8 bits, as in training: two values, as 0,4095, or two "
        "percentiles of each image, as 1%,99%. Not given: 0.1%,99.9%.",
        None,
    )
    device: Literal["auto", "cpu"] = option(DEVICE, "auto")

    def __post_init__(self) -> None:
        refuse_less_than_one(self, "grid", "batch")


def parser() -> SettingsParser:
    """Return the parser of this verb."""
    return SettingsParser(
        "predict",
        {"what to segment": PredictCommand, "how to open it": LoadSettings},
        ("model", "images"),
        example="samparser predict runs/mine/adapter photos/ --boxes boxes.json --output masks",
    )


def run(arguments: Sequence[str]) -> int:
    """Segment the images and say where the masks are.

    Returns:
        0, or 1 where images were left out because they do not open or cannot be segmented.
    """
    command, loading = parser().parse(arguments)
    given = [name for name in ("boxes", "points", "grid") if getattr(command, name) is not None]
    if len(given) != 1:
        raise ValueError(f"Give exactly one of --boxes, --points and --grid; given: {', '.join(given) or 'none'}.")
    model, processor = loading.load(command.model)
    written = predict_files(
        on_device(model, command.device),
        processor,
        command.images,
        output_folder(command.output),
        boxes=command.boxes,
        points=command.points,
        grid=command.grid,
        pred_iou_thresh=command.pred_iou_thresh,
        stability_score_thresh=command.stability_score_thresh,
        batch=command.batch,
        overwrite=command.overwrite,
        intensity_range=command.intensity_range,
    )
    print(f"{count(len(written), 'image')} segmented; masks, overlays and masks.json are in {command.output}")
    if written.replaced:
        print(f"{count(len(written.replaced), 'file')} that were there have been replaced")
    if written.lowered:
        name, why = next(iter(written.lowered.items()))
        print(f"{name}: {why}" + _others(len(written.lowered), "Likewise"))
    if written.empty:
        print(
            f"{written.empty[0]}: nothing was found. A finer --grid asks at more places; lower --pred_iou_thresh and "
            "--stability_score_thresh keep more masks, 0 all of them." + _others(len(written.empty), "Nor")
        )
    if not written.left_out:
        return 0
    print(f"{count(len(written.left_out), 'image')} left out:")
    for reason in list(written.left_out.values())[:_NAMED]:
        print(f"  {reason}")
    if len(written.left_out) > _NAMED:
        print(f"  and {len(written.left_out) - _NAMED:,} more")
    return 1


def _others(images: int, word: str) -> str:
    return f" {word} in {count(images - 1, 'other image')}." if images > 1 else ""
