"""Every weight of a vision-language model of 7 billion learns to embed, on eight nodes of eight GPUs, batch 8192.

    omni2vec launch recipes/eight_nodes.py model=Qwen/Qwen2.5-VL-7B-Instruct data=/shared/shards \\
        --slurm --nodes 8 --gpus 8 --time 24:00:00 --submit

    deepspeed --hostfile hosts.txt --no_local_rank --module omni2vec run recipes/eight_nodes.py model=... data=...

    torchrun --nnodes 8 --nproc-per-node 8 --max-restarts 3 --rdzv-backend c10d --rdzv-id omni2vec \\
        --rdzv-endpoint HOST:29500 -m omni2vec run recipes/eight_nodes.py model=... data=...

Before it: `srun --nodes 8 --ntasks-per-node 8 omni2vec doctor recipes/eight_nodes.py model=... data=...`. The run's
folder (--into), the data and the model are on a file system that all nodes share. Hardware: 64 GPUs of 80 GB, 400 Gb/s
between nodes. No figure of such a cluster is known yet; `plan` prints the memory of a rank.
"""

from pathlib import Path
from typing import Literal

from omni2vec.data.mix import Feed
from omni2vec.data.sources import below
from omni2vec.eval.evaluate import Evaluate
from omni2vec.launch.release import Release
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.stage import Stage
from omni2vec.train.zero import Zero

# GB a rank of 64 for weights (float32), whole gradient and split moments of 8 billion trained weights, activations
# apart: stage 1 and 2 hold 32 + 32 + 1; stage 3 holds 0.5 + 32 + 1, and 0.5 + 0.5 + 1 where gradients are reduced once
# a chunk. So stage 2 for models up to 4 billion, or on GPUs of 140 GB: it sends least. Stage 3 for 8 billion on 80 GB.
STAGES = {"2": Zero(stage=2), "3": Zero(stage=3), "3-chunk": Zero(stage=3, reduce="chunk")}


def recipe(
    model: str,
    data: str,
    steps: int = 5000,
    batch: int = 8192,
    negatives: int = 1,
    lr: float = 1e-5,
    zero: Literal["2", "3", "3-chunk"] = "3",
    seed: int = 0,
) -> Release:
    """model: folder or hub name. batch: of all GPUs together. negatives: given wrong answers drawn a row. zero: how
    weights, gradients and moments are split."""
    trained = Stage(
        "train",
        model,
        tuple(Feed(s, negatives=negatives) for s in below(Path(data) / "train")),
        steps=steps,
        batch=batch,
        objectives={"default": (InfoNCE(both=True),)},
        optimizer=AdamW(lr=lr, schedule=Schedule("cosine", warmup=0.03)),
        precision="bf16",  # weights, gradients and their sums in float32; the arithmetic in bfloat16
        zero=STAGES[zero],
        save_every=100,
        keep=2,
        workers=4,
        seed=seed,
    )
    scores = Evaluate("scores", trained, below(Path(data) / "test"), baselines=(model,))
    return Release("release", trained, scores, base_model=model if model.count("/") == 1 else "")
