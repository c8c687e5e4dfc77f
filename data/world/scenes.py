"""Scenes: coloured shapes at named spots. A scene is a record; what is drawn and what is said both come from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..types import digest
from .compositions import Split, pairs, partners
from .dice import Dice
from .vocabulary import CELLS, NUMBERS, PLURALS, SIZES, SYNONYMS, TEXTURES

PAIRS = {("upper half", "lower half"): "above", ("left half", "right half"): "left of"}


@dataclass(frozen=True)
class Thing:
    size: str
    texture: str
    colour: str
    shape: str

    def words(self, voice: int = 0, many: bool = False) -> str:
        """ "big plain red circle"; in voice 1 "large solid red circle"; of many "big plain red circles"."""
        size, texture = ((SYNONYMS[w] if voice else w) for w in (self.size, self.texture))
        return f"{size} {texture} {self.colour} {PLURALS[self.shape] if many else self.shape}"


@dataclass(frozen=True)
class Scene:
    """`things[i]` is at `spots[i]`. `look` seeds what no text speaks of: the background and small shifts."""

    spots: tuple[str, ...]
    things: tuple[Thing, ...]
    look: int

    @property
    def relation(self) -> str:
        """ "above" or "left of" for a pair of things that share the picture, first to second; else empty."""
        return PAIRS.get(self.spots[:2], "") if len(self.spots) == 2 else ""

    @property
    def meaning(self) -> str:
        """The one plain sentence that says all that a caption can say; scenes of equal meaning are equally right."""
        if self.relation:
            return f"{self.things[0].words()} {self.relation} {self.things[1].words()}"
        if len(set(self.things)) == 1:
            return f"{NUMBERS[len(self.things) - 1]} {self.things[0].words(many=len(self.things) > 1)}"
        return "; ".join(f"{t.words()} {s}" for s, t in sorted(zip(self.spots, self.things, strict=True)))

    @property
    def id(self) -> str:
        return digest("scene", self.meaning)

    def replaced(self, index: int, thing: Thing) -> Scene:
        return replace(self, things=(*self.things[:index], thing, *self.things[index + 1 :]))


def any_thing(dice: Dice, split: Split) -> Thing:
    colour, shape = dice.pick(pairs("things", split))
    return Thing(dice.pick(SIZES), dice.pick(TEXTURES), colour, shape)


def any_pair(dice: Dice, split: Split) -> Scene:
    """Two things of different shapes and colours, one above or left of the other."""
    first = any_thing(dice, split)
    while (second := any_thing(dice, split)).shape == first.shape or second.colour == first.colour:
        pass
    return Scene(dice.pick(list(PAIRS)), (first, second), dice.below(1 << 30))


def any_group(dice: Dice, split: Split, most: int = 5) -> Scene:
    """From one to `most` equal things in cells of the grid."""
    thing = any_thing(dice, split)
    count = 1 + dice.below(most)
    return Scene(tuple(dice.some(list(CELLS), count)), (thing,) * count, dice.below(1 << 30))


def any_grid(dice: Dice, split: Split, count: int, apart: bool = False) -> Scene:
    """`count` different things in cells of the grid; `apart`: no two share a shape or a colour (count <= 4)."""
    things: list[Thing] = []
    while len(things) < count:
        thing = any_thing(dice, split)
        if not any(t == thing or (apart and (t.shape == thing.shape or t.colour == thing.colour)) for t in things):
            things.append(thing)
    return Scene(tuple(dice.some(list(CELLS), count)), tuple(things), dice.below(1 << 30))


def edits(scene: Scene, index: int, split: Split) -> dict[str, list[Thing]]:
    """Every thing that differs from `things[index]` in one attribute, by attribute, inside the split's compositions.

    Shapes and colours of the scene's other things are left out: they must go on naming one thing each.
    """
    thing = scene.things[index]
    others = [t for i, t in enumerate(scene.things) if i != index]
    taken = {t.colour for t in others} | {t.shape for t in others}
    return {
        "size": [replace(thing, size=s) for s in SIZES if s != thing.size],
        "texture": [replace(thing, texture=t) for t in TEXTURES if t != thing.texture],
        "colour": [
            replace(thing, colour=c)
            for c in partners("things", split, thing.shape)
            if c != thing.colour and c not in taken
        ],
        "shape": [
            replace(thing, shape=s)
            for s in partners("things", split, thing.colour)
            if s != thing.shape and s not in taken
        ],
    }


def differences(a: Thing, b: Thing) -> int:
    """Attributes, of four, in which two things differ."""
    return (a.size != b.size) + (a.texture != b.texture) + (a.colour != b.colour) + (a.shape != b.shape)


def distance(a: Scene, b: Scene) -> int:
    """Facts, of nine, in which two pairs differ: four attributes of each thing, and how they stand to each other.

    Things are matched so that fewest differ: a pair whose things have changed places differs in one fact.
    """
    straight = sum(differences(x, y) for x, y in zip(a.things, b.things, strict=True)) + (a.relation != b.relation)
    crossed = sum(differences(x, y) for x, y in zip(a.things, b.things[::-1], strict=True)) + 1
    return min(straight, crossed)


def closest(scene: Scene, index: int) -> list[int]:
    """The other things' indices, those most like `things[index]` first."""
    rest = [i for i in range(len(scene.things)) if i != index]
    return sorted(rest, key=lambda i: (differences(scene.things[index], scene.things[i]), i))
