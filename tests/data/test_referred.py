"""Shards that refer to media of others: read alike, moved with their run, refused where they would leave a root."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from omni2vec.data.index import index_path
from omni2vec.data.referred import FILE, Referred, Roots
from omni2vec.data.shards import Shard, build_index, stream, verify, write_shard, write_shards
from omni2vec.data.sources import Concat, Shards, Table, Take
from omni2vec.data.types import Blob, DataError, Example, Image, Item, Text
from PIL import Image as Pillow


def picture(path: Path, colour: int, size: tuple[int, int] = (9, 7)) -> Image:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.new("RGB", size, (colour, 20, 30)).save(path)
    return Image(Blob(path.read_bytes()), *size)


def pictured(folder: Path, count: int = 5) -> list[Example]:
    return [
        Example(
            "",
            "pics",
            "retrieval",
            Item((Text(f"number {i}"),)),
            (Item((picture(folder / f"{i}.png", 40 * i), Text("seen"))),),
        )
        for i in range(count)
    ]


def packed(run: Path) -> Path:
    """A step's folder in a run's, with two shards."""
    write_shards(pictured(run.parent / "files"), run / "world" / "pics", max_bytes=4096)
    return run / "world" / "pics"


def mined(run: Path, source=None) -> Path:
    """Every row with the next one's positive as a negative, in a step's folder beside."""
    rows = (source or Shards(str(packed(run)))).open(None)
    out = run / "mine.partial"
    out.mkdir()
    roots = Roots.of([rows], out, run)
    n = len(rows)
    examples = [replace(rows[i], negatives=rows[(i + 1) % n].positives) for i in range(n)]
    assert write_shard(examples, out / "part-0.tar", roots) == n
    roots.write()
    out.rename(run / "mine")
    return run / "mine"


def bytes_of(item: Item) -> bytes:
    return item.parts[0].blob.read()


def test_rows_that_refer_read_as_the_rows_that_hold(tmp_path):
    out = mined(tmp_path / "run")
    old, new = Shards(str(tmp_path / "run/world/pics")).open(None), Shards(str(out), name="pics").open(None)
    assert len(old.catalogue) > 1
    for i in range(5):
        assert new[i].key == old[i].key
        assert (new[i].positives[0].id, new[i].source) == (old[i].positives[0].id, "pics")
        assert bytes_of(new[i].positives[0]) == bytes_of(old[i].positives[0])
        assert new[i].negatives[0].id == old[(i + 1) % 5].positives[0].id
        assert (new[i].negatives[0].parts[0].width, new[i].negatives[0].parts[0].height) == (9, 7)
    assert b"PNG" not in (out / "part-0.tar").read_bytes()  # nothing was copied


def test_a_stream_and_an_index_built_anew_agree_with_what_was_written(tmp_path):
    out = mined(tmp_path / "run")
    tar = out / "part-0.tar"
    whole = index_path(tar).read_bytes()
    index_path(tar).unlink()
    assert build_index(tar).read_bytes() == whole
    assert [bytes_of(e.negatives[0]) for e in stream(str(tar))] == [
        bytes_of(Shard(tar).example(i).negatives[0]) for i in range(5)
    ]
    with pytest.raises(DataError, match="a stream has not"):
        list(stream(f"pipe:cat {tar}"))


def test_a_run_may_be_moved_whole_and_a_shard_alone_may_not(tmp_path):
    mined(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert bytes_of(Shard(tmp_path / "moved/mine/part-0.tar").example(0).negatives[0])[:4] == b"\x89PNG"
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in (tmp_path / "moved/mine").glob("part-0.tar*"):
        shutil.copy(file, alone)
    with pytest.raises(DataError, match=r"referred\.json.*media='copy'"):
        Shard(alone / "part-0.tar").example(0)


def test_what_is_mined_of_mined_rows_refers_to_the_first(tmp_path):
    first = mined(tmp_path / "run")
    rows = Shards(str(first), name="pics").open(None)
    again = tmp_path / "run" / "again"
    again.mkdir()
    roots = Roots.of([Take(Concat((Shards(str(first)),), "both"), 3).open(None)], again, tmp_path / "run")
    write_shard([rows[0]], again / "part-0.tar", roots)
    roots.write()
    blob = Shard(again / "part-0.tar").example(0).positives[0].parts[0].blob
    assert Path(blob.path).resolve().parent == (tmp_path / "run/world/pics").resolve()


def test_media_files_of_a_table_are_referred_to_by_digest(tmp_path):
    for i in range(3):
        picture(tmp_path / "data" / "photos" / f"{i}.png", 60 * i)
    lines = [{"text": f"photo {i}", "photo": f"photos/{i}.png"} for i in range(3)]
    (tmp_path / "data/rows.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    table = Table(str(tmp_path / "data/rows.jsonl"), columns={"query": "text:text", "positives": "image:photo"})
    out = mined(tmp_path / "run", table) if (tmp_path / "run").mkdir() is None else None
    example = Shard(out / "part-0.tar").example(1)
    assert bytes_of(example.positives[0]) == (tmp_path / "data/photos/1.png").read_bytes()
    assert list(verify([out / "part-0.tar"])) == []
    swapped = bytearray((tmp_path / "data/photos/1.png").read_bytes())
    swapped[-20] ^= 1
    (tmp_path / "data/photos/1.png").write_bytes(swapped)
    assert {"another file" in str(f) for f in verify([out / "part-0.tar"])} == {True}


def test_another_shard_in_the_old_ones_place_is_told_at_reading_and_damage_by_verify(tmp_path):
    out = mined(tmp_path / "run")
    assert list(verify([out / "part-0.tar"])) == []
    tar = tmp_path / "run/world/pics/shard-000000.tar"
    sound = tar.read_bytes()
    tar.write_bytes(sound[:-1024] + bytes([1]) * 1024)
    with pytest.raises(DataError, match="packed anew since"):
        Shard(out / "part-0.tar").example(0)
    tar.write_bytes(sound + bytes(512))
    with pytest.raises(DataError, match="packed anew since"):
        Shard(out / "part-0.tar").example(0)
    tar.unlink()
    with pytest.raises(DataError, match="bring it back"):
        Shard(out / "part-0.tar").example(0)


def test_verify_reads_the_whole_of_a_shard_that_is_referred_to(tmp_path):
    big = [replace(e, answer="x" * 200_000) for e in pictured(tmp_path / "files", 3)]
    write_shards(big, tmp_path / "run/world/pics")
    out = mined(tmp_path / "run", Shards(str(tmp_path / "run/world/pics")))
    tar = tmp_path / "run/world/pics/shard-000000.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1  # where the quick digest does not look
    tar.write_bytes(data)
    assert bytes_of(Shard(out / "part-0.tar").example(0).positives[0])[:4] == b"\x89PNG"
    faults = [str(f) for f in verify([out / "part-0.tar"])]
    assert len(faults) == 1 and "is damaged" in faults[0]


GOOD = {"root": "pics", "file": "a.tar", "offset": 0, "length": 3, "width": 2, "height": 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file": "../../etc/a.tar"}, "leaves its root"),
        ({"file": "/etc/a.tar"}, "leaves its root"),
        ({"file": "a\\..\\b"}, "leaves its root"),
        ({"offset": -1}, "offset"),
        ({"length": True}, "length"),
        ({"width": 1.5}, "width"),
        ({"root": ""}, "root"),
        ({"more": 1}, "got file"),
        ({"height": None}, "height"),
    ],
)
def test_a_reference_that_is_not_sound_is_refused(change, said):
    with pytest.raises(DataError, match=said):
        Referred.read("image", GOOD | change, "here")


def test_a_root_that_nobody_declared_and_a_medium_outside_all_are_refused(tmp_path):
    out = mined(tmp_path / "run")
    told = json.loads((out / FILE).read_text())
    assert [root["at"] for root in told["roots"].values()] == ["../world/pics"]
    (out / FILE).write_text(json.dumps({"version": 1, "roots": {}}))
    with pytest.raises(DataError, match="refers to root 'pics'"):
        Shard(out / "part-0.tar").example(0)
    picture(tmp_path / "elsewhere.png", 3)
    example = Example(
        "pics/s/0",
        "pics",
        "retrieval",
        Item.text("q"),
        (Item((Image(Blob(path=str(tmp_path / "elsewhere.png")), 9, 7),)),),
    )
    with pytest.raises(DataError, match="below none of the folders"):
        write_shard([example], tmp_path / "x.tar", Roots.of([], tmp_path, tmp_path))
    assert not list(tmp_path.glob("*.tar*")) and not list(tmp_path.glob(".*part"))
    inside = Example(
        "pics/s/0",
        "pics",
        "retrieval",
        Item.text("q"),
        (Item((Image(Blob(path=str(tmp_path / "run/world/pics/shard-000000.tar"), offset=1 << 20, length=9), 9, 7),)),),
    )
    with pytest.raises(DataError, match="cut short"):
        write_shard(
            [inside],
            tmp_path / "x.tar",
            Roots.of([Shards(str(tmp_path / "run/world/pics")).open(None)], tmp_path, tmp_path),
        )


def test_without_roots_a_shard_holds_its_media_and_keeps_its_keys(tmp_path):
    rows = Shards(str(packed(tmp_path / "run")), name="renamed").open(None)
    write_shard([rows[3], rows[1]], tmp_path / "whole.tar")
    shard = Shard(tmp_path / "whole.tar")
    assert [shard.example(i).key for i in range(2)] == [rows[3].key, rows[1].key]
    assert [bytes_of(shard.example(i).positives[0]) for i in range(2)] == [
        bytes_of(rows[i].positives[0]) for i in (3, 1)
    ]
    with pytest.raises(DataError, match="comes twice"):
        write_shard([rows[3], rows[3]], tmp_path / "twice.tar")
    with pytest.raises(DataError, match="no key of the form"):
        write_shard([replace(rows[3], key="")], tmp_path / "none.tar")
    assert write_shard([], tmp_path / "none.tar") == 0 and not (tmp_path / "none.tar").exists()
