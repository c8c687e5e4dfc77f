"""Matryoshka in float64: its sum, where its gradients come from, what is drawn, and ranks that divide it."""

from __future__ import annotations

from math import prod

import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.relation import Relation
from omni2vec.data.types import Clock
from omni2vec.train.objectives.cosent import CoSENT
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.matryoshka import Matryoshka, cut
from omni2vec.train.objectives.mixing import Mixing
from omni2vec.train.objectives.pearson import Pearson
from omni2vec.train.objectives.quantised import Quantised
from omni2vec.train.objectives.types import Contrastive, Sharded
from torch import Tensor

from .rows import mixed, vectors
from .test_sharded import check

CLOCK = Clock(step=0, progress=0.0, seed=0)
D = 8


def batch(dim: int = D) -> tuple[Relation, list[Tensor]]:
    relation = Relation.of(mixed(), ["a", "b"])
    draw = torch.Generator().manual_seed(5)
    relation.scores["label"] = torch.rand(len(relation.owner), generator=draw)  # type: ignore[index]
    return relation, vectors(relation, dim)


def graded(o: Contrastive, relation: Relation, operands: list[Tensor], clock: Clock = CLOCK) -> tuple[Tensor, ...]:
    found = o.contrast(operands[0], operands[1], relation, operands[2], clock)
    grads = torch.autograd.grad(found.sum, operands, allow_unused=True, materialize_grads=True)
    return (found.sum.detach() / found.count, *grads)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [(0,), (D,)])
def test_the_whole_vector_alone_is_the_inner_objective_to_the_bit(dims: tuple[int, ...]) -> None:
    relation, operands = batch()
    got, want = (graded(o, relation, operands) for o in (Matryoshka(InfoNCE(), dims, (1.0,)), InfoNCE()))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_it_is_the_weighted_sum_over_prefixes_of_unit_length() -> None:
    relation, (q, d, s) = batch()
    o = Matryoshka(InfoNCE(both=True), (0, 5, 2), (1.0, 0.3, 0.1))
    want = torch.zeros((), dtype=torch.float64)
    for dims, weight in ((8, 1.0), (5, 0.3), (2, 0.1)):
        short = [q, d] if dims == 8 else [F.normalize(x[:, :dims], dim=1) for x in (q, d)]
        want = want + weight * InfoNCE(both=True).contrast(short[0], short[1], relation, s, CLOCK).sum
    got = o.contrast(q, d, relation, s, CLOCK)
    close(got.sum, want)
    for a, b in zip(*(torch.autograd.grad(x, (q, d, s)) for x in (got.sum, want)), strict=True):
        close(a, b)


def test_a_coordinate_feels_only_the_prefixes_that_hold_it() -> None:
    relation, operands = batch()
    _, query, docs, _ = graded(Matryoshka(InfoNCE(), (3, 6), (1.0, 1.0)), relation, operands)
    _, longer, *_ = graded(Matryoshka(InfoNCE(), (6,), (1.0,)), relation, operands)
    assert not query[:, 6:].any() and not docs[:, 6:].any() and query[:, 5].any()
    close(query[:, 3:], longer[:, 3:])
    assert float((query[:, :3] - longer[:, :3]).abs().max()) > 1e-3


def test_graded_pairs_are_cut_too() -> None:
    relation, (q, d, s) = batch()
    first = relation.positive & (relation.rank == 0)
    want = torch.zeros((), dtype=torch.float64)
    for dims, weight in ((8, 1.0), (2, 0.5)):
        cosine = F.cosine_similarity(q[relation.owner[first], :dims], d[first, :dims])
        want = want + weight * CoSENT().pairwise(cosine, relation.score[first].double(), CLOCK)
    got = Matryoshka(CoSENT(weight=3.0), (0, 2), (1.0, 0.5)).contrast(q, d, relation, s, CLOCK)
    assert got.count == 1
    close(got.sum.detach(), want.detach())


def test_drawn_prefixes_are_unbiased() -> None:
    """Each is drawn as often as the others, with its weight over the probability, by the step alone."""
    o = Matryoshka(InfoNCE(), (0, 5, 3, 2), (1.0, 0.3, 0.2, 0.1), random=2)
    steps = 4000
    seen: dict[int, float] = {}
    for step in range(steps):
        drawn = list(o._drawn(D, Clock(step, 0.0, 7)))
        assert len(drawn) == 2 and drawn == list(o._drawn(D, Clock(step, 0.5, 7)))
        for weight, dims in drawn:
            seen[dims] = seen.get(dims, 0.0) + weight / steps
    for dims, weight in ((8, 1.0), (5, 0.3), (3, 0.2), (2, 0.1)):
        assert abs(seen[dims] / weight - 1) < 4 * steps**-0.5
    assert list(o._drawn(D, Clock(0, 0.0, 7))) != list(o._drawn(D, Clock(0, 0.0, 9)))


def test_the_mean_over_all_draws_has_the_gradient_of_the_whole_sum() -> None:
    relation, operands = batch()
    dims, weights = (0, 5, 2), (1.0, 0.3, 0.1)
    want = graded(Matryoshka(InfoNCE(), dims, weights), relation, operands)
    by_draw = {}
    for step in range(40):
        clock = Clock(step, 0.0, 0)
        o = Matryoshka(InfoNCE(), dims, weights, random=1)
        by_draw[next(iter(o._drawn(D, clock)))] = graded(o, relation, operands, clock)
    assert len(by_draw) == 3
    for got, whole in zip(zip(*by_draw.values(), strict=True), want, strict=True):
        close(torch.stack(got).mean(0), whole)


def test_a_prefix_of_zeros_gives_finite_numbers() -> None:
    relation, (q, d, s) = batch()
    with torch.no_grad():
        q[0] = torch.eye(D, dtype=torch.float64)[-1]
    value, *grads = graded(Matryoshka(InfoNCE(), (0, 4), (1.0, 1.0)), relation, [q, d, s])
    assert value.isfinite() and all(g.isfinite().all() for g in grads)
    assert not cut(q, 4)[0].any()


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(
    "o",
    [
        Matryoshka(InfoNCE(both=True, tile=4), (0, 5, 2), (1.0, 0.3, 0.1)),
        Matryoshka(InfoNCE(), (5, 2), (0.3, 0.1), random=1),
        Matryoshka(Quantised(InfoNCE(), bits=1), (0, 3), (1.0, 0.3)),
        Matryoshka(Mixing(InfoNCE(), kind="both"), (0, 3), (1.0, 0.3)),
        Matryoshka(CoSENT(), (0, 3), (1.0, 0.3)),
    ],
    ids=lambda o: type(o.of).__name__,
)
def test_ranks_divide_it_as_one_process_computes_it(o: Matryoshka, size: int) -> None:
    relation, operands = batch()
    assert isinstance(o, Sharded)
    check(o, relation, operands, size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "o",
    [
        Matryoshka(InfoNCE(), (0, 3), (1.0, 0.3)),
        Matryoshka(Mixing(InfoNCE(), kind="both", count=2), (0, 3), (1.0, 0.3)),
        Matryoshka(CoSENT(gap="linear"), (0, 3), (1.0, 0.3)),
        Matryoshka(Pearson(), (0, 3), (1.0, 0.3)),
    ],
    ids=lambda o: type(o.of).__name__,
)
def test_gradients_equal_finite_differences(o: Matryoshka) -> None:
    examples = mixed()
    relation = Relation.of([examples[i] for i in (2, 3, 6, 7)], ["a", "b"])
    relation.scores["label"] = torch.arange(len(relation.owner)) / 10.0  # type: ignore[index]
    operands = vectors(relation, 4)
    assert len(relation.owner) > 8 and prod(operands[1].shape) < 100
    assert torch.autograd.gradcheck(lambda q, d, s: o.contrast(q, d, relation, s, CLOCK).sum, operands)


def test_wrappers_hold_each_other() -> None:
    """Cut, rounded and mixed: each with the vectors that the one around it made."""
    relation, operands = batch()
    with_step = [*operands[:2], torch.tensor([7.0, 0.02], dtype=torch.float64, requires_grad=True)]
    inner = InfoNCE()
    o = Matryoshka(of=Quantised(of=Mixing(of=inner)), dims=(0, 3), weights=(1.0, 0.3))
    got = graded(o, relation, with_step)
    assert o.stepped and all(x.isfinite().all() and x.any() for x in got)
    assert not Matryoshka(Mixing(inner)).stepped
    total = torch.zeros((), dtype=torch.float64)
    for dims, weight, step in ((8, 1.0, 0.02), (3, 0.3, 0.02 * (8 / 3) ** 0.5)):
        q, d = (F.normalize(x[:, :dims], dim=1) for x in operands[:2])
        for a, b in ((q, d), ((q / step).round() * step, (d / step).round() * step)):
            found = Mixing(inner).contrast(a, b, relation, operands[2], CLOCK)
            total += weight * found.sum.detach() / found.count
    close(got[0], total)


def test_what_makes_no_sense_is_refused() -> None:
    relation, (q, d, s) = batch()
    with pytest.raises(ValueError, match=r"dims=\(0, 16\) of vectors of 8 dimensions; expected 8 or fewer"):
        Matryoshka(InfoNCE(), (0, 16), (1.0, 1.0)).contrast(q, d, relation, s, CLOCK)
    with pytest.raises(ValueError, match="expected one for each"):
        Matryoshka(InfoNCE(), (0, 16), (1.0,))
    with pytest.raises(ValueError, match="different numbers of dimensions"):
        Matryoshka(InfoNCE(), (4, 4), (1.0, 1.0))
    with pytest.raises(ValueError, match="random=3"):
        Matryoshka(InfoNCE(), (0, 4), (1.0, 1.0), random=3)
