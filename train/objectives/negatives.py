"""Which documents are whose negatives: an index of one batch, built once on the host in O(Q + N + K) memory.

Documents are put in a new order (`order`): positives first, by query, then given negatives, by query. The columns that
every query sees are then one range, `columns`; what must not count in it is listed block by block, never as Q x N.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...data.relation import Relation


@dataclass(frozen=True)
class Block:
    """Rows `rows` of the logits against all columns. Documents are named by their place in the new order."""

    rows: slice
    positives: slice  # documents that are right answers of these rows
    positive_row: Tensor  # (p,) row within the block of each of them
    own: slice  # given negatives that only these rows see
    own_row: Tensor  # (o,)
    masked: Tensor  # flat indices into the block's (rows, columns) logits: right answers and the query's own Item


@dataclass(frozen=True)
class Negatives:
    """Int64 tensors on the host. Q queries, N documents of which the first P are positives, C columns."""

    order: Tensor  # (N,) place in the Relation of each document in the new order
    owner: Tensor  # (N,) query of each, in the new order
    positives: int  # P
    share: Tensor  # (P,) float64: one over the number of positives of the owner
    count: int  # queries with at least one positive
    columns: slice  # documents that other rows' queries see
    given: slice  # given negatives that only their owner sees
    given_right: Tensor  # bool, of `given`: a right answer of its owner after all, no negative
    group: Tensor  # (Q,) index of the query's Item: equal Items share their right answers
    hit_of: Tensor  # (G + 1,) where the hits of each group begin
    hit_start: Tensor  # (H,) each right answer that occurs among the columns: its first place in `by_id`
    hit_count: Tensor  # (H,) and how often it occurs
    by_id: Tensor  # (C,) columns sorted by identity
    label: Tensor | None  # (Q,) class index, where equal classes mask each other's documents
    source: Tensor | None  # (Q,) source index, where documents of other sources are no negatives

    @property
    def width(self) -> int:
        return int(self.columns.stop - self.columns.start)

    @staticmethod
    def of(relation: Relation, *, shared: bool, in_batch: bool, mask_labels: bool, across_sources: bool) -> Negatives:
        r = relation.to("cpu")
        queries, docs = r.query_id.shape[0], r.doc_id.shape[0]
        by_owner = r.owner.argsort(stable=True)
        order = torch.cat([by_owner[r.positive[by_owner]], by_owner[~r.positive[by_owner]]])
        owner, positives = r.owner[order], int(r.positive.sum())
        columns = slice(0 if in_batch else positives, docs if shared else positives)
        given = slice(docs if shared else positives, docs)

        here = torch.isin(r.known_id[:, 0], r.doc_id[:, 0])  # of all that is known to be right, little is in the batch
        index = dense_index(torch.cat([r.query_id, r.doc_id, r.known_id[here]]))
        query, doc, known = index[:queries], index[queries : queries + docs][order], index[queries + docs :]
        group = torch.unique(query, return_inverse=True)[1]
        # A pair (group, Item) is one integer; 2^31 Items fit. The query's own Item counts as a right answer of its own.
        base = int(index.max()) + 1 if len(index) else 1
        of_owner = group[owner] * base + doc
        right = torch.unique(
            torch.cat([group[r.known_query[here]] * base + known, of_owner[:positives], group * base + query])
        )
        by_id = doc[columns].argsort(stable=True)
        ids, wanted = doc[columns][by_id], right % base
        start, stop = torch.searchsorted(ids, wanted), torch.searchsorted(ids, wanted, right=True)
        hit = stop > start
        groups = torch.arange(int(group.max()) + 2 if queries else 1)
        per_query = torch.bincount(owner[:positives], minlength=queries)
        return Negatives(
            order=order,
            owner=owner,
            positives=positives,
            share=1.0 / per_query[owner[:positives]].double(),
            count=int((per_query > 0).sum()),
            columns=columns,
            given=given,
            given_right=torch.isin(of_owner[given], right),
            group=group,
            hit_of=torch.searchsorted((right // base)[hit], groups),
            hit_start=start[hit],
            hit_count=(stop - start)[hit],
            by_id=by_id,
            label=_classes(r.query_label) if mask_labels else None,
            source=None if across_sources or bool((r.query_source == r.query_source[:1]).all()) else r.query_source,
        )

    def blocks(self, tile: int) -> Iterator[Block]:
        """Row blocks of at most max(tile**2, tile / 8 * C) logits: few rows would leave a matrix product no work."""
        queries = self.group.shape[0]
        rows = max(tile * tile // max(self.width, tile), tile // 8, 1)
        parts = [slice(first, min(first + rows, queries)) for first in range(0, queries, rows)]
        ends = torch.tensor([0, *(p.stop for p in parts)])
        positives, own = (self._owned(docs, ends) for docs in (slice(0, self.positives), self.given))
        for part, p, o in zip(parts, positives, own, strict=True):
            yield Block(part, p, self.owner[p] - part.start, o, self.owner[o] - part.start, self._masked(part))

    def _owned(self, docs: slice, ends: Tensor) -> list[slice]:
        at = [docs.start + i for i in torch.searchsorted(self.owner[docs], ends).tolist()]
        return [slice(a, b) for a, b in pairwise(at)]

    def _masked(self, rows: slice) -> Tensor:
        group = self.group[rows]
        row, hit = spans(self.hit_of[group], self.hit_of[group + 1] - self.hit_of[group])
        which, place = spans(self.hit_start[hit], self.hit_count[hit])
        return row[which] * self.width + self.by_id[place]

    def other(self, block: Block, device: torch.device) -> Tensor | None:
        """(rows, C) bool: documents of other rows that the row's class or source rules out; None where nothing does."""
        if self.label is None and self.source is None:
            return None
        owner = self.owner[self.columns]
        out: Tensor | None = None
        if self.label is not None:
            label, row = self.label.to(device), torch.arange(block.rows.start, block.rows.stop, device=device)
            owners = owner.to(device)
            out = (label[block.rows, None] == label[owners]) & (row[:, None] != owners)
        if self.source is not None:
            source = self.source.to(device)
            foreign = source[block.rows, None] != source[owner.to(device)]
            out = foreign if out is None else out.logical_or_(foreign)
        return out


def spans(start: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The integers of the ranges [start, start + count), one range after the other, and which range each is of."""
    which = torch.repeat_interleave(torch.arange(len(count)), count)
    return which, torch.arange(len(which)) + (start - count.cumsum(0) + count)[which]


def dense_index(pairs: Tensor) -> Tensor:
    """(n, 2) int64 -> (n,) int64: equal pairs and only those share an index, which is below n."""
    index: Tensor = torch.unique(pairs[:, 0], return_inverse=True)[1]
    seen = torch.zeros(len(pairs), dtype=torch.int64).scatter_(0, index, pairs[:, 1])
    if torch.equal(seen[index], pairs[:, 1]):  # the first half of a digest tells nearly all apart
        return index
    second = torch.unique(pairs[:, 1], return_inverse=True)[1]
    index = torch.unique(index * len(pairs) + second, return_inverse=True)[1]
    return index


def _classes(label: Tensor) -> Tensor | None:
    """(Q,) class indices, each row without a label (0, 0) alone in its class; None where no class has two rows."""
    index = dense_index(label)
    empty = (label == 0).all(1)
    index[empty] = len(index) + torch.arange(int(empty.sum()))
    return index if len(torch.unique(index)) < len(index) else None
