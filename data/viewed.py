"""A source of rows with named fields, seen in one pattern: plain rows, which can be scored, embedded and mined."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from .opened import picked
from .patterns import Pattern, absent, formed, lacking, possible
from .types import DataError, Example, Rows, Source, Where

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Viewed:
    """Every row of `source` that can form `pattern`, as a query with its positive; keys end in "#" and the form, as in
    training. Rows that cannot are left out, and the log says how many. Nothing is drawn but one positive, always the
    same: no field is dropped. `known` has right answers only, not all that training keeps from being negatives.
    Opening reads every row once, unless the index tells that all have the fields. Raises DataError where none can."""

    source: Source
    pattern: Pattern
    name: str = ""

    def __post_init__(self) -> None:
        if self.pattern.drop:
            raise ValueError(
                f"view of {self.source.name!r}: drop={self.pattern.drop}; a view drops nothing, leave it 0"
            )
        if not self.name:
            object.__setattr__(self, "name", f"{self.source.name}#{self.pattern.slug}")

    def open(self, where: Where) -> Rows:
        rows, patterns = self.source.open(where), (replace(self.pattern, weight=1.0),)
        without = absent(getattr(rows, "fields", None), patterns, self.source.name)
        sure = without == 0 and not any(f.kind for f in self.pattern.needed)
        able = [i for i in range(len(rows)) if sure or possible(rows[i], patterns)]
        if not able:
            why = lacking(rows[0], patterns, "correct the form, or the rows")
            raise DataError(f"source {self.name!r}: none of {len(rows):,} rows fits. {why}")
        if len(able) < len(rows):
            left = f"{len(rows) - len(able):,} of {len(rows):,}"
            _tell(f"source {self.name!r}: {left} rows lack a field and are left out")
        return picked(self.name, rows, able, repr(self.pattern), self._seen)

    def _seen(self, example: Example) -> Example:
        seen = formed(example, (self.pattern,), 0, 0, 0)
        right = [item.id for item in example.positives] if self.pattern.to_target else []
        return replace(seen, known=tuple(dict.fromkeys([*right, *example.known])))


_told: set[str] = set()


def _tell(line: str) -> None:
    """Once in a process, which may open a source for every step that reads it."""
    if line not in _told:
        _told.add(line)
        log.warning(line)
