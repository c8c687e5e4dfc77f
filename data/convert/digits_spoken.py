"""Spoken digits (free-spoken-digit-dataset): sound -> word, word -> sound, sound -> speaker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..types import Example, Item, Where
from .folder import Row, Splits, Tasks, medium, outside, splits, unseen, write
from .labelled import classification

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class DigitsSpoken:
    """Parquet with audio (WAV bytes), digit and speaker -> {split}/digits_word, digits_sound, digits_speaker."""

    root: str
    name: str = "digits_spoken"

    def outside(self, where: Where) -> Mapping[str, str]:
        return outside(self.root)

    def tasks(self) -> Tasks:
        return _tasks(unseen(splits(self.root, ("audio", "digit", "speaker")), lambda row: row["audio"]))

    def make(self, out: Path, where: Where) -> None:
        write(out, self.tasks())


def _tasks(found: Splits) -> Tasks:
    speakers = sorted({row["speaker"] for rows in found.values() for row in rows})
    for split, rows in found.items():
        sounds = [medium("audio", row["audio"], f"digits_spoken {split} {i}") for i, row in enumerate(rows)]
        words = [(sound, row["digit"]) for sound, row in zip(sounds, rows, strict=True)]
        asked = "Identify the digit that is spoken."
        yield split, "digits_word", classification("digits_word", split, words, WORDS, asked)
        yield split, "digits_sound", _sounds(split, rows, sounds)
        voices = [(sound, row["speaker"]) for sound, row in zip(sounds, rows, strict=True)]
        asked = "Identify the person who speaks."
        yield split, "digits_speaker", classification("digits_speaker", split, voices, speakers, asked)


def _sounds(split: str, rows: Sequence[Row], sounds: Sequence[Item]) -> list[Example]:
    """Word -> its recordings. In train one a row, for a row a recording; in any other split all, for a row a word."""
    spoken: dict[str, list[Item]] = defaultdict(list)
    for row, sound in zip(rows, sounds, strict=True):
        spoken[row["digit"]].append(sound)
    asked: list[tuple[str, tuple[Item, ...]]]
    if split == "train":
        asked = [(row["digit"], (sound,)) for row, sound in zip(rows, sounds, strict=True)]
    else:
        asked = [(word, tuple(spoken[word])) for word in WORDS if spoken[word]]
    return [
        Example(
            key=f"digits_sound/{split}/{i}",
            source="digits_sound",
            task="retrieval",
            query=Item.text(word),
            positives=positives,
            known=tuple(sound.id for sound in spoken[word]),
            label=word,
            instruction="Find a recording of the spoken word.",
            target_instruction="Represent the recording.",
        )
        for i, (word, positives) in enumerate(asked)
    ]
