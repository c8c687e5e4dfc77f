"""Run by tests/train/test_rowwise_engine.py in every rank of a gloo group: sharded objectives, four ways to gather."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from omni2vec.data.relation import Relation
from omni2vec.train.gather import Group
from torch import Tensor
from torch.distributed.nn.functional import all_gather

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.ranks import say
from tests.train.rows import mixed, vectors
from tests.train.rowwise_cases import CASES, CLOCK, whole


def difference(o: Any, relation: Relation, group: Group) -> float:
    """Largest relative difference of this rank's value and gradients to those of one process."""
    query, docs, scale = vectors(relation)
    loss, _, wanted = whole(o, relation, [query, docs, scale])
    part = o.sharded(query, docs, relation, scale, CLOCK, group)
    (a, b), (c, d) = group.share(len(query)), group.share(len(docs))
    pairs = [(part.sum, loss), (part.d_query, wanted[0][a:b]), (part.d_docs, wanted[1][c:d])]
    return max(float((x - y).norm() / y.norm()) for x, y in [*pairs, (part.d_scale, wanted[2])])


def kept(own: Tensor, group: Group, grad: bool) -> list[Tensor]:
    """The rows of all ranks: with gradients of all, or of this rank's alone."""
    if grad:
        return list(all_gather(own))
    out = [torch.empty_like(own) for _ in range(group.size)]
    dist.all_gather(out, own.detach().contiguous())
    return [own if rank == group.rank else rows for rank, rows in enumerate(out)]


def gathers(group: Group) -> dict[str, tuple[float, float]]:
    """Of each way to compute a loss over gathered vectors: the length of the gradient that a mean over ranks gives,
    over that of the whole batch in one process, and the cosine between the two."""
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(8, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    start = torch.randn(6, 5, generator=draw, dtype=torch.float64)

    def vectors_of(rows: Tensor, weight: Tensor) -> Tensor:
        return F.normalize(rows @ weight, dim=1)

    weight = start.clone().requires_grad_()
    logits = 5 * vectors_of(x, weight) @ vectors_of(y, weight).T
    (true,) = torch.autograd.grad(F.cross_entropy(logits, torch.arange(8)), weight)
    first, last = group.share(8)
    found = {}
    for name, rows_of_all, grad in (
        ("whole, own grad", True, False),
        ("whole, all", True, True),
        ("own, all", False, True),
        ("own, own grad", False, False),
    ):
        weight = start.clone().requires_grad_()
        query, docs = vectors_of(x[first:last], weight), vectors_of(y[first:last], weight)
        queries = torch.cat(kept(query, group, grad)) if rows_of_all else query
        target = torch.arange(8) if rows_of_all else torch.arange(first, last)
        loss = F.cross_entropy(5 * queries @ torch.cat(kept(docs, group, grad)).T, target)
        (mean,) = torch.autograd.grad(loss, weight)
        group.sum_(mean).div_(group.size)
        found[name] = (float(mean.norm() / true.norm()), float(F.cosine_similarity(mean.ravel(), true.ravel(), dim=0)))
    return found


def main() -> None:
    dist.init_process_group("gloo")
    group = Group.current()
    relation = Relation.of(mixed(41), ["a", "b"])
    say(
        {
            "differences": {name: difference(case(both=True, tile=7), relation, group) for name, case in CASES.items()},
            "gathers": gathers(group),
        }
    )
    dist.destroy_process_group()


main()
