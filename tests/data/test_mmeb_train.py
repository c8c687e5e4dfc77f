"""The MMEB-train converter, on a snapshot with the set's own columns, texts and paths; and every way it can be bad."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from omni2vec.data.convert import MmebTrain
from omni2vec.data.convert import mmeb_train as converter
from omni2vec.data.convert.mmeb_texts import TASKS, divided, plain, query, target
from omni2vec.data.shards import verify
from omni2vec.data.sources import Shards
from omni2vec.data.types import DataError, Example, Image, Item, Text

from .samples import nowhere, png

HERE = "<|image_1|>\n"
QUESTION = "Represent the given image with the following question:"
SIZES: dict[str, tuple[int, int]] = {}  # picture -> its size, which tells pictures apart


def row(qry: str, asked: str = "", text: str = "", picture: str = "", wrong: str = "", wrong_picture: str = "") -> Any:
    values = (qry, asked, text, picture, wrong, wrong_picture)
    return dict(zip((*converter.COLUMNS, *converter.NEGATIVE), values, strict=True))


def at(task: str, name: str) -> str:
    return f"images/{task}/Train/{name}.jpg"


def vqa(number: int, question: str, answer: str, wrong: str = "") -> Any:
    return row(f"{HERE}{QUESTION} {question}\n", at("OK-VQA", f"v{number}"), answer, wrong=wrong)


# As the set's own rows are, one task of each kind of sides.
ROWS: dict[str, list[Any]] = {
    "ImageNet_1K": [
        row(f"{HERE}Represent the given image for classification\n", at("ImageNet_1K", f"i{i}"), f"class {i % 2}")
        for i in range(4)
    ],
    "OK-VQA": [vqa(0, "What is it?", "a dog", "a cat"), vqa(0, "What is it?", "a puppy"), vqa(1, "Where?", "here")],
    "MSCOCO_t2i": [
        row(
            f"Find me an everyday image that matches the given caption: dog {i}.\n",
            text=f"{HERE}Represent the given image.\n",
            picture=at("MSCOCO_t2i", f"c{i}"),
        )
        for i in range(2)
    ],
    "MSCOCO": [
        row(
            f'{HERE}Select the portion of the image that isolates the object labeled as "hot dog"\n',
            at("MSCOCO", "whole"),
            f"{HERE}Represent the given cropped image of the object",
            at("MSCOCO", "crop hot dog"),
        )
    ],
    "WebQA": [
        row(
            f"{HERE}Find a Wikipedia image that answers this question: Which half?\n",
            text=f"{HERE}Represent the given Wikipedia image with related text information: A half.\n",
            picture=at("WebQA", "w0"),
        )
    ],
    "VisDial": [
        row(
            "Represent the given dialogue about an image, which is used for image retrieval: Q:one\nA:two\n\n",
            text=f"{HERE}Represent the given image\n",
            picture=at("VisDial", "d0"),
            wrong_picture=at("VisDial", "d1"),
        )
    ],
}


def table(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(rows), path)


def snapshot(root: Path, rows: Mapping[str, list[Any]] = ROWS) -> Path:
    for task, these in rows.items():
        table(root / task / "original-00000-of-00001.parquet", these)
        for one in these:
            for column in ("qry_image_path", "pos_image_path", "neg_image_path"):
                if name := one.get(column):
                    SIZES.setdefault(name, (8 + len(SIZES), 9))
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    (root / name).write_bytes(png(*SIZES[name]))
    return root


def made(step: MmebTrain, out: Path) -> dict[str, list[Example]]:
    """Task -> its rows, read back from shards that were verified."""
    out.mkdir(parents=True, exist_ok=True)
    step.make(out, nowhere)
    assert list(verify(out.rglob("*.tar"))) == []
    opened = {f.name: Shards(str(f)).open(nowhere) for f in sorted((out / "train").iterdir())}
    return {task: [rows[i] for i in range(len(rows))] for task, rows in opened.items()}


def parts(item: Item) -> list[object]:
    """Texts, and the sizes of pictures."""
    return [(p.width, p.height) if isinstance(p, Image) else p.text for p in item.parts if isinstance(p, Image | Text)]


def test_both_sides_are_told_apart_from_their_instructions(tmp_path: Path) -> None:
    found = made(MmebTrain(str(snapshot(tmp_path / "in"))), tmp_path / "out")
    assert {task: len(rows) for task, rows in found.items()} == {task: len(rows) for task, rows in ROWS.items()}
    size = {Path(name).stem: wh for name, wh in SIZES.items()}
    sides = {
        t: (r[0].instruction, parts(r[0].query), r[0].target_instruction, parts(r[0].positives[0]))
        for t, r in found.items()
    }
    assert sides == {
        "ImageNet_1K": ("Represent the given image for classification", [size["i0"]], "", ["class 0"]),
        "OK-VQA": (QUESTION, [size["v0"], "What is it?"], "", ["a dog"]),
        "MSCOCO_t2i": (
            "Find me an everyday image that matches the given caption:",
            ["dog 0."],
            "Represent the given image.",
            [size["c0"]],
        ),
        "MSCOCO": (
            "Select the portion of the image that isolates the object labeled as",
            [size["whole"], '"hot dog"'],
            "Represent the given cropped image of the object",
            [size["crop hot dog"]],
        ),
        "WebQA": (  # its queries have a placeholder and no picture
            "Find a Wikipedia image that answers this question:",
            ["Which half?"],
            "Represent the given Wikipedia image with related text information:",
            [size["w0"], "A half."],
        ),
        "VisDial": (
            "Represent the given dialogue about an image, which is used for image retrieval:",
            ["Q:one\nA:two"],
            "Represent the given image",
            [size["d0"]],
        ),
    }
    kinds = {t: {r.task for r in rows} for t, rows in found.items()}
    assert kinds == {t: {TASKS[t].kind} for t in ROWS}
    assert [r.source for r in found["OK-VQA"]] == ["OK-VQA"] * 3


def test_classes_are_labels_and_equal_answers_are_one_item(tmp_path: Path) -> None:
    found = made(MmebTrain(str(snapshot(tmp_path / "in"))), tmp_path / "out")
    classes = found["ImageNet_1K"]
    assert [r.label for r in classes] == [r.answer for r in classes] == ["class 0", "class 1", "class 0", "class 1"]
    assert classes[0].positives[0].id == classes[2].positives[0].id != classes[1].positives[0].id
    assert [r.label for t, rows in found.items() if t != "ImageNet_1K" for r in rows] == [""] * 8


def test_a_query_in_several_rows_knows_all_its_right_answers_and_none_is_its_negative(tmp_path: Path) -> None:
    rows = {
        "OK-VQA": [vqa(0, "What?", "a dog", "a cat"), vqa(0, "What?", "a puppy", "a dog"), vqa(1, "What?", "a cat")]
    }
    first, second, third = made(MmebTrain(str(snapshot(tmp_path / "in", rows))), tmp_path / "out")["OK-VQA"]
    dog, puppy, cat = (Item.text(t).id for t in ("a dog", "a puppy", "a cat"))
    assert (first.known, second.known, third.known) == ((dog, puppy), (puppy, dog), (cat,))
    assert [[n.id for n in r.negatives] for r in (first, second, third)] == [[cat], [], []]
    assert first.query.id == second.query.id != third.query.id


def test_right_pictures_of_other_rows_are_known_by_their_bytes(tmp_path: Path) -> None:
    asked = "Find a Wikipedia image that answers this question: Which half?"
    rows = {"WebQA": [row(asked, text="<|image_1|>\n", picture=at("WebQA", f"x{i}")) for i in range(2)]}
    first, second = made(MmebTrain(str(snapshot(tmp_path / "in", rows))), tmp_path / "out")["WebQA"]
    assert first.known == (first.positives[0].id, second.positives[0].id) and len(set(first.known)) == 2


def test_a_negative_picture_loses_its_instruction_too(tmp_path: Path) -> None:
    (dialogue,) = made(MmebTrain(str(snapshot(tmp_path / "in"))), tmp_path / "out")["VisDial"]
    assert parts(dialogue.negatives[0]) == [SIZES[at("VisDial", "d1")]]


def test_paraphrased_instructions_are_found_beside_their_originals(tmp_path: Path) -> None:
    root = snapshot(tmp_path / "in")
    wordings = {
        "OK-VQA": [
            "Use the given question to represent <|image_1|>: {}",
            "Given {}: {}",
            "For <|image_1|>, answer: {}",
        ],
        "ImageNet_1K": ["Represent <|image_1|> for classification."] * 4,
    }
    texts = {"OK-VQA": ["What is it?", "What is it?", "Where?"], "ImageNet_1K": [""] * 4}
    wordings["OK-VQA"][1] = f"{QUESTION} {{}}"
    for task, words in wordings.items():
        rows = [{**r, "qry": w.format(t)} for r, w, t in zip(ROWS[task], words, texts[task], strict=True)]
        table(root / task / "diverse_instruction-00000-of-00001.parquet", rows)
    found = made(MmebTrain(str(root), version="diverse_instruction"), tmp_path / "out")
    assert [r.instruction for r in found["OK-VQA"]] == [
        "Use the given question to represent the image:",
        QUESTION,
        "For the image, answer:",
    ]
    assert [parts(r.query)[1] for r in found["OK-VQA"]] == texts["OK-VQA"]
    assert {r.instruction for r in found["ImageNet_1K"]} == {"Represent the image for classification."}
    assert [len(r.query.parts) for r in found["ImageNet_1K"]] == [1] * 4


@pytest.mark.parametrize("kept", [2, 4])
def test_paraphrases_and_originals_of_different_lengths_are_an_error(kept: int, tmp_path: Path) -> None:
    root = snapshot(tmp_path / "in", {"OK-VQA": ROWS["OK-VQA"]})
    table(root / "OK-VQA/diverse_instruction-00000-of-00001.parquet", (ROWS["OK-VQA"] * 2)[:kept])
    with pytest.raises(DataError, match=r"parquet: row \d: .*(3 rows only|no such row); .* fetch both whole"):
        made(MmebTrain(str(root), version="diverse_instruction"), tmp_path / "out")


def test_an_unknown_instruction_stays_in_the_query_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"OK-VQA": [vqa(0, "What?", "a dog"), row(f"{HERE}Say what it is.\n", at("OK-VQA", "v0"), "a dog")]}
    with caplog.at_level(logging.WARNING):
        found = made(MmebTrain(str(snapshot(tmp_path / "in", rows))), tmp_path / "out")["OK-VQA"]
    assert (found[1].instruction, parts(found[1].query)[1]) == ("", "Say what it is.")
    assert "instruction of 1 of 2 queries is not known" in caplog.text


BAD: dict[str, tuple[Any, str]] = {
    "missing picture": (vqa(9, "What?", "a dog"), r"row 1: no picture 'images/OK-VQA/Train/v9.jpg' in .*; unpack"),
    "empty query": (row("<|image_1|>\n", "", "a dog"), r"row 1: the query has neither a text nor a picture"),
    "empty positive": (vqa(0, "What?", " "), r"row 1: the positive has neither a text nor a picture"),
    "missing negative": (
        {**vqa(0, "What?", "a dog"), "neg_image_path": "images/none.jpg"},
        r"row 1: no picture 'images/none.jpg'",
    ),
    "broken picture": (row(f"{HERE}{QUESTION} What?", "images/broken.jpg", "a dog"), r"row 1: images/broken.jpg: "),
}


def bad(root: Path, *rows: Any) -> Path:
    snapshot(root, {"OK-VQA": [vqa(0, "What is it?", "a dog")]})
    (root / "images/broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    table(root / "OK-VQA/original-00000-of-00001.parquet", [vqa(0, "What is it?", "a dog"), *rows])
    return root


@pytest.mark.parametrize("name", BAD)
def test_an_unusable_row_is_an_error_that_names_file_and_row(name: str, tmp_path: Path) -> None:
    wrong, message = BAD[name]
    with pytest.raises(DataError, match=rf"original-00000-of-00001.parquet: {message}.*on_error='skip'"):
        made(MmebTrain(str(bad(tmp_path / "in", wrong))), tmp_path / "out")
    assert list((tmp_path / "out").rglob("*.tar")) == []


@pytest.mark.parametrize("name", BAD)
def test_an_unusable_row_is_skipped_counted_and_listed_if_asked(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong, _ = BAD[name]
    step = MmebTrain(str(bad(tmp_path / "in", wrong, vqa(0, "Where?", "here"))), on_error="skip")
    with caplog.at_level(logging.WARNING):
        found = made(step, tmp_path / "out")["OK-VQA"]
    assert [r.positives[0].parts for r in found] == [(Text("a dog"),), (Text("here"),)]
    told = json.loads((tmp_path / "out/train/OK-VQA/skipped.json").read_text())
    assert (told["rows"], told["skipped"], len(told["first"])) == (3, 1, 1) and ": row 1: " in told["first"][0]
    assert "OK-VQA: 1 of 3 rows skipped" in caplog.text


def test_a_row_that_is_skipped_is_no_known_answer_of_another(tmp_path: Path) -> None:
    asked = "Find a Wikipedia image that answers this question: Which half?"
    rows = {"WebQA": [row(asked, text="<|image_1|>\n", picture=at("WebQA", "x0"))]}
    root = snapshot(tmp_path / "in", rows)
    table(root / "WebQA/original.parquet", [*rows["WebQA"], row(asked, picture="images/none.jpg")])
    (root / "WebQA/original-00000-of-00001.parquet").unlink()
    (kept,) = made(MmebTrain(str(root), on_error="skip"), tmp_path / "out")["WebQA"]
    assert kept.known == (kept.positives[0].id,)


@pytest.mark.parametrize("name", ["../out.jpg", "/etc/passwd", "images/../../out.jpg", "."])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_path_that_leaves_the_folder_is_always_an_error(name: str, on_error: Any, tmp_path: Path) -> None:
    (tmp_path / "out.jpg").write_bytes(png(4, 4))
    root = bad(tmp_path / "in", row(f"{HERE}{QUESTION} What?", name, "a dog"))
    with pytest.raises(DataError, match=r"row 1: picture '.*' is outside .*do not use this table"):
        made(MmebTrain(str(root), on_error=on_error), tmp_path / "made")


def test_only_bad_rows_are_an_error_even_if_they_may_be_skipped(tmp_path: Path) -> None:
    root = snapshot(tmp_path / "in", {"OK-VQA": [vqa(0, "What?", "a dog")]})
    (root / at("OK-VQA", "v0")).unlink()
    with pytest.raises(DataError, match=r"none of the 1 rows of OK-VQA can be used: .*row 0: no picture"):
        made(MmebTrain(str(root), on_error="skip"), tmp_path / "out")


def test_a_wrong_schema_names_file_row_and_column(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    table(tmp_path / "in/OK-VQA/original.parquet", [{"qry": "q", "pos_text": "p", "pos_image_path": ""}])
    with pytest.raises(DataError, match=r"OK-VQA/original.parquet: row 0: no column 'qry_image_path'; there are 'qry'"):
        MmebTrain(str(tmp_path / "in")).make(tmp_path / "out", nowhere)
    table(tmp_path / "in/OK-VQA/original.parquet", [{**vqa(0, "What?", "a"), "pos_text": 7}])
    with pytest.raises(DataError, match=r"OK-VQA/original.parquet: row 0: pos_text is a int \(7\), expected a string"):
        MmebTrain(str(tmp_path / "in")).make(tmp_path / "out", nowhere)
    (tmp_path / "in/OK-VQA/original.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"OK-VQA/original.parquet: not a whole Parquet file"):
        MmebTrain(str(tmp_path / "in")).make(tmp_path / "out", nowhere)


def test_older_tables_without_negatives_and_with_nulls_are_read(tmp_path: Path) -> None:
    root = bad(tmp_path / "in")
    rows = [{c: v or None for c, v in vqa(0, "What?", "a dog").items() if c in converter.COLUMNS}]
    table(root / "OK-VQA/original-00000-of-00001.parquet", rows)
    (kept,) = made(MmebTrain(str(root)), tmp_path / "out")["OK-VQA"]
    assert (kept.negatives, parts(kept.positives[0])) == ((), ["a dog"])


def test_tasks_that_are_not_there_or_not_known_are_errors(tmp_path: Path) -> None:
    root = bad(tmp_path / "in")
    with pytest.raises(
        DataError, match=r"no CIRR/original-\*.parquet in it \(1 of .*tasks=\('OK-VQA',\)\), or tasks=OK-VQA "
    ):
        MmebTrain(str(root), tasks=("CIRR",)).make(tmp_path, nowhere)
    with pytest.raises(DataError, match=r"no TASK/diverse_instruction-\*.parquet in it"):
        MmebTrain(str(root), version="diverse_instruction").make(tmp_path, nowhere)
    with pytest.raises(DataError, match="expected 0 rows or more of ImageNet_1K"):
        MmebTrain(str(root), tasks=("cirr",))
    with pytest.raises(DataError, match="on_error='drop'; expected 'raise' or 'skip'"):
        MmebTrain(str(root), on_error="drop")  # type: ignore[arg-type]
    table(root / "Mine/original.parquet", [vqa(0, "What?", "a dog")])
    with pytest.raises(DataError, match=r"Mine: no task known here; name those wanted by tasks="):
        MmebTrain(str(root)).make(tmp_path, nowhere)
    assert sorted(made(MmebTrain(str(root), tasks=("OK-VQA",)), tmp_path / "out")) == ["OK-VQA"]


def test_pictures_may_lie_elsewhere_and_rows_may_be_few(tmp_path: Path) -> None:
    root = snapshot(tmp_path / "in", {"ImageNet_1K": ROWS["ImageNet_1K"]})
    (tmp_path / "elsewhere").mkdir()
    (root / "images").rename(tmp_path / "elsewhere/images")
    step = MmebTrain(str(root), images=str(tmp_path / "elsewhere"), rows=3)
    assert len(made(step, tmp_path / "out")["ImageNet_1K"]) == 3


def test_a_killed_run_keeps_its_finished_tasks_and_makes_the_rest_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, whole, out = snapshot(tmp_path / "in"), tmp_path / "whole", tmp_path / "out"
    made(MmebTrain(str(root)), whole)
    out.mkdir()
    written, write = list[str](), converter.write_shards

    def killed(examples: Any, folder: Path, **given: Any) -> Any:
        found = write(examples, folder, **given)
        written.append(folder.name)
        if len(written) == 3:
            raise KeyboardInterrupt  # behind the shards, before the task has its name
        return found

    monkeypatch.setattr(converter, "write_shards", killed)
    with pytest.raises(KeyboardInterrupt):
        MmebTrain(str(root)).make(out, nowhere)
    assert sorted(p.name for p in (out / "train").iterdir()) == ["ImageNet_1K", "MSCOCO"]
    MmebTrain(str(root)).make(out, nowhere)
    assert len(written) == 3 + 4  # the third task is made again, the first two are not
    names = sorted(p.relative_to(whole) for p in whole.rglob("*.tar*"))
    assert sorted(p.relative_to(out) for p in out.rglob("*.tar*")) == names and len(names) == 2 * len(ROWS)
    assert all((whole / n).read_bytes() == (out / n).read_bytes() for n in names)


def test_the_step_asks_to_be_done_again_when_a_table_changes(tmp_path: Path) -> None:
    root = bad(tmp_path / "in")
    table(root / "OK-VQA/train-00000-of-00001.parquet", [{}, {}])  # an older state, which is not read
    step = MmebTrain(str(root))
    before = step.outside(nowhere)
    assert list(before) == ["OK-VQA/original-00000-of-00001.parquet"]
    table(root / "OK-VQA/original-00000-of-00001.parquet", [vqa(0, "What?", "a dog")])
    assert step.outside(nowhere) != before


def test_texts_are_divided_where_the_instruction_ends() -> None:
    assert plain("<|image_1|>\nDo it\n\n") == "Do it"
    assert plain("<|image_1|> Represent <|image_1|> well") == "Represent the image well"
    assert divided("Do it. Now", "Do it") == ("Do it.", "Now")
    assert divided("Do item", "Do it") is None
    assert target("Represent the given image") == ("Represent the given image", "")
    assert target("Represent the given images of it") == ("", "Represent the given images of it")
    assert query("Find it", "CIRR") is None
    said = f"{TASKS['CIRR'].query} more red"
    assert query("Make it more red", "CIRR", said) == ("Make it", "more red")
    assert query("Make it more blue", "CIRR", said) is None
