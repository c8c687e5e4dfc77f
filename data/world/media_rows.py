"""Rows about clips, tunes, pages and people: retrieval by words, and questions with eight answers or more."""

from __future__ import annotations

from collections.abc import Callable

from ..types import Example, Item, Text
from . import clips, pages, tones
from .compositions import pairs
from .people import any_person
from .seed import Seed
from .vocabulary import COLOURS, GOODS, MOVES, SHAPES


def caption_to_clip(seed: Seed) -> Example:
    clip = clips.any_clip(seed.dice, seed.split)
    return Example(
        seed.key,
        seed.source,
        "retrieval",
        query=Item.text(seed.dice.pick(clip.texts())),
        positives=(clips.item(clip, seed.pixels),),
        known=(clip.id,),
        instruction="Find the clip.",
        target_instruction="Clip",
    )


def clip_qa(seed: Seed) -> Example:
    """What happens, in half of the rows; else what colour or shape it happens to."""
    dice = seed.dice
    clip = clips.any_clip(dice, seed.split)
    question, answer, options = dice.pick(
        (
            ("what does the shape do?", clip.move, MOVES),
            ("what does the shape do?", clip.move, MOVES),
            ("what colour is the shape?", clip.thing.colour, tuple(COLOURS)),
            ("what shape is it?", clip.thing.shape, SHAPES),
        )
    )
    return Example(
        seed.key,
        seed.source,
        "vqa",
        query=Item((*clips.item(clip, seed.pixels).parts, Text(question))),
        positives=(Item.text(answer),),
        negatives=seed.wrong_texts(dice.shuffled(options), answer),
        known=(Item.text(answer).id,),
        instruction="Answer the question.",
        target_instruction="Answer",
        answer=answer,
    )


def caption_to_sound(seed: Seed) -> Example:
    tune = tones.any_tune(seed.dice, seed.split)
    return Example(
        seed.key,
        seed.source,
        "retrieval",
        query=Item.text(seed.dice.pick(tune.texts())),
        positives=(tones.item(tune),),
        known=(tune.id,),
        instruction="Find the sound.",
        target_instruction="Sound",
    )


def sound_to_caption(seed: Seed) -> Example:
    tune = tones.any_tune(seed.dice, seed.split)
    caption = seed.dice.pick(tune.texts())
    return Example(
        seed.key,
        seed.source,
        "retrieval",
        query=tones.item(tune),
        positives=(Item.text(caption),),
        known=tuple(Item.text(t).id for t in tune.texts()),
        instruction="Describe the sound.",
        target_instruction="Caption",
        answer=caption,
    )


def query_to_page(seed: Seed) -> Example:
    """By title and season, or by two of the three amounts; `known` lists every page of the split that fits."""
    dice = seed.dice
    library = pages.library(seed.split, seed.seed)
    page = dice.pick(library)
    fits: Callable[[pages.Page], bool]
    if dice.chance(0.6):
        query = f"the {page.season} {page.topic} {page.paper}".lower()
        fits = page.__eq__
    else:
        two = dice.some(page.entries, 2)
        query = f"a {page.layout} with " + " and ".join(f"{amount} {goods}" for goods, amount in two)

        def fits(other: pages.Page) -> bool:
            return other.layout == page.layout and set(two) <= set(other.entries)

    return Example(
        seed.key,
        seed.source,
        "retrieval",
        query=Item.text(query),
        positives=(pages.item(page, seed.pixels),),
        known=tuple(p.id for p in library if fits(p)),
        instruction="Find the page.",
        target_instruction="Page",
    )


def behaviour(seed: Seed) -> Example:
    """What a person bought last, searched for first, or views most. Tempting: what else stands in the history."""
    dice = seed.dice
    person = any_person(dice, seed.split)
    colour, article = person.favourites
    everything = [f"{c} {g}" for c, g in pairs("goods", seed.split)]
    seen = [a.text for a in person.acts]
    question, answer, options, tempting = dice.pick(
        (
            ("what did they buy last?", person.of("bought")[-1].text, everything, seen),
            ("what did they search for first?", person.of("searched")[0].text, everything, seen),
            ("which colour do they view most?", colour, list(COLOURS), [a.colour for a in person.acts]),
            ("what do they view most?", article, list(GOODS), [a.article for a in person.acts]),
        )
    )
    rest = [w for w in dict.fromkeys((*dice.shuffled(tempting), *dice.shuffled(options))) if w != answer]
    return Example(
        seed.key,
        seed.source,
        "vqa",
        query=Item((person.events(), Text(question))),
        positives=(Item.text(answer),),
        negatives=seed.wrong_texts(rest[:7], answer),
        known=(Item.text(answer).id,),
        instruction="Answer about this person.",
        target_instruction="Answer",
        answer=answer,
    )
