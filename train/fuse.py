"""The Merge step: several models become one, by a rule of model/merge or by one that needs scores or gradients.

Its output is an embedder's folder, as every other step takes it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch

from ..data.types import DataError, Step, Where
from ..model.merge import merge
from ..model.merge.average import Average, Weighted
from ..model.merge.blocks import elements
from ..model.merge.fisher import Fisher
from ..model.merge.low_rank import fill_adapter
from ..model.merge.opened import Plan, prepare
from ..model.merge.task_arithmetic import TaskArithmetic
from ..model.merge.types import Rule
from .cost import spoken
from .fisher import ProbeFisher, write_fisher
from .position import SelfPositioning, position
from .sample import Probing, loaded
from .soup import Greedy, forget, greedy

log = logging.getLogger(__name__)

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Merge:
    """One model of several: steps, folders or hub names, all of one architecture and vocabulary.

    rule: Average, Weighted, Slerp, TaskArithmetic, Ties, Dare, Fisher, Ema, DeltaGuided (model/merge), or one that
    looks at data: ProbeFisher, Greedy, SelfPositioning. base: θ0 of the rules that work on differences; by default the
    one that all adapters stand on. dtype: of the weights; by default the first model's. rank: 0 writes dense weights;
    above 0, adapters become one adapter of that rank. Leaves the embedder's folder with merge.json, and what the rule
    wrote: soup.json, position.json and position.html.
    """

    resumes = True  # scores and points that were found are taken again; weights are written anew
    name: str
    models: tuple[Step | str, ...]
    rule: Rule | ProbeFisher | Greedy | SelfPositioning = field(default_factory=Average)
    base: Step | str | None = None
    dtype: Dtype | None = None
    rank: int = 0
    block_mb: int = field(default=64, compare=False)

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise DataError(f"step {self.name!r}: {len(self.models)} models to merge; give two or more")
        if self.dtype not in (None, *get_args(Dtype)):
            raise DataError(f"step {self.name!r}: dtype={self.dtype!r}; expected {', '.join(get_args(Dtype))} or None")
        if self.rank < 0 or self.block_mb < 1:
            raise DataError(f"step {self.name!r}: rank={self.rank}, block_mb={self.block_mb}; expected 0, 1 or more")
        if self.rank and isinstance(self.rule, ProbeFisher | SelfPositioning | Greedy):
            raise DataError(f"step {self.name!r}: {type(self.rule).__name__} merges whole weights; leave out rank")
        if isinstance(self.rule, Rule):
            self.rule.check(len(self.models))

    def outside(self, where: Where) -> dict[str, str]:
        """The digests of models that no step made."""
        from ..model.checkpoint import digest_of_folder

        return {f"model {m}": digest_of_folder(m) for m in (*self.models, self.base) if isinstance(m, str)}

    def make(self, out: Path, where: Where) -> None:
        merging = _Merging(self, out, where)
        match self.rule:
            case ProbeFisher():
                merging.by_fisher(self.rule)
            case Greedy():
                merging.greedily(self.rule)
            case SelfPositioning():
                merging.by_position(self.rule)
            case _:
                merging.fill(out, range(len(self.models)), self.rule)

    def plan(self, where: Where) -> Mapping[str, str]:
        """What it will take, for `omni2vec plan`."""
        merging = _Merging(self, Path(), where)
        if self.rank:
            return {"models": f"{len(self.models)} adapters into one of rank {self.rank}"}
        found = merging.prepared()
        size = sum(e.count * e.dtype.itemsize for e in found.first.entries.values())
        held = (len(self.models) * (1 + isinstance(self.rule, ProbeFisher)) + (found.base is not None)) * self.block_mb
        return {
            "models": f"{len(self.models)} of {found.elements:,} weights" + ", on a base" * (found.base is not None),
            "written": spoken(size) + (f", as {self.dtype}" if self.dtype else ""),
            "memory": f"{spoken((held + 50) << 20)} at most" + self._besides(),
            **({"told": "; ".join(found.told)} if found.told else {}),
        }

    def _besides(self) -> str:
        match self.rule:
            case ProbeFisher() | SelfPositioning():
                return ", beside one model in float32 and its gradient"
            case Greedy():
                return ", beside one model that is scored"
        return ""


@dataclass(frozen=True)
class _Merging:
    """A Merge step at work."""

    step: Merge
    out: Path
    where: Where

    @property
    def names(self) -> list[str]:
        return [m if isinstance(m, str) else m.name for m in self.step.models]

    @property
    def paths(self) -> list[str]:
        return [self._path(m) for m in self.step.models]

    @property
    def base(self) -> str | None:
        return None if self.step.base is None else self._path(self.step.base)

    def _path(self, model: Step | str) -> str:
        return model if isinstance(model, str) else str(self.where(model))

    @property
    def dtype(self) -> torch.dtype | None:
        return merge.dtype_of(self.step.dtype)

    def prepared(self) -> Plan:
        """Raises DataError for models that cannot be merged."""
        rule = self.step.rule
        plain = rule if isinstance(rule, Rule) else TaskArithmetic() if isinstance(rule, SelfPositioning) else Average()
        return prepare(self.paths, plain, self.base, self.names, type(rule).__name__)

    def fill(self, out: Path, members: Sequence[int], rule: Rule) -> None:
        paths, names = [self.paths[i] for i in members], [self.names[i] for i in members]
        if self.step.rank:
            fill_adapter(out, paths, rule, self.base, self.dtype, self.step.rank, names)
            return
        block, label = self.step.block_mb << 20, f"merging {', '.join(names)}"
        merge.fill(out, paths, rule, base=self.base, dtype=self.dtype, block_bytes=block, names=names, label=label)

    def by_fisher(self, rule: ProbeFisher) -> None:
        folder = self.out / "fisher"
        folder.mkdir(exist_ok=True)
        self.prepared()  # unlike models are refused before any is run
        files = []
        for i, (path, name) in enumerate(zip(self.paths, self.names, strict=True)):
            file = folder / f"{i}.safetensors"
            if not file.is_file():
                loss = write_fisher(path, rule.sample, self.where, file)
                log.info(f"Fisher tensors of {name}: loss {loss:.6f} on the sample")
            files.append(str(file))
        self.fill(self.out, range(len(files)), Fisher(tuple(files), rule.weights))
        forget(folder)

    def greedily(self, rule: Greedy) -> None:
        from ..eval.evaluate import evaluate, tasks_of
        from ..model.encoder import load_encoder

        self.prepared()
        tasks, candidate = tasks_of(rule.validate, self.where, rule.limit), self.out / "candidate"

        def score(members: tuple[int, ...]) -> float:
            at = self.paths[members[0]]
            if len(members) > 1:
                forget(candidate)
                candidate.mkdir()
                self.fill(candidate, members, Average())
                at = str(candidate)
            found = evaluate(load_encoder(at), tasks, name="candidate", draws=2, progress=False)
            return float(found.overall.value)

        kept, best = greedy(self.names, rule, score, self.out)
        forget(candidate)
        log.info(f"soup of {', '.join(self.names[i] for i in kept)}: {best:.6f}")
        if len(kept) > 1:
            self.fill(self.out, kept, Average())
        else:
            self.fill(self.out, (kept[0], 1 - min(kept[0], 1)), Weighted((1.0, 0.0)))

    def by_position(self, rule: SelfPositioning) -> None:
        plan, everyone = self.prepared(), range(len(self.step.models))
        found = position(plan, rule, self.paths[0], self.where, self.out, elements(self.step.block_mb << 20))
        self.fill(self.out, everyone, TaskArithmetic(found.position))
        with Probing(loaded(str(self.out)), rule.sample, self.where) as probing:
            written = probing.loss()
        if written > found.end_loss:  # rounded to fewer bits, it is no better than where it began
            kept = "the base" if found.end < 0 else self.names[found.end]
            log.warning(
                f"step {self.step.name!r}: as saved, the loss of the position is {written:.6f}, above that of {kept} "
                f"({found.end_loss:.6f}), which is taken"
            )
            self.fill(self.out, everyone, TaskArithmetic(tuple(float(i == found.end) for i in everyone)))
