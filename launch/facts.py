"""Facts of the environment that go beside a result: versions and hardware, never a path, a host's name or a token."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from .. import __version__

PACKAGES = ("torch", "torchvision", "transformers", "peft", "numpy", "pillow", "safetensors")


def environment() -> dict[str, str]:
    """Name -> value. Imports nothing heavy; names the GPU only where torch is loaded already."""
    found = {
        "omni2vec": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": str(cpus()),
    }
    for name in PACKAGES:
        found[name] = installed(name) or "absent"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return found


def installed(package: str) -> str:
    """The version of an installed package, or the empty string."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def cpus() -> int:
    """Processors that this process may use: a container's share, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
