"""CoDiEmb's recipe (arXiv:2508.11442): retrieval and graded similarity in one model, each by its own loss, then fused.

    omni2vec run recipes/codiemb.py mini=true data=PATH/TO/SETS                            # on small sets, in minutes
    omni2vec run recipes/codiemb.py base=openbmb/MiniCPM-Embedding data=shards

Each step is of one source, retrieval or graded pairs, with a batch of its own size. Retrieval rows meet all documents
of the step, several right answers each against the wrong ones alone. Graded pairs learn by three losses on the ranking
of their cosines (Pearson, a divergence of ranks, pairwise preferences) and, for pairs of the highest scores, by a
contrastive one at the middle layer. Attention goes both ways and the mean is the vector. A model trained so, and one
trained on graded pairs alone from there, are fused tensor by tensor, by how far each has moved.

data: shards by kind (docs/your_data.md): train/retrieval/*, train/sts/* (scores "label"), test/*. Hardware: the paper
has 28 retrieval rows and 32 pairs a GPU; `batch` and `pairs` are of all GPUs together, 8 by default. No run at that
size is known, no score is promised. Unverified: how the fusion weighs tensors (the paper names it and its code has
none; ours is by distance), and which checkpoints it fuses. The threshold 1.0 of the middle layer's pairs is the
paper's; `least` is in the units of your labels. The paper ranks the 32 pairs of a GPU among themselves; here all of a
step are ranked together. Steps stand in place of its four epochs, and a tenth of them for the graded pairs alone; both
are ours.

mini: the same graph on small public sets (docs/your_data.md), from random weights: two cores, minutes.
"""

from dataclasses import dataclass
from pathlib import Path

from omni2vec.data.convert.small import small
from omni2vec.data.mix import Feed, Specialised
from omni2vec.data.sources import below
from omni2vec.data.types import DataError, Limits, Source, Step
from omni2vec.eval.evaluate import Evaluate
from omni2vec.launch.release import Release
from omni2vec.model.backbones.tiny import Tiny
from omni2vec.model.merge.delta_guided import DeltaGuided
from omni2vec.train.engine import Precision
from omni2vec.train.fuse import Merge
from omni2vec.train.objectives.above import Above
from omni2vec.train.objectives.at_layer import AtLayer
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.pearson import Pearson
from omni2vec.train.objectives.pro import PRO
from omni2vec.train.objectives.rank_kl import RankKL
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.stage import Stage


@dataclass(frozen=True)
class Sizes:
    """What differs between a run of the paper's size and one of minutes."""

    steps: int
    more: int  # steps on graded pairs alone
    batch: int
    pairs: int
    lr: float
    temperature: float
    least: float  # label from which a pair is a right answer
    betas: tuple[float, float] = (0.9, 0.999)
    precision: Precision = "bf16"


def recipe(
    base: str = "",
    data: str = "",
    mini: bool = False,
    steps: int = 10_000,
    batch: int = 224,
    pairs: int = 256,
    least: float = 1.0,
    seed: int = 0,
) -> tuple[Step, ...]:
    """base: folder or hub name of a language model. batch: retrieval rows of a step; pairs: graded ones. mini: small
    sets, with sizes of their own."""
    if mini:
        return twin(data, seed)
    if not base:
        raise DataError(
            "no model to start from; base=FOLDER or a hub's name, or mini=true for a tiny one on small sets"
        )
    sizes = Sizes(steps, steps // 10, batch, pairs, lr=4e-5, temperature=0.02, least=least)
    train = Path(data) / "train"
    return graph(base, below(train / "retrieval"), below(train / "sts"), below(Path(data) / "test"), sizes, seed)


def twin(data: str, seed: int) -> tuple[Step, ...]:
    """Questions of equal intent for retrieval; sentence pairs in two languages, labelled 0 to 1."""
    sets = small(data, ("banking_same", "sts_en", "sts_de"))
    same, *graded = (s.train for s in sets.values())
    start = Tiny((same, *graded), width=128, layers=4, heads=4, vocabulary=4096, seed=seed)
    sizes = Sizes(
        steps=300,
        more=60,
        batch=32,
        pairs=64,
        lr=7e-4,
        temperature=0.05,
        least=0.8,
        betas=(0.9, 0.98),
        precision="fp32",
    )
    tests = tuple(s.test for s in sets.values())
    return graph(start, (same,), tuple(graded), tests, sizes, seed)


def graph(
    base: Step | str,
    retrieval: tuple[Source, ...],
    sts: tuple[Source, ...],
    tests: tuple[Source, ...],
    sizes: Sizes,
    seed: int,
) -> tuple[Step, ...]:
    """One stage on both kinds, one more on graded pairs, and what they are fused to."""
    searched = tuple(Feed(s, positives=2, negatives=4, objective="retrieval", sub_batch=sizes.batch) for s in retrieval)
    graded = tuple(Feed(s, objective="sts", sub_batch=sizes.pairs) for s in sts)
    together = stage("together", base, (*searched, *graded), sizes, sizes.steps, seed)
    pairs = stage("pairs", together, graded, sizes, sizes.more, seed)
    fused = Merge("fused", (together, pairs), rule=DeltaGuided(), base=base)
    scores = Evaluate("scores", fused, tests, baselines=(together, pairs))
    hub = base if isinstance(base, str) and base.count("/") == 1 else ""
    return (Release("release", fused, scores, title="CoDiEmb's recipe", base_model=hub),)


def stage(name: str, model: Step | str, feeds: tuple[Feed, ...], sizes: Sizes, steps: int, seed: int) -> Stage:
    """A step is of one source, so that a batch is of its kind's size."""
    objectives = {
        "retrieval": (InfoNCE(),),
        "sts": (AtLayer(Above(InfoNCE(), sizes.least)), Pearson(weight=2.0), RankKL(weight=5.0), PRO(weight=0.5)),
    }
    used = {f.objective for f in feeds}
    return Stage(
        name,
        model,
        feeds,
        steps=steps,
        batch=max(sizes.batch, sizes.pairs),
        mix=Specialised(steps=1),
        objectives={k: v for k, v in objectives.items() if k in used},
        optimizer=AdamW(lr=sizes.lr, betas=sizes.betas, schedule=Schedule("linear", warmup=0.03)),
        temperature=sizes.temperature,
        attention="bidirectional",
        pooling="mean",
        limits=Limits(max_tokens=1024),
        precision=sizes.precision,
        workers=1,
        seed=seed,
    )
