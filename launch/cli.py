"""The `omni2vec` command: its verbs, what each says of itself, and how errors look.

Everything heavy is imported inside its verb, so that `omni2vec --help` answers at once.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from .. import __version__
from ..data.types import DataError, Side
from .help import Verb, Verbs

ABOUT = """Turn any vision-language model into an omni-modal embedder.

Begin with `omni2vec quickstart`. Then copy recipes/quickstart.py, `pack` data of your own, `plan`, `run` and `eval`.
"""

app = typer.Typer(
    name="omni2vec",
    help=ABOUT,
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RecipeFile = Annotated[
    Path, typer.Argument(help="A recipe's Python file, or the record.json of a run.", metavar="RECIPE")
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        help="setting=value for the recipe's settings, step.field=value for any field.", metavar="[NAME=VALUE]..."
    ),
]
Into = Annotated[Path | None, typer.Option("--into", help="The run's folder. By default runs/<recipe>.", metavar="DIR")]


Model = Annotated[
    str, typer.Argument(help="An embedder's folder, or its name on the Hugging Face hub.", metavar="MODEL")
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"omni2vec {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and stop.")
    ] = False,
) -> None:
    pass


@app.command(cls=Verb)
def quickstart(words: Words = None, into: Into = None) -> None:
    """Train a small embedder on the built-in world, score it and release it, in a few minutes on two cores.

        omni2vec quickstart

    It is recipes/quickstart.py: copy that file to begin a recipe of your own.
    """
    from .command import Run

    recipe = Path(__file__).resolve().parent.parent / "recipes" / "quickstart.py"
    Run(recipe, tuple(words or ()), into, ranks=1).go(_say)  # it is too small to share


@app.command(cls=Verb)
def plan(recipe: RecipeFile, words: Words = None, into: Into = None) -> None:
    """Say what a run would do: order, what is done, what it will cost. Makes nothing.

    omni2vec plan recipes/quickstart.py
    omni2vec plan recipes/quickstart.py steps=500 train.optimizer.lr=5e-4
    """
    from .load import load
    from .plan import plan as tables

    loaded = load(recipe, words or [])
    Console().print(tables(loaded, into or Path("runs") / loaded.name))


@app.command(cls=Verb)
def run(
    recipe: RecipeFile,
    words: Words = None,
    into: Into = None,
    redo: Annotated[
        list[str] | None,
        typer.Option(
            "--redo", metavar="STEP", help="Remove this step, and those that stand on it, and make them anew."
        ),
    ] = None,
    only: Annotated[
        str, typer.Option("--only", metavar="STEP", help="Make this step alone; what it stands on must be done.")
    ] = "",
    ranks: Annotated[
        int, typer.Option("--ranks", metavar="N", min=0, help="Processes of a step that trains. 0: one a GPU.")
    ] = 0,
    restarts: Annotated[
        int, typer.Option("--restarts", metavar="N", min=0, help="New tries after a crash, without a new checkpoint.")
    ] = 3,
) -> None:
    """Make every step of a recipe that is not done yet. After an interrupt or a kill, the same command goes on.

    omni2vec run recipes/quickstart.py
    omni2vec run recipes/real_mini.py data=../data --into runs/mine
    omni2vec run recipes/quickstart.py train.optimizer.lr=5e-4 --redo train
    omni2vec run my_recipe.py --ranks 8
    torchrun --nproc-per-node 8 -m omni2vec run my_recipe.py

    Under torchrun, deepspeed or srun, all processes make the recipe together: docs/launch.md. Exit status 75: stopped
    by the cluster; the same command goes on.
    """
    from .command import Run

    Run(recipe, tuple(words or ()), into, tuple(redo or ()), only, ranks, restarts).go(_say)


def _say(line: str) -> None:
    """One line, never wrapped: it may hold a path that someone will copy."""
    Console(highlight=False).print(Text(line), soft_wrap=True)


@app.command(cls=Verb)
def show(
    target: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE [NAME=VALUE]... | SHARDS...", help="A recipe, or shards and folders of shards."),
    ],
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="T", help="Batch T of a stage, as the model will see it.")
    ] = None,
    stage: Annotated[
        str, typer.Option("--stage", metavar="NAME", help="Which stage, where the recipe has several.")
    ] = "",
    into: Into = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every sample of the shards; exit 1 on a fault.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", help="Rows to list.", metavar="N")] = 10,
) -> None:
    """Show a batch as the model will see it, the rows of shards, or every fault in them.

    omni2vec show recipes/quickstart.py --batch 3
    omni2vec show runs/quickstart/world --limit 5
    omni2vec show --verify runs/quickstart/world
    """
    from . import show as view

    console = Console()
    if Path(target[0]).suffix in (".py", ".json"):
        from .load import load

        loaded = load(Path(target[0]), target[1:])
        for part in view.batch(loaded, into or Path("runs") / loaded.name, batch or 0, stage):
            console.print(view.hanging(part, console.width) if isinstance(part, str) else part)
        return
    if batch is not None or stage:
        raise DataError(f"{target[0]}: --batch and --stage go with a recipe (a .py file or a record.json).")
    paths = view.tars([Path(t) for t in target])
    raise SystemExit(view.verify(paths, console) if verify else view.rows(paths, limit, console))


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
    _say(f"{len(made)} shard{'s' * (len(made) > 1)}, {size}: {out}. Look at them: omni2vec show {out}")


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
    _say(f"{rows:,} vectors of {size} components: {out}, ids: {out.with_suffix('.ids.jsonl')}")


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
    from .score import score

    score(model, shards, baseline or [], out, limit)
    if out is not None:
        _say(f"report: {out / 'report.html'}")


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
    send(folder, repo, dry_run=dry_run, yes=yes, private=not public, message=message, say=_say, ask=ask)


@app.command(cls=Verb)
def doctor() -> None:
    """Check this machine: Python, torch and its pair, extras, GPU, compiler, disk. Says what to do for each fault.

    omni2vec doctor
    """
    from .doctor import examine, table

    findings = examine()
    Console().print(table(findings))
    if any(f.grade == "blocker" for f in findings):
        raise SystemExit(1)


def main() -> NoReturn:
    """The console script. Bad input is one panel and exit 2; OMNI2VEC_TRACEBACK=1 shows where it was raised."""
    _quiet()
    # deepspeed gives it to every program that it starts; LOCAL_RANK says the same.
    sys.argv[1:] = [word for word in sys.argv[1:] if not re.fullmatch(r"--local[-_]rank=\d+", word)]
    try:
        app()
    except (DataError, ImportError) as error:
        # An ImportError that names an extra is advice to the user; any other is a fault of ours.
        advice = isinstance(error, DataError) or "omni2vec[" in str(error)
        if os.environ.get("OMNI2VEC_TRACEBACK") == "1" or not advice:
            raise
        _complain(str(error))
        sys.exit(2)
    sys.exit(0)


def _quiet() -> None:
    """Before transformers is imported: what it says to programmers is not for the user of this command."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of loading weights, too: noise in a log
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _complain(message: str) -> None:
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        console.print(Panel(Text(message), title="omni2vec", title_align="left", border_style="red"))
    else:
        console.print(Text(f"error: {message}"), soft_wrap=True)
