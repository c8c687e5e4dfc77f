"""A Report on disk: report.json holds the scores, ranks.parquet beside it every query's results, ranks and values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..data.types import DataError
from .report import above_majority
from .types import Comparison, Ranking, Report, Score, TaskReport

VERSION = 1  # of report.json


def save(report: Report, out: Path, comparisons: Sequence[Comparison] = ()) -> None:
    """Writes out/report.json (scores) and out/ranks.parquet (one row a query), each aside and renamed."""
    out.mkdir(parents=True, exist_ok=True)
    _write_ranks(report, out / "ranks.parquet")
    document = {
        "version": VERSION,
        **{name: getattr(report, name) for name in ("model", "digest", "data", "k", "draws", "seed")},
        "seconds": dict(report.seconds),
        "overall": _score(report.overall),
        "tasks": [_task(t) for t in report.tasks],
        "comparisons": [
            {**asdict(c), "lost": [t.name for t in c.lost], "gained": [t.name for t in c.gained]} for c in comparisons
        ],
    }
    aside = out / ".report.json"
    aside.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(out / "report.json")


def load(folder: Path) -> Report:
    """The Report that `save` left in `folder`, with the values of every query."""
    path = folder / "report.json"
    if not path.is_file():
        raise DataError(f"{folder}: no report.json here; give the output folder of an Evaluate step")
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("version") != VERSION:
        raise DataError(f"{path}: version {document.get('version')!r}, this release reads {VERSION}; evaluate again")
    rows = _read_ranks(folder / "ranks.parquet")
    tasks = tuple(_read_task(t, rows.get(t["name"], [])) for t in document["tasks"])
    plain = {name: document[name] for name in ("model", "digest", "data", "k", "draws", "seed", "seconds")}
    return Report(**plain, tasks=tasks, overall=Score(**document["overall"]))


def _score(score: Score) -> dict[str, float]:
    return {name: getattr(score, name) for name in ("value", "low", "high", "chance")}


def _task(task: TaskReport) -> dict[str, Any]:
    plain = ("name", "kind", "main", "queries", "candidates", "pool", "digest", "majority")
    metrics = {name: _score(score) for name, score in task.metrics.items()}
    return {**{n: getattr(task, n) for n in plain}, "above_majority": above_majority(task), "metrics": metrics}


def _read_task(document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> TaskReport:
    names = list(document["metrics"])
    if len(rows) != document["queries"]:
        raise DataError(
            f"task {document['name']!r}: ranks.parquet holds {len(rows)} queries, report.json says "
            f"{document['queries']}; the two files do not belong together"
        )
    metrics = {
        name: Score(**score, per_query=tuple(row["values"][i] for row in rows))
        for i, (name, score) in enumerate(document["metrics"].items())
    }
    width = max(len(row["scores"]) for row in rows)
    scores = np.full((len(rows), width), np.nan, np.float32)
    for i, row in enumerate(rows):
        scores[i, : len(row["scores"])] = row["scores"]
    top = tuple(tuple(row["top"]) for row in rows)
    ranking = Ranking(top, scores, tuple(tuple(row["ranks"]) for row in rows))
    plain = {n: document[n] for n in ("name", "kind", "main", "queries", "candidates", "pool", "digest", "majority")}
    assert document["main"] == names[0]
    return TaskReport(**plain, metrics=metrics, ranking=ranking, keys=tuple(row["key"] for row in rows))


def _write_ranks(report: Report, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "task": t.name,
            "query": q,
            "key": t.keys[q],
            "ranks": list(t.ranking.right_ranks[q]),
            "top": list(t.ranking.top[q]),
            "scores": t.ranking.scores[q][: len(t.ranking.top[q])].tolist(),
            "values": [s.per_query[q] for s in t.metrics.values()],
        }
        for t in report.tasks
        for q in range(t.queries)
    ]
    schema = pa.schema(
        [
            ("task", pa.string()),
            ("query", pa.int64()),
            ("key", pa.string()),
            ("ranks", pa.list_(pa.int64())),
            ("top", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float32())),
            ("values", pa.list_(pa.float64())),
        ]
    )
    aside = path.with_name(f".{path.name}")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), aside, compression="zstd")
    aside.replace(path)


def _read_ranks(path: Path) -> dict[str, list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    rows: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(path).to_pylist():
        rows.setdefault(row["task"], []).append(row)
    return rows
