"""The Judged step: a reranker's score of every candidate of a source's rows, in a side-car (data/scored.py).

A judge is a frozen value in a recipe (CrossEncoder, YesNo, Endpoint) that loads what scores pairs. Rows are judged
window by window; a window is a file, so that a killed run goes on, and ranks take windows in turn.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.relation import id_pair
from ..data.scored import content_of, write
from ..data.types import DataError, Example, Item, Rows, Source, Where
from ..model.encode import bar
from .gather import Group
from .guard import Restart, Signals
from .leave import everyone, together

WINDOW = 256  # rows a file
FOLDER = "windows"  # in the step's folder, while it is made
_COUNTED = 256  # rows whose candidates are counted for a plan


@dataclass(frozen=True)
class Pair:
    """A query's Item and a candidate's. key: of the row, for errors."""

    query: Item
    candidate: Item
    key: str = ""


class Judge(Protocol):
    """What scores pairs: higher is better. Scores of one query are compared with each other only."""

    def scores(self, pairs: Sequence[Pair], instruction: str) -> NDArray[np.float32]:
        """(n,) finite, of pairs whose rows have one instruction (it may be empty)."""
        ...

    @property
    def digest(self) -> str:
        """Names what it is: equal digests, equal scores, as far as the judge can tell."""
        ...

    @property
    def told(self) -> Mapping[str, int]:
        """Counts that a report should have so far, such as texts that were cut."""
        ...


class Judging(Protocol):
    """A judge as a recipe holds it."""

    def open(self, where: Where) -> Judge: ...

    def outside(self, where: Where) -> Mapping[str, str]:
        """The digest of a model that no step made, by what it is called; without this method a recipe would take a
        judge for a source, which opens too."""
        ...


@dataclass(frozen=True)
class Judged:
    """Every positive and negative of `source`, scored by `judge` against its query. `Scored(source, by=this)` serves
    the rows with these scores under a name, for SoftLabel or for a miner's filter.

    instruction: shown to the judge in place of the rows' own. Leaves scores.safetensors and report.json, with how the
    scores of positives and negatives lie.
    """

    resumes = True  # after a kill, `make` finds the windows so far
    parallel = True  # every rank judges its windows
    name: str
    source: Source
    judge: Judging
    instruction: str | None = None

    def make(self, out: Path, where: Where) -> None:
        """Every rank of a group judges; rank 0 writes."""
        group = Group.current()
        rows = self.source.open(where)
        folder = out / FOLDER
        folder.mkdir(exist_ok=True)
        judge = together(group, lambda: self.judge.open(where))
        starts = list(range(0, len(rows), WINDOW))
        with Signals() as signals, bar(f"judging {rows.name}" if group.rank == 0 else "", len(rows)) as advance:
            for turn in range(0, len(starts), group.size):
                _pause(group, signals, folder)
                mine = starts[turn + group.rank : turn + group.rank + 1]
                together(group, partial(self._windows, judge, rows, mine, folder))
                advance(min(group.size * WINDOW, len(rows) - turn * WINDOW))
        cut = [json.loads(str(x)) for x in everyone(group, json.dumps(dict(judge.told)))]
        told = {k: sum(c.get(k, 0) for c in cut) for k in sorted({k for c in cut for k in c})}
        together(group, lambda: self._write(out, rows, judge, starts, told) if group.rank == 0 else None)

    def plan(self, where: Where, ranks: int = 1) -> Mapping[str, str]:
        """What it will take, for `omni2vec plan`."""
        rows = self.source.open(where)
        some = [_counted(rows[i]) for i in range(0, len(rows), max(1, len(rows) // _COUNTED))]
        pairs = round(sum(some) / max(len(some), 1) * len(rows))
        about = "" if len(some) == len(rows) else "about "
        return {"rows": f"{len(rows):,}", "pairs": f"{about}{pairs:,}, each judged once"}

    def _windows(self, judge: Judge, rows: Rows, starts: Sequence[int], folder: Path) -> None:
        for start in starts:
            self._window(judge, rows, start, folder)

    def _window(self, judge: Judge, rows: Rows, start: int, folder: Path) -> None:
        """Judges the rows from `start` on, unless a file has them by this judge."""
        from safetensors.numpy import save_file

        path = _path(folder, start)
        if _told(path) == judge.digest:
            return
        examples = [rows[i] for i in range(start, min(start + WINDOW, len(rows)))]
        arrays = {
            "key": np.array([id_pair(e.key) for e in examples], np.int64).reshape(-1, 2),
            "content": np.array([content_of(e) for e in examples], np.int64).reshape(-1, 2),
            "count": np.array([_counted(e) for e in examples], np.int64),
            "positives": np.array([len(e.positives) for e in examples], np.int64),
            "score": self._scores(judge, examples),
        }
        aside = path.with_name(f".{path.name}.part")
        save_file(arrays, aside, metadata={"judge": judge.digest})
        aside.replace(path)

    def _scores(self, judge: Judge, examples: Sequence[Example]) -> NDArray[np.float32]:
        """Of every candidate, row by row. Pairs of one instruction go to the judge together."""
        places: dict[str, list[int]] = {}
        pairs: list[Pair] = []
        for e in examples:
            told = e.instruction if self.instruction is None else self.instruction
            for item in (*e.positives, *e.negatives):
                places.setdefault(told, []).append(len(pairs))
                pairs.append(Pair(e.query, item, e.key))
        out = np.zeros(len(pairs), np.float32)
        for instruction, mine in places.items():
            found = np.asarray(judge.scores([pairs[i] for i in mine], instruction), np.float32)
            if found.shape != (len(mine),):
                raise DataError(f"step {self.name!r}: the judge gave {found.shape} scores for {len(mine)} pairs")
            if bad := np.flatnonzero(~np.isfinite(found)).tolist():
                key = pairs[mine[bad[0]]].key
                raise DataError(f"{key}: the judge gave {found[bad[0]]} as a score; expected a finite number")
            out[mine] = found
        return out

    def _write(self, out: Path, rows: Rows, judge: Judge, starts: Sequence[int], told: Mapping[str, int]) -> None:
        from safetensors.numpy import load_file

        windows = [load_file(_path(out / FOLDER, s)) for s in starts]
        if not windows:
            raise DataError(f"step {self.name!r}: source {rows.name!r} has no rows")
        arrays = {name: np.concatenate([w[name] for w in windows]) for name in windows[0]}
        about = {"source": rows.name, "rows": rows.digest, "judge": judge.digest}
        facts = {**about, **told, **report(arrays["count"], arrays["positives"], arrays["score"])}
        aside = out / ".report.json.part"
        aside.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(out / "report.json")
        write(out, arrays["key"], arrays["content"], arrays["count"], arrays["score"], about)
        shutil.rmtree(out / FOLDER)


def report(count: NDArray[np.int64], positives: NDArray[np.int64], score: NDArray[np.float32]) -> dict[str, Any]:
    """How the scores lie. above_best_positive: negatives that the judge puts above every positive of their row, the
    likely false ones; spread: the mean over rows of the standard deviation of a row's scores, which says what
    temperature makes a teacher soft."""
    ends = np.cumsum(count)
    right, wrong, spread, above = [], [], [], 0
    for start, end, k in zip(ends - count, ends, positives, strict=True):
        own = score[start:end].astype(np.float64)
        right.append(own[:k])
        wrong.append(own[k:])
        above += int((own[k:] > own[:k].max()).sum()) if k else 0
        if len(own) > 1:
            spread.append(float(own.std()))
    out: dict[str, Any] = {"pairs": len(score), "rows_without_candidates": int((count == 0).sum())}
    for name, values in (("positives", np.concatenate(right)), ("negatives", np.concatenate(wrong))):
        cuts = np.quantile(values, (0.1, 0.5, 0.9)) if len(values) else ()
        out[name] = {"count": len(values), "p10_p50_p90": [round(float(c), 6) for c in cuts]}
    out["above_best_positive"] = above
    out["spread"] = round(float(np.mean(spread)), 6) if spread else 0.0
    return out


def _counted(example: Example) -> int:
    return len(example.positives) + len(example.negatives)


def _path(folder: Path, start: int) -> Path:
    return folder / f"{start:012d}.safetensors"


def _told(path: Path) -> str | None:
    """The digest of the judge whose scores a window holds; None where there is no whole one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            said = (file.metadata() or {}).get("judge")
            return None if said is None else str(said)
    except (OSError, SafetensorError):
        return None


def _pause(group: Group, signals: Signals, folder: Path) -> None:
    """Raises Restart on all ranks where one of them was asked to end. Collective."""
    asked = [str(a) for a in everyone(group, signals.asked) if a]
    if asked:
        raise Restart(f"asked to end by {asked[0]}; the scores so far are kept in {folder}")
