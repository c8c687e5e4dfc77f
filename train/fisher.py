"""Fisher tensors (arXiv:2111.09832): how much a model's loss depends on each of its weights, beside the weight.

The diagonal of the empirical Fisher information, with the squared gradient of a batch's contrastive loss in place of a
row's: rows of a batch are no independent draws, they are each other's negatives. Squares are added in the file itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.types import Where
from ..model.merge.types import PIECE
from ..model.merge.weights import header
from ..model.merge.writing import Wanted, Writer
from .sample import Probing, Sample, filed, loaded, names_of


@dataclass(frozen=True)
class ProbeFisher:
    """The rule of a Merge step that makes the Fisher tensors of its models on a sample of rows, then merges by them.

    Give the sample several batches: of one, the square of a gradient is mostly its noise. weights: of the models, one
    each or one for all.
    """

    sample: Sample
    weights: tuple[float, ...] = (1.0,)


def write_fisher(model: str, sample: Sample, where: Where, file: Path) -> float:
    """The mean squared gradient of the sample's batches by each weight, float32, under the names of the model's files;
    gives the sample's loss. In memory: the model, its gradient, and the pages of the file. Written aside, renamed.
    """
    embedder = loaded(model)
    wanted = [Wanted(n, torch.float32, tuple(t.shape), t.numel()) for n, t in sorted(names_of(embedder).items())]
    aside = file.with_name(file.name + ".partial")
    with Writer(aside, wanted) as writer:
        zeros = torch.zeros(PIECE)
        for w in wanted:
            for start in range(0, w.count, PIECE):
                writer.write(zeros[: min(PIECE, w.count - start)])
    entries = header(aside)
    with Probing(embedder, sample, where) as probing:
        count = len(probing.plans)

        def add(name: str, gradient: Tensor) -> None:
            entry = entries[filed(name)]
            there = np.memmap(aside, np.float32, "r+", entry.start, (entry.count,))
            there += (gradient.detach().float().square() / count).cpu().numpy().reshape(-1)
            there.flush()

        loss = probing.loss(add)
    aside.replace(file)
    return loss
