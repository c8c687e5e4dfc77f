"""Verifying shards: every fault of every sample, by shard and key. Reads and decodes everything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .index import Index, full_digest, index_path, sizes
from .parts import Kind, probe
from .referred import Referred, Roots
from .rows import referred
from .scan import rows
from .tars import Sample, Tell
from .types import Audio, Blob, DataError, Image, Part, Video

_FRAMES = 16  # of a clip, decoded at a time


@dataclass(frozen=True)
class Fault:
    """What is wrong with one sample, or, with an empty key, with the shard as a whole."""

    shard: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.shard}: {f'sample {self.key}: ' if self.key else ''}{self.message}"


def verify(paths: Iterable[Path | str]) -> Iterator[Fault]:
    """Every fault of these shards, as they are found: of the tar, the rows, the media (each is decoded) and the index.

    Yields nothing where all is sound. A missing index is no fault: it is built at the first reading.
    """
    seen: set[str] = set()  # what the shards refer to, each once
    for path in map(Path, paths):
        if path.is_file():
            yield from _verify(path, seen)
        else:
            yield Fault(str(path), "", "no such shard")


def _verify(path: Path, seen: set[str]) -> Iterator[Fault]:
    found: list[Fault] = []

    def fault(key: str, message: str) -> None:
        found.append(Fault(str(path), key, message))

    index = _index(path, fault)
    expected = {index.key(i): i for i in range(len(index))} if index else {}
    count = 0
    with path.open("rb") as file:
        for sample, row, kinds in rows(file, str(path), fault):
            count += 1
            recorded = _recorded(sample, index, expected.pop(sample.key, None), fault) if index else None
            for name, kind in kinds.items():
                _medium(sample, name, kind, recorded, fault)
            _elsewhere(path.parent, sample.key, referred(row, ""), seen, fault)
            yield from found
            found.clear()
    if not count and not found:
        fault("", "no samples in it; delete it or pack it anew")
    broken = {f.key for f in found}
    for key in expected.keys() - broken:
        fault(key, "is in the index but not, or not whole, in the tar; delete the index and verify again")
    yield from found


def _index(path: Path, fault: Tell) -> Index | None:
    """The index beside the tar, if it is there and is this tar's."""
    beside = index_path(path)
    if not beside.exists():
        return None
    try:
        index = Index.read(beside)
        index.arrays  # noqa: B018  (read here: whether its bytes add up)
    except DataError as error:
        fault("", str(error))
        return None
    if index.about["tar_digest"] != full_digest(path):
        fault(
            "",
            f"{beside.name} is the index of another tar, or the tar was changed; delete the index or restore the tar",
        )
        return None
    return index


def _recorded(sample: Sample, index: Index, i: int | None, fault: Tell) -> Mapping[str, Part] | None:
    """What the index says of the sample's media."""
    assert sample.json is not None
    if i is None or index.json_at(i) != (sample.json.offset, len(sample.json.data)):
        fault(sample.key, "is not where the index says; delete the index, it is built again from the tar")
        return None
    return index.media(i, "")


def _medium(sample: Sample, name: str, kind: Kind, recorded: Mapping[str, Part] | None, fault: Tell) -> None:
    """Probes and decodes one medium, and holds its sizes against the index."""
    member = sample.media[name]
    try:
        part = probe(kind, Blob(member.data), name)
        _decode(part, name)
    except Exception as error:  # a codec may raise anything on damaged bytes, and the other samples want verifying
        fault(sample.key, str(error) if isinstance(error, DataError) else f"{name}: cannot be decoded ({error!r})")
        return
    if recorded is None:
        return
    told = recorded.get(name)
    if told is None:
        fault(sample.key, f"{name} is not in the index; delete the index, it is built again from the tar")
    elif sizes(told) != sizes(part):
        said, seen = sizes(told)[1:], sizes(part)[1:]
        fault(
            sample.key,
            f"{name}: the index has (width, height, frames, seconds, rate) {said}, the medium {seen}; "
            f"delete the index, it is built again from the tar",
        )


def _elsewhere(folder: Path, key: str, found: list[Referred], seen: set[str], fault: Tell) -> None:
    """Digests, probes and decodes the media that a row refers to; those that another row named before, no more."""
    try:
        roots = Roots.read(folder) if found else None
        for one in found:
            assert roots is not None
            path = roots.path(one, "a row")
            name = f"{path.absolute()} {one}"
            if name in seen:
                continue
            seen.add(name)
            if wrong := roots.faults(one, seen):
                fault(key, wrong)
                continue
            told = one.part(path)
            part = probe(one.kind, Blob(told.blob.read()), f"{path}, {one.length:,} bytes at {one.offset:,}")  # type: ignore[union-attr]
            _decode(part, str(path))
            if sizes(part) != sizes(told):
                fault(key, f"{path}: the row has sizes {sizes(told)[1:]}, the medium {sizes(part)[1:]}; make it again")
    except Exception as error:  # as above: the other samples want verifying
        fault(key, str(error) if isinstance(error, DataError) else f"a medium elsewhere cannot be decoded ({error!r})")


def _decode(part: Part, where: str) -> None:
    match part:
        case Image():
            from .parts import image

            image.decode(part, where)
        case Video():
            from .parts import video

            for first in range(0, part.frames, _FRAMES):
                video.decode(part, range(first, min(first + _FRAMES, part.frames)), where)
        case Audio():
            from .parts import audio

            audio.decode(part, where, part.rate)
