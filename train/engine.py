"""Where a forward, a backward and an update happen: the Engine protocol, and Local, whole weights on every rank."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..model.embedder import Embedder, LocalTerms, StateTerms
from ..model.types import Encoded, Inputs, Towers
from . import fragments
from .fragments import Fragment, Piece, Read
from .gather import Group
from .optim import AdamW
from .precision import LossScale, Precision, autocast, cast

__all__ = ["Engine", "Local", "Piece", "Precision", "Read", "Updated", "checkpointing", "towers_frozen"]

_BUCKET = 256 << 20  # bytes of a reduction: large enough for the wire, small enough to start before the rest


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

    @property
    def lockstep(self) -> bool:
        """Whether forwards or backwards hold collectives: a rank that leaves one alone leaves the others waiting."""
        ...

    def autocast(self) -> AbstractContextManager[None]:
        """Around the forwards of a whole pass, so that weights are cast once for all its chunks."""
        ...

    def embed(
        self,
        inputs: Inputs,
        local: LocalTerms | None = None,
        towers: Towers | None = None,
        layers: tuple[int, ...] = (),
        states: StateTerms | None = None,
    ) -> Encoded:
        """As Embedder.forward."""
        ...

    def checkpointing(self, on: bool) -> None:
        """Whether blocks keep only their inputs for the backward pass, and are run again there."""
        ...

    def towers_frozen(self) -> bool: ...

    def accumulating(self) -> AbstractContextManager[None]:
        """Around all backwards of one step: behind it every gradient is the sum over chunks and ranks, reduced once
        (or once a chunk, where the engine was asked to). A parameter that got none counts as zero."""
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

    @property
    def loss_scale(self) -> LossScale:
        """What float16 multiplies the loss by, to be saved and set again; 1 in every other precision."""
        ...

    @loss_scale.setter
    def loss_scale(self, scale: LossScale) -> None: ...

    def whole(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The embedder's state dict, or the tensors of it that are named, on the CPU of rank 0; empty elsewhere. One
        parameter is gathered at a time. All ranks call it."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """This rank's part of what must survive: every element of every trained weight and its moments, once over all
        ranks together, in an order that is the same for an engine of the same kind and size. No collective."""
        ...

    def restore(self, read: Read) -> None:
        """Put weights and moments back, from any engine's pieces on any number of ranks. All ranks call it."""
        ...


@dataclass(frozen=True)
class Updated:
    """What an update did. norm: of the gradient before clipping; applied: False where it was not finite."""

    norm: float
    lr: float
    applied: bool


def checkpointing(embedder: Embedder, on: bool) -> None:
    """Whether blocks keep only their inputs for the backward pass, and are run again there."""
    model: Any = embedder.base.model
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


def towers_frozen(embedder: Embedder) -> bool:
    """Whether what the towers give can be kept from one pass to the next."""
    groups = embedder.base.groups()
    return not any(p.requires_grad for k in ("tower", "projector") for p in groups.get(k, ()))


def built(embedder: Embedder, optimizer: AdamW) -> torch.optim.AdamW:
    """The optimiser over the embedder's parts. What it does not move is frozen: a gradient that nothing clears would
    add up for ever."""
    found = optimizer.build(embedder.parts())
    moved = {id(p) for g in found.param_groups for p in g["params"]}
    for p in embedder.parameters():
        p.requires_grad_(id(p) in moved)
    return found


class Local:
    """Whole weights on every rank; gradients are summed over ranks once a step. One rank needs no process group.

    Trainable weights are float32, so that chunks add up in float32 also under autocast (see precision.py).
    """

    def __init__(
        self,
        embedder: Embedder,
        optimizer: AdamW,
        precision: Precision = "fp32",
        clip: float = 1.0,
        group: Group | None = None,
    ) -> None:
        """clip: the gradient's greatest norm; 0 for none. With several ranks all get the weights of rank 0."""
        self.embedder = embedder
        self.group = group or Group()
        self.settings = optimizer
        self.precision = precision
        self.clip = clip
        self.loss_scale = LossScale.of(precision)
        self.optimizer = built(embedder, optimizer)
        cast(embedder, precision)
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        self._flat: list[Tensor] = []
        for p in embedder.parameters():
            self.group.send(p.data, 0)

    @property
    def device(self) -> torch.device:
        return self.embedder.device

    @property
    def sharded(self) -> bool:
        return False

    @property
    def lockstep(self) -> bool:
        return False

    def autocast(self) -> AbstractContextManager[None]:
        return autocast(self.precision, self.device)

    def embed(
        self,
        inputs: Inputs,
        local: LocalTerms | None = None,
        towers: Towers | None = None,
        layers: tuple[int, ...] = (),
        states: StateTerms | None = None,
    ) -> Encoded:
        with self.autocast():
            out: Encoded = self.embedder(inputs.to(self.device, non_blocking=True), local, towers, layers, states)
        return out

    def checkpointing(self, on: bool) -> None:
        checkpointing(self.embedder, on)

    def towers_frozen(self) -> bool:
        return towers_frozen(self.embedder)

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """Gradients are views of one flat buffer a dtype: what is reduced is nowhere copied, and a parameter that gets
        none on some rank is zero there, at the same place."""
        self._flat = [_flatten(members) for members in _by_dtype(self.parameters)]
        yield
        for flat in self._flat:
            for bucket in flat.split(_BUCKET // flat.element_size()):
                self.group.sum_(bucket)

    def backward(self, root: Tensor) -> None:
        (root if self.loss_scale.value == 1 else root * self.loss_scale.value).backward()

    def forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self._flat = []

    def update(self, step: int, total: int) -> Updated:
        """Clip, apply unless something is not finite, forget the gradient."""
        lr = self.settings.set_rates(self.optimizer, step, total)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.loss_scale.value != 1:
            torch._foreach_div_(gradients, self.loss_scale.value)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.clip or float("inf")))
        applied = math.isfinite(norm)
        if applied:
            self.optimizer.step()
            self.embedder.bound_scale()
        self.forget()
        self.loss_scale = self.loss_scale.after(applied, self.precision)
        return Updated(norm, lr, applied)

    def fragments(self) -> Iterator[Fragment]:
        """Every parameter that the optimiser moves, whole."""
        moved = {id(p) for p in self.parameters}
        for name, p in self.embedder.named_parameters():
            if id(p) in moved:
                yield Fragment(name, tuple(p.shape), 0, p.detach().view(-1), self.optimizer.state[p], p, 0)

    def pieces(self) -> Iterator[Piece]:
        for f in self.fragments():
            yield from fragments.pieces([f.part(*self.group.share(len(f.weight)))])

    def restore(self, read: Read) -> None:
        fragments.restore(self.fragments(), read)

    def whole(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        if self.group.rank:
            return {}
        state = self.embedder.state_dict()
        return {n: state[n].detach().cpu() for n in (state if names is None else names)}


def _by_dtype(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    found: dict[torch.dtype, list[nn.Parameter]] = {}
    for p in parameters:
        found.setdefault(p.dtype, []).append(p)
    return list(found.values())


def _flatten(parameters: Sequence[nn.Parameter]) -> Tensor:
    """A buffer of zeros of which their gradients are views."""
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)
    return flat
