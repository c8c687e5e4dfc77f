"""Which rows are hard negatives for each other: ranks of documents by a teacher -> edges that both ends agree on (B3).

A row is linked to another if each one's document stands at ranks skip + 1 ... skip + neighbours of the other's query,
right answers left out. Arrays have the size of the rows times the neighbours, never rows times documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.absent import advice
from ..data.relation import id_pair
from ..data.types import DataError, Example, Rows
from ..eval.search import COLUMNS, ROWS, search

_BLOCKS = 32  # of queries: so often the search looks up

Longs = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """Who is right for whom: n rows, N distinct documents (each row's first positive, equal ids once), R right pairs.

    document (n,): of each row. first (N,): a row that has the document. query (n,), label (n,): numbers of the query's
    id and of the row's label, label 0 where it has none. shared (N,): the label of all rows of a document, 0 where they
    differ. right_end (n,), right (R,): the documents that are right for a row, or its query itself, ascending.
    """

    document: Longs
    first: Longs
    query: Longs
    label: Longs
    shared: Longs
    right_end: Longs
    right: Longs

    @staticmethod
    def of(rows: Rows, advance: Callable[[int], None] = lambda done: None) -> Answers:
        """Reads every row once, and tells `advance` so."""
        n = len(rows)
        query, target, label, ends = (np.zeros(n, np.int64) for _ in range(4))
        right: list[Longs] = []
        total = 0
        for i in range(n):
            example = rows[i]
            query[i], target[i], label[i], mine = _numbers(example)
            total += len(mine)
            ends[i] = total
            right.append(mine)
            advance(1)
        numbers, where, first, document = _distinct(target)
        flat = np.concatenate(right)
        at = np.searchsorted(numbers, flat).clip(max=len(numbers) - 1)
        there = numbers[at] == flat  # an answer that is no row's document is nobody's negative here
        ends = np.cumsum(there)[ends - 1] if total else ends
        return Answers(document, first, query, label, _shared(document, label), ends, where[at[there]])

    def hidden(self, rows: slice, documents: slice) -> Tensor:
        """(rows, documents) of a tile: right answers, the query itself, documents of rows of the same label."""
        label = self.label[rows]
        mask = torch.from_numpy((label[:, None] == self.shared[None, documents]) & (label[:, None] != 0))
        begin = self.right_end[rows.start - 1] if rows.start else 0
        end = int(self.right_end[rows.stop - 1])
        counts = np.diff(self.right_end[rows], prepend=begin)
        owner, right = np.repeat(np.arange(len(counts)), counts), self.right[begin:end]
        here = (right >= documents.start) & (right < documents.stop)
        mask[torch.from_numpy(owner[here]), torch.from_numpy(right[here] - documents.start)] = True
        return mask


def _numbers(example: Example) -> tuple[int, int, int, Longs]:
    """Of the query's id, the document's, the label, and of all that is no negative for the query."""
    if not example.positives:
        told = advice(example, "compare it")
        raise DataError(f"{example.key}: no positive, so there is no document to compare; {told}")
    query = id_pair(example.query.id)[0]
    right = {query, *(id_pair(p.id)[0] for p in example.positives), *(id_pair(i)[0] for i in example.known)}
    label = id_pair(example.label)[0] if example.label else 0
    return query, id_pair(example.positives[0].id)[0], label, np.array(sorted(right), np.int64)


def _distinct(target: Longs) -> tuple[Longs, Longs, Longs, Longs]:
    """(numbers ascending, the document of each number, a row of each document, the document of each row); documents
    are in the order in which rows first have them."""
    numbers, first, inverse = np.unique(target, return_index=True, return_inverse=True)
    order = np.argsort(first)
    where = np.empty_like(order)
    where[order] = np.arange(len(order))
    return numbers, where, first[order], where[inverse.reshape(-1)]


def _shared(document: Longs, label: Longs) -> Longs:
    least, most = (np.full(int(document.max()) + 1, value, np.int64) for value in (2**63 - 1, -(2**63)))
    np.minimum.at(least, document, label)
    np.maximum.at(most, document, label)
    return np.where(least == most, least, 0)


def ranked(
    query: Tensor,
    docs: Tensor,
    answers: Answers,
    skip: int,
    neighbours: int,
    advance: Callable[[int], None] = lambda done: None,
) -> NDArray[np.int32]:
    """(n, neighbours) documents at ranks skip + 1, ... of each query (n, D) among docs (N, D); -1 beyond a short list.
    advance: told of each block of rows when it is done."""
    n = len(query)
    block = -(-max(ROWS, -(-n // _BLOCKS)) // ROWS) * ROWS
    out = np.full((n, neighbours), -1, np.int32)
    for start in range(0, n, block):
        end = min(start + block, n)

        def hidden(rows: slice, documents: slice, start: int = start) -> Tensor:
            return answers.hidden(slice(start + rows.start, start + rows.stop), documents)

        found = search(query[start:end], docs, skip + neighbours, hidden=hidden, dtype=torch.float32)
        kept = found.top[:, skip:]
        out[start:end, : kept.shape[1]] = kept
        advance(end - start)
    return out


def mutual(near: NDArray[np.int32], answers: Answers) -> Longs:
    """(E, 2) pairs of rows, ascending, each once: row i reaches j's document and row j reaches i's.

    Where many rows share a document, not all of them are paired with all: those that reach document b from a and those
    that reach a from b are paired in turn, so that there are never more edges than rows times neighbours.
    """
    n, width = len(near), len(answers.first)
    row, key = _reached(near, answers.document, width)
    begin = np.flatnonzero(np.diff(key, prepend=-1))
    keys, count = key[begin], np.diff(begin, append=len(key))
    back = (keys % width) * width + keys // width
    at = np.searchsorted(keys, back).clip(max=max(len(keys) - 1, 0))
    both = np.flatnonzero((keys < back) & (keys[at] == back))
    one, two = both, at[both]
    length = np.maximum(count[one], count[two])
    turn = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    left = row[np.repeat(begin[one], length) + turn % np.repeat(count[one], length)]
    right = row[np.repeat(begin[two], length) + turn % np.repeat(count[two], length)]
    left, right = np.minimum(left, right).astype(np.int64), np.maximum(left, right)
    label, query = answers.label, answers.query
    wrong = ((label[left] == label[right]) & (label[left] != 0)) | (query[left] == query[right])
    pairs = np.unique(left[~wrong] * n + right[~wrong])
    return np.stack([pairs // n, pairs % n], axis=1)


def _reached(near: NDArray[np.int32], document: Longs, width: int) -> tuple[NDArray[np.int32], Longs]:
    """(row, document of the row * width + document that it reaches), ascending by the second, then by the row."""
    row = np.repeat(np.arange(len(near), dtype=np.int32), near.shape[1])[near.reshape(-1) >= 0]
    key = document[row]
    key *= width
    key += near[near >= 0]
    order = np.argsort(key, kind="stable")
    return row[order], key[order]


def adjacency(edges: Longs, n: int) -> tuple[Longs, Longs]:
    """(ends (n,), neighbours (2 E,)): of each row its neighbours, ascending; both directions of every edge."""
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    return np.cumsum(np.bincount(both[:, 0], minlength=n)), both[:, 1]


def tile_bytes() -> int:
    """Of the largest tile of the search: scores, keys and mask."""
    return ROWS * COLUMNS * (4 + 8 + 1)
