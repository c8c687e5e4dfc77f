"""Clusters of hard negatives (B3): planted neighbours are found, right answers are not, sizes are exact."""

import json
import os
import signal
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from omni2vec.data.clusters import about, grouped
from omni2vec.data.counter import permuted
from omni2vec.data.mix import Feed
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import DataError, Example, Item
from omni2vec.launch import plan as planning
from omni2vec.launch.graph import Recipe
from omni2vec.launch.run import run
from omni2vec.train import partition, teacher
from omni2vec.train.cluster import Cluster, similarity
from omni2vec.train.guard import Restart
from omni2vec.train.monitor import read_log
from omni2vec.train.neighbours import Answers, adjacency, mutual, ranked
from omni2vec.train.partition import even, metis
from omni2vec.train.stage import Stage
from rich.console import Console
from torch.nn.functional import normalize

from ..model.small import tiny

WIDTH = 24


@dataclass(frozen=True)
class Listed:
    """Examples in memory."""

    rows: tuple
    name: str = "rows"
    digest: str = "listed"

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def row(i, document=None, **fields):
    return Example(
        f"rows/{i}", "rows", "retrieval", Item.text(f"query {i}"), (document or Item.text(f"{i}"),), **fields
    )


def plain(count):
    return Answers.of(Listed(tuple(row(i) for i in range(count))))


def near(centres, noise, seed):
    """Unit vectors around centres (n, D)."""
    return normalize(centres + noise * torch.randn(centres.shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def drawn(count, seed=0):
    return normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1)


def clusters_of(query, docs, answers, size, skip, neighbours, seed=0):
    edges = mutual(ranked(query, docs, answers, skip, neighbours), answers)
    ends, linked = adjacency(edges, len(query))
    parts = metis(ends, linked, -(-len(query) // size), seed)
    return even(parts, ends, linked, size)[0], edges


def test_planted_communities_are_recovered():
    community = permuted(np.arange(400), 400, "communities") // 8
    centres = drawn(50)[community]
    found, _ = clusters_of(near(centres, 0.05, 1), near(centres, 0.05, 2), plain(400), 8, 0, 7)
    assert {tuple(np.flatnonzero(found == c)) for c in range(50)} == {
        tuple(np.flatnonzero(community == c)) for c in range(50)
    }


def families():
    """60 families of 16 rows, each of 4 fours: a four is one thing said four times (unlabelled right answers)."""
    n = 960
    place = permuted(np.arange(n), n, "families")
    family, four = place // 16, place // 4
    centres = normalize(drawn(60, 3)[family] + 0.25 * normalize(drawn(240, 4), dim=1)[four], dim=1)
    return family, four, near(centres, 0.01, 5), near(centres, 0.01, 6)


def test_skipped_ranks_leave_out_planted_false_negatives():
    family, four, query, docs = families()
    _, edges = clusters_of(query, docs, plain(960), 16, skip=0, neighbours=3)
    assert (four[edges[:, 0]] == four[edges[:, 1]]).all()  # the nearest three are the same thing
    _, edges = clusters_of(query, docs, plain(960), 16, skip=3, neighbours=12)
    assert not (four[edges[:, 0]] == four[edges[:, 1]]).any()
    assert (family[edges[:, 0]] == family[edges[:, 1]]).mean() > 0.99


def test_rows_of_a_cluster_are_more_alike_than_of_any_permutation():
    _, _, query, docs = families()
    answers = plain(960)
    found, _ = clusters_of(query, docs, answers, 16, 3, 12)
    inside = similarity(found, query, docs, answers)
    shuffled = [similarity(found[np.random.default_rng(s).permutation(960)], query, docs, answers) for s in range(19)]
    assert inside > max(shuffled)  # p = 1/20
    assert inside > 0.5 > 5 * max(map(abs, shuffled))


def reference(query, docs, skip, neighbours):
    """Of every pair of rows: whether each one's document stands at ranks skip + 1, ... of the other's query."""
    n = len(query)
    cosine = query @ docs.T
    cosine.fill_diagonal_(-2)
    order = cosine.argsort(dim=1, descending=True)[:, : n - 1]
    reach = torch.zeros(n, n, dtype=torch.bool).scatter_(1, order[:, skip : skip + neighbours], True)
    return {(i, j) for i, j in (reach & reach.T).nonzero().tolist() if i < j}


@pytest.mark.parametrize(("skip", "neighbours"), [(0, 5), (4, 9), (30, 100), (295, 100)])
def test_edges_are_those_that_both_ends_reach(skip, neighbours):
    query, docs = drawn(300, 1), drawn(300, 2)
    answers = plain(300)
    edges = mutual(ranked(query, docs, answers, skip, neighbours), answers)
    assert {tuple(e) for e in edges.tolist()} == reference(query, docs, skip, neighbours)


def test_a_ring_of_70_000_rows_has_70_000_edges():
    """Pairs are numbers up to the square of the rows, beyond 32 bits."""
    n, none = 70_000, np.zeros(70_000, np.int64)
    row = np.arange(n)
    answers = Answers(row, row, row, none, none, row + 1, row)
    ring = np.stack([row - 1, row + 1], axis=1) % n
    edges = mutual(ring.astype(np.int32), answers)
    assert len(edges) == n
    assert edges[:3].tolist() == [[0, 1], [0, n - 1], [1, 2]] and edges[-1].tolist() == [n - 2, n - 1]


def test_ranks_are_the_same_in_many_blocks(monkeypatch):
    from omni2vec.eval import search
    from omni2vec.train import neighbours

    query, docs, answers = drawn(300, 1), drawn(300, 2), plain(300)
    whole = ranked(query, docs, answers, 3, 20)
    monkeypatch.setattr(neighbours, "ROWS", 7)
    monkeypatch.setattr(search, "ROWS", 7)
    monkeypatch.setattr(search, "COLUMNS", 32)
    told = []
    assert (ranked(query, docs, answers, 3, 20, told.append) == whole).all()
    assert sum(told) == 300 and len(told) > 20


def test_the_graph_holds_every_edge_from_both_ends():
    query, docs, answers = drawn(200, 1), drawn(200, 2), plain(200)
    edges = mutual(ranked(query, docs, answers, 0, 10), answers)
    ends, linked = adjacency(edges, 200)
    owner = np.repeat(np.arange(200), np.diff(ends, prepend=0))
    directed = set(zip(owner.tolist(), linked.tolist(), strict=True))
    assert len(directed) == len(linked) == 2 * len(edges)
    assert directed == {(b, a) for a, b in directed}


def test_right_answers_and_their_twins_are_never_linked():
    """All vectors are alike, so that every row reaches every other, but for what identity forbids."""
    same = Item.text("the same")
    rows = [
        row(0, same),
        row(1, same),  # the same document
        row(2, known=(Item.text("3").id,)),  # knows the document of row 3
        row(3),
        replace(row(4), query=Item.text("5")),  # its query is the document of row 5
        row(5),
        replace(row(6), query=Item.text("asked twice")),
        replace(row(7), query=Item.text("asked twice")),
        replace(row(8), positives=(Item.text("8"), Item.text("9"))),  # its second answer is the document of row 9
        row(9),
    ]
    answers = Answers.of(Listed(tuple(rows)))
    query = docs = torch.ones(10, 2) / 2**0.5
    edges = mutual(ranked(query, docs[: len(answers.first)], answers, 0, 10), answers)
    linked = {tuple(e) for e in edges.tolist()}
    assert not linked & {(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)}
    others = {(i, j) for i in range(2, 10) for j in range(i + 1, 10)} - {(2, 3), (4, 5), (6, 7), (8, 9)}
    assert others <= linked
    assert all({(0, j), (1, j)} & linked for j in range(2, 10))


def test_rows_of_one_class_are_not_linked_and_a_shared_document_costs_no_square_of_edges():
    names = [Item.text(n) for n in ("cat", "dog", "owl")]
    rows = tuple(row(i, names[i % 3], label=names[i % 3].parts[0].text) for i in range(300))
    answers = Answers.of(Listed(rows))
    assert answers.first.tolist() == [0, 1, 2]
    docs = drawn(3, 1)
    edges = mutual(ranked(near(docs[answers.document], 0.5, 2), docs, answers, 0, 2), answers)
    assert (edges[:, 0] % 3 != edges[:, 1] % 3).all()
    assert len(edges) <= 300 * 2  # all pairs of unlike rows are 30,000
    assert set(edges.reshape(-1).tolist()) == set(range(300))


def test_equal_labels_with_documents_of_their_own_take_no_ranks():
    """Every row's nearest 49 documents are of its class: they would fill the ranks, were they not left out."""
    community = np.arange(200) // 50
    answers = Answers.of(Listed(tuple(row(i, label=f"class {c}") for i, c in enumerate(community))))
    centres = drawn(4)[community]
    edges = mutual(ranked(near(centres, 0.2, 1), near(centres, 0.2, 2), answers, 0, 150), answers)
    assert len(edges) == 150 * 200 / 2
    assert (community[edges[:, 0]] != community[edges[:, 1]]).all()


def test_values_out_of_range_are_refused():
    for field, value in (("size", 1), ("skip", -1), ("neighbours", 0)):
        with pytest.raises(ValueError, match=rf"step 'c': {field}={value}; expected"):
            Cluster("c", "model", Shards("rows"), **{field: value})


WORDS = ["red", "green", "blue", "circle", "square", "above", "below", "the", "a", "left"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 rows of captions and a small embedder."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("cluster")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(60)]
    rows = [
        Example(f"rows/{i}", "rows", "retrieval", Item.text(t), (Item.text(t[::-1]),), instruction="find it" * (i % 2))
        for i, t in enumerate(texts)
    ]
    write_shards(rows, path / "rows")
    tiny().save(path / "model")
    return path


def step(folder, **fields):
    settings = {"size": 8, "skip": 2, "neighbours": 20, **fields}
    return Cluster("clusters", str(folder / "model"), Shards(str(folder / "rows"), name="rows"), **settings)


def where(step):
    raise AssertionError(f"no step is needed, asked for {step}")


def made(folder, out, **fields):
    out.mkdir(exist_ok=True)
    step(folder, **fields).make(out, where)
    return out


def test_the_step_leaves_clusters_that_the_mixture_reads(folder, tmp_path):
    out = made(folder, tmp_path / "out")
    assert sorted(p.name for p in out.iterdir()) == ["clusters.safetensors", "report.json"]
    rows = step(folder).source.open(where)
    members, ends = grouped(out, rows)
    assert np.diff(ends, prepend=0).tolist() == [8] * 7 + [4]
    assert sorted(members.tolist()) == list(range(60))
    said = json.loads((out / "report.json").read_text())
    assert said["clusters"] == 8 and said["rows_of_last_cluster"] == 4 and said["edges"] >= said["edges_inside"] > 0
    assert said["similarity_inside"] > said["similarity_random"]
    assert about(out)["teacher"] == said["teacher"] and about(out)["skip"] == "2"


def test_the_same_step_gives_the_same_clusters(folder, tmp_path):
    first, second = (made(folder, tmp_path / name) for name in "ab")
    rows = step(folder).source.open(where)
    assert (grouped(first, rows)[0] == grouped(second, rows)[0]).all()
    assert about(first) == about(second)
    assert (first / "report.json").read_bytes() == (second / "report.json").read_bytes()


def test_a_killed_step_encodes_no_window_twice(folder, tmp_path, monkeypatch):
    whole = made(folder, tmp_path / "whole")
    monkeypatch.setattr(teacher, "WINDOW", 16)
    real, encoded = teacher.encode, []

    def dying(embedder, prompts, **settings):
        if len(encoded) == 5:
            raise KeyboardInterrupt
        encoded.append(len(prompts))
        return real(embedder, prompts, **settings)

    monkeypatch.setattr(teacher, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        made(folder, tmp_path / "out")
    again = []
    monkeypatch.setattr(teacher, "encode", lambda e, p, **settings: (again.append(len(p)), real(e, p, **settings))[1])
    out = made(folder, tmp_path / "out")
    assert encoded == [16, 16, 16, 12, 16] and again == [16, 16, 12]
    rows = step(folder).source.open(where)
    assert (grouped(out, rows)[0] == grouped(whole, rows)[0]).all()
    assert not (out / teacher.FOLDER).exists()


def test_asked_to_end_it_stops_behind_a_window_and_keeps_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "WINDOW", 16)
    real = teacher.encode

    def asked(embedder, prompts, **settings):
        os.kill(os.getpid(), signal.SIGUSR1)
        return real(embedder, prompts, **settings)

    monkeypatch.setattr(teacher, "encode", asked)
    with pytest.raises(Restart, match="asked to end by SIGUSR1; the vectors so far are kept"):
        made(folder, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / teacher.FOLDER).iterdir()] == ["query-000000000000.safetensors"]


def test_windows_of_another_teacher_are_encoded_again(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(teacher.Teacher, "forget", lambda self: None)
    made(folder, out)
    kept = {p.name: p.read_bytes() for p in (out / teacher.FOLDER).iterdir()}
    other = tiny()
    with torch.no_grad():
        next(iter(other.parameters())).add_(0.1)
    other.save(tmp_path / "model")
    replace(step(folder), model=str(tmp_path / "model")).make(out, where)
    assert all(p.read_bytes() != kept[p.name] for p in (out / teacher.FOLDER).iterdir())


def test_too_few_rows_or_documents_are_refused_before_anything_is_encoded(folder, tmp_path):
    with pytest.raises(DataError, match="source 'rows' has 60 rows, but two clusters of size=32 take 64"):
        made(folder, tmp_path / "a", size=32)
    with pytest.raises(DataError, match=r"60 different documents, and skip=59 ranks are left out.*lower skip"):
        made(folder, tmp_path / "b", skip=59)
    assert not list((tmp_path / "b" / teacher.FOLDER).iterdir())


def test_rows_that_are_all_of_one_class_are_refused(folder, tmp_path):
    write_shards([row(i, label="the only one") for i in range(20)], tmp_path / "one")
    only = replace(step(folder), source=Shards(str(tmp_path / "one")))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="no two rows of source 'one' reach each other at ranks 3 to 22"):
        only.make(tmp_path / "out", where)


def test_a_row_without_a_positive_is_named(folder, tmp_path):
    with pytest.raises(DataError, match="rows/1: no positive, so there is no document"):
        Answers.of(Listed((row(0), replace(row(1), positives=()))))


def test_missing_metis_is_told_before_anything_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(partition.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "omni2vec\[mine\]"'):
        made(folder, tmp_path / "out")


def test_a_recipe_plans_and_makes_the_clusters_that_a_feed_holds(folder, tmp_path):
    clusters = step(folder)
    train = Stage(
        "train",
        clusters.model,
        (Feed(clusters.source, clusters=clusters),),
        steps=2,
        batch=16,
        chunk_tokens=512,
        memory="vectors",
        device="cpu",
    )
    recipe = Recipe("b3", (train,))
    assert [s.name for s in recipe.steps] == ["clusters", "train"]
    terminal = Console(width=200)
    with terminal.capture() as shown:
        terminal.print(planning.plan(recipe, tmp_path / "run"))
    assert "60 in 8 clusters of 8" in shown.get() and "TFLOP" in shown.get()
    run(recipe, tmp_path / "run", say=lambda line: None)
    assert [r["step"] for r in read_log(tmp_path / "run" / "train" / "log.jsonl") if "loss" in r] == [0, 1]
    made_in = lambda step: tmp_path / "run" / step.name  # noqa: E731
    members, ends = grouped(made_in(clusters), clusters.source.open(made_in))
    groups = [set(g.tolist()) for g in np.split(members, ends[:-1])]
    with train.loader(tiny(), made_in, 1 << 30) as loader:
        batch = {a.row for a in loader.plan(0).addresses}
    assert sum(g <= batch for g in groups) >= 1, "a batch of 16 holds no whole cluster of 8"
    assert sum(bool(g & batch) for g in groups) <= 3


def test_a_row_of_fields_is_told_how_it_is_compared(folder):
    bare = replace(row(1), query=Item(()), positives=(), fields={"a": Item.text("x"), "b": Item.text("y")})
    for refuse in (lambda: Answers.of(Listed((row(0), bare))), lambda: teacher.Told().prompt(bare, "target")):
        with pytest.raises(DataError, match=r'compare it by Viewed\(source, Pattern\("a -> b"\)\) in a recipe'):
            refuse()


def test_a_short_last_cluster_is_told_with_its_figures(folder, tmp_path, caplog):
    made(folder, tmp_path / "a")
    assert "60 rows are no multiple of size=8: the last of 8 clusters has 4" in caplog.text
    caplog.clear()
    made(folder, tmp_path / "b", size=10)
    assert "multiple" not in caplog.text
