"""Indices of a batch to what a person can read."""

from __future__ import annotations

import torch
from omni2vec.data.order import Address
from omni2vec.data.planned import Plan
from omni2vec.data.relation import Relation
from omni2vec.data.types import Cost, Example, Item, Text
from omni2vec.train.examples import examples
from omni2vec.train.health import look


def _example(word: str) -> Example:
    query, right, wrong = (Item((Text(f"{kind} {word}"),)) for kind in ("ask", "is", "not"))
    return Example(f"web/0/{word}", "web", "retrieval", query, (right,), (wrong,), instruction="Find it.")


def test_what_a_query_finds_is_named_by_row_and_kind_and_told_in_words() -> None:
    rows = [_example(w) for w in ("one", "two")]
    slots = ((0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (1, 2))
    plan = Plan(
        step=4,
        addresses=tuple(Address(0, i, 0) for i in range(2)),
        keys=tuple(r.key for r in rows),
        relation=Relation.of(rows, ["web"]),
        costs=(Cost(1),) * 6,
        chunks=(),
        groups=(0,) * 6,
        slots=slots,
    )
    eye = torch.eye(3, dtype=torch.float64)
    #                     one     two     its +   its -   two's +  two's -
    vectors = torch.stack([eye[0], eye[1], eye[0], eye[2], eye[1] * 0.6 + eye[0] * 0.8, eye[2]])
    health = look(vectors, plan.relation, top=2, seed=0)
    shown = examples(plan, health.examples, ["web"], lambda q: rows[q])
    assert shown[0] == {
        "query": "web/0/one",
        "source": "web",
        "instruction": "Find it.",
        "text": "ask one",
        "found": [
            {"document": "web/0/one positive 0", "score": 1.0, "right": True, "text": "is one"},
            {"document": "web/0/two positive 0", "score": 0.8, "right": False, "text": "is two"},
        ],
    }
    assert [q["query"] for q in shown] == ["web/0/one", "web/0/two"]
    bare = examples(plan, health.examples, ["web"])
    assert set(bare[0]) == {"query", "source", "found"}
