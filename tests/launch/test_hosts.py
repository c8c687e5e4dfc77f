"""Jobs for Slurm, a hostfile for deepspeed, a line for torchrun; the scripts really run, on stand-ins for Slurm."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from omni2vec.data.types import DataError
from omni2vec.launch import hosts
from omni2vec.launch.cli import app
from omni2vec.launch.load import load
from omni2vec.launch.run import run
from omni2vec.launch.words import RecipeError
from typer.testing import CliRunner

from . import slurm

GROUP = Path(__file__).parent / "group_recipe.py"


EIGHT = hosts.Slurm()


def made(recipe, at, asked=EIGHT, words=()):
    return hosts.write(load(recipe, words), at, asked, (*hosts.program(), str(recipe), *words, "--into", str(at)))


def test_a_job_waits_for_the_jobs_of_the_steps_that_it_stands_on(toy, tmp_path):
    jobs = {job.name: (job.steps, job.after) for job, _ in made(toy, tmp_path)}
    assert jobs == {
        "01-numbers": (("numbers",), ()),
        "02-train": (("train", "again"), ("01-numbers",)),
        "03-report": (("report",), ("02-train",)),
    }


def test_a_chain_has_a_job_for_every_step(toy, tmp_path):
    jobs = {job.name: job.after for job, _ in made(toy, tmp_path, hosts.Slurm(array=False))}
    assert jobs == {
        "01-numbers": (),
        "02-train": ("01-numbers",),
        "03-again": ("01-numbers",),
        "04-report": ("02-train", "03-again"),
    }


def test_steps_that_are_done_get_no_job_and_lose_their_script(toy, tmp_path):
    made(toy, tmp_path)
    run(load(toy, []), tmp_path, only="numbers", say=lambda line: None)
    assert [(job.name, job.after) for job, _ in made(toy, tmp_path)] == [
        ("01-train", ()),
        ("02-report", ("01-train",)),
    ]
    assert sorted(p.name for p in (tmp_path / "jobs").iterdir()) == ["01-train.sh", "02-report.sh"]
    run(load(toy, []), tmp_path, say=lambda line: None)
    assert made(toy, tmp_path) == [] and not any((tmp_path / "jobs").iterdir())


def test_a_step_that_was_made_from_other_fields_is_refused(toy, tmp_path):
    run(load(toy, []), tmp_path, only="numbers", say=lambda line: None)
    with pytest.raises(RecipeError, match="numbers was made from other fields"):
        made(toy, tmp_path, words=("count=4",))
    assert not (tmp_path / "jobs").exists()


def test_a_job_comes_behind_what_each_step_of_it_waits_for(steps):
    first, last = steps.Numbers("one"), steps.Numbers("two")
    train = steps.Train(first)
    report = steps.Report((steps.Train(first, name="again"),))
    found = hosts.jobs((first, train, last, steps.Train(last, name="more"), steps.Train(first, name="again"), report))
    seen = set()
    for job in found:
        assert set(job.after) <= seen
        seen.add(job.name)
    assert [job.steps for job in found] == [("one", "two"), ("train", "more", "again"), ("report",)]


def test_a_script_is_good_bash_and_asks_for_a_rank_for_every_gpu(tmp_path):
    asked = hosts.Slurm(nodes=8, gpus=8, time="12:00:00", account="team", extra=("--constraint=h100",))
    (_, serial), (_, parallel) = made(GROUP, tmp_path, asked)
    for path in (serial, parallel):
        assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    lines = set(parallel.read_text().splitlines())
    assert {f"#SBATCH --{o}" for o in ("nodes=8", "ntasks-per-node=8", "gpus-per-node=8", "signal=USR1@180")} <= lines
    assert {
        "#SBATCH --requeue",
        "#SBATCH --time=12:00:00",
        "#SBATCH --account=team",
        "#SBATCH --constraint=h100",
    } <= lines
    assert {"#SBATCH --nodes=1", "#SBATCH --ntasks-per-node=1"} <= set(serial.read_text().splitlines())


def test_only_steps_that_go_on_are_told_to_stop_and_requeued(toy, tmp_path):
    numbers, train, report = (path.read_text() for _, path in made(toy, tmp_path))
    assert "USR1@180" in train and "scontrol requeue" in train
    for text in (numbers, report):
        assert "USR1" not in text and "scontrol" not in text
    assert "gpus-per-node" not in numbers  # it stands on nothing
    assert "#SBATCH --gpus-per-node=1" in train and "#SBATCH --gpus-per-node=1" in report


def test_paths_and_names_are_quoted_for_sbatch(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (_, path), *_ = made(toy, Path("my 100% run"))
    lines = path.read_text().splitlines()
    assert '#SBATCH --output="my 100%% run/jobs/01-numbers-%j.log"' in lines
    assert f'#SBATCH --chdir="{tmp_path}"' in lines
    assert '#SBATCH --job-name="omni2vec-my 100% run-01-numbers"' in lines
    with pytest.raises(RecipeError, match="quote"):
        made(toy, tmp_path / 'a "run"')


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("30", 1800),
        ("10:30", 630),
        ("12:00:00", 43_200),
        ("2-0", 172_800),
        ("1-12:30", 131_400),
        ("1-0:0:1", 86_401),
        ("", 0),
    ],
)
def test_a_time_is_read_as_sbatch_reads_it(time, seconds):
    assert hosts.Slurm(time=time).seconds() == seconds


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"time": "12h"}, "expected M, M:S"),
        ({"time": "1:2:3:4"}, "expected M, M:S"),
        ({"time": "1-"}, "expected M, M:S"),
        ({"partition": "a b"}, "partition='a b': there is a blank"),
        ({"account": "a\t"}, "there is a blank"),
        ({"gpus": 0}, "expected 1 or more"),
    ],
)
def test_what_sbatch_would_not_take_is_refused(given, told):
    with pytest.raises(RecipeError, match=told):
        hosts.Slurm(**given)


def test_a_job_too_short_to_save_in_is_refused(toy, tmp_path):
    with pytest.raises(RecipeError, match="train is told to save 3 minutes before the end; expected more than 5"):
        made(toy, tmp_path, hosts.Slurm(time="5"))
    made(toy, tmp_path, hosts.Slurm(time="5:01"))


@pytest.mark.parametrize(("resumes", "ends", "runs"), [(True, 75, 2), (True, 1, 1), (False, 75, 1)])
def test_only_an_orderly_stop_goes_back_into_the_queue(tmp_path, monkeypatch, resumes, ends, runs):
    for name, value in slurm.install(tmp_path).items():
        monkeypatch.setenv(name, value)
    task = tmp_path / "task.sh"  # its second run ends well
    task.write_text(f"[ -e {tmp_path}/once ] && exit 0; touch {tmp_path}/once; exit {ends}\n")
    job = hosts.Job("01-a", ("a",), False, resumes, False, ())
    (tmp_path / "01-a.sh").write_text(hosts.script(job, hosts.Slurm(), ("sh", str(task)), tmp_path))
    hosts.submit([(job, tmp_path / "01-a.sh")])
    statuses = (tmp_path / "sruns.txt").read_text().split()
    assert statuses == [str(ends), "0"][:runs]


def test_printed_lines_submit_in_order_with_the_ids_of_the_jobs_before(toy, tmp_path):
    first, second, third = hosts.lines(made(toy, tmp_path / "my run"))
    assert first == f"job1=$(sbatch --parsable {shlex.quote(str(tmp_path / 'my run/jobs/01-numbers.sh'))})"
    assert "--dependency=afterok:$job1 " in second and "--dependency=afterok:$job2 " in third


def test_submitted_jobs_train_on_two_tasks_and_a_stopped_one_is_requeued(tmp_path, monkeypatch):
    at = tmp_path / "run"
    for name, value in slurm.install(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "usr1").write_text(str(at / "add.partial" / "log.jsonl"))  # USR1 once the first step of it is done
    words = ("steps=12", "slow_s=0.2")
    ids = hosts.submit(made(GROUP, at, hosts.Slurm(gpus=2), words))
    assert ids == {"01-first": "101", "02-add": "102"}
    logs = "\n".join(p.read_text() for p in (at / "jobs").glob("*.log"))
    assert (tmp_path / "ends.txt").read_text() == "01-first 0 0\n02-add 0 0\n", logs
    monkeypatch.setattr(slurm, "FAKE", tmp_path)
    assert ["scontrol", "requeue", "1020"] in slurm.calls()
    assert (tmp_path / "sruns.txt").read_text().split() == ["0", "137", "0"]  # not 75: the stop left its file
    assert not list((at / "jobs").glob("*.requeue"))
    assert ["sbatch", "--parsable", "--dependency=afterok:101"] in [call[:3] for call in slurm.calls()]
    log = [json.loads(line) for line in (at / "add" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == list(range(12)) and len({entry["pid"] for entry in log}) == 2
    assert json.loads((at / "add" / "sum.json").read_text())["sum"] == 3 * sum(range(12))
    assert {entry["size"] for entry in log} == {2} and json.loads((at / "add" / "done.json").read_text())["tries"] == 2


def test_without_sbatch_the_error_says_where_to_go(toy, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="no sbatch here: run this on a login node"):
        hosts.submit(made(toy, tmp_path / "run"))


def test_sbatchs_own_words_are_passed_on(toy, tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RecipeError, match="invalid partition"):
        hosts.submit(made(toy, tmp_path / "run"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a slots=8\nb\n", "line 2: 'b'; expected `name slots=8`"),
        ("a slots=0\n", "line 1: 'a slots=0'; expected"),
        ("a slots=8\n# more\na slots=8\n", "line 3: host a is there twice"),
        ("# nothing\n", "no host in it"),
    ],
)
def test_a_wrong_hostfile_is_told_with_its_line(tmp_path, text, told):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(RecipeError, match=told) as error:
        hosts.hostfile(path)
    assert str(path) in str(error.value)


def test_a_hostfile_gives_deepspeeds_line(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("gpu1 slots=8  # rack 4\n\ngpu2 slots=4\n")
    assert hosts.hostfile(path) == (hosts.Host("gpu1", 8), hosts.Host("gpu2", 4))
    assert hosts.deepspeed(path, ["r.py", "title=my run"]) == (
        f"deepspeed --hostfile {path} --master_addr gpu1 --no_local_rank --module omni2vec run r.py 'title=my run'"
    )


def test_torchruns_line_names_one_meeting_point_for_all_nodes():
    line = hosts.torchrun(["r.py"], 4, 8, "r")
    assert line.startswith("torchrun --nnodes 4 --nproc-per-node 8 ") and line.endswith("-m omni2vec run r.py")
    assert '--rdzv-endpoint "$FIRST_HOST:29500"' in line
    assert hosts.torchrun(["r.py"], 1, 8, "r") == "torchrun --standalone --nproc-per-node 8 -m omni2vec run r.py"


def test_the_verb_prints_or_says_what_it_wants(toy, tmp_path):
    command = ["launch", str(toy), "--into", str(tmp_path)]
    told = CliRunner().invoke(app, [*command, "--slurm"])
    assert told.stdout.count("sbatch --parsable") == 3 and (tmp_path / "jobs" / "02-train.sh").exists()
    told = CliRunner().invoke(app, [*command, "--torchrun", "--nodes", "2"])
    assert told.stdout.startswith("# set FIRST_HOST to the first node's name\ntorchrun --nnodes 2 ")
    for words in ([], ["--slurm", "--torchrun"], ["--torchrun", "--hostfile", "hosts"], ["--submit"]):
        with pytest.raises(DataError, match="Give --slurm, --hostfile FILE or --torchrun, one of them"):
            CliRunner().invoke(app, [*command, *words], catch_exceptions=False)
    with pytest.raises(DataError, match="only jobs of Slurm are submitted"):
        CliRunner().invoke(app, [*command, "--torchrun", "--submit"], catch_exceptions=False)
    assert CliRunner().invoke(app, [*command, "--slurm", "--gpus", "0"]).exit_code == 2


@pytest.mark.parametrize("how", ["--slurm", "--torchrun"])
def test_the_verb_says_that_nothing_is_left(toy, tmp_path, how):
    run(load(toy, []), tmp_path, say=lambda line: None)
    told = CliRunner().invoke(app, ["launch", str(toy), "--into", str(tmp_path), how])
    assert told.stdout == f"{tmp_path}: nothing is left to make\n"
