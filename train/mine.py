"""The Mine step: each row gets new negatives, the documents that a model finds near to its query, and that rules leave.

The new shards have the rows' own keys, and refer to the media of the old ones. Between two stages it is one line of a
recipe: Mine("mine", stage1, source, rules=(PercentOfPositive(0.95),)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from ..data.referred import Roots
from ..data.types import DataError, Rows, Source, Step, Where
from ..eval.approximate import Approximate
from ..eval.nearest import Exact
from ..model.encode import bar
from .cost import spoken
from .gather import Group
from .guard import Signals
from .leave import together
from .mine_run import Run
from .mining import WINDOW
from .pool import Pool
from .rules import AnyRule, BelowJudged, Consistent, RankRange
from .samples import Aggregated, Hardest, Sample
from .teacher import Teacher, Told, estimate
from .words import Fused, needs_bm25

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
    sample: Sample | Aggregated = field(default_factory=Hardest)
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
            run = Run(self, out, group, teacher, rows, others, pool, judge)
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
