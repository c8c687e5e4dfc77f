"""One update of the same model on the same rows: ours against sentence-transformers at its best setting.

    python benchmarks/versus_sentence_transformers.py [--quick] [--record]

Both start from one folder with a small random Qwen2-VL, saved as a sentence-transformers model. Theirs: the cached
loss (CachedMultipleNegativesRankingLoss) with mini-batches by token budget where it has them and by count, and the
plain loss (MultipleNegativesRankingLoss), which holds every graph; the fastest of them is the one compared. Ours: the
cached step with the plan "all" if that takes no more memory than theirs, else with "boundaries". An update is
preprocessing, forward, loss, backward and AdamW. Losses and vectors are compared; memory is the peak above what the
process held before the first update. Times are CPU seconds of the one thread, which a busy machine disturbs less than
the clock on the wall. mixed: half the items texts of 12 to 64 tokens, half pictures of 16 to 100; pictures: pictures
alone.
"""

from __future__ import annotations

import argparse
import inspect
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import median, pairs, peak_rss_mb, ratio_interval, record, reset_peak_rss, rss_mb, run
from omni2vec import Embedder
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.types import Clock, Image, Item, Limits, Text
from omni2vec.model.backbones.tiny import Tiny, build
from omni2vec.train.engine import Local
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW, Schedule
from omni2vec.train.step import Bound, Memory, cached_step
from packing import WORDS, Pairs

MIXES = {"mixed": "small_mixed", "pictures": "small_pictures"}
LIMITS = Limits(4096, max_pixels=1 << 20, min_pixels=64)
SCALE, BUDGET, COUNT = 50.0, 1024, 8
LR = 1e-4
OURS: dict[str, Memory] = {"ours, all": "all", "ours, boundaries": "boundaries"}
THEIRS = ("plain", "count", "tokens")


def prepare(folder: Path) -> None:
    """One model, in the layout that both sides read."""
    from sentence_transformers import SentenceTransformer, models

    tiny = Tiny(
        (), width=128, layers=4, heads=4, vision=64, depth=3, patch=4, vocabulary=800, scale=SCALE, limits=LIMITS
    )
    made = build(tiny, [" ".join(WORDS)] * 5)
    made.save(folder / "ours")
    transformer = models.Transformer(
        str(folder / "ours"), processing_kwargs={"chat_template": {"add_generation_prompt": True}}
    )
    pooling = models.Pooling(made.width, pooling_mode="lasttoken")
    SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device="cpu").save_pretrained(
        str(folder / "theirs")
    )


def plain_input(item: Item) -> Any:
    """An Item as sentence-transformers takes it."""
    from PIL import Image as Picture

    (part,) = item.parts
    if isinstance(part, Text):
        return part.text
    assert isinstance(part, Image)
    return Picture.open(io.BytesIO(part.blob.read())).convert("RGB")


Update = Callable[[], float]


def ours(folder: Path, rows: Pairs, memory: Memory) -> tuple[Update, Callable[[], torch.Tensor]]:
    embedder = Embedder.load(folder / "ours").train()
    engine = Local(embedder, AdamW(lr=LR, weight_decay=0.0, schedule=Schedule("constant", warmup=0)), clip=0.0)
    size = len(rows)
    bounds = (Bound("default", (InfoNCE(),), frozenset({0})),)
    settings: dict[str, Any] = {"batch": size, "sub_batch": size, "seed": 0, "budget": BUDGET}
    loader: Loader[Any] = Loader([rows], [Feed(rows)], embedder.format, embedder.limits, **settings)

    def update() -> float:
        plan = loader.plan(0)
        done = cached_step(engine, plan, loader.chunks(plan), bounds, Clock(0, 0.0, 0), memory)
        engine.update(0, 10)
        return done.loss

    return update, lambda: embedder.encode_items(rows.items)


def theirs(folder: Path, rows: Pairs, kind: str) -> tuple[Update, Callable[[], torch.Tensor]]:
    from sentence_transformers import SentenceTransformer, losses

    model = SentenceTransformer(str(folder / "theirs"), device="cpu").train()
    if kind == "plain":
        loss: Any = losses.MultipleNegativesRankingLoss(model, scale=SCALE)
    else:
        cached: Any = losses.CachedMultipleNegativesRankingLoss
        by_tokens = kind == "tokens"
        if by_tokens and "mini_batch_num_tokens" not in inspect.signature(cached.__init__).parameters:
            raise SystemExit("this release has no mini-batches by tokens")
        loss = cached(
            model, scale=SCALE, **({"mini_batch_num_tokens": BUDGET} if by_tokens else {"mini_batch_size": COUNT})
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    preprocess: Any = getattr(model, "preprocess", None) or model.tokenize

    def update() -> float:
        sides = [[plain_input(item) for item in rows.items[k::2]] for k in (0, 1)]
        value = loss([preprocess(side) for side in sides], torch.arange(len(rows)))
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(value.detach())

    def vectors() -> torch.Tensor:
        return torch.as_tensor(model.encode([plain_input(i) for i in rows.items], show_progress_bar=False))

    return update, vectors


def side(name: str, folder: Path, mix: str, size: int, repeats: int) -> dict[str, Any]:
    """Seconds of an update (the first is not counted), the first's peak memory and loss, vectors after all of them."""
    torch.set_num_threads(1)
    rows = Pairs(MIXES[mix], size)
    update, vectors = ours(folder, rows, OURS[name]) if name in OURS else theirs(folder, rows, name)
    reset_peak_rss()
    before = rss_mb()
    loss = update()
    memory = peak_rss_mb() - before
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        update()
        seconds.append(time.process_time() - start)
    return {"seconds": min(seconds), "memory_mb": memory, "loss": loss, "vectors": vectors()[:4].tolist()}


def compare(folder: Path, mix: str, size: int, n: int, repeats: int, budget_s: float) -> dict[str, Any]:
    def command(name: str) -> list[str]:
        words = {"side": name, "folder": folder, "mix": mix, "size": size, "repeats": repeats}
        return [sys.executable, __file__, *(x for k, v in words.items() for x in (f"--{k}", str(v)))]

    found: dict[str, dict[str, Any]] = {}
    for name in (*OURS, *THEIRS):
        try:
            found[name] = run(command(name))
        except RuntimeError as error:
            if name in OURS:
                raise
            found[name] = {"seconds": float("inf"), "error": str(error).strip().splitlines()[-1][:200]}
    best = min(THEIRS, key=lambda k: found[k]["seconds"])
    fits = [k for k in OURS if found[k]["memory_mb"] <= found[best]["memory_mb"]] or ["ours, boundaries"]
    mine = min(fits, key=lambda k: found[k]["seconds"])
    apart = max(abs(found[mine]["loss"] - v["loss"]) for v in found.values() if "loss" in v)
    cosine = torch.nn.functional.cosine_similarity(
        torch.tensor(found[mine]["vectors"]), torch.tensor(found[best]["vectors"])
    )
    if apart > 1e-3 * abs(found[mine]["loss"]) or float(cosine.min()) < 0.9999:
        raise AssertionError(
            f"{mix}: losses {apart:.2e} apart, cosine {float(cosine.min()):.6f}: not the same function"
        )
    timed = pairs(command(mine), command(best), n=n, budget_s=budget_s)
    speed, low, high = ratio_interval(timed.b("seconds"), timed.a("seconds"))
    return {
        "speed_ratio": speed,
        "speed_interval": [low, high],
        "memory_ratio": median(timed.a("memory_mb")) / median(timed.b("memory_mb")),
        "loss_difference": apart,
        "least_cosine_after_updates": float(cosine.min()),
        "compared": [mine, best],
        "one_run_of_each": {
            k: v.get("error") or {"seconds": round(v["seconds"], 3), "memory_mb": round(v["memory_mb"], 1)}
            for k, v in found.items()
        },
        "pairs": len(timed),
        "rows": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--record", action="store_true", help="write docs/results/versus_sentence_transformers.json")
    for hidden, kind in (("--side", str), ("--folder", Path), ("--mix", str), ("--size", int), ("--repeats", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(side(args.side, args.folder, args.mix, args.size, args.repeats)))
        return
    size, n, repeats, budget_s = (8, 1, 2, 1.0) if args.quick else (32, 5, 3, 90.0)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        mixes = ["mixed"] if args.quick else list(MIXES)
        result = {mix: compare(Path(folder), mix, size, n, repeats, budget_s) for mix in mixes}
    named = {k: result["mixed"][k] for k in ("speed_ratio", "memory_ratio", "loss_difference")}
    record("versus_sentence_transformers", {**named, **result})


if __name__ == "__main__":
    main()
