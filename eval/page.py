"""The HTML page of a Report: one file that needs nothing else; queries with their top results, right ones marked.

The queries shown are chosen by the digest of their keys, as many right as wrong where there are such; so the page shows
how the model errs, and the bars say how often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.types import Item, digest
from .metrics import mean_ranks
from .report import number, signed, verdict
from .thumbnails import View, views
from .types import Comparison, Difference, Query, Report, Task, TaskReport

SHOWN = 3  # right queries and as many wrong ones
RESULTS = 5  # of each query

MEANS = {
    "hit": "share of queries with a right answer among the first {k}",
    "recall": "share of the right answers found among the first {k}",
    "precision": "share of right answers among the first {k}",
    "f1": "harmonic mean of precision and recall at {k}",
    "mrr": "mean of one over the rank of the first right answer",
    "map": "mean average precision",
    "ndcg_linear": "discounted gain among the first {k}, over the best possible",
    "ndcg_exponential": "the same with gains 2^g - 1",
    "spearman": "rank correlation of the cosine with the graded similarity",
}


@dataclass(frozen=True)
class Result:
    """One candidate of one query. rank 0: it is shown beside the results, not among them."""

    views: list[View]
    rank: int
    score: float | None
    right: bool


@dataclass(frozen=True)
class Shown:
    """One query on the page."""

    views: list[View]
    instruction: str
    key: str
    rank: int  # of the best right answer
    pool: int
    results: list[Result]
    missed: Result | None  # the best right answer, where it is not among the results

    @property
    def pictured(self) -> bool:
        return any(v.picture for r in self.results for v in r.views)


@dataclass(frozen=True)
class Pair:
    """One pair of an sts task: its two sides, and where label and cosine place it among all pairs (1 is most alike)."""

    query: list[View]
    other: list[View]
    label: float
    cosine: float
    by_label: float
    by_cosine: float


@dataclass(frozen=True)
class Section:
    """One task on the page."""

    anchor: str
    task: Task
    report: TaskReport
    places: list[tuple[str, float]]  # share of queries by the rank of their first right answer
    shown: list[Shown]
    pairs: list[Pair]
    points: list[tuple[float, float]]  # sts: (label, cosine), both scaled to 0..1
    extent: tuple[float, ...]  # sts: lowest and highest label, lowest and highest cosine
    differences: list[Difference]  # one a base

    @property
    def compact(self) -> bool:
        """Whether every result on show is a few words, so that two queries fit beside each other."""
        results = [v for q in self.shown for r in q.results for v in r.views]
        return bool(results) and all(not v.picture and len(v.text) <= 40 for v in results)


def write(report: Report, tasks: Sequence[Task], path: Path, comparisons: Sequence[Comparison] = ()) -> None:
    """Renders the report of these tasks to `path`, aside and renamed."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(render(report, tasks, comparisons), encoding="utf-8")
    aside.replace(path)


def render(report: Report, tasks: Sequence[Task], comparisons: Sequence[Comparison] = ()) -> str:
    """The page as text. `tasks` are those that the report was made of, in its order."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("omni2vec", "eval"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "percent": _percent,
        "meaning": meaning,
        "cosine": _cosine,
    }
    sections = [_section(i, t, r, comparisons) for i, (t, r) in enumerate(zip(tasks, report.tasks, strict=True))]
    template = environment.get_template("report.html.j2")
    return template.render(
        report=report, sections=sections, comparisons=comparisons, verdicts=[verdict(c) for c in comparisons]
    )


def meaning(metric: str) -> str:
    family, _, k = metric.partition("@")
    if metric == "hit@1":
        return "share of queries whose first result is right"
    return (
        MEANS[family].format(k=k) if k or "{k}" not in MEANS[family] else MEANS[family].replace(" the first {k}", "all")
    )


def _percent(share: float) -> str:
    """A share as a CSS length, held between 0 and 100%."""
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def _cosine(score: float) -> str:
    return f"{score:.3f}".replace("-0.000", "0.000").replace("-", "\N{MINUS SIGN}")


def _section(index: int, task: Task, report: TaskReport, comparisons: Sequence[Comparison]) -> Section:
    graded = task.kind == "sts"
    return Section(
        anchor=f"task-{index}",
        task=task,
        report=report,
        places=[] if graded else _places(report),
        shown=[] if graded else [_shown(task, report, q) for q in chosen(task, report)],
        pairs=_pairs(task, report) if graded else [],
        points=_points(task, report) if graded else [],
        extent=tuple(float(end(v)) for v in _graded(task, report) for end in (np.min, np.max)) if graded else (),
        differences=[c.tasks[index] for c in comparisons],
    )


def chosen(task: Task, report: TaskReport, each: int = SHOWN) -> list[int]:
    """Indices of the queries to show: `each` right and `each` wrong by the digest of key and item, filled up."""
    order = sorted(range(len(task.queries)), key=lambda q: digest(task.queries[q].key, task.queries[q].item.id))
    right = [q for q in order if min(report.ranking.right_ranks[q]) == 1]
    wrong = [q for q in order if min(report.ranking.right_ranks[q]) > 1]
    spare = max(0, each - len(right)), max(0, each - len(wrong))  # what one side lacks, the other fills
    return right[: each + spare[1]] + wrong[: each + spare[0]]


def _shown(task: Task, report: TaskReport, q: int) -> Shown:
    query, ranking = task.queries[q], report.ranking
    where = f"task {task.name!r}, {query.key}"
    results = [
        Result(views(task.candidates[c], where), i + 1, float(ranking.scores[q][i]), c in query.right)
        for i, c in enumerate(ranking.top[q][:RESULTS])
    ]
    best, answer = min(zip(ranking.right_ranks[q], query.right, strict=True))
    missed = Result(views(task.candidates[answer], where), best, None, True) if best > len(results) else None
    pool = len(query.candidates) or len(task.candidates)
    instruction = task.instruction if query.instruction is None else query.instruction
    return Shown(views(query.item, where, 320), instruction, query.key, best, pool, results, missed)


def _places(report: TaskReport) -> list[tuple[str, float]]:
    """Shares of queries whose first right answer stands first, up to 5th, up to 10th, later; empty ones left out."""
    best = np.array([min(r) for r in report.ranking.right_ranks])
    last = max(math.ceil(report.pool), int(best.max()))
    edges = [("first", 1, 1), (_span(2, min(5, last)), 2, 5), (_span(6, min(10, last)), 6, 10), ("later", 11, last)]
    shares = [(name, float(((best >= low) & (best <= high)).mean())) for name, low, high in edges]
    return [(name, share) for name, share in shares if share > 0]


def _span(low: int, high: int) -> str:
    first, last = (f"{n}{ {2: 'nd', 3: 'rd'}.get(n, 'th') }" for n in (low, high))
    return first if high <= low else f"{first} to {last}"


def _points(task: Task, report: TaskReport) -> list[tuple[float, float]]:
    label, cosine = _graded(task, report)
    return list(zip(_scaled(label).tolist(), _scaled(cosine).tolist(), strict=True))


def _pairs(task: Task, report: TaskReport) -> list[Pair]:
    """The pairs that the model places furthest above and furthest below their label."""
    label, cosine = _graded(task, report)
    by_label, by_cosine = mean_ranks(-label), mean_ranks(-cosine)
    order = np.argsort(by_cosine - by_label, kind="stable")
    ends = dict.fromkeys([*order[:SHOWN].tolist(), *order[::-1][:SHOWN].tolist()])
    pairs = []
    for q in ends:
        query: Query = task.queries[q]
        other: Item = task.candidates[query.right[0]]
        where = f"task {task.name!r}, {query.key}"
        numbers = (float(label[q]), float(cosine[q]), float(by_label[q]), float(by_cosine[q]))
        pairs.append(Pair(views(query.item, where), views(other, where), *numbers))
    return pairs


def _graded(task: Task, report: TaskReport) -> tuple[np.ndarray, np.ndarray]:
    return np.array([q.score for q in task.queries], np.float64), report.ranking.scores[:, 0].astype(np.float64)


def _scaled(values: np.ndarray) -> np.ndarray:
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
