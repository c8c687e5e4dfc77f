"""InfoNCE over blocks of logits, with its gradients in the same pass: memory is that of one block, for any batch.

With n_i the log-sum-exp over the negatives of query i and p_k the logit of its k-th positive, the loss of i is the
mean over k of softplus(n_i - p_k), and its gradient at the negative j is g_i exp(l_ij - n_i), where g_i is the mean of
sigmoid(n_i - p_k). One direction keeps a block until n_i is known: three matrix products. Both directions need the
log-sum-exp of every column first: four products in two passes. Logits are held in base 2: exp2 is about three times
as fast as exp on a CPU.
"""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .negatives import Block, Negatives

LN2 = log(2.0)


def info_nce(query: Tensor, docs: Tensor, scale: Tensor, negatives: Negatives, tile: int, both: bool) -> Tensor:
    """The sum over queries, (). query (Q, D), docs (N, D) of one floating type, rows as in the Relation."""
    want = torch.is_grad_enabled() and any(t.requires_grad for t in (query, docs, scale))
    loss: Tensor = _Tiled.apply(query, docs, scale, negatives, tile, both, want)
    return loss


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, docs: Tensor, scale: Tensor, negatives: Negatives, tile: int, both: bool, want: bool
    ) -> Tensor:
        in_order = bool((np.diff(negatives.order, prepend=-1) == 1).all())
        order = torch.from_numpy(negatives.order).to(docs.device)
        batch = _Batch(query, docs if in_order else docs[order], scale, negatives, tile, want)
        loss = batch.both_ways() if both else batch.one_way()
        if want:
            # d loss / d scale = sum_ij G_ij cos_ij, which the query's gradient before scaling already holds.
            d_scale = (batch.d_query * query).sum().reshape(scale.shape)
            d_docs = batch.d_docs if in_order else torch.empty_like(docs).index_copy_(0, order, batch.d_docs)
            ctx.save_for_backward(batch.d_query.mul_(scale), d_docs.mul_(scale), d_scale)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(grad * saved for saved in ctx.saved_tensors), None, None, None, None)


class _Batch:
    """The operands of one call, its two block buffers, and the gradients so far, before the scale is put on them."""

    def __init__(self, query: Tensor, docs: Tensor, scale: Tensor, negatives: Negatives, tile: int, want: bool) -> None:
        self.query, self.docs, self.negatives, self.tile, self.want = query, docs, negatives, tile, want
        self.device = query.device
        self.scale2 = scale / LN2
        self.lowest = torch.finfo(query.dtype).min
        self.share = torch.from_numpy(negatives.share).to(query)
        self.owner = torch.from_numpy(negatives.owner).to(self.device)
        self.given_right = torch.from_numpy(negatives.given_right).to(self.device)
        self.columns = docs[negatives.columns]
        self.d_query = torch.zeros_like(query) if want else query  # without gradients neither is written to
        self.d_docs = torch.zeros_like(docs) if want else docs

    def one_way(self) -> Tensor:
        loss = self.query.new_zeros(())
        buffer: Tensor | None = None
        for block in self.negatives.blocks(self.tile):
            query = self.query[block.rows] * self.scale2
            logits = buffer = self._logits(block, query, buffer)
            top = self._highest(logits)
            total = logits.sub_(top[:, None]).exp2_().sum(1)
            own = self._own(block, query)
            norm = self._with_own(block, top + total.log2(), own)
            row = block.positive_row.to(self.device)
            gap = (norm[row] - self._dots(query, row, block.positives)) * LN2
            share = self.share[block.positives]
            loss += (_softplus(gap) * share).sum()
            if self.want:
                pull = gap.sigmoid() * share
                push = torch.zeros_like(norm).index_add_(0, row, pull)
                self._dense(block, logits, (push * (top - norm).exp2()).masked_fill_(push == 0, 0))
                self._pairs(block, pull, own, _offset(norm, push))
        return loss

    def both_ways(self) -> Tensor:
        """The mean of the two directions. In the second, each positive document looks for its query among all queries;
        a query's documents share one weight, as its positives do in the first, so that both are means over queries."""
        norm, column, positive = self._norms()
        query_of = self.owner[: self.negatives.positives]
        gaps = [(n - positive) * LN2 for n in (norm[query_of], column)]
        share = 0.5 * self.share
        loss = ((_softplus(gaps[0]) + _softplus(gaps[1])) * share).sum()
        if not self.want:
            return loss
        pulls = [gap.sigmoid() * share for gap in gaps]
        by_row = _offset(norm, torch.zeros_like(norm).index_add_(0, query_of, pulls[0]))
        by_column = _offset(column, pulls[1])
        logits: Tensor | None = None
        second: Tensor | None = None
        for block in self.negatives.blocks(self.tile):
            query = self.query[block.rows] * self.scale2
            logits = self._logits(block, query, logits)
            of_positives = logits[:, : self.negatives.positives]
            second = torch.sub(of_positives, by_column, out=_part(second, of_positives)).exp2_()
            logits.sub_(by_row[block.rows, None]).exp2_()
            of_positives += second
            self._dense(block, logits, None)
            pull = pulls[0][block.positives] + pulls[1][block.positives]
            self._pairs(block, pull, self._own(block, query), by_row[block.rows])
        return loss

    def _norms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Base-2 log-sum-exp over the negatives of every query (Q,) and of every positive document (P,), with a running
        maximum, and the logit of every positive (P,)."""
        norm, positive = self.query.new_empty(len(self.query)), self.query.new_empty(self.negatives.positives)
        top, total = torch.full_like(positive, self.lowest), torch.zeros_like(positive)
        logits: Tensor | None = None
        second: Tensor | None = None
        for block in self.negatives.blocks(self.tile):
            query = self.query[block.rows] * self.scale2
            logits = self._logits(block, query, logits)
            of_positives = logits[:, : len(positive)]
            higher = torch.maximum(top, of_positives.amax(0))
            second = torch.sub(of_positives, higher, out=_part(second, of_positives)).exp2_()
            total.mul_(top.sub_(higher).exp2_()).add_(second.sum(0))
            top = higher
            highest = self._highest(logits)
            rows = highest + logits.sub_(highest[:, None]).exp2_().sum(1).log2()
            norm[block.rows] = self._with_own(block, rows, self._own(block, query))
            positive[block.positives] = self._dots(query, block.positive_row.to(self.device), block.positives)
        return norm, top + total.log2(), positive

    def _logits(self, block: Block, query: Tensor, buffer: Tensor | None) -> Tensor:
        """(rows, C), -inf where the document is no negative of the row."""
        width = self.negatives.width
        out = query.new_empty(len(query), width) if buffer is None else buffer[: len(query)]
        torch.mm(query, self.columns.T, out=out)
        out.view(-1).index_fill_(0, block.masked.to(self.device, non_blocking=True), float("-inf"))
        other = self.negatives.other(block, self.device)
        return out if other is None else out.masked_fill_(other, float("-inf"))

    def _dots(self, query: Tensor, row: Tensor, docs: slice) -> Tensor:
        return (query[row] * self.docs[docs]).sum(1)

    def _highest(self, logits: Tensor) -> Tensor:
        """The maximum of each row; finite where a row has no negative, since -inf less -inf would be NaN."""
        if not logits.shape[1]:
            return logits.new_full((len(logits),), self.lowest)
        return logits.amax(1).clamp_min_(self.lowest)

    def _own(self, block: Block, query: Tensor) -> Tensor:
        """Logits of the given negatives that only these rows see; -inf where one is a right answer after all."""
        if not len(block.own_row):
            return query.new_empty(0)
        start = self.negatives.given.start
        right = self.given_right[block.own.start - start : block.own.stop - start]
        return self._dots(query, block.own_row.to(self.device), block.own).masked_fill_(right, float("-inf"))

    def _with_own(self, block: Block, norm: Tensor, own: Tensor) -> Tensor:
        if not len(own):
            return norm
        row = block.own_row.to(self.device)
        top = torch.full_like(norm, self.lowest).scatter_reduce_(0, row, own, "amax")
        total = torch.zeros_like(norm).index_add_(0, row, (own - top[row]).exp2_())
        return torch.logaddexp2(norm, top + total.log2())

    def _dense(self, block: Block, weights: Tensor, by_row: Tensor | None) -> None:
        """Adds the gradient at the columns, `weights` (rows, C) times `by_row` (rows,)."""
        query, into = self.query[block.rows], self.d_query[block.rows]
        torch.mm(weights, self.columns, out=into)
        if by_row is not None:
            into *= by_row[:, None]
            query = query * by_row[:, None]
        self.d_docs[self.negatives.columns].addmm_(weights.T, query)

    def _pairs(self, block: Block, pull: Tensor, own: Tensor, by_row: Tensor) -> None:
        """Adds the gradient at the positives, `pull`, and at the negatives that only their owner sees."""
        pairs = [(block.positives, block.positive_row.to(self.device), -pull)]
        if len(own):
            row = block.own_row.to(self.device)
            pairs.append((block.own, row, (own - by_row[row]).exp2_()))
        for docs, of, weight in pairs:
            self.d_query[block.rows].index_add_(0, of, self.docs[docs] * weight[:, None])
            self.d_docs[docs].add_(self.query[block.rows][of] * weight[:, None])


def _offset(norm: Tensor, weight: Tensor) -> Tensor:
    """x such that exp2(l - x) = weight * exp2(l - norm); +inf where the weight is zero (a row without negatives)."""
    return (norm - weight.log2()).masked_fill_(weight == 0, float("inf"))


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))  # F.softplus rounds to x above 20: too coarse for float64


def _part(buffer: Tensor | None, like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device) if buffer is None else buffer[: len(like)]
