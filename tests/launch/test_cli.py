"""The command as a person meets it: help, errors, plan, run and show."""

import subprocess
import sys

import pytest

VERBS = ("plan", "run", "launch", "pack", "show", "embed", "eval", "export", "push", "doctor", "quickstart")


def omni2vec(*words, code=0, **environment):
    import os

    done = subprocess.run(
        [sys.executable, "-m", "omni2vec", *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"} | environment,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_help_imports_no_torch():
    code = (
        "import sys; sys.argv = ['omni2vec', '--help']\n"
        "from omni2vec.launch.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = [m for m in ('torch', 'transformers', 'numpy', 'webdataset', 'pyarrow') if m in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout


def test_help_lists_every_verb():
    text = omni2vec("--help")
    for verb in VERBS:
        assert f" {verb} " in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_help_has_an_example_and_fits_80_columns(verb):
    text = omni2vec(verb, "--help")
    assert f"omni2vec {verb}" in text.split("Usage:")[1].split("\n", 1)[1]
    assert max(len(line) for line in text.splitlines()) <= 80


def test_the_version_is_printed():
    from omni2vec import __version__

    assert omni2vec("--version").strip() == f"omni2vec {__version__}"


def test_plan_says_order_estimates_and_makes_nothing(toy, tmp_path):
    text = omni2vec("plan", toy, "count=4", "--into", tmp_path / "run")
    places = [text.index(f"\n{i}  {name}") for i, name in enumerate(("numbers", "train", "again", "report"), 1)]
    assert places == sorted(places)
    assert "known once numbers is done" in text and "count" in text
    assert not (tmp_path / "run").exists()


def test_plan_after_a_run_says_done_and_what_has_changed(toy, tmp_path):
    omni2vec("run", toy, "--into", tmp_path)
    assert omni2vec("plan", toy, "--into", tmp_path).count("skipped: done") == 4
    text = omni2vec("plan", toy, "train.steps=9", "--into", tmp_path)
    assert "train.steps: 5 -> 9" in text and "steps    9" in text


def test_run_ends_by_saying_where_the_report_is(toy, tmp_path):
    assert omni2vec("run", toy, "--into", tmp_path).splitlines()[-1] == f"report: {tmp_path}/report/report.html"


def test_bad_input_is_one_message_without_a_traceback_and_exits_2(toy, tmp_path):
    text = omni2vec("run", toy, "cuont=3", "--into", tmp_path, code=2)
    assert "no setting 'cuont'. Did you mean 'count'?" in text and "Traceback" not in text


def test_the_traceback_is_there_for_who_asks(toy, tmp_path):
    assert "Traceback" in omni2vec("run", toy, "cuont=3", code=1, OMNI2VEC_TRACEBACK="1")


def test_show_gives_a_batch_as_the_stage_tells_it(toy, tmp_path):
    omni2vec("run", toy, "--into", tmp_path)
    shown = omni2vec("show", toy, "--batch", 2, "--stage", "train", "--into", tmp_path)
    assert shown.strip() == "batch 2 of train: number 2"


def test_show_asks_which_stage_where_there_are_several(toy, tmp_path):
    assert "give --stage train or again" in omni2vec("show", toy, "--batch", 2, "--into", tmp_path, code=2)


def test_show_before_the_run_says_what_is_missing(toy, tmp_path):
    text = omni2vec("show", toy, "--batch", 2, "--stage", "train", "--into", tmp_path, code=2)
    assert "stage 'train' reads numbers, not made yet" in text


def test_pack_then_show_then_verify(tmp_path):
    table = tmp_path / "mugs.csv"
    table.write_text("title,other\nred mug,a mug that is red\nblue cup,a cup that is blue\n")
    out = tmp_path / "shards"
    said = omni2vec("pack", table, out, "--column", "query=text:title", "--column", "positives=text:other")
    assert said.startswith("1 shard, ") and f"omni2vec show {out}" in said
    shown = omni2vec("show", out)
    assert "2 rows" in shown and "a cup that is blue" in shown
    assert omni2vec("show", "--verify", out).strip() == "1 shard: sound"


def test_verify_names_the_shard_of_a_fault_and_exits_1(tmp_path):
    (tmp_path / "cut.tar").write_bytes(b"not a tar" * 100)
    assert str(tmp_path / "cut.tar") in omni2vec("show", "--verify", tmp_path, code=1)


def test_pack_of_an_unknown_set_lists_the_sets(tmp_path):
    text = omni2vec("pack", tmp_path, tmp_path / "out", "--set", "bankin", code=2)
    assert "no such set. Did you mean 'banking'?" in text and not (tmp_path / "out").exists()


def test_show_of_a_folder_without_shards_says_so(tmp_path):
    assert "no *.tar in it" in omni2vec("show", tmp_path, code=2)


def test_eval_refuses_an_out_that_holds_something(tmp_path):
    (tmp_path / "x").write_text("")
    assert "exists already" in omni2vec("eval", "model", "shards", "--out", tmp_path, code=2)


FAILING = """
from dataclasses import dataclass

@dataclass(frozen=True)
class First:
    name: str = "first"

    def make(self, out, where):
        pass

@dataclass(frozen=True)
class Train:
    name: str = "train"
    of: First | None = None

    def make(self, out, where):
        pass

    def plan(self, where):
        raise ValueError("100 steps asked, but all sources have ended after 3")

    def preview(self, step, where):
        raise ValueError("a scheduled weight")
        yield

def recipe(*, waits: bool = False):
    return Train(of=First() if waits else None)
"""


def test_plan_of_a_step_that_will_fail_says_error_and_exits_2(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FAILING)
    into = ("--into", tmp_path / "run")
    assert "  error: 100 steps asked, but all sources have ended after 3" in omni2vec("plan", path, *into, code=2)
    text = omni2vec("plan", path, "waits=true", *into)
    assert "known once first is done" in text and "error" not in text


def test_a_batch_that_a_setting_forbids_is_one_message(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FAILING)
    text = omni2vec("show", path, "--batch", "0", "--into", tmp_path / "run", code=2)
    assert text.strip() == "error: stage 'train': a scheduled weight"
