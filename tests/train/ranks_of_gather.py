"""Run by tests/train/test_sharded.py in every rank of a gloo group: the sharded loss, gathering and bringing home."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from omni2vec.data.relation import Relation
from omni2vec.data.types import Clock
from omni2vec.train.gather import Group, bring, gather_vectors
from omni2vec.train.objectives.infonce import InfoNCE

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.ranks import say
from tests.train.rows import mixed, vectors
from tests.train.test_infonce import OPTIONS

CLOCK = Clock(step=0, progress=0.0, seed=0)


def difference(o: InfoNCE, relation: Relation, group: Group) -> float:
    """Largest relative difference of this rank's value and gradients to those of one process."""
    query, docs, scale = vectors(relation)
    out = o.contrast(query, docs, relation, scale, CLOCK)
    wanted = torch.autograd.grad(out.sum, [query, docs, scale])
    part = o.sharded(query, docs, relation, scale, CLOCK, group)
    (a, b), (c, d) = group.share(len(query)), group.share(len(docs))
    pairs = [(part.sum, out.sum.detach()), (part.d_query, wanted[0][a:b]), (part.d_docs, wanted[1][c:d])]
    pairs.append((part.d_scale, wanted[2]))
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


def main() -> None:
    dist.init_process_group("gloo")
    group = Group.current()
    relation = Relation.of(mixed(41), ["a", "b"])
    found = {str(i): difference(InfoNCE(**o, tile=7), relation, group) for i, o in enumerate(OPTIONS)}
    group.calls.clear()
    difference(InfoNCE(both=True), relation, group)
    calls = dict(group.calls)

    entries = [torch.tensor(e, dtype=torch.int64) for e in ([3, 0, 6, 1], [], [5, 2, 4])]
    owner = torch.tensor([0, 0, 2, 0, 2, 2, 0])
    all_vectors = torch.arange(14.0).view(7, 2)
    gathered = gather_vectors(group, entries, all_vectors[entries[group.rank]])
    rows = torch.tensor([6, 5, 2, 3])
    first, last = group.share(4)
    mine, gradient = bring(group, all_vectors[rows][first:last], rows, owner)
    say(
        {
            "differences": found,
            "calls": calls,
            "gathered": torch.equal(gathered, all_vectors),
            "brought": torch.equal(mine, rows[owner[rows] == group.rank]) and torch.equal(gradient, all_vectors[mine]),
        }
    )
    dist.destroy_process_group()


main()
