"""Rows of the synthetic world for the ablations on the tiny VLM, in memory: its own tasks, and sentences with
given wrong answers among which right ones are planted.

A planted answer is right, and says it in the world's other words ("large solid" for "big plain"), while every labelled
answer keeps to the first: as where one crew labels, and a miner brings what the others wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from omni2vec.data.types import Example, Item
from omni2vec.data.world.captions import captions
from omni2vec.data.world.compositions import Split
from omni2vec.data.world.dice import Dice
from omni2vec.data.world.scenes import Scene, any_pair, distance, edits
from omni2vec.data.world.tasks import examples

PIXELS = 48  # width and height of a scene: nine tokens a picture at a patch of 8
FACTS = 9
NOISE = 0.03  # standard deviation of the judge's scores: a fact is worth 0.11


@dataclass(frozen=True)
class Drawn:
    """A source of rows that are drawn when it is opened, and kept for the process."""

    task: str
    split: Split
    count: int
    planted: float = 0.0
    keep: float = 0.0
    both: bool = False

    @property
    def name(self) -> str:
        return f"world/{self.task}"

    def open(self, where: object) -> Opened:
        return _opened(self)


@dataclass(frozen=True)
class Opened:
    name: str
    rows: tuple[Example, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.rows[index]


@lru_cache(maxsize=32)
def _opened(drawn: Drawn) -> Opened:
    if drawn.task == "tell":
        made = [_tell(drawn, i) for i in range(drawn.count)]
    elif drawn.task == "graded":
        made = [_graded(drawn, i) for i in range(drawn.count)]
    else:
        made = list(examples(drawn.task, drawn.split, drawn.count, 0, pixels=PIXELS))
    return Opened(drawn.name, tuple(made), repr(drawn))


def _tell(drawn: Drawn, index: int) -> Example:
    """A sentence on a pair of things and another that says the same, among wrong sentences.

    Training: three that are wrong in one to six facts. Each of them is, with chance `planted`, exchanged for one that
    is right, in the other words, which nothing declares so. scores["judge"] is the share of facts that agree, with
    noise. keep: a wrong answer stays only if its score is below `keep` of the right one's; 0: all. Test: the right
    sentence in the other words, among seven in either words that are wrong in one fact. both: all sentences are in
    either words, training and test.
    """
    dice = Dice("tell", drawn.split, index)
    scene, test = any_pair(dice, drawn.split), drawn.split == "test"
    query, right = dice.some(captions(scene, None if drawn.both else 0), 2)
    right = dice.pick(captions(scene, voice=1)) if test and not drawn.both else right
    texts, grades = [right], [1.0]
    for _ in range(7 if test else 3):
        other = _near(dice, scene, drawn.split)
        for _ in range(0 if test else dice.below(6)):
            other = _near(dice, other, drawn.split)
        plant = dice.chance(drawn.planted)
        voice = dice.below(2) if test or drawn.both else int(plant)
        chosen = dice.pick(captions(scene if plant else other, voice))
        if chosen not in (query, *texts):
            texts.append(chosen)
            grades.append(1.0 if plant else 1 - distance(scene, other) / FACTS)
    scores = [g + NOISE * _normal(dice) for g in grades]
    kept = [i for i in range(1, len(texts)) if not drawn.keep or scores[i] < drawn.keep * scores[0]]
    return Example(
        f"tell/{drawn.split}/{index:06d}",
        drawn.name,
        "vqa",
        query=Item.text(query),
        positives=(Item.text(right),),
        negatives=tuple(Item.text(texts[i]) for i in kept),
        instruction="Find the sentence that means the same.",
        target_instruction="Sentence",
        scores={} if test else {"judge": (scores[0], *(scores[i] for i in kept))},
    )


def _graded(drawn: Drawn, index: int) -> Example:
    """Two sentences with their similarity, the share of facts that agree, 0 to 5."""
    dice = Dice("graded", drawn.split, index)
    scene = other = any_pair(dice, drawn.split)
    for _ in range(dice.below(FACTS)):
        other = _near(dice, other, drawn.split)
    return Example(
        f"graded/{drawn.split}/{index:06d}",
        drawn.name,
        "sts",
        query=Item.text(dice.pick(captions(scene))),
        positives=(Item.text(dice.pick(captions(other))),),
        instruction="Find the sentence that means the same.",
        target_instruction="Sentence",
        scores={"label": (round(5 * (1 - distance(scene, other) / FACTS), 3),)},
    )


def _near(dice: Dice, scene: Scene, split: Split) -> Scene:
    """The scene with another thing in one attribute, or its things exchanged."""
    if dice.chance(1 / FACTS):
        return Scene(scene.spots, scene.things[::-1], scene.look)
    at = dice.below(2)
    return scene.replaced(at, dice.pick([t for things in edits(scene, at, split).values() for t in things]))


def _normal(dice: Dice) -> float:
    return sum(dice.between(-1, 1) for _ in range(12)) / 2


def words(rows: Iterator[Example]) -> Iterator[str]:
    """What a tokenizer should know."""
    for e in rows:
        yield from (e.instruction, e.target_instruction, e.answer)
        yield from (getattr(p, "text", "") for i in (e.query, *e.positives, *e.negatives) for p in i.parts)
