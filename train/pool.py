"""The documents that a mining run ranks: each once, with who is right for whom, as flat arrays.

Rows that ask the same (equal query, equal instruction) share their right answers: what answers one of them is no
negative for another.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.absent import advice
from ..data.relation import id_pair
from ..data.types import DataError, Example, Item, Prompted, Rows, digest
from .teacher import Told

Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """n rows and N distinct documents, of which the first `candidates` may become negatives.

    row (N,): the row that first has a document, of `others` up to its end and of `rows` behind; slot (N,): its place
    among that row's positives, then negatives. positive (P,) documents of the rows, in order, ending at positive_end
    (n,); negative (O,) likewise. label (n,), shared (N,): numbers of the rows' labels and of all rows' that a document
    is right for; 0 where there is none, or they differ. asked (n,): which rows ask the same, G in all; right (R,): the
    candidates that are right for it, or the query itself, ending at right_end (G,).
    """

    rows: Rows
    others: Rows | None
    told: Told
    candidates: int
    row: Longs
    slot: Longs
    positive: Longs
    positive_end: Longs
    negative: Longs
    negative_end: Longs
    label: Longs
    shared: Longs
    asked: Longs
    right: Longs
    right_end: Longs

    @staticmethod
    def of(
        rows: Rows,
        others: Rows | None,
        told: Told,
        labels: bool = True,
        advance: Callable[[int], None] = lambda done: None,
    ) -> Pool:
        """Reads every row once. others: where the candidates come from, if not from the rows themselves."""
        seen = _Seen()
        for i in range(len(others) if others is not None else 0):
            assert others is not None
            seen.documents(others[i], i, labels)
            advance(1)
        limit = len(seen.number) if others is not None else -1
        for i in range(len(rows)):
            seen.asks(rows[i], labels)
            seen.documents(rows[i], i + (len(others) if others is not None else 0), labels, own=True)
            advance(1)
        return seen.pool(rows, others, told, limit)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def digest(self) -> str:
        """Of all that decides which candidates a query may have."""
        others = self.others.digest if self.others is not None else ""
        return digest(self.rows.digest, others, self.label.tobytes(), repr(self.told))

    def item(self, document: int) -> tuple[Example, Item]:
        """A document and the row that has it."""
        at, slot, before = int(self.row[document]), int(self.slot[document]), 0
        if self.others is not None:
            before = len(self.others)
        example = self.others[at] if self.others is not None and at < before else self.rows[at - before]
        return example, (*example.positives, *example.negatives)[slot]

    def items(self, some: Sequence[Longs]) -> dict[int, Item]:
        """Of several lists of documents, each read once, in the order of the rows that have them."""
        distinct = np.unique(np.concatenate([np.zeros(0, np.int64), *some]))
        ordered = distinct[np.argsort(self.row[distinct], kind="stable")]
        return {document: self.item(document)[1] for document in ordered.tolist()}

    def prompt(self, document: int) -> Prompted:
        example, item = self.item(document)
        own = example.target_instruction if self.told.target_instruction is None else self.told.target_instruction
        return Prompted(item, "target", own, key=example.key)

    def positives(self, row: int) -> Longs:
        return _part(self.positive, self.positive_end, row)

    def negatives(self, row: int) -> Longs:
        return _part(self.negative, self.negative_end, row)

    def barred(self, row: int) -> Longs:
        """The candidates that are right for what a row asks, or of its label."""
        right = _part(self.right, self.right_end, int(self.asked[row]))
        if not self.label[row]:
            return right
        return np.union1d(right, np.flatnonzero(self.shared[: self.candidates] == self.label[row]))

    def hidden(self, rows: slice, documents: slice) -> Tensor | None:
        """Of a tile, what its rows do not rank: (H, 2) pairs, or a mask (rows, documents) where labels count."""
        asked = self.asked[rows]
        end = self.right_end[asked]
        begin = np.where(asked > 0, self.right_end[asked - 1], 0)
        owner = np.repeat(np.arange(len(asked)), end - begin)
        flat = np.arange(len(owner)) - np.repeat(np.cumsum(end - begin) - (end - begin), end - begin)
        right = self.right[flat + np.repeat(begin, end - begin)]
        here = (right >= documents.start) & (right < documents.stop)
        pairs = torch.from_numpy(np.stack([owner[here], right[here] - documents.start], axis=1))
        label = self.label[rows]
        if not label.any():
            return pairs
        mask = torch.from_numpy((label[:, None] == self.shared[None, documents]) & (label[:, None] != 0))
        mask[pairs[:, 0], pairs[:, 1]] = True
        return mask


def _part(values: Longs, ends: Longs, i: int) -> Longs:
    return values[(int(ends[i - 1]) if i else 0) : int(ends[i])]


class _Seen:
    """What is noted of the rows while they are read: eight bytes an id."""

    def __init__(self) -> None:
        # Of every document that stands in a row: its id's number, the row and slot, the label that it is right for.
        self.number, self.row, self.slot, self.label = (array("q") for _ in range(4))
        self.asked, self.labels = array("q"), array("q")
        self.right, self.right_end = array("q"), array("q")  # numbers of ids, row by row
        self.positive, self.positive_end, self.negative, self.negative_end = (array("q") for _ in range(4))

    def documents(self, example: Example, row: int, labels: bool, own: bool = False) -> None:
        label = id_pair(example.label)[0] if labels and example.label else 0
        for slot, item in enumerate((*example.positives, *example.negatives)):
            right = slot < len(example.positives)
            if own:
                (self.positive if right else self.negative).append(len(self.number))
            self.number.append(id_pair(item.id)[0])
            self.row.append(row)
            self.slot.append(slot)
            self.label.append(label if right else 0)
        if own:
            self.positive_end.append(len(self.positive))
            self.negative_end.append(len(self.negative))

    def asks(self, example: Example, labels: bool) -> None:
        if not example.positives:
            raise DataError(f"{example.key}: no positive, so there is nothing to mine by; {advice(example, 'mine it')}")
        self.asked.append(id_pair(f"{example.query.id} {example.instruction}")[0])
        self.labels.append(id_pair(example.label)[0] if labels and example.label else 0)
        right = dict.fromkeys([example.query.id, *(p.id for p in example.positives), *example.known])
        self.right.extend(id_pair(i)[0] for i in right)
        self.right_end.append(len(self.right))

    def pool(self, rows: Rows, others: Rows | None, told: Told, limit: int) -> Pool:
        """limit: so many of the documents seen are candidates, -1 for all."""
        number = _longs(self.number)
        distinct, first, inverse = np.unique(number, return_index=True, return_inverse=True)
        order = np.argsort(first)  # documents as rows first have them: those of `others` before all
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        first = first[order]
        count = len(first) if limit < 0 else int((first < limit).sum())
        document = place[inverse.reshape(-1)]
        asked, right, right_end = self._right(distinct, place, count)
        return Pool(
            rows,
            others,
            told,
            count,
            _longs(self.row)[first],
            _longs(self.slot)[first],
            document[_longs(self.positive)],
            _longs(self.positive_end),
            document[_longs(self.negative)],
            _longs(self.negative_end),
            _longs(self.labels),
            _shared(document, _longs(self.label), len(first)),
            asked,
            right,
            right_end,
        )

    def _right(self, distinct: Longs, place: Longs, candidates: int) -> tuple[Longs, Longs, Longs]:
        """(group of each row, candidates right for a group, where each group's end)."""
        _, asked = np.unique(_longs(self.asked), return_inverse=True)
        asked = asked.reshape(-1).astype(np.int64)
        flat, ends = _longs(self.right), _longs(self.right_end)
        group = np.repeat(asked, np.diff(ends, prepend=0))
        at = np.searchsorted(distinct, flat).clip(max=len(distinct) - 1)
        there = distinct[at] == flat
        group, document = group[there], place[at[there]]
        group, document = group[document < candidates], document[document < candidates]
        # Each pair once, by group and then by document.
        order = np.lexsort((document, group))
        group, document = group[order], document[order]
        once = np.ones(len(group), bool)
        once[1:] = (group[1:] != group[:-1]) | (document[1:] != document[:-1])
        counts = np.bincount(group[once], minlength=int(asked.max()) + 1)
        return asked, document[once], np.cumsum(counts)


def _shared(document: Longs, label: Longs, count: int) -> Longs:
    """(count,) the one label that all rows give a document, or 0. Where it is a negative, a row says nothing of it."""
    document, label = document[label != 0], label[label != 0]
    least, most = (np.full(count, value, np.int64) for value in (2**63 - 1, -(2**63)))
    np.minimum.at(least, document, label)
    np.maximum.at(most, document, label)
    return np.where(least == most, least, 0)


def _longs(values: array[int]) -> Longs:
    return np.frombuffer(values, np.int64) if len(values) else np.zeros(0, np.int64)
