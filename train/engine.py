"""Where a forward, a backward and an update happen: the Engine protocol, and Local, one process on one device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..model.embedder import Embedder, LocalTerms
from ..model.types import Encoded, Inputs, Towers
from .gather import Group
from .optim import AdamW

Precision = Literal["fp32", "bf16"]


class Engine(Protocol):
    """What the cached step needs of whatever runs the model."""

    @property
    def embedder(self) -> Embedder: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def group(self) -> Group: ...

    @property
    def sharded(self) -> bool:
        """Whether a rank's `embedder` holds only a part of the weights, so that all ranks must run it together."""
        ...

    def autocast(self) -> AbstractContextManager[None]:
        """Around the forwards of a whole pass, so that weights are cast once for all its chunks."""
        ...

    def embed(self, inputs: Inputs, local: LocalTerms | None = None, towers: Towers | None = None) -> Encoded: ...

    def checkpointing(self, on: bool) -> None:
        """Whether blocks keep only their inputs for the backward pass, and are run again there."""
        ...

    def towers_frozen(self) -> bool: ...

    def accumulating(self) -> AbstractContextManager[None]:
        """Around all backwards of one step: behind it every gradient is the sum over chunks and ranks, reduced once
        (or once a chunk, where the engine was asked to)."""
        ...

    def backward(self, root: Tensor) -> None:
        """Add the parameter gradients of `root` (a scalar) to what is there. Ranks' roots add up: no mean is taken."""
        ...

    def forget(self) -> None:
        """Drop the gradient of a step that will not be applied."""
        ...

    def update(self, step: int, total: int) -> Updated:
        """Clip, apply unless the gradient is not finite on any rank, forget the gradient. Equal on all ranks."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """This rank's part of what must survive: every element of every trained weight and its moments, once over all
        ranks together, in an order that is the same for an engine of the same kind and size. No collective."""
        ...

    def restore(self, read: Read) -> None:
        """Put weights and moments back, from any engine's pieces on any number of ranks. All ranks call it."""
        ...


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + len(values)) of the flattened parameter `name`: its weight, or a moment of it.

    kind: "weight", "exp_avg", "exp_avg_sq", or "step" (one number). values: 1-D float32, not yet copied: who keeps them
    copies them before the next update. shape: of the whole parameter.
    """

    name: str
    kind: str
    start: int
    values: Tensor
    shape: tuple[int, ...]


class Read(Protocol):
    """Reads a saved range: (name, kind, start, stop) -> 1-D float32 on the CPU. Raises KeyError where none is saved."""

    def __call__(self, name: str, kind: str, start: int, stop: int) -> Tensor: ...


@dataclass(frozen=True)
class Updated:
    """What an update did. norm: of the gradient before clipping; applied: False where it was not finite."""

    norm: float
    lr: float
    applied: bool


class Local:
    """One process. Trainable weights are float32, so that chunks add up in float32 also under bf16 autocast."""

    def __init__(self, embedder: Embedder, optimizer: AdamW, precision: Precision = "fp32", clip: float = 1.0) -> None:
        """clip: the gradient's greatest norm; 0 for none."""
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision={precision!r}; expected 'fp32' or 'bf16'")
        low = [
            n for n, p in embedder.named_parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16)
        ]
        if low:
            raise ValueError(
                f"{low[0]} is in half precision: chunks would add up in it; load the model with dtype float32"
            )
        self.embedder = embedder
        self.group = Group()
        self.settings = optimizer
        self.precision = precision
        self.clip = clip
        self.optimizer = optimizer.build(embedder.parts())
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        moved = {id(p) for p in self.parameters}
        for p in embedder.parameters():  # those of a rate of 0: a gradient that nothing clears would add up for ever
            p.requires_grad_(id(p) in moved)

    @property
    def device(self) -> torch.device:
        return self.embedder.device

    @property
    def sharded(self) -> bool:
        return False

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        if self.precision == "fp32":
            yield
            return
        with torch.autocast(self.device.type, torch.bfloat16):
            yield

    def embed(self, inputs: Inputs, local: LocalTerms | None = None, towers: Towers | None = None) -> Encoded:
        with self.autocast():
            out: Encoded = self.embedder(inputs.to(self.device, non_blocking=True), local, towers)
        return out

    def checkpointing(self, on: bool) -> None:
        model: Any = self.embedder.base.model
        # transformers renamed both; the older names warn in the newest releases.
        old = not hasattr(model, "activation_checkpointing_enable")
        if not on:
            (model.gradient_checkpointing_disable if old else model.activation_checkpointing_disable)()
            return
        if old:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.activation_checkpointing_enable({"use_reentrant": False})
        # Enabling hooks the embeddings to require gradients, a frozen tower's too, which would then run twice.
        with contextlib.suppress(AttributeError):  # no hook was set
            model.disable_input_require_grads()

    def towers_frozen(self) -> bool:
        groups = self.embedder.base.groups()
        return not any(p.requires_grad for k in ("tower", "projector") for p in groups.get(k, ()))

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        yield

    def backward(self, root: Tensor) -> None:
        root.backward()

    def forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def update(self, step: int, total: int) -> Updated:
        """Clip, apply unless something is not finite, forget the gradient."""
        lr = self.settings.set_rates(self.optimizer, step, total)
        limit = self.clip or float("inf")
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        applied = bool(torch.isfinite(torch.tensor(norm)))
        if applied:
            self.optimizer.step()
            self.embedder.bound_scale()
        self.optimizer.zero_grad(set_to_none=True)
        return Updated(norm, lr, applied)
