"""The verbs of runs: quickstart, plan, run, launch, show, doctor. Everything heavy is imported inside its verb."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..data.types import DataError
from .app import Into, RecipeFile, Words, app, say
from .help import Verb


@app.command(cls=Verb)
def quickstart(words: Words = None, into: Into = None) -> None:
    """Train a small embedder on the built-in world, score it and release it, in a few minutes on two cores.

        omni2vec quickstart

    It is recipes/quickstart.py: copy that file to begin a recipe of your own.
    """
    from .command import Run

    recipe = Path(__file__).resolve().parent.parent / "recipes" / "quickstart.py"
    Run(recipe, tuple(words or ()), into, ranks=1).go(say)  # it is too small to share


@app.command(cls=Verb)
def plan(
    recipe: RecipeFile,
    words: Words = None,
    into: Into = None,
    ranks: Annotated[
        int, typer.Option("--ranks", metavar="N", min=1, help="The cost for each of N ranks of a step that trains.")
    ] = 1,
) -> None:
    """Say what a run would do: order, what is done, what it will cost. Makes nothing.

    omni2vec plan recipes/quickstart.py
    omni2vec plan recipes/quickstart.py steps=500 train.optimizer.lr=5e-4
    omni2vec plan my_recipe.py --ranks 8

    Exit status 2: a step would fail, and an "error:" below it says why.
    """
    from .load import load
    from .plan import plan as tables

    loaded = load(recipe, words or [])
    shown = tables(loaded, into or Path("runs") / loaded.name, ranks)
    Console().print(shown)
    if shown.failing:
        raise SystemExit(2)


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

    Run(recipe, tuple(words or ()), into, tuple(redo or ()), only, ranks, restarts).go(say)


@app.command(cls=Verb)
def launch(
    recipe: RecipeFile,
    words: Words = None,
    into: Into = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write a batch script for every step.")] = False,
    submit: Annotated[bool, typer.Option("--submit", help="Submit them, each behind those it stands on.")] = False,
    hostfile: Annotated[
        Path | None, typer.Option("--hostfile", metavar="FILE", help="Print deepspeed's line for these hosts.")
    ] = None,
    torchrun: Annotated[bool, typer.Option("--torchrun", help="Print torchrun's line.")] = False,
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="Hosts of a step that trains.")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", metavar="N", min=1, help="GPUs, and ranks, of a host.")] = 8,
    cpus: Annotated[int, typer.Option("--cpus", metavar="N", min=1, help="Processors for each GPU.")] = 8,
    time: Annotated[str, typer.Option("--time", metavar="H:MM:SS", help="Of a job; a stage saves and queues.")] = "",
    partition: Annotated[str, typer.Option("--partition", metavar="NAME", help="Slurm's.")] = "",
    account: Annotated[str, typer.Option("--account", metavar="NAME", help="Slurm's.")] = "",
    chain: Annotated[bool, typer.Option("--chain", help="A job for every step, no job arrays.")] = False,
    sbatch: Annotated[
        list[str] | None, typer.Option("--sbatch", metavar="OPTION", help="A further option of sbatch, as it is.")
    ] = None,
) -> None:
    """Write what starts a recipe on a cluster: Slurm jobs, or a line for deepspeed or torchrun. Trains nothing.

    omni2vec launch my_recipe.py --slurm --nodes 8 --time 12:00:00 --submit
    omni2vec launch my_recipe.py --hostfile hosts.txt
    omni2vec launch my_recipe.py --torchrun --nodes 8
    """
    from . import hosts
    from .load import load

    if slurm + torchrun + (hostfile is not None) != 1:
        raise DataError("launch: with what? Give --slurm, --hostfile FILE or --torchrun, one of them.")
    if submit and not slurm:
        raise DataError("launch --submit: only jobs of Slurm are submitted; add --slurm, or leave --submit out.")
    loaded = load(recipe, words or [])
    at = into or Path("runs") / loaded.name
    said = [str(recipe), *(words or []), "--into", str(at)]
    lines: list[str] = []
    if slurm:
        asked = hosts.Slurm(nodes, gpus, cpus, time, partition, account, not chain, tuple(sbatch or ()))
        made = hosts.write(loaded, at, asked, (*hosts.program(), *said))
        lines = [f"{k}: job {v}" for k, v in hosts.submit(made).items()] if submit else hosts.lines(made)
    elif hosts.left(loaded, at):
        if hostfile is not None:
            lines = [hosts.deepspeed(hostfile, said)]
        else:
            lines = ["# set FIRST_HOST to the first node's name"] * (nodes > 1)
            lines += [hosts.torchrun(said, nodes, gpus, loaded.name)]
    for line in lines or [f"{at}: nothing is left to make"]:
        say(line)


@app.command(cls=Verb)
def show(
    target: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE [NAME=VALUE]... | RUN | SHARDS...",
            help="A recipe, the folder of a run or stage, or shards and folders of shards.",
        ),
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
    follow: Annotated[bool, typer.Option("--follow", help="Of a run: go on showing until it ends.")] = False,
) -> None:
    """Show a batch as the model will see it, how a run goes, the rows of shards, or every fault in them.

    omni2vec show recipes/quickstart.py --batch 3
    omni2vec show runs/quickstart --follow
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
    if batch is not None:
        raise DataError(f"{target[0]}: --batch goes with a recipe (a .py file or a record.json).")
    from .logs import is_run

    if follow or stage or (len(target) == 1 and not verify and is_run(Path(target[0]))):
        from .progress import show as progress

        return progress(Path(target[0]), console, stage=stage, follow=follow)
    paths = view.tars([Path(t) for t in target])
    raise SystemExit(view.verify(paths, console) if verify else view.rows(paths, limit, console))


@app.command(cls=Verb)
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE]", help="Compare what the ranks see of this recipe, too.")
    ] = None,
    words: Words = None,
    ranks: Annotated[
        int, typer.Option("--ranks", metavar="N", min=0, help="Start N ranks here, and compare them.")
    ] = 0,
    into: Into = None,
) -> None:
    """Check this machine, or all ranks: versions, GPU, compiler, disk; recipe, data, clocks, speed of the links.

    omni2vec doctor
    omni2vec doctor my_recipe.py --ranks 8
    srun omni2vec doctor my_recipe.py

    Under torchrun, deepspeed or srun, the ranks are theirs. Says what to do for each fault.
    """
    from .doctor import examine, table
    from .place import outside

    findings, status = [], 0
    if place := outside(os.environ):
        from .doctor_ranks import Question, ask, board_of

        findings = ask(Question(recipe, tuple(words or ()), into), place, board_of(place))
    elif ranks > 1:
        from .doctor_ranks import Question, examine_here

        status = examine_here(Question(recipe, tuple(words or ()), into), ranks, say)
    elif recipe is not None:
        raise DataError(f"doctor {recipe}: a recipe is compared between ranks; give --ranks N, or start it by srun.")
    else:
        findings = examine()
    if findings:
        Console().print(table(findings))
    if status or any(f.grade == "blocker" for f in findings):
        raise SystemExit(1)
