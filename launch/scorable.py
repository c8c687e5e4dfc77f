"""Which of the folders that `omni2vec eval` is given can be scored as they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.types import DataError, Source, Step
from .score import sources

log = logging.getLogger(__name__)


def scorable(paths: Sequence[str]) -> list[str]:
    """The sources among `paths`, each by its own path, without those whose rows are all of fields: what is query and
    what is target there, only a recipe says. A warning names what is left out. Where all are of fields, all stay: the
    error of their first row says what to do. Paths that cannot be read stay as they are, for the scoring to refuse."""
    try:
        found = {_path(source): source for source in sources(paths)}
    except DataError:
        return list(paths)
    if len(found) < 2:
        return list(paths)
    left = [path for path, source in found.items() if _of_fields(source)]
    kept = [path for path in found if path not in left]
    # A folder brings those below it, so that one of these cannot be left out alone.
    if not left or not kept or any(Path(k) in Path(path).parents for k in kept for path in left):
        return list(paths)
    log.warning(
        f"left out, rows of fields: {', '.join(left)}; score them by "
        'Evaluate(data=(Viewed(Shards("FOLDER"), Pattern("image -> title")),)) in a recipe'
    )
    return kept


def _path(source: Source) -> str:
    from ..data.sources import Table

    return source.path if isinstance(source, Table) else str(source.at)  # type: ignore[attr-defined]


def _of_fields(source: Source) -> bool:
    """Whether the index counts no row with a target. One that counts no fields, or cannot be read, is for the scoring
    itself to judge."""
    try:
        counted: Mapping[str, int] = getattr(source.open(_no_steps), "fields", None) or {}
    except (DataError, OSError):
        return False
    return bool(counted) and not any("target" in names.split("+") for names in counted)


def _no_steps(step: Step) -> Path:
    raise DataError(f"step '{step.name}' has no folder here.")
