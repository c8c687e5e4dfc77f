"""VLM2Vec-V2's recipe (arXiv:2507.04590) on its image tasks: sub-batches of one task each, interleaved in a batch.

    omni2vec run recipes/vlm2vec_v2.py mini=true data=PATH/TO/SETS                       # on small sets, in minutes
    omni2vec plan recipes/vlm2vec_v2.py base=Qwen/Qwen2-VL-2B-Instruct data=MMEB-train
    omni2vec run  recipes/vlm2vec_v2.py base=Qwen/Qwen2-VL-2B-Instruct data=MMEB-train
    omni2vec run  recipes/vlm2vec_v2.py base=... data=MMEB-train tasks=CIRR,NIGHTS steps=200     # two tasks, a try

data: a snapshot of TIGER-Lab/MMEB-train with its pictures unpacked, which is converted first (docs/your_data.md), or a
folder of shards that `omni2vec pack MMEB-train shards --set mmeb_train` made. Hardware: the paper trained on 8 GPUs of
80 GB; the step is cached, so one GPU gives the same batches and takes eight times as long. No run of this recipe on the
whole set is known yet, so no score is promised; the paper's own, with video and visual documents in the mix, is 64.9 on
MMEB's 36 image tasks. Those two kinds are not in this mix: their training sets have no converter here. Unverified: rate
and warm-up, which are as the public training script had them when the mix below was read.

mini: the same graph on the pictures of small public sets (docs/your_data.md), from random weights: two cores, minutes.
"""

from dataclasses import dataclass

from omni2vec.data.convert.mmeb_train import sources
from omni2vec.data.convert.small import small
from omni2vec.data.mix import Feed
from omni2vec.data.sources import Rest, Take
from omni2vec.data.types import DataError, Limits, Source, Step
from omni2vec.eval.evaluate import Evaluate
from omni2vec.launch.release import Release
from omni2vec.model.backbones.tiny import Tiny
from omni2vec.model.lora import Lora
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.stage import Stage


@dataclass(frozen=True)
class Share:
    """How many rows of a task are used at most, and its share of the sub-batches."""

    rows: int
    weight: float


# The published mix of the image tasks: github.com/TIGER-AI-Lab/VLM2Vec, experiments/public/train/train_alltasks.yaml,
# as of January 2026. It takes the first rows of a table; here they are drawn, and always the same.
MIX = {
    "ImageNet_1K": Share(100_000, 1.0),
    "N24News": Share(50_000, 1.0),
    "HatefulMemes": Share(10_000, 0.5),
    "VOC2007": Share(10_000, 0.5),
    "SUN397": Share(20_000, 0.5),
    "OK-VQA": Share(10_000, 0.5),
    "A-OKVQA": Share(20_000, 0.5),
    "DocVQA": Share(40_000, 1.0),
    "InfographicsVQA": Share(25_000, 0.5),
    "ChartQA": Share(28_000, 0.5),
    "Visual7W": Share(70_000, 1.0),
    "VisDial": Share(130_000, 1.0),
    "CIRR": Share(30_000, 0.5),
    "VisualNews_t2i": Share(100_000, 1.0),
    "VisualNews_i2t": Share(100_000, 1.0),
    "MSCOCO_t2i": Share(100_000, 1.0),
    "MSCOCO_i2t": Share(120_000, 1.0),
    "NIGHTS": Share(20_000, 0.5),
    "WebQA": Share(20_000, 0.5),
    "MSCOCO": Share(100_000, 1.0),
}
# Of these a row's own answers are no pool: to score them takes the benchmark's candidates.
UNSCORED = ("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W", "MSCOCO")

MINI = {
    "emoji_picture": Share(3000, 1.0),
    "emoji_name": Share(3000, 1.0),
    "clothing_classes": Share(4000, 2.0),
    "cells_classes": Share(300, 0.5),
    "cells_grounding": Share(300, 0.5),
}


def recipe(
    base: str = "",
    data: str = "",
    mini: bool = False,
    tasks: tuple[str, ...] = tuple(MIX),
    steps: int = 5000,
    batch: int = 1024,
    sub_batch: int = 64,
    lr: float = 5e-5,
    held: int = 200,
    seed: int = 0,
) -> tuple[Step, ...]:
    """base: folder or hub name. tasks: of the mix. batch: of all GPUs together, in sub-batches of one task each. held:
    rows of a task that are not trained on but scored, where a task can be; 0 for none. mini: small sets, with steps,
    batch and rates of their own."""
    if mini:
        return twin(data, seed)
    unknown = [t for t in tasks if t not in MIX]
    if unknown or not tasks:
        raise DataError(f"tasks={','.join(tasks)}: the mix has {', '.join(MIX)}")
    if not base:
        raise DataError(
            "no model to start from; base=FOLDER or a hub's name, or mini=true for a tiny one on small sets"
        )
    whole = sources(data, tasks)
    train: dict[str, Source] = {t: Rest(s, held, seed) for t, s in whole.items()} if held else whole
    trained = Stage(
        "train",
        base,
        feeds(train, {t: MIX[t] for t in tasks}, seed),
        steps=steps,
        batch=batch,
        sub_batch=sub_batch,
        objectives={"default": (InfoNCE(across_sources=True),)},  # a batch of many tasks is one set of negatives
        temperature=0.02,
        pooling="last",
        optimizer=AdamW(lr=lr, schedule=Schedule("linear", warmup=100)),
        lora=Lora(rank=16, alpha=32.0),
        precision="bf16",
        save_every=100,
        keep=2,
        workers=4,
        seed=seed,
    )
    # Rows held back from the same tables, whose pictures may be trained on in other rows: this shows that training
    # works. The benchmark's own test rows say how well.
    scored = tuple(Take(whole[t], held, seed) for t in tasks if held and t not in UNSCORED)
    scores = Evaluate("scores", trained, scored, baselines=(base,)) if scored else None
    hub = base if base.count("/") == 1 else ""
    return (Release("release", trained, scores, base_model=hub, datasets=("TIGER-Lab/MMEB-train",)),)


def feeds(train: dict[str, Source], mix: dict[str, Share], seed: int) -> tuple[Feed, ...]:
    """The set's answers serve as targets; nothing is generated."""
    return tuple(Feed(Take(train[t], s.rows, seed), s.weight, answers=False) for t, s in mix.items())


def twin(data: str, seed: int) -> tuple[Step, ...]:
    """Five tasks with pictures. A batch of 64 in sub-batches of 16 keeps the paper's proportions of neither, but its
    idea. All weights are trained, for they begin at random, and at a temperature that such weights bear."""
    sets = small(data, tuple(MINI))
    train: dict[str, Source] = {t: s.train for t, s in sets.items()}
    sight = Limits(max_tokens=160, max_pixels=16 * 24 * 24, min_pixels=4 * 24 * 24)
    start = Tiny(tuple(train.values()), width=128, layers=3, heads=4, vision=96, patch=12, limits=sight, seed=seed)
    trained = Stage(
        "train",
        start,
        feeds(train, MINI, seed),
        steps=400,
        batch=64,
        sub_batch=16,
        # Classes repeat: rows of one class are no negatives of each other.
        objectives={"default": (InfoNCE(across_sources=True, mask_labels=True),)},
        temperature=0.05,
        pooling="last",
        optimizer=AdamW(lr=7e-4, betas=(0.9, 0.98), schedule=Schedule("linear", warmup=20)),
        workers=1,
        seed=seed,
    )
    scores = Evaluate("scores", trained, tuple(s.test for s in sets.values()))
    return (Release("release", trained, scores, title="VLM2Vec-V2, in miniature"),)
