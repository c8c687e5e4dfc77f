"""Run as a script: a stage of a few steps on a folder's shards and model, for tests that kill it."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from omni2vec.data.mix import Adaptive, Feed
from omni2vec.data.schedules import Ramp
from omni2vec.data.sources import Rest, Shards, Take
from omni2vec.model.lora import Lora
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.optim import AdamW
from omni2vec.train.stage import Stage, Validate
from omni2vec.train.zero import Zero

STEPS = 9


def stage(folder: Path, variant: str) -> Stage:
    rows = Shards(str(folder / "rows"), name="rows")
    made = Stage(
        "train",
        str(folder / "model"),
        (Feed(rows, negatives=1),),
        steps=STEPS,
        batch=8,
        objectives={"default": (InfoNCE(), NextToken(weight=0.2))},
        optimizer=AdamW(lr=1e-3),
        chunk_tokens=256,
        memory="boundaries",
        save_every=3,
        device="cpu",
    )
    # Both sources' shares follow their losses, the temperature the stage's progress.
    feeds = (Feed(Take(rows, 10, name="few"), negatives=Ramp(0, 1)), Feed(Rest(rows, 10, name="rest"), 2.0))
    mix, temperature = Adaptive(every=4, strength=9.0, smooth=0.0), Ramp(0.1, 0.02)
    adaptive = replace(made, feeds=feeds, mix=mix, batch=8, sub_batch=2, temperature=temperature)
    if variant == "adaptive":
        return adaptive
    if variant == "lora":
        return replace(made, lora=Lora(rank=4, dropout=0.2))
    if variant.startswith("elastic"):  # a large eps, so that rounding stays rounding; batches of uneven chunks
        split = {"2": Zero(2), "3": Zero(3, persistence_threshold=0)}.get(variant[-1])
        optimizer = AdamW(lr=1e-3, eps=1e-3)
        return replace(adaptive, optimizer=optimizer, zero=split, chunk_tokens=128, memory="auto")
    if variant == "best":
        return replace(made, validate=Validate((rows,), every=2, limit=8), take="best", save_every=4)
    return made


if __name__ == "__main__":
    torch.set_num_threads(1)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo")
    out = Path(sys.argv[3])
    out.mkdir(exist_ok=True)
    stage(Path(sys.argv[1]), sys.argv[2]).make(out, lambda step: Path(step.name))
