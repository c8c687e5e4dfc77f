"""A recipe whose second step is made by several ranks: each adds its number in every step, and can be told to fail."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omni2vec.data.types import DataError, Step, Where
from omni2vec.train.guard import WISH, Restart, wish

Fault = Literal["", "input", "fault", "kill", "memory", "hang"]


@dataclass(frozen=True)
class First:
    """A step that wants no group."""

    name: str = "first"
    slow_s: float = field(default=0.0, compare=False)

    def make(self, out: Path, where: Where) -> None:
        time.sleep(self.slow_s)
        (out / "pid.txt").write_text(str(os.getpid()))


@dataclass(frozen=True)
class Add:
    """The sum over steps and ranks of (rank + 1) * step; saved every second step, and where a signal asks for it."""

    resumes = True
    parallel = True
    first: First
    name: str = "add"
    steps: int = 6
    slow_s: float = field(default=0.0, compare=False)
    fault: Fault = field(default="", compare=False)
    fault_rank: int = field(default=1, compare=False)

    def outside(self, where: Where) -> Mapping[str, str]:
        return {"rows": os.environ.get(f"TOY_DATA_{os.environ.get('RANK', '0')}", "0123")}

    def make(self, out: Path, where: Where) -> None:
        import torch
        from omni2vec.train.gather import Group

        group = Group.current()
        wishes = json.loads((out / WISH).read_text()) if (out / WISH).exists() else {}
        asked: list[int] = []
        if os.environ.get("OMNI2VEC_STARTER"):  # in a process of its own
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, lambda n, frame: asked.append(n))
        found = sorted((out / "checkpoints").glob("step-*"))
        total, begin = (json.loads((found[-1] / "state.json").read_text())) if found else (0.0, 0)
        print(f"rank {group.rank} of {group.size} from step {begin}", flush=True)
        for step in range(begin, self.steps):
            stop = group.max_(torch.tensor([float(bool(asked))]))
            if stop.item():
                self._save(out, group.rank, total, step)
                raise Restart("told to stop, and saved")
            if step == 3 and group.rank == self.fault_rank % group.size and not (out / "faulted").exists():
                self._fail(out)
            total += group.sum_(torch.tensor([(group.rank + 1.0) * step])).item()
            if step % 2:
                self._save(out, group.rank, total, step + 1)
            if group.rank == 0:
                with (out / "log.jsonl").open("a") as file:
                    file.write(json.dumps({"step": step, "pid": os.getpid(), "size": group.size}) + "\n")
            time.sleep(self.slow_s)
        if group.rank == 0:
            (out / "sum.json").write_text(json.dumps({"sum": total, "wishes": wishes}))

    def _save(self, out: Path, rank: int, total: float, step: int) -> None:
        folder = out / "checkpoints" / f"step-{step:08d}"
        if rank == 0 and not folder.exists():
            folder.mkdir(parents=True)
            (folder / "state.json").write_text(json.dumps([total, step]))

    def _fail(self, out: Path) -> None:
        if self.fault in ("kill", "memory"):
            (out / "faulted").touch()  # once
        match self.fault:
            case "input":
                raise DataError("rows.jsonl, line 7: not JSON; write one object a line")
            case "fault":
                raise RuntimeError("a fault of the program")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "memory":
                wish(out, "out of memory", chunk_tokens=512)
                raise Restart("out of memory")
            case "hang":
                time.sleep(600)


def recipe(*, steps: int = 6, slow_s: float = 0.0, fault: Fault = "", first_s: float = 0.0) -> Step:
    return Add(First(slow_s=first_s), steps=steps, slow_s=slow_s, fault=fault)
