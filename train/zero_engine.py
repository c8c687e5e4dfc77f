"""The DeepSpeed engine: ZeRO 1 to 3 behind the Engine protocol, exact for kept graphs and for replayed ones.

Measured with DeepSpeed 0.19, each of it a test: it averages over ranks, where ours adds; it clips by 1 unless told;
and kept graphs whose backwards follow one another without a forward overwrite each other's gradients under ZeRO-3.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..model.embedder import Embedder, Learned, LocalTerms, StateTerms
from ..model.types import Encoded, Inputs, Towers
from . import fragments
from .engine import Engine, Local, Updated, built, checkpointing, towers_frozen
from .fragments import Fragment, Piece, Read
from .gather import Group
from .optim import AdamW
from .precision import LossScale, Precision, autocast, cast
from .zero import Zero

_C10D: Any = dist  # what its type hints leave out


def engine_of(
    embedder: Embedder, optimizer: AdamW, precision: Precision, clip: float, group: Group, zero: Zero | None
) -> Engine:
    """The engine that `zero` asks for; None, and stage 0, is our own."""
    if zero is None or zero.used == 0:
        return Local(embedder, optimizer, precision, clip, group)
    return DeepSpeed(embedder, optimizer, precision, clip, group, zero)


class _Flat(nn.Module):
    """The embedder with its tensors in a tuple: DeepSpeed finds what it must hook in tuples and dicts alone.

    Scale and step are registered here too. The embedder's own output is no tuple, so its parameters would not be
    fetched again for the backward pass. Behind vectors and scale stand the values of the local terms, of the terms of
    states, and the inner layers' vectors; `rest` is what is no tensor.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder
        self.log_scale, self.log_step = embedder.log_scale, embedder.log_step
        self.rest: tuple[dict[str, int], dict[str, int], Towers | None] = ({}, {}, None)

    def forward(
        self,
        inputs: Inputs,
        local: LocalTerms | None,
        towers: Towers | None,
        layers: tuple[int, ...],
        states: StateTerms | None,
    ) -> tuple[Tensor, ...]:
        out: Encoded = self.embedder(inputs, local, towers, layers, states)
        self.rest = {n: c for n, (_, c) in out.local.items()}, {n: c for n, (_, c) in out.states.items()}, out.towers
        values = (value for terms in (out.local, out.states) for value, _ in terms.values())
        return (out.vectors, out.scale, *values, *(out.at[layer] for layer in layers))


class DeepSpeed:
    """ZeRO 1 to 3. Trainable weights are float32 and the autocast is ours, so that chunks add up in float32."""

    def __init__(
        self,
        embedder: Embedder,
        optimizer: AdamW,
        precision: Precision = "fp32",
        clip: float = 1.0,
        group: Group | None = None,
        zero: Zero | None = None,
    ) -> None:
        """clip: the gradient's greatest norm; 0 for none. All ranks get the weights of rank 0. Raises ImportError
        without DeepSpeed, ValueError where a user's own JSON contradicts."""
        deepspeed = _deepspeed()
        self.embedder = embedder
        self.group = group or Group()
        self.settings = optimizer
        self.precision = precision
        self.zero = zero = zero or Zero()
        self.stage = zero.used
        if self.stage == 0:
            raise ValueError("Zero(stage=0) is the Local engine's: DeepSpeed reduces once a step from stage 1 on")
        self.optimizer = built(embedder, optimizer)
        cast(embedder, precision)
        self.trained = [(n, p) for n, p in embedder.named_parameters() if p.requires_grad]
        self.shapes = {n: tuple(p.shape) for n, p in self.trained}
        config = zero.config(precision, clip)
        if embedder.device.type == "cuda":  # it selects its GPU by this, where a task may see but one
            os.environ["LOCAL_RANK"] = str(embedder.log_scale.get_device())
        _join()
        self._model = _Flat(embedder)
        self._engine = deepspeed.initialize(
            model=self._model, optimizer=self.optimizer, config=config, dist_init_required=False
        )[0]
        self.loss_scale = LossScale.of(precision)

    @property
    def device(self) -> torch.device:
        return self.embedder.device

    @property
    def sharded(self) -> bool:
        return self.stage == 3

    @property
    def lockstep(self) -> bool:
        return self.sharded or self.zero.reduce == "chunk"

    @property
    def loss_scale(self) -> LossScale:
        return self._loss_scale

    @loss_scale.setter
    def loss_scale(self, scale: LossScale) -> None:
        self._loss_scale = scale
        if self.precision == "fp16":
            # It multiplies roots by it, and divides before it clips: the ranks' number, by which roots are multiplied
            # against its mean, takes no bit of float16's range.
            self._engine.optimizer.override_loss_scale(scale.value / self.group.size)

    def autocast(self) -> AbstractContextManager[None]:
        """Nothing under ZeRO-3: casts that are kept for a pass would be whole weights on every rank."""
        return contextlib.nullcontext() if self.sharded else autocast(self.precision, self.device)

    def embed(
        self,
        inputs: Inputs,
        local: LocalTerms | None = None,
        towers: Towers | None = None,
        layers: tuple[int, ...] = (),
        states: StateTerms | None = None,
    ) -> Encoded:
        here = inputs.to(self.device, non_blocking=True)
        with autocast(self.precision, self.device):
            vectors, scale, *rest = self._engine(here, local, towers, layers, states)
        (of_local, of_states, towers), self._model.rest = self._model.rest, ({}, {}, None)
        found = iter(rest)
        terms = {n: (next(found), c) for n, c in of_local.items()}
        state_terms = {n: (next(found), c) for n, c in of_states.items()}
        return Encoded(vectors, scale, terms, {layer: next(found) for layer in layers}, towers, state_terms)

    def checkpointing(self, on: bool) -> None:
        checkpointing(self.embedder, on)

    def towers_frozen(self) -> bool:
        return towers_frozen(self.embedder)

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        if self.zero.reduce == "chunk":
            if self.sharded:
                self._clear()
            yield
            return
        with self._engine.coalesce_grad_reduction():
            try:
                yield
            except BaseException:
                for _, p in self.trained:  # it reduces all the same: nothing, on every rank
                    p.grad = None
                raise
            # It reduces what has a gradient: ranks would reduce different lists, and ZeRO-3 would take the last
            # step's for what has none in this one.
            for name, p in self.trained:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                    p.grad.data = torch.zeros(self.shapes[name], dtype=p.dtype, device=p.device)

    def _clear(self) -> None:
        """Zero in ZeRO-3's gradient buffers, to which every chunk adds."""
        from deepspeed.utils import safe_set_local_grad

        for _, p in self.trained:
            any_p: Any = p
            safe_set_local_grad(p, torch.zeros_like(any_p.ds_tensor))

    def backward(self, root: Tensor) -> None:
        if self.zero.reduce == "chunk":
            # What its forward does first, and kept graphs have none in between: ZeRO-3 then adds a chunk's gradient to
            # the last one's, where it would overwrite it.
            self._engine.optimizer.clear_backward_seen_flag()
        self._engine.backward(root * self.group.size, scale_wrt_gas=False)

    def forget(self) -> None:
        zero = self._engine.optimizer
        zero.zero_grad()
        if self.stage < 3:
            zero.micro_step_id = -1
            for key in zero.averaged_gradients:
                zero.averaged_gradients[key] = zero.all_grad_tensors[key] = None
        if zero.offload_optimizer if self.sharded else zero.cpu_offload:  # perhaps by a user's own JSON
            zero.reset_cpu_buffers()

    def update(self, step: int, total: int) -> Updated:
        """DeepSpeed's own check skips a step whose norm is not finite, on all ranks."""
        lr = self.settings.set_rates(self.optimizer, step, total)
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        norm = float(self._engine.get_global_grad_norm())
        if applied:
            self._bound_scale()
        self.loss_scale = self.loss_scale.after(applied, self.precision)
        return Updated(norm if applied else math.inf, lr, applied)

    @torch.no_grad()
    def _bound_scale(self) -> None:
        """As Embedder.bound_scale, on the copy that the optimiser moves as well, wherever it lies."""
        scale = self.embedder.settings.scale
        if not isinstance(scale, Learned):
            return
        for f in self.fragments():
            if f.name == "log_scale":
                f.weight.clamp_(max=math.log(scale.max))
        self.embedder.bound_scale()
        if self.sharded:
            parameter: Any = self.embedder.log_scale
            parameter.ds_tensor.data.clamp_(max=math.log(scale.max))

    def fragments(self) -> Iterator[Fragment]:
        """The ranges that this rank's optimiser moves, in the order of the model's parameters."""
        found = self._ranges_of_weights() if self.sharded else self._ranges_of_moments()
        for name, p in self.trained:
            if id(p) in found:
                start, of, at, count = found[id(p)]
                weight = of.detach().narrow(0, at, count)
                yield Fragment(name, self.shapes[name], start, weight, self.optimizer.state[of], of, at)

    def _ranges_of_moments(self) -> dict[int, tuple[int, Tensor, int, int]]:
        """ZeRO 1 and 2: a flat buffer of each parameter group is cut into equal parts, anywhere in a parameter. The
        mapping is what its accessors (safe_get_full_...) read; none of them says which range is whose."""
        out = {}
        for group, flat in zip(self._engine.optimizer.bit16_groups, self.optimizer.param_groups, strict=True):
            for p in group:
                if (mapping := p._hp_mapping) is not None:
                    low, high = mapping.lp_fragment_address, mapping.get_hp_fragment_address()
                    out[id(p)] = (low.start, flat["params"][0], high.start, high.numel)
        return out

    def _ranges_of_weights(self) -> dict[int, tuple[int, Tensor, int, int]]:
        """ZeRO-3: every parameter is cut into equal parts, the last of them padded. Its local accessors give the same
        ranges, padding included, but no moments before the first update, and copies where they are offloaded."""
        zero, out = self._engine.optimizer, {}
        for group, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
            at = 0
            for p in group:
                length = p.partition_numel()
                start = min(self.group.rank * length, p.ds_numel)
                out[id(p)] = (start, flat, at, min(length, p.ds_numel - start))
                at += length
        return out

    def pieces(self) -> Iterator[Piece]:
        return fragments.pieces(self.fragments())

    def restore(self, read: Read) -> None:
        fragments.restore(self.fragments(), read)
        zero = self._engine.optimizer
        if not self.sharded:
            zero.update_lp_params()
            return
        # As at the end of its step: parts, from them what stays whole.
        zero.parameter_offload.partition_all_parameters()
        for low, high in zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True):
            low.data.copy_(high.data)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def whole(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        from deepspeed.runtime.zero import GatheredParameters

        state = self.embedder.state_dict(keep_vars=True)
        out = {}
        for name in state if names is None else names:
            tensor = state[name]
            with GatheredParameters([tensor], enabled=self.sharded and isinstance(tensor, nn.Parameter)):
                if self.group.rank == 0:
                    out[name] = tensor.detach().cpu().clone()
        return out


def _deepspeed() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise ImportError(
            'ZeRO needs DeepSpeed: pip install "omni2vec[train]", or leave zero=None for the engine that needs none'
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def _join() -> None:
    """A process group of one where there is none: offloading is of use to one process too."""
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        os.environ.setdefault("LOCAL_RANK", "0")  # it asks for no other sign of who it is
        dist.init_process_group(backend, store=_C10D.HashStore(), rank=0, world_size=1)
    from deepspeed import comm

    comm.init_distributed(dist_backend=dist.get_backend(), verbose=False)
