"""Converters: every set's tasks and right answers, no row of test in train; on small tables and on the real sets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from omni2vec.data.convert import SETS, Banking, Cells, Clothing, DigitsSpoken, Emoji, MovieLens, Nlvr, Sts
from omni2vec.data.convert.emoji import hardest
from omni2vec.data.convert.folder import outside
from omni2vec.data.convert.person import Film, Habits, Rating, questions
from omni2vec.data.shards import verify, write_shards
from omni2vec.data.sources import AtLeast, Shards
from omni2vec.data.types import DataError, Events, Example, Image, Item, Rows, Step, Text

from .samples import nowhere, png, wav

REAL = Path(os.environ.get("OMNI2VEC_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")

# set -> split -> task -> rows: the README's table, less what the docstrings say.
COUNTS: dict[str, dict[str, dict[str, int]]] = {
    "clothing": {
        "train": {"clothing_classes": 3068, "clothing_same": 3068},
        "test": {"clothing_classes": 341, "clothing_same": 168},
    },
    "emoji": {
        "train": {"emoji_picture": 2616, "emoji_name": 2616, "emoji_category": 2616, "emoji_composed": 1223},
        "test": {"emoji_picture": 689, "emoji_name": 689, "emoji_category": 689, "emoji_composed": 210},
    },
    "nlvr": {"train": {"nlvr": 986}, "test": {"nlvr": 423}},  # three pictures of train are in test too
    "cells": {
        "train": {"cells_grounding": 316, "cells_classes": 518, "cells_count": 3 * 205},
        "test": {"cells_grounding": 128, "cells_classes": 214, "cells_count": 3 * 87},
    },
    "receipts": {
        "train": {"receipts_pages": 240, "receipts_qa": 4 * 240 - 1},  # one has no total
        "test": {"receipts_pages": 80, "receipts_qa": 4 * 80},
    },
    "digits_spoken": {
        "train": {"digits_word": 2400, "digits_sound": 2400, "digits_speaker": 2400},
        "test": {"digits_word": 300, "digits_sound": 10, "digits_speaker": 300},
    },
    "clips": {"train": {"clips_topic": 52, "clips_same": 52}, "test": {"clips_topic": 8}},  # gestures have no twin
    "banking": {  # three texts of train are in test too
        "train": {"banking_intents": 10_000, "banking_same": 10_000},
        "test": {"banking_intents": 1500, "banking_same": 731},
    },
    "sts": {"train": {"sts_en": 5738, "sts_de": 5726}, "test": {"sts_en": 1500, "sts_de": 1500}},
    "movielens": {
        "train": {"movielens_next": 3811, "movielens_people": 1631, "movielens_genres": 8750},
        "test": {"movielens_next": 53, "movielens_people": 182, "movielens_genres": 958},
    },
    "limit_small": {"test": {"limit_small": 1000}},
}


@cache
def real(name: str) -> dict[tuple[str, str], list[Example]]:
    """(split, task) -> its rows, of a whole real set."""
    if not (REAL / name).is_dir():
        pytest.skip(f"no real sets: {REAL / name} is not there (OMNI2VEC_REAL_DATA names their folder)")
    return {(split, task): rows for split, task, rows in SETS[name](str(REAL / name)).tasks() if rows}


def each(rows: Rows) -> Iterator[Example]:
    return (rows[i] for i in range(len(rows)))


def text(item: Item) -> str:
    return next(part.text for part in item.parts if isinstance(part, Text))


def table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(rows), path)


def made(step: Step, out: Path) -> dict[str, Rows]:
    """ "split/task" -> rows of a converted folder."""
    step.make(out, nowhere)
    return {f"{p.parent.name}/{p.name}": Shards(str(p)).open(nowhere) for p in sorted(out.glob("*/*"))}


# --- on the real sets ---


@pytest.mark.parametrize("name", COUNTS)
def test_a_real_set_gives_every_task_with_its_rows(name: str) -> None:
    expected = {(split, task): n for split, tasks in COUNTS[name].items() for task, n in tasks.items()}
    assert {where: len(rows) for where, rows in real(name).items()} == expected


@pytest.mark.parametrize("name", COUNTS)
def test_nothing_that_test_asks_is_asked_in_train(name: str) -> None:
    def asked(split: str, task: str) -> set[str]:
        pairs = ((e.query.id, e.positives[0].id if e.task == "sts" else "") for e in real(name)[split, task])
        return {"".join(pair) for pair in pairs}

    tasks = COUNTS[name].get("train", {}).keys() & COUNTS[name]["test"].keys()
    for task in tasks - {"digits_sound"}:  # the same ten words in both; its sounds are those of digits_word
        assert asked("train", task).isdisjoint(asked("test", task)), task


@pytest.mark.parametrize("name", COUNTS)
def test_every_row_of_test_holds_its_answer_and_no_wrong_one(name: str) -> None:
    for task in COUNTS[name]["test"]:
        for e in real(name)["test", task]:
            right = {item.id for item in e.positives} | set(e.known)
            assert right.isdisjoint(item.id for item in e.negatives), e.key
            assert e.instruction, e.key
            if e.task in ("vqa", "grounding"):
                assert e.negatives, e.key


def test_real_clips_verify_without_a_fault(tmp_path: Path) -> None:
    assert list(verify(write_shards(real("clips")["test", "clips_topic"], tmp_path))) == []


def test_all_77_intents_stand_in_every_row_of_banking() -> None:
    for e in real("banking")["test", "banking_intents"]:
        assert len({i.id for i in (*e.positives, *e.negatives)}) == 77
        assert text(e.positives[0]) == e.label == e.answer


def test_composed_emoji_answer_with_the_picture_of_the_tone_that_is_asked_for() -> None:
    names = {e.query.id: e.answer for e in real("emoji")["test", "emoji_name"]}
    for e in real("emoji")["test", "emoji_composed"]:
        tone = text(e.query).removeprefix("with ")
        assert names[e.positives[0].id].endswith(f", {tone}")
        base = names[Item(e.query.parts[:1]).id]
        assert names[e.positives[0].id].startswith(base.split(", ")[0])
        assert base != names[e.positives[0].id]


def test_grounding_finds_the_crop_and_at_most_half_are_right() -> None:
    rows = list(real("cells")["test", "cells_grounding"])
    assert all(len(e.positives) <= len(e.negatives) for e in rows)
    assert {text(e.query) for e in rows} == {"the white blood cell", "the platelet"}  # red ones are the many
    picture, crop = rows[0].query.parts[0], rows[0].positives[0].parts[0]
    assert isinstance(picture, Image) and isinstance(crop, Image) and crop.width < picture.width


def test_only_pairs_of_four_or_more_enter_the_contrastive_loss(tmp_path: Path) -> None:
    pairs = real("sts")["test", "sts_en"]
    write_shards(pairs, tmp_path / "sts")
    alike = AtLeast(Shards(str(tmp_path / "sts")), "label", 4.0).open(nowhere)
    assert len(alike) == sum(e.scores["label"][0] >= 4 for e in pairs) > 100
    assert min(e.scores["label"][0] for e in each(alike)) >= 4


def test_limit_has_46_documents_and_two_answers_each() -> None:
    rows = list(real("limit_small")["test", "limit_small"])
    assert {len(e.positives) for e in rows} == {2}
    assert len({i.id for e in rows for i in (*e.positives, *e.negatives)}) == 46


def test_a_person_of_the_test_is_no_person_of_train_and_histories_are_events() -> None:
    people = [
        {e.key.split("/")[2].split("-")[0] for e in real("movielens")[s, "movielens_next"]} for s in ("train", "test")
    ]
    assert len(people[1]) == 53 and people[0].isdisjoint(people[1])
    histories = [
        {e.query.parts[0].events[0] for e in real("movielens")[s, "movielens_next"]}  # type: ignore[union-attr]
        for s in ("train", "test")
    ]
    assert histories[0].isdisjoint(histories[1])
    first = real("movielens")["test", "movielens_next"][0]
    assert isinstance(first.query.parts[0], Events) and len(first.query.parts[0].events) == 30
    times = [event.time for event in first.query.parts[0].events]
    assert times == sorted(times)


def test_no_film_whose_genres_the_test_asks_for_is_shown_in_train() -> None:
    asked = {text(e.query) for e in real("movielens")["test", "movielens_genres"]}
    for e in real("movielens")["train", "movielens_people"]:
        for part in e.query.parts:
            for event in part.events if isinstance(part, Events) else ():
                assert event.action == "tagged" or event.text.rsplit(": ", 1)[0] not in asked


# --- on small tables: any split, any names ---

SQUARES = [{"image": png(8 + i, 8), "label": "ab"[i % 2], "file": str(i)} for i in range(8)]


@pytest.mark.parametrize("files", [["test.parquet"], ["heldout.parquet"], ["judged-00000-of-00001.parquet"]])
def test_a_folder_with_one_split_of_any_name_is_read(files: list[str], tmp_path: Path) -> None:
    for file in files:
        table(tmp_path / "in" / file, SQUARES)
    rows = made(Clothing(str(tmp_path / "in")), tmp_path / "out")
    split = files[0].split(".")[0].split("-")[0]
    assert sorted(rows) == [f"{split}/clothing_classes", f"{split}/clothing_same"]
    assert all(len(e.negatives) == 1 for e in each(rows[f"{split}/clothing_classes"]))


def test_several_files_of_a_split_are_one_split(tmp_path: Path) -> None:
    for i in range(2):
        table(tmp_path / "in" / f"train-{i:05d}-of-00002.parquet", SQUARES[4 * i : 4 * i + 4])
    rows = made(Clothing(str(tmp_path / "in")), tmp_path / "out")
    assert len(rows["train/clothing_classes"]) == 8


def test_same_class_rows_know_all_of_their_class_but_themselves(tmp_path: Path) -> None:
    table(tmp_path / "in/train.parquet", SQUARES)
    table(tmp_path / "in/test.parquet", [{**r, "image": png(20 + i, 9)} for i, r in enumerate(SQUARES)])
    rows = made(Clothing(str(tmp_path / "in")), tmp_path / "out")
    train, test = list(each(rows["train/clothing_same"])), list(each(rows["test/clothing_same"]))
    ids = {label: {e.query.id for e in train if e.label == label} for label in "ab"}
    for e in train:
        assert set(e.known) == ids[e.label] - {e.query.id}
        assert e.positives[0].id in e.known
    assert Counter(e.positives[0].id for e in train) == dict.fromkeys(ids["a"] | ids["b"], 1)
    pool = {i.id for e in test for i in e.positives}
    assert (len(test), len(pool)) == (4, 4) and pool.isdisjoint(e.query.id for e in test)
    assert all(set(e.known) <= pool and len(e.known) == 2 for e in test)


def test_a_row_of_train_that_test_has_too_is_dropped_from_train(tmp_path: Path) -> None:
    rows = [{"text": f"question {i}", "intent": "xy"[i % 2]} for i in range(6)]
    table(tmp_path / "in/train.parquet", rows)
    table(
        tmp_path / "in/test.parquet", [{**rows[0], "text": " Question 0"}, *({**r, "text": r["intent"]} for r in rows)]
    )
    found = made(Banking(str(tmp_path / "in")), tmp_path / "out")
    assert [text(e.query) for e in each(found["train/banking_intents"])] == [f"question {i}" for i in range(1, 6)]
    assert len(found["test/banking_intents"]) == 7


def test_classes_of_train_are_candidates_in_test(tmp_path: Path) -> None:
    table(tmp_path / "in/train.parquet", [{"text": str(i), "intent": f"intent {i}"} for i in range(5)])
    table(tmp_path / "in/test.parquet", [{"text": "a", "intent": "intent 3"}])
    (row,) = each(made(Banking(str(tmp_path / "in")), tmp_path / "out")["test/banking_intents"])
    assert sorted(text(i) for i in row.negatives) == ["intent 0", "intent 1", "intent 2", "intent 4"]


def test_sts_has_one_task_a_language_and_keeps_scores(tmp_path: Path) -> None:
    rows = [{"a": f"a{i}", "b": f"b{i}", "score": i / 2, "language": ["en", "de", "fr"][i % 3]} for i in range(6)]
    table(tmp_path / "in/test.parquet", rows)
    found = made(Sts(str(tmp_path / "in")), tmp_path / "out")
    assert sorted(found) == ["test/sts_de", "test/sts_en", "test/sts_fr"]
    assert [e.scores["label"] for e in each(found["test/sts_de"])] == [(0.5,), (2.0,)]


def test_nlvr_has_the_other_word_as_its_negative(tmp_path: Path) -> None:
    table(tmp_path / "in/test.parquet", [{"image": png(5, 5), "sentence": "it is red", "label": "true", "id": "1"}])
    (row,) = each(made(Nlvr(str(tmp_path / "in")), tmp_path / "out")["test/nlvr"])
    assert ([text(i) for i in row.positives], [text(i) for i in row.negatives]) == (["true"], ["false"])
    assert isinstance(row.query.parts[0], Image) and row.query.parts[1] == Text("it is red")


def test_crops_are_the_pixels_of_their_boxes_and_slivers_are_left_out(tmp_path: Path) -> None:
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    file = BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    objects = [
        {"label": "white", "box": [2, 3, 12, 15]},
        {"label": "red", "box": [10, 0, 20, 10]},
        {"label": "red", "box": [0, 0, 2, 10]},
        {"label": "red", "box": [20, 10, 30, 20]},
    ]
    table(tmp_path / "in/test.parquet", [{"image": file.getvalue(), "objects": objects, "id": "x"}])
    rows = made(Cells(str(tmp_path / "in")), tmp_path / "out")
    (row,) = each(rows["test/cells_grounding"])
    crop = row.positives[0].parts[0]
    assert isinstance(crop, Image) and len(row.negatives) == 2
    assert (np.asarray(PIL.Image.open(BytesIO(crop.blob.read()))) == pixels[3:15, 2:12]).all()
    counted = {text(e.query): e.answer for e in each(rows["test/cells_count"])}
    assert counted == {"How many whites are there?": "1", "How many reds are there?": "3"}


def test_sounds_of_a_word_are_its_answers(tmp_path: Path) -> None:
    rows = [
        {"audio": wav(np.full(80 + i, 0.1), 8000), "digit": ["one", "two"][i % 2], "speaker": "ab"[i // 2], "index": i}
        for i in range(4)
    ]
    table(tmp_path / "in/test.parquet", rows)
    found = made(DigitsSpoken(str(tmp_path / "in")), tmp_path / "out")
    assert {text(e.query): len(e.positives) for e in each(found["test/digits_sound"])} == {"one": 2, "two": 2}
    assert len(found["test/digits_word"][0].negatives) == 9


def test_names_that_differ_by_one_word_are_the_hardest() -> None:
    names = ["red apple", "green apple", "red heart", "blue heart", "apple", "pear"]
    assert [{names[j] for j in js} for js in hardest(names)] == [
        {"green apple", "red heart"},
        {"red apple"},
        {"red apple", "blue heart"},
        {"red heart"},
        set(),
        set(),
    ]


def test_two_names_of_one_picture_are_both_right(tmp_path: Path) -> None:
    rows = [{"image": png(6, 6), "name": n, "category": "c"} for n in ("one thing", "other thing")]
    table(tmp_path / "in/test.parquet", rows)
    for e in each(made(Emoji(str(tmp_path / "in")), tmp_path / "out")["test/emoji_name"]):
        assert set(e.known) == {Item.text("one thing").id, Item.text("other thing").id} and e.negatives == ()


def test_answers_about_people_follow_from_the_ratings_shown() -> None:
    films = [Film.of(str(i), f"Film {i} ({1960 + 10 * (i % 5)})", "Drama") for i in range(40)]
    horror = [Film.of(f"h{i}", f"Fear {i} (1983)", "Horror") for i in range(20)]
    crowd = [[Rating(f, stars, float(i)) for i, f in enumerate([*films, *horror[:2]])] for stars in (2.0, 3.0, 4.0)]
    habits = Habits.of(crowd)
    fan = [Rating(f, 5.0, 0.0) for f in horror] + [Rating(f, 1.0, 0.0) for f in films[:5]]
    found = {name: answer for name, _, answer, _ in questions(fan, habits)}
    assert found == {"genre": "Horror", "liking": "Horror", "decade": "1980s", "rater": "generous"}
    for name, _, answer, candidates in questions(fan, habits):
        assert answer in candidates, name
    assert {n: a for n, _, a, _ in questions([Rating(films[0], 1.0, 0.0)] * 10, habits)}["rater"] == "strict"


def test_a_share_of_one_makes_a_test_of_all_people(tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text(
        "movieId,title,genres\n" + "".join(f"{i},Film {i} (19{60 + i}),Drama|War\n" for i in range(30))
    )
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n"
        + "".join(f"{u},{i},{1 + (u + i) % 5},{1000 - i}\n" for u in range(3) for i in range(15))
    )
    found = made(MovieLens(str(tmp_path), test_share=1.0, events=12), tmp_path / "out")
    assert sorted(found) == ["test/movielens_genres", "test/movielens_next", "test/movielens_people"]
    last = found["test/movielens_next"][0]
    # Time runs against the film's number here, so film 0 was rated last and films 1 to 12 before it.
    assert text(last.positives[0]) == "Film 0 (1960): Drama, War"
    assert [e.text[:8].strip(" (") for e in last.query.parts[0].events] == [f"Film {i}" for i in range(12, 0, -1)]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [n for n in SETS if n not in ("movielens", "limit_small", "mmeb_train")])
def test_a_folder_that_is_not_the_sets_is_an_error_that_says_what_is_missing(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no train.parquet, test.parquet or other"):
        SETS[name](str(tmp_path / "empty")).make(tmp_path / "out", nowhere)
    table(tmp_path / "in/train.parquet", [{"nothing": 1}])
    with pytest.raises(DataError, match=r"train.parquet: row 0: no column .*; there are"):
        SETS[name](str(tmp_path / "in")).make(tmp_path / "out", nowhere)


def test_a_set_is_converted_to_the_same_bytes_and_asks_to_be_done_again_when_its_files_change(tmp_path: Path) -> None:
    table(tmp_path / "in/test.parquet", SQUARES)
    step = Clothing(str(tmp_path / "in"))
    made(step, tmp_path / "a"), made(step, tmp_path / "b")
    for path in (tmp_path / "a").rglob("*.tar*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    before = step.outside(nowhere)
    assert before == outside(str(tmp_path / "in")) and list(before) == ["in/test.parquet"]
    table(tmp_path / "in/test.parquet", SQUARES[:4])
    assert step.outside(nowhere) != before
