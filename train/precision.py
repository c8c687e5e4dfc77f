"""In which precision a stage trains: what is cast, what stays float32, and the scale of a float16 loss.

Trainable weights are float32 under autocast, so that chunks add up in float32. Frozen weights are only read: they are
kept in the precision that autocast would cast them to at every use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..model.embedder import Embedder

Precision = Literal["fp32", "bf16", "fp16", "bf16-true"]

_LOW = (torch.bfloat16, torch.float16)
_CAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_GROWTH = 2000  # good steps before the scale doubles, as in arXiv:1710.03740's implementations
_LARGEST = 2.0**24


@dataclass(frozen=True)
class LossScale:
    """What a float16 loss is multiplied by, so that small gradients do not vanish (arXiv:1710.03740); else 1.

    good: steps applied since it last changed.
    """

    value: float = 1.0
    good: int = 0

    @staticmethod
    def of(precision: Precision) -> LossScale:
        return LossScale(2.0**16 if precision == "fp16" else 1.0)

    def after(self, applied: bool, precision: Precision) -> LossScale:
        """Half of it where a gradient overflowed, twice after `_GROWTH` steps without."""
        if precision != "fp16":
            return self
        if not applied:
            return LossScale(max(self.value / 2, 1.0))
        if self.good + 1 == _GROWTH:
            return LossScale(min(self.value * 2, _LARGEST))
        return LossScale(self.value, self.good + 1)


def check(precision: str) -> None:
    known = ("fp32", *_CAST, "bf16-true")
    if precision not in known:
        raise ValueError(f"precision={precision!r}; expected one of {', '.join(map(repr, known))}")


def cast(embedder: Embedder, precision: Precision) -> None:
    """Bring the weights to the precision that they are trained or read in, in place.

    Frozen weights that are cast are saved so: exact where they came in that precision, rounded where they did not.
    Raises ValueError for trainable weights in half precision, unless that is what was asked for.
    """
    check(precision)
    if precision == "bf16-true":
        # Logarithms, of the scale and of the step, move by less than bfloat16 resolves.
        kept = {id(embedder.log_scale), id(embedder.log_step)}
        for p in embedder.parameters():
            if p.is_floating_point() and id(p) not in kept:
                p.data = p.data.to(torch.bfloat16)
        return
    low = [n for n, p in embedder.named_parameters() if p.requires_grad and p.dtype in _LOW]
    if low:
        raise ValueError(
            f"{low[0]} is in half precision: chunks would add up in it; load the model with dtype float32, or ask for "
            "precision='bf16-true'"
        )
    if precision not in _CAST:
        return
    # On the CPU torch's LayerNorm takes half inputs with float32 weights, not the reverse.
    kept = {id(p) for m in embedder.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm) for p in m.parameters()}
    for p in embedder.backbone.parameters():  # pooling, head and scale are computed in float32
        if not p.requires_grad and p.is_floating_point() and id(p) not in kept:
            p.data = p.data.to(_CAST[precision])


@contextlib.contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """torch.autocast, for the precisions that need it."""
    if precision not in _CAST:
        yield
        return
    with torch.autocast(device.type, _CAST[precision]):
        yield
