"""The collapse alarm: rings soon after a fall, once, and never for a healthy run."""

import numpy as np
import pytest
from omni2vec.train.alarm import Collapse

LOOKS = 400


def healthy(rng, kind):
    """(effective rank, accuracy) of a run that learns: from collapsed random weights, from a good model, or on two
    sources of which the harder one, 4 looks in 10, is at chance all the time."""
    t = np.arange(LOOKS)
    if kind == "from random weights":
        rank, accuracy = 1.3 + 40 / (1 + np.exp(-(t - 120) / 20)), 0.02 + 0.9 / (1 + np.exp(-(t - 150) / 30))
    elif kind == "from a good model":
        rank, accuracy = 60 - 25 * t / LOOKS, np.full(LOOKS, 0.7)  # what a narrow task does not need is given up
    else:
        rank, accuracy = np.full(LOOKS, 20.0), np.where(rng.random(LOOKS) < 0.4, 1 / 64, 0.8)
    rank = np.maximum(1.0, rank * rng.lognormal(0, 0.3, LOOKS))
    return rank, rng.binomial(64, np.clip(accuracy, 0, 1)) / 64


def rung(alarm, rank, accuracy):
    return [(i, e) for i, (r, a) in enumerate(zip(rank, accuracy, strict=True)) if (e := alarm.look(r, a, 1 / 64))]


@pytest.mark.parametrize("kind", ["from random weights", "from a good model", "on two sources"])
def test_a_healthy_run_rings_nothing(kind):
    assert not [s for s in range(100) if rung(Collapse(), *healthy(np.random.default_rng(s), kind))]


@pytest.mark.parametrize("fallen", ["effective_rank", "accuracy"])
@pytest.mark.parametrize("kind", ["from random weights", "on two sources"])
def test_a_collapse_rings_once_and_soon(kind, fallen):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rank, accuracy = healthy(rng, kind)
        if fallen == "accuracy":
            accuracy[300:] = rng.binomial(64, 1 / 64, 100) / 64
        else:
            rank[300:] = 1 + 0.5 * rng.random(100)
        found = rung(Collapse(), rank, accuracy)
        assert [300 < i <= 300 + 32 for i, _ in found] == [True]
        assert set(found[0][1]) == {fallen, f"best_{fallen}", "why"}


def test_a_second_collapse_rings_again_behind_a_recovery():
    rank = [30.0] * 40 + [1.2] * 100 + [30.0] * 40 + [1.2] * 40
    assert [i for i, _ in rung(Collapse(), rank, [0.5] * len(rank))] == [54, 194]  # all looks of a window but one


def test_a_restart_remembers_what_was_reached():
    first = Collapse()
    rung(first, [30.0] * 40, [0.8] * 40)
    assert len(rung(Collapse(best=first.state), [1.2] * 20, [0.8] * 20)) == 1
    assert rung(Collapse(), [1.2] * 20, [0.8] * 20) == []


def test_what_is_not_finite_is_not_judged():
    alarm = Collapse()
    rung(alarm, [30.0] * 40, [0.8] * 40)
    assert rung(alarm, [float("nan")] * 40, [0.8] * 40) == []
