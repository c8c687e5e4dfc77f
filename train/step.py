"""The cached step: vectors of all chunks, gradients of the vectors, gradients of the parameters.

A contrastive loss needs every vector of the batch at once, so a batch cannot be split into micro-batches. GradCache
(arXiv:2101.06983) runs the model twice. Here each chunk's graph from the first pass is kept with only its layer
boundaries (activation checkpointing), so that the second pass is the recomputation that checkpointing does anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..data.loader import Plan
from ..data.relation import Relation, of_queries
from ..data.types import Clock
from ..model.embedder import LocalTerms
from ..model.types import Encoded, Inputs, Towers
from .engine import Engine
from .memory import offloading
from .objectives.types import Contrastive, Local, Objective, Pairwise

Memory = Literal["all", "boundaries", "offloaded", "vectors"]


@dataclass(frozen=True)
class Bound:
    """Objectives bound to the sources (by index) whose rows they get."""

    name: str
    objectives: tuple[Objective, ...]
    groups: frozenset[int]


@dataclass
class Done:
    """What one step computed. losses: by objective, before weights; rows: queries that counted."""

    loss: float
    losses: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    failed: int = 0


@dataclass
class _Chunk:
    """Between the passes: a kept graph, or what it takes to run the chunk again."""

    entries: Tensor
    encoded: Encoded | None = None
    inputs: Inputs | None = None
    towers: Towers | None = None
    rng: tuple[Tensor, Tensor | None] | None = None


def _name(bound: Bound, objective: Objective) -> str:
    return f"{bound.name}/{type(objective).__name__.lower()}"


def local_terms(bounds: Sequence[Bound]) -> dict[str, tuple[frozenset[int], Local]]:
    """Every Local objective by name, with the sources whose answers it takes."""
    return {_name(b, o): (b.groups, o) for b in bounds for o in b.objectives if isinstance(o, Local)}


def _callables(terms: Mapping[str, tuple[frozenset[int], Local]]) -> LocalTerms:
    def call(objective: Local) -> Callable[[Tensor, Tensor], tuple[Tensor, int]]:
        def term(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
            out = objective.local(logits, labels)
            return out.sum, out.count

        return term

    return {name: (groups, call(o)) for name, (groups, o) in terms.items()}


def cached_step(
    engine: Engine,
    plan: Plan,
    chunks: Iterable[Inputs],
    bounds: Sequence[Bound],
    clock: Clock,
    memory: Memory = "boundaries",
    again: Callable[[Plan, int], Inputs] | None = None,
    host_bytes: int = 1 << 30,
) -> Done:
    """Leave in the parameters the gradient of the whole batch's loss. The caller updates.

    again: reads and collates a chunk once more. With memory "vectors", at most `host_bytes` of chunks are kept between
    the passes, and as much of what frozen towers gave; the rest is read, and seen, again.
    """
    local = local_terms(bounds)
    with engine.autocast():
        kept, vectors, scale, failed = _first_pass(engine, plan, chunks, _callables(local), memory, host_bytes)
    bad = {plan.slots[e][0] for e in failed}
    labels = {name: _labels(plan, groups, failed) for name, (groups, _) in local.items()}
    relation = plan.relation.to(vectors.device)
    good = torch.ones(len(plan.keys), dtype=torch.bool, device=vectors.device)
    good[sorted(bad)] = False
    done = Done(0.0, rows=int(good.sum()), failed=len(bad))
    d_vectors, d_scale = _loss(vectors, scale, relation, good, bounds, clock, done)
    weights = {n: (o.weight / labels[n] if labels[n] else 0.0) for n, (_, o) in local.items()}
    sums = _second_pass(engine, plan, kept, d_vectors, d_scale, _callables(local), weights, again)
    for name, total in sums.items():
        if labels[name]:
            done.losses[name] = total / labels[name]
            done.loss += weights[name] * total
    return done


def _labels(plan: Plan, groups: frozenset[int], failed: set[int]) -> int:
    """Next-token labels of the whole batch, by which a Local sum is divided: those of entries that were decoded."""
    costs = zip(plan.costs, plan.groups, strict=True)
    return sum(c.labels for e, (c, g) in enumerate(costs) if g in groups and e not in failed)


def _silent(inputs: Inputs) -> Inputs:
    """The chunk without the labels of segments that could not be decoded."""
    if not inputs.failed:
        return inputs
    labels = inputs.labels.clone()
    for segment in inputs.failed:
        start = sum(inputs.lengths[:segment])
        labels[start : start + inputs.lengths[segment]] = -100
    return replace(inputs, labels=labels)


def _first_pass(
    engine: Engine, plan: Plan, chunks: Iterable[Inputs], terms: LocalTerms, memory: Memory, host_bytes: int
) -> tuple[list[_Chunk], Tensor, Tensor, set[int]]:
    """Vectors of all entries (Q + N, D), detached; the scale; entries that could not be decoded."""
    engine.checkpointing(memory in ("boundaries", "offloaded", "vectors"))
    keep_graph = memory != "vectors"
    found: list[tuple[Tensor, Tensor]] = []
    kept: list[_Chunk] = []
    failed: set[int] = set()
    scale, held, seen = torch.ones(1), 0, 0
    frozen = engine.towers_frozen()
    for chunk, inputs in zip(plan.chunks, chunks, strict=True):
        entries = torch.tensor(chunk.entries)
        failed |= {chunk.entries[s] for s in inputs.failed}
        state, inputs = _Chunk(entries), _silent(inputs)
        if keep_graph:
            with offloading(memory == "offloaded", engine.device):
                encoded = engine.embed(inputs, terms)
            state.encoded = encoded
        else:
            state.rng = _rng(engine.device)
            with torch.no_grad():
                encoded = engine.embed(inputs)
            if frozen and encoded.towers is not None:
                seen += encoded.towers.nbytes
                state.towers = encoded.towers if seen <= host_bytes else None
            held += inputs.nbytes
            state.inputs = inputs if held <= host_bytes else None
        found.append((entries.to(encoded.vectors.device), encoded.vectors.detach()[: len(entries)]))
        scale = encoded.scale.detach()
        kept.append(state)
    vectors = torch.empty(len(plan.costs), found[0][1].shape[1], dtype=found[0][1].dtype, device=found[0][1].device)
    for entries, v in found:
        vectors[entries] = v
    return kept, vectors, scale, failed


def _loss(
    vectors: Tensor,
    scale: Tensor,
    relation: Relation,
    good: Tensor,
    bounds: Sequence[Bound],
    clock: Clock,
    done: Done,
) -> tuple[Tensor, Tensor]:
    """Gradients of the batch's loss by its vectors and by the scale; losses go into `done`."""
    vectors, scale = vectors.requires_grad_(), scale.clone().requires_grad_()
    q = len(relation.query_id)
    total = vectors.new_zeros(())
    for bound in bounds:
        mine = good & torch.isin(relation.query_source, torch.tensor(sorted(bound.groups), device=good.device))
        part, queries, docs = of_queries(relation, mine)
        if not len(queries) or not len(docs):
            continue
        query, doc = vectors[queries], vectors[q + docs]
        for objective in bound.objectives:
            if isinstance(objective, Contrastive):
                out = objective.contrast(query, doc, part, scale, clock)
                value = out.sum / max(out.count, 1)
            elif isinstance(objective, Pairwise):
                first = part.positive & (part.rank == 0)
                cosine = (query[part.owner[first]] * doc[first]).sum(-1)
                value = objective.pairwise(cosine, part.score[first], clock)
            else:
                continue
            done.losses[_name(bound, objective)] = float(value.detach())
            total = total + objective.weight * value
    done.loss = float(total.detach())
    if not total.requires_grad:
        return torch.zeros_like(vectors), torch.zeros_like(scale)
    d_vectors, d_scale = torch.autograd.grad(total, (vectors, scale), allow_unused=True)
    return d_vectors, torch.zeros_like(scale) if d_scale is None else d_scale


def _second_pass(
    engine: Engine,
    plan: Plan,
    kept: list[_Chunk],
    d_vectors: Tensor,
    d_scale: Tensor,
    terms: LocalTerms,
    weights: Mapping[str, float],
    again: Callable[[Plan, int], Inputs] | None,
) -> dict[str, float]:
    """Backward through every chunk; returns the sums of the Local objectives."""
    sums = dict.fromkeys(terms, 0.0)
    for i, state in enumerate(kept):
        encoded = state.encoded if state.encoded is not None else _replay(engine, plan, i, state, terms, again)
        gradient = d_vectors[state.entries.to(d_vectors.device)]
        vectors = encoded.vectors
        root = (vectors[: len(gradient)] * gradient).sum()
        if len(vectors) > len(gradient):  # a dummy's vector counts nothing, yet its modules must be in the graph
            root = root + 0.0 * vectors[len(gradient) :].sum()
        for name, (value, _) in encoded.local.items():
            sums[name] += float(value.detach())
            root = root + weights[name] * value
        if i == len(kept) - 1:
            root = root + (encoded.scale * d_scale).sum()
        if root.requires_grad:
            engine.backward(root)
        kept[i] = _Chunk(state.entries)  # the graph's memory goes with it
    return sums


def _replay(
    engine: Engine,
    plan: Plan,
    index: int,
    state: _Chunk,
    terms: LocalTerms,
    again: Callable[[Plan, int], Inputs] | None,
) -> Encoded:
    """The chunk's forward once more, with the random numbers of the first."""
    inputs = state.inputs
    if inputs is None:
        if again is None:
            raise ValueError(f"chunk {index} was not kept and there is no way to read it again; raise host_bytes")
        inputs = _silent(again(plan, index))
    assert state.rng is not None
    after = _rng(engine.device)
    _set_rng(state.rng, engine.device)
    encoded = engine.embed(inputs, terms, state.towers)
    _set_rng(after, engine.device)
    return encoded


def _rng(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_rng(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
