"""Which documents are whose negatives: an index of one batch, built once on the host in O(Q + N + K) memory.

Documents are put in a new order, strip by strip (`Strip`), so that the columns that every query sees are one range of
each; what must not count in it is listed block by block, never as Q x N.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...data.relation import Relation


@dataclass(frozen=True)
class Block:
    """Rows `rows` of the logits against all columns of a strip. Documents are named by their place in its order."""

    rows: slice
    positives: slice  # documents that are right answers of these rows
    own: slice  # given negatives that only these rows see
    masked: (
        Tensor  # int64: flat indices into the block's (rows, columns) logits: right answers and the query's own Item
    )


@dataclass(frozen=True)
class Strip:
    """n documents of the Relation in a new order: positives first, by query, then given negatives, by query. C columns.
    Rows are counted from the first of the index; H of their right answers are among the columns."""

    order: np.ndarray  # (n,) which documents of the Relation, in the new order
    owner: np.ndarray  # (n,) query of each, in the new order
    answers: slice  # its positives, which come first, as numbered among all positives of the batch
    columns: slice  # documents that other rows' queries see
    given: slice  # given negatives that only their owner sees
    given_right: np.ndarray  # bool, of `given`: a right answer of its owner (if of `rows`) after all, no negative
    rows: slice  # queries of the index
    hit_from: np.ndarray  # (q,) where the hits of each row begin
    hits: np.ndarray  # (q,) and how many they are
    hit_start: np.ndarray  # (H,) of each hit: its first place in `by_id`
    hit_count: np.ndarray  # (H,) and how often it occurs
    by_id: np.ndarray  # (C,) columns sorted by identity
    label: np.ndarray | None  # (Q,) class index, where equal classes mask each other's documents
    source: np.ndarray | None  # (Q,) source index, where documents of other sources are no negatives

    @property
    def width(self) -> int:
        return int(self.columns.stop - self.columns.start)

    @property
    def positives(self) -> int:
        return int(self.answers.stop - self.answers.start)

    @property
    def in_order(self) -> bool:
        """Whether the strip is the Relation's first n documents in their order."""
        return bool((np.diff(self.order, prepend=-1) == 1).all())

    def blocks(self, tile: int) -> Iterator[Block]:
        """Row blocks of at most max(tile**2, tile / 8 * C) logits: few rows would leave a matrix product no work."""
        rows = max(tile * tile // max(self.width, tile), tile // 8, 1)
        return self.cut([min(first + rows, len(self.hits)) for first in range(0, len(self.hits), rows)])

    def cut(self, ends: Sequence[int]) -> Iterator[Block]:
        """Row blocks that end before the rows `ends`, ascending, the last of which is the number of rows."""
        parts = [slice(a, b) for a, b in pairwise([0, *ends])]
        places = [self.rows.start, *(self.rows.start + b for b in ends)]
        positives, own = (self._owned(docs, places) for docs in (slice(0, self.positives), self.given))
        for part, p, o in zip(parts, positives, own, strict=True):
            yield Block(part, p, o, torch.from_numpy(self._masked(part)))

    def _owned(self, docs: slice, ends: list[int]) -> list[slice]:
        at = [docs.start + int(i) for i in np.searchsorted(self.owner[docs], ends)]
        return [slice(a, b) for a, b in pairwise(at)]

    def _masked(self, rows: slice) -> np.ndarray:
        row, hit = spans(self.hit_from[rows], self.hits[rows])
        which, place = spans(self.hit_start[hit], self.hit_count[hit])
        flat: np.ndarray = row[which] * self.width + self.by_id[place]
        return flat


@dataclass(frozen=True)
class Placed:
    """What a device needs of a strip whatever the block: sent there once, not for every block of every pass."""

    strip: Strip
    order: Tensor  # (n,) int64
    row: Tensor  # (n,) int64: of each document's query, counted from the first of the index; of other rows, outside it
    given_right: Tensor  # bool
    label: tuple[Tensor, Tensor] | None  # class of each row (q,) and of each column (C,)
    source: tuple[Tensor, Tensor] | None

    @staticmethod
    def of(strip: Strip, device: torch.device) -> Placed:
        def kinds(index: np.ndarray | None) -> tuple[Tensor, Tensor] | None:
            if index is None:
                return None
            return _to(index[strip.rows], device), _to(index[strip.owner[strip.columns]], device)

        order, row, right = (_to(x, device) for x in (strip.order, strip.owner - strip.rows.start, strip.given_right))
        return Placed(strip, order, row, right, kinds(strip.label), kinds(strip.source))

    def rows(self, block: Block, docs: slice) -> Tensor:
        """Row within the block of each of `docs`, which are of the block's rows."""
        row: Tensor = self.row[docs] - block.rows.start
        return row

    def other(self, block: Block) -> Tensor | None:
        """(rows, C) bool: documents of other rows that the row's class or source rules out; None where nothing does."""
        out: Tensor | None = None
        if self.label is not None:
            mine, theirs = self.label
            row = torch.arange(block.rows.start, block.rows.stop, device=self.row.device)
            out = (mine[block.rows, None] == theirs) & (row[:, None] != self.row[self.strip.columns])
        if self.source is not None:
            mine, theirs = self.source
            foreign = mine[block.rows, None] != theirs
            out = foreign if out is None else out.logical_or_(foreign)
        return out


@dataclass(frozen=True)
class Negatives:
    """Some rows of a batch against all its documents. Q queries, N documents, of which P are positives."""

    strips: tuple[Strip, ...]
    answer_owner: np.ndarray  # (P,) query of each positive, as the strips number them
    share: np.ndarray  # (P,) float64: one over the number of positives of that query
    mine: np.ndarray  # positives of the rows of this index
    rows: slice
    count: int  # queries with at least one positive, of all Q

    @staticmethod
    def of(
        relation: Relation,
        *,
        shared: bool,
        in_batch: bool,
        mask_labels: bool,
        across_sources: bool,
        rows: tuple[int, int] | None = None,
        strips: Sequence[np.ndarray] | None = None,
    ) -> Negatives:
        """rows: the queries [a, b) whose negatives are wanted, by default all. strips: documents (n,) of each, all
        together each once, by default one strip of all."""
        r = relation.to("cpu")
        source, owner = r.query_source.numpy(), r.owner.numpy()
        ids = _Ids.of(r, slice(*(rows or (0, len(source)))))
        label = _classes(r.query_label.numpy()) if mask_labels else None
        apart = None if across_sources or bool((source == source[:1]).all()) else source
        found: list[Strip] = []
        for docs in strips or [np.arange(len(owner))]:
            number = found[-1].answers.stop if found else 0
            found.append(_strip(r, ids, docs, number, shared, in_batch, label, apart))
        of = np.concatenate([s.owner[: s.positives] for s in found])
        per_query = np.bincount(of, minlength=len(source))
        mine = np.flatnonzero((of >= ids.rows.start) & (of < ids.rows.stop))
        return Negatives(tuple(found), of, 1.0 / per_query[of], mine, ids.rows, int((per_query > 0).sum()))


@dataclass(frozen=True)
class _Ids:
    """Items as small integers. A pair of a query's Item and its right answer is one integer."""

    query: np.ndarray  # (Q,) equal Items share their right answers
    doc: np.ndarray  # (N,)
    items: int  # all integers are below it
    right: np.ndarray  # sorted pairs of `rows`; a query's own Item counts as an answer of its own
    rows: slice

    @staticmethod
    def of(r: Relation, rows: slice) -> _Ids:
        query, doc, known, known_query = _identities(r)
        items = max((int(x.max()) + 1 for x in (query, doc, known) if len(x)), default=0)
        wanted = np.zeros(items, dtype=bool)
        wanted[query[rows]] = True
        positive = r.positive.numpy()
        asked = np.concatenate([query[known_query], query[r.owner.numpy()[positive]], query])
        answer = np.concatenate([known, doc[positive], query])
        right = np.sort((asked * items + answer)[wanted[asked]])
        return _Ids(query, doc, items, right[np.diff(right, prepend=-1) != 0], rows)


def _strip(
    r: Relation,
    ids: _Ids,
    docs: np.ndarray,
    number: int,
    shared: bool,
    in_batch: bool,
    label: np.ndarray | None,
    source: np.ndarray | None,
) -> Strip:
    """number: of its first positive."""
    positive, owner = r.positive.numpy()[docs], r.owner.numpy()[docs]
    by_owner = np.argsort(owner, kind="stable")
    place = np.concatenate([by_owner[positive[by_owner]], by_owner[~positive[by_owner]]])
    order, owner = docs[place], owner[place]
    doc = ids.doc[order]
    positives, all_ = int(positive.sum()), len(order)
    columns = slice(0 if in_batch else positives, all_ if shared else positives)
    given = slice(all_ if shared else positives, all_)
    by_id = np.argsort(doc[columns], kind="stable")
    sorted_ids, wanted = doc[columns][by_id], ids.right % max(ids.items, 1)
    start, stop = (np.searchsorted(sorted_ids, wanted, side=side) for side in ("left", "right"))
    hit = stop > start
    before = np.concatenate([[0], hit.cumsum()])  # hits before each right answer
    own = ids.query[ids.rows] * ids.items
    hit_from, hit_to = (before[np.searchsorted(ids.right, first)] for first in (own, own + ids.items))
    return Strip(
        order=order,
        owner=owner,
        answers=slice(number, number + positives),
        columns=columns,
        given=given,
        given_right=np.isin(ids.query[owner[given]] * ids.items + doc[given], ids.right),
        rows=ids.rows,
        hit_from=hit_from,
        hits=hit_to - hit_from,
        hit_start=start[hit],
        hit_count=(stop - start)[hit],
        by_id=by_id,
        label=label,
        source=source,
    )


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
