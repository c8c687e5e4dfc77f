"""Mixing in float64: the geometry of mixtures, what is drawn by what, and where they stand in the Relation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omni2vec.data import counter
from omni2vec.data.relation import Relation
from omni2vec.data.types import Clock, Example
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.masked import Masked
from omni2vec.train.objectives.mixing import Kind, Mixing
from omni2vec.train.objectives.soft_label import SoftLabel
from omni2vec.train.objectives.types import Contrastive, SumCount
from torch import Tensor

from .rows import mixed, row, vectors
from .test_sharded import check

CLOCK = Clock(step=3, progress=0.0, seed=1)


@dataclass(frozen=True)
class Seen:
    """An objective that keeps what it was given."""

    kept: list[tuple[Tensor, Relation]]
    weight: float = 1.0

    def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
        self.kept.append((docs, relation))
        return SumCount(docs.sum(), len(query))


def rows(*negatives: int) -> list[Example]:
    return [row(f"q{i}", f"d{i}", " ".join(f"n{i}.{k}" for k in range(n))) for i, n in enumerate(negatives)]


def made(o: Mixing, examples: Sequence[Example], dim: int = 6) -> tuple[Tensor, Tensor, list[Tensor], Relation]:
    relation = Relation.of(examples, ["a", "b"])
    operands = vectors(relation, dim)
    mixtures, whose = o.mixtures(operands[0], operands[1], relation, CLOCK)
    return mixtures.detach(), whose, [t.detach() for t in operands], relation


def given(o: Mixing, operands: list[Tensor], relation: Relation) -> tuple[Tensor, Relation]:
    seen = Seen([])
    replace(o, of=seen).contrast(operands[0], operands[1], relation, operands[2], CLOCK)
    return seen.kept[0]


def shares(mixture: Tensor, one: Tensor, other: Tensor) -> float:
    """x of the mixture unit(x one + (1 - x) other), in its plane."""
    a, b = torch.linalg.lstsq(torch.stack([one, other], 1), mixture[:, None]).solution[:, 0].tolist()
    return float(a / (a + b))


def test_a_mixture_has_the_length_that_the_angle_says() -> None:
    """||x n + (1 - x) m||**2 = 1 - 2 x (1 - x) (1 - cos), read off the mixture before and after it is normalised."""
    mixtures, whose, (_, docs, _), relation = made(Mixing(InfoNCE(), count=5), rows(2, 3))
    assert len(mixtures) == 10 and whose.tolist() == [0] * 5 + [1] * 5
    torch.testing.assert_close(mixtures.norm(dim=1), torch.ones(10, dtype=torch.float64))
    one, other = docs[relation.owner == 0][1:]
    for mixture in mixtures[:5]:
        x = shares(mixture, one, other)
        assert 0 < x < 1
        length = (x * one + (1 - x) * other).norm()
        assert float(length**2) == pytest.approx(1 - 2 * x * (1 - x) * (1 - float(one @ other)), abs=1e-12)
        torch.testing.assert_close(mixture, (x * one + (1 - x) * other) / length, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("x", [0.0, 1.0])
def test_all_of_one_parent_is_that_parent(x: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 0, the first negative is drawn before the second, and with 1 after it: it is the second both times."""
    monkeypatch.setattr(counter, "uniform", lambda ids, count, *key: np.full((len(ids), count), x * (1 - 1e-15)))
    mixtures, _, (_, docs, _), relation = made(Mixing(InfoNCE()), rows(2))
    torch.testing.assert_close(mixtures[0], docs[relation.owner == 0][2], rtol=1e-12, atol=1e-12)


def test_parents_of_equal_similarity_give_a_nearer_child() -> None:
    """In the middle, by 1 / cos of half their angle: here the list's, whose weights are then equal."""
    relation = Relation.of(rows(2), ["a"])
    angle = 0.7
    q = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    s = 0.6
    height, lift = math.sin(angle / 2), math.sqrt(1 - s**2 - math.sin(angle / 2) ** 2)
    parents = torch.tensor([[s, height, lift], [s, -height, lift]], dtype=torch.float64)
    assert float(parents[0] @ parents[1]) == pytest.approx(math.cos(angle))
    docs = torch.cat([q, parents])
    mixtures, _ = Mixing(InfoNCE(), kind="list").mixtures(q, docs, relation, CLOCK)
    assert float(mixtures[0] @ q[0]) == pytest.approx(s / math.cos(angle / 2), abs=1e-12)


def test_a_list_weighs_its_negatives_by_their_softmax() -> None:
    mixtures, whose, (q, docs, _), relation = made(Mixing(InfoNCE(), kind="list", temperature=0.2), rows(4, 1, 0, 2))
    assert whose.tolist() == [0, 3]
    for mixture, i in zip(mixtures, whose.tolist(), strict=True):
        mine = docs[(relation.owner == i) & ~relation.positive]
        want = F.normalize((mine @ q[i] / 0.2).softmax(0) @ mine, dim=0)
        torch.testing.assert_close(mixture, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "expected"), [("pair", 2), ("list", 1), ("both", 3)])
def test_rows_with_fewer_than_two_negatives_get_none(kind: Kind, expected: int) -> None:
    _, whose, *_ = made(Mixing(InfoNCE(), kind=kind, count=2), rows(0, 1, 2, 3))
    assert whose.bincount(minlength=4).tolist() == [0, 0, expected, expected]
    relation = Relation.of(rows(0, 1, 1), ["a"])
    operands = vectors(relation)
    with_none, without = (
        o.contrast(operands[0], operands[1], relation, operands[2], CLOCK)
        for o in (Mixing(InfoNCE(), kind=kind), InfoNCE())
    )
    assert torch.equal(with_none.sum, without.sum) and with_none.count == without.count


def test_negatives_that_are_right_after_all_are_not_mixed() -> None:
    right = [row("q", "d", "n0 n1 d", known="n1"), row("p", "e", "m0 m1 p")]
    mixtures, whose, (_, docs, _), relation = made(Mixing(InfoNCE(), kind="both"), right)
    assert whose.tolist() == [1, 1]
    one, other = docs[relation.owner == 1][1:3]
    for mixture in mixtures:
        assert float((mixture - one * (mixture @ one)).norm()) < 1
        assert 0 < shares(mixture, one, other) < 1
        plane = torch.linalg.qr(torch.stack([one, other], 1)).Q
        torch.testing.assert_close(plane @ (plane.T @ mixture), mixture, rtol=1e-9, atol=1e-12)


def test_what_is_drawn_does_not_depend_on_the_other_rows_or_their_order() -> None:
    examples = rows(3, 0, 2, 5, 4)
    mixtures, whose, (_, docs, _), relation = made(Mixing(InfoNCE(), kind="both", count=3), examples)
    order = [4, 2, 0]
    moved = Relation.of([examples[i] for i in order], ["a"])
    theirs = torch.cat([docs[relation.owner == i] for i in order])
    query = vectors(relation, 6)[0][order]
    again, whose_again = Mixing(InfoNCE(), kind="both", count=3).mixtures(query, theirs, moved, CLOCK)
    for place, i in enumerate(order):
        torch.testing.assert_close(again[whose_again == place], mixtures[whose == i], rtol=1e-12, atol=1e-12)


def test_documents_in_any_order_of_the_relation_are_mixed_the_same() -> None:
    o = Mixing(InfoNCE(), kind="both", count=2)
    mixtures, _, (q, docs, s), relation = made(o, rows(3, 2, 4))
    order = torch.randperm(len(docs), generator=torch.Generator().manual_seed(1))
    moved = replace(relation, **{f: getattr(relation, f)[order] for f in ("owner", "positive", "rank", "doc_id")})
    again, _ = o.mixtures(q, docs[order], moved, CLOCK)
    torch.testing.assert_close(again, mixtures, rtol=1e-12, atol=1e-12)
    a, b = (o.contrast(q, d, r, s, CLOCK).sum for d, r in ((docs, relation), (docs[order], moved)))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_steps_seeds_and_queries_draw_apart() -> None:
    o, relation = Mixing(InfoNCE()), Relation.of(rows(9, 9), ["a"])
    q, docs, _ = vectors(relation, 6)
    found = [o.mixtures(q, docs, relation, Clock(step, 0.0, seed))[0] for step, seed in ((0, 0), (1, 0), (0, 1))]
    assert not any(torch.equal(found[0], f) for f in found[1:])
    twin = Relation.of([row("q0", "d", "a b c"), row("q0", "d", "a b c"), row("q1", "d", "a b c")], ["a"])
    same = torch.cat([docs[:4]] * 3)
    one, two, three = o.mixtures(q[[0, 0, 1]], same, twin, CLOCK)[0]
    assert torch.equal(one, two) and not torch.equal(one, three)


@pytest.mark.parametrize(("a", "variance"), [(1, 1 / 12), (2, 1 / 20), (4, 1 / 36)])
def test_shares_are_of_the_beta_distribution(a: int, variance: float) -> None:
    relation = Relation.of([row(f"q{i}", "d", "n m") for i in range(3000)], ["a"])
    docs = torch.eye(3, dtype=torch.float64).repeat(3000, 1)
    x = Mixing(InfoNCE(), a=a).mixtures(docs[:3000], docs, relation, CLOCK)[0]
    share = x[:, 1] / x.sum(1)
    assert abs(float(share.mean()) - 0.5) < 4 * (variance / 3000) ** 0.5
    assert float(share.var()) == pytest.approx(variance, rel=0.1)
    first, last = share < 0.25, share > 0.75  # each parent comes first as often as the other
    assert abs(int(first.sum()) - int(last.sum())) < 4 * 3000**0.5


def test_mixtures_stand_behind_their_query_s_negatives_with_ids_of_their_own() -> None:
    relation = Relation.of(rows(2, 0, 3, 1), ["a"])
    relation.scores["label"] = torch.arange(len(relation.owner)).float()  # type: ignore[index]
    operands = vectors(relation)
    docs, seen = given(Mixing(InfoNCE(), kind="both", count=2), operands, relation)
    assert seen.owner.tolist() == sorted(seen.owner.tolist()) and len(seen.owner) == len(docs) == 10 + 6
    fresh = seen.score.isnan()
    assert seen.owner[fresh].tolist() == [0] * 3 + [2] * 3 and not seen.positive[fresh].any()
    assert seen.rank[fresh].tolist() == [2, 3, 4, 3, 4, 5]
    assert torch.equal(docs[~fresh], operands[1]) and torch.equal(seen.doc_id[~fresh], relation.doc_id)
    ids = {tuple(i) for i in seen.doc_id.tolist()}
    assert len(ids) == 16


def test_fresh_ids_avoid_even_an_id_that_would_be_theirs() -> None:
    relation = Relation.of(rows(2, 2), ["a"])
    operands = vectors(relation)
    first = given(Mixing(InfoNCE()), operands, relation)[1].doc_id[3]
    taken = replace(relation, known_id=relation.known_id.clone())
    taken.known_id[0] = first
    again = given(Mixing(InfoNCE()), operands, taken)[1].doc_id[3]
    assert int(again[0]) != int(first[0])


@pytest.mark.parametrize("negatives", ["shared", "own"])
def test_a_mixture_is_a_negative_like_a_given_one(negatives) -> None:  # type: ignore[no-untyped-def]
    o = Mixing(InfoNCE(negatives=negatives), kind="list")
    mixtures, whose, (q, d, s), _ = made(o, rows(2, 0, 3))
    want = torch.zeros((), dtype=torch.float64)
    owner = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
    place = [0, 3, 4]
    for i in range(3):
        seen = [j for j in range(8) if j == place[i] or j in place or negatives == "shared" or owner[j] == i]
        more = mixtures[[bool(negatives == "shared" or w == i) for w in whose.tolist()]]
        logits = s * torch.cat([d[seen], more]) @ q[i]
        want = want + logits.logsumexp(0) - logits[seen.index(place[i])]
    got = o.contrast(q, d, Relation.of(rows(2, 0, 3), ["a"]), s, CLOCK)
    torch.testing.assert_close(got.sum, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["pair", "list", "both"])
def test_gradients_equal_finite_differences(kind: Kind) -> None:
    relation = Relation.of(rows(3, 1, 2), ["a"])
    o = Mixing(InfoNCE(), kind=kind, temperature=0.5)
    operands = vectors(relation, 4)
    assert torch.autograd.gradcheck(lambda q, d, s: o.contrast(q, d, relation, s, CLOCK).sum, operands)


def test_detached_mixtures_are_constants() -> None:
    relation = Relation.of(rows(3, 3), ["a"])
    q, d, s = vectors(relation)
    o = Mixing(InfoNCE(), kind="both", detached=True)
    mixtures, _ = o.mixtures(q, d, relation, CLOCK)
    assert not mixtures.requires_grad
    found = torch.autograd.grad(o.contrast(q, d, relation, s, CLOCK).sum, (q, d, s))
    flowing = torch.autograd.grad(replace(o, detached=False).contrast(q, d, relation, s, CLOCK).sum, (q, d, s))
    assert float((found[1] - flowing[1]).abs().max()) > 1e-3

    @dataclass(frozen=True)
    class Beside:
        """The mixtures as given documents that are constants."""

        weight: float = 1.0

        def contrast(self, query: Tensor, docs: Tensor, relation: Relation, scale: Tensor, clock: Clock) -> SumCount:
            logits = scale * query @ torch.cat([docs, mixtures]).T
            right = scale[0] * (query * docs[relation.positive]).sum(1)
            return SumCount((logits.logsumexp(1) - right).sum(), len(query))

    want = torch.autograd.grad(Beside().contrast(q, d, relation, s, CLOCK).sum, (q, d, s))
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_mixture_nearer_than_the_positive_is_masked_as_a_given_negative_is() -> None:
    """The parents are short of the positive by 0.02, what they make is beyond it by more than the margin."""
    relation = Relation.of(rows(2), ["a"])
    q = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    a, b, c = 0.62, (1 - 0.62**2) ** 0.5, 0.6
    d = torch.tensor([[a, b, 0], [c, 0, (1 - c**2) ** 0.5], [c, 0, -((1 - c**2) ** 0.5)]], dtype=torch.float64)
    scale = torch.tensor([20.0], dtype=torch.float64)
    masked, plain = (
        [float(o.contrast(q, d, relation, scale, CLOCK).sum) for o in (Mixing(inner, kind="list"), inner)]
        for inner in (Masked(margin=0.1), InfoNCE())
    )
    assert masked[0] == pytest.approx(masked[1], abs=1e-12) and masked[1] == pytest.approx(plain[1], abs=1e-12)
    assert plain[0] > plain[1] + 5  # at a cosine of 1, against 0.62


def test_a_teacher_scores_no_mixture_and_its_objective_says_so() -> None:
    relation = Relation.of(rows(2, 2), ["a"])
    relation.scores["label"] = torch.rand(len(relation.owner))  # type: ignore[index]
    q, d, s = vectors(relation)
    assert SoftLabel(score="label").contrast(q, d, relation, s, CLOCK).sum.isfinite()
    with pytest.raises(ValueError, match="a mixture has none"):
        Mixing(SoftLabel(score="label"))


def test_opposite_parents_give_finite_numbers() -> None:
    relation = Relation.of(rows(2), ["a"])
    q = torch.eye(3, dtype=torch.float64)[:1].requires_grad_()
    d = torch.tensor([[1, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([20.0], dtype=torch.float64)
    out = Mixing(InfoNCE(), kind="list").contrast(q, d, relation, scale, CLOCK).sum
    assert out.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(out, (q, d)))


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("kind", ["pair", "list", "both"])
def test_ranks_divide_it_as_one_process_computes_it(kind: Kind, size: int) -> None:
    relation = Relation.of(mixed(), ["a", "b"])
    for inner in (InfoNCE(both=True, tile=4), InfoNCE(negatives="own")):
        check(Mixing(inner, kind=kind, count=2), relation, vectors(relation), size)  # type: ignore[arg-type]


def test_draws_by_id_are_uniform_and_apart() -> None:
    ids = np.arange(4000, dtype=np.int64).reshape(2000, 2) - 2000
    drawn = counter.uniform(ids, 4, "test", 0)
    assert drawn.min() >= 0 and drawn.max() < 1 and len(np.unique(drawn)) == 8000
    assert np.abs(drawn.mean(0) - 0.5).max() < 4 * (1 / 12 / 2000) ** 0.5
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 4 * 2000**-0.5
    assert np.array_equal(counter.uniform(ids[::-1], 4, "test", 0)[::-1], drawn)
    assert np.array_equal(counter.uniform(ids, 2, "test", 0), drawn[:, :2])
    assert drawn[0, 0] == 0.0 or abs(counter.uniform(ids[:1], 1, "test", 1)[0, 0] - drawn[0, 0]) > 1e-9


def test_values_that_make_no_sense_are_refused() -> None:
    for options, message in (
        ({"kind": "triple"}, "kind='triple'; expected one of pair, list, both"),
        ({"count": 0}, "count=0"),
        ({"a": 0.5}, "a=0.5; expected a whole number"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Mixing(InfoNCE(), **options)  # type: ignore[arg-type]
    assert isinstance(Mixing(InfoNCE()), Contrastive)
