"""The `omni2vec` command: its verbs, what each says of itself, and how errors look.

Everything heavy is imported inside its verb, so that `omni2vec --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from .. import __version__
from ..data.types import DataError

app = typer.Typer(
    name="omni2vec",
    help="Turn any vision-language model into an omni-modal embedder.",
    no_args_is_help=True,
    rich_markup_mode="rich",
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


@app.command()
def plan(recipe: RecipeFile, words: Words = None, into: Into = None) -> None:
    """Say what a run would do: order, what is done, what it will cost. Makes nothing.

    [bold]omni2vec plan recipes/quickstart.py[/]

    [bold]omni2vec plan recipes/quickstart.py steps=500 train.optimizer.lr=5e-4[/]
    """
    from .load import load
    from .plan import plan as tables

    loaded = load(recipe, words or [])
    Console().print(tables(loaded, into or Path("runs") / loaded.name))


@app.command()
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
) -> None:
    """Make every step of a recipe that is not done yet. After an interrupt or a kill, the same command goes on.

    [bold]omni2vec run recipes/quickstart.py[/]

    [bold]omni2vec run recipes/real_mini.py data=../data --into runs/mine[/]

    [bold]omni2vec run recipes/quickstart.py train.optimizer.lr=5e-4 --redo train[/]
    """
    _run(recipe, words or [], into, redo or [])


def _run(recipe: Path, words: list[str], into: Path | None, redo: list[str]) -> None:
    from .load import load
    from .run import run as make

    loaded = load(recipe, words)
    at = into or Path("runs") / loaded.name
    signal.signal(signal.SIGTERM, _terminated)  # a cluster's notice is answered like Ctrl-C
    try:
        folder = make(loaded, at, redo, _say)
    except KeyboardInterrupt:
        _say(f"\nStopped. What is done stays in {at}; the same command goes on from there.")
        raise SystemExit(130) from None
    for page in sorted(p for s in loaded.steps for p in folder(s).glob("*.html")):
        _say(f"report: {page}")


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    """One line, never wrapped: it may hold a path that someone will copy."""
    Console(highlight=False).print(Text(line), soft_wrap=True)


@app.command()
def quickstart(words: Words = None, into: Into = None) -> None:
    """Train a small embedder on the built-in world, score it and release it, in a few minutes on two cores.

    [bold]omni2vec quickstart[/]

    It is recipes/quickstart.py: copy that file to begin a recipe of your own.
    """
    _run(Path(__file__).resolve().parent.parent / "recipes" / "quickstart.py", words or [], into, [])


@app.command()
def show(
    target: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE [NAME=VALUE]... | SHARDS...", help="A recipe, or shards and folders of shards."),
    ],
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="T", help="Batch T of a stage, as the model will see it.")
    ] = None,
    stage: Annotated[str, typer.Option("--stage", help="Which stage, where the recipe has several.")] = "",
    into: Into = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every sample of the shards; exit 1 on a fault.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", help="Rows to list.", metavar="N")] = 10,
) -> None:
    """Show a batch as the model will see it, the rows of shards, or every fault in them.

    [bold]omni2vec show recipes/quickstart.py --batch 3[/]

    [bold]omni2vec show runs/quickstart/world --limit 5[/]

    [bold]omni2vec show --verify runs/quickstart/world[/]
    """
    from . import show as view

    console = Console()
    if Path(target[0]).suffix in (".py", ".json"):
        from .load import load

        loaded = load(Path(target[0]), target[1:])
        for part in view.batch(loaded, into or Path("runs") / loaded.name, batch or 0, stage):
            console.print(part)
        return
    if batch is not None or stage:
        raise DataError(f"{target[0]}: --batch and --stage go with a recipe (a .py file or a record.json).")
    paths = view.tars([Path(t) for t in target])
    raise SystemExit(view.verify(paths, console) if verify else view.rows(paths, limit, console))


@app.command()
def doctor() -> None:
    """Check this machine: Python, torch and its pair, extras, GPU, compiler, disk. Says what to do for each fault.

    [bold]omni2vec doctor[/]
    """
    from .doctor import examine, table

    findings = examine()
    Console().print(table(findings))
    if any(f.grade == "blocker" for f in findings):
        raise SystemExit(1)


def main() -> NoReturn:
    """The console script. Bad input is one panel and exit 2; OMNI2VEC_TRACEBACK=1 shows where it was raised."""
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


def _complain(message: str) -> None:
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        console.print(Panel(Text(message), title="omni2vec", title_align="left", border_style="red"))
    else:
        console.print(Text(f"error: {message}"), soft_wrap=True)
