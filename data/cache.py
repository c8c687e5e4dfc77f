"""A folder of shards from elsewhere that keeps below a size: those that were used longest ago make room.

Any number of processes share it. A shard's lock file is held shared by whoever has examples of it, alone by whoever
brings or removes it; its time is when the shard was last used. A shard that is merely open may be removed: what is
mapped stays readable, and the process reads on from there, or brings it again.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .index import index_path
from .types import DataError

_WAIT_S = 60.0  # for room that other processes hold
_TOUCHED_S = 1.0  # a use is noted down no more often
_LOCK = ".lock"
_PART = re.compile(r"\.(.+\.tar)\.[0-9a-f]{12}\.part")
GB = 1e9

log = logging.getLogger(__name__)


class Lock:
    """A lock (flock) on a file, made where it is missing: held until closed or forgotten, or the process ends.

    Raises BlockingIOError where `wait` is False and another has it."""

    def __init__(self, path: Path, *, alone: bool, wait: bool = True) -> None:
        import fcntl

        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class Held(str):
    """The path of a file in the cache, which is not removed while this string lives. Media are addressed by it, so that
    an example keeps its shard. In another process it is a plain string."""

    lock: Lock

    def __new__(cls, path: Path, lock: Lock) -> Held:
        held = super().__new__(cls, path)
        held.lock = lock
        return held

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str.__str__(self),)


@dataclass(frozen=True)
class Cache:
    """The folder `top`, of at most `limit` bytes of shards and their indexes."""

    top: Path
    limit: int

    def hold(
        self, name: str, size: int, right: Callable[[Path], bool], fill: Callable[[Path], None], news_s: float = 0.0
    ) -> Held:
        """The file `name`, brought by `fill` (which is given a path to write to, index beside) where it is missing or
        not `right`; by one process, while the others wait. size: bytes, 0 where that is not known before. Where `fill`
        failed while we waited, or less than `news_s` before, it is not tried again.

        Raises DataError where there is no room for it, and what `fill` raises.
        """
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        at, end, since = _lock_of(path), 0.0, time.time() - news_s
        while True:
            with suppress(BlockingIOError), Lock(at, alone=True, wait=False):
                if not right(path):
                    _failed(at, since)
                    at.write_text("")
                    os.utime(at)
                    self._bring(path, size, fill)
            try:
                lock = Lock(at, alone=False, wait=False)
            except BlockingIOError:  # somebody is bringing it
                end = 0.0
            else:
                if right(path):
                    os.utime(at)
                    return Held(path, lock)
                lock.close()
                end = end or time.monotonic() + _WAIT_S
                if time.monotonic() > end:
                    raise DataError(
                        f"{path}: is damaged, and being read; end the processes that read it, and delete it"
                    )
            time.sleep(0.02)

    def again(self, name: str) -> Held | None:
        """The file `name`, held, if it is there: for one that was right before."""
        path = self.top / name
        try:
            lock = Lock(_lock_of(path), alone=False, wait=False)
            if time.time() - _used(path) > _TOUCHED_S:
                os.utime(_lock_of(path))
        except OSError:  # somebody is removing it, or the whole cache is gone
            return None
        return Held(path, lock) if path.is_file() else None

    def _bring(self, path: Path, size: int, fill: Callable[[Path], None]) -> None:
        name = glob.escape(path.name)
        for stale in (path, *(p for dots in (".", "..") for p in path.parent.glob(f"{dots}{name}.*.part*"))):
            _removed(stale)  # what a killed download left
        aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        try:
            if size:
                self._room(path, size, lambda: _reserved(aside, size))
            try:
                fill(aside)
            except DataError as error:
                _lock_of(path).write_text(json.dumps([time.time(), str(error)]))
                raise
            whole = aside.stat().st_size + index_path(aside).stat().st_size
            self._room(path, whole, lambda: index_path(aside).replace(index_path(path)))
            aside.replace(path)
        finally:
            _removed(aside)

    def _room(self, path: Path, size: int, then: Callable[[], object]) -> None:
        """Removes shards until `size` bytes for `path` fit, and does `then` before anyone else may look."""
        if size > self.limit:
            raise DataError(
                f"{path.name}: {size:,} bytes, but the cache {self.top} may hold {self.limit:,}; raise cache_gb to "
                f"hold the shards that are read at one time (64 of each source, and as many again)"
            )
        end, told = time.monotonic() + _WAIT_S, False
        while True:
            with Lock(self.top / _LOCK, alone=True):
                if self._evicted(size, path):
                    then()
                    return
            if time.monotonic() > end:
                raise DataError(
                    f"{path.name}: no room for its {size:,} bytes in {self.top} ({self.limit:,}): all in it is being "
                    f"read; raise cache_gb to hold the shards that are read at one time (64 of each source, and as "
                    f"many again), lower the stage's window, or pack smaller ones"
                )
            if not told:
                log.warning("%s: full of shards that are being read; waiting. Raise cache_gb", self.top)
                told = True
            time.sleep(0.05)

    def _evicted(self, size: int, coming: Path) -> bool:
        """Whether `size` bytes fit, after removing what nobody reads, the longest unused first."""
        over, found = size - self.limit, list[tuple[float, Path, int]]()
        for folder, _, names in os.walk(self.top):
            for name in names:
                path = Path(folder, name)
                if name.endswith(".tar"):
                    total = _bytes(path) + _bytes(index_path(path))
                    over += total
                    found.append((_used(path), path, total))
                elif name.endswith(".part") and not name.startswith(f".{coming.name}."):
                    over += _left(path)
        for _, path, total in sorted(found):
            if over <= 0:
                break
            try:
                with Lock(_lock_of(path), alone=True, wait=False):
                    _removed(path)
                    over -= total
            except BlockingIOError:
                continue
        return over <= 0


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + _LOCK)


def _failed(lock: Path, since: float) -> None:
    """Raises the DataError that another process met after `since`, for those that waited for the same file."""
    try:
        when, said = json.loads(lock.read_text())
    except (OSError, ValueError):
        return
    if when >= since:
        raise DataError(said)


def _used(path: Path) -> float:
    try:
        return _lock_of(path).stat().st_mtime
    except OSError:
        return 0.0


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _left(part: Path) -> int:
    """Bytes of an unfinished file; what a killed process left is removed."""
    found = _PART.fullmatch(part.name)
    if found is None:  # an index that is being built
        return _bytes(part)
    try:
        with Lock(_lock_of(part.with_name(found[1])), alone=True, wait=False):
            _removed(part)
            return 0
    except BlockingIOError:
        return _bytes(part)


def _reserved(path: Path, size: int) -> None:
    """Of its later length from the start, so that others count it."""
    with path.open("wb") as file:
        file.truncate(size)


def _removed(path: Path) -> None:
    path.unlink(missing_ok=True)
    index_path(path).unlink(missing_ok=True)
