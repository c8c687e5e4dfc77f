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


HEADINGS = ("task", "metric", "score", "95% interval", "chance", "majority", "above it", "queries", "pool")


def table(report: Report, comparisons: Sequence[Comparison] = ()) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, all text, for a terminal or a page: a row a task, "overall" last."""
    headings = [*HEADINGS, *(f"over {c.base}" for c in comparisons)]
    rows = []
    for i, r in enumerate(summary(report)):
        above = {None: "", True: "yes", False: "no"}[r["above_majority"]]
        majority = "" if r["majority"] is None else number(r["majority"], r["metric"])
        pool = "" if r["pool"] is None else f"{r['pool']:,.0f}" if r["pool"] >= 10 else f"{r['pool']:.2g}"
        cells = [r["task"], r["metric"], number(r["value"], r["metric"])]
        cells += [
            f"{number(r['low'], r['metric'])} to {number(r['high'], r['metric'])}",
            number(r["chance"], r["metric"]),
        ]
        cells += [majority, above, f"{r['queries']:,}", pool]
        rows.append(cells + [_change([*c.tasks, c.overall][i]) for c in comparisons])
    return headings, rows


def markdown(report: Report, comparisons: Sequence[Comparison] = ()) -> str:
    headings, rows = table(report, comparisons)
    names = 2  # the first two columns are words, the rest numbers
    rule = ["---" if i < names else "---:" for i in range(len(headings))]
    lines = [headings, rule, *([c.replace("|", "\\|") for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def show(report: Report, comparisons: Sequence[Comparison] = ()) -> None:
    """Prints the table to the terminal, and below it what was lost against each base."""
    from rich.console import Console
    from rich.table import Table

    headings, rows = table(report, comparisons)
    view = Table(title=f"{report.model} ({report.digest[:12]}) on {len(report.tasks)} tasks", title_justify="left")
    for i, heading in enumerate(headings):
        view.add_column(heading, justify="left" if i < 2 else "right", overflow="fold")
    for row in rows[:-1]:
        view.add_row(*row)
    view.add_section()
    view.add_row(*rows[-1], style="bold")
    console = Console()
    console.print(view)
    for c in comparisons:
        console.print(verdict(c), highlight=False)


def verdict(comparison: Comparison) -> str:
    """One sentence: what was gained and lost against the base."""
    gained, lost = ([f"{t.name} {signed(t.value)}" for t in side] for side in (comparison.gained, comparison.lost))
    counts = f"better on {len(gained)}, worse on {len(lost)} of {len(comparison.tasks)} tasks by their intervals"
    tail = f"; lost: {', '.join(lost)}" if lost else "; nothing lost"
    return f"{comparison.ours} over {comparison.base}: {signed(comparison.overall.value)} overall; {counts}{tail}"


def number(value: float, metric: str = "") -> str:
    """A score in percent; a correlation as it is."""
    return f"{value:.3f}" if metric == "spearman" else f"{100 * value:.1f}"


def signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _change(d: Difference) -> str:
    return f"{signed(d.value)} ({signed(d.low)} to {signed(d.high)})"
