"""Every recipe is a whole run: loaded, walked and checked without making anything; the fine-tuning one is run."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omni2vec import Embedder
from omni2vec.data.shards import write_shards
from omni2vec.data.types import DataError, Example
from omni2vec.eval.stored import load as report_of
from omni2vec.launch.load import load
from omni2vec.launch.plan import plan
from omni2vec.launch.run import run
from rich.console import Console

from .model.small import mixed, tiny

RECIPES = Path(__file__).parent.parent / "recipes"


def rows(count, seed):
    items = mixed(2 * count, seed=seed, video=False)
    return [
        Example(f"pairs/{i}", "pairs", "retrieval", items[2 * i], (items[2 * i + 1],), instruction="find the caption")
        for i in range(count)
    ]


@pytest.fixture
def data(tmp_path):
    write_shards(rows(16, 1), tmp_path / "data" / "train" / "pairs")
    write_shards(rows(8, 2), tmp_path / "data" / "test" / "pairs")
    return tmp_path / "data"


@pytest.mark.parametrize("path", sorted(p for p in RECIPES.glob("*.py") if p.stem != "__init__"), ids=lambda p: p.stem)
def test_a_recipe_loads_and_its_steps_have_an_order(path, data):
    tuned = ["model=org/model", f"data={data}"]
    given = {"real_mini": [f"data={data}"], "finetune_embedder": tuned, "eight_gpus": tuned, "eight_nodes": tuned}
    recipe = load(path, given.get(path.stem, []))
    names = [s.name for s in recipe.steps]
    assert names[-1] == "release"
    assert len(set(names)) == len(names)


def test_fine_tuning_an_embedder_trains_scores_beside_the_base_and_releases(data, tmp_path):
    torch.set_num_threads(1)
    tiny().save(tmp_path / "base")
    words = [f"model={tmp_path / 'base'}", f"data={data}", "steps=2", "batch=8", "lora_rank=2", "train.workers=0"]
    recipe = load(RECIPES / "finetune_embedder.py", words)
    (release,) = recipe.last
    run(replace(recipe, last=(replace(release, check=False),)), tmp_path / "run")
    report = report_of(tmp_path / "run" / "scores")
    assert report.tasks[0].name == "pairs"
    assert (tmp_path / "run" / "scores" / "baselines" / "0" / "report.json").exists()
    released, trained = Embedder.load(tmp_path / "run" / "release"), Embedder.load(tmp_path / "run" / "train")
    assert released.adapter is None and trained.adapter is not None
    items = mixed(6, video=False)
    torch.testing.assert_close(released.encode(items), trained.encode(items), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("eight_gpus", "zero=none", "moments"),
        ("eight_gpus", "zero=3", "by ZeRO 3"),
        ("eight_nodes", "zero=2", "by ZeRO 2"),
    ],
)
def test_a_recipe_of_many_gpus_is_planned_where_there_is_none(name, word, said, data, tmp_path):
    torch.set_num_threads(1)
    tiny().save(tmp_path / "base")
    words = [f"model={tmp_path / 'base'}", f"data={data}", "batch=8", word]
    recipe = load(RECIPES / f"{name}.py", words)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(plan(recipe, tmp_path / "run"))
    text = console.export_text()
    assert "tokens a step" in text and said in text, text
    assert not (tmp_path / "run").exists()


def test_fine_tuning_without_shards_says_how_to_make_them(tmp_path):
    with pytest.raises(DataError, match="omni2vec pack"):
        load(RECIPES / "finetune_embedder.py", ["model=org/m", f"data={tmp_path}"])
