"""Scores of encoders whose scores are known: one that sees all, one that sees nothing, and a simple one between."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from omni2vec.data.types import DataError, Example, Item, Rows, Where
from omni2vec.eval.evaluate import Evaluate, evaluate
from omni2vec.eval.metrics import spearman
from omni2vec.eval.stored import load, save
from omni2vec.eval.tasks.shards import tasks_from
from omni2vec.eval.types import Query, Task


@dataclass(frozen=True)
class Table:
    """An encoder that looks an item's first text up, for scores that are known beforehand."""

    vectors: dict[str, tuple[float, ...]]
    digest: str = "table"

    def encode_items(self, items: Sequence[Item], *, side: str = "query", instruction: str = "", progress: str = ""):
        rows = torch.tensor([self.vectors[i.parts[0].text] for i in items])
        return torch.nn.functional.normalize(rows, dim=1)


class Constant:
    digest = "constant"

    def encode_items(self, items, *, side="query", instruction="", progress=""):
        return torch.ones(len(list(items)), 4) / 2


def numbered(count: int) -> tuple[Task, Table]:
    """Query i is right with candidate i, and the table gives both one vector."""
    eye = np.eye(count)
    items = {f"c{i}": Item.text(f"c{i}") for i in range(count)}
    queries = tuple(Query(Item.text(f"q{i}"), (f"c{i}",), key=f"k{i}") for i in range(count))
    vectors = {f"{side}{i}": tuple(eye[i]) for i in range(count) for side in "qc"}
    return Task("numbers", "retrieval", queries, items, digest="numbers"), Table(vectors)


def test_a_perfect_encoder_scores_100_everywhere() -> None:
    task, table = numbered(12)
    report = evaluate(table, [task])
    assert {name: s.value for name, s in report.tasks[0].metrics.items() if name in ("hit@1", "mrr", "map")} == {
        "hit@1": 1.0,
        "mrr": 1.0,
        "map": 1.0,
    }
    assert report.overall.value == 1.0
    assert report.tasks[0].score.chance == pytest.approx(1 / 12)


def test_an_encoder_that_sees_nothing_scores_chance(rows: Rows) -> None:
    for task in evaluate(Constant(), tasks_from(rows)).tasks:
        assert task.score.low <= task.score.chance <= task.score.high, task.name


def test_the_simple_encoder_stands_where_its_senses_allow(bag, rows: Rows) -> None:
    scores = {t.name: t.score for t in evaluate(bag, tasks_from(rows)).tasks}
    assert scores["colour"].low > scores["colour"].chance  # it sees colours
    assert scores["captions"].value < 0.5  # and no shapes
    assert scores["tones"].value < 0.2  # and hears nothing
    assert scores["similar"].value > 0.6


def test_every_distinct_item_is_embedded_once_under_a_side_and_instruction(bag, rows: Rows) -> None:
    tasks = tasks_from(rows)
    bag.seen.clear()
    evaluate(bag, tasks)
    roles: dict[tuple[str, str], set[str]] = {}
    for task in tasks:
        roles.setdefault(("target", task.target_instruction), set()).update(task.candidates)
        for q in task.queries:
            role = ("query", task.instruction if q.instruction is None else q.instruction)
            roles.setdefault(role, set()).add(q.item.id)
    assert sorted(bag.seen) == sorted(len(ids) for ids in roles.values())


def test_equal_ids_of_different_items_are_not_taken_for_one() -> None:
    one, other = Item((Item.text("c0").parts[0],), "7"), Item((Item.text("c1").parts[0],), "7")
    task, table = numbered(2)
    tasks = [
        replace(
            task, name=name, queries=(Query(Item.text(query), ("7",)),), candidates={"7": right, "c2": Item.text(wrong)}
        )
        for name, query, right, wrong in (("a", "q0", one, "c1"), ("b", "q1", other, "c0"))
    ]
    assert [t.score.value for t in evaluate(table, tasks).tasks] == [1.0, 1.0]


def test_a_query_that_is_in_the_pool_does_not_find_itself() -> None:
    words = ("a", "b", "c")
    items = {Item.text(w).id: Item.text(w) for w in words}
    table = Table({"a": (1, 0.2, 0), "b": (0.9, 0.3, 0), "c": (0, 0, 1)})
    task = Task("self", "retrieval", (Query(Item.text("a"), (Item.text("b").id,)),), items, digest="self")
    (scored,) = evaluate(table, [task]).tasks
    assert scored.ranking.right_ranks == ((1,),)
    assert scored.pool == 2
    assert scored.score.chance == 0.5


def test_majority_is_the_share_of_the_most_frequent_answer() -> None:
    task, table = numbered(3)
    asked = tuple(Query(Item.text(f"q{i % 3}"), ("c0" if i < 7 else "c1",)) for i in range(10))
    report = evaluate(table, [replace(task, kind="classification", queries=asked), task])
    assert [t.majority for t in report.tasks] == [0.7, None]


def test_spearman_is_that_of_cosines_and_labels(bag, rows: Rows) -> None:
    task = next(t for t in tasks_from(rows) if t.kind == "sts")
    (scored,) = evaluate(bag, [task]).tasks
    labels = [q.score for q in task.queries]
    assert scored.score.value == pytest.approx(spearman(scored.ranking.scores[:, 0], labels))
    assert scored.score.low < scored.score.value < scored.score.high


def test_the_same_encoder_on_the_same_tasks_gives_an_equal_report(bag, rows: Rows) -> None:
    one, other = (evaluate(bag, tasks_from(rows)) for _ in range(2))
    assert one.data == other.data
    assert [t.metrics for t in one.tasks] == [t.metrics for t in other.tasks]


def test_a_report_comes_back_from_disk_as_it_was(bag, rows: Rows, tmp_path: Path) -> None:
    report = evaluate(bag, tasks_from(rows), name="bag")
    save(report, tmp_path)
    back = load(tmp_path)
    assert [(t.metrics, t.ranking.top, t.ranking.right_ranks, t.keys) for t in back.tasks] == [
        (t.metrics, t.ranking.top, t.ranking.right_ranks, t.keys) for t in report.tasks
    ]
    assert all(
        np.array_equal(a.ranking.scores, b.ranking.scores, equal_nan=True)
        for a, b in zip(back.tasks, report.tasks, strict=True)
    )
    assert (back.model, back.digest, back.data, back.overall) == ("bag", bag.digest, report.data, report.overall)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ranks.parquet", "report.json"]


def test_every_querys_rank_is_in_the_side_file(bag, rows: Rows, tmp_path: Path) -> None:
    tasks = tasks_from(rows)
    save(evaluate(bag, tasks), tmp_path)
    table = pq.read_table(tmp_path / "ranks.parquet")
    assert table.num_rows == sum(len(t.queries) for t in tasks)
    assert table.column("key").to_pylist() == [q.key for t in tasks for q in t.queries]
    assert min(r for ranks in table.column("ranks").to_pylist() for r in ranks) == 1


def test_a_folder_without_a_report_and_a_torn_one_are_refused(bag, rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no report\.json here"):
        load(tmp_path)
    save(evaluate(bag, tasks_from(rows)), tmp_path)
    document = json.loads((tmp_path / "report.json").read_text())
    document["tasks"][0]["queries"] += 1
    (tmp_path / "report.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="the two files do not belong together"):
        load(tmp_path)


def test_a_right_answer_outside_the_pool_is_named() -> None:
    task, table = numbered(3)
    with pytest.raises(ValueError, match="task 'numbers', query 'k': right answer 'c9' is not in its pool of 3"):
        evaluate(table, [replace(task, queries=(Query(Item.text("q0"), ("c9",), key="k"),))])


def test_vectors_that_are_not_finite_name_the_task() -> None:
    task, table = numbered(3)
    table.vectors["c1"] = (float("nan"), 0, 0)
    with pytest.raises(ValueError, match="task 'numbers': docs: 1 of 3 vectors hold NaN"):
        evaluate(table, [task])


def test_no_tasks_are_refused(bag) -> None:
    with pytest.raises(ValueError, match="no tasks"):
        evaluate(bag, [])


def test_two_thousand_by_two_thousand_are_ranked_and_scored_in_seconds() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2000, 64, generator=generator).tolist()
    task, _ = numbered(1)
    items = {f"c{i}": Item.text(f"c{i}") for i in range(2000)}
    queries = tuple(Query(Item.text(f"q{i}"), (f"c{i}",)) for i in range(2000))
    table = Table({f"{side}{i}": tuple(rows[i]) for i in range(2000) for side in "qc"})
    started = time.perf_counter()
    report = evaluate(table, [replace(task, queries=queries, candidates=items)])
    assert report.overall.value == 1.0
    assert time.perf_counter() - started < 10  # one second on an idle core


@dataclass(frozen=True)
class Memory:
    """A source of rows held in memory."""

    rows: tuple[Example, ...]
    made: type
    name: str = "memory"

    def open(self, where: Where) -> Rows:
        return self.made(self.rows)


def test_the_step_leaves_report_ranks_page_and_baselines(bag, words, made, rows, tmp_path, monkeypatch, capsys) -> None:
    from omni2vec.model.embedder import Embedder

    monkeypatch.setattr(Embedder, "load", staticmethod({"ours": bag, "base": words}.__getitem__))
    step = Evaluate("score", "ours", (Memory(tuple(rows), made),), baselines=("base",), limit=10)
    step.make(tmp_path, lambda _: tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["baselines", "ranks.parquet", "report.html", "report.json"]
    assert load(tmp_path / "baselines" / "0").model == "base"
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["comparisons"][0]["base"] == "base"
    assert all(t["queries"] == 10 for t in document["tasks"])
    printed = capsys.readouterr().out
    assert "colour" in printed and "over base" in printed and "overall" in printed
