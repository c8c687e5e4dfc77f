"""The verbs of data and models: pack, embed, eval, export, push. Everything heavy is imported inside its verb."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..data.types import Side
from .app import Model, app, say
from .help import Verb


@app.command(cls=Verb)
def pack(
    table: Annotated[
        Path,
        typer.Argument(metavar="TABLE", help="JSON lines, CSV or Parquet, or a folder of them; with --set, its files."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of the shards.")],
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", metavar="FIELD=SPEC", help="What fills a field: query, positives, label, ... May be repeated."
        ),
    ] = None,
    media: Annotated[
        Path | None,
        typer.Option("--media", metavar="DIR", help="What media paths are relative to. By default the table's folder."),
    ] = None,
    task: Annotated[
        str, typer.Option("--task", metavar="KIND", help="Of rows that do not say so themselves.")
    ] = "retrieval",
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="The source's name. By default the table's.")
    ] = "",
    known: Annotated[
        str, typer.Option("--set", metavar="NAME", help="Convert the files of this set: banking, emoji, ...")
    ] = "",
    max_mb: Annotated[int, typer.Option("--max-mb", metavar="MB", min=1, help="Size of a shard.")] = 256,
) -> None:
    r"""Turn a table and its media into shards, which training and scoring read.

    omni2vec pack mugs.csv shards/mugs \
        --column query=text:title --column positives=image:photo
    omni2vec pack rows.jsonl shards/mine --media photos
    omni2vec pack banking/ shards/banking --set banking

    A spec is KIND:COLUMN (text, image, video, audio), joined by ' + ' for one item of several parts, by ' | ' for
    several items. JSON lines of whole rows, as docs/shards.md has them, need no --column. docs/your_data.md says more.
    """
    from . import pack as packing

    if known:
        made = packing.known_set(known, table, out)
    else:
        made = packing.table(table, out, column or [], media, task, name, max_mb << 20)
    kilobytes = sum(path.stat().st_size for path in made) / 1e3
    size = f"{kilobytes:,.0f} kB" if kilobytes < 1e4 else f"{kilobytes / 1e3:,.0f} MB"
    say(f"{len(made)} shard{'s' * (len(made) > 1)}, {size}: {out}. Look at them: omni2vec show {out}")


@app.command(cls=Verb)
def embed(
    model: Model,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUTS...", help="Texts, media files, JSON lines, shards or folders of shards, mixed."),
    ],
    out: Annotated[Path, typer.Option("--out", help="The vectors; ids go beside them.", metavar="FILE")] = Path(
        "vectors.safetensors"
    ),
    instruction: Annotated[
        str, typer.Option("--instruction", metavar="TEXT", help="What the vectors are for, in words.")
    ] = "",
    side: Annotated[
        str, typer.Option("--side", metavar="query|target", help="As queries, or as the targets that queries find.")
    ] = "query",
) -> None:
    """Write the vectors of texts, pictures, clips and sounds to a safetensors file, and their ids beside it.

        omni2vec embed runs/quickstart/release "a red circle" photo.jpg
        omni2vec embed MODEL catalogue.jsonl --side target --out catalogue.safetensors

    A line of a JSON-lines file is {"id": "7", "text": "a mug", "image": "mugs/7.jpg"}; its paths are relative to it.
    """
    from .embed import embed as write
    from .words import parse

    rows, size = write(model, inputs, out, instruction, parse(side, Side, "--side"))
    say(f"{rows:,} vectors of {size} components: {out}, ids: {out.with_suffix('.ids.jsonl')}")


@app.command(name="eval", cls=Verb)
def evaluate(
    model: Model,
    shards: Annotated[
        list[str], typer.Argument(metavar="SHARDS...", help="Shards, folders of them, or JSON lines of whole rows.")
    ],
    baseline: Annotated[
        list[str] | None,
        typer.Option("--baseline", metavar="MODEL", help="A model to compare with, in pairs. May be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Keep report.json, report.html and every rank here.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", help="At most N rows of each task.")] = None,
) -> None:
    """Score a model on any shards that declare their task, beside its base if you name one.

    omni2vec eval runs/mine/release my_shards/test
    omni2vec eval MODEL my_shards/test --baseline org/base-model --out scores
    """
    from .scorable import scorable
    from .score import score

    score(model, scorable(shards), baseline or [], out, limit)
    if out is not None:
        say(f"report: {out / 'report.html'}")


@app.command(cls=Verb)
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder: runs/NAME.")],
    stage: Annotated[str, typer.Argument(metavar="[STAGE]", help="Which stage, where several have checkpoints.")] = "",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The embedder's folder.")] = Path("exported"),
    checkpoint: Annotated[
        int | None, typer.Option("--checkpoint", metavar="N", help="After N updates. By default the newest.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="The recipe, where it defines steps of its own.")
    ] = None,
) -> None:
    """Make an embedder's folder of any checkpoint of a run, of any number of ranks: to look at it before its end.

    omni2vec export runs/mine --out peek
    omni2vec export runs/mine train --checkpoint 4000 --out at_4000
    """
    from .checkpoint import export as write

    folder, name = write(run, stage, checkpoint, out, recipe)
    say(f"{name} of {run}: {folder}. Score it: omni2vec eval {folder} SHARDS")


@app.command(cls=Verb)
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a release.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Its name on the hub: owner/name.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and send nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Overwrite files on the hub without asking.")] = False,
    public: Annotated[bool, typer.Option("--public", help="A repository that is made is public, not private.")] = False,
    message: Annotated[str, typer.Option("--message", metavar="TEXT", help="Of the commit.")] = "Release",
) -> None:
    """Send a release to the Hugging Face hub: shows every file first, and asks before it overwrites one.

    omni2vec push runs/mine/release me/my-embedder --dry-run
    omni2vec push runs/mine/release me/my-embedder

    Log in before, once: hf auth login. Nothing that is on the hub is deleted.
    """
    from .push import push as send

    ask = typer.confirm if sys.stdin.isatty() else None
    send(folder, repo, dry_run=dry_run, yes=yes, private=not public, message=message, say=say, ask=ask)
