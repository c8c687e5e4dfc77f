"""Values that change over a stage: pure functions of its progress, from 0 at its first step to 1 behind its last."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Shape = Literal["linear", "cosine", "geometric"]


@dataclass(frozen=True)
class Ramp:
    """From `start` to `end`: `start` until progress `begin`, `end` from progress `until` on, and between them a line, a
    half cosine, or equal factors (geometric: for temperatures and shares, both ends above 0)."""

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ValueError(f"{self}: expected finite numbers for start and end")
        if not 0 <= self.begin <= self.until <= 1:
            raise ValueError(f"{self}: expected 0 <= begin <= until <= 1, which are shares of the stage")
        if self.shape not in get_args(Shape):
            raise ValueError(f"{self}: shape is one of {', '.join(get_args(Shape))}")
        if self.shape == "geometric" and not (self.start > 0 and self.end > 0):
            raise ValueError(f"{self}: a geometric ramp needs start and end above 0; take shape='linear' for a zero")

    def at(self, progress: float) -> float:
        if progress >= self.until:
            return self.end
        if progress <= self.begin:
            return self.start
        x = (progress - self.begin) / (self.until - self.begin)
        if self.shape == "geometric":
            return self.start * math.exp(x * math.log(self.end / self.start))
        if self.shape == "cosine":
            x = (1 - math.cos(math.pi * x)) / 2
        return self.start + (self.end - self.start) * x


@dataclass(frozen=True)
class Phases:
    """One value after the other: Phases(((0.0, 4.0), (0.5, 1.0))) is 4 in the first half and 1 in the second."""

    phases: tuple[tuple[float, float], ...]  # (progress from which on, value)

    def __post_init__(self) -> None:
        begins = [begin for begin, _ in self.phases]
        if not begins or begins[0] != 0 or sorted(set(begins)) != begins or begins[-1] >= 1:
            raise ValueError(f"{self}: expected rising shares of the stage that begin with 0 and stay below 1")
        if not all(math.isfinite(value) for _, value in self.phases):
            raise ValueError(f"{self}: expected finite values")

    @property
    def shortest(self) -> float:
        """The share of the stage that the shortest phase lasts."""
        begins = [begin for begin, _ in self.phases]
        return min(b - a for a, b in zip(begins, [*begins[1:], 1.0], strict=True))

    def at(self, progress: float) -> float:
        return next(value for begin, value in reversed(self.phases) if progress >= begin)


Schedule = Ramp | Phases


def at(value: float | Schedule, progress: float) -> float:
    """The value at this progress; a number is itself."""
    return value if isinstance(value, int | float) else value.at(max(progress, 0.0))


def ends(value: float | Schedule) -> tuple[float, ...]:
    """The values that bound a schedule: all others lie between them."""
    if isinstance(value, Ramp):
        return value.start, value.end
    return tuple(v for _, v in value.phases) if isinstance(value, Phases) else (value,)
