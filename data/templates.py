"""Ready-made instructions by name: families of the field, each in its own file, and paraphrases of our own by task.

The texts are data: short instructions as their sources publish them. What a family does not name keeps its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .instructions import Instructions
from .templates_qzhou import QZHOU
from .templates_u_marvel import U_MARVEL
from .templates_vlm2vec import VLM2VEC

__all__ = ["FAMILIES", "OMNI2VEC", "QZHOU", "U_MARVEL", "VLM2VEC", "family"]

_ALIKE = (
    "Find what means the same.",
    "Retrieve semantically similar text.",
    "Represent the meaning of the sentence.",
    "Find a sentence of equal meaning.",
)
_ITEM = ("Represent the item for search.", "Represent what is given so that it can be found.")

# Our own, for the kinds of task that evaluation knows and for changes to a picture ("composed"). They name no medium,
# since a task does not: a source that can say more should, in its rows or in its Feed.
OMNI2VEC = Instructions(
    query={
        "retrieval": (
            "Find what matches the query.",
            "Retrieve the item that the query describes.",
            "Search for what is asked for.",
            "Given this query, find the right answer among all items.",
        ),
        "classification": (
            "Name the class that this belongs to.",
            "Find the label that fits.",
            "Classify what is given.",
            "Decide which category this belongs to.",
        ),
        "vqa": (
            "Answer the question about what is given.",
            "Find the answer to the question.",
            "Use what is given to answer the question.",
            "Read the question and choose the right answer.",
        ),
        "grounding": (
            "Find the region that the words point at.",
            "Select the part that shows what is named.",
            "Locate what is described.",
            "Find the crop that the expression refers to.",
        ),
        "sts": _ALIKE,
        "composed": (
            "Find what results from the described change.",
            "Apply the change to what is given and find the result.",
            "Search for something like this, but with the named difference.",
            "Find the modified version of what is given.",
        ),
    },
    target={
        "retrieval": _ITEM,
        "classification": ("Represent the class.", "Represent the label."),
        "vqa": ("Represent the answer.", "Represent the answer to a question."),
        "grounding": ("Represent the region.", "Represent the cropped part."),
        "sts": _ALIKE,
        "composed": _ITEM,
    },
)

FAMILIES: Mapping[str, Instructions] = {
    "omni2vec": OMNI2VEC,
    "vlm2vec": VLM2VEC,
    "u_marvel": U_MARVEL,
    "qzhou": QZHOU,
}


def family(name: str, drop: float = 0.0) -> Instructions:
    """The instructions of this name. drop: the chance that a side of a draw goes without. Raises ValueError for a name
    that is not known."""
    if name not in FAMILIES:
        raise ValueError(f"instructions {name!r} are not known; expected one of {', '.join(FAMILIES)}")
    return replace(FAMILIES[name], drop=drop)
