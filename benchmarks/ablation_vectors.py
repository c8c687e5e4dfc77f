"""The second bed: two small towers over given vectors, a second a run, for all that acts on vectors.

Losses go through the library's `batch_loss`, which hands every objective the batch's Relation as in a Stage. A seed
draws the weights, the batches and what is planted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from ablation_sets import Pairs, lacks, pairs
from omni2vec.data.relation import Relation
from omni2vec.data.types import Clock
from omni2vec.data.vectors import Vectors as Table
from omni2vec.eval.metrics import spearman
from omni2vec.model import codes
from omni2vec.train.gather import Group
from omni2vec.train.loss import Bound, Owners, batch_loss
from omni2vec.train.objectives.similarity import Similarity, Tables, Taught
from omni2vec.train.rules import View
from torch import Tensor, nn

Task = Literal["own", "class", "graded"]


@dataclass(frozen=True)
class Given:
    """Given wrong answers: `count` documents of other rows, the nearest to the row's own by the vectors as they are; of
    another class where the task is by class. In place of each, with chance `planted`, a document of the row's class: a
    right answer that is declared wrong. rules: a chain of train/rules.py, by the cosines of a model that was trained
    without given negatives."""

    count: int = 2
    planted: float = 0.0
    rules: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Fit:
    """One training. task: a row's right answer is its own document; or that of any row of its class; or graded."""

    set: str
    objectives: tuple[Any, ...]
    task: Task = "own"
    steps: int = 300
    batch: int = 32
    dim: int = 32
    hidden: int = 64
    temperature: float = 0.05
    rate: float = 3e-3
    given: Given | None = None
    positives: int = 1
    clusters: tuple[int, ...] = ()  # B3: size, skip, neighbours
    learned: bool = False  # the temperature, as the embedder learns it
    taught: float = 0.0  # weight of Similarity with a teacher that sees query and document at once


@dataclass(frozen=True)
class Vectors:
    """A training and its scores."""

    name: str
    fit: Fit
    cuts: tuple[int, ...] = ()

    @property
    def bed(self) -> str:
        return f"vectors, {self.fit.set}"

    def lacks(self) -> str:
        return lacks(self.fit.set)

    def run(self, seed: int, work: Path) -> Mapping[str, float]:
        data = pairs(self.fit.set, work)
        return scores(trained(data, self.fit, seed), data, self.fit, self.cuts)


class Towers(nn.Module):
    """One tower for queries and one for documents; one for both where they are of one kind."""

    def __init__(self, data: Pairs, fit: Fit, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query = _tower(data.query.shape[1], fit)
            self.docs = _tower(data.docs.shape[1], fit) if fit.set == "digits" else self.query
        self.log_scale = nn.Parameter(torch.tensor([-np.log(fit.temperature)], dtype=torch.float32))
        self.step = nn.Parameter(torch.tensor([fit.dim**-0.5 / 64]))  # of int8 codes

    def forward(self, query: Tensor, docs: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.query(query), dim=-1), F.normalize(self.docs(docs), dim=-1)


def _tower(width: int, fit: Fit) -> nn.Module:
    return nn.Sequential(nn.Linear(width, fit.hidden), nn.GELU(), nn.Linear(fit.hidden, fit.dim))


def train(model: Towers, data: Pairs, fit: Fit, seed: int, steps: int = 0) -> None:
    """Train in place, for `steps` or as many as `fit` says."""
    steps = steps or fit.steps
    taught = (teacher(data, fit.taught),) if fit.taught else ()
    bound = Bound("default", (*fit.objectives, *taught), frozenset([0]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=fit.rate, weight_decay=0.01)
    group = Group()
    model.train()
    for step, batch in enumerate(batches(data, fit, seed, steps)):
        for g in optimizer.param_groups:
            g["lr"] = fit.rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        vectors = torch.cat(model(data.query[batch.rows], batch.docs))
        q, n = len(batch.rows), len(batch.docs)
        scale = torch.cat([model.log_scale.exp(), model.step]).detach()
        owners = Owners.of(group, [torch.arange(q + n)], vectors.device)
        clock = Clock(step, step / steps, seed)
        good = torch.ones(q, dtype=torch.bool)
        graded = batch_loss(vectors.detach(), {}, scale, batch.relation, good, [bound], clock, owners)
        optimizer.zero_grad()
        (vectors * graded.d_own).sum().backward()
        model.step.grad = graded.d_scale[1:].clone()
        model.log_scale.grad = graded.d_scale[:1] * scale[:1] * float(fit.learned)
        optimizer.step()
        with torch.no_grad():
            model.step.clamp_(min=1e-4)
            model.log_scale.clamp_(0, np.log(100.0))
    model.eval()


def teacher(data: Pairs, weight: float) -> Any:
    """Similarity whose teacher knows a row's query and document as one vector."""
    n = data.train
    both = F.normalize(torch.cat([data.query[:n], data.docs[:n]], 1), dim=-1).numpy()
    ids = np.arange(n)
    tables = [
        Table(Path(), np.stack([ids, np.full(n, second)], 1), both, {"teacher": "both halves"})
        for second in (_query_second(data), 1)
    ]
    return Taught(Similarity("in memory", weight=weight), Tables(*tables))


def _query_second(data: Pairs) -> int:
    """The second half of a query's id. Of one kind, a query is the document of the same row."""
    return 1 if data.query is data.docs else -1


@dataclass(frozen=True)
class Batch:
    rows: Tensor  # (Q,)
    docs: Tensor  # (N, g)
    relation: Relation


def batches(data: Pairs, fit: Fit, seed: int, steps: int) -> Iterator[Batch]:
    """Rows without replacement, epoch by epoch."""
    draw = np.random.default_rng([seed, 1])
    rows = np.arange(data.train)
    negatives = given(data, fit, seed)
    members = [np.flatnonzero(data.label[: data.train].numpy() == c) for c in range(int(data.label.max()) + 1)]
    groups = clusters(data, fit, seed)
    deck: list[int] = []
    for _ in range(steps):
        if len(deck) < fit.batch:
            order = draw.permutation(rows) if groups is None else _grouped(groups, draw)
            deck = list(order)
        chosen, deck = deck[: fit.batch], deck[fit.batch :]
        yield _batch(data, fit, np.array(chosen), negatives, members, draw)


def _batch(
    data: Pairs,
    fit: Fit,
    rows: np.ndarray,
    negatives: np.ndarray | None,
    members: list[np.ndarray],
    draw: np.random.Generator,
) -> Batch:
    found: list[tuple[int, ...]] = []
    label = data.label.numpy()
    for q, row in enumerate(rows):
        right = [row] if fit.task != "class" else list(draw.choice(members[label[row]], fit.positives))
        wrong = [] if negatives is None else [d for d in negatives[row] if d >= 0 and d not in right]
        found += [(q, 1, k, d) for k, d in enumerate(dict.fromkeys(right))]
        found += [(q, 0, k, d) for k, d in enumerate(wrong)]
    owner, positive, rank, doc = (torch.tensor(x, dtype=torch.int64) for x in zip(*found, strict=True))
    positive = positive.bool()
    ids = torch.stack([doc, torch.ones_like(doc)], 1)
    index = torch.from_numpy(rows)
    score = torch.full((len(owner),), float("nan"))
    if data.score is not None:
        score[positive] = data.score[index[owner[positive]]]
    classes = torch.stack([data.label[index] + 1, torch.ones_like(index)], 1)
    query_id = torch.stack([index, torch.full_like(index, _query_second(data))], 1)
    relation = Relation(
        query_id=query_id,
        query_label=classes if data.score is None else torch.zeros_like(classes),
        query_source=torch.zeros_like(index),
        owner=owner,
        positive=positive,
        rank=rank,
        doc_id=ids,
        known_id=ids[positive],
        known_query=owner[positive],
        scores={"label": score} if data.score is not None else {},
    )
    return Batch(index, data.docs[doc], relation)


def given(data: Pairs, fit: Fit, seed: int) -> np.ndarray | None:
    """(n, count) documents, -1 where a rule dropped one."""
    asked = fit.given
    if asked is None:
        return None
    n, draw = data.train, np.random.default_rng([seed, 2])
    docs, label = F.normalize(data.docs[:n], dim=-1), data.label[:n].numpy()
    same = label[:, None] == label[None] if fit.task == "class" else np.eye(n, dtype=bool)
    wrong = (docs @ docs.T).masked_fill(torch.from_numpy(same), -2).topk(asked.count, dim=1).indices.numpy()
    right = np.array([draw.choice(np.flatnonzero(label == c), asked.count) for c in label])
    wrong = np.where(draw.random(wrong.shape) < asked.planted, right, wrong)
    if asked.rules:
        model = judge(data, replace(fit, given=None), seed)
        with torch.no_grad():
            query, own = model(data.query[:n], data.docs[:n])
        positive = (query * own).sum(-1, keepdim=True).numpy()
        score = (query[:, None] * own[wrong]).sum(-1).numpy()
        kept = np.ones(score.shape, bool)
        for rule in asked.rules:
            kept &= rule.keep(View(score, positive, kept))
        wrong = np.where(kept, wrong, -1)
    return wrong


def clusters(data: Pairs, fit: Fit, seed: int) -> np.ndarray | None:
    """The cluster of each row by B3 (train/cluster.py), the teacher being a model that was trained without."""
    if not fit.clusters:
        return None
    from omni2vec.train.neighbours import Answers, adjacency, mutual, ranked
    from omni2vec.train.partition import even, metis

    size, skip, neighbours = fit.clusters
    n = data.train
    model = judge(data, replace(fit, clusters=()), seed)
    with torch.no_grad():
        query, docs = model(data.query[:n], data.docs[:n])
    own, none = np.arange(n), np.zeros(n, np.int64)
    answers = Answers(own, own, own, none, none, own + 1, own)
    edges = mutual(ranked(query, docs, answers, skip, neighbours), answers)
    ends, linked = adjacency(edges, n)
    return even(metis(ends, linked, -(-n // size), seed), ends, linked, size)[0]


def _grouped(groups: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Rows, cluster by cluster, the clusters in random order."""
    return np.concatenate([np.flatnonzero(groups == c) for c in draw.permutation(int(groups.max()) + 1)])


def scores(model: Towers, data: Pairs, fit: Fit, cuts: tuple[int, ...] = ()) -> dict[str, float]:
    """In points of 100, of the held rows. own: mean reciprocal rank of a row's own document among all; class: that the
    nearest other document is of the query's class, and the mean average precision; graded: Spearman."""
    with torch.no_grad():
        query, docs = model(data.query[data.train :], data.docs[data.train :])
    found = _scores(query @ docs.T, data, fit)
    for dim in cuts:
        a, b = (F.normalize(x[:, :dim], dim=-1) for x in (query, docs))
        found |= {f"{k} at {dim}": v for k, v in _scores(a @ b.T, data, fit).items()}
    step = model.step.detach() if any(getattr(o, "stepped", False) for o in fit.objectives) else None
    if fit.task != "own":
        return found
    for bits in (8, 2):
        step_of = codes.calibrated(query, docs, bits=bits) if step is None else step
        a, b = (codes.levels(x, step_of, bits) for x in (query, docs))
        found |= {f"{k} in {bits} bits": v for k, v in _scores(a @ b.T, data, fit).items()}
    a, b = (codes.signs(x) for x in (query, docs))
    return found | {f"{k} in 1 bit": v for k, v in _scores(a @ b.T, data, fit).items()}


def _scores(cosine: Tensor, data: Pairs, fit: Fit) -> dict[str, float]:
    label = data.label[data.train :]
    if data.score is not None:
        return {"spearman": 100 * spearman(cosine.diagonal().numpy(), data.score[data.train :].numpy())}
    if fit.task == "own":
        right = cosine.diagonal()[:, None]
        ties = (cosine == right).sum(1) - 1
        rank = 1 + (cosine > right).sum(1) + ties / 2  # codes tie often: half of the ties stand before
        return {"mrr": float((100 / rank).mean())}
    same = label[:, None] == label[None]
    other = cosine.masked_fill(torch.eye(len(label), dtype=torch.bool), -torch.inf)
    order = other.argsort(1, descending=True)[:, :-1]
    hits = same.gather(1, order).float()
    places = torch.arange(1, hits.shape[1] + 1)
    precision = (hits.cumsum(1) / places * hits).sum(1) / hits.sum(1).clamp_min(1)
    return {"class hit": 100 * float(hits[:, 0].mean()), "class map": 100 * float(precision.mean())}


def trained(data: Pairs, fit: Fit, seed: int) -> Towers:
    model = Towers(data, fit, seed)
    train(model, data, fit, seed)
    return model


_JUDGES: dict[tuple[Fit, int], Towers] = {}


def judge(data: Pairs, fit: Fit, seed: int) -> Towers:
    """Another training of `fit`, kept for the trials of this seed that ask for the same."""
    key = (fit, 1000 + seed)
    if key not in _JUDGES:
        _JUDGES.clear()
        _JUDGES[key] = trained(data, *key)
    return _JUDGES[key]
