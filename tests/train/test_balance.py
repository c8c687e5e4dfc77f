"""Weights of sources by their nearness to targets (SAIL): transport at its two ends, k-means, and the step itself."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from omni2vec.data.mix import Balanced
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Shards, Take
from omni2vec.data.types import DataError, Example, Item
from omni2vec.data.weights import weights_of
from omni2vec.launch.graph import Recipe
from omni2vec.launch.run import run
from omni2vec.train import balance, teacher
from omni2vec.train.balance import Balance, centroids, score, sinkhorn, softmax
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import normalize

from ..model.small import tiny


def drawn(count, width=16, seed=0):
    return normalize(
        torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


@pytest.mark.parametrize(("a", "b"), [(8, 8), (5, 12), (1, 7), (64, 64)])
@pytest.mark.parametrize("epsilon", [0.02, 0.3, 10.0])
def test_the_plan_has_equal_marginals(a, b, epsilon):
    plan = sinkhorn(1 - drawn(a) @ drawn(b, seed=1).T, epsilon)
    assert plan.min() >= 0
    assert plan.sum(1).numpy() == pytest.approx(np.full(a, 1 / a), abs=1e-13)
    assert plan.sum(0).numpy() == pytest.approx(np.full(b, 1 / b), abs=1e-13)


def test_the_plan_is_a_scaling_of_the_kernel():
    """P = diag(u) exp(-cost / epsilon) diag(v) is what makes it the entropic optimum, and no other plan."""
    cost = 1 - drawn(6) @ drawn(9, seed=1).T
    logarithm = sinkhorn(cost, 0.1, tolerance=1e-12).log() + cost / 0.1
    crossed = logarithm - logarithm.mean(0) - logarithm.mean(1, keepdim=True) + logarithm.mean()
    assert float(crossed.abs().max()) < 1e-7


def test_much_entropy_scores_the_mean_cosine():
    a, b = drawn(7), drawn(11, seed=1)
    assert score(a, b, 1e4) == pytest.approx(float((a @ b.T).mean()), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_little_entropy_scores_the_best_assignment(seed):
    a, b = drawn(12, seed=seed), drawn(12, seed=100 + seed)
    cosine = (a @ b.T).numpy()
    best = cosine[linear_sum_assignment(cosine, maximize=True)].mean()
    assert score(a, b, 2e-3) == pytest.approx(best, abs=5e-4)
    assert best > cosine.mean() + 0.1


def test_score_falls_as_entropy_grows():
    a, b = drawn(9), drawn(9, seed=1)
    scores = [score(a, b, e) for e in (0.005, 0.05, 0.5, 5.0)]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1] + 0.1


def test_a_transport_that_does_not_meet_its_marginals_is_refused():
    with pytest.raises(ValueError, match=r"epsilon=0.001: marginals are off by .* after 11 rounds; raise epsilon"):
        sinkhorn(1 - drawn(20) @ drawn(20, seed=1).T, 0.001, most=11)


def test_centroids_are_the_planted_centres():
    centres = drawn(6)
    members = normalize(centres.repeat(50, 1) + 0.02 * drawn(300, seed=1), dim=1)
    found = centroids(members.float(), 6, seed=0)
    best = (found @ centres.T).max(1)
    assert sorted(best.indices.tolist()) == list(range(6))
    assert float(best.values.min()) > 0.999


def test_there_are_never_more_centroids_than_different_vectors():
    vectors = drawn(3).float().repeat(10, 1)
    found = centroids(vectors, 64, seed=0)
    assert len(found) == 3
    assert float(found.norm(dim=1).sub(1).abs().max()) < 1e-12
    assert (centroids(vectors, 64, seed=0) == found).all()


def test_softmax_sums_to_one_and_keeps_the_order():
    shares = softmax(np.array([0.9, 0.5, 0.5, -1.0]), 0.2)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] / shares[1] == pytest.approx(np.exp(2))
    assert shares[1] == shares[2] > shares[3]


ABOUT = {
    "shapes": ["red", "green", "circle", "square", "above"],
    "birds": ["owl", "wren", "feather", "nest", "wing"],
}


def rows(name, about, count, seed, seen=0.0):
    """Texts of five words on one subject, a share `seen` of them on shapes."""
    rng = np.random.default_rng(seed)

    def text():
        return " ".join(rng.choice(ABOUT["shapes" if rng.random() < seen else about], 5))

    return [Example(f"{name}/{i}", name, "retrieval", Item.text(text()), (Item.text(text()),)) for i in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("balance")
    for name, about, seed, seen in (
        ("near", "shapes", 1, 0.0),
        ("half", "birds", 2, 0.5),
        ("far", "birds", 3, 0.0),
        ("target", "shapes", 4, 0.0),
    ):
        write_shards(rows("rows", about, 48, seed, seen), path / name)
    tiny().save(path / "model")
    return path


def step(folder, names=("far", "near", "half"), **fields):
    sources = tuple(Shards(str(folder / n.rstrip("2")), name=n) for n in names)
    return Balance("weights", str(folder / "model"), sources, (Shards(str(folder / "target")),), centroids=8, **fields)


def where(step):
    raise AssertionError(f"no step is needed, asked for {step}")


def made(out, step):
    out.mkdir()
    step.make(out, where)
    return weights_of(out)


@pytest.mark.parametrize("view", ["fused", "query", "target"])
def test_the_nearer_a_source_is_to_the_target_the_more_it_weighs(folder, tmp_path, view):
    weights = made(tmp_path / "out", step(folder, view=view))
    assert list(weights) == ["far", "near", "half"]
    assert weights["near"] > weights["half"] > weights["far"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["weights.json"]


def test_equal_data_weigh_the_same_to_the_bit(folder, tmp_path):
    weights = made(tmp_path / "out", step(folder, ("near", "far", "near2")))
    assert weights["near"] == weights["near2"] > weights["far"]
    only = made(tmp_path / "only", step(folder, ("near", "near2"), samples=20))
    assert only == {"near": 0.5, "near2": 0.5}


def test_the_file_holds_the_scores_that_give_the_weights(folder, tmp_path):
    asked = step(folder)
    asked = replace(asked, targets=(*asked.targets, Shards(str(folder / "half"), name="other")), samples=30)
    made(tmp_path / "out", asked)
    found = json.loads((tmp_path / "out" / "weights.json").read_text())
    mean = np.array([np.mean(list(by.values())) for by in found["scores"].values()])
    assert list(found["scores"]["near"]) == ["target", "other"]
    assert list(found["weights"].values()) == pytest.approx(softmax(mean, 0.1).tolist())
    assert found["scores"]["half"]["other"] == pytest.approx(max(by["other"] for by in found["scores"].values()))
    assert set(found["rows"].values()) == {30}
    assert found["settings"]["epsilon"] == 0.05


def test_the_same_step_gives_the_same_file(folder, tmp_path):
    for name in "ab":
        made(tmp_path / name, step(folder, samples=25))
    assert (tmp_path / "a" / "weights.json").read_bytes() == (tmp_path / "b" / "weights.json").read_bytes()


def test_a_killed_step_encodes_no_source_twice(folder, tmp_path, monkeypatch):
    real, encoded = teacher.encode, []

    def dying(embedder, prompts, **settings):
        encoded.append(len(prompts))
        if len(encoded) == 4:
            raise KeyboardInterrupt
        return real(embedder, prompts, **settings)

    monkeypatch.setattr(teacher, "encode", dying)
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        step(folder).make(tmp_path / "out", where)
    step(folder).make(tmp_path / "out", where)
    assert len(encoded) == 4 + 5  # of eight, query and target of four sets, three were there


def test_a_recipe_makes_the_weights(folder, tmp_path):
    asked = step(folder)
    asked = replace(asked, sources=(*asked.sources[:2], Take(asked.sources[2], 10)))
    run(Recipe("balance", (asked,)), tmp_path / "run", say=lambda line: None)
    weights = weights_of(tmp_path / "run" / "weights")
    assert sum(weights.values()) == pytest.approx(1)
    made_in = lambda step: tmp_path / "run" / step.name  # noqa: E731
    assert Balanced(at=asked).factors(["near", "far"], [48, 48], made_in) == (weights["near"], weights["far"])
    facts = asked.plan(where)
    assert facts["rows"] == "154" and "48 rows, 96 at most items" in facts["of near"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"samples": 0}, "samples=0; expected 1 or more"),
        ({"epsilon": 0.0}, "epsilon=0.0; expected a number above 0"),
        ({"temperature": float("inf")}, "temperature=inf; expected"),
        ({"view": "both"}, "view='both'; expected one of fused, query, target"),
        ({"names": ("near", "near")}, "sources: two of them are named 'near'"),
        ({"names": ()}, "sources: there is none"),
    ],
)
def test_values_that_mean_nothing_are_refused(folder, fields, why):
    with pytest.raises(ValueError, match=why):
        step(folder, **fields)


def test_a_row_without_a_positive_is_named(folder):
    row = replace(rows("rows", "birds", 1, 0)[0], positives=())
    with pytest.raises(DataError, match="rows/0: no positive"):
        balance.Told().prompt(row, "target")


def test_missing_scikit_learn_is_told_before_anything_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "omni2vec\[mine\]"'):
        step(folder).make(tmp_path, where)
