"""A Report in words and numbers: rows for a model card or run monitor, a terminal table, a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .types import Comparison, Difference, Report, TaskReport


def summary(report: Report) -> list[dict[str, Any]]:
    """One flat row a task, then "overall": what a model card and a run monitor show."""
    rows = [
        {
            "task": t.name,
            "kind": t.kind,
            "metric": t.main,
            "value": t.score.value,
            "low": t.score.low,
            "high": t.score.high,
            "chance": t.score.chance,
            "majority": t.majority,
            "above_majority": above_majority(t),
            "queries": t.queries,
            "candidates": t.candidates,
            "pool": t.pool,
        }
        for t in report.tasks
    ]
    o = report.overall
    overall = {"task": "overall", "kind": "", "metric": "mean", "value": o.value, "low": o.low, "high": o.high}
    queries = sum(t.queries for t in report.tasks)
    empty = {"majority": None, "above_majority": None, "candidates": None, "pool": None}
    return [*rows, {**overall, "chance": o.chance, "queries": queries, **empty}]


def above_majority(task: TaskReport) -> bool | None:
    """Whether the lower end of the interval is above the majority class; None where there is no such class."""
    return None if task.majority is None else task.score.low > task.majority


HEADINGS = ("task", "metric", "score", "95% interval", "chance", "majority", "queries", "pool")


def table(report: Report, comparisons: Sequence[Comparison] = ()) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, all text: a row a task, "overall" last, a column for each base."""
    changes = [[*c.tasks, c.overall] for c in comparisons]
    rows = [[*_cells(row), *(_change(c[i]) for c in changes)] for i, row in enumerate(summary(report))]
    return [*HEADINGS, *(f"over {c.base}" for c in comparisons)], rows


def _cells(row: dict[str, Any]) -> list[str]:
    value, low, high, chance = (number(row[name]) for name in ("value", "low", "high", "chance"))
    majority = pool = ""
    if row["majority"] is not None:
        majority = f"{number(row['majority'])} ({'above' if row['above_majority'] else 'not above'})"
    if row["pool"] is not None:
        pool = f"{row['pool']:,.0f}" if row["pool"] >= 10 else f"{row['pool']:.2g}"
    return [row["task"], row["metric"], value, f"{low} to {high}", chance, majority, f"{row['queries']:,}", pool]


def markdown(report: Report, comparisons: Sequence[Comparison] = ()) -> str:
    headings, rows = table(report, comparisons)
    names = 2  # the first two columns are words, the rest numbers
    rule = ["---" if i < names else "---:" for i in range(len(headings))]
    lines = [headings, rule, *([c.replace("|", "\\|") for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def show(report: Report, comparisons: Sequence[Comparison] = ()) -> None:
    """Prints the table to the terminal, and below it what was lost against each base."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    headings, rows = table(report, comparisons)
    view = Table(title=f"{report.model}, {len(report.tasks)} tasks", title_justify="left", box=box.SIMPLE_HEAD)
    for i, heading in enumerate(headings):
        view.add_column(heading, justify="left" if i < 2 else "right", no_wrap=i > 0, overflow="fold")
    for row in rows[:-1]:
        view.add_row(*row)
    view.add_section()
    view.add_row(*rows[-1], style="bold")
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a log file has no edge
    console.print(view)
    for c in comparisons:
        console.print(verdict(c), highlight=False, soft_wrap=True)


def verdict(comparison: Comparison) -> str:
    """One sentence: what was gained and lost against the base."""
    gained, lost = ([f"{t.name} {signed(t.value)}" for t in side] for side in (comparison.gained, comparison.lost))
    counts = f"better on {len(gained)}, worse on {len(lost)} of {len(comparison.tasks)} tasks by their intervals"
    tail = f"; lost: {', '.join(lost)}" if lost else "; nothing lost"
    return f"{comparison.ours} over {comparison.base}: {signed(comparison.overall.value)} overall; {counts}{tail}"


def number(value: float) -> str:
    """Any score times 100, correlations too, so that their mean is one number."""
    return f"{100 * value:.1f}"


def signed(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # no "-0.0"


def _change(d: Difference) -> str:
    return f"{signed(d.value)} ({signed(d.low)} to {signed(d.high)})"
