"""Task, Ranking and Report: what evaluation takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..data.types import Item

Pool = Literal["global", "local"]


@dataclass(frozen=True)
class Query:
    item: Item
    right: tuple[str, ...]  # candidate ids, relevance > 0
    gains: tuple[float, ...] = ()  # graded relevance of `right`; empty: all 1
    candidates: tuple[str, ...] = ()  # local pool, in order; empty: the task's whole pool
    key: str = ""
    score: float | None = None  # sts: the graded similarity with its one candidate
    instruction: str | None = None  # where it differs from the task's


@dataclass(frozen=True)
class Task:
    """Queries against candidates. `kind` decides the metrics; `main` is the one that is reported first."""

    name: str  # the source's name
    kind: str  # retrieval, classification, vqa, grounding, sts, or a word of your own
    queries: tuple[Query, ...]
    candidates: Mapping[str, Item]  # id -> Item, in pool order
    instruction: str = ""
    target_instruction: str = ""
    pool: Pool = "global"
    main: str = "hit@1"
    digest: str = ""  # of the data


@dataclass(frozen=True)
class Ranking:
    """Of each query: the top k candidate ids with their scores, best first, and the rank (from 1) of each right one."""

    top: tuple[tuple[str, ...], ...]
    scores: np.ndarray  # (Q, k) float32, NaN beyond a small pool
    right_ranks: tuple[tuple[int, ...], ...]  # of `Query.right`, in its order


@dataclass(frozen=True)
class Score:
    """One metric of one task: its mean, 95% interval (bootstrap over queries), chance, and the value of every query."""

    value: float
    low: float
    high: float
    chance: float
    per_query: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class TaskReport:
    """What one model reached on one task. `metrics` holds `main` first."""

    name: str
    kind: str
    main: str
    queries: int
    candidates: int  # of the whole task
    pool: float  # that a query ranks, on average
    digest: str  # of the task: its queries, right answers and candidates
    metrics: Mapping[str, Score]
    majority: float | None  # share of the most frequent right answer; None where answers do not repeat by nature
    ranking: Ranking = field(repr=False)  # sts: of one candidate each; scores (Q, 1) are the cosines
    keys: tuple[str, ...] = field(default=(), repr=False)  # of the queries

    @property
    def score(self) -> Score:
        return self.metrics[self.main]


@dataclass(frozen=True)
class Report:
    """Scores of one model on some tasks. `overall` is the plain mean of the tasks' main metrics."""

    model: str  # its name
    digest: str  # of its weights and settings
    data: str  # digest of all tasks
    tasks: tuple[TaskReport, ...]
    overall: Score
    k: int  # results kept of each query
    draws: int  # of the bootstrap
    seed: int  # of the bootstrap
    seconds: Mapping[str, float] = field(default_factory=dict)  # "embed", "rank"


@dataclass(frozen=True)
class Difference:
    """Ours minus the base on one task's main metric, in pairs: the same queries, the same bootstrap draws."""

    name: str
    kind: str
    metric: str
    ours: float
    base: float
    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["better", "worse", "open"]:
        """By the 95% interval of the difference; "open": it holds zero."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "open"


@dataclass(frozen=True)
class Comparison:
    """A model beside its base. `overall` is the difference of the means over tasks."""

    ours: str
    base: str
    base_digest: str
    overall: Difference
    tasks: tuple[Difference, ...]

    @property
    def lost(self) -> tuple[Difference, ...]:
        """Tasks that became worse, by their intervals; the largest loss first."""
        return tuple(sorted((t for t in self.tasks if t.verdict == "worse"), key=lambda t: t.value))

    @property
    def gained(self) -> tuple[Difference, ...]:
        return tuple(sorted((t for t in self.tasks if t.verdict == "better"), key=lambda t: -t.value))
