"""A small Qwen-VL becomes an embedder on a synthetic world, from nothing, on two cores in minutes.

    omni2vec run recipes/quickstart.py

Expected: see docs/results/quickstart.json. World -> tiny model -> contrastive and next-token training in one step ->
scores on compositions never seen in training -> a release folder that other programs load.
"""

from omni2vec.data.mix import Feed
from omni2vec.data.sources import Shards
from omni2vec.data.types import Limits
from omni2vec.data.world import World
from omni2vec.eval.evaluate import Evaluate
from omni2vec.model.backbones.tiny import Tiny
from omni2vec.model.embedder import Learned
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.stage import Stage

# Each task's share of the training batches.
SHARES = {
    "caption_to_image": 3.0,
    "image_to_caption": 2.0,
    "classes": 1.0,
    "vqa": 3.0,
    "yes_no": 1.0,
    "grounding": 2.0,
    "composed": 2.0,
    "paraphrase": 1.0,
}
# Given wrong answers that are drawn a row: where the other rows' documents are too easy.
WRONG = {"grounding": 2, "composed": 1}
SCORED = (*SHARES, "sts")


def recipe(steps: int = 300, batch: int = 32, rows: int = 2000, test: int = 150, seed: int = 0) -> Evaluate:
    """steps: training steps; rows, test: rows of each task to train and to score on."""
    world = World(train=rows, test=test, tasks=SCORED, seed=seed)
    # A patch of 16 pixels, four to a token: nine tokens a picture, one for each cell of the world's grid.
    sight = Limits(max_tokens=512, max_pixels=9 * 32 * 32, min_pixels=32 * 32)
    start = Tiny(tuple(Shards(world, f"train/{t}") for t in SHARES), patch=16, limits=sight, seed=seed)
    feeds = tuple(
        Feed(Shards(world, f"train/{task}"), weight=share, negatives=WRONG.get(task, 0))
        for task, share in SHARES.items()
    )
    trained = Stage(
        "train",
        start,
        feeds,
        steps=steps,
        batch=batch,
        sub_batch=batch,
        objectives={"default": (InfoNCE(both=True), NextToken(weight=1.0))},
        optimizer=AdamW(lr=1e-3, weight_decay=0.01, schedule=Schedule("linear", warmup=20)),
        workers=1,
        scale=Learned(20.0),
        seed=seed,
    )
    return Evaluate("scores", trained, tuple(Shards(world, f"test/{t}") for t in SCORED))
