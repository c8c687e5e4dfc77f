"""Receipts (ICDAR 2019 SROIE): scanned pages -> visual-document retrieval, and questions about their fields."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..counter import choose
from ..types import Example, Item, Where
from .folder import Row, Splits, Tasks, joined, medium, outside, splits, unseen, write

QUESTIONS = {
    "company": "Which company issued the receipt?",
    "date": "What is the date of the receipt?",
    "address": "What is the address of the company?",
    "total": "What is the total amount?",
}
CANDIDATES = 10  # of a question: the right answer and those of other pages


@dataclass(frozen=True)
class Receipts:
    """Parquet with image (bytes), company, date, address, total -> {split}/receipts_pages, {split}/receipts_qa."""

    root: str
    name: str = "receipts"

    def outside(self, where: Where) -> Mapping[str, str]:
        return outside(self.root)

    def tasks(self) -> Tasks:
        return _tasks(unseen(splits(self.root, ("image", *QUESTIONS)), lambda row: row["image"]))

    def make(self, out: Path, where: Where) -> None:
        write(out, self.tasks())


def _tasks(found: Splits) -> Tasks:
    for split, rows in found.items():
        pages = [medium("image", row["image"], f"receipts {split} {i}") for i, row in enumerate(rows)]
        yield split, "receipts_pages", _pages(split, rows, pages)
        yield split, "receipts_qa", _questions(split, rows, pages)


def _pages(split: str, rows: Sequence[Row], pages: Sequence[Item]) -> list[Example]:
    """ "receipt of COMPANY on DATE" -> the page, or the pages of that company on that day."""
    right = defaultdict(list)
    for row, page in zip(rows, pages, strict=True):
        right[row["company"], row["date"]].append(page.id)
    return [
        Example(
            key=f"receipts_pages/{split}/{i}",
            source="receipts_pages",
            task="retrieval",
            query=Item.text(f"receipt of {row['company']} on {row['date']}"),
            positives=(page,),
            known=tuple(right[row["company"], row["date"]]),
            instruction="Find the document image that matches the query.",
            target_instruction="Represent the document image.",
        )
        for i, (row, page) in enumerate(zip(rows, pages, strict=True))
    ]


def _questions(split: str, rows: Sequence[Row], pages: Sequence[Item]) -> list[Example]:
    """Page and question -> the field's text, among those of other pages of the split."""
    examples: list[Example] = []
    for field, question in QUESTIONS.items():
        values = sorted({row[field] for row in rows if row[field]})
        for i, (row, page) in enumerate(zip(rows, pages, strict=True)):
            answer = row[field]
            others = [v for v in values if v != answer]
            wrong = [others[j] for j in choose(len(others), CANDIDATES - 1, "receipts", page.id, field)]
            if answer and wrong:
                examples.append(
                    Example(
                        key=f"receipts_qa/{split}/{i}-{field}",
                        source="receipts_qa",
                        task="vqa",
                        query=joined(page, question),
                        positives=(Item.text(answer),),
                        negatives=tuple(Item.text(v) for v in wrong),
                        known=(Item.text(answer).id,),
                        instruction="Answer the question about the document.",
                        answer=answer,
                    )
                )
    return examples
