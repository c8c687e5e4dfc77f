"""Is this machine fit? One finding a line: what was looked at, what was found, and what to do about it."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from .facts import cpus, installed

Grade = Literal["good", "note", "blocker"]
MARK = {"good": ("ok", "green"), "note": ("note", "yellow"), "blocker": ("FAULT", "bold red")}
EXTRAS = {
    "train": ("deepspeed", "wandb"),
    "clip": ("open_clip_torch",),
    "audio": ("soundfile",),
    "video": ("av",),
    "eval": ("sentence-transformers", "mteb", "faiss-cpu"),
}
FREE_GB = 10  # an environment with CUDA wheels takes about 7 GB, a small run and its checkpoints the rest


@dataclass(frozen=True)
class Finding:
    what: str
    found: str
    grade: Grade = "good"
    remedy: str = ""


def examine() -> list[Finding]:
    """Every finding, in the order in which one would repair them. Looks only at this machine; prints no token."""
    return [_python(), *_torch(), _transformers(), *_extras(), *_devices(), _compiler(), _disk(), _threads()]


def table(findings: list[Finding]) -> Table:
    made = Table("", "what", "found", "what to do", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for f in findings:
        mark, colour = MARK[f.grade]
        made.add_row(Text(mark, style=colour), f.what, Text(f.found), Text(f.remedy))
    return made


def release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.14.1+cu130" is (2, 14, 1)."""
    numbers = []
    for piece in version.split("+")[0].split("."):
        digits = piece[: next((i for i, c in enumerate(piece) if not c.isdigit()), len(piece))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def within(version: str, low: tuple[int, ...], high: tuple[int, ...]) -> bool:
    return low <= release(version) < high


def _python() -> Finding:
    found = ".".join(str(v) for v in sys.version_info[:3])
    good = within(found, (3, 11), (3, 14))
    return Finding("Python", found, "good" if good else "blocker", "" if good else "use Python 3.11, 3.12 or 3.13")


def _torch() -> Iterator[Finding]:
    torch, vision = installed("torch"), installed("torchvision")
    if not within(torch, (2, 11), (3,)):
        yield Finding("torch", torch or "absent", "blocker", 'pip install "torch>=2.11,<3" torchvision')
        return
    yield Finding("torch", torch)
    if not vision:
        yield Finding("torchvision", "absent", "blocker", "pip install torchvision")
        return
    try:
        # Importing is the only sure test: the pair fails here when its compiled operators were built for another torch.
        importlib.import_module("torchvision.ops")
    except (ImportError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        yield Finding(
            "torchvision", f"{vision}: {why}", "blocker", f"install the torchvision that pairs with torch {torch}"
        )
        return
    yield Finding("torchvision", vision)


def _transformers() -> Finding:
    found = installed("transformers")
    good = within(found, (5, 17), (6,))
    remedy = "" if good else 'pip install "transformers>=5.17,<6"'
    return Finding("transformers", found or "absent", "good" if good else "blocker", remedy)


def _extras() -> Iterator[Finding]:
    for extra, packages in EXTRAS.items():
        missing = [p for p in packages if not installed(p)]
        if missing:
            yield Finding(f"extra {extra}", f"no {', '.join(missing)}", "note", f'pip install "omni2vec[{extra}]"')
        else:
            yield Finding(f"extra {extra}", ", ".join(f"{p} {installed(p)}" for p in packages))


def _devices() -> Iterator[Finding]:
    if not installed("torch"):
        return
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(i).total_memory / 1e9
            yield Finding(f"GPU {i}", f"{torch.cuda.get_device_name(i)}, {memory:.0f} GB")
        bf16 = torch.cuda.is_bf16_supported()
        yield Finding(
            "bfloat16", "yes" if bf16 else "no", "good" if bf16 else "note", "" if bf16 else "train in float32"
        )
    elif torch.version.cuda is None:
        yield Finding(
            "GPU", "this torch is built for the CPU", "note", "for a GPU: pip install torch from its default index"
        )
    else:
        yield Finding("GPU", "none seen", "note", "small models train on the CPU; for a GPU, check nvidia-smi")


def _compiler() -> Finding:
    found = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    if found and (shutil.which("ninja") or installed("ninja")):
        return Finding("compiler", f"{found[0]} and ninja")
    lacks = "ninja" if found else "a C++ compiler"
    return Finding("compiler", f"no {lacks}", "note", "only deepspeed needs it: install g++ and ninja")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    good = free >= FREE_GB
    remedy = "" if good else f"checkpoints and shards want room: free some, {FREE_GB} GB or more"
    return Finding("disk", f"{free:.0f} GB free here", "good" if good else "note", remedy)


def _threads() -> Finding:
    found, set_to = cpus(), os.environ.get("OMP_NUM_THREADS", "")
    if found <= 2 and set_to != "1":
        return Finding(
            "threads", f"{found} processors, OMP_NUM_THREADS={set_to or 'unset'}", "note", "export OMP_NUM_THREADS=1"
        )
    return Finding("threads", f"{found} processors" + (f", OMP_NUM_THREADS={set_to}" if set_to else ""))
