"""Merging on the bed of vectors: what becomes of two specialists from one start, and of two runs that differ by chance.

The start has seen both tasks for a while: which half belongs to which (`mrr`), and which halves are of one digit
(`class hit`). One specialist goes on with the first, the other with the second; a score is the mean of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ablation_sets import Pairs, lacks, pairs
from ablation_table import Effect
from ablation_vectors import Fit, Towers, batches, scores, train
from omni2vec.model.merge.average import Average
from omni2vec.model.merge.dare import Dare
from omni2vec.model.merge.delta_guided import DeltaGuided
from omni2vec.model.merge.ema import Ema
from omni2vec.model.merge.slerp import Slerp
from omni2vec.model.merge.task_arithmetic import TaskArithmetic
from omni2vec.model.merge.ties import Ties
from omni2vec.model.merge.types import Block, Rule
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.position import coordinates, start
from torch import Tensor

OWN = Fit("digits", (InfoNCE(),), steps=150)
CLASS = replace(OWN, objectives=(InfoNCE(mask_labels=True),), task="class")
RULES: Mapping[str, Rule] = {
    "average": Average(),
    "slerp": Slerp(0.5),
    "task arithmetic, 0.7": TaskArithmetic((0.7,)),
    "TIES": Ties(),
    "DARE": Dare(),
    "delta-guided": DeltaGuided(),
}
State = dict[str, Tensor]


@dataclass(frozen=True)
class Merges:
    """All merges of one seed. points: of Self Positioning, by Adam on the loss of a sample of training batches."""

    name: str = "merges"
    first: tuple[Fit, ...] = (OWN, CLASS)
    second: tuple[Fit, ...] = (OWN, CLASS)
    rules: tuple[tuple[str, Rule], ...] = tuple(RULES.items())
    points: int = 20

    @property
    def bed(self) -> str:
        return "vectors, digits"

    def lacks(self) -> str:
        return lacks("digits")

    def run(self, seed: int, work: Path) -> Mapping[str, float]:
        data = pairs("digits", work)
        model = Towers(data, OWN, seed)
        for fit in self.first:
            train(model, data, fit, seed)
        base = _state(model)
        ends = [self._continued(model, base, data, (fit,), seed + 1) for fit in self.second]
        found: dict[str, float] = {}

        def score(name: str, state: Mapping[str, Tensor]) -> None:
            model.load_state_dict(state)
            own, of_class = scores(model, data, OWN)["mrr"], scores(model, data, CLASS)["class hit"]
            found.update({name: (own + of_class) / 2, f"{name}: mrr": own, f"{name}: class hit": of_class})

        score("start", base)
        for name, end in zip(("first specialist", "second specialist"), ends, strict=True):
            score(name, end)
        found["best specialist"] = max(found["first specialist"], found["second specialist"])
        for name, rule in self.rules:
            score(name, merged(rule, ends, base if rule.needs_base else None))
        score("self-positioning", self._positioned(model, ends, base, data, seed))
        score("joint", self._continued(model, base, data, (*self.second, *self.second), seed + 1))
        runs = [self._continued(model, base, data, (OWN,), seed + 11 * k) for k in (1, 2, 3)]
        score("one run", runs[0])
        score("soup of three", merged(Average(), runs, None))
        halves = [self._continued(model, base, data, (OWN,), seed + 1, steps) for steps in (50, 100, 150)]
        score("EMA of one run", merged(Ema(0.5), halves, None))
        return found

    def _continued(
        self, model: Towers, base: State, data: Pairs, fits: tuple[Fit, ...], seed: int, steps: int = 0
    ) -> State:
        model.load_state_dict(base)
        for i, fit in enumerate(fits):
            train(model, data, replace(fit, rate=fit.rate / 2), seed + 1000 * i, steps)
        return _state(model)

    def _positioned(self, model: Towers, ends: Sequence[State], base: State, data: Pairs, seed: int) -> State:
        """The linear form of train/position.py, from the end that serves the sample best."""
        sample = [(fit, b) for fit in self.second for b in batches(data, replace(fit, batch=64), seed + 7, 3)]

        def loss(alpha: Tensor) -> Tensor:
            state = {
                k: base[k] + sum(a * (e[k] - base[k]) for a, e in zip(alpha.float(), ends, strict=True)) for k in base
            }
            total = torch.zeros(())
            for fit, batch in sample:
                query, docs = torch.func.functional_call(model, state, (data.query[batch.rows], batch.docs))
                found = fit.objectives[0].contrast(
                    query, docs, batch.relation, torch.tensor([1 / fit.temperature]), None
                )
                total = total + found.sum / found.count
            return total

        count = len(ends)
        losses = [float(loss(torch.eye(count)[i])) for i in range(count)]
        numbers = start("linear", min(range(count), key=losses.__getitem__), count).requires_grad_()
        adam, best = torch.optim.Adam([numbers], lr=0.1), (min(losses), numbers.detach().clone())
        for _ in range(self.points):
            alpha = coordinates("linear", numbers, torch.eye(count, dtype=torch.float64))
            value = loss(alpha)
            if value.item() < best[0]:
                best = (value.item(), alpha.detach().clone())
            (numbers.grad,) = torch.autograd.grad(value, numbers)
            adam.step()
        return merged(TaskArithmetic(tuple(best[1].tolist())), ends, base)


def _state(model: Towers) -> State:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def merged(rule: Rule, states: Sequence[Mapping[str, Tensor]], base: Mapping[str, Tensor] | None) -> State:
    """State dicts merged in memory, a tensor a block. Tied weights stand under two names and stay equal."""
    rule.check(len(states))
    blocks = {
        name: Block(name, 0, tuple(s[name].flatten() for s in states), None if base is None else base[name].flatten())
        for name, tensor in states[0].items()
        if tensor.is_floating_point()
    }
    looks: dict[str, Any] = {}
    for group in [list(blocks)] if rule.scope == "model" else [[name] for name in blocks]:
        look = rule.look(len(states), base is not None)
        again = look is not None
        while again and look is not None:
            for name in group:
                look.see(blocks[name])
            again = look.again()
        looks.update(dict.fromkeys(group, look))
    out = dict(states[0])
    for name, block in blocks.items():
        out[name] = rule.merge(block, looks[name]).reshape(states[0][name].shape)
    return out


def effects() -> Iterator[Effect]:
    trial = Merges()
    value = "mean of mrr and class hit"
    for name in (*RULES, "self-positioning"):
        yield Effect(
            f"merge: {name}", "two specialists merged", "the better of them", trial, trial, name, "natural",
            "best specialist", value,
        )  # fmt: skip
    yield Effect(
        "merge against joint", "two specialists averaged", "both tasks trained on, as many steps", trial, trial,
        "average", "natural", "joint", value,
    )  # fmt: skip
    for name in ("soup of three", "EMA of one run"):
        yield Effect(f"merge: {name}", name, "one run", trial, trial, f"{name}: mrr", "natural", "one run: mrr", "mrr")
