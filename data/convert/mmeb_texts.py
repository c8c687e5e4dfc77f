"""The texts of MMEB-train's rows: which of their words are the instruction, and which the query or the target itself.

A row's `qry` is one string: a placeholder where the picture goes, the instruction, the text. In `original` the
instruction is one sentence a task; in `diverse_instruction` row i has the text of row i of `original` behind a
paraphrase, so what the two rows end in alike is the text.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["classification", "vqa", "retrieval", "grounding"]


class Task(NamedTuple):
    """kind: how eval scores it. query: the instruction of its queries, in `original`."""

    kind: Kind
    query: str


_QUESTION = Task("vqa", "Represent the given image with the following question:")

TASKS: dict[str, Task] = {
    "ImageNet_1K": Task("classification", "Represent the given image for classification"),
    "N24News": Task(
        "classification", "Represent the given news image with the following caption for domain classification:"
    ),
    "HatefulMemes": Task(
        "classification",
        "Represent the given image for binary classification to determine whether it constitutes hateful speech or not",
    ),
    "VOC2007": Task("classification", "Identify the object shown in the image"),
    "SUN397": Task("classification", "Identify the scene shown in the image"),
    "OK-VQA": _QUESTION,
    "A-OKVQA": _QUESTION,
    "DocVQA": _QUESTION,
    "InfographicsVQA": _QUESTION,
    "ChartQA": _QUESTION,
    "Visual7W": _QUESTION,
    "VisDial": Task("retrieval", "Represent the given dialogue about an image, which is used for image retrieval:"),
    "CIRR": Task("retrieval", "Given an image, find a similar everyday image with the described changes:"),
    "VisualNews_t2i": Task("retrieval", "Retrieve an image of this news caption."),
    "VisualNews_i2t": Task("retrieval", "Find a caption for the news in the given photo"),
    "MSCOCO_t2i": Task("retrieval", "Find me an everyday image that matches the given caption:"),
    "MSCOCO_i2t": Task("retrieval", "Find an image caption describing the given everyday image"),
    "NIGHTS": Task("retrieval", "Find a day-to-day image that looks similar to the provided image"),
    "WebQA": Task("retrieval", "Find a Wikipedia image that answers this question:"),
    "MSCOCO": Task("grounding", "Select the portion of the image that isolates the object labeled as"),
}

# Of targets with a picture: the longest that a text begins with is its instruction, what follows is its caption.
TARGETS = (
    "Represent the given Wikipedia image with related text information:",
    "Represent the given cropped image of the object",
    "Represent the given image",
)

_LEADING = re.compile(r"^\s*<\|image_\d+\|>\s*")
_INSIDE = re.compile(r"<\|image_\d+\|>")


def plain(text: str) -> str:
    """The text without its placeholders: one in front is dropped, for the picture is a part of its own; one inside a
    sentence ("Represent <|image_1|> for classification") becomes "the image", without which it would be none."""
    return _INSIDE.sub("the image", _LEADING.sub("", text)).strip()


def divided(text: str, instruction: str) -> tuple[str, str] | None:
    """(instruction, what follows it) of a plain text; None where it does not begin with the instruction. A full stop
    behind the instruction is part of it: the set's revisions differ in that."""
    if not text.startswith(instruction):
        return None
    rest = text[len(instruction) :]
    if rest.startswith("."):
        instruction, rest = instruction + ".", rest[1:]
    if rest and instruction[-1].isalnum() and rest[0].isalnum():
        return None  # the sentence goes on within the word
    return instruction, rest.strip()


def target(text: str) -> tuple[str, str]:
    """(instruction, caption) of the plain text beside a target's picture. A text that begins like none of TARGETS is
    all caption."""
    for instruction in TARGETS:
        found = divided(text, instruction)
        if found is not None:
            return found
    return "", text


def query(text: str, task: str, original: str | None = None) -> tuple[str, str] | None:
    """(instruction, text) of a plain query of `task`; None where they cannot be told apart. original: the same row's
    plain query in `original`, where `text` is the paraphrased one."""
    found = divided(text if original is None else original, TASKS[task].query)
    if found is None or original is None:
        return found
    rest = found[1]
    return (text[: len(text) - len(rest)].strip(), rest) if text.endswith(rest) else None
