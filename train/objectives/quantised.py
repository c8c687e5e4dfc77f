"""Quantised: an objective over rounded vectors, so that what is stored in int8, or in one bit, is what was trained.

Rounding has no gradient, so the gradient passes as if it were not there, where a number is within what the codes hold.
Rounded vectors are not brought back to unit length: an index compares codes by their dot products (model/codes.py), so
their lengths are part of what is searched and must be part of what is trained. Signs over sqrt(D) have unit length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...data.relation import Relation
from ...data.schedules import Schedule
from ...data.types import Clock
from ...model import codes
from ..gather import Group
from . import wrapped
from .types import Graded, SumCount
from .wrapped import Inner


@dataclass(frozen=True)
class Quantised:
    """L(x) + L(Q(x)), L being `of` and Q the rounding of queries and documents. The weight of `of` is not used.

    bits: 8 to 2: Q(x) = step * clamp(round(x / step), -m, m) of codes.int8, with LSQ's gradients (arXiv:1902.08153) by
        x and by the step, which the embedder learns and gives as scale[1]. Where it gives none, the step is fitted
        to the vectors of each batch (codes.calibrated), which is ours. 1: Q(x) = sign(x) / sqrt(D) of codes.binary,
        with the straight-through gradient (arXiv:1308.3432, clipped as in arXiv:1602.02830).
    both: the loss of x itself is in the sum; off, the rounded vectors' stands alone.
    clip: of one bit, in units of 1 / sqrt(D), the size of a unit vector's numbers: beyond it no gradient passes.
    """

    of: Inner
    bits: int = 8
    both: bool = True
    clip: float = 1.0
    weight: float | Schedule = 1.0

    def __post_init__(self) -> None:
        wrapped.checked("Quantised", self.of)
        if not 1 <= self.bits <= 8:
            raise ValueError(f"Quantised: bits={self.bits}; expected 2 to 8, or 1 for signs")
        if not self.clip > 0:
            raise ValueError(f"Quantised: clip={self.clip}; expected a number above 0, in units of 1 / sqrt(D)")

    @property
    def stepped(self) -> bool:
        return self.bits > 1 or wrapped.stepped(self.of)

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        """As Contrastive.contrast; scale (1,), or (2,) with the step."""
        step = self._step(query, docs, scale)
        rounded = (self._rounded(query, step), self._rounded(docs, step))
        pairs = [(query, docs), rounded] if self.both else [rounded]
        return wrapped.added([(1.0, wrapped.contrast(self.of, q, d, relation, scale, clock)) for q, d in pairs])

    def sharded(
        self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
    ) -> Graded:
        step = self._step(query, docs, scale)
        with torch.no_grad():
            rounded = [self._rounded(x, step) for x in (query, docs)]
        out = wrapped.divided(self.of, rounded[0], rounded[1], relation, scale, clock, group)
        (d_query, s_query), (d_docs, s_docs) = (
            self._back(x[slice(*group.share(len(x)))], step, gradient)
            for x, gradient in ((query, out.d_query), (docs, out.d_docs))
        )
        d_scale = out.d_scale.clone()
        if self.bits > 1 and len(scale) > 1:  # the step's gradient is of this rank's rows alone, the inner one of all
            d_scale[1:] += group.sum_(s_query + s_docs)
        terms = [(1.0, Graded(out.sum, out.count, d_query, d_docs, d_scale))]
        if self.both:
            terms.append((1.0, wrapped.divided(self.of, query, docs, relation, scale, clock, group)))
        return wrapped.added_shares(terms)

    def _step(self, query: Tensor, docs: Tensor, scale: Tensor) -> Tensor:
        """(1,); for one bit nobody asks."""
        if len(scale) > 1 or self.bits == 1:
            return scale[1:]
        return codes.calibrated(query, docs, bits=self.bits)

    def _rounded(self, x: Tensor, step: Tensor) -> Tensor:
        if self.bits == 1:
            signs: Tensor = _Signs.apply(x, self.clip)
            return signs
        rounded: Tensor = _Lsq.apply(x, step, self.bits)
        return rounded

    def _back(self, x: Tensor, step: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients by x (n, D) and by the step of what has `gradient` (n, D) by the rounded x."""
        with torch.enable_grad():
            leaves = (x.detach().requires_grad_(), step.detach().requires_grad_())
            found = torch.autograd.grad(
                self._rounded(*leaves), leaves, gradient, allow_unused=True, materialize_grads=True
            )
        return found[0], found[1]


class _Lsq(torch.autograd.Function):
    """arXiv:1902.08153, equations 1 to 5, with one scale of the step's gradient for all rows: 1 / sqrt(D * largest)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.bits = bits
        rounded: Tensor = codes.levels(x, step, bits) * step
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, step = ctx.saved_tensors
        exact, code, most = x / step, codes.levels(x, step, ctx.bits), codes.top(ctx.bits)
        inside = exact.abs() < most
        d_step = (grad * torch.where(inside, code - exact, code)).sum() / (x.shape[1] * most) ** 0.5
        return grad * inside, d_step.reshape(step.shape), None


class _Signs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: float) -> Tensor:
        size = x.shape[1] ** -0.5
        ctx.save_for_backward(x.abs() <= clip * size)
        signs: Tensor = codes.signs(x) * size + 0 * x  # what is not a number stays that, and is noticed
        return signs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None
