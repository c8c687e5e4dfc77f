"""The Mine step: each row gets new negatives, the documents that a model finds near to its query, and that rules leave.

The new shards have the rows' own keys, and refer to the media of the old ones. Between two stages it is one line of a
recipe: Mine("mine", stage1, source, rules=(PercentOfPositive(0.95),)).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ..data import cataloguing
from ..data.clusters import grouped
from ..data.mix import folder_of
from ..data.referred import Roots
from ..data.shards import write_shard
from ..data.types import DataError, Rows, Source, Step, Where, digest
from ..eval.approximate import Approximate
from ..eval.nearest import Exact
from ..model.encode import bar
from . import mined_report
from .cost import spoken
from .gather import Group
from .guard import Signals
from .judge import Judge
from .leave import everyone, together
from .mining import WINDOW, Choice, Documents, Judgement, Miner, counted
from .pool import Pool
from .rules import LEFT, AnyRule, BelowJudged, Consistent, RankRange
from .samples import Aggregated, Hardest, Sample
from .searching import searched
from .teacher import Teacher, Told, estimate
from .words import Fused, Words, needs_bm25

log = logging.getLogger(__name__)

RULED = "rules"  # folder of what the rules made of each window, while the step is made
Empty = Literal["keep", "drop", "raise"]
Media = Literal["refer", "copy"]


@dataclass(frozen=True)
class Mine:
    """`count` new negatives for every row of `source`, of the `among` documents that `model` finds nearest its query.

    model: a step, or anything that `load_encoder` takes. candidates: whose documents may become negatives; by default
    all positives and negatives of the source itself. rules: applied in order (train/rules.py). how: the search. fused:
    words beside vectors. sample: which of what the rules leave. score: the name under which the model's cosines are
    kept, one per positive, then per negative; "": not. keep: the old negatives stay, in front. labels: documents that
    are right for rows of the query's own label are no candidates. empty: what becomes of a row with no candidate left.
    media: "refer" to those of other shards, or "copy" them. instruction, target_instruction: shown to the model in
    place of the rows' own.

    Never a negative: the query itself, a right answer, a known id, or what another row with the same query and
    instruction has as its right answer. Leaves shards under the rows' keys, report.json and mined.html.
    """

    resumes = True  # after a kill, `make` finds the windows so far
    parallel = True  # ranks share the encoding, the search, the rules and the writing
    name: str
    model: Step | str
    source: Source
    candidates: Source | None = None
    rules: tuple[AnyRule, ...] = ()
    count: int = 7
    among: int = 200
    how: Exact | Approximate = field(default_factory=Exact)
    fused: Fused | None = None
    sample: Sample = field(default_factory=Hardest)
    score: str = "mined"
    keep: bool = False
    labels: bool = True
    empty: Empty = "keep"
    media: Media = "refer"
    instruction: str | None = None
    target_instruction: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("count", "among"):
            if getattr(self, name) < 1:
                raise ValueError(f"step {self.name!r}: {name}={getattr(self, name)}; expected 1 or more")
        for name, words in (("empty", get_args(Empty)), ("media", get_args(Media))):
            if getattr(self, name) not in words:
                known = ", ".join(map(repr, words))
                raise ValueError(f"step {self.name!r}: {name}={getattr(self, name)!r}; expected one of {known}")
        for rule in self.rules:
            wants = rule.last if isinstance(rule, RankRange) else rule.top if isinstance(rule, Consistent) else 0
            if wants > self.among:
                raise ValueError(f"step {self.name!r}: {rule} looks further than among={self.among}; raise among")
        if sum(isinstance(rule, BelowJudged) for rule in self.rules) > 1:
            raise ValueError(f"step {self.name!r}: two rules ask a judge; scores['rerank'] holds the scores of one")
        if self.score == "rerank":
            raise ValueError(f"step {self.name!r}: score='rerank' is a judge's; take another name")

    def outside(self, where: Where) -> dict[str, str]:
        """The digest of a model that no step made."""
        from ..model.encoder import digest_of

        return {f"model {self.model}": digest_of(self.model)} if isinstance(self.model, str) else {}

    def make(self, out: Path, where: Where) -> None:
        """Every rank of a group encodes, searches, judges and writes windows of rows in turn."""
        if self.fused is not None:
            needs_bm25()
        group = Group.current()
        rows, others = self._opened(where)
        with Signals() as signals:
            teacher = Teacher.load(self.model, where, out, group, signals)
            pool = self._pool(rows, others, group)
            asking = [rule for rule in self.rules if isinstance(rule, BelowJudged)]
            judge = together(group, lambda: asking[0].judge.open(where) if asking else None)
            run = _Run(self, out, group, teacher, rows, others, pool, judge)
            miner = run.miner(signals)
            run.in_turn("rules", "judged", partial(run.judge, miner))
            together(group, lambda: run.checked() if group.rank == 0 else None)
            choice = run.choice(miner, where)
            together(group, lambda: run.roots.write() if group.rank == 0 and self.media == "refer" else None)
            run.in_turn("writing", "written", partial(run.write, choice))
            together(group, lambda: run.finish(choice) if group.rank == 0 else None)

    def plan(self, where: Where, ranks: int = 1) -> Mapping[str, str]:
        """What it will take, for `omni2vec plan`."""
        from ..model.encoder import load_encoder

        rows, others = self._opened(where)
        encoder = load_encoder(self.model if isinstance(self.model, str) else where(self.model))
        n, dim = len(rows), encoder.encode_items([rows[0].query], side="query").shape[1]
        documents = len(others) if others is not None else n
        found = {
            "rows": f"{n:,} with {self.count} negatives each at most, in {-(-n // WINDOW):,} shards",
            "candidates": f"{documents:,} or more, the {self.among} nearest of each query",
            **estimate(encoder, rows, Told(self.instruction, self.target_instruction), n),
            "vectors": f"{spoken((n + documents) * dim * 4)} on disk, and as much again while they are joined",
            "search": f"{2 * n * documents * dim / 1e12:,.2f} TFLOP if exact, shared by {ranks}",
            "kept over a kill": f"{spoken(n * self.among * 17)} on disk",
        }
        for rule in self.rules:
            if isinstance(rule, BelowJudged):
                found["judge"] = f"{n * ((rule.first or self.among) + 1):,} pairs at most, shared by {ranks}"
        if isinstance(self.sample, Aggregated):
            found["pools"] = f"{spoken(n * self.among * 4)} in memory of each rank"
        if self.media == "refer":
            Roots.of([rows, *([others] if others is not None else [])], Path(), Path())
        return found

    def _opened(self, where: Where) -> tuple[Rows, Rows | None]:
        return self.source.open(where), self.candidates.open(where) if self.candidates is not None else None

    def _pool(self, rows: Rows, others: Rows | None, group: Group) -> Pool:
        total = len(rows) + (len(others) if others is not None else 0)
        told = Told(self.instruction, self.target_instruction)
        with bar("reading" if group.rank == 0 else "", total) as advance:
            pool = Pool.of(rows, others, told, self.labels, advance)
        if pool.candidates < 2:
            raise DataError(
                f"step {self.name!r}: source {(others or rows).name!r} has {pool.candidates} different document; "
                "mining chooses among several: name a source of candidates"
            )
        return pool


@dataclass(frozen=True)
class _Run:
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
        mined_report.write(self.out, self.step, choice, total, self.judged, self.teacher.digest)
        for line in mined_report.doubts(self.step.rules, total):
            log.warning("step %r: %s", self.step.name, line)
        for path in self.out.glob(".mined-*"):  # of a writer that was killed
            path.unlink()
        self.teacher.forget()
        choice.miner.found.forget()
        shutil.rmtree(self.out / RULED, ignore_errors=True)
