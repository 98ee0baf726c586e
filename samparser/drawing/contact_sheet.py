"""Contact sheet: a few images of a data set with masks, boxes and classes, to see whether the labels are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samparser._extras import require
from samparser._words import count, printable
from samparser.prompts.resize import resize_instance
from samparser.sam.frame import Padded, rescaled

from .figures import save_picture
from .overlays import overlay
from .palette import instance_colour

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    from samparser.data.sample import Sample

SHEET_CELLS = 12
_COLUMNS = 4
_SIDE = 480
_CAPTION = 40
_GAP = 12


def draw_cell(sample: Sample, part: str, classes: Mapping[int, str]) -> Image.Image:
    """Draw one image of the sheet: masks filled, tight boxes, and class names if there are several."""
    pillow, drawing, fonts = _pillow()
    height, width = (max(1, side) for side in Padded(_SIDE).content(sample.size))
    small = np.asarray(pillow.fromarray(sample.image).resize((width, height), pillow.Resampling.LANCZOS))
    masks = np.zeros((len(sample.instances), height, width), dtype=bool)
    for mask, instance in zip(masks, sample.instances, strict=True):
        resize_instance(instance, sample.size, (height, width), out=mask)
    picture = pillow.fromarray(overlay(small, masks, opacity=0.3))
    draw = drawing.Draw(picture)
    font = fonts.load_default(13)
    boxes = rescaled(sample.boxes, sample.size, (height, width))
    for number, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=instance_colour(number))
    names = [printable(classes.get(one.class_id, str(one.class_id)), keep="") for one in sample.instances]
    if len(set(names)) > 1:
        _write_names(draw, names, boxes, (height, width), font)
    cell = pillow.new("RGB", (_SIDE, _SIDE + _CAPTION), "white")
    cell.paste(picture, ((_SIDE - width) // 2, (_SIDE - height) // 2))
    instances = f"{count(len(names), 'instance')} ({', '.join(dict.fromkeys(names))})"
    about = f"{part}: {sample.size[1]} x {sample.size[0]} px, {instances}"
    draw = drawing.Draw(cell)
    draw.text((2, _SIDE + 3), _fitted(sample.name, draw, font, _SIDE, keep_end=True), "black", font)
    draw.text((2, _SIDE + 20), _fitted(about, draw, font, _SIDE), "black", font)
    return cell


def _write_names(
    draw: ImageDraw.ImageDraw,
    names: Sequence[str],
    boxes: np.ndarray,
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Write each name above its box, the largest boxes first; a name that would cover another one is left out."""
    height, width = size
    taken: list[tuple[float, float, float]] = []
    for number in np.argsort((boxes[:, 0] - boxes[:, 2]) * (boxes[:, 3] - boxes[:, 1]), kind="stable").tolist():
        length = draw.textlength(names[number], font)
        x = min(float(boxes[number, 0]) + 2, max(0.0, width - length))
        y = min(max(float(boxes[number, 1]) - 15, 0.0), height - 16)
        if all(x > right or x + length < left or abs(y - row) > 15 for left, right, row in taken):
            taken.append((x, x + length, y))
            draw.text((x, y), names[number], "white", font, stroke_width=2, stroke_fill="black")


def save_sheet(cells: Sequence[Image.Image], title: str, path: str | Path) -> Path:
    """Write the cells in rows of four under a title."""
    pillow, drawing, fonts = _pillow()
    columns = min(_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    top = 36
    step = _SIDE + _GAP, _SIDE + _CAPTION + _GAP
    sheet = pillow.new("RGB", (columns * step[0] + _GAP, top + rows * step[1]), "white")
    draw, font = drawing.Draw(sheet), fonts.load_default(18)
    draw.text((_GAP, 8), _fitted(title, draw, font, sheet.width - 2 * _GAP, keep_end=True), "black", font)
    for number, cell in enumerate(cells):
        sheet.paste(cell, (_GAP + number % columns * step[0], top + number // columns * step[1]))
    return save_picture(sheet, path)


def _pillow() -> tuple[Any, ...]:
    return tuple(require(f"PIL.{name}", "Drawing contact sheets") for name in ("Image", "ImageDraw", "ImageFont"))


def _fitted(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, width: int, keep_end: bool = False
) -> str:
    """Return the text as one line cut to so many pixels, marked with an ellipsis."""
    text = printable(text, keep="")
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength("..." + text, font) > width:
        text = text[1:] if keep_end else text[:-1]
    return "..." + text if keep_end else text + "..."
