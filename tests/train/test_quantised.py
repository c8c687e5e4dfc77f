"""Quantised in float64: rounding as released, LSQ's gradients against finite differences, signs, and ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.relation import Relation
from omni2vec.data.types import Clock
from omni2vec.model.codes import binary, calibrated, int8, similar
from omni2vec.train.objectives.cosent import CoSENT
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.quantised import Quantised, _Lsq, _Signs
from omni2vec.train.objectives.types import Contrastive, SumCount
from torch import Tensor

from .rows import mixed, plain, vectors
from .test_sharded import check

CLOCK = Clock(step=0, progress=0.0, seed=0)
D = 8


@dataclass(frozen=True)
class Logits:
    """An objective that is a plain weighted sum of its logits, so that they can be read off it."""

    weight: float = 1.0

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        logits = scale * query @ docs.T
        return SumCount((logits * torch.arange(logits.numel()).reshape(logits.shape)).sum(), 1)


def batch(step: float | None = 0.03, dim: int = D) -> tuple[Relation, list[Tensor]]:
    relation = Relation.of(mixed(), ["a", "b"])
    q, d, s = vectors(relation, dim)
    if step is not None:
        s = torch.tensor([7.0, step], dtype=torch.float64, requires_grad=True)
    return relation, [q, d, s]


def loss(o: Contrastive, relation: Relation, operands: list[Tensor]) -> Tensor:
    return o.contrast(operands[0], operands[1], relation, operands[2], CLOCK).sum


def close(got: Tensor, want: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def slope(f: Callable[[float], Any], at: float, width: float = 1e-6) -> float:
    return float(f(at + width) - f(at - width)) / (2 * width)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_training_scores_pairs_as_the_released_codes_do(bits: int) -> None:
    relation, (q, d, s) = batch()
    step = float(s[1].detach())
    products = similar(binary(q), binary(d)) / D if bits == 1 else similar(*(int8(x, step, bits) for x in (q, d)))
    logits = 7.0 * products.double() * (1 if bits == 1 else step**2)
    want = (logits * torch.arange(logits.numel()).reshape(logits.shape)).sum()
    close(loss(Quantised(Logits(), bits, both=False), relation, [q, d, s]).detach(), want)


@pytest.mark.parametrize("bits", [1, 8])
def test_both_is_the_sum_of_the_plain_and_the_rounded_loss(bits: int) -> None:
    relation, operands = batch()
    alone = loss(Quantised(InfoNCE(), bits, both=False), relation, operands)
    plainly = loss(InfoNCE(), relation, [*operands[:2], operands[2][:1]])
    close(loss(Quantised(InfoNCE(), bits), relation, operands), alone + plainly)


def test_with_fine_steps_it_is_twice_the_loss() -> None:
    relation, operands = batch(step=None)
    twice = 2 * loss(InfoNCE(), relation, operands).detach()
    found = [loss(Quantised(InfoNCE(), bits), relation, operands).detach() for bits in (2, 4, 6, 8)]
    errors = [abs(float(f - twice)) for f in found]
    assert errors[0] > errors[1] > errors[2] > errors[3] and errors[3] < 1e-3 * float(twice)
    fine = [F.normalize(torch.ones(len(x), D, dtype=torch.float64), dim=1) for x in operands[:2]]
    step = D**-0.5 / 100  # 100 steps are the number itself: no rounding is left
    scale = torch.tensor([7.0, step], dtype=torch.float64)
    close(
        loss(Quantised(InfoNCE()), relation, [*fine, scale]), 2 * loss(InfoNCE(), relation, [*fine, scale[:1]]), 1e-10
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_gradient_of_the_step_is_that_of_lsq_s_surrogate(bits: int) -> None:
    """Rounding errors, in steps, held as they are, Q(x) = x + step * error within the range and step * end beyond it is
    smooth in the step: its finite difference, times 1 / sqrt(D * largest code)."""
    x = torch.linspace(-1.5, 1.7, 40, dtype=torch.float64).reshape(5, D)
    pull = torch.sin(torch.arange(40, dtype=torch.float64)).reshape(5, D)
    most = 2 ** (bits - 1) - 1
    at = 1.2 / most
    error = (x / at).round() - x / at
    inside = (x / at).abs() < most
    assert inside.any() and not inside.all()

    def surrogate(step: float) -> Tensor:
        return (pull * torch.where(inside, x + step * error, step * most * x.sign())).sum()

    step = torch.tensor([at], dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(_Lsq.apply(x, step, bits), step, pull)[0]
    assert float(found) == pytest.approx(slope(surrogate, at) / (D * most) ** 0.5, rel=1e-6)


def test_the_gradient_of_the_step_sums_over_the_rows() -> None:
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(3, D)
    step = torch.tensor([0.013], dtype=torch.float64, requires_grad=True)
    rows = [torch.autograd.grad(_Lsq.apply(r[None], step, 8).sum(), step)[0] for r in x]
    close(torch.autograd.grad(_Lsq.apply(x, step, 8).sum(), step)[0], torch.stack(rows).sum(0))


def test_the_gradient_passes_a_rounding_within_the_range_and_stops_beyond_it() -> None:
    x = torch.tensor([[0.01, 0.5, 12.69, -12.69, 12.75, -80.0]], dtype=torch.float64, requires_grad=True)
    pull = torch.arange(1.0, 7.0, dtype=torch.float64)[None]
    found = torch.autograd.grad(_Lsq.apply(x, torch.tensor([0.1], dtype=torch.float64), 8), x, pull)[0]
    assert found.tolist() == [[1, 2, 3, 4, 0, 0]]


@pytest.mark.parametrize(("clip", "passed"), [(1.0, [1, 1, 0, 0]), (2.0, [1, 1, 1, 0])])
def test_signs_pass_the_gradient_of_numbers_within_the_clip(clip: float, passed: list[float]) -> None:
    x = torch.tensor([[0.1, -0.45, 0.9, -1.1]], dtype=torch.float64, requires_grad=True)  # 1 / sqrt(D) is 0.5
    out = _Signs.apply(x, clip)
    assert out.tolist() == [[0.5, -0.5, 0.5, -0.5]]
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [passed]


def test_signs_are_of_unit_length_and_int8_is_not_brought_to_it() -> None:
    x = vectors(Relation.of(plain(4), ["a"]), D)[0].detach()
    close(_Signs.apply(x, 1.0).norm(dim=1), torch.ones(4, dtype=torch.float64))
    rounded = _Lsq.apply(x, torch.tensor([0.2], dtype=torch.float64), 8)
    assert float((rounded.norm(dim=1) - 1).abs().max()) > 1e-3
    assert torch.equal(rounded, (x / 0.2).round() * 0.2)


def test_without_a_learned_step_one_is_fitted_to_the_batch() -> None:
    relation, (q, d, s) = batch(step=None)
    given = torch.cat([s.detach(), calibrated(q, d)])
    close(loss(Quantised(InfoNCE()), relation, [q, d, s]), loss(Quantised(InfoNCE()), relation, [q, d, given]))


@pytest.mark.parametrize("step", [0.03, None])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_ranks_divide_it_as_one_process_computes_it(bits: int, size: int, step: float | None) -> None:
    relation, operands = batch(step)
    check(Quantised(InfoNCE(both=True, tile=4), bits), relation, operands, size)  # type: ignore[arg-type]
    check(Quantised(InfoNCE(), bits, both=False), relation, operands, size)  # type: ignore[arg-type]


def test_graded_pairs_are_rounded_too() -> None:
    relation, operands = batch()
    relation.scores["label"] = torch.arange(len(relation.owner)) / 100.0  # type: ignore[index]
    first = relation.positive & (relation.rank == 0)
    q, d = ((x / 0.03).round() * 0.03 for x in operands[:2])
    cosine = (q[relation.owner[first]] * d[first]).sum(1)
    want = CoSENT().pairwise(cosine, relation.score[first].double(), CLOCK)
    close(loss(Quantised(CoSENT(), both=False), relation, operands), want)


def test_a_vector_that_is_no_number_does_not_pass_for_a_code() -> None:
    relation, (q, d, s) = batch()
    with torch.no_grad():
        q[0, 0] = torch.nan
    for bits in (1, 8):
        assert not loss(Quantised(Logits(), bits, both=False), relation, [q, d, s]).isfinite()


def test_what_takes_the_step_says_so() -> None:
    assert Quantised(InfoNCE()).stepped and Quantised(InfoNCE(), bits=2).stepped
    assert not Quantised(InfoNCE(), bits=1).stepped
    with pytest.raises(ValueError, match="bits=16; expected 2 to 8, or 1"):
        Quantised(InfoNCE(), bits=16)
    with pytest.raises(ValueError, match="clip=0"):
        Quantised(InfoNCE(), bits=1, clip=0)
