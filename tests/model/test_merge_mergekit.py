"""Our merge rules beside mergekit's (0.1.5) on the same numbers."""

import pytest
import torch
from omni2vec.model.merge.slerp import Slerp
from omni2vec.model.merge.ties import Ties
from omni2vec.model.merge.types import Block

pytest.importorskip("mergekit", reason="mergekit is not installed: pip install mergekit")


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def merged(rule, models, base=None):
    block = Block("w", 0, tuple(m.view(-1) for m in models), None if base is None else base.view(-1))
    look = rule.look(len(models), base is not None)
    look.see(block)
    while look.again():
        look.see(block)
    return rule.merge(block, look).view(models[0].shape)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_is_mergekits(t):
    from mergekit.merge_methods.slerp import slerp

    one, two = drawn(1, 40, 30).double(), drawn(2, 40, 30).double() + 0.5
    (want,) = slerp(torch.tensor([t], dtype=torch.float64), one[None], two[None])  # it has an axis of outputs
    assert torch.allclose(merged(Slerp(t), [one, two]), want, atol=1e-12)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 1.0, 2.0)])
def test_ties_is_mergekits(weights):
    from mergekit.merge_methods.generalized_task_arithmetic import get_mask
    from mergekit.sparsify import SparsificationMethod, sparsify

    base, models = drawn(0, 40, 30), [drawn(i, 40, 30) for i in (1, 2, 3)]
    kept = [sparsify(m - base, density=0.25, method=SparsificationMethod.magnitude) for m in models]
    weight = torch.tensor(weights)[:, None, None]
    weighted = torch.stack(kept) * weight
    mask = get_mask(weighted, method="sum")
    mass = (weight * mask).sum(0)
    mass[mass == 0] = 1
    want = base + (weighted * mask).sum(0) / mass
    assert torch.allclose(merged(Ties(0.25, weights=weights), models, base), want, atol=1e-5)
