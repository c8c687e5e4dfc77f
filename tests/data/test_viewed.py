"""A source seen in one pattern: plain rows under the keys that training gives them."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from omni2vec.data import viewed
from omni2vec.data.mix import Feed
from omni2vec.data.patterns import Pattern, formed
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Shards, Take
from omni2vec.data.types import DataError, Item
from omni2vec.data.viewed import Viewed
from omni2vec.eval.tasks.shards import tasks_from

from .samples import everything, nowhere
from .test_rows import record

FORM = Pattern("image + clip_1? -> title", instruction="Name it.", task="retrieval")


@pytest.fixture
def shop(tmp_path: Path) -> Shards:
    rows = [record(i) for i in range(6)]
    rows[2] = replace(rows[2], fields={n: item for n, item in rows[2].fields.items() if n != "title"})
    rows[4] = replace(rows[4], fields={n: item for n, item in rows[4].fields.items() if n != "clip_1"})
    write_shards(rows, tmp_path / "shop")
    return Shards(str(tmp_path / "shop"))


def test_rows_that_can_form_the_pattern_are_plain_rows_and_the_others_are_counted(
    shop: Shards, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewed, "_told", set())
    with caplog.at_level(logging.WARNING):
        rows = Viewed(shop, FORM).open(nowhere)
        Viewed(shop, FORM).open(nowhere)
    assert caplog.text.count("lack a field") == 1  # in a process
    assert "source 'shop#image+clip_1?->title': 1 of 6 rows lack a field and are left out" in caplog.text
    plain = shop.open(nowhere)
    trained = [formed(plain[i], [FORM], 0, 7, 3) for i in (0, 1, 3, 4, 5)]
    seen = [rows[i] for i in range(len(rows))]
    for same in ("key", "instruction", "task"):
        assert [getattr(e, same) for e in seen] == [getattr(e, same) for e in trained]
    assert [(e.query.id, e.positives[0].id) for e in seen] == [(e.query.id, e.positives[0].id) for e in trained]
    assert {e.source for e in seen} == {"shop#image+clip_1?->title"}
    assert [len(e.query.parts) for e in seen] == [4, 4, 4, 2, 4]
    again = pickle.loads(pickle.dumps(rows))
    assert (again[1].key, again.digest) == (seen[1].key, rows.digest)


def test_a_view_of_fields_is_scored_as_any_rows(shop: Shards) -> None:
    (task,) = tasks_from(Viewed(shop, FORM).open(nowhere))
    assert (len(task.queries), task.instruction) == (5, "Name it.")
    assert [len(q.right) for q in task.queries] == [1] * 5  # other fields of a row are no right answers


def test_a_view_keeps_the_right_answers_that_it_does_not_draw(tmp_path: Path) -> None:
    write_shards([everything()], tmp_path)
    (row,) = Viewed(Shards(str(tmp_path)), Pattern("query.text -> target")).open(nowhere)
    assert set(row.known) == {"x", "y", *(p.id for p in everything().positives)}
    (turned,) = Viewed(Shards(str(tmp_path)), Pattern("target -> query.text")).open(nowhere)
    assert turned.known == ("x", "y")


def test_views_of_two_patterns_are_two_contents(shop: Shards) -> None:
    forms = (FORM, replace(FORM, instruction="What is it?"), Pattern("image -> title"), Pattern("title -> image"))
    assert len({Viewed(shop, form, "same").open(nowhere).digest for form in forms}) == 4


def test_a_view_may_be_taken_from_and_fed(shop: Shards) -> None:
    view = Viewed(shop, FORM, "named")
    assert (len(Take(view, 2).open(nowhere)), Feed(view).source.name) == (2, "named")


def test_a_view_that_no_row_can_form_is_refused(shop: Shards, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source 'shop': no row can form 'image -> sound'; its fields come as"):
        Viewed(shop, Pattern("image -> sound")).open(nowhere)
    write_shards([replace(record(), fields={"title": Item.text("a"), "image": Item.text("b")})], tmp_path / "texts")
    texts = Shards(str(tmp_path / "texts"))
    with pytest.raises(
        DataError, match=r"none of 1 rows fits\. shop/.*: cannot form .* image \(text\), title \(text\)"
    ):
        Viewed(texts, Pattern("image.image -> title")).open(nowhere)
    with pytest.raises(ValueError, match=r"view of 'shop': drop=0.5; a view drops nothing"):
        Viewed(shop, replace(FORM, drop=0.5))
