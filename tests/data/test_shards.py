"""Shards: what is written is what is read, to the byte, by us and by webdataset."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from omni2vec.data.shards import Shard, build_index, stream, verify, write_shards
from omni2vec.data.tars import header
from omni2vec.data.types import Blob, DataError, Event, Example, Image, Item, Part, Text, Video
from safetensors.numpy import load_file

from .samples import everything, part, plain, png

DOCS = Path(__file__).resolve().parents[2] / "docs" / "shards.md"


def contents(example: Example) -> list[object]:
    """All of an example but where its bytes lie."""

    def of(p: Part) -> object:
        return p if not hasattr(p, "blob") else (type(p), p.blob.read(), [getattr(p, f) for f in p.__slots__[1:]])

    items = (example.query, *example.positives, *example.negatives)
    said = [
        getattr(example, f) for f in ("task", "known", "label", "instruction", "target_instruction", "answer", "scores")
    ]
    return [*said, *((item.id, [of(p) for p in item.parts]) for item in items), len(example.positives)]


def test_an_example_comes_back_equal_in_every_field(tmp_path: Path) -> None:
    (path,) = write_shards([everything(0), everything(1)], tmp_path)
    shard = Shard(path)
    assert [contents(shard.example(i)) for i in range(2)] == [contents(everything(i)) for i in range(2)]


def test_a_key_is_source_shard_index_and_a_renamed_source_keeps_it(tmp_path: Path) -> None:
    shard = Shard(write_shards([plain(0), plain(1)], tmp_path)[0])
    assert [shard.example(i).key for i in range(2)] == ["plain/shard-000000/000000", "plain/shard-000000/000001"]
    renamed = shard.example(1, source="mine")
    assert (renamed.source, renamed.key) == ("mine", "plain/shard-000000/000001")


def test_equal_examples_give_equal_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_shards([everything(i) for i in range(3)], tmp_path / folder)
    names = ["shard-000000.tar", "shard-000000.tar.index", "shards.catalogue"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_the_order_of_scores_in_a_mapping_does_not_change_the_bytes(tmp_path: Path) -> None:
    for folder, names in (("a", ("x", "y")), ("b", ("y", "x"))):
        example = Example("k", "s", "sts", Item.text("q"), (Item.text("p"),), scores=dict.fromkeys(names, (1.0,)))
        write_shards([example], tmp_path / folder)
    assert (tmp_path / "a/shard-000000.tar").read_bytes() == (tmp_path / "b/shard-000000.tar").read_bytes()


def test_a_medium_used_three_times_is_stored_once(tmp_path: Path) -> None:
    (path,) = write_shards([everything()], tmp_path)
    key = "shard-000000/000000"
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    names = ["json", "query.1.png", "positive.0.1.gif", "negative.0.0.wav"]
    assert [m.name for m in members] == [f"{key}.{n}" for n in names]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_shards_keep_to_their_size_and_a_larger_sample_stands_alone(tmp_path: Path) -> None:
    big = Example("big", "s", "retrieval", Item.text("x" * 50_000), (Item.text("p"),))
    examples = [plain(i) for i in range(30)] + [big] + [plain(i) for i in range(30, 40)]
    paths = write_shards(examples, tmp_path, max_bytes=20_000)
    lengths = [len(Shard(p)) for p in paths]
    assert sum(lengths) == 41 and lengths[2] == 1
    # Two blocks end a tar, and tar rounds to its record.
    assert all(p.stat().st_size <= 20_000 + 2 * 512 + 10_240 for i, p in enumerate(paths) if i != 2)


def test_progress_is_told_the_samples_done(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_shards([plain(0), plain(1)], tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def failing():
        yield from (plain(i) for i in range(50))
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_shards(failing(), tmp_path, max_bytes=20_000)
    assert list(tmp_path.iterdir()) == []


def test_an_index_built_from_the_tar_equals_the_one_written_with_it(tmp_path: Path) -> None:
    (path,) = write_shards([everything(i) for i in range(4)], tmp_path)
    index = path.with_name(path.name + ".index")
    written = index.read_bytes()
    index.unlink()
    build_index(path)
    assert index.read_bytes() == written


def test_the_safetensors_library_reads_the_index(tmp_path: Path) -> None:
    (path,) = write_shards([everything(0), plain(1)], tmp_path)
    arrays = load_file(str(path) + ".index")
    data = path.read_bytes()
    offset, length = arrays["json_offset"][1], arrays["json_length"][1]
    assert json.loads(data[offset : offset + length])["query"]["parts"] == [{"text": "q1"}]
    assert arrays["media_end"].tolist() == [3, 3]
    assert arrays["medium_kind"].tolist() == [0, 1, 2]
    assert arrays["medium_width"].tolist() == [8, 10, 0]
    assert arrays["medium_frames"].tolist() == [1, 3, 0]
    assert arrays["medium_seconds"].tolist() == [0.0, pytest.approx(0.3), 0.1]
    assert arrays["medium_rate"].tolist() == [0, 0, 8000]


def test_reading_a_row_decodes_nothing_and_reads_no_medium(tmp_path: Path) -> None:
    broken = Image(Blob(b"\x89PNG and then nonsense"), 640, 480)
    (path,) = write_shards([Example("k", "s", "vqa", Item((broken,)), (Item.text("p"),))], tmp_path)
    (picture,) = Shard(path).example(0).query.parts
    assert isinstance(picture, Image)
    assert (picture.width, picture.height, picture.blob.path) == (640, 480, str(path))
    assert picture.blob.data == b"" and picture.blob.read() == broken.blob.data


def test_an_id_is_taken_at_packing_and_read_from_the_row(tmp_path: Path) -> None:
    (path,) = write_shards([everything()], tmp_path)
    example = Shard(path).example(0)
    assert example.query.given_id == everything().query.id
    assert example.negatives[1].id == "my own id"


def test_random_access_equals_streaming(tmp_path: Path) -> None:
    (path,) = write_shards([everything(i) for i in range(3)], tmp_path)
    shard = Shard(path)
    for url in (str(path), f"pipe:cat {path}"):
        streamed = list(stream(url))
        assert [contents(e) for e in streamed] == [contents(shard.example(i)) for i in range(3)]
        assert [e.key for e in streamed] == [shard.example(i).key for i in range(3)]


def test_a_stream_is_read_from_standard_input(tmp_path: Path) -> None:
    (path,) = write_shards([plain(i) for i in range(3)], tmp_path)
    code = "from omni2vec.data.shards import stream; print([e.positives[0].parts[0].text for e in stream('-')])"
    with path.open("rb") as file:
        done = subprocess.run([sys.executable, "-c", code], stdin=file, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['a0', 'a1', 'a2']"


def test_a_streamed_shard_is_packed_again_to_the_same_bytes(tmp_path: Path) -> None:
    (path,) = write_shards([everything(i) for i in range(3)], tmp_path / "a")
    (again,) = write_shards(stream(str(path)), tmp_path / "b")
    assert again.read_bytes() == path.read_bytes()


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    (path,) = write_shards([everything(i) for i in range(3)], tmp_path)
    samples = list(wds.WebDataset(str(path), shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"shard-000000/{i:06d}" for i in range(3)]
    assert samples[2]["query.1.png"] == png(10, 6)
    assert json.loads(samples[2]["json"])["label"] == "a label"


def test_a_shard_written_by_webdataset_reads_as_ours(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    row = {
        "task": "retrieval",
        "source": "theirs",
        "query": {"parts": [{"text": "a red square"}]},
        "positives": [{"parts": [{"image": "jpeg"}]}],
    }
    with wds.TarWriter(str(tmp_path / "theirs.tar")) as sink:
        for i in range(2):
            sink.write({"__key__": f"row{i}", "json": row, "jpeg": png(5, 7 + i)})
    shard = Shard(tmp_path / "theirs.tar")
    example = shard.example(1)
    (picture,) = example.positives[0].parts
    assert isinstance(picture, Image)
    assert (len(shard), example.key, picture.height) == (2, "theirs/row1", 8)
    assert example.positives[0].id == Item((part("image", png(5, 8)),)).id


def test_the_example_of_the_docs_reads_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    write_shards([everything(i) for i in range(3)], tmp_path)
    code = re.search(r"```python\n(import webdataset.*?)```", DOCS.read_text(), re.S)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    done = subprocess.run([sys.executable, "-c", code[1]], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "shard-000000/000001 Find it. ['what is „this“?', '(9, 6)', 'number 1']"


def test_the_docs_name_every_array_of_the_index_and_every_field_of_a_row() -> None:
    from omni2vec.data.index import ARRAYS
    from omni2vec.data.rows import FIELDS

    text = DOCS.read_text()
    assert [name for name in (*ARRAYS, *FIELDS) if f"`{name}`" not in text] == []


def test_a_sound_shard_verifies_without_a_fault(tmp_path: Path) -> None:
    paths = write_shards([everything(i) for i in range(2)], tmp_path)
    assert list(verify(paths)) == []


def test_an_opened_shard_needs_its_index_only_for_what_it_reads(tmp_path: Path) -> None:
    (path,) = write_shards([plain(i) for i in range(500)], tmp_path)
    shard = Shard(path)
    picked = np.random.default_rng(0).permutation(500)[:50]
    assert [shard.example(int(i)).query for i in picked] == [Item((Text(f"q{i}"),), plain(i).query.id) for i in picked]


def test_an_index_outside_the_shard_is_an_index_error(tmp_path: Path) -> None:
    shard = Shard(write_shards([plain(0)], tmp_path)[0])
    for i in (-1, 1):
        with pytest.raises(IndexError, match=f"sample {i} of 1"):
            shard.example(i)


def test_events_and_clips_keep_their_numbers(tmp_path: Path) -> None:
    (path,) = write_shards([everything()], tmp_path)
    example = Shard(path).example(0)
    clip = example.positives[0].parts[1]
    assert isinstance(clip, Video) and clip.frames == 3
    assert Event("viewed", "a hat", 10.5) in example.query.parts[2].events  # type: ignore[union-attr]


def test_a_second_write_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    write_shards([plain(0)], tmp_path)
    with pytest.raises(DataError, match="holds shards shard-"):
        write_shards([plain(1)], tmp_path)
    write_shards([plain(1)], tmp_path, prefix="more")


def test_an_example_is_plain_data_for_workers(tmp_path: Path) -> None:
    example = Shard(write_shards([everything()], tmp_path)[0]).example(0)
    assert pickle.loads(pickle.dumps(example)) == example


@pytest.mark.parametrize(
    "name", ["a.json", "shard-000000/000012.query.0.png", "ü/ß.json", "x" * 100, "y/" * 60 + "z.json"]
)
def test_a_header_is_that_of_the_standard_library(name: str) -> None:
    for length in (0, 1, 12_345, 8**11 - 1):
        info = tarfile.TarInfo(name)
        info.size, info.mode = length, 0o644
        assert header(name, length) == info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
