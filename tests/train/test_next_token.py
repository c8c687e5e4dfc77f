"""NextToken: a sum and a count, so that ragged chunks add up to the batch."""

from __future__ import annotations

from math import log

import pytest
import torch
import torch.nn.functional as F
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.objectives.types import Local


def _labelled(count: int, words: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(count)
    return torch.randn(count, words, dtype=torch.float64, requires_grad=True), torch.randint(words, (count,))


def test_the_sum_over_the_count_is_cross_entropy() -> None:
    logits, labels = _labelled(9)
    result = NextToken().local(logits, labels)
    assert result.count == 9
    torch.testing.assert_close(result.sum / result.count, F.cross_entropy(logits, labels), rtol=1e-14, atol=0)
    assert isinstance(NextToken(), Local)


def test_the_label_is_the_one_whose_logit_it_raises() -> None:
    logits, _ = _labelled(1)
    NextToken().local(logits, torch.tensor([4])).sum.backward()
    assert logits.grad is not None
    assert [i for i, g in enumerate(logits.grad[0].tolist()) if g < 0] == [4]


def test_equal_logits_give_log_of_the_vocabulary() -> None:
    assert float(NextToken().local(torch.zeros(3, 50), torch.tensor([1, 2, 3])).sum) == pytest.approx(3 * log(50))


def test_ragged_chunks_add_up_and_the_mean_of_their_means_does_not() -> None:
    """One answer of 2 tokens and one of 30: the mean of means is off by a quarter of the gradient and more."""
    logits, labels = _labelled(32)
    parts = [NextToken().local(logits[s], labels[s]) for s in (slice(0, 2), slice(2, 32))]
    count = sum(p.count for p in parts)
    (whole,) = torch.autograd.grad(F.cross_entropy(logits, labels), [logits])
    (summed,) = torch.autograd.grad(sum(p.sum for p in parts) / count, [logits], retain_graph=True)
    (of_means,) = torch.autograd.grad(sum(p.sum / p.count for p in parts) / 2, [logits])
    torch.testing.assert_close(summed, whole, rtol=1e-12, atol=1e-15)
    assert float((of_means - whole).norm() / whole.norm()) > 0.25


def test_no_label_gives_a_zero_that_reaches_the_head() -> None:
    head = torch.nn.Linear(4, 7)
    result = NextToken().local(head(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.int64))
    result.sum.backward()
    assert (float(result.sum.detach()), result.count) == (0.0, 0)
    assert head.weight.grad is not None
    assert torch.equal(head.weight.grad, torch.zeros(7, 4))


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, labels = _labelled(200)
    half = logits.detach().bfloat16()
    result = NextToken().local(half, labels)
    assert result.sum.dtype == torch.float32
    torch.testing.assert_close(result.sum, F.cross_entropy(half.float(), labels, reduction="sum"))


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(3, 11\), labels \(2,\)"):
        NextToken().local(torch.zeros(3, 11), torch.zeros(2, dtype=torch.int64))
