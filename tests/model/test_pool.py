"""Pooling against ten-line references, per segment of a packed row."""

import pytest
import torch
from omni2vec.model import pool
from omni2vec.model.types import Inputs

LENGTHS, PREFIX = (4, 1, 6), (4, 1, 3)


@pytest.fixture
def row():
    total = sum(LENGTHS)
    pooled = torch.tensor([0, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0], dtype=torch.bool)
    ids = torch.zeros(total, dtype=torch.int64)
    inputs = Inputs(ids, LENGTHS, PREFIX, ids[None], pooled, ids - 100)
    return torch.randn(total, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), inputs


def segments(hidden, inputs):
    return zip(hidden.split(LENGTHS), inputs.pooled.split(LENGTHS), PREFIX, strict=True)


def test_last_is_the_prompt_s_last_token_not_the_answer_s(row):
    expected = torch.stack([h[p - 1] for h, _, p in segments(*row)])
    assert torch.equal(pool.last_token(*row), expected)


def test_first_is_the_segment_s_first_token(row):
    assert torch.equal(pool.first_token(*row), torch.stack([h[0] for h, _, _ in segments(*row)]))


def test_mean_is_over_pooled_tokens(row):
    expected = torch.stack([h[m].mean(0) for h, m, _ in segments(*row)])
    torch.testing.assert_close(pool.mean(*row), expected)


def test_weighted_mean_counts_up_along_pooled_tokens(row):
    expected = []
    for h, m, _ in segments(*row):
        w = torch.arange(1, int(m.sum()) + 1, dtype=torch.float64)
        expected.append((h[m] * w[:, None]).sum(0) / w.sum())
    torch.testing.assert_close(pool.weighted_mean(*row), torch.stack(expected))


def test_a_segment_without_pooled_tokens_gives_zeros_not_nan(row):
    hidden, inputs = row
    from dataclasses import replace

    none = replace(inputs, pooled=torch.zeros_like(inputs.pooled))
    assert torch.equal(pool.mean(hidden, none), torch.zeros(3, 8, dtype=torch.float64))


def test_latent_attention_equals_one_segment_at_a_time(row):
    hidden, inputs = row
    torch.manual_seed(0)
    latent = pool.LatentAttention(8, latents=5, heads=2).double()
    together = latent(hidden, inputs)
    for i, (h, m, p) in enumerate(segments(hidden, inputs)):
        ids = torch.zeros(len(h), dtype=torch.int64)
        alone = latent(h, Inputs(ids, (len(h),), (p,), ids[None], m, ids - 100))
        torch.testing.assert_close(together[i : i + 1], alone)
