"""One rank of a step: `python -m omni2vec.launch.worker RUN_FOLDER STEP`, started by launch/team.py.

It checks that all ranks stand on the same ground, joins the process group and makes the step. Of all that goes wrong
one rank speaks: the first that fails; the others leave in silence.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..data.types import Step
from ..train.guard import RESTART, Restart
from ..train.leave import Left
from .board import Board, agree, joined, versions
from .digest import canonical, leaves
from .graph import needs
from .place import Place, outside
from .quiet import quiet
from .run import Folder, put
from .supervise import follow_starter
from .words import RecipeError

if TYPE_CHECKING:
    import torch

CLAIM_S = 5.0  # a rank whose connection broke waits so long for the one that knows why
SHOWN_S = 60.0  # a network file system shows a new folder late
GROUP_H = 24.0  # a collective may wait so long: a stalled rank is the watchdog's business, and says more than a timeout
SAYS = {"restart": "stopping", "input": "error", "connection": f"host {platform.node()} lost another rank"}


def main() -> NoReturn:
    """The module's command. Exit status: 0, RESTART, 2 on bad input, 1 on anything else."""
    follow_starter()
    quiet()
    parser = argparse.ArgumentParser(prog="python -m omni2vec.launch.worker", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("step")
    parser.add_argument("--recipe", type=Path, help="the Python file that defines the recipe's own steps")
    given = parser.parse_args()
    place = outside(os.environ)
    # The launcher's board is under a name of the launcher's own; a rank's, under the one that it was told.
    board = joined(place).under(os.environ["OMNI2VEC_BOARD"]) if place else None
    leave(_ended(given.run, given.step, given.recipe, place, board))


def leave(status: int) -> NoReturn:
    """Ends the process. After a failure at once: an orderly end would wait for ranks that are gone."""
    if status == 0:
        sys.exit(0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _ended(at: Path, name: str, recipe: Path | None, place: Place | None, board: Board | None) -> int:
    folder = Folder(at)
    partial = at / f"{name}.partial"
    try:
        step = found(folder, name, recipe)
        if place is None or board is None:
            step.make(partial, folder)
        else:
            agree(board, place, ground(step, folder))
            with group(place, board):
                step.make(partial, folder)
    except BaseException as error:
        rank = place.rank if place else 0
        return failed(error, rank, board, partial)
    return 0


# ---- what is made


def found(folder: Folder, name: str, recipe: Path | None) -> Step:
    """The step `name` of the run's record, once this host can see it."""
    import json

    from .load import module_of
    from .record import read

    path, partial = folder.path / "record.json", folder.path / f"{name}.partial"
    if not _appears(path) or not _appears(partial):
        raise RecipeError(
            f"host {platform.node()} sees no {path if not path.exists() else partial}. A run's folder must be on a "
            "file system that all hosts share: --into a folder there."
        )
    if recipe is not None:
        module_of(recipe)  # where the recipe's own steps are defined
    steps = {s.name: s for s in read(json.loads(path.read_text()), str(path)).steps}
    if name not in steps:
        raise RecipeError(f"{path}: no step '{name}'. The steps are {', '.join(steps)}.")
    return steps[name]


def _appears(path: Path) -> bool:
    end = time.monotonic() + SHOWN_S
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.5)
    return path.exists()


def ground(step: Step, folder: Folder) -> dict[str, str]:
    """What all ranks must have in common: versions, the step's fields, what it stands on and reads, as this rank sees
    them."""
    import json

    digests = {n.name: json.loads((folder(n) / "done.json").read_text())["digest"] for n in needs(step)}
    form = canonical(step, folder, digests)
    fields = dict(leaves(form["fields"], step.name))
    return versions() | fields | dict(leaves({**form["needs"], **form["outside"]}, "data"))


@contextmanager
def group(place: Place, board: Board, timeout: timedelta = timedelta(hours=GROUP_H)) -> Iterator[torch.device]:
    """torch.distributed's process group, with NCCL for tensors on a GPU; gives this rank's device."""
    import torch
    import torch.distributed as dist

    backend, device = "gloo", torch.device("cpu")
    if torch.cuda.is_available():
        # Slurm may show a task its own GPU alone, which is then number 0.
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        backend, device = "cpu:gloo,cuda:nccl", torch.device("cuda", torch.cuda.current_device())
    dist.init_process_group(
        backend,
        store=board.under("group").store,
        rank=place.rank,
        world_size=place.size,
        timeout=timeout,
    )
    yield device
    dist.all_reduce(torch.zeros(1))  # nobody takes a connection away that another still reads from
    dist.destroy_process_group()


# ---- what goes wrong


def failed(error: BaseException, rank: int, board: Board | None, partial: Path) -> int:
    """Tells of `error` if this rank is the first that fails. Returns the exit status."""
    if isinstance(error, Left):
        return 1  # rank 0 has it
    kind, status = kind_of(error)
    if kind == "connection" and board is not None and _another_knows(board):
        return 1
    if not _first(board):
        return status
    claim = {"rank": rank, "host": platform.node(), "kind": kind, "status": status, "error": _line(error)}
    if board is not None:
        board.put("claim", claim)
    if kind != "restart" and partial.is_dir():
        with suppress(OSError):  # the disk may be full: that may be what there is to tell
            put(partial / "failed.json", claim)
    if kind == "fault" or os.environ.get("OMNI2VEC_TRACEBACK") == "1":
        traceback.print_exception(error)
    else:
        print(f"{SAYS[kind]}: {_line(error)}", file=sys.stderr)
    return status


def kind_of(error: BaseException) -> tuple[str, int]:
    """What sort of end it is, and its exit status. A file that is not there, or not ours to read, is bad input."""
    from ..train.snapshot import NotSaved

    if isinstance(error, Restart):
        return "restart", RESTART
    if isinstance(error, ValueError | NotSaved | FileNotFoundError | PermissionError) or (
        isinstance(error, ImportError) and "omni2vec[" in str(error)
    ):
        return "input", 2
    if broken(error):
        return "connection", 1
    return "fault", 1


def broken(error: BaseException) -> bool:
    """Whether the error is of a connection that another rank's end closed."""
    from torch.distributed import DistError

    text = str(error)
    gloo = "gloo" in text and re.search(r"[Cc]onnection|[Rr]eset|[Bb]roken pipe|[Tt]imed out|EOF|closed", text)
    return isinstance(error, DistError) or bool(gloo) or "ncclRemoteError" in text


def _another_knows(board: Board) -> bool:
    """Whether a rank says within a few seconds why it left."""
    try:
        return board.wait("claim", CLAIM_S) is not None
    except RuntimeError:  # the starter is gone, and the board with it
        return True


def _first(board: Board | None) -> bool:
    try:
        return board is None or board.add("failed") == 1
    except RuntimeError:
        return False


def _line(error: BaseException) -> str:
    text: Any = error.why if isinstance(error, Restart) else str(error)
    if broken(error):
        text = text.splitlines()[0].split("]", 1)[-1].partition(". This is typically")[0].strip()  # without its source
    return text or type(error).__name__


if __name__ == "__main__":
    main()
