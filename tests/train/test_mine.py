"""The Mine step: what is planted is found or left out, rows keep keys and media, kills and ranks change nothing."""

import json
import os
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from omni2vec.data.mix import Feed
from omni2vec.data.shards import verify, write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import DataError, Example, Item
from omni2vec.launch import plan as planning
from omni2vec.launch.graph import Recipe
from omni2vec.launch.record import read, write
from omni2vec.launch.run import run
from omni2vec.train import mine_run, mining, searching, teacher
from omni2vec.train.cluster import Cluster
from omni2vec.train.guard import Restart
from omni2vec.train.mine import Mine
from omni2vec.train.monitor import read_log
from omni2vec.train.rules import Above, Below, BelowJudged, Consistent, PercentOfPositive, PositiveAbove, RankRange
from omni2vec.train.samples import Aggregated, Every
from omni2vec.train.stage import Stage
from omni2vec.train.words import Fused
from rich.console import Console

from ..model.small import tiny
from .planted import one_query


def nowhere(step):
    raise AssertionError(f"no step is needed, asked for {step}")


def texts(items):
    return [item.parts[0].text for item in items]


COSINES = {"p": 0.8, "false": 0.78, "hard": 0.74, "mid": 0.5, "easy": 0.1, "far": -0.6}


def mined(tmp_path, monkeypatch, cosines=COSINES, positives=("p",), name="out", fields=None, **settings):
    """The rows that Mine makes of one query with documents at these cosines; the query's row is the first."""
    encoder, rows = one_query(cosines, list(positives), **(fields or {}))
    if not (tmp_path / "rows").exists():
        write_shards(rows, tmp_path / "rows")
    monkeypatch.setattr(teacher, "load_encoder", lambda model: encoder)
    out = tmp_path / name
    out.mkdir()
    Mine("m", "known", Shards(str(tmp_path / "rows")), **settings).make(out, nowhere)
    return list(map(Shards(str(out), name="rows").open(None).__getitem__, range(len(rows))))


def test_planted_false_negatives_go_at_the_right_threshold_and_stay_otherwise(tmp_path, monkeypatch):
    found = {
        share: texts(mined(tmp_path, monkeypatch, name=str(share), rules=(PercentOfPositive(share),))[0].negatives)
        for share in (1.0, 0.98, 0.95, 0.9, 0.5)
    }
    everything = ["false", "hard", "mid", "easy", "far"]
    assert found[1.0] == found[0.98] == everything  # 0.98 * 0.8 = 0.784
    assert found[0.95] == everything[1:] and found[0.9] == everything[2:] and found[0.5] == everything[3:]


def test_negatives_are_hardest_first_with_the_models_cosines(tmp_path, monkeypatch):
    row = mined(tmp_path, monkeypatch, count=3, fields={"scores": {"label": (4.0,)}})[0]
    assert texts(row.negatives) == ["false", "hard", "mid"]
    assert row.scores == {"mined": pytest.approx((0.8, 0.78, 0.74, 0.5), abs=1e-6)}  # a label speaks of no negative
    assert "mined" not in mined(tmp_path, monkeypatch, name="b", score="")[0].scores


def test_keys_and_everything_else_of_a_row_stay(tmp_path, monkeypatch):
    fields = {"known": ("77",), "label": "", "instruction": "find", "target_instruction": "be", "answer": "yes"}
    rows = mined(tmp_path, monkeypatch, fields=fields)
    before = Shards(str(tmp_path / "rows")).open(None)
    for i, row in enumerate(rows):
        assert replace(row, negatives=(), scores={}) == before[i]
        assert row.key == before[i].key == f"rows/shard-000000/{i:06d}"


def test_right_answers_are_never_negatives_however_they_are_known(tmp_path, monkeypatch):
    """Another positive, a known id, the query itself as a document, and the answer of a row that asks the same."""
    encoder, rows = one_query(COSINES, ["p", "hard"], known=(Item.text("mid").id,))
    rows += [
        Example("", "rows", "retrieval", Item.text("of far"), (Item.text("q"),)),
        Example("", "rows", "retrieval", Item.text("q"), (Item.text("easy"),)),
        Example("", "rows", "retrieval", Item.text("q"), (Item.text("far"),), instruction="another question"),
    ]
    write_shards(rows, tmp_path / "rows")
    monkeypatch.setattr(teacher, "load_encoder", lambda model: encoder)
    (tmp_path / "out").mkdir()
    Mine("m", "known", Shards(str(tmp_path / "rows"))).make(tmp_path / "out", nowhere)
    found = Shards(str(tmp_path / "out")).open(None)
    assert texts(found[0].negatives) == ["false", "far"]
    assert texts(found[len(rows) - 2].negatives) == ["false", "far"]  # it asks the same, of the same instruction
    assert texts(found[len(rows) - 1].negatives) == ["p", "false", "hard", "mid", "easy"]
    for row in map(found.__getitem__, range(len(rows))):
        assert not {i.id for i in row.negatives} & {row.query.id, *row.known, *(p.id for p in row.positives)}


def test_documents_of_the_same_label_are_no_candidates_unless_asked_for(tmp_path, monkeypatch):
    encoder, rows = one_query(COSINES, ["p"], label="cat")
    rows = [rows[0], *(replace(r, label="cat" if i % 2 else "dog") for i, r in enumerate(rows[1:]))]
    write_shards(rows, tmp_path / "rows")
    monkeypatch.setattr(teacher, "load_encoder", lambda model: encoder)
    for labels, expected in ((True, ["false", "mid", "far"]), (False, ["false", "hard", "mid", "easy", "far"])):
        out = tmp_path / str(labels)
        out.mkdir()
        Mine("m", "known", Shards(str(tmp_path / "rows")), labels=labels).make(out, nowhere)
        assert texts(Shards(str(out)).open(None)[0].negatives) == expected


def test_rows_with_no_candidate_left_are_kept_dropped_or_refused(tmp_path, monkeypatch):
    cosines = {"p": 0.8, "a": 0.7, "b": 0.6}
    kept = mined(tmp_path, monkeypatch, cosines, rules=(Below(0.5),))
    assert [len(r.negatives) for r in kept] == [0, 2, 2]  # the others' queries are far from everything
    with pytest.raises(
        DataError,
        match=r"1 of 3 rows have no candidate left, the first is rows/shard-000000/000000.*"
        r"Below\(most=0.5\) dropped 2 candidates",
    ):
        mined(tmp_path, monkeypatch, cosines, rules=(Below(0.5),), empty="raise", name="b")
    (tmp_path / "c").mkdir()
    Mine("m", "known", Shards(str(tmp_path / "rows")), rules=(Below(0.5),), empty="drop").make(tmp_path / "c", nowhere)
    left = Shards(str(tmp_path / "c")).open(None)
    assert len(left) == 2 and left[0].key == "rows/shard-000000/000001"
    told = json.loads((tmp_path / "c" / "report.json").read_text())
    assert (told["rows"], told["rows_written"], told["rows_without_negatives"]) == (3, 2, 1)
    assert told["rules"] == [{"rule": "Below(most=0.5)", "dropped": 2, "of": "candidates"}]


def test_a_margin_that_leaves_nothing_is_told_with_its_numbers(tmp_path, monkeypatch):
    with pytest.raises(
        DataError,
        match=r"no candidate is left. 6 rows found 30 candidates: Below\(most=-0.9\) dropped 30 candidates. "
        r"Positives have cosines of .*\(median",
    ):
        mined(tmp_path, monkeypatch, rules=(Below(-0.9),))
    with pytest.raises(DataError, match=r"no row is left. .*PositiveAbove\(least=0.9\) dropped 6 rows"):
        mined(tmp_path, monkeypatch, rules=(PositiveAbove(0.9),), name="b")


def test_dropped_rows_are_not_written_and_dropped_positives_stay_known(tmp_path, monkeypatch):
    cosines = {**COSINES, "weak": 0.05}
    encoder, rows = one_query(cosines, ["p", "weak"])
    write_shards(rows, tmp_path / "rows")
    monkeypatch.setattr(teacher, "load_encoder", lambda model: encoder)
    (tmp_path / "out").mkdir()
    Mine("m", "known", Shards(str(tmp_path / "rows")), rules=(PositiveAbove(0.3), PercentOfPositive(0.95))).make(
        tmp_path / "out", nowhere
    )
    found = Shards(str(tmp_path / "out")).open(None)
    assert len(found) == 1 and texts(found[0].positives) == ["p"]
    assert texts(found[0].negatives) == ["hard", "mid", "easy", "far"]  # measured by the positive that is left
    assert found[0].known == (Item.text("weak").id,)
    assert len(found[0].scores["mined"]) == 5


def test_old_negatives_stay_in_front_where_asked(tmp_path, monkeypatch):
    old = {"negatives": (Item.text("easy"), Item.text("hard")), "scores": {"label": (3.0, 1.0, 2.0)}}
    row = mined(tmp_path, monkeypatch, keep=True, count=2, fields=old)[0]
    assert texts(row.negatives) == ["easy", "hard", "false"]  # "hard" was chosen again, and stands once
    assert row.scores == {"mined": pytest.approx((0.8, 0.1, 0.74, 0.78), abs=1e-6)}
    row = mined(tmp_path, monkeypatch, name="b", count=1, rules=(RankRange(2, 2),), fields=old)[0]
    assert texts(row.negatives) == ["hard"] and row.scores["label"] == (3.0, 2.0)  # every document has one still


def test_candidates_of_another_source_alone(tmp_path, monkeypatch):
    encoder, rows = one_query(COSINES, ["p"])
    corpus = [Example("", "corpus", "retrieval", Item.text(f"of {n}"), (Item.text(n),)) for n in ("mid", "far", "p")]
    write_shards(rows, tmp_path / "rows"), write_shards(corpus, tmp_path / "corpus")
    monkeypatch.setattr(teacher, "load_encoder", lambda model: encoder)
    (tmp_path / "out").mkdir()
    Mine("m", "known", Shards(str(tmp_path / "rows")), Shards(str(tmp_path / "corpus"))).make(tmp_path / "out", nowhere)
    found = Shards(str(tmp_path / "out")).open(None)
    assert texts(found[0].negatives) == ["mid", "far"]
    assert texts(found[1].negatives) == ["mid", "far", "p"] or len(found[1].negatives) == 3
    assert found[0].scores["mined"] == pytest.approx((0.8, 0.5, -0.6), abs=1e-6)  # "p" is ranked by none of its own


def test_every_nth_goes_around_and_ends_hardest_first(tmp_path, monkeypatch):
    cosines = {"p": 0.95, **{f"{i}": 0.9 - 0.05 * i for i in range(12)}}
    row = mined(tmp_path, monkeypatch, cosines, sample=Every(5), count=5)[0]
    assert texts(row.negatives) == ["0", "1", "5", "6", "10"]  # 0, 5, 10, then again from the second: 1, 6
    row = mined(tmp_path, monkeypatch, cosines, sample=Every(5), count=3, name="b")[0]
    assert texts(row.negatives) == ["0", "5", "10"]


@dataclass(frozen=True)
class Liking:
    """A judge of texts that likes each as much as it is told."""

    likes: tuple[tuple[str, float], ...]
    digest: str = "liking"

    def open(self, where):
        return self

    @property
    def told(self):
        return {"pairs": 0}

    def scores(self, pairs, instruction):
        return np.array([dict(self.likes)[p.candidate.parts[0].text] for p in pairs], np.float32)


def test_a_judge_drops_what_it_likes_as_much_as_the_answer_and_its_scores_are_kept(tmp_path, monkeypatch):
    likes = Liking((("p", 0.9), ("false", 0.895), ("hard", 0.2), ("mid", 0.3), ("easy", 0.1), ("far", 0.0)))
    rules = (Above(0.3), BelowJudged(likes, beta=0.01))
    row = mined(tmp_path, monkeypatch, rules=rules)[0]
    assert texts(row.negatives) == ["hard", "mid"]
    assert row.scores["rerank"] == pytest.approx((0.9, 0.2, 0.3))
    assert row.scores["mined"] == pytest.approx((0.8, 0.74, 0.5), abs=1e-6)
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [r["dropped"] for r in told["rules"]] == [27, 1] and told["judge: pairs"] == 0
    loose = mined(tmp_path, monkeypatch, rules=(Above(0.3), BelowJudged(likes, beta=0.0)), name="b")[0]
    assert texts(loose.negatives) == ["false", "hard", "mid"]


def test_words_bring_what_the_vectors_miss(tmp_path, monkeypatch):
    cosines = {"right": 0.9, "red thing": 0.8, "blue thing": 0.7, "green apple": 0.2, "grey stone": 0.1}
    encoder, rows = one_query(cosines, ["right"])
    table = encoder.table | {"green apple tree": encoder.table["q"]}
    rows = [replace(rows[0], query=Item.text("green apple tree")), *rows[1:]]
    write_shards(rows, tmp_path / "rows")
    monkeypatch.setattr(teacher, "load_encoder", lambda model: replace(encoder, table=table))
    for fused, expected in ((None, "red thing"), (Fused(weight=2.0), "green apple")):
        out = tmp_path / str(bool(fused))
        out.mkdir()
        Mine("m", "known", Shards(str(tmp_path / "rows")), among=3, count=3, fused=fused).make(out, nowhere)
        row = Shards(str(out)).open(None)[0]
        assert texts(row.negatives)[0] == expected
        assert len(row.negatives) == 3
    assert row.scores["mined"][1] == pytest.approx(0.2, abs=1e-6)  # the cosine stays the cosine


WORDS = ["red", "green", "blue", "circle", "square", "above", "below", "the", "a", "left"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 rows of captions and pictures, and a small embedder."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("mine")
    rng = np.random.default_rng(0)
    from ..model.small import mixed

    pictures = [i for i in mixed(24, 1, video=False) if "Image" in str(type(i.parts[0]))]
    rows = [
        Example(
            "",
            "rows",
            "retrieval",
            Item.text(" ".join(rng.choice(WORDS, 6))),
            (pictures[i % 12] if i % 4 == 0 else Item.text(" ".join(rng.choice(WORDS, 5))),),
        )
        for i in range(60)
    ]
    (path / "run").mkdir()
    write_shards(rows, path / "run" / "rows")
    tiny().save(path / "model")
    return path


def step(folder, **settings):
    source = Shards(str(folder / "run" / "rows"), name="rows")
    return Mine("mine", str(folder / "model"), source, **{"count": 3, "among": 20, **settings})


def made(folder, out, **settings):
    out.mkdir(exist_ok=True, parents=True)
    step(folder, **settings).make(out, nowhere)
    return out


def content(out):
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.is_file()}


def test_the_same_step_leaves_the_same_bytes_and_shards_that_verify(folder, tmp_path):
    first, second = made(folder, tmp_path / "a"), made(folder, tmp_path / "b")
    assert content(first) == content(second)
    assert sorted(content(first)) == [
        "mined-000000.tar", "mined-000000.tar.index", "mined.html", "referred.json", "report.json", "shards.catalogue",
    ]  # fmt: skip
    assert list(verify([first / "mined-000000.tar"])) == []
    assert b"\x89PNG" not in (first / "mined-000000.tar").read_bytes()
    whole = made(folder, tmp_path / "c", media="copy")
    assert b"\x89PNG" in (whole / "mined-000000.tar").read_bytes() and not (whole / "referred.json").exists()
    ours, theirs = (Shards(str(at), name="r").open(None) for at in (first, whole))
    assert all([i.id for i in ours[k].negatives] == [i.id for i in theirs[k].negatives] for k in range(60))


@pytest.mark.parametrize("part", ["encode", "_window", "judge", "write"])
def test_a_killed_step_goes_on_and_ends_equal(part, folder, tmp_path, monkeypatch):
    """Killed at its third window of encoding, searching, judging or writing."""
    small = {mining: 16, mine_run: 16, teacher: 16, searching: 16}
    for module, size in small.items():
        monkeypatch.setattr(module, "WINDOW", size)
    whole = made(folder, tmp_path / "whole")
    owner = {"encode": teacher, "_window": searching, "judge": mining.Miner, "write": mine_run}[part]
    name = "write_shard" if part == "write" else part
    real, calls = getattr(owner, name), []

    def dying(*given, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(owner, name, dying)
    with pytest.raises(KeyboardInterrupt):
        made(folder, tmp_path / "out")
    (tmp_path / "out" / ".mined-000003.tar.77.part").write_bytes(b"half")  # as a kill leaves it
    again = []
    monkeypatch.setattr(owner, name, lambda *g, **n: (again.append(1), real(*g, **n))[1])
    assert content(made(folder, tmp_path / "out")) == content(whole)
    assert len(again) < {"encode": 8, "_window": 4, "judge": 4, "write": 4}[part]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in whole.iterdir())


def test_asked_to_end_it_stops_behind_a_window(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(mine_run, "WINDOW", 16)
    real = mining.Miner.judge
    monkeypatch.setattr(
        mining.Miner, "judge", lambda self, *g: (os.kill(os.getpid(), signal.SIGTERM), real(self, *g))[1]
    )
    with pytest.raises(Restart, match="asked to end by SIGTERM"):
        made(folder, tmp_path / "out")
    assert len(list((tmp_path / "out" / mine_run.RULED).glob("*.json"))) == 1


def test_windows_of_other_rules_are_judged_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(mine_run.shutil, "rmtree", lambda *_, **__: None)
    out = made(folder, tmp_path / "out", rules=(Below(0.999),))
    kept = content(out)["report.json"]
    assert content(made(folder, out, rules=(RankRange(5, 20),)))["report.json"] != kept


def test_pools_of_clusters_give_frequent_candidates_and_no_right_ones(folder, tmp_path):
    clusters = Cluster("alike", str(folder / "model"), step(folder).source, size=10, skip=0, neighbours=20)
    at = tmp_path / "run"
    run(Recipe("b3", (step(folder, sample=Aggregated(clusters), count=5),)), at, say=lambda line: None)
    rows, before = Shards(str(at / "mine")).open(None), step(folder).source.open(None)
    assert [len(rows[i].negatives) for i in range(60)] == [5] * 60
    from omni2vec.data.clusters import grouped

    members, ends = grouped(at / "alike", before)
    for some in np.split(members, ends[:-1]):
        used = [n.id for i in some for n in rows[i].negatives]
        assert len(set(used)) < len(used) * 0.8, "a cluster's rows share their negatives"
    for i in range(60):
        right = {before[i].query.id, *(p.id for p in before[i].positives)}
        assert not right & {n.id for n in rows[i].negatives}
        scores = rows[i].scores["mined"][1:]
        assert list(scores) == sorted(scores, reverse=True)


def test_a_recipe_mines_between_two_stages_and_trains_from_media_by_reference(folder, tmp_path):
    settings = {"steps": 1, "batch": 8, "chunk_tokens": 512, "memory": "vectors", "device": "cpu"}
    source = step(folder).source
    first = Stage("first", str(folder / "model"), (Feed(source),), **settings)
    again = replace(step(folder, rules=(RankRange(2, 20), Consistent(20))), model=first)
    second = Stage("second", first, (Feed(Shards(again), negatives=2, hardness=1.0),), **settings)
    recipe = Recipe("twice", (second,))
    assert [s.name for s in recipe.steps] == ["first", "mine", "second"]
    assert read(json.loads(json.dumps(write(recipe)))) == recipe
    terminal = Console(width=200)
    with terminal.capture() as shown:
        terminal.print(planning.plan(Recipe("mining", (step(folder),)), tmp_path / "p"))
    assert "60 with 3 negatives each" in shown.get() and "TFLOP" in shown.get()
    run(recipe, tmp_path / "run", say=lambda line: None)
    assert [r["step"] for r in read_log(tmp_path / "run" / "second" / "log.jsonl") if "loss" in r] == [0]
    rows = Shards(again).open(lambda s: tmp_path / "run" / s.name)
    assert any(n.parts[0].__class__.__name__ == "Image" for i in range(len(rows)) for n in rows[i].negatives)


def test_settings_that_cannot_be_are_refused():
    source = Shards("rows")
    for settings, said in (
        ({"count": 0}, "count=0; expected 1"),
        ({"among": 50, "rules": (RankRange(50, 100),)}, "looks further than among=50"),
        ({"among": 5, "rules": (Consistent(50),)}, "looks further than among=5"),
        ({"empty": "skip"}, "expected one of 'keep', 'drop', 'raise'"),
        ({"media": "link"}, "expected one of 'refer', 'copy'"),
        ({"score": "rerank"}, "is a judge's"),
    ):
        with pytest.raises(ValueError, match=said):
            Mine("m", "model", source, **settings)


def test_a_source_of_one_document_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="has 1 different document; mining chooses among several"):
        mined(tmp_path, monkeypatch, {"p": 0.5})
