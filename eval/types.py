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


@dataclass(frozen=True)
class Task:
    """Queries against candidates. `kind` decides the metrics; `main` is the one that is reported first."""

    name: str  # the source's name
    kind: str  # retrieval, classification, vqa, grounding, sts
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
