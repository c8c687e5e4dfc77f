"""A vision-language model of 7 billion weights learns to embed with LoRA on one machine of eight GPUs.

    omni2vec doctor --ranks 8
    omni2vec plan recipes/eight_gpus.py model=Qwen/Qwen2.5-VL-7B-Instruct data=shards
    omni2vec run recipes/eight_gpus.py model=Qwen/Qwen2.5-VL-7B-Instruct data=shards

`run` starts one rank a GPU by itself; `torchrun --standalone --nproc-per-node 8 -m omni2vec run ...` and `deepspeed
--no_local_rank --module omni2vec run ...` do the same. data: a folder of shards made with `omni2vec pack`, train/ and
test/ in it, a folder a source (docs/your_data.md). Hardware: 8 GPUs of 80 GB, for the weights are loaded in float32
once. No figure of such a machine is known yet; `plan` prints the memory of a rank.
"""

from pathlib import Path
from typing import Literal

from omni2vec.data.mix import Feed
from omni2vec.data.sources import below
from omni2vec.eval.evaluate import Evaluate
from omni2vec.launch.release import Release
from omni2vec.model.lora import Lora
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.stage import Stage
from omni2vec.train.zero import Zero


def recipe(
    model: str,
    data: str,
    steps: int = 2000,
    batch: int = 1024,
    negatives: int = 1,
    lora_rank: int = 32,
    lr: float = 1e-4,
    zero: Literal["none", "2", "3"] = "none",
    seed: int = 0,
) -> Release:
    """model: folder or hub name. batch: of all GPUs together. negatives: given wrong answers drawn a row. zero: "none",
    or DeepSpeed's stage."""
    trained = Stage(
        "train",
        model,
        tuple(Feed(s, negatives=negatives) for s in below(Path(data) / "train")),
        steps=steps,
        batch=batch,
        objectives={"default": (InfoNCE(both=True),)},
        optimizer=AdamW(lr=lr, schedule=Schedule("cosine", warmup=0.05)),
        lora=Lora(rank=lora_rank, alpha=2.0 * lora_rank),
        # The frozen 7 billion are 15 GB in bfloat16. Of LoRA's 0.1 billion, weights, gradients and moments are 1.5 GB,
        # which are not worth splitting; stage 3 splits the frozen ones, too, at the price of gathering each block
        # again for every chunk.
        precision="bf16",
        zero=None if zero == "none" else Zero(stage=2 if zero == "2" else 3),
        save_every=100,
        keep=2,
        workers=4,
        seed=seed,
    )
    scores = Evaluate("scores", trained, below(Path(data) / "test"), baselines=(model,))
    return Release("release", trained, scores, base_model=model if model.count("/") == 1 else "")
