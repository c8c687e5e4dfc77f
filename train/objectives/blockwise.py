"""Blocks of rows, with their gradients in the same pass: what the row-wise objectives (rowwise.py) are computed by.

Autograd runs inside a block, from its cosines to its losses; between cosines and vectors stand three matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ...data.relation import Relation
from ...data.types import Clock
from ..gather import Group, bounds
from .negatives import Block, Placed
from .seen import Index, Options, Others, Own, Seen, cuts, negatives_of, runs, without_answers

Weigh = Callable[[Tensor], Tensor]  # the losses of the queries (Q,), of the whole batch -> their weights (Q,)
_PIECES = 8  # in which a gradient by all documents is sent: a buffer of one is all that it costs besides


@dataclass(frozen=True)
class Side:
    """Vectors (n, D) and the gradient by them so far; None where none is wanted."""

    vectors: Tensor
    gradient: Tensor | None

    @staticmethod
    def of(vectors: Tensor, want: bool) -> Side:
        return Side(vectors, torch.zeros_like(vectors) if want else None)

    def add(self, rows: slice | Tensor, gradient: Tensor) -> None:
        assert self.gradient is not None
        if isinstance(rows, slice):
            self.gradient[rows].add_(gradient)
        else:
            self.gradient.index_add_(0, rows, gradient)

    def add_product(self, rows: slice, weights: Tensor, others: Tensor) -> None:
        """weights (n, m) times others (m, D)."""
        assert self.gradient is not None
        self.gradient[rows].addmm_(weights, others)


@dataclass(frozen=True)
class Rows:
    """A block in which `anchors` look for `answers` among `columns`, and what of it is asked for: p rows, each of an
    anchor and one of its answers."""

    anchors: tuple[Side, slice]
    columns: tuple[Side, slice]
    answers: tuple[Side, slice | Tensor]
    row: Tensor | None  # (p,) the anchor of each; None where it is the i-th of the i-th
    negative: Tensor  # (r, C) bool
    own: tuple[Own, slice] | None  # among the side of `columns`
    among: Tensor | None  # (r, Q) bool: negatives among all anchors of this side
    doc_doc: slice | None  # those on the side of `columns` that each answer is held against
    query: Tensor  # (p,) whose loss it is
    share: Tensor  # (p,)


@dataclass(frozen=True)
class Call:
    """One call of an objective: the vectors of the batch, detached, and this rank's part of the rows."""

    losses: Callable[[Seen], Tensor]  # the method `losses` of an objective: of a block's rows, (p,)
    options: Options
    tile: int
    index: Index
    query: Tensor
    docs: Tensor
    scale: Tensor
    clock: Clock
    group: Group

    @staticmethod
    def of(
        losses: Callable[[Seen], Tensor],
        options: Options,
        tile: int,
        relation: Relation,
        operands: tuple[Tensor, Tensor, Tensor],
        clock: Clock,
        group: Group,
    ) -> Call:
        """operands: query (Q, D), docs (N, D), scale (1,). Computed in float64 if the query is, else in float32."""
        dtype = torch.float64 if operands[0].dtype == torch.float64 else torch.float32
        query, docs, scale = (t.detach().to(dtype) for t in operands)
        index = Index.of(relation, options, group, query.device)
        return Call(losses, options, tile, index, query, docs, scale, clock, group)

    def value(self, weigh: Weigh | None) -> Tensor:
        """The loss of the whole batch, ()."""
        losses = self._losses(*self._sides(False), None)[0]
        losses = self.group.sum_(losses)
        return losses.sum() if weigh is None else (losses * weigh(losses)).sum()

    def graded(self, weigh: Weigh | None) -> tuple[Tensor, int, Tensor, Tensor, Tensor]:
        """The loss of the whole batch, its count, and this rank's shares of the gradients by queries and by documents;
        that by the scale, (1,), of the whole."""
        weights = None
        if weigh is not None:  # of what all rows cost, before any of them may be pushed
            weights = weigh(self.group.sum_(self._losses(*self._sides(False), None)[0]))
        query, docs = self._sides(True)
        losses, d_scale = self._losses(query, docs, weights)
        loss = losses.sum() if weights is None else (losses * weights).sum()
        loss, d_scale = self.group.sum_(torch.stack([loss, d_scale.sum()]))
        assert query.gradient is not None and docs.gradient is not None
        place = None if self.index.answers.strip.in_order else self.index.answers.order.argsort()
        d_docs = _home(docs.gradient, place, self.group)
        if self.options.both or self.options.query_query:  # rows of other ranks pull and push these queries too
            d_query = _home(query.gradient, None, self.group)
        else:
            d_query = query.gradient[slice(*self.group.share(len(query.gradient)))]
        return loss, self.index.count, d_query, d_docs, d_scale.reshape(self.scale.shape)

    def _sides(self, want: bool) -> tuple[Side, Side]:
        """Queries, and documents in the order of the index."""
        placed = self.index.answers
        docs = self.docs if placed.strip.in_order else self.docs[placed.order]
        return Side.of(self.query, want), Side.of(docs, want)

    def _losses(self, query: Side, docs: Side, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """The losses (Q,) of the queries, as far as they are of this rank's rows, and the gradient by the scale; the
        gradients by the sides are added to them."""
        losses, d_scale = self.query.new_zeros(len(self.query)), torch.zeros_like(self.scale)
        for rows in chain(self._forward(query, docs), self._backward(query, docs)):
            found = self._rows(rows, query.gradient is not None, weights, d_scale)
            losses.index_add_(0, rows.query, found * rows.share.to(found))
        return losses, d_scale

    def _forward(self, query: Side, docs: Side) -> Iterator[Rows]:
        """Queries look for their positives."""
        placed, among = self.index.answers, self.index.among
        strip = placed.strip
        first, p = strip.rows.start, strip.positives
        per_row = np.bincount(strip.owner[:p], minlength=strip.rows.stop)[first : strip.rows.stop]
        given = np.bincount(strip.owner[strip.given]) if strip.given.stop > strip.given.start else np.zeros(1, int)
        width = max(strip.width + int(given.max()), len(self.query) if among else 0)
        most = _most(self.tile, width)
        ends = cuts(np.maximum(per_row, 1), most)
        blocks = strip.cut(ends)
        queries = among.strip.cut(ends) if among else None
        for block in blocks:
            block_among = next(queries) if queries else None
            if block.positives.start == block.positives.stop:
                continue
            negative, own = negatives_of(placed, block), Own.of(placed, block)
            seen_among = None
            if among is not None and block_among is not None:
                seen_among = without_answers(self.index, block, negatives_of(among, block_among))
            for answers in runs(block.positives, most):
                yield Rows(
                    anchors=(query, slice(first + block.rows.start, first + block.rows.stop)),
                    columns=(docs, strip.columns),
                    answers=(docs, answers),
                    row=_row_of(placed, block, answers),
                    negative=negative,
                    own=None if own is None else (own, block.own),
                    among=seen_among,
                    doc_doc=slice(0, p) if self.options.doc_doc else None,
                    query=self.index.owner[answers],
                    share=self.index.share[answers],
                )

    def _backward(self, query: Side, docs: Side) -> Iterator[Rows]:
        """Positive documents look for their query among all queries."""
        placed = self.index.backward
        if placed is None:
            return
        first, count = placed.strip.rows.start, len(placed.strip.hits)
        most = _most(self.tile, placed.strip.width)
        for block in placed.strip.cut([min(i + most, count) for i in range(0, count, most)]):
            asks = slice(first + block.rows.start, first + block.rows.stop)
            owner = self.index.owner[asks]
            yield Rows(
                anchors=(docs, asks),
                columns=(query, placed.strip.columns),
                answers=(query, owner),
                row=None,
                negative=negatives_of(placed, block),
                own=None,
                among=None,
                doc_doc=None,
                query=owner,
                share=self.index.share[asks],
            )

    def _rows(self, rows: Rows, want: bool, weights: Tensor | None, d_scale: Tensor) -> Tensor:
        """The losses (p,) of a block, before shares and weights; the gradients of the weighted sum are added."""
        cosines = Cosines.of(rows)
        if not cosines.columns.shape[1]:
            return torch.zeros_like(cosines.positive)
        leaves = [t.requires_grad_(want) for t in (*cosines.all, self.scale.clone())]
        with torch.set_grad_enabled(want):
            seen = cosines.seen(rows, leaves[-1], self.clock)
            losses = self.losses(seen)
            if losses.shape != seen.positive.shape:
                raise ValueError(
                    f"{self.losses.__qualname__} gave a loss of shape {tuple(losses.shape)} for "
                    f"{len(seen.positive)} rows; expected one number for each, {tuple(seen.positive.shape)}"
                )
            some = seen.negative.any(1)
            for other in seen.beside:
                some = some | other.negative.any(1)
            losses = torch.where(some, losses, torch.zeros_like(losses))
        if want and losses.requires_grad:
            factor = rows.share.to(losses) if weights is None else rows.share.to(losses) * weights[rows.query]
            *found, by_scale = torch.autograd.grad(losses, leaves, factor, allow_unused=True)
            cosines.push(rows, found)
            if by_scale is not None:
                d_scale += by_scale
        return losses.detach()


@dataclass(frozen=True)
class Cosines:
    """Of one block, p rows: with the positives, with the columns (and own negatives behind them), and those besides."""

    positive: Tensor  # (p,)
    columns: Tensor  # (p, C)
    beside: tuple[Tensor, ...]

    @property
    def all(self) -> tuple[Tensor, ...]:
        return (self.positive, self.columns, *self.beside)

    @staticmethod
    def of(rows: Rows) -> Cosines:
        (side, at), (other, columns) = rows.anchors, rows.columns
        anchor, answer = side.vectors[at], rows.answers[0].vectors[rows.answers[1]]
        cosine = anchor @ other.vectors[columns].T
        if rows.own is not None:
            own, given = rows.own
            dots = (anchor[own.row] * other.vectors[given]).sum(1)
            cosine = torch.cat([cosine, own.spread(dots, len(cosine))], 1)
        beside = []
        if rows.among is not None:
            beside.append(_each(anchor @ side.vectors.T, rows.row))
        if rows.doc_doc is not None:
            beside.append(answer @ other.vectors[rows.doc_doc].T)
        positive = (_each(anchor, rows.row) * answer).sum(1)
        return Cosines(positive, _each(cosine, rows.row), tuple(beside))

    def seen(self, rows: Rows, scale: Tensor, clock: Clock) -> Seen:
        negative = rows.negative
        if rows.own is not None:
            negative = torch.cat([negative, rows.own[0].spread(~rows.own[0].right, len(negative))], 1)
        negative = _each(negative, rows.row)
        masks = [] if rows.among is None else [_each(rows.among, rows.row)]
        if rows.doc_doc is not None:  # what is no negative of the query is none of its answer
            masks.append(negative[:, rows.doc_doc])
        others = tuple(Others(c, m) for c, m in zip(self.beside, masks, strict=True))
        return Seen(self.positive, self.columns, negative, scale, clock, others)

    def push(self, rows: Rows, gradients: Sequence[Tensor | None]) -> None:
        """Adds the gradients by these cosines to those by the vectors."""
        (side, at), (other, columns), (targets, answers) = rows.anchors, rows.columns, rows.answers
        anchor, answer = side.vectors[at], targets.vectors[answers]
        count = len(anchor)
        by_positive, by_columns, *by_beside = gradients
        if by_positive is not None:
            pulled = answer * by_positive[:, None]
            side.add(at, _gathered(pulled, rows.row, count))
            targets.add(answers, _each(anchor, rows.row) * by_positive[:, None])
        if by_columns is not None:
            weights = _gathered(by_columns, rows.row, count)
            width = rows.negative.shape[1]
            side.add_product(at, weights[:, :width], other.vectors[columns])
            other.add_product(columns, weights[:, :width].T, anchor)
            if rows.own is not None:
                own, given = rows.own
                weight = weights[:, width:][own.row, own.slot][:, None]
                side.add(at, _gathered(other.vectors[given] * weight, own.row, count))
                other.add(given, anchor[own.row] * weight)
        if rows.among is not None and (found := by_beside.pop(0)) is not None:
            weights = _gathered(found, rows.row, count)
            side.add_product(at, weights, side.vectors)
            side.add_product(slice(None), weights.T, anchor)
        if rows.doc_doc is not None and (found := by_beside.pop(0)) is not None:
            targets.add(answers, found @ other.vectors[rows.doc_doc])
            other.add_product(rows.doc_doc, found.T, answer)


def _each(of_rows: Tensor, row: Tensor | None) -> Tensor:
    """(r, ...) -> (p, ...)"""
    return of_rows if row is None else of_rows[row]


def _gathered(of_each: Tensor, row: Tensor | None, count: int) -> Tensor:
    """(p, ...) -> (r, ...), added up."""
    return of_each if row is None else of_each.new_zeros((count, *of_each.shape[1:])).index_add_(0, row, of_each)


def _row_of(placed: Placed, block: Block, answers: slice) -> Tensor | None:
    owner = placed.strip.owner[answers] - placed.strip.rows.start - block.rows.start
    if len(owner) == block.rows.stop - block.rows.start and bool((np.diff(owner) == 1).all()):
        return None
    return placed.rows(block, answers)


def _most(tile: int, width: int) -> int:
    """Rows of a block of at most max(tile**2, tile / 8 * width) numbers, as InfoNCE's."""
    return max(tile * tile // max(width, tile), tile // 8, 1)


def _home(gradient: Tensor, place: Tensor | None, group: Group) -> Tensor:
    """This rank's even share of the rows of `gradient` (n, D), summed over ranks. place (n,): where each row stands;
    None where all are in their place. In equal pieces, since a collective takes nothing else."""
    if group.size == 1:
        return gradient if place is None else gradient[place]
    shares = bounds(len(gradient), group.size)
    first, last = shares[group.rank]
    longest = max(b - a for a, b in shares)
    kept = gradient.new_zeros((longest, gradient.shape[1]))
    for a, b in bounds(longest, min(_PIECES, longest)) if longest else ():
        piece = gradient.new_zeros((group.size, b - a, gradient.shape[1]))
        for rank, (start, stop) in enumerate(shares):
            of_rank = torch.arange(min(start + a, stop), min(start + b, stop), device=gradient.device)
            piece[rank, : len(of_rank)] = gradient[of_rank if place is None else place[of_rank]]
        handle = group.reduce_scatter(piece.flatten(0, 1), kept[a:b])
        if handle is not None:
            handle.wait()
    return kept[: last - first]
