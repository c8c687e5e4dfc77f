"""`omni2vec merge`: words to rules, what it says, and what it refuses."""

import json

import pytest
import torch
from omni2vec.data.types import DataError
from omni2vec.launch.app import app
from omni2vec.launch.merge_verb import RULES, TAKES, rule_of
from omni2vec.model.merge.average import Average, Weighted
from omni2vec.model.merge.dare import Dare
from omni2vec.model.merge.delta_guided import DeltaGuided
from omni2vec.model.merge.ema import Ema
from omni2vec.model.merge.fisher import Fisher
from omni2vec.model.merge.slerp import Slerp
from omni2vec.model.merge.task_arithmetic import TaskArithmetic
from omni2vec.model.merge.ties import Ties
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner


@pytest.fixture
def models(tmp_path):
    made = []
    for name, value in (("base", 0.0), ("a", 1.0), ("b", 3.0)):
        made.append(tmp_path / name)
        made[-1].mkdir()
        save_file({"w": torch.tensor([value, 1.0])}, made[-1] / "model.safetensors")
        (made[-1] / "config.json").write_text(json.dumps({"model_type": "toy", "dtype": "float32"}))
    return list(map(str, made))


def merge(*words):
    return CliRunner().invoke(app, ["merge", *map(str, words)])


def test_models_are_merged_as_the_words_say(models, tmp_path):
    base, one, two = models
    done = merge(tmp_path / "out", one, two)
    assert done.exit_code == 0 and "2 models by average" in done.output and "omni2vec eval" in done.output
    assert load_file(tmp_path / "out/model.safetensors")["w"].tolist() == [2.0, 1.0]
    merge(
        tmp_path / "sum", one, two, "--rule", "task_arithmetic", "--weight", 0.5, "--base", base, "--dtype", "bfloat16"
    )
    found = load_file(tmp_path / "sum/model.safetensors")["w"]
    assert found.tolist() == [2.0, 1.0] and found.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "name, given, rule",
    [("average", {}, Average()), ("weighted", {"weight": (1.0, 2.0)}, Weighted((1.0, 2.0))),
     ("slerp", {"t": 0.3, "over": "model"}, Slerp(0.3, "model")), ("ema", {"decay": 0.9}, Ema(0.9)),
     ("task_arithmetic", {"weight": (0.4,)}, TaskArithmetic((0.4,))),
     ("delta_guided", {"power": 2.0}, DeltaGuided(2.0)),
     ("ties", {"density": 0.3, "scale": 0.4, "weight": (1.0, 2.0)}, Ties(0.3, 0.4, (1.0, 2.0))),
     ("dare", {"drop": 0.9, "seed": 3, "weight": (0.4,)}, Dare(0.9, (0.4,), seed=3)),
     ("fisher", {"fisher": ("f", "g")}, Fisher(("f", "g")))],
)  # fmt: skip
def test_words_become_the_rule_of_that_name(name, given, rule):
    assert rule_of(name, given) == rule


def test_every_rule_has_its_options_and_its_class():
    assert set(RULES) == set(TAKES)
    needs = {"weighted": {"weight": (1.0, 1.0)}, "fisher": {"fisher": ("f",)}}
    assert len({type(rule_of(name, needs.get(name, {}))) for name in RULES}) == len(RULES)


@pytest.mark.parametrize(
    "name, given, words",
    [("tie", {}, "no such rule. Did you mean 'ties'"), ("ema", {"density": 0.3}, "--density says nothing to ema"),
     ("average", {"weight": (1.0,)}, "--weight says nothing to average, which takes no option of its own"),
     ("weighted", {}, "needs --weight, once for each model"),
     ("slerp", {"over": "row"}, "expected 'tensor' or 'model'")],
)  # fmt: skip
def test_words_without_effect_are_refused(name, given, words):
    with pytest.raises(DataError, match=words.replace(".", r"\.")):
        rule_of(name, given)


def test_a_folder_that_is_there_is_not_overwritten(models, tmp_path):
    (tmp_path / "out").mkdir()
    done = merge(tmp_path / "out", *models[1:])
    assert isinstance(done.exception, DataError) and "exists already" in str(done.exception)
    for words, told in (
        ((tmp_path / "new", models[1], tmp_path / "nothere"), "no model folder"),
        ((tmp_path / "new", *models[1:], "--dtype", "int4"), "dtype='int4'"),
        ((tmp_path / "new", *models[1:], "--rule", "ties"), "give it as base"),
    ):
        done = merge(*words)
        assert isinstance(done.exception, DataError) and told in str(done.exception)
    assert not (tmp_path / "new").exists()


def test_the_help_teaches_by_example():
    done = merge("--help")
    assert "--rule slerp --t 0.5 --base org/base" in " ".join(done.output.split())
