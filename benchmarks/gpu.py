"""A training step of a Qwen2-VL of the published size on one GPU: ours against a loop written as VLM2Vec's.

    python benchmarks/gpu.py [--size 2b|7b] [--mode lora|full] [--mix text_and_pictures|pictures] [--record]
    python benchmarks/gpu.py --miniature      the same code on a tiny model, on a CPU too, in seconds

Weights are random, in the published configuration, made on the device. From the loop to ours one switch is turned at a
time, each on top of those before:

    vlm2vec     every side of the batch padded on the left to its longest row, chunks of 8 rows, two passes (GradCache,
                arXiv:2101.06983), the vision tower in both, lm_head on all tokens. A re-implementation of what VLM2Vec
                (arXiv:2410.05160) does, not its code; its tower uses our packed attention, as its own uses flash
                attention; its language model sdpa with a mask, where flash attention would skip the padding
    no head     without lm_head
    sorted      rows sorted by length before they are cut, each chunk padded to its own longest
    tower kept  what the frozen tower gave in the first pass serves the second (LoRA only)
    packed      chunks by tokens, nothing padded: our cached step, two passes (full training: tower twice)
    boundaries  one forward, layer boundaries kept (activation checkpointing): our cached step as it trains
    offloaded   the same, boundaries in host memory (CUDA only)

Reported: pairs/s and real tokens/s, utilisation by model FLOPs (model/flops.py: V + 2L for LoRA on a frozen tower,
3V + 3L for full training; real tokens only) over the device's nominal half-precision peak, peak memory. Timed are
forwards, loss and backwards, not decoding and not the update. Rounds are interleaved. Before anything is timed, losses
and gradients are compared: on a tiny model in float32 to 1e-4; at full size within thrice what ours differs from itself
when its rows are packed otherwise, which is rounding. A variant without enough memory is reported as such.
Loop and "packed" run without activation checkpointing, but at 7B or with --checkpointing.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from gpu_model import SIZES, Rows, build
from measure import median, ratio_interval, record
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.types import Clock
from omni2vec.model.attention import LANGUAGE
from omni2vec.model.compile import compiled
from omni2vec.model.flops import Flops, model_flops, rates
from omni2vec.model.types import Inputs, Towers
from omni2vec.train.engine import Local
from omni2vec.train.machine import peak_flops
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW
from omni2vec.train.step import Bound, Memory, NoMemoryError, cached_step
from torch import Tensor

SCALE, COUNT = 50.0, 8
BOUNDS = (Bound("default", (InfoNCE(tile=4096),), frozenset({0})),)
SAMPLED = 20_000_000  # elements of a gradient that are compared


@dataclass(frozen=True)
class Switches:
    """What the loop does without, one more on each line of the ablation."""

    head: bool = True
    sort: bool = False
    keep_tower: bool = False


LOOPS = {
    "vlm2vec": Switches(),
    "no head": Switches(head=False),
    "sorted": Switches(head=False, sort=True),
    "tower kept": Switches(head=False, sort=True, keep_tower=True),
}
OURS: dict[str, Memory] = {"packed": "vectors", "boundaries": "boundaries", "offloaded": "offloaded"}


@dataclass(frozen=True)
class Padded:
    """Up to eight rows as a rectangle. ids, mask (n, width); positions (3, n, width); media: what the tower takes."""

    entries: tuple[int, ...]
    ids: Tensor
    mask: Tensor
    positions: Tensor
    media: Inputs | None


class Switched(Local):
    """Local, whose activation checkpointing can be locked off, so that packing is timed as the loop is, without."""

    allowed = True

    def checkpointing(self, on: bool) -> None:
        super().checkpointing(on and self.allowed)


class Bench:
    """One model, one batch, and a step on it by any variant. Gradients are left in the parameters."""

    def __init__(self, args: Any, size: str, mode: str, mix: str, device: torch.device, pairs: int, low: bool) -> None:
        """low: in bfloat16, as it is timed; else in float32."""
        self.size, self.device = SIZES[size], device
        self.embedder = build(size, mode, device, low, dora=args.dora, quantized=args.quantized if low else "").train()
        if args.compile and low:
            compiled(self.embedder)
        # Full training at 7B has no room for float32 weights and gradients on one device.
        precision: Any = "fp32" if not low else "bf16-true" if (mode, size) == ("full", "7b") else "bf16"
        self.engine = Switched(self.embedder, AdamW(), precision)
        self.checkpointed = args.checkpointing or size == "7b"
        self.rows = Rows(mix, pairs, args.seed, merged=self.size.merged)
        self.plan, chunks = self.planned(self.size.budget)
        self.chunks = [c.to(device) for c in chunks]
        costs = rates(self.embedder)
        self.flops = model_flops(sum((costs.count(c) for c in chunks), Flops()), self.embedder)

    def planned(self, budget: int) -> tuple[Any, list[Inputs]]:
        n = len(self.rows)
        loader: Loader[Any] = Loader(
            [self.rows], [Feed(self.rows)], self.embedder.format, self.embedder.limits,
            batch=n, sub_batch=n, seed=0, budget=budget, stop=1,
        )  # fmt: skip
        with loader:
            plan = loader.plan(0)
            return plan, list(loader.chunks(plan))

    @property
    def language(self) -> Any:
        return self.embedder.backbone.model.model.language_model

    def variants(self, mode: str) -> list[str]:
        loops = [n for n, s in LOOPS.items() if mode == "lora" or not s.keep_tower]
        return loops + [n for n in OURS if n != "offloaded" or self.device.type == "cuda"]

    def step(self, name: str) -> float:
        self.engine.forget()
        return self.ours(OURS[name]) if name in OURS else self.loop(LOOPS[name])

    def ours(self, memory: Memory, plan: Any = None, chunks: Sequence[Inputs] | None = None) -> float:
        self.language.config._attn_implementation = LANGUAGE
        self.engine.allowed = self.checkpointed or memory != "vectors"
        plan, chunks = plan or self.plan, chunks or self.chunks
        return cached_step(
            self.engine, plan, chunks, BOUNDS, Clock(0, 0.0, 0), memory, lambda _, i: chunks[i], host_bytes=8 << 30
        ).loss

    def loop(self, switches: Switches) -> float:
        self.language.config._attn_implementation = "sdpa"
        self.engine.allowed = True
        self.engine.checkpointing(self.checkpointed)
        chunks = self.sorted_chunks if switches.sort else self.batch_chunks
        kept: list[Towers | None] = []
        queries = len(self.plan.keys)
        vectors = torch.empty(len(self.plan.costs), self.embedder.width, device=self.device)
        with self.engine.autocast(), torch.no_grad():
            for chunk in chunks:
                towers = self.towers(chunk)
                vectors[list(chunk.entries)] = self.embed(chunk, towers, switches)
                kept.append(towers if switches.keep_tower else None)
        vectors.requires_grad_()
        loss = F.cross_entropy(
            SCALE * vectors[:queries] @ vectors[queries:].T, torch.arange(queries, device=self.device)
        )
        loss.backward()
        assert vectors.grad is not None
        with self.engine.autocast():
            for chunk, towers in zip(chunks, kept, strict=True):
                out = self.embed(chunk, towers or self.towers(chunk), switches)
                out.backward(vectors.grad[list(chunk.entries)])
        return float(loss.detach())

    def towers(self, chunk: Padded) -> Towers:
        return self.embedder.base.towers(chunk.media) if chunk.media is not None else Towers()

    def embed(self, chunk: Padded, towers: Towers, switches: Switches) -> Tensor:
        """(n, width), unit length, of the last token."""
        backbone = self.embedder.backbone
        embeds = backbone.base.get_input_embeddings()(chunk.ids)
        if towers.features:
            places = (chunk.ids == backbone.model.config.image_token_id)[..., None]
            embeds = embeds.masked_scatter(places, towers.features["vision"][0].to(embeds.dtype))
        hidden = self.language(
            inputs_embeds=embeds, attention_mask=chunk.mask, position_ids=chunk.positions, use_cache=False
        ).last_hidden_state
        if switches.head:
            backbone.logits(hidden)  # the stock class computes them, and nobody reads them
        return F.normalize(hidden[:, -1].float(), dim=-1)

    @cached_property
    def entries(self) -> dict[int, Inputs]:
        """Every entry as a row of its own: its part of the packed rows."""
        image, found = self.embedder.backbone.model.config.image_token_id, {}
        for planned, chunk in zip(self.plan.chunks, self.chunks, strict=True):
            start = patch = picture = 0
            for entry, length in zip(planned.entries, chunk.lengths, strict=False):
                span = slice(start, start + length)
                start += length
                patches = 4 * int((chunk.ids[span] == image).sum())
                media = {}
                if patches:
                    media = {
                        "image_patches": chunk.media["image_patches"][patch : patch + patches],
                        "image_grid": chunk.media["image_grid"][picture : picture + 1],
                    }
                    patch, picture = patch + patches, picture + 1
                found[entry] = replace(chunk, ids=chunk.ids[span], positions=chunk.positions[:, span], media=media)
        return found

    @cached_property
    def batch_chunks(self) -> list[Padded]:
        """Queries and documents apart, each side padded to its longest row, eight rows a chunk in the order given."""
        queries, every = len(self.plan.keys), len(self.plan.costs)
        sides = [list(range(queries)), list(range(queries, every))]
        return [c for side in sides for c in self._cut(side, max(self.plan.costs[e].tokens for e in side))]

    @cached_property
    def sorted_chunks(self) -> list[Padded]:
        order = sorted(range(len(self.plan.costs)), key=lambda e: -self.plan.costs[e].tokens)
        return list(self._cut(order, None))

    def _cut(self, entries: list[int], width: int | None) -> Iterator[Padded]:
        for i in range(0, len(entries), COUNT):
            some = entries[i : i + COUNT]
            yield self._pad(some, width or max(self.plan.costs[e].tokens for e in some))

    def _pad(self, entries: list[int], width: int) -> Padded:
        rows = [self.entries[e] for e in entries]
        ids = torch.zeros(len(rows), width, dtype=torch.int64, device=self.device)
        mask, positions = torch.zeros_like(ids), torch.ones(3, *ids.shape, dtype=torch.int64, device=self.device)
        for i, row in enumerate(rows):
            n = len(row.ids)
            ids[i, width - n :], mask[i, width - n :], positions[:, i, width - n :] = row.ids, 1, row.positions
        seen = [r for r in rows if r.media]
        media = {k: torch.cat([r.media[k] for r in seen]) for k in seen[0].media} if seen else {}
        return Padded(tuple(entries), ids, mask, positions, replace(rows[0], media=media) if seen else None)

    def computed(self, name: str) -> int:
        """Tokens that the language model computes in one pass, padding included."""
        if name in OURS:
            return sum(sum(c.lengths) for c in self.chunks)
        return sum(c.ids.numel() for c in (self.sorted_chunks if LOOPS[name].sort else self.batch_chunks))

    def gradient(self) -> Tensor:
        """Every k-th element, float32."""
        trained = [p for p in self.embedder.parameters() if p.grad is not None]
        stride = max(1, sum(p.numel() for p in trained) // SAMPLED)
        return torch.cat([p.grad.flatten()[::stride].float() for p in trained if p.grad is not None])


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def check(bench: Bench, names: Sequence[str], limit: float | None) -> dict[str, Any]:
    """Each variant's loss and gradient against ours; limit None: thrice the distance of ours to itself, repacked."""
    loss, found = bench.ours("boundaries"), {}
    gradient = bench.gradient()
    if limit is None:
        bench.engine.forget()
        plan, chunks = bench.planned(bench.size.budget * 3 // 4)
        bench.ours("boundaries", plan, [c.to(bench.device) for c in chunks])
        limit = max(0.02, 3 * apart(bench.gradient(), gradient))
    for name in names:
        other = attempt(bench, name)
        if other is None:
            continue
        found[name] = apart(bench.gradient(), gradient)
        if abs(other - loss) > limit * abs(loss) or found[name] > limit:
            raise SystemExit(
                f"{name}: loss {other} against {loss}, gradients {found[name]:.1e} apart, limit {limit:.1e}: "
                "the variants do not compute the same, so nothing was timed"
            )
    bench.engine.forget()
    return {"limit": limit, "gradients_apart": found}


def attempt(bench: Bench, name: str) -> float | None:
    """A step; None where the device has not the memory for it."""
    try:
        return bench.step(name)
    except (torch.OutOfMemoryError, NoMemoryError):
        pass  # its frames hold the graph until here
    bench.engine.forget()
    gc.collect()
    torch.cuda.empty_cache()
    return None


def clock(device: torch.device) -> float:
    """Seconds: of the wall behind the device's queue, or of the one thread of a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def measure(bench: Bench, names: Sequence[str], repeats: int) -> dict[str, dict[str, Any]]:
    """Interleaved rounds, the order drawn anew in each; the step that `check` ran was the warm-up."""
    cuda, draw = bench.device.type == "cuda", random.Random(0)
    seconds: dict[str, list[float]] = {n: [] for n in names}
    peaks: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name in draw.sample(names, len(names)):
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(bench.device)
            start = clock(bench.device)
            if attempt(bench, name) is None:
                continue
            seconds[name].append(clock(bench.device) - start)
            if cuda:
                memory = torch.cuda.max_memory_allocated(bench.device), torch.cuda.max_memory_reserved(bench.device)
                peaks[name] = [round(m / 2**30, 2) for m in memory]
    peak = peak_flops(torch.cuda.get_device_name(bench.device)) if cuda else 0.0
    return {
        n: figures(bench, n, s, peak, peaks.get(n)) if s else {"error": "out of memory"} for n, s in seconds.items()
    }


def figures(bench: Bench, name: str, seconds: list[float], peak: float, memory: list[float] | None) -> dict[str, Any]:
    typical = median(seconds)
    return {
        "seconds": [round(s, 4) for s in seconds],
        "pairs_per_s": round(len(bench.rows) / typical, 3),
        "tokens_per_s": round(bench.plan.tokens / typical, 1),
        "mfu": round(bench.flops / typical / peak, 4) if peak else None,
        "computed_over_real_tokens": round(bench.computed(name) / bench.plan.tokens, 3),
        "peak_allocated_and_reserved_gib": memory,
    }


def compare(args: Any, mode: str, mix: str, device: torch.device, repeats: int, pairs: int) -> dict[str, Any]:
    """One model and mix: all variants, and the ratio of each to the line before it and of the loop to ours."""
    exact = Bench(args, "miniature", mode, "small_mixed", device, 6, low=False)
    names = exact.variants(mode)
    result: dict[str, Any] = {"exact": check(exact, names, 1e-4)}
    del exact
    size, mix, pairs = ("miniature", "small_mixed", 6) if args.miniature else (args.size, mix, pairs)
    bench = Bench(args, size, mode, mix, device, pairs, low=True)
    result["at_size"] = check(bench, names, None)
    result |= {"pairs": len(bench.rows), "real_tokens": bench.plan.tokens, "model_tflop": bench.flops / 1e12}
    found = result["variants"] = measure(bench, names, repeats)
    timed = [n for n in names if len(found[n].get("seconds", ())) == repeats]
    ratio: Callable[[str, str], list[float]] = lambda a, b: [  # noqa: E731
        round(x, 3) for x in ratio_interval(found[a]["seconds"], found[b]["seconds"])
    ]
    result["gain_of_each_switch"] = {b: ratio(a, b) for a, b in pairwise(timed)}
    if {"vlm2vec", "boundaries"} <= set(timed):
        result["speed_ratio"] = ratio("vlm2vec", "boundaries")
    return result


def machine(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"device": "CPU: its times say nothing of a GPU's"}
    found = torch.cuda.get_device_properties(device)
    return {"device": found.name, "gib": round(found.total_memory / 2**30, 1), "cuda": torch.version.cuda}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="LoRA on mixed rows alone, few pairs, three rounds")
    parser.add_argument("--record", action="store_true", help="write docs/results/gpu_SIZE[_MODE][_MIX].json")
    parser.add_argument("--miniature", action="store_true", help="a tiny model, to see that the script runs")
    parser.add_argument("--size", choices=[s for s in SIZES if s != "miniature"], default="2b")
    parser.add_argument("--mode", choices=["lora", "full"], help="this alone")
    parser.add_argument("--mix", choices=["text_and_pictures", "pictures"], help="this alone")
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--checkpointing", action="store_true", help="in the loop too, as always at 7B")
    parser.add_argument("--dora", action="store_true", help="DoRA in place of LoRA, as VLM2Vec trains")
    parser.add_argument("--quantized", choices=["", "nf4", "int8"], default="", help="the base of LoRA")
    parser.add_argument("--compile", action="store_true", help="norms and feed-forward maps, of every variant")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (args.miniature or torch.cuda.is_available()):
        raise SystemExit("no CUDA device here: benchmarks/gpu.py measures one; --miniature shows that the script runs")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    quick = args.quick or args.miniature
    modes = [args.mode] if args.mode else ["lora"] if args.quick else ["lora", "full"]
    mixes = [args.mix] if args.mix else ["text_and_pictures"] if quick else ["text_and_pictures", "pictures"]
    repeats, pairs = (2 if args.miniature else 3, 32) if quick else (args.repeats, args.pairs)
    found = {m: {x: compare(args, m, x, device, repeats, pairs) for x in mixes} for m in modes}
    size = "miniature" if args.miniature else args.size
    name = "_".join(["gpu", size, *(x for x in (args.mode, args.mix) if x)])
    record(name, {"size": size, "gpu": machine(device), **found})


if __name__ == "__main__":
    main()
