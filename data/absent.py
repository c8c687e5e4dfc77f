"""Rows that lack what is asked of them: how many of a source can form none of its patterns, as far as the index of its
shards tells; what to do with rows of fields where a query with its answer is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .types import DataError, Example

if TYPE_CHECKING:
    from .patterns import Pattern

_SHOWN = 6  # combinations of fields that an error lists


def absent(fields: Mapping[str, int] | None, patterns: Sequence[Pattern], source: str) -> int | None:
    """How many rows can form none, from the counts of rows by combination of fields ("image+title": 900); None where
    these are not known. Raises DataError for a pattern that no row can form. A combination tells nothing of kinds, so
    `query.image` counts as there wherever `query` is: a row may still lack it when it is read."""
    if not fields or not patterns:
        return None
    rows = [(set(names.split("+")), count) for names, count in fields.items()]
    used = [p for p in patterns if p.weight > 0]

    def forms(has: set[str], pattern: Pattern) -> bool:
        return {f.whole for f in pattern.needed} <= has

    for pattern in used:
        if not any(forms(has, pattern) for has, _ in rows):
            most = sorted(fields.items(), key=lambda x: (-x[1], x[0]))
            listed = ", ".join(f"{names} ({count:,} row{'s' if count > 1 else ''})" for names, count in most[:_SHOWN])
            more = f" and {len(most) - _SHOWN} more combinations" if len(most) > _SHOWN else ""
            raise DataError(
                f"source {source!r}: no row can form {pattern.form!r}; its fields come as {listed}{more}: "
                "correct the form, or leave the pattern out"
            )
    return sum(count for has, count in rows if not any(forms(has, p) for p in used))


def advice(example: Example, use: str) -> str:
    """What to do with a row without a positive, where a query with its answer is wanted. use: "score it" or the like.
    Of a row of fields, the form that it names may be another, but it is one of the row's own fields."""
    names = [*(["query"] if example.query.parts else []), *sorted(example.fields, key=lambda n: (n != "image", n))]
    if len(names) < 2:
        return "give it one, or leave the row out"
    view = f'Viewed(source, Pattern("{names[0]} -> {names[1]}"))'
    return f"a row of fields ({', '.join(sorted(example.fields))}): {use} by {view} in a recipe"
