"""Clips (sample-videos): short real videos -> their topic, and other pieces of the same video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..types import Where
from .folder import Splits, Tasks, medium, outside, splits, unseen, write
from .labelled import classification, same_class


@dataclass(frozen=True)
class Clips:
    """Parquet with video (bytes), topic, kind and file -> {split}/clips_topic, {split}/clips_same.

    Only topics that occur in every split are asked for: a gesture is shown once, in one of them.
    """

    root: str
    name: str = "clips"

    def outside(self, where: Where) -> Mapping[str, str]:
        return outside(self.root)

    def tasks(self) -> Tasks:
        return _tasks(unseen(splits(self.root, ("video", "topic", "file")), lambda row: row["video"]))

    def make(self, out: Path, where: Where) -> None:
        write(out, self.tasks())


def _tasks(found: Splits) -> Tasks:
    shared = set.intersection(*({row["topic"] for row in rows} for rows in found.values()))
    classes = sorted(shared)
    for split, rows in found.items():
        kept = [
            (medium("video", r["video"], f"clips {split} {i}"), r) for i, r in enumerate(rows) if r["topic"] in shared
        ]
        topics = [(clip, row["topic"]) for clip, row in kept]
        asked = "Recognize what is going on in the video."
        yield split, "clips_topic", classification("clips_topic", split, topics, classes, asked)
        pieces = [(clip, row["file"]) for clip, row in kept]
        same = same_class("clips_same", split, pieces, "Find a clip of the same video.", "Represent the video.")
        yield split, "clips_same", same
