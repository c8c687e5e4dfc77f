"""Bad shards and tables: every error names the file, the key and the remedy, and the verifier misses none."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omni2vec.data.index import index_path
from omni2vec.data.shards import Shard, build_index, stream, verify, write_shards
from omni2vec.data.types import Blob, DataError, Example, Image, Item

from .samples import everything, plain, png, wav

KEY = "shard-000000/000000"
ROW: dict[str, Any] = {
    "task": "retrieval",
    "source": "bad",
    "query": {"parts": [{"text": "q"}]},
    "positives": [{"parts": [{"text": "p"}]}],
}


def tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], *infos: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for info in infos:
            file.addfile(info)
    return path


def row(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in {**ROW, **changes}.items() if v is not None}).encode()


def link(kind: bytes, target: str = "elsewhere") -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"{KEY}.query.0.png")
    info.type, info.linkname = kind, target
    return info


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that promise a large picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


PICTURE = {"parts": [{"image": "query.0.png"}]}

# name -> (members, further headers, what the error says of them)
FAULTS: dict[str, tuple[Any, list[tarfile.TarInfo], str, str]] = {
    "absolute": ([("/etc/row.json", row())], [], "/etc/row", "escapes its folder"),
    "climbing": ([("a/../../row.json", row())], [], "a/../../row", "escapes its folder"),
    "drive": ([("C:\\row.json", row())], [], "C:\\\\row", "escapes its folder"),
    "symbolic link": ({f"{KEY}.json": row(query=PICTURE)}, [link(tarfile.SYMTYPE)], KEY, "is a link to 'elsewhere'"),
    "hard link": ({f"{KEY}.json": row(query=PICTURE)}, [link(tarfile.LNKTYPE)], KEY, "is a link to 'elsewhere'"),
    "device": ({f"{KEY}.json": row(query=PICTURE)}, [link(tarfile.CHRTYPE)], KEY, "device, pipe or sparse"),
    "pipe": ({f"{KEY}.json": row(query=PICTURE)}, [link(tarfile.FIFOTYPE)], KEY, "device, pipe or sparse"),
    "no field in name": ({"README": b"hello"}, [], "", "'README' is not named KEY.field"),
    "no json": ({f"{KEY}.query.0.png": png(4, 4)}, [], KEY, f"no {KEY}.json"),
    "missing medium": ({f"{KEY}.json": row(query=PICTURE)}, [], KEY, "'query.0.png' is named by the JSON but not in"),
    "medium not named": ({f"{KEY}.json": row(), f"{KEY}.extra.png": b"x"}, [], KEY, "'extra.png' is not named by the"),
    "key twice": ([("a.json", row()), ("b.json", row()), ("a.json", row())], [], "a", "comes twice"),
    "member twice": ([("a.json", row()), ("a.json", row())], [], "a", "comes twice"),
    "not JSON": ({f"{KEY}.json": b"{oops"}, [], KEY, "the row is not JSON"),
    "not UTF-8": ({f"{KEY}.json": b'{"task": "\xff"}'}, [], KEY, "the row is not JSON"),
    "not an object": ({f"{KEY}.json": b"[1]"}, [], KEY, "the row is a list"),
    "unknown field": ({f"{KEY}.json": row(positves=[])}, [], KEY, "unknown field 'positves'; a row has task"),
    "unknown item field": (
        {f"{KEY}.json": row(query={"parts": [{"text": "q"}], "name": "x"})},
        [],
        KEY,
        "unknown field in an item: ['name']",
    ),
    "unknown part": (
        {f"{KEY}.json": row(query={"parts": [{"picture": "a"}]})},
        [],
        KEY,
        "a part is one of text, image",
    ),
    "part with two kinds": (
        {f"{KEY}.json": row(query={"parts": [{"text": "a", "image": "b"}]})},
        [],
        KEY,
        "a part is one of text, image",
    ),
    "bad event": ({f"{KEY}.json": row(query={"parts": [{"events": [{"action": "x"}]}]})}, [], KEY, "an event is"),
    "no query": ({f"{KEY}.json": row(query=None)}, [], KEY, "an item must be"),
    "empty query": ({f"{KEY}.json": row(query={"parts": []})}, [], KEY, "a query without parts"),
    "no positive": ({f"{KEY}.json": row(positives=[])}, [], KEY, "no positive"),
    "no task": ({f"{KEY}.json": row(task="")}, [], KEY, "task '' and source 'bad' must both be given"),
    "number for a text": ({f"{KEY}.json": row(label=3)}, [], KEY, "label must be a string, got 3"),
    "text for a list": ({f"{KEY}.json": row(known="abc")}, [], KEY, "known must be a list, got 'abc'"),
    "known of numbers": ({f"{KEY}.json": row(known=[1])}, [], KEY, "known must be a list of strings"),
    "scores that are no object": ({f"{KEY}.json": row(scores=[1])}, [], KEY, "scores must be an object of lists"),
    "too many scores": (
        {f"{KEY}.json": row(scores={"label": [1, 2]})},
        [],
        KEY,
        "2 scores 'label', expected 1: one per positive",
    ),
    "score that is no number": ({f"{KEY}.json": row(scores={"label": ["a"]})}, [], KEY, "must be a list of numbers"),
    "score that is NaN": ({f"{KEY}.json": row(scores={"label": [float("nan")]})}, [], KEY, "hold NaN or infinity"),
    "one medium, two kinds": (
        {f"{KEY}.json": row(query={"parts": [{"image": "a"}, {"audio": "a"}]}), f"{KEY}.a": b""},
        [],
        KEY,
        "is both image and audio",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_shard_names_itself_its_key_and_what_is_wrong(fault: str, tmp_path: Path) -> None:
    members, infos, key, message = FAULTS[fault]
    path = tar(tmp_path / "bad.tar", members, *infos)
    found = list(verify([path]))
    assert any(message in f.message for f in found), found
    assert all(f.shard == str(path) for f in found)
    for read in (lambda: Shard(path), lambda: list(stream(str(path)))):
        with pytest.raises(DataError) as error:
            read()
        assert str(error.value).startswith(str(path))
        assert message in str(error.value)
        if not key.startswith(("/", "a/..", "C:")) and key:
            assert f"sample {key}: " in str(error.value)


def test_a_tar_cut_anywhere_is_an_error_that_says_so(tmp_path: Path) -> None:
    (whole,) = write_shards([everything(i) for i in range(3)], tmp_path / "whole")
    data = whole.read_bytes()
    end = len(data.rstrip(b"\0"))
    borders = [512, 1024, end - end % 512, end + 512 - end % 512]
    for length in [*borders, *np.random.default_rng(0).integers(1, end, 12).tolist()]:
        path = tmp_path / f"cut-{length}.tar"
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match="cut short or damaged at or after"):
            build_index(path)
        assert any("cut short or damaged" in f.message for f in verify([path]))
        with pytest.raises(DataError, match="cut short or damaged at or after"):
            list(stream(f"pipe:cat {path}"))


def test_flipped_bytes_never_give_anything_but_a_data_error(tmp_path: Path) -> None:
    (whole,) = write_shards([everything(0)], tmp_path / "whole")
    data = bytearray(whole.read_bytes())
    end = len(bytes(data).rstrip(b"\0"))
    path, generator = tmp_path / "flipped.tar", np.random.default_rng(0)
    for _ in range(150):
        damaged = data.copy()
        damaged[int(generator.integers(end))] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        list(verify([path]))
        try:
            build_index(path)
        except DataError:
            continue
        index_path(path).unlink()


def test_a_damaged_header_is_no_end_of_the_tar(tmp_path: Path) -> None:
    (path,) = write_shards([plain(i) for i in range(3)], tmp_path)
    index_path(path).unlink()
    data = bytearray(path.read_bytes())
    data[1024 : 1024 + 100] = b"\xff" * 100  # the second row's name
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"cut short or damaged at or after .shard-000000/000000\.json"):
        Shard(path)


def test_an_empty_shard_is_an_error(tmp_path: Path) -> None:
    path = tar(tmp_path / "empty.tar", {})
    with pytest.raises(DataError, match=r"empty.tar: no samples in it"):
        Shard(path)
    with pytest.raises(DataError, match="no samples in it"):
        list(stream(str(path)))
    assert [f.message for f in verify([path])] == ["no samples in it; delete it or pack it anew"]
    (tmp_path / "zero.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"zero\.tar: the tar is cut short or damaged at or after 'its start'"):
        Shard(tmp_path / "zero.tar")


def test_no_examples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no examples to write"):
        write_shards([], tmp_path)


def test_a_shard_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.tar: no such shard"):
        Shard(tmp_path / "none.tar")
    assert [f.message for f in verify([tmp_path / "none.tar"])] == ["no such shard"]
    with pytest.raises(DataError, match="cannot be opened"):
        list(stream(str(tmp_path / "none.tar")))
    with pytest.raises(DataError, match=r"the command failed .*exit 3"):
        list(stream("pipe:exit 3"))


def test_the_writer_refuses_what_the_reader_would(tmp_path: Path) -> None:
    bad = {
        "no positive": Example("k", "s", "retrieval", Item.text("q"), ()),
        "2 scores 'label', expected 1": Example(
            "k", "s", "sts", Item.text("q"), (Item.text("p"),), scores={"label": (1.0, 2.0)}
        ),
        "a query without parts": Example("k", "s", "retrieval", Item(()), (Item.text("p"),)),
        "must both be given": Example("k", "", "retrieval", Item.text("q"), (Item.text("p"),)),
    }
    for message, example in bad.items():
        with pytest.raises(DataError, match=f"example 1 .key 'k'.: .*{message}"):
            write_shards([plain(0), example], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    bomb = huge_png(20_000, 20_000)
    path = tar(tmp_path / "bomb.tar", {f"{KEY}.json": row(query=PICTURE), f"{KEY}.query.0.png": bomb})
    with pytest.raises(DataError, match=f"bomb.tar: sample {KEY}: query.0.png: .*limit"):
        Shard(path)
    (fault,) = verify([path])
    assert (fault.key, "query.0.png" in fault.message) == (KEY, True)


def test_the_index_of_another_tar_is_an_error_and_is_built_again_once_deleted(tmp_path: Path) -> None:
    (old,) = write_shards([plain(0)], tmp_path / "old")
    (new,) = write_shards([plain(1)], tmp_path / "new")
    new.replace(old)
    with pytest.raises(DataError, match=r"is the index of another tar .* delete it"):
        Shard(old)
    assert "is the index of another tar" in next(verify([old])).message
    index_path(old).unlink()
    assert Shard(old).example(0).query.parts == plain(1).query.parts


def test_a_change_in_the_middle_of_a_large_tar_is_found_by_the_verifier(tmp_path: Path) -> None:
    text = Item.text("x" * 300_000)
    (path,) = write_shards([Example("k", "s", "retrieval", text, (Item.text("p"),))], tmp_path)
    data = bytearray(path.read_bytes())
    data[150_000] = ord("y")
    path.write_bytes(data)
    Shard(path)  # opening reads the two ends only
    assert "the tar was changed" in next(verify([path])).message


@pytest.mark.parametrize("damage", ["short", "other version", "no index"])
def test_an_index_that_is_none_is_an_error_with_a_remedy(damage: str, tmp_path: Path) -> None:
    (path,) = write_shards([everything()], tmp_path)
    index = index_path(path)
    data = index.read_bytes()
    if damage == "short":
        index.write_bytes(data[:-8])
    elif damage == "other version":
        index.write_bytes(data.replace(b'\\"version\\": 1', b'\\"version\\": 9'))
    else:
        index.write_bytes(b"hello")
    with pytest.raises(DataError, match="no whole shard index of version 1; delete it"):
        Shard(path)


def test_the_verifier_finds_every_fault_of_a_shard_and_goes_on(tmp_path: Path) -> None:
    picture = {"parts": [{"image": "query.0.png"}]}
    good = png(30, 30)
    members = {
        "good.json": row(query=picture),
        "good.query.0.png": good,
        "torn.json": row(query=picture),
        "torn.query.0.png": good[: len(good) // 2],
        "/away.json": row(),
        "lone.json": row(positives=[]),
        "bare.json": row(query=picture),
        "mute.json": row(query={"parts": [{"audio": "a.wav"}]}),
        "mute.a.wav": wav(np.zeros(100), 8000)[:100],
        "fine.json": row(),
    }
    path = tar(tmp_path / "many.tar", members)
    assert sorted(f.key for f in verify([path])) == ["/away", "bare", "lone", "mute", "torn"]


def test_the_verifier_holds_sizes_against_the_index(tmp_path: Path) -> None:
    wrong = Image(Blob(png(30, 20)), 31, 20)
    (path,) = write_shards([Example("k", "s", "vqa", Item((wrong,)), (Item.text("p"),)), plain(1)], tmp_path)
    (fault,) = verify([path])
    assert (fault.key, "has (width, height" in fault.message, "(31, 20" in fault.message) == (KEY, True, True)
