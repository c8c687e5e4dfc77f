"""Objectives on graded pairs in float64: closed forms, limits, references by plain loops, and what must be neutral."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.relation import Relation
from omni2vec.data.types import Clock
from omni2vec.train.objectives.above import Above
from omni2vec.train.objectives.at_layer import AtLayer
from omni2vec.train.objectives.cosent import CoSENT
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.objectives.pearson import Pearson
from omni2vec.train.objectives.pro import PRO
from omni2vec.train.objectives.rank_kl import RankKL, ranks
from omni2vec.train.objectives.soft_label import SoftLabel
from omni2vec.train.objectives.types import Contrastive, NoScoreError, Pairwise
from torch import Tensor

from .rows import mixed, row, vectors
from .test_sharded import check
from .threaded import on_ranks

CLOCK = Clock(step=0, progress=0.0, seed=0)
ALL: tuple[Pairwise, ...] = (CoSENT(), CoSENT(gap="linear"), Pearson(), RankKL(), PRO(), PRO(ties=0.3, tile=2))


def named(o: object) -> str:
    return repr(o).replace("weight=1.0, ", "").replace("weight=1.0", "")


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pairs(count: int = 40, kinds: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines, and labels of which several are equal, in no order."""
    draw = torch.Generator().manual_seed(seed)
    cosine = torch.rand(count, generator=draw, dtype=torch.float64) * 2 - 1
    return cosine.requires_grad_(), torch.randint(kinds, (count,), generator=draw).double() / max(kinds - 1, 1)


def graded(o: Pairwise, cosine: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    value = o.pairwise(cosine, label, CLOCK)
    return value.detach(), torch.autograd.grad(value, cosine)[0]


def close(got: Tensor, want: Tensor | float, tolerance: float = 1e-12) -> None:
    want = torch.as_tensor(want, dtype=got.dtype)
    torch.testing.assert_close(got.detach(), want.detach().expand_as(got), rtol=tolerance, atol=tolerance)


# The definitions, written as they are read


def all_comparisons(o: CoSENT, c: Tensor, y: Tensor) -> Tensor:
    gaps = y[:, None] - y
    terms = ((c - c[:, None]) / o.temperature).exp() * (gaps if o.gap == "linear" else 1.0)
    return torch.log1p(terms[gaps > 0].sum())


def each_pair(o: PRO, c: Tensor, y: Tensor) -> Tensor:
    order = y.argsort(descending=True)
    c, y = c[order], y[order]
    losses = []
    for k in range(len(c)):
        w = [(j, y[k] - y[j]) for j in range(k + 1, len(c)) if y[k] - y[j] > o.ties]
        if w:
            logits = torch.stack([c[k] * max(g for _, g in w), *(c[j] * g for j, g in w)]) / o.temperature
            losses.append(-logits.log_softmax(0)[0])
    return torch.stack(losses).mean()


def by_hand(o: RankKL, c: Tensor, y: Tensor) -> Tensor:
    rank = [sum(float(b > a) + float(b == a) / 2 for b in y) - 0.5 for a in y]  # 0 for the highest
    target = ((len(y) - 1 - doubles(*rank)) / (len(y) - 1) / o.temperature).softmax(0)
    return F.kl_div((c / o.temperature).log_softmax(0), target, reduction="sum")


@pytest.mark.parametrize("o", ALL, ids=named)
def test_gradients_equal_finite_differences(o: Pairwise) -> None:
    cosine, label = pairs(12, 4)
    assert torch.autograd.gradcheck(lambda c: o.pairwise(c, label, CLOCK), cosine)


@pytest.mark.parametrize("o", ALL, ids=named)
def test_the_order_of_the_pairs_does_not_matter(o: Pairwise) -> None:
    cosine, label = pairs()
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(3))
    value, gradient = graded(o, cosine, label)
    moved, theirs = graded(o, cosine[order].detach().requires_grad_(), label[order])
    close(moved, value)
    close(theirs, gradient[order])


@pytest.mark.parametrize("o", ALL, ids=named)
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_equal_labels_give_zero_with_zero_gradients(o: Pairwise, count: int) -> None:
    value, gradient = graded(o, pairs(count)[0], torch.full((count,), 0.1))
    assert float(value) == 0 and torch.equal(gradient, torch.zeros(count, dtype=torch.float64))


@pytest.mark.parametrize("o", ALL, ids=named)
@pytest.mark.parametrize("spread", [0.0, 1e-300, 1e-8])
def test_equal_cosines_give_finite_numbers(o: Pairwise, spread: float) -> None:
    label = pairs(9)[1]
    value, gradient = graded(o, (0.1 + spread * label).detach().requires_grad_(), label)
    assert value.isfinite() and gradient.isfinite().all()
    if isinstance(o, Pearson) and not spread:
        assert float(value) == 0 and not gradient.any()


@pytest.mark.parametrize("o", ALL, ids=named)
def test_float32_is_close_and_stays_float32(o: Pairwise) -> None:
    cosine, label = pairs(300, 26)
    value, gradient = graded(o, cosine, label)
    single, theirs = graded(o, cosine.detach().float().requires_grad_(), label.float())
    assert single.dtype == theirs.dtype == torch.float32
    close(single.double(), value, 1e-4)
    assert float((theirs - gradient).norm() / gradient.norm()) < 1e-4


# CoSENT


@pytest.mark.parametrize("gap", ["none", "linear"])
@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
@pytest.mark.parametrize("kinds", [2, 6, 1000])
def test_cosent_is_the_sum_over_all_comparisons(gap, temperature: float, kinds: int) -> None:  # type: ignore[no-untyped-def]
    o = CoSENT(temperature=temperature, gap=gap)
    cosine, label = pairs(60, kinds)
    want = all_comparisons(o, cosine, label)
    value, gradient = graded(o, cosine, label)
    close(value, want)
    close(gradient, torch.autograd.grad(want, cosine)[0])


def test_cosent_of_two_pairs_is_a_softplus() -> None:
    close(CoSENT().pairwise(doubles(0.3, 0.4), doubles(1, 0.5), CLOCK), F.softplus(doubles(2.0))[0])
    close(CoSENT(gap="linear").pairwise(doubles(0.3, 0.4), doubles(1, 0.5), CLOCK), log(1 + 0.5 * exp(2)))


def test_cosent_of_one_positive_and_the_negatives_of_one_query_is_infonce() -> None:
    relation = Relation.of([row("q", "d", "n0 n1 n2 n3 n4")], ["a"])
    query, docs, _ = vectors(relation)
    wanted = InfoNCE().contrast(query, docs, relation, doubles(20), CLOCK)
    got = CoSENT().pairwise(docs @ query[0], doubles(1, 0, 0, 0, 0, 0), CLOCK)
    close(got, wanted.sum)
    for a, b in zip(*(torch.autograd.grad(x, (query, docs)) for x in (got, wanted.sum)), strict=True):
        close(a, b)


def test_cosent_of_many_pairs_needs_no_matrix() -> None:
    cosine, label = pairs(300_000, 1000)
    value, gradient = graded(CoSENT(gap="linear"), cosine, label)
    assert value.isfinite() and abs(float(gradient.sum())) < 1e-9 and float(gradient.abs().sum()) > 0.1


@pytest.mark.installed
def test_cosent_is_that_of_sentence_transformers() -> None:
    losses = pytest.importorskip("sentence_transformers.losses", reason="sentence-transformers is not installed")
    cosine, label = (t.detach().float() for t in pairs(32))
    theirs = losses.CoSENTLoss(torch.nn.Identity(), scale=20.0, similarity_fct=lambda a, b: (a * b).sum(-1))
    ones = torch.ones(len(cosine), 1)
    want = theirs.compute_loss_from_embeddings([cosine[:, None], ones], label)
    close(CoSENT().pairwise(cosine, label, CLOCK), want, 1e-5)


# Pearson


def test_pearson_is_zero_along_a_line_and_two_against_it() -> None:
    label = pairs()[1]
    close(Pearson().pairwise(3 * label - 7, label, CLOCK), 0.0)
    close(Pearson().pairwise(-0.1 * label + 2, label, CLOCK), 2.0)


def test_pearson_moves_neither_the_mean_nor_the_spread() -> None:
    cosine, label = pairs()
    value, gradient = graded(Pearson(), cosine, label)
    close(value, 1 - torch.corrcoef(torch.stack([cosine, label]))[0, 1])
    assert float(gradient.abs().sum()) > 0.1
    close(gradient.sum(), 0.0)
    close(gradient @ (cosine - cosine.mean()), 0.0)


# RankKL


def test_rank_kl_is_the_divergence_from_the_ranks() -> None:
    cosine, label = pairs()
    close(RankKL().pairwise(cosine, label, CLOCK), by_hand(RankKL(), cosine, label))


def test_rank_kl_is_zero_where_the_cosines_are_the_ranks_up_to_a_constant() -> None:
    value, gradient = graded(RankKL(), doubles(0.9, 0.4, -0.1).requires_grad_(), doubles(5, 3, 2.9))
    close(value, 0.0)
    close(gradient, 0.0)


def test_equal_labels_share_their_mean_rank() -> None:
    assert ranks(doubles(0.5, 2, 0.5, -1, 2, 2)).tolist() == [1.5, 4, 1.5, 0, 4, 4]


def test_the_gradient_of_rank_kl_is_softmax_minus_target_over_the_temperature() -> None:
    cosine, label = pairs()
    target = (ranks(label) / (len(label) - 1) / 0.05).softmax(0)
    close(graded(RankKL(), cosine, label)[1], ((cosine / 0.05).softmax(0) - target) / 0.05)


def test_rank_kl_is_not_divided_by_the_number_of_pairs() -> None:
    """F.kl_div(reduction="batchmean") of a vector is, by 6 for 6 pairs: a bug of a published implementation."""
    cosine, label = pairs(6)
    target = (ranks(label) / 5 / 0.05).softmax(0)
    divided = F.kl_div((cosine / 0.05).log_softmax(0), target, reduction="batchmean")
    close(RankKL().pairwise(cosine, label, CLOCK) / divided, 6.0)


# PRO


@pytest.mark.parametrize("tile", [1, 4, 1024])
@pytest.mark.parametrize("ties", [0.0, 0.25])
@pytest.mark.parametrize("kinds", [2, 6, 1000])
def test_pro_is_the_mean_over_each_pair(tile: int, ties: float, kinds: int) -> None:
    o = PRO(tile=tile, ties=ties)
    cosine, label = pairs(40, kinds)
    want = each_pair(o, cosine, label)
    value, gradient = graded(o, cosine, label)
    close(value, want)
    close(gradient, torch.autograd.grad(want, cosine)[0])


def test_pro_of_two_pairs_is_a_softplus_weighted_by_the_gap() -> None:
    got = PRO().pairwise(doubles(0.2, 0.5), doubles(3, 1), CLOCK)
    close(got, F.softplus(doubles(2 * (0.5 - 0.2) / 0.05))[0])


# Above


def scored(scores: str) -> Relation:
    """One row for each score; "-" has no positive."""
    rows = [row(f"q{i}", "" if s == "-" else f"d{i} e{i}", f"n{i}") for i, s in enumerate(scores.split())]
    relation = Relation.of(rows, ["a"])
    first = relation.positive & (relation.rank == 0)
    values = torch.full((len(relation.owner),), 9.0)  # of the other documents: nobody asks
    values[first] = torch.tensor([float(s) for s in scores.split() if s != "-"])
    relation.scores["label"] = values  # type: ignore[index]
    return relation


def test_above_is_its_inner_objective_on_the_rows_that_score_enough() -> None:
    relation = scored("1 0.1 0.7 - 0.69 0.9")
    operands = vectors(relation)
    kept = torch.tensor([0, 2, 5])
    docs = torch.isin(relation.owner, kept).nonzero().squeeze(1)
    alone = Relation.of([row(f"q{i}", f"d{i} e{i}", f"n{i}") for i in kept.tolist()], ["a"])
    want = InfoNCE().contrast(operands[0][kept], operands[1][docs], alone, operands[2], CLOCK)
    got = Above(InfoNCE(), score=0.7).contrast(operands[0], operands[1], relation, operands[2], CLOCK)
    assert got.count == want.count == 3
    close(got.sum, want.sum)
    for a, b in zip(*(torch.autograd.grad(x.sum, operands) for x in (got, want)), strict=True):
        close(a, b)


def test_no_row_above_is_a_zero_on_the_graph() -> None:
    relation = scored("0.1 0.2 -")
    operands = vectors(relation)
    got = Above(InfoNCE(), score=0.5).contrast(operands[0], operands[1], relation, operands[2], CLOCK)
    assert got.count == 0 and float(got.sum.detach()) == 0
    assert all(not g.any() for g in torch.autograd.grad(got.sum, operands))


def test_a_row_without_the_score_is_named() -> None:
    relation = scored("0.1 nan 0.9")
    operands = vectors(relation)
    for o in (Above(InfoNCE()), Above(InfoNCE(), name="rerank")):
        with pytest.raises(NoScoreError) as error:
            o.contrast(operands[0], operands[1], relation, operands[2], CLOCK)
        assert error.value.query == (1 if o.name == "label" else 0)


def test_a_row_above_that_lacks_what_the_inner_objective_goes_by_is_named() -> None:
    relation = scored("0.1 0.9 0.95")
    relation.scores["rerank"] = torch.where(relation.owner == 2, torch.nan, 1.0)  # type: ignore[index]
    operands = vectors(relation)
    with pytest.raises(NoScoreError) as error:
        Above(SoftLabel()).contrast(operands[0], operands[1], relation, operands[2], CLOCK)
    assert error.value.query == 2


def test_the_row_of_highest_label_alone_has_no_negatives_from_below() -> None:
    """One row left, without hard negatives: nothing to tell it from."""
    relation = Relation.of([row("q0", "d0"), row("q1", "d1")], ["a"])
    relation.scores["label"] = torch.tensor([1.0, 0.0])  # type: ignore[index]
    operands = vectors(relation)
    got = Above(InfoNCE()).contrast(operands[0], operands[1], relation, operands[2], CLOCK)
    assert got.count == 1 and float(got.sum.detach()) == 0
    both = InfoNCE().contrast(operands[0], operands[1], relation, operands[2], CLOCK)
    assert float(both.sum.detach()) > 0.01 * log(2)


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("inner", [InfoNCE(both=True, tile=4), CoSENT()], ids=lambda o: type(o).__name__)
def test_ranks_divide_above_as_one_process_computes_it(inner: Contrastive | Pairwise, size: int) -> None:
    relation = Relation.of(mixed(), ["a", "b"])
    draw = torch.rand(len(relation.owner), generator=torch.Generator().manual_seed(1))
    relation.scores["label"] = draw  # type: ignore[index]
    check(Above(inner, score=0.4), relation, vectors(relation), size)  # type: ignore[arg-type]
    check(Above(inner, score=2.0), relation, vectors(relation), size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoSENT(temperature=0), "CoSENT: temperature=0"),
        (lambda: CoSENT(gap="square"), "gap='square'; expected one of none, linear"),  # type: ignore[arg-type]
        (lambda: RankKL(temperature=-1), "RankKL: temperature=-1"),
        (lambda: PRO(ties=-0.1), "PRO: ties=-0.1"),
        (lambda: Above("infonce"), "Above: of='infonce'"),  # type: ignore[arg-type]
        (lambda: AtLayer(AtLayer(InfoNCE(), 1), 2), "asks for an inner layer"),
        (lambda: AtLayer(NextToken()), "AtLayer: of=NextToken"),  # type: ignore[arg-type]
        (lambda: AtLayer(InfoNCE(), layer="top"), "layer='top'; expected 'middle'"),  # type: ignore[arg-type]
        (lambda: AtLayer(InfoNCE(), layer=0), "layer=0; expected 'middle'"),
        (lambda: Above(AtLayer(InfoNCE())), "asks for an inner layer; wrap the other way round, Above inside it"),
    ],
)
def test_values_that_make_no_sense_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_objectives_are_of_their_protocol() -> None:
    assert all(isinstance(o, Pairwise) and not isinstance(o, Contrastive) for o in ALL)
    assert isinstance(Above(InfoNCE()), Contrastive) and len(on_ranks(2, lambda g: g.rank)) == 2
