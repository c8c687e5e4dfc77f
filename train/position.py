"""Self Positioning (arXiv:2410.15035): where in the span of task vectors a small balanced sample is served best.

The gradient by a coordinate is the parameters' gradient times a task vector, and those are read from their files block
by block: memory is that of one model and its gradient, however many models there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.types import DataError, Where
from ..model.encode import bar
from ..model.merge.opened import Plan
from ..model.merge.span import Span
from .curve import draw
from .sample import Probing, Sample, filed, loaded, names_of

LOG = "position.json"


@dataclass(frozen=True)
class SelfPositioning:
    """The rule of a Merge step that learns θ0 + Σ α_i (θ_i - θ0) by gradient descent on a sample's contrastive loss.

    form: "linear", a coordinate α_i a model; or "arc", task vectors folded one after another by slerp, an angle a fold,
    and one length for all: α is then a function of k numbers and of the vectors' dot products. steps, lr: of Adam on
    these few numbers, with a rate that falls to 0. It starts at the best of the models, and what it keeps is the best
    position that it has seen: on the sample it is never worse than any model, nor than the base.

    The paper optimises such a position by SGD on a small probe; its exact parameterisation is in no text that could be
    read. Both forms, Adam and the numbers here are ours, unverified.
    """

    sample: Sample
    steps: int = 30
    lr: float = 0.1
    form: Literal["linear", "arc"] = "linear"

    def __post_init__(self) -> None:
        if self.form not in ("linear", "arc"):
            raise DataError(f"self positioning form={self.form!r}: expected 'linear' or 'arc'")
        if self.steps < 0 or not self.lr > 0:
            raise DataError(f"self positioning steps={self.steps}, lr={self.lr}: expected 0 or more, and above 0")


@dataclass(frozen=True)
class Point:
    """position: α; loss: of the sample there; slopes: of the loss by α."""

    position: tuple[float, ...]
    loss: float
    slopes: tuple[float, ...]


@dataclass(frozen=True)
class Found:
    """The best position, its loss, and the model that was the best end (-1: the base) with the loss there."""

    position: tuple[float, ...]
    loss: float
    end: int
    end_loss: float


def position(plan: Plan, rule: SelfPositioning, model: str, where: Where, out: Path, size: int) -> Found:
    """Learn the position. model: a folder whose class and settings all have; size: elements of a block. Writes every
    point to out/position.json as it is found, and goes on from there after a kill; draws them to position.html."""
    embedder = loaded(model)
    span = Span.of(plan, names_of(embedder), size)
    log = _Log(out / LOG, _head(plan, rule, where))
    count = len(plan.models)
    total = count + 1 + rule.steps
    with Probing(embedder, rule.sample, where) as probing, bar("learning the position: points", total) as advance:

        def measure(at: Sequence[float]) -> Point:
            advance(1)
            if (known := log.take(at)) is not None:
                return known
            span.put(at)
            slopes = [0.0] * count

            def see(name: str, gradient: Tensor) -> None:
                for i, s in enumerate(span.slopes(filed(name), gradient)):
                    slopes[i] += s / len(probing.plans)

            return log.add(Point(tuple(at), probing.loss(see), tuple(slopes)))

        ends = [measure([float(i == j) for j in range(count)]) for i in range(count)]
        base = measure([0.0] * count)
        first = min(range(count), key=lambda i: ends[i].loss)
        if not math.isfinite(ends[first].loss):
            raise DataError(f"no model has a finite loss on the sample; the first has {ends[0].loss}")
        gram = span.gram() if rule.form == "arc" else torch.eye(count, dtype=torch.float64)
        points = [*ends, base, *_descend(rule, first, count, gram, measure)]
    best = min(points, key=lambda p: p.loss)  # of equal ones the first: an end
    end = first if ends[first].loss <= base.loss else -1
    found = Found(best.position, best.loss, end, min(ends[first].loss, base.loss))
    draw(out / "position.html", [m.label for m in plan.models], points, best)
    return found


def _descend(rule: SelfPositioning, first: int, count: int, gram: Tensor, measure: Any) -> list[Point]:
    """Adam from model `first`. Points at which the loss is not finite end it."""
    numbers = start(rule.form, first, count).requires_grad_()
    adam = torch.optim.Adam([numbers], lr=rule.lr)
    points = []
    for step in range(rule.steps):
        alpha = coordinates(rule.form, numbers, gram)
        if step:  # the start is an end, which is measured
            points.append(measure(alpha.tolist()))
        point = points[-1] if points else measure(alpha.tolist())
        if not math.isfinite(point.loss):
            break
        (numbers.grad,) = torch.autograd.grad(alpha, numbers, torch.tensor(point.slopes, dtype=torch.float64))
        for group in adam.param_groups:
            group["lr"] = rule.lr * (1 - step / rule.steps)
        adam.step()
    if rule.steps:
        points.append(measure(coordinates(rule.form, numbers, gram).tolist()))
    return points


def start(form: str, first: int, count: int) -> Tensor:
    """The numbers at which the position is model `first`, float64."""
    if form == "linear":
        return torch.tensor([float(i == first) for i in range(count)], dtype=torch.float64)
    turns = [1.0 if i == first else 0.0 for i in range(1, count)]  # folded in and then left as it is
    return torch.tensor([*turns, 1.0], dtype=torch.float64)


def coordinates(form: str, numbers: Tensor, gram: Tensor) -> Tensor:
    """α (k,) of the numbers. "arc": t_2 ... t_k and the length ρ; u_1 = V_1, u_j = slerp(u_{j-1}, V_j; t_j), ρ u_k."""
    if form == "linear":
        return numbers * 1.0
    k = len(gram)
    u = torch.eye(k, dtype=torch.float64)[0]
    for j in range(1, k):
        v = torch.eye(k, dtype=torch.float64)[j]
        norm = (u @ gram @ u).clamp(min=1e-300).sqrt() * gram[j, j].clamp(min=1e-300).sqrt()
        cosine = ((u @ gram @ v) / norm).clamp(-1.0, 1.0)
        t = numbers[j - 1]
        if float(cosine.detach().abs()) > 1 - 1e-8:  # no plane: a straight line
            u = (1 - t) * u + t * v
            continue
        angle = cosine.acos()
        u = (torch.sin((1 - t) * angle) * u + torch.sin(t * angle) * v) / torch.sin(angle)
    return numbers[k - 1] * u


def _head(plan: Plan, rule: SelfPositioning, where: Where) -> dict[str, Any]:
    """What points hang on: of another sample, none may be taken again."""
    sample = {k: getattr(rule.sample, k) for k in ("rows", "batches", "temperature", "negatives", "seed")}
    data = [source.open(where).digest for source in rule.sample.data]
    told = {"steps": rule.steps, "lr": rule.lr, "form": rule.form}
    return {"rule": told, "sample": sample, "data": data, "models": [m.label for m in plan.models]}


class _Log:
    """Every point that was measured, in order, in a file; after a kill they are taken again instead of measured."""

    def __init__(self, file: Path, head: dict[str, Any]) -> None:
        self.file = file
        self.content: dict[str, Any] = {**head, "points": []}
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            if {k: v for k, v in found.items() if k != "points"} == head:
                self.content = found

    def take(self, at: Sequence[float]) -> Point | None:
        same = (p for p in self.content["points"] if p["position"] == list(at))
        found = next(same, None)
        return None if found is None else Point(tuple(found["position"]), found["loss"], tuple(found["slopes"]))

    def add(self, point: Point) -> Point:
        self.content["points"].append(asdict(point))
        aside = self.file.with_name(f".{self.file.name}.part")
        aside.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        aside.replace(self.file)
        return point
