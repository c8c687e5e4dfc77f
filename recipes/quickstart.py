"""A small Qwen-VL becomes an embedder on a synthetic world, from nothing, on two cores in minutes.

    omni2vec quickstart                              # the same as: omni2vec run recipes/quickstart.py
    omni2vec run recipes/quickstart.py seed=1

Hardware: two CPU cores; about 240 s of processor time from the world to the checked release. World -> tiny model ->
captions -> all tasks, contrastive and next-token losses in one step -> scores on compositions never seen in training ->
a release folder that other programs load. Expected (seeds 0 and 1, docs/results/quickstart/): captions to pictures 71
and 77% of 150, classes 83 and 87%, questions 58 and 51% of eight answers, yes or no 76 and 75%, regions 64 and 69% of
nine, edits 26 and 31% of 870 pictures, similarity 79 and 77 (Spearman).
"""

from omni2vec.data.mix import Feed
from omni2vec.data.sources import Shards
from omni2vec.data.types import Limits
from omni2vec.data.world import World
from omni2vec.eval.evaluate import Evaluate
from omni2vec.launch.release import Release
from omni2vec.model.backbones.tiny import Tiny
from omni2vec.model.embedder import Fixed
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.stage import Stage

# Each task's share of the training batches.
SHARES = {
    "caption_to_image": 2.0,
    "image_to_caption": 3.0,
    "classes": 1.0,
    "vqa": 4.0,
    "yes_no": 2.0,
    "grounding": 2.0,
    "composed": 2.0,
    "paraphrase": 1.0,
}
# Given wrong answers that are drawn a row: where the other rows' documents are too easy.
WRONG = {"grounding": 2, "composed": 1}
SCORED = (*SHARES, "sts")


def recipe(see: int = 120, steps: int = 600, rows: int = 2000, test: int = 150, seed: int = 0) -> Release:
    """see, steps: training steps on captions, then on all tasks; rows, test: of each task, to train and to score on."""
    world = World(train=rows, test=test, tasks=SCORED, seed=seed)
    train = {task: Shards(world, f"train/{task}") for task in SHARES}
    # A patch of 16 pixels, four to a token: nine tokens a picture, one for each cell of the world's grid.
    sight = Limits(max_tokens=512, max_pixels=9 * 32 * 32, min_pixels=32 * 32)
    start = Tiny(
        tuple(train.values()),
        width=128,
        layers=3,
        heads=4,
        vision=96,
        patch=16,
        mean=0.96,
        std=0.25,
        limits=sight,
        seed=seed,
    )
    # One easy task first. A fresh model gives everything the same vector, and many tasks at once keep it there.
    captions = Stage(
        "captions",
        start,
        (Feed(train["caption_to_image"]),),
        steps=see,
        batch=32,
        objectives={"default": (InfoNCE(both=True),)},
        optimizer=AdamW(lr=7e-4, betas=(0.9, 0.98), schedule=Schedule("constant", warmup=10)),
        scale=Fixed(20.0),
        workers=1,
        seed=seed,
    )
    trained = Stage(
        "train",
        captions,
        tuple(Feed(train[task], share, negatives=WRONG.get(task, 0)) for task, share in SHARES.items()),
        steps=steps,
        batch=32,
        sub_batch=16,
        objectives={"default": (InfoNCE(both=True), NextToken(weight=1.0))},
        optimizer=AdamW(lr=7e-4, betas=(0.9, 0.98), schedule=Schedule("linear", warmup=10)),
        workers=1,
        seed=seed,
    )
    scores = Evaluate("scores", trained, tuple(Shards(world, f"test/{task}") for task in SCORED))
    return Release("release", trained, report=scores, title="omni2vec quickstart")
