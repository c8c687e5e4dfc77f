"""Stand-ins for sbatch, srun and scontrol that run a job's script on this machine, each of its tasks a process.

    python slurm.py sbatch --parsable [--dependency=afterok:1] job.sh

$SLURM_FAKE is a folder: calls.jsonl what was called; a job that is requeued runs again. srun sends USR1 to its tasks
once the file that $SLURM_FAKE/usr1 names exists, as Slurm does before the time is up. It is the worst of its kind: the
first task that ends badly is the end of the others, 50 ms later, and its own status is then that of SIGKILL.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

FAKE = Path(os.environ.get("SLURM_FAKE", "."))
PROGRAMS = ("sbatch", "srun", "scontrol")


def install(folder):
    """The programs' names as commands in `folder`; gives what PATH and the environment need."""
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_FAKE": str(folder)}


def calls():
    log = FAKE / "calls.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def sbatch(words):
    script = Path(words[-1])
    number = 100 + sum(call[0] == "sbatch" for call in calls())
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=\"?(.*?)\"?$", script.read_text(), re.MULTILINE))
    first, last = map(int, options.get("array", "0-0").split("-"))
    for task in range(first, last + 1):
        job, name = number * 10 + task, f"{number}_{task}" if last else str(number * 10)
        tasks = int(options["nodes"]) * int(options["ntasks-per-node"])
        env = {**os.environ, "SLURM_JOB_ID": str(job), "SLURM_NTASKS": str(tasks), "SLURM_PROCID": "0"}
        env |= {"SLURM_JOB_NODELIST": "localhost"} | (
            {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": str(number)} if last else {}
        )
        while True:
            before = len(requeues(name))
            output = Path(options["output"].replace("%A_%a", name).replace("%j", name).replace("%%", "%"))
            with output.open("a") as log:
                status = subprocess.run(
                    ["bash", str(script)], env=env, stdout=log, stderr=log, cwd=options["chdir"]
                ).returncode
            if len(requeues(name)) == before:
                break
        (FAKE / "ends.txt").open("a").write(f"{script.stem} {task} {status}\n")
    print(number)


def requeues(name):
    return [call for call in calls() if call[:3] == ["scontrol", "requeue", name]]


def srun(words):
    command = words[next(i for i, w in enumerate(words) if not w.startswith("--")) :]
    size, notice = int(os.environ["SLURM_NTASKS"]), FAKE / "usr1"
    given = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(size), "SLURM_STEP_TASKS_PER_NODE": f"{size}(x1)"}
    tasks = [
        subprocess.Popen(command, env={**os.environ, **given, "SLURM_PROCID": str(r), "SLURM_LOCALID": str(r)})
        for r in range(size)
    ]
    killed = False
    while any(t.poll() is None for t in tasks):
        if notice.exists() and Path(notice.read_text()).exists():
            notice.unlink()
            for task in tasks:
                task.send_signal(signal.SIGUSR1)
        if any(t.poll() for t in tasks) and not killed:
            time.sleep(0.05)
            killed = True
            for task in tasks:
                task.kill()
        time.sleep(0.01)
    status = max(t.returncode if t.returncode >= 0 else 128 - t.returncode for t in tasks)
    status = 128 + signal.SIGKILL if status and size > 1 else status
    with (FAKE / "sruns.txt").open("a") as ends:
        ends.write(f"{status}\n")
    sys.exit(status)


def scontrol(words):
    if words[:2] == ["show", "hostnames"]:
        print("localhost")


if __name__ == "__main__":
    name, *given = sys.argv[1:]
    with (FAKE / "calls.jsonl").open("a") as file:
        file.write(json.dumps([name, *given]) + "\n")
    {"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[name](given)
