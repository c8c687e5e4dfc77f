"""One making of the Mine step: vectors, search, rules and shards, window by window, each rank its turn.

What a window gave is a file in the step's folder until the step is done, so that a kill costs the windows in work.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data import cataloguing
from ..data.clusters import grouped
from ..data.mix import folder_of
from ..data.referred import Roots
from ..data.shards import write_shard
from ..data.types import DataError, Rows, Where, digest
from ..model.encode import bar
from . import mined_report
from .gather import Group
from .guard import Signals
from .judge import Judge
from .leave import everyone, together
from .mining import WINDOW, Choice, Documents, Judgement, Miner, counted
from .pool import Pool
from .rules import LEFT
from .samples import Aggregated
from .searching import searched
from .teacher import Teacher
from .words import Words

if TYPE_CHECKING:
    from .mine import Mine

log = logging.getLogger(__name__)

RULED = "rules"  # folder of what the rules made of each window, while the step is made


@dataclass(frozen=True)
class Run:
    """One making of the step."""

    step: Mine
    out: Path
    group: Group
    teacher: Teacher
    rows: Rows
    others: Rows | None
    pool: Pool
    reranker: Judge | None

    @cached_property
    def inputs(self) -> str:
        """Names what the windows were made of: those of other inputs are made again."""
        s = self.step
        told = (
            s.rules,
            s.count,
            s.among,
            s.how,
            s.fused,
            s.sample,
            s.score,
            s.keep,
            s.labels,
            s.empty,
            s.media,
            s.seed,
        )
        return digest(self.teacher.digest, self.pool.digest, repr(told), self.reranker.digest if self.reranker else "")

    @cached_property
    def roots(self) -> Roots:
        return Roots.of([r for r in (self.rows, self.others) if r is not None], self.out, self.out.parent)

    @property
    def starts(self) -> range:
        return range(0, len(self.rows), WINDOW)

    def end(self, start: int) -> int:
        return min(start + WINDOW, len(self.rows))

    def miner(self, signals: Signals) -> Miner:
        """Embeds and searches. Collective."""
        step, pool = self.step, self.pool
        told, count = pool.told, pool.candidates
        query = self.teacher.matrix("query", len(self.rows), lambda i: told.prompt(self.rows[i], "query"))
        docs = self.teacher.matrix("document", count, pool.prompt)
        rest = len(pool) - count
        more = self.teacher.matrix("positive", rest, lambda i: pool.prompt(count + i)) if rest else None
        among = min(step.among, count)
        with bar("searching" if self.group.rank == 0 else "", len(self.rows)) as advance:
            found = searched(
                self.out,
                query,
                docs,
                among,
                step.how,
                self.group,
                signals,
                pool.hidden,
                advance,
                about=pool.digest,
            )
        words = Words.of(pool) if step.fused is not None else None
        (self.out / RULED).mkdir(exist_ok=True)
        return Miner(pool, query, Documents(docs, more), found, step.rules, among, step.fused, words, self.reranker)

    def in_turn(self, label: str, kind: str, work: Callable[[int], dict[str, list[int]]]) -> None:
        """work(start) of every window that is not there yet, ranks in turn, its counts kept. Collective."""
        left = [s for s in self.starts if self._counts(s, kind) is None] if self.group.rank == 0 else None
        left = everyone(self.group, left)[0]  # type: ignore[assignment]
        assert isinstance(left, list)
        with bar(label if self.group.rank == 0 else "", len(self.rows)) as advance:
            advance(len(self.rows) - sum(self.end(s) - s for s in left))
            for begin in range(0, len(left), self.group.size):
                self.teacher.pause()
                turn = left[begin : begin + self.group.size]
                mine = turn[self.group.rank : self.group.rank + 1]
                together(self.group, partial(self._keep, mine, kind, work))
                advance(sum(self.end(s) - s for s in turn))

    def _keep(self, starts: Sequence[int], kind: str, work: Callable[[int], dict[str, list[int]]]) -> None:
        for start in starts:
            told = {"inputs": self.inputs, "counts": work(start)}
            path = self._path(start, kind, "json")
            aside = path.with_name(f".{path.name}.part")
            aside.write_text(json.dumps(told))
            aside.replace(path)

    def _path(self, start: int, kind: str, ending: str) -> Path:
        return self.out / RULED / f"{start:012d}.{kind}.{ending}"

    def _counts(self, start: int, kind: str) -> dict[str, list[int]] | None:
        try:
            told = json.loads(self._path(start, kind, "json").read_text())
        except (OSError, ValueError):
            return None
        found: dict[str, list[int]] = told["counts"]
        return found if told.get("inputs") == self.inputs else None

    def _totals(self, kind: str) -> dict[str, list[int]]:
        total: dict[str, list[int]] = {}
        for start in self.starts:
            for name, values in (self._counts(start, kind) or {}).items():
                before = total.get(name, [0] * len(values))
                total[name] = [a + b for a, b in zip(before, values, strict=True)]
        return total

    def judged(self, start: int) -> Judgement:
        return Judgement.load(self._path(start, "judged", "safetensors"), start)

    def holding(self, row: int) -> Judgement:
        """The window that a row is in."""
        return self.judged(row - row % WINDOW)

    def judge(self, miner: Miner, start: int) -> dict[str, list[int]]:
        before = self._told()
        judged = miner.judge(start, self.end(start))
        judged.save(self._path(start, "judged", "safetensors"), {"inputs": self.inputs})
        told = {f"judge: {k}": [n - before.get(k, 0)] for k, n in self._told().items()}
        return counted(judged, self.step.rules) | told

    def _told(self) -> dict[str, int]:
        """What the judge counts, such as texts that it cut."""
        return dict(self.reranker.told) if self.reranker else {}

    def checked(self) -> None:
        """Raises DataError where the rules left nothing, or where a row must not be without a negative."""
        step, total = self.step, self._totals("judged")
        told = mined_report.steps(step.rules, total)
        if sum(total["rows_dropped"]) == total["rows"][0]:
            raise DataError(f"step {step.name!r}: no row is left. {told}; loosen the rule that dropped them")
        if not total["candidates_left"][0]:
            spread = mined_report.spread(total)
            raise DataError(
                f"step {step.name!r}: no candidate is left. {told}. {spread}; loosen the rule that dropped them"
            )
        none = total["rows_with_none_left"][0]
        if step.empty == "raise" and none:
            first = next(k for s in self.starts for k in self._empty(s))
            raise DataError(
                f"step {step.name!r}: {none:,} of {total['rows'][0]:,} rows have no candidate left, the first is "
                f"{first}. {told}; loosen a rule, raise among={step.among}, or say empty='keep' or 'drop'"
            )

    def _empty(self, start: int) -> list[str]:
        judged = self.judged(start)
        none = (judged.row == LEFT) & ~(judged.by == LEFT).any(1)
        return [self.rows[start + i].key for i in np.flatnonzero(none)[:1].tolist()]

    def choice(self, miner: Miner, where: Where) -> Choice:
        s = self.step
        plain = Choice(miner, s.count, s.sample, s.score, s.keep, s.empty, s.seed)
        if not isinstance(s.sample, Aggregated):
            return plain
        members, ends = grouped(folder_of(s.sample.clusters, where), self.rows)
        groups = np.split(members, ends[:-1])
        cluster = np.empty(len(self.rows), np.int64)
        for number, some in enumerate(groups):
            cluster[some] = number
        left = np.full((len(self.rows), miner.among), -1, np.int32)
        for start in self.starts:
            judged = self.judged(start)
            left[start : start + len(judged)] = np.where(judged.by == LEFT, judged.index, -1)
            left[start : start + len(judged)][judged.row != LEFT] = -1
        return Choice(miner, s.count, s.sample, s.score, s.keep, s.empty, s.seed, cluster, groups, left)

    def write(self, choice: Choice, start: int) -> dict[str, list[int]]:
        counts: dict[str, int] = {"rows_without": 0, "negatives": 0, "rows_written": 0}
        path = self.out / f"mined-{start // WINDOW:06d}.tar"
        write_shard(
            choice.examples(self.judged(start), counts), path, self.roots if self.step.media == "refer" else None
        )
        return {name: [value] for name, value in counts.items()}

    def finish(self, choice: Choice) -> None:
        """The catalogue and the report; then what was only kept over a kill goes."""
        total = self._totals("judged") | self._totals("written")
        if not total["rows_written"][0]:
            raise DataError(f"step {self.step.name!r}: no row has a negative, and empty='drop' drops them all")
        cataloguing.write(self.out)
        mined_report.write(self.out, self.step, choice, total, self.holding, self.teacher.digest)
        for line in mined_report.doubts(self.step.rules, total):
            log.warning("step %r: %s", self.step.name, line)
        for path in self.out.glob(".mined-*"):  # of a writer that was killed
            path.unlink()
        self.teacher.forget()
        choice.miner.found.forget()
        shutil.rmtree(self.out / RULED, ignore_errors=True)
