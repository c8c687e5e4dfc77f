"""How every benchmark measures: fresh processes in interleaved pairs, medians, a bootstrap interval of their ratio.

A benchmark is a script that calls itself: one side is `[sys.executable, __file__, "--side", "ours", ...]`, prints one
JSON object as its last line, and ends. Import from a script beside this file: `from measure import pairs, record`.

    result = pairs(ours, baseline, n=15, budget_s=45)     # each side a command; runs A B, B A, A B, ...
    ratio, low, high = ratio_interval(result.a("rate"), result.b("rate"))
    record("images", {"rate_ratio": ratio, "rate_ratio_interval": [low, high]})   # prints; writes under --record
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"


@dataclass(frozen=True)
class Pairs:
    """What both sides printed, pair by pair: pair i is (first[i], second[i]), run back to back."""

    first: tuple[dict[str, Any], ...]
    second: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.first)

    def a(self, key: str) -> list[float]:
        """The first side's values of `key`, one a pair."""
        return [float(x[key]) for x in self.first]

    def b(self, key: str) -> list[float]:
        """The second side's values of `key`, one a pair."""
        return [float(x[key]) for x in self.second]


def pairs(a: Sequence[str], b: Sequence[str], n: int = 15, budget_s: float = float("inf")) -> Pairs:
    """Runs commands a and b in fresh processes, interleaved (A B, B A, ...), n times or as many as fit in `budget_s`.

    At least one pair is run. The side that goes first alternates, so that a drift of the machine falls on both.
    """
    start = time.perf_counter()
    first: list[dict[str, Any]] = []
    second: list[dict[str, Any]] = []
    while len(first) < n:
        if len(first) % 2 == 0:
            x, y = run(a), run(b)
        else:
            y, x = run(b), run(a)
        first.append(x)
        second.append(y)
        spent = time.perf_counter() - start
        if spent + spent / len(first) > budget_s:
            break
    return Pairs(tuple(first), tuple(second))


def run(command: Sequence[str], timeout_s: float = 600) -> dict[str, Any]:
    """Runs one command and gives the JSON object of its last line. One thread, unless OMP_NUM_THREADS is set."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def ratio_interval(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """median(a) / median(b), and its 95% bootstrap interval; pairs are drawn whole (10,000 draws)."""
    if len(a) != len(b) or not a:
        raise ValueError(f"pairs are needed: {len(a)} and {len(b)} values given")
    drawn = np.random.default_rng(seed).integers(0, len(a), (10_000, len(a)))
    ratios = np.median(np.asarray(a)[drawn], axis=1) / np.median(np.asarray(b)[drawn], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return median(a) / median(b), float(low), float(high)


def reset_peak_rss() -> None:
    """Makes the kernel forget this process's peak, so that `peak_rss_mb` speaks of what comes after (Linux only)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mb() -> float:
    """Peak resident memory, MiB, since `reset_peak_rss`. Not ru_maxrss, which a child inherits."""
    return _status_mb("VmHWM")


def rss_mb() -> float:
    """Resident memory now, MiB: take it right after `reset_peak_rss` and subtract."""
    return _status_mb("VmRSS")


def _status_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}: memory can only be measured on Linux")


def machine() -> dict[str, Any]:
    """What a number depends on: processor, cores, versions."""
    from importlib.metadata import version

    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        named = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        model = named[0].split(":", 1)[1].strip() if named else model
    packages = {p: version(p) for p in ("torch", "torchvision", "transformers", "pillow")}
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def record(name: str, result: dict[str, Any]) -> None:
    """Prints the result as the last line, one JSON object; --record also writes it to docs/results/<name>.json."""
    if "--record" in sys.argv:
        RESULTS.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        kept = {"command": command, "date": time.strftime("%Y-%m-%d"), "machine": machine(), **result}
        aside = RESULTS / f".{name}.json.part"
        aside.write_text(json.dumps(kept, indent=2) + "\n")
        aside.replace(RESULTS / f"{name}.json")
    print(json.dumps(result), flush=True)
