"""The engine of the row-wise objectives: every option against the definition, blocks, ranks, order, memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omni2vec.data.relation import Relation
from omni2vec.data.schedules import Ramp
from omni2vec.data.types import Clock, Example
from omni2vec.train.gather import Group, bounds
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.masked import Masked
from omni2vec.train.objectives.progressive import Progressive
from omni2vec.train.objectives.rowwise import Plain, Rowwise
from omni2vec.train.objectives.seen import Seen
from omni2vec.train.objectives.types import Contrastive, Graded, Sharded
from torch import Tensor

from ..ranks import run
from .rows import mixed, plain, row, vectors
from .rowwise_cases import CASES, CLOCK, ours, whole
from .rowwise_reference import reference
from .test_infonce import OPTIONS
from .test_negatives import Largest
from .threaded import on_ranks

SOME: list[dict[str, Any]] = [
    {},
    {"negatives": "own", "across_sources": True},
    {"both": True, "mask_labels": True},
    {"both": True, "negatives": "own", "across_sources": True},
]


def named(options: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in options.items()) or "plain"


@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_plain_is_infonce_for_every_option_and_tile(options: dict[str, Any]) -> None:
    relation = Relation.of(mixed(), ["a", "b"])
    operands = vectors(relation)
    loss, count, wanted = whole(InfoNCE(**options), relation, operands)
    for tile in (3, 1024):
        got = whole(Plain(**options, tile=tile), relation, operands)
        assert got[1] == count
        torch.testing.assert_close(got[0], loss, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got[2], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("options", SOME, ids=named)
def test_value_and_gradients_equal_the_definition(
    case: Callable[..., Rowwise | Progressive], options: dict[str, Any]
) -> None:
    examples = mixed(15)
    operands = vectors(Relation.of(examples, ["a", "b"]))
    operands[2] = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
    expected, count = reference(case(**options), examples, *operands, progress=CLOCK.progress)
    wanted = torch.autograd.grad(expected, operands)
    for tile in (3, 1024):
        loss, found = ours(case(**options, tile=tile), examples, *operands)
        assert found == count
        torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-11)
        for got, want in zip(torch.autograd.grad(loss, operands), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_order_of_rows_and_of_documents_does_not_matter(case: Callable[..., Rowwise | Progressive]) -> None:
    examples = mixed()
    relation = Relation.of(examples, ["a", "b"])
    query, docs, scale = vectors(relation)
    o = case(both=True, tile=5)
    loss, _, wanted = whole(o, relation, [query, docs, scale])
    draw = torch.Generator().manual_seed(1)
    order = torch.randperm(len(examples), generator=draw).tolist()
    pieces = docs.split([len(e.positives) + len(e.negatives) for e in examples])
    shuffled = [query[order], torch.cat([pieces[i] for i in order]), scale]
    moved = ours(o, [examples[i] for i in order], *shuffled)[0]
    torch.testing.assert_close(moved.detach(), loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(list(torch.autograd.grad(moved, [query, docs, scale])), wanted, rtol=1e-11, atol=1e-11)

    place = torch.randperm(len(docs), generator=draw)
    fields = {f: getattr(relation, f)[place] for f in ("owner", "positive", "rank", "doc_id")}
    out = o.contrast(query, docs[place], replace(relation, **fields), scale, CLOCK)
    torch.testing.assert_close(out.sum.detach(), loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(list(torch.autograd.grad(out.sum, [query, docs, scale])), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "examples",
    [
        [],
        [row("q0", "")],
        [row("q0", "", "n"), row("q1", "d")],
        [row("q0", "same"), row("q1", "same"), row("q2", "same")],
        [row("q0", "d0 d1 d2 d3 d4 d5 d6", "n0 n1"), row("q1", "d8")],
    ],
    ids=["no rows", "no documents", "no positive", "no negatives", "most in one row"],
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_has_nothing_to_learn_costs_zero_and_never_nan(
    case: Callable[..., Rowwise | Progressive], examples: list[Example]
) -> None:
    relation = Relation.of(examples, ["a"])
    operands = vectors(relation)
    for options in (
        {},
        {"both": True, "negatives": "own"},
        {"negatives": "own", "in_batch": case is CASES["masked"], "tile": 1},
    ):
        o = case(**options)
        loss, count, gradients = whole(o, relation, operands)
        assert count == sum(bool(e.positives) for e in examples)
        assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients)
        if len(examples) != 2:
            assert float(loss) == 0.0
            assert not any(g.any() for g in gradients)
    if case in (CASES["masked"], CASES["progressive"]):
        check_ranks(case(both=True), relation, operands, 3)


def check_ranks(o: Rowwise | Progressive, relation: Relation, operands: list[Tensor], size: int) -> None:
    def work(group: Group) -> Graded:
        return o.sharded(operands[0], operands[1], relation, operands[2], CLOCK, group)

    loss, count, wanted = whole(o, relation, operands)
    parts = on_ranks(size, work)
    for rank, p in enumerate(parts):
        assert p.count == count
        torch.testing.assert_close(p.sum, loss, rtol=1e-12, atol=1e-12)
        shares = [b - a for a, b in (bounds(len(t), size)[rank] for t in operands[:2])]
        assert [len(p.d_query), len(p.d_docs)] == shares
    joined = [torch.cat([p.d_query for p in parts]), torch.cat([p.d_docs for p in parts]), parts[0].d_scale]
    torch.testing.assert_close(joined, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("options", SOME[2:], ids=named)
def test_ranks_give_the_loss_and_gradients_of_one_process(
    case: Callable[..., Rowwise | Progressive], options: dict[str, Any]
) -> None:
    o = case(**options, tile=6)
    assert isinstance(o, Sharded) and isinstance(o, Contrastive)
    relation = Relation.of(mixed(), ["a", "b"])
    for size in (1, 3) if case is CASES["masked"] else (3,):
        check_ranks(o, relation, vectors(relation), size)


@pytest.mark.parametrize("case", ["plain", "masked", "progressive"])
def test_no_tensor_is_larger_than_a_block_or_the_operands(case: str) -> None:
    count, dim, tile = 128, 4, 16
    relation = Relation.of([row(f"q{i}", f"d{i}", label=str(i % 9), source="ab"[i % 2]) for i in range(count)], "ab")
    query, docs, scale = vectors(relation, dim)
    allowed = max(tile * tile, tile // 8 * count, 2 * 3 * count)
    for options in ({"both": True}, {"mask_labels": True}):
        with Largest() as seen:
            CASES[case](**options, tile=tile).contrast(query, docs, relation, scale, CLOCK).sum.backward()
        assert seen.numel <= allowed


def test_a_query_with_more_positives_than_a_block_has_rows_is_cut() -> None:
    relation = Relation.of([row("q", " ".join(f"d{i}" for i in range(300))), *plain(40)], ["a"])
    query, docs, scale = vectors(relation, 4)
    with Largest() as seen:
        loss = Masked(tile=16).contrast(query, docs, relation, scale, CLOCK).sum
    assert seen.numel <= max(16 // 8 * len(docs), 2 * 3 * len(docs))
    torch.testing.assert_close(loss, Masked().contrast(query, docs, relation, scale, CLOCK).sum, rtol=1e-12, atol=0)


def test_blocks_are_made_one_at_a_time() -> None:
    """The masks of one block, or of the next that is under way, live at once; not those of all."""
    masks: list[weakref.ref[Tensor]] = []
    living: list[int] = []

    class Counted(Plain):
        def losses(self, seen: Seen) -> Tensor:
            masks.append(weakref.ref(seen.negative))
            living.append(sum(mask() is not None for mask in masks))
            return super().losses(seen)

    relation = Relation.of(plain(64), ["a"])
    query, docs, scale = vectors(relation)
    Counted(tile=8, both=True).contrast(query, docs, relation, scale, CLOCK)
    assert len(living) == 128 and max(living) <= 2


def test_float32_is_finite_and_close_at_temperature_one_hundredth() -> None:
    relation = Relation.of(mixed(25), ["a", "b"])
    query, docs, _ = vectors(relation, dim=2)  # two dimensions: cosines fill [-1, 1]
    exact = [query, docs, torch.tensor([100.0], dtype=torch.float64, requires_grad=True)]
    single = [t.detach().float().requires_grad_() for t in exact]
    for name, case in CASES.items():
        if name == "masked":
            continue  # a cosine at the very margin is on one side in float64 and on the other in float32
        (want, _, by), (got, _, found) = (whole(case(both=True, tile=64), relation, t) for t in (exact, single))
        assert got.dtype == torch.float32
        assert float(got) == pytest.approx(float(want), rel=1e-5), name
        for a, b in zip(found, by, strict=True):
            assert float((a.double() - b).norm() / b.norm()) < 1e-3, name  # 1 - s has few digits near s = 1


def test_autocast_leaves_the_loss_in_float32_and_without_gradients_it_is_the_same() -> None:
    relation = Relation.of(mixed(), ["a", "b"])
    operands = [t.detach().float().requires_grad_() for t in vectors(relation)]
    for case in CASES.values():
        outside = ours(case(), mixed(), *operands)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = ours(case(), mixed(), *operands)[0]
        with torch.no_grad():
            without = ours(case(), mixed(), *operands)[0]
        assert torch.equal(inside, outside) and not without.requires_grad
        torch.testing.assert_close(without, outside.detach(), rtol=1e-6, atol=0)


def test_vectors_of_other_rows_are_refused_in_the_objectives_own_name() -> None:
    relation = Relation.of(plain(4), ["a"])
    query, docs, scale = vectors(relation)
    with pytest.raises(ValueError, match="Masked: 3 query and 4 document vectors for a Relation of 4"):
        Masked().contrast(query[:3], docs, relation, scale, CLOCK)
    with pytest.raises(ValueError, match=r"Progressive|Plain: scale of shape \(2,\)"):
        Progressive(InfoNCE()).contrast(query, docs, relation, torch.ones(2).double(), CLOCK)


def test_processes_agree_with_one_and_the_four_ways_to_gather_are_what_they_are() -> None:
    """One group of two processes for all objectives, and for the rule of gradients behind a gather."""
    for rank in run(Path(__file__).parent / "ranks_of_rowwise.py", 2):
        assert rank["differences"].keys() == CASES.keys()
        assert max(rank["differences"].values()) < 1e-11
        ratio, cosine = zip(
            *(rank["gathers"][way] for way in ("whole, own grad", "whole, all", "own, all")), strict=True
        )
        assert ratio == pytest.approx((0.5, 1.0, 1.0), rel=1e-12)  # the first is 1/W of the gradient
        assert cosine == pytest.approx((1.0, 1.0, 1.0), abs=1e-12)
        assert rank["gathers"]["own, own grad"][1] < 0.99  # another direction


def test_a_schedule_is_read_at_the_steps_progress() -> None:
    examples = mixed()
    operands = vectors(Relation.of(examples, ["a", "b"]))
    relation = Relation.of(examples, ["a", "b"])
    ramp = Masked(margin=Ramp(0.0, 0.4))
    for progress, margin in ((0.0, 0.0), (0.5, 0.2), (1.0, 0.4)):
        got = ramp.contrast(*operands[:2], relation, operands[2], Clock(step=0, progress=progress, seed=0)).sum
        want = Masked(margin=margin).contrast(*operands[:2], relation, operands[2], CLOCK).sum
        assert torch.equal(got, want)
