"""Packed attention with a sliding window, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omni2vec.model.attention import Segments, packed_attention

from .small import mixed, tiny


@pytest.mark.parametrize("window", [1, 2, 4, 7])
@pytest.mark.parametrize("attention", ["causal", "bidirectional", "prefix"])
def test_a_sliding_window_equals_a_dense_mask(attention: Any, window: int) -> None:
    """A token sees those less than `window` away, in its own segment: behind it, or on both sides in a prefix."""
    g = torch.Generator().manual_seed(0)
    lengths = (6, 6, 3, 1, 9)
    prefix = (4, 6, 2, 1, 5) if attention == "prefix" else lengths
    q, k, v = (torch.randn(1, 2, sum(lengths), 8, generator=g, dtype=torch.float64) for _ in range(3))
    mask = torch.zeros(sum(lengths), sum(lengths), dtype=torch.bool)
    start = 0
    for length, front in zip(lengths, prefix, strict=True):
        for i in range(length):
            for j in range(length):
                sees = {"causal": j <= i, "bidirectional": True, "prefix": j <= i or j < front}[attention]
                mask[start + i, start + j] = sees and abs(i - j) < window
        start += length
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    segments = Segments(lengths, prefix, attention)
    got, _ = packed_attention(torch.nn.Identity(), q, k, v, None, segments=segments, sliding_window=window)
    torch.testing.assert_close(got, expected.transpose(1, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("extra", ["softcap", "s_aux", "position_bias"])
def test_what_would_be_left_out_silently_is_refused(extra: str) -> None:
    q = torch.randn(1, 2, 4, 8)
    segments = Segments((4,), (4,), "causal")
    with pytest.raises(NotImplementedError, match=extra):
        packed_attention(torch.nn.Identity(), q, q, q, None, segments=segments, **{extra: torch.ones(1)})  # type: ignore[arg-type]


def test_under_autocast_queries_reach_the_kernel_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 weights under autocast, as full training has them: the rotation leaves queries in float32, and the CUDA
    kernel takes half precision alone."""
    from omni2vec.model import attention

    seen = []
    run = attention._runs_attention

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.extend([q.dtype, k.dtype, v.dtype])
        return run(q, k, v, *rest)

    monkeypatch.setattr(attention, "_runs_attention", spy)
    embedder = tiny()
    prompts = embedder.prompts(mixed(6))
    inputs = embedder.format.collate(prompts, [embedder.limits] * len(prompts))
    exact = embedder(inputs).vectors
    assert set(seen) == {torch.float32}
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        vectors = embedder(inputs).vectors
    assert set(seen) == {torch.bfloat16} and len(seen) == 3 * (2 + 3)  # decoder layers, tower blocks
    assert torch.nn.functional.cosine_similarity(vectors, exact).min() > 0.999
