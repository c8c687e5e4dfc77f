"""A thousand damaged shards: every way of reading gives equal rows or a DataError that names the place, nothing else.

Where a byte changed that no reader can know of (a letter of a text in a tar without an index, a middle that the quick
digest of an index does not read), the verifier is held to it instead.
"""

from __future__ import annotations

import faulthandler
import io
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from omni2vec.data.index import index_path
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.parts import image
from omni2vec.data.rows import to_row
from omni2vec.data.shards import Shard, stream, verify, write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import Audio, Cost, DataError, Example, Image, Item, Limits, Prompted, Text, Video

from .samples import everything, nowhere, part, plain, png

CASES = 1000
HANGS_S = 60  # the watchdog: all cases together take a fifth of it
Damage = Callable[[bytearray, np.random.Generator], None]


def pictured(i: int) -> Example:
    picture = Item((part("image", png(6 + i, 5)), Text(f"picture {i}")))
    return Example(f"plain/{i}", "plain", "vqa", picture, (Item.text(f"a{i}"),), known=(f"k{i}",), label=f"c{i % 2}")


def long(i: int) -> Example:
    """Three of these make a tar with a middle that the quick digest of an index does not read."""
    text = f"{i} " + "words of a long text " * 4000
    return Example(f"plain/{i}", "plain", "retrieval", Item.text(text), (Item.text(f"a{i}"),))


# name -> rows, and how many of the cases are of them.
BASES: dict[str, tuple[list[Example], int]] = {
    "text": ([plain(i) for i in range(4)], 500),
    "picture": ([pictured(i) for i in range(3)], 400),
    "every part": ([everything(i) for i in range(2)], 60),
    "long": ([long(i) for i in range(3)], 40),
}


def place(data: bytearray, dice: np.random.Generator) -> int:
    """Of a byte in front of the padding, which is half of a small tar."""
    return int(dice.integers(max(1, len(data.rstrip(b"\0")))))


def block(data: bytearray, dice: np.random.Generator) -> int:
    return place(data, dice) // 512 * 512


def flip(data: bytearray, dice: np.random.Generator) -> None:
    for _ in range(int(dice.integers(1, 5))):
        data[place(data, dice)] ^= int(dice.integers(1, 256))


def cut(data: bytearray, dice: np.random.Generator) -> None:
    del data[place(data, dice) :]


def empty(data: bytearray, dice: np.random.Generator) -> None:
    data.clear()


def blank(data: bytearray, dice: np.random.Generator) -> None:
    """A block of zeros, as a disk leaves where a write was lost."""
    at = block(data, dice)
    data[at : at + 512] = bytes(len(data[at : at + 512]))


def swap(data: bytearray, dice: np.random.Generator) -> None:
    a, b = block(data, dice), block(data, dice)
    data[a : a + 512], data[b : b + 512] = data[b : b + 512], data[a : a + 512]


def double(data: bytearray, dice: np.random.Generator) -> None:
    """A run of blocks that stands twice."""
    at = block(data, dice)
    data[at:at] = data[at : at + 512 * int(dice.integers(1, 5))]


def drop(data: bytearray, dice: np.random.Generator) -> None:
    """A run of bytes that is gone, blocks or not."""
    at = place(data, dice)
    del data[at : at + int(dice.choice([1, 7, 512, 1024]))]


def insert(data: bytearray, dice: np.random.Generator) -> None:
    at = place(data, dice)
    data[at:at] = dice.bytes(int(dice.choice([1, 512])))


def noise(data: bytearray, dice: np.random.Generator) -> None:
    at = place(data, dice)
    data[at : at + 40] = dice.bytes(len(data[at : at + 40]))


def members(data: bytes) -> list[int]:
    """Where each member begins, and where the last one ends."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = list(tar)
    return [*(m.offset for m in found), found[-1].offset_data + (found[-1].size + 511) // 512 * 512]


# name, mode, size, time, kind, link, magic, prefix: (offset, length) in a header
FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 6), (345, 155))


def head(data: bytearray, dice: np.random.Generator) -> None:
    """A byte of a header, with its checksum made right again in half of the cases, so that the header is sound."""
    at = int(dice.choice(members(bytes(data))[:-1]))
    start, length = FIELDS[int(dice.integers(len(FIELDS)))]
    data[at + start + int(dice.integers(length))] = int(dice.integers(256))
    if dice.integers(2):
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def doubled_member(data: bytearray, dice: np.random.Generator) -> None:
    places = members(bytes(data))
    i, j = int(dice.integers(len(places) - 1)), int(dice.integers(len(places)))
    data[places[j] : places[j]] = data[places[i] : places[i + 1]]


def swapped_members(data: bytearray, dice: np.random.Generator) -> None:
    places = members(bytes(data))
    pieces = [bytes(data[a:b]) for a, b in pairwise(places)]
    data[: places[-1]] = b"".join(pieces[i] for i in dice.permutation(len(pieces)))


def row_json(data: bytearray, dice: np.random.Generator) -> None:
    """A word of a row's JSON written over, so that the tar stays whole."""
    words = (b'"parts"', b'"query"', b'"text"', b'"positives"', b"[", b"]", b"{", b"}", b":", b",", b'"', b'"task"')
    word = words[int(dice.integers(len(words)))]
    at = bytes(data).find(word, place(data, dice))
    if at >= 0:
        over = (b"1", b"[", b"{", b"null", b"\xff", b'"', b"\\", b"-", b"0", b"e")
        data[at : at + len(word)] = over[int(dice.integers(len(over)))].ljust(len(word))[: len(word)]


def arrays(data: bytearray, dice: np.random.Generator) -> None:
    """A number of an index: a little off, far off, or below zero."""
    start = 8 + int.from_bytes(data[:8], "little")
    at = start + 8 * int(dice.integers((len(data) - start) // 8))
    old = int.from_bytes(data[at : at + 8], "little", signed=True)
    far = (old + 1, old - 1, old + 512, -1, 1 << 40, (1 << 63) - 1, -(1 << 63), 0)
    data[at : at + 8] = (min(far[int(dice.integers(len(far)))], (1 << 63) - 1)).to_bytes(8, "little", signed=True)


TAR: tuple[Damage, ...] = (
    *(flip, flip, cut, empty, blank, swap, double, drop, insert, noise),
    *(head, head, doubled_member, swapped_members, row_json, row_json),
)
INDEX: tuple[Damage, ...] = (flip, cut, empty, drop, insert, noise, arrays, arrays, arrays)


KINDS = ("tar", "tar", "bare tar", "bare tar", "index")  # what is damaged; a bare tar has no index beside it


@dataclass(frozen=True)
class Base:
    """A sound shard as bytes."""

    name: str
    tar: bytes
    index: bytes
    rows: tuple[tuple[str, bytes], ...]  # (key, content) of each


def content(example: Example) -> tuple[str, bytes]:
    raw, media = to_row(example)
    return example.key, raw + b"".join(m.data for m in media)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    found = {}
    for name, (rows, _) in BASES.items():
        (path,) = write_shards(rows, tmp_path_factory.mktemp("base"))
        shard = Shard(path)
        read = tuple(content(shard.example(i)) for i in range(len(shard)))
        found[name] = Base(name, path.read_bytes(), index_path(path).read_bytes(), read)
    return found


@dataclass(frozen=True)
class Case:
    """One damaged shard, alone in its folder."""

    base: Base
    path: Path
    what: str  # what was damaged, and how
    indexed: bool  # an index lies beside it

    @property
    def shows(self) -> bool:
        """Whether a reader can know of any damage: of the index by its sum, of a tar by the index beside it, but for
        the middle of a large one."""
        return self.indexed and (self.base.name != "long" or self.what.startswith("index"))


def damaged(base: Base, number: int, folder: Path) -> Case:
    """Case `number`: always the same one."""
    dice = np.random.default_rng([7, number])
    tar, index = bytearray(base.tar), bytearray(base.index)
    kind = KINDS[number % len(KINDS)]
    ways = INDEX if kind == "index" else TAR
    how = ways[int(dice.integers(len(ways)))]
    how(index if kind == "index" else tar, dice)
    folder.mkdir()
    path = folder / "shard-000000.tar"
    path.write_bytes(tar)
    if kind != "bare tar":
        index_path(path).write_bytes(index)
    return Case(base, path, f"{kind}, {how.__name__}", kind != "bare tar")


@dataclass(frozen=True)
class Packed:
    keys: tuple[str, ...]
    failed: tuple[int, ...]

    def pin(self) -> Packed:
        return self


class Contents:
    """A format that reads every part; where one cannot be decoded, the row fails."""

    def count(self, prompts: Sequence[Prompted], limits: Sequence[Limits]) -> list[Cost]:
        return [Cost(1)] * len(prompts)

    def collate(
        self, prompts: Sequence[Prompted], limits: Sequence[Limits], dummies: Sequence[str] = (), skip: bool = False
    ) -> Packed:
        failed = []
        for i, prompted in enumerate(prompts):
            try:
                for p in prompted.item.parts:
                    if isinstance(p, Image):
                        image.decode(p, prompted.key)
                    elif isinstance(p, Video | Audio):
                        p.blob.read()
            except DataError:
                failed.append(i)
        return Packed(tuple(p.key for p in prompts), tuple(failed))


def named(error: DataError, case: Case) -> None:
    assert str(case.path) in str(error), f"{case.what}: {error}"


def at_random(case: Case) -> tuple[dict[str, bytes], int]:
    """(content by key, rows in error) through the index; all rows are in error where the shard is refused."""
    try:
        shard = Shard(case.path)
    except DataError as error:
        named(error, case)
        return {}, len(case.base.rows)
    read, wrong = {}, 0
    for i in range(len(shard)):
        try:
            key, value = content(shard.example(i))
            read[key] = value
        except DataError as error:
            named(error, case)
            wrong += 1
    return read, wrong


def streamed(case: Case) -> tuple[dict[str, bytes], bool]:
    """(content by key, whether it ended in an error), without the index."""
    read: dict[str, bytes] = {}
    try:
        read.update(content(example) for example in stream(str(case.path)))
    except DataError as error:
        named(error, case)
        return read, True
    return read, False


def loaded(case: Case) -> int:
    """Rows read and rows named bad of one epoch through the loader; 0 where it refuses the shard, or every row."""
    try:
        rows = Shards(str(case.path.parent)).open(nowhere)
        size = len(rows)
        feed = Feed(rows, positives=9, negatives=9, answers=False)
        settings = {"batch": size, "sub_batch": size, "seed": 1, "budget": 64, "stop": 1}
        with Loader([rows], [feed], Contents(), Limits(), on_error="skip", **settings) as loader:  # type: ignore[arg-type]
            ((plan, chunks),) = loader
            failed = {
                plan.slots[c.entries[s]][0] for c, got in zip(plan.chunks, chunks, strict=True) for s in got.failed
            }
            bad = loader.skipped
    except DataError as error:
        named(error, case)
        return 0
    assert set(bad.keys) == {b.key for b in plan.bad} | {plan.keys[q] for q in failed}, case.what
    assert bad.sources.get(rows.name, 0) == len(plan.bad) + len(failed)
    return len(plan.keys) + len(plan.bad)


def held(case: Case) -> str:
    """Reads the shard in every way; returns what became of it."""
    sound = dict(case.base.rows)
    read, wrong = at_random(case)
    faults = list(verify([case.path])) if case.indexed else []
    assert all(f.shard == str(case.path) for f in faults)
    different = {key for key in read if read[key] != sound.get(key)}
    assert not (different and case.shows), f"{case.what}: {sorted(different)}"
    assert faults or not different or not case.indexed, f"{case.what}: {sorted(different)}, and the verifier is content"
    # A bare tar's rows are whatever stands in it; of a tar with its index, all are read or named.
    assert len(read) + wrong == len(sound) or not case.indexed or faults, case.what
    assert loaded(case) in (0, len(sound)) or not case.indexed or faults, case.what
    unindexed, broken = streamed(case)
    if not case.indexed:
        index_path(case.path).unlink(missing_ok=True)
        assert broken or unindexed == read, f"{case.what}: a stream and its index give different rows"
        # Bytes that are gone as a whole sample leave a sound tar: only an index can tell that there was one more.
        assert broken or len(read) == len(sound) or "drop" in case.what, f"{case.what}: rows lost in silence"
        assert bool(list(verify([case.path]))) >= broken, case.what
    return "equal" if read == sound else "refused" if not read else "in part" if not different else "different"


@pytest.fixture
def watchdog() -> Iterator[None]:
    """A hang ends the process with a traceback of where it hangs."""
    faulthandler.dump_traceback_later(HANGS_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("tar", {"refused": 300}),
        ("bare tar", {"refused": 250, "equal": 10}),
        ("index", {"refused": 50}),
    ],
)
def test_a_thousand_damaged_shards_are_read_alike_or_named(
    kind: str, least: Mapping[str, int], bases: dict[str, Base], tmp_path: Path, watchdog: None
) -> None:
    names = [name for name, (_, count) in BASES.items() for _ in range(count)]
    assert len(names) == CASES
    ends: Counter[str] = Counter()
    for number, name in enumerate(names):
        if KINDS[number % len(KINDS)] == kind:
            case = damaged(bases[name], number, tmp_path / str(number))
            try:
                ends[held(case)] += 1
            except Exception as error:
                raise AssertionError(f"case {number} of {name}: {case.what}: {error!r}") from error
            shutil.rmtree(case.path.parent)
    # The test would say little if all cases ended alike.
    assert sum(ends.values()) == CASES * KINDS.count(kind) // len(KINDS)
    assert all(ends[end] >= count for end, count in least.items()), ends
