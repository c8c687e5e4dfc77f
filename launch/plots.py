"""Curves, sparklines and shares as text: eight dots a character where the terminal has them, stars where it has not.

A number that is not finite breaks the curve and is marked where it stood; it never sets the scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from rich.text import Text

AXIS = 9  # characters left of a curve
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bits of a braille character, by row and column
_BLOCKS = "▁▂▃▄▅▆▇█"
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red", "bright_black", "bright_cyan", "bright_green")


def number(value: float) -> str:
    """At most seven characters: 0.0213, 431, 12.3k, 1.5M, 2e-05."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-3:
        text = f"{value:.1e}" if 1e-10 < size < 1 else f"{value:.0e}"
        return text.replace("e-0", "e-").replace("e+", "e")
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (1e3 if name == 'k' else unit):.3g}{name}"
    return f"{value:.0f}" if size >= 1e3 else f"{value:.3g}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}%" if math.isfinite(value) else str(value)


def gigabytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if math.isfinite(value) else str(value)


def curve(
    steps: Sequence[float],
    values: Sequence[float],
    width: int,
    height: int,
    *,
    style: str = "",
    label: str = "",
    plain: bool = False,
) -> list[Text]:
    """`height` lines of `width` characters, with the scale's ends at the left. Of steps that share a column, the mean.

    label: how the scale's numbers are written: "" (number), "%", "B". The scale is logarithmic where all values are
    above 0 and span more than two decades, and says so. plain: stars instead of braille.
    """
    across = max(width - AXIS, 2)
    columns, means, broken = _binned(steps, values, 2 * across)
    good = means[np.isfinite(means)]
    if not len(good):
        return [Text("no finite value".center(width) if i == height // 2 else "", "red") for i in range(height)]
    log = bool(good.min() > 0 and good.max() / 100 > good.min())
    low, high = (float(f(good)) for f in (np.min, np.max))
    if log:
        scaled = (np.log(means) - math.log(low)) / (math.log(high) - math.log(low))
    else:
        scaled = (means / 2 - low / 2) / ((high / 2 - low / 2) or 1.0)  # halves: the span of huge values is infinite
    grid = _drawn(columns, scaled, (4 * height, 2 * across))
    rows = _characters(grid, plain)
    show = {"": number, "%": percent, "B": gigabytes}[label]
    marks = {c // 2 for c in broken}
    out = []
    for i, row in enumerate(rows):
        end = {0: show(high).removesuffix(" GiB"), height - 1: show(low).removesuffix(" GiB")}.get(i, "")
        end = "log" if log and height > 2 and i == height // 2 else end
        line = Text(f"{end[: AXIS - 2]:>{AXIS - 2}} ", "dim") + Text("|" if plain else "┤" if end else "│", "dim")
        for c, character in enumerate(row):
            marked = c in marks and i == 0  # at the top, where nothing finite of that step can be seen
            line.append("x" if marked and plain else "×" if marked else character, "bold red" if marked else style)
        out.append(line)
    return out


def _binned(steps: Sequence[float], values: Sequence[float], across: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Columns (ascending) with the mean of their finite values, NaN where all are broken; columns with a broken one."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    span = float(x.max() - x.min()) if len(x) else 0.0
    column = np.rint((x - x.min()) / span * (across - 1)).astype(int) if span else np.zeros(len(x), dtype=int)
    finite = np.isfinite(y)
    seen = np.unique(column)
    total = np.bincount(column, np.where(finite, y, 0.0), across)[seen]
    count = np.bincount(column, finite, across)[seen]
    means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return seen, means, sorted({int(c) for c in column[~finite]})


def _drawn(columns: np.ndarray, scaled: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Dots (rows from the top, columns): neighbouring columns joined by a line, but for a break. scaled: 0 to 1."""
    tall = size[0]
    grid = np.zeros(size, dtype=bool)
    at = np.where(np.isfinite(scaled), np.rint((1 - np.nan_to_num(scaled)) * (tall - 1)), -1).astype(int)
    for k, (c, y) in enumerate(zip(columns, at, strict=True)):
        if y < 0:
            continue
        grid[y, c] = True
        if k and at[k - 1] >= 0:
            before, last = int(columns[k - 1]), int(at[k - 1])
            for step in range(before + 1, int(c) + 1):
                now = last + round((y - last) * (step - before) / (c - before))
                past = last + round((y - last) * (step - 1 - before) / (c - before))
                # Half of a steep piece stands in either column, so that it is one line and not a wall.
                middle = (past + now) // 2
                upper, lower = (step - 1, step) if past < now else (step, step - 1)
                grid[min(past, now) : middle + 1, upper] = True
                grid[middle + 1 : max(past, now) + 1, lower] = True
                grid[now, step] = True
    return grid


def _characters(grid: np.ndarray, plain: bool) -> list[str]:
    cells = grid.reshape(grid.shape[0] // 4, 4, grid.shape[1] // 2, 2).transpose(0, 2, 1, 3)
    if plain:
        return ["".join("*" if cell.any() else " " for cell in row) for row in cells]
    codes = (cells * np.array(_DOTS)).sum((2, 3))
    return ["".join(chr(0x2800 + code) if code else " " for code in row) for row in codes]


def spark(values: Sequence[float], width: int, plain: bool = False) -> str:
    """One line of blocks; "×" where nothing was finite, nothing where `plain`."""
    if plain or not len(values):
        return ""
    _, means, _ = _binned(range(len(values)), values, min(width, len(values)))
    good = means[np.isfinite(means)]
    low, span = (float(good.min()), float(good.max() - good.min())) if len(good) else (0.0, 0.0)
    level = np.nan_to_num((means - low) / (span or 1.0))
    return "".join(
        _BLOCKS[min(int(v * len(_BLOCKS)), len(_BLOCKS) - 1)] if math.isfinite(m) else "×"
        for v, m in zip(level, means, strict=True)
    )


def shares(parts: Mapping[str, float], width: int, plain: bool = False) -> list[Text]:
    """A bar of `width` characters cut by the parts' shares, and below it what is what, as many lines as it takes."""
    total = sum(parts.values())
    if total <= 0:
        return []
    bar, lines, done, sum_ = Text(), [Text()], 0, 0.0
    for i, (name, part) in enumerate(parts.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        sum_ += part
        end = round(width * sum_ / total)
        bar.append(("#=+-:o*%@"[i % 9] if plain else "█") * (end - done), colour)
        done = end
        sign = "#=+-:o*%@"[i % 9] if plain else "■"
        entry = Text.assemble((sign, colour), f" {name} ", (f"{100 * part / total:.0f}%", "bold"))
        entry.append(f" {1e3 * part:,.0f} ms" if part >= 0.01 else f" {1e3 * part:.1f} ms", "dim")
        if lines[-1].cell_len + entry.cell_len + 3 > width:
            lines.append(Text())
        lines[-1].append_text(Text("   " if lines[-1].cell_len else "") + entry)
    return [bar, *lines]
