"""What one row is drawn from: its task, its split and its number, and nothing of any other row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from ..types import Item
from .compositions import Split
from .dice import Dice


@dataclass(frozen=True)
class Seed:
    """Row `index` of a task. `hard`: wrong answers that a training row carries; a test row carries its whole pool."""

    task: str
    split: Split
    index: int
    seed: int = 0
    pixels: int = 96
    hard: int = 3

    @property
    def source(self) -> str:
        return f"world/{self.task}"

    @property
    def key(self) -> str:
        return f"world/{self.task}/{self.split}/{self.index:06d}"

    @cached_property
    def dice(self) -> Dice:
        return Dice("row", self.seed, self.split, self.task, self.index)

    @property
    def most(self) -> int | None:
        """Where to cut a list of wrong answers."""
        return self.hard if self.split == "train" else None

    def wrong(self, answers: Iterable[Item], right: Iterable[str]) -> tuple[Item, ...]:
        """The wrong answers to keep, in the order given (the hardest first): none twice, none whose id is `right`."""
        rights = set(right)
        kept = {a.id: a for a in answers if a.id not in rights}
        return tuple(kept.values())[: self.most]

    def wrong_texts(self, texts: Iterable[str], right: str) -> tuple[Item, ...]:
        return self.wrong(map(Item.text, texts), (Item.text(right).id,))
