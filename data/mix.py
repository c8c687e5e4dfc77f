"""Which source gives the next sub-batch: a Feed is one source in a stage, a Mix says how the feeds share the batches.

A batch is made of sub-batches of one source each (VLM2Vec-V2, arXiv:2507.04590): hard enough because alike, varied
because many. data/turns.py deals them out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, get_args

from .instructions import Instructions
from .patterns import Draw, Pattern, checked
from .schedules import Schedule, ends
from .types import DataError, Limits, Source, Step, Where, digest
from .weights import weights_of

_MOST = 10.0  # a need beyond it is one that cannot be compared: a first loss of nearly nothing
_PARTS = 1 << 30  # an adaptive share is a whole number of these: ranks and a resumed run agree to the bit


@dataclass(frozen=True)
class Feed:
    """One source in a stage, and what is drawn from each of its rows.

    weight: its share of the sub-batches, against the other feeds'. objective: the stage's objective that its rows go
    to. limits: its own, instead of the stage's. positives, negatives: how many are drawn a row, at most. hardness: from
    which of a row's negatives, hardest first: 0 from all, 1 the first ones only. instruction, target_instruction:
    instead of the rows' own; instructions: by task, one of several a draw. answers: whether the rows' answers are
    trained on. sub_batch: rows of its sub-batches, 0 for the stage's (CoDiEmb's batch size by task, arXiv:2508.11442).
    epochs: how often its rows are gone through at most, up to a whole sub-batch; then the others share its turns.
    clusters: a Cluster step (or its folder), whose groups of alike rows stay together (B3, arXiv:2505.11293).
    patterns: which fields form query and target; draw: one pattern a row, or all that it can form; missing: what
    becomes of a row that can form none. shots: demonstrations in front of a query, drawn from other rows of the source
    (arXiv:2506.07438).
    """

    source: Source
    weight: float | Schedule = 1.0
    objective: str = "default"
    limits: Limits | None = None
    positives: int = 1
    negatives: int | Schedule = 0
    hardness: float | Schedule = 0.0
    instruction: str | None = None
    target_instruction: str | None = None
    instructions: Instructions | None = None
    answers: bool = True
    sub_batch: int = 0
    epochs: float = math.inf
    clusters: Step | str = ""
    patterns: tuple[Pattern, ...] = ()
    draw: Draw = "one"
    missing: Literal["raise", "skip"] = "raise"
    shots: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("weight", 0.0, math.inf),
            ("positives", 0, math.inf),
            ("negatives", 0, math.inf),
            ("hardness", 0, 1),
            ("sub_batch", 0, math.inf),
            ("shots", 0, math.inf),
        ):
            value = getattr(self, name)
            if not all(least <= end <= most for end in ends(value)):
                known = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
                raise ValueError(f"feed {self.source.name!r}: {name}={value}; expected {known}")
        if self.patterns:
            checked(self.patterns, self.source.name)
            if ends(self.negatives) != (0,) and not any(p.to_target for p in self.patterns):
                given = f"negatives={self.negatives}"
                raise ValueError(f"feed {self.source.name!r}: {given}, but no pattern has `target` as its target")
        if self.instructions is not None and (self.instruction, self.target_instruction) != (None, None):
            raise ValueError(f"feed {self.source.name!r}: instructions beside a fixed instruction; give one of them")
        for name in ("positives", "sub_batch", "shots"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"feed {self.source.name!r}: {name}={getattr(self, name)!r}; expected a whole number")
        if not isinstance(self.negatives, int | Schedule):
            given = f"negatives={self.negatives!r}"
            raise ValueError(f"feed {self.source.name!r}: {given}; expected a whole number or a schedule")
        if not self.epochs > 0:
            raise ValueError(f"feed {self.source.name!r}: epochs={self.epochs}; expected more than 0")
        for name, words in (("draw", get_args(Draw)), ("missing", ("raise", "skip"))):
            if getattr(self, name) not in words:
                known = " or ".join(map(repr, words))
                raise ValueError(f"feed {self.source.name!r}: {name}={getattr(self, name)!r}; expected {known}")

    def outside(self, where: Where) -> Mapping[str, str]:
        """The digest of clusters that no step of the recipe made."""
        from .clusters import digest_of

        at = self.clusters
        return {f"clusters {at}": digest_of(Path(at))} if isinstance(at, str) and at else {}


def folder_of(at: Step | str, where: Where | None) -> Path:
    """The folder that a step's name, or a path, stands for."""
    if isinstance(at, str):
        return Path(at)
    if where is None:
        raise ValueError(f"step {at.name!r}: its folder is not known here; give the loader `where`")
    return where(at)


class Mix(Protocol):
    """How the feeds of a stage share its batches."""

    @property
    def hold(self) -> int:
        """Steps that one source fills alone; 0: every sub-batch draws its own source."""
        ...

    @property
    def adaptive(self) -> Adaptive | None: ...

    def factors(self, names: Sequence[str], sizes: Sequence[int], where: Where | None) -> tuple[float, ...]:
        """What each feed's weight is multiplied by. sizes: rows."""
        ...


@dataclass(frozen=True)
class Weighted:
    """The feeds' weights as they are."""

    hold = 0
    adaptive = None

    def factors(self, names: Sequence[str], sizes: Sequence[int], where: Where | None) -> tuple[float, ...]:
        return (1.0,) * len(names)


@dataclass(frozen=True)
class BySize:
    """Proportional to min(rows, cap) ** alpha, times the weights: alpha 1 goes through all sources alike often, 0 gives
    each the same share, and what lies between flattens (multilingual BERT; T5's temperature is 1 / alpha and its cap
    the same, arXiv:1910.10683). cap 0: none."""

    alpha: float = 0.5
    cap: int = 0
    hold = 0
    adaptive = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= 0 and self.cap >= 0):
            raise ValueError(f"BySize(alpha={self.alpha}, cap={self.cap}): expected 0 or more of both")

    def factors(self, names: Sequence[str], sizes: Sequence[int], where: Where | None) -> tuple[float, ...]:
        return tuple(float(min(n, self.cap) if self.cap else n) ** self.alpha for n in sizes)


@dataclass(frozen=True)
class Balanced:
    """The weights that a Balance step found by the sources' likeness to those that count (SAIL, arXiv:2510.12709)."""

    at: Step | str
    hold = 0
    adaptive = None

    def factors(self, names: Sequence[str], sizes: Sequence[int], where: Where | None) -> tuple[float, ...]:
        folder = folder_of(self.at, where)
        weights = weights_of(folder)
        if missing := [n for n in names if n not in weights]:
            known = ", ".join(weights)
            raise DataError(f"{folder}: no weight for source {missing[0]!r}; balance it too, there are {known}")
        return tuple(weights[n] for n in names)

    def outside(self, where: Where) -> Mapping[str, str]:
        """The digest of weights that no step of the recipe found."""
        if not isinstance(self.at, str):
            return {}
        return {f"weights {self.at}": digest(repr(sorted(weights_of(Path(self.at)).items())))}


@dataclass(frozen=True)
class Specialised:
    """Stochastic specialisation (SAIL, arXiv:2510.12709): one source fills all batches of `steps` steps, drawn by the
    shares of `of`. The draw is without replacement, so that a cycle has every source as often as its share says; a
    step's source is as likely as in independent draws."""

    steps: int = 1
    of: Mix = field(default_factory=Weighted)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.of.hold:
            raise ValueError(f"{self}: expected steps of 1 or more, of a mix that holds no source itself")

    @property
    def hold(self) -> int:
        return self.steps

    @property
    def adaptive(self) -> Adaptive | None:
        return self.of.adaptive

    def factors(self, names: Sequence[str], sizes: Sequence[int], where: Where | None) -> tuple[float, ...]:
        return self.of.factors(names, sizes, where)


@dataclass(frozen=True)
class Adaptive:
    """Shares that follow what training shows, anew every `every` steps.

    by: "loss", a source's loss over its first measured one, so that those that have learned least get more; or
    "score", 1 less the validation score named like the source. A share is its base times exp(strength * (need - mean
    need)); `floor` of it stays at the base, so that no source starves. smooth: weight of the need seen before. SAIL
    (arXiv:2510.12709) balances by likeness to the target (`Balanced`); learning from excess loss is DoReMi's
    (arXiv:2305.10429), here against the source's own start instead of a second model.
    """

    every: int = 100
    by: Literal["loss", "score"] = "loss"
    strength: float = 2.0
    floor: float = 0.25
    smooth: float = 0.5
    of: Mix = field(default_factory=Weighted)

    def __post_init__(self) -> None:
        if self.every < 2 or self.by not in ("loss", "score") or self.of.adaptive is not None:
            raise ValueError(f"{self}: expected every of 2 or more, by 'loss' or 'score', of a mix that adapts nothing")
        if not (abs(self.strength) <= 50 and 0 <= self.floor <= 1 and 0 <= self.smooth < 1):
            raise ValueError(f"{self}: expected a strength within 50, floor in [0, 1] and smooth in [0, 1)")

    @property
    def hold(self) -> int:
        return self.of.hold

    @property
    def adaptive(self) -> Adaptive | None:
        return self

    def factors(self, names: Sequence[str], sizes: Sequence[int], where: Where | None) -> tuple[float, ...]:
        return self.of.factors(names, sizes, where)

    def shares(self, base: Sequence[float], need: Mapping[int, float]) -> tuple[int, ...]:
        """Each source's share in parts of 2^30 (1 at least, where its base is positive). base: weights; need: by
        source, where it was seen: the others' is the mean."""
        total, seen = sum(base), {s: min(max(n, 0.0), _MOST) for s, n in need.items() if base[s] > 0}
        mean = sum(seen.values()) / len(seen) if seen else 0.0
        raised = [w * math.exp(self.strength * (seen.get(s, mean) - mean)) for s, w in enumerate(base)]
        lifted = sum(raised)
        mixed = [self.floor * w / total + (1 - self.floor) * r / lifted for w, r in zip(base, raised, strict=True)]
        return tuple(max(1, round(_PARTS * m)) if w > 0 else 0 for w, m in zip(base, mixed, strict=True))
