"""Next batch -> step -> log -> save -> evaluate, until the stage is done; the same from the start or after a kill, on
one rank or many."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data.counter import bits
from ..data.loader import Loader, Plan
from ..data.types import Clock, Where
from ..model.types import Inputs
from . import resume
from .alarm import Collapse
from .begin import counter, memories, tasks_of, where_from
from .consolidate import complete, export
from .engine import Engine, Updated
from .examples import examples
from .gather import Group
from .guard import WISH, Restart, Signals, smaller, wish
from .health import Health, look, task_of
from .loss import Bound
from .machine import host_peak_bytes, peak_flops
from .monitor import Monitor, Update
from .precision import LossScale
from .probe import NoRoomError
from .resume import State
from .snapshot import Saver
from .spread import Together
from .step import Done, NoMemoryError, cached_step
from .timing import Stopwatch
from .trouble import Patience, agree, blame, is_out_of_memory
from .watchdog import Stall, Watchdog

if TYPE_CHECKING:
    from ..eval.types import Task
    from .stage import Stage

_EVALUATION_S = 6 * 3600.0  # that an evaluation may take before a rank in it is said to hang

_NOTHING = (
    "no row of this step teaches anything: InfoNCE needs positives and negatives (two different rows a sub-batch, or "
    "Feed(negatives=...)), NextToken needs answers; if all steps are like it, the model stays as it is"
)


def run(stage: Stage, out: Path, where: Where) -> None:
    """Train `stage` and leave the embedder's folder in `out`. Every rank calls it; Restart where it has been asked to
    end, or must begin again, and has saved."""
    group = Group.current()
    if stage.batch < group.size:
        raise ValueError(
            f"stage {stage.name!r}: batch={stage.batch} is smaller than the {group.size} ranks; raise batch, or start "
            "fewer ranks"
        )
    if group.exchange(bytes([group.rank == 0 and resume.closed(out)]))[0] == b"\x01":
        if group.rank == 0:  # killed between its end and the record of it
            print(f"stage {stage.name!r}: {out} holds its finished output; nothing is left to train", file=sys.stderr)
        return
    torch.manual_seed(stage.seed)  # new parts are drawn from it
    base = stage.base(where)
    embedder = stage.load(where)
    count = counter(embedder)
    engine = stage.engine(embedder, group)
    tasks = tasks_of(stage, where)
    state = State()
    try:
        state = where_from(stage, engine, out, where, base)
        if state.step:
            engine.loss_scale = LossScale(*state.loss_scale)
        engine.embedder.train()
        with contextlib.ExitStack() as stack:
            saver = stack.enter_context(
                Saver(engine, out, group, keep=stage.keep, keep_best=stage.keep_best, base=base)
            )
            loader = stack.enter_context(stage.loader(engine.embedder, where, state.chunk_tokens, state, group))
            monitor = stack.enter_context(_monitor(stage, engine, out, state)) if group.rank == 0 else None
            signals = stack.enter_context(Signals())
            tell = _teller(monitor)
            dog = stack.enter_context(Watchdog(group.rank, group.size, out, limit_s=stage.stall_s, tell=tell))
            training = _Training(stage, engine, loader, monitor, saver, state, out, tasks, signals, dog, count)
            training.say("start", {"ranks": group.size, "chunk_tokens": state.chunk_tokens})
            if not state.stopped:
                training.go()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # Alone with it: the other ranks wait in a collective, and are ended by whoever started them.
        tokens = error.tokens if isinstance(error, NoRoomError) else state.chunk_tokens // 2
        if tokens:
            wish(out, "out of memory", chunk_tokens=tokens)
        raise Restart(f"out of memory on rank {group.rank}") from error
    _finish(stage, engine, state, out, where, base)


def _monitor(stage: Stage, engine: Engine, out: Path, state: State) -> Monitor:
    record = out.parent / "record.json"  # of the run that this stage belongs to
    return Monitor(
        out,
        total=stage.steps,
        stage=stage.name,
        start=state.step,
        wandb=stage.wandb,
        record=json.loads(record.read_text()) if record.is_file() else {},
        peak=peak_flops(torch.cuda.get_device_name(engine.device)) if engine.device.type == "cuda" else 0.0,
    )


def _teller(monitor: Monitor | None) -> Callable[[Stall], None]:
    """Says that a rank hangs, on the terminal and, on rank 0, in the log."""

    def tell(stall: Stall) -> None:
        print(stall.text, file=sys.stderr, flush=True)
        if monitor is not None:
            monitor.event(stall.step, "stalled", {"ranks": list(stall.ranks), "section": stall.where})

    return tell


@dataclass
class _Training:
    stage: Stage
    engine: Engine
    loader: Loader[Inputs]
    monitor: Monitor | None
    saver: Saver
    state: State
    out: Path
    tasks: Sequence[Task]
    signals: Signals
    dog: Watchdog
    count: Callable[[Inputs], float] | None
    told: bool = False

    def __post_init__(self) -> None:
        self.watch = Stopwatch(self.engine.device)
        self.patience, self.collapse = Patience(self.stage.name), Collapse(best=self.state.healthiest)
        self.began = time.perf_counter()

    def section(self, name: str) -> AbstractContextManager[None]:
        self.dog.beat(self.state.step, name)
        return self.watch(name)

    @property
    def group(self) -> Group:
        return self.engine.group

    def say(self, name: str, values: dict[str, object], step: int | None = None) -> None:
        if self.monitor is not None:
            self.monitor.event(max(self.state.step - 1, 0) if step is None else step, name, values)

    def go(self) -> None:
        bounds, state, engine = self.stage.bounds(), self.state, self.engine
        for plan, chunks in self.watched():
            torch.manual_seed(bits(self.stage.seed, "step", plan.step, self.group.rank))
            done, updated = self.step(plan, chunks, bounds)
            state.step = plan.step + 1
            state.skipped_steps += not updated.applied
            state.loss_scale = (engine.loss_scale.value, engine.loss_scale.good)
            if self.group.size > 1:
                self.loader.failed(plan, done.failed)
            skipped = self.loader.skipped
            state.skipped_sources, state.skipped_keys = dict(skipped.sources), list(skipped.keys)
            self.log(plan, done, updated)
            if not updated.applied:
                self.say("step skipped", blame(done.vectors, done.losses, plan).event(), plan.step)
            self.patience.note(plan.step, updated.applied)
            if self.after():
                break
        self.saver.save(state, background=False)

    def watched(self) -> Iterator[tuple[Plan, Iterator[Inputs]]]:
        for pair in self.watch.over("plan", self.loader):
            yield pair
            self.dog.beat(self.state.step, "plan")

    def step(self, plan: Plan, chunks: Iterator[Inputs], bounds: Sequence[Bound]) -> tuple[Done, Updated]:
        stage, engine = self.stage, self.engine
        clock = Clock(plan.step, plan.step / stage.steps, stage.seed)
        memory = memories(self.state, plan, engine)
        try:
            done = cached_step(
                engine, plan, chunks, bounds, clock, memory, self.loader.again, watch=self.section, count=self.count,
                plain=self.state.memory == "auto",  # then a chunk's whole graph was measured to fit
            )  # fmt: skip
        except NoMemoryError as error:
            self.shrink(plan, str(error))
        if not done.finite:
            engine.forget()
            return done, Updated(float("nan"), stage.optimizer.lr_at(plan.step, stage.steps), False)
        with self.section("update"):
            return done, engine.update(plan.step, stage.steps)

    def shrink(self, plan: Plan, why: str) -> None:
        """Save the weights as they were before this step, and begin again with it, in smaller chunks."""
        self.engine.forget()
        tokens = smaller(self.state.chunk_tokens, max(c.tokens for c in plan.costs), self.stage.name)
        self.say("out of memory", {"chunk_tokens": tokens, "was": self.state.chunk_tokens}, plan.step)
        self.state.chunk_tokens = tokens
        self.saver.save(self.state, background=False)
        if self.group.rank == 0:
            wish(self.out, "out of memory", chunk_tokens=tokens)
        raise Restart(f"{why}; step {plan.step} begins again with chunk_tokens={tokens:,}")

    def log(self, plan: Plan, done: Done, updated: Updated) -> None:
        times = self.watch.split()
        if self.monitor is None:
            return
        now, names, health = time.perf_counter(), self.loader.names, self.look(plan, done)
        each = [sum(c.tokens for c in of_rank) for of_rank in plan.ranks]
        cuda = self.engine.device.type == "cuda"
        self.monitor.update(
            Update(
                step=plan.step,
                loss=done.loss,
                losses=done.losses,
                lr=updated.lr,
                norm=updated.norm,
                scale=float(done.scale),
                tokens=plan.tokens,
                rows=done.rows,
                chunks=len(plan.chunks),
                seconds=now - self.began,
                skipped_rows=len(self.state.skipped_keys),
                skipped_steps=self.state.skipped_steps,
                epochs=_epochs(self.loader, plan),
                shrunk=_count(names, plan, [c.shrunk for c in plan.costs]),
                cut=_count(names, plan, [c.cut > 0 for c in plan.costs]),
                peak_bytes=torch.cuda.max_memory_allocated() if cuda else 0,
                host_bytes=host_peak_bytes(),
                world=self.group.size,
                flops=done.flops,
                computed_tokens=plan.tokens + done.dummies,
                imbalance=max(each) * len(each) / max(sum(each), 1),
                times=times,
                accuracy=health.accuracy,
                alignment=health.alignment,
                uniformity=health.uniformity,
                effective_rank=health.effective_rank,
                source_losses={names[s]: v for s, v in health.losses.items()},
                source_accuracies={names[s]: v for s, v in health.accuracies.items()},
            )
        )
        self.began = now
        if updated.norm == 0 and not self.told:
            self.say("no gradient", {"why": _NOTHING}, plan.step)
            self.told = True

    def look(self, plan: Plan, done: Done) -> Health:
        checkup = self.stage.checkup
        due = [n for n in (checkup.every, checkup.examples_every) if n and plan.step % n == 0]
        if not due or not done.finite:
            return Health()
        sources, like = task_of(self.stage.bounds())
        keep = torch.isin(plan.relation.query_source, torch.tensor(sorted(sources), dtype=torch.int64))
        keep[list(done.failed)] = False
        told = checkup.examples_every and plan.step % checkup.examples_every == 0
        found = look(
            done.vectors,
            plan.relation,
            sample=checkup.sample,
            top=checkup.top if told else 0,
            shown=checkup.shown,
            seed=bits(self.stage.seed, "look", plan.step),
            scale=float(done.scale),
            keep=keep,
            like=like,
        )
        if found.examples and self.monitor is not None:
            read = self.loader.example
            told_of = examples(plan, found.examples, self.loader.names, lambda q: read(plan, q))
            self.monitor.examples(plan.step, told_of)
        chance = 1 / max(len(plan.relation.owner), 1)
        if alarm := self.collapse.look(found.effective_rank, found.accuracy, chance):
            self.say("collapse", dict(alarm), plan.step)
        self.state.healthiest = self.collapse.state
        return found

    def after(self) -> bool:
        """Evaluate and save where it is time; True to stop. Restart where a signal asked for it."""
        stage, state = self.stage, self.state
        check, last = stage.validate, state.step == stage.steps
        if check is not None and (state.step % check.every == 0 or last):
            self.evaluate()
        better = check is not None and state.best_step == state.step
        flags = agree(self.group, self.engine.device, asked=bool(self.signals.asked), unsaved=self.saver.failed)
        if flags["unsaved"]:
            self.saver.wait()
        if flags["asked"] and not last and not state.stopped:
            self.saver.save(state, background=False)
            self.say("asked to end", {"signal": self.signals.asked or "on another rank"})
            raise Restart(f"asked to end; saved at step {state.step}")
        if state.step % stage.save_every == 0 or better:
            self.saver.save(state)
            self.honoured()
        return state.stopped

    def honoured(self) -> None:
        """A wish of the last start is in the state now, which has been saved."""
        if self.group.rank == 0:
            (self.out / WISH).unlink(missing_ok=True)

    def evaluate(self) -> None:
        from ..eval.evaluate import evaluate

        check, state = self.stage.validate, self.state
        assert check is not None
        self.dog.beat(state.step, "evaluation", allow_s=_EVALUATION_S)
        report = evaluate(Together(self.engine), self.tasks, draws=2, progress=False)
        self.engine.embedder.train()
        scores = {t.name: t.score.value for t in report.tasks}
        scores["mean"] = sum(scores.values()) / len(scores)
        # One rank's word for all: they must stop together, whatever a kernel rounds otherwise elsewhere.
        score = float(self.group.exchange(repr(scores[check.metric]).encode())[0])
        self.say("evaluation", {k: round(v, 4) for k, v in scores.items()})
        better = state.best is None or score > state.best + check.gain
        state.without_gain = 0 if better else state.without_gain + 1
        state.scores[state.step] = score
        if better:
            state.best, state.best_step = score, state.step
        state.stopped = bool(check.patience) and state.without_gain >= check.patience
        if state.stopped:
            self.say("stopped early", {"best": state.best, "best_step": state.best_step})


def _epochs(loader: Loader[Inputs], plan: Plan) -> dict[str, float]:
    """Only where it is cheap to say often: every 50th step."""
    if plan.step % 50:
        return {}
    return dict(zip(loader.names, (round(e, 3) for e in loader.order.epochs(plan.step + 1)), strict=True))


def _count(names: Sequence[str], plan: Plan, marked: Sequence[bool]) -> dict[str, int]:
    """How many of a step's items are marked, by source; sources without any are left out."""
    found = Counter(names[g] for g, m in zip(plan.groups, marked, strict=True) if m)
    return dict(found)


def _finish(stage: Stage, engine: Engine, state: State, out: Path, where: Where, base: str) -> None:
    """The embedder's folder into `out`; then the checkpoints may go. Killed on the way, it is done once more; killed
    behind it, `finished` says so. Rank 0 writes, from a checkpoint where no rank has the weights whole and exact."""
    best = stage.take == "best" and state.best is not None
    if engine.group.rank == 0:
        for leftover in out.glob("final*"):
            shutil.rmtree(leftover)
        if best or engine.sharded or stage.precision != "fp32":
            chosen = resume.path_of(out, state.best_step if best else state.step)
            whole = export(stage, chosen, out / "final", where, base)
        else:
            whole = complete(engine.embedder).save(out / "final")
        shutil.rmtree(out / "ranks", ignore_errors=True)  # stacks of ranks that hung and went on
        (out / WISH).unlink(missing_ok=True)
        for file in whole.iterdir():
            file.replace(out / file.name)
        whole.rmdir()
        resume.close(out)
    engine.group.barrier()
