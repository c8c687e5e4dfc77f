"""Run as a script: saves are killed with -9 at each of their system calls in turn; says what each kill has left.

Of every kill: what was whole behind it, whether the next start restores it, and what is there after a save of its own.
"""

import json
import os
import shutil
import signal
import sys
from hashlib import blake2b
from pathlib import Path

import torch
from omni2vec.train import parts, resume
from omni2vec.train.snapshot import Saver

from shares import Share, net, whole  # beside this file  # isort: skip


class Digest:
    def __init__(self, **settings):
        self.real = blake2b(**settings)

    def update(self, piece):
        self.real.update(piece)

    def hexdigest(self):
        return self.real.hexdigest()


def kill_at(call):
    """The call-th of the calls that change the disk is not made: the process is gone."""
    made = [0]

    def watched(owner, name):
        real = getattr(owner, name)

        def wrapped(*args, **kwargs):
            made[0] += 1
            if made[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(owner, name, wrapped)

    watched(os, "fsync")
    for name in ("mkdir", "rename", "replace", "unlink", "open"):
        watched(Path, name)
    watched(Digest, "update")  # once a piece that is written
    parts.blake2b = Digest
    real = shutil.rmtree

    def half(path, **settings):
        """A removal that is killed in its middle: one file is gone, the others are there."""
        made[0] += path.exists()
        if made[0] == call and path.exists():
            next(path.iterdir()).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, **settings)

    shutil.rmtree = half


def saves(out, call):
    """Steps 1 and 2 are saved as training goes on; 2 with kills."""
    engine = Share(net()).train(1)
    with Saver(engine, out) as saver:
        saver.save(resume.State(step=1), background=False)
        kill_at(call)
        engine.train(1, first=1)
        saver.save(resume.State(step=2))


def weights(engine):
    return [p.detach().flatten().tolist() for p in engine.net.parameters()]


def main(folder):
    torch.set_num_threads(1)
    parts._STRIDE = 1024  # several writes a part
    wanted = {s: weights(Share(net()).train(s)) for s in (1, 2, 3)}
    told = []
    for call in range(1, 100):
        out = folder / str(call)
        if not (pid := os.fork()):
            saves(out, call)
            os._exit(0)
        died = os.waitpid(pid, 0)[1] == signal.SIGKILL
        there = [p.name for p in resume.existing(out)]
        engine = Share(net(seed=1))
        state = resume.load(engine, resume.existing(out)[-1])
        engine = whole([engine])
        right = weights(engine) == wanted[state.step]
        with Saver(engine.train(3 - state.step, first=state.step), out) as saver:
            saver.save(resume.State(step=3))
        right = right and weights(engine) == wanted[3]
        after = sorted(p.name for p in (out / resume.FOLDER).iterdir())
        told.append({"call": call, "died": died, "there": there, "right": right, "after": after})
        if not died:
            break
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
