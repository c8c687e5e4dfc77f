"""Scores beside a source: they reach the right candidates by key, and other rows than those judged are named."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from omni2vec.data.relation import Relation, id_pair
from omni2vec.data.scored import Scored, content_of, write
from omni2vec.data.sources import Take
from omni2vec.data.types import DataError, Example, Item

from ..train.toy import ToyRows


def rows(count=30):
    made = [
        Example(
            f"rows/{i}", "rows", "retrieval", Item.text(f"q{i}"), (Item.text(f"p{i}"),),
            tuple(Item.text(f"n{i}.{k}") for k in range(i % 4)), scores={"label": (float(i),)},
        )
        for i in range(count)
    ]  # fmt: skip
    return ToyRows("rows", tuple(made))


def judged(folder, source):
    """The score of candidate k of row i is i + k / 10."""
    counts = np.array([1 + len(e.negatives) for e in source.rows])
    scores = np.concatenate([i + np.arange(c) / 10 for i, c in enumerate(counts)]).astype(np.float32)
    keys, content = (np.array([f(e) for e in source.rows]) for f in (lambda e: id_pair(e.key), content_of))
    write(folder, keys, content, counts, scores, {"source": "rows"})
    return source


def test_every_candidate_has_its_score_beside_those_that_the_row_had(tmp_path):
    source = judged(tmp_path, rows())
    found = Scored(source, str(tmp_path)).open(None)
    for i, example in enumerate(found):
        assert example.scores["rerank"] == pytest.approx([i + k / 10 for k in range(1 + i % 4)])
        assert example.scores["label"] == (float(i),)
    relation = Relation.of([found[7], found[2]], ["rows"])
    assert relation.scores["rerank"].tolist() == pytest.approx([7, 7.1, 7.2, 7.3, 2, 2.1, 2.2])


def test_a_part_of_the_source_in_another_order_finds_its_scores(tmp_path):
    source = judged(tmp_path, rows())
    part = Scored(Take(source, 5), str(tmp_path), name="few").open(None)
    assert [e.scores["rerank"][0] for e in part] == [float(e.key.split("/")[1]) for e in part]
    assert part[0].source == "few"
    turned = Scored(ToyRows("rows", source.rows[::-1]), str(tmp_path), score="judge").open(None)
    assert turned[0].scores["judge"][0] == 29


def test_a_row_that_was_not_judged_and_one_whose_candidates_changed_are_named(tmp_path):
    source = judged(tmp_path, rows(4))
    new = replace(source.rows[0], key="rows/new")
    swapped = replace(source.rows[3], negatives=source.rows[3].negatives[::-1])
    fewer = replace(source.rows[2], negatives=())
    found = Scored(ToyRows("rows", (new, swapped, fewer, source.rows[1])), str(tmp_path)).open(None)
    with pytest.raises(DataError, match="rows/new: not among the 4 rows"):
        found[0]
    with pytest.raises(DataError, match="rows/3: its query or its candidates are others"):
        found[1]
    with pytest.raises(DataError, match="rows/2: its query or its candidates are others"):
        found[2]
    assert found[3].scores["rerank"] == pytest.approx((1.0, 1.1))


def test_two_rows_of_one_key_are_refused(tmp_path):
    with pytest.raises(DataError, match="two rows of source 'rows' have one key"):
        judged(tmp_path, ToyRows("rows", rows(2).rows[:1] * 2))


def test_the_digest_follows_the_scores_and_a_missing_or_cut_file_is_named(tmp_path):
    source = judged(tmp_path, rows())
    scored = Scored(source, str(tmp_path))
    before = scored.open(None).digest
    assert scored.open(None).digest == before and scored.outside(None)
    judged(tmp_path, ToyRows("rows", rows(29).rows))
    assert scored.open(None).digest != before
    assert pickle.loads(pickle.dumps(scored.open(None)))[3].scores["rerank"][0] == 3
    (tmp_path / "scores.safetensors").write_bytes(b"short")
    with pytest.raises(DataError, match="cut short"):
        scored.open(None)
    (tmp_path / "scores.safetensors").unlink()
    with pytest.raises(DataError, match="Judged step"):
        scored.open(None)
