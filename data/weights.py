"""Weights of sources that were measured, not chosen: what the Balance step (train/balance.py) leaves for a mixture.

weights.json: {"weights": {source: share}, ...}, shares that sum to 1, beside what they were computed from.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from .types import DataError

FILE = "weights.json"


def weights_of(folder: Path) -> dict[str, float]:
    """Each source's share, by name. Raises DataError where the file is missing or its numbers are no shares."""
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: no {FILE}; name a Balance step or the folder that one has made") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); make it again") from error
    weights = found.get("weights") if isinstance(found, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise DataError(f'{path}: no weights in it; expected {{"weights": {{"source": 0.5, …}}}}')
    for name, weight in weights.items():
        sound = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not sound or not math.isfinite(weight) or weight < 0:
            raise DataError(f"{path}: source {name!r} has weight {weight!r}; expected a number of 0 or more")
    total = math.fsum(weights.values())
    if abs(total - 1) > 1e-6:
        raise DataError(f"{path}: the weights sum to {total:.6g}, expected 1; make it again")
    return {name: float(weight) for name, weight in weights.items()}
