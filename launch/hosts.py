"""A recipe on a cluster: Slurm jobs written and submitted, a hostfile read for deepspeed, a line for torchrun."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..train.guard import RESTART
from .graph import Recipe, needs
from .run import Folder
from .words import RecipeError

NOTICE_S = 180  # before a job's end: time to save
PORT = 29_500


@dataclass(frozen=True)
class Slurm:
    """What each job asks of the cluster. nodes, gpus (a node): of steps with several ranks; the others take one GPU.

    array: steps that do not stand on each other share a job array; extra: further #SBATCH options, as they are.
    """

    nodes: int = 1
    gpus: int = 8
    cpus: int = 8  # a GPU: reading and decoding want them
    time: str = ""
    partition: str = ""
    account: str = ""
    array: bool = True
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.gpus < 0 or self.cpus < 1:
            raise RecipeError(
                f"nodes={self.nodes}, gpus={self.gpus}, cpus={self.cpus}: expected 1 or more of each; gpus 0: none"
            )
        if wrong := [o for o in self.extra if not o.startswith("--")]:
            raise RecipeError(f"{wrong[0]!r}: expected an option of sbatch, such as --constraint=h100")


@dataclass(frozen=True)
class Job:
    """Steps that one job makes, a task of its array each; it waits for the jobs that `after` names."""

    name: str
    steps: tuple[str, ...]
    parallel: bool
    after: tuple[str, ...]


def jobs(recipe: Recipe, folder: Folder, array: bool = True) -> tuple[Job, ...]:
    """The jobs of every step that is not done, in an order in which they may be submitted."""
    level: dict[str, int] = {}
    groups: dict[tuple[int, bool, str], list[str]] = {}
    waits: dict[str, tuple[str, ...]] = {}
    for step in recipe.steps:
        if folder(step).exists():
            continue
        waits[step.name] = tuple(n.name for n in needs(step) if not folder(n).exists())
        level[step.name] = 1 + max((level[n] for n in waits[step.name]), default=0)
        parallel = bool(getattr(type(step), "parallel", False))
        groups.setdefault((level[step.name], parallel, "" if array else step.name), []).append(step.name)
    at = {name: f"{place:02d}-{names[0]}" for place, names in enumerate(groups.values(), 1) for name in names}
    return tuple(
        Job(
            at[names[0]],
            tuple(names),
            parallel,
            tuple(dict.fromkeys(at[w] for name in names for w in waits[name])),
        )
        for (_, parallel, _), names in sorted(groups.items(), key=lambda group: at[group[1][0]])
    )


def script(job: Job, asked: Slurm, command: Sequence[str], logs: Path) -> str:
    """The batch script of a job. `command` makes the recipe; --only and the step are added."""
    tasks, nodes = (max(1, asked.gpus), asked.nodes) if job.parallel else (1, 1)
    many = len(job.steps) > 1
    options = {
        "job-name": f"omni2vec-{job.name}",
        "nodes": nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": asked.cpus,
        "gpus-per-node": tasks if asked.gpus else "",
        "time": asked.time,
        "partition": asked.partition,
        "account": asked.account,
        "array": f"0-{len(job.steps) - 1}" if many else "",
        "output": f"{logs}/{job.name}-{'%A_%a' if many else '%j'}.log",
        "open-mode": "append",
        "signal": f"USR1@{NOTICE_S}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value != ""]
    lines += ["#SBATCH --requeue", *(f"#SBATCH {option}" for option in asked.extra)]
    chosen = "${steps[${SLURM_ARRAY_TASK_ID:-0}]}"
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *lines,
            "# Every task of srun is one rank. USR1 comes before the time is up: the step saves, and ends with",
            f"# status {RESTART}; then the job goes back into the queue, and goes on from there.",
            "set -uo pipefail",
            f"steps=({' '.join(shlex.quote(s) for s in job.steps)})",
            f'step="{chosen}"',
            # srun does not take it over from the script.
            f'srun --kill-on-bad-exit=1 --cpus-per-task={asked.cpus} {shlex.join(command)} --only "$step"',
            "status=$?",
            f'if [ "$status" -eq {RESTART} ]; then',
            '    echo "step $step is stopped and saved; back into the queue"',
            '    scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$status"',
            "",
        ]
    )


def write(recipe: Recipe, at: Path, asked: Slurm, command: Sequence[str]) -> list[tuple[Job, Path]]:
    """Every job's script, in `at`/jobs."""
    folder = at / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for job in jobs(recipe, Folder(at), asked.array):
        path = folder / f"{job.name}.sh"
        aside = path.with_name(path.name + ".new")
        aside.write_text(script(job, asked, command, folder))
        aside.chmod(0o755)
        aside.replace(path)
        made.append((job, path))
    return made


def sbatch(path: Path, after: Sequence[str]) -> list[str]:
    """The command that submits a script behind the jobs of these ids."""
    waits = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return ["sbatch", "--parsable", *waits, str(path)]


def lines(made: Sequence[tuple[Job, Path]]) -> list[str]:
    """The same as shell lines, each job's id in a variable."""
    ids = {job.name: f"job{place}" for place, (job, _) in enumerate(made, 1)}
    told = []
    for job, path in made:
        words = [
            w if w.startswith("--dep") else shlex.quote(w) for w in sbatch(path, [f"${ids[n]}" for n in job.after])
        ]
        told.append(f"{ids[job.name]}=$({' '.join(words)})")
    return told


def submit(made: Sequence[tuple[Job, Path]]) -> dict[str, str]:
    """Submits the jobs, each behind those that it waits for. Returns their ids by name."""
    ids: dict[str, str] = {}
    for job, path in made:
        words = sbatch(path, [ids[n] for n in job.after])
        try:
            told = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            raise RecipeError("no sbatch here: run this on a login node of the cluster, or without --submit.") from None
        if told.returncode:
            sent = f"; submitted before it: {', '.join(ids.values())} (scancel removes them)" if ids else ""
            raise RecipeError(f"{shlex.join(words)}: {told.stderr.strip() or told.returncode}{sent}")
        ids[job.name] = told.stdout.strip().split(";")[0]  # the cluster's name may stand behind it
    return ids


# ---- other launchers


@dataclass(frozen=True)
class Host:
    """A line of a hostfile."""

    name: str
    slots: int


def hostfile(path: Path) -> tuple[Host, ...]:
    """The hosts of a deepspeed (or MPI) hostfile: `name slots=8` a line, # begins a comment."""
    if not path.is_file():
        raise RecipeError(f"{path}: no such file; expected a hostfile with a line `name slots=8` for every host.")
    hosts: dict[str, Host] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        found = re.fullmatch(r"(\S+)\s+slots=(\d+)", content)
        if found is None or int(found[2]) < 1:
            raise RecipeError(f"{path}, line {number}: {content!r}; expected `name slots=8`, 1 slot or more.")
        if found[1] in hosts:
            raise RecipeError(f"{path}, line {number}: host {found[1]} is there twice; add up its slots in one line.")
        hosts[found[1]] = Host(found[1], int(found[2]))
    if not hosts:
        raise RecipeError(f"{path}: no host in it; expected a line `name slots=8` for every host.")
    return tuple(hosts.values())


def deepspeed(path: Path, words: Sequence[str]) -> str:
    """The line that starts `omni2vec run words` on the hosts of a hostfile, over ssh."""
    first = hostfile(path)[0].name
    head = ["deepspeed", "--hostfile", str(path), "--master_addr", first, "--no_local_rank", "--module"]
    return shlex.join([*head, "omni2vec", "run", *words])


def torchrun(words: Sequence[str], nodes: int, gpus: int, name: str) -> str:
    """The line that starts `omni2vec run words`, the same on every node."""
    if nodes == 1:
        head = ["torchrun", "--standalone", "--nproc-per-node", str(max(1, gpus))]
        return shlex.join([*head, "-m", "omni2vec", "run", *words])
    head = ["torchrun", "--nnodes", str(nodes), "--nproc-per-node", str(max(1, gpus)), "--max-restarts", "3"]
    head += ["--rdzv-backend", "c10d", "--rdzv-id", name]
    return f'{shlex.join(head)} --rdzv-endpoint "$FIRST_HOST:{PORT}" {shlex.join(["-m", "omni2vec", "run", *words])}'


def program() -> tuple[str, ...]:
    """How this very installation is called on another host that shares its file system."""
    return (sys.executable, "-m", "omni2vec", "run")
