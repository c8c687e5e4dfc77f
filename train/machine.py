"""Facts that a step is measured against: the device's peak rate, this process's peak memory, the commit of the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

# Dense bf16 or fp16 with fp32 sums, in TFLOP/s, by the makers' data sheets (their figures with sparsity are double).
PEAKS = {
    "B200": 2250.0,
    "GB200": 2500.0,
    "H100": 989.4,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H200 NVL": 835.0,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "A10G": 70.0,
    "A6000": 154.8,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "V100": 125.0,
    "T4": 65.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.2,
    "RTX 5090": 209.5,
    "MI250X": 191.5,  # of one of its two dies, which is what a rank has
    "MI300X": 1307.4,
    "MI325X": 1307.4,
}


def peak_flops(name: str) -> float:
    """FLOP/s of a device by its name ("NVIDIA H100 80GB HBM3"); 0 for one that the table lacks.

    Whatever the precision of a run, the peak is that of half precision: utilisation compares runs, and a slower format
    is one way to lose it.
    """
    words = set(re.split(r"[^A-Za-z0-9]+", name.upper()))
    known = [k for k in PEAKS if set(k.upper().split()) <= words]
    return PEAKS[max(known, key=len)] * 1e12 if known else 0.0


def host_peak_bytes() -> int:
    """The most memory that this process has held. Not by ru_maxrss on Linux: a child's begins at its parent's."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) << 10
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def commit_of(folder: Path) -> str:
    """The commit that is checked out where `folder` lies; "" where that is no repository. Needs no git."""
    try:
        top = next(p for p in (folder.resolve(), *folder.resolve().parents) if (p / ".git").exists())
        git = top / ".git"
        if git.is_file():  # a worktree or submodule names its own folder
            git = top / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if head.startswith("ref:"):
            head = _resolve(git, head.removeprefix("ref:").strip())
    except (StopIteration, OSError, UnicodeDecodeError):
        return ""
    return head if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", head) else ""


def _resolve(git: Path, ref: str) -> str:
    shared = git / "commondir"
    for folder in (git, git / shared.read_text().strip()) if shared.exists() else (git,):
        if (folder / ref).exists():
            return (folder / ref).read_text().strip()
        packed = folder / "packed-refs"
        for line in packed.read_text().splitlines() if packed.exists() else ():
            commit, _, name = line.partition(" ")
            if name == ref:
                return commit
    return ""
