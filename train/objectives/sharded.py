"""InfoNCE whose rows the ranks of a group divide among them: beyond the gathered vectors a rank holds 1/W of the rest.

A rank computes the logits of its own queries against the documents of one rank after the other, twice: for the norms,
then for the gradients. What it finds of a rank's documents is summed at that rank while the next ones are computed, so
that no rank ever holds a gradient by all documents. The collectives depend on the number of ranks alone: about 16 of
gradients (one a rank where ranks are more), one of the loss, and two of O(P) numbers for the norms of columns where
both directions count.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..gather import Group, bounds
from .negatives import Negatives, Strip
from .tiles import Norms, Part, Pulls, Rows, Sums, in_place
from .types import Graded

_STRIPS = 16  # about as many in all: a block has to be wide enough for a matrix product to be worth its start


def graded(query: Tensor, docs: Tensor, scale: Tensor, index: Negatives, tile: int, both: bool, group: Group) -> Graded:
    """query (Q, D), docs (N, D), scale (1,) of one floating type, equal on all ranks, without gradients. index: of this
    rank's even share of the queries, with the strips that `pieces` names."""
    rows = Rows(query[index.rows], scale, index, tile, True)
    norms = rows.norms((Part.of(strip, docs) for strip in index.strips), both)
    if both:
        norms = _of_all_rows(norms, group)
    d_docs = _home(rows, norms.pulls(), docs, index.strips, group).mul_(scale)
    d_query, d_scale = rows.gradients()
    loss, d_scale = group.sum_(torch.stack([norms.loss(), d_scale]))
    return Graded(loss, index.count, d_query, d_docs, d_scale.reshape(scale.shape))


def pieces(docs: int, group: Group) -> list[tuple[int, int]]:
    """The documents [a, b) of each strip: every rank's even share of `docs`, cut where ranks are few. Shares are large
    then, and a rank works with two buffers and a copy of a strip's size beside its own share."""
    cuts = max(1, _STRIPS // group.size)
    return [(a + i, a + j) for a, b in bounds(docs, group.size) for i, j in bounds(b - a, cuts)]


def _of_all_rows(norms: Norms, group: Group) -> Norms:
    """The norms of columns over the rows of all ranks, and every rank's positives."""
    assert norms.column is not None
    top = group.max_(norms.column.top.clone())
    total = norms.column.total * (norms.column.top - top).exp2_()
    total, positive = group.sum_(torch.stack([total, norms.positive]))  # a positive is zero but at its query's rank
    return replace(norms, column=Sums(top, total), positive=positive)


def _home(rows: Rows, pulls: Pulls, docs: Tensor, strips: tuple[Strip, ...], group: Group) -> Tensor:
    """The gradient by this rank's documents, summed over the rows of all ranks. Those of the others go to them through
    two buffers: one is filled while the other is on its way."""
    first, last = group.share(len(docs))
    cuts, width = len(strips) // group.size, docs.shape[1]
    most = max(1, *(strip.docs.stop - strip.docs.start for strip in strips))
    kept = docs.new_zeros((last - first, width))
    buffers: list[Tensor] = []
    sent: list[Any] = []
    coming: list[Any] = []
    for i, strip in enumerate(strips):
        size, rank = strip.docs.stop - strip.docs.start, i // cuts
        if rank == group.rank and size:
            into = kept[strip.docs.start - first : strip.docs.stop - first]
        else:
            if len(buffers) < 2:
                buffers.append(docs.new_empty((most, width)))
            else:
                sent[-2].wait()
            into = buffers[len(sent) % 2][: max(size, 1)].zero_()  # never an empty message
        rows.push(Part.of(strip, docs), pulls, into[:size])
        (coming if rank == group.rank and size else sent).append(group.reduce(into, rank))
    for handle in (*sent[-2:], *coming):
        handle.wait()
    for strip in strips[cuts * group.rank : cuts * (group.rank + 1)]:
        own = kept[strip.docs.start - first : strip.docs.stop - first]
        own.copy_(in_place(strip, own))
    return kept
