"""The verb merge: several models into one. Everything heavy is imported inside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.types import DataError
from .app import app, say
from .help import Verb
from .words import closest

if TYPE_CHECKING:
    from ..model.merge.types import Rule

RULES = ("average", "weighted", "slerp", "task_arithmetic", "ties", "dare", "fisher", "ema", "delta_guided")
# The options that a rule takes, beside --base, --dtype and --adapter-rank.
TAKES = {
    "average": (),
    "weighted": ("weight",),
    "slerp": ("t", "over"),
    "task_arithmetic": ("weight",),
    "ties": ("weight", "density", "scale", "over"),
    "dare": ("weight", "drop", "seed"),
    "fisher": ("weight", "fisher"),
    "ema": ("decay",),
    "delta_guided": ("power",),
}


@app.command(cls=Verb)
def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of the merged model; it must not exist.")],
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Two or more folders or hub names, of one architecture.")
    ],
    rule: Annotated[str, typer.Option("--rule", metavar="RULE", help=f"One of {', '.join(RULES)}.")] = "average",
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="What all began from. By default the adapters' own base."),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", metavar="W", help="Of each model, in order, or one for all. May be repeated."),
    ] = None,
    t: Annotated[
        float | None, typer.Option("--t", metavar="T", help="slerp: from 0, the first model, to 1. Default: 0.5.")
    ] = None,
    over: Annotated[
        str | None,
        typer.Option("--over", metavar="SCOPE", help="slerp, ties: an angle or share of each tensor, or of the model."),
    ] = None,
    density: Annotated[
        float | None, typer.Option("--density", metavar="P", help="ties: the share that is kept. Default: 0.2.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option("--scale", metavar="S", help="ties: of the merged difference. Default: 1.")
    ] = None,
    drop: Annotated[
        float | None, typer.Option("--drop", metavar="P", help="dare: the share that is dropped. Default: 0.5.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="dare: of what is dropped.")] = None,
    decay: Annotated[
        float | None, typer.Option("--decay", metavar="D", help="ema: of checkpoints, oldest first. Default: 0.5.")
    ] = None,
    power: Annotated[
        float | None, typer.Option("--power", metavar="P", help="delta_guided: of the norms. Default: 1.")
    ] = None,
    fisher: Annotated[
        list[str] | None,
        typer.Option("--fisher", metavar="FILE", help="fisher: tensors of each model, in order. Repeat it."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="KIND", help="float32, bfloat16 or float16. By default the first model's."),
    ] = None,
    adapter_rank: Annotated[
        int, typer.Option("--adapter-rank", metavar="R", min=0, help="Keep adapters an adapter of this rank. 0: dense.")
    ] = 0,
    block_mb: Annotated[int, typer.Option("--block-mb", metavar="MB", min=1, help="Of each model in memory.")] = 64,
) -> None:
    """Merge models into one, block by block: any size fits. Adapters count as products, never factor by factor.

        omni2vec merge merged runs/a/train runs/b/train
        omni2vec merge merged stage1 stage2 --rule slerp --t 0.5 --base org/base
        omni2vec merge merged a b c --rule ties --density 0.2 --base org/base
        omni2vec merge merged lora_a lora_b --adapter-rank 32

    Config, tokenizer and settings are the first model's. A greedy soup, Fisher tensors and learned positions need data:
    they are rules of the Merge step of a recipe, in docs/merging.md, which also says which rule is for what.
    """
    given = {
        "weight": tuple(weight or ()), "t": t, "over": over, "density": density, "scale": scale, "drop": drop,
        "seed": seed, "decay": decay, "power": power, "fisher": tuple(fisher or ()),
    }  # fmt: skip
    chosen = rule_of(rule, {k: v for k, v in given.items() if v not in (None, ())})
    if out.exists():
        raise DataError(f"{out}: exists already; give the name of a folder that does not")
    from ..model.merge.merge import dtype_of
    from ..model.merge.merge import merge as write

    found = write(out, models, chosen, base=base, dtype=dtype_of(dtype), rank=adapter_rank, block_bytes=block_mb << 20)
    if "lost_norm" in found:
        most = found["lost_most"]
        where = f"most in {most['tensor']} ({most['lost_norm']:.2%})"
        say(f"rank {adapter_rank} loses {found['lost_norm']:.2%} of the norm, {where}")
    for line in found["told"]:
        say(f"note: {line}")
    say(f"{len(models)} models by {rule}: {out}. Score it: omni2vec eval {out} SHARDS")


def rule_of(name: str, given: dict[str, object]) -> Rule:
    """The rule of that name with the options that were given. Raises DataError on an unknown rule, and on an option
    that it does not take: it would be without effect, in silence."""
    if name not in TAKES:
        raise DataError(f"--rule {name}: no such rule.{closest(name, RULES)} They are {', '.join(RULES)}")
    if wrong := [k for k in given if k not in TAKES[name]]:
        takes = ", ".join(f"--{k}" for k in TAKES[name]) or "no option of its own"
        raise DataError(f"--{wrong[0]} says nothing to {name}, which takes {takes}")
    needed = {"weighted": "weight", "fisher": "fisher"}.get(name)
    if needed and needed not in given:
        raise DataError(f"--rule {name} needs --{needed}, once for each model")
    names = {"weight": {"task_arithmetic": "scales", "dare": "scales"}.get(name, "weights"), "fisher": "tensors"}
    return _maker(name)(**{names.get(k, k): v for k, v in given.items()})


def _maker(name: str) -> Callable[..., Rule]:
    from importlib import import_module

    from ..model.merge.average import Weighted

    if name == "weighted":
        return Weighted
    module = import_module(f"..model.merge.{name}", __package__)
    kind: Callable[..., Rule] = getattr(module, "".join(w.capitalize() for w in name.split("_")))
    return kind
