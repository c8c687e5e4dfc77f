"""What exactness costs: the cached step against a plain step on the same chunks, which holds every graph at once.

    python benchmarks/step.py [--quick] [--record]

fits: the cached step where all activations are kept, over a plain step (one loss, one backward through all chunks).
boundaries: kept with layer boundaries only, over a plain step with activation checkpointing. frozen_tower: the same
with a frozen vision tower, which must run once. Each for full training and for LoRA; the figure named is the worse of
the two. `vectors` (nothing kept, a second forward, as GradCache) stands beside, over the plain checkpointed step.
Every process runs all sides in turn on one model, after comparing their losses and gradients.
Times are CPU seconds of the one thread, which a busy machine disturbs less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from measure import record, run
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.planned import Plan
from omni2vec.data.types import Clock, Limits
from omni2vec.model.backbones.tiny import Tiny, build
from omni2vec.model.embedder import Embedder
from omni2vec.model.lora import Lora, attach
from omni2vec.model.types import Inputs
from omni2vec.train.engine import Local
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW
from omni2vec.train.step import Bound, Memory, cached_step
from packing import WORDS, Pairs

CLOCK = Clock(0, 0.0, 0)
LIMITS = Limits(2048, max_pixels=1 << 24, min_pixels=64)
BOUNDS = (Bound("default", (InfoNCE(),), frozenset({0})),)
MODES = ("full", "lora")
# name -> (memory plan of the cached step, whether the tower is frozen); a plain step of the same kind is its baseline
SIDES: dict[str, tuple[Memory, bool]] = {
    "fits": ("all", False),
    "boundaries": ("boundaries", False),
    "frozen_tower": ("boundaries", True),
    "vectors": ("vectors", False),
}


def model(mode: str, frozen: bool) -> Embedder:
    """A small Qwen2-VL with dropout-free LoRA or trained whole."""
    made = build(Tiny(texts=(), width=128, layers=4, heads=4, vision=64, depth=3, patch=4, limits=LIMITS), WORDS)
    if mode == "lora":
        return attach(made, Lora(rank=16, tower=not frozen)).train()
    for p in made.base.groups()["tower"] + made.base.groups()["projector"]:
        p.requires_grad_(not frozen)
    return made.train()


def plain(engine: Local, plan: Plan, chunks: list[Inputs], checkpointing: bool) -> float:
    """One loss over all chunks' graphs, one backward: what anyone would write, where memory is no matter."""
    engine.checkpointing(checkpointing)
    out = [engine.embed(c) for c in chunks]
    entries = torch.tensor([e for c in plan.chunks for e in c.entries])
    vectors = torch.cat([o.vectors for o in out])[entries.argsort()]
    q = len(plan.keys)
    value = BOUNDS[0].objectives[0].contrast(vectors[:q], vectors[q:], plan.relation, out[0].scale, CLOCK)  # type: ignore[union-attr]
    loss = value.sum / value.count
    loss.backward()
    return float(loss.detach())


def cached(engine: Local, plan: Plan, chunks: list[Inputs], memory: Memory) -> float:
    return cached_step(engine, plan, chunks, BOUNDS, CLOCK, memory).loss


def gradients(embedder: Embedder) -> torch.Tensor:
    out = torch.cat([p.grad.flatten() for p in embedder.parameters() if p.grad is not None])
    embedder.zero_grad(set_to_none=True)
    return out


def side(mode: str, rows: int, repeats: int, seed: int) -> dict[str, list[float]]:
    """Ratios of every side, `repeats` of each, in a fresh process."""
    torch.set_num_threads(1)
    out: dict[str, list[float]] = {name: [] for name in SIDES}
    for name, (memory, frozen) in SIDES.items():
        embedder = model(mode, frozen)
        engine = Local(embedder, AdamW())
        source = Pairs("small_mixed", 4 * rows, seed)
        settings = {"batch": rows, "sub_batch": rows, "seed": seed, "budget": 1024}
        with Loader([source], [Feed(source)], embedder.format, embedder.limits, **settings) as loader:
            plan = loader.plan(0)
            chunks = list(loader.chunks(plan))
        ours: Callable[[], float] = lambda e=engine, m=memory, p=plan, c=chunks: cached(e, p, c, m)  # noqa: E731
        base: Callable[[], float] = lambda e=engine, m=memory, p=plan, c=chunks: plain(e, p, c, m != "all")  # noqa: E731
        loss, wanted = base(), gradients(embedder)
        again, got = ours(), gradients(embedder)
        apart = float((got - wanted).abs().max() / wanted.abs().max())
        if abs(loss - again) > 1e-5 * abs(loss) or apart > 1e-4:
            raise AssertionError(f"{mode}/{name}: loss {again} against {loss}, gradients {apart:.1e} apart")
        for i in range(repeats):
            times = {}
            for which in (("ours", ours), ("base", base)) if i % 2 else (("base", base), ("ours", ours)):
                start = time.process_time()
                which[1]()
                times[which[0]] = time.process_time() - start
                embedder.zero_grad(set_to_none=True)
            out[name].append(times["ours"] / times["base"])
    return out


def interval(values: list[float]) -> tuple[float, float, float]:
    """Median of paired ratios, and its 95% bootstrap interval."""
    drawn = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    low, high = np.quantile(np.median(np.asarray(values)[drawn], axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--record", action="store_true", help="write docs/results/step.json")
    parser.add_argument("--side", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows, repeats, processes = (8, 3, 1) if args.quick else (24, 5, 2)
    if args.side:
        print(json.dumps(side(args.side, rows, repeats, args.seed)))
        return
    found: dict[str, dict[str, list[float]]] = {m: {n: [] for n in SIDES} for m in MODES}
    for seed in range(processes):
        for mode in MODES:
            command = [sys.executable, __file__, "--side", mode, "--seed", str(seed)] + ["--quick"] * args.quick
            for name, values in run(command).items():
                found[mode][name] += values
    result: dict[str, object] = {}
    for name in SIDES:
        each = {mode: interval(found[mode][name]) for mode in MODES}
        result[name] = max(m for m, _, _ in each.values())
        result[f"{name}_interval"] = {mode: [low, high] for mode, (_, low, high) in each.items()}
    record("step", {**result, "pairs": len(found["full"]["fits"]), "rows": rows})


if __name__ == "__main__":
    main()
