"""What a chunk's graph keeps in memory, measured, and the memory plan that a budget in bytes buys for each chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..model.types import Inputs
from .gather import Group
from .offload import of_weight

if TYPE_CHECKING:
    from .engine import Engine
    from .step import Memory

CAP = {"cuda": 16_384, "cpu": 4_096}  # tokens a chunk: beyond this a larger one is no faster, only larger
# A transformer block keeps 34 bytes a token and hidden unit in half precision, of which its input is 2: 17 times
# (arXiv:2205.05198, without the attention matrix). Twice that, for gated and wider feed-forwards.
_RATIO = 34


@dataclass(frozen=True)
class Footprint:
    """Bytes that the backward pass of one chunk keeps per token: every activation, or only what blocks are given."""

    all: float
    boundaries: float


def saved_bytes(engine: Engine, inputs: Inputs, checkpointing: bool) -> int:
    """Bytes of distinct storages that a chunk's graph holds, weights and inputs apart.

    Where weights are sharded, what is made of one (gathered, cast) is not shared by chunks, and counts.
    """
    engine.checkpointing(checkpointing)
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        shared = isinstance(tensor, nn.Parameter) if engine.sharded else of_weight(tensor)
        if tensor.grad_fn is not None and not shared:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        encoded = engine.embed(inputs)
    held = sum(seen.values())
    del encoded
    return held


def measure(engine: Engine, inputs: Inputs, checkpointed: bool = False) -> Footprint:
    """The footprint of a chunk, per token. Random state is put back as it was.

    checkpointed: only so is it run, and `all` taken for `_RATIO` times what boundaries were seen to keep.
    """
    devices = [engine.device] if engine.device.type == "cuda" else []
    tokens = max(1, len(inputs.ids))
    with torch.random.fork_rng(devices=devices):
        boundaries = saved_bytes(engine, inputs, True) / tokens
        if checkpointed:
            return Footprint(_RATIO * boundaries, boundaries)
        return Footprint(saved_bytes(engine, inputs, False) / tokens, boundaries)


def free_bytes(device: torch.device) -> int:
    """Memory free now on the device, or on the machine for a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # else what torch's allocator keeps for later counts as taken
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


def budgets(
    device: torch.device, gb: float = 0.0, local_ranks: int = 1, coming: int = 0, host_coming: int = 0
) -> tuple[int, int]:
    """(device, host) bytes that one rank may spend: `gb`, or half of what is free and will not be needed otherwise;
    ranks of a machine share its memory. coming, host_coming: bytes that each rank will hold besides, whatever its plan.

    On a CPU both are the same memory, and the second is 0.
    """
    host = free_bytes(torch.device("cpu")) // local_ranks - host_coming
    if device.type == "cuda":
        return int(gb * 2**30) or max(free_bytes(device) - coming, 0) // 2, max(host, 0) // 2
    return int(gb * 2**30) or max(host - coming, 0) // 2, 0


def agreed(
    group: Group, device: torch.device, footprint: Footprint, budget: int, host_budget: int
) -> tuple[Footprint, int, int]:
    """The largest footprint and the smallest budgets of any rank, so that all allot alike. Collective."""
    mine = [footprint.all, footprint.boundaries, -float(budget), -float(host_budget)]
    most = group.max_(torch.tensor(mine, dtype=torch.float64, device=device)).tolist()
    return Footprint(most[0], most[1]), int(-most[2]), int(-most[3])


def allot(
    footprint: Footprint, chunk_tokens: Sequence[int], budget: int, host_budget: int, device: torch.device
) -> tuple[Memory, ...]:
    """One plan a chunk: `budget` bytes of the device and `host_budget` of the host, spent where they spare most. Pure.

    Boundaries come first, for they spare a chunk its second forward at a fraction of the bytes that a whole graph
    takes; those that the device cannot hold go to the host (CUDA only). What is left on the device turns boundaries
    into whole graphs, which spare the recomputation too. Longest chunks first. chunk_tokens: on many ranks the most
    tokens that any rank has in its i-th chunk, so that all ranks run the i-th alike.
    """
    plans: list[Memory] = ["vectors"] * len(chunk_tokens)
    order = sorted(range(len(chunk_tokens)), key=lambda i: (-chunk_tokens[i], i))
    left, host = float(budget), float(host_budget) if device.type == "cuda" else 0.0
    for i in order:
        needed = footprint.boundaries * chunk_tokens[i]
        if needed <= left:
            plans[i] = "boundaries"
            left -= needed
        elif needed <= host:
            plans[i] = "offloaded"
            host -= needed
    for i in order:
        more = (footprint.all - footprint.boundaries) * chunk_tokens[i]
        if plans[i] == "boundaries" and more <= left:
            plans[i] = "all"
            left -= more
    return tuple(plans)


def kept_bytes(footprint: Footprint, chunk_tokens: Sequence[int], plans: Sequence[Memory]) -> tuple[int, int]:
    """(device, host) bytes that chunks under their plans keep between the passes, vectors apart."""
    each = {"all": footprint.all, "boundaries": footprint.boundaries}
    chunks = list(zip(chunk_tokens, plans, strict=True))
    on_device = sum(t * each[p] for t, p in chunks if p in each)
    return int(on_device), int(sum(t * footprint.boundaries for t, p in chunks if p == "offloaded"))
