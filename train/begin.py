"""How a stage begins: where it stands, what its memory is good for, and the tasks that it is scored on on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.loader import Loader
from ..data.planned import EMPTY, Plan, first_filled
from ..data.types import DataError, Where
from ..model.embedder import Embedder
from ..model.flops import counter as rows_counter
from ..model.types import Inputs
from . import resume
from .cost import Coming, coming, widest
from .engine import Engine
from .guard import wished
from .memory import CAP, Footprint, agreed, allot, budgets, kept_bytes
from .probe import Trial, footprint, settle
from .resume import State
from .step import Memory
from .wanted import Wanted

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
            state = _measured(stage, engine, loader, state, int(wish.get("chunk_tokens", 0)))
        if fewer := int(wish.get("chunk_tokens", 0)):
            state = replace(state, chunk_tokens=min(state.chunk_tokens, fewer))
        if state.step < stage.steps and not state.stopped:
            state = _probed(stage, engine, loader, state)
    return state


def _measured(stage: Stage, engine: Engine, loader: Loader[Inputs], state: State, fewer: int = 0) -> State:
    """Tokens a chunk, and what kept graphs may take, from the bytes that the first batch's longest rows are seen to
    keep. Equal on all ranks: what the poorest of them can afford. fewer: tokens to measure at most; 0: no such wish."""
    device, fixed, ranks = engine.device, stage.chunk_tokens, engine.group.size
    first = first_filled(loader.plan, loader.names, 0, stage.steps, stage.name)
    longest = max(c.tokens for c in first.costs)
    tokens = int(fixed) if fixed != "auto" else max(CAP.get(device.type, 4096), longest)
    whole = fixed == "auto" or stage.memory in ("auto", "all")
    # Twice the longest item is enough to tell, but for what is held once a chunk: there the chunk itself.
    seen = tokens if fixed != "auto" and stage.memory == "all" else min(tokens, max(2 * longest, 1024))
    seen = max(longest, min(seen, fewer or seen))

    def chunk(count: int) -> Inputs:
        loader.budget = count
        return loader.again(loader.plan(first.step), 0)

    found = footprint(engine, chunk, seen, longest, whole, stage.name)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    more = _coming(stage, engine, state)
    own = budgets(device, stage.memory_gb, local, more.on_device, more.on_host)
    found, budget, host = agreed(engine.group, device, found, *own)
    # A chunk is recomputed with all its activations, whatever the plan: a quarter of the budget.
    if fixed == "auto":
        tokens = max(longest, min(tokens, int(budget / 4 / max(found.all, 1.0))))
    return replace(
        state,
        memory=stage.memory,
        chunk_tokens=tokens,
        ranks=ranks,
        footprint=(found.all, found.boundaries),
        budgets=(budget - budget // 4, host),
    )


def _coming(stage: Stage, engine: Engine, state: State) -> Coming:
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in engine.embedder.parameters() if p.requires_grad)
    return coming(trained, stage.precision, stage.zero, engine.group.size, bool(state.step))


def memories(state: State, plan: Plan, engine: Engine) -> tuple[Memory, ...]:
    """The memory plan of each chunk of a step, the same on all ranks."""
    if state.memory != "auto":
        memory: Memory = state.memory  # type: ignore[assignment]
        return (memory,) * len(plan.chunks)
    return allot(Footprint(*state.footprint), widest(plan), *state.budgets, engine.device)


def _probed(stage: Stage, engine: Engine, loader: Loader[Inputs], state: State) -> State:
    """The state with which the chunks of the next step go through on every rank: first fewer graphs are kept between
    the passes, then the chunk budget is halved."""
    try:
        first = first_filled(loader.plan, loader.names, state.step, stage.steps, stage.name)
    except DataError:
        if stage.steps - state.step >= EMPTY:
            raise
        return state  # a stage that ends in empty batches has nothing to run
    longest = max(c.tokens for c in first.costs)
    more = _coming(stage, engine, state)

    def offers(tokens: int) -> Iterator[tuple[State, list[Trial]]]:
        loader.budget = tokens
        plan = loader.plan(first.step)
        before = set()
        for offered in demoted(state, tokens <= longest):
            plans = memories(offered, plan, engine)
            if (offered.memory, plans) not in before:
                before.add((offered.memory, plans))
                told = trials(plans, widest(plan), offered, more)
                yield offered, [Trial(partial(loader.again, plan, i), runs, r, graph) for i, runs, r, graph in told]

    wanted = Wanted.of(stage.bounds(), engine.embedder)
    tokens, settled, _ = settle(engine, state.chunk_tokens, longest, offers, wanted, stage.name)
    return replace(settled, chunk_tokens=tokens)


def demoted(state: State, last: bool = False) -> Iterator[State]:
    """The state, then, under "auto", with ever fewer bytes for kept graphs. last: no smaller chunk can be tried, so
    that in the end no chunk runs with its whole graph."""
    yield state
    if state.memory == "auto":
        budget, host = state.budgets
        for less in (budget // 2, budget // 4, 0):
            yield replace(state, budgets=(less, host))
        if last:
            yield replace(state, memory="vectors")


def trials(
    plans: Sequence[Memory], tokens: Sequence[int], state: State, more: Coming
) -> Iterator[tuple[int, Memory, int, int]]:
    """(chunk, memory, reserve, graph) of the longest chunk under each memory plan, as fields of a Trial. Pure.

    Beside a chunk in its backward pass the device holds what the others keep and the moments; beside one that shares
    no whole graph's cast weights, these twice.
    """
    found = Footprint(*state.footprint)
    kept = kept_bytes(found, tokens, plans)[0]
    for plan in dict.fromkeys(plans):
        i = max((i for i, p in enumerate(plans) if p == plan), key=lambda i: tokens[i])
        runs: Memory = "all" if plan == "vectors" and state.memory == "auto" else plan  # see cached_step's `plain`
        reserve = kept - kept_bytes(found, tokens[i : i + 1], [plan])[0] + more.moments
        reserve += more.casts if plan != "all" and "all" in plans else 0
        graph = kept_bytes(found, tokens[i : i + 1], [runs])[0] + more.gradient
        yield i, runs, max(reserve, 0), graph


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
