"""Chunks run before anything is trained: what their graphs keep, what they take, and whether they go through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from ..model.types import Inputs
from .guard import smaller
from .machine import host_peak_bytes
from .memory import Footprint, measure
from .offload import offloading
from .trouble import agree, is_out_of_memory, ran_out_of_memory
from .wanted import Wanted

if TYPE_CHECKING:
    from .engine import Engine
    from .step import Memory

T = TypeVar("T")


@dataclass(frozen=True)
class Probe:
    """fits: on every rank; peak: bytes beyond what was held before, the gradient included, here (0: cannot be told)."""

    fits: bool
    peak: int


@dataclass(frozen=True)
class Trial:
    """One chunk as a step would run it. memory: "all" also for one that is replayed with its whole graph; reserve:
    bytes that the device will hold besides (other chunks' graphs, moments); graph: that this chunk's graph is known
    to keep."""

    inputs: Callable[[], Inputs]
    memory: Memory
    reserve: int = 0
    graph: int = 0


class NoRoomError(MemoryError):
    """A rank alone knows that its chunk does not fit: what to begin again with. tokens: the next chunk budget."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"no memory for the longest chunk; the next is of {tokens:,} tokens")
        self.tokens = tokens


class _TogetherError(Exception):
    """Leaves the engine's block without its reduction, on all ranks."""


def probe(engine: Engine, inputs: Inputs, memory: Memory, wanted: Wanted | None = None, reserve: int = 0) -> Probe:
    """Forward and backward of one chunk under a memory plan. Collective: the ranks' chunks run the same modules.

    wanted: by the stage's objectives, whose logits count. reserve: bytes that the device will hold besides. Weights,
    gradients and random state are left as they were. Where forwards hold collectives, out of memory in one raises at
    the rank that is: the others cannot be told. That the reserve finds no room is agreed on before.
    """
    device = engine.device

    def work() -> None:
        engine.checkpointing(memory != "all")
        with engine.autocast(), offloading(memory == "offloaded", device):
            encoded = engine.embed(inputs) if wanted is None else wanted.embed(engine, inputs)
        root = encoded.vectors.sum() + encoded.scale.sum()
        for value, _ in [*encoded.local.values(), *encoded.states.values()]:
            root = root + value
        for vectors in encoded.at.values():
            root = root + vectors.sum()
        if root.requires_grad:
            engine.backward(root)

    room = _room(engine, reserve)
    if room is None:
        return Probe(False, 0)
    before = _begin_peak(device)
    full = False
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            with engine.accumulating():
                full = ran_out_of_memory(engine, work)
                full = agree(engine.group, device, full=full)["full"]
                if full:
                    raise _TogetherError
        except _TogetherError:
            pass
    peak = _peak(device) - before if before is not None else 0
    engine.forget()
    return Probe(not full, max(peak, 0))


def _room(engine: Engine, count: int) -> torch.Tensor | None:
    """`count` bytes of the device, held but not written; None on all ranks where one has not as many. Collective."""
    found = None
    try:
        found = torch.empty(count, dtype=torch.uint8, device=engine.device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None if agree(engine.group, engine.device, full=found is None)["full"] else found


def footprint(
    engine: Engine, chunk: Callable[[int], Inputs], tokens: int, longest: int, whole: bool = True, stage: str = ""
) -> Footprint:
    """What this rank's part of a chunk of `tokens` keeps; where that much is not to be had on every rank, what one of
    the longest item alone does, then what that keeps with checkpointing. Collective.

    chunk: tokens -> this rank's part of a chunk of so many. whole: False where only boundaries are of interest. Raises
    ValueError where not even that fits. Where forwards hold collectives a rank without memory cannot tell the others:
    it raises NoRoomError with the longest item's tokens, and given these, this begins with checkpointing.
    """
    alone = engine.lockstep and engine.group.size > 1
    tries = [(tokens, not whole), (longest, not whole), (longest, True)]
    if alone:
        tries = [(tokens, not whole or tokens <= longest)]
    for count, checkpointed in dict.fromkeys(tries):
        inputs = chunk(count)
        found: list[Footprint] = []
        try:
            full = ran_out_of_memory(engine, lambda: found.append(measure(engine, inputs, checkpointed)))  # noqa: B023
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise NoRoomError(longest if count > longest else smaller(count, longest, stage)) from error
        if not agree(engine.group, engine.device, full=full)["full"]:
            return found[0]
    raise NoRoomError(smaller(longest, longest, stage))  # which raises itself


def settle(
    engine: Engine,
    tokens: int,
    longest: int,
    offers: Callable[[int], Iterable[tuple[T, Sequence[Trial]]]],
    wanted: Wanted | None = None,
    stage: str = "",
) -> tuple[int, T, Probe]:
    """The first plan all of whose trials go through on every rank, with its chunk budget and its largest trial's probe.

    offers: tokens -> the plans under that chunk budget, in the order in which they are wished for, and what to try of
    each; where none goes through, the budget is halved. Raises ValueError where none does with chunks of the longest
    item; NoRoomError where the others cannot be told, since forwards hold collectives.
    """
    while True:
        for plan, trials in offers(tokens):
            found = Probe(True, 0)
            for trial in trials:
                one = _tried(engine, trial, wanted, lambda: smaller(tokens, longest, stage))  # noqa: B023
                found = Probe(one.fits, max(one.peak, found.peak))
                if not one.fits:
                    break
            if found.fits:
                return tokens, plan, found
        tokens = smaller(tokens, longest, stage)


def _tried(engine: Engine, trial: Trial, wanted: Wanted | None, less: Callable[[], int]) -> Probe:
    """Where a rank without room cannot tell the others, they first agree that what the chunk keeps has its room."""
    if engine.lockstep and engine.group.size > 1 and _room(engine, trial.reserve + trial.graph) is None:
        return Probe(False, 0)
    try:
        return probe(engine, trial.inputs(), trial.memory, wanted, trial.reserve)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise NoRoomError(less()) from error


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
