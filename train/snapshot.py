"""Saving while training goes on: weights and moments copied to host memory, then written by a thread on each rank.

Threads speak through files in the checkpoint's folder, never by a collective: those of the training are under way.
Training waits for the copy alone, and for an earlier save that has not ended.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import parts, resume
from .engine import Engine
from .fragments import Piece
from .gather import Group
from .leave import Left, everyone
from .resume import FORMAT, STATE, State

BLOCK = 1 << 26  # bytes: torch rounds page-locked memory up to a power of 2, so a block of all would waste up to half
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_POLL_S = 0.02
_HURRY_S = 30.0  # what a failing rank grants the others' parts: what was begun may yet be kept


class NotSaved(OSError):  # noqa: N818  it says what is not there
    """A checkpoint could not be written. The last good one is untouched, and named."""


class Host:
    """Host memory for one rank's pieces, kept from save to save; page-locked where the pieces come from CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.blocks = device, list[Tensor]()

    def copy(self, pieces: Iterable[Piece]) -> tuple[bytes, list[memoryview]]:
        """The header of a safetensors file, and what follows it: views of this memory, good until the next copy."""
        at, entries, shapes = 0, [], {}
        for p in pieces:  # one at a time: some are made for the asking
            at = self._put(p.values.detach().contiguous().view(torch.uint8), at)
            entries.append((parts.key_of(p.kind, p.name, p.start), p.values.dtype, tuple(p.values.shape)))
            shapes[p.name] = list(p.shape)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        whole, rest = divmod(at, BLOCK)
        views = [parts.view(b) for b in self.blocks[:whole]]
        views += [parts.view(self.blocks[whole][:rest])] if rest else []
        return parts.header(entries, {"shapes": json.dumps(shapes)}), views

    def _put(self, raw: Tensor, at: int) -> int:
        """Bytes `raw` (n,) to place `at`; gives the place behind them."""
        done = 0
        while done < len(raw):
            block, place = divmod(at, BLOCK)
            if block == len(self.blocks):
                locked = self.device.type == "cuda"
                self.blocks.append(torch.empty(BLOCK, dtype=torch.uint8, pin_memory=locked))
            count = min(len(raw) - done, BLOCK - place)
            self.blocks[block][place : place + count].copy_(raw[done : done + count], non_blocking=True)
            done, at = done + count, at + count
        return at


@dataclass
class _Job:
    """One save of one rank: what is to be written, and how it stands."""

    step: int
    state: str  # JSON; the loop goes on changing the State
    aside: Path
    head: bytes
    blocks: list[memoryview]
    work: Callable[[_Job], None]
    written: threading.Event = field(default_factory=threading.Event)  # this rank's part is whole, or failed
    deadline: float | None = None  # until when rank 0 waits for the other parts
    error: Exception | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.work, args=(self,), name=f"save-{self.step}")

    @property
    def bytes(self) -> int:
        return len(self.head) + sum(len(b) for b in self.blocks)


class Saver:
    """Writes a stage's checkpoints into `out`, which all ranks share. Every rank makes one and makes the same calls;
    all but `failed` are collective. In a `with` block: the end waits for the last save.

    keep, keep_best: how many of the newest and of the best-scored stay. base: digest of the model that the stage
    started from. patience_s: how long rank 0 waits for the part of a rank that says nothing.
    """

    def __init__(
        self,
        engine: Engine,
        out: Path,
        group: Group | None = None,
        *,
        keep: int = 1,
        keep_best: int = 1,
        base: str = "",
        patience_s: float = 600.0,
    ) -> None:
        self.engine, self.out, self.group = engine, out, group or Group()
        self.keep, self.keep_best, self.base, self.patience_s = keep, keep_best, base, patience_s
        self._host = Host(engine.device)
        self._job: _Job | None = None
        self._begun = -1  # the step of the last save
        if self.group.rank == 0:
            resume.clean(out)
        # Names this start: a rank of an earlier one, not yet dead, must not write among our parts.
        self._start = self.group.exchange(secrets.token_hex(4).encode())[0].decode()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            if self._job is not None:  # others may be gone: no collective. What was begun is ended if it can be
                self._job.deadline = time.monotonic() + min(_HURRY_S, self.patience_s)
                self._job.thread.join()

    @property
    def failed(self) -> bool:
        """Whether this rank's writer has met an error. No collective: agree on it with the step's other flags, and
        call `wait` on all ranks where one has failed."""
        return self._job is not None and self._job.error is not None

    def check(self) -> None:
        """Raise what the writers have met, on all ranks together; a small exchange while a save is under way."""
        if self._job is not None and any(self.group.exchange(b"failed" if self.failed else b"")):
            self.wait()

    def save(self, state: State, background: bool = True) -> Path:
        """Checkpoint `state.step`, which is there once `wait` has returned. Where it was begun before, nothing new."""
        folder = resume.path_of(self.out, state.step)
        if self._begun != state.step:
            self.wait()
            self._begin(state, folder)
        if not background:
            self.wait()
        return folder

    def _begin(self, state: State, folder: Path) -> None:
        head, blocks = self._host.copy(self.engine.pieces())
        aside = folder.with_name(f"{folder.name}.{self._start}.partial")
        job = _Job(state.step, json.dumps(asdict(state)), aside, head, blocks, self._write)
        self._job, self._begun = job, state.step
        job.thread.start()

    def wait(self) -> None:
        """Until no save is under way. Rank 0 raises NotSaved where one failed on any rank, the others Left."""
        job = self._job
        if job is None:
            return
        job.written.wait()
        if not self._met(job):
            job.thread.join()
            if not self._met(job):
                self._job = None
                return
        job.deadline = 0.0
        job.thread.join()
        self._job = None
        self._leave(job)

    def _met(self, job: _Job) -> bool:
        """Whether any rank has met an error. Collective."""
        return any(self.group.exchange(b"failed" if job.error else b""))

    def _leave(self, job: _Job) -> None:
        """All ranks end here, none of them is writing any more."""
        mine = None if job.error is None else {"text": str(job.error), "room": _no_room(job.error)}
        heard: list[Any] = everyone(self.group, {"bytes": job.bytes, "error": mine})
        if self.group.rank != 0:
            raise Left(f"checkpoint step {job.step} was not saved")
        shutil.rmtree(job.aside, ignore_errors=True)
        errors = [(r, h["error"]) for r, h in enumerate(heard) if h["error"]]
        # Rank 0 also says that a part is missing: the rank that lacks it knows better why.
        rank, error = next(((r, e) for r, e in errors if r != 0), errors[0])
        text = error["text"] if self.group.size == 1 else f"rank {rank}: {error['text']}"
        raise NotSaved(_message(self.out, job.step, text, error["room"], sum(h["bytes"] for h in heard))) from job.error

    # What follows runs in the thread.

    def _write(self, job: _Job) -> None:
        rank, size = self.group.rank, self.group.size
        part = job.aside / parts.name_of(rank, size)
        try:
            job.aside.mkdir(parents=True, exist_ok=True)
            digest = parts.write(part, [job.head, *job.blocks])
            _mark(job.aside, rank, {"digest": digest, "bytes": job.bytes})
        except Exception as error:
            job.error = error
            _give_up(part, rank, str(error))
        finally:
            job.written.set()
        if rank == 0 and job.error is None:
            try:
                self._publish(job, self._gathered(job))
            except Exception as error:
                job.error = error

    def _gathered(self, job: _Job) -> list[dict[str, Any]]:
        """What each rank said of its part, once all have."""
        end = time.monotonic() + self.patience_s
        wanted = [_marker(r) for r in range(self.group.size)]
        while True:
            there = set(os.listdir(job.aside))  # noqa: PTH208  a listing is fresh where NFS caches that a file is not
            if there.issuperset(wanted):
                return [json.loads((job.aside / m).read_text()) for m in wanted]
            late = [r for r, m in enumerate(wanted) if m not in there]
            if failed := [r for r in late if _marker(r, "failed") in there]:
                raise OSError(f"the part of rank {failed[0]} could not be written")
            if time.monotonic() > (end if job.deadline is None else min(end, job.deadline)):
                raise TimeoutError(f"the part of rank {late[0]} did not come (nor those of {len(late) - 1} more)")
            time.sleep(_POLL_S)

    def _publish(self, job: _Job, written: list[dict[str, Any]]) -> None:
        record = {"format": FORMAT, "base": self.base, "parts": written, "state": json.loads(job.state)}
        folder = resume.path_of(self.out, job.step)
        for rank in range(self.group.size):
            (job.aside / _marker(rank)).unlink()
        parts.write(job.aside / STATE, [json.dumps(record).encode()])
        parts.sync_folder(job.aside)
        if folder.exists():  # of an earlier start that was taken back behind it: the same step, the same weights
            shutil.rmtree(job.aside)
        else:
            job.aside.rename(folder)
            parts.sync_folder(folder.parent)
        resume.prune(self.out, self.keep, State.of(record["state"]), self.keep_best)


def _marker(rank: int, kind: str = "written") -> str:
    return f"part-{rank:05d}.{kind}"


def _mark(aside: Path, rank: int, said: dict[str, Any]) -> None:
    path = aside / _marker(rank)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(said))
    unfinished.replace(path)


def _give_up(part: Path, rank: int, why: str) -> None:
    """The room of half a part is given back, and rank 0 told not to wait. Where that fails too, it waits in vain."""
    try:
        part.unlink(missing_ok=True)
        (part.parent / _marker(rank, "failed")).write_text(why)
    except OSError:
        return


def _no_room(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in _NO_ROOM


def _message(out: Path, step: int, text: str, no_room: bool, needed: int) -> str:
    """What could not be saved and why, what is left, what to do. needed: bytes of all parts."""
    left = resume.existing(out)
    last = f"the last good one is {left[-1].name}" if left else "there is none before it"
    where = out / resume.FOLDER
    if not no_room:
        return f"checkpoint step {step} in {where} could not be written ({text}): {last}; mend that and run again"
    free = shutil.disk_usage(where if where.exists() else out).free
    short = needed - free if free < needed else needed  # a quota or a limit of file sizes leaves the disk free
    return (
        f"no room for checkpoint step {step} in {where} ({text}; it needs {_mb(needed)}): {last}; "
        f"free {_mb(short)} (or raise the quota) and run again"
    )


def _mb(count: int) -> str:
    return f"{max(1, -(-count // 1_000_000)):,} MB"
