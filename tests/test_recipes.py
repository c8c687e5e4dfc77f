"""Every recipe is a whole run: loaded, walked and checked without making anything; the fine-tuning one is run."""

import io
import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from omni2vec import Embedder
from omni2vec.data.shards import write_shards
from omni2vec.data.types import DataError, Example
from omni2vec.data.weights import weights_of
from omni2vec.eval.stored import load as report_of
from omni2vec.launch.load import load
from omni2vec.launch.plan import plan
from omni2vec.launch.record import read, write
from omni2vec.launch.run import run
from omni2vec.train.stage import Stage
from rich.console import Console

from .data.samples import png
from .model.small import mixed, tiny

RECIPES = Path(__file__).parent.parent / "recipes"
SETS = Path(os.environ.get("OMNI2VEC_REAL_DATA", RECIPES.parent.parent / "shared" / "data"))


def rows(count, seed):
    items = mixed(2 * count, seed=seed, video=False)
    return [
        Example(f"pairs/{i}", "pairs", "retrieval", items[2 * i], (items[2 * i + 1],), instruction="find the caption")
        for i in range(count)
    ]


MMEB = ("ImageNet_1K", "OK-VQA", "MSCOCO_t2i")


def tiny_mmeb(folder, count=20):
    """(a hub name, a snapshot of three tasks in folder/mmeb)."""
    sizes = [(30 + i, 40) for i in range(count)]
    for i, size in enumerate(sizes):
        (folder / "mmeb/images").mkdir(parents=True, exist_ok=True)
        (folder / f"mmeb/images/{i}.png").write_bytes(png(*size))
    asked = {
        "ImageNet_1K": lambda i: (
            "<|image_1|>\nRepresent the given image for classification\n",
            1,
            f"class {i % 3}",
            0,
        ),
        "OK-VQA": lambda i: (
            f"<|image_1|>\nRepresent the given image with the following question: How wide is {i}?\n",
            *(1, f"{i} wide", 0),
        ),
        "MSCOCO_t2i": lambda i: (
            f"Find me an everyday image that matches the given caption: number {i}\n",
            *(0, "<|image_1|>\nRepresent the given image.\n", 1),
        ),
    }
    for task, row in asked.items():
        made = [row(i) for i in range(count)]
        rows = [
            {
                "qry": qry,
                "qry_image_path": f"images/{i}.png" * shows,
                "pos_text": text,
                "pos_image_path": f"images/{i}.png" * found,
            }
            for i, (qry, shows, text, found) in enumerate(made)
        ]
        (folder / "mmeb" / task).mkdir(exist_ok=True)
        parquet.write_table(arrow.Table.from_pylist(rows), folder / "mmeb" / task / "original-00000-of-00001.parquet")
    return "org/model", folder / "mmeb"


PAPERS = {  # what each is given at its full size, and its stages
    "vlm2vec_v1": ((), ("train",)),
    "kalm_v2": (("teacher",), ("weak", "hard", "taught")),
    "lg_anna": (("judge",), ("graded", "retrieval")),
    "codiemb": ((), ("together", "pairs")),
    "qzhou": ((), ("retrieval", "every")),
    "u_marvel": (("judge",), ("text", "captions", "tasks", "hard", "taught")),
    "qwen3_vl_embedding": (("judge",), ("broad", "good", "taught")),
}
KINDS = ("weak", "tasks", "retrieval", "sts", "classes", "text", "captions", "pairs")


@pytest.fixture
def data(tmp_path):
    write_shards(rows(16, 1), tmp_path / "data" / "train" / "pairs")
    write_shards(rows(8, 2), tmp_path / "data" / "test" / "pairs")
    return tmp_path / "data"


@pytest.mark.parametrize("path", sorted(p for p in RECIPES.glob("*.py") if p.stem != "__init__"), ids=lambda p: p.stem)
def test_a_recipe_loads_and_its_steps_have_an_order(path, data):
    tuned = ["model=org/model", f"data={data}"]
    given = {"real_mini": [f"data={data}"], "finetune_embedder": tuned, "eight_gpus": tuned, "eight_nodes": tuned}
    given |= {name: ["mini=true", f"data={data}"] for name in PAPERS}
    given["vlm2vec_v2"] = [f"base={tiny_mmeb(data)[0]}", f"data={data / 'mmeb'}", f"tasks={','.join(MMEB)}"]
    recipe = load(path, given.get(path.stem, []))
    names = [s.name for s in recipe.steps]
    assert names[-1] == "release"
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", [n for n in PAPERS if n != "vlm2vec_v1"])
def test_a_paper_s_recipe_is_one_graph_at_its_own_size_and_in_miniature(name, tmp_path):
    for kind in KINDS:
        write_shards(rows(4, 1), tmp_path / "train" / kind / "some")
    write_shards(rows(4, 2), tmp_path / "test" / "some")
    models, stages = PAPERS[name]
    with pytest.raises(DataError, match="mini=true"):
        load(RECIPES / f"{name}.py", [f"data={tmp_path}"])
    words = [f"data={tmp_path}", "base=org/model", *(f"{m}=org/{m}" for m in models)]
    full = [s.name for s in load(RECIPES / f"{name}.py", words).steps if isinstance(s, Stage)]
    mini = [s.name for s in load(RECIPES / f"{name}.py", ["mini=true", "data=sets"]).steps if isinstance(s, Stage)]
    assert tuple(full) == stages
    assert [s for s in mini if s not in ("teacher", "judge")] == full
    for given in (words, ["mini=true", "data=sets"]):
        made = load(RECIPES / f"{name}.py", given)
        assert read(json.loads(json.dumps(write(made)))).last == made.last


def test_vlm2vec_s_recipes_say_what_is_needed(data):
    for name in ("vlm2vec_v1", "vlm2vec_v2"):
        with pytest.raises(DataError, match="mini=true"):
            load(RECIPES / f"{name}.py", [f"data={data}"])
    with pytest.raises(DataError, match="data=FOLDER names what holds emoji/, clothing/"):
        load(RECIPES / "vlm2vec_v1.py", ["mini=true"])


@pytest.mark.slow
@pytest.mark.skipif(not SETS.is_dir(), reason=f"the small public sets are not at {SETS}")
@pytest.mark.parametrize("name", [*PAPERS, "vlm2vec_v2"])
def test_a_recipe_s_twin_goes_from_sets_to_release(name, tmp_path):
    words = ["mini=true", f"data={SETS}"]
    stages = [s.name for s in load(RECIPES / f"{name}.py", words).steps if isinstance(s, Stage)]
    into = finished(name, [*words, *(f"{s}.steps=2" for s in stages)], tmp_path / "run")
    assert (into / "release" / "model.safetensors").exists()


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


def finished(name, words, into):
    """The folder of a whole run of the recipe, its release unchecked."""
    torch.set_num_threads(1)
    recipe = load(RECIPES / f"{name}.py", [*words, "release.check=false"])
    run(recipe, into)
    return into


@pytest.mark.parametrize(
    ("name", "words", "stages"),
    [
        ("progressive_transition", ["text=2", "pairs=2", "every=2", "rows=16"], ("text", "pairs", "every")),
        (
            "content_aware",
            ["see=2", "all_steps=2", "near_steps=2", "hard_steps=2", "rows=40"],
            ("early", "all", "near", "hard"),
        ),
    ],
)
def test_a_curriculum_runs_each_stage_from_the_one_before_and_scores_the_last(name, words, stages, tmp_path):
    if name == "content_aware":
        pytest.importorskip("sklearn"), pytest.importorskip("pymetis")
    into = finished(name, ["test=4", "batch=8", *words], tmp_path / "run")
    assert report_of(into / "scores").model == stages[-1]
    assert (into / "release" / "model.safetensors").exists()
    vectors = [Embedder.load(into / stage).encode(["a red circle"]) for stage in stages]
    assert all((a - b).abs().max() > 1e-4 for a, b in pairwise(vectors))
    if name == "content_aware":  # the sources that are themselves wanted weigh most
        weights = weights_of(into / "balance")
        assert set(sorted(weights, key=weights.__getitem__)[-2:]) == {"caption_to_image", "composed"}


@pytest.mark.parametrize(("name", "steps"), [("progressive_transition", 620), ("content_aware", 540)])
def test_the_comparison_of_a_curriculum_trains_as_long_on_all_sources(name, steps):
    joint = load(RECIPES / f"{name}.py", ["plan=joint"])
    stages = [s for s in joint.steps if isinstance(s, Stage)]
    staged = [s for s in load(RECIPES / f"{name}.py", []).steps if isinstance(s, Stage)]
    early = stages[0].steps if len(stages) > 1 else 0  # what both begin with
    assert stages[-1].steps == sum(s.steps for s in staged) - early == steps


def test_the_mmeb_recipe_converts_a_snapshot_trains_two_steps_and_releases(data, tmp_path):
    _, snapshot = tiny_mmeb(data)
    tiny().save(tmp_path / "base")
    words = [f"base={tmp_path / 'base'}", f"data={snapshot}", f"tasks={','.join(MMEB)}", "steps=2", "batch=16"]
    words += ["sub_batch=8", "held=4", "train.workers=0", "train.precision=fp32"]
    into = finished("vlm2vec_v2", words, tmp_path / "run")
    assert sorted(p.name for p in (into / "mmeb_train/train").iterdir()) == sorted(MMEB)
    report = report_of(into / "scores")
    assert [t.name for t in report.tasks] == ["ImageNet_1K", "MSCOCO_t2i"]  # questions have no pool of their own
    released, base = Embedder.load(into / "release"), Embedder.load(tmp_path / "base")
    assert (released.encode(["a cat"]) - base.encode(["a cat"])).abs().max() > 1e-6
    again = load(RECIPES / "vlm2vec_v2.py", [*words[:1], f"data={into / 'mmeb_train'}", *words[2:]])
    assert "mmeb_train" not in [s.name for s in again.steps]  # shards need no conversion


def test_the_mmeb_recipe_says_what_is_not_there(data, tmp_path):
    _, snapshot = tiny_mmeb(data)
    with pytest.raises(DataError, match=r"no N24News/original-\*.parquet in it"):
        load(RECIPES / "vlm2vec_v2.py", ["base=org/model", f"data={snapshot}"])
    with pytest.raises(DataError, match="tasks=cirr: the mix has ImageNet_1K"):
        load(RECIPES / "vlm2vec_v2.py", ["base=org/model", f"data={snapshot}", "tasks=cirr"])
    write_shards(rows(4, 1), tmp_path / "shards/train/CIRR")
    with pytest.raises(DataError, match="no shards of NIGHTS; convert them"):
        load(RECIPES / "vlm2vec_v2.py", ["base=org/model", f"data={tmp_path / 'shards'}", "tasks=CIRR,NIGHTS"])


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
