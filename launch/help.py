"""How `--help` looks: usage, what it does, examples, then arguments and options with their defaults, in 80 columns.

Written here because a help page that teaches needs its examples whole and no column of Python types.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup


class Verb(TyperCommand):
    """One verb. A paragraph of its docstring that begins with `omni2vec` holds examples, one a line."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        arguments = [p for p in self.params if p.param_type_name == "argument"]
        options = [p for p in self.params if p.param_type_name == "option" and p.name != "help"]
        usage = " ".join(
            ["omni2vec", str(self.name), *(str(a.metavar) for a in arguments), "[OPTIONS]" if options else ""]
        )
        parts = [
            *_head(usage, self.help or ""),
            *_block("Arguments", _rows(arguments)),
            *_block("Options", _rows(options)),
        ]
        Console().print(Group(*parts))


class Verbs(TyperGroup):
    """The program itself: its verbs in the order in which a newcomer meets them."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        commands = ((name, (self.commands[name].help or "").partition("\n\n")[0]) for name in self.list_commands(ctx))
        parts = [
            *_head("omni2vec VERB ...", self.help or ""),
            *_block("Verbs", ((n, " ".join(h.split())) for n, h in commands)),
        ]
        tail = "omni2vec VERB --help says more. --version prints the version."
        Console().print(Group(*parts, Text(tail), Text()))

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


def _head(usage: str, text: str) -> Iterator[RenderableType]:
    yield Text(f"\nUsage: {usage.strip()}\n", style="bold")
    for paragraph in text.strip("\n").split("\n\n"):
        if paragraph.lstrip().startswith("omni2vec "):
            yield Text(textwrap.indent(textwrap.dedent(paragraph), "  ") + "\n", style="cyan")
        else:
            yield Text(" ".join(paragraph.split()) + "\n")


def _rows(parameters: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for p in parameters:
        name = p.metavar if p.param_type_name == "argument" else " ".join([p.opts[0], p.metavar or ""]).strip()
        silent = p.default in (None, "", False) or p.required or callable(p.default)
        yield name, (p.help or "") + ("" if silent else f" Default: {p.default}.")


def _block(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[RenderableType]:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for name, text in rows:
        table.add_row(Text(name, style="bold"), Text(text))
    if table.row_count:
        yield Text(title, style="bold")
        yield Padding(table, (0, 0, 1, 2))
