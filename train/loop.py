"""Next batch -> step -> log -> save -> evaluate, until the stage is done; the same from the start or after a kill, on
one rank or many."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data.counter import bits
from ..data.loader import Loader
from ..data.planned import Plan
from ..data.schedules import at
from ..data.types import Clock, Where
from ..model.types import Inputs
from . import resume
from .adapt import Adapting
from .begin import counter, memories, tasks_of, where_from
from .consolidate import complete, export
from .engine import Engine, Updated
from .gather import Group
from .guard import WISH, Restart, Signals, smaller, wish, wished
from .journal import Journal, monitor_of, teller
from .loss import Bound
from .precision import LossScale
from .probe import NoRoomError
from .resume import State
from .snapshot import Saver
from .spread import Together
from .step import Done, NoMemoryError, cached_step
from .timing import Stopwatch
from .trouble import Patience, agree, blame, is_out_of_memory
from .watchdog import Watchdog

if TYPE_CHECKING:
    from ..eval.types import Task
    from .stage import Stage

_EVALUATION_S = 6 * 3600.0  # that an evaluation may take before a rank in it is said to hang


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
    base = group.exchange(stage.base(where).encode() if group.rank == 0 else b"")[0].decode()
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
            monitor = stack.enter_context(monitor_of(stage, engine, out, state)) if group.rank == 0 else None
            journal = Journal(stage, engine, loader, state, monitor, Stopwatch(engine.device))
            signals = stack.enter_context(Signals())
            tell = teller(monitor)
            dog = stack.enter_context(Watchdog(group.rank, group.size, out, limit_s=stage.stall_s, tell=tell))
            bounds = stage.bounds(where)
            training = _Training(stage, bounds, engine, loader, journal, saver, state, out, tasks, signals, dog, count)
            journal.say("start", {"ranks": group.size, "chunk_tokens": state.chunk_tokens})
            if group.rank == 0 and (asked := wished(out, take=False)):
                journal.say("begun again", asked)
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


@dataclass
class _Training:
    stage: Stage
    bounds: Sequence[Bound]
    engine: Engine
    loader: Loader[Inputs]
    journal: Journal
    saver: Saver
    state: State
    out: Path
    tasks: Sequence[Task]
    signals: Signals
    dog: Watchdog
    count: Callable[[Inputs], float] | None

    def __post_init__(self) -> None:
        self.patience, self.first, self.saved = Patience(self.stage.name), self.state.step, False
        mix = self.stage.mix.adaptive
        self.adapting = (
            Adapting(self.stage, mix, self.loader, self.group, self.state.mixer) if mix is not None else None
        )

    def section(self, name: str) -> AbstractContextManager[None]:
        self.dog.beat(self.state.step, name)
        return self.journal.watch(name)

    @property
    def group(self) -> Group:
        return self.engine.group

    def go(self) -> None:
        state, engine = self.state, self.engine
        for plan, chunks in self.watched():
            torch.manual_seed(bits(self.stage.seed, "step", plan.step, self.group.rank))
            done, updated = self.step(plan, chunks) if plan.keys else self.nothing(plan)
            state.step = plan.step + 1
            state.skipped_steps += not updated.applied and bool(plan.keys)
            state.loss_scale = (engine.loss_scale.value, engine.loss_scale.good)
            if self.group.size > 1:
                self.loader.failed(plan, done.failed)
            skipped = self.loader.skipped
            state.skipped_sources, state.skipped_keys = dict(skipped.sources), list(skipped.keys)
            state.lacking = dict(skipped.lacking)
            self.journal.log(plan, done, updated)
            if not plan.keys:
                self.journal.say("empty batch", plan.why(self.loader.names), plan.step)
            else:
                if not updated.applied:
                    self.journal.say("step skipped", blame(done.vectors, done.losses, plan).event(), plan.step)
                self.patience.note(plan.step, updated.applied)
            if self.after(plan, done):
                break
        self.saver.save(state, background=False)

    def watched(self) -> Iterator[tuple[Plan, Iterator[Inputs]]]:
        for pair in self.journal.watch.over("plan", self.loader):
            yield pair
            self.dog.beat(self.state.step, "plan")

    def step(self, plan: Plan, chunks: Iterator[Inputs]) -> tuple[Done, Updated]:
        stage, engine = self.stage, self.engine
        clock = Clock(plan.step, plan.step / stage.steps, stage.seed)
        memory = memories(self.state, plan, engine)
        if plan.step == self.first:  # how many chunks keep what
            self.journal.say("chunks keep", dict(Counter(memory)), plan.step)
        try:
            done = cached_step(
                engine, plan, chunks, self.bounds, clock, memory, self.loader.again, watch=self.section,
                count=self.count,
                plain=self.state.memory == "auto",  # then a chunk's whole graph was measured to fit
                scale=None if stage.temperature is None else 1 / at(stage.temperature, clock.progress),
            )  # fmt: skip
        except NoMemoryError as error:
            self.shrink(plan, str(error))
        if not done.finite:
            engine.forget()
            return done, Updated(float("nan"), stage.optimizer.lr_at(plan.step, stage.steps), False)
        with self.section("update"):
            return done, engine.update(plan.step, stage.steps)

    def nothing(self, plan: Plan) -> tuple[Done, Updated]:
        """A step of which no row is left, on every rank: weights and moments stay as they are, and time goes on."""
        self.first += plan.step == self.first
        none, nan = torch.zeros(0, 1), float("nan")
        return (
            Done(none, torch.full((1,), nan), loss=nan, finite=False),
            Updated(nan, self.stage.optimizer.lr_at(plan.step, self.stage.steps), False),
        )

    def shrink(self, plan: Plan, why: str) -> None:
        """Save the weights as they were before this step, and begin again with it, in smaller chunks."""
        self.engine.forget()
        tokens = smaller(self.state.chunk_tokens, max(c.tokens for c in plan.costs), self.stage.name)
        self.journal.say("out of memory", {"chunk_tokens": tokens, "was": self.state.chunk_tokens}, plan.step)
        self.state.chunk_tokens = tokens
        self.saver.save(self.state, background=False)
        if self.group.rank == 0:
            wish(self.out, "out of memory", chunk_tokens=tokens)
        raise Restart(f"{why}; step {plan.step} begins again with chunk_tokens={tokens:,}")

    def after(self, plan: Plan, done: Done) -> bool:
        """Evaluate, adapt and save where it is time; True to stop. Restart where a signal asked for it."""
        stage, state = self.stage, self.state
        check, last = stage.validate, state.step == stage.steps
        if check is not None and (state.step % check.every == 0 or last):
            self.evaluate()
        if self.adapting is not None and (shares := self.adapting.step(plan, done)) is not None:
            self.journal.say("shares", {"sources": shares}, plan.step)
        better = check is not None and state.best_step == state.step
        flags = agree(self.group, self.engine.device, asked=bool(self.signals.asked), unsaved=self.saver.failed)
        if flags["unsaved"]:
            self.saver.wait()
        if flags["asked"] and not last and not state.stopped:
            self.saver.save(state, background=False)
            self.journal.say("asked to end", {"by": self.signals.asked or "another rank", "saved": state.step})
            raise Restart(f"asked to end; saved behind step {state.step}")
        if state.step % stage.save_every == 0 or better:
            self.saver.wait()
            if self.saved and self.group.rank == 0:  # a wish of the last start is in a state that is whole
                (self.out / WISH).unlink(missing_ok=True)
            self.saver.save(state)
            self.saved = True
        return state.stopped

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
        if self.adapting is not None:
            self.adapting.scored(scores)
        score = float(self.group.exchange(repr(scores[check.metric]).encode())[0])
        self.journal.say("evaluation", {k: round(v, 4) for k, v in scores.items()})
        better = state.best is None or score > state.best + check.gain
        state.without_gain = 0 if better else state.without_gain + 1
        state.scores[state.step] = score
        if better:
            state.best, state.best_step = score, state.step
        state.stopped = bool(check.patience) and state.without_gain >= check.patience
        if state.stopped:
            self.journal.say("stopped early", {"best": state.best, "best_step": state.best_step})


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
