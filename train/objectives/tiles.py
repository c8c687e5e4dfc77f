"""InfoNCE over blocks of logits, with its gradients in the same pass: memory is that of one block, for any batch.

With n_i the log-sum-exp over the negatives of query i and p_k the logit of its k-th positive, the loss of i is the
mean over k of softplus(n_i - p_k), and its gradient at the negative j is g_i exp(l_ij - n_i), where g_i is the mean of
sigmoid(n_i - p_k). One direction keeps a block until n_i is known: three matrix products. Both directions need the
log-sum-exp of every column first, and rows that are cut in strips that of every row: four products in two passes.
Logits are held in base 2: exp2 is about three times as fast as exp on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .negatives import Block, Negatives, Placed

LN2 = log(2.0)


def info_nce(query: Tensor, docs: Tensor, scale: Tensor, negatives: Negatives, tile: int, both: bool) -> Tensor:
    """The sum over queries, (). query (Q, D), docs (N, D) of one floating type, rows as in the Relation, in one strip
    of negatives."""
    want = torch.is_grad_enabled() and any(t.requires_grad for t in (query, docs, scale))
    loss: Tensor = _Tiled.apply(query, docs, scale, negatives, tile, both, want)
    return loss


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, docs: Tensor, scale: Tensor, negatives: Negatives, tile: int, both: bool, want: bool
    ) -> Tensor:
        if not want:
            return value(query, docs, scale, negatives, tile, both)
        loss, *gradients = with_gradients(query, docs, scale, negatives, tile, both)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grad * saved for saved in ctx.saved_tensors), None, None, None, None)


def value(query: Tensor, docs: Tensor, scale: Tensor, negatives: Negatives, tile: int, both: bool) -> Tensor:
    """The loss, ()."""
    part, rows = Part.of(Placed.of(negatives.strips[0], docs.device), docs), Rows(query, scale, negatives, tile, False)
    return rows.norms([part], True).loss() if both else rows.one_way(part, docs)


def with_gradients(
    query: Tensor, docs: Tensor, scale: Tensor, negatives: Negatives, tile: int, both: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and its gradients by query, docs and scale, without a graph."""
    part, rows = Part.of(Placed.of(negatives.strips[0], docs.device), docs), Rows(query, scale, negatives, tile, True)
    d_docs = torch.zeros_like(docs)
    if both:
        # In the second direction each positive document looks for its query among all queries. A query's documents
        # share one weight, as its positives do in the first, so that both are means over queries.
        norms = rows.norms([part], True)
        rows.push(part, norms.pulls(), d_docs)
        loss = norms.loss()
    else:
        loss = rows.one_way(part, d_docs)
    index = part.index
    del part  # with its copy of the documents, before others are made
    d_query, d_scale = rows.gradients()
    if not index.strip.in_order:
        d_docs = torch.empty_like(d_docs).index_copy_(0, index.order, d_docs)
    return loss, d_query, d_docs.mul_(scale), d_scale.reshape(scale.shape)


@dataclass(frozen=True)
class Part:
    """The documents of one strip: (n, D) in its order, and the columns among them."""

    index: Placed
    docs: Tensor
    columns: Tensor

    @staticmethod
    def of(index: Placed, docs: Tensor, into: Tensor | None = None) -> Part:
        """docs (N, D), as in the Relation. Copied to the first rows of `into`, where given; else only where the strip's
        order is another."""
        own = docs
        if into is not None:
            own = torch.index_select(docs, 0, index.order, out=into[: len(index.order)])
        elif not index.strip.in_order:
            own = docs[index.order]
        return Part(index, own, own[index.strip.columns])


@dataclass(frozen=True)
class Sums:
    """Log-sum-exps in base 2 that grow in place: top + log2(total). Kept apart, for their sum would be rounded as a
    number of top's size every time that something is added."""

    top: Tensor
    total: Tensor

    def add(self, top: Tensor, total: Tensor) -> None:
        higher = torch.maximum(self.top, top)
        self.total.mul_(self.top.sub_(higher).exp2_()).add_(total * (top - higher).exp2_())
        self.top.copy_(higher)

    def __getitem__(self, part: slice) -> Sums:
        return Sums(self.top[part], self.total[part])

    @property
    def norm(self) -> Tensor:
        return self.top + self.total.log2()


@dataclass(frozen=True)
class Pulls:
    """Where the gradient of a batch's rows comes from. At the negative (i, j) it is exp2(l_ij - by_row_i), which is
    factor_i exp2(l_ij - top_i) but for round-off, and exp2(l_ij - by_column_j) in the other direction."""

    by_row: Tensor  # (q,) base 2; +inf where nothing is pushed
    top: Tensor  # (q,)
    factor: Tensor  # (q,)
    by_column: Tensor | None  # (P,)
    positive: Tensor  # (P,) how much each positive of these rows is pulled


@dataclass(frozen=True)
class Norms:
    """Over the negatives of each row (q,) and, in both directions, of each positive document (P,), at first those among
    these rows; the logits of the positives (P,), at first those of these rows."""

    row: Sums
    column: Sums | None
    positive: Tensor
    share: Tensor  # (P,) weight of each positive
    mine: Tensor  # (m,) positives of these rows
    row_of: Tensor  # (m,) row of each

    def gaps(self) -> tuple[Tensor, Tensor | None]:
        """Norm less logit of the positives, in nats: (m,) by row, (P,) by column."""
        column = None if self.column is None else (self.column.norm - self.positive) * LN2
        return (self.row.norm[self.row_of] - self.positive[self.mine]) * LN2, column

    def loss(self) -> Tensor:
        """() of these rows."""
        row, column = self.gaps()
        loss = _softplus(row) if column is None else _softplus(row) + _softplus(column[self.mine])
        return (loss * self.share[self.mine]).sum()

    def pulls(self) -> Pulls:
        row, column = self.gaps()
        pull = row.sigmoid() * self.share[self.mine]
        push = torch.zeros_like(self.row.top).index_add_(0, self.row_of, pull)
        by_column = None
        if column is not None and self.column is not None:
            pull_column = column.sigmoid() * self.share
            by_column = _offset(self.column.norm, pull_column)
            pull = pull + pull_column[self.mine]
        return Pulls(
            by_row=_offset(self.row.norm, push),
            top=self.row.top,
            factor=(push / self.row.total).masked_fill_(push == 0, 0),
            by_column=by_column,
            positive=torch.zeros_like(self.positive).index_copy_(0, self.mine, pull),
        )


class Rows:
    """Queries (q, D) of one call, their gradient so far before the scale is put on it, and two buffers for blocks."""

    def __init__(self, query: Tensor, scale: Tensor, negatives: Negatives, tile: int, want: bool) -> None:
        self.query, self.scale, self.negatives, self.tile, self.want = query, scale, negatives, tile, want
        self.device = query.device
        self.scale2 = scale / LN2
        self.lowest = torch.finfo(query.dtype).min
        self.share = torch.from_numpy(negatives.share).to(query)
        self.d_query = torch.zeros_like(query) if want else query  # without gradients it is not written to
        self.buffers: list[Tensor | None] = [None, None]

    def gradients(self) -> tuple[Tensor, Tensor]:
        """By the queries and by the scale, once all is pushed. d loss / d scale = sum_ij G_ij cos_ij, which the query's
        gradient before scaling already holds."""
        self.buffers = [None, None]
        d_scale = (self.d_query * self.query).sum()
        return self.d_query.mul_(self.scale), d_scale

    def one_way(self, part: Part, d_docs: Tensor) -> Tensor:
        """The loss and, in the same pass, both gradients, where one strip holds all negatives."""
        loss = self.query.new_zeros(())
        for block in part.index.strip.blocks(self.tile):
            query = self.query[block.rows] * self.scale2
            logits = self._logits(part, block, query)
            top = self._highest(logits)
            total = logits.sub_(top[:, None]).exp2_().sum(1)
            own = self._own(part, block, query)
            norm = self._with_own(part, block, top + total.log2(), own)
            row = part.index.rows(block, block.positives)
            gap = (norm[row] - _dots(query, row, part.docs[block.positives])) * LN2
            share = self.share[block.positives]
            loss += (_softplus(gap) * share).sum()
            if self.want:
                pull = gap.sigmoid() * share
                push = torch.zeros_like(norm).index_add_(0, row, pull)
                self._dense(part, block, logits, (push * (top - norm).exp2()).masked_fill_(push == 0, 0), d_docs)
                self._pairs(part, block, pull, own, _offset(norm, push), d_docs)
        return loss

    def norms(self, parts: Iterable[Part], both: bool) -> Norms:
        """With a running maximum over the blocks of a column, and over the strips of a row."""
        index = self.negatives
        positive = self.query.new_zeros(len(index.share))
        row, column = (self._sums(n) for n in (len(self.query), len(positive) if both else 0))
        for part in parts:
            answers = part.index.strip.answers
            for block in part.index.strip.blocks(self.tile):
                query = self.query[block.rows] * self.scale2
                logits = self._logits(part, block, query)
                if both:
                    self._columns(logits[:, : part.index.strip.positives], column[answers])
                highest = self._highest(logits)
                row[block.rows].add(highest, logits.sub_(highest[:, None]).exp2_().sum(1))
                own = self._own(part, block, query)
                if len(own):
                    row[block.rows].add(*self._own_sums(part, block, highest, own))
                dots = _dots(query, part.index.rows(block, block.positives), part.docs[block.positives])
                positive[answers][block.positives] = dots
        mine = torch.from_numpy(index.mine).to(self.device)
        row_of = torch.from_numpy(index.answer_owner[index.mine] - index.rows.start).to(self.device)
        return Norms(row, column if both else None, positive, 0.5 * self.share if both else self.share, mine, row_of)

    def _sums(self, count: int) -> Sums:
        return Sums(self.query.new_full((count,), self.lowest), self.query.new_zeros(count))

    def _columns(self, logits: Tensor, sums: Sums) -> None:
        """Adds a block to the sums of its columns."""
        top = logits.amax(0).clamp_min_(self.lowest)
        sums.add(top, torch.sub(logits, top, out=self._buffer(1, *logits.shape)).exp2_().sum(0))

    def push(self, part: Part, pulls: Pulls, d_docs: Tensor) -> None:
        """Adds the gradient of these rows by the queries and by the strip's documents, `d_docs` (n, D) in its order."""
        answers = part.index.strip.answers
        for block in part.index.strip.blocks(self.tile):
            query = self.query[block.rows] * self.scale2
            logits = self._logits(part, block, query)
            second = None
            if pulls.by_column is not None:
                of_positives = logits[:, : part.index.strip.positives]
                second = torch.sub(of_positives, pulls.by_column[answers], out=self._buffer(1, *of_positives.shape))
            logits.sub_((pulls.top if second is None else pulls.by_row)[block.rows, None]).exp2_()
            if second is not None:
                of_positives += second.exp2_()
            self._dense(part, block, logits, pulls.factor[block.rows] if second is None else None, d_docs)
            own = self._own(part, block, query)
            self._pairs(part, block, pulls.positive[answers][block.positives], own, pulls.by_row[block.rows], d_docs)

    def _buffer(self, which: int, rows: int, columns: int) -> Tensor:
        """(rows, columns) of a buffer that grows with what is asked of it, and is not made anew for every block."""
        buffer = self.buffers[which]
        if buffer is None or len(buffer) < rows * columns:
            self.buffers[which] = None  # before the larger one is made, not after
            buffer = self.buffers[which] = self.query.new_empty(rows * columns)
        return buffer[: rows * columns].view(rows, columns)

    def _logits(self, part: Part, block: Block, query: Tensor) -> Tensor:
        """(rows, C), -inf where the document is no negative of the row."""
        out = self._buffer(0, len(query), part.index.strip.width)
        torch.mm(query, part.columns.T, out=out)
        out.view(-1).index_fill_(0, block.masked.to(self.device, non_blocking=True), float("-inf"))
        other = part.index.other(block)
        return out if other is None else out.masked_fill_(other, float("-inf"))

    def _highest(self, logits: Tensor) -> Tensor:
        """The maximum of each row; finite where a row has no negative, since -inf less -inf would be NaN."""
        if not logits.shape[1]:
            return logits.new_full((len(logits),), self.lowest)
        return logits.amax(1).clamp_min_(self.lowest)

    def _own(self, part: Part, block: Block, query: Tensor) -> Tensor:
        """Logits of the given negatives that only these rows see; -inf where one is a right answer after all."""
        if block.own.start == block.own.stop:
            return query.new_empty(0)
        start = part.index.strip.given.start
        right = part.index.given_right[block.own.start - start : block.own.stop - start]
        dots = _dots(query, part.index.rows(block, block.own), part.docs[block.own])
        return dots.masked_fill_(right, float("-inf"))

    def _own_sums(self, part: Part, block: Block, like: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Top and total of each row's own negatives."""
        row = part.index.rows(block, block.own)
        top = torch.full_like(like, self.lowest).scatter_reduce_(0, row, own, "amax")
        return top, torch.zeros_like(like).index_add_(0, row, (own - top[row]).exp2_())

    def _with_own(self, part: Part, block: Block, norm: Tensor, own: Tensor) -> Tensor:
        if not len(own):
            return norm
        top, total = self._own_sums(part, block, norm, own)
        return torch.logaddexp2(norm, top + total.log2())

    def _dense(self, part: Part, block: Block, weights: Tensor, by_row: Tensor | None, d_docs: Tensor) -> None:
        """Adds the gradient at the columns, `weights` (rows, C) times `by_row` (rows,)."""
        query, into = self.query[block.rows], self.d_query[block.rows]
        if by_row is None:
            into.addmm_(weights, part.columns)
        else:
            into.addcmul_(torch.mm(weights, part.columns), by_row[:, None])
            query = query * by_row[:, None]
        d_docs[part.index.strip.columns].addmm_(weights.T, query)

    def _pairs(self, part: Part, block: Block, pull: Tensor, own: Tensor, by_row: Tensor, d_docs: Tensor) -> None:
        """Adds the gradient at the positives, `pull`, and at the negatives that only their owner sees."""
        pairs = [(block.positives, part.index.rows(block, block.positives), -pull)]
        if len(own):
            row = part.index.rows(block, block.own)
            pairs.append((block.own, row, (own - by_row[row]).exp2_()))
        for docs, of, weight in pairs:
            self.d_query[block.rows].index_add_(0, of, part.docs[docs] * weight[:, None])
            d_docs[docs].add_(self.query[block.rows][of] * weight[:, None])


def _dots(query: Tensor, row: Tensor, docs: Tensor) -> Tensor:
    return (query[row] * docs).sum(1)


def _offset(norm: Tensor, weight: Tensor) -> Tensor:
    """x such that exp2(l - x) = weight * exp2(l - norm); +inf where the weight is zero (a row without negatives)."""
    return (norm - weight.log2()).masked_fill_(weight == 0, float("inf"))


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))  # F.softplus rounds to x above 20: too coarse for float64
