"""Rows about still pictures: captions both ways, classes, regions, and pictures with an edit in words."""

from __future__ import annotations

from ..types import Example, Item, Text, digest
from .captions import captions
from .dice import Dice
from .drawing import crop, draw, item, png, shrink
from .scenes import Scene, any_grid, any_group, any_pair, closest, edits
from .seed import Seed
from .vocabulary import CELLS, PLURALS

SEE = "Picture"


def any_scene(seed: Seed) -> Scene:
    """What captions speak of: two things in half of the rows, a group of equal ones in the others."""
    return (any_pair if seed.dice.chance(0.5) else any_group)(seed.dice, seed.split)


def caption_to_image(seed: Seed) -> Example:
    scene = any_scene(seed)
    return Example(
        seed.key,
        seed.source,
        "retrieval",
        query=Item.text(seed.dice.pick(captions(scene, voice=0))),
        positives=(item(scene, seed.pixels),),
        known=(scene.id,),
        instruction="Find the picture.",
        target_instruction=SEE,
    )


def image_to_caption(seed: Seed) -> Example:
    """The caption is the answer as well, so that the next-token loss learns to write it."""
    scene = any_scene(seed)
    caption = seed.dice.pick(captions(scene, voice=0))
    return Example(
        seed.key,
        seed.source,
        "retrieval",
        query=item(scene, seed.pixels),
        positives=(Item.text(caption),),
        known=tuple(Item.text(c).id for c in captions(scene)),
        instruction="Describe the picture.",
        target_instruction="Caption",
        answer=caption,
    )


def classes(seed: Seed) -> Example:
    """The class of a group is its colour and shape, whatever its count, size, texture and places."""
    scene = any_group(seed.dice, seed.split)
    name = f"{scene.things[0].colour} {PLURALS[scene.things[0].shape]}"
    return Example(
        seed.key,
        seed.source,
        "classification",
        query=item(scene, seed.pixels),
        positives=(Item.text(name),),
        known=(Item.text(name).id,),
        label=name,
        instruction="Name what is shown.",
        target_instruction="Class",
        answer=name,
    )


def composed(seed: Seed) -> Example:
    """A picture and an edit of one of its two things. Wrong: the picture itself, and other edits of either thing."""
    dice = seed.dice
    scene, kind, index = any_pair(dice, seed.split), "", 0
    while not kind:
        kind, index = dice.pick(("colour", "shape", "texture", "size")), dice.below(2)
        if not edits(scene, index, seed.split)[kind]:
            scene, kind = any_pair(dice, seed.split), ""
    old, new = scene.things[index], dice.pick(edits(scene, index, seed.split)[kind])
    others = [
        scene.replaced(i, thing)
        for i in (index, 1 - index)
        for things in edits(scene, i, seed.split).values()
        for thing in things
        if (i, thing) != (index, new)
    ]
    target = scene.replaced(index, new)
    hardest = [scene, *dice.some(others, min(4, len(others)))]
    words = {
        "colour": f"make the {old.shape} {new.colour}",
        "shape": f"turn the {old.shape} into a {new.shape}",
        "texture": f"make the {old.shape} {new.texture}",
        "size": f"make the {old.shape} {new.size}",
    }
    return Example(
        seed.key,
        seed.source,
        "retrieval",
        query=Item((png(shrink(draw(scene, seed.pixels))), Text(words[kind]))),
        positives=(item(target, seed.pixels),),
        negatives=seed.wrong((item(s, seed.pixels) for s in hardest[: seed.most]), (target.id,)),
        known=(target.id,),
        instruction="Find the changed picture.",
        target_instruction=SEE,
        answer=captions(target, voice=0)[0],
    )


def grounding(seed: Seed) -> Example:
    """The region of this picture that the words mean, among the regions of its things and some that show two halves."""
    dice = seed.dice
    scene = any_grid(dice, seed.split, 6 + dice.below(3))
    index = dice.below(len(scene.things))
    spot, thing = scene.spots[index], scene.things[index]
    by_place = dice.chance(0.25)
    canvas = draw(scene, seed.pixels)

    def region(i: int) -> Item:
        return Item((crop(canvas, *CELLS[scene.spots[i]], seed.pixels // 2),), digest("crop", scene.things[i].words()))

    order = closest(scene, index)
    if seed.split == "train":  # a few are kept: half of them twins in some attributes, half any
        order = [*order[: seed.hard - seed.hard // 2], *dice.shuffled(order[seed.hard - seed.hard // 2 :])]
    regions = [region(i) for i in order[: seed.most]]
    if seed.split == "test":
        regions += [Item((crop(canvas, *at, seed.pixels // 2),)) for at in _between(dice, 9 - len(scene.things))]
    right = region(index)
    return Example(
        seed.key,
        seed.source,
        "grounding",
        query=Item((png(shrink(canvas)), Text(f"the shape at the {spot}" if by_place else f"the {thing.words()}"))),
        positives=(right,),
        negatives=seed.wrong(regions, (right.id,)),
        known=(right.id,),
        instruction="Find the region.",
        target_instruction="Region",
        answer=f"{spot}, {thing.words()}",
    )


def _between(dice: Dice, count: int) -> list[tuple[float, float, float]]:
    """Regions centred between two neighbouring cells."""
    cells = list(CELLS.values())
    middles = [
        ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, a[2])
        for i, a in enumerate(cells)
        for b in cells[i + 1 :]
        if abs(a[0] - b[0]) + abs(a[1] - b[1]) < 0.4
    ]
    return dice.some(middles, count)
