"""Clothing (clothing-dataset-small): photographs -> their kind, and other photographs of that kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..types import Where
from .folder import Splits, Tasks, medium, outside, splits, unseen, write
from .labelled import classification, same_class


@dataclass(frozen=True)
class Clothing:
    """Parquet with image (bytes), label and file -> {split}/clothing_classes, {split}/clothing_same."""

    root: str
    name: str = "clothing"

    def outside(self, where: Where) -> Mapping[str, str]:
        return outside(self.root)

    def tasks(self) -> Tasks:
        return _tasks(unseen(splits(self.root, ("image", "label")), lambda row: row["image"]))

    def make(self, out: Path, where: Where) -> None:
        write(out, self.tasks())


def _tasks(found: Splits) -> Tasks:
    classes = sorted({row["label"] for rows in found.values() for row in rows})
    for split, rows in found.items():
        items = [(medium("image", r["image"], f"clothing {split} {i}"), r["label"]) for i, r in enumerate(rows)]
        yield (
            split,
            "clothing_classes",
            classification(
                "clothing_classes", split, items, classes, "Identify the kind of clothing shown in the photograph."
            ),
        )
        yield (
            split,
            "clothing_same",
            same_class(
                "clothing_same",
                split,
                items,
                "Find a photograph of the same kind of clothing.",
                "Represent the photograph of clothing.",
            ),
        )
