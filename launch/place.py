"""Who this process is among those that a launcher from outside started: torchrun, deepspeed or Slurm's srun."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .words import RecipeError


@dataclass(frozen=True)
class Place:
    """Rank `rank` of `size`, the `local_rank`-th of `local_size` on its host; all meet at address:port.

    served: somebody else serves the store there (torchrun's agent), else rank 0 does. name: sets apart the tries of one
    launcher, which may meet at one store.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int
    served: bool = False
    name: str = "run"


def outside(env: Mapping[str, str]) -> Place | None:
    """The place that a launcher gave this process, or None where it is alone. Raises RecipeError on half a place."""
    if _number(env, "WORLD_SIZE", 1) > 1:
        return _torch(env)
    # Of the job step, not of the job: the batch script itself runs once, whatever its job's number of tasks is.
    if "SLURM_STEP_ID" in env and _number(env, _tasks(env), 1) > 1:
        return _slurm(env)
    return None


def _torch(env: Mapping[str, str]) -> Place:
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not env.get(n)]
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        raise RecipeError(
            f"WORLD_SIZE={env['WORLD_SIZE']} says that this is one of several processes, but {', '.join(missing)} "
            f"{verb} not set. A launcher sets all of them; to run alone: unset WORLD_SIZE."
        )
    size = _number(env, "WORLD_SIZE", 1)
    place = Place(
        _rank(env, "RANK", "WORLD_SIZE", size),
        size,
        _number(env, "LOCAL_RANK", 0),
        _number(env, "LOCAL_WORLD_SIZE" if env.get("LOCAL_WORLD_SIZE") else "LOCAL_SIZE", 1),
        env["MASTER_ADDR"],
        _number(env, "MASTER_PORT", 0),
    )
    if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        tries = env.get("TORCHELASTIC_RESTART_COUNT", "0")
        return replace(place, served=True, name=f"{env.get('TORCHELASTIC_RUN_ID', 'run')}/{tries}")
    return place


def _slurm(env: Mapping[str, str]) -> Place:
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or env.get("SLURM_NODELIST") or "localhost"
    size = _number(env, _tasks(env), 1)
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or "1"
    job, step = _number(env, "SLURM_JOB_ID", 0), env["SLURM_STEP_ID"]
    # Jobs that share a host must not share a port; all tasks of a step must find the same one without a word.
    port = 10_000 + (job * 16 + int(step if step.isdecimal() else 0)) % 20_000
    return Place(
        _rank(env, "SLURM_PROCID", _tasks(env), size),
        size,
        _number(env, "SLURM_LOCALID", 0),
        _number({"SLURM_TASKS_PER_NODE": re.split(r"[(,]", tasks)[0]}, "SLURM_TASKS_PER_NODE", 1),
        env.get("MASTER_ADDR") or first_host(nodes),
        _number(env, "MASTER_PORT", port),
    )


def _tasks(env: Mapping[str, str]) -> str:
    return "SLURM_STEP_NUM_TASKS" if env.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"


def _number(env: Mapping[str, str], name: str, absent: int) -> int:
    """The variable's whole number. Raises RecipeError that names it where it is none."""
    text = env.get(name) or str(absent)
    if not re.fullmatch(r"\s*-?[0-9]+\s*", text):
        raise RecipeError(f"{name}={text!r}: not a whole number. Where no launcher set it: unset it.")
    return int(text)


def _rank(env: Mapping[str, str], name: str, of: str, size: int) -> int:
    """Raises RecipeError where there is no such rank of `size`, which the variable `of` says."""
    if not env.get(name):
        raise RecipeError(f"{of}={size} says that this is one of several processes, but {name} is not set.")
    rank = _number(env, name, 0)
    if not 0 <= rank < size:
        raise RecipeError(f"{name}={rank} with {of}={size}: expected 0 to {size - 1}. Does a launcher set both?")
    return rank


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: gpu[07-09,12],login1 gives gpu07. scontrol is asked where it is there."""
    try:
        told = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=30, check=True
        )
        if told.stdout.split():
            return told.stdout.split()[0]
    except (OSError, subprocess.SubprocessError):
        pass
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^,]*)", nodes)
    if found is None:
        raise RecipeError(f"SLURM_JOB_NODELIST={nodes!r}: no host in it; expected one such as gpu[07-09,12].")
    return found[1] + (found[2] or "") + (found[3] if found[2] else "")


def threads(local_size: int) -> int:
    """OMP_NUM_THREADS of one of `local_size` ranks on this host: half of its share, the rest is the data workers'."""
    from .facts import cpus

    return max(1, cpus() // (2 * local_size))


def environment(place: Place, board: str, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """A rank's environment: torch's variables, and where its messages go."""
    # torchrun's own variables would send a rank to torchrun's store by torchrun's rules.
    kept = {k: v for k, v in env.items() if not k.startswith("TORCHELASTIC_")}
    return kept | {
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.local_rank),
        "WORLD_SIZE": str(place.size),
        "LOCAL_WORLD_SIZE": str(place.local_size),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
        "OMNI2VEC_BOARD": board,
        "OMP_NUM_THREADS": env.get("OMP_NUM_THREADS") or str(threads(place.local_size)),
        # A connection that another rank's death closed is told in our words, not as a C++ stack for every rank.
        "TORCH_CPP_LOG_LEVEL": env.get("TORCH_CPP_LOG_LEVEL") or "ERROR",
    }
