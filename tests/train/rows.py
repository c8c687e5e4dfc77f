"""Rows for the tests of objectives: ids are single words, and the Items are what their ids say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from omni2vec.data.relation import Relation
from omni2vec.data.types import Example, Item
from torch import Tensor


def row(
    query: str, positives: str, negatives: str = "", known: str = "", label: str = "", source: str = "a"
) -> Example:
    """Ids are single words; the Items are what their ids say."""
    items = [tuple(Item((), given_id=i) for i in text.split()) for text in (positives, negatives)]
    return Example("k", source, "retrieval", Item((), given_id=query), *items, known=tuple(known.split()), label=label)


def plain(count: int) -> list[Example]:
    return [row(f"q{i}", f"d{i}") for i in range(count)]


def mixed(count: int = 23) -> list[Example]:
    """One of everything: several positives, none, hard negatives, shared answers, equal queries, own Items, classes."""
    rows = [
        row(
            f"q{i - 11 * (i == 17)}",  # rows 6 and 17 ask the same
            " ".join([f"d{i if i % 7 else 100}"] + [f"e{i}.{k}" for k in range(i % 3)]),  # 0, 7, 14, 21 share an answer
            " ".join(f"n{i}.{k}" for k in range(i % 4)),
            known=f"d{(5 * i + 1) % count} n{i + 1}.0 far{i}",
            label=["", "red", "blue"][i % 3],
            source="ab"[i % 5 == 0],
        )
        for i in range(count)
    ]
    rows[3] = row("q3", "d3", "d3 q3 d4 q9", label="red")  # given negatives that are right after all, or itself
    rows[8] = row("q8", "q9 d8", "n8", source="b")  # an answer that is another row's query
    rows[12] = row("q12", "", "n12", label="blue")  # nothing to find
    return rows


def vectors(relation: Relation, dim: int = 5, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    sizes = [len(relation.query_id), len(relation.doc_id)]
    made = [F.normalize(torch.randn(n, dim, dtype=torch.float64), dim=-1) for n in sizes]
    return [t.requires_grad_() for t in (*made, torch.tensor([7.0], dtype=torch.float64))]
