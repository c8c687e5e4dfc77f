"""A recipe on a cluster: Slurm jobs written and submitted, a hostfile read for deepspeed, a line for torchrun."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.types import Step
from ..train.guard import RESTART
from .command import REQUEUE
from .graph import Recipe, needs
from .run import Folder, _refuse_changed, survey
from .words import RecipeError

NOTICE_S = 180  # before a job's end: time to save
SHORTEST_S = 300  # of a job that gets this notice, which Slurm may send a minute early
PORT = 29_500
WAIT_S = 120  # the other tasks get, once one has ended: the first one says farewell for 30 s, then something hangs
TIME = re.compile(r"(?:(?P<d>\d+)-(?P<h>\d+)(?::(?P<m>\d+)(?::(?P<s>\d+))?)?|(?P<parts>\d+(?::\d+){0,2}))")
MODELS = ("Evaluate", "Release")  # steps that run a model in one process, whatever they stand on


@dataclass(frozen=True)
class Slurm:
    """What each job asks of the cluster. nodes, gpus (a node): of steps with several ranks; the others take one GPU or
    none (see `Job`). time: as sbatch takes it, M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; "" is the partition's.

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
        if min(self.nodes, self.gpus, self.cpus) < 1:
            raise RecipeError(f"nodes={self.nodes}, gpus={self.gpus}, cpus={self.cpus}: expected 1 or more of each.")
        for name, value in (("partition", self.partition), ("account", self.account)):
            if re.search(r"\s", value):
                raise RecipeError(f"{name}={value!r}: there is a blank in it; expected one of the cluster's names.")
        self.seconds()
        if wrong := [o for o in self.extra if not o.startswith("--")]:
            raise RecipeError(f"{wrong[0]!r}: expected an option of sbatch, such as --constraint=h100")

    def seconds(self) -> int:
        """The time in seconds; 0: no limit of ours."""
        if not self.time:
            return 0
        found = TIME.fullmatch(self.time)
        if found is None:
            raise RecipeError(f"time={self.time!r}: expected M, M:S, H:M:S, D-H, D-H:M or D-H:M:S, as sbatch takes it.")
        if found["parts"]:
            parts = [int(p) for p in found["parts"].split(":")]
            hours, minutes, seconds = parts if len(parts) == 3 else (0, *parts, 0)[:3]
            return 3600 * hours + 60 * minutes + seconds
        days, hours, minutes, seconds = (int(found[k] or 0) for k in "dhms")
        return 86_400 * days + 3600 * hours + 60 * minutes + seconds


@dataclass(frozen=True)
class Job:
    """Steps that one job makes, a task of its array each; it waits for the jobs that `after` names.

    parallel: a task for every GPU. resumes: stopped before the time is up, the job goes back into the queue; a step
    that begins afresh would do so for ever. gpu: every step asks for one but those that stand on no other (they make
    data or a first model) and are neither parallel nor of MODELS.
    """

    name: str
    steps: tuple[str, ...]
    parallel: bool
    resumes: bool
    gpu: bool
    after: tuple[str, ...]


def left(recipe: Recipe, at: Path) -> tuple[Step, ...]:
    """The steps that are still to be made, in order. Raises RecipeError where one was made from other fields."""
    standings = survey(recipe, Folder(at))
    _refuse_changed(standings, at)
    return tuple(s.step for s in standings if s.state != "done")


def jobs(steps: Sequence[Step], array: bool = True) -> tuple[Job, ...]:
    """The jobs of `steps`, which are in order, in an order in which they may be submitted."""
    level: dict[str, int] = {}
    groups: dict[tuple[int, bool, bool, bool, str], list[str]] = {}
    waits: dict[str, tuple[str, ...]] = {}
    for step in steps:
        kind, stands_on = type(step), needs(step)
        waits[step.name] = tuple(n.name for n in stands_on if n.name in level)
        level[step.name] = 1 + max((level[n] for n in waits[step.name]), default=0)
        parallel, resumes = bool(getattr(kind, "parallel", False)), bool(getattr(kind, "resumes", False))
        gpu = parallel or bool(stands_on) or kind.__name__ in MODELS
        alike = (level[step.name], parallel, resumes, gpu, "" if array else step.name)
        groups.setdefault(alike, []).append(step.name)
    ordered = sorted(groups.items(), key=lambda group: group[0][0])
    at = {name: f"{place:02d}-{names[0]}" for place, (_, names) in enumerate(ordered, 1) for name in names}
    return tuple(
        Job(at[names[0]], tuple(names), *alike[1:4], tuple(dict.fromkeys(at[w] for name in names for w in waits[name])))
        for alike, names in ordered
    )


def script(job: Job, asked: Slurm, command: Sequence[str], logs: Path) -> str:
    """The batch script of a job, for the folder that this process works in; `logs` is RUN/jobs. `command` makes the
    recipe; --only and the step are added."""
    run = f'srun --kill-on-bad-exit=0 --wait={WAIT_S} --cpus-per-task={asked.cpus} {shlex.join(command)} --only "$step"'
    # In an array, the id of one of its tasks is that of them all.
    number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if len(job.steps) > 1 else "$SLURM_JOB_ID"
    chosen = "${steps[${SLURM_ARRAY_TASK_ID:-0}]}"
    lines = [
        "#!/usr/bin/env bash",
        *_options(job, asked, logs),
        "# Every task of srun is one rank.",
        "set -uo pipefail",
        f"steps=({' '.join(shlex.quote(s) for s in job.steps)})",
        f'step="{chosen}"',
    ]
    if not job.resumes:
        return "\n".join([*lines, run, ""])
    return "\n".join(
        [
            *lines,
            f"# USR1 comes before the time is up: the step saves, and ends with status {RESTART}; then the job goes",
            "# back into the queue, and goes on from there. srun's own status is another where it has ended a task by",
            "# force, so a process that ends in this way leaves a file, too.",
            f'export {REQUEUE}={shlex.quote(str(logs))}/"$step".requeue',
            f'rm -f "${REQUEUE}"',
            run,
            "status=$?",
            f'if [ "$status" -eq {RESTART} ] || {{ [ "$status" -ne 0 ] && [ -e "${REQUEUE}" ]; }}; then',
            '    echo "step $step is stopped and saved; back into the queue"',
            f'    rm -f "${REQUEUE}"  # before: a requeue may end this script',
            f'    scontrol requeue "{number}"',
            "fi",
            'exit "$status"',
            "",
        ]
    )


def _options(job: Job, asked: Slurm, logs: Path) -> list[str]:
    tasks, nodes = (asked.gpus, asked.nodes) if job.parallel else (1, 1)
    many = len(job.steps) > 1
    output = f"{logs}/{job.name}".replace("%", "%%") + f"-{'%A_%a' if many else '%j'}.log"
    options = {
        "job-name": _quoted(f"omni2vec-{logs.resolve().parent.name}-{job.name}"),
        "chdir": _quoted(str(Path.cwd())),
        "nodes": nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": asked.cpus,
        "gpus-per-node": tasks if job.gpu else "",
        "time": asked.time,
        "partition": asked.partition,
        "account": asked.account,
        "array": f"0-{len(job.steps) - 1}" if many else "",
        "output": _quoted(output),
        "open-mode": "append",
        "signal": f"USR1@{NOTICE_S}" if job.resumes else "",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value != ""]
    # After a host's failure; this makes a step afresh, too.
    return [*lines, "#SBATCH --requeue", *(f"#SBATCH {option}" for option in asked.extra)]


def _quoted(value: str) -> str:
    if re.search(r'["\\\n]', value):
        raise RecipeError(f"{value!r}: sbatch cannot read a path with a quote, a backslash or a line's end; rename it.")
    return f'"{value}"'


def write(recipe: Recipe, at: Path, asked: Slurm, command: Sequence[str]) -> list[tuple[Job, Path]]:
    """A script for every job that is left, in `at`/jobs; those of an earlier call that are not wanted any more go.
    Raises RecipeError, before it writes anything, where a made step differs or the time is too short."""
    wanted, folder = jobs(left(recipe, at), asked.array), at / "jobs"
    stopped = [name for job in wanted if job.resumes for name in job.steps]
    if stopped and 0 < asked.seconds() <= SHORTEST_S:
        raise RecipeError(
            f"time={asked.time!r}: {stopped[0]} is told to save {NOTICE_S // 60} minutes before the end; expected more "
            f"than {SHORTEST_S // 60} minutes (sbatch reads a number alone as minutes, two as minutes:seconds)."
        )
    texts = {folder / f"{job.name}.sh": script(job, asked, command, folder) for job in wanted}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9]*-*.sh"):
        if old not in texts:
            old.unlink()
    for path, text in texts.items():
        aside = path.with_name(path.name + ".new")
        aside.write_text(text)
        aside.chmod(0o755)
        aside.replace(path)
    return list(zip(wanted, texts, strict=True))


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
        head = ["torchrun", "--standalone", "--nproc-per-node", str(gpus)]
        return shlex.join([*head, "-m", "omni2vec", "run", *words])
    head = ["torchrun", "--nnodes", str(nodes), "--nproc-per-node", str(gpus), "--max-restarts", "3"]
    head += ["--rdzv-backend", "c10d", "--rdzv-id", name]
    return f'{shlex.join(head)} --rdzv-endpoint "$FIRST_HOST:{PORT}" {shlex.join(["-m", "omni2vec", "run", *words])}'


def program() -> tuple[str, ...]:
    """How this very installation is called on another host that shares its file system."""
    return (sys.executable, "-m", "omni2vec", "run")
