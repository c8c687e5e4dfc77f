"""How a stage begins: where it stands, what its memory is good for, and the tasks that it is scored on on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.loader import Loader, Plan
from ..data.types import Where
from ..model.embedder import Embedder
from ..model.flops import counter as rows_counter
from ..model.types import Inputs
from . import resume
from .cost import held, widest
from .engine import Engine
from .guard import wished
from .loss import local_terms
from .memory import CAP, Footprint, agreed, allot, budgets, kept_bytes, measure
from .probe import settle
from .resume import State
from .step import Memory, callables

if TYPE_CHECKING:
    from ..eval.types import Task
    from .stage import Stage


def where_from(stage: Stage, engine: Engine, out: Path, where: Where, base: str) -> State:
    """The state of the newest checkpoint, put back into the engine, or that of a fresh start, measured."""
    group = engine.group
    found = json.loads(group.exchange(json.dumps([p.name for p in resume.existing(out)]).encode())[0])
    state = resume.load(engine, out / resume.FOLDER / found[-1], group, base) if found else State()
    # Rank 0's word: a shared folder may show a file to one host before another.
    wish = (
        json.loads(group.exchange(json.dumps(wished(out, take=False) if group.rank == 0 else None).encode())[0]) or {}
    )
    with stage.loader(engine.embedder, where, state.chunk_tokens or 1 << 40, replace(state), group) as loader:
        if not state.chunk_tokens or state.ranks not in (0, group.size):  # elsewhere, other things fit
            state = _measured(stage, engine, loader, state)
        if fewer := int(wish.get("chunk_tokens", 0)):
            state = replace(state, chunk_tokens=min(state.chunk_tokens, fewer))
        if state.step < stage.steps and not state.stopped:
            state = _probed(stage, engine, loader, state)
    return state


def _measured(stage: Stage, engine: Engine, loader: Loader[Inputs], state: State) -> State:
    """Tokens a chunk, and what kept graphs may take, from the bytes that the first batch's longest rows are seen to
    keep. Equal on all ranks: what the poorest of them can afford."""
    device, fixed = engine.device, stage.chunk_tokens
    plan = loader.plan(0)
    longest = max(c.tokens for c in plan.costs)
    tokens = int(fixed) if fixed != "auto" else max(CAP.get(device.type, 4096), longest)
    if stage.memory != "auto" and fixed != "auto":
        return replace(state, memory=stage.memory, chunk_tokens=tokens, ranks=engine.group.size)
    loader.budget = max(2 * longest, 1024) if fixed == "auto" else tokens
    footprint = measure(engine, loader.again(loader.plan(0), 0))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", engine.group.size))
    footprint, budget, host = agreed(engine.group, device, footprint, *budgets(device, stage.memory_gb, local))
    # A chunk is recomputed with all its activations, whatever the plan: a quarter of the budget.
    if fixed == "auto":
        tokens = max(longest, min(tokens, int(budget / 4 / max(footprint.all, 1.0))))
    return replace(
        state,
        memory=stage.memory,
        chunk_tokens=tokens,
        ranks=engine.group.size,
        footprint=(footprint.all, footprint.boundaries),
        budgets=(budget - budget // 4, host),
    )


def memories(state: State, plan: Plan, engine: Engine) -> tuple[Memory, ...]:
    """The memory plan of each chunk of a step, the same on all ranks."""
    if state.memory != "auto":
        memory: Memory = state.memory  # type: ignore[assignment]
        return (memory,) * len(plan.chunks)
    return allot(Footprint(*state.footprint), widest(plan), *state.budgets, engine.device)


def _probed(stage: Stage, engine: Engine, loader: Loader[Inputs], state: State) -> State:
    """The state, with the chunk budget halved until the longest chunk of the next step goes through on every rank."""

    def chunk(tokens: int) -> Inputs:
        loader.budget = tokens
        plan = loader.plan(state.step)
        wide = widest(plan)
        return loader.again(plan, wide.index(max(wide)))

    plan, terms = loader.plan(state.step), callables(local_terms(stage.bounds()))
    longest = max(c.tokens for c in plan.costs)
    # Whatever the plan, a chunk's backward pass has its activations, beside what the other chunks keep.
    kept = kept_bytes(Footprint(*state.footprint), widest(plan), memories(state, plan, engine))[0]
    if not state.step:  # moments are made by the first update
        trained = sum(getattr(p, "ds_numel", p.numel()) for p in engine.embedder.parameters() if p.requires_grad)
        found = held(trained, 0, stage.precision, stage.zero, engine.group.size)
        kept += found.moments if not found.on_host else 0
    tokens, _ = settle(engine, state.chunk_tokens, longest, chunk, "boundaries", terms, kept, stage.name)
    return replace(state, chunk_tokens=tokens)


def counter(embedder: Embedder) -> Callable[[Inputs], float] | None:
    """FLOPs of a training step by its rows: forward, and backward by what is trained. Made while the weights are whole.
    None for a model whose configuration does not say what its layers are."""
    if not hasattr(embedder.base.model, "config"):
        return None
    return rows_counter(embedder)


def tasks_of(stage: Stage, where: Where) -> list[Task]:
    """What `validate` scores on, read once. A metric that will not be there is refused before the first step."""
    from ..eval.evaluate import tasks_of

    check = stage.validate
    if check is None:
        return []
    tasks = tasks_of(check.data, where, check.limit)
    if check.metric != "mean" and check.metric not in (names := [t.name for t in tasks]):
        raise ValueError(
            f"stage {stage.name!r}: validate.metric={check.metric!r}; expected 'mean' or one of {', '.join(names)}"
        )
    return tasks
