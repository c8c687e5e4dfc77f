"""Embedded: each Item once a side, at its vector; under one instruction; not again after a kill."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from omni2vec.data.relation import Relation, id_pair
from omni2vec.data.types import Clock, DataError, Example, Item
from omni2vec.data.vectors import DOCUMENT, QUERY, Vectors
from omni2vec.model.embedder import Embedder
from omni2vec.train import teacher as teachers
from omni2vec.train import vectors as module
from omni2vec.train.guard import Restart
from omni2vec.train.objectives.similarity import Similarity
from omni2vec.train.vectors import Embedded, Items

from ..model.small import tiny
from .toy import ToyRows


def where(step):
    raise AssertionError("no step is named here")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "model"
    tiny().save(folder)
    return str(folder)


def rows(count=9, instruction="find it"):
    """Every third row shares its document; a query is another row's document."""
    made = [
        Example(
            f"rows/{i}", "rows", "retrieval", Item.text(f"question {i}"),
            (Item.text(f"answer {i - i % 3}"),), (Item.text(f"wrong {i}"), Item.text("question 0")),
            instruction=instruction, target_instruction="a text",
        )
        for i in range(count)
    ]  # fmt: skip
    return ToyRows("rows", tuple(made))


def test_every_item_is_found_on_its_side_at_the_vector_of_its_encoder(tmp_path, model):
    source = rows()
    Embedded("embed", model, (source,), dtype="float32").make(tmp_path, where)
    encoder = Embedder.load(model)
    query, docs = Vectors.open(tmp_path / QUERY), Vectors.open(tmp_path / DOCUMENT)
    assert (len(query), len(docs)) == (9, 3 + 9 + 1)
    for table, texts, side, told in (
        (query, ["question 7", "question 0"], "query", "find it"),
        (docs, ["question 0", "answer 3", "wrong 8"], "target", "a text"),
    ):
        places = table.lookup(np.array([id_pair(Item.text(t).id) for t in texts]))
        theirs = encoder.encode_items([Item.text(t) for t in texts], side=side, instruction=told)
        assert np.abs(table.rows(places) - theirs.numpy()).max() < 1e-5
        assert table.about["teacher"] == encoder.digest
    assert json.loads((tmp_path / "report.json").read_text())["document"]["items"] == 13
    assert sorted(p.name for p in tmp_path.iterdir()) == [DOCUMENT, QUERY, "report.json"]


def test_a_batch_of_its_rows_is_distilled_from_the_folder(tmp_path, model):
    source = rows()
    Embedded("embed", model, (source,)).make(tmp_path, where)
    relation = Relation.of(source.rows, ["rows"])
    encoder = Embedder.load(model)
    query, docs = (
        encoder.encode_items(items, side=side, instruction=told)
        for items, side, told in (
            ([e.query for e in source.rows], "query", "find it"),
            ([d for e in source.rows for d in (*e.positives, *e.negatives)], "target", "a text"),
        )
    )
    taught = Similarity(str(tmp_path), teacher_temperature=None).opened(where)
    scale, clock = torch.tensor([20.0]), Clock(0, 0.0, 0)
    same = taught.contrast(query, docs, relation, scale, clock).sum.item()
    other = taught.contrast(query.flip(0), docs, relation, scale, clock).sum.item()
    assert abs(same) < 1e-3 < other  # the tables are float16


def test_what_was_embedded_before_a_stop_is_not_embedded_again(tmp_path, model, monkeypatch):
    monkeypatch.setattr(teachers, "WINDOW", 4)
    seen = []
    encode, pause = teachers.encode, teachers.Teacher.pause
    monkeypatch.setattr(teachers, "encode", lambda e, p, **s: (seen.extend(x.key for x in p), encode(e, p, **s))[1])

    def stop(self):
        if len(seen) >= 8:
            raise Restart("asked")
        pause(self)

    step = Embedded("embed", model, (rows(),))
    with monkeypatch.context() as once:
        once.setattr(teachers.Teacher, "pause", stop)
        with pytest.raises(Restart):
            step.make(tmp_path, where)
    assert len(seen) == 8
    step.make(tmp_path, where)
    assert len(seen) == 9 + 13


def test_an_item_under_several_instructions_is_told_of_and_seen_under_its_first(tmp_path, model, caplog):
    first, second = rows(3), ToyRows("more", rows(4, "other words").rows)
    with caplog.at_level(logging.WARNING):
        Embedded("embed", model, (first, second), dtype="float32").make(tmp_path, where)
    assert "3 of 4 query Items stand under several instructions" in caplog.text
    assert "document" not in caplog.text
    table, encoder = Vectors.open(tmp_path / QUERY), Embedder.load(model)
    for text, told in (("question 1", "find it"), ("question 3", "other words")):
        found = table.rows(table.lookup(np.array([id_pair(Item.text(text).id)])))
        theirs = encoder.encode_items([Item.text(text)], side="query", instruction=told)
        assert np.abs(found - theirs.numpy()).max() < 1e-5


def test_items_are_distinct_however_many_are_gathered_at_a_time(monkeypatch):
    sources = (rows(9), ToyRows("more", rows(12, "else").rows))
    whole = Items.of(sources, "query")
    monkeypatch.setattr(module, "_GATHERED", 2)
    parts = Items.of(sources, "query")
    assert np.array_equal(whole.ids, parts.ids) and np.array_equal(whole.at, parts.at)
    assert (whole.several, parts.several, len(whole.ids)) == (9, 9, 12)


def test_sources_without_documents_and_without_rows_are_refused(tmp_path, model):
    bare = ToyRows("bare", (Example("k", "bare", "vqa", Item.text("x"), (), answer="y"),))
    with pytest.raises(DataError, match="no document in bare"):
        Embedded("embed", model, (bare,)).make(tmp_path, where)
    with pytest.raises(ValueError, match="no sources"):
        Embedded("embed", model, ())


def test_the_plan_counts_the_items(model):
    told = Embedded("embed", model, (rows(),)).plan(lambda step: Path(step.name))
    assert told["items"].startswith("36 at most")
