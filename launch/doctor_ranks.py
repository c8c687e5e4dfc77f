"""Do all ranks stand on the same ground, and do they reach each other? Findings on rank 0, in plain words."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..data.types import DataError
from .board import Board, collected, differing, joined, opened, versions
from .digest import leaves
from .doctor import Finding, examine
from .load import load
from .place import Place, environment
from .run import Folder, survey
from .supervise import Rank, listening, supervise
from .team import TAIL

ALLOWED_S = 1.0  # of clocks apart: file times, logs and tokens of clusters are compared by them
GROUP_S = 180.0
LEAST_GB_S = {True: 10.0, False: 1.0}  # of a GPU's link within a host (else PCIe's detours), and between two


@dataclass(frozen=True)
class Question:
    """What the ranks are asked about: a recipe's words, or no recipe."""

    recipe: Path | None = None
    words: tuple[str, ...] = ()
    into: Path | None = None

    def facts(self) -> dict[str, str]:
        """What must be the same on every rank."""
        found = {"python": platform.python_version()} | versions()
        if self.recipe is None:
            return found
        try:
            loaded = load(self.recipe, self.words)
            for standing in survey(loaded, Folder(self.into or Path("runs") / loaded.name)):
                found |= leaves(standing.canonical["fields"], f"recipe.{standing.step.name}")
                found |= leaves(standing.canonical["outside"], f"data.{standing.step.name}")
        except (DataError, OSError) as error:
            found["recipe"] = f"not to be read here ({error})"
        return found


def ask(question: Question, place: Place, board: Board) -> list[Finding]:
    """One rank's part. Returns the findings on rank 0, nothing on the others."""
    faults = [f"{f.what}: {f.found}; {f.remedy}" for f in examine() if f.grade == "blocker"]
    own = {"host": platform.node(), "facts": question.facts(), "faults": faults}
    board.put(f"facts/{place.rank}", own)
    found: list[Finding] = []
    if place.rank == 0:
        rows = collected(board, range(place.size), print)
        hosts = [row["host"] for row in rows]
        found = [Finding("ranks", f"{place.size} on {len(set(hosts))} host{'s' * (len(set(hosts)) > 1)}")]
        found += [*_own_faults(rows), *_ground([(row["host"], row["facts"]) for row in rows], question)]
        found += _clocks(hosts, _offsets(board, place.size))
        board.put("sound", not any(f.grade == "blocker" for f in found))
    else:
        _answer(board, place.rank)
    if not board.wait("sound"):
        return found
    measured = _measured(board, place)
    return [*found, *_speeds(*measured)] if measured else found


def _own_faults(rows: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    told = dict.fromkeys((row["host"], fault) for row in rows for fault in row["faults"])
    for host, fault in told:
        yield Finding(f"host {host}", fault, "blocker", f"omni2vec doctor on {host} says more")


def _ground(rows: Sequence[tuple[str, Mapping[str, str]]], question: Question) -> Iterator[Finding]:
    """Versions, recipe and data of all ranks."""
    sorts = {"versions": "", "recipe": "recipe", "data": "data"}
    remedies = {
        "versions": "install the same on every host, or start all from one environment",
        "recipe": "start every rank with the same file and words",
        "data": "give every host the same files: a shared folder, or a copy made anew",
    }
    for name, prefix in sorts.items():
        if prefix and question.recipe is None:
            continue
        told = differing([(host, _some(facts, prefix)) for host, facts in rows])
        for line in told[:20]:
            yield Finding(name, line, "blocker", remedies[name])
        if len(told) > 20:
            yield Finding(name, f"and {len(told) - 20} more differences", "blocker", remedies[name])
        unread = rows[0][1].get("recipe", "") if name == "recipe" else ""
        if unread and not told:
            yield Finding(name, f"{unread}, on any rank", "blocker", "repair that first")
        elif not told:
            same = ", ".join(f"{k} {v}" for k, v in rows[0][1].items() if "." not in k) if not prefix else "all ranks"
            yield Finding(name, f"the same: {same}")


def _some(facts: Mapping[str, str], prefix: str) -> dict[str, str]:
    if not prefix:
        return {k: v for k, v in facts.items() if k.partition(".")[0] not in ("recipe", "data")}
    return {k.partition(".")[2] or k: v for k, v in facts.items() if k.partition(".")[0] == prefix}


# ---- clocks


def _offsets(board: Board, size: int) -> list[tuple[float, float]]:
    """On rank 0: (seconds ahead of rank 0, half of the round trip) of every rank, one after the other."""
    told = [(0.0, 0.0)]
    for rank in range(1, size):
        board.put(f"turn/{rank}", True)
        board.store.get(f"ping/{rank}")
        board.put(f"pong/{rank}", time.time())
        told.append(board.wait(f"ahead/{rank}"))
    return told


def _answer(board: Board, rank: int) -> None:
    """On another rank. The store's own waiting, not ours in naps: a ping must be quick."""
    board.wait(f"turn/{rank}")
    sent = time.time()
    board.put(f"ping/{rank}", True)
    board.store.get(f"pong/{rank}")
    middle = (sent + time.time()) / 2
    board.put(f"ahead/{rank}", (middle - board.look(f"pong/{rank}"), time.time() - middle))


def _clocks(hosts: Sequence[str], offsets: Sequence[tuple[float, float]]) -> list[Finding]:
    wrong = [(r, a) for r, (a, half) in enumerate(offsets) if abs(a) - half > ALLOWED_S]
    if not wrong:
        return [Finding("clocks", f"all within {max(abs(a) for a, _ in offsets):.3f} s of rank 0's")]
    remedy = "let every host follow one time server (chronyd, ntpd)"
    return [
        Finding(
            "clocks", f"rank {r} on host {hosts[r]} is {abs(a):.1f} s {'ahead' if a > 0 else 'behind'}", "note", remedy
        )
        for r, a in wrong
    ]


# ---- speed


def _measured(board: Board, place: Place) -> tuple[dict[int, float], list[Any], bool] | None:
    """On rank 0: all-reduce speeds by size, links, and whether they are GPUs'."""
    from .links import Link, all_reduce, to_next
    from .worker import group

    with group(place, board, timedelta(seconds=GROUP_S)) as device:
        speeds = all_reduce(device)
        board.put(f"speed/{place.rank}", {"host": platform.node(), "gb_s": to_next(device)})
    if place.rank:
        return None
    rows = [board.wait(f"speed/{r}") for r in range(place.size)]
    links = []
    for r, row in enumerate(rows):
        to = (r + 1) % place.size
        links.append(Link(r, row["host"], to, rows[to]["host"], row["gb_s"]))
    return speeds, links, device.type == "cuda"


def _speeds(speeds: Mapping[int, float], links: Sequence[Any], gpus: bool) -> Iterator[Finding]:
    from .links import slow

    told = ", ".join(f"{g:.2g} at {_size(s)}" for s, g in speeds.items())
    yield Finding("all-reduce", f"{told} (GB/s a rank)")
    for within, what in ((True, "links within a host"), (False, "links between hosts")):
        same = [link.gb_s for link in links if link.within is within]
        if not same:
            continue
        low = gpus and max(same) < LEAST_GB_S[within]
        remedy = "" if not low else _SLOW[within]
        yield Finding(what, f"{min(same):.2g} to {max(same):.2g} GB/s", "note" if low else "good", remedy)
    for link in slow(links):
        hosts = dict.fromkeys((link.host, link.to_host))
        yield Finding(
            "slow link",
            str(link),
            "note",
            f"half of what the others reach: look at {' and '.join(hosts)}, or do without",
        )


_SLOW = {
    True: "GPUs of this host reach each other by PCIe or the host's memory: nvidia-smi topo -m shows how",
    False: "this looks like plain Ethernet: NCCL_DEBUG=INFO says which card is used, NCCL_SOCKET_IFNAME chooses one",
}


def _size(count: int) -> str:
    return f"{count >> 20} MB" if count >= 1 << 20 else f"{count >> 10} kB"


# ---- processes


def examine_here(question: Question, ranks: int, say: Callable[[str], None]) -> int:
    """Starts `ranks` ranks on this machine, which ask each other; rank 0 prints. Returns the exit status."""
    _served, port = opened()  # for as long as this name holds it
    words = [str(question.recipe), *question.words] if question.recipe else []
    words += ["--into", str(question.into)] if question.into else []
    command = (sys.executable, "-m", "omni2vec", "doctor", *words)
    logs = Path(tempfile.mkdtemp())
    places = [Place(r, ranks, r, ranks, "127.0.0.1", port) for r in range(ranks)]
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_STEP")}
    started = [
        Rank(p.rank, command, environment(p, "doctor", env), logs / f"rank-{p.rank}.log" if p.rank else None)
        for p in places
    ]
    try:
        with listening() as signals:
            statuses = supervise(started, signals)
        for rank, status in statuses.items():
            if rank and status:
                say(f"rank {rank} ended with status {status}:")
                for line in (logs / f"rank-{rank}.log").read_text(errors="replace").splitlines()[-TAIL:]:
                    say(f"  {line}")
    finally:
        shutil.rmtree(logs)
    return max((1 if s else 0 for s in statuses.values()), default=1)


def board_of(place: Place) -> Board:
    """Where the ranks of the doctor meet: at its own starter's, or at a launcher's place."""
    told = os.environ.get("OMNI2VEC_BOARD")
    if told:
        return joined(place).under(told)
    return joined(place, serve=place.rank == 0 and not place.served).under(f"{place.name}/doctor")
