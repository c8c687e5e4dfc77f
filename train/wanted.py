"""What a step wants of a forward beside vectors: terms that an Item has alone, and vectors of inner layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..model.embedder import Embedder
from ..model.terms import LocalTerms, StateTerms
from ..model.types import Encoded, Inputs, Towers
from .engine import Engine
from .loss import Bound, layers_of, local_terms
from .objectives.types import Layer, Local, States, SumCount


@dataclass(frozen=True)
class Wanted:
    """As Embedder.forward takes it. named: the layers as the objectives call them, and which they are."""

    local: LocalTerms
    states: StateTerms = field(default_factory=dict)
    named: Mapping[Layer, int] = field(default_factory=dict)

    @staticmethod
    def of(bounds: Sequence[Bound], embedder: Embedder) -> Wanted:
        """Raises ValueError for a layer that the model has not."""

        def local(objective: Local) -> Callable[[Tensor, Tensor], tuple[Tensor, int]]:
            return lambda logits, labels: _pair(objective.local(logits, labels))

        def states(objective: States) -> Callable[[Tensor], tuple[Tensor, int]]:
            return lambda last: _pair(objective.states(last))

        terms = local_terms(bounds)
        return Wanted(
            {name: (groups, local(o)) for name, (groups, o) in terms.items() if isinstance(o, Local)},
            {name: (groups, states(o)) for name, (groups, o) in terms.items() if isinstance(o, States)},
            {layer: embedder.layer(layer) for layer in layers_of(bounds)},
        )

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.named.values())))

    def embed(self, engine: Engine, inputs: Inputs, towers: Towers | None = None) -> Encoded:
        return engine.embed(inputs, self.local, towers, self.layers, self.states)

    def vectors(self, engine: Engine, inputs: Inputs) -> Encoded:
        """Without what an Item has alone."""
        return engine.embed(inputs, None, None, self.layers)


def _pair(found: SumCount) -> tuple[Tensor, int]:
    return found.sum, found.count
