"""The loss that ranks divide among them against one process: values, gradients, collectives, memory."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from omni2vec.data.relation import Relation
from omni2vec.data.types import Clock, Example
from omni2vec.train.gather import Group, bounds
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.sharded import pieces
from omni2vec.train.objectives.types import Graded, Sharded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..ranks import run
from .rows import mixed, plain, row, vectors
from .test_infonce import OPTIONS
from .threaded import on_ranks

CLOCK = Clock(step=0, progress=0.0, seed=0)
STRIPS = 20


class Made(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made; a view of what was given is not made."""

    def __init__(self, given: set[int]) -> None:
        super().__init__()
        self.given, self.numel = given, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in self.given:
                self.numel = max(self.numel, t.numel())
        return out


def whole(o: InfoNCE, relation: Relation, operands: list[Tensor]) -> tuple[Tensor, int, list[Tensor]]:
    out = o.contrast(operands[0], operands[1], relation, operands[2], CLOCK)
    return out.sum.detach(), out.count, list(torch.autograd.grad(out.sum, operands))


def together(parts: list[Graded]) -> list[Tensor]:
    return [torch.cat([p.d_query for p in parts]), torch.cat([p.d_docs for p in parts]), parts[0].d_scale]


def check(o: InfoNCE, relation: Relation, operands: list[Tensor], size: int) -> list[Group]:
    """Every rank's result against one process; the groups, which counted."""
    groups: list[Group] = []

    def work(group: Group) -> Graded:
        groups.append(group)
        return o.sharded(operands[0], operands[1], relation, operands[2], CLOCK, group)

    loss, count, wanted = whole(o, relation, operands)
    parts = on_ranks(size, work)
    for rank, p in enumerate(parts):
        torch.testing.assert_close(p.sum, loss, rtol=1e-12, atol=1e-12)
        assert p.count == count
        shares = [b - a for a, b in (bounds(len(t), size)[rank] for t in operands[:2])]
        assert [len(p.d_query), len(p.d_docs)] == shares
        assert torch.equal(p.d_scale, parts[0].d_scale)
    for got, want in zip(together(parts), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    return groups


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_every_option_gives_the_loss_and_gradients_of_one_process(options: dict[str, Any]) -> None:
    relation = Relation.of(mixed(), ["a", "b"])
    for size, tile in ((2, 1024), (3, 5)):
        check(InfoNCE(**options, tile=tile), relation, vectors(relation), size)


@pytest.mark.parametrize("size", [20, 40])
@pytest.mark.parametrize("both", [False, True])
def test_many_ranks_give_the_loss_and_gradients_of_one_process(both: bool, size: int) -> None:
    """40 are more than the rows, and the documents are no multiple of either."""
    relation = Relation.of(mixed(), ["a", "b"])
    for group in check(InfoNCE(both=both, mask_labels=True, tile=16), relation, vectors(relation), size):
        assert group.calls == {"reduce_scatter": STRIPS, "all_reduce": 3 if both else 1}


@pytest.mark.parametrize("count", [0, 1, 39, 800, 801, 1599])
@pytest.mark.parametrize("size", [2, 3, 20, 40])
def test_strips_hold_every_document_once_and_an_even_number(size: int, count: int) -> None:
    strips = pieces(count, Group(0, size))
    assert len(strips) == STRIPS
    assert sorted(i for s in strips for i in s.tolist()) == list(range(count))
    assert max(map(len, strips)) <= size * ceil(ceil(count / size) / STRIPS)


@pytest.mark.parametrize("both", [False, True])
def test_documents_in_any_order_of_the_relation_get_their_own_gradients(both: bool) -> None:
    relation = Relation.of(mixed(), ["a", "b"])
    query, docs, scale = vectors(relation)
    order = torch.randperm(len(docs), generator=torch.Generator().manual_seed(1))
    moved = {f: getattr(relation, f)[order] for f in ("owner", "positive", "rank", "doc_id")}
    check(InfoNCE(both=both, tile=4), replace(relation, **moved), [query, docs, scale], 3)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    "examples",
    [
        [],
        [row("q0", "")],
        [row("q0", "d0", "n0"), row("q1", "d1")],
        [row("q0", "", "n"), row("q1", "d")],
        [row("q0", "same"), row("q1", "same"), row("q2", "same")],
        [row("q0", "d0 d1 d2 d3 d4 d5 d6", "n0 n1"), row("q1", "d8")],
    ],
    ids=["no rows", "no documents", "fewer rows than ranks", "no positive", "no negatives", "most in one row"],
)
def test_ranks_without_queries_or_documents_take_part(examples: list[Example], both: bool) -> None:
    relation = Relation.of(examples, ["a"])
    for negatives in ("shared", "own"):
        check(InfoNCE(both=both, negatives=negatives), relation, vectors(relation), 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("both", [False, True])
def test_the_number_of_collectives_depends_on_the_ranks_alone(both: bool) -> None:
    for examples, tile in ((plain(2), 8), (mixed(), 8), (mixed(60), 2)):
        for size in (2, 3):
            for group in check(
                InfoNCE(both=both, tile=tile), (r := Relation.of(examples, ["a", "b"])), vectors(r), size
            ):
                assert group.calls == {"reduce_scatter": STRIPS, "all_reduce": 3 if both else 1}


def test_what_is_sent_is_the_gradient_by_documents_once_and_the_norms_of_columns() -> None:
    relation, dim = Relation.of(plain(80), ["a"]), 5
    for group in check(InfoNCE(both=True), relation, vectors(relation, dim), 4):
        assert group.sent == {"reduce_scatter": 8 * 80 * dim, "all_reduce": 8 * (3 * 80 + 2)}


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("both", [False, True])
def test_a_rank_makes_no_tensor_larger_than_its_share(both: bool, size: int) -> None:
    """Beyond what every rank is given, and ids of all rows: blocks are narrower, gradients shorter."""
    count, dim, tile = 512, 16, 16
    relation = Relation.of([row(f"q{i}", f"d{i}") for i in range(count)], ["a"])
    query, docs, scale = (t.detach() for t in vectors(relation, dim))

    def work(group: Group) -> int:
        with Made({query.data_ptr(), docs.data_ptr()}) as seen:
            InfoNCE(both=both, tile=tile).sharded(query, docs, relation, scale, CLOCK, group)
        return seen.numel

    allowed = max(tile * tile, tile // 8 * count // size, count // size * dim, 2 * count)
    assert max(on_ranks(size, work)) <= allowed


def test_float32_stays_float32_and_close() -> None:
    relation = Relation.of(mixed(40), ["a", "b"])
    operands = vectors(relation)
    exact = whole(InfoNCE(both=True), relation, operands)[2]
    single = [t.detach().float() for t in operands]
    parts = on_ranks(2, lambda g: InfoNCE(both=True).sharded(single[0], single[1], relation, single[2], CLOCK, g))
    for got, want in zip(together(parts), exact, strict=True):
        assert got.dtype == torch.float32
        assert float((got.double() - want).norm() / want.norm()) < 1e-5


def test_one_rank_is_the_loss_of_one_process_to_the_bit() -> None:
    relation = Relation.of(mixed(), ["a", "b"])
    operands = vectors(relation)
    o = InfoNCE(both=True)
    assert isinstance(o, Sharded)
    loss, count, wanted = whole(o, relation, operands)
    alone = o.sharded(operands[0], operands[1], relation, operands[2], CLOCK, Group())
    assert (alone.count, float(alone.sum)) == (count, float(loss))
    assert all(torch.equal(a, b) for a, b in zip(together([alone]), wanted, strict=True))


def test_vectors_of_other_rows_are_refused_before_any_rank_waits() -> None:
    relation = Relation.of(plain(4), ["a"])
    query, docs, scale = (t.detach() for t in vectors(relation))
    with pytest.raises(ValueError, match="3 query and 4 document vectors for a Relation of 4"):
        on_ranks(2, lambda g: InfoNCE().sharded(query[:3], docs, relation, scale, CLOCK, g))


def test_processes_agree_with_one_and_each_other() -> None:
    """Through torch.distributed: what threads cannot show, asynchronous reductions from buffers that are used again."""
    for rank in run(Path(__file__).parent / "ranks_of_gather.py", 3):
        assert rank["differences"] and max(rank["differences"].values()) < 1e-12
        assert rank["gathered"] and rank["brought"]
        assert rank["calls"] == {"reduce_scatter": STRIPS, "all_reduce": 3}
