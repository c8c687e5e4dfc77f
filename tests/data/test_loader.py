"""The loader: plans that do not depend on workers, chunks in order, bad rows counted, memory bounded by prefetch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from omni2vec.data.loader import Loader, Plan, Skipped
from omni2vec.data.mix import Feed
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


def _loader(
    rows: Sequence[Toy], format: Letters | None = None, feed: Feed | None = None, **settings: object
) -> Loader[Packed]:  # noqa: A002
    feeds = [replace(feed, source=r) if feed else Feed(r, positives=2, negatives=1) for r in rows]
    given: dict[str, object] = {"batch": 12, "sub_batch": 4, "seed": 5, "budget": 128, "stop": 4}
    return Loader(rows, feeds, format or Letters(), Limits(), **(given | settings))  # type: ignore[arg-type]


ROWS = (Toy("a", 50), Toy("b", 9))


def _seen(loader: Loader[Packed]) -> list[tuple[Plan, list[Packed]]]:
    with loader:
        return [(plan, list(chunks)) for plan, chunks in loader]


def _same(one: Plan, two: Plan) -> bool:
    relation = all(
        torch.equal(torch.nan_to_num(x), torch.nan_to_num(y))
        for x, y in zip(vars(one.relation).values(), vars(two.relation).values(), strict=True)
    )
    return relation and replace(one, relation=two.relation) == two


@pytest.mark.parametrize("workers", [1, 2])
def test_plans_and_chunks_are_the_same_for_any_number_of_workers(workers: int) -> None:
    alone, helped = _seen(_loader(ROWS)), _seen(_loader(ROWS, workers=workers))
    assert [p.step for p, _ in helped] == [0, 1, 2, 3]
    for (plan, chunks), (other, others) in zip(alone, helped, strict=True):
        assert _same(plan, other)
        assert [c.texts for c in chunks] == [c.texts for c in others]
        assert all(torch.equal(c.ids, o.ids) for c, o in zip(chunks, others, strict=True))
