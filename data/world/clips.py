"""Clips: one shape that moves, grows, shrinks, blinks or jumps, as animated lossless WebP that Pillow itself reads.

Neighbouring frames always differ: the encoder would melt equal ones into one longer frame. Every second frame still
shows what happens, since video is commonly sampled at two frames a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO

import PIL.Image

from ..types import Blob, Item, Video, digest
from .compositions import Split
from .dice import Dice
from .drawing import OVERSIZE, Picture, shrink, stamp
from .scenes import Thing, any_thing
from .vocabulary import MOVES, TINTS

FRAMES = 8
FRAME_MS = 250
_THERE_AND_BACK = (0.0, 0.55, 1.0, 0.55)  # twice in a clip


@dataclass(frozen=True)
class Clip:
    """A thing (its size is not told: some moves change it) and what it does. `look` seeds background and path."""

    thing: Thing
    move: str
    look: int

    def texts(self) -> tuple[str, ...]:
        """Every sentence that describes it."""
        words = f"{self.thing.texture} {self.thing.colour} {self.thing.shape}"
        return f"a {words} {self.move}", f"a clip of a {words} that {self.move}"

    @property
    def id(self) -> str:
        return digest("clip", self.texts()[0])


def any_clip(dice: Dice, split: Split) -> Clip:
    return Clip(any_thing(dice, split), dice.pick(MOVES), dice.below(1 << 30))


def item(clip: Clip, pixels: int) -> Item:
    return Item((webp(frames(clip, pixels)),), clip.id)


def frames(clip: Clip, pixels: int) -> list[Picture]:
    """FRAMES pictures, two thirds of `pixels` wide and high."""
    width = pixels * 2 // 3 * OVERSIZE
    dice = Dice("look", clip.look)
    tint, aside = dice.pick(TINTS), dice.between(-0.12, 0.12)
    pictures = []
    for frame in range(FRAMES):
        x, y, size, strength = _pose(clip.move, frame, aside)
        canvas = PIL.Image.new("RGB", (width, width), tint)
        stamp(canvas, clip.thing, x * width, y * width, size * width, strength)
        pictures.append(shrink(canvas))
    return pictures


def _pose(move: str, frame: int, aside: float) -> tuple[float, float, float, float]:
    """Centre x and y, width (of 1), and strength of the thing in that frame."""
    along = frame / (FRAMES - 1)
    swing = _THERE_AND_BACK[frame % 4]
    path = 0.24 + 0.52 * along
    match move:
        case "moves right":
            return path, 0.5 + aside, 0.44, 1.0
        case "moves left":
            return 1 - path, 0.5 + aside, 0.44, 1.0
        case "moves down":
            return 0.5 + aside, path, 0.44, 1.0
        case "moves up":
            return 0.5 + aside, 1 - path, 0.44, 1.0
        case "grows":
            return 0.5 + aside / 2, 0.5, 0.22 + 0.5 * along, 1.0
        case "shrinks":
            return 0.5 + aside / 2, 0.5, 0.72 - 0.5 * along, 1.0
        case "blinks":
            return 0.5 + aside, 0.5, 0.5, 1 - 0.9 * swing
        case _:  # jumps
            return 0.5 + aside, 0.74 - 0.46 * math.sqrt(swing), 0.44, 1.0


def webp(pictures: list[Picture]) -> Video:
    file = BytesIO()
    first, *rest = pictures
    first.save(file, "WEBP", save_all=True, append_images=rest, duration=FRAME_MS, loop=0, lossless=True, method=0)
    return Video(Blob(file.getvalue()), first.width, first.height, len(pictures), len(pictures) * FRAME_MS / 1000)
