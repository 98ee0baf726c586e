"""Synthetic scenes with the visible mask of every object, each a function of a seed and a number alone.

The scenes are made so that only boundaries tell an object's mask: outlines of every kind share the same boxes,
objects hide one another, surfaces carry textures of their own, and light, blur and noise vary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from pretraining import cutouts as cut_out
from pretraining import shapes, textures

KINDS = ("mixed", "crowd", "blocks", "few", "small")
SIDE = 288
MAX_OBJECTS = 120


@dataclass(frozen=True)
class Scene:
    """An image and its objects.

    Attributes:
        image: uint8 (height, width, 3), RGB.
        labels: uint8 (height, width), the number of the object that is visible at a pixel, 0 where there is none.
    """

    image: np.ndarray
    labels: np.ndarray


def make_scene(
    seed: int,
    number: int,
    photos: Sequence[np.ndarray] = (),
    cutouts: Sequence[np.ndarray] = (),
    side: int = SIDE,
) -> Scene:
    """Scene ``number`` of the series ``seed``.

    ``photos`` (uint8 RGB) lend textures and backgrounds, ``cutouts`` (uint8 RGBA) are the objects of two scenes in
    five.
    """
    rng = np.random.default_rng([seed, number])
    if len(cutouts) and rng.random() < 0.4:
        return _assembled(rng, side, photos, cutouts)
    kind = KINDS[rng.choice(len(KINDS), p=[0.3, 0.2, 0.15, 0.2, 0.15])]
    canvas = _background(rng, side, photos)
    labels = np.zeros((side, side), np.uint8)
    style = _Style(rng, kind)
    label = 0
    for _ in range(style.count):
        if label == MAX_OBJECTS:
            break
        clutter = rng.random() < style.clutter
        parts = style.outline(rng, side)
        drawn = _draw(rng, canvas, labels, parts, style, photos, 0 if clutter else label + 1)
        label += int(drawn and not clutter)
    return Scene(_photograph(rng, canvas), labels)


def _assembled(rng: Generator, side: int, photos: Sequence[np.ndarray], cutouts: Sequence[np.ndarray]) -> Scene:
    """Photographed objects over a background, some behind others."""
    canvas = _background(rng, side, photos, photo_share=0.7)
    labels = np.zeros((side, side), np.uint8)
    low, high, count = [(10, 50, 30), (20, 110, 16), (60, 220, 8)][rng.integers(3)]
    herd = cutouts[rng.integers(len(cutouts))] if rng.random() < 0.25 else None  # many of one kind
    blur = rng.choice([0.0, 0.0, rng.uniform(0, 1.0)])
    label = 0
    for _ in range(rng.integers(count // 3, count + 1)):
        longest = np.exp(rng.uniform(np.log(low), np.log(high)))
        chosen = cutouts[rng.integers(len(cutouts))] if herd is None else herd
        colours, cover = cut_out.placed(rng, chosen, longest)
        if blur:
            cover = _soften(cover, blur)
        height, width = cover.shape
        x, y = (int(value) for value in rng.uniform(-0.15, 1.0, 2) * side - [width * 0.2, height * 0.2])
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + width, side), min(y + height, side)
        if right - left < 3 or bottom - top < 3:
            continue
        part = (slice(top - y, bottom - y), slice(left - x, right - x))
        below, inside = labels[top:bottom, left:right], cover[part] > 0.5
        if inside.sum() < 12 or (below[inside] > 0).mean() > 0.6:
            continue
        region = canvas[top:bottom, left:right]
        region += cover[part][..., None] * (colours[part] - region)
        label += 1
        below[inside] = label
    return Scene(_photograph(rng, canvas), labels)


class _Style:
    """What the objects of one scene have in common."""

    def __init__(self, rng: Generator, kind: str) -> None:
        self.kind = kind
        names = list(shapes.OUTLINES)
        low, high, count = {
            "mixed": (6, 70, rng.integers(6, 30)),
            "crowd": (5, 22, rng.integers(20, 90)),
            "blocks": (8, 45, rng.integers(8, 40)),
            "few": (40, 130, rng.integers(2, 8)),
            "small": (4, 16, rng.integers(10, 60)),
        }[kind]
        self.count = int(count)
        self.names = names if kind in ("mixed", "few") else list(rng.choice(names, rng.integers(1, 4)))
        if kind == "blocks":
            self.names = ["block", "rectangle", "rectangle", "polygon", "block"]
        if kind == "crowd" and rng.random() < 0.5:
            self.names = ["ellipse", "blob"]
        if kind in ("crowd", "small"):
            middle = np.exp(rng.uniform(np.log(low), np.log(high)))
            low, high = middle * 0.65, middle * 1.5
        self.low, self.high = low, high
        self.turn = rng.uniform(0, np.pi) if kind == "blocks" or rng.random() < 0.2 else None
        self.colour = rng.uniform(0, 1, 3) if kind in ("crowd", "small", "blocks") and rng.random() < 0.7 else None
        self.spread = rng.uniform(0.02, 0.2)
        self.contrast = rng.uniform(0, 0.2)
        self.overlap = rng.uniform(0, 0.5) if kind in ("crowd", "small", "blocks") else 0.8
        self.clutter = rng.choice([0.0, 0.25])
        self.shadow = rng.random() < (0.5 if kind == "blocks" else 0.2)
        self.light = rng.normal(0, 3, 2)
        self.edge = rng.choice([0.0, 0.0, 0.0, rng.uniform(-0.4, 0.4)])
        self.relief = rng.choice([0.0, 0.0, rng.uniform(-0.5, 0.5)])
        self.alpha = rng.choice([1.0, 1.0, rng.uniform(0.5, 1.0)])
        self.blur = rng.choice([0.0, 0.0, rng.uniform(0, 1.5)])

    def outline(self, rng: Generator, side: int) -> list[shapes.Polygon]:
        radius = np.exp(rng.uniform(np.log(self.low), np.log(self.high)))
        turn = rng.uniform(0, 2 * np.pi) if self.turn is None else self.turn + rng.choice([0, np.pi / 2])
        centre = rng.uniform(-0.02, 1.02, 2) * side
        parts = shapes.OUTLINES[str(rng.choice(self.names))](rng)
        squeeze = np.exp(rng.uniform(np.log(0.5), 0))
        return shapes.place(parts, radius, turn, squeeze, (float(centre[0]), float(centre[1])))


def _background(rng: Generator, side: int, photos: Sequence[np.ndarray], photo_share: float = 0.35) -> np.ndarray:
    if len(photos) and rng.random() < photo_share:
        canvas = textures.photo_patch(rng, side, side, photos).copy()
        return canvas * rng.uniform(0.4, 1) + rng.uniform(0, 0.3)
    canvas = textures.surface(rng, side, side, rng.uniform(0, 1, 3), rng.uniform(0, 0.2), photos).copy()
    for _ in range(rng.integers(0, 5)):  # fields, roads, walls: large regions that are no objects
        parts = shapes.polygon(rng) if rng.random() < 0.5 else shapes.strip(rng)
        parts = shapes.place(
            parts, rng.uniform(0.3, 1.2) * side, rng.uniform(0, 7), 1.0, tuple(rng.uniform(0, side, 2))
        )
        region, (x0, y0, x1, y1) = _coverage(parts, side)
        if region is not None:
            piece = textures.surface(rng, y1 - y0, x1 - x0, rng.uniform(0, 1, 3), rng.uniform(0, 0.2), photos)
            canvas[y0:y1, x0:x1] += region[..., None] * (piece - canvas[y0:y1, x0:x1])
    return canvas


def _coverage(
    parts: list[shapes.Polygon], side: int, zoom: int = 4
) -> tuple[np.ndarray | None, tuple[int, int, int, int]]:
    """How much of each pixel the outline covers, 0..1, cropped to its box within the scene, and that box."""
    corners = np.concatenate(parts)
    x0, y0 = np.clip(np.floor(corners.min(0)).astype(int), 0, side)
    x1, y1 = np.clip(np.ceil(corners.max(0)).astype(int) + 1, 0, side)
    if x1 - x0 < 2 or y1 - y0 < 2:
        return None, (0, 0, 0, 0)
    zoom = zoom if max(x1 - x0, y1 - y0) < 100 else 2
    drawing = Image.new("L", ((x1 - x0) * zoom, (y1 - y0) * zoom))
    pen = ImageDraw.Draw(drawing)
    for part in parts:
        pen.polygon([(float(x), float(y)) for x, y in (part - [x0, y0]) * zoom], fill=255)
    return np.asarray(drawing.reduce(zoom), np.float32) / 255, (int(x0), int(y0), int(x1), int(y1))


def _draw(
    rng: Generator,
    canvas: np.ndarray,
    labels: np.ndarray,
    parts: list[shapes.Polygon],
    style: _Style,
    photos: Sequence[np.ndarray],
    label: int,
) -> bool:
    """Paint one object over canvas and labels; False when there is too little of it or it hides too much."""
    side = len(labels)
    cover, box = _coverage(parts, side)
    if cover is None:
        return False
    x0, y0, x1, y1 = box
    inside = cover > 0.5
    below = labels[y0:y1, x0:x1]
    if inside.sum() < 12 or (below[inside] > 0).mean() > style.overlap:
        return False
    under = canvas[y0:y1, x0:x1][inside].mean(0)
    colour = rng.uniform(0, 1, 3) if style.colour is None else style.colour + rng.normal(0, style.spread, 3)
    if abs(colour - under).max() < 0.06:  # it must be possible to see it
        colour = under + rng.choice([-1, 1]) * rng.uniform(0.08, 0.4, 3)
    if style.shadow:
        shift = (style.light * np.sqrt(inside.sum()) / 12).round()
        shadow, (a, b, c, d) = _coverage([part + shift for part in parts], side, zoom=2)
        if shadow is not None:
            canvas[b:d, a:c] *= 1 - 0.5 * shadow[..., None]
    lent = photos if rng.random() < 0.5 else ()
    piece = textures.surface(rng, y1 - y0, x1 - x0, colour, style.contrast, lent).copy()
    if rng.random() < 0.25:  # a second part of another colour: objects are not of one piece
        _paint_part(rng, piece, box, side)
    if style.relief or style.edge:
        soft = _soften(cover, max(1.0, 0.15 * np.sqrt(inside.sum())))
        if style.relief:
            piece *= 1 + style.relief * (soft[..., None] - 0.7)
        if style.edge:
            piece += style.edge * np.clip(1 - 2 * abs(soft - 0.5), 0, 1)[..., None]
    alpha = cover * style.alpha
    if style.blur:
        alpha = _soften(alpha, style.blur)
    canvas[y0:y1, x0:x1] += alpha[..., None] * (piece - canvas[y0:y1, x0:x1])
    below[inside] = label
    return True


def _paint_part(rng: Generator, piece: np.ndarray, box: tuple[int, int, int, int], side: int) -> None:
    """Paint a smaller outline of one colour somewhere on an object's surface."""
    x0, y0, x1, y1 = box
    outline = shapes.OUTLINES[str(rng.choice(list(shapes.OUTLINES)))](rng)
    radius, turn = 0.3 * max(x1 - x0, y1 - y0), rng.uniform(0, 7)
    outline = shapes.place(outline, radius, turn, 1.0, (rng.uniform(x0, x1), rng.uniform(y0, y1)))
    patch, (a, b, c, d) = _coverage(outline, side, zoom=2)
    if patch is None:
        return
    left, top, right, bottom = max(a, x0), max(b, y0), min(c, x1), min(d, y1)
    if right > left and bottom > top:
        weight = patch[top - b : bottom - b, left - a : right - a, None]
        region = piece[top - y0 : bottom - y0, left - x0 : right - x0]
        region += weight * (rng.uniform(0, 1, 3).astype(np.float32) - region)


def _soften(cover: np.ndarray, radius: float) -> np.ndarray:
    """A map in 0..1, blurred."""
    image = Image.fromarray((cover * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(radius))), np.float32) / 255


def _photograph(rng: Generator, canvas: np.ndarray) -> np.ndarray:
    """Light, focus, sensor and compression: the scene as a camera or a microscope would record it; uint8."""
    side = len(canvas)
    if rng.random() < 0.4:
        canvas = canvas * (1 + rng.uniform(0.05, 0.3) * textures.smooth_noise(rng, side, side, 2))[..., None]
    if rng.random() < 0.3:
        canvas = np.repeat(canvas.mean(2, keepdims=True), 3, 2)
        if rng.random() < 0.2:
            canvas = canvas * rng.uniform(0.2, 1, 3).astype(np.float32)
    if rng.random() < 0.15:
        canvas = 1 - canvas
    image = Image.fromarray((np.clip(canvas, 0, 1) * 255).astype(np.uint8))
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 1.6))))
    if rng.random() < 0.6:
        grain = rng.normal(0, rng.uniform(1, 18), (side, side, rng.choice([1, 3]))).astype(np.float32)
        image = Image.fromarray(np.clip(np.asarray(image, np.float32) + grain, 0, 255).astype(np.uint8))
    if rng.random() < 0.25:
        file = BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(30, 90)))
        image = Image.open(file).convert("RGB")
    return np.asarray(image)
