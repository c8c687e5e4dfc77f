"""The loader against webdataset on the same shards: records read, training batches decoded; and how both slopes lie.

    python benchmarks/loader.py [--quick] [--record] [--only read|end_to_end|slopes]

read: records a second from warm local shards of a 50 kB JPEG and a JSON each, in one process. A record is its key, its
JSON parsed, and its picture's encoded bytes at hand. webdataset: `WebDataset(shards)` in order and `json.loads`; the
picture is a bytes object. Ours, in random order (`read_ratio`) and in order (`_sequential`): `Shard.index.key`,
`json.loads` of `Shard.json`, and a view of the mapped shard at the address that `Index.media` gives; `_copied`, in
random order: the picture copied to a bytes object. `_examples`: more than webdataset gives, `ShardRows[i]`, a checked
Example with every id and size, and the view; in random order.

end_to_end: training batches a second of 32 pairs (a 1280 x 960 JPEG of `images.py` with an instruction; a caption), one
worker process and the consuming one on either side, wall-clock, warm. webdataset: shuffle(1000), decode("pilrgb"),
batched, Qwen2-VL's own processor (fast picture processor, tokenizer, padding=True) in the worker of a WebLoader. Ours:
`Loader` with the Qwen2-VL format: order, count, plan, decode, collate, pack; drafts or `exact`. Same pictures, prompts
and pixel budget; tokens are compared first. Their pixels are float32 and normalised; ours are uint8 and are normalised
by the model, on the device.

slopes: from opening the sources to the first batch, planned and collated (64 short texts, no worker), in a fresh
process whose imports are done: 1,000 sources over 1, 100,000 shards over 10 (links to four tars under one catalogue).
Memory is the process's peak, imports and all; `own_mb` is what came on top of what it had before.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from images import picture
from measure import RESULTS, Pairs, median, pairs, peak_rss_mb, ratio_interval, record, reset_peak_rss, rss_mb
from omni2vec.data.catalogue import NAME, Catalogue, Columns, Entry
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.opened import ShardRows
from omni2vec.data.parts.window import view
from omni2vec.data.shards import Shard, write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import Blob, Example, Image, Item, Limits, Rows
from omni2vec.model.backbones.tiny import Tiny, build
from packing import WORDS

INSTRUCTION = "Find the caption of the picture."
LIMITS = Limits(2048, max_pixels=336 * 28 * 28, min_pixels=4 * 28 * 28)
BATCH = 32
TEXTS = 64  # rows of the slopes' first batch
SIZES = {"sources": (1, 1000), "shards": (10, 100_000)}


def nowhere(step: object) -> Path:
    raise AssertionError(f"no step is needed, asked for {step}")


def captioned(count: int, pictures: list[tuple[bytes, int, int]]) -> Iterator[Example]:
    """Pictures in turn, each file made different by a comment, and captions of 24 words."""
    draw = random.Random(0)
    for i in range(count):
        data, width, height = pictures[i % len(pictures)]
        own = data[:-2] + b"\xff\xfe\x00\x0a" + f"{i:08d}".encode() + data[-2:]
        caption = Item.text(" ".join(draw.choice(WORDS) for _ in range(24)))
        query = Item((Image(Blob(own), width, height),))
        yield Example(f"pairs/{i}", "pairs", "retrieval", query, (caption,), instruction=INSTRUCTION)


def smaller(data: bytes) -> tuple[bytes, int, int]:
    out = BytesIO()
    PIL.Image.open(BytesIO(data)).resize((512, 384)).save(out, "JPEG", quality=92)
    return out.getvalue(), 512, 384


def prepare(folder: Path, quick: bool) -> None:
    whole = [picture(seed, grain=2.4 + 0.35 * seed) for seed in range(2 if quick else 8)]
    small = [smaller(data) for data in whole]
    write_shards(captioned(600 if quick else 4000, small), folder / "read", max_bytes=32 << 20)
    write_shards(captioned(256, [(data, 1280, 960) for data in whole]), folder / "pairs", max_bytes=12 << 20)


def tars(folder: Path) -> list[str]:
    return [str(p) for p in sorted(folder.glob("*.tar"))]


# Records


def read_ours(folder: Path, passes: int) -> dict[str, float]:
    rows = Shards(str(folder / "read"), name="pairs").open(nowhere)
    shards = [Shard(path) for path in tars(folder / "read")]
    order = [(shard, i) for shard in shards for i in range(len(shard))]
    assert len(order) == len(rows)
    mixed = random.Random(0).sample(order, len(order))

    def records(places: list[tuple[Shard, int]], take: Callable[[Blob], object]) -> None:
        for shard, i in places:
            shard.index.key(i)
            json.loads(shard.json(i))
            for part in shard.index.media(i, str(shard.path)).values():
                take(part.blob)  # type: ignore[union-attr]

    def examples() -> None:
        for i in random.Random(0).sample(range(len(rows)), len(rows)):
            view(rows[i].query.parts[0].blob)  # type: ignore[union-attr]

    sides: dict[str, Callable[[], None]] = {
        "random": lambda: records(mixed, view),
        "sequential": lambda: records(order, view),
        "copied": lambda: records(mixed, lambda blob: bytes(view(blob))),
        "examples": examples,
    }
    return {name: rate(work, len(order), passes) for name, work in sides.items()}


def read_webdataset(folder: Path, passes: int) -> dict[str, float]:
    import webdataset

    paths, count = tars(folder / "read"), 0

    def work() -> None:
        nonlocal count
        count = 0
        for sample in webdataset.WebDataset(paths, shardshuffle=False):
            json.loads(sample["json"])
            assert len(sample["query.0.jpg"]) > 1000
            count += 1

    work()
    return {"rate": rate(work, count, passes)}


def rate(work: Callable[[], None], count: int, passes: int) -> float:
    """Of the median pass, after one to warm up."""
    times: list[float] = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return count / median(times[1:])


# Batches


def model() -> Any:
    size = {"width": 32, "layers": 1, "heads": 4, "vision": 32, "depth": 1}  # only its tokenizer and processor are used
    return build(Tiny((), patch=14, limits=LIMITS, **size), [*WORDS, INSTRUCTION])


def loader(embedder: Any, rows: Rows, limits: Limits, workers: int) -> Loader[Any]:
    feed = Feed(Shards("pairs"))
    return Loader(
        [rows], [feed], embedder.format, limits, batch=BATCH, sub_batch=BATCH, seed=0, budget=4096, workers=workers
    )


def batches_ours(folder: Path, batches: int) -> dict[str, float]:
    embedder = model()
    rows = Shards(str(folder / "pairs"), name="pairs").open(nowhere)
    found: dict[str, float] = {}
    for name, draft in (("draft", True), ("exact", False)):
        limits = Limits(LIMITS.max_tokens, LIMITS.max_pixels, LIMITS.min_pixels, draft=draft)
        with loader(embedder, rows, limits, 1) as ours:
            found[name] = flow((sum(1 for _ in chunks) for _, chunks in ours), batches)
            found["tokens"] = ours.plan(0).tokens
    return found


def batches_webdataset(folder: Path, batches: int) -> dict[str, float]:
    """What a user of webdataset and transformers writes."""
    import webdataset

    embedder = model()
    processor = embedder.backbone.processor
    mark, template = "<|vision_start|><|image_pad|><|vision_end|>", processor.tokenizer.apply_chat_template
    asked = template([{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": mark}],
                     tokenize=False, add_generation_prompt=True)  # fmt: skip
    answered = template([{"role": "user", "content": "{}"}], tokenize=False, add_generation_prompt=True)

    def process(samples: list[dict[str, Any]]) -> tuple[Any, Any]:
        captions = [answered.format(s["json"]["positives"][0]["parts"][0]["text"]) for s in samples]
        pictures = [s["query.0.jpg"] for s in samples]
        query = processor(text=[asked] * len(samples), images=pictures, padding=True, return_tensors="pt")
        return query, processor.tokenizer(captions, padding=True, return_tensors="pt")

    data = webdataset.WebDataset(tars(folder / "pairs"), shardshuffle=100, seed=0).repeat().shuffle(1000)
    batched = data.decode("pilrgb").batched(BATCH, collation_fn=None, partial=False).map(process)
    found: dict[str, float] = {}

    def sizes() -> Iterator[int]:
        for query, docs in webdataset.WebLoader(batched, batch_size=None, num_workers=1):
            found["tokens"] = float(query["attention_mask"].sum() + docs["attention_mask"].sum())
            yield int(query["input_ids"].numel())

    return {"rate": flow(sizes(), batches), **found}


def flow(steps: Iterator[int], count: int) -> float:
    """Batches a second over `count` of them, after four: the pipeline is full then, and its queue as full as later."""
    for _ in range(4):
        next(steps)
    start = time.perf_counter()
    for _ in range(count):
        next(steps)
    return count / (time.perf_counter() - start)


# Slopes


def texts(name: str, count: int) -> Iterator[Example]:
    draw = random.Random(name)
    for i in range(count):
        query, answer = (Item.text(" ".join(draw.choice(WORDS) for _ in range(8))) for _ in range(2))
        yield Example(f"{name}/{i}", name, "retrieval", query, (answer,))


def make_sources(folder: Path, count: int) -> None:
    for i in range(count):
        write_shards(texts(f"s{i:04d}", 8), folder / f"s{i:04d}")


def make_shards(folder: Path, count: int) -> None:
    """Links to four tars of 100 rows, and the catalogue of them all."""
    columns, real = Columns(), []
    for k in range(4):
        (path,) = write_shards(texts(f"many{k}", 100), folder / "real" / str(k))
        real.append((path.absolute(), Shard(path).index))
    (folder / "many").mkdir()
    for i in range(count):
        path, index = real[i % 4]
        name = f"shard-{i:06d}.tar"
        (folder / "many" / name).symlink_to(path)
        (folder / "many" / f"{name}.index").symlink_to(f"{path}.index")
        told = index.about
        columns.add(Entry(name, 100, told["tar_bytes"], told["tar_digest"], told["tar_quick"], f"{i:032x}"))
    Catalogue.of(folder / "many", columns).write(folder / NAME)


def first_batch(kind: str, folder: Path) -> dict[str, float]:
    """Seconds and memory from opening to the first batch's rows, planned and collated."""
    torch.set_num_threads(1)
    embedder = model()
    warm = Shards(str(folder.parent / "warm"), name="warm")
    begun(embedder, [warm.open(nowhere)])  # imports and the tokenizer's first call
    reset_peak_rss()
    before, start = rss_mb(), time.perf_counter()
    if kind == "sources":
        rows: list[Rows] = [Shards(str(f)).open(nowhere) for f in sorted(folder.iterdir())]
    else:
        rows = [ShardRows("many", Catalogue.read(folder / NAME, folder / "many"))]
    begun(embedder, rows)
    return {"seconds": time.perf_counter() - start, "peak_mb": peak_rss_mb(), "own_mb": peak_rss_mb() - before}


def open_once(folders: Iterable[Path]) -> None:
    """So that their catalogues are settled: one that is younger than two seconds is looked through again."""
    time.sleep(2.1)
    for folder in folders:
        Shards(str(folder)).open(nowhere)


def begun(embedder: Any, rows: list[Rows]) -> None:
    feeds = [Feed(Shards(r.name)) for r in rows]
    with Loader(rows, feeds, embedder.format, LIMITS, batch=TEXTS, sub_batch=8, seed=0, budget=4096) as made:
        plan, chunks = next(iter(made))
        assert len(plan.keys) == TEXTS and sum(len(c.lengths) for c in chunks) == 2 * TEXTS


# What is told


def ratio(name: str, found: Pairs, ours: str, other: str, digits: int = 2) -> dict[str, Any]:
    value, low, high = ratio_interval(found.a(ours), found.b(other))
    return {name: round(value, digits), f"{name}_interval": [round(low, digits), round(high, digits)]}


def command(side: str, folder: Path, repeats: int) -> list[str]:
    return [sys.executable, __file__, "--side", side, "--folder", str(folder), "--repeats", str(repeats)]


def read(folder: Path, n: int, passes: int) -> dict[str, Any]:
    found = pairs(command("read_ours", folder, passes), command("read_webdataset", folder, passes), n)
    names = ("random", "sequential", "copied", "examples")
    result: dict[str, Any] = {}
    for name in names:
        result |= ratio("read_ratio" if name == "random" else f"read_ratio_{name}", found, name, "rate")
    rates = {name: round(median(found.a(name))) for name in names}
    return {**result, "records_per_s": {**rates, "webdataset": round(median(found.b("rate"))), "pairs": len(found)}}


def end_to_end(folder: Path, n: int, batches: int) -> dict[str, Any]:
    found = pairs(command("batches_ours", folder, batches), command("batches_webdataset", folder, batches), n)
    ours, theirs = found.a("tokens")[0] / BATCH, found.b("tokens")[0] / BATCH
    assert abs(ours - theirs) < 1, f"{ours} tokens a pair against {theirs}: the sides do not do the same"
    rates = {k: round(median(found.a(k)), 2) for k in ("draft", "exact")}
    return {
        **ratio("end_to_end_ratio", found, "draft", "rate"),
        **ratio("end_to_end_ratio_exact", found, "exact", "rate"),
        "batches_per_s": {**rates, "webdataset": round(median(found.b("rate")), 2), "pairs": len(found)},
    }


def slopes(folder: Path, n: int, quick: bool) -> dict[str, Any]:
    write_shards(texts("warm", 100), folder / "warm")
    result: dict[str, Any] = {}
    for kind, make in (("sources", make_sources), ("shards", make_shards)):
        few, many = SIZES[kind] if not quick else (SIZES[kind][0], SIZES[kind][1] // 10)
        for count in (few, many):
            make(folder / f"{kind}{count}", count)
            if kind == "sources":
                open_once((folder / f"{kind}{count}").iterdir())
        sides = [command(f"first_{kind}", folder / f"{kind}{count}", 1) for count in (many, few)]
        found = pairs(*sides, n)
        result |= ratio(f"slope_{kind}_time", found, "seconds", "seconds")
        result |= ratio(f"slope_{kind}_memory", found, "peak_mb", "peak_mb", 3)
        result[f"{kind}_first_batch"] = {
            str(count): {"ms": round(1000 * median(of("seconds")), 1), "own_mb": round(median(of("own_mb")), 1)}
            for count, of in ((many, found.a), (few, found.b))
        }
    return result


SIDES: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "read_ours": read_ours,
    "read_webdataset": read_webdataset,
    "batches_ours": batches_ours,
    "batches_webdataset": batches_webdataset,
    "first_sources": lambda folder, _: first_batch("sources", folder),
    "first_shards": lambda folder, _: first_batch("shards", folder),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, sources, shards and pairs: under a minute")
    parser.add_argument("--record", action="store_true", help="write docs/results/loader.json")
    parser.add_argument(
        "--only", choices=("read", "end_to_end", "slopes"), help="one part of it; the record keeps the others"
    )
    parser.add_argument("--pairs", type=int, default=9, help="fresh processes of each side")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        torch.set_num_threads(1)
        print(json.dumps(SIDES[given.side](given.folder, given.repeats)))
        return
    n, wanted = 1 if given.quick else given.pairs, [given.only] if given.only else ["read", "end_to_end", "slopes"]
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, given.quick)
        if "read" in wanted:
            result |= read(folder, n, 2 if given.quick else 5)
        if "end_to_end" in wanted:
            result |= end_to_end(folder, n, 3 if given.quick else 8)
        if "slopes" in wanted:
            result |= slopes(folder, n, given.quick)
    record("loader", {**kept(wanted), **result})


def kept(wanted: list[str]) -> dict[str, Any]:
    """With --only and --record: what the record says of the parts that are not measured now."""
    path = RESULTS / "loader.json"
    if len(wanted) > 1 or "--record" not in sys.argv or not path.exists():
        return {}
    return {k: v for k, v in json.loads(path.read_text()).items() if k not in ("command", "date", "machine")}


if __name__ == "__main__":
    main()
