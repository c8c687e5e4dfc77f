"""What an ablation is made of: trials, the effects read from them, the lines they leave, and the table of it all.

An effect is the difference of two trials on the same seed. It counts as shown only beyond three standard errors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from omni2vec.data.types import digest

Kind = Literal["constructed", "natural"]
SEEDS = 6  # the fewest paired seeds of which anything is claimed
BEYOND = 3.0  # standard errors
VERSION = "ablations 1"


class Trial(Protocol):
    """A frozen dataclass whose fields say all that its result hangs on, but for the seed."""

    @property
    def name(self) -> str: ...

    @property
    def bed(self) -> str: ...

    def lacks(self) -> str:
        """Why it cannot be run here; empty where it can."""
        ...

    def run(self, seed: int, work: Path) -> Mapping[str, float]:
        """What it scores, by name, in points of 100. `work`: a folder for what is worth keeping."""
        ...


@dataclass(frozen=True)
class Effect:
    """Trial `arm` less trial `control`, by one value of each. constructed: the data were made so that the technique
    has something to do, and the difference says that the code does it; natural: they were not."""

    technique: str
    change: str  # what the arm has in words
    against: str  # what the control has
    arm: Trial
    control: Trial
    value: str
    kind: Kind
    of_control: str = ""  # the control's value, where it has another name
    score: str = ""  # what the value is, where its name does not say

    @property
    def bed(self) -> str:
        return self.arm.bed


@dataclass(frozen=True)
class Found:
    """An effect's paired differences over seeds."""

    effect: Effect
    arms: tuple[float, ...]
    controls: tuple[float, ...]

    @property
    def differences(self) -> tuple[float, ...]:
        return tuple(a - c for a, c in zip(self.arms, self.controls, strict=True))

    @property
    def mean(self) -> float:
        return float(np.mean(self.differences)) if self.arms else float("nan")

    @property
    def error(self) -> float:
        """The standard error of the mean difference; NaN for fewer than two seeds."""
        n = len(self.arms)
        return float(np.std(self.differences, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")

    @property
    def verdict(self) -> Literal["shown", "shown worse", "null", "too few"]:
        """Beyond three standard errors, either way, of six seeds or more."""
        if len(self.arms) < SEEDS:
            return "too few"
        if abs(self.mean) <= BEYOND * self.error or self.mean == 0:
            return "null"
        return "shown" if self.mean > 0 else "shown worse"


@dataclass
class Lines:
    """Results by trial and seed, one JSON object a line, appended as they come. A line cut short by a kill is dropped,
    and its trial run again."""

    path: Path
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            aside = self.path.with_suffix(".part")
            aside.write_bytes(whole)
            aside.replace(self.path)
        for text in whole.decode().splitlines():
            line = json.loads(text)
            self.known[line["digest"]] = line

    def get(self, trial: Trial, seed: int) -> Mapping[str, float] | None:
        line = self.known.get(digest_of(trial, seed))
        return None if line is None else line["values"]

    def add(self, trial: Trial, seed: int, values: Mapping[str, float], seconds: float) -> None:
        rounded = {name: round(float(v), 4) for name, v in values.items()}
        line = {
            "digest": digest_of(trial, seed),
            "bed": trial.bed,
            "trial": trial.name,
            "seed": seed,
            "seconds": round(seconds, 2),
            "values": rounded,
        }
        with self.path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")  # one write: another process's lines stay whole
            file.flush()
            os.fsync(file.fileno())
        self.known[line["digest"]] = line


def digest_of(trial: Trial, seed: int) -> str:
    """Of the trial's settings and the seed. VERSION goes up where the same settings come to mean another training."""
    return digest(VERSION, trial.bed, told(trial), str(seed))


def told(value: Any) -> str:
    """As repr, without the fields of dataclasses that are at their default: a new field leaves old results valid."""
    if is_dataclass(value) and not isinstance(value, type):
        own = [(f, getattr(value, f.name)) for f in fields(value)]
        said = [f"{f.name}={told(v)}" for f, v in own if f.default is MISSING or v != f.default]
        return f"{type(value).__name__}({', '.join(said)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(told, value))})"
    return repr(value)


def trials_of(effects: Sequence[Effect]) -> tuple[Trial, ...]:
    """Every trial once, in the order in which effects name them, controls first."""
    return tuple(dict.fromkeys(t for e in effects for t in (e.control, e.arm)))


def found(effect: Effect, lines: Lines, seeds: int) -> Found:
    """The effect over the seeds that both of its trials have."""
    arms, controls = [], []
    for seed in range(seeds):
        arm, control = lines.get(effect.arm, seed), lines.get(effect.control, seed)
        if arm is not None and control is not None:
            arms.append(arm[effect.value])
            controls.append(control[effect.of_control or effect.value])
    return Found(effect, tuple(arms), tuple(controls))


def rows(results: Sequence[Found]) -> Iterator[dict[str, Any]]:
    """For the JSON record."""
    for r in results:
        e = r.effect
        yield {
            "technique": e.technique,
            "bed": e.bed,
            "kind": e.kind,
            "arm": e.change,
            "control": e.against,
            "score": e.score or e.value,
            "seeds": len(r.arms),
            "arm_mean": _round(np.mean(r.arms)) if r.arms else None,
            "control_mean": _round(np.mean(r.controls)) if r.arms else None,
            "difference": _round(r.mean) if r.arms else None,
            "standard_error": _round(r.error) if len(r.arms) > 1 else None,
            "verdict": r.verdict,
            "differences": [_round(d) for d in r.differences],
        }


def table(results: Sequence[Found]) -> Iterator[str]:
    """As Markdown."""
    yield "| technique | what | against | score | control | difference ± s.e. | seeds | kind | |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for r in results:
        e = r.effect
        control = f"{np.mean(r.controls):.1f}" if r.arms else "–"
        change = f"{r.mean:+.1f} ± {r.error:.1f}" if len(r.arms) > 1 else "–"
        verdict = f"**{r.verdict}**" if r.verdict.startswith("shown") else r.verdict
        yield (
            f"| {e.technique} | {e.change} | {e.against} | {e.score or e.value} | {control} | {change} "
            f"| {len(r.arms)} | {e.kind} | {verdict} |"
        )


def _round(x: Any) -> float:
    return round(float(x), 3)
