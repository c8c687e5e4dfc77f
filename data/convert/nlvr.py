"""NLVR (Suhr et al., ACL 2017): is a sentence true of a picture? Two answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..types import Example, Item, Where
from .folder import Splits, Tasks, joined, medium, outside, splits, unseen, write


@dataclass(frozen=True)
class Nlvr:
    """Parquet with image (bytes), sentence and label ("true" or "false") -> {split}/nlvr."""

    root: str
    name: str = "nlvr"

    def outside(self, where: Where) -> Mapping[str, str]:
        return outside(self.root)

    def tasks(self) -> Tasks:
        return _tasks(unseen(splits(self.root, ("image", "sentence", "label")), lambda row: row["image"]))

    def make(self, out: Path, where: Where) -> None:
        write(out, self.tasks())


def _tasks(found: Splits) -> Tasks:
    answers = {word: Item.text(word) for word in ("true", "false")}
    for split, rows in found.items():
        yield (
            split,
            "nlvr",
            [
                Example(
                    key=f"nlvr/{split}/{i}",
                    source="nlvr",
                    task="vqa",
                    query=joined(medium("image", row["image"], f"nlvr {split} {i}"), row["sentence"]),
                    positives=(answers[row["label"]],),
                    negatives=tuple(a for word, a in answers.items() if word != row["label"]),
                    known=(answers[row["label"]].id,),
                    label=row["label"],
                    instruction="Is the sentence true of the picture? Answer true or false.",
                    answer=row["label"],
                )
                for i, row in enumerate(rows)
            ],
        )
