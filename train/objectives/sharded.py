"""InfoNCE whose rows the ranks of a group divide among them: beyond the gathered vectors a rank holds 1/W of the rest.

A rank computes the logits of its own queries against all documents, a strip at a time, twice: for the norms, then for
the gradients. A strip holds a piece of every rank's share of the documents, so that one reduce-scatter takes what was
found of each to the rank it belongs to while the next strip is computed, and no rank ever holds a gradient by all
documents. There are 20 strips however many ranks: collectives are 20 of gradients, one of the loss, and two of O(P)
numbers for the norms of columns where both directions count.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..gather import Group, bounds
from .negatives import Negatives, Placed
from .tiles import Norms, Part, Pulls, Rows, Sums
from .types import Graded

_STRIPS = 20  # wide enough for a matrix product to be worth its start; a rank holds three, gloo a copy of one


def graded(query: Tensor, docs: Tensor, scale: Tensor, index: Negatives, tile: int, both: bool, group: Group) -> Graded:
    """query (Q, D), docs (N, D), scale (1,) of one floating type, equal on all ranks, without gradients. index: of this
    rank's even share of the queries, with the strips that `pieces` names."""
    rows = Rows(query[index.rows], scale, index, tile, True)
    strips = [Placed.of(strip, docs.device) for strip in index.strips]
    most = group.size * max(b - a for a, b in _cuts(len(docs), group))
    room = docs.new_empty((most, docs.shape[1]))
    norms = rows.norms((Part.of(strip, docs, room) for strip in strips), both)
    if both:
        norms = _of_all_rows(norms, group)
    d_docs = _home(rows, norms.pulls(), docs, strips, room, group).mul_(scale)
    del room
    d_query, d_scale = rows.gradients()
    loss, d_scale = group.sum_(torch.stack([norms.loss(), d_scale]))
    return Graded(loss, index.count, d_query, d_docs, d_scale.reshape(scale.shape))


def pieces(docs: int, group: Group) -> list[np.ndarray]:
    """The documents of each strip: of every rank's even share of `docs` the same rows, as far as it has them."""
    shares = np.array(bounds(docs, group.size))
    found = [shares[:, :1] + np.arange(a, b) for a, b in _cuts(docs, group)]
    return [of_rank[of_rank < shares[:, 1:]] for of_rank in found]


def _cuts(docs: int, group: Group) -> list[tuple[int, int]]:
    """Rows [a, b) of a share that are in each strip. Never none, since a message must not be empty; of a share that is
    shorter than the longest, the last strip lacks a row."""
    longest = -(-docs // group.size)
    return bounds(max(longest, _STRIPS), _STRIPS)


def _of_all_rows(norms: Norms, group: Group) -> Norms:
    """The norms of columns over the rows of all ranks, and every rank's positives."""
    assert norms.column is not None
    top = group.max_(norms.column.top.clone())
    total = norms.column.total * (norms.column.top - top).exp2_()
    total, positive = group.sum_(torch.stack([total, norms.positive]))  # a positive is zero but at its query's rank
    return replace(norms, column=Sums(top, total), positive=positive)


def _home(rows: Rows, pulls: Pulls, docs: Tensor, strips: list[Placed], room: Tensor, group: Group) -> Tensor:
    """The gradient by this rank's documents, summed over the rows of all ranks. room: for a strip's documents. A strip
    is on its way, as equal blocks of the ranks, while the next one is computed."""
    first, last = group.share(len(docs))
    cuts = _cuts(len(docs), group)
    starts = np.array([a for a, _ in bounds(len(docs), group.size)])
    kept = docs.new_empty((cuts[-1][1], docs.shape[1]))
    found, blocks = torch.empty_like(room), torch.zeros_like(room)  # no NaN: padding is summed, though nobody reads it
    under_way: list[Any] = []  # one at most, and forgotten once it is there: gloo's keep a copy of what they send
    for strip, (a, b) in zip(strips, cuts, strict=True):
        d_docs = found[: len(strip.order)].zero_()
        rows.push(Part.of(strip, docs, room), pulls, d_docs)
        order = strip.strip.order
        rank = np.searchsorted(starts, order, side="right") - 1
        place = torch.from_numpy(order - starts[rank] - a + rank * (b - a)).to(docs.device)
        if under_way:
            under_way.pop().wait()
        to_ranks = blocks[: group.size * (b - a)].index_copy_(0, place, d_docs)
        under_way.append(group.reduce_scatter(to_ranks, kept[a:b]))
    under_way.pop().wait()
    return kept[: last - first]
