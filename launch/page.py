"""One stage of a run on one page of a terminal: how far it is, its curves, where its time goes, what happened."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ..train.monitor import EXAMPLES
from ..train.terminal import clock
from .logs import Log, as_float
from .plots import curve, gigabytes, number, percent, shares, spark

_LEAST = 38  # width of a panel
_RECENT = 50  # steps that the time split is the mean of
_EVENTS = 6
_CALM = {
    "start",
    "chunks keep",
    "evaluation",
    "saved",
    "checkpoint",
    "stopped early",
    "asked to end",
    EXAMPLES,
}  # events that are no trouble
OTHER = "other"  # what the stopwatch calls time between its sections (train/timing.py)
_COLOUR = {"done": "green", "running": "yellow", "stopped": "red"}


@dataclass(frozen=True)
class Panel:
    key: str
    title: str
    style: str
    label: str = ""  # "" number, "%", "B" bytes

    def show(self, value: float) -> str:
        return {"": number, "%": percent, "B": gigabytes}[self.label](value)


PANELS = (
    Panel("loss", "loss", "cyan"),
    Panel("accuracy", "in-batch accuracy", "green", "%"),
    Panel("lr", "learning rate", "yellow"),
    Panel("norm", "gradient norm", "magenta"),
    Panel("effective_rank", "effective rank", "green"),
    Panel("uniformity", "uniformity", "green"),
    Panel("alignment", "alignment", "green"),
    Panel("temperature", "temperature", "yellow"),
    Panel("tokens_per_s", "tokens/s", "blue"),
    Panel("samples_per_s", "samples/s", "blue"),
    Panel("mfu", "model-FLOPs utilisation", "blue", "%"),
    Panel("padding", "padding", "red", "%"),
    Panel("imbalance", "imbalance of ranks", "red"),
    Panel("peak_bytes", "device memory", "bright_black", "B"),
    Panel("host_bytes", "host memory", "bright_black", "B"),
)


def page(log: Log, console: Console, others: Sequence[str] = (), fit: bool = False) -> RenderableType:
    """All there is to see of one stage. fit: no more than the terminal is high, what matters least left out."""
    width, plain = console.width, not console.encoding.lower().startswith("utf")
    if not log.steps:
        return Group(*_header(log, width, plain), Text("No step is done yet."), *_events(log, width))
    drawn, still = _split(log)
    columns = max(1, min(width // _LEAST, len(drawn), 5))
    height = 5
    if fit:
        room = console.height - 16  # without the header, the time split and the events
        rows = min(math.ceil(len(drawn) / columns), max(1, room // 6))
        drawn, height = drawn[: rows * columns], max(2, min(6, room // max(rows, 1) - 2))
    first, last = log.steps[0]["step"], log.steps[-1]["step"]
    rule = Rule(f"steps {first:,} to {last:,}", style="dim", characters="-" if plain else "─")
    sections: list[tuple[int, list[RenderableType]]] = [  # how much each matters, and what it shows
        (0, [*_header(log, width, plain), rule]),
        (1, [_panels(log, drawn, columns, width, height, plain)]),
        (4, [*_still(still, width)]),
        (3, [*_by_name(log, width, plain)]),
        (2, [*_times(log, width, plain)]),
        (5, [*_examples(log, width, plain)]),
        (2, [*_events(log, width)]),
        (6, [Text(f"other stages: {', '.join(others)} (--stage NAME)", "dim")] if others else []),
    ]
    kept = _fitting([s for s in sections if s[1]], console) if fit else sections
    return Group(*(part for _, parts in kept for part in parts))


def _fitting(
    sections: list[tuple[int, list[RenderableType]]], console: Console
) -> list[tuple[int, list[RenderableType]]]:
    """Those that there is room for, by how much they matter, in their order on the page."""
    left, kept = console.height - 1, set()
    for i in sorted(range(len(sections)), key=lambda i: sections[i][0]):
        lines = len(console.render_lines(Group(*sections[i][1]), pad=False))
        if lines <= left:
            kept.add(i)
            left -= lines
    return [s for i, s in enumerate(sections) if i in kept]


def _split(log: Log) -> tuple[list[Panel], list[tuple[Panel, float]]]:
    """Panels with something to see, and those whose value never changes."""
    drawn, still = [], []
    for panel in PANELS:
        values = log.series(panel.key)[1]
        if len(values) > 1 and len(set(map(str, values))) > 1:
            drawn.append(panel)
        elif values:
            still.append((panel, values[-1]))
    return drawn, still


def _header(log: Log, width: int, plain: bool) -> list[Text]:
    state, silent = log.state, time.time() - log.path.stat().st_mtime
    run = log.path.resolve().parent.parent.name
    title = Text.assemble((f"{run} / {log.name}", "bold"), "  ", (state, f"bold {_COLOUR[state]}"))
    if state == "stopped":
        title.append(f"  last heard {clock(silent)} ago; the same command goes on from its last checkpoint", "dim")
    lines = [title]
    if not log.steps:
        return lines
    spent = sum(s for s in log.series("seconds")[1] if math.isfinite(s))
    share = log.done / log.total if log.total else 1.0
    full = round(24 * min(share, 1.0))
    bar = Text.assemble((("#" if plain else "━") * full, "cyan"), (("." if plain else "━") * (24 - full), "dim"))
    of = f"/{log.total:,}" if log.total else ""
    facts = [f"{log.done:,}{of} steps", f"{clock(spent)} spent"]
    if state != "done" and log.total > log.done:
        facts.append(f"{clock((log.total - log.done) * log.step_s)} left")
    lines.append(Text("  ").join([bar, *map(Text, facts)]))
    end = log.steps[-1]
    seen = [f"{number(sum(log.series(key)[1]))} {key}" for key in ("tokens", "rows")]
    ranks = int(end.get("world", 1))
    lines.append(Text(", ".join([*seen, f"{ranks} rank{'s' * (ranks > 1)}"]), "dim"))
    skipped = [(int(end.get(f"skipped_{what}s", 0)), what) for what in ("row", "step")]
    notes = [f"{n:,} {what}{'s' * (n > 1)} skipped" for n, what in skipped if n]
    notes += [f"{log.unreadable} unreadable lines in the log"] if log.unreadable else []
    if notes:
        lines[-1].append(f"; {', '.join(notes)}", "red not dim")
    return lines


def _panels(log: Log, drawn: Sequence[Panel], columns: int, width: int, height: int, plain: bool) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    inner = width // columns - 2
    cells = [_panel(log, panel, inner, height, plain) for panel in drawn]
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        grid.add_row(*row, *[""] * (columns - len(row)))
    return grid


def _panel(log: Log, panel: Panel, width: int, height: int, plain: bool) -> Text:
    steps, values = log.series(panel.key)
    now = panel.show(values[-1])
    title = Text.assemble((panel.title, "bold"), " " * max(1, width - len(panel.title) - len(now)), (now, panel.style))
    lines = curve(steps, values, width, height, style=panel.style, label=panel.label, plain=plain)
    return Text("\n").join([title, *lines, Text()])


def _still(still: Sequence[tuple[Panel, float]], width: int) -> Iterator[Text]:
    if still:
        said = Text("unchanged   ", "bold") + Text("   ").join(
            Text.assemble((f"{panel.title} ", "dim"), panel.show(value)) for panel, value in still
        )
        yield _cut(said, width)
        yield Text()


def _by_name(log: Log, width: int, plain: bool) -> Iterator[RenderableType]:
    """Losses by objective and by source, and scores of evaluations: first, best, last."""
    rows: list[tuple[str, str, list[float], bool, str]] = []
    for kind, key, low, label in (
        ("loss", "losses", True, ""),
        ("loss of source", "source_losses", True, ""),
        ("accuracy of source", "source_accuracies", False, "%"),
    ):
        names = log.names(key)
        if key != "losses" or len(names) > 1:
            rows += [(kind, name, log.series(key, name)[1], low, label) for name in names]
    rows += [("score", n, [v for _, v in found], False, "%") for n, found in log.scores("evaluation").items()]
    if not rows:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("", "", "" if plain else "course", "first", "best", "last"):
        table.add_column(name, justify="right" if name in ("first", "best", "last") else "left", no_wrap=True)
    past = ""
    for kind, name, values, low, label in rows:
        show = percent if label else number
        good = [v for v in values if math.isfinite(v)] or [math.nan]
        best = min(good) if low else max(good)
        course = Text(spark(values, max(8, min(40, width - 70)), plain), "cyan" if low else "green")
        table.add_row(
            Text("" if kind == past else kind, "dim"), name, course, show(values[0]), show(best), show(values[-1])
        )
        past = kind
    yield table
    yield Text()


def _times(log: Log, width: int, plain: bool) -> Iterator[Text]:
    recent = [r["times"] for r in log.steps[-_RECENT:] if isinstance(r.get("times"), Mapping)]
    names = list(dict.fromkeys(n for times in recent for n in times))
    parts = {n: sum(as_float(t.get(n, 0.0)) for t in recent) / len(recent) for n in names}
    parts = {n: s for n, s in sorted(parts.items(), key=lambda p: p[0] == OTHER) if math.isfinite(s) and s > 0}
    lines = shares(parts, width, plain)
    if lines:
        of = f"mean of {len(recent)} steps" if len(recent) > 1 else "one step"
        yield Text.assemble(("time of a step", "bold"), (f"  {number(sum(parts.values()))} s, {of}", "dim"))
        yield from lines
        yield Text()


def _examples(log: Log, width: int, plain: bool, shown: int = 2, best: int = 3) -> Iterator[Text]:
    found = [e for e in log.events if e["event"] == EXAMPLES]
    queries = found[-1].get("queries") if found else None
    if not isinstance(queries, list) or not queries:
        return
    yield Text.assemble(("what queries find", "bold"), (f"  step {found[-1]['step']:,}", "dim"))
    for query in queries[:shown]:
        yield _cut(
            Text.assemble(("  ? ", "bold"), query.get("text") or query["query"], (f"  {query['source']}", "dim")), width
        )
        for hit in query["found"][:best]:
            sign = (("+" if plain else "✓") if hit["right"] else ("-" if plain else "✗")) + " "
            text = hit.get("text") or hit["document"]
            yield _cut(
                Text.assemble(f"    {as_float(hit['score']):6.3f} ", (sign, "green" if hit["right"] else "red"), text),
                width,
            )
    yield Text()


def _events(log: Log, width: int) -> Iterator[Text]:
    told = [e for e in log.events if e["event"] != EXAMPLES]
    if not told:
        return
    more = f"  the last {_EVENTS} of {len(told)}" if len(told) > _EVENTS else ""
    yield Text.assemble(("events", "bold"), (more, "dim"))
    for event in told[-_EVENTS:]:
        facts = ", ".join(f"{k} {_short(v)}" for k, v in event.items() if k not in ("step", "event"))
        style = "" if event["event"] in _CALM else "bold red"
        yield _cut(Text.assemble((f"{event['step']:>7,}  ", "dim"), (event["event"], style), f"  {facts}"), width)


def _cut(line: Text, width: int) -> Text:
    """One line, whatever the text held."""
    out = Text(" ").join(line.split("\n"))
    out.truncate(width, overflow="ellipsis")
    return out


def _short(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def line(log: Log) -> str:
    """A plain line, for a terminal that does not move."""
    if not log.steps:
        return f"{log.name}: no step is done yet"
    end, of = log.steps[-1], f"/{log.total:,}" if log.total else ""
    facts = [
        f"{p.title} {p.show(as_float(end[p.key]))}" for p in PANELS[:4] + PANELS[8:9] if end.get(p.key) is not None
    ]
    left = f"  {clock((log.total - log.done) * log.step_s)} left" if log.state == "running" and log.total else ""
    return f"{log.name} {log.done:,}{of}  {'  '.join(facts)}{left}  {log.state}"
