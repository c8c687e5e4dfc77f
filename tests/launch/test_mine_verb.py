"""`omni2vec mine`: words to rules, shards out, a killed command that goes on, and what is refused."""

import json

import numpy as np
import pytest
import torch
from omni2vec.data.shards import Shard, verify, write_shards
from omni2vec.data.types import DataError, Example, Item
from omni2vec.launch import cli  # noqa: F401  (with all its verbs)
from omni2vec.launch.app import app
from omni2vec.launch.mine_verb import _rule, _sample
from omni2vec.train import mining
from omni2vec.train.rules import Above, Below, Consistent, MarginToMean, PercentOfPositive, PositiveAbove, RankRange
from omni2vec.train.samples import Drawn, Every, Hardest
from typer.testing import CliRunner

from ..model.small import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("verb")
    rng = np.random.default_rng(0)
    words = ["red", "green", "circle", "above", "square", "left"]
    rows = [
        Example(
            "",
            "rows",
            "retrieval",
            *(f(" ".join(rng.choice(words, 6))) for f in (Item.text, lambda t: (Item.text(t),))),
        )
        for _ in range(30)
    ]
    write_shards(rows, path / "rows")
    tiny().save(path / "model")
    return path


def called(folder, out, *words):
    """The exit's exception, or the words said."""
    found = CliRunner().invoke(app, ["mine", str(folder / "model"), str(folder / "rows"), str(out), *words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.output


def test_rules_are_words_with_values():
    for word, rule in (
        ("rank-range=50:100", RankRange(50, 100)),
        ("rank-range=30", RankRange(30)),
        ("percent-of-positive", PercentOfPositive()),
        ("below=0.7", Below(0.7)),
        ("above=-0.2", Above(-0.2)),
        ("margin-to-mean=-0.1", MarginToMean(-0.1)),
        ("consistent=20", Consistent(20)),
        ("positive-above=.4", PositiveAbove(0.4)),
    ):
        assert _rule(word) == rule
    assert [_sample(w) for w in ("hardest", "random", "every=3")] == [Hardest(), Drawn(), Every(3)]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("percent-of-positve=1", "Did you mean 'percent-of-positive'"),
        ("below=x", "got 'x', expected float"),
        ("rank-range=1.5", "got '1.5', expected int"),
        ("rank-range=5:2", "expected 1 <= first <= last"),
        ("below=1:2", "2 values; expected below=MOST"),
    ],
)
def test_a_wrong_rule_says_what_is_right(word, said):
    with pytest.raises(DataError, match=said):
        _rule(word)


def test_it_mines_into_a_new_folder_and_says_where_to_look(folder, tmp_path):
    said = called(folder, tmp_path / "out", "--count", "3", "--rule", "rank-range=2:20", "--among", "20")
    assert "90 negatives in 30 of 30 rows" in said and "mined.html" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert not (tmp_path / "out" / ".asked").exists()
    assert len(Shard(tmp_path / "out" / "mined-000000.tar").example(0).negatives) == 3
    assert list(verify([tmp_path / "out" / "mined-000000.tar"])) == []
    with pytest.raises(DataError, match="exists already"):
        called(folder, tmp_path / "out")


def test_a_killed_command_goes_on_and_another_begins_anew(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(mining.Miner, "judge", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        called(folder, tmp_path / "out")
    kept = sorted((tmp_path / "out.partial" / "vectors").iterdir())
    times = [p.stat().st_mtime_ns for p in kept]
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(mining.Miner, "judge", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        called(folder, tmp_path / "out")
    assert [p.stat().st_mtime_ns for p in kept] == times and len(kept) == 2
    assert "of another command; begins anew" in called(folder, tmp_path / "out", "--count", "2", "--copy")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["settings"]["media"] == "copy"


def test_help_is_short_and_names_every_rule():
    said = CliRunner().invoke(app, ["mine", "--help"]).output
    assert "Usage: omni2vec mine MODEL DATA OUT [OPTIONS]" in said and max(map(len, said.splitlines())) <= 80
    for name in (
        "rank-range",
        "percent-of-positive",
        "below",
        "above",
        "margin-to-mean",
        "consistent",
        "positive-above",
    ):
        assert name in said


def test_what_is_not_there_is_named(folder, tmp_path):
    for words, said in (
        (["mine", str(folder / "model"), "nowhere", str(tmp_path / "o")], "nowhere: no such file or folder"),
        (["mine", "nomodel/x", str(folder / "rows"), str(tmp_path / "p")], "nomodel/x"),
    ):
        found = CliRunner().invoke(app, words)
        assert isinstance(found.exception, (DataError, OSError)) and said in str(found.exception)
    with pytest.raises(DataError, match=r"--empty: got 'x', expected keep \| drop"):
        called(folder, tmp_path / "o", "--empty", "x")
    with pytest.raises(DataError, match="--sample x: expected hardest, random"):
        called(folder, tmp_path / "o", "--sample", "x")
