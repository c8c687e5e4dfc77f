"""Pages: a title, a season, and three amounts set as a table, a chart or a sentence, in Pillow's own typeface.

The world has one page for each title and season. What stands on it is fixed by the world's seed, so all pages that
a query is true of can be listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from ..types import Item, digest
from .compositions import Split, pairs
from .dice import Dice
from .drawing import Picture, png
from .vocabulary import AMOUNTS, COLOURS, GROCERIES, SEASONS

WIDTH, HEIGHT = 160, 112  # at pixels=96
INK, PALE, LINE = "#2b2f36", "#f4f5f7", "#cfd3da"
ACCENTS = {"spring": "#3f9d57", "summer": "#d98a1f", "autumn": "#a8503c", "winter": "#3a6fd0"}
SLICES = (COLOURS["blue"], COLOURS["orange"], COLOURS["green"])
LAYOUTS = ("table", "bar chart", "pie chart", "note")


@dataclass(frozen=True)
class Page:
    topic: str
    paper: str
    season: str
    layout: str
    entries: tuple[tuple[str, int], ...]  # (goods, amount)

    @property
    def id(self) -> str:
        return digest("page", repr(self))


@cache
def library(split: Split, seed: int) -> tuple[Page, ...]:
    """All pages of the split: 768 for training, 256 for the test."""
    return tuple(
        _page(topic, paper, season, Dice("page", seed, topic, paper, season))
        for topic, paper in pairs("titles", split)
        for season in SEASONS
    )


def _page(topic: str, paper: str, season: str, dice: Dice) -> Page:
    goods, amounts = dice.some(GROCERIES, 3), dice.some(AMOUNTS, 3)
    return Page(topic, paper, season, dice.pick(LAYOUTS), tuple(zip(goods, amounts, strict=True)))


def item(page: Page, pixels: int) -> Item:
    return Item((png(draw(page, pixels)),), page.id)


def draw(page: Page, pixels: int) -> Picture:
    """The page, RGB, 5/3 * pixels wide and 7/6 * pixels high; drawn twice as large, then averaged down."""
    unit = 2 * pixels / 96
    canvas = PIL.Image.new("RGB", (round(WIDTH * unit), round(HEIGHT * unit)), "#ffffff")
    pen = Pen(PIL.ImageDraw.Draw(canvas), unit)
    pen.box(0, 0, WIDTH, 32, ACCENTS[page.season])
    pen.text(8, 16, page.topic, 21, "#ffffff", "lm")
    pen.text(WIDTH - 8, 16, page.paper, 21, "#ffffff", "rm")
    pen.text(WIDTH - 8, HEIGHT - 11, page.season, 14, ACCENTS[page.season], "rm")
    DRAW[page.layout](pen, page)
    return canvas.reduce(2)


@dataclass(frozen=True)
class Pen:
    """Draws in the page's own units, whatever the size."""

    on: PIL.ImageDraw.ImageDraw
    unit: float

    def box(self, x: float, y: float, right: float, bottom: float, colour: str) -> None:
        u = self.unit
        self.on.rectangle((round(x * u), round(y * u), round(right * u) - 1, round(bottom * u) - 1), fill=colour)

    def slice(self, x: float, y: float, radius: float, start: float, end: float, colour: str) -> None:
        u = self.unit
        box = ((x - radius) * u, (y - radius) * u, (x + radius) * u, (y + radius) * u)
        self.on.pieslice(box, start, end, fill=colour, outline="#ffffff", width=round(u))

    def text(self, x: float, y: float, text: str, size: float, colour: str = INK, anchor: str = "lm") -> None:
        font = _font(size * self.unit)
        self.on.text((x * self.unit, y * self.unit), text, fill=colour, font=font, anchor=anchor)


@lru_cache(maxsize=32)
def _font(size: float) -> PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont:
    return PIL.ImageFont.load_default(size)


def _table(pen: Pen, page: Page) -> None:
    for row, (goods, amount) in enumerate(page.entries):
        y = 46 + 18 * row
        pen.box(8, y - 8.5, 96, y + 8.5, PALE if row % 2 else "#e6e9ee")
        pen.text(14, y, goods, 15)
        pen.text(90, y, str(amount), 15, anchor="rm")


def _bars(pen: Pen, page: Page) -> None:
    for column, (goods, amount) in enumerate(page.entries):
        x = 8 + 30 * column
        top = 88 - 4.2 * amount
        pen.box(x + 4, top, x + 24, 88, SLICES[column])
        pen.text(x + 14, top - 1, str(amount), 14, anchor="mb")
        pen.text(x + 14, 99, goods, 14, anchor="mm")
    pen.box(8, 88, 96, 89, INK)


def _pie(pen: Pen, page: Page) -> None:
    total, start = sum(amount for _, amount in page.entries), -90.0
    for k, (goods, amount) in enumerate(page.entries):
        end = start + 360 * amount / total
        pen.slice(40, 73, 34, start, end, SLICES[k])
        middle = math.radians((start + end) / 2)
        pen.text(40 + 20 * math.cos(middle), 73 + 20 * math.sin(middle), str(amount), 14, "#ffffff", "mm")
        pen.box(82, 42 + 16 * k, 92, 52 + 16 * k, SLICES[k])
        pen.text(97, 47 + 16 * k, goods, 15)
        start = end


def _note(pen: Pen, page: Page) -> None:
    for row, (goods, amount) in enumerate(page.entries):
        words = ("We have", "then", "and")[row]
        pen.text(8, 46 + 18 * row, f"{words} {amount} {goods}" + ("." if row == 2 else ","), 15)


DRAW: dict[str, Callable[[Pen, Page], None]] = {
    "table": _table,
    "bar chart": _bars,
    "pie chart": _pie,
    "note": _note,
}
