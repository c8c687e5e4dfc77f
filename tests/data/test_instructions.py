"""Instructions by task and side: which text a draw gets, how often none, and what is refused."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from dataclasses import replace

import pytest
from omni2vec.data.convert.mmeb_texts import TASKS
from omni2vec.data.instructions import Instructions
from omni2vec.data.templates import FAMILIES, OMNI2VEC, QZHOU, U_MARVEL, VLM2VEC, family
from omni2vec.data.types import Example, Item

ROW = Example("toys/0/1", "toys", "retrieval", Item.text("q"), (Item.text("a"),))
DRAWS = 4000


def _told(told: Instructions, row: Example = ROW, seed: int = 1) -> list[str]:
    return [told.of(row, "query", "own", seed, d) for d in range(DRAWS)]


def test_every_paraphrase_is_told_as_often() -> None:
    told = Instructions(query={"retrieval": ("a", "b", "c", "d", "e")})
    counts = Counter(_told(told))
    assert set(counts) == set("abcde")
    assert max(abs(n - DRAWS / 5) for n in counts.values()) < 4.5 * (DRAWS / 5) ** 0.5


def test_a_paraphrase_is_a_function_of_seed_side_draw_and_key() -> None:
    told = Instructions(query={"*": tuple("abcdefgh")}, target={"*": tuple("abcdefgh")})
    first = _told(told)
    assert first == _told(told)
    others = (
        _told(told, seed=2),
        _told(told, replace(ROW, key="toys/0/1#x")),
        [told.of(ROW, "target", "own", 1, d) for d in range(DRAWS)],
        first[1:] + first[:1],
    )
    for other in others:  # an eighth is equal by chance
        assert abs(sum(a == b for a, b in zip(first, other, strict=True)) / DRAWS - 1 / 8) < 0.025


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5, 1.0])
def test_a_side_goes_without_at_the_given_chance(drop: float) -> None:
    for told in (Instructions(query={"*": ("a", "b")}, drop=drop), Instructions(drop=drop)):  # the row's own too
        bare = _told(told).count("")
        assert abs(bare - drop * DRAWS) <= 4.5 * (drop * (1 - drop) * DRAWS) ** 0.5


def test_the_sides_go_without_apart() -> None:
    told = Instructions(drop=0.3)
    bare = Counter(
        (not told.of(ROW, "query", "own", 1, d), not told.of(ROW, "target", "own", 1, d)) for d in range(DRAWS)
    )
    assert abs(bare[True, True] / DRAWS - 0.09) < 0.02
    assert abs(bare[False, False] / DRAWS - 0.49) < 0.04


def test_what_is_kept_keeps_its_paraphrase_whatever_the_drop() -> None:
    texts = {"*": tuple("abcd")}
    whole, half = _told(Instructions(query=texts)), _told(Instructions(query=texts, drop=0.5))
    assert all(h in ("", w) for w, h in zip(whole, half, strict=True))


def test_the_dataset_is_named_before_its_task_and_the_task_before_any() -> None:
    table = {"mmeb/CIRR": ("path",), "CIRR": ("name",), "retrieval": ("task",), "*": ("any",)}
    row = replace(ROW, source="mmeb/CIRR")
    for missing, expected in (("", "path"), ("mmeb/CIRR", "name"), ("CIRR", "task"), ("retrieval", "any")):
        table.pop(missing, None)
        assert Instructions(query=table).of(row, "query", "own", 1, 0) == expected
    assert Instructions(query={"sts": ("x",)}).of(row, "query", "own", 1, 0) == "own"
    assert Instructions(query=table).of(row, "target", "own", 1, 0) == "own"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop": 1.5}, "drop=1.5; expected a chance from 0 to 1"),
        ({"drop": float("nan")}, "drop=nan; expected a chance"),
        ({"query": {"vqa": ()}}, "query['vqa']=(); expected one text at least"),
        ({"target": {"vqa": ("Fine.", "  ")}}, "target['vqa']=('Fine.', '  '); expected one text at least"),
        ({"query": {"vqa": "Answer."}}, "query['vqa']='Answer.'; expected texts"),
        ({"query": {"vqa": (1,)}}, "query['vqa']=(1,); expected texts"),
    ],
)
def test_wrong_instructions_are_refused_where_they_are_made(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Instructions(**settings)  # type: ignore[arg-type]


def test_families_are_known_by_name_and_travel_to_workers() -> None:
    told = family("vlm2vec", drop=0.1)
    assert (told.query, told.target, told.drop) == (VLM2VEC.query, VLM2VEC.target, 0.1)
    assert family("qzhou") == QZHOU
    for name, found in FAMILIES.items():
        assert pickle.loads(pickle.dumps(found)) == family(name)
    with pytest.raises(ValueError, match="'vlm' are not known; expected one of omni2vec, vlm2vec, u_marvel, qzhou"):
        family("vlm")


def test_vlm2vec_tells_all_sets_of_mmeb_and_says_to_rows_of_mmeb_train_what_they_say() -> None:
    assert len(VLM2VEC.query) == 87  # the 81 tasks of MMEB-V2 with their variants, and the sets that only train
    for name, task in TASKS.items():
        row = replace(ROW, source=name, task=task.kind)
        assert VLM2VEC.of(row, "query", "own", 1, 0) == task.query
    assert VLM2VEC.of(replace(ROW, source="MSR-VTT"), "target", "", 1, 0).startswith("Understand the content")
    assert VLM2VEC.of(replace(ROW, source="OK-VQA"), "target", "", 1, 0) == ""  # answers are plain texts
    assert set(VLM2VEC.target) <= set(VLM2VEC.query)


def test_u_marvel_has_paraphrases_of_every_set_of_m_beir_on_the_query_side() -> None:
    numbers = {name: len(set(texts)) for name, texts in U_MARVEL.query.items()}
    assert len(numbers) == 16
    assert [name for name, n in numbers.items() if n != 4] == ["infoseek_task8"]
    assert U_MARVEL.target == {}


def test_qzhou_tells_both_sides_of_symmetric_tasks_alike_and_searches_from_one() -> None:
    assert len(QZHOU.query) == 41 + 31 + 2  # MTEB English, Chinese; and two kinds of task
    assert all(QZHOU.query[name] == texts for name, texts in QZHOU.target.items())
    assert "STS12" in QZHOU.target
    assert not {"retrieval", "SCIDOCS", "T2Retrieval"} & set(QZHOU.target)


def test_our_own_tell_every_kind_of_task_in_several_words() -> None:
    assert {"retrieval", "classification", "vqa", "grounding", "sts", "composed"} == set(OMNI2VEC.query)
    assert set(OMNI2VEC.target) == set(OMNI2VEC.query)
    assert all(len(set(texts)) == 4 for texts in OMNI2VEC.query.values())
