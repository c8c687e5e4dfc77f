"""The techniques that are tried on the tiny VLM, and what each is held against. Trials that are equal are run once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ablation_rows import Drawn
from ablation_table import Effect
from ablation_vlm import TASKS, TRAIN, Merged, Part, Share, Vlm, test_of, train_of
from omni2vec.model.merge.average import Weighted
from omni2vec.model.merge.slerp import Slerp
from omni2vec.train.objectives.above import Above
from omni2vec.train.objectives.at_layer import AtLayer
from omni2vec.train.objectives.cosent import CoSENT
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.masked import Masked
from omni2vec.train.objectives.matryoshka import Matryoshka
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.objectives.pearson import Pearson
from omni2vec.train.objectives.soft_label import SoftLabel

BOTH = InfoNCE(both=True)
HIT = "hit@1"


def effects() -> tuple[Effect, ...]:
    return (*batch_size(), *matryoshka(), *planted(), *soft_labels(), *mixtures(), *graded(), *next_token(), *merging())


# One picture to find for a caption: what several techniques are held against. Vectors of 64 numbers.
CAPTIONS = Part((Share(train_of("caption_to_image")),), (BOTH,))
CUTS = (16, 8, 4)
PLAIN = Vlm("captions", (CAPTIONS,), (test_of("caption_to_image"),), CUTS)


def batch_size() -> Iterator[Effect]:
    for batch in (8,):
        part = replace(CAPTIONS, batch=batch)
        arm = Vlm(f"captions, batch {batch}", (part,), PLAIN.scored, CUTS)
        yield Effect("batch size", f"{batch} rows, equal steps", "32 rows", arm, PLAIN, "caption_to_image", "natural")


def matryoshka() -> Iterator[Effect]:
    many = Matryoshka(BOTH, dims=(0, 16, 8, 4), weights=(1.0, 0.5, 0.3, 0.2))
    arm = Vlm("captions, Matryoshka", (replace(CAPTIONS, objectives=(many,)),), PLAIN.scored, CUTS)
    for value in ("caption_to_image", *(f"caption_to_image at {dim}" for dim in CUTS)):
        where = value.partition(" at ")[2]
        change = f"Matryoshka, cut to {where}" if where else "Matryoshka, all 64"
        yield Effect("Matryoshka", change, "plain, as long", arm, PLAIN, value, "constructed" if where else "natural")


# Sentences, with three given wrong ones a row, of which half may be right (ablation_rows.py). A fresh model takes all
# near sentences for one; so it first sees some graded pairs, the same ones in every trial.
BEFORE = Part((Share(train_of("sts")),), (CoSENT(),), steps=60)
OWN = InfoNCE(negatives="own")
TELL = Drawn("tell", "train", TRAIN)
PLANTED = replace(TELL, planted=0.5)
TOLD = (Drawn("tell", "test", 500), Drawn("graded", "test", 500))


def tell(name: str, source: Drawn, *objectives: object, negatives: int = 3) -> Vlm:
    part = Part((Share(source, negatives=negatives),), objectives or (OWN,), steps=60, rate=5e-4)
    return Vlm(f"tell, {name}", (BEFORE, part), TOLD)


CLEAN = tell("negatives", TELL)
DIRTY = tell("planted", PLANTED)


def planted() -> Iterator[Effect]:
    name = "hard negatives"
    none = tell("no given negatives", TELL, negatives=0)
    yield Effect(name, "three wrong sentences a row", "none given", CLEAN, none, "tell", "natural")
    yield Effect(name, "half of them planted right answers", "none planted", DIRTY, CLEAN, "tell", "constructed")
    name, against = "false-negative filter", "planted, no filter"
    kept = tell("planted, filtered", replace(PLANTED, keep=0.85))
    yield Effect(name, "a judge's score below 85% of the positive's", against, kept, DIRTY, "tell", "constructed")
    loose = tell("planted, filtered at 95%", replace(PLANTED, keep=0.95))
    yield Effect(name, "a judge's score below 95% of the positive's", against, loose, DIRTY, "tell", "constructed")
    masked = tell("planted, masked 0.1", PLANTED, Masked(margin=0.1, negatives="own"))
    yield Effect(name, "masked in the loss, margin 0.1", against, masked, DIRTY, "tell", "constructed")
    masked = tell("planted, masked", PLANTED, Masked(margin=-0.1, negatives="own"))
    yield Effect(name, "masked in the loss, margin -0.1", against, masked, DIRTY, "tell", "constructed")


def soft_labels() -> Iterator[Effect]:
    """From nothing, and in both words: what the scores of a judge teach that right and wrong do not."""
    source, test = replace(TELL, both=True), replace(TOLD[0], both=True)

    def fresh(name: str, *objectives: object) -> Vlm:
        part = Part((Share(source, negatives=3),), objectives, steps=90)
        return Vlm(f"from nothing, {name}", (part,), (test, TOLD[1]))

    soft = SoftLabel(score="judge", teacher_temperature=0.1)
    plain, arm = fresh("InfoNCE", OWN), fresh("soft labels", OWN, soft)
    for value in ("tell", "graded"):
        change = "a judge's scores beside InfoNCE, from nothing"
        yield Effect("soft labels", change, "InfoNCE alone", arm, plain, value, "constructed")
    after = tell("soft labels", TELL, OWN, soft)
    for value in ("tell", "graded"):
        change = "a judge's scores beside InfoNCE, after graded pairs"
        yield Effect("soft labels", change, "InfoNCE alone", after, CLEAN, value, "natural")


# Four tasks in one stage; negatives of all sources, so that the three ways differ only in who meets whom.
ACROSS = InfoNCE(both=True, across_sources=True)
JOINT = Part(tuple(Share(train_of(t)) for t in TASKS), (ACROSS,), steps=120, sub_batch=8)
TESTS = tuple(test_of(t) for t in TASKS)


def mixtures() -> Iterator[Effect]:
    """With sub-batches of 8 every batch of 32 holds all four tasks, with 16 two of them, with 32 one."""
    mixed = second_stage()
    two, one = (Vlm(f"four tasks, sub-batches of {n}", (replace(JOINT, sub_batch=n),), TESTS) for n in (16, 32))
    name = "batch composition"
    yield Effect(name, "one task a batch", "all four in each", one, mixed, "mean", "natural")
    yield Effect(name, "interleaved, two tasks a batch", "all four in each", two, mixed, "mean", "natural")
    yield Effect(name, "interleaved, two tasks a batch", "one task a batch", two, one, "mean", "natural")


def next_token() -> Iterator[Effect]:
    shares = tuple(replace(s, answers=True) for s in JOINT.shares)
    arm = Vlm("four tasks, next token", (replace(JOINT, shares=shares, objectives=(ACROSS, NextToken())),), TESTS)
    for value in ("mean", "vqa"):
        yield Effect("next-token loss", "with it", "contrastive alone", arm, second_stage(), value, "natural")


def second_stage() -> Merged:
    """The four tasks, then one of them alone, then both merged. Its first stage is the control of others."""
    alone = replace(JOINT, shares=(Share(train_of("vqa")),), steps=40, sub_batch=0, rate=1e-3)
    rules = (("mean", Weighted((0.5, 0.5))), ("slerp", Slerp(0.5)))
    return Merged("four tasks, then vqa, merged", JOINT, alone, TESTS, rules)


def merging() -> Iterator[Effect]:
    trial = second_stage()
    for rule in ("mean", "slerp"):
        for of_control, against in (("second: mean", "the second stage"), ("mean", "the first stage")):
            change = f"stages 1 and 2 merged ({rule})"
            yield Effect("stage merge", change, against, trial, trial, f"{rule}: mean", "natural", of_control, "mean")


def graded() -> Iterator[Effect]:
    def sts(name: str, *objectives: object) -> Vlm:
        return Vlm(f"sts, {name}", (Part((Share(train_of("sts")),), objectives),), (test_of("sts"),))

    control = sts("thresholded InfoNCE", Above(InfoNCE(both=True), score=4.0))
    graded = {
        "CoSENT": sts("CoSENT", CoSENT()),
        "Pearson": sts("Pearson", Pearson()),
    }
    for name, arm in graded.items():
        yield Effect(f"graded labels: {name}", name, "InfoNCE of labels from 4", arm, control, "sts", "constructed")
    middle = sts("CoSENT, middle layer", CoSENT(), AtLayer(Above(InfoNCE(both=True), score=4.0), weight=0.5))
    change = "CoSENT with InfoNCE on the middle layer"
    yield Effect("middle-layer term", change, "CoSENT", middle, graded["CoSENT"], "sts", "natural")
