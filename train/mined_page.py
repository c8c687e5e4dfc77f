"""The HTML page of a mining run: how cosines lie, what each rule dropped, and some rows with all that was done to them.

It is for one question: are these negatives wrong answers? Rows are drawn by the step's seed, not chosen to please.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.counter import choose
from ..eval.thumbnails import View as Thumbnail
from ..eval.thumbnails import views
from .mining import BINS, Choice, Judgement
from .rules import LEFT, SHORT, Above, AnyRule, Below, Floats, View, bound, is_positive_rule, is_row_rule

if TYPE_CHECKING:
    from .mine import Mine

SHOWN = 12  # rows
BEFORE, CHOSEN = 5, 6  # dropped candidates and negatives that a row shows, the hardest ones
_BARS = 72  # of the histogram


@dataclass(frozen=True)
class Card:
    """One document of a row. state: right, negative, dropped, or gone (a positive that a rule dropped); why: in words;
    rank 0: it has none."""

    views: list[Thumbnail]
    state: str
    cosine: float
    rank: int = 0
    why: str = ""
    rerank: float | None = None


@dataclass(frozen=True)
class Bound:
    """A line on a row's scale of cosines, or on the histogram."""

    name: str
    cosine: float


@dataclass(frozen=True)
class Row:
    """One row on the page. ticks: (cosine, state) of all its documents; dropped: the rule that dropped it whole."""

    views: list[Thumbnail]
    instruction: str
    key: str
    cards: list[Card]
    ticks: list[tuple[float, str]]
    bounds: list[Bound]
    left: int
    dropped: str

    @property
    def pictured(self) -> bool:
        return any(v.picture for c in self.cards for v in c.views)


@dataclass(frozen=True)
class Bars:
    """Three histograms on one scale: shares of their own totals, over `low` to `high`."""

    low: float
    high: float
    groups: dict[str, list[float]]

    def x(self, cosine: float) -> float:
        """0 to 1."""
        return min(max((cosine - self.low) / (self.high - self.low), 0.0), 1.0)


def write(
    path: Path,
    step: Mine,
    choice: Choice,
    facts: Mapping[str, Any],
    total: Mapping[str, Sequence[int]],
    holding: Callable[[int], Judgement],
) -> None:
    """Renders the page to `path`, aside and renamed."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("omni2vec", "train"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cosine": cosine, "share": share, "area": area, "rule": short}
    bars = histograms(total)
    page = environment.get_template("mined.html.j2").render(
        facts=facts,
        name=step.name,
        funnel=funnel(step.rules, facts),
        behind=facts["candidates_seen"] - facts["candidates_left"] - sum(total["candidates_dropped"]),
        bars=bars,
        lines=[Bound(short(repr(r)), v) for r in step.rules if (v := fixed(r)) is not None],
        rows=shown(step, choice, holding),
    )
    aside = path.with_name(f".{path.name}")
    aside.write_text(page, encoding="utf-8")
    aside.replace(path)


def cosine(value: float) -> str:
    return f"{value:.3f}".replace("-0.000", "0.000").replace("-", "\N{MINUS SIGN}")


def share(value: float) -> str:
    return f"{100 * min(max(value, 0.0), 1.0):.2f}%"


def short(rule: str) -> str:
    """A rule as one writes it: PercentOfPositive(0.95). A judge is named only."""
    name, _, inside = rule.partition("(")
    if "judge=" in inside:
        found = re.search(r"judge=(\w+)", inside)
        margin = re.search(r"beta=([^,)]+)", inside)
        return f"{name}({found[1] if found else 'judge'}, {margin[1] if margin else ''})"
    return f"{name}({', '.join(part.partition('=')[2] for part in inside.rstrip(')').split(', ') if part)})"


def fixed(rule: AnyRule) -> float | None:
    """The one bound of a rule that has the same for every row."""
    return rule.most if isinstance(rule, Below) else rule.least if isinstance(rule, Above) else None


def funnel(rules: Sequence[AnyRule], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each rule with what came to it and what it dropped; candidates of dropped rows go with their row."""
    here = {"candidates": facts["candidates_seen"], "rows": facts["rows"]}
    found = []
    for rule, told in zip(rules, facts["rules"], strict=True):
        of = told["of"]
        about = str(getattr(rule, "told", ""))
        found.append({**told, "came": here[of], "about": about})
        here[of] -= told["dropped"]
    return found


def histograms(total: Mapping[str, Sequence[int]]) -> Bars:
    groups = {name: np.array(total[f"of_{name}"], np.float64) for name in ("positives", "kept", "dropped")}
    there = np.flatnonzero(sum(groups.values()))
    first, last = (int(there[0]), int(there[-1]) + 1) if len(there) else (0, BINS)
    width = max(-(-(last - first) // _BARS), 1)
    first, last = max(first - width, 0), min(last + width, BINS)
    edges = range(first, last, width)
    shares = {
        name: [float(values[e : e + width].sum() / max(values.sum(), 1)) for e in edges]
        for name, values in groups.items()
    }
    most = max((max(s) for s in shares.values()), default=0.0) or 1.0
    scaled = {name: [v / most for v in s] for name, s in shares.items()}
    return Bars(first / BINS * 2 - 1, (first + len(edges) * width) / BINS * 2 - 1, scaled)


def area(values: Sequence[float], width: float, height: float) -> str:
    """An SVG path of steps under which a histogram lies."""
    one = width / max(len(values), 1)
    steps = " ".join(f"V{height * (1 - v):.1f}H{one * (i + 1):.1f}" for i, v in enumerate(values))
    return f"M0 {height:.1f} {steps} V{height:.1f}Z"


def shown(step: Mine, choice: Choice, holding: Callable[[int], Judgement]) -> list[Row]:
    """Some rows, drawn. holding: the window that a row is in."""
    rows = choose(len(choice.miner.pool.rows), SHOWN, step.seed, "mined page")
    windows = ((row, holding(row)) for row in rows)
    return [_row(step, choice, judged, row - judged.start) for row, judged in windows]


def _row(step: Mine, choice: Choice, judged: Judgement, i: int) -> Row:
    pool, number = choice.miner.pool, judged.start + i
    example = pool.rows[number]
    own = _own(choice, judged, i)
    none = np.zeros(0, np.float32)
    documents, cosines, rerank = choice.chosen(judged, i)
    if judged.row[i] != LEFT:
        documents, cosines, rerank = documents[:0], none, none
    place = {int(d): k for k, d in enumerate(judged.index[i].tolist(), 1) if d >= 0}
    where = example.key
    cards = [
        Card(
            views(item, where),
            "right" if judged.stays[p] else "gone",
            float(judged.positive[p]),
            rerank=_number(judged.right[p]),
        )
        for item, p in zip(example.positives, range(own.start, own.stop), strict=True)
    ]
    negatives = [
        Card(views(pool.item(int(d))[1], where), "negative", float(c), place.get(int(d), 0), rerank=_number(r))
        for d, c, r in list(zip(documents, cosines, rerank, strict=True))[:CHOSEN]
    ]
    out = [k for k in range(judged.by.shape[1]) if judged.by[i, k] not in (LEFT, SHORT)]
    dropped = [
        Card(
            views(pool.item(int(judged.index[i, k]))[1], where),
            "dropped",
            float(judged.score[i, k]),
            k + 1,
            short(repr(step.rules[int(judged.by[i, k])])),
            _number(judged.rerank[i, k]),
        )
        for k in out[:BEFORE]
    ]
    order = sorted([*negatives, *dropped], key=lambda c: (c.rank or step.among + 1, -c.cosine))
    used = {int(d) for d in documents}
    ticks = [(float(judged.positive[p]), "right" if judged.stays[p] else "gone") for p in range(own.start, own.stop)]
    for k in np.flatnonzero(judged.by[i] != SHORT).tolist():
        state = "dropped" if judged.by[i, k] != LEFT else "negative" if int(judged.index[i, k]) in used else "left"
        ticks.append((float(judged.score[i, k]), state))
    return Row(
        views(example.query, where, 320),
        example.instruction if step.instruction is None else step.instruction,
        example.key,
        [*cards, *order],
        ticks,
        _bounds(step.rules, judged, i, own),
        int((judged.by[i] == LEFT).sum()),
        short(repr(step.rules[int(judged.row[i])])) if judged.row[i] != LEFT else "",
    )


def _own(choice: Choice, judged: Judgement, i: int) -> slice:
    """Where the row's positives stand among the window's."""
    ends, row = choice.miner.pool.positive_end, judged.start + i
    begin = int(ends[judged.start - 1]) if judged.start else 0
    return slice((int(ends[row - 1]) if row else 0) - begin, int(ends[row]) - begin)


def _bounds(rules: Sequence[AnyRule], judged: Judgement, i: int, own: slice) -> list[Bound]:
    """Of this row: what its candidates must stay below. A rule before PositiveAbove sees all positives."""
    score: Floats = judged.score[i : i + 1]
    positive: Floats = judged.positive[None, own]
    seen = View(score, positive, ~np.isnan(score))
    found = []
    for rule in rules:
        if is_positive_rule(rule):
            left = np.where(judged.stays[None, own], positive, np.float32(np.nan))
            seen = replace(seen, positive=left)
        elif not is_row_rule(rule) and (most := bound(rule, seen)) is not None and not np.isnan(most[0, 0]):
            found.append(Bound(short(repr(rule)), float(most[0, 0])))
    return found


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
