"""A long search that a kill does not undo: windows of queries, each a file in the step's folder, ranks taking turns.

All ranks must see the folder, and give the same query and docs; nobody holds the results in memory.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from ..data.types import DataError
from ..eval.approximate import Approximate, Index, build, opened, recall
from ..eval.matrix import Matrix
from ..eval.nearest import Exact, Hidden, nearest
from .gather import Group
from .guard import Restart, Signals
from .leave import everyone, together

WINDOW = 8192  # queries a file
FOLDER = "search"  # in the step's folder, while it is made
_LATE_S = 60.0  # a shared folder may show another host's file so late

Advance = Callable[[int], None]
Search = Callable[[slice], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Windows:
    """What was found for `count` queries: iterate for (start, index (n, k) int64, scores (n, k) float32), in order."""

    folder: Path
    count: int
    k: int
    window: int

    def __len__(self) -> int:
        return -(-self.count // self.window)

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        from safetensors.torch import load_file

        for start in range(0, self.count, self.window):
            found = load_file(_path(self.folder, start))
            yield start, found["index"].long(), found["scores"]

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(index, scores) of the queries [start, stop), read from the windows that they lie in."""
        from safetensors import safe_open

        parts = []
        for begin in range(start - start % self.window, stop, self.window):
            some = slice(max(start - begin, 0), min(stop - begin, self.window))
            with safe_open(_path(self.folder, begin), framework="pt") as file:
                parts.append([file.get_slice(name)[some] for name in ("index", "scores")])
        index, scores = (torch.cat(list(part)) for part in zip(*parts, strict=True))
        return index.long(), scores

    def forget(self) -> None:
        """The files go: what they told is used."""
        shutil.rmtree(self.folder, ignore_errors=True)


def searched(
    out: Path,
    query: Matrix,
    docs: Matrix,
    k: int,
    how: Exact | Approximate,
    group: Group,
    signals: Signals,
    hidden: Hidden | None = None,
    advance: Advance = lambda done: None,
    *,
    about: str = "",
) -> Windows:
    """The top k of every query (Q, D) among docs (N, D), by all ranks of `group`. Collective.

    out: the step's folder; a search of the same inputs that was ended goes on there. hidden: as `nearest` asks it.
    about: what `hidden` depends on, beyond the vectors: another one begins anew. advance: told of queries done, on
    every rank. Raises Restart between windows where a rank was asked to end.
    """
    folder = out / FOLDER
    begun = together(group, lambda: _begin(folder, query, docs, k, how, about) if group.rank == 0 else ("", []))
    heard = everyone(group, begun)[0]
    assert isinstance(heard, list)
    digest, done = str(heard[0]), {int(start) for start in heard[1]}
    search = _search(folder, query, docs, k, how, group, hidden, digest) if len(done) * WINDOW < len(query) else None
    left = [start for start in range(0, len(query), WINDOW) if start not in done]
    advance(len(query) - sum(min(WINDOW, len(query) - start) for start in left))
    for begin in range(0, len(left), group.size):
        _pause(group, signals, folder)
        turn = left[begin : begin + group.size]
        if search is not None:
            together(group, partial(_window, folder, turn[group.rank : group.rank + 1], len(query), search, digest))
        advance(sum(min(WINDOW, len(query) - start) for start in turn))
    windows = Windows(folder, len(query), k, WINDOW)
    together(group, lambda: _wait(windows, digest) if group.rank == 0 else None)
    return windows


def _begin(
    folder: Path, query: Matrix, docs: Matrix, k: int, how: Exact | Approximate, about: str
) -> tuple[str, list[int]]:
    """(digest of the inputs, windows that are there). What an earlier search of other inputs left is removed."""
    told = {"k": k, "window": WINDOW, "how": type(how).__name__, **asdict(how), "about": about}
    digest = blake2b(json.dumps(told).encode(), digest_size=16)
    for vectors in (query, docs):
        digest.update(_fingerprint(vectors))
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for path in folder.glob("*.safetensors"):
        if path.name.startswith(".") or not _kept(path, digest.hexdigest()):
            path.unlink()
        else:
            done.append(int(path.stem))
    return digest.hexdigest(), sorted(done)


def _fingerprint(vectors: Matrix) -> bytes:
    """Of every number: vectors of another model must not be mistaken for these."""
    digest = blake2b(repr((tuple(vectors.shape), str(vectors[:0].dtype))).encode(), digest_size=16)
    for start in range(0, len(vectors), WINDOW):
        digest.update(vectors[start : start + WINDOW].contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.digest()


def _search(
    folder: Path,
    query: Matrix,
    docs: Matrix,
    k: int,
    how: Exact | Approximate,
    group: Group,
    hidden: Hidden | None,
    digest: str,
) -> Search:
    """What finds a window of queries. Collective where an index is built: rank 0 builds, the others read it."""
    if isinstance(how, Exact):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        near = _close(docs, device)
        return lambda some: nearest(
            query[some], near, k, hidden=_from(hidden, some), device=device, rows=how.rows, columns=how.columns
        )
    path = folder / "index.faiss"
    built = together(group, lambda: build(docs, how, path, digest) if group.rank == 0 else None)
    index = together(group, lambda: built or _opened(path, docs, how, digest))
    return lambda some: index.nearest(query[some], k, hidden, some.start)


def _opened(path: Path, docs: Matrix, how: Approximate, digest: str) -> Index:
    """The index that rank 0 has built. Raises DataError where it does not come."""
    end = time.monotonic() + _LATE_S
    while (index := opened(docs, how, path, digest)) is None:
        if time.monotonic() > end:
            raise DataError(f"{path}: rank 0 has written it, and it is not here; all ranks need one shared folder")
        time.sleep(0.1)
    return index


def _close(docs: Matrix, device: torch.device) -> Matrix:
    """The documents on the device, where they take less than half of what is free; else their tiles go there."""
    if device.type != "cuda":
        return docs
    free, _ = torch.cuda.mem_get_info(device)
    return docs[:].to(device) if docs.shape[0] * docs.shape[1] * 4 < free // 2 else docs


def _from(hidden: Hidden | None, some: slice) -> Hidden | None:
    """The mask for queries that are numbered from the window's first."""
    if hidden is None:
        return None
    return lambda rows, columns: hidden(slice(some.start + rows.start, some.start + rows.stop), columns)


def _pause(group: Group, signals: Signals, folder: Path) -> None:
    """Raises Restart on all ranks where one of them was asked to end. Collective."""
    asked = [str(a) for a in everyone(group, signals.asked) if a]
    if asked:
        raise Restart(f"asked to end by {asked[0]}; what is found so far is kept in {folder}")


def _path(folder: Path, start: int) -> Path:
    return folder / f"{start:012d}.safetensors"


def _window(folder: Path, starts: list[int], count: int, search: Search, digest: str) -> None:
    """At most one window, searched and kept."""
    from safetensors.torch import save_file

    for start in starts:
        index, scores = search(slice(start, min(start + WINDOW, count)))
        path = _path(folder, start)
        aside = path.with_name(f".{path.name}.part")
        save_file({"index": index.int(), "scores": scores}, aside, metadata={"inputs": digest})
        aside.replace(path)


def _kept(path: Path, digest: str) -> bool:
    """Whether the window is whole, and of these inputs."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("inputs") == digest
    except (OSError, SafetensorError):
        return False


def _wait(windows: Windows, digest: str) -> None:
    """Until every rank's windows are seen here. Raises DataError where they do not come."""
    end = time.monotonic() + _LATE_S
    for start in range(0, windows.count, windows.window):
        path = _path(windows.folder, start)
        while not _kept(path, digest):
            if time.monotonic() > end:
                raise DataError(f"{path}: another rank has written it, and it is not here; all need one shared folder")
            time.sleep(0.1)


def found_share(
    windows: Windows, query: Matrix, docs: Matrix, sample: int = 1000, hidden: Hidden | None = None, runs: int = 20
) -> float:
    """Recall of the windows against an exact search of `sample` queries, in `runs` stretches over all of them."""
    size = max(min(sample, windows.count) // runs, 1)
    shares = []
    for first in sorted({round(i * max(windows.count - size, 0) / max(runs - 1, 1)) for i in range(runs)}):
        some = slice(first, min(first + size, windows.count))
        true = nearest(query[some], docs, windows.k, hidden=_from(hidden, some))
        shares.append(recall(windows.rows(some.start, some.stop), true))
    return fmean(shares)
