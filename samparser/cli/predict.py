"""`samparser predict`: segment images with boxes, points or a grid of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from samparser._options import option
from samparser._words import count
from samparser.methods import load_model
from samparser.prediction import predict_files

from .parser import SettingsParser
from .shared import BASE, DEVICE, MODEL, on_device, output_folder, refuse_less_than_one


@dataclass(frozen=True)
class PredictCommand:
    """Segment images with boxes, points or a grid of points."""

    model: str = option(MODEL)
    images: list[str] = option("Image files, or folders of images.")
    output: str = option("Folder for masks (label PNG), overlays (PNG) and masks.json (COCO, RLE).")
    base: str | None = option(BASE, None)
    boxes: str | None = option(
        "JSON file {image file name: [[x0, y0, x1, y1], ...]}, pixels of the original image.", None
    )
    points: str | None = option("JSON file {image file name: [[x, y], ...]}, one foreground point per object.", None)
    grid: int | None = option("Segment everything from a grid of so many points per side; needs no prompts.", None)
    batch: int = option("Prompts decoded together; bounds the memory, does not change the masks.", 64)
    device: Literal["auto", "cpu"] = option(DEVICE, "auto")

    def __post_init__(self) -> None:
        refuse_less_than_one(self, "grid", "batch")


def parser() -> SettingsParser:
    """Return the parser of this verb."""
    return SettingsParser(
        "predict",
        {"what to segment": PredictCommand},
        ("model", "images"),
        example="samparser predict runs/mine/adapter photos/ --boxes boxes.json --output masks",
    )


def run(arguments: Sequence[str]) -> int:
    """Segment the images and say where the masks are."""
    (command,) = parser().parse(arguments)
    given = [name for name in ("boxes", "points", "grid") if getattr(command, name) is not None]
    if len(given) != 1:
        raise ValueError(f"Give exactly one of --boxes, --points and --grid; given: {', '.join(given) or 'none'}.")
    model, processor = load_model(command.model, base=command.base)
    written = predict_files(
        on_device(model, command.device),
        processor,
        command.images,
        output_folder(command.output),
        boxes=command.boxes,
        points=command.points,
        grid=command.grid,
        batch=command.batch,
    )
    print(f"{count(len(written), 'image')} segmented; masks, overlays and masks.json are in {command.output}")
    return 0
