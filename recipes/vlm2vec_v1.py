"""VLM2Vec's first recipe (arXiv:2410.05160): any task as ranking, 20 sets in mixed batches of 1,024, low-rank adapters.

    omni2vec run recipes/vlm2vec_v1.py mini=true data=PATH/TO/SETS                       # on small sets, in minutes
    omni2vec plan recipes/vlm2vec_v1.py base=Qwen/Qwen2-VL-2B-Instruct data=MMEB-train
    omni2vec run  recipes/vlm2vec_v1.py base=Qwen/Qwen2-VL-2B-Instruct data=MMEB-train

Every row of a batch may be of another task, and all documents of a batch are negatives; the last token's state is the
vector. At most 50,000 rows of a set are used. The original wording of the instructions is the set's own
(version="original" of the converter).

data: a snapshot of TIGER-Lab/MMEB-train with its pictures unpacked, or shards of it (docs/your_data.md). Hardware: the
paper trained on 8 GPUs of 80 GB; the step is cached, so fewer give the same batches. No run of this recipe on the whole
set is known yet: no score is promised. The paper's own on MMEB's 36 tasks: 60.1 with Phi-3.5-V; reports of a 2 billion
Qwen2-VL vary from 59.3 to 60.1. Unverified here: the adapters' learning rate (2e-5) and the warm-up, which the public
scripts and the paper do not give alike.

mini: the same graph on the pictures of small public sets (docs/your_data.md), from random weights: two cores, minutes.
"""

from omni2vec.data.convert.mmeb_train import sources
from omni2vec.data.convert.small import small
from omni2vec.data.mix import BySize, Feed
from omni2vec.data.sources import Rest, Take
from omni2vec.data.types import DataError, Limits, Source, Step
from omni2vec.eval.evaluate import Evaluate
from omni2vec.launch.release import Release
from omni2vec.model.backbones.tiny import Tiny
from omni2vec.model.lora import Lora
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.stage import Stage

TASKS = (
    *("ImageNet_1K", "N24News", "HatefulMemes", "VOC2007", "SUN397"),
    *("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"),
    *("VisDial", "CIRR", "VisualNews_t2i", "VisualNews_i2t", "MSCOCO_t2i", "MSCOCO_i2t", "NIGHTS", "WebQA"),
    "MSCOCO",
)
# Of these a row's own answers are no pool: to score them takes the benchmark's candidates.
UNSCORED = ("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W", "MSCOCO")
MINI = ("emoji_picture", "emoji_name", "clothing_classes", "cells_classes", "cells_grounding")


def recipe(
    base: str = "",
    data: str = "",
    mini: bool = False,
    rows: int = 50_000,
    steps: int = 2000,
    batch: int = 1024,
    lr: float = 2e-5,
    held: int = 200,
    seed: int = 0,
) -> tuple[Step, ...]:
    """base: folder or hub name. rows: of a task at most. batch: of all GPUs together. held: rows of a task that are not
    trained on but scored, where a task can be; 0 for none. mini: small sets, with steps, batch and rates of their
    own."""
    if mini:
        return twin(data, seed)
    if not base:
        raise DataError(
            "no model to start from; base=FOLDER or a hub's name, or mini=true for a tiny one on small sets"
        )
    whole = sources(data, TASKS)
    train: dict[str, Source] = {t: Rest(s, held, seed) for t, s in whole.items()} if held else whole
    trained = Stage(
        "train",
        base,
        tuple(Feed(Take(s, rows, seed), answers=False) for s in train.values()),
        steps=steps,
        batch=batch,
        sub_batch=1,
        mix=BySize(alpha=1.0),  # rows of all sets in one pot
        objectives={"default": (InfoNCE(across_sources=True),)},
        temperature=0.02,
        pooling="last",
        optimizer=AdamW(lr=lr, schedule=Schedule("linear", warmup=200)),
        lora=Lora(rank=8, alpha=16.0),
        precision="bf16",
        save_every=100,
        keep=2,
        workers=4,
        seed=seed,
    )
    scored = tuple(Take(whole[t], held, seed) for t in TASKS if held and t not in UNSCORED)
    scores = Evaluate("scores", trained, scored, baselines=(base,)) if scored else None
    hub = base if base.count("/") == 1 else ""
    return (Release("release", trained, scores, base_model=hub, datasets=("TIGER-Lab/MMEB-train",)),)


def twin(data: str, seed: int) -> tuple[Step, ...]:
    """Five tasks with pictures in mixed batches. All weights are trained, for they begin at random, and at a
    temperature that such weights bear."""
    sets = small(data, MINI)
    train: tuple[Source, ...] = tuple(s.train for s in sets.values())
    sight = Limits(max_tokens=160, max_pixels=16 * 24 * 24, min_pixels=4 * 24 * 24)
    start = Tiny(train, width=128, layers=3, heads=4, vision=96, patch=12, limits=sight, seed=seed)
    trained = Stage(
        "train",
        start,
        tuple(Feed(source, answers=False) for source in train),
        steps=400,
        batch=64,
        sub_batch=1,
        mix=BySize(alpha=1.0),
        # Classes repeat: rows of one class are no negatives of each other.
        objectives={"default": (InfoNCE(across_sources=True, mask_labels=True),)},
        temperature=0.05,
        pooling="last",
        optimizer=AdamW(lr=7e-4, betas=(0.9, 0.98), schedule=Schedule("linear", warmup=20)),
        workers=1,
        seed=seed,
    )
    scores = Evaluate("scores", trained, tuple(s.test for s in sets.values()))
    return (Release("release", trained, scores, title="VLM2Vec, in miniature"),)
