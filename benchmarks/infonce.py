"""InfoNCE in tiles against PyTorch's cross-entropy over the full matrix: time and peak memory of loss and gradients.

    python benchmarks/infonce.py --quick      # 4,096 rows, under a minute on two cores
    python benchmarks/infonce.py --record     # also 16,384 rows, and 65,536 for the tiled side alone

`time_ratio` and `memory_ratio` are tiled over naive, one direction, at the largest size that both sides ran; the same
for `symmetric`, and for `masked`, where every document occurs twice and both sides mask the second copy. Loss and
gradients are compared before anything is timed. Seconds are those of one thread's processor time, so that a neighbour
on the machine delays a run but does not enter its number; page faults do. Memory is the rise of the resident peak, a
fresh process for each number.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from measure import RESULTS, median, pairs, peak_rss_mb, ratio_interval, record, reset_peak_rss, rss_mb, run
from omni2vec.data.relation import Relation
from omni2vec.data.types import Clock
from omni2vec.train.objectives.infonce import InfoNCE
from torch import Tensor

CASES = ("one_way", "symmetric", "masked_one_way", "masked_symmetric")
DIM, SCALE = 128, 50.0
LIMIT = 1e-5  # relative, float32
SIZES = (4096, 16384, 65536)
NAIVE_FITS = 16384  # rows; 65,536 would take 51 GB
RECORD = RESULTS / "infonce.json"


def batch(rows: int, masked: bool) -> tuple[list[Tensor], Relation]:
    """Documents near their queries, so that the softmax is neither flat nor finished."""
    g = torch.Generator().manual_seed(0)
    query = F.normalize(torch.randn(rows, DIM, generator=g), dim=-1)
    docs = F.normalize(query + 0.27 * torch.randn(rows, DIM, generator=g), dim=-1)
    ids, each = torch.randint(-(2**62), 2**62, (2 * rows, 2), generator=g), torch.arange(rows)
    doc_id = ids[rows + (each % (rows // 2) if masked else each)]
    relation = Relation(
        query_id=ids[:rows],
        query_label=torch.zeros(rows, 2, dtype=torch.int64),
        query_source=torch.zeros(rows, dtype=torch.int64),
        owner=each,
        positive=torch.ones(rows, dtype=torch.bool),
        rank=torch.zeros(rows, dtype=torch.int64),
        doc_id=doc_id,
        known_id=doc_id,
        known_query=each,
    )
    return [t.requires_grad_() for t in (query, docs, torch.tensor([SCALE]))], relation


def tiled(operands: list[Tensor], relation: Relation, case: str) -> list[Tensor]:
    query, docs, scale = operands
    objective = InfoNCE(both="symmetric" in case)
    loss = objective.contrast(query, docs, relation, scale, Clock(step=0, progress=0.0, seed=0)).sum
    return [loss.detach(), *torch.autograd.grad(loss, operands)]


def naive(operands: list[Tensor], relation: Relation, case: str) -> list[Tensor]:
    query, docs, scale = operands
    logits, rows = scale * query @ docs.T, torch.arange(len(query))
    if "masked" in case:
        same = relation.doc_id[:, 0]
        logits = logits.masked_fill((same[:, None] == same) & (rows[:, None] != rows), float("-inf"))
    loss = F.cross_entropy(logits, rows, reduction="sum")
    if "symmetric" in case:
        loss = (loss + F.cross_entropy(logits.T, rows, reduction="sum")) / 2
    return [loss.detach(), *torch.autograd.grad(loss, operands)]


SIDES = {"tiled": tiled, "naive": naive}


def agreement(rows: int) -> dict[str, float]:
    """The largest relative difference of loss and gradients of each case; stops above the limit."""
    worst = {}
    for case in CASES:
        operands, relation = batch(rows, "masked" in case)
        ours, theirs = (side(operands, relation, case) for side in SIDES.values())
        worst[case] = max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))
        if not worst[case] < LIMIT:
            raise SystemExit(f"{case}: tiled and naive differ by {worst[case]:.1e} at {rows} rows (limit {LIMIT:.0e})")
    return worst


def one_side(side: str, rows: int, cases: list[str], measure: str) -> dict[str, float]:
    """What one fresh process measures: seconds of each case, or the peak of one case in MiB."""
    torch.set_num_threads(1)
    out = {}
    for case in cases:
        SIDES[side](*batch(256, "masked" in case), case)  # loads code and buffers of the matrix library
        operands, relation = batch(rows, "masked" in case)
        if measure == "memory":
            reset_peak_rss()
            before = rss_mb()
            SIDES[side](operands, relation, case)
            return {case: peak_rss_mb() - before}
        times = []
        for _ in range(3 if rows <= 4096 else 1):
            start = time.process_time()
            SIDES[side](operands, relation, case)
            times.append(time.process_time() - start)
        out[case] = min(times)
    return out


def command(side: str, rows: int, cases: tuple[str, ...], measure: str) -> list[str]:
    return [sys.executable, __file__, "--side", side, "--rows", str(rows), "--measure", measure, "--cases", *cases]


def size(rows: int, cases: tuple[str, ...], pairs_n: int, until: float) -> dict[str, Any]:
    """Ratios at one size. Memory first, as it takes a known time; then pairs of timed runs until the clock ends."""
    out: dict[str, Any] = {case: {} for case in cases}
    for case in cases:
        peak = {side: run(command(side, rows, (case,), "memory"))[case] for side in SIDES}
        out[case] = {f"{side}_mib": round(mib, 1) for side, mib in peak.items()}
        out[case]["memory_ratio"] = round(peak["tiled"] / peak["naive"], 4)
    sides = [command(side, rows, cases, "time") for side in SIDES]
    timed = pairs(*sides, n=pairs_n, budget_s=until - time.perf_counter())
    for case in cases:
        ratio, low, high = ratio_interval(timed.a(case), timed.b(case))
        out[case] |= {"time_ratio": round(ratio, 3), "time_ratio_interval": [round(low, 3), round(high, 3)]}
        out[case] |= {"tiled_s": round(median(timed.a(case)), 3), "naive_s": round(median(timed.b(case)), 3)}
    return {"pairs": len(timed), **out}


def alone(rows: int) -> dict[str, Any]:
    """The tiled side where the naive one does not fit: against the least it would hold, three float32 matrices (the
    logits, their log-softmax, its gradient), by arithmetic."""
    out: dict[str, Any] = {"naive_mib_by_arithmetic": 3 * 4 * rows * rows / 2**20}
    for case in CASES[:2]:
        mib = run(command("tiled", rows, (case,), "memory"))[case]
        out[case] = {"tiled_mib": round(mib, 1), "memory_ratio": round(mib / out["naive_mib_by_arithmetic"], 5)}
    return out


def main(sizes: list[int], quick: bool) -> None:
    start = time.perf_counter()
    torch.set_num_threads(1)
    kept = json.loads(RECORD.read_text()) if "--record" in sys.argv and RECORD.exists() else {}
    result: dict[str, Any] = {"dim": DIM, "scale": SCALE, "tile": InfoNCE().tile, "largest_difference": agreement(2048)}
    result |= {str(rows): kept[str(rows)] for rows in SIZES if str(rows) in kept and rows not in sizes}
    for rows in sizes:
        if rows > NAIVE_FITS:
            result[str(rows)] = alone(rows)
        else:
            cases = CASES if rows <= 4096 and not quick else CASES[:2]
            result[str(rows)] = size(
                rows, cases, 15, start + 50 if quick else time.perf_counter() + (200 if rows <= 4096 else 480)
            )
    both = [result[str(rows)] for rows in SIZES if rows <= NAIVE_FITS and str(rows) in result]
    for way, prefix in (("one_way", ""), ("symmetric", "symmetric_")) if both else ():
        for key in ("memory_ratio", "time_ratio", "time_ratio_interval"):
            result[prefix + key] = both[-1][way][key]
    record("infonce", result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4,096 rows only, under a minute")
    parser.add_argument("--record", action="store_true", help="write docs/results/infonce.json; keeps sizes not run")
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, help="rows; by default all")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=4096, help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=["time", "memory"], default="time", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(one_side(given.side, given.rows, given.cases, given.measure)))
    else:
        main(given.sizes or list(SIZES[:1] if given.quick else SIZES), given.quick)
