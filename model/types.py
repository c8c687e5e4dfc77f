"""Inputs, Towers, Encoded, and the protocols Format, Backbone and Encoder.

A Format is the host half of a backbone: it counts and collates, holds no weights, and is pickled to data workers.
A Backbone is the device half: a torch module that turns Inputs into hidden states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ..data.types import Cost, Item, Limits, Prompted, Side

Attention = Literal["causal", "bidirectional", "prefix"]
# causal: every token sees what is before it in its segment.
# bidirectional: every token sees its whole segment (an answer is refused: it would leak).
# prefix: the first `prefix` tokens of a segment see each other; the answer behind them is causal.


@dataclass(frozen=True)
class Inputs:
    """One packed row of n segments, T tokens. Segment i is the rendered Prompted i: its prompt, then its answer if any.

    lengths and prefix are host tuples (attention needs them without a device sync); the rest are tensors.
    """

    ids: Tensor  # (T,) int64
    lengths: tuple[int, ...]  # tokens of each segment, summing to T
    prefix: tuple[int, ...]  # tokens of each segment's prompt; the rest is its answer
    positions: Tensor  # (P, T) int64: P = 1, or 3 for M-RoPE, or 4
    pooled: Tensor  # (T,) bool: tokens that mean-type pooling may see (instruction and answer tokens are out)
    labels: Tensor  # (T,) int64: label of the NEXT token as predicted at this position, -100 where there is none
    media: Mapping[str, Tensor] = field(default_factory=dict)  # "image_patches" uint8 (n, d), "image_grid" (m, 3), ...
    keys: tuple[str, ...] = ()  # of the segments, for errors
    groups: tuple[
        int, ...
    ] = ()  # of the segments: Prompted.group, so that each source's answers meet their own objective
    failed: tuple[int, ...] = ()  # segments that could not be decoded and stand in as grey (on_error="skip")
    dummies: int = 0  # trailing segments whose vectors are dropped

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Inputs:
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        media = {k: v.to(device, non_blocking=non_blocking) for k, v in self.media.items()}
        return replace(self, **moved, media=media)

    def pin(self) -> Inputs:
        moved = {
            f.name: getattr(self, f.name).pin_memory()
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved, media={k: v.pin_memory() for k, v in self.media.items()})

    @property
    def nbytes(self) -> int:
        tensors = [self.ids, self.positions, self.pooled, self.labels, *self.media.values()]
        return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class Towers:
    """What the media towers gave, in the order of the media tokens in the row. Kept between passes where frozen."""

    features: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)  # "image": (features, deepstack 0, 1, ...)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for v in self.features.values() for t in v)


@dataclass
class Encoded:
    """What one chunk's forward returns. vectors (n, D) normalised float32; scale: the inverse temperature, (1,), or
    with the step of int8 vectors behind it, (2,); local, states: name -> (sum, count); at: layer -> (n, width)."""

    vectors: Tensor
    scale: Tensor
    local: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    at: dict[int, Tensor] = field(default_factory=dict)
    towers: Towers | None = None
    states: dict[str, tuple[Tensor, int]] = field(default_factory=dict)


class Format(Protocol):
    """The host half of a backbone. Plain data and a tokenizer: pickled to workers."""

    def count(self, prompts: Sequence[Prompted], limits: Sequence[Limits]) -> list[Cost]: ...

    def collate(
        self, prompts: Sequence[Prompted], limits: Sequence[Limits], dummies: Sequence[str] = (), skip: bool = False
    ) -> Inputs:
        """One packed row, segments in the order given. Decodes media; raises DataError naming the key, or with `skip`
        puts a grey medium of the planned size in its place and lists the segment in `failed`. Each name in `dummies`
        ("image", "video") appends the smallest segment with such a medium."""
        ...


class Backbone(Protocol):
    """The device half of a model family."""

    @property
    def format(self) -> Format: ...

    @property
    def width(self) -> int: ...

    @property
    def model(self) -> nn.Module: ...  # the stock transformers class, with its head: saved by save_pretrained

    def towers(self, inputs: Inputs) -> Towers: ...

    def embed(self, inputs: Inputs, towers: Towers, attention: Attention) -> Tensor:
        """The base model's normed last hidden state, (T, width)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(m, width) -> (m, vocabulary), through the model's own head. Raises where the family has none."""
        ...

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by part, for learning rates: "tower", "projector", "language", "head"."""
        ...


class Encoder(Protocol):
    """Anything that embeds Items: an Embedder, an open_clip model, a sentence-transformers folder."""

    def encode_items(
        self,
        items: Sequence[Item] | Iterable[Item],
        *,
        side: Side = "query",
        instruction: str = "",
        progress: str = "",
    ) -> Tensor:
        """(n, D) float32, L2-normalised, on the CPU, in the order given. `progress` labels a bar; empty: none."""
        ...

    @property
    def digest(self) -> str:
        """Names the weights and settings: equal digests, equal vectors."""
        ...
