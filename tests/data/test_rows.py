"""Rows of named fields: what is written is what is read, counted by the index, and refused where it says nothing."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omni2vec.data.index import Index, index_path
from omni2vec.data.shards import Shard, build_index, stream, verify, write_shards
from omni2vec.data.types import DataError, Event, Events, Example, Item, Text

from .samples import everything, gif, part, plain, png, wav


def record(i: int = 0) -> Example:
    """A row of named fields alone, of every kind of part."""
    return Example(
        f"shop/{i}",
        "shop",
        "retrieval",
        Item(()),
        (),
        label="hats",
        fields={
            "user": Item((Events((Event("bought", f"hat {i}", 3.5),), "shop"),), "person-7"),
            "image": Item((part("image", png(8 + i, 6)), part("image", png(9, 6)))),
            "clip_1": Item((part("video", gif(10, 12, 3)), part("audio", wav(np.zeros(80), 8000)))),
            "title": Item.text(f"hat {i}"),
        },
    )


def read(item: Item) -> object:
    """All of an Item but where its bytes lie."""
    parts = [
        (p.blob.read(), *(getattr(p, s) for s in p.__slots__[1:])) if hasattr(p, "blob") else p for p in item.parts
    ]
    return item.id, parts


def test_a_row_of_fields_comes_back_equal_by_index_and_by_stream(tmp_path: Path) -> None:
    both = replace(everything(), fields={"title": Item.text("also")})
    rows = [record(0), both, record(1), plain(0)]
    (path,) = write_shards(rows, tmp_path)
    shard = Shard(path)
    for found in ([shard.example(i) for i in range(4)], list(stream(str(path)))):
        for row, again in zip(rows, found, strict=True):
            assert {n: read(i) for n, i in again.fields.items()} == {n: read(i) for n, i in row.fields.items()}
            assert (read(again.query), again.label) == (read(row.query), row.label)
            assert [read(p) for p in again.positives] == [read(p) for p in row.positives]
    assert shard.example(0).query == Item(())
    assert shard.example(0).fields["image"].given_id == record(0).fields["image"].id


def test_media_of_fields_are_named_by_field_and_stored_once(tmp_path: Path) -> None:
    row = record()
    row = replace(row, fields={**row.fields, "cover": Item(row.fields["image"].parts[:1])})
    (path,) = write_shards([row], tmp_path)
    with tarfile.open(path) as tar:
        names = [m.name.removeprefix("shard-000000/000000.") for m in tar.getmembers()]
    assert names == ["json", "field.clip_1.0.gif", "field.clip_1.1.wav", "field.cover.0.png", "field.image.1.png"]
    assert list(verify([path])) == []


def test_equal_rows_give_equal_shards_whatever_the_order_of_their_fields(tmp_path: Path) -> None:
    row = record()
    turned = replace(row, fields=dict(reversed(row.fields.items())))
    paths = [write_shards([r, plain(0)], tmp_path / n)[0] for r, n in ((row, "a"), (turned, "b"))]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert index_path(paths[0]).read_bytes() == index_path(paths[1]).read_bytes()
    (again,) = write_shards(stream(str(paths[0])), tmp_path / "c")
    assert again.read_bytes() == paths[0].read_bytes()


def test_an_index_counts_rows_by_their_fields_and_is_built_again_the_same(tmp_path: Path) -> None:
    no_title = {n: item for n, item in record().fields.items() if n in ("image", "user")}
    rows = [record(0), record(1), replace(record(2), fields=no_title), plain(0)]
    rows.append(replace(plain(1), fields={"title": Item.text("t")}))
    (path,) = write_shards(rows, tmp_path)
    written = index_path(path).read_bytes()
    expected = {"clip_1+image+title+user": 2, "image+user": 1, "query+target+title": 1}
    assert Shard(path).index.about["fields"] == expected
    assert Shard(path).index.fields == {**expected, "query+target": 1}
    index_path(path).unlink()
    build_index(path)
    assert index_path(path).read_bytes() == written


def test_a_foreign_row_of_fields_may_have_an_empty_query(tmp_path: Path) -> None:
    row = {"task": "retrieval", "source": "shop", "query": {"parts": []}, "positives": []}
    _theirs(tmp_path, {**row, "fields": {"title": {"parts": [{"text": "a hat"}]}}})
    assert Shard(tmp_path / "theirs.tar").index.fields == {"title": 1}


def test_an_index_from_before_there_were_fields_opens_as_one_of_plain_rows(tmp_path: Path) -> None:
    (path,) = write_shards([plain(0), plain(1)], tmp_path)
    index = Index.read(index_path(path))
    assert "fields" not in index.about  # plain rows give the bytes that they always gave
    assert index.fields == {"query+target": 2}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"title": Item.text("  ")}, "field 'title' holds an empty text; leave it out where the row has none"),
        ({"title": Item((Text("a"), Text("")))}, "field 'title' holds an empty text"),
        ({"title": Item(())}, "field 'title' without parts; leave it out where the row has none"),
        ({"Title": Item.text("a")}, "a field cannot be called 'Title'; expected a name of a-z, 0-9 and _$"),
        ({"a.b": Item.text("a")}, "a field cannot be called 'a.b'"),
        ({"1a": Item.text("a")}, "a field cannot be called '1a'"),
        (
            {"target": Item.text("a")},
            "cannot be called 'target'.*query and target are the row's own query and positives",
        ),
        ({}, "no positive; every sample needs one right answer"),
    ],
)
def test_a_row_whose_fields_say_nothing_is_refused_by_name(fields: dict[str, Item], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^example 1 \(key 'shop/1'\): .*{said}"):
        write_shards([record(0), replace(record(1), fields=fields)], tmp_path)


@pytest.mark.parametrize("side", ["query", "positive", "negative"])
def test_an_item_of_nothing_but_empty_text_is_refused(side: str, tmp_path: Path) -> None:
    row, empty = plain(0), Item((Text(""), Text(" \n")))
    wrong = {
        "query": replace(row, query=empty),
        "positive": replace(row, positives=(*row.positives, empty)),
        "negative": replace(row, negatives=(empty,)),
    }[side]
    with pytest.raises(DataError, match=f"a {side} of nothing but empty text; fill it or drop the row"):
        write_shards([wrong], tmp_path)
    beside = Item((Text(""), part("image", png(5, 5))))  # an empty text beside a picture is harmless
    assert write_shards([replace(row, query=beside)], tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fields": ["title"]}, "fields must be an object of items"),
        ({"fields": {"title": "a hat"}}, "field 'title': an item must be"),
        ({"fields": {"title": {"parts": [{"txt": "a"}]}}}, "field 'title': a part is one of text, image"),
        ({"fields": {"title": {"parts": [{"text": ""}]}}}, "field 'title' holds an empty text"),
        ({"scores": {"label": [1.0]}}, "1 scores 'label', expected 0"),
    ],
)
def test_a_foreign_row_whose_fields_are_wrong_names_shard_and_sample(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    row = {"task": "retrieval", "source": "shop", "fields": {"title": {"parts": [{"text": "a hat"}]}}, **change}
    _theirs(tmp_path, row)
    with pytest.raises(DataError, match=rf"theirs\.tar: sample a: .*{said}"):
        Shard(tmp_path / "theirs.tar")


def _theirs(folder: Path, row: dict[str, object]) -> None:
    """A shard of one sample, as another tool would write it."""
    (folder / "row").write_text(json.dumps(row))
    with tarfile.open(folder / "theirs.tar", "w") as tar:
        tar.add(folder / "row", "a.json")
