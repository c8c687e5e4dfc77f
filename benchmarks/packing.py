"""What padding costs: our packed step against a padded batch, and against padded chunks, on the same rows.

    python benchmarks/packing.py [--quick] [--record]

ours: sorted by length, cut by token budget, packed. batch: every row of the batch padded to its longest on the left,
then chunks of 8 rows, as VLM2Vec trains. chunk: rows in the order given, cut by a budget of real tokens, each chunk
padded to its own longest, as sentence-transformers 6.2 trains models that take pictures. The padded two are written
here, after those projects' code, over the stock model with its own sdpa attention. All three are the two-pass cached
step (arXiv:2101.06983) without a language-model head or activation checkpointing, so that nothing but padding differs;
what our step saves beside is measured by step.py. Timed is the model's work, in processor seconds of one thread:
chunks are collated, and the baselines' padded, before the clock starts. Loss and gradients are compared before
anything is timed.

A narrow model spends more of its time in attention, which is quadratic in the padded length, than a wide one: for
large models expect time ratios nearer to the ratios of tokens, which hold for any model.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import median, pairs, ratio_interval, record, run
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.parts import probe
from omni2vec.data.types import Blob, Clock, Example, Item, Limits, Part, Text
from omni2vec.model.backbones.tiny import Tiny, build
from omni2vec.model.types import Inputs
from omni2vec.train.engine import Local
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW
from omni2vec.train.step import Bound, cached_step
from torch import Tensor

Row = tuple[str, int, int]  # a kind of item, its fewest and its most tokens
TEXT, PICTURE, CLIP = ("text", 16, 128), ("picture", 64, 1024), ("clip", 512, 3000)
MIXES: dict[str, list[tuple[float, Row]]] = {
    "mixed": [(0.4, TEXT), (0.4, PICTURE), (0.2, CLIP)],
    "text_and_pictures": [(0.5, TEXT), (0.5, PICTURE)],
    "pictures": [(1.0, PICTURE)],
}
# Shorter rows, for benchmarks where the lengths are not the point.
SMALL: dict[str, list[tuple[float, Row]]] = {
    "small_mixed": [(0.5, ("text", 12, 64)), (0.5, ("picture", 16, 100))],
    "small_pictures": [(1.0, ("picture", 16, 100))],
}
SIDES = ("ours", "batch", "chunk")
BUDGET = 4096  # tokens a chunk
COUNT = 8  # rows a chunk of side "batch"
FRAMES = 16
MERGED = 8  # pixels of a media token's side: patches of 4, merged 2 by 2
WORDS = [f"w{i}" for i in range(200)]


@dataclass(frozen=True)
class Pairs:
    """Pairs of a query and its answer, whose kinds and lengths are drawn apart."""

    mix: str
    size: int
    seed: int = 0
    digest: str = ""

    @property
    def name(self) -> str:
        return self.mix

    def open(self, where: object) -> Pairs:
        return self

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        query, answer = self.items[2 * index : 2 * index + 2]
        return Example(f"{self.mix}/{index}", self.mix, "retrieval", query, (answer,))

    @cached_property
    def items(self) -> list[Item]:
        """Two a pair. The shares of the kinds are exact, their order and the lengths are drawn."""
        draw, shares = random.Random(self.seed), {**MIXES, **SMALL}[self.mix]
        kinds = [kind for share, kind in shares for _ in range(round(share * 2 * self.size))]
        kinds = (kinds + [shares[0][1]] * (2 * self.size))[: 2 * self.size]
        draw.shuffle(kinds)
        return [
            Item((_part(kind, draw.randint(low, high), draw),), str(i)) for i, (kind, low, high) in enumerate(kinds)
        ]


def _part(kind: str, tokens: int, draw: random.Random) -> Part:
    if kind == "text":
        return Text(" ".join(draw.choice(WORDS) for _ in range(tokens - 8)))
    per_frame = tokens if kind == "picture" else tokens * 2 // FRAMES
    rows = round(per_frame**0.5)
    shape = (rows * MERGED, round(per_frame / rows) * MERGED)
    return _noise(shape, 1 if kind == "picture" else FRAMES, draw.randrange(1 << 30))


def _noise(shape: tuple[int, int], frames: int, seed: int) -> Part:
    """A picture (PNG) or a clip (GIF, two frames a second) of grey noise, height and width in pixels."""
    from PIL import Image

    noise = np.random.default_rng(seed).integers(0, 256, (frames, *shape), dtype=np.uint8)
    first, *rest = [Image.fromarray(frame) for frame in noise]
    file = io.BytesIO()
    if rest:
        first.save(file, "GIF", save_all=True, append_images=rest, duration=500)
    else:
        first.save(file, "PNG", compress_level=1)
    return probe("video" if rest else "image", Blob(file.getvalue()), "noise")


class Plain(Local):
    """Without activation checkpointing, which the padded sides do without as well."""

    def checkpointing(self, on: bool) -> None:
        super().checkpointing(False)


class Bench:
    """One batch of one mix, and a step on it by any side."""

    def __init__(self, mix: str, size: int) -> None:
        limits = Limits(8192, max_pixels=1 << 24, min_pixels=MERGED**2, max_frames=FRAMES, max_video_pixels=1 << 24)
        tiny = Tiny((), width=128, layers=2, heads=2, vision=32, depth=1, patch=4, vocabulary=800, limits=limits)
        self.embedder = build(tiny, [" ".join(WORDS)] * 5).train()
        rows = Pairs(mix, size)
        self.loader: Loader[Inputs] = Loader(
            [rows],
            [Feed(rows)],
            self.embedder.format,
            limits,
            batch=size,
            sub_batch=size,
            seed=0,
            budget=BUDGET,
            stop=1,
        )
        self.plan = self.loader.plan(0)

    def real(self) -> int:
        return self.plan.tokens

    def packed(self) -> tuple[Any, int]:
        """Our step, ready to run, and the tokens that it computes."""
        engine = Plain(self.embedder, AdamW())
        chunks = list(self.loader.chunks(self.plan))
        bound = Bound("default", (InfoNCE(),), frozenset([0]))

        def step() -> float:
            done = cached_step(engine, self.plan, chunks, [bound], Clock(0, 0.0, 0), "vectors")
            return done.loss

        return step, sum(sum(c.lengths) for c in chunks)

    def tower(self) -> Any:
        """The vision tower's part of a two-pass step: the same work on every side, for none of them pads pictures."""
        chunks = [c for c in self.loader.chunks(self.plan) if c.media]

        def step() -> None:
            for chunk in chunks:
                with torch.no_grad():
                    self.embedder.base.towers(chunk)
                self.embedder.base.towers(chunk).features["vision"][0].sum().backward()

        return step

    def padded(self, side: str) -> tuple[Any, int]:
        """A baseline's step, ready to run, and the tokens that it computes, padding included."""
        model = self.embedder.backbone.model
        model.set_attn_implementation("sdpa")
        queries, docs = len(self.plan.keys), len(self.plan.costs) - len(self.plan.keys)
        sides = (range(queries), range(queries, queries + docs))  # each is a batch of its own, as in both projects
        chunks = [c for entries in sides for c in self._padded(side, list(entries))]

        def embed(chunk: dict[str, Tensor]) -> Tensor:
            hidden = model.model(**chunk, use_cache=False).last_hidden_state
            last = chunk["attention_mask"].shape[1] - 1 - chunk["attention_mask"].flip(1).argmax(1)
            return F.normalize(hidden[torch.arange(len(hidden)), last], dim=-1)

        def step() -> float:
            with torch.no_grad():
                vectors = torch.cat([embed(c) for c in chunks]).requires_grad_()
            logits = 50.0 * vectors[:queries] @ vectors[queries:].T
            loss = F.cross_entropy(logits, torch.arange(queries))
            loss.backward()
            assert vectors.grad is not None
            for chunk, gradient in zip(chunks, vectors.grad.split([len(c["input_ids"]) for c in chunks]), strict=True):
                embed(chunk).backward(gradient)
            return float(loss.detach())

        return step, sum(c["input_ids"].numel() for c in chunks)

    def _padded(self, side: str, entries: list[int]) -> Iterator[dict[str, Tensor]]:
        longest = max(self.plan.costs[e].tokens for e in entries)
        if side == "batch":
            for i in range(0, len(entries), COUNT):
                yield self._pad(entries[i : i + COUNT], longest, left=True)
            return
        chunk: list[int] = []
        for e in [*entries, None]:
            tokens = sum(self.plan.costs[c].tokens for c in chunk)
            if chunk and (e is None or tokens + self.plan.costs[e].tokens > BUDGET):
                yield self._pad(chunk, max(self.plan.costs[c].tokens for c in chunk), left=False)
                chunk = []
            if e is not None:
                chunk.append(e)

    def _pad(self, entries: Sequence[int], width: int, left: bool) -> dict[str, Tensor]:
        """The stock model's inputs: the same tokens, patches and positions as in the packed rows."""
        alone = [self._alone[e] for e in entries]
        out = {
            "input_ids": torch.zeros(len(alone), width, dtype=torch.int64),
            "attention_mask": torch.zeros(len(alone), width, dtype=torch.int64),
            "position_ids": torch.ones(3, len(alone), width, dtype=torch.int64),
        }
        for i, inputs in enumerate(alone):
            n = len(inputs.ids)
            at = slice(width - n, width) if left else slice(0, n)
            out["input_ids"][i, at], out["attention_mask"][i, at] = inputs.ids, 1
            out["position_ids"][:, i, at] = inputs.positions
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            patches = [inputs.media[f"{kind}_patches"] for inputs in alone if f"{kind}_patches" in inputs.media]
            if patches:
                out[pixels] = self._normalised(torch.cat(patches))
                out[f"{kind}_grid_thw"] = torch.cat(
                    [x.media[f"{kind}_grid"] for x in alone if f"{kind}_grid" in x.media]
                )
        return out

    def _normalised(self, patches: Tensor) -> Tensor:
        processor = self.embedder.backbone.processor.image_processor
        mean, std = (torch.tensor(x)[:, None] for x in (processor.image_mean, processor.image_std))
        return ((patches.unflatten(1, (3, -1)) / 255 - mean) / std).flatten(1)

    @cached_property
    def _alone(self) -> dict[int, Inputs]:
        """Every entry as a row of its own: its part of the packed rows."""
        plan, alone = self.plan, {}
        for chunk in plan.chunks:
            for e in chunk.entries:
                one = self.loader._work.collate([(plan.addresses[plan.slots[e][0]], plan.slots[e][1])], ())
                alone[e] = one
        return alone

    def side(self, side: str) -> tuple[Any, int]:
        return self.packed() if side == "ours" else self.padded(side)


def check(mix: str, size: int) -> dict[str, Any]:
    """Loss and gradients of every side, against ours: the greatest difference over the gradient's scale."""
    found = {}
    for name in SIDES:
        bench = Bench(mix, size)
        step, tokens = bench.side(name)
        loss = step()
        gradients = {n: p.grad for n, p in bench.embedder.named_parameters() if p.grad is not None}
        found[name] = (loss, gradients, tokens / bench.real())
    loss, gradients, _ = found["ours"]
    worst = 0.0
    for name, (other, others, _) in found.items():
        if abs(other - loss) > 1e-4 * abs(loss) or others.keys() != gradients.keys():
            raise SystemExit(f"{mix}: the loss of {name} is {other}, ours {loss}; the sides do not compute the same")
        scale = max(float(g.abs().max()) for g in gradients.values())
        worst = max(worst, *(float((others[n] - g).abs().max()) / scale for n, g in gradients.items()))
    if worst > 1e-4:
        raise SystemExit(f"{mix}: gradients differ by {worst:.1e} of their scale; the sides do not compute the same")
    return {"gradient_difference": worst, "tokens": {name: ratio for name, (_, _, ratio) in found.items()}}


def timed(name: str, mix: str, size: int, repeats: int) -> dict[str, Any]:
    """Seconds of one step, the least of `repeats`, after one on a pair to warm up; and of its vision tower alone."""
    Bench("text_and_pictures", 1).side(name)[0]()
    bench = Bench(mix, size)
    step, _ = bench.side(name)
    found = {"seconds": min(_seconds(step) for _ in range(repeats))}
    return found | ({"tower": _seconds(bench.tower())} if name == "ours" else {})


def _seconds(step: Any) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def compare(mix: str, size: int, n: int, repeats: int, budget_s: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--mix", mix, "--repeats", str(repeats), "--size", str(size), "--side"]
    found = run([*command, "check"])
    for other in ("batch", "chunk"):
        result = pairs([*command, other], [*command, "ours"], n, budget_s / 2)
        found["tower_share"] = round(median(result.b("tower")) / median(result.b("seconds")), 3)
        ratio, low, high = ratio_interval(result.a("seconds"), result.b("seconds"))
        found[other] = {
            "time": round(ratio, 2),
            "interval": [round(low, 2), round(high, 2)],
            "pairs": len(result),
            "seconds": [round(median(result.a("seconds")), 3), round(median(result.b("seconds")), 3)],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one mix, few pairs, under a minute")
    parser.add_argument("--record", action="store_true", help="keep the result in docs/results/packing.json")
    parser.add_argument("--mix", choices=MIXES, help="this mix alone")
    parser.add_argument("--size", type=int, default=0, help="pairs in the batch")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15, help="fresh processes of each side")
    parser.add_argument("--side", choices=[*SIDES, "check"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = given.size or (5 if given.quick else 10)
    if given.side:
        torch.set_num_threads(1)
        mix = given.mix or "mixed"
        result = check(mix, size) if given.side == "check" else timed(given.side, mix, size, given.repeats)
        print(json.dumps(result))
        return
    mixes = [given.mix] if given.mix else ["mixed"] if given.quick else list(MIXES)
    n, budget_s = (3, 36.0) if given.quick else (given.pairs, float("inf"))
    found = {mix: compare(mix, size, n, given.repeats, budget_s) for mix in mixes}
    first = found[mixes[0]]
    record(
        "packing",
        {
            "vs_batch_padded": first["batch"]["time"],
            "vs_batch_padded_interval": first["batch"]["interval"],
            "vs_chunk_padded": first["chunk"]["time"],
            "vs_chunk_padded_interval": first["chunk"]["interval"],
            "computed_over_real_tokens": first["tokens"]["ours"],
            "tokens_batch_padded": round(first["tokens"]["batch"], 3),
            "tokens_chunk_padded": round(first["tokens"]["chunk"], 3),
            "rows": 2 * size,
            "mixes": found,
        },
    )


if __name__ == "__main__":
    main()
