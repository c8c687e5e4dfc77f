"""Bytes that training holds on one rank whatever the batch: weights, gradient, moments, by precision and ZeRO stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.planned import Plan
from .precision import Precision
from .zero import Zero


@dataclass(frozen=True)
class Held:
    """Of one rank, in bytes. gradient: at its largest, before it is reduced; moments: with the copy of the weights that
    DeepSpeed updates; on_host: those of all these that are the host's."""

    weights: int
    gradient: int
    moments: int
    on_host: int = 0

    @property
    def on_device(self) -> int:
        return self.weights + self.gradient + self.moments - self.on_host


def held(trained: int, frozen_bytes: int, precision: Precision, zero: Zero | None, ranks: int) -> Held:
    """trained: parameters; frozen_bytes: of the weights that are only read, as they are kept."""
    stage = zero.used if zero is not None else 0
    size = 2 if precision == "bf16-true" else 4
    weights = trained * size + frozen_bytes
    # Torch's AdamW keeps moments in the weights' precision; DeepSpeed moves a float32 copy with float32 moments.
    moments = trained * (12 if stage else 2 * size)
    gradient = trained * size
    if stage:
        moments = -(-moments // ranks)
    if zero is not None and stage >= 2 and zero.reduce == "chunk":
        gradient = -(-gradient // ranks) + min(zero.bucket_mb << 20, gradient)
    if stage == 3:
        weights = -(-weights // ranks)
    on_host = moments if zero is not None and zero.offload_optimizer else 0
    on_host += weights if zero is not None and zero.offload_parameters else 0
    return Held(weights, gradient, moments, on_host)


@dataclass(frozen=True)
class Coming:
    """What a rank that has loaded its weights will hold besides, in bytes. moments: made by the first update; casts:
    autocast's copies of the trained weights, during a pass; on_host: those of the moments that are the host's."""

    gradient: int
    moments: int
    casts: int
    on_host: int = 0

    @property
    def on_device(self) -> int:
        return self.gradient + self.moments + self.casts


def coming(trained: int, precision: Precision, zero: Zero | None, ranks: int, begun: bool = False) -> Coming:
    """trained: parameters; begun: updates were done, so that the moments are there.

    DeepSpeed's float32 copies are made with its engine, the moments by its first update, as torch's are.
    """
    stage = zero.used if zero is not None else 0
    whole = held(trained, 0, precision, zero, ranks)
    copies = -(-trained * 4 // ranks) if stage else 0
    moments = 0 if begun else max(whole.moments - copies, 0)
    casts = trained * 2 if precision in ("bf16", "fp16") and stage < 3 else 0
    offloaded = zero is not None and zero.offload_optimizer
    return Coming(whole.gradient, 0 if offloaded else moments, casts, moments if offloaded else 0)


def widest(plan: Plan) -> list[int]:
    """Tokens of the i-th chunk on the rank that has most in it: by these all ranks allot memory alike."""
    return [max(of_rank[i].tokens for of_rank in plan.ranks) for i in range(len(plan.chunks))]


def spoken(size: float) -> str:
    """Bytes in words."""
    for unit, least in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= least:
            return f"{size / least:,.1f} {unit}"
    return f"{size / 1024:,.1f} KiB"


def ranging(values: Sequence[int]) -> str:
    """Their mean, and from where to where they go."""
    mean = f"{sum(values) / len(values):,.0f}"
    return mean if min(values) == max(values) else f"{mean} ({min(values):,} to {max(values):,})"
