"""What a chunk's graph keeps in memory, measured; which memory plan fits a budget; boundaries offloaded to the host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..model.types import Inputs

if TYPE_CHECKING:
    from .engine import Engine
    from .step import Memory

_SMALL = 1 << 14  # bytes: below this a copy to the host costs more than it frees


@dataclass(frozen=True)
class Footprint:
    """Bytes that the backward pass of one chunk keeps per token: every activation, or only what blocks are given."""

    all: float
    boundaries: float


def saved_bytes(engine: Engine, inputs: Inputs, checkpointing: bool) -> int:
    """Bytes of distinct storages that a chunk's graph holds, weights and inputs apart."""
    engine.checkpointing(checkpointing)
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and tensor.grad_fn is not None and not _cast_weight(tensor):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        encoded = engine.embed(inputs)
    held = sum(seen.values())
    del encoded
    return held


def _cast_weight(tensor: Tensor) -> bool:
    """Whether autocast made it from a parameter: held once a pass, not once a chunk."""
    inputs = [f for f, _ in tensor.grad_fn.next_functions if f is not None] if tensor.grad_fn is not None else []
    return len(inputs) == 1 and type(inputs[0]).__name__ == "AccumulateGrad"


def measure(engine: Engine, inputs: Inputs) -> Footprint:
    """The footprint of a chunk, per token. Random state is put back as it was."""
    devices = [engine.device] if engine.device.type == "cuda" else []
    tokens = max(1, len(inputs.ids))
    with torch.random.fork_rng(devices=devices):
        return Footprint(saved_bytes(engine, inputs, False) / tokens, saved_bytes(engine, inputs, True) / tokens)


def free_bytes(device: torch.device) -> int:
    """Memory free now on the device, or on the machine for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _machine_bytes(Path("/proc/meminfo"))
    limit = _container_bytes(Path("/sys/fs/cgroup"))
    return free if limit is None else min(free, limit)


def _machine_bytes(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines() if meminfo.exists() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 4 << 30


def _container_bytes(group: Path) -> int | None:
    """What the container's own limit (cgroup 2, or 1) leaves; None where there is none. File caches count as free."""
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit, now = (group / most).read_text().strip(), int((group / used).read_text())
            stat = dict(line.split() for line in (group / used).with_name("memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdigit():
            return max(int(limit) - now + int(stat.get("inactive_file", 0)), 0)
    return None


def choose(footprint: Footprint, tokens: int, budget: int, device: torch.device, host_budget: int) -> Memory:
    """The fastest plan whose kept graphs of `tokens` tokens fit `budget` bytes (offloaded: `host_budget`)."""
    if footprint.all * tokens <= budget:
        return "all"
    if footprint.boundaries * tokens <= budget:
        return "boundaries"
    if device.type == "cuda" and footprint.boundaries * tokens <= host_budget:
        return "offloaded"
    return "vectors"


@contextlib.contextmanager
def offloading(on: bool, device: torch.device) -> Iterator[None]:
    """Tensors that the graph saves meanwhile go to pinned host memory and come back when they are needed.

    Weights stay: they are saved by reference. On a CPU there is nowhere else to go, and nothing happens.
    """
    if not on or device.type != "cuda":
        yield
        return
    side = torch.cuda.Stream(device)

    def pack(tensor: Tensor) -> tuple[Tensor, Tensor | None, torch.cuda.Event | None]:
        if not tensor.is_cuda or isinstance(tensor, nn.Parameter) or tensor.grad_fn is None or tensor.nbytes < _SMALL:
            return tensor, None, None
        side.wait_stream(torch.cuda.current_stream(device))
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.stream(side):
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(side)  # the allocator must not reuse it before the copy is done
        return tensor[:0].detach(), host, side.record_event()

    def unpack(saved: tuple[Tensor, Tensor | None, torch.cuda.Event | None]) -> Tensor:
        tensor, host, event = saved
        if host is None or event is None:
            return tensor
        torch.cuda.current_stream(device).wait_event(event)
        return host.to(device, non_blocking=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
