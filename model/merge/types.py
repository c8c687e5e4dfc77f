"""What a merge rule is: a pure function of one block of numbers, the same for every size of block.

A block is a range of a tensor's elements in their order, so a rule that works element by element sees no more of it. A
rule that needs an angle, a norm or a quantile looks at all blocks first (`look`), as often as it asks for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ...data.types import DataError

PIECE = 1 << 16  # elements: every block begins at a multiple, so that sums by pieces are the same for any block
Scope = Literal["tensor", "model"]


@dataclass(frozen=True)
class Block:
    """Elements [start, start + n) of tensor `name`, of each model: (n,) float32, or float64 where the tensor is.

    name: by which random numbers are drawn; tied copies have one. base: of θ0, None without one. beside: of the files
    that the rule names, one a model.
    """

    name: str
    start: int
    models: tuple[Tensor, ...]
    base: Tensor | None = None
    beside: tuple[Tensor, ...] = field(default=())

    @property
    def origin(self) -> Tensor:
        """θ0. Raises DataError without one: the driver asks for it before."""
        if self.base is None:
            raise DataError("this rule works on differences from a base model; give base=")
        return self.base


class Look(Protocol):
    """What a rule finds out about one tensor, or about all, before it merges."""

    def see(self, block: Block) -> None: ...

    def again(self) -> bool:
        """After every block was seen: whether all must be seen once more."""
        ...


class Rule(ABC):
    """A frozen value; its concrete classes are one a file.

    needs_base: it works on V_i = θ_i - θ0. scope: whether `look` sees one tensor or all of them. beside: safetensors
    files, one a model, whose numbers of the same names stand in `Block.beside`.
    """

    @property
    def needs_base(self) -> bool:
        return False

    @property
    def scope(self) -> Scope:
        return "tensor"

    @property
    def beside(self) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def check(self, count: int) -> None:
        """Raises DataError where it cannot merge so many models."""

    def look(self, count: int, based: bool) -> Look | None:
        """What must be found out of a scope before it is merged; based: whether there is a base."""
        return None

    @abstractmethod
    def merge(self, block: Block, found: Any) -> Tensor:
        """The merged elements (n,), in the models' dtype. found: the Look of the block's scope, or None."""


class Linear(Rule):
    """A rule that gives Σ c_i θ_i + (1 - Σ c_i) θ0: it merges adapters as adapters too."""

    @abstractmethod
    def coefficients(self, count: int) -> tuple[float, ...]:
        """c_i, one a model. Raises DataError where the rule cannot merge so many."""

    def check(self, count: int) -> None:
        self.coefficients(count)

    def merge(self, block: Block, found: Any) -> Tensor:
        return combine(block, self.coefficients(len(block.models)))


def combine(block: Block, coefficients: Sequence[float]) -> Tensor:
    """Σ c_i θ_i + (1 - Σ c_i) θ0, summed in float64 and rounded once: equal inputs, and ends, come back to the bit."""
    total = torch.zeros_like(block.models[0], dtype=torch.float64)
    for c, theta in zip(coefficients, block.models, strict=True):
        if c:
            total += theta.double() * c
    rest = 1.0 - math.fsum(coefficients)
    if abs(rest) > 1e-12:
        total += block.origin.double() * rest
    return total.to(block.models[0].dtype)


def each(values: Sequence[float], count: int, what: str) -> tuple[float, ...]:
    """One number a model, given one each or one for all. Raises DataError for any other number of them, and for one
    that is not finite."""
    if not all(math.isfinite(v) for v in values):
        raise DataError(f"{what}={tuple(values)}: expected finite numbers")
    if len(values) == count:
        return tuple(float(v) for v in values)
    if len(values) == 1:
        return (float(values[0]),) * count
    raise DataError(f"{what}={tuple(values)}: {len(values)} numbers for {count} models; give one each, or one for all")


def shares(weights: Sequence[float], count: int, what: str) -> tuple[float, ...]:
    """Weights that sum to 1. Raises DataError where one is negative or all are zero."""
    found = each(weights, count, what)
    total = math.fsum(found)
    if not all(w >= 0 and math.isfinite(w) for w in found) or not total > 0:
        raise DataError(f"{what}={tuple(weights)}: expected numbers of 0 or more, and one above 0")
    return tuple(w / total for w in found)


class Products:
    """A Look: the dot products of some vectors of a block, all pairs. of: block -> the vectors (n,) each."""

    def __init__(self, of: Callable[[Block], Sequence[Tensor]]) -> None:
        self._of = of
        self._parts: dict[tuple[int, int], list[float]] = {}

    def see(self, block: Block) -> None:
        vectors = self._of(block)
        for i, a in enumerate(vectors):
            for j in range(i + 1):
                self.add(j, i, vectors[j], a)

    def add(self, i: int, j: int, a: Tensor, b: Tensor) -> None:
        """By pieces, whose `math.fsum` is rounded once: the same for any blocks."""
        pieces = zip(a.split(PIECE), b.split(PIECE), strict=True)
        self._parts.setdefault((i, j), []).extend(float((x.double() * y.double()).sum()) for x, y in pieces)

    def again(self) -> bool:
        return False

    def __call__(self, i: int, j: int) -> float:
        """⟨v_i, v_j⟩ over all that was seen."""
        return math.fsum(self._parts.get((min(i, j), max(i, j)), ()))


def deltas(block: Block) -> list[Tensor]:
    """The task vectors V_i = θ_i - θ0 (arXiv:2212.04089)."""
    return [theta - block.origin for theta in block.models]
