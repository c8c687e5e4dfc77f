"""Columns that fill named fields: one Item each, left out where a row's cells are empty."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omni2vec.data.convert.pack import pack
from omni2vec.data.mapping import examples
from omni2vec.data.mix import Feed
from omni2vec.data.patterns import Pattern, absent, formed, possible, views
from omni2vec.data.shards import Shard
from omni2vec.data.sources import Table
from omni2vec.data.types import DataError, Item, Text

from .samples import nowhere, png

PAGE = Path(__file__).resolve().parents[2] / "docs" / "your_data.md"
COLUMNS = {
    "fields.image": "image:photo",
    "fields.title": "text:title + text:subtitle",
    "fields.item": "text:title",
    "fields.item.id": "sku",
    "label": "kind",
}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "hat.png").write_bytes(png(8, 6))
    table = tmp_path / "shop.csv"
    table.write_text(
        "photo,title,subtitle,sku,kind\n"
        "hat.png,a hat,red,7,hats\n"
        ",a cap,,8,hats\n"
        "hat.png,,,,\n"
    )  # fmt: skip
    return table


def test_empty_cells_leave_a_field_out_and_an_id_of_ones_own_is_kept(shop: Path) -> None:
    rows = list(examples(shop, columns=COLUMNS))
    assert [sorted(r.fields) for r in rows] == [["image", "item", "title"], ["item", "title"], ["image"]]
    assert rows[0].fields["title"].parts == (Text("a hat"), Text("red"))
    assert rows[1].fields["item"] == Item((Text("a cap"),), "8")
    assert (rows[0].query, rows[0].positives, rows[0].label) == (Item(()), (), "hats")


def test_a_table_of_fields_is_packed_and_opened_as_it_stands(shop: Path, tmp_path: Path) -> None:
    (path,) = pack(shop, tmp_path / "packed", columns=COLUMNS)
    counts = {"image+item+title": 1, "item+title": 1, "image": 1}
    assert Shard(path).index.fields == counts
    rows = Table(str(shop), columns=COLUMNS).open(nowhere)
    assert rows.fields == counts  # type: ignore[attr-defined]
    able = [Pattern("image -> title"), Pattern("title -> item")]
    assert [possible(rows[i], able) for i in range(3)] == [(0, 1), (1,), ()]
    seen = [formed(e, able, 1, 0, 0) for e in (rows[1], Shard(path).example(1))]
    assert [(e.query.id, e.positives[0].id) for e in seen] == [(Item.text("a cap").id, "8")] * 2
    assert seen[0].key == "shop/shop-000000/000001#title->item"


def test_the_example_of_the_docs_gives_rows_that_its_patterns_can_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = PAGE.read_text().split("### Named fields")[1]
    table, code = re.findall(r"```(?:python)?\n(.*?)```", part, re.S)[:2]
    (tmp_path / "mugs/photos").mkdir(parents=True)
    (tmp_path / "mugs/products.csv").write_text(table)
    for i in (1, 2):
        (tmp_path / f"mugs/photos/000{i}.jpg").write_bytes(png(8, i))
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"Table": Table, "Feed": Feed, "Pattern": Pattern}
    exec(compile(code, str(PAGE), "exec"), found)
    rows, able = found["products"].open(nowhere), found["feed"].patterns
    assert rows.fields == {"description+image+item+title": 1, "image+item+title": 1}
    assert absent(rows.fields, able, "products") == 0
    assert [views(row, able, "all", 0, 0) for row in rows] == [(0, 1), (0, 1)]
    assert [row.fields["item"].id for row in rows] == ["7", "8"]


def test_a_list_in_a_cell_gives_several_parts_of_one_field(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"tags": ["red", "", "felt"]}))
    (row,) = examples(tmp_path / "t.jsonl", columns={"fields.tags": "text:tags"})
    assert row.fields == {"tags": Item((Text("red"), Text("felt")))}


def test_a_row_may_hold_fields_beside_its_query_and_its_positives(tmp_path: Path) -> None:
    rows = [{"q": "which?", "a": "that", "t": "a hat"}, {"q": "", "a": None, "t": "a cap"}, {"q": "who?", "a": "she"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"query": "text:q", "positives": "text:a", "fields.title": "text:t"}
    found = list(examples(tmp_path / "t.jsonl", columns=columns))
    assert [(bool(e.query.parts), len(e.positives), len(e.fields)) for e in found] == [
        (True, 1, 1),
        (False, 0, 1),
        (True, 1, 0),
    ]


def test_json_lines_of_whole_rows_hold_fields_by_the_paths_of_their_media(shop: Path) -> None:
    line = {"fields": {"image": {"parts": [{"image": "hat.png"}]}, "item": {"id": "7", "parts": [{"text": "a hat"}]}}}
    (shop.parent / "t.jsonl").write_text(json.dumps(line))
    (row,) = examples(shop.parent / "t.jsonl", columns={})
    assert (row.fields["item"].id, row.fields["image"].parts[0].width) == ("7", 8)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"fields.Title": "text:title"}, "columns has a field 'Title'; expected a name of a-z, 0-9 and _"),
        ({"fields.": "text:title"}, "columns has a field ''"),
        ({"fields.query": "text:title"}, "columns has a field 'query'; .* and not query or target"),
        ({"fields.a": "text:title", "fields.b.id": "sku"}, "columns\\['fields.b.id'\\] is the id of no field"),
        ({"fields.image.id": "sku"}, "is the id of no field: fields.image is missing; give fields.image=KIND:COLUMN"),
        ({"fields.a": "text:title", "fields.a.ids": "sku"}, "columns\\['fields.a.ids'\\] is the id of no field"),
        ({"fields.a": "text:title | text:kind"}, "a row has one fields.a; join its parts by ' \\+ ', not by ' | '"),
        ({"fields.a": "title"}, "columns\\['fields.a'\\] has 'title'; expected KIND:COLUMN"),
        ({"field.a": "text:title"}, "unknown field 'field.a'; known are .*fields.NAME, fields.NAME.id"),
    ],
)
def test_columns_that_fill_no_field_are_refused(columns: dict[str, str], said: str, shop: Path) -> None:
    with pytest.raises(DataError, match=rf"shop\.csv: .*{said}"):
        list(examples(shop, columns=columns))


def test_a_row_without_any_field_is_an_error_that_names_it_and_its_columns(shop: Path) -> None:
    columns = {"fields.title": "text:title", "fields.kind": "text:kind"}
    with pytest.raises(
        DataError, match=r"shop\.csv: row 2: every field is empty, nothing is in 'title', 'kind'; fill it"
    ):
        list(examples(shop, columns=columns))


def test_a_cell_of_spaces_is_an_empty_text_that_names_its_field_and_row(shop: Path) -> None:
    shop.write_text("title,kind\n a hat,  \n")
    with pytest.raises(DataError, match=r"shop\.csv: row 0: field 'kind' holds an empty text"):
        list(examples(shop, columns={"fields.title": "text:title", "fields.kind": "text:kind"}))


def test_two_ids_for_one_field_are_too_many(shop: Path) -> None:
    shop.write_text('title,sku\na hat,"[""1"", ""2""]"\n')
    with pytest.raises(DataError, match=r"row 0: 2 ids for 1 items of fields\.title; give one each"):
        list(examples(shop, columns={"fields.title": "text:title", "fields.title.id": "sku"}))
