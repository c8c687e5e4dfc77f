"""Tables: JSON lines, CSV and Parquet give the rows that their columns say, packed or named directly."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from omni2vec.data.convert import SETS, pack
from omni2vec.data.mapping import IDS, ITEMS, TEXTS, examples, mapped
from omni2vec.data.shards import Shard, verify
from omni2vec.data.sources import Shards, Table
from omni2vec.data.types import DataError, Events, Example, Image, Item, Rows, Text

from .samples import nowhere, png


def texts(rows: Rows) -> list[str]:
    return [part.text for i in range(len(rows)) for part in rows[i].query.parts if isinstance(part, Text)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png(10 + i, 5))
    return folder


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COLUMNS = {
    "query": "image:photo + text:question",
    "positives": "text:right",
    "negatives": "text:wrong | text:other",
    "label": "kind",
    "instruction": "=Answer the question.",
    "answer": "right",
}
TABLE = [
    {
        "photo": "photos/0.png",
        "question": "what?",
        "right": "a hat",
        "wrong": "a shoe",
        "other": "a sock",
        "kind": "hat",
    },
    {"photo": "photos/1.png", "question": "", "right": "a shoe", "wrong": "", "other": "a hat", "kind": "shoe"},
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        head = ",".join(rows[0])
        path.write_text("\n".join([head, *(",".join(f'"{v}"' for v in row.values()) for row in rows)]) + "\n")
    else:
        lines(path, rows)
    return path


def seen(example: Example) -> list[Any]:
    def of(item: Item) -> list[Any]:
        return [p.text if isinstance(p, Text) else (p.width, p.height) for p in item.parts]  # type: ignore[union-attr]

    return [of(example.query), [of(i) for i in example.positives], [of(i) for i in example.negatives]]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_table_gives_the_rows_that_its_columns_say(ending: str, tmp_path: Path, photos: Path) -> None:
    path = written(tmp_path / f"mine.{ending}", TABLE)
    rows = Table(str(path), task="vqa", columns=COLUMNS).open(nowhere)
    assert [seen(rows[i]) for i in range(2)] == [
        [[(10, 5), "what?"], [["a hat"]], [["a shoe"], ["a sock"]]],
        [[(11, 5)], [["a shoe"]], [["a hat"]]],
    ]
    assert [(e.source, e.task, e.label, e.instruction, e.answer) for e in (rows[0], rows[1])] == [
        ("mine", "vqa", "hat", "Answer the question.", "a hat"),
        ("mine", "vqa", "shoe", "Answer the question.", "a shoe"),
    ]
    assert rows[1].key == "mine/mine-000000/000001"


def test_media_files_of_a_table_stay_where_they_are(tmp_path: Path, photos: Path) -> None:
    path = written(tmp_path / "mine.jsonl", TABLE)
    picture = Table(str(path), columns=COLUMNS).open(nowhere)[0].query.parts[0]
    assert isinstance(picture, Image)
    assert picture.blob.path == str(photos / "0.png") and picture.blob.read() == png(10, 5)
    assert not list((tmp_path / "mine.jsonl.index").rglob("*.png"))
    packed = b"".join(p.read_bytes() for p in (tmp_path / "mine.jsonl.index").rglob("*.tar"))
    assert png(10, 5) not in packed


def test_media_inside_a_table_are_addressed_in_its_index(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": png(7, 7), "path": None}, "name": "a square"}, {"image": png(9, 7), "name": "a bar"}]
    for i, row in enumerate(rows):
        parquet.write_table(arrow.Table.from_pylist([row]), tmp_path / f"{i}.parquet")
    opened = Table(str(tmp_path), "mine", columns={"query": "text:name", "positives": "image:image"}).open(nowhere)
    pictures = [opened[i].positives[0].parts[0] for i in range(2)]
    assert [p.width for p in pictures] == [7, 9]  # type: ignore[union-attr]
    assert pictures[1].blob.data == b"" and pictures[1].blob.read() == png(9, 7)  # type: ignore[union-attr]


def test_a_table_is_indexed_once_and_again_when_it_or_its_columns_change(tmp_path: Path, photos: Path) -> None:
    path = written(tmp_path / "mine.jsonl", TABLE)
    first = Table(str(path), columns=COLUMNS)

    def tars() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.tar")}

    digest, before = first.open(nowhere).digest, tars()
    assert first.open(nowhere).digest == digest and tars() == before
    Table(str(path), columns={**COLUMNS, "instruction": "=Say."}).open(nowhere)
    assert len(tars()) == 2 and before.items() <= tars().items()
    written(path, [*TABLE, TABLE[0]])
    assert len(first.open(nowhere)) == 3
    assert first.open(nowhere).digest != digest


def test_a_tables_index_that_lost_a_file_is_built_again(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.csv", [{"a": "q", "b": "p"}])
    source = Table(str(path), columns={"query": "text:a", "positives": "text:b"})
    digest = source.open(nowhere).digest
    next(tmp_path.rglob("*.tar.index")).unlink()
    assert source.open(nowhere).digest == digest


def test_a_table_in_a_read_only_folder_is_indexed_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "mine.csv", [{"a": "q", "b": "p"}])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda p, mode: False)
    assert texts(Table(str(path), columns={"query": "text:a", "positives": "text:b"}).open(nowhere)) == ["q"]
    assert list((tmp_path / "cache/omni2vec/tables").rglob("*.tar")) and not (tmp_path / "mine.csv.index").exists()


def test_lists_give_several_answers_but_one_query(tmp_path: Path, photos: Path) -> None:
    row = {"photos": ["photos/0.png", "photos/1.png"], "right": ["a", "b"], "picture": ["photos/2.png", "photos/0.png"]}
    path = lines(tmp_path / "lists.jsonl", [row])
    columns = {"query": "image:photos", "positives": "text:right + image:picture"}
    assert seen(next(examples(path, columns=columns))) == [
        [(10, 5), (11, 5)],
        [["a", (12, 5)], ["b", (10, 5)]],
        [],
    ]


def test_ids_known_scores_and_events_come_from_their_columns(tmp_path: Path) -> None:
    history = [{"action": "viewed", "text": "a hat", "time": 3}]
    row = {"who": history, "next": ["x", "y"], "nos": ["z"], "ids": [7, 8], "all": ["7", "8", "9"], "s": [3, 2, 0.5]}
    columns = {
        "query": "events:who",
        "positives": "text:next",
        "negatives": "text:nos",
        "positive_ids": "ids",
        "known": "all",
        "scores.label": "s",
    }
    example = next(examples(lines(tmp_path / "a.jsonl", [row]), columns=columns, source="people"))
    assert isinstance(example.query.parts[0], Events) and example.query.parts[0].events[0].time == 3.0
    assert [i.id for i in example.positives] == ["7", "8"]
    assert example.known == ("7", "8", "9") and example.scores == {"label": (3.0, 2.0, 0.5)}


def test_a_csv_cell_may_hold_a_list_and_a_text_may_begin_with_a_bracket(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('q,p\n[laughs] hello,"[""x"", ""y""]"\n')
    example = next(examples(tmp_path / "a.csv", columns={"query": "text:q", "positives": "text:p"}))
    assert seen(example)[:2] == [["[laughs] hello"], [["x"], ["y"]]]


def test_json_lines_of_whole_rows_need_no_columns(tmp_path: Path, photos: Path) -> None:
    row = {
        "query": {"parts": [{"image": "photos/2.png"}, {"text": "who?"}]},
        "positives": [{"id": "me", "parts": [{"text": "I"}]}],
        "label": "x",
    }
    rows = Table(str(lines(tmp_path / "rich.jsonl", [row])), task="vqa").open(nowhere)
    assert seen(rows[0])[0] == [(12, 5), "who?"]
    assert (rows[0].positives[0].id, rows[0].label, rows[0].task) == ("me", "x", "vqa")


def test_packing_a_table_gives_the_rows_that_naming_it_gives(tmp_path: Path, photos: Path) -> None:
    path = written(tmp_path / "mine.csv", TABLE)
    told: list[tuple[int, int]] = []
    paths = pack(path, tmp_path / "out", columns=COLUMNS, task="vqa", progress=lambda d, t: told.append((d, t)))
    assert list(verify(paths)) == [] and told == [(1, 2), (2, 2)]
    packed, named = Shard(paths[0]), Table(str(path), task="vqa", columns=COLUMNS).open(nowhere)
    assert [seen(packed.example(i)) for i in range(2)] == [seen(named[i]) for i in range(2)]
    assert [packed.example(i).query.id for i in range(2)] == [named[i].query.id for i in range(2)]
    shutil.rmtree(photos)
    assert packed.example(0).query.parts[0].blob.read() == png(10, 5)  # type: ignore[union-attr]


# --- bad tables ---

GOOD = {"query": "text:q", "positives": "text:p"}
BAD: dict[str, tuple[str, str, dict[str, str], str]] = {
    "no such column": (
        "a.csv",
        "q,p\nx,y\n",
        {**GOOD, "label": "kind"},
        r"a.csv: row 0: no column 'kind'; there are 'q'",
    ),
    "unknown field": (
        "a.csv",
        "q,p\nx,y\n",
        {**GOOD, "lable": "q"},
        r"a.csv: columns has an unknown field 'lable'; known",
    ),
    "unknown kind": (
        "a.csv",
        "q,p\nx,y\n",
        {**GOOD, "query": "picture:q"},
        "'picture:q'; expected KIND:COLUMN, KIND of",
    ),
    "no kind": ("a.csv", "q,p\nx,y\n", {**GOOD, "query": "q"}, "expected KIND:COLUMN"),
    "nothing of positives": ("a.csv", "q,p\nx,y\n", {"query": "text:q"}, "columns says nothing of positives"),
    "two queries": ("a.csv", "q,p\nx,y\n", {**GOOD, "query": "text:q | text:p"}, "a row has one query"),
    "no columns": ("a.csv", "q,p\nx,y\n", {}, "say which columns are what"),
    "empty query": ("a.csv", "q,p\nx,y\n,y\n", GOOD, "a.csv: row 1: the query is empty, nothing is in 'q'"),
    "no positive": ("a.csv", "q,p\nx,y\nx,\n", GOOD, "a.csv: row 1: no positive"),
    "too many cells": ("a.csv", "q,p\nx,y,z\n", GOOD, "more cells than the head"),
    "no such picture": (
        "a.csv",
        "q,p\nx.png,y\n",
        {**GOOD, "query": "image:q"},
        "a.csv: row 0: query: no image 'x.png' in",
    ),
    "climbing path": (
        "a.csv",
        "q,p\n../x.png,y\n",
        {**GOOD, "query": "image:q"},
        "'../x.png' is outside the media folder",
    ),
    "absolute path": (
        "a.csv",
        "q,p\n/etc/passwd,y\n",
        {**GOOD, "query": "image:q"},
        "'/etc/passwd' is outside the media",
    ),
    "no picture": ("a.csv", "q,p\na.csv,y\n", {**GOOD, "query": "image:q"}, r"row 0: query: a.csv: .*picture"),
    "not JSON": ("a.jsonl", '{"q": "x", "p": "y"}\n{oops\n', GOOD, "a.jsonl: line 2 is not JSON"),
    "no object": ("a.jsonl", "[1]\n", GOOD, "a.jsonl: line 1 is a list"),
    "unknown row field": ("a.jsonl", '{"qery": {}}\n', {}, "a.jsonl: row 0: unknown field 'qery'"),
    "lists of two lengths": (
        "a.jsonl",
        '{"q": "x", "p": ["a", "b"], "r": ["c"]}\n',
        {**GOOD, "positives": "text:p + text:r"},
        "lists of different lengths .'p' 2, 'r' 1",
    ),
    "ids too few": (
        "a.jsonl",
        '{"q": "x", "p": ["a", "b"], "i": ["1"]}\n',
        {**GOOD, "positive_ids": "i"},
        "1 ids for 2",
    ),
    "no number": ("a.jsonl", '{"q": "x", "p": "y", "s": "high"}\n', {**GOOD, "scores.label": "s"}, "expected a number"),
    "scores too many": (
        "a.jsonl",
        '{"q": "x", "p": "y", "s": [1, 2]}\n',
        {**GOOD, "scores.label": "s"},
        "2 scores 'label'",
    ),
    "not Parquet": ("a.parquet", "PAR1", GOOD, "a.parquet: not a whole Parquet file"),
    "unknown ending": ("a.xlsx", "", GOOD, "a.xlsx: a table ends in .jsonl"),
    "no rows": ("a.csv", "q,p\n", GOOD, "no examples to write"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_table_names_file_row_and_remedy_and_leaves_nothing(fault: str, tmp_path: Path) -> None:
    name, text, columns, message = BAD[fault]
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        pack(path, tmp_path / "out", columns=columns)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
    with pytest.raises(DataError, match=message):
        Table(str(path), columns=columns).open(nowhere)
    assert not list(tmp_path.rglob("*.tar"))


def test_a_table_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such table"):
        Table(str(tmp_path / "none.csv"), columns=GOOD).open(nowhere)
    with pytest.raises(DataError, match="no table in it"):
        Table(str(tmp_path), columns=GOOD).open(nowhere)


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> Iterator[None]:
    """Whatever a test did, nothing half-written stays."""
    yield
    assert not list(tmp_path.rglob("*.part"))


# --- the docs ---

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your_data.md"


def test_the_pack_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text()
    head = re.search(r"```\n(question,photo,kind\n.*?)```", text, re.S)
    code = re.search(r"```python\n(from pathlib.*?)```", text, re.S)
    assert head is not None and code is not None
    for folder in ("mugs/photos", "shards"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mugs/train.csv").write_text(head[1])
    for i in (1, 2):
        (tmp_path / f"mugs/photos/000{i}.jpg").write_bytes(png(4, i))
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "your_data.md", "exec"), {})
    rows = Shards("shards/train/mugs").open(nowhere)
    assert [seen(rows[i])[:2] for i in range(2)] == [
        [["a blue mug with a white handle"], [[(4, 1)]]],
        [["something to pour tea from"], [[(4, 2)]]],
    ]
    assert rows[1].label == "teapot" and rows[1].instruction.startswith("Find the photograph")


def test_the_whole_row_of_the_docs_is_read(tmp_path: Path) -> None:
    code = re.search(r"```json\n(.*?)```", PAGE.read_text(), re.S)
    assert code is not None
    for i in (1, 9, 10):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / f"photos/00{i:02d}.jpg").write_bytes(png(i, 4))
    (tmp_path / "rows.jsonl").write_text(code[1])
    (example,) = examples(tmp_path / "rows.jsonl", columns={})
    assert seen(example) == [[(1, 4), "in blue"], [[(9, 4)]], [[(10, 4)]]]
    assert [i.id for i in (*example.positives, *example.negatives)] == ["sku-7", "sku-8"]


def test_every_spec_of_the_docs_is_one_and_every_field_is_named() -> None:
    text = PAGE.read_text()
    rows = re.findall(r"^\| [^|]+ \| `((?:[a-z]+:)[^`]*)` \(", text, re.M)
    assert len(rows) == 5
    for spec in rows:
        field = "query" if " \\| " not in spec else "negatives"
        mapped({"query": "text:q", "positives": "text:p", field: spec.replace("\\|", "|")}, "docs")
    named = [*ITEMS, *IDS, *TEXTS, "known", "scores.NAME"]
    assert [name for name in named if f"`{name}`" not in text] == []


def test_the_docs_name_every_task_of_every_converter() -> None:
    text = PAGE.read_text()
    assert [name for name in SETS if f"| `{name}` |" not in text] == []


def read(path: Path, **columns: str) -> list[Example]:
    return list(examples(path, columns=columns))


def test_a_row_with_too_many_cells_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("q,p\na,b\na,b,c\n")
    with pytest.raises(DataError, match=r"a\.csv: row 1 \(to line 3\) has more cells than the head: \['c'\]"):
        read(path, query="text:q", positives="text:p")


@pytest.mark.parametrize(
    ("text", "named"), [("q;p\na;b\n", "semicolons"), ("q;p\n1,5;b\n", "semicolons"), ("q\tp\na\tb\n", "tabs")]
)
def test_a_table_of_another_delimiter_is_told_from_one_that_lacks_a_column(
    tmp_path: Path, text: str, named: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"its cells are parted by {named}, but a \.csv's by commas: save it so"):
        read(path, query="text:q", positives="text:p")


def test_a_table_of_another_encoding_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("q,p\na,b\nçä,b\n".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"a\.csv: line 3 is not UTF-8 \(byte 0xe7 behind b''\); save the table as UTF-8"
    ):
        read(path, query="text:q", positives="text:p")
