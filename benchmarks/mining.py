"""The search that mining uses: its time over the bare matrix product, against faiss's flat index, recall, memory.

    python benchmarks/mining.py --quick                    # under a minute on two cores
    python benchmarks/mining.py --full exact --record      # 1M queries x 100k documents, killed once and resumed
    python benchmarks/mining.py --full approximate --record    # 1M x 1M through IVF-PQ, recall on 1,000 exact queries

`over_gemm` is the time of an exact top 50 of 1,000 queries among 100,000 documents of 128 dimensions over that of the
matrix product alone, tile by tile into one buffer that is used again; `faiss_over_gemm` is the same for IndexFlatIP.
Both in one process, interleaved, one thread. Seconds are processor time, so that a neighbour on the machine delays a
run but hardly enters its number; pairs per second are queries x documents over those. `memory` is the rise of a fresh
process's resident peak while it searches N and 4 N documents of a memory-mapped file.

Data are unit vectors, synthetic: 64 topics, in them clusters of about 4,000 documents, in a cluster noise of which nine
tenths lie in 32 directions; queries are drawn from the same clusters. On noise alone no index could find anything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, median, peak_rss_mb, ratio_interval, record, reset_peak_rss, rss_mb, run
from omni2vec.eval.approximate import Approximate, build, recall
from omni2vec.eval.matrix import Mapped, write
from omni2vec.eval.nearest import COLUMNS, Exact, nearest
from omni2vec.train.gather import Group
from omni2vec.train.guard import Signals
from omni2vec.train.searching import FOLDER, WINDOW, Windows, found_share, searched
from torch import Tensor
from torch.nn.functional import normalize

K, QUERIES, DOCS, DIM = 50, 1000, 100_000, 128
PER_CLUSTER, TOPICS, DIRECTIONS, BLOCK = 4000, 64, 32, 50_000
FULL_DIM = 256
FULL = {"exact": (1_000_000, 100_000), "approximate": (1_000_000, 1_000_000)}  # queries, documents
KILL_AT = 0.4  # of the windows
RECORD = RESULTS / "mining.json"


def vectors(count: int, documents: int, dim: int, seed: int) -> Iterator[Tensor]:
    """Blocks of rows (n, dim): of the mixture that `documents` documents are drawn from."""
    g = torch.Generator().manual_seed(0)
    topics = normalize(torch.randn(TOPICS, dim, generator=g), dim=1)
    clusters = max(documents // PER_CLUSTER, 1)
    centre = topics[torch.randint(0, TOPICS, (clusters,), generator=g)]
    centre = normalize(centre + 0.8 * normalize(torch.randn(clusters, dim, generator=g), dim=1), dim=1)
    wide = torch.linalg.qr(torch.randn(dim, DIRECTIONS, generator=g)).Q.T
    for start in range(0, count, BLOCK):
        g = torch.Generator().manual_seed(seed * 1_000_003 + start)
        n = min(BLOCK, count - start)
        noise = (0.9 / DIRECTIONS) ** 0.5 * torch.randn(n, DIRECTIONS, generator=g) @ wide
        noise += (0.1 / dim) ** 0.5 * torch.randn(n, dim, generator=g)
        yield normalize(centre[torch.randint(0, clusters, (n,), generator=g)] + 0.6 * noise, dim=1)


def files(folder: Path, queries: int, documents: int, dim: int) -> tuple[Mapped, Mapped]:
    """Queries and documents, memory-mapped; made where they are not there."""
    out = []
    for seed, (name, count) in enumerate((("query", queries), ("docs", documents)), 1):
        path = folder / f"{name}-{count}-{dim}.safetensors"
        if not path.exists():
            write(path, vectors(count, documents, dim, seed), (count, dim))
        out.append(Mapped(path))
    return out[0], out[1]


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def gemm(query: Tensor, docs: Tensor, buffer: Tensor) -> None:
    """The matrix product alone, in the tiles of the search."""
    for start in range(0, len(docs), COLUMNS):
        tile = docs[start : start + COLUMNS]
        torch.mm(tile, query.T, out=buffer[: len(tile)])


def flat(docs: Tensor) -> Any:
    import faiss

    index = faiss.IndexFlatIP(docs.shape[1])
    index.add(docs.numpy())
    return index


def agree(query: Tensor, docs: Tensor, found: tuple[Tensor, Tensor]) -> None:
    """Stops where a result is not that of a stable sort of the whole float64 matrix, rounded to float32."""
    scores = (query.double() @ docs.double().T).float()
    best, index = (t[:, : found[0].shape[1]] for t in scores.sort(dim=1, descending=True, stable=True))
    if not torch.equal(best, found[1]):
        raise SystemExit(f"the scores differ from brute force by up to {float((best - found[1]).abs().max()):.1e}")
    if not torch.equal(index, found[0]):
        raise SystemExit(f"{int((index != found[0]).sum())} of {index.numel()} places differ from brute force")


def over_gemm(query: Tensor, docs: Tensor, until: float) -> dict[str, Any]:
    """Ours, the product and faiss in turn, 7 to 21 times, as the clock allows."""
    agree(query[:100], docs, nearest(query[:100], docs, K))
    index, buffer = flat(docs), torch.empty(COLUMNS, len(query))
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: nearest(query, docs, K),
        "gemm": lambda: gemm(query, docs, buffer),
        "faiss": lambda: index.search(query.numpy(), K),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()  # warm
    while len(times["ours"]) < 7 or (time.perf_counter() < until and len(times["ours"]) < 21):
        order = list(sides) if len(times["ours"]) % 2 else list(reversed(sides))
        for name in order:
            times[name].append(seconds(sides[name]))
    out: dict[str, Any] = {"pairs": len(times["ours"])}
    for key, a, b in (
        ("over_gemm", "ours", "gemm"),
        ("faiss_over_gemm", "faiss", "gemm"),
        ("faiss_over_ours", "faiss", "ours"),
    ):
        ratio, low, high = ratio_interval(times[a], times[b])
        out |= {key: round(ratio, 3), f"{key}_interval": [round(low, 3), round(high, 3)]}
    count = len(query) * len(docs)
    out |= {f"{name}_pairs_per_s": round(count / median(times[name])) for name in sides}
    return out


def memory(folder: Path, documents: int) -> float:
    """In a fresh process: how far the peak rises, MiB."""
    query, docs = files(folder, QUERIES, documents, DIM)
    some = query[:].clone()
    nearest(some[:8], some, K)  # loads code and buffers of the matrix library
    reset_peak_rss()
    before = rss_mb()
    nearest(some, docs, K)
    return peak_rss_mb() - before


def quick(threads: int) -> dict[str, Any]:
    end = time.perf_counter() + 22
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mapped = files(folder, QUERIES, DOCS, DIM)
        query, docs = (m[:].clone() for m in mapped)
        result = over_gemm(query, docs, end)
        files(folder, QUERIES, 4 * DOCS, DIM)
        rise = [round(run(side("memory", folder, threads, docs=n))["mib"], 1) for n in (DOCS, 4 * DOCS)]
        result["memory"] = {"mib": rise[0], "mib_of_4_times": rise[1], "file_mib_of_4_times": 4 * DOCS * DIM * 4 >> 20}
        index = build(docs, Approximate(), folder / "index.faiss")
        result["recall"] = round(recall(index.nearest(query, K), nearest(query, docs, K)), 4)
        result["recall_of"] = str(index.how)
    return result


def side(name: str, folder: Path, threads: int, **counts: int) -> list[str]:
    numbers = [str(x) for key, value in counts.items() for x in (f"--{key}", value)]
    return [sys.executable, __file__, "--side", name, "--folder", str(folder), "--threads", str(threads), *numbers]


def search_side(folder: Path, kind: str, queries: int, documents: int) -> dict[str, float]:
    """In a process of its own, to be killed: the whole search, or what is left of it."""
    query, docs = files(folder, queries, documents, FULL_DIM)
    reset_peak_rss()
    before, wall, start = rss_mb(), time.perf_counter(), time.process_time()
    how = Exact() if kind == "exact" else Approximate()
    with Signals() as signals:
        searched(folder, query, docs, K, how, Group(), signals)
    spent = {"wall_s": time.perf_counter() - wall, "processor_s": time.process_time() - start}
    return {**spent, "peak_rise_mib": peak_rss_mb() - before}


def full(kind: str, threads: int, scale: float, parent: Path | None) -> dict[str, Any]:
    """One of the two long searches, killed with SIGKILL once, resumed, checked, and faiss's flat index on a sample."""
    queries, documents = (round(n * (scale if n > 100_000 else 1)) for n in FULL[kind])
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        query, docs = files(folder, queries, documents, FULL_DIM)
        sample = flat_rate(query, docs)
        command = side(kind, folder, threads, queries=queries, docs=documents)
        killed = killed_once(command, folder / FOLDER, queries)
        sample += flat_rate(query, docs)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        rest = run(command, timeout_s=4 * 3600)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        sample += flat_rate(query, docs)
        spent = killed["processor_s"] + after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        windows = Windows(folder / FOLDER, queries, K, WINDOW)
        pairs = queries * documents
        rate, theirs = pairs / spent, median(sample)
        out: dict[str, Any] = {"queries": queries, "documents": documents, "dim": FULL_DIM, "k": K, "threads": threads}
        out |= {"killed_after_windows": killed["windows"], "windows": len(windows)}
        out |= {"wall_s": round(killed["wall_s"] + rest["wall_s"], 1), "processor_s": round(spent, 1)}
        out |= {"pairs_per_processor_s": round(rate), "faiss_flat_pairs_per_processor_s": round(theirs)}
        out |= {"over_faiss_flat": round(rate / theirs, 3), "peak_rise_mib": round(rest["peak_rise_mib"], 1)}
        return out | checked(kind, windows, query, docs)


def checked(kind: str, windows: Windows, query: Mapped, docs: Mapped) -> dict[str, Any]:
    """Exact: 200 queries over all windows, to the bit. Else recall on 1,000 exact queries, and how it was asked."""
    if kind == "approximate":
        share = found_share(windows, query, docs, 1000)
        return {"recall": round(share, 4), "how": str(Approximate().resolved(len(docs), FULL_DIM))}
    for i in range(20):
        start = round(i * (len(query) - 10) / 19)
        agree(query[start : start + 10].clone(), docs[:].clone(), windows.rows(start, start + 10))
    return {"equal_to_brute_force": "200 queries, to the bit"}


def flat_rate(query: Mapped, docs: Mapped) -> list[float]:
    """Pairs per processor second of faiss's flat index, of 1,000 queries of the same data; fewer are slower a pair."""
    index, some = flat(docs[:].clone()), query[:1000].clone().numpy()
    index.search(some[:20], K)
    return [len(some) * len(docs) / seconds(lambda: index.search(some, K))]


def killed_once(command: list[str], folder: Path, queries: int) -> dict[str, Any]:
    """Starts the search and kills it when a share of the windows is there."""
    windows = -(-queries // WINDOW)
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={"OMP_NUM_THREADS": "1", **os.environ})
    while len(list(folder.glob("*.safetensors"))) < KILL_AT * windows:
        if process.poll() is not None:
            raise SystemExit(f"the search ended with {process.returncode} before it could be killed")
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    there = len(list(folder.glob("*.safetensors")))
    return {"wall_s": time.perf_counter() - wall, "processor_s": spent, "windows": there}


def threaded(threads: int) -> None:
    import faiss

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)


def main(given: argparse.Namespace) -> None:
    kept = json.loads(RECORD.read_text()) if "--record" in sys.argv and RECORD.exists() else {}
    result = {key: value for key, value in kept.items() if key not in ("command", "date", "machine")}
    if given.full:
        result[f"full_{given.full}"] = full(given.full, given.threads, given.scale, given.folder)
    else:
        result |= quick(given.threads)
    if given.note:
        result["note"] = given.note
    record("mining", result | {"threads": given.threads})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the default: all but the long searches, under a minute")
    parser.add_argument("--full", choices=list(FULL), help="one of the long searches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of the counts above 100,000, to estimate the time")
    parser.add_argument("--record", action="store_true", help="write docs/results/mining.json; keeps parts not run")
    parser.add_argument("--note", help="what a reader of the record should know of the machine")
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--side", choices=["memory", *FULL], help=argparse.SUPPRESS)
    parser.add_argument("--queries", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--docs", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    threaded(given.threads)
    if given.side == "memory":
        print(json.dumps({"mib": memory(given.folder, given.docs)}))
    elif given.side:
        print(json.dumps(search_side(given.folder, given.side, given.queries, given.docs)))
    else:
        main(given)
