"""The Local engine: what an update leaves alone, and what it puts back."""

import math

import pytest
import torch
from omni2vec.data.types import Clock
from omni2vec.train.engine import Local
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW
from omni2vec.train.step import Bound, cached_step

from .toy import embedder, loader, rows

BOUNDS = (Bound("default", (InfoNCE(),), frozenset({0})),)


def test_a_learned_scale_comes_down_again_from_its_maximum():
    model = embedder()
    engine = Local(model, AdamW(lr=0.1))
    model.log_scale.grad = -torch.ones_like(model.log_scale)
    with torch.no_grad():
        model.log_scale.fill_(math.log(99.0))
    engine.update(0, 2)  # would bring it to 109
    assert float(model.scale.detach()) == pytest.approx(100.0)
    model.scale.sum().backward()
    assert model.log_scale.grad > 0
    for step in range(20):
        model.log_scale.grad = torch.ones_like(model.log_scale)
        engine.update(step, 20)
    assert model.scale < 90


def test_a_part_with_a_rate_of_0_gathers_no_gradient():
    model = embedder()
    engine = Local(model, AdamW(rates={"tower": 0.0}))
    assert engine.towers_frozen()
    with loader([rows()]) as batches:
        plan = batches.plan(0)
        cached_step(engine, plan, batches.chunks(plan), BOUNDS, Clock(0, 0.0, 0), "all")
    assert all(p.grad is None for p in model.base.groups()["tower"])
    assert sum(p.grad is not None for p in engine.parameters) > 10
