"""Adding things is one file each: objective, source, step, backbone, rule of a miner, judge, rule of a merge."""

import json
import sys

import pytest
import torch
from omni2vec import Embedder
from omni2vec.data.sources import Shards
from omni2vec.launch.load import load
from omni2vec.launch.run import run
from omni2vec.train.monitor import read_log
from safetensors.torch import load_file

from .model.small import tiny

OBJECTIVE = '''
from dataclasses import dataclass

import torch
from omni2vec.train.objectives.types import SumCount


@dataclass(frozen=True)
class Triplet:
    """The nearest wrong document is pushed a margin below the right one."""

    weight: float = 1.0
    margin: float = 0.2

    def contrast(self, query, docs, relation, scale, clock):
        cosine = query @ docs.T
        own = relation.owner[None] == torch.arange(len(query))[:, None]
        right = cosine[own & relation.positive[None]]
        wrong = cosine.masked_fill(own, -2.0).amax(1)
        return SumCount((wrong - right + self.margin).relu().sum() + 0.0 * scale.sum(), len(query))
'''
SOURCE = '''
from dataclasses import dataclass

from omni2vec.data.types import Example, Item


@dataclass(frozen=True)
class Counting:
    """Numbers and the number behind each."""

    name: str = "counting"
    size: int = 12

    @property
    def digest(self):
        return f"counting {self.size}"

    def open(self, where):
        return self

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        return Example(f"counting/0/{i}", self.name, "retrieval", Item.text(f"n {i}"), (Item.text(f"n {i + 1}"),))
'''
STEP = '''
import json
from dataclasses import dataclass
from pathlib import Path

from omni2vec.data.types import Step
from omni2vec.model.embedder import Embedder


@dataclass(frozen=True)
class Norms:
    """Writes how long the embedder's vectors are."""

    name: str
    model: Step

    def make(self, out, where):
        vectors = Embedder.load(where(self.model)).encode(["one", "two"])
        (out / "norms.json").write_text(json.dumps(vectors.norm(dim=1).tolist()))
'''
RULE = '''
from dataclasses import dataclass


@dataclass(frozen=True)
class Every:
    """Keeps the candidates at ranks that `nth` divides."""

    nth: int = 2

    def keep(self, view):
        return view.kept & (view.rank % self.nth == 0)
'''
MERGE_RULE = '''
from dataclasses import dataclass

import torch
from omni2vec.model.merge.types import Rule


@dataclass(frozen=True)
class Largest(Rule):
    """Of each weight, the largest."""

    def check(self, count):
        pass

    def merge(self, block, found):
        return torch.stack(block.models).amax(0)
'''
JUDGE = '''
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Longer:
    """Longer texts are better."""

    factor: float = 1.0
    digest = "longer"
    told = {}

    def open(self, where):
        return self

    def scores(self, pairs, instruction):
        return np.array([self.factor * len(p.candidate.parts[0].text) for p in pairs], np.float32)
'''
SCIENCE = """
from added_judge import Longer
from added_merge_rule import Largest
from added_objective import Triplet
from added_rule import Every
from added_source import Counting
from omni2vec.data.mix import Feed
from omni2vec.data.scored import Scored
from omni2vec.data.sources import Shards
from omni2vec.train.fuse import Merge
from omni2vec.train.judge import Judged
from omni2vec.train.mine import Mine
from omni2vec.train.objectives.soft_label import SoftLabel
from omni2vec.train.stage import Stage


def recipe(model: str):
    mined = Shards(Mine("mined", model, Counting(), rules=(Every(2),), count=2, among=8), name="mined")
    rows = Scored(mined, by=Judged("judged", mined, Longer()))
    goals = {"default": (Triplet(), SoftLabel())}
    stage = Stage("train", model, (Feed(rows, negatives=2),), steps=2, batch=6, objectives=goals)
    return Merge("merged", (model, stage), rule=Largest())
"""
RECIPE = """
from added_objective import Triplet
from added_source import Counting
from added_step import Norms
from omni2vec.data.mix import Feed
from omni2vec.train.stage import Stage


def recipe(model: str, margin: float = 0.3):
    goals = {"default": (Triplet(margin=margin),)}
    stage = Stage("train", model, (Feed(Counting()),), steps=2, batch=6, objectives=goals)
    return Norms("norms", stage)
"""


ADDED = {
    "objective": OBJECTIVE,
    "source": SOURCE,
    "step": STEP,
    "rule": RULE,
    "merge_rule": MERGE_RULE,
    "judge": JUDGE,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in ADDED.items():
        (tmp_path / f"added_{name}.py").write_text(text)
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "science.py").write_text(SCIENCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ADDED:
        sys.modules.pop(f"added_{name}", None)


def test_an_objective_a_source_and_a_step_of_one_s_own_make_a_run(folder):
    torch.set_num_threads(1)
    tiny().save(folder / "model")
    run(load(folder / "recipe.py", [f"model={folder / 'model'}"]), folder / "run")
    losses = [r["loss"] for r in read_log(folder / "run" / "train" / "log.jsonl") if "loss" in r]
    assert len(losses) == 2
    assert json.loads((folder / "run" / "norms" / "norms.json").read_text()) == pytest.approx([1.0, 1.0])
    assert Embedder.load(folder / "run" / "train").encode("one").shape == (64,)


def test_a_rule_for_negatives_a_judge_and_a_merge_rule_of_one_s_own_make_a_run(folder):
    torch.set_num_threads(1)
    tiny().save(folder / "model")
    run(load(folder / "science.py", [f"model={folder / 'model'}"]), folder / "run")
    rows = Shards(str(folder / "run" / "mined")).open(lambda step: folder)
    assert len(rows) == 12 and all(len(r.negatives) == 2 for r in (rows[i] for i in range(12)))
    before, trained, merged = (
        load_file(folder / at / "model.safetensors") for at in ("model", "run/train", "run/merged")
    )
    assert any(not torch.equal(before[n], trained[n]) for n in before)
    for name, weight in merged.items():
        torch.testing.assert_close(weight, torch.maximum(before[name], trained[name]), rtol=0, atol=0)


def test_a_step_done_before_is_not_made_again_and_a_changed_one_stops(folder):
    tiny().save(folder / "model")
    words = [f"model={folder / 'model'}"]
    run(load(folder / "recipe.py", words), folder / "run")
    before = (folder / "run" / "train" / "model.safetensors").stat().st_mtime_ns
    run(load(folder / "recipe.py", words), folder / "run")
    assert (folder / "run" / "train" / "model.safetensors").stat().st_mtime_ns == before
    from omni2vec.launch.words import RecipeError

    with pytest.raises(RecipeError, match="margin"):
        run(load(folder / "recipe.py", [*words, "margin=0.5"]), folder / "run")


def test_a_backbone_is_one_class():
    """The toy backbone of the step's tests is all that a family needs: counted, collated, packed, trained."""
    from .train.test_step import BOTH, stepped
    from .train.toy import embedder

    done, gradients, _ = stepped(embedder(), 60, "boundaries", BOTH)
    assert done.loss > 0
    assert all(torch.isfinite(g).all() for g in gradients.values())
