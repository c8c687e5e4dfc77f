"""What a loader makes of rows with patterns, demonstrations and clusters: the same for any ranks and workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from omni2vec.data import clusters, patterns
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.order import Address
from omni2vec.data.patterns import Pattern
from omni2vec.data.planned import Plan
from omni2vec.data.ranks import Ranks
from omni2vec.data.types import Cost, DataError, Example, Item, Limits, Prompted, Text

from .test_ranks import Made, together

PATTERNS = (Pattern("title -> text"), Pattern("text -> title", weight=3.0), Pattern("title + tag -> text"))


@dataclass(frozen=True)
class Records:
    """Rows of named fields: every third has no tag; those in `bare` have a title alone."""

    name: str = "records"
    size: int = 60
    bare: tuple[int, ...] = ()
    digest: str = "records"

    def open(self, where: object) -> Records:
        return self

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Example:
        fields = {"title": f"title {i}"}
        if i not in self.bare:
            fields |= {"text": f"text {i}"} | ({"tag": f"tag {i % 7}"} if i % 3 else {})
        items = {name: Item.text(text) for name, text in fields.items()}
        return Example(f"{self.name}/{i}", self.name, "retrieval", Item(()), (), fields=items)


@dataclass(frozen=True)
class Pairs:
    """Plain rows; row i and row i + 30 ask the same."""

    name: str = "pairs"
    size: int = 60
    digest: str = "pairs"

    def open(self, where: object) -> Pairs:
        return self

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Example:
        return Example(f"pairs/{i}", "pairs", "retrieval", Item.text(f"ask {i % 30}"), (Item.text(f"say {i}"),))


class Spoken:
    """A token a letter; collating gives the prompts as they would be read, demonstrations in front."""

    def count(self, prompts: Sequence[Prompted], limits: Sequence[Limits]) -> list[Cost]:
        return [Cost(len(_said(p))) for p in prompts]

    def collate(
        self, prompts: Sequence[Prompted], limits: Sequence[Limits], dummies: Sequence[str] = (), skip: bool = False
    ) -> Made:
        return Made(tuple(f"{p.key}: {_said(p)}" for p in prompts), tuple(dummies))


def _said(prompted: Prompted) -> str:
    items = [i for shot in prompted.shots for i in shot] + [prompted.item]
    return " | ".join(p.text for i in items for p in i.parts if isinstance(p, Text))


def loader(feed: Feed, ranks: Ranks | None = None, workers: int = 0, batch: int = 12, **settings: object) -> Loader:
    rows = [feed.source.open(lambda s: None)]
    given = {"sub_batch": batch, "seed": 2, "budget": 1 << 12, "stop": 5, **settings}
    return Loader(
        rows, [feed], Spoken(), Limits(), batch=batch, workers=workers, ranks=ranks or Ranks(), **given
    )  # fmt: skip


def seen(feed: Feed, ranks: Ranks | None = None, **settings: object) -> list[tuple[Plan, list[str]]]:
    with loader(feed, ranks, **settings) as made:
        return [(plan, [k for c in chunks for k in c.keys]) for plan, chunks in made]


FEEDS = {
    "one pattern": Feed(Records(), patterns=PATTERNS),
    "all patterns": Feed(Records(), patterns=PATTERNS, draw="all"),
    "lacking": Feed(Records(bare=(1, 5, 9)), patterns=PATTERNS, missing="skip"),
    "shots": Feed(Pairs(), shots=2),
    "shots and patterns": Feed(Records(), patterns=PATTERNS, shots=1),
}


@pytest.mark.parametrize("name", FEEDS)
def test_ranks_read_what_one_process_reads(name: str) -> None:
    alone = seen(FEEDS[name])
    ranked = together(3, lambda r: seen(FEEDS[name], r))
    for t, (plan, texts) in enumerate(alone):
        assert all((r[t][0].keys, r[t][0].costs, r[t][0].slots) == (plan.keys, plan.costs, plan.slots) for r in ranked)
        assert sorted(k for r in ranked for k in r[t][1]) == sorted(texts)


def test_a_worker_reads_what_one_process_reads() -> None:
    """One loader over all feeds: starting a worker is what takes time."""
    feeds = [replace(f, source=replace(f.source, name=name)) for name, f in FEEDS.items()]
    rows = [f.source.open(lambda s: None) for f in feeds]

    def read(workers: int) -> list[tuple[object, ...]]:
        settings = {"batch": 30, "sub_batch": 6, "seed": 2, "budget": 1 << 12, "stop": 5, "workers": workers}
        with Loader(rows, feeds, Spoken(), Limits(), **settings) as made:
            told = [(p.keys, p.costs, p.slots, p.sources, [c.keys for c in chunks]) for p, chunks in made]
            return [*told, (made.skipped,)]

    alone = read(0)
    assert {s for told in alone[:-1] for s in told[3]} == set(range(len(feeds)))
    assert alone[-1][0].lacking["lacking"]
    assert read(1) == alone


def test_all_patterns_of_a_row_stand_in_its_step_and_none_is_its_own_negative() -> None:
    for plan, _ in seen(FEEDS["all patterns"]):
        rows = Counter(k.partition("#")[0] for k in plan.keys)
        assert len(rows) == 12
        for row, times in rows.items():
            assert times == (3 if int(row.split("/")[1]) % 3 else 2)
        r = plan.relation
        own = [k.partition("#")[0] for k in plan.keys]
        known = {(int(q), tuple(i)) for q, i in zip(r.known_query, r.known_id.tolist(), strict=True)}
        for q, row in enumerate(own):
            for d, i in enumerate(r.doc_id.tolist()):
                if own[int(r.owner[d])] == row:
                    assert (q, tuple(i)) in known


def test_a_row_takes_one_pattern_a_draw_by_weight() -> None:
    plans = [p for p, _ in seen(FEEDS["one pattern"], stop=50)]
    forms = Counter(k.partition("#")[2] for p in plans for k in p.keys)
    assert sum(forms.values()) == 600
    share = forms["text->title"] / 600  # 3 of 5 where there is a tag, 3 of 4 where there is none
    assert share == pytest.approx((2 / 3) * 0.6 + (1 / 3) * 0.75, abs=4 * (0.23 / 600) ** 0.5)


def test_rows_without_a_pattern_are_counted_apart_and_end_no_run() -> None:
    with loader(FEEDS["lacking"], max_skipped=0) as made:
        rows = sum(len(plan.keys) for plan, chunks in made if list(chunks))
        assert made.skipped.lacking == {"records": 60 - rows}
        assert not made.skipped.keys
        assert rows == 57


def test_a_batch_of_rows_without_a_pattern_is_an_empty_plan_on_all_ranks() -> None:
    feed = Feed(Records(), patterns=PATTERNS[:1], missing="skip")
    with loader(feed) as made:
        drawn = [a.row for a in made.order.rows_of(1)]
    feed = replace(feed, source=Records(bare=tuple(drawn)))
    for told in ([seen(feed)], together(2, lambda r: seen(feed, r)), together(2, lambda r: seen(feed, r, start=1))):
        for steps in told:
            assert [len(p.keys) for p, _ in steps[-4:]] == [0, 12, 12, 12]
            plan, read = steps[-4]
            assert (plan.step, plan.costs, plan.slots, plan.chunks, plan.too_few, read) == (1, (), (), (), (), [])
            assert [len(of_rank) for of_rank in plan.ranks] == [0] * len(told)
            assert plan.relation.owner.shape == (0,) and plan.relation.known_id.shape == (0, 2)
            assert plan.why(["records"])["left_out"] == {"records": 12}
    with loader(feed) as made:
        assert [plan.tokens > 0 for plan, _ in made] == [True, False, True, True, True]
        assert made.skipped.lacking == {"records": 12}


def test_a_batch_that_is_left_with_fewer_items_than_ranks_is_empty_too() -> None:
    feed = Feed(Records(), patterns=PATTERNS[:1], missing="skip")
    with loader(feed) as made:
        drawn = [a.row for a in made.order.rows_of(1)]
    feed = replace(feed, source=Records(bare=tuple(drawn[1:])))
    two, three = (together(n, lambda r: seen(feed, r)) for n in (2, 3))  # a row with one answer is two items
    key = f"records/{drawn[0]}#title->text"
    assert all((ranked[1][0].keys, ranked[1][0].too_few) == ((key,), ()) for ranked in two)
    for ranked in three:
        plan, read = ranked[1]
        assert (plan.keys, plan.chunks, plan.too_few, read) == ((), (), (key,), [])
        assert plan.why(["records"])["too_few_for_ranks"] == [key]
        assert [len(p.keys) for p, _ in ranked] == [12, 0, 12, 12, 12]


def test_a_source_of_which_no_row_forms_a_pattern_ends_the_run_by_name() -> None:
    feed = Feed(Records(bare=tuple(range(60))), patterns=PATTERNS[:1], missing="skip")
    with pytest.raises(DataError, match=r"no row is left of 100 batches in a row.* 1,200 of 'records'; .*cannot form"):
        seen(feed, stop=200)


def test_rows_without_a_pattern_are_refused_unless_the_feed_lets_them_go() -> None:
    with pytest.raises(DataError, match=r"records/\d: cannot form .*its fields are title"):
        seen(Feed(Records(bare=tuple(range(10))), patterns=PATTERNS))


def test_demonstrations_are_other_rows_than_the_query_s_and_ask_something_else() -> None:
    texts = [t for _, read in seen(FEEDS["shots"]) for t in read if " | " in t]
    assert len(texts) == 60
    for text in texts:
        *shots, query = text.partition(": ")[2].split(" | ")
        assert len(shots) == 4
        asked = [s for s in shots if s.startswith("ask")]
        assert asked == shots[::2]
        assert query not in asked
        for question, answer in (shots[:2], shots[2:]):  # a row's own answer, of the two rows that ask the same
            assert answer in (f"say {(n := int(question.removeprefix('ask ')))}", f"say {n + 30}")
        assert shots[1] != shots[3]  # two rows
    assert len({t.partition(": ")[2].rpartition(" | ")[0] for t in texts}) > 50


def test_demonstrations_are_drawn_anew_each_epoch_and_the_same_by_a_seek() -> None:
    asked = [
        dict(t.split(": ", 1) for _, read in seen(FEEDS["shots"], start=s, stop=s + 5) for t in read if " | " in t)
        for s in (0, 5)
    ]
    assert len(asked[0]) == len(asked[1]) == 60
    assert sum(asked[0][key] != asked[1][key] for key in asked[0]) > 50
    again = seen(FEEDS["shots"], start=3)
    assert [r for _, r in again] == [r for _, r in seen(FEEDS["shots"])[3:]]


@dataclass(frozen=True)
class Torn(Pairs):
    """Pairs of which the rows in `torn` cannot be read; `reads` notes who is read."""

    torn: tuple[int, ...] = ()
    reads: list[int] = field(default_factory=list, compare=False)

    def __getitem__(self, i: int) -> Example:
        self.reads.append(i)
        if i in self.torn:
            raise OSError(f"[Errno 5] pairs/{i}: input/output error")
        return super().__getitem__(i)


def test_a_damaged_demonstration_gives_way_to_the_next_and_its_query_is_not_to_blame() -> None:
    torn = tuple(range(0, 60, 2))
    with loader(Feed(Torn(torn=torn), shots=2), on_error="skip", max_skipped=30) as made:
        read = [k for _, chunks in made for c in chunks for k in c.keys]
        assert made.skipped.sources == {"pairs": 30}
        assert set(made.skipped.keys) == {f"pairs row {i}" for i in torn}
    texts = [t for t in read if " | " in t]
    assert len(texts) == 30
    said = [s for t in texts for s in t.partition(": ")[2].split(" | ")]
    assert sum(s.startswith("say") for s in said) == 60  # two demonstrations each
    assert not {f"say {i}" for i in torn} & set(said)


def test_a_damaged_demonstration_is_named_with_the_row_that_it_was_for() -> None:
    torn = tuple(range(1, 60))
    with (
        loader(Feed(Torn(torn=torn), shots=1)) as made,
        pytest.raises(
            DataError, match=r"pairs row \d+, a demonstration for pairs/0: \[Errno 5\] pairs/\d+: input/output error"
        ),
    ):
        made._work.measure([Address(0, 0, 0, 0, -1)])


def test_demonstrations_are_read_for_queries_alone_and_each_row_of_a_chunk_once() -> None:
    rows = Torn()
    with loader(Feed(rows, shots=2)) as made:
        one, two = Address(0, 3, 0, 0, -1), Address(0, 4, 0, 0, -1)
        rows.reads.clear()
        made._work.collate([(one, 1), (two, 1)], ())
        assert rows.reads == [3, 4]
        rows.reads.clear()
        made._work.collate([(one, 1), (two, 0), (one, 1)], ())
        assert rows.reads[:2] == [3, 4] and len(set(rows.reads)) == len(rows.reads) >= 4


def test_what_is_right_for_a_row_is_found_once_for_all_its_views(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    real = patterns.right

    def right(example: Example, of: Sequence[Pattern]) -> tuple[str, ...]:
        found.append(example.key)
        return real(example, of)

    monkeypatch.setattr(patterns, "right", right)
    with loader(FEEDS["all patterns"]) as made:
        measured = made._work.measure(made.order.rows_of(0))
        assert len(measured) > 12 and len(found) == len(set(found)) == 12
        found.clear()
        made._work.collate([(m.address, k) for m in measured for k in (0, 1)], ())  # type: ignore[union-attr]
        assert len(found) == len(set(found)) == 12


def test_rows_of_a_cluster_come_together(tmp_path: Path) -> None:
    rows = Pairs()
    cluster = np.arange(60, dtype=np.int32) % 15  # 15 clusters of four
    clusters.write(tmp_path, cluster, rows, {})
    for plan, _ in seen(Feed(rows, clusters=str(tmp_path))):
        drawn = [a.row % 15 for a in plan.addresses]
        assert Counter(Counter(drawn).values()) == {4: 3}
        assert sum(a != b for a, b in pairwise(drawn)) == 2


def test_clusters_of_other_rows_are_refused(tmp_path: Path) -> None:
    clusters.write(tmp_path, np.zeros(60, dtype=np.int32), Records(), {})
    with pytest.raises(DataError, match="made for source 'records'"):
        loader(Feed(Pairs(), clusters=str(tmp_path)))
