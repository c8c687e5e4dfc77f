"""The loader: plans that do not depend on workers, chunks in order, bad rows counted, memory bounded by prefetch."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from omni2vec.data.loader import Loader, Skipped
from omni2vec.data.mix import Feed
from omni2vec.data.planned import Plan
from omni2vec.data.types import Cost, DataError, Example, Item, Limits, Prompted, Text


@dataclass(frozen=True)
class Toy:
    """Rows of text whose lengths differ; those in `broken` cannot be read."""

    name: str
    size: int
    broken: tuple[int, ...] = ()
    digest: str = ""

    def open(self, where: object) -> Toy:
        return self

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        if index in self.broken:
            raise DataError(f"{self.name}/{index}: cut short")
        return Example(
            key=f"{self.name}/{index}",
            source=self.name,
            task="retrieval",
            query=Item.text(f"{self.name} query {index} " + "x" * (index % 13)),
            positives=tuple(Item.text(f"{self.name} answer {index} {k} " + "y" * (index % 7)) for k in range(3)),
            negatives=(Item.text(f"{self.name} wrong {index}"),),
            answer="yes" if index % 2 else "",
        )


@dataclass(frozen=True)
class Packed:
    """A collated chunk of the toy: the text itself and a tensor, so that workers have something to send."""

    texts: tuple[str, ...]
    ids: torch.Tensor
    keys: tuple[str, ...]
    failed: tuple[int, ...] = ()

    def pin(self) -> Packed:
        return self


@dataclass(frozen=True)
class Letters:
    """A format of one token a letter. Texts with a word of `unreadable` fail to decode; `log` notes each collation."""

    unreadable: str = ""
    log: str = ""

    def count(self, prompts: Sequence[Prompted], limits: Sequence[Limits]) -> list[Cost]:
        return [Cost(len(_text(p)) + len(p.answer), labels=len(p.answer)) for p in prompts]

    def collate(
        self, prompts: Sequence[Prompted], limits: Sequence[Limits], dummies: Sequence[str] = (), skip: bool = False
    ) -> Packed:
        texts = tuple(_text(p) + p.answer for p in prompts)
        failed = tuple(i for i, t in enumerate(texts) if self.unreadable and self.unreadable in t)
        if failed and not skip:
            raise DataError(f"{prompts[failed[0]].key}: cannot be decoded")
        if self.log:
            with Path(self.log).open("a") as file:
                file.write("chunk\n")
        ids = torch.tensor([ord(c) for t in texts for c in t])
        return Packed(texts, ids, tuple(p.key for p in prompts), failed)


def _text(prompted: Prompted) -> str:
    (part,) = prompted.item.parts
    assert isinstance(part, Text)
    return part.text


def _loader(rows: Sequence[Toy], letters: Letters | None = None, **settings: object) -> Loader[Packed]:
    feeds = [Feed(r, positives=2, negatives=1) for r in rows]
    given: dict[str, object] = {"batch": 12, "sub_batch": 4, "seed": 5, "budget": 128, "stop": 4}
    return Loader(rows, feeds, letters or Letters(), Limits(), **(given | settings))  # type: ignore[arg-type]


ROWS = (Toy("a", 50), Toy("b", 9))


def _seen(loader: Loader[Packed]) -> list[tuple[Plan, list[Packed]]]:
    with loader:
        return [(plan, list(chunks)) for plan, chunks in loader]


def _same(one: Plan, two: Plan) -> bool:
    flat = [
        {**vars(r), **{f"score {name}": torch.nan_to_num(s) for name, s in r.scores.items()}}
        for r in (one.relation, two.relation)
    ]
    relation = all(torch.equal(x, flat[1][name]) for name, x in flat[0].items() if name != "scores")
    return relation and flat[0].keys() == flat[1].keys() and replace(one, relation=two.relation) == two


@pytest.mark.parametrize("workers", [1, 2])
def test_plans_and_chunks_are_the_same_for_any_number_of_workers(workers: int) -> None:
    alone, helped = _seen(_loader(ROWS)), _seen(_loader(ROWS, workers=workers))
    assert [p.step for p, _ in helped] == [0, 1, 2, 3]
    for (plan, chunks), (other, others) in zip(alone, helped, strict=True):
        assert _same(plan, other)
        assert [c.texts for c in chunks] == [c.texts for c in others]
        assert all(torch.equal(c.ids, o.ids) for c, o in zip(chunks, others, strict=True))


def test_entries_are_the_queries_then_the_documents_of_the_relation() -> None:
    for plan, chunks in _seen(_loader(ROWS)):
        texts = {
            e: text
            for chunk, c in zip(plan.chunks, chunks, strict=True)
            for e, text in zip(chunk.entries, c.texts, strict=True)
        }
        queries = len(plan.keys)
        assert sorted(texts) == list(range(queries + len(plan.relation.owner))) == list(range(len(plan.costs)))
        for e, text in texts.items():
            key = plan.keys[e if e < queries else int(plan.relation.owner[e - queries])]
            kind = "query" if e < queries else "answer" if plan.relation.positive[e - queries] else "wrong"
            assert text.startswith(key.replace("/", f" {kind} "))
            assert plan.costs[e].tokens == len(text)
        assert plan.tokens == sum(len(t) for t in texts.values())
        for group in (0, 1):
            keys = [k for k, s in zip(plan.keys, plan.sources, strict=True) if s == group]
            assert plan.labels(group) == 3 * sum(int(k.split("/")[1]) % 2 for k in keys)


def test_a_resumed_loader_seeks_to_the_same_steps() -> None:
    whole, late = _seen(_loader(ROWS)), _seen(_loader(ROWS, start=2))
    assert [p.step for p, _ in late] == [2, 3]
    assert all(_same(a, b) for (a, _), (b, _) in zip(whole[2:], late, strict=True))
    with _loader(ROWS) as loader:
        assert _same(loader.plan(3), whole[3][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_chunks_can_be_had_again(workers: int) -> None:
    with _loader(ROWS, workers=workers) as loader:
        for plan, chunks in loader:
            first = [c.texts for c in chunks]
            assert [c.texts for c in loader.chunks(plan)] == first
            assert loader.again(plan, len(first) - 1).texts == first[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_whose_chunks_were_not_all_taken_does_not_disturb_the_next(workers: int) -> None:
    whole = _seen(_loader(ROWS))
    with _loader(ROWS, workers=workers) as loader:
        for (plan, chunks), (other, others) in zip(loader, whole, strict=True):
            assert _same(plan, other)
            assert next(iter(chunks)).texts == others[0].texts


@pytest.mark.parametrize("workers", [0, 2])
def test_no_more_chunks_than_prefetch_are_held_ready(workers: int, tmp_path: Path) -> None:
    log = tmp_path / "collated"
    with _loader(ROWS, Letters(log=str(log)), workers=workers, prefetch=3) as loader:
        taken = 0
        for _, chunks in loader:
            for _ in chunks:
                taken += 1
                time.sleep(0.02)
                made = len(log.read_text().splitlines())
                assert taken <= made <= taken + (3 if workers else 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_that_cannot_be_read_is_left_out_and_counted(workers: int) -> None:
    rows = (Toy("a", 50), Toy("b", 9, broken=(2, 5)))
    loader = _loader(rows, on_error="skip", workers=workers)
    seen = _seen(loader)
    bad = [b for plan, _ in seen for b in plan.bad]
    assert bad
    assert {b.key for b in bad} == {"b row 2", "b row 5"}
    assert all("cut short" in b.reason for b in bad)
    assert loader.skipped.sources == {"b": len(bad)}
    assert set(loader.skipped.keys) == {"b row 2", "b row 5"}
    assert sum(len(p.keys) for p, _ in seen) == 4 * 12 - len(bad)
    assert not any(p.relation.query_id.shape[0] != len(p.keys) for p, _ in seen)


def test_a_row_that_cannot_be_read_ends_the_run_unless_told_otherwise() -> None:
    with pytest.raises(DataError, match=r"b/[25]: cut short"):
        _seen(_loader((Toy("a", 50), Toy("b", 9, broken=(2, 5)))))


def test_a_medium_that_cannot_be_decoded_fails_its_segments_and_counts_its_row_once_a_step() -> None:
    loader = _loader(ROWS, Letters(unreadable="a answer 7 "), on_error="skip", stop=12)
    rows = 0
    for plan, chunks in _seen(loader):
        failed = [
            plan.slots[chunk.entries[i]][0] for chunk, c in zip(plan.chunks, chunks, strict=True) for i in c.failed
        ]
        assert all(plan.keys[q] == "a/7" for q in failed)
        rows += len(set(failed))
    assert rows > 0
    assert loader.skipped == Skipped({"a": rows}, ("a/7",))


def test_more_bad_rows_than_allowed_end_the_run_with_their_keys() -> None:
    rows = (Toy("b", 9, broken=(1, 2, 5)),)
    with pytest.raises(DataError, match=r"stage 'refine': 3 bad rows, more than max_skipped=2: b row .*repair them"):
        _seen(_loader(rows, on_error="skip", max_skipped=2, stage="refine"))
    known = Skipped({"b": 4}, ("b/100", "b/101"))  # from before a resume
    with pytest.raises(DataError, match=r"bad rows, more than max_skipped=4: b/100, b/101, b row"):
        _seen(_loader(rows, on_error="skip", max_skipped=4, skipped=known))


def test_a_batch_of_bad_rows_alone_is_empty_and_a_hundred_in_a_row_end_the_run() -> None:
    rows = (Toy("b", 9, broken=tuple(range(9))),)
    loader = _loader(rows, on_error="skip", stop=99, stage="refine")
    assert all((p.keys, p.costs, p.chunks, len(p.bad), c) == ((), (), (), 12, []) for p, c in _seen(loader))
    assert loader.skipped.sources == {"b": 99 * 12}
    with pytest.raises(
        DataError,
        match=r"stage 'refine': no row is left of 100 batches in a row, steps 0 to 99: left out were 1,200 of 'b'; the "
        r"first because: b/.: cut short; repair the rows",
    ):
        _seen(_loader(rows, on_error="skip", stop=100, stage="refine"))


def test_a_batch_with_a_row_ends_the_count_of_empty_ones() -> None:
    rows = (Toy("b", 100, broken=tuple(range(1, 100))),)
    seen = _seen(_loader(rows, on_error="skip", batch=2, sub_batch=2, stop=250))
    assert [len(p.keys) for p, _ in seen].count(0) == 245  # one of 50 batches an epoch has the row that can be read


def test_an_item_longer_than_the_budget_is_named() -> None:
    with pytest.raises(ValueError, match=r"stage 'refine': chunk_tokens=20 .*key [ab]/\d+"):
        _seen(_loader(ROWS, budget=20, stage="refine"))


def test_a_feed_has_its_own_limits() -> None:
    @dataclass(frozen=True)
    class Cut(Letters):
        def count(self, prompts: Sequence[Prompted], limits: Sequence[Limits]) -> list[Cost]:
            return [Cost(limit.max_tokens) for limit in limits]

    feeds = [Feed(ROWS[0], limits=Limits(max_tokens=7)), Feed(ROWS[1])]
    loader = Loader(ROWS, feeds, Cut(), Limits(max_tokens=9), batch=12, sub_batch=4, seed=0, budget=50, start=0, stop=1)
    plan = loader.plan(0)
    assert [c.tokens for c in plan.costs] == [7 if g == 0 else 9 for g in plan.groups]
    assert set(plan.groups) == {0, 1}


@dataclass(frozen=True)
class Deadly(Letters):
    def count(self, prompts: Sequence[Prompted], limits: Sequence[Limits]) -> list[Cost]:
        os._exit(1)


def test_a_worker_that_is_killed_ends_the_run_with_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"one of 1 data workers ended.*lower workers or prefetch"):
        _seen(_loader(ROWS, Deadly(), workers=1))


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"""
import os, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_loader import ROWS, _loader
if __name__ == "__main__":
    loader = _loader(ROWS, workers=2, stop=None)
    steps = iter(loader)
    for plan, chunks in steps:
        list(chunks)
        if plan.step == 3:
            print(*loader._crew.executor._processes, flush=True)
            time.sleep(60)
""")
    running = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    workers = [int(pid) for pid in running.stdout.readline().split()]
    assert len(workers) == 2
    running.kill()
    running.wait()
    running.stdout.close()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prefetch": -1}, "prefetch=-1"),
        ({"on_error": "ignore"}, "on_error='ignore'; expected"),
        ({"sub_batch": 5}, "batch=12 is not a whole number of sub-batches of 5"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _loader(ROWS, **settings)


def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="several sources are called 'a'"):
        _loader((ROWS[0], ROWS[0]))


def test_all_chunks_of_a_step_may_be_kept_at_once_under_a_low_limit_of_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 128), hard))
    try:
        with _loader(ROWS, workers=1, batch=300, sub_batch=4, budget=45, stop=1, prefetch=8) as loader:
            (kept,) = [list(chunks) for _, chunks in loader]
        assert len(kept) > 400
        assert all(len(c.ids) == sum(len(t) for t in c.texts) for c in kept)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
