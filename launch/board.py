"""Messages between the processes of a run: small JSON values by key, over torch's TCPStore.

The store lives with the process that starts the ranks, not with rank 0, so that a rank's death takes no message along.
"""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .facts import installed
from .place import Place
from .words import RecipeError

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

PACKAGES = ("torch", "transformers", "deepspeed")  # that must be the same on every rank
POLL_S = 0.2
SHOWN = 20  # differences that are told
JOIN_S = 900.0  # a cluster may start the tasks of one step minutes apart
TRY_S = 5.0  # of one try to connect


@dataclass(frozen=True)
class Board:
    """Named messages of one group of processes."""

    store: Store

    def put(self, key: str, value: Any) -> None:
        self.store.set(key, json.dumps(value))

    def look(self, key: str) -> Any:
        """The message, or None while there is none."""
        return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def add(self, key: str) -> int:
        """One more under `key`: 1 for who comes first."""
        return int(self.store.add(key, 1))

    def wait(self, key: str, timeout_s: float | None = None) -> Any:
        """The message, once it is there; None after timeout_s. Waits in Python, so that a signal is heard."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while (found := self.look(key)) is None and (end is None or time.monotonic() < end):
            time.sleep(POLL_S)
        return found

    def under(self, name: str) -> Board:
        """A board of its own on the same store."""
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        return Board(PrefixStore(name, self.store))


def opened() -> tuple[Board, int]:
    """A board that this process serves on this host alone, and its port."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=JOIN_S), wait_for_workers=False)
    return Board(store), store.port


def joined(place: Place, serve: bool = False) -> Board:
    """The board where the processes of `place` meet; `serve`: by this process."""
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    end = time.monotonic() + JOIN_S
    while True:  # a try at a time: a signal is only heard between them
        try:
            wait = timedelta(seconds=JOIN_S if serve else TRY_S)
            store = TCPStore(place.address, place.port, None, serve, wait, wait_for_workers=False)
        except DistError as error:
            if not serve and time.monotonic() < end:
                continue
            what = "serve" if serve else "reach"
            raise RecipeError(
                f"rank {place.rank} on host {platform.node()} cannot {what} {place.address}:{place.port}, where the "
                f"ranks meet ({str(error).splitlines()[0]}). Is the name right, the port free and no firewall between?"
            ) from None
        store.set_timeout(timedelta(seconds=JOIN_S))
        return Board(store)


# ---- whether all ranks stand on the same ground


def versions() -> dict[str, str]:
    """What must be the same on every rank beside the recipe and its data."""
    from .. import __version__

    return {"omni2vec": __version__} | {name: installed(name) or "absent" for name in PACKAGES}


def agree(board: Board, place: Place, facts: Mapping[str, str], say: Callable[[str], None] = lambda line: None) -> None:
    """Every rank's facts compared on rank 0. Raises RecipeError on every rank, naming who differs in what; rank 0 tells
    `say` whom it waits for."""
    board.put(f"facts/{place.rank}", {"host": platform.node(), "facts": dict(facts)})
    if place.rank == 0:
        rows = collected(board, range(place.size), say)
        told = differing([(row["host"], row["facts"]) for row in rows])
        board.put("agreed", told)
    else:
        told = board.wait("agreed")
    if told:
        more = [f"and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
        lines = "\n".join(f"  {line}" for line in [*told[:SHOWN], *more])
        raise RecipeError(f"the ranks do not stand on the same ground; nothing was begun:\n{lines}")


def collected(board: Board, ranks: Iterable[int], say: Callable[[str], None]) -> list[Any]:
    """On rank 0: what each rank put under facts/RANK, once all have."""
    found: dict[int, Any] = {}
    ranks, begun, told = list(ranks), time.monotonic(), False
    while True:
        for rank in ranks:
            if rank not in found and (row := board.look(f"facts/{rank}")) is not None:
                found[rank] = row
        if len(found) == len(ranks):
            return [found[rank] for rank in ranks]
        if not told and time.monotonic() - begun > 60:
            absent = [str(r) for r in ranks if r not in found]
            say(f"waiting for {len(absent)} of {len(ranks)} ranks: {', '.join(absent[:8])}")
            told = True
        time.sleep(POLL_S)


def differing(rows: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """One line for each rank and fact that is not what most ranks have (rank 0, where they are as many).
    rows: (host, facts) of every rank, in rank order."""
    if errors := [f"rank {r} on host {h}: {f['error']}" for r, (h, f) in enumerate(rows) if "error" in f]:
        return errors
    names = dict.fromkeys(name for _, facts in rows for name in facts)
    lines = []
    for name in names:
        values = [facts.get(name, "(absent)") for _, facts in rows]
        most = Counter(values).most_common(1)[0][0]  # of equals the first, which is rank 0's
        measure = values.index(most)
        for rank, ((host, _), value) in enumerate(zip(rows, values, strict=True)):
            if value != most:
                where = f"rank {measure} on host {rows[measure][0]}"
                lines.append(f"rank {rank} on host {host}: {name} is {value}, but {most} on {where}")
    return lines
