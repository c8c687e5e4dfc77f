"""The ablations: their statistics, the lines that make them resumable, and one training of each kind of vectors."""

import importlib
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytest.importorskip("sklearn", reason="scikit-learn brings the digits")


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@dataclass(frozen=True)
class Fixed:
    """A trial that gives what it is told."""

    name: str
    values: tuple[float, ...]
    more: int = 0
    bed: str = "none"

    def lacks(self) -> str:
        return ""

    def run(self, seed, work):
        (work / f"{self.name} {seed}").touch(exist_ok=False)  # a second run of one seed fails
        return {"score": self.values[seed]}


CONTROL = Fixed("control", (10.0, 20.0, 30.0, 40.0, 50.0, 60.0))


def an_effect(table, *differences):
    arm = Fixed("arm", tuple(c + d for c, d in zip(CONTROL.values, differences, strict=True)))
    return table.Effect("technique", "with", "without", arm, CONTROL, "score", "natural")


def collected(load, tmp_path, effect, seeds=6):
    table, main = load("ablation_table"), load("ablations")
    main.collect(table.trials_of([effect]), seeds, tmp_path / "lines.jsonl", tmp_path)
    return table.found(effect, table.Lines(tmp_path / "lines.jsonl"), seeds)


def test_the_error_is_that_of_the_mean_of_paired_differences(load, tmp_path):
    found = collected(load, tmp_path, an_effect(load("ablation_table"), 1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    assert found.mean == pytest.approx(3.5)
    assert found.error == pytest.approx(math.sqrt(3.5 / 6))  # a sample variance of 3.5, over six seeds
    assert found.verdict == "shown"


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((1.0, -1.0, 1.0, -1.0, 1.0, 0.0), "null"),
        ((0.0,) * 6, "null"),
        ((-2.0, -2.1, -1.9, -2.0, -2.1, -1.9), "shown worse"),
        ((2.0,) * 6, "shown"),
    ],
)
def test_only_what_lies_beyond_three_standard_errors_is_shown(load, tmp_path, differences, verdict):
    assert collected(load, tmp_path, an_effect(load("ablation_table"), *differences)).verdict == verdict


def test_five_seeds_show_nothing(load, tmp_path):
    assert collected(load, tmp_path, an_effect(load("ablation_table"), *(2.0,) * 6), seeds=5).verdict == "too few"


def test_what_has_a_line_is_not_run_again_and_a_torn_line_is(load, tmp_path):
    table, main = load("ablation_table"), load("ablations")
    trials, path = table.trials_of([an_effect(table, *(1.0,) * 6)]), tmp_path / "lines.jsonl"
    main.collect(trials, 3, path, tmp_path)
    whole = path.read_bytes()
    assert main.collect(trials, 3, path, tmp_path) == ([], {})  # Fixed.run would have failed
    path.write_bytes(whole[:-9])
    (tmp_path / "arm 2").unlink()
    assert main.collect(trials, 3, path, tmp_path) == ([], {})
    again = path.read_bytes().splitlines()
    assert again[:-1] == whole.splitlines()[:-1] and json.loads(again[-1])["values"] == {"score": 31.0}


def test_a_trial_that_fails_is_told_and_ends_no_other(load, tmp_path):
    table, main = load("ablation_table"), load("ablations")
    effect = table.Effect("technique", "with", "without", Fixed("short", (1.0,)), CONTROL, "score", "natural")
    assert main.collect(table.trials_of([effect]), 2, tmp_path / "lines.jsonl", tmp_path) == (["short"], {})
    assert len(table.found(effect, table.Lines(tmp_path / "lines.jsonl"), 2).arms) == 1


def test_a_digest_hangs_on_the_settings_but_not_on_fields_at_their_default(load):
    table = load("ablation_table")
    assert table.told(Fixed("a", (1.0,))) == "Fixed(name='a', values=(1.0))"
    assert table.digest_of(CONTROL, 0) != table.digest_of(CONTROL, 1)
    assert table.digest_of(CONTROL, 0) != table.digest_of(replace(CONTROL, more=1), 0)


def test_every_trial_of_the_tables_has_a_name_and_a_digest_of_its_own(load):
    table = load("ablation_table")
    effects = load("ablations").effects()
    trials = table.trials_of(effects)
    assert len({(t.bed, t.name) for t in trials}) == len({table.digest_of(t, 0) for t in trials}) == len(trials)
    assert {e.bed for e in effects} == set(load("ablations").BEDS)


def test_the_towers_learn_the_same_from_one_seed_and_a_filter_drops_what_was_planted(load, tmp_path):
    sets, vectors = load("ablation_sets"), load("ablation_vectors")
    effects, rules = load("ablation_vector_effects"), load("omni2vec.train.rules")
    data = sets.pairs("digits", tmp_path)
    short = replace(effects.PLAIN, steps=60)
    runs = [vectors.Vectors("short", short).run(seed, tmp_path)["mrr"] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2] and runs[0] > 3  # of 597 by chance: 1.2
    masked = load("omni2vec.train.objectives.infonce").InfoNCE(mask_labels=True)
    planted = replace(short, steps=200, objectives=(masked,), task="class", given=vectors.Given(4, 0.5))
    filtered = replace(planted, given=replace(planted.given, rules=(rules.PercentOfPositive(0.7),)))
    label = data.label[: data.train].numpy()
    wrong, kept = (vectors.given(data, fit, 0) for fit in (planted, filtered))
    left = kept >= 0
    assert (label[wrong] == label[:, None]).mean() == pytest.approx(0.5, abs=0.03)
    assert (label[kept] == label[:, None])[left].mean() < 0.35 and left.mean() > 0.1


def test_the_quick_run_ends_with_one_json_object(tmp_path):
    command = [
        sys.executable,
        str(BENCHMARKS / "ablations.py"),
        "--quick",
        "--only",
        "rounding",
        "--work",
        str(tmp_path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert not done.returncode, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["techniques"] == 1 and found["seeds"] == 1 and not found["failed"] and not found["shown"]
