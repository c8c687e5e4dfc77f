"""The Balance step: sources get weights by how near their rows are to those of the validation sources.

Adaptive multi-source balancing of SAIL-Embedding (arXiv:2510.12709): centroids of each source by an early model;
entropic transport between a source's and a target's centroids; the mean cosine under the plan is the score; a softmax
of the mean scores is the weights. The paper names neither k nor the two temperatures: ours are below.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..data.counter import choose
from ..data.types import DataError, Prompted, Rows, Side, Source, Step, Where
from ..data.weights import FILE
from .cost import spoken
from .gather import Group
from .guard import Signals
from .leave import together
from .teacher import Teacher, Told, estimate

View = Literal["fused", "query", "target"]
_CHECK = 10  # rounds of Sinkhorn between two looks at the marginals


@dataclass(frozen=True)
class Balance:
    """Weights of `sources` for a mixture that should serve `targets`, as `model` sees them.

    samples: rows of each, at most. centroids: of each, at most as many as it has different vectors; each counts the
    same, however many rows it stands for. view: which vector stands for a row: "fused" is the mean of its query's and
    first positive's, so that caption to image and image to caption of one set are alike. epsilon: the transport's
    entropy, on cosines: 0 would match centroids one to one, infinity all with all. temperature: of the softmax, on
    scores that are cosines too: lower makes the nearest source win, higher makes all equal.

    Leaves weights.json (data/weights.py): weights, scores by source and target, settings. Needs "omni2vec[mine]".
    """

    resumes = True  # after a kill, `make` finds the vectors so far
    parallel = True  # every rank encodes its share
    name: str
    model: Step | str
    sources: tuple[Source, ...]
    targets: tuple[Source, ...]
    samples: int = 10_000
    centroids: int = 64
    view: View = "fused"
    epsilon: float = 0.05
    temperature: float = 0.1
    instruction: str | None = None
    target_instruction: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field, least in (("samples", 1), ("centroids", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"step {self.name!r}: {field}={getattr(self, field)}; expected {least} or more")
        for field in ("epsilon", "temperature"):
            if not (getattr(self, field) > 0 and math.isfinite(getattr(self, field))):
                raise ValueError(f"step {self.name!r}: {field}={getattr(self, field)}; expected a number above 0")
        if self.view not in get_args(View):
            raise ValueError(f"step {self.name!r}: view={self.view!r}; expected one of {', '.join(get_args(View))}")
        for what, given in (("sources", self.sources), ("targets", self.targets)):
            names = [s.name for s in given]
            twice = [n for n in names if names.count(n) > 1]
            if not names or twice:
                why = f"two of them are named {twice[0]!r}" if twice else "there is none"
                raise ValueError(f"step {self.name!r}: {what}: {why}; weights go by name, so give each its own")

    def outside(self, where: Where) -> dict[str, str]:
        """The digest of a model that no step made."""
        from ..model.checkpoint import digest_of_folder

        return {f"model {self.model}": digest_of_folder(self.model)} if isinstance(self.model, str) else {}

    def make(self, out: Path, where: Where) -> None:
        """Every rank of a group encodes; rank 0 computes the weights and writes."""
        _needs_sklearn()
        group = Group.current()
        with Signals() as signals:
            teacher = Teacher.load(self.model, where, out, group, signals)
            seen = [self._seen(teacher, f"source{i}", s.open(where)) for i, s in enumerate(self.sources)]
            wanted = [self._seen(teacher, f"target{i}", s.open(where)) for i, s in enumerate(self.targets)]
            together(group, lambda: self._write(seen, wanted, teacher) if group.rank == 0 else None)
            if group.rank == 0:
                teacher.forget()

    def plan(self, where: Where, ranks: int = 1) -> Mapping[str, str]:
        """What it will take, for `omni2vec plan`."""
        from ..model.encoder import load_encoder

        encoder = load_encoder(self.model if isinstance(self.model, str) else where(self.model))
        told = Told(self.instruction, self.target_instruction)
        found: dict[str, str] = {}
        total, dim = 0, 0
        for source in (*self.sources, *self.targets):
            rows = source.open(where)
            count = min(len(rows), self.samples)
            total += count
            costs = estimate(encoder, rows, told, count)
            found[f"of {source.name}"] = f"{count:,} rows, " + ", ".join(f"{v} {k}" for k, v in costs.items())
            dim = dim or encoder.encode_items([rows[0].query], side="query").shape[1]
        return {"rows": f"{total:,}", **found, "vectors": f"{spoken(2 * total * dim * 4)} on the host and on disk"}

    def _seen(self, teacher: Teacher, name: str, rows: Rows) -> Tensor:
        """(n, D) vectors of a sample of the rows, unit length; on rank 0."""
        # The source's name is no part of the draw: equal data under two names give equal weights.
        places = choose(len(rows), self.samples, self.seed, "balance")
        if not places:
            raise DataError(f"step {self.name!r}: source {rows.name!r} has no rows; leave it out")
        sides: tuple[Side, ...] = ("query", "target") if self.view == "fused" else (self.view,)
        found = [
            teacher.vectors(f"{name}-{side}", len(places), partial(self._prompt, rows, places, side)) for side in sides
        ]
        return normalize(torch.stack(found).mean(0), dim=-1)

    def _prompt(self, rows: Rows, places: Sequence[int], side: Side, i: int) -> Prompted:
        return Told(self.instruction, self.target_instruction).prompt(rows[places[i]], side)

    def _write(self, seen: Sequence[Tensor], wanted: Sequence[Tensor], teacher: Teacher) -> None:
        ours, theirs = ([centroids(v, self.centroids, self.seed) for v in vectors] for vectors in (seen, wanted))
        scores = np.array([[score(a, b, self.epsilon) for b in theirs] for a in ours])
        shares = softmax(scores.mean(1), self.temperature)
        names, targets = [s.name for s in self.sources], [t.name for t in self.targets]
        fields = ("samples", "centroids", "view", "epsilon", "temperature", "seed")
        facts = {
            "weights": dict(zip(names, shares.tolist(), strict=True)),
            "scores": {n: dict(zip(targets, row, strict=True)) for n, row in zip(names, scores.tolist(), strict=True)},
            "rows": {n: len(v) for n, v in zip([*names, *targets], [*seen, *wanted], strict=True)},
            "settings": {f: getattr(self, f) for f in fields},
            "teacher": teacher.digest,
        }
        aside = teacher.out / f".{FILE}.part"
        aside.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(teacher.out / FILE)
        _show(names, scores.mean(1), shares)


def centroids(vectors: Tensor, k: int, seed: int) -> Tensor:
    """(at most k, D) centres of vectors (n, D) by k-means, unit length, float64. The same for the same seed."""
    from sklearn.cluster import KMeans

    distinct = len(torch.unique(vectors, dim=0))
    found = KMeans(min(k, distinct), n_init=4, random_state=seed).fit(vectors.double().numpy())
    return normalize(torch.from_numpy(found.cluster_centers_), dim=-1)


def score(source: Tensor, target: Tensor, epsilon: float) -> float:
    """Mean cosine of centroids (a, D) and (b, D), both unit length, under the entropic plan of cost 1 - cosine."""
    cosine = source @ target.T
    return float((sinkhorn(1 - cosine, epsilon) * cosine).sum())


def sinkhorn(cost: Tensor, epsilon: float, tolerance: float = 1e-4, most: int = 20_000) -> Tensor:
    """The plan P (a, b) with equal marginals, 1/a and 1/b, that is least in sum(P cost) - epsilon entropy(P).

    In logarithms and float64 (Cuturi, arXiv:1306.0895); epsilon is lowered by halves from the largest cost, which needs
    fewer rounds. It ends when the marginals' summed error is at most `tolerance`, which is then mended, so that they
    are exact. Raises ValueError where `most` rounds do not do.
    """
    cost = cost.double()
    rows, columns = (torch.full((n,), 1 / n, dtype=torch.float64) for n in cost.shape)
    f, g = torch.zeros_like(rows), torch.zeros_like(columns)
    level = max(epsilon, float(cost.abs().max()))
    off = math.inf
    for done in range(most):
        f = level * (rows.log() - torch.logsumexp((g - cost) / level, dim=1))
        g = level * (columns.log() - torch.logsumexp((f[:, None] - cost) / level, dim=0))
        if done % _CHECK:
            continue
        plan = ((f[:, None] + g - cost) / level).exp()
        off = float((plan.sum(1) - rows).abs().sum())
        if off <= tolerance and level <= epsilon:
            return _mended(plan, rows, columns)
        level = max(epsilon, level / 2)
    raise ValueError(f"epsilon={epsilon}: marginals are off by {off:.1e} after {most:,} rounds; raise epsilon")


def _mended(plan: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """What is too much is scaled away, what is then missing is spread over all (Altschuler and others,
    arXiv:1705.09634)."""
    plan = plan * (rows / plan.sum(1)).clamp(max=1)[:, None]
    plan = plan * (columns / plan.sum(0)).clamp(max=1)
    short, narrow = (rows - plan.sum(1)).clamp(min=0), (columns - plan.sum(0)).clamp(min=0)
    missing = float(short.sum())
    return plan + short[:, None] * narrow / missing if missing > 0 else plan


def softmax(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Shares that sum to 1."""
    raised = np.exp((scores - scores.max()) / temperature)
    shares: np.ndarray = raised / raised.sum()
    return shares


def _show(names: Sequence[str], scores: np.ndarray, shares: np.ndarray) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("source", "score", "weight", box=None)
    for name, value, share in sorted(zip(names, scores, shares, strict=True), key=lambda row: -row[2]):
        table.add_row(name, f"{value:.4f}", f"{share:.4f}")
    Console().print(table)


def _needs_sklearn() -> None:
    import importlib.util

    if importlib.util.find_spec("sklearn") is None:
        raise ImportError('scikit-learn is not installed: pip install "omni2vec[mine]"')
