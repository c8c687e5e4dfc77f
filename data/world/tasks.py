"""The tasks of the world: name -> what draws a row of it. `examples` gives rows; row i depends on no other row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ..types import DataError, Example
from .compositions import Split
from .media_rows import behaviour, caption_to_clip, caption_to_sound, clip_qa, query_to_page, sound_to_caption
from .picture_rows import caption_to_image, classes, composed, grounding, image_to_caption
from .question_rows import counting, places, vqa, yes_no
from .seed import Seed
from .text_rows import paraphrase, sts

TASKS: Mapping[str, Callable[[Seed], Example]] = {
    "caption_to_image": caption_to_image,
    "image_to_caption": image_to_caption,
    "classes": classes,
    "vqa": vqa,
    "places": places,
    "yes_no": yes_no,
    "counting": counting,
    "grounding": grounding,
    "composed": composed,
    "paraphrase": paraphrase,
    "sts": sts,
    "query_to_page": query_to_page,
    "caption_to_clip": caption_to_clip,
    "clip_qa": clip_qa,
    "caption_to_sound": caption_to_sound,
    "sound_to_caption": sound_to_caption,
    "behaviour": behaviour,
}


def examples(
    task: str,
    split: Split,
    count: int,
    seed: int = 0,
    *,
    first: int = 0,
    pixels: int = 96,
    hard: int = 3,
) -> Iterator[Example]:
    """Rows first .. first + count - 1 of a task. Raises DataError for a task that the world does not have."""
    if task not in TASKS:
        raise DataError(f"the world has no task {task!r}; it has {', '.join(TASKS)}")
    for index in range(first, first + count):
        yield TASKS[task](Seed(task, split, index, seed, pixels, hard))
