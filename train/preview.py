"""What a stage is about to do, in words: the batch as the model will see it, and what a step costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..data import chunks
from ..data.chunks import Chunk
from ..data.counter import choose
from ..data.loader import Loader
from ..data.planned import Plan, first_filled
from ..data.types import Where
from ..model.embedder import Embedder
from ..model.types import Inputs
from .begin import counter
from .cost import held, ranging, spoken
from .engine import built
from .memory import CAP
from .precision import cast

if TYPE_CHECKING:
    from .stage import Stage

_SHOWN = 8  # rows of a batch that are written out
_STEPS, _ROWS = 4, 8192  # steps beside the first that are counted, and rows at most, for the tokens of all


def preview(stage: Stage, step: int, where: Where) -> Iterator[str]:
    """Batch `step`: its plan, then its first rows with prompts, spans, pool position, labels and masked negatives."""
    embedder = stage.load(where)
    with stage.loader(embedder, where, 1 << 40) as loader:
        plan = loader.plan(step)
        counts = [sum(s == i for s in plan.sources) for i in range(len(loader.names))]
        drawn = ", ".join(f"{n} {c}" for n, c in zip(loader.names, counts, strict=True) if c)
        if not plan.keys:
            told = "; ".join(f"{k} {v}" for k, v in plan.why(loader.names).items())
            yield f"stage {stage.name}, batch {step}: no row is left, the step does nothing; {told}"
            return
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


def estimates(stage: Stage, where: Where, ranks: int = 1) -> Mapping[str, str]:
    """What the stage will take on each of `ranks` ranks. Rows of a few steps are counted; of the first step, up to four
    chunks are decoded too, for their arithmetic."""
    embedder = stage.load(where)
    built(embedder, stage.optimizer)  # freezes what it does not move
    arithmetic = counter(embedder)
    cast(embedder, stage.precision)
    fixed = stage.chunk_tokens if stage.chunk_tokens != "auto" else 0
    with stage.loader(embedder, where, 1 << 40) as loader:
        first = first_filled(loader.plan, loader.names, 0, stage.steps, stage.name, ranks)
        loader.budget = max(fixed or CAP.get(embedder.device.type, CAP["cpu"]), max(c.tokens for c in first.costs))
        cut = chunks.plan(first.costs, loader.budget, ranks, stage=stage.name)
        more = choose(stage.steps - 1, min(_STEPS, _ROWS // stage.batch), stage.seed, "estimates")
        tokens = [first.tokens, *(loader.plan(1 + step).tokens for step in more if 1 + step != first.step)]
        flops = _flops(loader, first.step, arithmetic) if arithmetic is not None else 0.0
        streams = _streams(loader, stage)
    about = "about " if len(tokens) < stage.steps else ""
    return {
        **streams,
        "tokens": f"{about}{sum(tokens) / len(tokens) * stage.steps:,.0f}",
        "tokens a step": f"{about}{ranging(tokens)}, counted in {len(tokens)}",
        "longest item": f"{max(c.tokens for c in first.costs):,} tokens, of the first step",
        "chunks a step": _chunks(cut, loader.budget, not fixed),
        **_state(stage, embedder, ranks),
        **_kept(embedder, first, cut, flops),
    }


def _streams(loader: Loader[Inputs], stage: Stage) -> dict[str, str]:
    """What is drawn from each source in the whole stage, and how often that goes through it."""
    drawn, epochs = loader.order.drawn(stage.steps), loader.order.epochs(stage.steps)
    each = sum(drawn) / stage.steps
    named = [f"{n} {d:,} ({e:.2f} epochs)" for n, d, e in zip(loader.names, drawn, epochs, strict=True)]
    rows = f"{sum(drawn):,} in {stage.steps:,} steps of {'about ' if each % 1 else ''}{each:,.0f}"
    found = {"rows": rows, "sources": "; ".join(named)}
    if stage.mix.adaptive is not None:
        found["sources"] += f"; by the weights: shares adapt every {stage.mix.adaptive.every} steps"
    if any(f.draw == "all" and f.patterns for f in stage.feeds):
        found["rows"] += "; a row counts once for every pattern that it can form, beyond these"
    lacking = {n: k for n, k in loader.without.items() if k}
    if lacking:
        found["without a pattern"] = "; ".join(f"{n} {k:,} rows" for n, k in lacking.items())
    return found


def _flops(loader: Loader[Inputs], step: int, arithmetic: Callable[[Inputs], float]) -> float:
    """Of a step, from a few of its chunks, which are sorted: evenly spaced ones, by their tokens."""
    first = loader.plan(step)
    some = sorted({i * (len(first.chunks) - 1) // 3 for i in range(4)})
    counted = sum(first.chunks[i].tokens for i in some)
    return sum(arithmetic(loader.again(first, i)) for i in some) / counted * first.tokens


def _chunks(cut: Sequence[Sequence[Chunk]], budget: int, auto: bool) -> str:
    each = [sum(c.tokens for c in of_rank) for of_rank in cut]
    ranks = f" a rank, {ranging(each)} tokens each" if len(cut) > 1 else ""
    return f"{len(cut[0]):,}{ranks}, of {budget:,} tokens" + (" or fewer: measured at the start" if auto else "")


def _state(stage: Stage, embedder: Embedder, ranks: int) -> dict[str, str]:
    """What stays in memory whatever the batch."""
    trained = sum(p.numel() for p in embedder.parameters() if p.requires_grad)
    frozen = sum(p.nbytes for p in embedder.parameters() if not p.requires_grad)
    has = held(trained, frozen, stage.precision, stage.zero, ranks)
    zero = stage.zero.used if stage.zero is not None else 0
    chunkwise = stage.zero is not None and zero >= 2 and stage.zero.reduce == "chunk"
    each = " a rank" if ranks > 1 else ""
    host = f", and {spoken(has.on_host)} of the host's" if has.on_host else ""
    until = "reduced once a chunk" if chunkwise else "whole on each until the step's end"
    return {
        "trained": f"{trained:,} parameters",
        "weights": spoken(has.weights) + each,
        "gradient": f"{spoken(has.gradient)}{each}" + (f", {until}" if ranks > 1 else ""),
        "moments": f"{spoken(has.moments)}{each}" + (f", by ZeRO {zero}" if zero else ""),
        "together": f"{spoken(has.on_device)}{each} before any row{host}",
    }


def _kept(embedder: Embedder, first: Plan, cut: Sequence[Sequence[Chunk]], flops: float) -> dict[str, str]:
    """What the first step adds."""
    width = embedder.settings.projection or embedder.width
    found = {"vectors": f"{spoken(len(first.costs) * width * 4)} a step" + (", on every rank" if len(cut) > 1 else "")}
    layers, size = _blocks(embedder)
    most = max(sum(c.tokens for c in of_rank) for of_rank in cut)
    if layers:
        each = " a rank" if len(cut) > 1 else ""
        found["boundaries"] = f"{spoken(most * layers * size)}{each}, if those of all {layers} blocks are kept"
    if flops:
        unit, one = next(
            (u, s) for u, s in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)) if flops >= s or s == 1e9
        )
        found["arithmetic"] = f"about {flops / one:,.2f} {unit} a step, forward and backward"
    return found


def _blocks(embedder: Embedder) -> tuple[int, int]:
    """The language model's blocks, and the bytes that each is given per token; none where its configuration is not
    there to say so."""
    model: Any = embedder.base.model
    if not hasattr(model, "config"):
        return 0, 0
    config = model.config.get_text_config()
    return int(config.num_hidden_layers), int(config.hidden_size) * model.get_input_embeddings().weight.element_size()
