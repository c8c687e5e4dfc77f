"""Sources: shards, tables, subsets and joins open to the same rows every time."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
from omni2vec.data import opened
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import AtLeast, Concat, Rest, Shards, Take
from omni2vec.data.types import DataError, Example, Item, Rows, Step, Text

from .samples import everything, nowhere, plain


def texts(rows: Rows) -> list[str]:
    return [part.text for i in range(len(rows)) for part in rows[i].query.parts if isinstance(part, Text)]


# --- shards ---


def test_shards_are_read_in_the_order_of_their_names_under_one_name(tmp_path: Path) -> None:
    write_shards([plain(i) for i in range(40)], tmp_path / "set", max_bytes=20_000)
    rows = Shards(str(tmp_path / "set")).open(nowhere)
    assert len(sorted((tmp_path / "set").glob("*.tar"))) > 2
    assert texts(rows) == [f"q{i}" for i in range(40)]
    assert (rows.name, rows[0].source, rows[39].source) == ("set", "set", "set")
    assert len({rows[i].key for i in range(40)}) == 40


def test_shards_of_a_step_lie_in_its_folder(tmp_path: Path) -> None:
    class Made:
        name = "made"

        def make(self, out: Path, where: object) -> None: ...

    step: Step = Made()
    write_shards([plain(0)], tmp_path / "somewhere/train/task")
    source = Shards(step, "train/task")
    assert source.name == "task"
    rows = source.open(lambda s: tmp_path / "somewhere" if s is step else tmp_path)
    assert texts(rows) == ["q0"]


def test_a_folder_without_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source .*: no \*.tar under"):
        Shards(str(tmp_path)).open(nowhere)


@pytest.mark.parametrize("index", [-1, 2, 100])
def test_a_row_outside_is_an_index_error_in_every_source(index: int, tmp_path: Path) -> None:
    write_shards([plain(i, score=5.0) for i in range(2)], tmp_path / "set")
    shards = Shards(str(tmp_path / "set"))
    for source in (shards, Take(shards, 5), AtLeast(shards), Concat((shards,), "all")):
        with pytest.raises(IndexError, match=f"row {index} of 2"):
            source.open(nowhere)[index]


def test_rows_are_pickled_to_workers_without_their_open_files(tmp_path: Path) -> None:
    write_shards([plain(i, score=5.0) for i in range(5)], tmp_path / "set")
    shards = Shards(str(tmp_path / "set"))
    for source in (shards, Take(shards, 3), AtLeast(shards), Concat((shards,), "all")):
        rows = source.open(nowhere)
        before = [rows[i] for i in range(len(rows))]
        again = pickle.loads(pickle.dumps(rows))
        assert [again[i] for i in range(len(again))] == before
        assert again.digest == rows.digest


def test_more_shards_than_may_be_open_are_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "_OPEN_SHARDS", 2)
    write_shards([plain(i) for i in range(12)], tmp_path / "set", max_bytes=3000)
    rows = Shards(str(tmp_path / "set")).open(nowhere)
    assert isinstance(rows, opened.ShardRows)
    assert texts(rows) == [f"q{i}" for i in range(12)]
    assert len(rows.ends) > 4 and len(rows.opened) == 2


def test_the_digest_names_the_content_and_not_the_place(tmp_path: Path) -> None:
    write_shards([plain(i) for i in range(3)], tmp_path / "a/set")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    write_shards([plain(i) for i in range(4)], tmp_path / "c/set")
    digests = [Shards(str(tmp_path / f / "set")).open(nowhere).digest for f in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_two_shards_with_equal_keys_in_one_source_are_an_error(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_shards([plain(0)], tmp_path / folder)
    with pytest.raises(DataError, match=r"give equal keys .*another prefix"):
        Shards(str(tmp_path)).open(nowhere)


# --- subsets ---


def test_a_take_is_the_same_rows_every_time_and_others_for_another_seed(tmp_path: Path) -> None:
    write_shards([plain(i) for i in range(100)], tmp_path / "set")
    shards = Shards(str(tmp_path / "set"))
    first, again, other = (Take(shards, 10, seed).open(nowhere) for seed in (0, 0, 1))
    assert texts(first) == texts(again) != texts(other)
    assert len(set(texts(first))) == 10 and set(texts(first)) <= set(texts(shards.open(nowhere)))
    assert len({first.digest, other.digest, shards.open(nowhere).digest}) == 3
    assert texts(Take(shards, 200).open(nowhere)) == texts(shards.open(nowhere))


def test_a_take_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="count=0, expected 1 or more"):
        Take(Shards(str(tmp_path)), 0)


def test_what_is_taken_and_the_rest_are_the_whole(tmp_path: Path) -> None:
    write_shards([plain(i) for i in range(40)], tmp_path / "set")
    shards = Shards(str(tmp_path / "set"))
    taken, rest = texts(Take(shards, 10, 3).open(nowhere)), texts(Rest(shards, 10, 3).open(nowhere))
    assert (len(taken), len(rest)) == (10, 30)
    assert set(taken) | set(rest) == set(texts(shards.open(nowhere)))
    with pytest.raises(DataError, match="leaves none"):
        Rest(shards, 40).open(nowhere)


def test_at_least_keeps_pairs_of_that_score_and_leaves_the_others_out(tmp_path: Path) -> None:
    write_shards([plain(i, score=float(i)) for i in range(6)], tmp_path / "sts")
    rows = AtLeast(Shards(str(tmp_path / "sts")), "label", 4.0).open(nowhere)
    assert texts(rows) == ["q4", "q5"]
    assert [rows[i].scores["label"] for i in range(2)] == [(4.0,), (5.0,)]


def test_at_least_drops_low_positives_and_keeps_the_scores_beside_the_right_items(tmp_path: Path) -> None:
    items = tuple(Item.text(t) for t in "abcd")
    scores = {"label": (3.0, 4.5, 0.0, 1.0), "teacher": (0.1, 0.2, 0.3, 0.4)}
    write_shards([Example("k", "s", "retrieval", items[0], items[:2], items[2:], scores=scores)], tmp_path / "set")
    row = AtLeast(Shards(str(tmp_path / "set")), "label", 4.0).open(nowhere)[0]
    assert [i.parts for i in row.positives] == [(Text("b"),)]
    assert [i.parts for i in row.negatives] == [(Text("c"),), (Text("d"),)]
    assert row.scores == {"label": (4.5, 0.0, 1.0), "teacher": (0.2, 0.3, 0.4)}


def test_at_least_without_the_score_or_without_a_row_is_an_error(tmp_path: Path) -> None:
    write_shards([plain(0, score=1.0)], tmp_path / "set")
    shards = Shards(str(tmp_path / "set"))
    with pytest.raises(DataError, match=r"plain/shard-000000/000000: no score 'rerank' .* it has label"):
        AtLeast(shards, "rerank").open(nowhere)
    with pytest.raises(DataError, match=r"no row has a positive with 'label' of 4\.0 or more"):
        AtLeast(shards).open(nowhere)


def test_a_concat_puts_rows_behind_rows_under_its_own_name(tmp_path: Path) -> None:
    for name in "ab":
        write_shards([plain(i, name) for i in range(2)], tmp_path / name)
    both = Concat((Shards(str(tmp_path / "b")), Shards(str(tmp_path / "a"))), "both").open(nowhere)
    assert [both[i].key for i in range(4)] == [f"{n}/shard-000000/00000{i}" for n in "ba" for i in range(2)]
    assert {both[i].source for i in range(4)} == {"both"}


def test_an_example_of_every_kind_passes_through_every_source(tmp_path: Path) -> None:
    write_shards([everything(i) for i in range(2)], tmp_path / "set")
    shards = Shards(str(tmp_path / "set"))
    row = Concat((Take(shards, 2), AtLeast(shards, "label", 0.75)), "all").open(nowhere)[3]
    assert len(row.positives) == 1 and row.query.id == everything(1).query.id
