"""What must survive a kill: weights, moments, random state, counters. Safetensors and JSON, by parameter name.

A checkpoint is written aside and renamed, so that one which is there is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..model.checkpoint import RECORD
from .engine import Local

FOLDER = "checkpoints"
_STATE, _WEIGHTS, _MOMENTS = "state.json", "weights.safetensors", "moments.safetensors"


@dataclass
class State:
    """Where a stage stands. step: updates done; skipped: rows left out, with their keys; choices made by measuring."""

    step: int = 0
    skipped_steps: int = 0
    skipped_sources: dict[str, int] = field(default_factory=dict)
    skipped_keys: list[str] = field(default_factory=list)
    best: float | None = None
    best_step: int = 0
    without_gain: int = 0  # evaluations since the best
    stopped: bool = False
    memory: str = ""
    chunk_tokens: int = 0


def path_of(out: Path, step: int) -> Path:
    return out / FOLDER / f"step-{step:08d}"


def existing(out: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(p for p in (out / FOLDER).glob("step-*") if p.suffix == "" and (p / _STATE).is_file())


def _named(engine: Local) -> dict[int, str]:
    return {id(p): n for n, p in engine.embedder.named_parameters()}


def save(engine: Local, state: State, out: Path) -> Path:
    """Write checkpoint `state.step`."""
    from safetensors.torch import save_file

    folder = path_of(out, state.step)
    if folder.exists():
        return folder
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    trained = {n: p.detach().cpu().contiguous() for n, p in engine.embedder.named_parameters() if p.requires_grad}
    save_file(trained, aside / _WEIGHTS)
    names, moments = _named(engine), {}
    for parameter, values in engine.optimizer.state.items():
        for key, value in values.items():
            moments[f"{names[id(parameter)]}|{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
    moments["rng|cpu"] = torch.get_rng_state()
    if engine.device.type == "cuda":
        moments["rng|cuda"] = torch.cuda.get_rng_state(engine.device)
    save_file(moments, aside / _MOMENTS)
    (aside / _STATE).write_text(json.dumps(asdict(state)))
    aside.rename(folder)
    return folder


def load_weights(engine: Local, folder: Path) -> None:
    """Trained parameters of a checkpoint, by name."""
    from safetensors.torch import load_file

    found = load_file(folder / _WEIGHTS)
    wanted = {n: p for n, p in engine.embedder.named_parameters() if p.requires_grad}
    if set(found) != set(wanted):
        odd = sorted(set(found) ^ set(wanted))
        raise ValueError(
            f"{folder}: its trained parameters are not this stage's ({odd[0]} and {len(odd) - 1} more differ)"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])


def load(engine: Local, folder: Path) -> State:
    """Put weights, moments and random state back; returns the counters."""
    from safetensors.torch import load_file

    load_weights(engine, folder)
    moments: Mapping[str, Tensor] = load_file(folder / _MOMENTS)
    names = {n: i for i, n in _named(engine).items()}
    by_id = {id(p): p for p in engine.parameters}
    for key, value in moments.items():
        name, what = key.rsplit("|", 1)
        if name == "rng":
            continue
        parameter = by_id[names[name]]
        place: Any = engine.optimizer.state[parameter]
        place[what] = value.to(parameter.device) if what != "step" or parameter.is_cuda else value
    torch.set_rng_state(moments["rng|cpu"])
    if "rng|cuda" in moments and engine.device.type == "cuda":
        torch.cuda.set_rng_state(moments["rng|cuda"], engine.device)
    return State(**json.loads((folder / _STATE).read_text()))


def prune(out: Path, keep: int, state: State) -> None:
    """Leave the newest `keep` checkpoints, and the best."""
    found = existing(out)
    best = path_of(out, state.best_step) if state.best is not None else None
    for folder in found[:-keep] if keep else found:
        if folder != best:
            # Renamed first: a kill in the middle must not leave half of a checkpoint under a whole one's name.
            gone = folder.with_name(folder.name + ".gone")
            folder.rename(gone)
            shutil.rmtree(gone)


def close(out: Path) -> None:
    """Remove the checkpoints of a stage whose output is whole. Renamed first: half of one must not look like one."""
    gone = out / f"{FOLDER}.gone"
    (out / FOLDER).rename(gone)
    shutil.rmtree(gone)


def closed(out: Path) -> bool:
    """Whether `close` was reached: the output is whole, and there is nothing to resume."""
    if not (out / RECORD).is_file() or (out / FOLDER).exists():
        return False
    shutil.rmtree(out / f"{FOLDER}.gone", ignore_errors=True)
    return True
