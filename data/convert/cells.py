"""Cells (BCCD): microscope pictures with boxes -> grounding, kinds of cells, counting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from ..types import Example, Item, Where
from .folder import Row, Splits, Tasks, joined, medium, outside, splits, unseen, write
from .labelled import classification

SMALLEST = 4  # pixels: boxes cut at the picture's edge may be thinner, and show nothing


@dataclass(frozen=True)
class Cells:
    """Parquet with image (bytes) and objects ({label, box in pixels}) -> {split}/cells_grounding, cells_classes,
    cells_count."""

    root: str
    name: str = "cells"

    def outside(self, where: Where) -> Mapping[str, str]:
        return outside(self.root)

    def tasks(self) -> Tasks:
        return _tasks(unseen(splits(self.root, ("image", "objects")), lambda row: row["image"]))

    def make(self, out: Path, where: Where) -> None:
        write(out, self.tasks())


def _tasks(found: Splits) -> Tasks:
    labels = sorted({o["label"] for rows in found.values() for row in rows for o in row["objects"]})
    counts = [Counter(o["label"] for o in row["objects"]) for rows in found.values() for row in rows]
    ranges = {label: range(max(c[label] for c in counts) + 1) for label in labels}
    for split, rows in found.items():
        pictures = [medium("image", row["image"], f"cells {split} {i}") for i, row in enumerate(rows)]
        cut = [crops(row, f"cells {split} {i}") for i, row in enumerate(rows)]
        yield split, "cells_grounding", _grounding(split, pictures, cut)
        # One crop of each kind a picture: nine cells in ten are red, and a guess at that should not score.
        shown = [(items[0], label) for here in cut for label in labels if (items := here.get(label))]
        asked = "Identify the kind of blood cell."
        yield split, "cells_classes", classification("cells_classes", split, shown, labels, asked)
        yield split, "cells_count", list(_counts(split, pictures, rows, ranges))


def crops(row: Row, where: str) -> dict[str, list[Item]]:
    """The boxes of a picture cut out, as PNG, by label; in the order of the row."""
    import PIL.Image

    picture = PIL.Image.open(BytesIO(row["image"])).convert("RGB")
    cut: dict[str, list[Item]] = {}
    for n, thing in enumerate(row["objects"]):
        left, top, right, bottom = thing["box"]
        if min(right - left, bottom - top) >= SMALLEST:
            file = BytesIO()
            picture.crop((left, top, right, bottom)).save(file, "PNG")
            cut.setdefault(thing["label"], []).append(medium("image", file.getvalue(), f"{where} box {n}"))
    return cut


def _grounding(split: str, pictures: Sequence[Item], cut: Sequence[Mapping[str, list[Item]]]) -> list[Example]:
    """Picture and "the platelet" -> its crop, among all crops of the picture. Only where at most half are right."""
    examples: list[Example] = []
    for picture, here in zip(pictures, cut, strict=True):
        for label, right in here.items():
            wrong = [item for other, items in here.items() if other != label for item in items]
            if len(right) <= len(wrong):
                examples.append(
                    Example(
                        key=f"cells_grounding/{split}/{len(examples)}",
                        source="cells_grounding",
                        task="grounding",
                        query=joined(picture, f"the {label}"),
                        positives=tuple(right),
                        negatives=tuple(wrong),
                        known=tuple(item.id for item in right),
                        instruction="Find the region of the picture that shows the named object.",
                        target_instruction="Represent the cropped region.",
                    )
                )
    return examples


def _counts(
    split: str, pictures: Sequence[Item], rows: Sequence[Row], ranges: Mapping[str, range]
) -> Iterator[Example]:
    """ "How many platelets are there?" among all counts of that kind that occur in the set."""
    answers = {n: Item.text(str(n)) for numbers in ranges.values() for n in numbers}
    for i, (picture, row) in enumerate(zip(pictures, rows, strict=True)):
        here = Counter(o["label"] for o in row["objects"])
        for label, numbers in ranges.items():
            yield Example(
                key=f"cells_count/{split}/{i}-{label}",
                source="cells_count",
                task="vqa",
                query=joined(picture, f"How many {label}s are there?"),
                positives=(answers[here[label]],),
                negatives=tuple(answers[n] for n in numbers if n != here[label]),
                known=(answers[here[label]].id,),
                instruction="Answer the question about the picture.",
                answer=str(here[label]),
            )
