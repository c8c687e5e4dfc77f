"""STS (STS benchmark and its translations): pairs of sentences with a graded similarity, one task a language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..types import Example, Item, Where
from .folder import Splits, Tasks, outside, splits, unseen, write

INSTRUCTION = "Retrieve semantically similar text."


@dataclass(frozen=True)
class Sts:
    """Parquet with a, b, score (0 to 5) and language -> {split}/sts_en, {split}/sts_de, ... with scores["label"].

    For a contrastive loss take the pairs that are alike: AtLeast(Shards(sts, "train/sts_en"), "label", 4.0).
    """

    root: str
    name: str = "sts"

    def outside(self, where: Where) -> Mapping[str, str]:
        return outside(self.root)

    def tasks(self) -> Tasks:
        columns = ("a", "b", "score", "language")
        return _tasks(unseen(splits(self.root, columns), lambda row: frozenset((row["a"], row["b"]))))

    def make(self, out: Path, where: Where) -> None:
        write(out, self.tasks())


def _tasks(found: Splits) -> Tasks:
    for split, rows in found.items():
        for language in sorted({row["language"] for row in rows}):
            source = f"sts_{language}"
            spoken = [row for row in rows if row["language"] == language]
            yield (
                split,
                source,
                [
                    Example(
                        key=f"{source}/{split}/{i}",
                        source=source,
                        task="sts",
                        query=Item.text(row["a"]),
                        positives=(Item.text(row["b"]),),
                        instruction=INSTRUCTION,
                        target_instruction=INSTRUCTION,
                        scores={"label": (float(row["score"]),)},
                    )
                    for i, row in enumerate(spoken)
                ],
            )
