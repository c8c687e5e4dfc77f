"""The catalogue of a folder of shards: a source opens without opening a shard, and never on stale counts."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omni2vec.data import cataloguing
from omni2vec.data.catalogue import NAME, Catalogue, Columns, Entry
from omni2vec.data.index import Index, index_path
from omni2vec.data.opened import JoinedRows, ShardRows, ends_of, picked
from omni2vec.data.shards import Shard, write_shards
from omni2vec.data.sources import Concat, Rest, Shards, Take
from omni2vec.data.types import DataError, Item, digest
from safetensors.numpy import load_file

from .samples import everything, nowhere, plain
from .simulated import simulated


def opened(root: Path) -> ShardRows:
    rows = Shards(str(root)).open(nowhere)
    assert isinstance(rows, ShardRows)
    return rows


def aged(root: Path) -> None:
    """As if nothing had happened in the folder for a minute."""
    then = time.time() - 60
    for folder in (p for p in (root, *root.rglob("*")) if p.is_dir() and p.name != ".catalogue"):
        os.utime(folder, (then, then))


def settled(root: Path) -> None:
    """Opened so often, and so long after the last change, that the folder's times are noted down."""
    opened(root)
    for _ in range(2):
        aged(root)
        opened(root)
    assert (root / cataloguing.STAMP).is_file()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every shard that is opened or folder that is listed while cataloguing."""
    seen: list[str] = []
    index, tree = cataloguing.opened_index, cataloguing.Tree.of

    def opened_index(path: Path) -> Index:
        seen.append(path.name)
        return index(path)

    def listed(root: Path) -> cataloguing.Tree:
        seen.append("listed")
        return tree(root)

    monkeypatch.setattr(cataloguing, "opened_index", opened_index)
    monkeypatch.setattr(cataloguing.Tree, "of", staticmethod(listed))
    return seen


# --- a billion rows ---


def test_a_billion_rows_cost_the_memory_of_their_shards(tmp_path: Path) -> None:
    simulated(tmp_path, 100_000, 10_000)
    tracemalloc.start()
    rows = ShardRows("big", Catalogue.read(tmp_path / NAME, tmp_path))
    both = JoinedRows("both", (rows, rows))
    few = picked("few", rows, np.arange(0, 1_000_000_000, 100_000))
    assert (len(rows), len(both), len(few.ends)) == (1_000_000_000, 2_000_000_000, 10_000)
    assert len(rows.digest) == len(both.digest) == 32
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 8 bytes a block where `ends` are joined or picked; hashing needs 40 bytes a shard and copies, in passing.
    assert kept < 100_000 * 8 * 2 + 10_000 * 8 * 4 + 100_000
    assert most < 100_000 * 300
    assert sum(a.nbytes for a in rows.catalogue.arrays.values()) < 100_000 * 200
    assert max(len(pickle.dumps(r)) for r in (rows, both)) < 1000


def test_the_digest_of_many_shards_is_that_of_their_digests_one_by_one(tmp_path: Path) -> None:
    catalogue = simulated(tmp_path, 300, 7)
    assert catalogue.digest("näme") == digest("shards", "näme", *(f"{i:032x}" for i in range(300)))


# --- opening ---


def test_an_opening_after_the_first_neither_lists_nor_opens_a_shard(tmp_path: Path, read: list[str]) -> None:
    write_shards([plain(i) for i in range(12)], tmp_path / "a/b", max_bytes=3000)
    first = opened(tmp_path)
    settled(tmp_path)
    read.clear()
    again = opened(tmp_path)
    assert read == []
    assert (again.digest, again.ends.tolist()) == (first.digest, first.ends.tolist())
    assert [again[i].key for i in range(12)] == [first[i].key for i in range(12)]


def test_what_was_just_changed_is_listed_again_since_its_time_may_not_tell(tmp_path: Path, read: list[str]) -> None:
    write_shards([plain(0)], tmp_path)
    opened(tmp_path)
    read.clear()
    opened(tmp_path)
    assert "listed" in read and not (tmp_path / cataloguing.STAMP).exists()


@pytest.mark.parametrize("stamped", [True, False])
def test_shards_that_are_added_removed_or_packed_anew_are_read_and_no_others(
    stamped: bool, tmp_path: Path, read: list[str]
) -> None:
    paths = write_shards([plain(i) for i in range(20)], tmp_path, max_bytes=5000)
    assert len(paths) > 3
    if stamped:
        settled(tmp_path)
    (other,) = write_shards([plain(100), plain(101)], tmp_path / "new", prefix="shard-x")
    shutil.move(other, tmp_path / other.name)
    size = paths[1].stat().st_size
    paths[0].unlink()
    (again,) = write_shards([plain(50)], tmp_path / "new", prefix="again")
    time.sleep(0.02)
    shutil.copyfile(again, paths[1])
    shutil.rmtree(tmp_path / "new")
    assert paths[1].stat().st_size == size  # tars are rounded up
    index_path(paths[1]).unlink()
    read.clear()
    rows = opened(tmp_path)
    assert sorted(set(read) - {"listed"}) == [paths[1].name, other.name]
    assert [rows[i].query.parts[0].text for i in (0, len(rows) - 2)] == ["q50", "q100"]  # type: ignore[union-attr]
    expected = [paths[1], *paths[2:], tmp_path / other.name]
    assert rows.digest == digest("shards", tmp_path.name, *(Shard(p).digest for p in expected))


def test_shards_changed_in_their_place_are_seen_by_a_look_at_their_times(tmp_path: Path) -> None:
    (path,) = write_shards([plain(0)], tmp_path / "set")
    settled(tmp_path / "set")
    (other,) = write_shards([plain(1)], tmp_path / "other")
    for old, new in ((path, other), (index_path(path), index_path(other))):
        old.write_bytes(new.read_bytes())  # the folder's time stays
    rows = opened(tmp_path / "set")
    assert rows[0].query.parts == plain(1).query.parts
    assert rows.digest == digest("shards", "set", Shard(other).digest)


def test_a_shard_changed_after_the_opening_is_an_error_that_names_it(tmp_path: Path) -> None:
    (path,) = write_shards([plain(0)], tmp_path / "set")
    rows = opened(tmp_path / "set")
    (other,) = write_shards([plain(1), plain(2)], tmp_path / "other")
    for old, new in ((path, other), (index_path(path), index_path(other))):
        shutil.copyfile(new, old)
    with pytest.raises(DataError, match=r"shard-000000\.tar: 2 rows of digest .* has 1 rows of .*packed anew"):
        rows[0]


def test_workers_refuse_a_catalogue_that_changed_since_the_opening(tmp_path: Path) -> None:
    write_shards([plain(0)], tmp_path)
    sent = pickle.dumps(opened(tmp_path))
    write_shards([plain(1)], tmp_path, prefix="more")
    with pytest.raises(DataError, match=r"shards\.catalogue: lists other shards than when the source was opened"):
        pickle.loads(sent)


def test_equal_keys_are_found_at_every_opening_and_when_a_shard_is_added(tmp_path: Path) -> None:
    write_shards([plain(0)], tmp_path / "a")
    settled(tmp_path)
    write_shards([plain(0)], tmp_path / "b")
    for _ in range(2):
        aged(tmp_path)
        with pytest.raises(DataError, match=r"b/shard-000000\.tar and .*a/shard-000000\.tar give equal keys"):
            opened(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"\x10\0\0\0\0\0\0\0nonsense", None])
def test_a_damaged_catalogue_is_built_again(damage: bytes | None, tmp_path: Path) -> None:
    write_shards([plain(i) for i in range(3)], tmp_path)
    settled(tmp_path)
    for name in (NAME, cataloguing.STAMP):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[:-9] if damage is None else damage)
    aged(tmp_path)
    assert [e.query.parts for e in (opened(tmp_path)[i] for i in range(3))] == [plain(i).query.parts for i in range(3)]


def test_a_folder_that_cannot_be_written_has_its_catalogue_in_the_user_s_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_shards([plain(0)], tmp_path / "set")
    (tmp_path / "set" / NAME).unlink()
    monkeypatch.setattr(cataloguing.os, "access", lambda *_: False)
    before = sorted((tmp_path / "set").iterdir())
    for _ in range(2):
        aged(tmp_path / "set")
        rows = opened(tmp_path / "set")
    assert sorted((tmp_path / "set").iterdir()) == before
    assert list((tmp_path / "cache/omni2vec/catalogues").glob(f"*/{NAME}")) and len(rows) == 1
    read.clear()
    opened(tmp_path / "set")
    assert read == []


def _digest(root: Path) -> tuple[str, int]:
    rows = opened(root)
    return rows.digest, len(rows)


def test_several_processes_build_one_catalogue(tmp_path: Path) -> None:
    write_shards([plain(i) for i in range(30)], tmp_path, max_bytes=3000)
    expected = _digest(tmp_path)
    for file in (*tmp_path.glob("*.index"), tmp_path / NAME):
        file.unlink()
    with ProcessPoolExecutor(4) as pool:
        assert set(pool.map(_digest, [tmp_path] * 8)) == {expected}
    assert not list(tmp_path.rglob("*.part"))


def test_writing_beside_a_damaged_shard_leaves_the_error_to_its_opening(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    with caplog.at_level(logging.WARNING):
        write_shards([plain(0)], tmp_path)
    assert "no catalogue written" in caplog.text and "bad.tar" in caplog.text
    with pytest.raises(DataError, match=r"bad\.tar"):
        opened(tmp_path)


# --- what it holds ---


def test_it_counts_sources_and_tasks_and_its_arrays_are_those_of_the_docs(tmp_path: Path) -> None:
    write_shards([plain(i, "ab"[i % 2]) for i in range(5)] + [everything()], tmp_path)
    catalogue = opened(tmp_path).catalogue
    assert catalogue.counts("source") == {"a": 3, "b": 2, "every": 1}
    assert catalogue.counts("task") == {"retrieval": 6}
    docs = (Path(__file__).resolve().parents[2] / "docs/shards.md").read_text()
    assert [name for name in load_file(tmp_path / NAME) if f"`{name}`" not in docs] == []


def test_rows_are_counted_by_the_fields_that_they_have_together(tmp_path: Path) -> None:
    named = [replace(plain(i), fields={"image": Item.text("x"), "title": Item.text("y")}) for i in range(3)]
    write_shards(named, tmp_path / "a", prefix="named")
    write_shards([plain(i) for i in range(2)], tmp_path / "b")
    rows = opened(tmp_path)
    together = {index: Index.read(index).fields for index in tmp_path.rglob("*.index")}
    assert {word: n for counts in together.values() for word, n in counts.items()} == rows.fields
    assert sorted(rows.fields.values()) == [2, 3]
    assert JoinedRows("both", (rows, rows)).fields == {word: 2 * n for word, n in rows.fields.items()}
    assert JoinedRows("some", (rows, picked("one", rows, [0]))).fields is None


def test_entries_come_back_as_they_were_added(tmp_path: Path) -> None:
    columns = Columns()
    names = ["a/ü.tar", "b.tar", "c \udcff.tar"]
    added = [
        Entry(n, i + 1, 10 * i, *(f"{i + k:032x}" for k in range(3)), {f"task:{n!a}": i}) for i, n in enumerate(names)
    ]
    for entry in added:
        columns.add(entry)
    catalogue = Catalogue.of(tmp_path, columns).write(tmp_path / NAME)
    assert [catalogue.entry(i) for i in range(3)] == added
    assert catalogue.names() == names


# --- where blocks end ---


def test_every_source_says_where_its_shards_end(tmp_path: Path) -> None:
    for name in "ab":
        write_shards([plain(i, name) for i in range(9)], tmp_path / name, max_bytes=4000)
    a, b = (Shards(str(tmp_path / name)) for name in "ab")
    rows = a.open(nowhere)
    lengths = [len(Shard(p)) for p in sorted((tmp_path / "a").glob("*.tar"))]
    assert np.diff(ends_of(rows), prepend=0).tolist() == lengths and len(lengths) > 2
    joined = ends_of(Concat((a, b), "both").open(nowhere))
    assert np.diff(joined, prepend=0).tolist() == lengths * 2
    for source in (Take(a, 3), Rest(a, 3), Take(Concat((a, b), "both"), 7)):
        some = source.open(nowhere)
        shard_of = [some[i].key.split("/")[0] + some[i].key.split("/")[1] for i in range(len(some))]
        runs = [sum(1 for s in shard_of if s == name) for name in dict.fromkeys(shard_of)]
        assert np.diff(ends_of(some), prepend=0).tolist() == runs


def test_rows_that_do_not_say_are_one_block() -> None:
    class Own:
        name, digest = "own", "0" * 32

        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
            return plain(index)

    assert ends_of(Own()).tolist() == [5]
    assert JoinedRows("both", (Own(), Own())).ends.tolist() == [5, 10]
