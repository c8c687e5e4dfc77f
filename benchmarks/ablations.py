"""Every technique against its control, on the same seeds: what it brings here, with its standard error.

    python benchmarks/ablations.py                        # all trials, six seeds; about an hour and a half on one core
    python benchmarks/ablations.py --only "batch size" --bed vectors
    python benchmarks/ablations.py --record               # and docs/results/ablations.md, from the lines there are
    python benchmarks/ablations.py --quick                # one seed of the cheapest bed, under a minute

Two beds: a tiny VLM on the synthetic world, and small towers over given vectors (digits of scikit-learn; sentences by
MiniLM where weights and data are at hand, else those trials are left out and said to be). Each result is a line of
runs/ablations/lines.jsonl under a digest of its settings and seed: what is there is not run again, so that a killed run
goes on, and several processes may work at once. Seeds go round in turn: at any time all techniques have as many.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from ablation_table import BEYOND, SEEDS, Effect, Found, Lines, Trial, digest_of, found, rows, table, trials_of
from measure import RESULTS, machine

WORK = Path(__file__).resolve().parent.parent / "runs" / "ablations"
QUICK = ("batch size", "Matryoshka", "rounding alone")


def effects(bed: str = "", only: str = "") -> tuple[Effect, ...]:
    """Those whose bed and technique contain the words; empty words mean all."""
    from ablation_vector_effects import effects as of_vectors

    wanted = list(of_vectors())
    if bed in "tiny VLM":
        from ablation_vlm_effects import effects as of_vlm

        wanted = [*of_vlm(), *wanted]
    return tuple(e for e in wanted if bed in e.bed and only in e.technique)


def collect(trials: Sequence[Trial], seeds: int, path: Path, work: Path) -> tuple[list[str], dict[str, str]]:
    """Runs what has no line yet. Gives the trials that failed, and those that cannot be run here with the reason."""
    failed: list[str] = []
    lacking = {t.bed: why for t in trials if (why := t.lacks())}
    for seed, trial in itertools.product(range(seeds), trials):
        lines = Lines(path)  # anew each time: another process may have added some
        if trial.bed in lacking or trial.name in failed or lines.get(trial, seed) is not None:
            continue
        start = time.process_time()
        try:
            values = trial.run(seed, work)
        except Exception:  # one technique must not end an hour of others
            traceback.print_exc()
            failed.append(trial.name)
            continue
        seconds = time.process_time() - start
        lines.add(trial, seed, values, seconds)
        print(f"{time.strftime('%H:%M:%S')} seed {seed} {trial.bed}: {trial.name}, {seconds:.1f} s", file=sys.stderr)
    return failed, lacking


def page(results: Sequence[Found], lacking: dict[str, str]) -> Iterator[str]:
    """docs/results/ablations.md."""
    counted = [r for r in results if len(r.arms) >= SEEDS]
    natural = [r for r in counted if r.effect.kind == "natural"]
    shown = [r for r in natural if r.verdict.startswith("shown")]
    yield "# What each technique brings, in miniature"
    yield ""
    yield (
        "`python benchmarks/ablations.py` trains small models with and without each technique on the same seeds. The "
        "difference of the two scores is given in points of 100, with its standard error over seeds. "
        f"**Shown** is what lies beyond {BEYOND:g} standard errors of {SEEDS} seeds or more; *null* is what does not, "
        "and says no more than that it was not seen here. [ablations.json](ablations.json) has every difference."
    )
    yield ""
    yield (
        "*Constructed*: the data, or the question, are made so that the technique has something to do (right answers "
        "planted among the wrong ones; vectors cut to a few numbers): the row says that the code does what it is for. "
        "*Natural*: nothing was arranged, and the row says what it was worth on this data."
    )
    for bed in dict.fromkeys(r.effect.bed for r in results):
        yield ""
        yield f"## {bed[0].upper()}{bed[1:]}"
        yield ""
        yield BEDS[bed]
        yield ""
        yield from table([r for r in results if r.effect.bed == bed])
    for bed, why in lacking.items():
        yield ""
        yield f"Not run, {bed}: {why}."
    yield ""
    yield "## How far to trust it"
    yield ""
    yield (
        f"- {len(natural)} natural effects were tried and {len(shown)} count as shown. With six seeds, three standard "
        "errors are passed by chance about 3 times in 100, so expect one or two of them to be chance."
    )
    yield (
        "- A seed draws weights, batches and what is planted. The rows that are scored are the same for all seeds, so "
        "the error does not speak of other rows, and one data set and one size of model stand behind each row."
    )
    yield (
        "- The constructed beds were designed by looking at seed 0, which is among those reported: how right answers "
        "are planted and how many (copies of the row's own document, and planted answers in the same words, did little "
        "harm and were given up), the filter at 85% after one at 95% had let planted answers through, the mask at -0.1 "
        "after 0.1 had masked nothing, and soft labels from nothing after they had not helped a model that had seen "
        "graded pairs. What was tried and given up on the final rows is in the table. A constructed row shows that an "
        "effect can be had, not how often."
    )
    yield (
        "- Focal-InfoNCE and SoftCSE hardly learn from random towers here. The first is meant for vectors that are "
        "trained already; that was not tried. The second can lower a negative's weight by drawing near to it: with "
        "the weight as a constant it learns. By temperature it does not in either form, which was not looked into."
    )
    yield (
        "- The better of two specialists is chosen by the very scores that a merge is held against, which favours it. "
        "Both share one start and go on for 150 steps, so that they are near each other and their mean."
    )
    yield "- Arm and control have the same rate and steps, chosen so that the control learns; no arm has its own."
    yield "- No test split of the real sets was read: what is scored was held back from their training split."
    yield "- These models are thousands of times smaller than those that the techniques were published for."


BEDS = {
    "tiny VLM": (
        "A Qwen-VL of 370,000 weights, from nothing, 130 to 170 steps on the [synthetic world](../world.md); scored on "
        "300 to 500 rows of compositions that training never showed. Hit@1, or Spearman for `sts` and `graded`. `tell` "
        "ranks one true sentence among seven that are wrong in one fact."
    ),
    "vectors, digits": (
        "Two towers of one hidden layer over halves of scanned digits: the upper half of a digit asks for its lower "
        "half (`mrr`, of 597), or for that of any equal digit (`class map`: mean average precision)."
    ),
    "vectors, banking": (
        "One tower over MiniLM's vectors of customers' questions, 77 intents: other questions of the same intent "
        "(`class map`, of 1,000 held-back training rows)."
    ),
    "vectors, sts": (
        "One tower over MiniLM's vectors of pairs of English sentences with a graded similarity (Spearman, of a "
        "quarter of the training rows, held back)."
    ),
}


def write(results: Sequence[Found], lacking: dict[str, str], seconds: float) -> None:
    """Both files, each aside and then renamed."""
    kept = {
        "command": "python benchmarks/ablations.py --record",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "processor_seconds": round(seconds),
        "effects": list(rows(results)),
    }
    texts = {
        "ablations.md": "\n".join(page(results, lacking)) + "\n",
        "ablations.json": json.dumps(kept, indent=1) + "\n",
    }
    for name, text in texts.items():
        aside = RESULTS / f".{name}.part"
        aside.write_text(text)
        aside.replace(RESULTS / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of a few techniques on vectors, under a minute")
    parser.add_argument("--record", action="store_true", help="write docs/results/ablations.md and .json")
    parser.add_argument("--dry", action="store_true", help="run nothing: read the lines there are")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--bed", default="", help="beds whose name contains this: VLM, digits, banking, sts")
    parser.add_argument("--only", default="", help="techniques whose name contains this")
    parser.add_argument("--work", type=Path, default=WORK, help="where lines and vectors are kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds, bed = (1, "digits") if given.quick else (given.seeds, given.bed)
    wanted = effects(bed, given.only)
    if given.quick:
        wanted = tuple(e for e in wanted if e.technique in QUICK)
    path = given.work / ("quick.jsonl" if given.quick else "lines.jsonl")
    failed, lacking = (
        ([], {t.bed: w for t in trials_of(wanted) if (w := t.lacks())})
        if given.dry
        else collect(trials_of(wanted), seeds, path, given.work)
    )
    lines = Lines(path)
    results = [found(e, lines, seeds) for e in wanted if e.bed not in lacking]
    if given.record:
        of = {digest_of(t, seed) for t in trials_of(wanted) for seed in range(seeds)}
        write(results, lacking, sum(line["seconds"] for d, line in lines.known.items() if d in of))
    print("\n".join(table(results)))
    techniques = dict.fromkeys(r.effect.technique for r in results)
    by = {t: {r.verdict for r in results if r.effect.technique == t} for t in techniques}
    summary = {
        "techniques": len(techniques),
        "shown": [t for t, found_ in by.items() if "shown" in found_],
        "shown_worse": [t for t, found_ in by.items() if "shown worse" in found_],
        "null": [t for t, found_ in by.items() if found_ == {"null"}],
        "too_few_seeds": [t for t, found_ in by.items() if found_ == {"too few"}],
        "effects": len(results),
        "seeds": seeds,
        "failed": failed,
        "left_out": lacking,
    }
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
