"""How a stage begins: where it stands, what its memory is good for, and the tasks that it is scored on on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data.types import Where
from ..model.embedder import Embedder
from ..model.flops import Flops, model_flops, rates
from ..model.types import Inputs
from . import resume
from .engine import Engine
from .gather import Group
from .guard import wished
from .leave import together
from .memory import choose, free_bytes, measure
from .resume import State

if TYPE_CHECKING:
    from ..eval.types import Task
    from .stage import Stage

_CAP = {"cuda": 16_384, "cpu": 4_096}  # tokens a chunk: beyond this a larger one is no faster, only larger


def where_from(stage: Stage, engine: Engine, out: Path, where: Where, base: str) -> State:
    """The state of the newest checkpoint, put back into the engine, or that of a fresh start, measured."""
    group = engine.group
    found = json.loads(group.exchange(json.dumps([p.name for p in resume.existing(out)]).encode())[0])
    state = resume.load(engine, out / resume.FOLDER / found[-1], group, base) if found else State()
    wish = together(group, lambda: wished(out, take=False)) or {}
    if not state.chunk_tokens:
        state = _measured(stage, engine, where, state)
    if fewer := int(wish.get("chunk_tokens", 0)):
        state = replace(state, chunk_tokens=min(state.chunk_tokens, fewer))
    return state


def _measured(stage: Stage, engine: Engine, where: Where, state: State) -> State:
    """Memory plan and tokens a chunk, from the bytes that the first batch's longest rows are seen to keep. Equal on
    all ranks: what the poorest of them can afford."""
    device, group = engine.device, engine.group
    budget = _least(group, int(stage.memory_gb * 2**30) or free_bytes(device) // 2)
    with stage.loader(engine.embedder, where, 1 << 40, group=group) as loader:
        plan = loader.plan(0)
        longest = max(c.tokens for c in plan.costs)
        fixed = stage.chunk_tokens
        tokens = int(fixed) if fixed != "auto" else max(_CAP.get(device.type, 4096), longest)
        memory: str = stage.memory
        if stage.memory == "auto" or fixed == "auto":
            loader.budget = max(2 * longest, 1024) if fixed == "auto" else tokens
            small = loader.plan(0)
            footprint = measure(engine, loader.again(small, 0))
            footprint = replace(
                footprint, all=_most(group, footprint.all), boundaries=_most(group, footprint.boundaries)
            )
            if fixed == "auto":
                # A chunk is recomputed with all its activations, whatever the plan: a quarter of the budget.
                tokens = max(longest, min(tokens, int(budget / 4 / max(footprint.all, 1.0))))
            host = _least(group, free_bytes(torch.device("cpu")) // 2)
            if memory == "auto":
                a_rank = int(1.2 * plan.tokens / group.size)
                memory = choose(footprint, a_rank, budget - budget // 4, device, host)
    return replace(state, memory=memory, chunk_tokens=tokens)


def counter(embedder: Embedder) -> Callable[[Inputs], float] | None:
    """FLOPs of a training step by its rows: forward, and backward by what is trained. Made while the weights are whole.
    None for a model whose configuration does not say what its layers are."""
    if not hasattr(embedder.base.model, "config"):
        return None
    found = rates(embedder)
    factor = {f.name: model_flops(Flops(**{f.name: 1.0}), embedder) for f in fields(Flops)}
    return lambda inputs: sum(factor[part] * n for part, n in asdict(found.count(inputs)).items())


def _least(group: Group, value: float) -> int:
    return int(min(float(v) for v in group.exchange(str(value).encode())))


def _most(group: Group, value: float) -> float:
    return max(float(v) for v in group.exchange(repr(value).encode()))


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
