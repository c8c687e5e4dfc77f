"""What mining did, in numbers: report.json, the lines of an error, and what should be doubted at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .mining import BINS, Choice, Judgement
from .rules import AnyRule, PercentOfPositive, is_positive_rule, is_row_rule

if TYPE_CHECKING:
    from .mine import Mine

Totals = Mapping[str, Sequence[int]]
_EMPTY = 0.1  # of the rows: above it, a warning
_HARSH = 0.95  # of the candidates that one rule dropped


def write(
    out: Path, step: Mine, choice: Choice, total: Totals, holding: Callable[[int], Judgement], teacher: str
) -> None:
    """report.json and mined.html. holding: the window that a row is in."""
    from . import mined_page

    found = facts(step, choice, total, teacher)
    aside = out / ".report.json.part"
    aside.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(out / "report.json")
    mined_page.write(out / "mined.html", step, choice, found, total, holding)


def facts(step: Mine, choice: Choice, total: Totals, teacher: str) -> dict[str, Any]:
    one = {name: values[0] for name, values in total.items() if len(values) == 1}
    return {
        "source": step.source.name,
        "candidates": (step.candidates or step.source).name,
        "teacher": teacher,
        "rows": one["rows"],
        "rows_written": one["rows_written"],
        "rows_dropped_by_rules": sum(total["rows_dropped"]),
        "rows_without_negatives": one["rows_without"],
        "negatives": one["negatives"],
        "negatives_a_row": round(one["negatives"] / max(one["rows_written"], 1), 3),
        "documents": choice.miner.pool.candidates,
        "candidates_seen": one["candidates"],
        "candidates_left": one["candidates_left"],
        "positives": one["positives"],
        "positives_dropped": one["positives_dropped"],
        "rules": rules(step.rules, total),
        **{name: count for name, count in one.items() if name.startswith("judge: ")},
        "cosine_of_positives": quantiles(total["of_positives"]),
        "cosine_of_kept": quantiles(total["of_kept"]),
        "cosine_of_dropped": quantiles(total["of_dropped"]),
        "settings": {
            "count": step.count,
            "among": step.among,
            "sample": repr(step.sample),
            "how": repr(step.how),
            "fused": repr(step.fused) if step.fused else None,
            "keep": step.keep,
            "labels": step.labels,
            "empty": step.empty,
            "media": step.media,
            "score": step.score,
            "seed": step.seed,
        },
    }


def rules(some: Sequence[AnyRule], total: Totals) -> list[dict[str, Any]]:
    """Each rule, in order, with what it dropped of what came to it."""
    found = []
    for number, rule in enumerate(some):
        what = "rows" if is_row_rule(rule) or is_positive_rule(rule) else "candidates"
        found.append({"rule": repr(rule), "dropped": total[f"{what}_dropped"][number], "of": what})
    return found


def steps(some: Sequence[AnyRule], total: Totals) -> str:
    """Of how many candidates and rows, and what each rule dropped, as a sentence."""
    lines = [f"{r['rule']} dropped {r['dropped']:,} {r['of']}" for r in rules(some, total)]
    seen = f"{total['rows'][0]:,} rows found {total['candidates'][0]:,} candidates"
    return ": ".join([seen, ", ".join(lines)]) if lines else f"{seen}; there are no rules"


def spread(total: Totals) -> str:
    """Where the cosines lie, as a sentence."""
    lines = []
    for name, key in (("positives", "of_positives"), ("candidates that were dropped", "of_dropped")):
        if q := quantiles(total[key]):
            lines.append(f"{name} have cosines of {q['5%']:.3f} to {q['95%']:.3f} (median {q['50%']:.3f})")
    return " and ".join(lines).capitalize()


def quantiles(histogram: Sequence[int]) -> dict[str, float]:
    """Cosines at some shares of a histogram, to the middle of its bins; none where it is empty."""
    found: dict[str, float] = {}
    count = sum(histogram)
    for share in (0.05, 0.25, 0.5, 0.75, 0.95) if count else ():
        passed = 0
        for place, here in enumerate(histogram):
            passed += here
            if passed >= share * count:
                found[f"{share:.0%}"] = round((place + 0.5) / BINS * 2 - 1, 4)
                break
    return found


def doubts(some: Sequence[AnyRule], total: Totals) -> Iterator[str]:
    """What of the report should be read at once."""
    rows, without = total["rows"][0], total["rows_without"][0]
    if without > _EMPTY * rows:
        yield f"{without:,} of {rows:,} rows have no new negative; loosen a rule, or raise among"
    dropped = total["candidates_dropped"]
    for rule, here in zip(some, dropped, strict=True):
        if here > _HARSH * total["candidates"][0]:
            yield f"{rule} dropped {here:,} of {total['candidates'][0]:,} candidates; look at mined.html"
    right, left = quantiles(total["of_positives"]), quantiles(total["of_kept"])
    if right and left and right["50%"] < left["50%"] and not any(isinstance(r, PercentOfPositive) for r in some):
        yield (
            f"the median negative ({left['50%']:.3f}) is nearer to its query than the median right answer "
            f"({right['50%']:.3f}): many may be right, and unlabelled; add PercentOfPositive(0.95)"
        )
