"""Yes/no rows: a query, a candidate and the question whether they fit, with the word to be generated.

For NextToken beside a contrastive loss (ReMatch's generative matching; Qwen3-Reranker is trained so alone), and for a
judge that reads the words' logits (train/judge_vlm.py): both show a model the same Item.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .counter import bits
from .opened import ends_of
from .types import DataError, Example, Item, Part, Rows, Source, Text, Where, digest

QUESTION = "Does the candidate answer the query? Answer Yes or No."
_TRIED = 32  # rows a drawn negative: of rows half of which do not fit, one search in four billion finds none


def question_of(query: Item, candidate: Item, question: str = QUESTION) -> Item:
    """The Item that asks whether the candidate fits the query, their parts in their order."""
    parts: tuple[Part, ...] = (
        Text("Query: "),
        *query.parts,
        Text("\nCandidate: "),
        *candidate.parts,
        Text(f"\n{question}"),
    )
    return Item(parts, given_id=digest("question", query.id, candidate.id, question))


@dataclass(frozen=True)
class Asked:
    """Two rows or more for each of `source` that has a positive: one whose answer is `yes`, of its first positive
    (key "…#yes-0"), and `negatives` whose answer is `no` ("…#no-0", …).

    They have no positives and no negatives, but an answer: train them with NextToken and a Feed(answers=True), which is
    its default. A row's own negatives are taken first, in their order, which is hardest first. Where it has too few,
    another row's first positive is drawn (by `seed` and the key, always the same): one that this row does not know as
    right, that is not its query, and not of its class; that it is wrong nobody has said. Opening reads every row once,
    to leave out those without a positive. Raises DataError, naming the row, where 32 draws find no wrong answer.
    """

    source: Source
    question: str = QUESTION
    yes: str = "Yes"
    no: str = "No"
    negatives: int = 1
    seed: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        if self.negatives < 0:
            raise DataError(f"asked {self.source.name!r}: negatives={self.negatives}; expected 0 or more")
        if not self.yes or not self.no or self.yes == self.no:
            raise DataError(f"asked {self.source.name!r}: yes={self.yes!r}, no={self.no!r}; expected two unlike words")
        if not self.name:
            object.__setattr__(self, "name", f"{self.source.name}-asked")

    def open(self, where: Where) -> Rows:
        rows = self.source.open(where)
        able = np.array([i for i in range(len(rows)) if rows[i].positives], np.int64)
        if not len(able):
            raise DataError(f"source {self.name!r}: none of {len(rows):,} rows has a positive to ask for")
        return AskedRows(self, rows, able)


@dataclass(frozen=True)
class AskedRows:
    """Each row of `able` as a yes and the no's behind it."""

    told: Asked
    rows: Rows
    able: NDArray[np.int64]

    @property
    def name(self) -> str:
        return self.told.name

    @cached_property
    def digest(self) -> str:
        t = self.told
        settings = repr((t.name, t.question, t.yes, t.no, t.negatives, t.seed))
        return digest("asked", settings, self.rows.digest)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Of the blocks of the rows that are asked about."""
        ends = np.unique(np.searchsorted(self.able, ends_of(self.rows)))
        return ends[ends > 0] * self._each

    @property
    def _each(self) -> int:
        return 1 + self.told.negatives

    def __len__(self) -> int:
        return len(self.able) * self._each

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"source {self.name!r}: row {index} of {len(self)}")
        place, k = int(self.able[index // self._each]), index % self._each
        example = self.rows[place]
        if k == 0:
            return self._row(example, example.positives[0], self.told.yes, "yes-0")
        return self._row(example, self._wrong(example, place, k - 1), self.told.no, f"no-{k - 1}")

    def __getstate__(self) -> dict[str, object]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def _row(self, example: Example, candidate: Item, answer: str, which: str) -> Example:
        return Example(
            key=f"{example.key}#{which}",
            source=self.name,
            task="vqa",
            query=question_of(example.query, candidate, self.told.question),
            positives=(),
            instruction=example.instruction,
            answer=answer,
        )

    def _wrong(self, example: Example, place: int, k: int) -> Item:
        """The k-th wrong answer of a row."""
        right = {example.query.id, *(p.id for p in example.positives), *example.known}
        given = [item for item in example.negatives if item.id not in right]
        if k < len(given):
            return given[k]
        taken = right | {item.id for item in given}
        for number, item in enumerate(self._drawn(example, place, taken), len(given)):
            if number == k:
                return item
        raise DataError(
            f"{example.key}: found no wrong answer number {k + 1} among other rows; give the row negatives, or lower "
            f"negatives={self.told.negatives} of source {self.name!r}"
        )

    def _drawn(self, example: Example, place: int, taken: set[str]) -> Iterator[Item]:
        """First positives of other rows, in random order, each once."""
        for turn in range(_TRIED * self.told.negatives):
            other = int(self.able[bits(self.told.seed, "asked", example.key, turn) % len(self.able)])
            if other == place:
                continue
            shown = self.rows[other]
            item = shown.positives[0]
            alike = bool(example.label) and shown.label == example.label
            if item.id not in taken and not alike and shown.query.id != example.query.id:
                taken.add(item.id)
                yield item
