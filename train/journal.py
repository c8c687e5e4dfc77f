"""What a stage tells of itself: each step's figures, a look at its vectors, what happens on the way.

Only rank 0 has a monitor; the others keep the time, and are silent.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data.counter import bits
from ..data.loader import Loader
from ..data.planned import Plan
from ..model.types import Inputs
from .alarm import Collapse
from .engine import Engine, Updated
from .examples import examples
from .health import Health, look, task_of
from .machine import host_peak_bytes, peak_flops
from .monitor import Monitor, Update
from .resume import State
from .step import Done
from .timing import Stopwatch
from .watchdog import Stall

if TYPE_CHECKING:
    from .stage import Stage

_THIN = 0.1  # of a batch's rows without a pattern: above it, the batch is another than was asked for
_NOTHING = (
    "no row of this step teaches anything: InfoNCE needs positives and negatives (two different rows a sub-batch, or "
    "Feed(negatives=...)), NextToken needs answers; if all steps are like it, the model stays as it is"
)


def monitor_of(stage: Stage, engine: Engine, out: Path, state: State) -> Monitor:
    """Rank 0's."""
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


def teller(monitor: Monitor | None) -> Callable[[Stall], None]:
    """Says that a rank hangs, on the terminal and, on rank 0, in the log."""

    def tell(stall: Stall) -> None:
        print(stall.text, file=sys.stderr, flush=True)
        if monitor is not None:
            monitor.event(stall.step, "stalled", {"ranks": list(stall.ranks), "section": stall.where})

    return tell


@dataclass
class Journal:
    stage: Stage
    engine: Engine
    loader: Loader[Inputs]
    state: State
    monitor: Monitor | None
    watch: Stopwatch
    began: float = field(default_factory=time.perf_counter)
    told: bool = False  # that a step had no gradient
    thinned: bool = False  # that a batch lost many rows for want of a pattern

    def __post_init__(self) -> None:
        self.collapse = Collapse(best=self.state.healthiest)

    def say(self, name: str, values: Mapping[str, object], step: int | None = None) -> None:
        """An event, by default of the last step that was done."""
        if self.monitor is not None:
            self.monitor.event(max(self.state.step - 1, 0) if step is None else step, name, values)

    def log(self, plan: Plan, done: Done, updated: Updated) -> None:
        """One step. Every rank's stopwatch begins anew."""
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
                left=_count(names, plan, [c.left > 0 for c in plan.costs]),
                lacking={n: k for n, k in self.state.lacking.items() if k},
                peak_bytes=torch.cuda.max_memory_allocated() if cuda else 0,
                host_bytes=host_peak_bytes(),
                world=self.engine.group.size,
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
        lacking = [b.reason for b in plan.bad if b.lacking]
        if plan.keys and len(lacking) > _THIN * (len(plan.keys) + len(lacking)) and not self.thinned:
            self.say("thin batch", {"rows": len(plan.keys), "lacking": len(lacking), "first": lacking[0]}, plan.step)
            self.thinned = True
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


def _epochs(loader: Loader[Inputs], plan: Plan) -> dict[str, float]:
    """Only where it is cheap to say often: every 50th step."""
    if plan.step % 50:
        return {}
    return dict(zip(loader.names, (round(e, 3) for e in loader.order.epochs(plan.step + 1)), strict=True))


def _count(names: Sequence[str], plan: Plan, marked: Sequence[bool]) -> dict[str, int]:
    """How many of a step's items are marked, by source; sources without any are left out."""
    found = Counter(names[g] for g, m in zip(plan.groups, marked, strict=True) if m)
    return dict(found)
