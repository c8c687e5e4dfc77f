"""The verb `mine`: hard negatives for the rows of a folder of shards, without writing a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..data.types import DataError, Source, Step, digest
from .app import Model, app, say
from .help import Verb
from .words import closest, parse

if TYPE_CHECKING:
    from ..train.mine import Mine
    from ..train.rules import AnyRule
    from ..train.samples import Sample

Empty = Literal["keep", "drop", "raise"]
ASKED = ".asked"  # in the folder while it is made: what was asked for


@app.command(cls=Verb)
def mine(
    model: Model,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder of shards, or JSON lines of whole rows.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of the new shards.")],
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", metavar="NAME=VALUE", help="Which candidates may stay. May be repeated: in order."),
    ] = None,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="Negatives a row, at most.")] = 7,
    among: Annotated[int, typer.Option("--among", metavar="K", min=1, help="Of the K nearest documents.")] = 200,
    candidates: Annotated[
        Path | None,
        typer.Option("--candidates", metavar="DATA", help="Whose documents to take. By default the rows' own."),
    ] = None,
    sample: Annotated[
        str, typer.Option("--sample", metavar="HOW", help="hardest, random, or every=5: the 1st, 6th, 11th, ...")
    ] = "hardest",
    words: Annotated[
        bool, typer.Option("--words", help="Rank by words in common too (BM25), fused with the vectors.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="The old negatives stay, in front of the new ones.")] = False,
    empty: Annotated[
        str, typer.Option("--empty", metavar="keep|drop|raise", help="Rows that no candidate is left for.")
    ] = "keep",
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy media into the new shards, in place of referring to the old ones.")
    ] = False,
    instruction: Annotated[
        str | None, typer.Option("--instruction", metavar="TEXT", help="For queries, in place of the rows' own.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of what is drawn, and of the page's rows.")] = 0,
) -> None:
    r"""Find hard negatives, wrong answers that a model puts near the query: new shards, and a page to judge them by.

    omni2vec mine runs/quickstart/release shards/mugs shards/mugs_hard
    omni2vec mine MODEL shards/faq shards/faq_hard \
        --rule percent-of-positive=0.95 --rule rank-range=2:100 --count 5

    Rules: rank-range=50:100, percent-of-positive=0.95, below=0.7, above=0, margin-to-mean=0.1, consistent=50,
    positive-above=0.3. docs/mining.md says what each is for, and how a recipe asks a judge. Killed, the same command
    goes on.
    """
    from ..train.mine import Mine
    from ..train.words import Fused

    step = Mine(
        "mine",
        model,
        _source(data),
        _source(candidates) if candidates else None,
        rules=tuple(_rule(word) for word in rule or ()),
        count=count,
        among=among,
        fused=Fused() if words else None,
        sample=_sample(sample),
        keep=keep,
        empty=parse(empty, Empty, "--empty"),
        media="copy" if copy else "refer",
        instruction=instruction,
        seed=seed,
    )
    made(step, out)


def made(step: Mine, out: Path) -> None:
    """Makes the step into `out`, aside and renamed; goes on where an equal command was stopped."""
    import json
    import shutil

    from .run import FINDINGS

    if out.exists():
        raise DataError(f"{out}: exists already; give a new folder.")
    aside = out.with_name(f"{out.name}.partial")
    asked = _asked(step)
    if aside.exists() and not ((aside / ASKED).is_file() and (aside / ASKED).read_text() == asked):
        say(f"{aside}: of another command; begins anew")
        shutil.rmtree(aside)
    aside.mkdir(parents=True, exist_ok=True)
    (aside / ASKED).write_text(asked)
    try:
        step.make(aside, _no_steps)
    except (FileNotFoundError, ValueError) as error:
        raise error if isinstance(error, DataError) else DataError(str(error)) from error
    for name in (ASKED, *FINDINGS):
        (aside / name).unlink(missing_ok=True)
    aside.rename(out)
    told = json.loads((out / "report.json").read_text())
    say(f"{told['negatives']:,} negatives in {told['rows_written']:,} of {told['rows']:,} rows: {out}")
    say(f"Are they wrong? {out / 'mined.html'}")


def _asked(step: Mine) -> str:
    from ..model.encoder import digest_of

    read = [s.open(_no_steps).digest for s in (step.source, step.candidates) if s is not None]
    return digest(repr(step), digest_of(str(step.model)), *read)


def _source(path: Path) -> Source:
    from ..data.sources import Shards, Table
    from .embed import TABLES

    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Shards are made by `omni2vec pack`.")
    return Table(str(path)) if path.suffix.lower() in TABLES else Shards(str(path))


def _rule(word: str) -> AnyRule:
    """rank-range=50:100 as RankRange(50, 100): a class of train/rules.py, its values in order."""
    from dataclasses import fields

    from ..train import rules
    from .words import hints

    known: dict[str, Any] = {
        "rank-range": rules.RankRange,
        "percent-of-positive": rules.PercentOfPositive,
        "below": rules.Below,
        "above": rules.Above,
        "margin-to-mean": rules.MarginToMean,
        "consistent": rules.Consistent,
        "positive-above": rules.PositiveAbove,
    }
    name, _, given = word.partition("=")
    if name not in known:
        raise DataError(f"--rule {word}: no such rule.{closest(name, known)} There are {', '.join(known)}.")
    kind, values = known[name], [v for v in given.split(":") if v]
    names = [f.name for f in fields(kind)]
    if len(values) > len(names):
        raise DataError(f"--rule {word}: {len(values)} values; expected {name}={':'.join(n.upper() for n in names)}.")
    typed = hints(kind)
    try:
        made: AnyRule = kind(*(parse(v, typed[n], f"--rule {word}") for n, v in zip(names, values, strict=False)))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"--rule {word}: {error}.") from None
    return made


def _sample(word: str) -> Sample:
    from ..train.samples import Drawn, Every, Hardest

    name, _, given = word.partition("=")
    if name == "every":
        return Every(parse(given or "5", int, f"--sample {word}"))
    plain: dict[str, Sample] = {"hardest": Hardest(), "random": Drawn()}
    if word not in plain:
        raise DataError(f"--sample {word}: expected hardest, random or every=5.")
    return plain[word]


def _no_steps(step: Step) -> Path:
    raise DataError(f"step '{step.name}' has no folder outside a run.")
