"""The Cluster step: rows that are hard negatives for each other share a cluster, in a side-car beside a source.

Batch mining B3 (arXiv:2505.11293): a teacher ranks the documents for every query; the first ranks are left out, since
they may be right answers that nobody labelled; rows that reach each other in the next ranks are linked; METIS cuts the
graph into small groups. A feed with `clusters` then draws whole groups, so a small batch holds hard negatives.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.clusters import write
from ..data.types import DataError, Rows, Source, Step, Where
from ..model.encode import bar
from .cost import spoken
from .gather import Group
from .guard import Signals
from .leave import together
from .neighbours import Answers, adjacency, mutual, ranked, tile_bytes
from .partition import even, metis, needs_metis
from .teacher import Teacher, Told, estimate

log = logging.getLogger(__name__)

_LOOKED_AT = 2048  # clusters at most, for the report's similarities
_UNLINKED = 0.1  # of the rows: above it, many of the clusters are chance


@dataclass(frozen=True)
class Cluster:
    """Clusters of `size` rows of `source`, as `model` sees them; the last one has the rest.

    model: the teacher, a step or anything that `load_encoder` takes; it need not be strong. skip: ranks left out before
    the `neighbours` that count: the paper has 30 for retrieval and grounding, 70 for questions on pictures, 0 for
    classes, whose labels say who is no negative. Right answers, equal labels, equal documents and equal queries are
    never linked, and no rank is counted for them. instruction, target_instruction: shown in place of the rows' own.

    Leaves clusters.safetensors (data/clusters.py) and report.json. Needs pip install "omni2vec[mine]".
    """

    resumes = True  # after a kill, `make` finds the vectors so far
    parallel = True  # every rank encodes its share
    name: str
    model: Step | str
    source: Source
    size: int = 32
    skip: int = 30
    neighbours: int = 100
    instruction: str | None = None
    target_instruction: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field, least in (("size", 2), ("skip", 0), ("neighbours", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"step {self.name!r}: {field}={getattr(self, field)}; expected {least} or more")

    def outside(self, where: Where) -> dict[str, str]:
        """The digest of a teacher that no step made."""
        from ..model.checkpoint import digest_of_folder

        return {f"model {self.model}": digest_of_folder(self.model)} if isinstance(self.model, str) else {}

    def make(self, out: Path, where: Where) -> None:
        """Every rank of a group encodes; rank 0 ranks, links, cuts and writes."""
        needs_metis()
        group = Group.current()
        rows = self._rows(where)
        with Signals() as signals:
            teacher = Teacher.load(self.model, where, out, group, signals)
            with bar("reading" if group.rank == 0 else "", len(rows)) as advance:
                answers = Answers.of(rows, advance)
            self._check(answers)
            told = Told(self.instruction, self.target_instruction)
            query = teacher.vectors("query", len(rows), lambda i: told.prompt(rows[i], "query"))
            first = answers.first.tolist()
            docs = teacher.vectors("document", len(first), lambda i: told.prompt(rows[first[i]], "target"))
            together(group, lambda: self._write(rows, answers, query, docs, teacher) if group.rank == 0 else None)
            if group.rank == 0:
                teacher.forget()

    def plan(self, where: Where, ranks: int = 1) -> Mapping[str, str]:
        """What it will take, for `omni2vec plan`."""
        from ..model.encoder import load_encoder

        rows = self._rows(where)
        n = len(rows)
        encoder = load_encoder(self.model if isinstance(self.model, str) else where(self.model))
        told = Told(self.instruction, self.target_instruction)
        dim = encoder.encode_items([rows[0].query], side="query").shape[1]
        near = n * self.neighbours
        return {
            "rows": f"{n:,} in {-(-n // self.size):,} clusters of {self.size}",
            **estimate(encoder, rows, told, n),
            "vectors": f"{spoken(2 * n * dim * 4)} on {'rank 0' if ranks > 1 else 'the host'}, and as much on disk",
            "search": f"{2 * n * n * dim / 1e12:,.2f} TFLOP at most, in tiles of {spoken(tile_bytes())}",
            "graph": f"{near:,} directed edges at most, {spoken(near * 100)} while they are matched",
        }

    def _rows(self, where: Where) -> Rows:
        rows = self.source.open(where)
        if len(rows) < 2 * self.size:
            raise DataError(
                f"step {self.name!r}: source {rows.name!r} has {len(rows)} rows, but two clusters of size={self.size} "
                f"take {2 * self.size}; lower size, or train on this source without clusters"
            )
        return rows

    def _check(self, answers: Answers) -> None:
        documents = len(answers.first)
        if documents <= self.skip + 1:
            raise DataError(
                f"step {self.name!r}: source {self.source.name!r} has {documents} different documents, and skip="
                f"{self.skip} ranks are left out, so that none is left; lower skip (0 where rows have labels)"
            )

    def _write(self, rows: Rows, answers: Answers, query: Tensor, docs: Tensor, teacher: Teacher) -> None:
        with bar("ranking", len(rows)) as advance:
            near = ranked(query, _close(docs, teacher.device), answers, self.skip, self.neighbours, advance)
        edges = mutual(near, answers)
        if not len(edges):
            raise DataError(
                f"step {self.name!r}: no two rows of source {rows.name!r} reach each other at ranks {self.skip + 1} to "
                f"{self.skip + self.neighbours}; raise neighbours, or lower skip"
            )
        ends, linked = adjacency(edges, len(rows))
        parts = metis(ends, linked, -(-len(rows) // self.size), self.seed)
        cluster, moved = even(parts, ends, linked, self.size)
        found = report(cluster, edges, query, docs, answers, self.seed)
        for line in self._doubts(found):
            log.warning(f"step {self.name!r}: {line}")
        settings = {"size": self.size, "skip": self.skip, "neighbours": self.neighbours, "seed": self.seed}
        facts = {"source": rows.name, "teacher": teacher.digest, **settings, **found, "moved_rows": moved}
        aside = teacher.out / ".report.json.part"
        aside.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.replace(teacher.out / "report.json")
        about = {name: str(value) for name, value in settings.items()} | {"teacher": teacher.digest}
        write(teacher.out, cluster.astype(np.int32), rows, about)

    def _doubts(self, found: Mapping[str, int | float]) -> Iterator[str]:
        """What of the report should be read at once."""
        rows, unlinked, last = found["rows"], found["unlinked_rows"], found["rows_of_last_cluster"]
        if unlinked > _UNLINKED * rows:
            yield (
                f"{unlinked:,} of {rows:,} rows are linked to none, so that their clusters are chance; raise "
                f"neighbours={self.neighbours}, or lower skip={self.skip}"
            )
        if last < self.size:
            yield (
                f"{rows:,} rows are no multiple of size={self.size}: the last of {found['clusters']:,} clusters has "
                f"{last:,}, and once an epoch a sub-batch of it is filled up with rows of another"
            )


def report(
    cluster: NDArray[np.int64], edges: NDArray[np.int64], query: Tensor, docs: Tensor, answers: Answers, seed: int
) -> dict[str, int | float]:
    """What became of the rows: `similarity_inside` is the mean cosine of a query with the other documents of its
    cluster, `similarity_random` with as many of random rows; right answers count in neither."""
    n = len(cluster)
    inside = similarity(cluster, query, docs, answers)
    shuffled = np.random.default_rng(seed).permutation(cluster)
    degree = np.bincount(edges.reshape(-1), minlength=n)
    kept = int((cluster[edges[:, 0]] == cluster[edges[:, 1]]).sum())
    return {
        "rows": n,
        "documents": len(answers.first),
        "clusters": int(cluster.max()) + 1,
        "rows_of_last_cluster": int((cluster == cluster.max()).sum()),
        "edges": len(edges),
        "edges_inside": kept,
        "unlinked_rows": int((degree == 0).sum()),
        "similarity_inside": round(inside, 6),
        "similarity_random": round(similarity(shuffled, query, docs, answers), 6),
    }


def similarity(cluster: NDArray[np.int64], query: Tensor, docs: Tensor, answers: Answers) -> float:
    """Mean cosine of queries (n, D) and the documents (N, D) of other rows of their cluster, right answers apart."""
    members = np.argsort(cluster, kind="stable")
    groups = np.split(members, np.cumsum(np.bincount(cluster))[:-1])
    total, pairs = 0.0, 0
    for rows in groups[:: -(-len(groups) // _LOOKED_AT)]:
        own = answers.document[rows]
        cosine = query[torch.from_numpy(rows)] @ docs[torch.from_numpy(own)].T
        other = _apart(rows, own, answers)
        total += float(cosine[other].double().sum())
        pairs += int(other.sum())
    return total / max(pairs, 1)


def _apart(rows: NDArray[np.int64], documents: NDArray[np.int64], answers: Answers) -> Tensor:
    """(rows, documents) where the document is no right answer and the labels differ."""
    begin = answers.right_end[rows - 1] * (rows > 0)
    right = [answers.right[b:e] for b, e in zip(begin, answers.right_end[rows], strict=True)]
    wrong = np.stack([np.isin(documents, r, invert=True) for r in right])
    label = answers.label[rows]
    return torch.from_numpy(wrong & ((label[:, None] != label) | (label[:, None] == 0)))


def _close(docs: Tensor, device: torch.device) -> Tensor:
    """The documents on the device, where they take less than half of what is free; else their tiles go there."""
    if device.type != "cuda":
        return docs
    free, _ = torch.cuda.mem_get_info(device)
    return docs.to(device) if docs.nbytes < free // 2 else docs
