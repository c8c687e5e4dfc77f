"""LIMIT-small (arXiv:2508.21038): who likes what, 46 people and 1,000 queries with two answers each; a test only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..tables import cells
from ..types import DataError, Example, Item, Where
from .folder import Tasks, outside, write


@dataclass(frozen=True)
class LimitSmall:
    """corpus.jsonl, queries.jsonl and qrels.jsonl -> test/limit_small."""

    root: str
    name: str = "limit_small"

    def outside(self, where: Where) -> Mapping[str, str]:
        return outside(self.root)

    def tasks(self) -> Tasks:
        return _tasks(Path(self.root))

    def make(self, out: Path, where: Where) -> None:
        write(out, self.tasks())


def _tasks(root: Path) -> Tasks:
    documents = {
        row["_id"]: Item.text(f"{row['title']} {row['text']}".strip())
        for row in cells(root / "corpus.jsonl", ("_id", "title", "text"))
    }
    right: dict[str, list[str]] = {}
    for row in cells(root / "qrels.jsonl", ("query-id", "corpus-id", "score")):
        if row["corpus-id"] not in documents:
            raise DataError(f"{root}/qrels.jsonl: document {row['corpus-id']!r} is not in corpus.jsonl")
        if row["score"] > 0:
            right.setdefault(row["query-id"], []).append(row["corpus-id"])
    # A document that answers nothing must be in the pool all the same.
    named = {name for names in right.values() for name in names}
    idle = tuple(item for name, item in documents.items() if name not in named)
    rows = [
        Example(
            key=f"limit_small/test/{row['_id']}",
            source="limit_small",
            task="retrieval",
            query=Item.text(row["text"]),
            positives=tuple(documents[name] for name in right[row["_id"]]),
            negatives=idle,
            known=tuple(documents[name].id for name in right[row["_id"]]),
            instruction="Given a question, retrieve the people who like the thing.",
        )
        for row in cells(root / "queries.jsonl", ("_id", "text"))
        if row["_id"] in right
    ]
    yield "test", "limit_small", rows
