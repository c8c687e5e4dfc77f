"""What resuming far into a run costs, and what saving while training goes on costs.

    python benchmarks/resume.py [--quick] [--record]

seek_ms: a cold process reads a checkpoint, opens its shards and collates the first chunk of the step where it stands;
the time at step 100,000 less that at step 0, in interleaved pairs, median. Imports and the model's loading are before
the clock: each process is a fork of one that has done them and nothing else, so whatever the first step needs for the
first time, it makes. Every row is one picture and one caption of equal sizes: the two steps' rows cost the same.

save_stall_ratio: time lost by training to a save in the background over the time of a synchronous one, in one process
that trains a model whose weights and moments are about 150 MB. Lost is the time until `save` returns (the copy to host
memory), and by how much the steps that run until the checkpoint is on the disk take longer than the median step without
a save: a core less for the rest of the machine, memory and the interpreter shared with the writer. The synchronous save
is the same work, waited for: copy, digest, write, fsync, rename, removal of the one before. Wall-clock times, medians
over rounds of both in turn; the first round, which touches new memory, is left out. `returns_ms` is the copy alone,
`slower_ms` the rest. A writer needs a core of its own: where others use it (`others_cores`, processors that other
processes used meanwhile), training and writer share one and the steps take twice as long until the checkpoint is there.
So the quieter half of the rounds is taken, by the others' use and not by the outcome.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import median, record, run
from omni2vec.data.mix import Feed
from omni2vec.data.parts import probe
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import Blob, Example, Item, Limits
from omni2vec.model.backbones.tiny import Tiny, build
from omni2vec.train import resume
from omni2vec.train.engine import Engine, Local
from omni2vec.train.optim import AdamW
from omni2vec.train.resume import State
from omni2vec.train.snapshot import Saver
from omni2vec.train.stage import Stage
from packing import WORDS

FAR = 100_000
LIMITS = Limits(512, max_pixels=1 << 16, min_pixels=64)
ROWS = 4096


def nowhere(step: object) -> Path:
    raise AssertionError(f"no step is needed, asked for {step}")


def stage(folder: Path) -> Stage:
    rows = Shards(str(folder / "rows"), name="rows")
    return Stage(
        "resume", str(folder / "model"), (Feed(rows),), steps=2 * FAR, batch=64, chunk_tokens=1024, memory="boundaries",
        device="cpu",
    )  # fmt: skip


def examples() -> Iterator[Example]:
    """Rows of equal cost: a picture of 32 by 32, a caption of 8 words."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for i in range(ROWS):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
        picture = Item((probe("image", Blob(file.getvalue()), "rows"),), f"picture {i}")
        caption = Item.text(" ".join(WORDS[int(k)] for k in draw.integers(0, len(WORDS), 8)))
        yield Example(f"rows/{i}", "rows", "retrieval", picture, (caption,))


def prepare(folder: Path) -> None:
    """Shards, a model, and checkpoints of its stage at both steps."""
    write_shards(examples(), folder / "rows")
    build(Tiny(texts=(), limits=LIMITS), WORDS).save(folder / "model")
    made = stage(folder)
    engine = made.engine(made.load(nowhere))
    for step in (0, FAR):
        with Saver(engine, folder / str(step)) as saver:
            saver.save(State(step=step, memory="boundaries", chunk_tokens=1024))


def seeks(folder: Path, n: int) -> dict[str, Any]:
    """`n` pairs of forks of a process that has loaded the model and nothing else, FAR first and 0 first in turn."""
    torch.set_num_threads(1)
    made = stage(folder)
    engine = made.engine(made.load(nowhere))
    found: dict[int, list[dict[str, float]]] = {FAR: [], 0: []}
    for i in range(n):
        for step in (FAR, 0) if i % 2 else (0, FAR):
            found[step].append(forked(lambda s=step: seek(made, engine, folder, s)))
    return {"far": found[FAR], "near": found[0]}


def forked(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `work` gives in a child of this process, which has seen nothing that an earlier child did."""
    out, into = os.pipe()
    if not (child := os.fork()):
        os.write(into, json.dumps(work()).encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as said:
        result: dict[str, float] = json.loads(said.read())
    os.waitpid(child, 0)
    return result


def seek(made: Stage, engine: Engine, folder: Path, step: int) -> dict[str, float]:
    """From checkpoint to the first collated chunk."""
    wall, cpu = time.perf_counter(), time.process_time()
    state = resume.load(engine, resume.path_of(folder / str(step), step))
    restored = time.perf_counter()
    with made.loader(engine.embedder, nowhere, state.chunk_tokens, state) as loader:
        plan, chunks = next(iter(loader))
        next(iter(chunks))
        wall, cpu, read = time.perf_counter() - wall, time.process_time() - cpu, time.perf_counter() - restored
    assert plan.step == step
    return {"ms": 1e3 * wall, "cpu_ms": 1e3 * cpu, "loader_ms": 1e3 * read}


def stalls(folder: Path, budget_s: float) -> dict[str, Any]:
    """Times in ms of saves of each kind, in turn, and of the steps between them; as many as fit in the budget."""
    torch.set_num_threads(1)
    settings = Tiny(texts=(), width=384, layers=6, heads=6, vision=128, depth=2, limits=LIMITS)
    engine = Local(build(settings, WORDS).train(), AdamW(lr=1e-5))
    prompts = engine.embedder.prompts([Item.text(" ".join(WORDS[i : i + 8])) for i in range(4)])
    inputs = engine.embedder.format.collate(prompts, [LIMITS] * len(prompts))
    count = 0

    def step() -> float:
        nonlocal count
        begun = time.perf_counter()
        engine.backward(engine.embed(inputs).vectors.square().sum())
        engine.update(count, 10**6)
        count += 1
        return 1e3 * (time.perf_counter() - begun)

    def saved(saver: Saver, background: bool) -> tuple[float, list[float]]:
        """Until `save` returned; the steps that ran until the checkpoint was there."""
        begun = time.perf_counter()
        path = saver.save(State(step=count), background)
        returned, during = 1e3 * (time.perf_counter() - begun), []
        while not path.exists():
            during.append(step())
        saver.wait()
        return returned, during

    rounds: list[dict[str, float]] = []
    began = time.perf_counter()
    with Saver(engine, folder / "stalls") as saver:
        while len(rounds) < 4 or time.perf_counter() - began < budget_s:
            since = time.perf_counter(), others_s()
            usual = [step() for _ in range(4)]
            sync, _ = saved(saver, background=False)
            usual += [step() for _ in range(4)]
            returned, during = saved(saver, background=True)
            middle = median(usual[1:] + [step() for _ in range(4)])
            slower = sum(during) - len(during) * middle
            others = (others_s() - since[1]) / (time.perf_counter() - since[0])
            rounds.append(
                {"sync": sync, "returns": returned, "slower": slower, "step": middle, "during": len(during),
                 "others": others}
            )  # fmt: skip
    state_mb = sum(p.values.nbytes for p in engine.pieces()) / 1e6
    return {"rounds": rounds[1:], "state_mb": state_mb}


def others_s() -> float:
    """Processor seconds that all other processes have used so far (Linux)."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def interval(values: np.ndarray) -> list[float]:
    """95% bootstrap interval of the median over the last axis."""
    drawn = np.random.default_rng(0).integers(0, values.shape[-1], (10_000, values.shape[-1]))
    return [float(x) for x in np.quantile(np.median(values[drawn], axis=-1), [0.025, 0.975])]


def stall_result(found: dict[str, Any]) -> dict[str, Any]:
    """Of the quieter half of the rounds: two busy threads need both cores."""
    rounds = sorted(found["rounds"], key=lambda r: float(r["others"]))[: (len(found["rounds"]) + 1) // 2]
    of = {k: np.asarray([r[k] for r in rounds]) for k in rounds[0]}
    lost = (of["returns"] + of["slower"]) / median(of["sync"])
    return {
        "save_stall_ratio": float(np.median(lost)),
        "save_stall_interval": interval(lost),
        "save_returns_ratio": float(np.median(of["returns"]) / np.median(of["sync"])),
        **{f"{k}_ms": median(of[k]) for k in ("sync", "returns", "slower", "step")},
        "steps_during": median(of["during"]),
        "others_cores": median(of["others"]),
        "state_mb": found["state_mb"],
        "saves": len(rounds),
    }


def seek_result(found: dict[str, Any]) -> dict[str, Any]:
    far, near = ({k: np.asarray([r[k] for r in found[side]]) for k in found[side][0]} for side in ("far", "near"))
    return {
        "seek_ms": float(np.median(far["ms"] - near["ms"])),
        "seek_interval_ms": interval(far["ms"] - near["ms"]),
        "seek_cpu_ms": float(np.median(far["cpu_ms"] - near["cpu_ms"])),
        "from_checkpoint_to_chunk_ms": median(far["ms"]),
        "of_which_loader_ms": median(far["loader_ms"]),
        "pairs": len(far["ms"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--record", action="store_true", help="write docs/results/resume.json")
    parser.add_argument("--side", choices=("seeks", "stalls"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    n, saves_s = (20, 12.0) if args.quick else (100, 80.0)
    if args.side:
        print(json.dumps(stalls(args.folder, saves_s) if args.side == "stalls" else seeks(args.folder, n)))
        return
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made))
        command = [sys.executable, __file__, "--folder", made, *["--quick"] * args.quick, "--side"]
        result = {**seek_result(run([*command, "seeks"])), **stall_result(run([*command, "stalls"]))}
    record("resume", result)


if __name__ == "__main__":
    main()
