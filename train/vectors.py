"""The Embedded step: the vectors of every Item of some sources by a frozen teacher, for objectives that imitate it.

Leaves query.safetensors and document.safetensors (data/vectors.py). An Item is embedded once a side, however many rows
it stands in, and under one instruction: that of the first row that has it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.relation import id_pair
from ..data.types import DataError, Example, Prompted, Rows, Side, Source, Step, Where, digest
from ..data.vectors import DOCUMENT, QUERY, Dtype, ordered, write
from ..model.encode import bar
from .cost import spoken
from .gather import Group
from .guard import Signals
from .leave import together
from .teacher import WINDOW, Teacher

log = logging.getLogger(__name__)

_COUNTED = 64  # rows that are looked at for a plan
_GATHERED = 1 << 20  # Items whose ids wait as Python numbers until they are made distinct
_NAMES: Mapping[Side, str] = {"query": "query", "target": "document"}
_FILES: Mapping[Side, str] = {"query": QUERY, "target": DOCUMENT}


@dataclass(frozen=True)
class Embedded:
    """Every query, positive and negative of `sources` by `model`: a step, or anything that `load_encoder` takes.

    instruction, target_instruction: shown to the teacher in place of the rows' own, where given. dtype: as kept;
    float16 is enough for likenesses. After a kill it goes on from the last window of 4,096 vectors; all ranks encode.
    """

    resumes = True
    parallel = True
    name: str
    model: Step | str
    sources: tuple[Source, ...]
    instruction: str | None = None
    target_instruction: str | None = None
    dtype: Dtype = "float16"

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError(f"step {self.name!r}: no sources; give it those whose rows are to be trained on")
        if self.dtype not in ("float16", "float32"):
            raise ValueError(f"step {self.name!r}: dtype={self.dtype!r}; expected 'float16' or 'float32'")

    def outside(self, where: Where) -> dict[str, str]:
        """The digest of a teacher that no step made."""
        from ..model.checkpoint import digest_of_folder

        return {f"model {self.model}": digest_of_folder(self.model)} if isinstance(self.model, str) else {}

    def make(self, out: Path, where: Where) -> None:
        """Every rank of a group encodes; rank 0 writes."""
        group = Group.current()
        rows = [source.open(where) for source in self.sources]
        facts: dict[str, object] = {"sources": {r.name: len(r) for r in rows}}
        with Signals() as signals:
            teacher = Teacher.load(self.model, where, out, group, signals)
            facts["teacher"] = teacher.digest
            sides: tuple[Side, ...] = ("query", "target")
            for side in sides:
                items = Items.of(rows, side, f"reading {_NAMES[side]}s" if group.rank == 0 else "")
                facts[_NAMES[side]] = {"items": len(items.ids), "under_several_instructions": items.several}
                self._embed(teacher, items)
            if group.rank == 0:
                aside = out / ".report.json.part"
                aside.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
                aside.replace(out / "report.json")
                teacher.forget()

    def _embed(self, teacher: Teacher, items: Items) -> None:
        name = _NAMES[items.side]
        if not len(items.ids):
            raise DataError(f"step {self.name!r}: no {name} in {', '.join(r.name for r in items.sources)}")
        fixed = self.instruction if items.side == "query" else self.target_instruction
        if items.several and fixed is None and teacher.group.rank == 0:
            log.warning(
                f"step {self.name!r}: {items.several:,} of {len(items.ids):,} {name} Items stand under several "
                "instructions; the teacher sees each under that of its first row"
            )
        teacher.encode(name, len(items.ids), lambda i: self._prompt(items, i))
        together(teacher.group, lambda: self._write(teacher, items) if teacher.group.rank == 0 else None)

    def plan(self, where: Where, ranks: int = 1) -> Mapping[str, str]:
        """What it will take, for `omni2vec plan`."""
        from ..model.encoder import load_encoder

        rows = [source.open(where) for source in self.sources]
        encoder = load_encoder(self.model if isinstance(self.model, str) else where(self.model))
        some = [r[0].query for r in rows if len(r)][:1]
        if not some:
            raise DataError(f"step {self.name!r}: no row in {', '.join(r.name for r in rows)}")
        dim = encoder.encode_items(some, side="query").shape[1]
        docs = sum(_docs_a_row(r) * len(r) for r in rows)
        total = int(sum(map(len, rows)) + docs)
        width = np.dtype(self.dtype).itemsize
        return {
            "items": f"{total:,} at most, by the first rows: each is embedded once a side",
            "vectors": f"{spoken(total * (dim * width + 16))} at most on disk",
            "while they are made": f"{spoken(total * dim * 4)} more, in windows of {WINDOW:,} vectors",
        }

    def _prompt(self, items: Items, i: int) -> Prompted:
        example, slot = items.row(i)
        if items.side == "query":
            own = example.instruction if self.instruction is None else self.instruction
            return Prompted(example.query, "query", own, key=example.key)
        own = example.target_instruction if self.target_instruction is None else self.target_instruction
        return Prompted((*example.positives, *example.negatives)[slot], "target", own, key=example.key)

    def _write(self, teacher: Teacher, items: Items) -> None:
        name = _NAMES[items.side]
        order = ordered(items.ids)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))

        def windows() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
            for start, vectors in teacher.kept(name, len(order)):
                yield place[start : start + len(vectors)], vectors.numpy()

        dim = next(teacher.kept(name, len(order)))[1].shape[1]
        ids = items.ids[order]
        about = {"teacher": teacher.digest, "digest": digest(teacher.digest, name, ids.tobytes())}
        write(teacher.out / _FILES[items.side], ids, windows(), dim, about, self.dtype)


@dataclass(frozen=True, eq=False)
class Items:
    """The distinct Items of one side: the first row that has each, and where in the row. several: how many of them also
    stand under another instruction."""

    sources: Sequence[Rows]
    side: Side
    ids: NDArray[np.int64]  # (n, 2), in the order of their first rows
    at: NDArray[np.int64]  # (n, 3): source, row, k-th positive or negative
    several: int

    @staticmethod
    def of(sources: Sequence[Rows], side: Side, label: str = "") -> Items:
        """Reads every row once."""
        fresh = _Gathered()
        found = fresh.taken()
        with bar(label, sum(map(len, sources))) as advance:
            for s, rows in enumerate(sources):
                for r in range(len(rows)):
                    fresh.add(rows[r], side, s, r)
                    if len(fresh.ids) >= _GATHERED:
                        found = _first(found, fresh.taken())
                    advance(1)
        ids, at, _, several = _first(found, fresh.taken())
        return Items(sources, side, ids, at, int(several.sum()))

    def row(self, i: int) -> tuple[Example, int]:
        """(its row, its place there) of Item i."""
        s, r, k = self.at[i].tolist()
        return self.sources[s][r], k


Arrays = tuple[NDArray[np.int64], ...]  # ids (n, 2), places (n, 3), the instruction's hash, whether others were met


@dataclass
class _Gathered:
    """Items of rows as they come, as Python numbers."""

    ids: list[tuple[int, int]] = field(default_factory=list)
    at: list[tuple[int, int, int]] = field(default_factory=list)
    told: list[int] = field(default_factory=list)

    def add(self, example: Example, side: Side, source: int, row: int) -> None:
        query = side == "query"
        hashed = id_pair(example.instruction if query else example.target_instruction)[0]
        for k, item in enumerate((example.query,) if query else (*example.positives, *example.negatives)):
            self.ids.append(id_pair(item.id))
            self.at.append((source, row, k))
            self.told.append(hashed)

    def taken(self) -> Arrays:
        """As arrays, and forgotten here."""
        ids, at = (np.array(x, np.int64).reshape(-1, n) for x, n in ((self.ids, 2), (self.at, 3)))
        told = np.array(self.told, np.int64)
        for gone in (self.ids, self.at, self.told):
            gone.clear()
        return ids, at, told, np.zeros(len(told), np.int64)


def _first(before: Arrays, more: Arrays) -> Arrays:
    """The first of each id, in the order they stand; the last array says which were met under another instruction."""
    ids, at, told, several = (np.concatenate(pair) for pair in zip(before, more, strict=True))
    order = ordered(ids)  # stable: of equal ids the first stands first
    new = np.ones(len(ids), bool)
    new[1:] = (ids[order][1:] != ids[order][:-1]).any(1)
    group = np.cumsum(new) - 1
    first = order[new]
    other = (told[order] != told[first][group]) | (several[order] > 0)
    met = np.zeros(len(first), np.int64)
    np.maximum.at(met, group, other.astype(np.int64))
    back = np.argsort(first)
    return ids[first][back], at[first][back], told[first][back], met[back]


def _docs_a_row(rows: Rows) -> float:
    some = [rows[i] for i in range(min(_COUNTED, len(rows)))]
    return sum(len(e.positives) + len(e.negatives) for e in some) / max(len(some), 1)
