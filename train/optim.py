"""AdamW with a rate for each part of the model, and the schedule of its rates: a pure function of the step.

A part's rate is a multiple of `lr`, so that one number scales all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

PARTS = ("tower", "projector", "language", "adapter", "head", "new")


@dataclass(frozen=True)
class Schedule:
    """Warm-up from almost 0, then down to `floor` times the peak.

    warmup: steps, or below 1 a share of all steps. kind: the way down; "constant" stays at the peak.
    """

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "linear", "constant"):
            raise ValueError(f"schedule kind={self.kind!r}; expected 'cosine', 'linear' or 'constant'")
        if self.warmup < 0 or not 0 <= self.floor <= 1:
            raise ValueError(f"schedule warmup={self.warmup}, floor={self.floor}; expected 0 or more, and 0 to 1")

    def factor(self, step: int, total: int) -> float:
        """The share of the peak rate at `step` (from 0) of `total`; above 0 at the first step and at the last."""
        warm = self.warmup if self.warmup >= 1 else self.warmup * total
        if step + 1 < warm:
            return (step + 1) / warm
        if self.kind == "constant":
            return 1.0
        done = min(1.0, (step + 1 - warm) / max(1.0, total + 1 - warm))
        down = (1 + math.cos(math.pi * done)) / 2 if self.kind == "cosine" else 1 - done
        return self.floor + (1 - self.floor) * down


@dataclass(frozen=True)
class AdamW:
    """Settings of the optimiser (decoupled weight decay, arXiv:1711.05101).

    lr: the peak rate. rates: what it is multiplied by for the parameters of a part, 1 where none is given; 0 leaves a
    part as it is. Weight decay spares vectors (norms, biases, the scale).
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    rates: Mapping[str, float] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        unknown = [part for part in self.rates if part not in PARTS]
        if unknown:
            raise ValueError(f"rates has no part {unknown[0]!r}; expected some of {', '.join(PARTS)}")
        if not self.lr > 0 or any(r < 0 for r in self.rates.values()):
            raise ValueError(f"lr={self.lr}, rates={dict(self.rates)}; expected lr above 0 and rates of 0 or more")

    def lr_at(self, step: int, total: int) -> float:
        """The rate of a part with multiple 1, at `step` (from 0) of `total`."""
        return self.lr * self.schedule.factor(step, total)

    def groups(self, parts: Mapping[str, Iterable[nn.Parameter]]) -> list[dict[str, Any]]:
        """Torch's parameter groups of the trainable parameters: each part twice, with weight decay and without.

        "rate" in a group is its multiple of `lr`. A parameter that several parts share counts to the first of them.
        """
        seen: set[int] = set()
        groups = []
        for part, parameters in parts.items():
            rate = self.rates.get(part, 1.0)
            own = [p for p in parameters if p.requires_grad and id(p) not in seen]
            seen |= {id(p) for p in own}
            for decay, members in ((True, [p for p in own if p.ndim > 1]), (False, [p for p in own if p.ndim <= 1])):
                if members and rate > 0:
                    groups.append(
                        {
                            "params": members,
                            "lr": self.lr * rate,
                            "weight_decay": self.weight_decay if decay else 0.0,
                            "part": part,
                            "rate": rate,
                        }
                    )
        if not groups:
            raise ValueError(
                f"nothing to train: no part of {list(parts)} has a trainable parameter and a rate above 0; "
                "unfreeze one, or attach an adapter"
            )
        return groups

    def build(self, parts: Mapping[str, Iterable[nn.Parameter]]) -> torch.optim.AdamW:
        """Torch's optimiser, fused: one kernel a step instead of a dozen a parameter."""
        return torch.optim.AdamW(self.groups(parts), lr=self.lr, betas=self.betas, eps=self.eps, fused=True)

    def set_rates(self, optimizer: torch.optim.Optimizer, step: int, total: int) -> float:
        """Give every group of `groups` its rate at `step` of `total`; returns `lr_at`."""
        lr = self.lr_at(step, total)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["rate"]
        return lr
