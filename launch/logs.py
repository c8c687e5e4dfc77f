"""The logs of a run: which stages have one, what they hold so far, and whether somebody is still writing."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.types import DataError
from ..train.monitor import LOG

State = Literal["done", "running", "stopped"]
_SILENT_S = 60.0  # and ten steps: without a word for so long, a stage is taken for stopped
_RECENT = 50  # steps that a rate is the mean of


@dataclass
class Log:
    """One stage's log.jsonl, read as it grows. unreadable: lines that are no JSON, left out."""

    path: Path
    steps: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    unreadable: int = 0
    _at: int = 0
    _file: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        return self.path.resolve().parent.name.removesuffix(".partial")

    def read(self) -> Log:
        """What has come since the last time; all of it anew where a resumed stage has cut the file."""
        with self.path.open("rb") as file:
            about = os.fstat(file.fileno())
            if (about.st_dev, about.st_ino) != self._file or about.st_size < self._at:
                self.steps, self.events, self.unreadable, self._at = [], [], 0, 0
                self._file = (about.st_dev, about.st_ino)
            file.seek(self._at)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # a line that is being written is for the next time
        self._at += len(whole)
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                record["step"] = int(record["step"])
                (self.events if "event" in record else self.steps).append(record)
            except (ValueError, KeyError, TypeError):
                self.unreadable += 1
        return self

    @property
    def total(self) -> int:
        """Steps of the stage; 0 where the log does not say."""
        return int(self.steps[-1].get("total", 0)) if self.steps else 0

    @property
    def done(self) -> int:
        return int(self.steps[-1]["step"]) + 1 if self.steps else 0

    @property
    def step_s(self) -> float:
        """Seconds of a step, lately: the median, which neither an evaluation nor a start moves."""
        seconds = sorted(s for s in self.series("seconds")[1][-_RECENT:] if math.isfinite(s))
        return seconds[len(seconds) // 2] if seconds else 0.0

    @property
    def state(self) -> State:
        folder = self.path.parent
        if (folder / "done.json").exists():
            return "done"
        if not folder.name.endswith(".partial") and self.total and self.done >= self.total:
            return "done"
        silent = time.time() - self.path.stat().st_mtime
        return "running" if silent < max(_SILENT_S, 10 * self.step_s) else "stopped"

    def series(self, key: str, inner: str = "") -> tuple[list[int], list[float]]:
        """Steps and values of a field, or of `inner` in it, of the steps that have it."""
        found = [(r["step"], r[key][inner] if inner else r[key]) for r in self.steps if _has(r, key, inner)]
        return [s for s, _ in found], [as_float(v) for _, v in found]

    def scores(self, event: str) -> dict[str, list[tuple[int, float]]]:
        """The numbers of all events of one kind, by name."""
        out: dict[str, list[tuple[int, float]]] = {}
        for record in self.events:
            if record["event"] == event:
                for name, value in record.items():
                    if name not in ("step", "event") and not math.isnan(as_float(value)):
                        out.setdefault(name, []).append((record["step"], as_float(value)))
        return out

    def names(self, key: str) -> list[str]:
        """The inner names of a field, in order of their first appearance."""
        return list(dict.fromkeys(n for r in self.steps for n in (r[key] if _has(r, key) else ())))


def as_float(value: object) -> float:
    """A number as the log has it: "nan", "inf" and "-inf" are strings. NaN for what is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _has(record: dict[str, Any], key: str, inner: str = "") -> bool:
    value = record.get(key)
    return (isinstance(value, dict) and inner in value) if inner else value is not None


def logs_of(folder: Path) -> list[Path]:
    """The logs of a stage's folder, or of a run's stages, the oldest first. Raises DataError where there is none."""
    if (folder / LOG).exists():
        return [folder / LOG]
    found = [p for p in folder.glob(f"*/{LOG}") if p.exists()]
    if not found:
        raise DataError(f"{folder}: no {LOG} in it or in a folder of it; give the folder of a run or of one stage.")
    return sorted(found, key=lambda p: p.stat().st_mtime)


def is_run(path: Path) -> bool:
    """Whether a folder is a run's or a stage's that has trained."""
    return path.is_dir() and ((path / LOG).exists() or any(path.glob(f"*/{LOG}")))


def chosen(found: Sequence[Path], stage: str) -> Path:
    """The log of `stage`; of the one that wrote last where no name is given."""
    names = {p.resolve().parent.name.removesuffix(".partial"): p for p in found}
    if stage and stage not in names:
        raise DataError(f"--stage {stage}: no log of it here; there are {', '.join(names)}.")
    return names[stage] if stage else found[-1]
