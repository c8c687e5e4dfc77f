"""Qwen3-VL-Embedding's three stages and merge (arXiv:2601.04720): breadth, then quality, then a reranker, then a blend.

    omni2vec run recipes/qwen3_vl_embedding.py mini=true data=PATH/TO/SETS                 # on small sets, in minutes
    omni2vec run recipes/qwen3_vl_embedding.py base=Qwen/Qwen3-VL-2B-Instruct judge=RERANKER data=shards

A causal model with low-rank adapters, its last token the vector. First pairs in great number, with a denominator of all
the batch (queries against queries and documents against documents too) and false negatives masked by a margin. Then
fewer, better rows by kind: mined negatives for searching, without the two extra terms; CoSENT for graded pairs; for
classes the wrong labels that are given, and no other row's. Then a reranker's scores of each query's candidates. The
second and third stage pull apart (searching against classes), and the weights between them are taken. Prefixes of the
vector are trained throughout, and int8 from the second stage on, but for graded pairs.

data: shards by kind (docs/your_data.md): train/pairs/*, train/retrieval/*, train/sts/* (scores "label"),
train/classes/* (wrong labels as negatives), test/*. Hardware: 2 billion weights with adapters, batches of thousands: 8
GPUs of 80 GB. No run at that size is known, no score is promised; the report's on MMEB-V2 after each stage are 66.6,
72.1, 71.5, and 73.2 merged. Unverified: rates, batches, steps, ranks, the weight of the merge and its rule (slerp
here), all temperatures, equal weights of the prefixes, the thresholds of mining (positives above 0.1, negatives below
the mean positive), and when binary codes are trained (not here: Quantised(bits=1) would).

mini: the same graph on small public sets (docs/your_data.md), from random weights; the judge is a model of the same
size that is first trained to say yes or no: two cores, minutes.
"""

from collections.abc import Mapping
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
from omni2vec.model.lora import Lora
from omni2vec.model.merge.slerp import Slerp
from omni2vec.train.engine import Precision
from omni2vec.train.fuse import Merge
from omni2vec.train.judge import Judged, Judging
from omni2vec.train.judge_vlm import YesNo
from omni2vec.train.mine import Mine
from omni2vec.train.objectives.cosent import CoSENT
from omni2vec.train.objectives.masked import Masked
from omni2vec.train.objectives.matryoshka import Matryoshka
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.objectives.quantised import Quantised
from omni2vec.train.objectives.soft_label import SoftLabel
from omni2vec.train.objectives.types import Contrastive, Objective, Pairwise
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.rules import MarginToMean, PositiveAbove
from omni2vec.train.stage import Stage


@dataclass(frozen=True)
class Sizes:
    """What differs between a run of the paper's size and one of minutes. Steps, rates: the three stages."""

    steps: tuple[int, int, int] = (10_000, 4000, 1000)
    batch: tuple[int, int, int] = (4096, 1024, 512)
    lr: tuple[float, float, float] = (1e-4, 5e-5, 2e-5)
    dims: tuple[int, ...] = (0, 1024, 512, 256, 128, 64)
    temperature: float = 0.02
    count: int = 7
    taught: int = 100_000  # rows of a source whose candidates are scored
    lora: Lora | None = field(default_factory=lambda: Lora(rank=32, alpha=64.0))
    limits: Limits | None = field(  # the report's: 1,280 tokens a picture, 64 frames and 4,500 tokens a clip
        default_factory=lambda: Limits(
            max_tokens=8192, max_pixels=1280 * 32 * 32, max_frames=64, fps=1.0, max_video_pixels=4500 * 32 * 32 // 32
        )
    )
    betas: tuple[float, float] = (0.9, 0.999)
    precision: Precision = "bf16"
    workers: int = 4


@dataclass(frozen=True)
class Data:
    pairs: tuple[Source, ...]
    retrieval: tuple[Source, ...]
    sts: tuple[Source, ...]
    classes: tuple[Source, ...]
    tests: tuple[Source, ...]


def recipe(base: str = "", judge: str = "", data: str = "", mini: bool = False, seed: int = 0) -> tuple[Step, ...]:
    """base, judge: folder or hub name of a vision-language model. mini: small sets, with sizes of their own."""
    if mini:
        return twin(data, seed)
    if not base or not judge:
        raise DataError("base=VLM and judge=RERANKER are needed, or mini=true for tiny ones on small sets")
    pairs, retrieval, sts, classes = (
        below(Path(data) / "train" / kind) for kind in ("pairs", "retrieval", "sts", "classes")
    )
    given = Data(pairs, retrieval, sts, classes, below(Path(data) / "test"))
    return graph(base, YesNo(judge), given, Sizes(), seed)


def twin(data: str, seed: int) -> tuple[Step, ...]:
    """Names and pictures of emoji; composed pictures and names again; sentence pairs; kinds of cells and of emoji."""
    tasks = ("emoji_picture", "emoji_name", "emoji_composed", "sts_en", "cells_classes", "cells_count")
    sets = small(data, tasks)
    picture, name, composed, graded, cells, counts = (s.train for s in sets.values())
    given = Data((picture, name), (name, composed), (graded,), (cells, counts), tuple(s.test for s in sets.values()))
    sight = Limits(max_tokens=160, max_pixels=16 * 24 * 24, min_pixels=4 * 24 * 24)
    read = tuple(s.train for s in sets.values())
    start = Tiny(read, width=128, layers=3, heads=4, vision=96, patch=12, limits=sight, vocabulary=4096, seed=seed)
    sizes = Sizes(
        steps=(160, 120, 40),
        batch=(32, 32, 24),
        lr=(7e-4, 5e-4, 2e-4),
        dims=(0, 64, 32, 16),
        temperature=0.05,
        count=3,
        taught=400,
        lora=None,
        betas=(0.9, 0.98),
        precision="fp32",
        workers=1,
    )
    judge = stage(
        "judge", start, (Feed(Asked(name)), Feed(Asked(composed))), {"default": (NextToken(),)}, sizes, 0, seed
    )
    return graph(start, YesNo(judge), given, sizes, seed)


def graph(base: Step | str, judge: Judging, given: Data, sizes: Sizes, seed: int) -> tuple[Step, ...]:
    def cut(objective: Contrastive | Pairwise) -> Matryoshka:
        return Matryoshka(objective, sizes.dims, (1.0,) * len(sizes.dims))

    broad = {"default": (cut(Masked(margin=0.1, query_query=True, doc_doc=True, mask_labels=True)),)}
    first = stage("broad", base, tuple(Feed(s, answers=False) for s in given.pairs), broad, sizes, 0, seed)
    rules = (PositiveAbove(0.1), MarginToMean(0.0))
    mined = tuple(
        Mine(f"mined_{i}", first, s, rules=rules, count=sizes.count, seed=seed) for i, s in enumerate(given.retrieval)
    )
    rows = tuple(Shards(m, name=s.name) for m, s in zip(mined, given.retrieval, strict=True))
    kinds: dict[str, tuple[Objective, ...]] = {
        "retrieval": (cut(Quantised(Masked(margin=0.1))),),
        "sts": (cut(CoSENT()),),
        "classes": (cut(Quantised(Masked(margin=0.1, in_batch=False, negatives="own"))),),
    }
    feeds = (
        *(Feed(s, negatives=sizes.count, answers=False, objective="retrieval") for s in rows),
        *(Feed(s, objective="sts") for s in given.sts),
        *(Feed(s, negatives=sizes.count, answers=False, objective="classes") for s in given.classes),
    )
    second = stage("good", first, feeds, kinds, sizes, 1, seed)
    few = tuple(Take(s, sizes.taught, seed) for s in rows)
    scored = tuple(Scored(s, by=Judged(f"judged_{i}", s, judge)) for i, s in enumerate(few))
    taught = {"default": (cut(Quantised(SoftLabel(kind="ce", teacher_temperature=0.3))),)}
    third = stage(
        "taught", second, tuple(Feed(s, negatives=sizes.count, answers=False) for s in scored), taught, sizes, 2, seed
    )
    merged = Merge("merged", (second, third), rule=Slerp(0.5))
    scores = Evaluate("scores", merged, given.tests, baselines=(first, second, third))
    hub = base if isinstance(base, str) and base.count("/") == 1 else ""
    return (Release("release", merged, scores, title="Qwen3-VL-Embedding's recipe", base_model=hub),)


def stage(
    name: str,
    model: Step | str,
    feeds: tuple[Feed, ...],
    objectives: Mapping[str, tuple[Objective, ...]],
    sizes: Sizes,
    place: int,
    seed: int,
) -> Stage:
    return Stage(
        name,
        model,
        feeds,
        steps=sizes.steps[place],
        batch=sizes.batch[place],
        mix=BySize(),
        objectives=objectives,
        optimizer=AdamW(lr=sizes.lr[place], betas=sizes.betas, schedule=Schedule("linear", warmup=0.05)),
        temperature=sizes.temperature,
        attention="causal",
        pooling="last",
        lora=sizes.lora,
        limits=sizes.limits,
        precision=sizes.precision,
        workers=sizes.workers,
        seed=seed,
    )
