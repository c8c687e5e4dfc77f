"""The cached step: vectors of all chunks, gradients of the vectors, gradients of the parameters.

A contrastive loss needs every vector of the batch at once, so a batch cannot be split into micro-batches. GradCache
(arXiv:2101.06983) runs the model twice. Here each chunk's graph from the first pass is kept with only its layer
boundaries (activation checkpointing), so that the second pass is the recomputation that checkpointing does anyway.

On several ranks each runs its own chunks, all know all vectors, and the gradients of the parameters are summed over
ranks once. What one rank alone cannot go on from (no memory left) is agreed on before anyone waits for it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..data.planned import Plan
from ..data.schedules import at
from ..data.types import Clock, DataError
from ..model.types import Encoded, Inputs, Towers
from .engine import Engine
from .gather import Group, gather_vectors
from .loss import Bound as Bound
from .loss import Graded, Owners, batch_loss, local_terms
from .objectives.types import Local, NoScoreError, States
from .offload import offloading
from .trouble import ran_out_of_memory
from .wanted import Wanted

Memory = Literal["all", "boundaries", "offloaded", "vectors"]
Watch = Callable[[str], AbstractContextManager[object]]


def _unwatched(_: str) -> AbstractContextManager[object]:
    return contextlib.nullcontext()


class NoMemoryError(RuntimeError):
    """A rank ran out of memory in this step. Weights and moments are as they were before it, on every rank."""


@dataclass
class Done:
    """What one step computed, equal on all ranks. losses: by objective, before weights; rows: queries that counted;
    failed: rows of the plan that could not be decoded; finite: whether there is a gradient to apply; flops, dummies:
    as counted, and tokens of stand-ins; vectors: (Q + N, D), scale (1,)."""

    vectors: Tensor
    scale: Tensor
    loss: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    failed: tuple[int, ...] = ()
    finite: bool = True
    flops: float = 0.0
    dummies: int = 0


@dataclass
class _Chunk:
    """Between the passes: a kept graph, or what it takes to run the chunk again. first, count: its entries' vectors
    among this rank's."""

    first: int
    count: int
    encoded: Encoded | None = None
    inputs: Inputs | None = None
    towers: Towers | None = None
    rng: tuple[Tensor, Tensor | None] | None = None


@dataclass
class _Passed:
    """What the first pass left. own: this rank's vectors, chunk by chunk; at: those of inner layers; failed: its
    entries that stand in as grey."""

    chunks: list[_Chunk] = field(default_factory=list)
    own: list[Tensor] = field(default_factory=list)
    at: dict[int, list[Tensor]] = field(default_factory=dict)
    scale: Tensor | None = None
    failed: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)  # chunks whose towers' outputs found no room
    flops: float = 0.0
    dummies: int = 0


def cached_step(
    engine: Engine,
    plan: Plan,
    chunks: Iterable[Inputs],
    bounds: Sequence[Bound],
    clock: Clock,
    memory: Memory | Sequence[Memory] = "boundaries",
    again: Callable[[Plan, int], Inputs] | None = None,
    host_bytes: int = 1 << 30,
    watch: Watch = _unwatched,
    count: Callable[[Inputs], float] | None = None,
    plain: bool = False,
    scale: float | None = None,
) -> Done:
    """Leave in the parameters the gradient of the whole batch's loss. The caller updates, or forgets where it is not
    finite.

    memory: the plan of all chunks, or of each; the i-th chunks of all ranks must have the same. again: reads and
    collates a chunk once more. With memory "vectors", at most `host_bytes` of chunks are kept between the passes, and
    as much of what frozen towers gave; the rest is read, and seen, again. watch: times the sections by name. count:
    FLOPs of a chunk. plain: a chunk that is run again keeps all of its graph, without checkpointing: a forward less,
    where that fits. scale: of the logits, instead of the embedder's. Raises NoMemoryError on all ranks where one has
    run out of it, DataError naming the row that lacks a score.
    """
    local, group = local_terms(bounds), engine.group
    wanted = Wanted.of(bounds, engine.embedder)
    memories = (memory,) * len(plan.chunks) if isinstance(memory, str) else tuple(memory)
    first, passed = _First(engine, wanted, memories, host_bytes, watch, count), _Passed()
    full = ran_out_of_memory(engine, lambda: first(plan, chunks, passed))
    if full:
        passed.chunks.clear()
    with watch("gather"):
        failed = _agree(group, engine.device, plan, passed, full)
        entries = [torch.tensor([e for c in of_rank for e in c.entries], dtype=torch.int64) for of_rank in plan.ranks]
        vectors = gather_vectors(group, entries, torch.cat(passed.own))
        at_layer = {n: gather_vectors(group, entries, torch.cat(passed.at[n])) for n in wanted.layers}
        passed.own.clear()
        passed.at.clear()
    bad = {plan.slots[e][0] for e in failed}
    good = torch.ones(len(plan.keys), dtype=torch.bool, device=vectors.device)
    good[sorted(bad)] = False
    assert passed.scale is not None
    if scale is not None:
        passed.scale = passed.scale.clone()
        passed.scale[0] = scale
    done = Done(vectors, passed.scale[:1], rows=int(good.sum()), failed=tuple(sorted(bad)))
    with watch("loss"):
        owners = Owners.of(group, entries, vectors.device)
        at_layers = {layer: at_layer[n] for layer, n in wanted.named.items()}
        relation = plan.relation.to(vectors.device)
        try:
            graded = batch_loss(vectors, at_layers, passed.scale, relation, good, bounds, clock, owners)
        except NoScoreError as error:
            raise DataError(f"{plan.keys[error.query]}: {error.lacks}") from error
        for layer, n in wanted.named.items():  # two names may be one layer
            found = graded.d_at.pop(layer)
            graded.d_at[n] = graded.d_at[n] + found if n in graded.d_at else found
    done.loss, done.losses = graded.loss, graded.losses
    done.finite = math.isfinite(done.loss)
    if done.finite:
        labels = {name: _counted(plan, groups, o, failed) for name, (groups, o) in local.items()}
        weights = {n: at(o.weight, clock.progress) / labels[n] if labels[n] else 0.0 for n, (_, o) in local.items()}
        second = _Second(engine, wanted, weights, again, watch, plain)
        sums, done.flops, done.dummies = second(plan, passed, graded)
        for name, total in sums.items():
            if labels[name]:
                done.losses[name] = total / labels[name]
                done.loss += weights[name] * total
    return done


def _counted(plan: Plan, groups: frozenset[int], objective: Local | States, failed: set[int]) -> int:
    """By what the sum of the whole batch is divided: next-token labels, or Items, of entries that were decoded."""
    costs = zip(plan.costs, plan.groups, strict=True)
    mine = [c for e, (c, g) in enumerate(costs) if g in groups and e not in failed]
    return len(mine) if isinstance(objective, States) else sum(c.labels for c in mine)


def _agree(group: Group, device: torch.device, plan: Plan, passed: _Passed, out_of_memory: bool) -> set[int]:
    """The failed entries of all ranks. A chunk whose towers one rank must run again, all run again: they may hold
    collectives. NoMemoryError on all where one has run out of it."""
    entries, chunks = len(plan.costs), len(plan.chunks)
    flags = torch.zeros(entries + chunks + 1, dtype=torch.uint8)
    flags[[*sorted(passed.failed), *(entries + i for i in sorted(passed.dropped))]] = 1
    flags[-1] = int(out_of_memory)
    flags = group.max_(flags.to(device)).cpu()
    if flags[-1]:
        raise NoMemoryError("a rank has no memory left for its chunks")
    for i in flags[entries:-1].nonzero().squeeze(1).tolist():
        passed.chunks[i].towers = None
    return set(flags[:entries].nonzero().squeeze(1).tolist())


def _silent(inputs: Inputs) -> Inputs:
    """The chunk without the labels of segments that could not be decoded."""
    if not inputs.failed:
        return inputs
    labels = inputs.labels.clone()
    for segment in inputs.failed:
        start = sum(inputs.lengths[:segment])
        labels[start : start + inputs.lengths[segment]] = -100
    return replace(inputs, labels=labels)


@dataclass
class _First:
    """The first pass: every chunk's vectors, and its graph, or what it takes to run it again."""

    engine: Engine
    wanted: Wanted
    memories: Sequence[Memory]
    host_bytes: int
    watch: Watch
    count: Callable[[Inputs], float] | None
    held: int = 0  # bytes of inputs kept, and of towers' outputs
    seen: int = 0

    def __call__(self, plan: Plan, chunks: Iterable[Inputs], passed: _Passed) -> None:
        frozen, coming, at = self.engine.towers_frozen(), iter(chunks), 0
        with self.engine.autocast():
            for i, (chunk, memory) in enumerate(zip(plan.chunks, self.memories, strict=True)):
                with self.watch("data"):
                    inputs = next(coming)
                passed.failed |= {chunk.entries[s] for s in inputs.failed}
                passed.flops += self.count(inputs) if self.count is not None else 0.0
                passed.dummies += sum(inputs.lengths[len(chunk.entries) :])
                with self.watch("forward"):
                    state = _Chunk(at, len(chunk.entries))
                    encoded = self._run(state, _silent(inputs), memory, frozen)
                passed.own.append(encoded.vectors.detach()[: len(chunk.entries)])
                for layer in self.wanted.layers:
                    passed.at.setdefault(layer, []).append(encoded.at[layer].detach()[: len(chunk.entries)])
                passed.scale = encoded.scale.detach()
                passed.chunks.append(state)
                if memory == "vectors" and state.towers is None:
                    passed.dropped.add(i)
                at += len(chunk.entries)
            if next(coming, None) is not None:  # read to its end: a loader counts what failed there
                raise ValueError(f"step {plan.step}: more chunks than the {len(plan.chunks)} of its plan")

    def _run(self, state: _Chunk, inputs: Inputs, memory: Memory, frozen: bool) -> Encoded:
        engine = self.engine
        engine.checkpointing(memory != "all")
        if memory != "vectors":
            with offloading(memory == "offloaded", engine.device):
                state.encoded = self.wanted.embed(engine, inputs)
            return state.encoded
        state.rng = _rng(engine.device)
        with torch.no_grad():
            encoded = self.wanted.vectors(engine, inputs)
        if frozen and encoded.towers is not None:
            self.seen += encoded.towers.nbytes
            state.towers = encoded.towers if self.seen <= self.host_bytes else None
        self.held += inputs.nbytes
        state.inputs = inputs if self.held <= self.host_bytes else None
        return encoded


@dataclass
class _Second:
    """The second pass: every chunk's part of the gradient. Gives, over all ranks, the sums of the Local objectives,
    the FLOPs and the dummies' tokens."""

    engine: Engine
    wanted: Wanted
    weights: Mapping[str, float]
    again: Callable[[Plan, int], Inputs] | None
    watch: Watch
    plain: bool

    def __call__(self, plan: Plan, passed: _Passed, graded: Graded) -> tuple[dict[str, float], float, int]:
        sums = dict.fromkeys([*self.wanted.local, *self.wanted.states], 0.0)
        with self.engine.accumulating():
            full = False
            for i in range(len(passed.chunks)):
                with self.watch("backward"):
                    full = ran_out_of_memory(self.engine, partial(self._chunk, plan, passed, i, graded, sums))
                if full:
                    passed.chunks.clear()
                    break
            told = [*sums.values(), passed.flops, passed.dummies, float(full)]
            told = self.engine.group.sum_(torch.tensor(told, dtype=torch.float64, device=self.engine.device)).tolist()
            if told[-1]:
                raise NoMemoryError("a rank has no memory left for a backward pass")
        return dict(zip(sums, told, strict=False)), told[-3], int(told[-2])

    def _chunk(self, plan: Plan, passed: _Passed, i: int, graded: Graded, sums: dict[str, float]) -> None:
        state, last = passed.chunks[i], i == len(passed.chunks) - 1
        encoded = state.encoded if state.encoded is not None else self._replay(plan, i, state)
        root = _along(encoded.vectors, graded.d_own, state)
        for layer in self.wanted.layers:
            root = root + _along(encoded.at[layer], graded.d_at[layer], state)
        for name, (value, _) in {**encoded.local, **encoded.states}.items():
            sums[name] += float(value.detach())
            root = root + self.weights[name] * value
        if last:  # the scale's gradient is that of the whole batch: one rank adds it, the others a zero
            root = root + (encoded.scale * graded.d_scale).sum() * float(self.engine.group.rank == 0)
        if root.requires_grad:
            self.engine.backward(root)
        passed.chunks[i] = _Chunk(state.first, state.count)  # the graph's memory goes with it

    def _replay(self, plan: Plan, index: int, state: _Chunk) -> Encoded:
        """The chunk's forward once more, with the random numbers of the first."""
        engine, inputs = self.engine, state.inputs
        if inputs is None:
            if self.again is None:
                raise ValueError(f"chunk {index} was not kept and there is no way to read it again; raise host_bytes")
            with self.watch("data"):
                inputs = _silent(self.again(plan, index))
        assert state.rng is not None
        after = _rng(engine.device)
        _set_rng(state.rng, engine.device)
        engine.checkpointing(not self.plain)
        encoded = self.wanted.embed(engine, inputs, state.towers)
        _set_rng(after, engine.device)
        return encoded


def _along(vectors: Tensor, gradient: Tensor, state: _Chunk) -> Tensor:
    """A root whose gradient by a chunk's vectors is theirs in `gradient`. A dummy's vector counts nothing, yet its
    modules must be in the graph."""
    root = (vectors[: state.count] * gradient[state.first : state.first + state.count]).sum()
    return root + 0.0 * vectors[state.count :].sum() if len(vectors) > state.count else root


def _rng(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_rng(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
