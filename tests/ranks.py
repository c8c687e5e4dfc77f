"""Runs a script in several processes that form a gloo group, and collects what each of them says."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path


def start(script, size, *args, folder, env=None):
    """The processes of `script`, one a rank, with torch's own variables set; `folder` gets their output."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    tests = Path(__file__).parent
    paths = [tests, tests / "train", tests / "model"]  # what scripts share with the tests
    processes = []
    for rank in range(size):
        own = {
            **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
            "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "RESULT": str(Path(folder) / f"result-{rank}.json"), **(env or {}),
        }  # fmt: skip
        log = (Path(folder) / f"rank-{rank}.log").open("w")
        processes.append(
            subprocess.Popen([sys.executable, str(script), *map(str, args)], env=own, stdout=log, stderr=log)
        )
    return processes


def run(script, size, *args, timeout=240, env=None):
    """What each rank of `script` wrote as JSON to the file that $RESULT names. A rank that fails fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        processes = start(script, size, *args, folder=folder, env=env)
        try:
            for p in processes:
                p.wait(timeout)
        finally:
            for p in processes:
                p.kill()
        logs = [(Path(folder) / f"rank-{r}.log").read_text()[-4000:] for r in range(size)]
        assert all(p.returncode == 0 for p in processes), "\n".join(logs)
        return [json.loads((Path(folder) / f"result-{r}.json").read_text()) for r in range(size)]


def say(value):
    """In the script: this rank's result."""
    Path(os.environ["RESULT"]).write_text(json.dumps(value))
