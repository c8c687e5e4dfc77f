"""Embeds the items of some tasks, ranks, and scores: `evaluate` for any Encoder, `Evaluate` as a step of a recipe."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from ..data.types import Source, Step, Where, digest
from ..model.types import Encoder
from . import bootstrap, chance, metrics
from .embed import Vectors, embed
from .search import Found, search, search_local
from .tasks.shards import tasks_from
from .types import Query, Ranking, Report, Score, Task, TaskReport


@dataclass(frozen=True)
class Evaluate:
    """Scores `model` on every task in `data`, and each of `baselines` beside it: steps, folders, hub names, or
    "open_clip:MODEL@WEIGHTS".

    Leaves report.json, ranks.parquet (of every query: its results and the ranks of its right answers) and report.html;
    of baseline i, the first two under baselines/i. limit: at most so many rows of each task. k: results kept.
    """

    name: str
    model: Step | str
    data: tuple[Source, ...]
    baselines: tuple[Step | str, ...] = ()
    limit: int | None = None
    k: int = 10

    def outside(self, where: Where) -> dict[str, str]:
        """The digests of models that no step made."""
        from ..model.checkpoint import digest_of_folder

        return {f"model {m}": digest_of_folder(m) for m in (self.model, *self.baselines) if isinstance(m, str)}

    def make(self, out: Path, where: Where) -> None:
        from . import page
        from .compare import compare
        from .report import show
        from .stored import save

        tasks = tasks_of(self.data, where, self.limit)
        reports = [self._score(model, tasks, where) for model in (self.model, *self.baselines)]
        ours, others = reports[0], reports[1:]
        comparisons = [compare(ours, base) for base in others]
        for i, base in enumerate(others):
            save(base, out / "baselines" / str(i))
        save(ours, out, comparisons)
        page.write(ours, tasks, out / "report.html", comparisons)
        show(ours, comparisons)

    def _score(self, model: Step | str, tasks: Sequence[Task], where: Where) -> Report:
        from ..model.encoder import load_encoder

        encoder = load_encoder(model if isinstance(model, str) else where(model))
        return evaluate(encoder, tasks, name=model if isinstance(model, str) else model.name, k=self.k)


def tasks_of(data: Sequence[Source], where: Where, limit: int | None = None) -> list[Task]:
    """The tasks of all sources. A name that two sources share gets a number behind it."""
    tasks: list[Task] = []
    for source in data:
        for task in tasks_from(source.open(where), limit):
            taken = sum(t.name == task.name or t.name.startswith(f"{task.name}#") for t in tasks)
            tasks.append(replace(task, name=f"{task.name}#{taken + 1}") if taken else task)
    return tasks


def evaluate(
    encoder: Encoder,
    tasks: Sequence[Task],
    *,
    name: str = "model",
    k: int = 10,
    draws: int = bootstrap.DRAWS,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Scores of `encoder` on `tasks`. Each distinct item is embedded once; k results of each query are kept.

    Intervals are the middle 95% of `draws` bootstrap samples of the queries, drawn from `seed`. Raises ValueError for
    an empty list of tasks, a right answer that is in no pool, and vectors that are not finite (naming the task).
    """
    if not tasks:
        raise ValueError("no tasks to evaluate on; give at least one source of rows")
    for task in tasks:
        _check(task)
    started = time.perf_counter()
    vectors = embed(encoder, tasks, progress)
    embedded = time.perf_counter()
    scored = tuple(_score(task, vectors, k, draws, seed) for task in tasks)
    drawn = np.mean([bootstrap.main(t, draws, seed) for t in scored], axis=0)
    overall = Score(
        fmean(t.score.value for t in scored),
        *bootstrap.interval(drawn),
        chance=fmean(t.score.chance for t in scored),
        per_query=(),
    )
    seconds = {"embed": embedded - started, "rank": time.perf_counter() - embedded}
    data = digest(*(t.digest for t in scored))
    return Report(name, encoder.digest, data, scored, overall, k, draws, seed, seconds)


def rank(task: Task, query: Tensor, docs: Tensor, k: int) -> Ranking:
    """query (Q, D) against the task's candidates docs (N, D). No query ranks its own Item, unless it is right."""
    place = {identity: i for i, identity in enumerate(task.candidates)}
    right = [[place[r] for r in q.right] for q in task.queries]
    found: Found
    if task.pool == "local":
        found = search_local(query, docs, k, [[place[c] for c in q.candidates] for q in task.queries], right)
    else:
        own = [-1 if q.item.id in q.right else place.get(q.item.id, -1) for q in task.queries]
        found = search(query, docs, k, right, own, device="cuda" if torch.cuda.is_available() else None)
    names = list(task.candidates)
    top = tuple(tuple(names[i] for i in row if i >= 0) for row in found.top)
    return Ranking(top, found.scores, found.right_ranks)


def _score(task: Task, vectors: Vectors, k: int, draws: int, seed: int) -> TaskReport:
    query, docs = vectors.queries(task), vectors.candidates(task)
    try:
        ranking = rank(task, query, docs, k)
    except ValueError as error:
        raise ValueError(f"task {task.name!r}: {error}") from error
    sizes = np.array([_pool_size(task, q) for q in task.queries])
    scores = _sts(task, ranking, draws, seed) if task.kind == "sts" else _ranked(task, ranking, sizes, k, draws, seed)
    return TaskReport(
        name=task.name,
        kind=task.kind,
        main=task.main,
        queries=len(task.queries),
        candidates=len(task.candidates),
        pool=float(sizes.mean()),
        digest=task.digest,
        metrics=scores,
        majority=_majority(task),
        ranking=ranking,
        keys=tuple(q.key for q in task.queries),
    )


def _ranked(task: Task, ranking: Ranking, sizes: np.ndarray, k: int, draws: int, seed: int) -> dict[str, Score]:
    names = names_of(task, int(sizes.min()), k)
    per_query = np.array(
        [[metrics.value(n, r, q.gains) for n in names] for q, r in zip(task.queries, ranking.right_ranks, strict=True)]
    )
    drawn = bootstrap.means(per_query, draws, bootstrap.seed_of(task.digest, seed))
    expected = [
        fmean(chance.chance(n, int(size), len(q.right), q.gains) for q, size in zip(task.queries, sizes, strict=True))
        for n in names
    ]
    return {
        n: Score(float(per_query[:, i].mean()), *bootstrap.interval(drawn[:, i]), expected[i], tuple(per_query[:, i]))
        for i, n in enumerate(names)
    }


def names_of(task: Task, smallest_pool: int, k: int) -> list[str]:
    """The metrics of a task, main first. A cut that reaches the end of a pool says nothing, so it is left out."""
    cuts = sorted({c for c in (1, 5, k) if c < smallest_pool})
    families = ["hit", *["recall", "precision", "f1"] * (task.kind == "retrieval")]
    names = [task.main, *(f"{f}@{c}" for f in families for c in cuts)]
    if task.kind == "retrieval":
        graded = any(q.gains for q in task.queries)
        names += [f"{f}@{c}" for f in ["ndcg_linear", *["ndcg_exponential"] * graded] for c in cuts if c > 1]
        names += [*(f"{f}@{c}" for f in ("mrr", "map") for c in cuts if c > 1), "map"]
    return list(dict.fromkeys([*names, "mrr"]))


def _sts(task: Task, ranking: Ranking, draws: int, seed: int) -> dict[str, Score]:
    """Spearman of cosine and label. per_query holds the labels, ranking.scores the cosines: both give it back."""
    cosine, label = ranking.scores[:, 0], np.array([q.score for q in task.queries], np.float64)
    if len(set(label.tolist())) < 2:
        raise ValueError(f"task {task.name!r}: all {len(label)} pairs have the same label, so nothing can be ranked")
    interval = bootstrap.interval(bootstrap.spearmans(cosine, label, draws, bootstrap.seed_of(task.digest, seed)))
    return {task.main: Score(metrics.spearman(cosine, label), *interval, chance=0.0, per_query=tuple(label.tolist()))}


def _majority(task: Task) -> float | None:
    """What one answer given to every question scores at best; only where answers repeat by nature."""
    if task.kind not in ("classification", "vqa"):
        return None
    times: dict[str, int] = {}
    for q in task.queries:
        for r in q.right:
            times[r] = times.get(r, 0) + 1
    return max(times.values()) / len(task.queries)


def _pool_size(task: Task, query: Query) -> int:
    if task.pool == "local":
        return len(query.candidates)
    hidden = query.item.id in task.candidates and query.item.id not in query.right
    return len(task.candidates) - hidden


def _check(task: Task) -> None:
    if not task.queries:
        raise ValueError(f"task {task.name!r} has no queries")
    for q in task.queries:
        pool = q.candidates if task.pool == "local" else task.candidates
        missing = [r for r in q.right if r not in pool]
        if missing or not q.right:
            what = f"right answer {missing[0]!r} is not in its pool of {len(pool)}" if missing else "no right answer"
            raise ValueError(f"task {task.name!r}, query {q.key or q.item.id!r}: {what}")
