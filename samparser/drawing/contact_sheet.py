"""A picture of a few images of a data set with their masks, boxes and classes, to see whether the labels are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from samparser._files import replacing
from samparser.data.sample import Sample
from samparser.prompts.coordinates import resized_size, to_input_frame
from samparser.prompts.resize import resize_instance

from .overlays import overlay
from .palette import INSTANCE_COLOURS

SHEET_CELLS = 12
_COLUMNS = 4
_SIDE = 480
_CAPTION = 40
_GAP = 12


def draw_cell(sample: Sample, part: str, classes: Mapping[int, str]) -> Image.Image:
    """One image of the sheet: masks filled, tight boxes, and class names if there are several."""
    height, width = resized_size(sample.size, _SIDE)
    height, width = max(1, height), max(1, width)
    small = np.asarray(Image.fromarray(sample.image).resize((width, height), Image.Resampling.LANCZOS))
    masks = np.zeros((len(sample.instances), _SIDE, _SIDE), dtype=bool)
    for mask, instance in zip(masks, sample.instances, strict=True):
        resize_instance(instance, sample.size, _SIDE, out=mask)
    picture = Image.fromarray(overlay(small, masks[:, :height, :width], opacity=0.3))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13)
    boxes = to_input_frame(sample.boxes, sample.size, _SIDE)
    for number, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        draw.rectangle(
            (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=INSTANCE_COLOURS[number % len(INSTANCE_COLOURS)]
        )
    names = [classes.get(instance.class_id, str(instance.class_id)) for instance in sample.instances]
    if len(set(names)) > 1:
        _write_names(draw, names, boxes, (height, width), font)
    cell = Image.new("RGB", (_SIDE, _SIDE + _CAPTION), "white")
    cell.paste(picture, ((_SIDE - width) // 2, (_SIDE - height) // 2))
    count = f"{len(names)} instance" + "s" * (len(names) != 1)
    lines = (
        sample.name,
        f"{part}: {sample.size[1]} x {sample.size[0]} px, {count} ({', '.join(dict.fromkeys(names))})",
    )
    draw = ImageDraw.Draw(cell)
    draw.text((2, _SIDE + 3), _shortened(lines[0], draw, font, keep_end=True), "black", font)
    draw.text((2, _SIDE + 20), _shortened(lines[1], draw, font), "black", font)
    return cell


def _write_names(
    draw: ImageDraw.ImageDraw,
    names: Sequence[str],
    boxes: np.ndarray,
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Writes each name above its box, the largest boxes first; a name that would cover another one is left out."""
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
    """Writes the cells in rows of four under a title."""
    columns = min(_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    top = 36
    step = _SIDE + _GAP, _SIDE + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * step[0] + _GAP, top + rows * step[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    while draw.textlength(title, font) > sheet.width - 2 * _GAP and len(title) > 10:
        title = "..." + title[4:]
    draw.text((_GAP, 8), title, "black", font)
    for number, cell in enumerate(cells):
        sheet.paste(cell, (_GAP + number % columns * step[0], top + number // columns * step[1]))
    path = Path(path)
    with replacing(path) as temporary:
        sheet.save(temporary)
    return path


def _shortened(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, keep_end: bool = False) -> str:
    """The text cut to the width of a cell, marked with an ellipsis."""
    if draw.textlength(text, font) <= _SIDE:
        return text
    while draw.textlength("..." + text, font) > _SIDE:
        text = text[1:] if keep_end else text[:-1]
    return "..." + text if keep_end else text + "..."
