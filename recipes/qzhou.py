"""QZhou-Embedding's recipe (arXiv:2508.21632): first to search, then every task, each kind by its own loss.

    omni2vec run recipes/qzhou.py mini=true data=PATH/TO/SETS                              # on small sets, in minutes
    omni2vec run recipes/qzhou.py base=Qwen/Qwen2.5-7B-Instruct data=shards

The first stage is retrieval alone; its denominator also holds the query against the batch's other queries. The second
adds graded pairs, by CoSENT, and classes, whose equals are no negatives of each other. Every step is of one source.
Attention goes both ways and the mean is the vector.

data: shards by kind (docs/your_data.md): train/retrieval/*, train/sts/* (scores "label"), train/classes/* (labels),
test/*, with hard negatives where you have them. The paper's own data were rewritten and extended by a language model,
which is no part of this. Hardware: 7 billion weights in bf16, all of them trained: 8 GPUs of 80 GB with
train_all.zero=... (docs/ranks.md). No run at that size is known, no score is promised; the paper's is 75.97 on MTEB
(English, v2), second-hand. Unverified: the numbers of its table, whose columns are shifted in the text that could be
read: 32,000 and 8,000 steps, rates of 3e-5 and 2e-5, batches of 256 and of 768 pairs, a warm-up of 300, temperature
0.02. Seven negatives a row and AdamW are ours, and queries are not cut at 256 tokens.

mini: the same graph on small public sets (docs/your_data.md), from random weights: two cores, minutes.
"""

from dataclasses import dataclass
from math import inf
from pathlib import Path

from omni2vec.data.convert.small import small
from omni2vec.data.mix import Feed, Specialised
from omni2vec.data.sources import below
from omni2vec.data.templates import family
from omni2vec.data.types import DataError, Limits, Source, Step
from omni2vec.eval.evaluate import Evaluate
from omni2vec.launch.release import Release
from omni2vec.model.backbones.tiny import Tiny
from omni2vec.train.engine import Precision
from omni2vec.train.objectives.cosent import CoSENT
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.masked import Masked
from omni2vec.train.objectives.types import Objective
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.stage import Stage


@dataclass(frozen=True)
class Sizes:
    """What differs between a run of the paper's size and one of minutes."""

    steps: tuple[int, int] = (32_000, 8_000)
    lr: tuple[float, float] = (3e-5, 2e-5)
    batch: int = 256
    pairs: int = 768
    warmup: int = 300
    temperature: float = 0.02
    negatives: int = 7
    betas: tuple[float, float] = (0.9, 0.999)
    precision: Precision = "bf16"


@dataclass(frozen=True)
class Data:
    retrieval: tuple[Source, ...]
    sts: tuple[Source, ...]
    classes: tuple[Source, ...]
    tests: tuple[Source, ...]


def recipe(base: str = "", data: str = "", mini: bool = False, seed: int = 0) -> tuple[Step, ...]:
    """base: folder or hub name of a language model. mini: small sets, with sizes of their own."""
    if mini:
        return twin(data, seed)
    if not base:
        raise DataError(
            "no model to start from; base=FOLDER or a hub's name, or mini=true for a tiny one on small sets"
        )
    train = Path(data) / "train"
    given = Data(below(train / "retrieval"), below(train / "sts"), below(train / "classes"), below(Path(data) / "test"))
    return graph(base, given, Sizes(), seed)


def twin(data: str, seed: int) -> tuple[Step, ...]:
    """Questions of equal intent, sentence pairs in two languages, and questions with their intents."""
    sets = small(data, ("banking_same", "sts_en", "sts_de", "banking_intents"))
    same, english, german, intents = (s.train for s in sets.values())
    given = Data((same,), (english, german), (intents,), tuple(s.test for s in sets.values()))
    start = Tiny((same, english, german, intents), width=128, layers=3, heads=4, vocabulary=4096, seed=seed)
    sizes = Sizes((120, 240), (7e-4, 7e-4), 32, 64, 10, 0.05, 1, (0.9, 0.98), "fp32")
    return graph(start, given, sizes, seed)


def graph(base: Step | str, given: Data, sizes: Sizes, seed: int) -> tuple[Step, ...]:
    told = family("qzhou")
    searched = tuple(
        Feed(
            s, negatives=sizes.negatives, objective="retrieval", sub_batch=sizes.batch, instructions=told, answers=False
        )
        for s in given.retrieval
    )
    graded = tuple(Feed(s, objective="sts", sub_batch=sizes.pairs, instructions=told, answers=False) for s in given.sts)
    sorted_ = tuple(
        Feed(s, objective="classes", sub_batch=sizes.batch, instructions=told, answers=False) for s in given.classes
    )
    first = stage("retrieval", base, searched, sizes, 0, seed)
    every = stage("every", first, (*searched, *graded, *sorted_), sizes, 1, seed)
    scores = Evaluate("scores", every, given.tests, baselines=(first,))
    hub = base if isinstance(base, str) and base.count("/") == 1 else ""
    return (Release("release", every, scores, title="QZhou-Embedding's recipe", base_model=hub),)


def stage(name: str, model: Step | str, feeds: tuple[Feed, ...], sizes: Sizes, place: int, seed: int) -> Stage:
    objectives: dict[str, tuple[Objective, ...]] = {
        "retrieval": (Masked(margin=inf, query_query=True),),
        "sts": (CoSENT(),),
        "classes": (InfoNCE(mask_labels=True),),
    }
    used = {f.objective for f in feeds}
    return Stage(
        name,
        model,
        feeds,
        steps=sizes.steps[place],
        batch=sizes.batch,
        mix=Specialised(steps=1),
        objectives={k: v for k, v in objectives.items() if k in used},
        optimizer=AdamW(lr=sizes.lr[place], betas=sizes.betas, schedule=Schedule("linear", warmup=sizes.warmup)),
        temperature=sizes.temperature,
        attention="bidirectional",
        pooling="mean",
        limits=Limits(max_tokens=1536),  # of a passage; the paper cuts queries at 256
        precision=sizes.precision,
        workers=1,
        seed=seed,
    )
