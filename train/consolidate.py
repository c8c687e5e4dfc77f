"""Whole weights out of a checkpoint of any number of ranks: one safetensors file, or an embedder's folder.

A parameter at a time: beside the mapped parts, memory holds one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data.types import DataError, Where
from ..model.embedder import Embedder
from ..model.lora import merged
from . import parts
from .resume import Checkpoint, opened, same_model

if TYPE_CHECKING:
    from .stage import Stage


def consolidate(folder: Path, file: Path) -> Path:
    """The trained weights of checkpoint `folder` as one safetensors file of float32 tensors, written aside and renamed.

    Their names are the embedder's own. Raises DataError where the checkpoint is damaged.
    """
    found = opened(folder)
    names = sorted(found.shapes)
    head = parts.header([(n, torch.float32, found.shapes[n]) for n in names], {"format": "pt"})
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(file.name + ".partial")
    try:
        parts.write(aside, _blocks(head, found))
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
    return file


def _blocks(head: bytes, found: Checkpoint) -> Iterator[bytes | memoryview]:
    yield head
    for _, weight in parts.whole(found.parts):
        yield parts.view(weight.float())


def overlay(embedder: Embedder, found: Checkpoint) -> None:
    """Trained weights of a checkpoint into a whole embedder, by name; the rest of it stays. Raises DataError where it
    lacks a trained parameter or has another shape for it."""
    there = dict(embedder.named_parameters())
    same_model(found, {n: tuple(there[n].shape) for n in found.shapes if n in there})
    with torch.no_grad():
        for name, weight in parts.whole(found.parts):
            there[name].copy_(weight)


def load_weights(embedder: Embedder, folder: Path, base: str = "") -> None:
    """Trained weights of checkpoint `folder` into a whole embedder. base: as `resume.load` has it."""
    found = opened(folder)
    if base:
        same_model(found, found.shapes, base)
    overlay(embedder, found)


def export(stage: Stage, checkpoint: Path, out: Path, where: Where, base: str = "") -> Path:
    """The embedder's folder `out` that `stage` would leave if it ended at `checkpoint`, made on the CPU alone.

    where: gives the folder of the step that the stage starts from. base: as `resume.load` has it. The checkpoint may
    be of any number of ranks and any engine.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; give the name of a folder for the embedder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.seed)  # as the loop does: new parts that are not trained were drawn from it
        embedder = replace(stage, device="cpu").load(where)
    load_weights(embedder, checkpoint, base)
    return complete(embedder).save(out)


def complete(embedder: Embedder) -> Embedder:
    """The same function as an embedder that can be saved: an adapter that stands on weights of no folder merged in."""
    embedder = embedder.eval()
    if embedder.adapter is not None and not embedder.adapter.active_peft_config.base_model_name_or_path:
        return merged(embedder)
    return embedder
