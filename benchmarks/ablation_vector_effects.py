"""The techniques that are tried on given vectors, and what each is held against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ablation_merges import effects as merges
from ablation_table import Effect
from ablation_vectors import Fit, Given, Vectors
from omni2vec.data.schedules import Ramp
from omni2vec.train.objectives.above import Above
from omni2vec.train.objectives.cosent import CoSENT
from omni2vec.train.objectives.diht import DiHT
from omni2vec.train.objectives.focal import Focal
from omni2vec.train.objectives.focal_infonce import FocalInfoNCE
from omni2vec.train.objectives.hardness import Hardness
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.masked import Masked
from omni2vec.train.objectives.matryoshka import Matryoshka
from omni2vec.train.objectives.mixing import Mixing
from omni2vec.train.objectives.pearson import Pearson
from omni2vec.train.objectives.pro import PRO
from omni2vec.train.objectives.progressive import Progressive
from omni2vec.train.objectives.quantised import Quantised
from omni2vec.train.objectives.rank_kl import RankKL
from omni2vec.train.objectives.soft_cse import SoftCSE
from omni2vec.train.rules import Below, MarginToMean, PercentOfPositive

PLAIN = Fit("digits", (InfoNCE(),))
CUTS = (16, 8, 4)
DIGITS = Vectors("plain", PLAIN, CUTS)
INTENTS = Vectors("banking, plain", Fit("banking", (InfoNCE(),), task="class", dim=16))


def effects() -> tuple[Effect, ...]:
    return (
        *batches(),
        *matryoshka(),
        *losses(),
        *planted(),
        *clusters(),
        *quantised(),
        *classes(),
        *graded(),
        *distilled(),
        *merges(),
    )


def digits(name: str, *objectives: Any, **fields: Any) -> Vectors:
    return Vectors(name, replace(PLAIN, objectives=objectives or PLAIN.objectives, **fields), CUTS)


def batches() -> Iterator[Effect]:
    for batch in (8, 128):
        arm = digits(f"batch {batch}", batch=batch)
        yield Effect("batch size", f"{batch} rows, equal steps", "32 rows", arm, DIGITS, "mrr", "natural")
    for temperature in (0.02, 0.2):
        arm = digits(f"temperature {temperature}", temperature=temperature)
        yield Effect("temperature", f"{temperature}", "0.05", arm, DIGITS, "mrr", "natural")
    arm = digits("learned temperature", learned=True)
    yield Effect("temperature", "learned, from 0.05", "fixed 0.05", arm, DIGITS, "mrr", "natural")
    yield Effect(
        "two directions", "both", "query to document", digits("both", InfoNCE(both=True)), DIGITS, "mrr", "natural"
    )


def matryoshka() -> Iterator[Effect]:
    many = Matryoshka(InfoNCE(), dims=(0, 16, 8, 4), weights=(1.0, 0.5, 0.3, 0.2))
    arm = digits("Matryoshka", many)
    yield Effect("Matryoshka", "all 32", "plain, as long", arm, DIGITS, "mrr", "natural")
    for dim in CUTS:
        yield Effect("Matryoshka", f"cut to {dim}", "plain, as long", arm, DIGITS, f"mrr at {dim}", "constructed")


def losses() -> Iterator[Effect]:
    plain = "InfoNCE"
    tried = {
        "focal": (("gamma 0.5", Focal(gamma=0.5)), ("gamma 2", Focal(gamma=2.0))),
        "hardness weights": (("alpha 9", Hardness(alpha=9.0)),),
        "DiHT": (("a 0.95, beta 0.1", DiHT()),),
        "Focal-InfoNCE": (("margin 0.2", FocalInfoNCE()),),
        "SoftCSE": (
            ("by weight, the weight a constant", SoftCSE()),
            ("by weight", SoftCSE(detached=False)),
            ("by temperature, a constant", SoftCSE(by="temperature")),
            ("by temperature", SoftCSE(by="temperature", detached=False)),
        ),
        "margin mask": (("0.1", Masked(margin=0.1)),),
        "progressive weights": (("easy rows first", Progressive(InfoNCE(), kappa=Ramp(-0.5, 0.5))),),
    }
    for technique, arms in tried.items():
        for change, objective in arms:
            arm = digits(f"{technique}, {change}", objective)
            yield Effect(technique, change, plain, arm, DIGITS, "mrr", "natural")
    extra = Masked(margin=float("inf"), query_query=True, doc_doc=True)
    small = digits("batch 16, 150 steps", batch=16, steps=150)
    terms = "query-query and doc-doc terms"
    yield Effect(terms, "32 rows", plain, digits("query-query, doc-doc", extra), DIGITS, "mrr", "natural")
    arm = digits("query-query, doc-doc, batch 16", extra, batch=16, steps=150)
    yield Effect(terms, "16 rows, 150 steps", plain, arm, small, "mrr", "natural")


def planted() -> Iterator[Effect]:
    own = InfoNCE(negatives="own")
    arm = digits("negatives", own, given=Given(2))
    yield Effect("hard negatives", "two nearest documents a row", "none given", arm, DIGITS, "mrr", "natural")
    four = digits("four negatives", own, given=Given(4))
    mixed = digits("negatives, mixed", Mixing(own, count=2), given=Given(4))
    yield Effect("online mixing", "two mixtures of four negatives", "four negatives", mixed, four, "mrr", "natural")
    # By class, any lower half of the same digit is right. Rows of one class are masked in the batch, but not a row's
    # own given negatives, among which right answers are planted.
    own = InfoNCE(negatives="own", mask_labels=True)

    def by_class(name: str, given: Given | None, objective: Any = own) -> Vectors:
        return Vectors(f"by class, {name}", replace(PLAIN, objectives=(objective,), task="class", given=given))

    value = "class map"
    none, clean, dirty = (
        by_class("no negatives", None),
        by_class("negatives", Given(6)),
        by_class("planted", Given(6, 0.8)),
    )
    yield Effect("hard negatives", "six nearest of other classes", "none given", clean, none, value, "natural")
    yield Effect(
        "hard negatives", "four of five planted right answers", "none planted", dirty, clean, value, "constructed"
    )
    rules: dict[str, tuple[Any, ...]] = {
        "95% of the positive": (PercentOfPositive(0.95),),
        "70% of the positive": (PercentOfPositive(0.7),),
        "below 0.3": (Below(0.3),),
        "0.2 below the mean positive": (MarginToMean(-0.2),),
    }
    name, against = "false-negative filter", "planted, no filter"
    for words, rule in rules.items():
        arm = by_class(f"planted, {words}", Given(6, 0.8, rule))
        yield Effect(name, f"mined: {words}", against, arm, dirty, value, "constructed")
    for margin in (0.1,):
        masked = Masked(margin=margin, negatives="own", mask_labels=True)
        arm = by_class(f"planted, masked {margin}", Given(6, 0.8), masked)
        yield Effect(name, f"masked in the loss, margin {margin}", against, arm, dirty, value, "constructed")


def clusters() -> Iterator[Effect]:
    for size, skip in ((8, 0), (8, 30), (32, 30)):
        arm = digits(f"B3, {size}, {skip}", clusters=(size, skip, 100))
        yield Effect("B3 batches", f"clusters of {size}, skip {skip}", "random batches", arm, DIGITS, "mrr", "natural")


def quantised() -> Iterator[Effect]:
    small = digits("dim 16", dim=16)
    for bits, value in ((8, "mrr in 8 bits"), (2, "mrr in 2 bits"), (1, "mrr in 1 bit")):
        words = f"{bits} bit{'s' if bits > 1 else ''}"
        yield Effect("rounding alone", words, "float", small, small, value, "natural", "mrr")
        arm = digits(f"dim 16, {words}", Quantised(InfoNCE(), bits=bits), dim=16)
        kind = "natural" if bits == 8 else "constructed"
        yield Effect("quantisation-aware", f"{words}, trained for", f"{words}, rounded after", arm, small, value, kind)


def classes() -> Iterator[Effect]:
    def intents(name: str, **fields: Any) -> Vectors:
        return Vectors(f"banking, {name}", replace(INTENTS.fit, **fields))

    masked = intents("class mask", objectives=(InfoNCE(mask_labels=True),))
    yield Effect("class mask", "rows of one class", "none", masked, INTENTS, "class map", "natural")
    two = intents("two positives", positives=2)
    yield Effect("several positives", "two a row", "one a row", two, INTENTS, "class map", "natural")
    for name, objective in (("focal", Focal(mask_labels=True)), ("hardness weights", Hardness(mask_labels=True))):
        arm = intents(name, objectives=(objective,))
        yield Effect(name, "with the class mask", "the class mask", arm, masked, "class map", "natural")


def graded() -> Iterator[Effect]:
    def sts(name: str, *objectives: Any) -> Vectors:
        return Vectors(f"sts, {name}", Fit("sts", objectives, task="graded", dim=64, hidden=128, rate=1e-3))

    control = sts("thresholded InfoNCE", Above(InfoNCE(both=True), score=4.0))
    arms: dict[str, Any] = {"CoSENT": CoSENT(), "Pearson": Pearson(), "RankKL": RankKL(), "PRO": PRO()}
    for name, objective in arms.items():
        arm = sts(name, objective)
        yield Effect(f"graded labels: {name}", name, "InfoNCE of labels from 4", arm, control, "spearman", "natural")
    gap = sts("CoSENT, gap", CoSENT(gap="linear"))
    yield Effect(
        "CoSENT by gaps", "linear in the labels' gap", "CoSENT", gap, sts("CoSENT", CoSENT()), "spearman", "natural"
    )


def distilled() -> Iterator[Effect]:
    """The teacher sees the whole digit, of which the student sees half."""
    name, words = "similarities distilled", "of a teacher that sees whole digits"
    arm = digits("taught", taught=1.0)
    yield Effect(name, words, "InfoNCE alone", arm, DIGITS, "mrr", "natural")
    by_class = replace(PLAIN, objectives=(InfoNCE(negatives="own", mask_labels=True),), task="class")
    plain, arm = Vectors("by class, no negatives", by_class), Vectors("by class, taught", replace(by_class, taught=1.0))
    yield Effect(name, words, "InfoNCE alone", arm, plain, "class map", "natural")
