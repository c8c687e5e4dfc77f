"""Rows -> the chunks of each step, planned before they are decoded: the only data loader.

Two rounds a step: workers read its rows and count their tokens (no medium is opened), then one packed chunk at a time
is decoded and collated, never more than `prefetch` ahead. Any step, and any chunk of it, can be had again by a seek.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from . import patterns
from .chunks import Chunk
from .crew import Crew, Inline, Later, Pool
from .deck import WINDOW
from .mix import Feed, Mix, Weighted
from .order import Setting, dry, ordered
from .planned import Plan, checked, planned
from .ranks import ALONE, Ranks
from .types import DataError, Example, Limits, Rows, Where
from .wire import pack, unpack
from .work import Bad, Collated, Format, Measured, Work

log = logging.getLogger(__name__)
_PIECE = 64  # rows that one worker reads and counts at a time
T = TypeVar("T", bound=Collated)


@dataclass(frozen=True)
class Skipped:
    """Rows left out because they could not be read or decoded: how often, by source, and the keys of all. lacking: rows
    that could form none of their feed's patterns, how often, by source."""

    sources: Mapping[str, int] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    lacking: Mapping[str, int] = field(default_factory=dict)


class Loader(Generic[T]):
    """Iterating gives (Plan, chunks) of the steps start, start + 1, ... in order; `stop` None goes on for ever. A plan
    all of whose rows were left out is empty, and has no chunk; 100 of them in a row are a DataError.

    rows, feeds: one each a source. batch, sub_batch: rows a step and rows of one source together. budget: tokens a
    chunk. workers: processes (0: none). prefetch: chunks held ready at most. pin: page-locked memory, for CUDA.
    on_error: "raise", or "skip" a row that cannot be read (it is left out of the plan) or decoded (its segments stand
    in `failed` of their chunk); more than max_skipped such rows end the run. Plans are the same for any workers.
    stretch: an item longer than the budget raises the budget of its step, instead of an error. ranks: each rank counts
    its share of a step's rows, all know the whole plan, and each collates its own chunks; all must begin the same steps
    in the same order. mix, window: see data/mix.py and data/deck.py; steps: of the stage, on which schedules hang;
    told: what an adaptive mix has found before; where: the folders of the steps that feeds and mix name.
    """

    def __init__(
        self,
        rows: Sequence[Rows],
        feeds: Sequence[Feed],
        format: Format[T],  # noqa: A002
        limits: Limits,
        *,
        batch: int,
        sub_batch: int,
        seed: int,
        budget: int,
        workers: int = 0,
        prefetch: int = 2,
        pin: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: int = 100,
        start: int = 0,
        stop: int | None = None,
        stage: str = "",
        skipped: Skipped | None = None,
        stretch: bool = False,
        ranks: Ranks = ALONE,
        mix: Mix | None = None,
        window: int = WINDOW,
        steps: int = 0,
        told: Sequence[tuple[int, ...]] = (),
        where: Where | None = None,
    ) -> None:
        _check(rows, feeds, prefetch, on_error)
        self.names = tuple(r.name for r in rows)
        self.told = list(told)
        self.setting = Setting(batch, sub_batch, seed, steps, mix or Weighted(), window)
        self.factors = self.setting.mix.factors(self.names, [len(r) for r in rows], where)
        self.order = ordered(rows, feeds, self.factors, self.setting, self.told, where)
        if stop is not None and stop > self.order.steps:
            raise DataError(f"{f'stage {stage!r}: ' if stage else ''}{dry(stop, self.order, rows, feeds)}")
        self.order.fits(stop or 0, ranks.size)
        # By source with patterns: rows that can form none, as far as the indexes tell.
        self.without = {
            r.name: patterns.absent(getattr(r, "fields", None), f.patterns, r.name) or 0
            for r, f in zip(rows, feeds, strict=True)
            if f.patterns
        }
        own = tuple(f.limits or limits for f in feeds)
        self._work: Work[T] = Work(tuple(rows), tuple(feeds), format, own, seed, on_error == "skip", steps)
        self._crew: Crew[Work[T]] = Pool(self._work, workers) if workers else Inline(self._work)
        self.budget, self.prefetch, self.pin, self.stage = budget, prefetch, pin, stage
        self.max_skipped, self.start, self.stop, self.stretch = max_skipped, start, stop, stretch
        self.ranks = ranks
        self._last: Future[Plan] | None = None  # of the plans that threads are making, in order
        before = skipped or Skipped()
        self._counts, self._keys = Counter(before.sources), dict.fromkeys(before.keys)
        self._lacking = Counter(before.lacking)

    @property
    def skipped(self) -> Skipped:
        return Skipped(dict(self._counts), tuple(self._keys), dict(self._lacking))

    def tell(self, shares: tuple[int, ...]) -> None:
        """What an adaptive mix has found for its next block. No batch of that block may have been begun: iterating
        begins a batch when the one before it is asked for."""
        self.told.append(shares)
        self.order.forget(len(self.told))

    def _known(self, step: int) -> None:
        """That the mixer's state reaches to this batch."""
        adaptive = self.setting.mix.adaptive
        if adaptive is not None and step // adaptive.every > len(self.told):
            raise RuntimeError(f"batch {step} begun before its shares were told; iterate through a stage")

    def __enter__(self) -> Loader[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._crew.close()

    def plan(self, step: int) -> Plan:
        """The plan of any step, read and counted now."""
        return _Step(self, step).plan

    def planned(self, step: int, measured: Sequence[Measured | Bad]) -> Plan:
        """The plan of a step's counted rows, of all ranks."""
        ranks = self.ranks
        return planned(step, measured, self.names, self.budget, self.stretch, ranks.rank, ranks.size, self.stage)

    def example(self, plan: Plan, row: int) -> Example:
        """Row `row` of a plan as it was drawn, with its contents, read once more."""
        return self._work.example(plan.addresses[row])

    def again(self, plan: Plan, chunk: int) -> T:
        """One chunk of a plan, read and collated once more."""
        return self._pinned(self._collate(plan, plan.chunks[chunk]).get())

    def chunks(self, plan: Plan) -> Iterator[T]:
        """All chunks of a plan in order, read and collated once more, `prefetch` ahead."""
        return self._take(_Step(self, plan.step, plan), None)

    def __iter__(self) -> Iterator[tuple[Plan, Iterator[T]]]:
        step, empty = self.start, list[Plan]()
        then = self._begin(step)
        while then is not None:
            now, step = then, step + 1
            self._skip(now.plan.bad)
            empty = checked(now.plan, empty, self.names, self.stage)
            then = self._begin(step)
            chunks = self._take(now, then)
            yield now.plan, self._counted(now.plan, chunks) if self.ranks.size == 1 else chunks

    def _begin(self, step: int) -> _Step[T] | None:
        if step >= (self.order.steps if self.stop is None else self.stop):
            return None
        self._known(step)
        return _Step(self, step)

    def _take(self, now: _Step[T], then: _Step[T] | None) -> Iterator[T]:
        """The chunks of `now`. Behind them, as workers come free, those of `then` are begun."""
        for _ in now.plan.chunks:
            room = self.prefetch + 1 - len(now.asked) - (len(then.asked) if then else 0)
            room -= now.ask(max(room, 1 - len(now.asked)))
            if then is not None and room > 0 and then.ready():
                then.ask(room)
            yield self._pinned(now.asked.popleft().get())

    def _collate(self, plan: Plan, chunk: Chunk) -> Later[T]:
        entries = [(plan.addresses[q], slot) for q, slot in (plan.slots[e] for e in chunk.entries)]
        return self._crew.submit(Work.collate, entries, chunk.dummies)

    def _pinned(self, inputs: T) -> T:
        return inputs.pin() if self.pin else inputs

    def _counted(self, plan: Plan, chunks: Iterator[T]) -> Iterator[T]:
        """Chunks with their failed rows counted, each row once a step."""
        seen: set[int] = set()
        for chunk, inputs in zip(plan.chunks, chunks, strict=True):
            rows = {plan.slots[chunk.entries[s]][0] for s in inputs.failed} - seen
            seen |= rows
            self.failed(plan, rows)
            yield inputs

    def failed(self, plan: Plan, rows: Iterable[int]) -> None:
        """Count rows of a plan that could not be decoded. With several ranks, which see only their own chunks, the
        caller tells all of them of all; alone, the loader does it."""
        self._skip([Bad(plan.groups[q], plan.keys[q], "a medium could not be decoded") for q in sorted(rows)])

    def _skip(self, bad: Sequence[Bad]) -> None:
        for b in bad:
            if b.lacking:
                self._lacking[self.names[b.source]] += 1
                continue
            self._counts[self.names[b.source]] += 1
            self._keys[b.key] = None
            log.warning("skipped %s: %s", b.key, b.reason)
        if len(self._keys) > self.max_skipped:
            keys = list(self._keys)
            more = f" and {len(keys) - 20} more" if len(keys) > 20 else ""
            raise DataError(
                f"{f'stage {self.stage!r}: ' if self.stage else ''}{len(keys)} bad rows, more than "
                f"max_skipped={self.max_skipped}: {', '.join(keys[:20])}{more}; repair them or raise max_skipped"
            )


class _Step(Generic[T]):
    """A step on its way: its rows are being counted, then its chunks collated in order."""

    def __init__(self, loader: Loader[T], step: int, known: Plan | None = None) -> None:
        self.loader, self.step = loader, step
        self.asked: deque[Later[T]] = deque()  # chunks begun and not yet taken
        self._next = 0  # the first chunk that is not begun
        self._plan = known
        self._shared: Future[Plan] | None = None
        rows = [] if known else loader.order.rows_of(step)
        ranks = loader.ranks
        rows = rows[len(rows) * ranks.rank // ranks.size : len(rows) * (ranks.rank + 1) // ranks.size]
        self._pieces = [loader._crew.submit(Work.measure, rows[i : i + _PIECE]) for i in range(0, len(rows), _PIECE)]
        if ranks.size > 1 and known is None:
            self._share()

    def _share(self) -> None:
        """Plan with the other ranks, in a thread: the one who waited for them here would keep others waiting who are
        ahead of it. Without workers the counting is done before, for a tokenizer serves one thread at a time."""
        before = self.loader._last
        measured = self._measured() if isinstance(self.loader._crew, Inline) else self._measured

        def work() -> Plan:
            if before is not None:
                before.exception()  # exchanges are matched by their order
            return _together(self.loader, self.step, measured)

        self._shared = self.loader._last = _thread(work)

    def _measured(self) -> list[Measured | Bad] | DataError:
        """This rank's rows; an error of theirs is for all ranks."""
        pieces, self._pieces = self._pieces, []
        try:
            return [m for piece in pieces for m in piece.get()]
        except (DataError, OSError) as error:
            if self.loader.ranks.size == 1:
                raise
            return DataError(str(error))

    @property
    def plan(self) -> Plan:
        if self._plan is None:
            if self._shared is not None:
                self._plan, self._shared = self._shared.result(), None
            else:
                measured = self._measured()
                assert isinstance(measured, list)
                self._plan = self.loader.planned(self.step, measured)
        return self._plan

    def ready(self) -> bool:
        """Whether its plan can be had without waiting."""
        return self._shared.done() if self._shared is not None else all(p.ready() for p in self._pieces)

    def ask(self, count: int) -> int:
        """Begin `count` more chunks, or as many as there are."""
        chunks = self.plan.chunks[self._next : self._next + max(0, count)]
        self._next += len(chunks)
        self.asked += [self.loader._collate(self.plan, c) for c in chunks]
        return len(chunks)


def _thread(work: Callable[[], Plan]) -> Future[Plan]:
    """The result of `work`, done in a thread that does not keep the process alive."""
    future: Future[Plan] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="plan").start()
    return future


Own = list[Measured | Bad] | DataError


def _together(loader: Loader[T], step: int, own: Own | Callable[[], Own]) -> Plan:
    """The plan of all ranks' rows. What one rank cannot read, all refuse."""
    found = own() if callable(own) else own
    told = [unpack(m) for m in loader.ranks.exchange(pack(found))]
    for rank, told_by in enumerate(told):
        if isinstance(told_by, DataError):
            raise found if rank == loader.ranks.rank and isinstance(found, DataError) else told_by
    return loader.planned(step, [m for rows in told if isinstance(rows, list) for m in rows])


def _check(rows: Sequence[Rows], feeds: Sequence[Feed], prefetch: int, on_error: str) -> None:
    names = [r.name for r in rows]
    twice = [n for n, c in Counter(names).items() if c > 1]
    if len(rows) != len(feeds) or not rows:
        raise ValueError(f"{len(rows)} sources and {len(feeds)} feeds; expected one feed a source, and one at least")
    if twice:
        raise ValueError(f"several sources are called {twice[0]!r}; give each its own name")
    if prefetch < 0 or on_error not in ("raise", "skip"):
        raise ValueError(f"prefetch={prefetch}, on_error={on_error!r}; expected 0 or more, and 'raise' or 'skip'")
