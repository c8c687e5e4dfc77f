"""What a run says while it runs: a JSON-lines log that survives a kill, a progress line, and W&B if asked.

The log holds one record a step, whatever was stopped and resumed on the way.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG = "log.jsonl"
_PLAIN_EVERY_S = 15.0  # between lines where there is no terminal
_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|api_?key|access_key|credentials?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Wandb:
    """A W&B run; WANDB_MODE=offline is respected."""

    project: str = "omni2vec"
    entity: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Update:
    """What one step did, on all `world` ranks together. losses: by objective, before weights. skipped_rows,
    skipped_steps: so far in the stage; a step is skipped when its gradient is not finite. epochs: how often each source
    has been gone through. shrunk, cut: by source, items of this step whose media were made smaller, or whose text was
    cut, to fit the Limits.

    flops: counted, of the whole step. computed_tokens: with dummies and whatever else was computed beside `tokens`.
    imbalance: tokens of the busiest rank over the mean of all. times: seconds by section, of rank 0. peak_bytes: of
    device memory; host_bytes: peak of this process. accuracy to effective_rank, source_losses and source_accuracies
    (by source): of a sample of the batch, see train/health.py, on the steps where it was taken.
    """

    step: int
    loss: float
    lr: float
    tokens: int
    seconds: float
    rows: int = 0
    chunks: int = 0
    norm: float = float("nan")
    scale: float = float("nan")
    losses: Mapping[str, float] = field(default_factory=dict)
    epochs: Mapping[str, float] = field(default_factory=dict)
    shrunk: Mapping[str, int] = field(default_factory=dict)
    cut: Mapping[str, int] = field(default_factory=dict)
    skipped_rows: int = 0
    skipped_steps: int = 0
    peak_bytes: int = 0
    world: int = 1
    flops: float = 0.0
    computed_tokens: int = 0
    imbalance: float = float("nan")
    times: Mapping[str, float] = field(default_factory=dict)
    accuracy: float = float("nan")
    alignment: float = float("nan")
    uniformity: float = float("nan")
    effective_rank: float = float("nan")
    source_losses: Mapping[str, float] = field(default_factory=dict)
    source_accuracies: Mapping[str, float] = field(default_factory=dict)
    host_bytes: int = 0


class Monitor:
    """Writes to `folder`/log.jsonl. `start`: the first step of this run; records of it and later ones, which a killed
    run left behind, are dropped. total: steps of the stage. terminal: a moving bar or plain lines; None: as it is.
    """

    def __init__(
        self,
        folder: Path,
        *,
        total: int,
        stage: str = "",
        start: int = 0,
        wandb: Wandb | None = None,
        record: Mapping[str, Any] | None = None,
        terminal: bool | None = None,
        console: Console | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG
        keep_before(self.path, start)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        console = console or Console(stderr=True)
        moving = console.is_terminal if terminal is None else terminal
        line = Bar if moving else Lines
        self._line: Bar | Lines = line(console, stage, start, total)
        self._wandb = _begin_wandb(wandb, folder, record or {}) if wandb else None

    def update(self, done: Update) -> None:
        """Log one step."""
        values = {f.name: getattr(done, f.name) for f in fields(done)}
        values["tokens_per_s"] = round(done.tokens / done.seconds, 1) if done.seconds > 0 else 0.0
        kept = {k: v for k, v in values.items() if not _empty(v)}
        self._write(kept)
        self._line.show(done)
        if self._wandb is not None:
            self._wandb.log(_flat(kept), step=done.step)

    def event(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        """Log what happened after update `step`: an evaluation, a checkpoint, a skipped row."""
        self._write({"step": step, "event": name, **values})
        self._line.say(f"step {step}: {name} {', '.join(f'{k} {_short(v)}' for k, v in values.items())}".rstrip())
        if self._wandb is not None:
            self._wandb.log(_flat({name: dict(values)}), step=step)

    def close(self, status: Literal["done", "failed"] = "done") -> None:
        self._line.close()
        os.close(self._file)
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if status == "done" else 1)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("failed" if kind else "done")

    def _write(self, values: Mapping[str, Any]) -> None:
        # One write call for one line: a kill leaves whole lines, but for a full disk.
        os.write(self._file, (json.dumps(_finite(values), separators=(",", ":")) + "\n").encode())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, in order; a last line that was cut short is left out."""
    return [json.loads(line) for line in _whole_lines(path)] if path.exists() else []


def keep_before(path: Path, start: int) -> None:
    """Leave only the records of steps before `start` in the log, written aside and renamed."""
    if not path.exists():
        return
    kept = [line for line in _whole_lines(path) if json.loads(line)["step"] < start]
    aside = path.with_name(path.name + ".part")
    aside.write_text("".join(line + "\n" for line in kept))
    aside.replace(path)


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()


class Bar:
    """A moving line in a terminal."""

    def __init__(self, console: Console, stage: str, start: int, total: int) -> None:
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}  {task.fields[facts]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            refresh_per_second=4,
        )
        self.task: TaskID = self.progress.add_task(stage or "train", total=total, completed=start, facts="")
        self.progress.start()

    def show(self, done: Update) -> None:
        self.progress.update(self.task, completed=done.step + 1, facts=_facts(done))

    def say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self.progress.stop()


class Lines:
    """A plain line now and then, where the output goes to a file."""

    def __init__(self, console: Console, stage: str, start: int, total: int) -> None:
        self.console, self.stage, self.start, self.total = console, stage or "train", start, total
        self.began = time.monotonic()
        self.last = -math.inf

    def show(self, done: Update) -> None:
        now, count = time.monotonic(), done.step + 1
        if now - self.last < _PLAIN_EVERY_S and count < self.total:
            return
        self.last = now
        left = (now - self.began) / max(1, count - self.start) * (self.total - count)
        self.say(f"{self.stage} {count:,}/{self.total:,}  {_facts(done)}  left {_clock(left)}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing to end."""


def _facts(done: Update) -> str:
    rate = done.tokens / done.seconds if done.seconds > 0 else 0.0
    skipped = [f"{n} {what} skipped" for n, what in ((done.skipped_rows, "rows"), (done.skipped_steps, "steps")) if n]
    return "  ".join([f"loss {done.loss:.4f}", f"lr {done.lr:.2e}", f"{rate:,.0f} tokens/s", *skipped])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _empty(value: object) -> bool:
    """Fields that a step has no value for are left out of its record."""
    return value == {} or (isinstance(value, float) and math.isnan(value))


def _finite(value: Any) -> Any:
    """JSON has no infinities: they become the strings "nan", "inf" and "-inf"."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}/") if isinstance(value, Mapping) else {name: value}
    return flat


def without_secrets(value: Any) -> Any:
    """The record as it may leave the machine: no field whose name speaks of a secret."""
    if isinstance(value, Mapping):
        return {k: without_secrets(v) for k, v in value.items() if not _SECRET.search(str(k))}
    return [without_secrets(v) for v in value] if isinstance(value, list | tuple) else value


def _begin_wandb(settings: Wandb, folder: Path, record: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ImportError('logging to W&B needs the package wandb: pip install "omni2vec[train]"') from error
    kept = folder / "wandb_run.json"  # the run's id, so that a resumed stage goes on in the same run
    identity = json.loads(kept.read_text())["id"] if kept.exists() else uuid.uuid4().hex[:8]
    kept.write_text(json.dumps({"id": identity}))
    return wandb.init(
        project=settings.project,
        entity=settings.entity or None,
        name=settings.name or None,
        tags=list(settings.tags),
        dir=str(folder),
        id=identity,
        resume="allow",
        config=without_secrets(record),
        settings=wandb.Settings(save_code=False, disable_git=True, x_disable_meta=True, console="off"),
    )
