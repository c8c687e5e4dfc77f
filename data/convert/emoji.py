"""Emoji (Twemoji): names <-> pictures, categories, and a picture with a change of skin tone -> the changed picture."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..types import Example, Item, Where, digest
from .folder import Row, Splits, Tasks, joined, medium, outside, splits, unseen, write
from .labelled import classification

HARDEST = 4  # negatives a row, of the names that differ by one word
_TONES = re.compile(r"^(.*?)((?:, (?:medium-)?(?:light|medium|dark) skin tone)+)$")


@dataclass(frozen=True)
class Emoji:
    """Parquet with image (bytes), name and category -> {split}/emoji_picture (name -> picture), emoji_name (picture ->
    name), emoji_category, emoji_composed (picture and tone -> picture)."""

    root: str
    name: str = "emoji"

    def outside(self, where: Where) -> Mapping[str, str]:
        return outside(self.root)

    def tasks(self) -> Tasks:
        return _tasks(unseen(splits(self.root, ("image", "name", "category")), lambda row: row["image"]))

    def make(self, out: Path, where: Where) -> None:
        write(out, self.tasks())


def _tasks(found: Splits) -> Tasks:
    classes = sorted({row["category"] for rows in found.values() for row in rows})
    for split, rows in found.items():
        pictures = [medium("image", row["image"], f"emoji {split} {row['name']}") for row in rows]
        yield split, "emoji_picture", _naming("emoji_picture", split, rows, pictures)
        yield split, "emoji_name", _naming("emoji_name", split, rows, pictures)
        items = [(picture, row["category"]) for picture, row in zip(pictures, rows, strict=True)]
        asked = "Identify the category of the emoji."
        yield split, "emoji_category", classification("emoji_category", split, items, classes, asked)
        yield split, "emoji_composed", _composed("emoji_composed", split, rows, pictures)


def _naming(source: str, split: str, rows: Sequence[Row], pictures: Sequence[Item]) -> list[Example]:
    """Name -> picture, or picture -> name. Some pictures have several names: all are known to be right."""
    names = [Item.text(row["name"]) for row in rows]
    to_picture = source == "emoji_picture"
    queries, targets = (names, pictures) if to_picture else (pictures, names)
    right = defaultdict(list)
    for query, target in zip(queries, targets, strict=True):
        right[query.id].append(target.id)
    hard = hardest([row["name"] for row in rows])
    return [
        Example(
            key=f"{source}/{split}/{i}",
            source=source,
            task="retrieval",
            query=query,
            positives=(target,),
            negatives=tuple(targets[j] for j in hard[i] if targets[j].id not in right[query.id]),
            known=tuple(right[query.id]),
            instruction="Find the emoji of this name." if to_picture else "Find the name of the emoji.",
            target_instruction="Represent the emoji." if to_picture else "",
            answer="" if to_picture else rows[i]["name"],
        )
        for i, (query, target) in enumerate(zip(queries, targets, strict=True))
    ]


def hardest(names: Sequence[str]) -> list[list[int]]:
    """For each name, the places of up to HARDEST others that differ from it in one word of two or more."""
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    holes: list[list[tuple[str, ...]]] = []
    for i, name in enumerate(names):
        words = name.lower().split()
        mine = [(*words[:w], "", *words[w + 1 :]) for w in range(len(words))] if len(words) > 1 else []
        holes.append(mine)
        for hole in mine:
            alike[hole].append(i)
    near = [sorted({j for hole in mine for j in alike[hole]} - {i}) for i, mine in enumerate(holes)]
    return [sorted(js, key=lambda j: digest(names[i], names[j]))[:HARDEST] for i, js in enumerate(near)]


def _composed(source: str, split: str, rows: Sequence[Row], pictures: Sequence[Item]) -> list[Example]:
    """A picture and "with dark skin tone" -> the same thing in that tone; its other tones are negatives."""
    families: dict[str, list[tuple[str, Item]]] = defaultdict(list)
    for row, picture in zip(rows, pictures, strict=True):
        toned = _TONES.match(row["name"])
        families[toned[1] if toned else row["name"]].append((toned[2][2:] if toned else "", picture))
    examples: list[Example] = []
    for family in families.values():
        for tone, target in family:
            others = [picture for _, picture in family if picture.id != target.id]
            if not tone or not others:
                continue
            base = min(others, key=lambda p: digest(target.id, p.id))
            examples.append(
                Example(
                    key=f"{source}/{split}/{len(examples)}",
                    source=source,
                    task="retrieval",
                    query=joined(base, f"with {tone}"),
                    positives=(target,),
                    # The picture asked with is a wrong answer too, and the one that is nearest.
                    negatives=(base, *(p for p in others if p is not base)),
                    known=(target.id,),
                    instruction="Find the emoji that results from the change.",
                    target_instruction="Represent the emoji.",
                )
            )
    return examples
