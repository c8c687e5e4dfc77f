"""One of each row-wise objective, as tests of all of them make it: options in, objective out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from omni2vec.data.relation import Relation
from omni2vec.data.schedules import Ramp
from omni2vec.data.types import Clock, Example
from omni2vec.train.objectives.diht import DiHT
from omni2vec.train.objectives.focal import Focal
from omni2vec.train.objectives.focal_infonce import FocalInfoNCE
from omni2vec.train.objectives.hardness import Hardness
from omni2vec.train.objectives.masked import Masked
from omni2vec.train.objectives.progressive import Progressive
from omni2vec.train.objectives.rowwise import Plain, Rowwise
from omni2vec.train.objectives.soft_cse import SoftCSE
from torch import Tensor

CLOCK = Clock(step=0, progress=0.25, seed=0)


CASES: dict[str, Callable[..., Rowwise | Progressive]] = {
    "plain": Plain,
    "masked": lambda **o: Masked(margin=0.2, query_query=True, doc_doc=True, **o),
    "focal": lambda **o: Focal(gamma=Ramp(0.0, 2.0), **o),
    "focal, attached": lambda **o: Focal(gamma=0.5, detached=False, **o),
    "hardness": lambda **o: Hardness(alpha=3.0, **o),
    "focal infonce": FocalInfoNCE,
    "diht": lambda **o: DiHT(beta=2.0, **o),
    "diht, detached": lambda **o: DiHT(a=1.2, beta=2.0, detached=True, **o),
    "soft cse": lambda **o: SoftCSE(detached=False, **o),
    "soft cse, temperature": lambda **o: SoftCSE(by="temperature", **o),
    "progressive": lambda **o: Progressive(Focal(**o), kappa=0.7),
}


def ours(o: Any, examples: list[Example], *operands: Tensor) -> tuple[Tensor, int]:
    result = o.contrast(operands[0], operands[1], Relation.of(examples, ["a", "b"]), operands[2], CLOCK)
    return result.sum, result.count


def whole(o: Any, relation: Relation, operands: list[Tensor]) -> tuple[Tensor, int, list[Tensor]]:
    out = o.contrast(operands[0], operands[1], relation, operands[2], CLOCK)
    return out.sum.detach(), out.count, list(torch.autograd.grad(out.sum, operands))
