"""The first bed: a small Qwen-VL (370,000 weights) trained from nothing on the synthetic world, ten seconds a run.

A seed draws the weights and the order of the rows; the rows and the test are the same for all. Training is the
library's own: the loader, the cached step and the engine of a Stage, in this process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from ablation_merges import merged
from ablation_rows import PIXELS, Drawn, words
from omni2vec.data.counter import bits
from omni2vec.data.mix import Feed
from omni2vec.data.sources import AtLeast
from omni2vec.data.types import Clock, Limits
from omni2vec.eval.evaluate import evaluate
from omni2vec.eval.tasks.shards import tasks_from
from omni2vec.model.backbones.tiny import Tiny, build
from omni2vec.model.embedder import cut
from omni2vec.model.merge.types import Rule
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.stage import Stage
from omni2vec.train.step import cached_step
from torch import Tensor

TRAIN, TEST = 1500, 300  # rows of a task
TASKS = ("caption_to_image", "image_to_caption", "vqa", "classes")
PATCH = PIXELS // 6
TEMPERATURE = 0.05
RATE = 2e-3


def train_of(task: str) -> Drawn:
    return Drawn(task, "train", TRAIN)


def test_of(task: str) -> Drawn:
    return Drawn(task, "test", TEST)


@dataclass(frozen=True)
class Share:
    """A source among those of a stage."""

    source: Drawn | AtLeast
    weight: float = 1.0
    negatives: int = 0
    answers: bool = False


@dataclass(frozen=True)
class Part:
    """One stage of training. objectives: of all its sources."""

    shares: tuple[Share, ...]
    objectives: tuple[Any, ...]
    steps: int = 150
    batch: int = 32
    sub_batch: int = 0
    rate: float = RATE


@dataclass(frozen=True)
class Vlm:
    """Stages one behind the other, then a score. cuts: sizes to which vectors are cut as well."""

    name: str
    parts: tuple[Part, ...]
    scored: tuple[Drawn, ...]
    cuts: tuple[int, ...] = ()

    @property
    def bed(self) -> str:
        return "tiny VLM"

    def lacks(self) -> str:
        return ""

    def run(self, seed: int, work: Path) -> Mapping[str, float]:
        embedder = fresh(seed)
        for i, part in enumerate(self.parts):
            fit(embedder, part, bits(seed, "part", i) >> 33)
        found = scores(embedder, self.scored)
        for dim in self.cuts:
            found |= {f"{name} at {dim}": v for name, v in scores(Cut(embedder, dim), self.scored).items()}
        return found


@dataclass(frozen=True)
class Merged:
    """The first stage, the second behind it, and both merged by each rule. Scores are named by what they are of."""

    name: str
    first: Part
    second: Part
    scored: tuple[Drawn, ...]
    rules: tuple[tuple[str, Rule], ...]

    @property
    def bed(self) -> str:
        return "tiny VLM"

    def lacks(self) -> str:
        return ""

    def run(self, seed: int, work: Path) -> Mapping[str, float]:
        embedder = fresh(seed)
        base = _weights(embedder)
        fit(embedder, self.first, bits(seed, "part", 0) >> 33)
        states = [_weights(embedder)]
        found = scores(embedder, self.scored)
        fit(embedder, self.second, bits(seed, "part", 1) >> 33)
        states.append(_weights(embedder))
        found |= {f"second: {k}": v for k, v in scores(embedder, self.scored).items()}
        for name, rule in self.rules:
            embedder.load_state_dict(merged(rule, states, base if rule.needs_base else None))
            found |= {f"{name}: {k}": v for k, v in scores(embedder, self.scored).items()}
        return found


def fresh(seed: int) -> Any:
    """An embedder with random weights, and the tokenizer that all trials share."""
    sight = Limits(max_tokens=512, max_pixels=PIXELS**2, min_pixels=(2 * PATCH) ** 2)
    tiny = Tiny(
        (), width=64, layers=2, heads=2, vision=64, depth=2, patch=PATCH, mean=0.96, std=0.25, vocabulary=600,
        limits=sight, seed=seed,
    )  # fmt: skip
    return build(tiny, _texts())


_TEXTS: list[str] = []


def _texts() -> list[str]:
    if not _TEXTS:
        sources = [*(Drawn(t, "train", 300) for t in (*TASKS, "sts")), Drawn("tell", "train", 300)]
        _TEXTS.extend(words(chain.from_iterable(s.open(None).rows for s in sources)))
    return _TEXTS


def fit(embedder: Any, part: Part, seed: int) -> None:
    """Train in place: what a Stage does, without its folder."""
    feeds = tuple(Feed(s.source, s.weight, negatives=s.negatives, answers=s.answers) for s in part.shares)
    stage = Stage(
        "ablation",
        "in memory",
        feeds,
        steps=part.steps,
        batch=part.batch,
        sub_batch=part.sub_batch,
        objectives={"default": part.objectives},
        optimizer=AdamW(lr=part.rate, betas=(0.9, 0.98), schedule=Schedule("linear", warmup=10)),
        temperature=TEMPERATURE,
        seed=seed,
    )
    engine, bounds = stage.engine(embedder), stage.bounds()
    embedder.train()
    with stage.loader(embedder, _nowhere, 1 << 14) as loader:
        for plan, chunks in loader:
            torch.manual_seed(bits(seed, "step", plan.step))
            clock = Clock(plan.step, plan.step / part.steps, seed)
            done = cached_step(engine, plan, chunks, bounds, clock, "all", scale=1 / TEMPERATURE)
            if not done.finite:
                raise RuntimeError(f"step {plan.step}: the loss is {done.loss}")
            engine.update(plan.step, part.steps)
    embedder.eval()


def _nowhere(step: Any) -> Path:
    raise RuntimeError(f"no step was made for {step.name!r}: rows here are in memory")


def scores(encoder: Any, scored: Sequence[Drawn]) -> dict[str, float]:
    """The main metric of each task in points of 100, and their mean where there are several."""
    tasks = [task for source in scored for task in tasks_from(source.open(None))]
    report = evaluate(encoder, tasks, draws=2, progress=False)
    found = {t.name.removeprefix("world/"): 100 * t.score.value for t in report.tasks}
    return found | ({"mean": sum(found.values()) / len(found)} if len(found) > 1 else {})


@dataclass(frozen=True)
class Cut:
    """An encoder whose vectors are another's first components."""

    of: Any
    dim: int

    @property
    def digest(self) -> str:
        return f"{self.of.digest}/{self.dim}"

    def encode_items(
        self, items: Iterable[Any], *, side: Any = "query", instruction: str = "", progress: str = ""
    ) -> Tensor:
        return cut(self.of.encode_items(items, side=side, instruction=instruction, progress=progress), self.dim)


def _weights(embedder: Any) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in embedder.state_dict().items()}
