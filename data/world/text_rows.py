"""Rows of text alone: sentences of equal meaning, and pairs with a graded similarity."""

from __future__ import annotations

from ..types import Example, Item
from .captions import captions
from .compositions import Split
from .dice import Dice
from .picture_rows import any_scene
from .scenes import PAIRS, Scene, any_pair, distance, edits
from .seed import Seed

FACTS = 9  # of a pair: four attributes of each thing, and how they stand to each other
SAME = "Find the sentence that means the same."


def paraphrase(seed: Seed) -> Example:
    """The other voice and another form. Wrong: nearly the same words of another meaning."""
    dice = seed.dice
    scene = any_scene(seed)
    form, other = dice.some(range(3), 2)
    query, right = captions(scene, voice=0)[form], captions(scene, voice=1)[other]
    wrong = [captions(s, voice=1)[other] for s in _nearly(dice, scene, seed.split)]
    return Example(
        seed.key,
        seed.source,
        "retrieval",
        query=Item.text(query),
        positives=(Item.text(right),),
        negatives=seed.wrong_texts(wrong, right),
        known=tuple(Item.text(c).id for c in captions(scene)),
        instruction=SAME,
        target_instruction="Sentence",
    )


def sts(seed: Seed) -> Example:
    """Two sentences; their score is 5 if all nine facts agree, less by 5/9 for each that differs, 0 if all do.

    Both sides carry one instruction, as the similarity has no sides. The voices are drawn apart from the facts, and
    two things that change places keep every word, so that words alone do not give the score away.
    """
    dice = seed.dice
    first = any_pair(dice, seed.split)
    second = _changed(dice, first, seed.split, dice.below(FACTS + 1))
    one = dice.pick(captions(first))
    two = dice.pick([c for c in captions(second) if c != one])
    score = round(5 * (1 - distance(first, second) / FACTS), 3)
    return Example(
        seed.key,
        seed.source,
        "sts",
        query=Item.text(one),
        positives=(Item.text(two),),
        known=tuple(Item.text(c).id for c in captions(first) if c != one) if score >= 4 else (),
        instruction="Compare the meaning.",
        target_instruction="Compare the meaning.",
        scores={"label": (score,)},
    )


def _changed(dice: Dice, scene: Scene, split: Split, facts: int) -> Scene:
    """A pair that differs from `scene` in about that many facts; in how many exactly, `distance` says."""
    if facts == FACTS or (facts > 4 and dice.chance(0.5)):
        return any_pair(dice, split)
    for _ in range(facts):
        if dice.chance(1 / FACTS):
            scene = Scene(dice.pick([p for p in PAIRS if p != scene.spots]), scene.things, scene.look)
        elif dice.chance(1 / FACTS):
            scene = Scene(scene.spots, scene.things[::-1], scene.look)
        else:
            index = dice.below(2)
            options = [t for things in edits(scene, index, split).values() for t in things]
            scene = scene.replaced(index, dice.pick(options))
    return scene


def _nearly(dice: Dice, scene: Scene, split: Split) -> list[Scene]:
    """Scenes of another meaning whose captions share most words: changed places first."""
    if scene.relation:
        swapped = Scene(scene.spots, scene.things[::-1], scene.look)
        index = dice.below(2)
        options = [t for things in edits(scene, index, split).values() for t in things]
        return [swapped, *(scene.replaced(index, t) for t in dice.some(options, 3))]
    counts = [n for n in range(1, 6) if n != len(scene.things)]
    spots = tuple(dice.shuffled(("centre", "top left", "top right", "bottom left", "bottom right")))
    return [Scene(spots[:n], scene.things[:1] * n, scene.look) for n in dice.some(counts, 3)]
