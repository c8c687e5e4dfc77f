"""Queries of a batch with what they find in it, by key and in words: from indices to what a person can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..data.planned import Plan
from ..data.told import told
from ..data.types import Example, Item
from .health import Found


def examples(
    plan: Plan, found: Sequence[Found], names: Sequence[str], read: Callable[[int], Example] | None = None
) -> list[dict[str, Any]]:
    """For `Monitor.examples`. names: of the sources. read: query index -> its Example as drawn, for instructions and
    texts; without it there are keys and scores alone.

    A document has no key of its own: `web/0003/17 positive 0` is the first right answer of that row.
    """
    drawn: dict[int, Example] = {}

    def example(query: int) -> Example | None:
        if read is None:
            return None
        if query not in drawn:
            drawn[query] = read(query)
        return drawn[query]

    out = []
    for one in found:
        mine = example(one.query)
        about = {"instruction": mine.instruction, "text": told(mine.query)} if mine else {}
        hits = []
        for hit in one.hits:
            owner, k = plan.slots[len(plan.keys) + hit.doc]
            theirs = example(owner)
            text = {"text": told(_documents(theirs)[k - 1])} if theirs else {}
            kind = "positive" if bool(plan.relation.positive[hit.doc]) else "negative"
            name = f"{plan.keys[owner]} {kind} {int(plan.relation.rank[hit.doc])}"
            hits.append({"document": name, "score": round(hit.score, 4), "right": hit.right, **text})
        key = plan.keys[one.query]
        out.append({"query": key, "source": names[plan.groups[one.query]], **about, "found": hits})
    return out


def _documents(example: Example) -> tuple[Item, ...]:
    return (*example.positives, *example.negatives)
