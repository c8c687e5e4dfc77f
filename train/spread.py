"""Encoding on all ranks of a run, while it trains: each does its share, all get every vector."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from ..data.types import Item, Side
from ..model.encode import Spread, encode
from ..model.types import Inputs
from .engine import Engine


@dataclass(frozen=True)
class Together:
    """An Encoder (model.types) over the ranks of an engine. All of them call it with the same items."""

    engine: Engine
    digest: str = ""  # the weights change with every step: nothing is named by them

    def encode_items(
        self, items: Iterable[Item], *, side: Side = "query", instruction: str = "", progress: str = ""
    ) -> Tensor:
        embedder, group = self.engine.embedder, self.engine.group
        spread = Spread(group.ranks, self._run, group.sum_)  # of one rank, too: the engine knows the precision
        label = progress if group.rank == 0 else ""
        return encode(embedder, embedder.prompts(items, side, instruction), progress=label, spread=spread)

    def _run(self, inputs: Inputs) -> Tensor:
        return self.engine.embed(inputs).vectors
