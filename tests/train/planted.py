"""Rows whose vectors are known: texts stand for vectors in a table, so that every cosine is chosen."""

from dataclasses import dataclass

import numpy as np
import torch
from omni2vec.data.types import Example, Item


@dataclass(frozen=True)
class Known:
    """An Encoder that looks a text up. It has seen `asked` Items."""

    table: dict
    digest: str = "known"

    def encode_items(self, items, *, side="query", instruction="", progress=""):
        return torch.stack([torch.from_numpy(self.table[item.parts[0].text]) for item in items])


def at(cosine: float, dim: int, axis: int) -> np.ndarray:
    """A unit vector with this cosine to the first axis, the rest along another."""
    out = np.zeros(dim, np.float32)
    out[0], out[axis] = cosine, np.sqrt(1 - cosine * cosine)
    return out


def one_query(cosines: dict[str, float], positives: list[str], **fields) -> tuple[Known, list[Example]]:
    """A query with documents at chosen cosines, of which some are its positives; each other document has a row of its
    own, whose query is far from everything."""
    dim = len(cosines) + 2
    table = {name: at(c, dim, i + 1) for i, (name, c) in enumerate(cosines.items())}
    table["q"] = at(1.0, dim, 1)
    far = np.zeros(dim, np.float32)
    far[-1] = 1
    rows = [Example("rows/0", "rows", "retrieval", Item.text("q"), tuple(map(Item.text, positives)), **fields)]
    for name in cosines:
        if name not in positives:
            table[f"of {name}"] = far
            rows.append(Example("", "rows", "retrieval", Item.text(f"of {name}"), (Item.text(name),)))
    return Known(table), rows
