"""A teacher's scores and vectors through a whole recipe: judged, embedded, trained on, recorded, missed by key."""

import json
from pathlib import Path

import pytest
from omni2vec.data.asking import Asked
from omni2vec.data.mix import Feed
from omni2vec.data.scored import Scored
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import DataError, Example, Item, Step
from omni2vec.launch.digest import canonical, step_digest
from omni2vec.launch.graph import Recipe, check
from omni2vec.launch.record import read, write
from omni2vec.train.judge import Judged
from omni2vec.train.judge_cross_encoder import CrossEncoder
from omni2vec.train.judge_endpoint import Endpoint
from omni2vec.train.judge_vlm import YesNo
from omni2vec.train.monitor import read_log
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.objectives.similarity import Similarity
from omni2vec.train.objectives.soft_label import SoftLabel
from omni2vec.train.optim import AdamW
from omni2vec.train.stage import Stage
from omni2vec.train.vectors import Embedded

from ..model.small import mixed, tiny

ROWS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("distillation")
    items = mixed(2 * ROWS, seed=5, video=False)
    made = [
        Example(f"rows/{i}", "rows", "retrieval", items[2 * i], (items[2 * i + 1],), (Item.text(f"wrong {i}"),))
        for i in range(ROWS)
    ]
    write_shards(made, path / "rows")
    tiny().save(path / "model")
    return path


def steps(folder: Path, judge=None) -> tuple[Judged, Embedded, Stage]:
    rows, model = Shards(str(folder / "rows"), name="rows"), str(folder / "model")
    judged = Judged("judge", rows, judge or YesNo(model, log_odds=True, device="cpu"))
    taught = Embedded("teach", model, (rows,))
    feeds = (
        Feed(Scored(rows, judged, name="scored"), negatives=1, objective="soft"),
        Feed(Asked(rows), objective="asked"),
    )
    soft = (InfoNCE(), SoftLabel(weight=0.5, teacher_temperature=0.1), Similarity(taught, weight=0.25))
    stage = Stage(
        "train", model, feeds, steps=3, batch=8, sub_batch=4, objectives={"soft": soft, "asked": (NextToken(0.1),)},
        optimizer=AdamW(lr=1e-3), chunk_tokens=1024, memory="boundaries", device="cpu",
    )  # fmt: skip
    return judged, taught, stage


def test_a_recipe_judges_embeds_and_trains_on_both_and_the_words(folder, tmp_path):
    made: dict[str, Path] = {}

    def where(step: Step) -> Path:
        return made[step.name]

    for step in steps(folder):
        out = tmp_path / step.name
        out.mkdir()
        step.make(out, where)
        made[step.name] = out
    losses = [r["losses"] for r in read_log(tmp_path / "train/log.jsonl") if "losses" in r]
    assert len(losses) == 3
    assert {name for step in losses for name in step} == {
        f"soft/{n}" for n in ("infonce", "softlabel", "similarity")
    } | {"asked/nexttoken"}
    assert all(0 < value < 100 for step in losses for name, value in step.items() if name != "soft/softlabel")
    assert json.loads((tmp_path / "judge/report.json").read_text())["pairs"] == 2 * ROWS


@pytest.mark.parametrize("judge", [None, "cross", "endpoint"])
def test_a_record_of_it_loads_back_to_equal_steps_with_the_needs_that_it_has(folder, judge):
    given = {None: None, "cross": CrossEncoder("x"), "endpoint": Endpoint("https://host/v1", "m", key="KEY")}[judge]
    stage = steps(folder, given)[2]
    recipe = Recipe("distilled", (stage,))
    assert [s.name for s in recipe.steps] == ["judge", "teach", "train"]
    for step in recipe.steps:
        check(step, step.name)
    assert read(json.loads(json.dumps(write(recipe)))) == recipe


def test_the_digest_of_a_judged_step_follows_its_judge(folder):
    def named(judge):
        step = steps(folder, judge)[0]
        return step_digest(canonical(step, lambda s: Path(s.name), {}))

    model = str(folder / "model")
    assert len({named(j) for j in (YesNo(model), YesNo(model, question="?"), Endpoint("https://host/v1", "m"))}) == 3
    assert named(Endpoint("https://host/v1", "m")) == named(Endpoint("https://host/v1", "m", concurrency=2))


def test_rows_without_the_teachers_scores_stop_the_stage_by_key(folder, tmp_path):
    rows = Shards(str(folder / "rows"), name="rows")
    stage = Stage(
        "train", str(folder / "model"), (Feed(rows, negatives=1),), steps=1, batch=4,
        objectives={"default": (SoftLabel(),)}, device="cpu", chunk_tokens=1024, memory="boundaries",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"rows/.*\d+: no score 'rerank'"):
        stage.make(tmp_path, lambda s: Path(s.name))
