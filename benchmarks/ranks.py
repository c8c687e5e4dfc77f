"""What many ranks cost: memory of a large batch and of its loss, bytes and collectives of the gradient, exactness.

    python benchmarks/ranks.py --quick      # under a minute on two cores
    python benchmarks/ranks.py --record

memory_growth: peak of the process less the vectors, plan "vectors", of a step of 65,536 rows with pictures (--quick:
4,096) over one of 256 rows with as many tokens a chunk. Everything of the process counts, on the host as well: code,
model, gradients of parameters, the plan (addresses, keys, token counts, ids) and what is kept of its chunks (1 MiB).
The vectors are counted once, (Q + N, D) float32; their gradient and copies of both stand in the figure.
`memory_growth_beyond_start` is the same of what each process added to what it held before the step: a stricter ratio.

loss_memory_share: the rise of the resident peak while InfoNCE (both directions, hard negatives) makes its value and
gradients from vectors that every rank holds, at 1, 2 and 4 gloo ranks, over that at 1; the largest of the ranks. What
malloc has freed is given back at once there, so that it is not counted.

reduced_bytes_ratio: bytes of the operands that a rank's gradient is summed over ranks with, over the bytes of the
trained parameters; `collectives`: of the whole step, by engine, at 1, 4 and 16 chunks a rank. exactness: by engine, the
largest difference of a weight after 3 steps on 2 ranks to 3 steps of one process, over the largest step of any weight.
All float32, two gloo ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from measure import RESULTS, peak_rss_mb, record, reset_peak_rss, rss_mb
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.relation import Relation
from omni2vec.data.types import Clock, Example, Item, Limits, Part, Text
from omni2vec.model.backbones.tiny import Tiny, build
from omni2vec.model.embedder import Embedder
from omni2vec.train.engine import Engine, Local
from omni2vec.train.gather import Group
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW
from omni2vec.train.step import Bound, cached_step
from packing import WORDS, Pairs, _noise

Weights = dict[str, torch.Tensor]

CLOCK = Clock(step=0, progress=0.0, seed=0)
LIMITS = Limits(2048, max_pixels=1 << 24, min_pixels=64)
BOUNDS = (Bound("default", (InfoNCE(),), frozenset({0})),)
CHUNK = 2048  # tokens
# At eps 1e-8 the round-off of a gradient of zero is a whole step; at a rate of 1e-3 the round-off of a weight near 1
# (2**-24) is 4e-5 of a step.
ADAM = AdamW(lr=1e-2, eps=1e-3)
STEPS = 3
RECORD = RESULTS / "ranks.json"


def ranks(size: int, *args: object, timeout_s: float = 900) -> list[dict[str, Any]]:
    """What each of `size` processes of this script printed as its last line."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, __file__, *map(str, args)]
    started = []
    for rank in range(size):
        # A threshold of its own ends malloc's growing one: large tensors then leave the process when they are freed.
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
               "OMP_NUM_THREADS": 1, "DS_ACCELERATOR": "cpu", "MALLOC_MMAP_THRESHOLD_": 1 << 16}  # fmt: skip
        env = {**os.environ, **{k: str(v) for k, v in own.items()}}
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        told = [p.communicate(timeout=timeout_s) for p in started]
    finally:
        for p in started:
            p.kill()
    for p, (_, errors) in zip(started, told, strict=True):
        if p.returncode:
            raise RuntimeError(f"{' '.join(command)} on {size} ranks ended with {p.returncode}:\n{errors[-4000:]}")
    return [json.loads(out.strip().splitlines()[-1]) for out, _ in told]


# The loss of vectors that every rank holds


def loss_memory(rows: int, dim: int, tile: int) -> dict[str, float]:
    """In one rank: MiB that the loss and its gradients add to the vectors."""
    group = Group.current()
    objective = InfoNCE(both=True, tile=tile)

    def once(count: int) -> float:
        g = torch.Generator().manual_seed(0)
        query = F.normalize(torch.randn(count, dim, generator=g), dim=-1)
        docs = torch.randn(2 * count, dim, generator=g)
        docs = docs.div_(docs.norm(dim=-1, keepdim=True))
        relation, scale = _relation(count), torch.tensor([50.0])
        reset_peak_rss()
        before = rss_mb()
        objective.sharded(query, docs, relation, scale, CLOCK, group)
        return peak_rss_mb() - before

    once(256)  # loads code, opens connections
    return {"mib": once(rows), "vectors_mib": 3 * rows * dim * 4 / 2**20}


def _relation(count: int) -> Relation:
    """A positive and a hard negative for each query, all distinct."""
    ids = torch.randint(-(2**62), 2**62, (3 * count, 2), generator=torch.Generator().manual_seed(0))
    first = torch.arange(2 * count) % 2 == 0
    return Relation(
        query_id=ids[:count],
        query_label=torch.zeros(count, 2, dtype=torch.int64),
        query_source=torch.zeros(count, dtype=torch.int64),
        owner=torch.arange(count).repeat_interleave(2),
        positive=first,
        rank=torch.zeros(2 * count, dtype=torch.int64),
        doc_id=ids[count:],
        known_id=ids[count:][first],
        known_query=torch.arange(count),
    )


def loss_memory_share(rows: int, dim: int, tile: int) -> dict[str, Any]:
    peak = {
        size: max(r["mib"] for r in ranks(size, "--part", "loss", "--rows", rows, "--dim", dim, "--tile", tile))
        for size in (1, 2, 4)
    }
    return {
        "loss_memory_share": {str(size): round(mib / peak[1], 3) for size, mib in peak.items()},
        "loss_mib": {str(size): round(mib, 1) for size, mib in peak.items()},
        "loss_vectors_mib": 3 * rows * dim * 4 / 2**20,
    }


# A step of many rows


@dataclass(frozen=True)
class Pictured:
    """Rows that cost no memory: each a text and one of 64 pictures, made when asked for."""

    size: int
    name: str = "pictured"
    digest: str = ""
    pictures: tuple[Part, ...] = field(
        default_factory=lambda: tuple(_noise((16, 16 + 8 * (i % 2)), 1, seed=i) for i in range(64)), repr=False
    )

    def open(self, where: object) -> Pictured:
        return self

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        draw = random.Random(index)
        query = Text(" ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 8))))
        answer = Item((self.pictures[index % len(self.pictures)],), f"picture {index}")
        return Example(f"pictured/{index}", self.name, "retrieval", Item((query,), f"query {index}"), (answer,))


def step_memory(rows: int) -> dict[str, float]:
    """In one process: the peak of a step of `rows` rows, from planning to its end, and what there was before."""
    made = build(Tiny(texts=(), width=64, layers=2, heads=2, vision=32, depth=1, patch=4, limits=LIMITS), WORDS)
    engine: Engine = Local(made.train(), ADAM)

    def once(count: int) -> tuple[float, float, float]:
        source = Pictured(count)
        reset_peak_rss()
        before = rss_mb()
        with Loader([source], [Feed(source)], made.format, made.limits, batch=count, sub_batch=count, seed=0,
                    budget=CHUNK, stop=1) as loader:  # fmt: skip
            for plan, chunks in loader:
                planned = rss_mb()
                cached_step(engine, plan, chunks, BOUNDS, CLOCK, "vectors", loader.again, host_bytes=1 << 20)
        engine.update(0, 1)
        return before, planned, peak_rss_mb()

    once(256)  # loads code, and the optimiser's moments
    before, planned, peak = once(rows)
    vectors = 2 * rows * made.width * 4 / 2**20
    return {"start": before, "plan": planned - before, "peak": peak, "vectors": vectors}


def memory_growth(rows: int) -> dict[str, Any]:
    small, large = (ranks(1, "--part", "growth", "--rows", n)[0] for n in (256, rows))
    beyond = [x["peak"] - x["vectors"] for x in (large, small)]
    return {
        "memory_growth": round(beyond[0] / beyond[1], 4),
        "memory_growth_rows": rows,
        "memory_growth_beyond_start": round((beyond[0] - large["start"]) / (beyond[1] - small["start"]), 3),
        "memory_growth_mib": {"256": _rounded(small), str(rows): _rounded(large)},
    }


def _rounded(mib: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 1) for k, v in mib.items()}


# Two ranks: the gradient's reduction, and the update


class Collectives:
    """Counts what is asked of torch.distributed, whoever asks: calls and bytes of the first operand, by kind."""

    KINDS = ("all_reduce", "reduce", "reduce_scatter_single", "reduce_scatter_tensor", "all_gather_into_tensor",
             "all_to_all_single")  # fmt: skip

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        for kind in (k for k in self.KINDS if hasattr(dist, k)):
            setattr(dist, kind, self._counting(kind, getattr(dist, kind)))

    def _counting(self, kind: str, call: Any) -> Any:
        def counted(*args: Any, **named: Any) -> Any:
            tensor = args[0] if args else next(iter(named.values()))
            self.calls[kind] += 1
            self.bytes[kind] += tensor.nbytes
            return call(*args, **named)

        return counted


def small() -> Embedder:
    """A Qwen2-VL that is trained whole; its learned scale is left out, which every engine treats alike."""
    made = build(Tiny(texts=(), width=64, layers=2, heads=2, vision=32, depth=1, patch=4, limits=LIMITS), WORDS)
    return made.train()


def loader(embedder: Embedder, group: Group, budget: int, rows: int = 32) -> Loader[Any]:
    source = Pairs("small_mixed", 4 * rows, 0)
    return Loader([source], [Feed(source)], embedder.format, embedder.limits, batch=rows, sub_batch=rows, seed=0,
                  budget=budget, stop=STEPS, ranks=group.ranks)  # fmt: skip


def engine_for(name: str, group: Group) -> Engine:
    if name == "local":
        return Local(small(), ADAM, group=group)
    from omni2vec.train.zero import Zero
    from omni2vec.train.zero_engine import engine_of

    stage = int(name[-1])
    zero = Zero(3, persistence_threshold=0) if stage == 3 else Zero(stage)  # type: ignore[arg-type]
    return engine_of(small(), ADAM, "fp32", 1.0, group, zero)


def trained(name: str, group: Group, budget: int) -> Weights:
    """Weights behind a few steps; on rank 0."""
    engine = engine_for(name, group)
    with loader(engine.embedder, group, budget) as batches:
        for plan, chunks in batches:
            cached_step(engine, plan, chunks, BOUNDS, CLOCK, "boundaries", batches.again)
            engine.update(plan.step, STEPS)
    return engine.whole()


def difference(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> float:
    moved = max(float((wanted[k] - start[k]).abs().max()) for k in wanted)
    return max(float((found[k] - wanted[k]).abs().max()) for k in wanted) / moved


def reduction(name: str, group: Group, seen: Collectives) -> dict[str, Any]:
    """Bytes reduced over bytes of the gradient, and collectives of a whole step, by the chunks of a rank."""
    engine = engine_for(name, group)
    weights = sum(p.numel() * 4 for n, p in engine.embedder.named_parameters() if p.requires_grad and n != "log_scale")
    out: dict[str, Any] = {"collectives": {}, "ratio": {}}
    with loader(engine.embedder, group, 1 << 20) as whole:
        tokens = whole.plan(0).tokens
    for wanted in (1, 4, 16):
        with loader(engine.embedder, group, int(tokens / 2 / wanted * 1.08) + 1) as batches:
            plan = batches.plan(0)
            chunks = list(batches.chunks(plan))
        counting, before = _around(engine, seen), seen.calls.copy()
        cached_step(counting, plan, chunks, BOUNDS, CLOCK, "boundaries")
        number = len(plan.chunks)
        out["collectives"][str(number)] = sum((seen.calls - before).values())
        out["ratio"][str(number)] = counting.reduced / weights
        engine.update(0, 1)
    return out


def _around(engine: Engine, seen: Collectives) -> Any:
    """The engine, which also notes the bytes that go out where a step's gradients are reduced."""

    class Around:
        reduced = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(engine, name)

        @contextlib.contextmanager
        def accumulating(self) -> Iterator[None]:
            with engine.accumulating():
                yield
                before = sum(seen.bytes.values())
            self.reduced = sum(seen.bytes.values()) - before

    return Around()


def engines(names: list[str]) -> dict[str, Any]:
    """In one of two ranks."""
    seen, group = Collectives(), Group.current()
    start = {k: v.clone() for k, v in small().state_dict().items()}
    wanted = trained("local", Group(), 1 << 20)
    out: dict[str, Any] = {}
    for name in names:
        found = trained(name, group, 512)
        out[name] = {"exactness": difference(found, wanted, start) if found else 0.0, **reduction(name, group, seen)}
    return out


def two_ranks(names: list[str]) -> dict[str, Any]:
    told = ranks(2, "--part", "engines", "--engines", *names)[0]
    ratios = [r for x in told.values() for r in x["ratio"].values()]
    return {
        "reduced_bytes_ratio": max(ratios, key=lambda r: abs(r - 1)),
        "collectives": {name: x["collectives"] for name, x in told.items()},
        "exactness": max(x["exactness"] for x in told.values()),
        "exactness_by_engine": {name: x["exactness"] for name, x in told.items()},
        "reduced_bytes_by_engine": {name: x["ratio"] for name, x in told.items()},
    }


def part(given: argparse.Namespace) -> dict[str, Any]:
    """What a process of this script measures."""
    torch.set_num_threads(1)
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
    if given.part == "growth":
        return step_memory(given.rows)
    if given.part == "loss":
        return loss_memory(given.rows, given.dim, given.tile)
    return engines(given.engines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--record", action="store_true", help="write docs/results/ranks.json")
    parser.add_argument(
        "--only", choices=["growth", "loss", "engines"], help="one part of it; --record keeps the others"
    )
    parser.add_argument("--part", choices=["growth", "loss", "engines"], help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=256, help=argparse.SUPPRESS)
    parser.add_argument("--dim", type=int, default=512, help=argparse.SUPPRESS)
    parser.add_argument("--tile", type=int, default=256, help=argparse.SUPPRESS)
    parser.add_argument("--engines", nargs="+", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(part(given)), flush=True)
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        return
    start, quick = time.perf_counter(), given.quick
    parts = {
        "loss": lambda: loss_memory_share(4096 if quick else 8192, 512 if quick else 1024, 256),
        "engines": lambda: two_ranks(["local", "zero2"] if quick else ["local", "zero1", "zero2", "zero3"]),
        "growth": lambda: memory_growth(4096 if quick else 65536),
    }
    result: dict[str, Any] = {}
    if given.only and given.record and RECORD.exists():
        result = {k: v for k, v in json.loads(RECORD.read_text()).items() if k not in ("command", "date", "machine")}
    with ThreadPoolExecutor() as pool:  # nothing is timed, so that all may run at once
        for found in pool.map(lambda name: parts[name](), [given.only] if given.only else parts):
            result |= found
    record("ranks", {**result, "seconds": round(time.perf_counter() - start, 1)})


if __name__ == "__main__":
    main()
