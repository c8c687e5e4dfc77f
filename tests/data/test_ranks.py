"""Several ranks plan a step together. Each is a thread here, and what they tell each other goes through a barrier."""

import threading
from dataclasses import replace

import pytest
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.ranks import Ranks
from omni2vec.data.types import Cost, DataError, Example, Item, Limits
from omni2vec.data.wire import pack, unpack
from omni2vec.data.work import Bad


class Table:
    """What every rank has said, for all to read."""

    def __init__(self, size):
        self.size, self.barrier, self.said = size, threading.Barrier(size, timeout=20), [b""] * size

    def ranks(self, rank):
        def exchange(message):
            self.said[rank] = message
            self.barrier.wait()
            heard = list(self.said)
            self.barrier.wait()
            return heard

        return Ranks(rank, self.size, exchange)


class Rows:
    """Row i is of 3 + i % 17 words; every fifth has a picture; row `bad` cannot be read."""

    digest = "rows"

    def __init__(self, name, count, bad=()):
        self.name, self.count, self.bad = name, count, bad

    def open(self, where):
        return self

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i in self.bad:
            raise DataError(f"{self.name} row {i} is torn")
        query = Item.text(" ".join(["word"] * (3 + i % 17)) + f" {i}")
        return Example(
            f"{self.name}/0/{i}", self.name, "retrieval", query, (Item.text(f"right {i}"),), (Item.text(f"wrong {i}"),),
            known=(f"other {i}",), label=str(i % 3), scores={"label": (float(i), 0.5)},
        )  # fmt: skip


class Words:
    """A word is a token; collating gives the keys and dummies of a chunk."""

    def count(self, prompts, limits):
        return [
            Cost(len(p.item.parts[0].text.split()), 0, ("image",) if p.item.parts[0].text.endswith("5") else ())
            for p in prompts
        ]

    def collate(self, prompts, limits, dummies=(), skip=False):
        return Made(tuple(p.item.parts[0].text for p in prompts), tuple(dummies))


class Made:
    failed = ()

    def __init__(self, keys, dummies):
        self.keys, self.dummies = keys, dummies

    def pin(self):
        return self


def loader(ranks, workers=0, bad=(), **settings):
    rows = [Rows("a", 60), Rows("b", 50, bad)]
    return Loader(
        rows, [Feed(r, negatives=1) for r in rows], Words(), Limits(), batch=20, sub_batch=10, seed=3, budget=60,
        ranks=ranks, workers=workers, stop=4, **settings,
    )  # fmt: skip


def together(size, work):
    """work(ranks) of every rank, each in a thread; the first error is raised."""
    table, found = Table(size), [None] * size

    def run(rank):
        try:
            found[rank] = work(table.ranks(rank))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(r,)) for r in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    return found


def steps(ranks, **settings):
    with loader(ranks, **settings) as made:
        return [(plan, [c.keys for c in chunks], [c.dummies for c in plan.chunks]) for plan, chunks in made]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_plan_the_batches_that_one_process_plans_and_each_item_is_collated_once(size):
    alone = steps(Ranks())
    all_ranks = together(size, steps)
    for t, (plan, chunks, _) in enumerate(alone):
        of_ranks = [ranked[t] for ranked in all_ranks]
        for other, _, _ in of_ranks:
            assert (other.keys, other.costs, other.slots, other.groups) == (
                plan.keys, plan.costs, plan.slots, plan.groups
            )  # fmt: skip
            for field in ("query_id", "doc_id", "known_id", "known_query", "owner", "positive", "rank", "query_label"):
                assert getattr(other.relation, field).equal(getattr(plan.relation, field))
            assert other.relation.score.equal(plan.relation.score)
            assert other.ranks == of_ranks[0][0].ranks
        assert len({len(own) for _, own, _ in of_ranks}) == 1
        entries = [e for other, _, _ in of_ranks for c in other.chunks for e in c.entries]
        assert sorted(entries) == list(range(len(plan.costs)))
        collated = sorted(k for _, own, _ in of_ranks for keys in own for k in keys)
        assert collated == sorted(k for keys in chunks for k in keys)
        for towers in zip(*([c.towers for c in other.chunks] for other, _, _ in of_ranks), strict=True):
            assert len(set(towers)) == 1


def test_workers_change_nothing_of_what_ranks_plan():
    without = together(2, steps)
    with_workers = together(2, lambda r: steps(r, workers=1))
    for a, b in zip(without, with_workers, strict=True):
        assert [(p.keys, p.ranks, own) for p, own, _ in a] == [(p.keys, p.ranks, own) for p, own, _ in b]


def test_a_row_that_one_rank_cannot_read_is_refused_by_all_with_the_same_words():
    errors = together(2, lambda r: steps(r, bad=(7,)))
    assert all(isinstance(e, DataError) and str(e) == "b row 7 is torn" for e in errors)


def test_a_row_left_out_is_left_out_by_all():
    found = together(2, lambda r: steps(r, bad=(7, 8), on_error="skip"))
    first, second = ([p.keys for p, _, _ in ranked] for ranked in found)
    assert first == second
    assert not any(key.endswith(("b/0/7", "b/0/8")) for keys in first for key in keys)
    assert sum(len(p.bad) for p, _, _ in found[0]) > 0


def test_more_ranks_than_rows_is_refused_with_both_numbers():
    errors = together(61, loader)
    said = "2 sub-batches of 10 rows, fewer rows than the 61 ranks"
    assert all(isinstance(e, ValueError) and said in str(e) for e in errors)


def test_what_ranks_tell_each_other_of_a_row_is_all_that_planning_needs():
    with loader(Ranks()) as made:
        rows = made._work.measure(made.order.rows_of(0))
    heard = unpack(pack([*rows, Bad(1, "key", "torn")]))
    # Contents and instructions stay at home; ids, roles, labels, scores and costs come over.
    assert heard[:-1] == [replace(m, example=replace(m.example, instruction="", target_instruction="")) for m in rows]
    assert heard[-1] == Bad(1, "key", "torn")
