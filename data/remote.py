"""Shards behind a URL or a command: which there are, and bringing them into the cache, whole or not at all.

Addresses may hold tokens: what is told or logged of them goes through `redacted`.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from .addresses import redacted, unsigned
from .cache import GB, Cache, Held, Lock
from .catalogue import NAME, Catalogue, Columns, Entry, user_cache
from .index import Index, index_path
from .scan import build_index, opened_index
from .shards import download, expanded
from .types import DataError, digest

_WAITS_S = (0.5, 2.0, 8.0)  # before the second, third and fourth attempt
_SCHEMES = ("http", "https", "ftps", "sftp", "scp", "gs", "hf", "ais", "file")  # that webdataset opens
_BRACES = re.compile(r"\{[^{}\s]*(?:\.\.|,)[^{}\s]*\}")
_STOP = r"\s'\"?#|;&<>"  # what ends a path in a URL or a command
_TAR = re.compile(rf"[^/{_STOP}]+\.tar(?=[{_STOP}]|$)")
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)  # a shell leaves these as they are
_TOLD_S = 30.0
_WINDOW = 64  # shards that training reads at one time, unless its stage says otherwise
_COUNTED = "counted"  # the folder of shards that were brought before their digest was known

log = logging.getLogger(__name__)


class _AbsentError(Exception):
    """There is no such file there, or nothing tells that there is."""


@dataclass(frozen=True)
class Remote:
    """template: the address of any file, with {} where its name stands. pattern: the names of the shards, in braces; ""
    for those of the catalogue there. cache: where they are brought to, in a folder of this template."""

    template: str = field(repr=False)
    pattern: str
    cache: Cache

    @staticmethod
    def of(address: str, folder: str, cache: str, cache_gb: float) -> Remote:
        """Raises DataError for an address that says neither which shards nor where their catalogue is."""
        template, pattern = _split(address, folder)
        scheme = template.partition(":")[0]
        if scheme != "pipe" and scheme not in _SCHEMES:
            raise DataError(
                f"{redacted(address)}: {scheme}:// is not read directly; name a command that writes a shard to its "
                f'output, as in "pipe:aws s3 cp s3://bucket/shard-{{000000..000999}}.tar -"'
            )
        if not cache_gb > 0:
            raise DataError(f"{redacted(address)}: cache_gb={cache_gb}; expected more than 0, enough for many shards")
        return Remote(template, pattern, Cache(Path(cache) if cache else user_cache("shards"), int(cache_gb * GB)))

    @property
    def name(self) -> str:
        """The last word before the shards' names."""
        before = redacted(self.template.partition("{}")[0]).rstrip("/")
        return re.split(r"[/\s'\":]", before)[-1] or "remote"

    @property
    def place(self) -> str:
        """The folder of its shards in the cache: the same for another token."""
        return digest(unsigned(self.template))[:16]

    def address(self, name: str) -> str:
        """Of the file `name`. Raises DataError for a name that a command would misread."""
        if not self.template.startswith("pipe:"):
            return self.template.replace("{}", quote(name, safe="/%:@=+,~!$()*;"), 1)
        if not _PLAIN.fullmatch(name):
            raise DataError(f"{self.told(NAME)}: a shard is called {name!r}; a command takes letters, digits and ./_-")
        return self.template.replace("{}", name)

    def told(self, name: str) -> str:
        told = redacted(self.template.replace("{}", name))
        return told if name in told else f"{told} ({name})"  # where it stands in a query

    def held(self, entry: Entry) -> Held:
        """The shard in the cache, brought where it is not there. Raises DataError where it cannot be, or is another."""

        def right(path: Path) -> bool:
            if not (path.is_file() and path.stat().st_size == entry.bytes and index_path(path).is_file()):
                return False
            try:
                return bool(Index.read(index_path(path)).about["tar_digest"] == entry.tar_digest)
            except DataError:
                return False

        def fill(path: Path) -> None:
            counted = self.cache.top / self.place / _COUNTED / entry.name
            if right(counted):
                index_path(counted).replace(index_path(path))
                counted.replace(path)
            else:
                self._tried(entry.name, lambda: self._whole(entry, path))

        return self.cache.hold(self._name(entry), entry.bytes, right, fill, sum(_WAITS_S))

    def again(self, entry: Entry) -> Held | None:
        """The shard in the cache, if it is still there since `held`."""
        return self.cache.again(self._name(entry))

    def _name(self, entry: Entry) -> str:
        # With its digest: a shard that was packed anew does not wait until nobody reads the old one.
        return f"{self.place}/{entry.tar_digest}/{entry.name}"

    def _whole(self, entry: Entry, path: Path) -> None:
        found = download(self.address(entry.name), path)
        if found != entry.tar_digest:
            size = path.stat().st_size
            wrong = "cut short" if size < entry.bytes else "not the shard that the catalogue lists"
            raise DataError(
                f"{wrong}: {size:,} bytes of digest {found}, expected {entry.bytes:,} of {entry.tar_digest}"
            )
        try:
            download(self.address(f"{entry.name}.index"), index_path(path))
            if Index.read(index_path(path)).about["tar_digest"] == found:
                return
        except (DataError, OSError):
            pass  # built here then, to the same bytes
        index_path(path).unlink(missing_ok=True)
        build_index(path)

    def unknown(self, name: str) -> Entry:
        """What the catalogue will say of a shard, for which it is brought once."""

        def right(path: Path) -> bool:
            return path.is_file() and index_path(path).is_file()

        def fill(path: Path) -> None:
            def once() -> None:
                download(self.address(name), path)
                try:
                    build_index(path)
                except DataError as error:
                    raise DataError(str(error).replace(f"{path}: ", "")) from None

            self._tried(name, once)

        held = self.cache.hold(f"{self.place}/{_COUNTED}/{name}", 0, right, fill, sum(_WAITS_S))
        return Entry.of(name, opened_index(Path(held)))

    def _tried(self, name: str, once: Callable[[], None]) -> None:
        for attempt, wait in enumerate((*_WAITS_S, None)):
            try:
                once()
                return
            except (DataError, OSError) as error:
                said, wrong = redacted(str(error)), isinstance(error, DataError)
            if wait is None:
                break
            log.warning("%s: attempt %s failed (%s); again in %g s", self.told(name), attempt + 1, said, wait)
            time.sleep(wait)
        if self._on_web and "exit 22" in said:
            said = f"{said}, HTTP {_status(self.address(name))}"
        if wrong and name != NAME:
            asked = f"Is its catalogue ({self.told(NAME)}) of the same shards?"
        elif re.search(r"no such host|no connection|too slow|nothing came|HTTP (?:0|5\d\d)\b", said):
            asked = "Is the host up, and can it be reached from here?"
        else:
            asked = "Does it exist, and may you read it?"
        raise DataError(
            f"{self.told(name)}: cannot be brought here in {len(_WAITS_S) + 1} attempts: {said}. {asked} Once that is "
            f"mended, the same command goes on"
        )

    def opened(self, source: str) -> Catalogue:
        """The catalogue of these shards: the one that lies beside them, else one that is built by bringing each shard
        once; kept with the cache. Raises DataError for equal keys, and where there is neither catalogue nor pattern."""
        home = self.cache.top / "catalogues" / digest(unsigned(self.template), self.pattern)[:16]
        home.mkdir(parents=True, exist_ok=True)
        with Lock(home / "lock", alone=True):
            there, why = self._published(home)
            kept = _read(home / NAME, self.cache.top / self.place)
            log.log(
                logging.INFO if there or kept or why == "HTTP 404" else logging.WARNING,
                "%s: %s", self.told(NAME), f"no catalogue there ({why})" if why else "read",
            )  # fmt: skip
            if there is None and kept is not None:
                return self._fitting(kept)
            names = self._names(there, why)
            if there is not None and names == there.names():
                found = there
            else:
                found = self._built(names, [c for c in (there, kept) if c is not None])
            _checked(found, source)
            if kept is not None and kept.content == found.content:
                return self._fitting(kept)
            return self._fitting(Catalogue(self.cache.top / self.place, found.arrays, found.content).write(home / NAME))

    def _fitting(self, catalogue: Catalogue) -> Catalogue:
        """The catalogue; a cache that is too small for it is told of, for training may end in the midst."""
        whole, count = int(catalogue.arrays["bytes"].sum()), len(catalogue.arrays["bytes"])
        needed = whole * min(1.0, _WINDOW / count)
        if self.cache.limit < needed:
            log.warning(
                "%s: the cache holds %.3g GB, less than %s of its shards (%.3g GB); a stage reads from as many at one "
                "time as its window has, and fails without room for them: raise cache_gb, or lower the stage's window",
                self.told("*"), self.cache.limit / GB, min(_WINDOW, count), needed / GB,
            )  # fmt: skip
        return catalogue

    def _published(self, home: Path) -> tuple[Catalogue | None, str]:
        """The catalogue beside the shards; None, and why, if there is none. Raises DataError where that is not sure: to
        bring all shards instead would be dear."""
        with tempfile.TemporaryDirectory(dir=home) as folder:
            file = Path(folder, NAME)
            try:
                self._tried(NAME, lambda: self._listing(file))
            except _AbsentError as absent:
                return None, str(absent)
            return Catalogue.read(file, file.parent), ""

    def _listing(self, file: Path) -> None:
        """Brings the catalogue. Of a command nobody knows what its failure means: most often that there is none."""
        try:
            download(self.address(NAME), file)
            Catalogue.read(file, file.parent)
        except (DataError, OSError) as error:
            said = redacted(str(error)).replace(f"{file}: ", "")
            if not self._on_web:
                if re.search(r"nothing came|exit 255\b", said):  # the latter: ssh without a connection
                    raise OSError(said) from None
                raise _AbsentError(said) from None
            if "exit 22" in said and _status(self.address(NAME)) == 404:
                raise _AbsentError("HTTP 404") from None
            raise type(error)(said) from None

    @property
    def _on_web(self) -> bool:
        return re.match(r"(?i)https?://", self.template) is not None

    def _names(self, there: Catalogue | None, why: str) -> list[str]:
        if self.pattern:
            names = sorted(set(expanded(self.pattern)), key=lambda n: n.split("/"))
        elif there is not None:
            names = there.names()
        else:
            raise DataError(
                f"{self.told(NAME)}: no catalogue there ({why}), so the shards are not known; name them, as in "
                f"shard-{{000000..000999}}.tar, or put the folder's {NAME} beside them"
            )
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or path.suffix != ".tar":
                raise DataError(f"{self.told(NAME)}: a shard is called {name!r}; expected NAME.tar below that folder")
        return names

    def _built(self, names: list[str], known: list[Catalogue]) -> Catalogue:
        """Entries of those that are known, the first one first; the other shards are brought here and counted."""
        places = {name: (c, i) for c in reversed(known) for i, name in enumerate(c.names())}
        missing = sum(name not in places for name in names)
        if missing:
            log.warning(
                "%s: %s shards are in no catalogue there, so each of them is brought here, whole, to count its rows; "
                "end this and put the folder's %s beside them to spare that", self.told("*"), f"{missing:,}", NAME,
            )  # fmt: skip
        columns, told, done = Columns(), time.monotonic(), 0
        for name in names:
            if name in places:
                catalogue, i = places[name]
                columns.add(catalogue.entry(i))
                continue
            columns.add(self.unknown(name))
            done += 1
            if time.monotonic() - told > _TOLD_S:
                log.info("%s: counted %s of %s shards", self.told("*"), f"{done:,}", f"{missing:,}")
                told = time.monotonic()
        return Catalogue.of(self.cache.top / self.place, columns)


def _split(address: str, folder: str) -> tuple[str, str]:
    """(template, pattern) of an address as users write it."""
    if "{}" in address:
        return address, folder
    if folder and not address.startswith("pipe:"):
        path, rest = _ended(address)
        address = f"{path.rstrip('/')}/{folder}{rest}"
    braces = list(_BRACES.finditer(address))
    if braces:
        start = max(address.rfind(c, 0, braces[0].start()) for c in "/ \t'\"") + 1
        stop = re.compile(f"[{_STOP}]|$").search(address, braces[-1].end())
        assert stop is not None
        return f"{address[:start]}{{}}{address[stop.start() :]}", address[start : stop.start()]
    tars = list(_TAR.finditer(address))
    if tars:
        start, end = tars[-1].span()
        return f"{address[:start]}{{}}{address[end:]}", address[start:end]
    if address.startswith("pipe:") or "{" in address:
        raise DataError(
            f"{redacted(address)}: which shards? Write {{}} where the command takes a file's name, or name the shards, "
            f"as in shard-{{000000..000999}}.tar"
        )
    path, rest = _ended(address)
    return f"{path.rstrip('/')}/{{}}{rest}", ""


def _ended(address: str) -> tuple[str, str]:
    """A URL's path, and its query."""
    found = re.search(r"[?#]", address)
    return (address[: found.start()], address[found.start() :]) if found else (address, "")


def _read(file: Path, root: Path) -> Catalogue | None:
    try:
        return Catalogue.read(file, root)
    except (DataError, OSError):
        return None


def _checked(catalogue: Catalogue, source: str) -> Catalogue:
    twins = catalogue.twins()
    if twins is not None:
        first, second = (catalogue.name(i) for i in twins)
        raise DataError(
            f"source {source!r}: {second} and {first} give equal keys; pack one of them with another prefix or source "
            f"name"
        )
    return catalogue


def _status(url: str) -> int:
    """The HTTP status of a URL after redirections, asked as webdataset asks; 0 without an answer."""
    args = ["curl", "-sL", "-r", "0-0", "--connect-timeout", "30", "-m", "60", "-o", os.devnull, "-w", "%{http_code}"]
    told = subprocess.run([*args, url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout
    return int(told) if told.isdigit() else 0
