"""Which documents are whose negatives: an index of one batch, built once on the host in O(Q + N + K) memory.

Documents are put in a new order (`order`): positives first, by query, then given negatives, by query. The columns that
every query sees are then one range, `columns`; what must not count in it is listed block by block, never as Q x N.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...data.relation import Relation


@dataclass(frozen=True)
class Block:
    """Rows `rows` of the logits against all columns. Documents are named by their place in the new order."""

    rows: slice
    positives: slice  # documents that are right answers of these rows
    positive_row: Tensor  # (p,) int64: row within the block of each of them
    own: slice  # given negatives that only these rows see
    own_row: Tensor  # (o,)
    masked: (
        Tensor  # int64: flat indices into the block's (rows, columns) logits: right answers and the query's own Item
    )


@dataclass(frozen=True)
class Negatives:
    """Int64 arrays on the host. Q queries, N documents of which the first P are positives, C columns."""

    order: np.ndarray  # (N,) place in the Relation of each document in the new order
    owner: np.ndarray  # (N,) query of each, in the new order
    positives: int  # P
    share: np.ndarray  # (P,) float64: one over the number of positives of the owner
    count: int  # queries with at least one positive
    columns: slice  # documents that other rows' queries see
    given: slice  # given negatives that only their owner sees
    given_right: np.ndarray  # bool, of `given`: a right answer of its owner after all, no negative
    query: np.ndarray  # (Q,) index of the query's Item: equal Items share their right answers
    hit_of: np.ndarray  # (n + 1,) where the hits of each Item as a query begin
    hit_start: np.ndarray  # (H,) of each right answer that occurs among the columns: its first place in `by_id`
    hit_count: np.ndarray  # (H,) and how often it occurs
    by_id: np.ndarray  # (C,) columns sorted by identity
    label: np.ndarray | None  # (Q,) class index, where equal classes mask each other's documents
    source: np.ndarray | None  # (Q,) source index, where documents of other sources are no negatives

    @property
    def width(self) -> int:
        return int(self.columns.stop - self.columns.start)

    @staticmethod
    def of(relation: Relation, *, shared: bool, in_batch: bool, mask_labels: bool, across_sources: bool) -> Negatives:
        r = relation.to("cpu")
        positive, source = r.positive.numpy(), r.query_source.numpy()
        by_owner = np.argsort(r.owner.numpy(), kind="stable")
        order = np.concatenate([by_owner[positive[by_owner]], by_owner[~positive[by_owner]]])
        queries, docs, positives = len(source), len(order), int(positive.sum())
        owner = r.owner.numpy()[order]
        columns = slice(0 if in_batch else positives, docs if shared else positives)
        given = slice(docs if shared else positives, docs)

        query, doc, known, known_query = _identities(r)
        doc = doc[order]
        items = max((int(x.max()) + 1 for x in (query, doc, known) if len(x)), default=0)
        # A pair of a query's Item and its right answer is one integer. Its own Item counts as an answer of its own.
        of_owner = query[owner] * items + doc
        right = np.sort(np.concatenate([query[known_query] * items + known, of_owner[:positives], query * (items + 1)]))
        right = right[np.diff(right, prepend=-1) != 0]
        often = np.bincount(doc[columns], minlength=items)  # each Item among the columns
        wanted = right % items
        hit = often[wanted] > 0
        per_query = np.bincount(owner[:positives], minlength=queries)
        return Negatives(
            order=order,
            owner=owner,
            positives=positives,
            share=1.0 / per_query[owner[:positives]],
            count=int((per_query > 0).sum()),
            columns=columns,
            given=given,
            given_right=np.isin(of_owner[given], right),
            query=query,
            hit_of=np.concatenate([[0], np.bincount(right[hit] // items, minlength=items).cumsum()]).astype(np.int64),
            hit_start=(often.cumsum() - often)[wanted[hit]],
            hit_count=often[wanted[hit]],
            by_id=np.argsort(doc[columns], kind="stable"),
            label=_classes(r.query_label.numpy()) if mask_labels else None,
            source=None if across_sources or bool((source == source[:1]).all()) else source,
        )

    def blocks(self, tile: int) -> Iterator[Block]:
        """Row blocks of at most max(tile**2, tile / 8 * C) logits: few rows would leave a matrix product no work."""
        queries = len(self.query)
        rows = max(tile * tile // max(self.width, tile), tile // 8, 1)
        parts = [slice(first, min(first + rows, queries)) for first in range(0, queries, rows)]
        ends = [0, *(p.stop for p in parts)]
        positives, own = (self._owned(docs, ends) for docs in (slice(0, self.positives), self.given))
        for part, p, o in zip(parts, positives, own, strict=True):
            rows_of = [torch.from_numpy(self.owner[docs] - part.start) for docs in (p, o)]
            yield Block(part, p, rows_of[0], o, rows_of[1], torch.from_numpy(self._masked(part)))

    def _owned(self, docs: slice, ends: list[int]) -> list[slice]:
        at = [docs.start + int(i) for i in np.searchsorted(self.owner[docs], ends)]
        return [slice(a, b) for a, b in pairwise(at)]

    def _masked(self, rows: slice) -> np.ndarray:
        query = self.query[rows]
        row, hit = spans(self.hit_of[query], self.hit_of[query + 1] - self.hit_of[query])
        which, place = spans(self.hit_start[hit], self.hit_count[hit])
        flat: np.ndarray = row[which] * self.width + self.by_id[place]
        return flat

    def other(self, block: Block, device: torch.device) -> Tensor | None:
        """(rows, C) bool: documents of other rows that the row's class or source rules out; None where nothing does."""
        owner = self.owner[self.columns]
        rows = np.arange(block.rows.start, block.rows.stop)
        out: Tensor | None = None
        if self.label is not None:
            mine, theirs, row, owners = (_to(x, device) for x in (self.label[rows], self.label[owner], rows, owner))
            out = (mine[:, None] == theirs) & (row[:, None] != owners)
        if self.source is not None:
            foreign = _to(self.source[rows], device)[:, None] != _to(self.source[owner], device)
            out = foreign if out is None else out.logical_or_(foreign)
        return out


def spans(start: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers of the ranges [start, start + count), one range after the other, and which range each is of."""
    which = np.repeat(np.arange(len(count)), count)
    return which, np.arange(len(which)) + (start - count.cumsum() + count)[which]


def dense_index(pairs: np.ndarray) -> np.ndarray:
    """(n, 2) int64 -> (n,) int64: equal pairs and only those share an index, which is below n."""
    index: np.ndarray = np.unique(pairs[:, 0], return_inverse=True)[1]
    seen = np.empty(len(pairs), dtype=np.int64)
    seen[index] = pairs[:, 1]
    if np.array_equal(seen[index], pairs[:, 1]):  # the first half of a digest tells nearly all apart
        return index
    second = np.unique(pairs[:, 1], return_inverse=True)[1]
    index = np.unique(index * len(pairs) + second, return_inverse=True)[1]
    return index


def _identities(r: Relation) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Items as small integers: of the queries, the documents, the known answers; and whose the known answers are."""
    query, doc, known, known_query = (x.numpy() for x in (r.query_id, r.doc_id, r.known_id, r.known_query))
    if len(known) > 2 * (len(query) + len(doc)):  # of all that is known to be right, little is in the batch
        here = np.isin(known[:, 0], doc[:, 0])
        known, known_query = known[here], known_query[here]
    index = dense_index(np.concatenate([query, doc, known]))
    ends = (len(query), len(query) + len(doc))
    return index[: ends[0]], index[ends[0] : ends[1]], index[ends[1] :], known_query


def _classes(label: np.ndarray) -> np.ndarray | None:
    """(Q,) class indices, each row without a label (0, 0) alone in its class; None where no class has two rows."""
    index = dense_index(label)
    empty = (label == 0).all(1)
    index[empty] = len(index) + np.arange(int(empty.sum()))
    return index if len(np.unique(index)) < len(index) else None


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
