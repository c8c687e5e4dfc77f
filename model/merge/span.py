"""A point in the span of task vectors, put into weights in memory, and the slope of a loss along each vector.

Tensors are read in blocks from the models' files, so that beside the weights and their gradient nothing of a model's
size is held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.types import DataError
from .blocks import Reader
from .opened import Plan
from .types import Products, combine, deltas
from .weights import Key, matched


@dataclass(frozen=True)
class Span:
    """θ0 + Σ α_i (θ_i - θ0). weights: the tensors in memory, by name; keys: of each, the files' name."""

    reader: Reader
    weights: Mapping[str, Tensor]
    keys: Mapping[str, Key]

    @staticmethod
    def of(plan: Plan, weights: Mapping[str, Tensor], size: int) -> Span:
        """Raises DataError where a weight is in no file: it could not be moved. size: elements of a block."""
        floating = [k for k, e in plan.first.entries.items() if e.floating and k not in plan.copies]
        names = {k.name: k for k in floating}
        keys = {}
        for name, tensor in weights.items():
            found = matched(name, names)
            if found is None and not tensor.requires_grad:
                continue  # a scale that no file has, a buffer that loading makes: it stays
            if found is None or plan.first.entries[names[found]].shape != tuple(tensor.shape):
                raise DataError(f"{plan.first.label}: none of its tensors is {name}, {list(tensor.shape)}, once loaded")
            keys[name] = names[found]
        return Span(Reader(plan, (), size), weights, keys)

    def put(self, position: Sequence[float]) -> None:
        """The weights at α, as TaskArithmetic writes them: at an end they are that model's to the bit."""
        with torch.no_grad():
            for name, tensor in self.weights.items():
                flat = tensor.detach().view(-1)
                for block in self.reader.blocks(self.keys[name]):
                    flat[block.start : block.start + len(block.models[0])] = combine(block, position).to(tensor)

    def slopes(self, name: str, gradient: Tensor) -> list[float]:
        """⟨gradient, θ_i - θ0⟩ of one tensor, for each model, float64."""
        flat, found = gradient.detach().reshape(-1), [0.0] * len(self.reader.plan.models)
        for block in self.reader.blocks(self.keys[name]):
            part = flat[block.start : block.start + len(block.models[0])].cpu().double()
            for i, v in enumerate(deltas(block)):
                found[i] += float(part @ v.double())
        return found

    def gram(self) -> Tensor:
        """⟨θ_i - θ0, θ_j - θ0⟩ over all weights, (k, k) float64."""
        products, k = Products(deltas), len(self.reader.plan.models)
        for key in self.keys.values():
            for block in self.reader.blocks(key):
                products.see(block)
        return torch.tensor([[products(i, j) for j in range(k)] for i in range(k)], dtype=torch.float64)
