"""What a stage is about to do, in words: the batch as the model will see it, and what a step costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..data.loader import Plan
from ..data.types import Where
from ..model.embedder import Embedder
from ..model.types import Inputs

if TYPE_CHECKING:
    from .stage import Stage

_SHOWN = 8  # rows of a batch that are written out


def preview(stage: Stage, step: int, where: Where) -> Iterator[str]:
    """Batch `step`: its plan, then its first rows with prompts, spans, pool position, labels and masked negatives."""
    embedder = stage.load(where)
    with stage.loader(embedder, where, 1 << 40) as loader:
        plan = loader.plan(step)
        counts = [sum(s == i for s in plan.sources) for i in range(len(loader.names))]
        drawn = ", ".join(f"{n} {c}" for n, c in zip(loader.names, counts, strict=True) if c)
        yield f"stage {stage.name}, batch {step}: {len(plan.keys)} rows ({drawn})"
        docs = len(plan.costs) - len(plan.keys)
        yield f"{docs} documents, {plan.tokens:,} tokens, {sum(c.labels for c in plan.costs)} next-token labels"
        inputs = loader.again(plan, 0)
        order = {e: i for i, e in enumerate(plan.chunks[0].entries)}
        for q in range(min(_SHOWN, len(plan.keys))):
            yield from _row(embedder, plan, inputs, order, q)


def _row(embedder: Embedder, plan: Plan, inputs: Inputs, order: Mapping[int, int], q: int) -> Iterator[str]:
    yield ""
    yield f"{plan.keys[q]}"
    n = len(plan.keys)
    entries = [e for e, (owner, _) in enumerate(plan.slots) if owner == q]
    for e in entries:
        slot = plan.slots[e][1]
        role = "query" if slot == 0 else ("positive" if bool(plan.relation.positive[e - n]) else "negative")
        yield from _segment(embedder, inputs, order[e], role)
    masked = _masked(plan, q)
    yield f"  masked    {len(masked)} of the batch's documents are right for this query as well, by identity" + (
        f": those of rows {', '.join(map(str, masked[:10]))}" if masked else ""
    )


def _segment(embedder: Embedder, inputs: Inputs, segment: int, role: str) -> Iterator[str]:
    starts = [0, *accumulate(inputs.lengths)]
    start, prefix, length = starts[segment], inputs.prefix[segment], inputs.lengths[segment]
    tokenizer: Any = embedder.backbone.processor
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    ids = inputs.ids[start : start + length].tolist()
    yield f"  {role:9} {_short(tokenizer, ids[:prefix])}"
    pool = embedder.settings.pooling
    at = f"token {prefix - 1}" if pool == "last" else f"{int(inputs.pooled[start : start + length].sum())} tokens"
    yield f"            {prefix} tokens, pooled ({pool}) at {at}"
    if length > prefix:
        yield f"  answer    {_short(tokenizer, ids[prefix:])}  ({length - prefix} labels)"


def _short(tokenizer: Any, ids: list[int]) -> str:
    """The text of some tokens, a run of one media token written once."""
    out: list[str] = []
    i = 0
    while i < len(ids):
        j = i
        while j + 1 < len(ids) and ids[j + 1] == ids[i]:
            j += 1
        if j - i >= 2:
            out.append(f"{tokenizer.decode([ids[i]])}*{j - i + 1}")
        else:
            out.append(tokenizer.decode(ids[i : j + 1]))
        i = j + 1
    return "".join(out).replace("\n", "\\n")


def _masked(plan: Plan, q: int) -> list[int]:
    """Owners of the documents that are right answers of query q without having been drawn for it."""
    r = plan.relation
    known = {tuple(i) for i in r.known_id[r.known_query == q].tolist()} | {tuple(r.query_id[q].tolist())}
    pairs = zip(r.owner.tolist(), r.doc_id.tolist(), strict=True)
    return [owner for owner, i in pairs if owner != q and tuple(i) in known]


def estimates(stage: Stage, where: Where) -> Mapping[str, str]:
    """Tokens and memory of the first step, by counting it (nothing is decoded)."""
    embedder = stage.load(where)
    with stage.loader(embedder, where, 1 << 40) as loader:
        plan = loader.plan(0)
    trained = sum(p.numel() for ps in embedder.parts().values() for p in ps)
    longest = max(c.tokens for c in plan.costs)
    return {
        "rows": f"{stage.steps * stage.batch:,} in {stage.steps:,} steps of {stage.batch}",
        "tokens a step": f"about {plan.tokens:,}, the longest item {longest:,}",
        "tokens": f"about {plan.tokens * stage.steps:,}",
        "trained": f"{trained:,} parameters, {16 * trained / 2**20:,.0f} MiB with gradient and moments",
        "vectors": f"{len(plan.costs) * embedder.width * 4 / 2**20:,.1f} MiB a step",
    }
