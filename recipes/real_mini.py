"""Seven small public sets of texts and pictures train one tiny Qwen-VL from random weights.

    omni2vec run recipes/real_mini.py data=PATH/TO/SETS

Hardware: one CPU core, 13 minutes. Expected (docs/results/real_mini/table.md; majority class in brackets): banking
intents 75% (2), emoji categories 50% (15), clothing 48% (24), cells 97% (40), sts 58 in English and 51 in German
(Spearman), emoji name to picture 27% of 688. `data` is a folder that holds emoji, clothing, banking, sts, nlvr, cells
and receipts (docs/your_data.md says what they are). The test splits are scored once, at the end; to choose settings,
`held=100` keeps so many training rows of each task apart and scores on those instead.
"""

from dataclasses import dataclass

from omni2vec.data.convert.small import small
from omni2vec.data.mix import Feed
from omni2vec.data.sources import AtLeast, Rest, Take
from omni2vec.data.types import Limits, Source, Step
from omni2vec.eval.evaluate import Evaluate
from omni2vec.launch.release import Release
from omni2vec.model.backbones.tiny import Tiny
from omni2vec.model.embedder import Fixed
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.stage import Stage


@dataclass(frozen=True)
class Share:
    """A task's share of the training batches, and how many given wrong answers are drawn a row."""

    weight: float
    wrong: int = 0


SHARES = {
    "emoji_picture": Share(4, wrong=1),
    "emoji_name": Share(4),
    "emoji_category": Share(2),
    "emoji_composed": Share(1, wrong=2),
    "clothing_classes": Share(20),
    "clothing_same": Share(2),
    "banking_intents": Share(5),
    "banking_same": Share(1),
    "sts_en": Share(1),
    "sts_de": Share(1),
    "nlvr": Share(1, wrong=1),
    "cells_grounding": Share(1, wrong=4),
    "cells_classes": Share(1),
    "cells_count": Share(1, wrong=3),
    "receipts_pages": Share(1),
    "receipts_qa": Share(1, wrong=3),
}
GRADED = ("sts_en", "sts_de")
# Classes repeat within a batch: rows of one class are no negatives of each other.
OBJECTIVES = (InfoNCE(both=True, mask_labels=True), NextToken(weight=1.0))


def recipe(data: str = "", steps: int = 3200, batch: int = 32, held: int = 0, seed: int = 0) -> tuple[Step, ...]:
    """data: the folder of the sets; steps, batch: of training; held: training rows of a task to score on instead."""
    sets = small(data, tuple(SHARES))
    train: dict[str, Source] = {t: Rest(s.train, held) if held else s.train for t, s in sets.items()}
    tests = [Take(s.train, held) if held else s.test for s in sets.values()]
    # At most 4 x 4 tokens a picture. Most of these pictures stand on a light ground, so that is the pixels' mean.
    sight = Limits(max_tokens=160, max_pixels=16 * 24 * 24, min_pixels=4 * 24 * 24)
    start = Tiny(
        tuple(train.values()),
        width=128,
        layers=3,
        heads=4,
        vision=96,
        patch=12,
        mean=0.8,
        std=0.3,
        vocabulary=4096,
        limits=sight,
        seed=seed,
    )
    feeds = tuple(
        Feed(AtLeast(source) if task in GRADED else source, share.weight, negatives=share.wrong)
        for (task, source), share in zip(train.items(), SHARES.values(), strict=True)
    )
    trained = Stage(
        "train",
        start,
        feeds,
        steps=steps,
        batch=batch,
        objectives={"default": OBJECTIVES},
        optimizer=AdamW(lr=7e-4, betas=(0.9, 0.98), schedule=Schedule("linear", warmup=20)),
        scale=Fixed(20.0),
        workers=1,
        seed=seed,
    )
    scores = Evaluate("scores", trained, tuple(tests))
    return (Release("release", trained, report=scores, title="omni2vec real mini", languages=("en", "de")),)
