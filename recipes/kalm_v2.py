"""KaLM-Embedding-V2 and V2.5 (arXiv:2506.20923): weak pairs, then hard negatives, then a larger model's likenesses.

    omni2vec run recipes/kalm_v2.py mini=true data=PATH/TO/SETS                            # on small sets, in minutes
    omni2vec run recipes/kalm_v2.py base=Qwen/Qwen2-0.5B-Instruct teacher=Qwen/Qwen3-Embedding-8B data=shards

A small language model without its causal mask, mean pooling. First pairs in great number, with a batch's documents as
the only negatives. Then mined negatives in small batches, with a loss that looks away from what is easy already (focal)
and negatives that are mixed from the mined ones in the space of vectors. At last the same, beside a divergence from the
likenesses that a larger embedder sees in the batch. In both later stages every prefix of the vector is trained
(Matryoshka).

data: shards by kind (docs/your_data.md): train/weak/*, train/tasks/*, test/*. Negatives are mined here, by the model of
the first stage, at ranks 50 to 100, from rows whose right answer is among the first 50. Hardware: 0.5 billion weights;
the paper's first stage saw 470 million pairs, and one GPU of 80 GB takes weeks for them. No run at that size is known,
no score is promised; the paper's are 67.47 (V2) and 69.33 (V2.5) on MTEB in English, 68.15 and 70.93 in Chinese.
Unverified: gamma of the focal loss (0.5 here), whether its weight and the mixed negatives carry a gradient (not the
first, the second does), batch and steps of the stages, the rate of the first, and how sources share it (by size). Left
out: the sampler of half-homogeneous batches, exemplars as labels of classes, and the paper's own prompt. The published
code holds neither focal loss, nor mixing, nor distillation: they are after the formulas.

mini: the same graph on small public sets (docs/your_data.md), from random weights, with a teacher twice as wide that is
trained first: two cores, minutes.
"""

from dataclasses import dataclass
from pathlib import Path

from omni2vec.data.convert.small import small
from omni2vec.data.mix import BySize, Feed
from omni2vec.data.sources import AtLeast, Shards, below
from omni2vec.data.types import DataError, Limits, Source, Step
from omni2vec.eval.evaluate import Evaluate
from omni2vec.launch.release import Release
from omni2vec.model.backbones.tiny import Tiny
from omni2vec.train.engine import Precision
from omni2vec.train.mine import Mine
from omni2vec.train.objectives.focal import Focal
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.matryoshka import Matryoshka
from omni2vec.train.objectives.mixing import Mixing
from omni2vec.train.objectives.similarity import Similarity
from omni2vec.train.objectives.types import Objective
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.rules import Consistent, PercentOfPositive, RankRange
from omni2vec.train.stage import Stage
from omni2vec.train.vectors import Embedded

WEIGHTS = (1.0, 0.3, 0.2, 0.1, 0.1)  # of the prefixes, the whole vector first


@dataclass(frozen=True)
class Sizes:
    """What differs between a run of the paper's size and one of minutes."""

    steps: tuple[int, int, int] = (100_000, 12_000, 4_000)
    batch: tuple[int, int, int] = (2048, 384, 384)
    lr: tuple[float, float, float] = (1e-4, 1e-5, 1e-5)
    dims: tuple[int, ...] = (0, 512, 256, 128, 64)
    temperature: float = 0.01
    count: int = 7
    rules: tuple[RankRange | Consistent | PercentOfPositive, ...] = (Consistent(50), RankRange(50, 100))
    among: int = 200  # nearest documents that the rules choose from
    betas: tuple[float, float] = (0.9, 0.999)
    precision: Precision = "bf16"


def recipe(base: str = "", teacher: str = "", data: str = "", mini: bool = False, seed: int = 0) -> tuple[Step, ...]:
    """base: folder or hub name of a language model; teacher: of an embedder. mini: small sets, with sizes of their
    own."""
    if mini:
        return twin(data, seed)
    if not base or not teacher:
        raise DataError("base=MODEL and teacher=EMBEDDER are needed, or mini=true for tiny ones on small sets")
    train = Path(data) / "train"
    return graph(
        base, teacher, below(train / "weak"), below(train / "tasks"), below(Path(data) / "test"), Sizes(), seed
    )


def twin(data: str, seed: int) -> tuple[Step, ...]:
    """Sentences of equal meaning in two languages are the weak pairs; questions of equal intent the task. Negatives are
    the nearest of another intent that are less like than the right answer: cosines of so young a model lie too close
    together for a share of them."""
    sets = small(data, ("sts_en", "sts_de", "banking_same"))
    english, german, same = sets.values()
    weak: tuple[Source, ...] = (AtLeast(english.train), AtLeast(german.train))
    sizes = Sizes(
        steps=(100, 200, 100),
        batch=(64, 32, 32),
        lr=(7e-4, 7e-4, 3e-4),
        dims=(0, 64, 32, 16, 8),
        temperature=0.05,
        count=3,
        rules=(PercentOfPositive(1.0),),
        among=500,
        betas=(0.9, 0.98),
        precision="fp32",
    )
    read = (*weak, same.train)
    start = Tiny(read, width=128, layers=3, heads=4, vocabulary=4096, seed=seed)
    wide = Tiny(read, name="wide", width=256, layers=3, heads=4, vocabulary=4096, seed=seed)
    teacher = stage("teacher", wide, tuple(Feed(s) for s in read), (InfoNCE(mask_labels=True),), sizes, 1, seed)
    return graph(start, teacher, weak, (same.train,), tuple(s.test for s in sets.values()), sizes, seed)


def graph(
    base: Step | str,
    teacher: Step | str,
    weak: tuple[Source, ...],
    tasks: tuple[Source, ...],
    tests: tuple[Source, ...],
    sizes: Sizes,
    seed: int,
) -> tuple[Step, ...]:
    paired = tuple(Feed(s) for s in weak)
    first = stage("weak", base, paired, (InfoNCE(),), sizes, 0, seed)
    mined = tuple(
        Mine(f"mined_{i}", first, s, rules=sizes.rules, count=sizes.count, among=sizes.among, seed=seed)
        for i, s in enumerate(tasks)
    )
    rows = tuple(Shards(m, name=s.name) for m, s in zip(mined, tasks, strict=True))
    hard = tuple(Feed(s, negatives=sizes.count) for s in rows)
    focal = Matryoshka(Mixing(Focal(gamma=0.5, mask_labels=True), kind="both"), sizes.dims, WEIGHTS)
    second = stage("hard", first, hard, (focal,), sizes, 1, seed)
    seen = Embedded("seen", teacher, rows)
    alike = Matryoshka(Similarity(seen, kind="rows"), sizes.dims, WEIGHTS)
    third = stage("taught", second, hard, (focal, alike), sizes, 2, seed)
    scores = Evaluate("scores", third, tests, baselines=(first, second))
    hub = base if isinstance(base, str) and base.count("/") == 1 else ""
    return (Release("release", third, scores, title="KaLM-Embedding-V2.5's recipe", base_model=hub),)


def stage(
    name: str,
    model: Step | str,
    feeds: tuple[Feed, ...],
    objectives: tuple[Objective, ...],
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
        objectives={"default": objectives},
        optimizer=AdamW(lr=sizes.lr[place], betas=sizes.betas, schedule=Schedule("linear", warmup=0.1)),
        temperature=sizes.temperature,
        attention="bidirectional",
        pooling="mean",
        limits=Limits(max_tokens=512),
        precision=sizes.precision,
        workers=1,
        seed=seed,
    )
