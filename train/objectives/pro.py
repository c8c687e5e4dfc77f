"""PRO: each pair against all pairs of lower label, by a softmax whose logits are weighted by the gaps of labels.

Pairs of one label have the same opponents, so a row of logits is needed for each label that occurs, not for each pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.schedules import Schedule
from ...data.types import Clock


@dataclass(frozen=True)
class PRO:
    """Preference ranking of graded pairs (CoDiEmb, arXiv:2508.11442, from arXiv:2306.17492): the mean over pairs k that
    have one below them of

        -log softmax([c_k w_k / temperature, c_j w_j / temperature for all j with w_j > ties])_0,
        w_j = y_k - y_j, w_k = the largest w_j

    of the cosines c and labels y. Of two pairs it is softplus((y_1 - y_2) (c_2 - c_1) / temperature).

    ties: labels that are no further apart are equal.
    tile: a block of logits holds at most max(tile**2, B) numbers.
    """

    weight: float | Schedule = 1.0
    temperature: float = 0.05
    ties: float = 0.0
    tile: int = 1024

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"PRO: temperature={self.temperature}; expected a number above 0 (0.05 is usual)")
        if not self.ties >= 0:
            raise ValueError(f"PRO: ties={self.ties}; expected 0 or more, in units of the labels")
        if self.tile < 1:
            raise ValueError(f"PRO: tile={self.tile}; expected 1 or more (1024 is a good start)")

    def pairwise(self, similarity: Tensor, score: Tensor, clock: Clock) -> Tensor:
        """similarity (B,), score (B,) -> (). Zero, with zero gradients, where all labels are equal. O(L B) for L
        different labels. In float64 inside."""
        if not len(similarity):
            return similarity.sum()
        cosine = similarity.double() / self.temperature
        value, gradient = self._graded(cosine.detach(), score.detach().double())
        return (value + (gradient * (cosine - cosine.detach())).sum()).to(similarity.dtype)

    def _graded(self, c: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its gradient by c (B,), cosines over the temperature."""
        labels, which = y.unique(return_inverse=True)
        highest = y - labels[0]  # w_k
        compared = highest > self.ties
        value, gradient = c.new_zeros(()), torch.zeros_like(c)
        rows = max(self.tile * self.tile // len(c), 1)
        for first in range(0, len(labels), rows):
            mine = compared & (which >= first) & (which < first + rows)
            gaps = labels[first : first + rows, None] - y
            logits = (gaps * c).masked_fill(gaps <= self.ties, -torch.inf)
            norm = logits.logsumexp(1)
            row = which[mine] - first
            excess = norm[row] - highest[mine] * c[mine]
            value = value + torch.logaddexp(excess, torch.zeros_like(excess)).sum()
            pull = excess.sigmoid()
            gradient[mine] -= pull * highest[mine]
            share = torch.zeros_like(norm).index_add_(0, row, pull)
            # A row without opponents has a norm of -inf, and nobody asks for its softmax.
            soft = (logits - norm.masked_fill(norm.isneginf(), 0.0)[:, None]).exp()
            gradient += (share[:, None] * soft * gaps).sum(0)
        count = compared.sum().clamp(min=1)
        return value / count, gradient / count
