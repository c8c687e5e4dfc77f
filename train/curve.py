"""The page of a learned position: the loss at every point, and the coordinates there, as two drawings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Protocol

_WIDE, _HIGH, _EDGE = 720, 240, 48
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#57606a", "#0a7ea4")
_STYLE = "body{font:14px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto}text{font:11px system-ui,sans-serif}"


class Point(Protocol):
    @property
    def position(self) -> tuple[float, ...]: ...

    @property
    def loss(self) -> float: ...


def draw(file: Path, models: Sequence[str], points: Sequence[Point], best: Point) -> None:
    """models (k); points: the k models, the base, then what was tried, in order."""
    k = len(models)
    ends, base, tried = points[:k], points[k], points[k + 1 :]
    losses = [("tried", [p.loss for p in tried])]
    level = [(name, p.loss) for name, p in zip([*models, "base"], [*ends, base], strict=True)]
    turns = [(name, [p.position[i] for p in tried]) for i, name in enumerate(models)]
    rows = "".join(f"<tr><td>{escape(n)}</td><td>{v:.6f}</td></tr>" for n, v in level)
    where = ", ".join(f"{escape(n)} {a:.4f}" for n, a in zip(models, best.position, strict=True))
    html = (
        f'<!doctype html><meta charset="utf-8"><title>Self positioning</title><style>{_STYLE}</style>'
        f"<h1>Self positioning</h1><p>Best loss on the sample: {best.loss:.6f}, at {where}.</p>"
        f"<table><tr><th>model</th><th>loss</th></tr>{rows}</table>"
        f"<h2>Loss</h2>{_chart(losses, level)}<h2>Coordinates</h2>{_chart(turns, [])}\n"
    )
    aside = file.with_name(f".{file.name}.part")
    aside.write_text(html, encoding="utf-8")
    aside.replace(file)


def _chart(lines: Sequence[tuple[str, Sequence[float]]], levels: Sequence[tuple[str, float]]) -> str:
    """Curves over the steps, and dashed lines at levels; what is not finite is left out."""
    numbers = [v for _, vs in lines for v in vs if math.isfinite(v)] + [v for _, v in levels if math.isfinite(v)]
    if not numbers:
        return "<p>Nothing to draw.</p>"
    low, high = min(numbers), max(numbers)
    tall = (high - low) or 1.0
    longest = max(max((len(vs) for _, vs in lines), default=1), 2)

    def y(v: float) -> float:
        return _HIGH - 20 - (v - low) / tall * (_HIGH - 40)

    def x(i: int) -> float:
        return _EDGE + i / (longest - 1) * (_WIDE - _EDGE - 110)

    drawn = [f'<text x="2" y="{y(v) + 4:.1f}">{v:.4g}</text>' for v in (low, high)]
    for i, (name, v) in enumerate(levels):
        if math.isfinite(v):
            colour = _COLOURS[i % len(_COLOURS)]
            drawn.append(
                f'<line x1="{_EDGE}" x2="{_WIDE - 110}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="{colour}" '
                f'stroke-dasharray="4 4"/>{_label(name, y(v), colour)}'
            )
    for i, (name, vs) in enumerate(lines):
        colour = "#24292f" if levels else _COLOURS[i % len(_COLOURS)]
        at = [(x(j), y(v)) for j, v in enumerate(vs) if math.isfinite(v)]
        if at:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
            drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            drawn.append(_label(name, at[-1][1], colour))
    return f'<svg viewBox="0 0 {_WIDE} {_HIGH}" width="100%">{"".join(drawn)}</svg>'


def _label(name: str, y: float, colour: str) -> str:
    return f'<text x="{_WIDE - 104}" y="{y + 4:.1f}" fill="{colour}">{escape(name[-18:])}</text>'
