"""Paired comparison of two reports on the same queries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from omni2vec.eval.bootstrap import interval
from omni2vec.eval.compare import compare
from omni2vec.eval.evaluate import evaluate
from omni2vec.eval.report import markdown, summary, verdict
from omni2vec.eval.tasks.shards import tasks_from
from omni2vec.eval.types import Ranking, Report, Score, TaskReport


def report_of(right: np.ndarray, name: str, tasks: int = 1) -> Report:
    """A report of hit@1 values (n,) on `tasks` equal tasks, made by hand."""
    score = Score(float(right.mean()), 0.0, 1.0, 0.1, tuple(right.tolist()))
    ranking = Ranking((), np.zeros((len(right), 1), np.float32), ())
    scored = tuple(
        TaskReport(f"t{i}", "retrieval", "hit@1", len(right), 10, 10.0, f"d{i}", {"hit@1": score}, None, ranking)
        for i in range(tasks)
    )
    return Report(name, name, "data", scored, score, 10, 1000, 0)


def test_a_model_beside_itself_differs_by_exactly_nothing(bag, rows) -> None:
    report = evaluate(bag, tasks_from(rows))
    comparison = compare(report, report)
    assert all((d.value, d.low, d.high) == (0.0, 0.0, 0.0) for d in (*comparison.tasks, comparison.overall))
    assert comparison.lost == comparison.gained == ()


def test_pairing_narrows_the_interval_of_models_that_err_alike() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random(400) < 0.5).astype(float)
    ours = base.copy()
    ours[np.flatnonzero(base == 0)[:20]] = 1  # the same, and 20 queries more
    d = compare(report_of(ours, "ours"), report_of(base, "base")).tasks[0]
    half = 1.96 * np.sqrt(0.05 * 0.95 / 400)  # of the mean of the differences
    assert d.value == pytest.approx(0.05)
    assert (d.high - d.low) / 2 == pytest.approx(half, rel=0.15)
    assert d.verdict == "better"


def test_losses_are_listed_worst_first_and_said_in_words() -> None:
    ones, zeros = np.ones(50), np.zeros(50)
    ours, base = report_of(zeros, "tuned", 2), report_of(ones, "base", 2)
    halved = replace(ours.tasks[1], metrics={"hit@1": Score(0.5, 0, 1, 0.1, (*ones[:25], *zeros[:25]))})
    comparison = compare(replace(ours, tasks=(halved, replace(ours.tasks[1])), data="data"), _renamed(base))
    assert [d.value for d in comparison.lost] == [-1.0, -0.5]
    assert verdict(comparison) == (
        "tuned over base: -75.0 overall; better on 0, worse on 2 of 2 tasks by their intervals; "
        "lost: t1 -100.0, t1 -50.0"
    )


def _renamed(base: Report) -> Report:
    return replace(base, tasks=(base.tasks[1], base.tasks[1]))


def test_the_overall_difference_is_the_mean_over_tasks(bag, words, rows) -> None:
    tasks = tasks_from(rows)
    ours, base = evaluate(bag, tasks, name="bag"), evaluate(words, tasks, name="words")
    comparison = compare(ours, base)
    assert comparison.overall.value == pytest.approx(ours.overall.value - base.overall.value)
    assert comparison.overall.low < comparison.overall.value < comparison.overall.high
    assert {d.name for d in comparison.gained} >= {"colour", "regions"}  # eyes tell colours


def test_reports_on_different_data_are_refused_by_task(bag, rows, made) -> None:
    ours = evaluate(bag, tasks_from(rows))
    fewer = evaluate(bag, tasks_from(rows, limit=5), name="base")
    with pytest.raises(ValueError, match=r"model and base are on different data \(other rows in captions, colour"):
        compare(ours, fewer)
    without = evaluate(bag, tasks_from(made(e for e in rows if e.task != "sts")), name="base")
    with pytest.raises(ValueError, match=r"similar \(only in model\)"):
        compare(ours, without)


def test_the_interval_is_the_middle_95_percent() -> None:
    assert interval(np.arange(1001.0)) == (25.0, 975.0)


def test_markdown_has_a_row_a_task_and_a_column_a_base(bag, words, rows) -> None:
    tasks = tasks_from(rows)
    ours, base = evaluate(bag, tasks, name="bag"), evaluate(words, tasks, name="words")
    lines = markdown(ours, [compare(ours, base)]).splitlines()
    assert len(lines) == 2 + len(tasks) + 1
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert lines[0].endswith("| over words |")
    assert lines[-1].startswith("| overall | mean |")


def test_the_summary_says_whether_a_task_is_above_its_majority(bag, rows) -> None:
    flags = {r["task"]: r["above_majority"] for r in summary(evaluate(bag, tasks_from(rows)))}
    assert flags["captions"] is None
    assert isinstance(flags["colour"], bool)
