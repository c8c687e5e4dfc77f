"""Scenes to pictures: drawn four times too large, then averaged down, so that edges are smooth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO

import PIL.Image
import PIL.ImageChops
import PIL.ImageColor
import PIL.ImageDraw
import PIL.ImageFilter

from ..types import Blob, Image, Item
from .dice import Dice
from .scenes import Scene, Thing
from .vocabulary import COLOURS, SPOTS, TINTS

OVERSIZE = 4  # drawn pixels per final pixel, each way
FILL = {"big": 0.92, "small": 0.58}  # width of a thing, of its spot's
Picture = PIL.Image.Image
Points = Sequence[tuple[float, float]]


def rgb(colour: str) -> tuple[int, int, int]:
    """(red, green, blue) from "#rrggbb"."""
    return PIL.ImageColor.getrgb(colour)[:3]


def toward(colour: tuple[int, int, int], goal: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    """`share` of the way from one colour to another."""
    a, b, c = (round(x + (y - x) * share) for x, y in zip(colour, goal, strict=True))
    return a, b, c


def draw(scene: Scene, pixels: int) -> Picture:
    """The scene, RGB, OVERSIZE * pixels wide and high; `shrink` makes it the final picture."""
    dice = Dice("look", scene.look)
    width = pixels * OVERSIZE
    canvas = PIL.Image.new("RGB", (width, width), dice.pick(TINTS))
    for spot, thing in zip(scene.spots, scene.things, strict=True):
        x, y, share = SPOTS[spot]
        slack = share * (0.08 if share < 0.4 else 0.12) * (1.0 if thing.size == "small" else 0.5)
        x, y = x + dice.between(-slack, slack), y + dice.between(-slack, slack)
        stamp(canvas, thing, x * width, y * width, share * width * FILL[thing.size])
    return canvas


def stamp(canvas: Picture, thing: Thing, x: float, y: float, width: float, strength: float = 1.0) -> None:
    """Draw a thing of that width (drawn pixels), centred at (x, y); `strength` below 1 lets the background through."""
    size = max(8, round(width))
    base = rgb(COLOURS[thing.colour])
    corner = (round(x - size / 2), round(y - size / 2))
    tone = toward(base, (255, 255, 255), 0.62)
    lighter = [] if thing.texture == "plain" else [(tone, _texture(thing.shape, thing.texture, size))]
    layers = (
        (base, _body(thing.shape, size)),
        *lighter,
        (toward(base, (0, 0, 0), 0.28), _rim(thing.shape, size)),
    )
    for colour, mask in layers:
        seen = mask if strength >= 1 else mask.point(lambda v: round(v * strength))
        canvas.paste(colour, (*corner, corner[0] + size, corner[1] + size), seen)


def shrink(canvas: Picture) -> Picture:
    return canvas.reduce(OVERSIZE)


def png(picture: Picture) -> Image:
    """The picture as an encoded part."""
    file = BytesIO()
    picture.save(file, "PNG", compress_level=6)
    return Image(Blob(file.getvalue()), picture.width, picture.height)


def item(scene: Scene, pixels: int) -> Item:
    """The scene as an Item whose identity is its meaning: a caption that is true of one is true of its twins."""
    return Item((png(shrink(draw(scene, pixels))),), scene.id)


def crop(canvas: Picture, x: float, y: float, width: float, pixels: int) -> Image:
    """The square of that width (of 1) around (x, y) of a drawn scene, kept inside it; `pixels` wide and high."""
    size = round(width * canvas.width)
    left, top = (min(max(0, round(c * canvas.width - size / 2)), canvas.width - size) for c in (x, y))
    box = (left, top, left + size, top + size)
    return png(canvas.resize((pixels, pixels), PIL.Image.Resampling.BOX, box))


@lru_cache(maxsize=256)
def _body(shape: str, size: int) -> Picture:
    mask = PIL.Image.new("L", (size, size))
    pen = PIL.ImageDraw.Draw(mask)
    last = size - 1
    if shape == "circle":
        pen.ellipse((0, 0, last, last), fill=255)
    elif shape == "moon":
        pen.ellipse((0, 0, last, last), fill=255)
        pen.ellipse((size * 0.36, -size * 0.08, size * 1.2, size * 0.78), fill=0)
    elif shape == "heart":
        pen.polygon([(x * last, y * last) for x, y in _heart()], fill=255)
    else:
        pen.polygon([(x * last, y * last) for x, y in OUTLINES[shape]], fill=255)
    return mask


@lru_cache(maxsize=256)
def _rim(shape: str, size: int) -> Picture:
    body = _body(shape, size)
    framed = PIL.Image.new("L", (size + 2, size + 2))  # an edge of the frame is an edge of the shape
    framed.paste(body, (1, 1))
    core = framed.filter(PIL.ImageFilter.MinFilter(2 * max(1, size // 40) + 1)).crop((1, 1, size + 1, size + 1))
    return PIL.ImageChops.subtract(body, core)


@lru_cache(maxsize=512)
def _texture(shape: str, texture: str, size: int) -> Picture:
    """Where the lighter tone of a striped or dotted thing goes; stripes and dots are those of its size, not pixels."""
    mask = PIL.Image.new("L", (size, size))
    pen = PIL.ImageDraw.Draw(mask)
    if texture == "striped":
        step = size / 4
        for i in range(-4, 5):
            a = i * step + step * 0.25
            pen.polygon([(a, size), (a + step * 0.5, size), (a + step * 0.5 + size, 0), (a + size, 0)], fill=255)
    elif texture == "dotted":
        step, radius = size / 4, size * 0.075
        for row in range(-1, 6):
            for column in range(-1, 6):
                x, y = (column + 0.5 * (row % 2)) * step + size / 8, row * step * 0.87 + size / 8
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return PIL.ImageChops.multiply(mask, _body(shape, size))


def _heart() -> Points:
    """The classic curve 16 sin^3 t, scaled to the unit square."""
    curve = []
    for i in range(120):
        t = 2 * math.pi * i / 120
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        curve.append((0.5 + math.sin(t) ** 3 / 2, (11.95 - y) / 28.95))
    return curve


def _star() -> Points:
    radii = (0.53, 0.235)
    angles = [math.pi * i / 5 for i in range(10)]
    return [(0.5 + radii[i % 2] * math.sin(a), 0.53 - radii[i % 2] * math.cos(a)) for i, a in enumerate(angles)]


OUTLINES: dict[str, Points] = {
    "square": [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
    "triangle": [(0.5, 0.03), (1.0, 0.93), (0.0, 0.93)],
    "diamond": [(0.5, 0.0), (0.92, 0.5), (0.5, 1.0), (0.08, 0.5)],
    "star": _star(),
    "cross": [
        (0.33, 0.0), (0.67, 0.0), (0.67, 0.33), (1.0, 0.33), (1.0, 0.67), (0.67, 0.67),
        (0.67, 1.0), (0.33, 1.0), (0.33, 0.67), (0.0, 0.67), (0.0, 0.33), (0.33, 0.33),
    ],
}  # fmt: skip
