"""A model beside its base on the same queries: paired differences with their intervals, and what was lost."""

from __future__ import annotations

from statistics import fmean

import numpy as np

from . import bootstrap
from .types import Comparison, Difference, Report, TaskReport


def compare(ours: Report, base: Report) -> Comparison:
    """Raises ValueError where the two reports are not on the same data, naming the tasks that differ."""
    _same_data(ours, base)
    pairs = list(zip(ours.tasks, base.tasks, strict=True))
    drawn = [bootstrap.main(a, ours.draws, ours.seed) - bootstrap.main(b, ours.draws, ours.seed) for a, b in pairs]
    tasks = tuple(_difference(a, b, d) for (a, b), d in zip(pairs, drawn, strict=True))
    low, high = bootstrap.interval(np.mean(drawn, axis=0))
    means = ours.overall.value, base.overall.value
    value = fmean(t.value for t in tasks)
    overall = Difference("overall", "", "mean of main metrics", *means, value, low, high)
    return Comparison(ours.model, base.model, base.digest, overall, tasks)


def _difference(ours: TaskReport, base: TaskReport, drawn: np.ndarray) -> Difference:
    a, b = ours.score.value, base.score.value
    return Difference(ours.name, ours.kind, ours.main, a, b, a - b, *bootstrap.interval(drawn))


def _same_data(ours: Report, base: Report) -> None:
    a, b = ({t.name: t.digest for t in report.tasks} for report in (ours, base))
    if list(a.values()) == list(b.values()):
        return
    alone = [
        f"{n} (only in {r.model})" for r, mine, other in ((ours, a, b), (base, b, a)) for n in mine if n not in other
    ]
    changed = [n for n in a if n in b and a[n] != b[n]]
    what = "; ".join(filter(None, [", ".join(alone), f"other rows in {', '.join(changed)}" if changed else ""]))
    raise ValueError(
        f"reports of {ours.model} and {base.model} are on different data ({what or 'tasks in another order'}), so "
        "their scores cannot be compared in pairs; evaluate both on the same sources with the same limit"
    )
