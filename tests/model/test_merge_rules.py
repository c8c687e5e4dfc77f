"""Merge rules as arithmetic: closed forms, limits, and references of ten lines."""

import math

import pytest
import torch
from omni2vec.model.merge.average import Average
from omni2vec.model.merge.dare import Dare
from omni2vec.model.merge.delta_guided import DeltaGuided
from omni2vec.model.merge.ema import Ema
from omni2vec.model.merge.fisher import Fisher
from omni2vec.model.merge.slerp import Slerp, factors
from omni2vec.model.merge.task_arithmetic import TaskArithmetic
from omni2vec.model.merge.ties import Edges, Ties
from omni2vec.model.merge.types import Block


def drawn(seed, n=1000):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def block(*models, base=None, beside=(), name="w", start=0):
    return Block(name, start, tuple(models), base, tuple(beside))


def merged(rule, b):
    """Of a tensor that is one block."""
    look = rule.look(len(b.models), b.base is not None)
    while look is not None:
        look.see(b)
        if not look.again():
            break
    return rule.merge(b, look)


def at_angle(angle, seed=0, norms=(1.0, 1.0)):
    """Two vectors at an angle (radians)."""
    a, b = torch.nn.functional.normalize(drawn(seed).double(), dim=0), drawn(seed + 1).double()
    b = torch.nn.functional.normalize(b - (a @ b) * a, dim=0)
    return a * norms[0], (math.cos(angle) * a + math.sin(angle) * b) * norms[1]


@pytest.mark.parametrize("angle", [0.3, 1.5, 3.0])
@pytest.mark.parametrize("t", [0.25, 0.5])
def test_slerp_keeps_the_norm_that_a_straight_line_loses(angle, t):
    a, b = at_angle(angle)
    found = merged(Slerp(t), block(a, b))
    assert found.norm().item() == pytest.approx(1.0, abs=1e-9)
    assert torch.dot(found, a).item() == pytest.approx(math.cos(t * angle), abs=1e-9)
    if t == 0.5:
        assert merged(Average(), block(a, b)).norm().item() == pytest.approx(math.cos(angle / 2), abs=1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-6, math.pi, math.pi - 1e-6])
def test_nearly_parallel_vectors_are_interpolated_straight(angle):
    a, b = at_angle(angle, norms=(1.0, 2.0))
    assert torch.allclose(merged(Slerp(0.25), block(a, b)), 0.75 * a + 0.25 * b, atol=1e-9)
    assert factors(0.25, 0.0, 1.0, 0.0) == (0.75, 0.25)  # nothing has no direction


def test_an_angle_that_float32_could_not_tell_from_none_is_still_an_arc():
    a, b = at_angle(2e-4)
    first, second = factors(0.5, 1.0, 1.0, float(a @ b))
    assert first == second == pytest.approx(0.5 / math.cos(1e-4), rel=1e-7)


def test_slerp_with_a_base_turns_task_vectors():
    base = drawn(9).double()
    a, b = at_angle(1.2)
    found = merged(Slerp(0.5), block(base + a, base + b, base=base))
    assert (found - base).norm().item() == pytest.approx(1.0, abs=1e-9)


def test_slerp_equals_the_field_s_formula_on_the_weights():
    a, b = drawn(1), drawn(2) * 3
    angle = math.acos(float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0)))
    want = (math.sin(0.7 * angle) * a.double() + math.sin(0.3 * angle) * b.double()) / math.sin(angle)
    assert torch.allclose(merged(Slerp(0.3), block(a, b)), want.float(), atol=1e-6)


def test_task_arithmetic_adds_and_takes_away():
    base, one, two = drawn(0), drawn(1), drawn(2)
    found = merged(TaskArithmetic((0.7, -0.2)), block(one, two, base=base))
    assert torch.allclose(found, base + 0.7 * (one - base) - 0.2 * (two - base), atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
def test_the_closed_form_of_the_moving_average_is_its_recursion(decay):
    models = [drawn(i).double() for i in range(6)]
    want = models[0]
    for theta in models[1:]:
        want = decay * want + (1 - decay) * theta
    assert torch.allclose(merged(Ema(decay), block(*models)), want, atol=1e-12)
    assert sum(Ema(decay).coefficients(6)) == pytest.approx(1.0, abs=1e-12)


def ties_reference(base, models, density):
    """By the paper's words, on whole tensors, with a sort."""
    kept = []
    for theta in models:
        v = theta - base
        edge = v.abs().sort(descending=True).values[math.ceil(density * len(v)) - 1]
        kept.append(torch.where(v.abs() >= edge, v, 0.0).double())
    stacked = torch.stack(kept)
    sign = stacked.sum(0).sign()
    agree = (stacked.sign() == sign) & (stacked != 0)
    return (base + (stacked * agree).sum(0) / agree.sum(0).clamp(min=1)).float()


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 1.0])
def test_ties_equals_its_reference(density):
    base, models = drawn(0), [drawn(i) for i in (1, 2, 3)]
    found = merged(Ties(density), block(*models, base=base))
    assert torch.allclose(found, ties_reference(base, models, density), atol=1e-6)


@pytest.mark.parametrize("density", [0.01, 0.333, 0.9])
@pytest.mark.parametrize("case", ["spread", "tied", "zeros", "tiny"])
def test_the_edge_is_the_exact_order_statistic(case, density):
    v = drawn(3, 5000)
    v = {"spread": v * v.abs() ** 9, "tied": v.round(), "zeros": v * (v > 1.5), "tiny": v * 1e-38}[case]
    look = Edges(density, 1)
    while True:
        for start in range(0, 5000, 1024):
            part = v[start : start + 1024]
            look.see(block(part, base=torch.zeros_like(part), start=start))
        if not look.again():
            break
    assert look.edges == [v.abs().sort(descending=True).values[math.ceil(density * 5000) - 1].item()]


def test_the_signs_of_the_heavier_models_win():
    base = torch.zeros(3)
    one, two = torch.tensor([3.0, 1.0, 1.0]), torch.tensor([-1.0, -2.0, 1.0])
    assert merged(Ties(1.0), block(one, two, base=base)).tolist() == [3.0, -2.0, 1.0]
    assert merged(Ties(1.0, weights=(1.0, 4.0)), block(one, two, base=base)).tolist() == [-1.0, -2.0, 1.0]


def test_dropped_task_vectors_are_unbiased():
    """The mean over 400 masks is within 4 standard errors of the task vector, for 99.9% of the elements and overall."""
    base, theta, drop, draws = torch.zeros(2000), drawn(1, 2000) + 3, 0.7, 400
    found = torch.stack([merged(Dare(drop, seed=s), block(theta, base=base)) for s in range(draws)])
    error = theta.abs() * math.sqrt(drop / (1 - drop) / draws)
    z = (found.mean(0) - theta) / error
    assert (z.abs() < 4).float().mean() > 0.999 and abs(z.mean().item()) * math.sqrt(2000) < 4
    share = (found == 0).float().mean().item()
    assert share == pytest.approx(drop, abs=4 * math.sqrt(drop * (1 - drop) / found.numel()))


def test_masks_are_of_the_element_not_of_the_block_and_differ_by_model_tensor_and_seed():
    base, theta = torch.zeros(1000), torch.ones(1000)
    whole = merged(Dare(0.5), block(theta, base=base))
    parts = [merged(Dare(0.5), block(theta[a : a + 300], base=base[a : a + 300], start=a)) for a in range(0, 1000, 300)]
    assert torch.equal(torch.cat(parts), whole)
    others = [merged(Dare(0.5, seed=1), block(theta, base=base)), merged(Dare(0.5), block(theta, base=base, name="v"))]
    second = merged(Dare(0.5, (0.0, 1.0)), block(theta, theta, base=base))
    for other in (*others, second):
        assert 0.4 < (other == whole).float().mean() < 0.6


def test_dropping_nothing_is_task_arithmetic():
    base, one, two = drawn(0), drawn(1), drawn(2)
    b = block(one, two, base=base)
    assert torch.allclose(merged(Dare(0.0, (0.3,)), b), merged(TaskArithmetic((0.3,)), b), atol=1e-6)
    assert torch.allclose(merged(Dare(0.0, (1.0,), ties=True), b), merged(Ties(1.0), b), atol=1e-6)


def test_equal_fisher_tensors_are_an_average_and_unequal_ones_a_weighted_one():
    one, two, f = drawn(1), drawn(2), drawn(3).square()
    files = ("a", "b")
    same = merged(Fisher(files), block(one, two, beside=(f, f)))
    assert torch.allclose(same, merged(Average(), block(one, two)), atol=1e-6)
    other = merged(Fisher(files), block(one, two, beside=(3 * f, f)))
    assert torch.allclose(other, 0.75 * one + 0.25 * two, atol=1e-6)
    none = merged(Fisher(files), block(one, two, beside=(0 * f, 0 * f)))
    assert torch.allclose(none, merged(Average(), block(one, two)), atol=1e-6)
    assert torch.equal(merged(Fisher(files), block(one, two, beside=(f, 0 * f))), one)


def test_the_model_that_moved_a_tensor_further_weighs_more_in_it():
    base, far, near = torch.zeros(4), torch.full((4,), 3.0), torch.full((4,), -1.0)
    assert merged(DeltaGuided(), block(far, near, base=base)).tolist() == [2.0] * 4  # 3/4 · 3 - 1/4
    assert merged(DeltaGuided(0.0), block(far, near, base=base)).tolist() == [1.0] * 4
    assert torch.equal(merged(DeltaGuided(), block(base, base, base=base)), base)
