"""Objectives bound to sources: their names, weights that follow the stage, and rows that lack what they go by."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from omni2vec.data.schedules import Ramp
from omni2vec.data.types import Clock, DataError
from omni2vec.train.engine import Local
from omni2vec.train.loss import Bound, opened
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.objectives.types import SumCount
from omni2vec.train.optim import AdamW
from omni2vec.train.step import cached_step

from .toy import embedder, loader, rows


def stepped(model, objectives, progress=0.0, source=None):
    bounds = (Bound("default", objectives, frozenset({0})),)
    with loader([source or rows()], budget=70) as batches:
        plan = batches.plan(0)
        done = cached_step(Local(model, AdamW()), plan, batches.chunks(plan), bounds, Clock(0, progress, 0), "all")
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return done, found, plan


@dataclass(frozen=True)
class Gap:
    """The mean of (cosine - label)^2 over pairs."""

    weight: float = 1.0

    def pairwise(self, similarity, score, clock):
        return (similarity - score).square().mean()


@dataclass(frozen=True)
class Wrapped:
    of: object
    weight: float = 1.0

    def contrast(self, query, docs, relation, scale, clock) -> SumCount:
        return self.of.contrast(query, docs, relation, scale, clock)


@dataclass(frozen=True)
class Closed:
    weight: float = 1.0

    def opened(self, where):
        return InfoNCE(weight=where(None).stat().st_size)


def test_objectives_of_one_kind_have_names_of_their_own():
    bound = Bound("web", (InfoNCE(), InfoNCE(both=True), Wrapped(InfoNCE()), NextToken()), frozenset({0}))
    assert [n for n, _ in bound.labelled()] == ["web/infonce", "web/infonce-2", "web/wrapped.infonce", "web/nexttoken"]


def test_a_scheduled_weight_counts_as_the_number_that_it_is_at_that_progress():
    model = embedder()
    moving = (InfoNCE(weight=Ramp(0.0, 4.0)), NextToken(weight=Ramp(2.0, 0.0)))
    fixed = (InfoNCE(weight=1.0), NextToken(weight=1.5))
    one, got, _ = stepped(model, moving, progress=0.25)
    two, want, _ = stepped(model, fixed)
    assert one.loss == pytest.approx(two.loss, rel=1e-12)
    for name, g in want.items():
        torch.testing.assert_close(got[name], g, rtol=1e-12, atol=1e-14)


def test_two_objectives_on_one_source_add_up():
    model = embedder()
    both = stepped(model, (InfoNCE(), InfoNCE(both=True, weight=0.5)))[0]
    alone = [stepped(model, (InfoNCE(both=b),))[0].loss for b in (False, True)]
    assert both.losses == pytest.approx({"default/infonce": alone[0], "default/infonce-2": alone[1]}, rel=1e-12)
    assert both.loss == pytest.approx(alone[0] + 0.5 * alone[1], rel=1e-12)


def test_a_pair_without_a_label_is_named():
    model, source = embedder(), rows()
    with pytest.raises(DataError, match=r"^toy/0/\d+: no score 'label'.*judge"):
        stepped(model, (Gap(),), source=source)
    labelled = [replace(r, scores={"label": (0.5,) * len(r.positives)}) for r in source.rows]
    done, found, _ = stepped(model, (Gap(),), source=replace(source, rows=tuple(labelled)))
    assert math.isfinite(done.loss) and any(g.abs().max() > 0 for g in found.values())


def test_what_another_step_made_is_opened_wherever_it_stands(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"12345")
    found = opened(Wrapped(Wrapped(Closed())), lambda _: tmp_path / "file")
    assert found == Wrapped(Wrapped(InfoNCE(weight=5)))


def test_an_infinite_label_is_named_too():
    source = rows()
    labelled = [replace(r, scores={"label": (math.inf,) * len(r.positives)}) for r in source.rows]
    with pytest.raises(DataError, match=r"^toy/0/\d+: an infinite score 'label'"):
        stepped(embedder(), (Gap(),), source=replace(source, rows=tuple(labelled)))
