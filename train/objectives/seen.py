"""What a block of rows sees: cosines, which of them are negatives, and the way of their gradients back to the vectors.

A row is one query and one of its right answers; in the other direction, one positive document and its query. Masks
are those of `negatives.py`: the other direction is the index of a Relation whose sides are swapped, the one among
queries that of queries that stand as documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...data.relation import Relation
from ...data.types import Clock
from ..gather import Group
from .negatives import Block, Negatives, Placed, dense_index


@dataclass(frozen=True)
class Others:
    """Further cosines of a block's rows, and which of them are negatives."""

    cosine: Tensor  # (r, C)
    negative: Tensor  # (r, C) bool


@dataclass(frozen=True)
class Seen:
    """r rows of one block, of whatever direction. An objective takes gradients by cosine, positive, scale and those of
    `beside`; it must not change what it is given."""

    positive: Tensor  # (r,) cosine of the row's right answer
    cosine: Tensor  # (r, C), C above 0
    negative: Tensor  # (r, C) bool: which of them are the row's negatives
    scale: Tensor  # (1,) logits are scale * cosine
    clock: Clock
    beside: tuple[Others, ...] = ()  # of queries against queries, and of the answers against other rows' answers

    @property
    def logits(self) -> Tensor:
        """(r, C)"""
        return self.scale * self.cosine

    def gap(self, logits: Tensor | None = None, positive: Tensor | None = None) -> Tensor:
        """(r,) how far the log-sum-exp over the negatives lies above the positive's logit; hugely below 0 where there
        is none. softplus(gap) is InfoNCE's loss and sigmoid(gap) is 1 - p. By default of scale times the cosines."""
        right = self.scale * self.positive if positive is None else positive
        return log_sum(self.logits if logits is None else logits, self.negative) - right


def log_sum(logits: Tensor, negative: Tensor) -> Tensor:
    """log sum exp (r,) over the negatives of each row; where there are none the lowest finite number and a gradient of
    0, since that of -inf would be NaN."""
    return logits.masked_fill(~negative, torch.finfo(logits.dtype).min).logsumexp(1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact on both sides (torch's own rounds to x above 20)."""
    return torch.logaddexp(x, torch.zeros_like(x))


@dataclass(frozen=True)
class Options:
    """Who is whose negative, as InfoNCE's fields say, and what an objective wants to see besides."""

    shared: bool
    in_batch: bool
    both: bool
    mask_labels: bool
    across_sources: bool
    query_query: bool = False
    doc_doc: bool = False


@dataclass(frozen=True)
class Index:
    """The indices of one call. Documents are in the order of `answers`: the P positives, by query, come first."""

    answers: Placed  # of queries against documents
    backward: Placed | None  # of positive documents, in that order, against queries
    among: Placed | None  # of queries against queries
    owner: Tensor  # (P,) query of each positive
    share: Tensor  # (P,) float64: weight of each positive in its query's loss
    count: int

    @staticmethod
    def of(r: Relation, o: Options, group: Group, device: torch.device) -> Index:
        """Of the rank's even share of the queries, and of that of the positive documents."""
        r = r.to("cpu")
        rows = group.share(len(r.query_id))
        answers = _negatives(r, o, rows, shared=o.shared, in_batch=o.in_batch)
        strip = answers.strips[0]
        backward = among = None
        if o.both:
            swapped = _swapped(r, torch.from_numpy(strip.order[: strip.positives]))
            found = _negatives(swapped, o, group.share(strip.positives))
            backward = Placed.of(found.strips[0], device)
        if o.query_query:
            among = Placed.of(_negatives(_of_queries(r), o, rows).strips[0], device)
        owner, share = (torch.from_numpy(x).to(device) for x in (answers.answer_owner, answers.share))
        share = 0.5 * share if o.both else share
        return Index(Placed.of(strip, device), backward, among, owner, share, answers.count)


def _negatives(
    r: Relation, o: Options, rows: tuple[int, int], shared: bool = True, in_batch: bool = False
) -> Negatives:
    return Negatives.of(
        r,
        shared=shared,
        in_batch=in_batch,
        mask_labels=o.mask_labels,
        across_sources=o.across_sources,
        rows=rows,
    )


def _right(r: Relation) -> tuple[Tensor, Tensor]:
    """(K, 2) ids of right answers and (K,) whose they are."""
    return torch.cat([r.known_id, r.doc_id[r.positive]]), torch.cat([r.known_query, r.owner[r.positive]])


def _of_queries(r: Relation) -> Relation:
    """Queries in the place of documents, none of them positive."""
    known, whose = _right(r)
    every = torch.arange(len(r.query_id))
    nothing = torch.zeros_like(every)
    return replace(
        r, owner=every, positive=nothing.bool(), rank=nothing, doc_id=r.query_id, known_id=known, known_query=whose,
        scores={},
    )  # fmt: skip


def _swapped(r: Relation, positives: Tensor) -> Relation:
    """The positive documents ask, the queries are the documents. Behind the P that ask stand the Q queries once more,
    as owners of themselves: an owner is where an index finds the class and the source of a column."""
    p, q = len(positives), len(r.query_id)
    known, whose = _right(r)
    item = dense_index(torch.cat([r.doc_id[positives], known]).numpy())
    one = np.full(len(item), -1)
    one[item[:p]] = np.arange(p)  # equal Items share what is right for them: one of them stands for all
    at = torch.from_numpy(one[item[p:]])
    asked = at >= 0
    every = torch.cat([r.owner[positives], torch.arange(q)])
    return Relation(
        query_id=torch.cat([r.doc_id[positives], r.query_id]),
        query_label=r.query_label[every],
        query_source=r.query_source[every],
        owner=p + torch.arange(q),
        positive=torch.zeros(q, dtype=torch.bool),
        rank=torch.zeros(q, dtype=torch.int64),
        doc_id=r.query_id,
        known_id=r.query_id[whose[asked]],
        known_query=at[asked],
    )


def negatives_of(placed: Placed, block: Block) -> Tensor:
    """(rows, C) bool of the block."""
    device = placed.row.device
    out = torch.ones(block.rows.stop - block.rows.start, placed.strip.width, dtype=torch.bool, device=device)
    out.view(-1).index_fill_(0, block.masked.to(device, non_blocking=True), False)
    other = placed.other(block)
    return out if other is None else out.logical_and_(~other)


def without_answers(index: Index, block: Block, among: Tensor) -> Tensor:
    """`among` (rows, Q) without the queries of which one right answer is right for the row, too."""
    width, p = index.answers.strip.width, len(index.owner)
    column = block.masked % max(width, 1)
    hits = column < p
    query = torch.from_numpy(index.answers.strip.owner[:p])[column[hits]]
    flat = block.masked[hits] // max(width, 1) * among.shape[1] + query
    among.view(-1).index_fill_(0, flat.to(among.device), False)
    return among


@dataclass(frozen=True)
class Own:
    """Given negatives that only their own row sees, as K further columns: where each of the n stands, (n,) each."""

    row: Tensor
    slot: Tensor
    right: Tensor  # bool: a right answer after all
    most: int  # K

    @staticmethod
    def of(placed: Placed, block: Block) -> Own | None:
        if block.own.start == block.own.stop:
            return None
        owner, start = placed.strip.owner[block.own], placed.strip.given.start
        slot = np.arange(len(owner)) - np.searchsorted(owner, owner)
        right = placed.given_right[block.own.start - start : block.own.stop - start]
        at = torch.from_numpy(slot).to(right.device)
        return Own(placed.rows(block, block.own), at, right, int(slot.max()) + 1)

    def spread(self, values: Tensor, rows: int) -> Tensor:
        """(n,) -> (rows, K), zero where there is none."""
        return values.new_zeros((rows, self.most)).index_put_((self.row, self.slot), values)


def cuts(cost: np.ndarray, most: int) -> list[int]:
    """Ends of runs of rows whose costs add up to `most` or less; a row that costs more has a run of its own."""
    total, ends = cost.cumsum(), [0]
    while ends[-1] < len(cost):
        before = total[ends[-1] - 1] if ends[-1] else 0
        ends.append(max(int(np.searchsorted(total, before + most, side="right")), ends[-1] + 1))
    return ends[1:]


def runs(positives: slice, most: int) -> Iterator[slice]:
    """A block's positives, at most `most` at a time: more than one run only where one query has more than that."""
    for first in range(positives.start, positives.stop, most):
        yield slice(first, min(first + most, positives.stop))
