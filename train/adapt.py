"""The mixer's state while training: what an adaptive mix has seen of each source, and what it makes of that.

Rank 0 sees; its word, in whole numbers, goes to all ranks before any of them begins a batch of the next block, and is
saved with every checkpoint: batch t is a function of the recipe, the seed, t and what was told before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..data.counter import bits
from ..data.loader import Loader
from ..data.mix import Adaptive
from ..data.order import weights_at
from ..data.planned import Plan
from ..model.types import Inputs
from .gather import Group
from .health import look, task_of
from .step import Done

if TYPE_CHECKING:
    from .stage import Stage

_SAMPLE = 256  # queries of a step whose loss is looked at


@dataclass
class Seen:
    """What survives a kill. told: shares of the blocks 1, 2, ...; need: of each source, smoothed; first: the loss it
    began with; sums, counts: of this block. By the source's name."""

    told: list[tuple[int, ...]] = field(default_factory=list)
    need: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(raw: Mapping[str, Any]) -> Seen:
        """From its JSON form."""
        return Seen(**{**raw, "told": [tuple(t) for t in raw.get("told", ())]})


@dataclass
class Adapting:
    """Told of every step and every evaluation; tells the loader the shares of the next block when it is time."""

    stage: Stage
    mix: Adaptive
    loader: Loader[Inputs]
    group: Group
    seen: Seen

    def __post_init__(self) -> None:
        self.base = weights_at(self.stage.feeds, self.loader.factors, 0.0)

    def scored(self, scores: Mapping[str, float]) -> None:
        """Scores of an evaluation, in [0, 1], by task."""
        if self.mix.by == "score":
            for name in self.loader.names:
                if name in scores:
                    self._add(name, 1 - scores[name])

    def step(self, plan: Plan, done: Done) -> dict[str, float] | None:
        """Look at a step that was done. The shares of the next block by source, where this step settles them: the last
        but one of a block, for the loader begins a batch while the one before it is trained on."""
        if self.mix.by == "loss" and self.group.rank == 0 and done.finite:
            for name, loss in self._losses(plan, done).items():
                self._add(name, loss)
        coming = plan.step + 2  # begun when this step's successor is asked for
        if coming >= self.stage.steps or coming != (len(self.seen.told) + 1) * self.mix.every:
            return None
        own = json.dumps(self._settle() if self.group.rank == 0 else None).encode()
        shares = tuple(int(n) for n in json.loads(self.group.exchange(own)[0]))
        self.seen.told.append(shares)
        self.loader.tell(shares)
        return {n: round(s / sum(shares), 4) for n, s in zip(self.loader.names, shares, strict=True)}

    def _add(self, name: str, value: float) -> None:
        self.seen.sums[name] = self.seen.sums.get(name, 0.0) + value
        self.seen.counts[name] = self.seen.counts.get(name, 0) + 1

    def _losses(self, plan: Plan, done: Done) -> dict[str, float]:
        sources, like = task_of(self.stage.bounds())
        keep = torch.isin(plan.relation.query_source, torch.tensor(sorted(sources), dtype=torch.int64))
        keep[list(done.failed)] = False
        seed = bits(self.stage.seed, "adapt", plan.step)
        found = look(
            done.vectors, plan.relation, sample=_SAMPLE, seed=seed, scale=float(done.scale), keep=keep, like=like
        )
        return {self.loader.names[s]: v for s, v in found.losses.items() if v == v}

    def _settle(self) -> tuple[int, ...]:
        """What the block that ends has shown, in shares; the sums begin anew."""
        seen = self.seen
        for name, total in seen.sums.items():
            value = total / seen.counts[name]
            if self.mix.by == "loss":
                value /= seen.first.setdefault(name, max(value, 1e-6))
            old = seen.need.get(name, value)
            # Three digits: what one rank and many round otherwise hardly ever reaches the shares.
            seen.need[name] = round(self.mix.smooth * old + (1 - self.mix.smooth) * value, 3)
        seen.sums, seen.counts = {}, {}
        need = {s: seen.need[name] for s, name in enumerate(self.loader.names) if name in seen.need}
        return self.mix.shares(self.base, need)
