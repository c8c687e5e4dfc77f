"""Fisher-weighted averaging (arXiv:2111.09832): every weight counts by how much its model's loss depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.types import DataError, Where
from .types import Block, Rule, shares


@dataclass(frozen=True)
class Fisher(Rule):
    """θ = Σ w_i F_i θ_i / Σ w_i F_i, element by element; the weighted mean where every F_i is zero.

    tensors: a safetensors file a model with the diagonal of its Fisher information, under the names of its weights
    (train/fisher.py makes them). weights: of the models, one each or one for all.
    """

    tensors: tuple[str, ...]
    weights: tuple[float, ...] = (1.0,)

    @property
    def beside(self) -> tuple[str, ...]:
        return self.tensors

    def outside(self, where: Where) -> Mapping[str, str]:
        """The digests of files that no step made."""
        return {f"Fisher tensors {f}": file_digest(Path(f)) for f in self.tensors}

    def check(self, count: int) -> None:
        for file in self.tensors if len(self.tensors) == count else ():
            if not Path(file).is_file():
                raise DataError(f"{file}: no such file of Fisher tensors")
        if len(self.tensors) != count:
            raise DataError(f"fisher: {len(self.tensors)} files of Fisher tensors for {count} models; give one each")
        shares(self.weights, count, "weights")

    def merge(self, block: Block, found: Any) -> Tensor:
        own = shares(self.weights, len(block.models), "weights")
        total = torch.zeros_like(block.models[0], dtype=torch.float64)
        mean, weight = torch.zeros_like(total), torch.zeros_like(total)
        for w, theta, f in zip(own, block.models, block.beside, strict=True):
            heavy, theta = f.double() * w, theta.double()
            total += theta * heavy
            weight += heavy
            mean += theta * w
        return torch.where(weight > 0, total / weight.clamp(min=1e-300), mean).to(block.models[0].dtype)


def file_digest(file: Path) -> str:
    """32 hex digits of a file's bytes. Raises DataError where it is not there."""
    if not file.is_file():
        raise DataError(f"{file}: no such file of Fisher tensors")
    h = blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            h.update(block)
    return h.hexdigest()
