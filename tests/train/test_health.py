"""What is said of the vectors: exact on closed forms, and equal to InfoNCE where the whole batch is the sample."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.relation import Relation, of_queries
from omni2vec.data.types import Clock, Example
from omni2vec.train.health import Checkup, effective_rank, look, task_of, uniformity
from omni2vec.train.objectives.focal import Focal
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.matryoshka import Matryoshka
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.step import Bound
from torch import Tensor

from .rows import mixed, plain, row, vectors

CLOCK = Clock(step=0, progress=0.0, seed=0)
SCALE = 7.0
OPTIONS: list[dict[str, Any]] = [
    {"negatives": n, "in_batch": b, "mask_labels": m, "across_sources": a}
    for n, b, m, a in product(("shared", "own"), (True, False), (False, True), (False, True))
]


def _made(examples: list[Example], dim: int = 5) -> tuple[Relation, Tensor, Tensor]:
    relation = Relation.of(examples, ["a", "b"])
    query, docs, _ = vectors(relation, dim)
    return relation, query.detach(), docs.detach()


def _may_count(o: InfoNCE, examples: list[Example]) -> tuple[list[list[int]], list[list[int]]]:
    """By query: its drawn right answers, and the documents that count against it. By Python sets."""
    flat = [
        (i, k < len(e.positives), d.id) for i, e in enumerate(examples) for k, d in enumerate(e.positives + e.negatives)
    ]
    right = [
        {x for e in examples if e.query.id == q.query.id for x in (e.query.id, *e.known, *(p.id for p in e.positives))}
        for q in examples
    ]
    against = []
    for i, e in enumerate(examples):
        mine = []
        for j, (owner, positive, identity) in enumerate(flat):
            other = examples[owner]
            same_class = o.mask_labels and owner != i and bool(e.label) and e.label == other.label
            foreign = not o.across_sources and other.source != e.source
            seen = o.in_batch if positive else owner == i or o.negatives == "shared"
            if identity not in right[i] and not same_class and not foreign and seen:
                mine.append(j)
        against.append(mine)
    drawn = [
        [j for j, (owner, positive, _) in enumerate(flat) if positive and owner == i] for i in range(len(examples))
    ]
    return drawn, against


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_accuracy_and_examples_equal_the_definition_for_every_option(options: dict[str, Any]) -> None:
    o, examples = InfoNCE(**options), mixed()
    relation, query, docs = _made(examples)
    drawn, against = _may_count(o, examples)
    cosine = (query @ docs.T).tolist()
    rows = [i for i in range(len(examples)) if drawn[i] and against[i]]
    won = [max(cosine[i][j] for j in drawn[i]) > max(cosine[i][j] for j in against[i]) for i in rows]
    health = look(torch.cat([query, docs]), relation, seed=0, scale=SCALE, like=o, top=4, shown=99)
    assert health.rows == len(rows)
    assert health.accuracy == (pytest.approx(sum(won) / len(won)) if rows else pytest.approx(math.nan, nan_ok=True))
    for found in health.examples:
        i = found.query
        best = sorted([(cosine[i][j], j) for j in drawn[i] + against[i]], reverse=True)[:4]
        assert [h.score for h in found.hits] == pytest.approx([s for s, _ in best])
        assert [(h.doc, h.right) for h in found.hits] == [(j, j in drawn[i]) for _, j in best]
    assert [f.query for f in health.examples] == [i for i in range(len(examples)) if drawn[i]]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_loss_by_source_is_that_of_infonce_where_all_queries_are_the_sample(options: dict[str, Any]) -> None:
    o = InfoNCE(**options)
    relation, query, docs = _made(mixed())
    health = look(torch.cat([query, docs]), relation, seed=0, scale=SCALE, like=o)
    scale = torch.tensor([SCALE], dtype=torch.float64)
    if o.across_sources:
        out = o.contrast(query, docs, relation, scale, CLOCK)
        weights = {
            g: int((relation.query_source[relation.owner[relation.positive].unique()] == g).sum()) for g in (0, 1)
        }
        mean = sum(health.losses[g] * w for g, w in weights.items()) / sum(weights.values())
        assert mean == pytest.approx(float(out.sum) / out.count, abs=1e-12)
        return
    for g in (0, 1):
        part, queries, mine = of_queries(relation, relation.query_source == g)
        out = o.contrast(query[queries], docs[mine], part, scale, CLOCK)
        assert health.losses[g] == pytest.approx(float(out.sum) / out.count, abs=1e-12)


def test_rows_that_are_kept_out_neither_ask_nor_answer() -> None:
    examples = mixed()
    relation, query, docs = _made(examples)
    keep = torch.arange(len(examples)) % 3 != 1
    part, queries, mine = of_queries(relation, keep)
    alone = look(torch.cat([query[queries], docs[mine]]), part, seed=0, scale=SCALE, top=3, shown=99)
    within = look(torch.cat([query, docs]), relation, seed=0, scale=SCALE, keep=keep, top=3, shown=99)
    assert replace(within, examples=()) == replace(alone, examples=())
    numbers = [(int(queries[f.query]), [int(mine[h.doc]) for h in f.hits]) for f in alone.examples]
    assert [(f.query, [h.doc for h in f.hits]) for f in within.examples] == numbers


def test_a_sample_takes_some_queries_against_all_documents() -> None:
    examples = plain(64)
    relation = Relation.of(examples, ["a"])
    query = torch.eye(64, dtype=torch.float64)
    docs = query.roll(1, 0).clone()  # each query's neighbour has its right answer, but for ...
    docs[10] = query[10]  # ... one
    health = look(torch.cat([query, docs]), relation, sample=16, seed=3)
    assert health.rows == 16
    assert health.accuracy in (0.0, 1 / 16)
    assert health == look(torch.cat([query, docs]), relation, sample=16, seed=3)


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    relation, query, docs = _made(mixed())
    whole = look(torch.cat([query, docs]), relation, seed=0, scale=SCALE, top=5)
    monkeypatch.setattr("omni2vec.train.health._TILE", 3)
    tiled = look(torch.cat([query, docs]), relation, seed=0, scale=SCALE, top=5)
    assert tiled.losses == pytest.approx(whole.losses, abs=1e-12)
    assert replace(tiled, losses={}, examples=()) == replace(whole, losses={}, examples=())
    assert [[h.doc for h in f.hits] for f in tiled.examples] == [[h.doc for h in f.hits] for f in whole.examples]


def test_vectors_that_are_all_the_same_are_a_collapse_by_every_measure() -> None:
    relation = Relation.of(plain(8), ["a"])
    health = look(torch.ones(16, 4, dtype=torch.float64) / 2, relation, seed=0)
    assert (health.accuracy, health.alignment, health.uniformity) == (0.0, 0.0, 0.0)
    assert health.effective_rank == pytest.approx(1.0)


def test_orthogonal_pairs_have_the_closed_form() -> None:
    n, theta = 6, 0.3
    eye = torch.eye(2 * n, dtype=torch.float64)
    query, docs = eye[:n], math.cos(theta) * eye[:n] + math.sin(theta) * eye[n:]
    health = look(torch.cat([query, docs]), Relation.of(plain(n), ["a"]), seed=0, scale=SCALE)
    assert health.accuracy == 1.0
    assert health.alignment == pytest.approx(2 - 2 * math.cos(theta))
    assert health.uniformity == pytest.approx(-4.0)  # every pair of queries, and of documents, is at distance sqrt 2
    assert health.losses[0] == pytest.approx(math.log1p((n - 1) * math.exp(-SCALE * math.cos(theta))))
    # Singular values of n pairs at angle theta: sqrt(1 + cos) and sqrt(1 - cos), n times each.
    s = torch.tensor([math.sqrt(1 + math.cos(theta)), math.sqrt(1 - math.cos(theta))], dtype=torch.float64)
    p = (s / s.sum()) / n
    assert health.effective_rank == pytest.approx(math.exp(-n * float((p * p.log()).sum())))


def test_effective_rank_counts_the_directions_that_are_used() -> None:
    eye = torch.eye(7, dtype=torch.float64)
    for k in (1, 3, 7):
        assert effective_rank(eye[:k].repeat(5, 1)) == pytest.approx(k, rel=1e-9)
    halves = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    assert effective_rank(halves) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    wide = F.normalize(torch.randn(6, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1)
    share = torch.linalg.svdvals(wide)
    share = share / share.sum()
    assert effective_rank(wide) == pytest.approx(float(torch.special.entr(share).sum().exp()), rel=1e-9)


def test_uniformity_of_opposite_and_of_single_vectors() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert uniformity(x) == pytest.approx(math.log((2 * math.exp(-8) + 1) / 3))
    assert math.isnan(uniformity(x[:1]))


def test_a_document_drawn_for_every_row_is_no_collapse() -> None:
    examples = [row(f"q{i}", "yes" if i % 2 else "no") for i in range(8)]
    vectors_ = torch.cat([torch.eye(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)[[0, 1] * 4]])
    health = look(vectors_, Relation.of(examples, ["a"]), seed=0)
    assert health.uniformity == pytest.approx(-4.0)  # eight queries, two documents: all at distance sqrt 2


def test_the_in_batch_task_is_that_of_sources_with_a_contrastive_objective() -> None:
    own = InfoNCE(negatives="own")
    bounds = [Bound("words", (NextToken(),), frozenset({0})), Bound("web", (NextToken(), own), frozenset({1, 2}))]
    assert task_of(bounds) == (frozenset({1, 2}), own)
    assert task_of(bounds[:1]) == (frozenset(), InfoNCE())
    focal = Bound("web", (Matryoshka(Focal(mask_labels=True, negatives="own")),), frozenset({0}))
    assert task_of([focal]) == (frozenset({0}), InfoNCE(mask_labels=True, negatives="own"))


def test_nothing_to_find_is_no_number_and_no_error() -> None:
    relation = Relation.of([row("q0", "", "n0"), row("q1", "", "n1")], ["a"])
    health = look(torch.eye(4), relation, seed=0)
    assert health.rows == 0
    assert all(math.isnan(x) for x in (health.accuracy, health.alignment, health.uniformity, health.effective_rank))
    alone = look(torch.eye(2), Relation.of([row("q0", "d0")], ["a"]), seed=0, top=2)
    assert (alone.rows, alone.losses, alone.accuracies) == (0, {0: 0.0}, {})
    assert alone.examples[0].hits[0].right


def test_vectors_that_are_not_finite_are_told_as_such() -> None:
    broken = torch.eye(8)
    broken[:, 0] = float("nan")
    health = look(broken, Relation.of(plain(4), ["a"]), seed=0, top=2)
    assert health.accuracy == 0.0
    assert all(math.isnan(x) for x in (health.alignment, health.uniformity, health.effective_rank, health.losses[0]))


def test_memory_is_that_of_a_tile_and_not_of_the_batch() -> None:
    n = 20_000
    relation = Relation.of(plain(n), ["a"])
    x = F.normalize(torch.randn(2 * n, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    health = look(x, relation, sample=64, seed=0, scale=SCALE)  # n x n would be 1.6 GB
    assert health.rows == 64
    assert health.losses[0] > 5


def test_a_checkup_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Checkup\(sample=1\): expected 2 or more"):
        Checkup(sample=1)
