"""What a run says while it runs: a JSON-lines log that survives a kill, a progress line, and W&B if asked.

The log holds one record a step, whatever was stopped and resumed on the way.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from .machine import commit_of
from .redact import without_secrets
from .terminal import line

LOG = "log.jsonl"
EXAMPLES = "examples"  # the event
_NOT_MEASURED = {"flops", "computed_tokens", "host_bytes", "peak_bytes"}  # where they are 0


@dataclass(frozen=True)
class Wandb:
    """A W&B run of each stage. name: by default the run's folder and the stage; group: by default the run's folder, so
    that a recipe's stages stand together. mode: "online", "offline" or "disabled"; empty: as WANDB_MODE says."""

    project: str = "omni2vec"
    entity: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    group: str = ""
    mode: Literal["", "online", "offline", "disabled"] = ""


@dataclass(frozen=True)
class Update:
    """What one step did, on all `world` ranks together. losses: by objective, before weights. skipped_rows,
    skipped_steps: so far in the stage; a step is skipped when its gradient is not finite. epochs: how often each source
    has been gone through. shrunk, cut, left: by source, items of this step whose media were made smaller, whose text
    was cut, or whose demonstrations were left out, to fit the Limits. lacking: by source, rows so far in the stage that
    could form none of their patterns.

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
    left: Mapping[str, int] = field(default_factory=dict)
    lacking: Mapping[str, int] = field(default_factory=dict)
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
    """Writes to `folder`/log.jsonl; on rank 0 alone. `start`: the first step of this run; records of it and later ones,
    which a killed run left behind, are dropped. total: steps of the stage. record: the recipe's, for W&B. peak: FLOP/s
    of one rank's device, for utilisation (train/machine.py), 0 where it is not known. terminal: a moving bar or plain
    lines; None: as it is.
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
        peak: float = 0.0,
        terminal: bool | None = None,
        console: Console | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG
        self.total, self.peak = total, peak
        self._accuracy = math.nan  # the last that was measured: not every step is looked at
        keep_before(self.path, start)
        self._wandb = _begin_wandb(wandb, folder, stage, record or {}) if wandb else None
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._line = line(console or Console(stderr=True), stage, start, total, terminal)

    def update(self, done: Update) -> None:
        """Log one step."""
        values = {f.name: getattr(done, f.name) for f in fields(done)} | _derived(done, self.peak)
        kept = {k: v for k, v in values.items() if k == "loss" or (not _empty(v) and (v or k not in _NOT_MEASURED))}
        self._write({**kept, "total": self.total})
        self._accuracy = self._accuracy if math.isnan(done.accuracy) else done.accuracy
        self._line.show(done.step + 1, _facts(done, self._accuracy))
        # A run that was killed has sent steps that are now done again, with the same values: W&B takes no step twice.
        if self._wandb is not None and done.step >= self._wandb.step:
            self._wandb.log(_flat(kept), step=done.step)

    def event(self, step: int, name: str, values: Mapping[str, Any]) -> None:
        """Log what happened after update `step`: an evaluation, a checkpoint, a skipped row."""
        values = without_secrets(values)  # an error's message may quote an address with a password in it
        self._write({"step": step, "event": name, **values})
        self._line.say(f"step {step}: {name} {', '.join(f'{k} {_short(v)}' for k, v in values.items())}".rstrip())
        self._log(_flat({name: dict(values)}), step)

    def examples(self, step: int, queries: Sequence[Mapping[str, Any]]) -> None:
        """Log queries with what they found in the batch of `step`, as train/examples.py makes them: an event, and a
        table in W&B."""
        queries = without_secrets(queries)
        self._write({"step": step, "event": EXAMPLES, "queries": queries})
        if self._wandb is not None:
            self._log({EXAMPLES: _table(step, queries)}, step)

    def close(self, status: Literal["done", "failed"] = "done") -> None:
        self._line.close()
        os.close(self._file)
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if status == "done" else 1)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("failed" if kind else "done")

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        """To W&B, at `step` or the latest that it has: it takes nothing for an earlier one."""
        if self._wandb is not None:
            self._wandb.log(dict(values), step=max(step, self._wandb.step))

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


def _facts(done: Update, accuracy: float) -> str:
    rate = done.tokens / done.seconds if done.seconds > 0 else 0.0
    right = [] if math.isnan(accuracy) else [f"accuracy {accuracy:.0%}"]
    lacking = sum(done.lacking.values())
    skipped = [f"{lacking} rows without a pattern"] if lacking else []
    skipped += [f"{n} {what} skipped" for n, what in ((done.skipped_rows, "rows"), (done.skipped_steps, "steps")) if n]
    return "  ".join([f"loss {done.loss:.4f}", *right, f"lr {done.lr:.2e}", f"{rate:,.0f} tokens/s", *skipped])


def _derived(done: Update, peak: float) -> dict[str, float]:
    """What follows from an update's fields. peak: FLOP/s of one rank's device, 0 if not known."""
    seconds, ranks = done.seconds, done.world
    per_s = {"tokens_per_s": done.tokens, "samples_per_s": done.rows}
    values = {name: round(n / seconds, 1) if seconds > 0 else 0.0 for name, n in per_s.items()}
    values |= {f"{name}_rank": round(rate / ranks, 1) for name, rate in values.items()}
    if done.scale > 0:
        values["temperature"] = 1 / done.scale
    if done.computed_tokens:
        values["padding"] = round(1 - done.tokens / done.computed_tokens, 4)
    if done.flops and peak and seconds > 0:
        values["mfu"] = round(done.flops / (seconds * peak * ranks), 4)
    return values


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


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ImportError('logging to W&B needs the package wandb: pip install "omni2vec[train]"') from error
    return wandb


def _table(step: int, queries: Sequence[Mapping[str, Any]]) -> Any:
    """One line a document that was found."""
    asked, found = ("query", "source", "instruction", "text"), ("document", "score", "right", "text")
    rows = [
        [step, *(q.get(k, "") for k in asked), rank, *(hit.get(k, "") for k in found)]
        for q in queries
        for rank, hit in enumerate(q["found"], 1)
    ]
    return _wandb().Table(columns=["step", *asked, "rank", *found[:-1], "document text"], data=rows)


def _begin_wandb(settings: Wandb, folder: Path, stage: str, record: Mapping[str, Any]) -> Any:
    wandb = _wandb()
    run = folder.resolve().parent.name
    kept = folder / "wandb_run.json"  # the run's id, so that a resumed stage goes on in the same run
    identity = json.loads(kept.read_text())["id"] if kept.exists() else uuid.uuid4().hex[:8]
    kept.write_text(json.dumps({"id": identity}))
    config = {"run": run, "stage": stage, "commit": commit_of(Path.cwd()), "recipe": dict(record)}
    try:
        return wandb.init(
            project=settings.project,
            entity=settings.entity or None,
            name=without_secrets(settings.name) or f"{run}/{stage}".rstrip("/"),
            group=without_secrets(settings.group) or run,
            tags=without_secrets(list(settings.tags)),
            mode=settings.mode or None,
            dir=str(folder),
            id=identity,
            resume="allow",
            config=without_secrets(config),
            settings=wandb.Settings(save_code=False, disable_git=True, x_disable_meta=True, console="off", silent=True),
        )
    except wandb.Error as error:
        why = " ".join(without_secrets(str(error)).split())
        raise ValueError(
            f"stage {stage!r}: W&B could not begin a run ({why}); log in once with `wandb "
            "login`, or set WANDB_MODE=offline, or leave out wandb=Wandb(...): log.jsonl holds it all anyway"
        ) from error
