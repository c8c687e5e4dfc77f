"""Matryoshka: any objective over several prefixes of the vectors, so that a vector may be cut where it is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data import counter
from ...data.relation import Relation
from ...data.schedules import Schedule
from ...data.types import Clock, DataError
from ...model.codes import step_at
from ..gather import Group
from . import wrapped
from .types import Graded, SumCount
from .wrapped import Inner


@dataclass(frozen=True)
class Matryoshka:
    """sum over d of w_d L(unit(x[:d])) (arXiv:2205.13147), L being `of`. The weight of `of` is not used.

    dims: lengths of the prefixes, 0 for the whole vector, which is taken as it is; weights: one for each. The defaults
        are those of KaLM-Embedding-V2 (arXiv:2506.20923), of 896 dimensions.
    random: that many of the prefixes are drawn each step, the same on all ranks, and their weights divided by the
        probability, so that the mean over steps is the whole sum; 0: all of them, always.

    An objective that rounds to int8 (Quantised) is given the step of a prefix, codes.step_at.
    """

    of: Inner
    dims: tuple[int, ...] = (0, 512, 256, 128, 64)
    weights: tuple[float, ...] = (1.0, 0.3, 0.2, 0.1, 0.1)
    random: int = 0
    weight: float | Schedule = 1.0

    def __post_init__(self) -> None:
        wrapped.checked("Matryoshka", self.of)
        if not self.dims or len(set(self.dims)) < len(self.dims) or min(self.dims) < 0:
            raise ValueError(f"Matryoshka: dims={self.dims}; expected different numbers of dimensions, or 0 for all")
        if len(self.weights) != len(self.dims) or not all(w >= 0 for w in self.weights):
            raise ValueError(
                f"Matryoshka: weights={self.weights} for dims={self.dims}; expected one for each, none below 0"
            )
        if not 0 <= self.random <= len(self.dims):
            raise ValueError(f"Matryoshka: random={self.random}; expected 0 (all) to {len(self.dims)}, one per prefix")

    @property
    def stepped(self) -> bool:
        return wrapped.stepped(self.of)

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        """As Contrastive.contrast; raises DataError for dims beyond D."""
        full = query.shape[1]
        return wrapped.added(
            [
                (
                    weight,
                    wrapped.contrast(self.of, cut(query, d), cut(docs, d), relation, _scale(scale, full, d), clock),
                )
                for weight, d in self._drawn(full, clock)
            ]
        )

    def sharded(
        self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
    ) -> Graded:
        return wrapped.added_shares(
            [
                (weight, self._one(d, query, docs, relation, scale, clock, group))
                for weight, d in self._drawn(query.shape[1], clock)
            ]
        )

    def _one(
        self, d: int, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
    ) -> Graded:
        """Of one prefix: the ranks' shares of its gradients, brought back through the cut."""
        full = query.shape[1]
        with torch.no_grad():
            given = (cut(query, d), cut(docs, d), relation, _scale(scale, full, d), clock)
        out = wrapped.divided(self.of, *given, group)
        d_query, d_docs = (
            _back(x[slice(*group.share(len(x)))], d, gradient)
            for x, gradient in ((query, out.d_query), (docs, out.d_docs))
        )
        return Graded(out.sum, out.count, d_query, d_docs, _scale(out.d_scale, full, d))

    def _drawn(self, full: int, clock: Clock) -> Iterator[tuple[float, int]]:
        if max(self.dims) > full:
            raise DataError(f"Matryoshka: dims={self.dims} of vectors of {full} dimensions; expected {full} or fewer")
        count = self.random or len(self.dims)
        for i in counter.choose(len(self.dims), count, "matryoshka", clock.seed, clock.step):
            yield self.weights[i] * len(self.dims) / count, self.dims[i] or full


def cut(x: Tensor, dims: int) -> Tensor:
    """(n, D) -> (n, dims), unit length. All of them are taken as they are; zeros alone stay zeros."""
    return x if dims == x.shape[1] else wrapped.unit(x[:, :dims])


def _back(x: Tensor, dims: int, gradient: Tensor) -> Tensor:
    """The gradient by x (n, D) of what has `gradient` (n, dims) by cut(x, dims)."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        found: Tensor = torch.autograd.grad(cut(leaf, dims), leaf, gradient)[0]
    return found


def _scale(scale: Tensor, full: int, dims: int) -> Tensor:
    """The scale, and behind it the step of a prefix where there is one."""
    return torch.cat([scale[:1], step_at(scale[1:], full, dims)]) if len(scale) > 1 else scale
