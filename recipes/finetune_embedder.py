"""A released embedder (or a plain VLM) learns from your own pairs, is scored beside its base, and released again.

    omni2vec run recipes/finetune_embedder.py model=Qwen/Qwen3-VL-Embedding-2B data=shards

data: a folder of shards made with `omni2vec pack`, train/ and test/ in it, a folder a source; docs/your_data.md tells
how. The model keeps its own template, pooling and normalisation, and is released in the layout that it came in.
Hardware: a 2B model with LoRA trains on one GPU of 24 GB; batches of any size fit, since the step is cached.
"""

from pathlib import Path

from omni2vec.data.mix import Feed
from omni2vec.data.sources import below
from omni2vec.eval.evaluate import Evaluate
from omni2vec.launch.release import Release
from omni2vec.model.lora import Lora
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.stage import Stage


def recipe(
    model: str,
    data: str,
    steps: int = 500,
    batch: int = 256,
    negatives: int = 1,
    lora_rank: int = 32,
    lr: float = 1e-4,
    seed: int = 0,
) -> Release:
    """model: folder or hub name. negatives: given wrong answers drawn a row. lora_rank: 0 trains every weight."""
    feeds = tuple(Feed(s, negatives=negatives) for s in below(Path(data) / "train"))
    trained = Stage(
        "train",
        model,
        feeds,
        steps=steps,
        batch=batch,
        objectives={"default": (InfoNCE(both=True),)},
        optimizer=AdamW(lr=lr, schedule=Schedule("cosine", warmup=0.05)),
        lora=Lora(rank=lora_rank, alpha=2.0 * lora_rank) if lora_rank else None,
        workers=2,
        seed=seed,
    )
    scores = Evaluate("scores", trained, below(Path(data) / "test"), baselines=(model,))
    # The adapter is merged in: one folder that every reader loads. adapter=True releases it alone.
    return Release("release", trained, scores, base_model=model if model.count("/") == 1 else "")
