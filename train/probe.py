"""The longest planned chunk, run once before anything is trained: what it takes, and whether it goes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..model.embedder import LocalTerms
from ..model.types import Inputs
from .guard import smaller
from .machine import host_peak_bytes
from .offload import offloading
from .trouble import agree, is_out_of_memory, ran_out_of_memory

if TYPE_CHECKING:
    from .engine import Engine
    from .step import Memory


@dataclass(frozen=True)
class Probe:
    """fits: on every rank; peak: bytes beyond what was held before, the gradient included, here (0: cannot be told)."""

    fits: bool
    peak: int


class NoRoomError(MemoryError):
    """A rank alone knows that its chunk does not fit: what to begin again with. tokens: the next chunk budget."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"no memory for the longest chunk; the next is of {tokens:,} tokens")
        self.tokens = tokens


class _TogetherError(Exception):
    """Leaves the engine's block without its reduction, on all ranks."""


def probe(engine: Engine, inputs: Inputs, memory: Memory, terms: LocalTerms | None = None, reserve: int = 0) -> Probe:
    """Forward and backward of one chunk under a memory plan. Collective: the ranks' chunks run the same modules.

    terms: the stage's Local objectives, whose logits count. reserve: bytes that the device will hold besides: what
    other chunks keep, moments that the first update makes. Weights, gradients and random state are left as they were.
    Where forwards hold collectives, out of memory raises at the rank that is: the others cannot be told.
    """
    device = engine.device

    def work() -> None:
        engine.checkpointing(memory != "all")
        with engine.autocast(), offloading(memory == "offloaded", device):
            encoded = engine.embed(inputs, terms)
        root = encoded.vectors.sum() + encoded.scale.sum()
        for value, _ in encoded.local.values():
            root = root + value
        if root.requires_grad:
            engine.backward(root)

    before = _begin_peak(device)
    held: list[torch.Tensor] = []

    def with_room() -> None:
        if reserve and device.type == "cuda":
            held.append(torch.empty(reserve, dtype=torch.uint8, device=device))
        work()

    full = False
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            with engine.accumulating():
                full = ran_out_of_memory(engine, with_room)
                full = agree(engine.group, device, full=full)["full"]
                if full:
                    raise _TogetherError
        except _TogetherError:
            pass
    peak = _peak(device) - before - sum(t.nbytes for t in held) if before is not None else 0
    held.clear()
    engine.forget()
    return Probe(not full, max(peak, 0))


def settle(
    engine: Engine,
    tokens: int,
    longest: int,
    chunk: Callable[[int], Inputs],
    memory: Memory,
    terms: LocalTerms | None = None,
    reserve: int = 0,
    stage: str = "",
) -> tuple[int, Probe]:
    """The chunk budget, halved until its longest chunk goes through on every rank, and that chunk's probe.

    chunk: tokens -> this rank's part of the longest chunk under that budget. Raises ValueError where not even a chunk
    of the longest item fits; NoRoomError where the others cannot be told, since forwards hold collectives.
    """
    while True:
        try:
            found = probe(engine, chunk(tokens), memory, terms, reserve)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise NoRoomError(smaller(tokens, longest, stage)) from error
        if found.fits:
            return tokens, found
        tokens = smaller(tokens, longest, stage)


def _begin_peak(device: torch.device) -> int | None:
    """Bytes held now; the peak is counted from here. None where the system does not say."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the process' peak is its present size again
    except OSError:
        return None
    return host_peak_bytes()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else host_peak_bytes()
