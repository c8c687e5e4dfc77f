"""Labelled items -> rows: which class is it, and which others are of its class."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import Example, Item, digest

Labelled = Sequence[tuple[Item, str]]


def classification(source: str, split: str, items: Labelled, classes: Sequence[str], instruction: str) -> list[Example]:
    """Item -> the name of its class, which is also the answer to generate.

    Outside train every row names all other classes as wrong answers, so that a split in which a class does not occur is
    still scored against all; in train the batch has them, and `label` says which of its rows are alike.
    """
    names = {label: Item.text(label) for label in classes}
    wrong = [] if split == "train" else list(names.values())
    return [
        Example(
            key=f"{source}/{split}/{i}",
            source=source,
            task="classification",
            query=item,
            positives=(names[label],),
            negatives=tuple(n for n in wrong if n is not names[label]),
            known=(names[label].id,),
            label=label,
            instruction=instruction,
            answer=label,
        )
        for i, (item, label) in enumerate(items)
    ]


def same_class(
    source: str, split: str, items: Labelled, instruction: str, target_instruction: str = ""
) -> list[Example]:
    """Item -> another of its class; all others of the class are known to be right.

    In train every item asks once and answers once. In any other split each class is halved, by digest, into those that
    ask and those that are found, so that no query stands in the pool; nothing where fewer than two classes can be.
    """
    members: dict[str, dict[str, Item]] = {}
    for item, label in items:
        members.setdefault(label, {}).setdefault(item.id, item)
    usable = {label: sorted(m.values(), key=lambda i: digest(i.id)) for label, m in members.items() if len(m) > 1}
    if len(usable) < 2:
        return []
    rows: list[Example] = []
    for label, ordered in usable.items():
        half = len(ordered) if split == "train" else len(ordered) // 2
        asking = ordered[:half]
        found = ordered[1:] + ordered[:1] if split == "train" else ordered[half:]
        for i, query in enumerate(asking):
            # Outside train each item of the second half is found once, so the pool is all of them.
            positives = found[i : i + 1] if split == "train" else found[i :: len(asking)]
            rows.append(
                Example(
                    key=f"{source}/{split}/{len(rows)}",
                    source=source,
                    task="retrieval",
                    query=query,
                    positives=tuple(positives),
                    known=tuple(item.id for item in found if item is not query),
                    label=label,
                    instruction=instruction,
                    target_instruction=target_instruction,
                )
            )
    return rows
