"""InfoNCE whose rows the ranks of a group divide among them: beyond the gathered vectors a rank holds 1/W of the rest.

A rank computes the logits of its own queries against the documents of one rank after the other, twice: for the norms,
then for the gradients. What it finds of a rank's documents is summed at that rank while the next rank's is computed, so
that no rank ever holds a gradient by all documents. The collectives depend on the number of ranks alone: one reduction
a rank, one of the loss, and two of O(P) numbers for the norms of columns where both directions count.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..gather import Group
from .negatives import Negatives, Strip
from .tiles import Norms, Part, Pulls, Rows, in_place
from .types import Graded


def graded(query: Tensor, docs: Tensor, scale: Tensor, index: Negatives, tile: int, both: bool, group: Group) -> Graded:
    """query (Q, D), docs (N, D), scale (1,) of one floating type, equal on all ranks. index: of this rank's even share
    of the queries, with a strip for every rank's even share of the documents."""
    with torch.no_grad():
        rows = Rows(query[index.rows], scale, index, tile, True)
        norms = rows.norms((Part.of(strip, docs) for strip in index.strips), both)
        if both:
            norms = _of_all_rows(norms, group)
        d_docs = _home(rows, norms.pulls(), docs, index.strips, group).mul_(scale)
        d_query, d_scale = rows.gradients()
        loss, d_scale = group.sum_(torch.stack([norms.loss(), d_scale]))
    return Graded(loss, index.count, d_query, d_docs, d_scale.reshape(scale.shape))


def _of_all_rows(norms: Norms, group: Group) -> Norms:
    """The norms of columns over the rows of all ranks, and every rank's positives."""
    assert norms.top is not None and norms.total is not None
    top = group.max_(norms.top.clone())
    total = norms.total * (norms.top - top).exp2_()
    total, positive = group.sum_(torch.stack([total, norms.positive]))  # a positive is zero but at its query's rank
    return replace(norms, top=top, total=total, positive=positive)


def _home(rows: Rows, pulls: Pulls, docs: Tensor, strips: tuple[Strip, ...], group: Group) -> Tensor:
    """The gradient by this rank's documents, summed over the rows of all ranks. Those of the others go to them through
    two buffers: one is filled while the other is on its way."""
    sizes = [strip.docs.stop - strip.docs.start for strip in strips]
    kept = docs.new_zeros((max(sizes[group.rank], 1), docs.shape[1]))
    buffers = [docs.new_empty((max(*sizes, 1), docs.shape[1])) for _ in range(min(group.size - 1, 2))]
    sent: list[Any] = []
    for rank, (strip, size) in enumerate(zip(strips, sizes, strict=True)):
        into = kept
        if rank != group.rank:
            turn = rank - (rank > group.rank)  # how many were sent to others before
            if turn >= 2:
                sent[turn - 2].wait()
            into = buffers[turn % 2][: max(size, 1)].zero_()  # never an empty message
        rows.push(Part.of(strip, docs), pulls, into[:size])
        handle = group.reduce(into, rank)
        if rank == group.rank:
            coming = handle
        else:
            sent.append(handle)
    for handle in (*sent[-2:], coming):
        handle.wait()
    return in_place(strips[group.rank], kept[: sizes[group.rank]])
