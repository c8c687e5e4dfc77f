"""What a rank owns of the trained weights and their moments, read and put back by name and range.

Every engine says which ranges it owns; saving and restoring is the same for all, so that what one engine saved on any
number of ranks is restored by another on any other number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + len(values)) of the flattened parameter `name`: its weight, or a moment of it.

    kind: "weight", "exp_avg", "exp_avg_sq", or "step" (one number). values: 1-D float32, not yet copied: who keeps them
    copies them before the next update. shape: of the whole parameter.
    """

    name: str
    kind: str
    start: int
    values: Tensor
    shape: tuple[int, ...]


class Read(Protocol):
    """Reads a saved range: (name, kind, start, stop) -> 1-D float32 on the CPU. Raises KeyError where none is saved."""

    def __call__(self, name: str, kind: str, start: int, stop: int) -> Tensor: ...


@dataclass(frozen=True)
class Fragment:
    """A range of a parameter that this rank updates.

    weight: 1-D, a view of what the optimiser moves. state: the optimiser's entry for the tensor that the range lies in
    (the parameter, or a flat buffer of many), empty before the first update. of: that tensor; at: where in it.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    weight: Tensor
    state: MutableMapping[str, Any]
    of: Tensor
    at: int

    def part(self, first: int, stop: int) -> Fragment:
        """Elements [first, stop) of it."""
        weight = self.weight[first:stop]
        return Fragment(self.name, self.shape, self.start + first, weight, self.state, self.of, self.at + first)

    def moment(self, kind: str) -> Tensor:
        whole: Tensor = self.state[kind]
        return whole.detach().view(-1).narrow(0, self.at, len(self.weight))


def pieces(fragments: Iterable[Fragment]) -> Iterator[Piece]:
    """All that must survive of the fragments. A parameter's step comes with its first element."""
    for f in fragments:
        if not len(f.weight):
            continue
        yield Piece(f.name, "weight", f.start, f.weight.detach().float(), f.shape)
        if not f.state:
            continue
        for kind in MOMENTS:
            yield Piece(f.name, kind, f.start, f.moment(kind).float(), f.shape)
        if f.start == 0:
            yield Piece(f.name, "step", 0, torch.as_tensor(f.state["step"], dtype=torch.float32).view(1), f.shape)


@torch.no_grad()
def restore(fragments: Iterable[Fragment], read: Read) -> None:
    """Put weights and moments back; moments that were never saved start anew."""
    for f in fragments:
        stop = f.start + len(f.weight)
        _fill(f.weight, read(f.name, "weight", f.start, stop), f)
        try:
            step = read(f.name, "step", 0, 1)
        except KeyError:
            f.state.clear()
            continue
        if not f.state:
            f.state.update({kind: torch.zeros_like(f.of, requires_grad=False) for kind in MOMENTS})
            f.state["step"] = torch.zeros((), dtype=torch.float32, device=f.of.device)
        f.state["step"].fill_(float(step))
        for kind in MOMENTS:
            _fill(f.moment(kind), read(f.name, kind, f.start, stop), f)


def _fill(into: Tensor, values: Tensor, of: Fragment) -> None:
    if len(values) != len(into):
        stop = of.start + len(into)
        raise ValueError(f"{of.name}: {len(values)} values came for elements {of.start} to {stop} of {of.shape}")
    into.copy_(values)
