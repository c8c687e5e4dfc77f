"""What a loader makes of rows with patterns, demonstrations and clusters: the same for any ranks and workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from omni2vec.data import clusters
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
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
def test_ranks_and_workers_read_what_one_process_reads(name: str) -> None:
    alone = seen(FEEDS[name])
    if name == "all patterns":
        helped = seen(FEEDS[name], workers=1)
        assert [(p.keys, p.costs, p.slots, k) for p, k in helped] == [(p.keys, p.costs, p.slots, k) for p, k in alone]
    ranked = together(3, lambda r: seen(FEEDS[name], r))
    for t, (plan, texts) in enumerate(alone):
        assert all((r[t][0].keys, r[t][0].costs, r[t][0].slots) == (plan.keys, plan.costs, plan.slots) for r in ranked)
        assert sorted(k for r in ranked for k in r[t][1]) == sorted(texts)


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
        assert query not in asked
        assert len(set(asked)) == 2 or shots[1] != shots[3]
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
