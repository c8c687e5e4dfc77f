"""Tasks from any rows that declare their kind: rows of one (source, kind, target instruction) are one Task.

The order of a pool breaks ties, so it is by digest, never by who is right: a model that gives every item the same
vector scores chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ...data.absent import advice
from ...data.types import DataError, Example, Item, Rows, digest
from ..types import Query, Task

Group = Sequence[Example]


def tasks_from(rows: Rows, limit: int | None = None) -> list[Task]:
    """The tasks in `rows`, in order of appearance.

    limit: at most this many rows of each task, the same ones every time (those whose keys have the smallest digests). A
    limited retrieval task has a smaller pool, so it is easier; classes are always those of all rows.
    Raises DataError, naming the key, for a kind that is not in KINDS or a row that its kind cannot use.
    """
    groups: dict[tuple[str, str, str], list[Example]] = {}
    for i in range(len(rows)):
        example = rows[i]
        if example.task not in KINDS:
            raise DataError(
                f"{example.key}: task {example.task!r} cannot be scored; known kinds are {', '.join(KINDS)}"
            )
        groups.setdefault((example.source, example.task, example.target_instruction), []).append(example)
    if not groups:
        raise DataError(f"{rows.name}: no rows, so there is nothing to evaluate; were the shards packed?")
    names = _names(list(groups))
    return [_sealed(KINDS[key[1]](names[key], group, _kept(group, limit))) for key, group in groups.items()]


def retrieval(name: str, rows: Group, kept: Group) -> Task:
    """Every query ranks one pool: all positives and negatives of the kept rows, made unique by id."""
    pool = _pool(item for e in kept for item in (*e.positives, *e.negatives))
    queries = tuple(_query(e, kept, pool, graded=True) for e in kept)
    return _task(name, "retrieval", kept, queries, pool)


def classification(name: str, rows: Group, kept: Group) -> Task:
    """Every query ranks all classes: the positives and negatives of all rows, kept or not."""
    pool = _pool(item for e in rows for item in (*e.positives, *e.negatives))
    return _task(name, "classification", kept, tuple(_query(e, kept, pool) for e in kept), pool)


def vqa(name: str, rows: Group, kept: Group) -> Task:
    """Every question ranks the answers of its own row."""
    return _own_pools(name, "vqa", kept)


def grounding(name: str, rows: Group, kept: Group) -> Task:
    """Every query ranks the regions (crops) of its own row."""
    return _own_pools(name, "grounding", kept)


def sts(name: str, rows: Group, kept: Group) -> Task:
    """Pairs with a graded similarity, scores["label"]: the metric is Spearman's correlation with the cosine."""
    queries = []
    for e in kept:
        label = e.scores.get("label", ())
        if len(e.positives) != 1 or len(label) < 1:
            raise DataError(
                f"{e.key}: a row of an sts task holds one positive and scores['label'] with its similarity, "
                f"got {len(e.positives)} positives and {len(label)} labels"
            )
        right = (e.positives[0].id,)
        queries.append(Query(e.query, right, candidates=right, key=e.key, score=label[0], instruction=_other(e, kept)))
    pool = _pool(e.positives[0] for e in kept)
    return replace(_task(name, "sts", kept, tuple(queries), pool), pool="local", main="spearman")


KINDS: dict[str, Callable[[str, Group, Group], Task]] = {
    "retrieval": retrieval,
    "classification": classification,
    "vqa": vqa,
    "grounding": grounding,
    "sts": sts,
}


def _own_pools(name: str, kind: str, kept: Group) -> Task:
    queries = []
    for e in kept:
        own = _pool((*e.positives, *e.negatives), salt=e.key)
        if len(own) < 2:
            raise DataError(f"{e.key}: a {kind} row ranks its own candidates and has {len(own)}; give it negatives")
        queries.append(replace(_query(e, kept, own), candidates=tuple(own)))
    pool = _pool(item for e in kept for item in (*e.positives, *e.negatives))
    return replace(_task(name, kind, kept, tuple(queries), pool), pool="local")


def _task(name: str, kind: str, kept: Group, queries: tuple[Query, ...], pool: dict[str, Item]) -> Task:
    return Task(name, kind, queries, pool, kept[0].instruction, kept[0].target_instruction)


def _query(example: Example, kept: Group, pool: dict[str, Item], graded: bool = False) -> Query:
    """Right are the positives and those of `known` that are in the pool. Gains, where "label" grades the positives."""
    if not example.positives:
        raise DataError(
            f"{example.key}: a {example.task} row needs a positive, it has none; {advice(example, 'score it')}"
        )
    right = dict.fromkeys((item.id for item in example.positives), 1.0)
    label = example.scores.get("label", ()) if graded else ()
    if label:
        right = {item.id: gain for item, gain in zip(example.positives, label, strict=False) if gain > 0}
        if not right:
            raise DataError(f"{example.key}: scores['label'] grades every positive 0, so no answer is right")
    right |= {i: 1.0 for i in example.known if i in pool and i not in right}
    gains = tuple(right.values()) if label else ()
    return Query(example.query, tuple(right), gains, key=example.key, instruction=_other(example, kept))


def _other(example: Example, kept: Group) -> str | None:
    return None if example.instruction == kept[0].instruction else example.instruction


def _pool(items: Iterable[Item], salt: str = "") -> dict[str, Item]:
    """Unique by id, in the order of the digest of (salt, id)."""
    unique: dict[str, Item] = {}
    for item in items:
        unique.setdefault(item.id, item)
    return dict(sorted(unique.items(), key=lambda pair: digest(salt, pair[0])))


def _kept(rows: Group, limit: int | None) -> Group:
    if limit is None or limit >= len(rows):
        return rows
    if limit < 1:
        raise DataError(f"limit={limit}: an evaluation needs at least one row of each task")
    chosen = sorted(range(len(rows)), key=lambda i: digest(rows[i].key))[:limit]
    return [rows[i] for i in sorted(chosen)]


def _names(keys: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str, str], str]:
    """Source; source/kind where the source holds several kinds; numbered where that does not tell them apart."""
    kinds: dict[str, set[str]] = {}
    for source, kind, _ in keys:
        kinds.setdefault(source, set()).add(kind)
    names: dict[tuple[str, str, str], str] = {}
    for key in keys:
        name = key[0] if len(kinds[key[0]]) == 1 else f"{key[0]}/{key[1]}"
        taken = sum(n == name or n.startswith(f"{name}#") for n in names.values())
        names[key] = name if not taken else f"{name}#{taken + 1}"
    return names


def _sealed(task: Task) -> Task:
    """The task with the digest of what decides its scores: queries, right answers, pools, instructions, no paths."""
    pieces = [task.kind, task.pool, task.main, task.instruction, task.target_instruction, *task.candidates]
    for q in task.queries:
        pieces += [q.item.id, repr(q.instruction), repr(q.gains), repr(q.score), *q.right, "|", *q.candidates, "||"]
    return replace(task, digest=digest(*pieces))
