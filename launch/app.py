"""The `omni2vec` program itself, what its verbs' arguments have in common, and how it says a line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from .. import __version__
from .help import Verbs

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


def say(line: str) -> None:
    """One line, never wrapped: it may hold a path that someone will copy."""
    Console(highlight=False).print(Text(line), soft_wrap=True)
