"""Banking (BANKING77): a customer's question -> its intent, and other questions of that intent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..types import Item, Where
from .folder import Splits, Tasks, outside, splits, unseen, write
from .labelled import classification, same_class


@dataclass(frozen=True)
class Banking:
    """Parquet with text and intent -> {split}/banking_intents, {split}/banking_same."""

    root: str
    name: str = "banking"

    def outside(self, where: Where) -> Mapping[str, str]:
        return outside(self.root)

    def tasks(self) -> Tasks:
        return _tasks(unseen(splits(self.root, ("text", "intent")), lambda row: row["text"].strip().lower()))

    def make(self, out: Path, where: Where) -> None:
        write(out, self.tasks())


def _tasks(found: Splits) -> Tasks:
    classes = sorted({row["intent"] for rows in found.values() for row in rows})
    for split, rows in found.items():
        items = [(Item.text(row["text"]), row["intent"]) for row in rows]
        asked = "Given a customer's question to a bank, find the intent behind it."
        yield split, "banking_intents", classification("banking_intents", split, items, classes, asked)
        same = "Retrieve customers' questions that have the same intent."
        yield split, "banking_same", same_class("banking_same", split, items, same, same)
