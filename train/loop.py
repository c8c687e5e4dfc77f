"""Next batch -> step -> log -> save -> evaluate, until the stage is done; the same from the start or after a kill."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data.loader import Loader, Plan
from ..data.types import Clock, Where
from ..model.lora import merged
from ..model.types import Inputs
from . import resume
from .engine import Local
from .memory import choose, free_bytes, measure
from .monitor import Monitor, Update
from .resume import State
from .step import Memory, cached_step

if TYPE_CHECKING:
    from ..eval.types import Task
    from .stage import Stage

_HOPELESS = 20  # steps in a row whose gradient is not finite: nothing will be learned any more
_CAP = {"cuda": 16_384, "cpu": 4_096}  # tokens a chunk: beyond this a larger one is no faster, only larger

_NOTHING = (
    "no row of this step teaches anything: InfoNCE needs positives and negatives (two different rows a sub-batch, or "
    "Feed(negatives=...)), NextToken needs answers; if all steps are like it, the model stays as it is"
)


def run(stage: Stage, out: Path, where: Where) -> None:
    """Train `stage` and leave the embedder's folder in `out`."""
    if resume.closed(out):  # killed between its end and the record of it
        print(f"stage {stage.name!r}: {out} holds its finished output; nothing is left to train", file=sys.stderr)
        return
    torch.manual_seed(stage.seed)
    engine = stage.engine(stage.load(where))
    found = resume.existing(out)
    state = resume.load(engine, found[-1]) if found else State()
    tasks = _tasks(stage, where)
    engine.embedder.train()
    if not state.chunk_tokens:
        state = _measured(stage, engine, where, state)
    with (
        stage.loader(engine.embedder, where, state.chunk_tokens, state) as loader,
        Monitor(out, total=stage.steps, stage=stage.name, start=state.step, wandb=stage.wandb) as monitor,
    ):
        monitor.event(max(state.step - 1, 0), "start", {"memory": state.memory, "chunk_tokens": state.chunk_tokens})
        if not state.stopped:
            _steps(stage, engine, loader, monitor, state, out, tasks)
    if stage.take == "best" and state.best is not None:
        resume.load_weights(engine, resume.path_of(out, state.best_step))
    _finish(engine, out)


def _measured(stage: Stage, engine: Local, where: Where, state: State) -> State:
    """Memory plan and tokens a chunk, from the bytes that the first batch's longest rows are seen to keep."""
    device = engine.device
    budget = int(stage.memory_gb * 2**30) or free_bytes(device) // 2
    with stage.loader(engine.embedder, where, 1 << 40) as loader:
        plan = loader.plan(0)
        longest = max(c.tokens for c in plan.costs)
        fixed = stage.chunk_tokens
        tokens = int(fixed) if fixed != "auto" else max(_CAP.get(device.type, 4096), longest)
        if stage.memory == "auto" or fixed == "auto":
            loader.budget = max(2 * longest, 1024) if fixed == "auto" else tokens
            small = loader.plan(0)
            footprint = measure(engine, loader.again(small, 0))
            if fixed == "auto":
                # A chunk is recomputed with all its activations, whatever the plan: a quarter of the budget.
                tokens = max(longest, min(tokens, int(budget / 4 / max(footprint.all, 1.0))))
            host = free_bytes(torch.device("cpu")) // 2
            memory: str = stage.memory
            if memory == "auto":
                memory = choose(footprint, int(1.2 * plan.tokens), budget - budget // 4, device, host)
        else:
            memory = stage.memory
    return replace(state, memory=memory, chunk_tokens=tokens)


def _steps(
    stage: Stage,
    engine: Local,
    loader: Loader[Inputs],
    monitor: Monitor,
    state: State,
    out: Path,
    tasks: Sequence[Task],
) -> None:
    bounds, began, told, in_a_row = stage.bounds(), time.perf_counter(), False, 0
    memory: Memory = state.memory  # type: ignore[assignment]
    for plan, chunks in loader:
        clock = Clock(plan.step, plan.step / stage.steps, stage.seed)
        done = cached_step(engine, plan, chunks, bounds, clock, memory, loader.again)
        updated = engine.update(plan.step, stage.steps)
        state.step = plan.step + 1
        state.skipped_steps += not updated.applied
        in_a_row = 0 if updated.applied else in_a_row + 1
        if in_a_row == _HOPELESS:
            raise ValueError(
                f"stage {stage.name!r}: the gradient was not finite for {_HOPELESS} steps in a row, up to step "
                f"{plan.step}; lower the rate or the scale, or look at the rows with `omni2vec show RECIPE --batch`"
            )
        skipped = loader.skipped
        state.skipped_sources, state.skipped_keys = dict(skipped.sources), list(skipped.keys)
        now = time.perf_counter()
        monitor.update(
            Update(
                step=plan.step,
                loss=done.loss,
                losses=done.losses,
                lr=updated.lr,
                norm=updated.norm,
                scale=float(engine.embedder.scale.detach()),
                tokens=plan.tokens,
                rows=done.rows,
                chunks=len(plan.chunks),
                seconds=now - began,
                skipped_rows=len(state.skipped_keys),
                skipped_steps=state.skipped_steps,
                epochs=_epochs(loader, plan),
                shrunk=_count(loader.names, plan, [c.shrunk for c in plan.costs]),
                cut=_count(loader.names, plan, [c.cut > 0 for c in plan.costs]),
                peak_bytes=torch.cuda.max_memory_allocated() if engine.device.type == "cuda" else 0,
            )
        )
        began = now
        if updated.norm == 0 and not told:
            monitor.event(plan.step, "no gradient", {"why": _NOTHING})
            told = True
        if _after(stage, engine, monitor, state, out, tasks):
            break


def _epochs(loader: Loader[Inputs], plan: Plan) -> dict[str, float]:
    """Only where it is cheap to say often: every 50th step."""
    if plan.step % 50:
        return {}
    return dict(zip(loader.names, (round(e, 3) for e in loader.order.epochs(plan.step + 1)), strict=True))


def _count(names: Sequence[str], plan: Plan, marked: Sequence[bool]) -> dict[str, int]:
    """How many of a step's items are marked, by source; sources without any are left out."""
    found = Counter(names[g] for g, m in zip(plan.groups, marked, strict=True) if m)
    return dict(found)


def _after(stage: Stage, engine: Local, monitor: Monitor, state: State, out: Path, tasks: Sequence[Task]) -> bool:
    """Evaluate and save where it is time; True to stop."""
    check, last = stage.validate, state.step == stage.steps
    if check is not None and (state.step % check.every == 0 or last):
        score = _evaluate(check.metric, engine, monitor, state, tasks)
        better = state.best is None or score > state.best + check.gain
        state.without_gain = 0 if better else state.without_gain + 1
        if better:
            state.best, state.best_step = score, state.step
        state.stopped = bool(check.patience) and state.without_gain >= check.patience
        if state.stopped:
            monitor.event(state.step - 1, "stopped early", {"best": state.best, "best_step": state.best_step})
        if better:
            resume.save(engine, state, out)
    if state.step % stage.save_every == 0 or last or state.stopped:
        resume.save(engine, state, out)
        resume.prune(out, stage.keep, state)
    return state.stopped


def _tasks(stage: Stage, where: Where) -> list[Task]:
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


def _evaluate(metric: str, engine: Local, monitor: Monitor, state: State, tasks: Sequence[Task]) -> float:
    from ..eval.evaluate import evaluate

    with torch.random.fork_rng(devices=[engine.device] if engine.device.type == "cuda" else []):
        report = evaluate(engine.embedder, tasks, draws=2, progress=False)
    scores = {t.name: t.score.value for t in report.tasks}
    engine.embedder.train()
    scores["mean"] = sum(scores.values()) / len(scores)
    monitor.event(state.step - 1, "evaluation", {k: round(v, 4) for k, v in scores.items()})
    return scores[metric]


def _finish(engine: Local, out: Path) -> None:
    """The embedder's folder into `out`; then the checkpoints may go. Killed on the way, it is done once more; killed
    behind it, `finished` says so."""
    embedder = engine.embedder.eval()
    if embedder.adapter is not None and not embedder.adapter.active_peft_config.base_model_name_or_path:
        embedder = merged(embedder)  # it stands on an earlier adapter that was merged in: no folder holds its base
    for leftover in out.glob("final*"):
        shutil.rmtree(leftover)
    whole = embedder.save(out / "final")
    for file in whole.iterdir():
        file.replace(out / file.name)
    whole.rmdir()
    resume.close(out)
