"""Shards behind a URL or a command: the same rows as here, within a bound, whole or not at all, by one download."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from omni2vec.data import cache, remote, shards
from omni2vec.data.addresses import redacted, redacted_text, unsigned
from omni2vec.data.cache import Held, Lock
from omni2vec.data.catalogue import NAME
from omni2vec.data.index import index_path
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.opened import ShardRows
from omni2vec.data.shards import expanded, stream, write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import DataError, Example, Image, Item, Limits, Part

from .samples import everything, nowhere, part, plain
from .servers import Server, serving
from .test_loader import Letters

COUNT = 6  # shards of the set
RANGE = "shard-{000000..000005}.tar"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Retries do not wait, and nothing lands in a person's own cache."""
    monkeypatch.setattr(remote, "_WAITS_S", (0.0, 0.0, 0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def noise(seed: int) -> Part:
    """A picture of some 15,000 bytes, which no codec makes smaller."""
    file = BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 70, 3), np.uint8)).save(file, "PNG")
    return part("image", file.getvalue())


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Six shards of two rows with media and some bulk."""
    rows = [
        Example(f"k{i}", "far", "vqa", Item((*everything(i).query.parts, noise(i))), (Item.text(f"a{i}"),))
        for i in range(2 * COUNT)
    ]
    paths = write_shards(rows, tmp_path / "set", max_bytes=36_000)
    assert len(paths) == COUNT
    return tmp_path / "set"


@pytest.fixture
def server(made: Path) -> Iterator[Server]:
    with serving(made) as found:
        yield found


def opened(address: str, folder: Path, gb: float = 1.0, names: str = "") -> ShardRows:
    rows = Shards(address, names, name="set", cache=str(folder), cache_gb=gb).open(nowhere)
    assert isinstance(rows, ShardRows)
    return rows


def contents(rows: ShardRows) -> list[object]:
    def media(e: Example) -> list[bytes]:
        return [p.blob.read() for p in e.query.parts if isinstance(p, Image)]

    return [(e.key, e.query.id, media(e), e.positives) for e in (rows[i] for i in range(len(rows)))]


def kept(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*.tar"))


def bytes_of(folder: Path) -> int:
    inside = (p for p in folder.rglob("*") if p.is_file() and "catalogues" not in p.parts)
    return sum(p.stat().st_size for p in inside)


# --- the same rows ---


@pytest.mark.parametrize("catalogued", [True, False])
@pytest.mark.parametrize("how", ["range", "folder", "pipe", "pipe with names", "pipe of a folder"])
def test_rows_and_digest_are_those_of_the_shards_here(
    how: str, catalogued: bool, made: Path, server: Server, tmp_path: Path
) -> None:
    here = Shards(str(made)).open(nowhere)
    assert isinstance(here, ShardRows)
    if not catalogued:
        (made / NAME).unlink()
    address, names = {
        "range": (f"{server.url}/{RANGE}?key=7", ""),
        "folder": (f"{server.url}/?key=7", ""),
        "pipe": (f"pipe:cat {made}/{RANGE} 2>/dev/null", ""),
        "pipe with names": (f"pipe:cat {made}/{{}} 2>/dev/null", RANGE),
        "pipe of a folder": (f"pipe:cat {made}/{{}} 2>/dev/null", ""),
    }[how]
    if "folder" in how and not catalogued:
        with pytest.raises(DataError, match=r"no catalogue there \((HTTP 404|exit 1)\), so the shards are not"):
            opened(address, tmp_path / "c", names=names)
        return
    rows = opened(address, tmp_path / "c", names=names)
    assert (rows.digest, rows.ends.tolist()) == (here.digest, here.ends.tolist())
    assert contents(rows) == contents(here)
    assert contents(pickle.loads(pickle.dumps(rows))) == contents(here)


def test_opening_with_a_catalogue_brings_no_shard_and_a_row_brings_its_own(server: Server, tmp_path: Path) -> None:
    rows = opened(f"{server.url}/{RANGE}", tmp_path / "c")
    assert server.tars() == []
    assert rows[7].key != rows[6].key
    assert server.tars() == ["shard-000003.tar"] and server.asked[-1] == "shard-000003.tar.index"


def test_a_part_of_what_the_catalogue_lists_can_be_named(server: Server, made: Path, tmp_path: Path) -> None:
    rows = opened(f"{server.url}/shard-{{000001,000004}}.tar", tmp_path / "c")
    both = tmp_path / "both"
    both.mkdir()
    for i in (1, 4):
        shutil.copy(made / f"shard-00000{i}.tar", both)
    assert rows.digest == Shards(str(both), name="set").open(nowhere).digest and server.tars() == []


def test_shards_without_a_catalogue_are_brought_once_to_be_counted(
    server: Server, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (made / NAME).unlink()
    with caplog.at_level(logging.INFO):
        opened(f"{server.url}/{RANGE}", tmp_path / "c")
    assert "6 shards are in no catalogue there" in caplog.text
    rows = opened(f"{server.url}/{RANGE}", tmp_path / "c")
    contents(rows)
    assert sorted(server.tars()) == expanded(RANGE)


@pytest.mark.parametrize("names", ["", RANGE])
@pytest.mark.parametrize("code", [401, 403])
def test_a_catalogue_that_may_not_be_read_is_not_taken_for_none(
    code: int, names: str, server: Server, tmp_path: Path
) -> None:
    server.fault = lambda name, _: -code if name == NAME else -1
    with pytest.raises(DataError, match=rf"{NAME}: .* in 4 attempts: .*HTTP {code}\. Does .*goes on"):
        opened(f"{server.url}/{{}}" if names else f"{server.url}/", tmp_path / "c", names=names)
    assert server.tars() == []
    server.fault = lambda name, before: -code if before < 11 else -1
    opened(f"{server.url}/{names}", tmp_path / "c")


def test_without_a_connection_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"4 attempts: exit 7: no connection\. Is the host up"):
        opened(f"http://127.0.0.1:1/{RANGE}", tmp_path / "c")


def test_a_page_in_place_of_the_catalogue_is_an_error(server: Server, made: Path, tmp_path: Path) -> None:
    (made / NAME).write_text("<html>Please log in</html>")
    with pytest.raises(DataError, match=rf"{NAME}: cannot be brought here"):
        opened(f"{server.url}/{RANGE}", tmp_path / "c")
    assert server.tars() == []


def test_why_a_command_gave_no_catalogue_is_told_before_shards_are_counted(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"pipe:case {{}} in *.tar) cat {made}/{{}};; *) exit 3;; esac"
    opened(address, tmp_path / "c", names=RANGE)
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "no catalogue there (exit 3)" in told[0] and "6 shards are in no catalogue there" in told[1]
    caplog.clear()
    opened(address, tmp_path / "c", names=RANGE)
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


def test_equal_keys_across_shards_are_an_error_there_too(server: Server, made: Path, tmp_path: Path) -> None:
    (made / NAME).unlink()
    for ending in ("", ".index"):
        shutil.copy(made / f"shard-000001.tar{ending}", made / f"shard-000004.tar{ending}")
    with pytest.raises(DataError, match=r"shard-000004\.tar and shard-000001\.tar give equal keys"):
        opened(f"{server.url}/{RANGE}", tmp_path / "c")


# --- the bound ---


@pytest.mark.parametrize("catalogued", [True, False])
def test_the_cache_never_holds_more_than_its_bound(
    catalogued: bool, server: Server, made: Path, tmp_path: Path
) -> None:
    here = contents(Shards(str(made), name="set").open(nowhere))  # type: ignore[arg-type]
    if not catalogued:
        (made / NAME).unlink()
    bound = 2.5 * ((made / "shard-000000.tar").stat().st_size + (made / "shard-000000.tar.index").stat().st_size)
    rows = opened(f"{server.url}/{RANGE}", tmp_path / "c", bound / 1e9)
    for i in [*range(len(rows)), *range(len(rows))]:
        example = rows[i]
        assert bytes_of(tmp_path / "c") <= bound
        assert (example.key, example.query.id) == here[i][:2]  # type: ignore[index]
        del example
    assert len(kept(tmp_path / "c")) == 2


def test_the_shard_that_was_used_longest_ago_makes_room(server: Server, made: Path, tmp_path: Path) -> None:
    size = (made / "shard-000000.tar").stat().st_size + 2000
    rows = opened(f"{server.url}/{RANGE}", tmp_path / "c", 3 * size / 1e9)
    for row in (0, 2, 4):
        assert rows[row].key
        time.sleep(0.02)
    again = opened(f"{server.url}/{RANGE}", tmp_path / "c", 3 * size / 1e9)
    rows.opened.clear()
    assert again[0].key
    again.opened.clear()
    assert again[6].key
    assert kept(tmp_path / "c") == ["shard-000000.tar", "shard-000002.tar", "shard-000003.tar"]


def test_a_bound_smaller_than_a_shard_is_an_error_that_says_so(server: Server, tmp_path: Path) -> None:
    rows = opened(f"{server.url}/{RANGE}", tmp_path / "c", 1e-5)
    with pytest.raises(DataError, match=r"shard-000000\.tar: [\d,]+ bytes, but the cache .* may hold 10,000; raise"):
        rows[0]
    assert server.tars() == [] and kept(tmp_path / "c") == []


def test_a_cache_that_is_smaller_than_a_window_is_told_at_opening(
    server: Server, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = sum(p.stat().st_size for p in made.glob("*.tar"))
    opened(f"{server.url}/{RANGE}", tmp_path / "c", (whole + 1) / 1e9)
    assert "the cache holds" not in caplog.text
    opened(f"{server.url}/{RANGE}", tmp_path / "c", (whole - 1) / 1e9)
    assert "less than 6 of its shards" in caplog.text and "window" in caplog.text


def test_a_shard_whose_examples_live_is_not_removed_and_the_error_says_what_to_raise(
    server: Server, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_WAIT_S", 0.1)
    size = (made / "shard-000000.tar").stat().st_size + 2000
    rows = opened(f"{server.url}/{RANGE}", tmp_path / "c", 2 * size / 1e9)
    alive = [rows[0], rows[2]]
    with pytest.raises(DataError, match=r"shard-000002\.tar: no room .*being read; raise cache_gb"):
        rows[4]
    assert all(p.blob.read() for e in alive for p in e.query.parts if isinstance(p, Image))
    del alive
    assert rows[4].key


_HOLDING = """
import sys, time
from omni2vec.data.sources import Shards
rows = Shards(sys.argv[1], name="set", cache=sys.argv[2], cache_gb=float(sys.argv[3])).open(None)
example = rows[0]
print("holding", flush=True)
time.sleep(60)
"""


def test_a_shard_that_another_process_reads_is_not_removed(server: Server, made: Path, tmp_path: Path) -> None:
    gb = 2 * ((made / "shard-000000.tar").stat().st_size + 2000) / 1e9
    args = [sys.executable, "-c", _HOLDING, f"{server.url}/{RANGE}", str(tmp_path / "c"), str(gb)]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "holding\n"
        rows = opened(f"{server.url}/{RANGE}", tmp_path / "c", gb)
        for row in (2, 4, 6, 8):
            assert rows[row].key
            assert kept(tmp_path / "c")[0] == "shard-000000.tar"
        other.kill()
    rows.opened.clear()
    for row in (2, 4, 6):
        assert rows[row].key
    assert kept(tmp_path / "c") == ["shard-000002.tar", "shard-000003.tar"]


def test_an_open_shard_that_made_room_is_brought_again_when_it_is_read(server: Server, tmp_path: Path) -> None:
    rows = opened(f"{server.url}/{RANGE}", tmp_path / "c")
    first = rows[0].key
    (path,) = (tmp_path / "c").rglob("*.tar")
    path.unlink()
    assert (rows[0].key, rows[1].key) == (first, first[:-1] + "1")
    assert server.tars() == ["shard-000000.tar"] * 2 and kept(tmp_path / "c") == ["shard-000000.tar"]


# --- whole or not at all ---


def test_a_server_that_fails_twice_is_asked_a_third_time(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = opened(f"{server.url}/{RANGE}?token=hidden", tmp_path / "c")
    server.fault = lambda name, before: None if before == 0 else 5_000 if before == 1 else -1
    with caplog.at_level(logging.WARNING):
        assert rows[0].key == "far/shard-000000/000000"
    assert server.tars() == ["shard-000000.tar"] * 3
    assert "attempt 1 failed" in caplog.text and "attempt 2 failed" in caplog.text and "hidden" not in caplog.text


def shell(tar: str) -> str:
    """A command that gives the catalogue as it is, and does `tar` for a shard."""
    return f"pipe:case {{}} in *.tar) {tar};; *) cat {{made}}/{{}};; esac"


FAILING = {  # a template, and what the error says of it
    "404": ("{url}/{}", "exit 22"),
    "cut by the server": ("{url}/{}", "exit 18"),
    "cut by the command": (shell("head -c 20000 {made}/{}"), "cut short: 20,000 bytes"),
    "another": (shell("cat {made}/shard-000005.tar"), "not the shard that the catalogue lists"),
    "failing command": (shell("cat {made}/{} && exit 3"), "exit 3"),
}


@pytest.mark.parametrize("how", FAILING)
def test_what_cannot_be_brought_whole_is_an_error_with_its_address_and_nothing_is_kept(
    how: str, server: Server, made: Path, tmp_path: Path
) -> None:
    template, said = FAILING[how]
    server.fault = lambda name, _: -1 if name == NAME else None if how == "404" else 5_000
    rows = opened(template.replace("{url}", server.url).replace("{made}", str(made)), tmp_path / "c", names=RANGE)
    with pytest.raises(DataError, match=rf"shard-000000\.tar.*cannot be brought here in 4 attempts: .*{said}"):
        rows[0]
    assert kept(tmp_path / "c") == [] and not list((tmp_path / "c").rglob("*.part*"))


def _why(sent: bytes) -> str:
    with pytest.raises(DataError) as error:
        pickle.loads(sent)[0]
    return str(error.value)


def test_processes_that_want_a_shard_that_fails_share_the_attempts(server: Server, tmp_path: Path) -> None:
    rows = opened(f"{server.url}/{RANGE}", tmp_path / "c")
    server.fault = lambda name, _: time.sleep(0.1)
    with ProcessPoolExecutor(3, get_context("fork")) as pool:
        (said,) = set(pool.map(_why, [pickle.dumps(rows)] * 3))
    assert "in 4 attempts: exit 22: refused or not found, HTTP 404. Does it exist" in said
    assert len(server.tars()) == 5  # and once for its status
    server.fault = lambda name, _: -1
    assert rows[0].key


def test_a_truncated_shard_without_a_catalogue_is_found_by_its_end(server: Server, made: Path, tmp_path: Path) -> None:
    (made / NAME).unlink()
    path = made / "shard-000002.tar"
    path.write_bytes(path.read_bytes()[:-11_000])
    with pytest.raises(DataError, match=rf"^{server.url}/shard-000002\.tar: cannot be brought .*cut short or damaged"):
        opened(f"{server.url}/{RANGE}", tmp_path / "c")
    assert "shard-000002.tar" not in kept(tmp_path / "c")


def test_a_command_that_gives_nothing_any_more_is_ended(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_STALLED_S", 0.1)
    address = f"pipe:cat {made}/{{}}; case {{}} in *.tar) exec sleep 60;; esac"
    rows = opened(address, tmp_path / "c")
    with pytest.raises(DataError, match=r"nothing came for 0\.1 s"):
        rows[0]


def test_a_download_that_is_killed_leaves_nothing_that_is_taken_for_a_shard(
    server: Server, made: Path, tmp_path: Path
) -> None:
    server.pause_s = 0.2
    gb = 3 * (made / "shard-000000.tar").stat().st_size / 1e9
    args = [sys.executable, "-c", _HOLDING, f"{server.url}/{RANGE}", str(tmp_path / "c"), str(gb)]
    with subprocess.Popen(args, stdout=subprocess.DEVNULL) as other:
        while not list((tmp_path / "c").rglob("*.part")):
            assert other.poll() is None
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(other.pid, signal.SIGKILL)
    assert len(list((tmp_path / "c").rglob("*.part"))) == 1 and kept(tmp_path / "c") == []
    server.pause_s = 0.0
    rows = opened(f"{server.url}/{RANGE}", tmp_path / "c", gb)
    assert rows[2].key  # of another shard: what was left makes room all the same
    assert not list((tmp_path / "c").rglob("*.part"))
    assert contents(rows) == contents(Shards(str(made), name="set").open(nowhere))  # type: ignore[arg-type]


def test_a_damaged_shard_in_the_cache_is_brought_again(server: Server, tmp_path: Path) -> None:
    key = opened(f"{server.url}/{RANGE}", tmp_path / "c")[0].key
    (path,) = (tmp_path / "c").rglob("*.tar")
    path.write_bytes(path.read_bytes()[:100])
    assert opened(f"{server.url}/{RANGE}", tmp_path / "c")[0].key == key
    assert server.tars() == ["shard-000000.tar"] * 2


def test_shards_packed_anew_there_are_brought_anew_and_an_old_catalogue_is_refused(
    server: Server, made: Path, tmp_path: Path
) -> None:
    rows = opened(f"{server.url}/{RANGE}", tmp_path / "c")
    assert rows[0].query.id != plain(0).query.id
    shutil.rmtree(made)
    write_shards([plain(i) for i in range(6)], made, max_bytes=1)
    again = opened(f"{server.url}/{RANGE}", tmp_path / "c")
    assert again[0].query.parts == plain(0).query.parts
    with pytest.raises(DataError, match=r"not the shard that the catalogue lists|cut short"):
        rows[4]


def _read(sent: bytes) -> str:
    rows = pickle.loads(sent)
    return str(rows[0].query.id)


def test_processes_that_want_one_shard_bring_it_once(server: Server, tmp_path: Path) -> None:
    rows = opened(f"{server.url}/{RANGE}", tmp_path / "c")
    server.pause_s = 0.05
    with ProcessPoolExecutor(3, get_context("fork")) as pool:
        ids = list(pool.map(_read, [pickle.dumps(rows)] * 3))
    assert len(set(ids)) == 1 and server.tars() == ["shard-000000.tar"]


def test_batches_are_those_of_the_shards_here_for_workers_that_share_a_small_cache(tmp_path: Path) -> None:
    paths = write_shards([plain(i) for i in range(60)], tmp_path / "text", max_bytes=6_000)
    assert len(paths) > 8
    bound = 5 * max(p.stat().st_size + index_path(p).stat().st_size for p in paths) / 1e9
    far = Shards(f"pipe:cat {tmp_path}/text/{{}}", name="text", cache=str(tmp_path / "c"), cache_gb=bound)
    here = Shards(str(tmp_path / "text"))

    def batches(source: Shards, workers: int) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
        settings = {"batch": 20, "sub_batch": 10, "seed": 3, "budget": 128, "workers": workers, "stop": 6}
        with Loader([source.open(nowhere)], [Feed(source)], Letters(), Limits(), **settings) as loader:  # type: ignore[arg-type]
            return [(plan.keys, [chunk.texts for chunk in chunks]) for plan, chunks in loader]

    assert batches(far, 2) == batches(here, 0)
    assert bytes_of(tmp_path / "c") <= bound * 1e9 and kept(tmp_path / "c")


# --- addresses ---


@pytest.mark.parametrize(
    ("address", "folder", "template", "pattern", "name"),
    [
        ("https://h/a/set/x-{0..3}.tar", "", "https://h/a/set/{}", "x-{0..3}.tar", "set"),
        ("https://h/set/{a,b}/x-{0..3}.tar?k=v", "", "https://h/set/{}?k=v", "{a,b}/x-{0..3}.tar", "set"),
        ("https://h/set/x.tar", "", "https://h/set/{}", "x.tar", "set"),
        ("https://h/set/?k=v", "", "https://h/set/{}?k=v", "", "set"),
        ("https://h/set?k=v", "x-{0..3}.tar", "https://h/set/{}?k=v", "x-{0..3}.tar", "set"),
        ("pipe:aws s3 cp s3://b/set/x-{0..3}.tar -", "", "pipe:aws s3 cp s3://b/set/{} -", "x-{0..3}.tar", "set"),
        ("pipe:awk '{print}' /d/x.tar", "", "pipe:awk '{print}' /d/{}", "x.tar", "d"),
        ("pipe:cat '/d/{}' | zcat", "x-{0..3}.tar", "pipe:cat '/d/{}' | zcat", "x-{0..3}.tar", "d"),
    ],
)
def test_an_address_is_a_template_and_the_names_of_shards(
    address: str, folder: str, template: str, pattern: str, name: str
) -> None:
    found = remote.Remote.of(address, folder, "c", 1.0)
    assert (found.template, found.pattern, found.name) == (template, pattern, name)
    assert Shards(address, folder).name == name


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("s3://bucket/x-{0..3}.tar", r's3:// is not read directly; .*"pipe:aws s3 cp'),
        ("pipe:aws s3 cp s3://bucket/set -", r"which shards\? Write \{\} where"),
    ],
)
def test_an_address_that_cannot_be_read_says_how_to_write_it(address: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Shards(address)


def test_a_name_that_leaves_its_folder_or_that_a_shell_would_read_is_refused(
    server: Server, made: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"'\.\./x\.tar'; expected NAME\.tar below"):
        opened(f"{server.url}/{{}}", tmp_path / "c", names="../x.tar")
    shutil.move(made / "shard-000000.tar", made / "a$(touch x).tar")
    shutil.move(made / "shard-000000.tar.index", made / "a$(touch x).tar.index")
    Shards(str(made)).open(nowhere)
    assert opened(f"{server.url}/", tmp_path / "c")[0].key
    rows = opened(f"pipe:cat {made}/{{}}", tmp_path / "c")
    with pytest.raises(DataError, match=r"a command takes letters, digits"):
        rows[0]


SECRETS = (
    "https://me:hidden@host/x.tar",
    "https://host/x.tar?X-Amz-Signature=hidden&token=hidden#a",
    "pipe:curl -sf -H 'Authorization: Bearer hidden' https://host/x.tar",
    'pipe:curl -H "X-Auth-Token: hidden" https://host/x.tar',
    "pipe:curl -u me:hidden https://host/x.tar",
    "pipe:AWS_SECRET_ACCESS_KEY=hidden aws s3 cp s3://b/x.tar -",
    "pipe:get --api-key hidden https://host/x.tar",
)


@pytest.mark.parametrize("address", SECRETS)
def test_no_message_tells_a_secret(address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "hidden" not in redacted(address) and "x.tar" in redacted(address)
    source = Shards(address.replace("host", "127.0.0.1:1").replace("aws s3 cp", "false"), cache=str(tmp_path / "c"))
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError, match=r"x\.tar|shards\.catalogue") as error:
        source.open(nowhere)
    with pytest.raises(DataError) as streamed:
        list(stream(address.replace("host", "127.0.0.1:1").replace("aws s3 cp", "false")))
    for e in (error.value, streamed.value):
        assert "hidden" not in "".join(traceback.format_exception(e))
    assert "hidden" not in caplog.text and source.name and "hidden" not in source.name


@pytest.mark.parametrize("address", [*SECRETS, "https://me:hid@hidden@host/x.tar"])
def test_secrets_are_left_out_of_a_record_that_stays_one(address: str) -> None:
    record = {"at": address, "max_tokens": "5", "token: ": "basic things"}
    told = json.loads(redacted_text(json.dumps(record)))
    assert "hid" not in told["at"] and "x.tar" in told["at"] and told | {"at": address} == record
    source = redacted_text(f"{(address, 'max_tokens: 5')!r} and `https://host/y?sig=hidden` | basic things")
    assert "hid" not in source and source.endswith("'max_tokens: 5') and `https://host/y?sig=***` | basic things")


def test_another_signature_is_the_same_place_and_another_query_is_not() -> None:
    a, b, c = (f"https://h/x?id={i}&X-Amz-Signature={s}" for i, s in ((1, "a"), (1, "b"), (2, "a")))
    assert unsigned(a) == unsigned(b) != unsigned(c)
    assert unsigned("https://me:a@h/x") == unsigned("https://me:b@c@h/x") == "https://h/x"
    assert unsigned("sftp://me:a@h/x") == unsigned("sftp://me:b@h/x") != unsigned("sftp://you:a@h/x")


def test_a_held_path_is_a_string_anywhere_else(tmp_path: Path) -> None:
    held = Held(tmp_path / "x", Lock(tmp_path / "lock", alone=False))
    with pytest.raises(BlockingIOError):
        Lock(tmp_path / "lock", alone=True, wait=False)
    again = pickle.loads(pickle.dumps(held))
    assert type(again) is str and again == held == str(tmp_path / "x")
    del held
    Lock(tmp_path / "lock", alone=True, wait=False).close()
