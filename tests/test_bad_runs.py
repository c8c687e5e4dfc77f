"""Bad input as a run meets it: a clear error before or while it trains, or a counted skip; no silence, no hang."""

import faulthandler
import json
import logging

import pytest
import torch
from omni2vec.data.mix import Feed
from omni2vec.data.patterns import Pattern
from omni2vec.data.schedules import Ramp
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Shards, Table
from omni2vec.data.types import DataError, Example, Item
from omni2vec.train.stage import Stage

from .data.samples import nowhere, part, png
from .model.small import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("model")
    tiny().save(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _watchdog():
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def rows(queries, source="src"):
    return [Example(f"{source}/{i}", source, "retrieval", q, (Item.text(f"a{i}"),)) for i, q in enumerate(queries)]


def texts(folder, count=6, name=""):
    """A source of `count` sound rows."""
    if not folder.exists():
        write_shards(rows([Item.text(f"q{i}") for i in range(count)]), folder)
    return Shards(str(folder), name=name)


def train(base, out, *feeds, **settings):
    """The log's steps of a stage."""
    out.mkdir()
    stage = Stage("train", base, feeds, **{"steps": 2, "batch": 4, **settings})
    stage.make(out, nowhere)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_refused_when_it_is_packed_and_named(text, tmp_path):
    with pytest.raises(DataError, match=r"example 1 \(key 'src/1'\): a query of nothing but empty text; fill it or"):
        write_shards(rows([Item.text("q"), Item.text(text)]), tmp_path / "rows")


def test_a_source_that_runs_dry_is_an_error_before_the_first_step(base, tmp_path):
    few = texts(tmp_path / "rows")
    with pytest.raises(
        DataError, match=r"stage 'train': 5 steps asked, but all sources have ended after 2 \(rows 1 x 6"
    ):
        train(base, tmp_path / "out", Feed(few, epochs=1), steps=5)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_the_others_take_the_turns_of_a_source_that_has_run_dry(base, tmp_path):
    write_shards(rows([Item.text(f"other {i}") for i in range(40)], "other"), tmp_path / "other")
    feeds = Feed(texts(tmp_path / "rows"), epochs=1), Feed(Shards(str(tmp_path / "other")))
    last = train(base, tmp_path / "out", *feeds, steps=8, sub_batch=2)[-1]
    assert last["total"] == 8 and last["rows"] == 4


def test_weights_that_sum_to_nothing_are_an_error_that_names_the_sources(base, tmp_path):
    with pytest.raises(ValueError, match=r"sources rows at progress 0.00 .*weights \[0.0\]: .*one positive at least"):
        train(base, tmp_path / "out", Feed(texts(tmp_path / "rows"), weight=0.0))
    gone = Ramp(1.0, 0.0, until=0.5)
    feeds = [Feed(texts(tmp_path / "rows", name=n), weight=gone) for n in ("one", "two")]
    with pytest.raises(ValueError, match=r"sources one, two at progress 0.5.*weights \[0.0, 0.0\]"):
        train(base, tmp_path / "again", *feeds, steps=64, batch=2, sub_batch=1)


def test_a_pattern_that_no_row_can_form_is_an_error_that_says_what_they_have(base, tmp_path):
    feed = Feed(texts(tmp_path / "rows"), patterns=(Pattern("image -> title"),))
    with pytest.raises(DataError, match=r"'rows': no row can form 'image -> title'; its fields come as query\+target"):
        train(base, tmp_path / "out", feed)


def test_shards_with_equal_keys_are_an_error_that_names_both(base, tmp_path):
    for folder in ("a", "b"):
        texts(tmp_path / "rows" / folder)
    message = (
        r"rows/b/shard-000000.tar and .*rows/a/shard-000000.tar give equal keys \('shard-000000/000000'\); pack one"
    )
    with pytest.raises(DataError, match=message):
        train(base, tmp_path / "out", Feed(Shards(str(tmp_path / "rows"))))


@pytest.fixture
def thin(tmp_path):
    """Three pictures, and two of 1 x 10,000 pixels either way."""
    pictures = [Item((part("image", png(*size)),)) for size in ((20, 20), (21, 20), (22, 20), (1, 10_000), (10_000, 1))]
    write_shards(rows(pictures), tmp_path / "rows")
    return Shards(str(tmp_path / "rows"))


def test_a_picture_of_one_by_ten_thousand_pixels_is_an_error_that_names_its_key(base, thin, tmp_path):
    message = (
        r"key src/shard-000000/00000[34]: (1x10000|10000x1) pixels: one side is longer than 200 times the other; crop"
    )
    with pytest.raises(DataError, match=message):
        train(base, tmp_path / "out", Feed(thin), batch=5)


def test_such_pictures_are_skipped_counted_and_named_if_asked(base, thin, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        steps = train(base, tmp_path / "out", Feed(thin), batch=5, on_error="skip")
    assert [(s["rows"], s["skipped_rows"]) for s in steps] == [(3, 2), (3, 2)]
    assert all(f"skipped src/shard-000000/00000{i}: " in caplog.text for i in (3, 4))


def test_more_bad_rows_than_allowed_end_the_run_and_are_listed(base, thin, tmp_path):
    with pytest.raises(DataError, match=r"stage 'train': 2 bad rows, more than max_skipped=1: src/.*; repair them or"):
        train(base, tmp_path / "out", Feed(thin), batch=5, on_error="skip", max_skipped=1)


GOOD = {"query": {"parts": [{"text": "q"}]}, "positives": [{"parts": [{"text": "a"}]}]}
SCHEMAS = {
    "query is no item": ({**GOOD, "query": "q"}, r"""row 1: query: an item must be \{.*\}, got 'q'"""),
    "part is a number": ({**GOOD, "query": {"parts": [{"text": 3}]}}, r"row 1: query: a part is one of text, .*: 3"),
    "label is a number": ({**GOOD, "label": 3}, r"row 1: label must be a string, got 3"),
    "scores of another length": ({**GOOD, "scores": {"x": [1, 2]}}, r"row 1.*: 2 scores 'x', expected 1: one per"),
    "positives are no list": ({**GOOD, "positives": {}}, r"row 1: positives must be a list, got \{\}"),
    "misspelt field": ({**GOOD, "positves": []}, r"row 1: unknown field 'positves'; a row has task"),
    "no positive": ({**GOOD, "positives": []}, r"row 1: no positive; every sample needs one right answer"),
    "no such picture": ({**GOOD, "query": {"parts": [{"image": "x.png"}]}}, r"row 1: no image 'x.png' in the media"),
    "picture outside": ({**GOOD, "query": {"parts": [{"image": "../x.png"}]}}, r"row 1: .*is outside the media folder"),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_row_of_a_wrong_schema_is_named_with_what_was_expected(name, base, tmp_path):
    wrong, message = SCHEMAS[name]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, (GOOD, wrong))))
    with pytest.raises(DataError, match=r"rows\.jsonl: " + message):
        train(base, tmp_path / "out", Feed(Table(str(tmp_path / "rows.jsonl"))))


def test_a_table_without_the_column_that_fills_a_field_says_which_it_has(base, tmp_path):
    (tmp_path / "rows.csv").write_text("q,a\nx,y\nz,\n")
    columns = {"query": "text:q", "positives": "text:b"}
    with pytest.raises(DataError, match=r"rows\.csv: row 0: no column 'b'; there are 'q', 'a'"):
        train(base, tmp_path / "out", Feed(Table(str(tmp_path / "rows.csv"), columns=columns)))
    with pytest.raises(DataError, match=r"rows\.csv: row 1: no positive"):
        Table(str(tmp_path / "rows.csv"), columns={**columns, "positives": "text:a"}).open(nowhere)
