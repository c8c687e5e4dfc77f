"""Progressive: queries weighed by how much they cost, easy ones first and hard ones later."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from ...data.relation import Relation
from ...data.schedules import Ramp, Schedule, at, ends
from ...data.types import Clock
from ..gather import Group
from .infonce import InfoNCE
from .rowwise import Plain, Rowwise, contrast, sharded
from .types import Graded, SumCount

_EASY_FIRST = Ramp(-0.5, 0.5)


@dataclass(frozen=True)
class Progressive:
    """The inner objective with each query's loss l_i times w_i, proportional to max(l_i, floor * mean)^kappa, a
    constant to the gradient. The weights of a batch's queries add up to their number. PEG (arXiv:2311.11691) says in
    its abstract that it modulates samples' weights over training, by how hard they are; its formula could not be read:
    this one is ours.

    floor: losses below this share of the batch's mean count as that share. A trained model has rows that cost 1e-12:
    without it, a kappa of -0.5 gives one of them all the weight of a batch, and the batch no gradient.

    kappa below 0 favours what is learned already, 0 is the inner objective, above 0 what is not; by default from -0.5
    to 0.5. A query that costs 0, or less, has the weight 1 and no share in the sum of the others. l_i is over all of
    the query's positives and over both directions. Rows are computed twice, the first time without gradients.

    of: a row-wise objective, or InfoNCE, which is then computed as one. The weight of the inner one is not used.
    """

    of: Rowwise | InfoNCE
    kappa: float | Schedule = _EASY_FIRST
    floor: float = 0.1
    weight: float | Schedule = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.of, Rowwise | InfoNCE):
            raise ValueError(
                f"Progressive: of={self.of!r}; expected InfoNCE or a row-wise objective (Masked, Focal, ...), whose "
                "loss is a sum over queries"
            )
        if not all(isfinite(k) for k in ends(self.kappa)):
            raise ValueError(f"Progressive: kappa={self.kappa}; expected finite numbers, 0 is the inner objective")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"Progressive: floor={self.floor}; expected 0 (none) to 1, a share of the mean loss")

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        """As the inner objective's."""
        return contrast(self._inner, query, docs, relation, scale, clock, lambda losses: self.weights(losses, clock))

    def sharded(
        self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
    ) -> Graded:
        """As the inner objective's, with one more sum over the ranks, of the losses (Q,)."""
        return sharded(
            self._inner, query, docs, relation, scale, clock, group, lambda losses: self.weights(losses, clock)
        )

    def weights(self, losses: Tensor, clock: Clock) -> Tensor:
        """The weight (Q,) of each query of a batch, given what each costs (Q,)."""
        counts = losses > 0
        mean = (losses * counts).sum() / counts.sum().clamp(min=1)
        least = (self.floor * mean).clamp(min=torch.finfo(losses.dtype).tiny)
        logarithm = losses.maximum(least).log() * at(self.kappa, clock.progress)
        share = logarithm.masked_fill(~counts, -torch.inf).softmax(0)
        return torch.where(counts, share * counts.sum(), torch.ones_like(losses))

    @property
    def _inner(self) -> Rowwise:
        if isinstance(self.of, Rowwise):
            return self.of
        o = self.of
        return Plain(
            negatives=o.negatives,
            in_batch=o.in_batch,
            both=o.both,
            mask_labels=o.mask_labels,
            across_sources=o.across_sources,
            tile=o.tile,
        )
