"""Rows that ask something of a still picture: attributes and places, yes or no, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Example, Item, Text
from .compositions import partners
from .dice import Dice
from .drawing import draw, png, shrink
from .scenes import Scene, Thing, any_grid, any_group, any_pair
from .seed import Seed
from .vocabulary import CELLS, COLOURS, NUMBERS, PLURALS, SHAPES, TEXTURES


@dataclass(frozen=True)
class Question:
    """`answer` is right, `tempting` are wrong answers that the picture suggests, `options` all that may be answered."""

    text: str
    answer: str
    options: Sequence[str]
    tempting: tuple[str, ...] = ()


COLOUR = 2 / 3  # share of the questions of vqa that ask for a colour; the rest ask for a shape

# No shapes: each colour meets six of eight in training, and a small model rules out the others where they are asked.
YES_NO = ("count", "count", "colour", "colour", "size", "texture")


def vqa(seed: Seed) -> Example:
    """Two of three questions ask for a colour, one for a shape; eight answers to each."""
    ask = seed.dice.pick((_of_group, _of_pair))
    scene, question = ask(seed.dice, seed)
    return _row(seed, scene, question, "Answer the question.")


def places(seed: Seed) -> Example:
    """Where one of two things is: nine answers."""
    scene, question = _of_grid(seed.dice, seed)
    return _row(seed, scene, question, "Answer the question.")


def counting(seed: Seed) -> Example:
    scene = any_group(seed.dice, seed.split, most=len(NUMBERS))
    count, shape = len(scene.things), scene.things[0].shape
    near = [NUMBERS[n - 1] for n in (count - 1, count + 1) if 1 <= n <= len(NUMBERS)]
    noun = seed.dice.pick((PLURALS[shape], "shapes"))
    question = Question(f"how many {noun} are there?", NUMBERS[count - 1], NUMBERS, tuple(near))
    return _row(seed, scene, question, "Count the shapes.")


def yes_no(seed: Seed) -> Example:
    """Half of the answers are yes."""
    dice = seed.dice
    scene = any_group(dice, seed.split)
    thing, yes = scene.things[0], dice.chance(0.5)
    kind = dice.pick(YES_NO)
    if kind == "count":
        alone = len(scene.things) == 1
        text = f"is there {'only one shape' if alone == yes else 'more than one shape'}?"
    else:
        word = _asked(dice, seed, thing, kind, yes)
        text = f"is it {word}?" if len(scene.things) == 1 else f"are they {word}?"
    answer = "yes" if yes else "no"
    return _row(seed, scene, Question(text, answer, ("yes", "no")), "Answer yes or no.")


def _asked(dice: Dice, seed: Seed, thing: Thing, kind: str, yes: bool) -> str:
    """The size, texture or colour to ask for: the thing's own if `yes`."""
    options = {
        "size": ("big", "small"),
        "texture": TEXTURES,
        "colour": partners("things", seed.split, thing.shape),
    }[kind]
    own = {"size": thing.size, "texture": thing.texture, "colour": thing.colour}[kind]
    return own if yes else _another(dice, options, own)


def _another(dice: Dice, options: Sequence[str], own: str) -> str:
    return dice.pick([o for o in options if o != own])


def _of_group(dice: Dice, seed: Seed) -> tuple[Scene, Question]:
    scene = any_group(dice, seed.split)
    thing = scene.things[0]
    noun = "is it" if len(scene.things) == 1 else "are they"
    if dice.chance(COLOUR):
        return scene, Question(f"what colour {noun}?", thing.colour, tuple(COLOURS))
    return scene, Question(f"what shape {noun}?", thing.shape, SHAPES)


def _of_pair(dice: Dice, seed: Seed) -> tuple[Scene, Question]:
    """What the one thing is, named by its other attribute or by its half of the picture."""
    scene = any_pair(dice, seed.split)
    index = dice.below(2)
    one, other = scene.things[index], scene.things[1 - index]
    where = scene.spots[index]
    if dice.chance(COLOUR):
        name = dice.pick((f"the {one.shape}", f"the shape in the {where}"))
        return scene, Question(f"what colour is {name}?", one.colour, tuple(COLOURS), (other.colour,))
    name = f"is {one.colour}" if dice.chance(0.5) else f"is in the {where}"
    return scene, Question(f"what shape {name}?", one.shape, SHAPES, (other.shape,))


def _of_grid(dice: Dice, seed: Seed) -> tuple[Scene, Question]:
    """Where one of two things is."""
    scene = any_grid(dice, seed.split, 2, apart=True)
    index = dice.below(2)
    thing = scene.things[index]
    name = dice.pick((f"the {thing.shape}", f"the {thing.colour} shape"))
    return scene, Question(f"where is {name}?", scene.spots[index], tuple(CELLS), (scene.spots[1 - index],))


def _row(seed: Seed, scene: Scene, question: Question, instruction: str) -> Example:
    rest = seed.dice.shuffled([o for o in question.options if o != question.answer and o not in question.tempting])
    return Example(
        seed.key,
        seed.source,
        "vqa",
        query=Item((png(shrink(draw(scene, seed.pixels))), Text(question.text))),
        positives=(Item.text(question.answer),),
        negatives=seed.wrong_texts((*question.tempting, *rest), question.answer),
        known=(Item.text(question.answer).id,),
        instruction=instruction,
        target_instruction="Answer",
        answer=question.answer,
    )
