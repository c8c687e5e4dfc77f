"""The index of a batch and the blocks it is worked in: nothing of size Q x N, each row once, equal ids together."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.relation import Relation, id_pair
from omni2vec.data.types import Clock
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.negatives import Negatives, dense_index, spans
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .rows import plain, row, vectors

CLOCK = Clock(step=0, progress=0.0, seed=0)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor):
                self.numel = max(self.numel, t.numel())
        return out


@pytest.mark.parametrize(
    "options",
    [{}, {"both": True}, {"mask_labels": True, "across_sources": True}, {"both": True, "mask_labels": True}],
    ids=str,
)
@pytest.mark.parametrize("answers", ["distinct", "two"])
def test_no_tensor_is_larger_than_a_tile_or_the_operands(options: dict[str, Any], answers: str) -> None:
    """With two answers in all, half of the matrix is masked: the list of what is masked is bounded as well."""
    count, dim, tile = 512, 4, 16
    examples = [
        row(f"q{i}", f"d{i if answers == 'distinct' else i % 2}", label=str(i % 9), source="ab"[i % 2])
        for i in range(count)
    ]
    relation = Relation.of(examples, ["a", "b"])
    query, docs, scale = vectors(relation, dim)
    allowed = max(tile * tile, tile // 8 * count, 2 * 3 * count)  # 3,072 of 262,144; ids are two numbers each
    with Largest() as seen:
        InfoNCE(**options, tile=tile).contrast(query, docs, relation, scale, CLOCK).sum.backward()
    assert seen.numel <= allowed
    with Largest() as naive:
        F.cross_entropy(scale * query @ docs.T, torch.arange(count)).backward()
    assert naive.numel == count * count  # the measure sees such an array where there is one


@pytest.mark.parametrize("answers", [2048, 2])
def test_the_index_and_its_masks_stay_linear_on_the_host(answers: int) -> None:
    """NumPy tells tracemalloc of its arrays. With two answers in all, half of the 4 million pairs are masked."""
    count = 2048
    relation = Relation.of([row(f"q{i}", f"d{i % answers}", known="far away") for i in range(count)], ["a"])
    tracemalloc.start()
    index = Negatives.of(relation, shared=True, in_batch=True, mask_labels=False, across_sources=False).strips[0]
    masked = sum(len(block.masked) for block in index.blocks(16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert masked == count * count // answers
    assert peak < 1.5e6  # one byte for each pair would be 4.2e6


def test_blocks_cover_every_row_once_and_hold_a_bounded_number_of_logits() -> None:
    relation = Relation.of(plain(1000), ["a"])
    index = Negatives.of(relation, shared=True, in_batch=True, mask_labels=False, across_sources=False).strips[0]
    for tile in (1, 7, 64, 5000):
        blocks = list(index.blocks(tile))
        assert [i for b in blocks for i in range(b.rows.start, b.rows.stop)] == list(range(1000))
        assert [i for b in blocks for i in range(b.positives.start, b.positives.stop)] == list(range(1000))
        assert max(b.rows.stop - b.rows.start for b in blocks) * 1000 <= max(tile * tile, tile / 8 * 1000, 1000)


def test_pairs_share_an_index_when_both_halves_agree() -> None:
    pairs = np.array([[1, 2], [1, 3], [2, 2], [1, 2], [-5, 2**62], [2, 2]])
    index = dense_index(pairs)
    assert [np.flatnonzero(index == index[k]).tolist() for k in range(6)] == [
        [0, 3],
        [1],
        [2, 5],
        [0, 3],
        [4],
        [2, 5],
    ]
    assert int(index.max()) < 6
    assert id_pair("a") != id_pair("b")


def test_spans_lists_ranges_one_after_the_other() -> None:
    which, index = spans(np.array([5, 9, 0]), np.array([3, 0, 2]))
    assert (which.tolist(), index.tolist()) == ([0, 0, 0, 2, 2], [5, 6, 7, 0, 1])
