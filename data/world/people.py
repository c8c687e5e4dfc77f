"""People: what each viewed, searched for and bought in a shop, as a history of Events."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..types import Event, Events
from .compositions import Split, pairs
from .dice import Dice

START = 1_700_000_000  # Unix seconds


@dataclass(frozen=True)
class Act:
    """One thing that a person did, with a coloured article: ("bought", "red", "mug")."""

    action: str
    colour: str
    article: str

    @property
    def text(self) -> str:
        return f"{self.colour} {self.article}"


@dataclass(frozen=True)
class Person:
    """Acts, oldest first, and the time of each. One article and one colour were viewed most."""

    acts: tuple[Act, ...]
    times: tuple[int, ...]

    def events(self) -> Events:
        done = (Event(a.action, a.text, float(t)) for a, t in zip(self.acts, self.times, strict=True))
        return Events(tuple(done), "shop")

    def of(self, action: str) -> list[Act]:
        return [a for a in self.acts if a.action == action]

    @property
    def favourites(self) -> tuple[str, str]:
        """The colour and the article viewed most; empty where two are equal."""
        views = self.of("viewed")
        return leader([a.colour for a in views]), leader([a.article for a in views])


def leader(words: list[str]) -> str:
    """The most frequent word, "" if there is more than one such."""
    counts = Counter(words).most_common(2)
    return "" if not counts or (len(counts) > 1 and counts[0][1] == counts[1][1]) else counts[0][0]


def any_person(dice: Dice, split: Split) -> Person:
    """Three to five views, two searches and two purchases in random order, until the favourites are clear."""
    while True:
        taste = dice.pick(pairs("goods", split))
        near = [p for p in pairs("goods", split) if set(p) & set(taste)]
        actions = dice.shuffled(["viewed"] * (3 + dice.below(3)) + ["searched"] * 2 + ["bought"] * 2)
        goods = [dice.pick(near if dice.chance(0.6) else pairs("goods", split)) for _ in actions]
        hours = [1 + dice.below(48) for _ in actions]
        times = tuple(START + 3600 * sum(hours[: i + 1]) for i in range(len(hours)))
        acts = tuple(Act(action, *pair) for action, pair in zip(actions, goods, strict=True))
        person = Person(acts, times)
        if all(person.favourites) and len({a.text for a in acts}) == len(acts) - _repeats(person):
            return person


def _repeats(person: Person) -> int:
    """Views of what was viewed before: the only repeats allowed, so that "the last thing bought" is one thing."""
    views = [a.text for a in person.of("viewed")]
    return len(views) - len(set(views))
