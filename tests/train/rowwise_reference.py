"""Row-wise objectives by their definitions over the full matrix, with Python sets and plain exponentials: what the
engine is held against. Small cosines and scales only, since nothing here is shifted by a maximum."""

from __future__ import annotations

import torch
from omni2vec.data.schedules import at
from omni2vec.data.types import Example
from omni2vec.train.objectives.diht import DiHT
from omni2vec.train.objectives.focal import Focal
from omni2vec.train.objectives.focal_infonce import FocalInfoNCE
from omni2vec.train.objectives.hardness import Hardness
from omni2vec.train.objectives.masked import Masked
from omni2vec.train.objectives.progressive import Progressive
from omni2vec.train.objectives.rowwise import Rowwise
from omni2vec.train.objectives.soft_cse import SoftCSE
from torch import Tensor

Documents = list[tuple[int, bool, str]]


def cost(o: Rowwise, right: Tensor, wrong: Tensor, extra: list[Tensor], scale: Tensor, progress: float) -> Tensor:
    """Of one row: the cosine of its positive (), those of its negatives (n,), and of those besides."""
    kept = [w for w in (wrong, *extra) if len(w)]
    if not kept:
        return 0.0 * right
    positive = (scale * right).exp()
    if isinstance(o, Masked):
        below = [w[w <= right + at(o.margin, progress)] for w in kept]
        return -(positive / (positive + sum((scale * w).exp().sum() for w in below))).log()
    terms = (scale * wrong).exp()
    n = len(wrong)
    if isinstance(o, Hardness):
        terms = terms * (at(o.alpha, progress) * wrong.detach()).exp()
    if isinstance(o, FocalInfoNCE):
        positive, terms = (scale * right**2).exp(), (scale * wrong * (wrong + at(o.margin, progress))).exp()
    if isinstance(o, SoftCSE):
        u = (1 - (wrong.detach() if o.detached else wrong)) * (n / (n - 1) if n > 1 else 1.0)
        terms = u * terms if o.by == "weight" else (scale * wrong * u).exp()
    if isinstance(o, DiHT):
        tilt = (at(o.beta, progress) * (wrong.detach() if o.detached else wrong)).exp()
        return -(positive / (o.a * positive + (n * tilt / tilt.sum() * terms).sum())).log()
    p = positive / (positive + terms.sum())
    if isinstance(o, Focal):
        factor = (1 - p) ** at(o.gamma, progress)
        return -(factor.detach() if o.detached else factor) * p.log()
    return -p.log()


def sees(o: Rowwise, examples: list[Example]) -> tuple[Documents, list[set[str]]]:
    """The documents in the order of the Relation, and what is right for each query."""
    flat = [
        (i, k < len(e.positives), d.id) for i, e in enumerate(examples) for k, d in enumerate(e.positives + e.negatives)
    ]
    own = [{e.query.id, *e.known, *(p.id for p in e.positives)} for e in examples]
    right = [
        set().union(*(r for r, other in zip(own, examples, strict=True) if other.query.id == e.query.id))
        for e in examples
    ]
    return flat, right


def row_losses(
    o: Rowwise, examples: list[Example], query: Tensor, docs: Tensor, scale: Tensor, progress: float
) -> Tensor:
    """The loss of each query, (Q,)."""
    flat, right = sees(o, examples)
    cosine, among, between = query @ docs.T, query @ query.T, docs @ docs.T
    rows = range(len(examples))

    def apart(i: int, owner: int) -> bool:
        mine, theirs = examples[i], examples[owner]
        same_class = o.mask_labels and owner != i and mine.label and mine.label == theirs.label
        return bool(same_class) or (theirs.source != mine.source and not o.across_sources)

    def wrong(i: int, j: int, backward: bool = False) -> bool:
        owner, positive, identity = flat[j]
        if identity in right[i] or apart(i, owner):
            return False
        return backward or (o.in_batch if positive else owner == i or o.negatives == "shared")

    def stranger(i: int, r: int) -> bool:
        answers = {examples[r].query.id, *(p.id for p in examples[r].positives)}
        return r != i and not apart(i, r) and not answers & right[i]

    out = [query.new_zeros(()) for _ in examples]
    for j, (i, positive, _) in enumerate(flat):
        if not positive:
            continue
        extra = []
        if o.beside[0]:
            extra.append(among[i][[r for r in rows if stranger(i, r)]])
        if o.beside[1]:
            extra.append(between[j][[c for c, d in enumerate(flat) if d[1] and wrong(i, c)]])
        loss = cost(o, cosine[i, j], cosine[i][[c for c in range(len(flat)) if wrong(i, c)]], extra, scale, progress)
        if o.both:
            asks = cosine[:, j][[r for r in rows if wrong(r, j, True)]]
            loss = (loss + cost(o, cosine[i, j], asks, [], scale, progress)) / 2
        out[i] = out[i] + loss.squeeze() / len(examples[i].positives)
    return torch.stack(out)


def reference(
    o: Rowwise | Progressive, examples: list[Example], *operands: Tensor, progress: float
) -> tuple[Tensor, int]:
    count = sum(bool(e.positives) for e in examples)
    if not isinstance(o, Progressive):
        return row_losses(o, examples, *operands, progress).sum(), count
    assert isinstance(o.of, Rowwise)
    losses = row_losses(o.of, examples, *operands, progress)
    some = losses.detach() > 0
    costs = losses.detach()[some]
    raised = costs.clamp(min=o.floor * float(costs.mean())) ** at(o.kappa, progress)
    weights = torch.ones_like(losses.detach())
    weights[some] = raised / raised.mean()
    return (weights * losses).sum(), count
