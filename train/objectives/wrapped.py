"""What a wrapper asks of the objective inside it: its value, and a rank's share of it.

The weight of an inner objective is not used: the wrapper's stands in the sum of the stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.relation import Relation
from ...data.types import Clock
from ..gather import Group, bounds, bring
from .pairs import pairs
from .types import Contrastive, Graded, Layered, Pairwise, Sharded, Stepped, SumCount

Inner = Contrastive | Pairwise

_NOTHING = 1e-12  # far below what float32 leaves of a prefix of a unit vector


def checked(wrapper: str, of: object) -> None:
    """Raises ValueError for an `of` that a wrapper cannot hold."""
    if isinstance(of, Layered):
        raise ValueError(f"{wrapper}: of={of!r} asks for an inner layer; wrap the other way round, {wrapper} inside it")
    if not isinstance(of, Contrastive | Pairwise):
        raise ValueError(f"{wrapper}: of={of!r}; expected an objective over vectors or graded pairs, e.g. InfoNCE()")


def stepped(of: Inner) -> bool:
    """Whether it takes the embedder's step behind the scale."""
    return isinstance(of, Stepped) and of.stepped


def contrast(of: Inner, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
    """Operands as Contrastive.contrast has them, scale (1,) or (2,). The loss of graded pairs counts once."""
    if isinstance(of, Contrastive):
        return of.contrast(query, docs, relation, scale if stepped(of) else scale[:1], clock)
    return SumCount(of.pairwise(*pairs(query, docs, relation), clock) + scale[:0].sum(), 1)


def divided(
    of: Inner, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock, group: Group
) -> Graded:
    """As Sharded.sharded, of any objective: one that does not divide itself is computed by every rank alike, and each
    takes its share of the gradients. d_scale has the shape of scale."""
    if isinstance(of, Sharded):
        given = scale if stepped(of) else scale[:1]
        out = of.sharded(query, docs, relation, given, clock, group)
        d_scale = torch.zeros_like(scale)
        d_scale[: len(given)] = out.d_scale
        return Graded(out.sum, out.count, out.d_query, out.d_docs, d_scale)
    leaves = [t.detach().requires_grad_() for t in (query, docs, scale)]
    with torch.enable_grad():
        found = contrast(of, leaves[0], leaves[1], relation, leaves[2], clock)
        if found.sum.requires_grad:
            grads = torch.autograd.grad(found.sum, leaves, allow_unused=True, materialize_grads=True)
        else:
            grads = tuple(torch.zeros_like(t) for t in leaves)
    shares = [slice(*group.share(len(t))) for t in (query, docs)]
    return Graded(found.sum.detach(), found.count, grads[0][shares[0]], grads[1][shares[1]], grads[2])


def home(group: Group, share: Tensor, rows: Tensor, count: int) -> Tensor:
    """Gradients of some rows of `count` to the ranks in whose share they are. rows (M,): which they are; share: those
    of group.share(M), as computed here. (b - a, D) by group.share(count), zero at rows that are not among them."""
    entries, gradient = bring(group, share, rows, rank_of(group, count))
    first, last = group.share(count)
    return gradient.new_zeros((last - first, share.shape[1])).index_copy_(0, entries - first, gradient)


def rank_of(group: Group, count: int) -> Tensor:
    """(count,) the rank in whose share each of `count` rows is."""
    return torch.arange(group.size).repeat_interleave(torch.tensor([b - a for a, b in bounds(count, group.size)]))


def added(terms: Sequence[tuple[float, SumCount]]) -> SumCount:
    """The weighted sum of their means, as a sum over one count."""
    count = max(t.count for _, t in terms)
    return SumCount(torch.stack([weight * (count / max(t.count, 1)) * t.sum for weight, t in terms]).sum(), count)


def added_shares(terms: Sequence[tuple[float, Graded]]) -> Graded:
    """The same of what one rank computed."""
    count = max(t.count for _, t in terms)
    parts = [
        [weight * (count / max(t.count, 1)) * x for x in (t.sum, t.d_query, t.d_docs, t.d_scale)] for weight, t in terms
    ]
    loss, d_query, d_docs, d_scale = (torch.stack(x).sum(0) for x in zip(*parts, strict=True))
    return Graded(loss, count, d_query, d_docs, d_scale)


def unit(x: Tensor) -> Tensor:
    """(n, D) -> unit length. A row of zeros, or as good as that, becomes one and gets no gradient, which would be
    without bounds: no direction is better than another."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / norm.masked_fill(norm < _NOTHING, torch.inf)
