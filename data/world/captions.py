"""What can be said of a scene: every sentence that is true of all of it, in two voices and a few forms.

`captions` is complete: the sentences of two scenes are the same set if their meanings are equal, and disjoint if not.
That is what makes `known` exact without a look at the other rows.
"""

from __future__ import annotations

from .scenes import Scene
from .vocabulary import NUMBERS

INVERSE = {"above": "below", "left of": "right of"}
ASIDE = {"above": "below it", "left of": "to its right"}


def captions(scene: Scene, voice: int | None = None) -> tuple[str, ...]:
    """All captions of a pair or a group, main words first; of one voice only if given."""
    of = _of_pair if scene.relation else _of_group
    return tuple(text for v in ((0, 1) if voice is None else (voice,)) for text in of(scene, v))


def _of_pair(scene: Scene, voice: int) -> tuple[str, ...]:
    first, second = (t.words(voice) for t in scene.things)
    return (
        f"a {first} {scene.relation} a {second}",
        f"a {second} {INVERSE[scene.relation]} a {first}",
        f"there is a {first} and a {second} {ASIDE[scene.relation]}",
    )


def _of_group(scene: Scene, voice: int) -> tuple[str, ...]:
    count = len(scene.things)
    words = scene.things[0].words(voice, many=count > 1)
    if count == 1:
        return (f"one {words}", f"a single {words}", f"there is one {words}")
    number = NUMBERS[count - 1]
    return (f"{number} {words}", f"a group of {number} {words}", f"there are {number} {words}")
