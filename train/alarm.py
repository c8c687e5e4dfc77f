"""A model that collapses while its loss still looks fine: its vectors fall into a line, or no longer find their pair.

Judged by what it had reached before, so that a model which starts collapsed (mean cosine 0.99 is usual for random
weights) rings nothing, and by nearly every look of a window, so that a mixture's hard source rings nothing either.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

_LOST = 0.1  # of the best is left: it has fallen
_BACK = 0.3  # of the best is there again: it may fall once more
_THIN = 4.0  # effective rank: fewer directions than this serve no retrieval
_REACHED = {"effective_rank": 2 * _THIN, "accuracy": 0.3}  # below this there was nothing to lose
_WHY = {
    "effective_rank": "the vectors lie in a few directions",
    "accuracy": "queries find their documents no better than by chance",
}


@dataclass
class _Series:
    """One measured thing: its last looks, its best (of medians: no single look makes it), and whether it has rung."""

    looks: deque[float]
    best: float = 0.0
    fallen: bool = False

    def add(self, value: float) -> None:
        self.looks.append(value)
        if len(self.looks) == self.looks.maxlen:
            self.best = max(self.best, statistics.median(self.looks))

    def highest(self) -> float:
        """Of the window but for one look in sixteen."""
        found = sorted(self.looks)
        return found[-1 - len(found) // 16]


@dataclass
class Collapse:
    """window: looks that must agree. best: where an earlier start had got to, from `state`."""

    window: int = 16
    best: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.window < 4:
            raise ValueError(f"window={self.window}; expected 4 looks or more: fewer are noise")
        self._series = {n: _Series(deque(maxlen=self.window), self.best.get(n, 0.0)) for n in _REACHED}

    @property
    def state(self) -> dict[str, float]:
        """The best so far, for a checkpoint."""
        return {n: s.best for n, s in self._series.items()}

    def look(self, effective_rank: float, accuracy: float, chance: float) -> dict[str, float | str]:
        """The alarm's event, once a collapse; otherwise empty.

        effective_rank: of the step's vectors, between 1 and their dimension. accuracy: of the in-batch task; chance:
        what a blind guess gets there.
        """
        gained = (accuracy - chance) / max(1.0 - chance, 1e-9)  # batches of any size compare
        event: dict[str, float | str] = {}
        for name, value in (("effective_rank", effective_rank), ("accuracy", gained)):
            if value - value != 0.0:  # not finite: another guard's business
                continue
            if self._fell(name, value):
                event |= {name: effective_rank if name == "effective_rank" else accuracy}
                event |= {f"best_{name}": self._series[name].best}
                event["why"] = "; ".join(w for w in (str(event.get("why", "")), _WHY[name]) if w)
        return event

    def _fell(self, name: str, value: float) -> bool:
        series = self._series[name]
        series.add(value)
        if len(series.looks) < self.window or series.best < _REACHED[name]:
            return False
        if series.fallen:
            series.fallen = statistics.median(series.looks) < _BACK * series.best
            return False
        limit = _LOST * series.best
        series.fallen = series.highest() < (min(limit, _THIN) if name == "effective_rank" else limit)
        return series.fallen
