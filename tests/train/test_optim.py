"""Schedules by golden values, parameter groups by counting, the optimiser by torch's plain loop."""

from __future__ import annotations

import pytest
import torch
from omni2vec.train.optim import AdamW, Schedule
from torch import nn


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Schedule("constant", warmup=4), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (Schedule("linear", warmup=4), [0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2]),
        (Schedule("linear", warmup=0.5, floor=0.5), [0.25, 0.5, 0.75, 1, 0.9, 0.8, 0.7, 0.6]),
        (Schedule("cosine", warmup=4), [0.25, 0.5, 0.75, 1, 0.904508, 0.654508, 0.345492, 0.095492]),
        (Schedule("cosine", warmup=0), [0.969846, 0.883022, 0.75, 0.586824, 0.413176, 0.25, 0.116978, 0.030154]),
    ],
)
def test_a_schedule_of_eight_steps_has_these_factors(schedule: Schedule, factors: list[float]) -> None:
    assert [schedule.factor(step, 8) for step in range(8)] == pytest.approx(factors, abs=1e-6)


def test_rates_never_leave_the_band_between_floor_and_peak_after_warm_up() -> None:
    for total in (1, 2, 3, 17, 1000):
        for kind in ("cosine", "linear", "constant"):
            schedule = Schedule(kind, warmup=0.1, floor=0.2)
            factors = [schedule.factor(step, total) for step in range(total + 5)]
            assert all(0 < f <= 1 for f in factors)
            assert all(f >= 0.2 for f in factors[max(1, total // 10) :])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower, self.norm, self.language = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        language = [*self.norm.parameters(), *self.language.parameters()]
        return {"tower": list(self.tower.parameters()), "language": language}


def test_vectors_are_spared_weight_decay_and_parts_have_their_own_rate() -> None:
    model = Model()
    groups = AdamW(lr=0.1, weight_decay=0.5, rates={"tower": 0.25}).groups(model.parts())
    found = {(g["part"], g["weight_decay"]): (g["lr"], sorted(tuple(p.shape) for p in g["params"])) for g in groups}
    assert found == {
        ("tower", 0.5): (0.025, [(4, 4)]),
        ("tower", 0.0): (0.025, [(4,)]),
        ("language", 0.5): (0.1, [(4, 4)]),
        ("language", 0.0): (0.1, [(4,), (4,), (4,)]),
    }


def test_frozen_shared_and_zero_rate_parameters_are_left_out() -> None:
    model = Model()
    model.language.bias.requires_grad_(False)
    parts = model.parts() | {"head": [model.language.weight]}
    groups = AdamW(rates={"tower": 0}).groups(parts)
    members = [p for g in groups for p in g["params"]]
    assert {id(p) for p in members} == {id(model.language.weight), id(model.norm.weight), id(model.norm.bias)}
    assert len(members) == 3


def test_one_number_scales_all_parts_through_the_schedule() -> None:
    settings = AdamW(lr=0.1, rates={"tower": 0.5}, schedule=Schedule("linear", warmup=0))
    optimizer = settings.build(Model().parts())
    assert settings.set_rates(optimizer, step=1, total=3) == pytest.approx(0.05)
    assert {g["part"]: g["lr"] for g in optimizer.param_groups} == pytest.approx({"tower": 0.025, "language": 0.05})


def test_the_fused_optimiser_moves_weights_as_torchs_plain_loop_does() -> None:
    torch.manual_seed(0)
    ours, theirs = Model(), Model()
    theirs.load_state_dict(ours.state_dict())
    settings = AdamW(lr=0.01, weight_decay=0.1)
    fused = settings.build(ours.parts())
    plain = torch.optim.AdamW(settings.groups(theirs.parts()), lr=0.01, betas=settings.betas, eps=1e-8, foreach=False)
    for _ in range(5):
        x = torch.randn(8, 4)
        for model, optimizer in ((ours, fused), (theirs, plain)):
            optimizer.zero_grad()
            model.language(model.norm(model.tower(x))).square().sum().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdamW(rates={"vision": 1.0}), "vision.*expected some of tower"),
        (lambda: AdamW(lr=0), "lr=0"),
        (lambda: Schedule("cosin"), "cosin.*expected"),  # type: ignore[arg-type]
        (lambda: Schedule(floor=2), "floor=2"),
        (lambda: AdamW().groups({"tower": []}), "nothing to train.*unfreeze"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_was_expected(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]
