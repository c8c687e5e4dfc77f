"""Judged: every candidate's score beside its row, once, through kills and on several ranks."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from omni2vec.data.scored import Scored
from omni2vec.data.types import DataError, Example, Item
from omni2vec.train import judge as module
from omni2vec.train.gather import Group
from omni2vec.train.guard import Restart
from omni2vec.train.judge import Judged, report

from .toy import ToyRows

ASKED = []  # (instruction, key) of every pair that was judged


@dataclass(frozen=True)
class Words:
    """Scores the number of words in common; `break_at` pairs on, it gives something else."""

    broken: float | None = None
    name: str = "words"

    def open(self, where):
        return Counting(self)


@dataclass
class Counting:
    settings: Words
    told: dict = field(default_factory=lambda: {"pairs_cut": 1})

    @property
    def digest(self):
        return self.settings.name

    def scores(self, pairs, instruction):
        ASKED.extend((instruction, p.key) for p in pairs)
        words = [len(set(p.query.parts[0].text.split()) & set(p.candidate.parts[0].text.split())) for p in pairs]
        return np.array(words if self.settings.broken is None else [self.settings.broken] * len(pairs), np.float32)


@pytest.fixture(autouse=True)
def forget():
    ASKED.clear()


def rows(count=10):
    """The positive has the row's word, the first negative both words of the query."""
    made = [
        Example(
            f"rows/{i}", "rows", "retrieval", Item.text(f"word{i} more"), (Item.text(f"word{i}"),) * (i != 4),
            tuple(map(Item.text, (f"more word{i}", "else")))[: i % 3], instruction="ab"[i % 2],
        )
        for i in range(count)
    ]  # fmt: skip
    return ToyRows("rows", tuple(made))


def test_the_scores_reach_the_candidates_that_they_are_of(tmp_path):
    source = rows()
    Judged("judge", source, Words()).make(tmp_path, None)
    found = Scored(source, str(tmp_path)).open(None)
    for i, example in enumerate(found):
        assert example.scores["rerank"] == (*((1.0,) * (i != 4)), *(2.0, 0.0)[: i % 3])
    assert {(told, int(key.split("/")[1]) % 2) for told, key in ASKED} == {("a", 0), ("b", 1)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json", "scores.safetensors"]


def test_the_report_tells_of_likely_false_negatives_and_the_judge(tmp_path):
    Judged("judge", rows(), Words()).make(tmp_path, None)
    facts = json.loads((tmp_path / "report.json").read_text())
    pairs = 9 + sum(i % 3 for i in range(10))
    assert (facts["pairs"], facts["above_best_positive"], facts["pairs_cut"]) == (pairs, 5, 1)
    assert facts["judge"] == "words" and facts["positives"]["p10_p50_p90"] == [1.0, 1.0, 1.0]


def test_a_fixed_instruction_replaces_the_rows_own(tmp_path):
    Judged("judge", rows(), Words(), instruction="fits?").make(tmp_path, None)
    assert {told for told, _ in ASKED} == {"fits?"}


def test_what_was_judged_before_a_stop_is_not_judged_again(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 3)
    pause = module._pause

    def stop(group, signals, folder):
        if len(list(folder.iterdir())) == 2:
            raise Restart("asked")
        pause(group, signals, folder)

    source = rows()
    with monkeypatch.context() as once:
        once.setattr(module, "_pause", stop)
        with pytest.raises(Restart):
            Judged("judge", source, Words()).make(tmp_path, None)
    before = len(ASKED)
    Judged("judge", source, Words()).make(tmp_path, None)
    assert 0 < before < len(ASKED) == 9 + sum(i % 3 for i in range(10))
    assert Scored(source, str(tmp_path)).open(None)[8].scores["rerank"] == (1.0, 2.0, 0.0)


def test_windows_of_another_judge_are_judged_anew(tmp_path, monkeypatch):
    folder = tmp_path / "windows"
    folder.mkdir()
    step = Judged("judge", rows(3), Words())
    step._window(Counting(Words(name="old")), rows(3), 0, folder)
    ASKED.clear()
    step.make(tmp_path, None)
    assert len(ASKED) == 3 + 0 + 1 + 2


def test_ranks_judge_each_pair_once(tmp_path, monkeypatch):
    from .threaded import Threaded, on_ranks

    monkeypatch.setattr(module, "WINDOW", 2)
    monkeypatch.setattr(Threaded, "exchange", lambda self, message: self._spoken(message), raising=True)

    def spoken(self, message):
        self.table.slots[self.rank] = message
        self.table.barrier.wait()
        found = list(self.table.slots)
        self.table.barrier.wait()
        return found

    monkeypatch.setattr(Threaded, "_spoken", spoken, raising=False)
    source = rows(7)
    groups = {}
    import threading

    def work(group):
        groups[threading.get_ident()] = group
        Judged("judge", source, Words()).make(tmp_path, None)

    monkeypatch.setattr(Group, "current", staticmethod(lambda: groups[threading.get_ident()]))
    on_ranks(3, work)
    assert len(ASKED) == 6 + sum(i % 3 for i in range(7))
    assert json.loads((tmp_path / "report.json").read_text())["pairs_cut"] == 3
    assert [e.scores["rerank"][0] for e in Scored(source, str(tmp_path)).open(None)][:4] == [1, 1, 1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_names_its_row(tmp_path, value):
    with pytest.raises(DataError, match=r"rows/0: the judge gave (nan|inf)"):
        Judged("judge", rows(), Words(value)).make(tmp_path, None)


def test_a_source_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="no rows"):
        Judged("judge", ToyRows("none", ()), Words()).make(tmp_path, None)


def test_the_plan_counts_pairs():
    told = Judged("judge", rows(), Words()).plan(None)
    assert told["pairs"].startswith(f"{9 + sum(i % 3 for i in range(10))}, ")


def test_the_report_of_rows_without_candidates_has_no_nan():
    facts = report(np.array([0, 0]), np.array([0, 0]), np.zeros(0, np.float32))
    assert (facts["rows_without_candidates"], facts["spread"], facts["pairs"]) == (2, 0.0, 0)
