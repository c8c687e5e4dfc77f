"""LG-ANNA / LGAI-Embedding (arXiv:2506.07438): demonstrations, a reranker's soft labels, and a margin for negatives.

    omni2vec run recipes/lg_anna.py mini=true data=PATH/TO/SETS                            # on small sets, in minutes
    omni2vec run recipes/lg_anna.py base=mistralai/Mistral-7B-v0.1 judge=BAAI/bge-reranker-v2-m3 data=shards

A causal language model, its last token the vector, its queries behind demonstrations and an instruction. It begins with
graded pairs. Then candidates are found by words and by vectors together (ranks fused), a cross-encoder scores them,
negatives stay where they are clearly less like the query than the right answer, and the model learns both the right
answer and the cross-encoder's whole list.

data: shards by kind (docs/your_data.md): train/sts/* (scores "label"), train/retrieval/*, test/*. Hardware: 7 billion
weights with low-rank adapters: one GPU of 80 GB or several. No run at that size is known, no score is promised; the
paper's is 74.1 on MTEB (English, v2). Unverified: the soft-label loss, which the paper does not write down (a
divergence over each query's candidates, here), temperatures, ranks of the adapters, steps and rates, the loss of the
graded pairs (CoSENT), seven negatives of 200 candidates, and how many demonstrations there are. The paper's words have
the margin the wrong way round; here a negative stays where s(q, n) < 0.95 s(q, p). Demonstrations in the prompt cost
the paper's own model a point when it was scored; `shots=0` trains without.

mini: the same graph on small public sets (docs/your_data.md), from random weights; the judge is a model of the same
size that is first trained to say yes or no: two cores, minutes.
"""

from dataclasses import dataclass, field
from pathlib import Path

from omni2vec.data.asking import Asked
from omni2vec.data.convert.small import small
from omni2vec.data.mix import Feed
from omni2vec.data.scored import Scored
from omni2vec.data.sources import Shards, Take, below
from omni2vec.data.types import DataError, Limits, Source, Step
from omni2vec.eval.evaluate import Evaluate
from omni2vec.launch.release import Release
from omni2vec.model.backbones.tiny import Tiny
from omni2vec.model.lora import Lora
from omni2vec.train.engine import Precision
from omni2vec.train.judge import Judged, Judging
from omni2vec.train.judge_cross_encoder import CrossEncoder
from omni2vec.train.judge_vlm import YesNo
from omni2vec.train.mine import Mine
from omni2vec.train.objectives.cosent import CoSENT
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.objectives.soft_label import SoftLabel
from omni2vec.train.objectives.types import Objective
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.rules import PercentOfPositive
from omni2vec.train.stage import Stage
from omni2vec.train.words import Fused


@dataclass(frozen=True)
class Sizes:
    """What differs between a run of the paper's size and one of minutes."""

    steps: tuple[int, int] = (1000, 4000)
    batch: int = 512
    lr: float = 1e-4
    temperature: float = 0.02
    count: int = 7
    shots: int = 2
    lora: Lora | None = field(default_factory=lambda: Lora(rank=32, alpha=64.0))
    teacher_temperature: float = 1.0  # of a cross-encoder's logits
    max_tokens: int = 1024
    rows: int = 0  # of a source that are mined, judged and trained on; 0: all
    among: int = 200
    share: float = 0.95  # of the right answer's likeness that a negative stays below
    betas: tuple[float, float] = (0.9, 0.999)
    precision: Precision = "bf16"


def recipe(
    base: str = "", judge: str = "", data: str = "", mini: bool = False, shots: int = 2, seed: int = 0
) -> tuple[Step, ...]:
    """base: folder or hub name of a language model; judge: of a cross-encoder. shots: demonstrations in front of a
    query. mini: small sets, with sizes of their own."""
    if mini:
        return twin(data, seed)
    if not base or not judge:
        raise DataError("base=MODEL and judge=CROSS-ENCODER are needed, or mini=true for tiny ones on small sets")
    train = Path(data) / "train"
    sizes, tests = Sizes(shots=shots), below(Path(data) / "test")
    return graph(base, CrossEncoder(judge), below(train / "sts"), below(train / "retrieval"), tests, sizes, seed)


def twin(data: str, seed: int) -> tuple[Step, ...]:
    """Sentence pairs in English, then questions and others of the same intent. Cosines of so young a
    model lie close together: a negative need only be less like than the right answer."""
    sets = small(data, ("sts_en", "banking_same"))
    pairs, same = (s.train for s in sets.values())
    start = Tiny((pairs, same), width=128, layers=3, heads=4, vocabulary=4096, seed=seed)
    sizes = Sizes((80, 200), 32, 7e-4, 0.05, 3, 1, None, 0.3, 160, 1000, 1000, 1.0, (0.9, 0.98), "fp32")
    asked = (Feed(Asked(same)),)
    judge = stage("judge", start, asked, {"default": (NextToken(),)}, sizes, 200, seed)
    return graph(start, YesNo(judge), (pairs,), (same,), tuple(s.test for s in sets.values()), sizes, seed)


def graph(
    base: Step | str,
    judge: Judging,
    sts: tuple[Source, ...],
    retrieval: tuple[Source, ...],
    tests: tuple[Source, ...],
    sizes: Sizes,
    seed: int,
) -> tuple[Step, ...]:
    graded = tuple(Feed(s, answers=False) for s in sts)
    first = stage("graded", base, graded, {"default": (CoSENT(),)}, sizes, sizes.steps[0], seed)
    rows = []
    for i, source in enumerate(retrieval):
        some = Take(source, sizes.rows, seed) if sizes.rows else source
        rules = (PercentOfPositive(sizes.share),)
        near = Mine(f"mined_{i}", first, some, source, rules, sizes.count, sizes.among, fused=Fused(), seed=seed)
        found = Shards(near, name=source.name)
        rows.append(Scored(found, by=Judged(f"judged_{i}", found, judge)))
    learned = (InfoNCE(mask_labels=True), SoftLabel(teacher_temperature=sizes.teacher_temperature))
    hard = tuple(Feed(s, negatives=sizes.count, shots=sizes.shots, answers=False) for s in rows)
    second = stage("retrieval", first, hard, {"default": learned}, sizes, sizes.steps[1], seed)
    scores = Evaluate("scores", second, tests, baselines=(first,))
    hub = base if isinstance(base, str) and base.count("/") == 1 else ""
    return (Release("release", second, scores, title="LG-ANNA's recipe", base_model=hub),)


def stage(
    name: str,
    model: Step | str,
    feeds: tuple[Feed, ...],
    objectives: dict[str, tuple[Objective, ...]],
    sizes: Sizes,
    steps: int,
    seed: int,
) -> Stage:
    return Stage(
        name,
        model,
        feeds,
        steps=steps,
        batch=sizes.batch,
        objectives=objectives,
        optimizer=AdamW(lr=sizes.lr, betas=sizes.betas, schedule=Schedule("linear", warmup=0.05)),
        temperature=sizes.temperature,
        attention="causal",
        pooling="last",
        lora=sizes.lora,
        limits=Limits(max_tokens=sizes.max_tokens),
        precision=sizes.precision,
        workers=1,
        seed=seed,
    )
