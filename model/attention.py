"""Packed attention, registered with transformers: one row holds many segments and no token sees beyond its own.

The segments travel as a keyword of our own through the stock model's forward. They must not sit in a global, on the
module or in the config: a kept graph that recomputes its blocks would read whatever is there by then, and the
gradient would be silently wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .types import Attention

LANGUAGE = "omni2vec_packed"
# Vision towers hand over all their lengths in one call only where the name contains "flash"; under any other name they
# call once a picture, with a copy of the lengths to the host each time.
TOWER = "omni2vec_flash_packed"


@dataclass(frozen=True)
class Segments:
    """Lengths of the packed segments (host integers), and how tokens see each other within one."""

    lengths: tuple[int, ...]
    prefix: tuple[int, ...]
    attention: Attention

    def __post_init__(self) -> None:
        if self.attention == "bidirectional" and self.lengths != self.prefix:
            raise ValueError(
                "an answer would leak into its own vector under bidirectional attention; use attention='prefix'"
            )

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """(count, length, prefix) of neighbouring segments of equal shape: each run is one batched call."""
        return [
            (len(list(group)), length, prefix)
            for (length, prefix), group in groupby(zip(self.lengths, self.prefix, strict=True))
        ]

    @cached_property
    def causal(self) -> bool:
        return self.attention == "causal"

    @cached_property
    def split(self) -> bool:
        """Whether some segment has an answer behind a prefix that sees all of itself."""
        return self.attention == "prefix" and self.lengths != self.prefix


def _mask(length: int, prefix: int, segments: Segments, window: int | None, device: torch.device) -> Tensor | None:
    """(length, length) bool, True where a token (row) sees another; None where no mask beyond causality is needed."""
    window = None if window is None or length <= window else window
    split = segments.attention == "prefix" and prefix < length
    if window is None and not split:
        return None
    mask = torch.ones(length, length, dtype=torch.bool, device=device)
    if segments.causal or split:
        mask = mask.tril()
    if split:
        mask[:, :prefix] = True
    if window is not None:
        mask &= torch.ones_like(mask).tril(window - 1).triu(1 - window)
    return mask


def _runs_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None, dropout: float, window: int | None
) -> Tensor:
    """q (1, H, T, D), k and v (1, K, T, D) -> (1, T, H, D): a batched call per run of equal segments."""
    gqa = q.shape[1] != k.shape[1]
    out, start = [], 0
    for count, length, prefix in segments.runs:
        stop = start + count * length
        a, b, c = (t[0, :, start:stop].unflatten(1, (count, length)).transpose(0, 1) for t in (q, k, v))
        mask = _mask(length, prefix, segments, window, q.device)
        if mask is not None:
            o = F.scaled_dot_product_attention(a, b, c, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=gqa)
        else:
            causal = segments.causal and length > 1
            o = F.scaled_dot_product_attention(
                a, b, c, dropout_p=dropout, scale=scale, is_causal=causal, enable_gqa=gqa
            )
        out.append(o.transpose(1, 2).flatten(0, 1))  # (count, H, L, D) -> (count * L, H, D)
        start = stop
    return torch.cat(out).unsqueeze(0)


def _bounds(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)


def _varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bounds: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    causal: bool,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """q (T, H, D) against k and v (S, K, D): torch's own variable-length kernel (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    back = -1 if window is None else window - 1
    sides = (back, 0 if causal else back)
    out = varlen_attn(q, k, v, *bounds, *longest, scale=scale, window_size=sides, enable_gqa=q.shape[1] != k.shape[1])
    assert isinstance(out, Tensor)
    return out


def _cuda_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float | None, window: int | None
) -> Tensor:
    """As `_runs_attention`, in one kernel; two where an answer stands behind a bidirectional prefix."""
    a, b, c = (t[0].transpose(0, 1).contiguous() for t in (q, k, v))
    whole, longest = _bounds(segments.lengths, q.device), max(segments.lengths)
    if not segments.split:
        return _varlen(a, b, c, (whole, whole), (longest, longest), segments.causal, scale, window).unsqueeze(0)
    first = torch.zeros(a.shape[0], dtype=torch.bool)
    start = 0
    for length, prefix in zip(segments.lengths, segments.prefix, strict=True):
        first[start : start + prefix] = True
        start += length
    front, back = (m.nonzero().squeeze(1).to(q.device, non_blocking=True) for m in (first, ~first))
    answers = tuple(n - p for n, p in zip(segments.lengths, segments.prefix, strict=True))
    out = torch.empty_like(a)
    heads, tails = _bounds(segments.prefix, q.device), _bounds(answers, q.device)
    most = max(segments.prefix)
    prompt = _varlen(a[front], b[front], c[front], (heads, heads), (most, most), False, scale, window)
    # Causality is aligned to the end of each segment, so the j-th answer token sees its prefix and answer tokens 0..j.
    answer = _varlen(a[back], b, c, (tails, whole), (max(answers), longest), True, scale, window)
    return out.index_copy(0, front, prompt).index_copy(0, back, answer).unsqueeze(0)


def _lowered(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In autocast's precision, as torch's own attention casts. With float32 weights the rotation by float32 angles has
    taken queries and keys out of it again, and the half-precision kernel would be passed by."""
    device = query.device.type
    if query.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return query, key, value
    low = torch.get_autocast_dtype(device)
    return query.to(low), key.to(low), value.to(low)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,  # transformers passes every model its own extras (position_ids, max_length_q, ...)
) -> tuple[Tensor, None]:
    """The function that transformers calls in every attention layer: query (1, H, T, D) -> (1, T, H, D).

    Language models are given `segments`; vision towers give `cu_seq_lens_q` and see all of a picture.
    """
    if segments is None:
        if cu_seq_lens_q is None:
            raise ValueError(
                f"{type(module).__name__}: packed attention needs `segments`; call the model through its Backbone"
            )
        bounds = cu_seq_lens_q.tolist()
        lengths = tuple(b - a for a, b in pairwise(bounds))
        segments = Segments(lengths, lengths, "bidirectional")
    query, key, value = _lowered(query, key, value)
    beyond = {"softcap": softcap, "s_aux": s_aux, "position_bias": position_bias}
    if given := [name for name, value_ in beyond.items() if value_ is not None]:
        raise NotImplementedError(f"{type(module).__name__}: packed attention has no {', '.join(given)}")
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        return _cuda_attention(query, key, value, segments, scaling, sliding_window), None
    return _runs_attention(query, key, value, segments, scaling, dropout, sliding_window), None


def _no_mask(*_: Any, **__: Any) -> None:
    """Segments take the place of a mask."""


def register() -> None:
    """Make both names known to transformers. Safe to call again."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    for name in (LANGUAGE, TOWER):
        AttentionInterface.register(name, packed_attention)
        AttentionMaskInterface.register(name, _no_mask)
