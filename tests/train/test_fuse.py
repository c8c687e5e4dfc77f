"""The Merge step: rules that need scores or gradients, on tiny models and real files; killed and begun again."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import DataError, Example, Item
from omni2vec.launch.digest import canonical, step_digest
from omni2vec.launch.graph import Recipe
from omni2vec.launch.record import read, write
from omni2vec.launch.run import run
from omni2vec.model.embedder import Embedder
from omni2vec.model.merge.average import Average
from omni2vec.model.merge.blocks import elements
from omni2vec.model.merge.opened import prepare
from omni2vec.model.merge.slerp import Slerp
from omni2vec.model.merge.span import Span
from omni2vec.model.merge.task_arithmetic import TaskArithmetic
from omni2vec.model.merge.ties import Ties
from omni2vec.train import fuse
from omni2vec.train.fisher import ProbeFisher, write_fisher
from omni2vec.train.fuse import Merge
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.position import Found, SelfPositioning, coordinates, start
from omni2vec.train.sample import Probing, Sample, filed, loaded, names_of
from omni2vec.train.soup import Greedy, greedy
from safetensors.torch import load_file

from ..model.small import tiny

COLOURS = ("red", "green", "blue", "grey", "black", "white", "pink", "brown")
THINGS = ("circle", "square", "mug", "hat", "tree", "boat")


def rows(name, turn):
    pairs = [(c, t) for c in COLOURS for t in THINGS][turn::2]
    return [
        Example(f"{name}/{i}", name, "retrieval", Item.text(f"a {c} {t}"), (Item.text(f"the {t} that is {c}, {name}"),))
        for i, (c, t) in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, two models a little away from it, and two sources."""
    at = tmp_path_factory.mktemp("fuse")
    base = tiny().save(at / "base")
    for seed in (1, 2):
        embedder = Embedder.load(base)
        chance = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in embedder.base.model.parameters():
                p += torch.randn(p.shape, generator=chance) * 0.02
        embedder.save(at / f"m{seed}")
    for turn, name in enumerate(("one", "two")):
        write_shards(rows(name, turn), at / name)
    return at


def sources(place):
    return tuple(Shards(str(place / n), name=n) for n in ("one", "two"))


def sample(place, **settings):
    return Sample(sources(place), **{"rows": 16, "temperature": 0.1} | settings)


def where(step):
    raise AssertionError(f"nothing here stands on a step, and {step} was asked for")


def merged(place, out, rule, **settings):
    out.mkdir(exist_ok=True)
    step = Merge("merge", (str(place / "m1"), str(place / "m2")), rule, **settings)
    step.make(out, where)
    return step


def loss(path, given):
    with Probing(loaded(str(path)), given, where) as probing:
        return probing.loss()


def test_a_plain_rule_leaves_an_embedder_that_the_step_before_it_would_have(place, tmp_path):
    merged(place, tmp_path / "out", Average())
    one, two, out = (load_file(p / "model.safetensors") for p in (place / "m1", place / "m2", tmp_path / "out"))
    assert all(torch.equal(out[k], ((one[k].double() + two[k].double()) / 2).float()) for k in one)
    assert Embedder.load(tmp_path / "out").encode("a red mug").shape == (64,)


def test_the_samples_loss_is_infonce_of_each_source_at_the_samples_temperature(place):
    given = sample(place, rows=12)
    embedder = Embedder.load(place / "m1")
    wanted = []
    for source in sources(place):
        opened = source.open(where)
        with Probing(loaded(str(place / "m1")), replace(given, data=(source,)), where) as probing:
            (_, plan) = probing.plans[0]
            found = probing.loss()
        order = {opened[i].key: i for i in range(len(opened))}
        drawn = [opened[order[k]] for k in plan.keys]
        q = embedder.encode_items([e.query for e in drawn], side="query")
        d = embedder.encode_items([e.positives[0] for e in drawn], side="target")
        value = torch.nn.functional.cross_entropy(10 * q @ d.T, torch.arange(12)).item()
        assert found == pytest.approx(value, rel=1e-4)
        wanted.append(value)
    assert loss(place / "m1", given) == pytest.approx(sum(wanted) / 2, rel=1e-4)
    assert InfoNCE().both is False  # what the ten lines above compute


def test_slopes_along_task_vectors_are_the_finite_differences_of_the_loss(place):
    plan = prepare([place / "m1", place / "m2"], TaskArithmetic(), place / "base")
    embedder, at, step = loaded(str(place / "m1")), [0.4, 0.3], 1e-2
    span = Span.of(plan, names_of(embedder), elements(0))
    with Probing(embedder, sample(place), where) as probing:
        slopes = [0.0, 0.0]

        def see(name, gradient):
            for i, s in enumerate(span.slopes(filed(name), gradient)):
                slopes[i] += s / len(probing.plans)

        span.put(at)
        probing.loss(see)
        for i in (0, 1):
            ends = []
            for sign in (1, -1):
                span.put([a + sign * step * (i == j) for j, a in enumerate(at)])
                ends.append(probing.loss())
            assert slopes[i] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("form", ["linear", "arc"])
def test_the_learned_position_is_never_worse_on_the_sample_than_any_end(form, place, tmp_path):
    given = sample(place)
    rule = SelfPositioning(given, steps=6, form=form)
    merged(place, tmp_path / "out", rule, base=str(place / "base"))
    ends = [loss(place / n, given) for n in ("m1", "m2", "base")]
    assert loss(tmp_path / "out", given) <= min(ends)
    points = json.loads((tmp_path / "out/position.json").read_text())["points"]
    assert [p["position"] for p in points[:3]] == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert [p["loss"] for p in points[:3]] == pytest.approx(ends, abs=1e-6)
    assert min(p["loss"] for p in points[3:]) < min(ends)  # it moved, and down
    assert "<svg" in (tmp_path / "out/position.html").read_text()


@pytest.mark.parametrize("steps, lr", [(0, 0.1), (3, 500.0)])
def test_where_no_step_helps_the_best_end_comes_back_to_the_bit(steps, lr, place, tmp_path):
    given = sample(place)
    merged(place, tmp_path / "out", SelfPositioning(given, steps=steps, lr=lr), base=str(place / "base"))
    best = min(("m1", "m2", "base"), key=lambda n: loss(place / n, given))
    want, found = (load_file(p / "model.safetensors") for p in (place / best, tmp_path / "out"))
    assert all(torch.equal(found[k], want[k]) for k in want)


def test_a_position_that_is_worse_once_it_is_saved_gives_way_to_the_best_end(place, tmp_path, monkeypatch):
    ends = [loss(place / n, sample(place)) for n in ("m1", "m2")]
    first = ends.index(min(ends))
    monkeypatch.setattr(fuse, "position", lambda *given: Found((9.0, -9.0), 0.0, first, ends[first]))
    merged(place, tmp_path / "out", SelfPositioning(sample(place)), base=str(place / "base"))
    assert loss(tmp_path / "out", sample(place)) == min(ends)


def test_folded_arcs_begin_at_a_model_and_keep_the_length():
    gram = torch.tensor([[4.0, 0.5, 0.2], [0.5, 4.0, -0.3], [0.2, -0.3, 4.0]], dtype=torch.float64)
    for i in range(3):
        assert coordinates("arc", start("arc", i, 3), gram).tolist() == pytest.approx([float(i == j) for j in range(3)])
    alpha = coordinates("arc", torch.tensor([0.3, 0.6, 1.0], dtype=torch.float64), gram)
    assert float(alpha @ gram @ alpha) == pytest.approx(4.0)  # equal lengths: the arc stays on their sphere
    numbers = torch.tensor([0.3, 0.6, 1.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda n: coordinates("arc", n, gram), numbers)


def test_after_a_kill_points_are_taken_again_and_the_result_is_equal(place, tmp_path):
    rule = SelfPositioning(sample(place), steps=4)
    merged(place, tmp_path / "whole", rule, base=str(place / "base"))
    log = json.loads((tmp_path / "whole/position.json").read_text())
    (tmp_path / "killed").mkdir()
    half = {**log, "points": log["points"][:5]}
    (tmp_path / "killed/position.json").write_text(json.dumps(half))
    merged(place, tmp_path / "killed", rule, base=str(place / "base"))
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert json.loads((tmp_path / "killed/position.json").read_text()) == log


# ---- Fisher


def test_fisher_tensors_are_the_mean_squared_gradient(place, tmp_path):
    given = sample(place, rows=8, batches=2)
    write_fisher(str(place / "m1"), given, where, tmp_path / "f.safetensors")
    embedder, squares = loaded(str(place / "m1")), {}
    with Probing(embedder, given, where) as probing:
        assert len(probing.plans) == 4
        probing.loss(lambda n, g: squares.__setitem__(filed(n), squares.get(filed(n), 0) + g.square() / 4))
    found = load_file(tmp_path / "f.safetensors")
    assert set(squares) <= set(found) and sum(float(f.sum()) for f in found.values()) > 0
    for name, value in found.items():
        assert torch.allclose(value, squares.get(name, torch.zeros_like(value)), rtol=1e-4, atol=1e-12), name


def test_a_merge_by_fisher_tensors_of_a_sample_weighs_by_them(place, tmp_path):
    given = sample(place, rows=8, batches=2)
    merged(place, tmp_path / "out", ProbeFisher(given))
    files = [tmp_path / f"{n}.safetensors" for n in ("m1", "m2")]
    for file in files:
        write_fisher(str(place / file.stem), given, where, file)
    name = "visual.blocks.0.attn.qkv.weight"  # no picture here: no gradient, the plain mean
    one, two, out = (load_file(p / "model.safetensors") for p in (place / "m1", place / "m2", tmp_path / "out"))
    assert torch.allclose(out[name], (one[name] + two[name]) / 2, atol=1e-7)
    name = next(k for k in one if k.endswith("layers.1.mlp.down_proj.weight"))
    f = [next(v for k, v in load_file(p).items() if k.endswith(name.removeprefix("model."))).double() for p in files]
    assert torch.allclose(out[name], ((f[0] * one[name] + f[1] * two[name]) / (f[0] + f[1])).float(), atol=1e-5)
    assert not (tmp_path / "out/fisher").exists()


# ---- greedy soups


def test_the_greedy_soup_keeps_what_does_not_lower_the_score(tmp_path):
    scores = {(0,): 0.5, (1,): 0.7, (2,): 0.6, (3,): 0.4, (1, 2): 0.65, (0, 1): 0.7, (0, 1, 3): 0.8}
    asked = []

    def score(members):
        asked.append(members)
        return scores[members]

    names = ["a", "b", "c", "d"]
    assert greedy(names, Greedy((object(),)), score, tmp_path) == ((1, 0, 3), 0.8)
    assert asked == [(0,), (1,), (2,), (3,), (1, 2), (0, 1), (0, 1, 3)]
    assert greedy(names, Greedy((object(),)), None, tmp_path) == ((1, 0, 3), 0.8)  # all of it from the file
    other = tmp_path / "strict"
    other.mkdir()
    assert greedy(names, Greedy((object(),), gain=0.05), lambda m: scores.get(m, 0.0), other)[0] == (1,)


def test_a_greedy_soup_of_real_models_scores_no_less_than_the_best_of_them(place, tmp_path):
    merged(place, tmp_path / "out", Greedy(sources(place)))
    told = json.loads((tmp_path / "out/soup.json").read_text())
    assert set(told["scores"]) >= {"0", "1", "0+1"} and told["score"] >= max(told["scores"]["0"], told["scores"]["1"])
    assert told["score"] == told["scores"]["+".join(map(str, sorted(told["kept"])))]
    assert not (tmp_path / "out/candidate").exists()
    kept = [load_file(place / f"m{i + 1}" / "model.safetensors") for i in told["kept"]]
    out = load_file(tmp_path / "out/model.safetensors")
    for name in out:
        mean = torch.stack([k[name].double() for k in kept]).mean(0).float()
        assert torch.equal(out[name], mean), name


# ---- as a step


@dataclass(frozen=True)
class Copied:
    """A step that is a folder which is there."""

    name: str
    folder: str

    def make(self, out, where):
        import shutil

        shutil.copytree(self.folder, out, dirs_exist_ok=True)


def test_a_recipe_merges_what_its_steps_made(place, tmp_path):
    parts = tuple(Copied(n, str(place / n)) for n in ("m1", "m2", "base"))
    step = Merge("merge", parts[:2], Ties(0.5), base=parts[2])
    run(Recipe("r", (step,)), tmp_path / "run", say=lambda line: None)
    record = json.loads((tmp_path / "run/merge/merge.json").read_text())
    assert [m["name"] for m in record["models"]] == ["m1", "m2"] and record["base"]["name"] == "base"
    assert Embedder.load(tmp_path / "run/merge").encode("a red mug").isfinite().all()


def test_the_step_is_recorded_and_read_back_and_its_digest_hangs_on_models_and_rule(place):
    step = Merge("merge", (str(place / "m1"), str(place / "m2")), SelfPositioning(sample(place)), str(place / "base"))
    assert read(json.loads(json.dumps(write(Recipe("r", (step,)))))).last == (step,)
    same = step_digest(canonical(step, where, {}))
    assert step_digest(canonical(replace(step, block_mb=1), where, {})) == same
    others = [replace(step, rule=Average()), replace(step, models=step.models[::-1]), replace(step, dtype="bfloat16")]
    assert same not in [step_digest(canonical(o, where, {})) for o in others]


def test_the_plan_says_sizes_and_refuses_what_the_step_would(place, tmp_path):
    step = Merge("merge", (str(place / "m1"), str(place / "m2")), Slerp(0.5), dtype="bfloat16")
    told = step.plan(where)
    assert told["models"].startswith("2 of ") and "as bfloat16" in told["written"]
    for rule in (Ties(), SelfPositioning(sample(place))):
        with pytest.raises(DataError, match=f"{type(rule).__name__} works on .* give it as base"):
            replace(step, rule=rule).plan(where)


@pytest.mark.parametrize(
    "change, words",
    [({"models": ("a",)}, "1 models to merge"), ({"dtype": "int8"}, "dtype='int8'"), ({"rank": -1}, "rank=-1"),
     ({"rule": Slerp(2.0)}, "slerp t=2"), ({"rule": "greedy", "rank": 4}, "merges whole weights")],
)  # fmt: skip
def test_a_step_that_cannot_be_made_is_refused_where_it_is_written(change, words, place):
    if change.get("rule") == "greedy":
        change = change | {"rule": Greedy(sources(place))}
    with pytest.raises(DataError, match=words):
        Merge(**{"name": "merge", "models": ("a", "b")} | change)


def test_a_source_of_one_row_is_named(place, tmp_path):
    write_shards(rows("few", 0)[:1], tmp_path / "few")
    given = Sample((Shards(str(tmp_path / "few"), name="few"),))
    with pytest.raises(DataError, match="source 'few' has 1 rows"):
        loss(place / "m1", given)
