"""U-MARVEL's recipe (arXiv:2507.14902): text, captions, tasks, filtered hard negatives, and a reranker's scores.

    omni2vec run recipes/u_marvel.py mini=true data=PATH/TO/SETS                           # on small sets, in minutes
    omni2vec run recipes/u_marvel.py base=Qwen/Qwen2-VL-7B-Instruct judge=RERANKER data=shards

Attention goes both ways, the mean of all but the instruction is the vector, the temperature is learned through all
stages, the vision tower stays as it is. Sentences in one direction of the loss, then captions and pictures in both,
then every task; then the model's own nearest documents below a cosine of 0.7 as negatives, the first five of a hundred;
at last some of the queries once more (the paper: a tenth), with a reranker's scores of the nearest candidates,
unfiltered, on top of the model's own.

data: shards by kind (docs/your_data.md): train/text/* (the paper: NLI), train/captions/* (CC3M), train/tasks/*
(M-BEIR), test/*. judge: a vision-language model that says yes or no to a query and a candidate. Hardware: the paper has
64 GPUs, 60 rows each; adapters of rank 128 on 7 billion weights. No run at that size is known, no score is promised;
the paper's is 63.2 on M-BEIR, local pools. Unverified: steps, the batches of all stages but the third, the rates of the
first two (4e-4, 1.5e-5 and 1e-5 are given for tasks, hard negatives and distillation), 50 candidates of at most 100,000
rows a task for the reranker, both directions of the loss on tasks, and class masks, which are ours. Not as in the
published code: negatives are filtered (the code's loader takes the first five unfiltered), in a fixed order, and the
temperature is learned as a logarithm.

mini: the same graph on small public sets (docs/your_data.md), from random weights; the judge is a model of the same
size that is first trained to say yes or no: two cores, minutes.
"""

from dataclasses import dataclass, field
from pathlib import Path

from omni2vec.data.asking import Asked
from omni2vec.data.convert.small import small
from omni2vec.data.mix import BySize, Feed
from omni2vec.data.scored import Scored
from omni2vec.data.sources import Shards, Take, below
from omni2vec.data.types import DataError, Limits, Source, Step
from omni2vec.eval.evaluate import Evaluate
from omni2vec.launch.release import Release
from omni2vec.model.backbones.tiny import Tiny
from omni2vec.model.embedder import Learned
from omni2vec.model.lora import Lora
from omni2vec.model.pool import Pooling
from omni2vec.train.engine import Precision
from omni2vec.train.judge import Judged, Judging
from omni2vec.train.judge_vlm import YesNo
from omni2vec.train.mine import Mine
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.objectives.soft_label import SoftLabel
from omni2vec.train.objectives.types import Objective
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.rules import AnyRule, Below, PercentOfPositive
from omni2vec.train.stage import Stage


@dataclass(frozen=True)
class Sizes:
    """What differs between a run of the paper's size and one of minutes. Rates and steps: text, captions, tasks, hard
    negatives, distillation."""

    steps: tuple[int, int, int, int, int] = (1000, 1500, 4000, 2000, 500)
    batch: tuple[int, int, int, int, int] = (3840, 3840, 3840, 1920, 960)
    lr: tuple[float, float, float, float, float] = (2e-4, 2e-4, 4e-4, 1.5e-5, 1e-5)
    rules: tuple[AnyRule, ...] = (Below(0.7),)
    among: int = 100
    taught: int = 100_000  # rows of a task whose candidates are scored
    scored: int = 50  # candidates of each
    alpha: float = 0.5  # of the reranker's scores beside the model's own
    lora: Lora | None = field(default_factory=lambda: Lora(rank=128, alpha=256.0))
    freeze: tuple[str, ...] = ("tower",)
    limits: Limits | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    precision: Precision = "bf16"
    workers: int = 4


@dataclass(frozen=True)
class Data:
    text: tuple[Source, ...]
    captions: tuple[Source, ...]
    tasks: tuple[Source, ...]
    tests: tuple[Source, ...]


def recipe(base: str = "", judge: str = "", data: str = "", mini: bool = False, seed: int = 0) -> tuple[Step, ...]:
    """base, judge: folder or hub name of a vision-language model. mini: small sets, with sizes of their own."""
    if mini:
        return twin(data, seed)
    if not base or not judge:
        raise DataError("base=VLM and judge=RERANKER are needed, or mini=true for tiny ones on small sets")
    train = Path(data) / "train"
    given = Data(below(train / "text"), below(train / "captions"), below(train / "tasks"), below(Path(data) / "test"))
    return graph(base, YesNo(judge), given, Sizes(), seed)


def twin(data: str, seed: int) -> tuple[Step, ...]:
    """Questions of equal intent; the names of emoji and their pictures; names, composed pictures and kinds of cells."""
    sets = small(data, ("banking_same", "emoji_picture", "emoji_name", "emoji_composed", "cells_classes"))
    same, *pictured = (s.train for s in sets.values())
    captions, tasks = tuple(pictured[:2]), tuple(pictured[1:])
    given = Data((same,), captions, tasks, tuple(s.test for s in sets.values()))
    sight = Limits(max_tokens=160, max_pixels=16 * 24 * 24, min_pixels=4 * 24 * 24)
    start = Tiny(
        (same, *pictured), width=128, layers=3, heads=4, vision=96, patch=12, limits=sight, vocabulary=4096, seed=seed
    )
    sizes = Sizes(
        steps=(40, 120, 160, 80, 40),
        batch=(32, 32, 32, 24, 24),
        lr=(5e-4, 7e-4, 7e-4, 1e-4, 2e-5),
        rules=(PercentOfPositive(1.0),),
        among=1000,
        taught=100,
        scored=8,
        alpha=0.1,
        lora=None,
        freeze=(),
        betas=(0.9, 0.98),
        precision="fp32",
        workers=1,
    )
    asked = tuple(Feed(Asked(s)) for s in tasks)
    judge = stage("judge", start, asked, (NextToken(),), sizes, 2, seed, pooling="last")
    return graph(start, YesNo(judge), given, sizes, seed)


def graph(base: Step | str, judge: Judging, given: Data, sizes: Sizes, seed: int) -> tuple[Step, ...]:
    both = (InfoNCE(both=True, mask_labels=True),)
    text = stage("text", base, tuple(Feed(s, answers=False) for s in given.text), (InfoNCE(),), sizes, 0, seed)
    captions = stage("captions", text, tuple(Feed(s, answers=False) for s in given.captions), both, sizes, 1, seed)
    every = stage("tasks", captions, tuple(Feed(s, answers=False) for s in given.tasks), both, sizes, 2, seed)
    mined = tuple(
        Mine(f"mined_{i}", every, s, rules=sizes.rules, count=5, among=sizes.among, seed=seed)
        for i, s in enumerate(given.tasks)
    )
    rows = tuple(Shards(m, name=s.name) for m, s in zip(mined, given.tasks, strict=True))
    hard = stage("hard", every, tuple(Feed(s, negatives=5, answers=False) for s in rows), both, sizes, 3, seed)
    scored = []
    for i, source in enumerate(given.tasks):
        few = Take(source, sizes.taught, seed)
        near = Mine(f"near_{i}", hard, few, source, count=sizes.scored, among=sizes.scored, labels=False, seed=seed)
        found = Shards(near, name=source.name)
        scored.append(Scored(found, by=Judged(f"judged_{i}", found, judge)))
    fused = SoftLabel(fused=sizes.alpha)  # the model's own cosines and the judge's scores
    taught = stage(
        "taught", hard, tuple(Feed(s, negatives=sizes.scored, answers=False) for s in scored), (fused,), sizes, 4, seed
    )
    scores = Evaluate("scores", taught, given.tests, baselines=(every, hard))
    hub = base if isinstance(base, str) and base.count("/") == 1 else ""
    return (Release("release", taught, scores, allow="omni2vec", title="U-MARVEL's recipe", base_model=hub),)


def stage(
    name: str,
    model: Step | str,
    feeds: tuple[Feed, ...],
    objectives: tuple[Objective, ...],
    sizes: Sizes,
    place: int,
    seed: int,
    pooling: Pooling = "mean",
) -> Stage:
    """The first stage settles scale, attention and pooling; the later ones take up its scale where it had come to."""
    return Stage(
        name,
        model,
        feeds,
        steps=sizes.steps[place],
        batch=sizes.batch[place],
        mix=BySize(),
        objectives={"default": objectives},
        optimizer=AdamW(lr=sizes.lr[place], betas=sizes.betas, schedule=Schedule("linear", warmup=0.05)),
        scale=Learned(init=20.0) if place == 0 else None,
        pooling=pooling,
        attention="bidirectional" if pooling == "mean" else "causal",
        mask_instruction=pooling == "mean",
        lora=sizes.lora,
        freeze=sizes.freeze,
        limits=sizes.limits,
        precision=sizes.precision,
        workers=sizes.workers,
        seed=seed,
    )
