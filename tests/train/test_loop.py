"""The loop's edges: kills while it ends, items longer than what was measured, validation that is refused early."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omni2vec import Embedder
from omni2vec.data.mix import Feed
from omni2vec.data.order import Order
from omni2vec.data.patterns import Pattern
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import Blob, DataError, Example, Image, Item
from omni2vec.model.embedder import Fixed, Learned
from omni2vec.train import loop, resume
from omni2vec.train.monitor import read_log
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.next_token import NextToken
from omni2vec.train.preview import estimates, preview
from omni2vec.train.stage import Validate
from safetensors.torch import load_file

from ..model.small import tiny
from .stages import stage
from .toy import ToyRows


def nowhere(step):
    raise AssertionError(f"no step is needed, asked for {step}")


class Killed(BaseException):
    """What a kill is to the code that it ends: no handler sees it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("loop")
    rows = [Example(f"r/{i}", "r", "retrieval", Item.text(f"red {i}"), (Item.text(f"blue {i}"),)) for i in range(24)]
    write_shards(rows, path / "rows")
    last = (
        Order.of((24,), (1.0,), 8, 8, seed=0).rows_of(2)[0].row
    )  # drawn in the third batch, of which nothing is measured
    rows[last] = replace(rows[last], query=Item.text("red circle " * 100))
    write_shards(rows, path / "long")
    tiny().save(path / "model")
    return path


def small(folder, rows="rows", **changes):
    source = Shards(str(folder / rows), name="rows")
    made = replace(stage(folder, "full"), feeds=(Feed(source),), objectives={"default": (InfoNCE(),)})
    return replace(made, **{"steps": 3, "save_every": 1, **changes})


def kill_in(monkeypatch, owner, name, call):
    """The call-th call of `owner.name` is a kill; of rmtree, one that leaves half of what it was to remove."""
    real, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(0)
        if len(calls) < call:
            return real(*args, **kwargs)
        if name == "rmtree":
            for file in args[0].rglob("weights.safetensors"):
                file.unlink()
        raise Killed

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Path, "replace", 4),  # amid the move of the files
        (Path, "rmdir", 1),  # behind it
        (Path, "rename", 2),  # before the checkpoints' removal
        (shutil, "rmtree", 2),  # amid it
        (loop, "_finish", 0),  # behind all, before the run records that the step is done
    ],
)
def test_a_kill_while_the_output_is_put_in_place_costs_no_training(folder, tmp_path, monkeypatch, owner, name, call):
    out, whole = tmp_path / "out", tmp_path / "whole"
    for path in (out, whole):
        path.mkdir()
    made = small(folder)
    made.make(whole, nowhere)
    real = loop._finish

    def finish(*args):
        if call:
            kill_in(monkeypatch, owner, name, call)
        real(*args)
        raise Killed

    monkeypatch.setattr(loop, "_finish", finish)
    with pytest.raises(Killed):
        made.make(out, nowhere)
    monkeypatch.undo()
    records = len(read_log(out / "log.jsonl"))
    made.make(out, nowhere)
    assert Embedder.load(out).digest == Embedder.load(whole).digest
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}
    log = read_log(out / "log.jsonl")
    assert len([r for r in log if "loss" in r]) == 3
    assert len(log) <= records + 1  # at most another "start": no step was trained again


def test_an_item_longer_than_the_measured_chunk_gets_a_chunk_of_its_own(folder, tmp_path):
    made = small(folder, "long", chunk_tokens="auto", memory="vectors", memory_gb=1e-5)
    made.make(tmp_path, nowhere)
    log = read_log(tmp_path / "log.jsonl")
    assert log[0]["chunk_tokens"] < 100
    assert len([r for r in log if "loss" in r]) == 3
    with pytest.raises(ValueError, match="smaller than the longest item"):
        replace(made, chunk_tokens=60).make(tmp_path / "fixed", nowhere)


def test_two_validation_sources_with_tasks_of_one_name_both_count(folder, tmp_path):
    data = tuple(Shards(str(folder / rows), name="same") for rows in ("rows", "long"))
    small(folder, validate=Validate(data, every=3, limit=8)).make(tmp_path, nowhere)
    (found,) = [r for r in read_log(tmp_path / "log.jsonl") if r.get("event") == "evaluation"]
    assert len(set(found) - {"step", "event", "mean"}) == 2


def test_a_metric_that_no_task_has_is_refused_before_the_first_step(folder, tmp_path):
    rows = Shards(str(folder / "rows"), name="rows")
    with pytest.raises(ValueError, match=r"validate.metric='hits'; expected 'mean' or one of rows"):
        small(folder, validate=Validate((rows,), metric="hits")).make(tmp_path, nowhere)
    assert not resume.existing(tmp_path)
    assert not (tmp_path / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "memory",
            "boundary",
            "memory='boundary'; expected one of 'auto', 'all', 'boundaries', 'offloaded', 'vectors'",
        ),
        ("take", "beste", "take='beste'; expected one of 'last', 'best'"),
        ("attention", "both", "attention='both'; expected one of None, 'causal', 'bidirectional', 'prefix'"),
        ("pooling", "max", "pooling='max'; expected one of None, 'last', 'mean'"),
        ("on_error", "ignore", "on_error='ignore'; expected one of 'raise', 'skip'"),
        ("precision", "fp8", "precision='fp8'; expected one of 'fp32', 'bf16', 'fp16', 'bf16-true'"),
        ("clip", -1.0, "clip=-1.0; expected 0 or more"),  # torch would turn the gradient around
        ("clip", float("nan"), "clip=nan; expected 0 or more"),
        ("chunk_tokens", 0, "chunk_tokens=0; expected 1 or more"),
        ("save_every", 0, "save_every=0; expected 1 or more"),
        ("validate", Validate((), every=0), "validate.every=0; expected 1 or more"),
        ("objectives", {"default": ()}, "objectives['default'] is empty; give it one"),
    ],
)
def test_a_value_that_would_be_taken_for_another_is_refused(folder, field, value, message):
    with pytest.raises(ValueError, match=re.escape(f"stage 'train': {message}")):
        small(folder, **{field: value})


def test_a_scale_is_above_0_and_below_its_maximum():
    for wrong in (lambda: Fixed(0.0), lambda: Learned(init=200.0), lambda: Learned(init=-1.0)):
        with pytest.raises(ValueError, match=r"scale (Fixed|Learned)\(.*expected"):
            wrong()


def test_a_medium_that_is_gone_since_it_was_indexed_is_skipped_and_counted(folder, tmp_path):
    query = Item((Image(Blob(path=str(tmp_path / "gone.png"), length=9), 40, 40),), "gone")
    rows = tuple(
        Example(f"r/{i}", "rows", "retrieval", query if i == 3 else Item.text(f"red {i}"), (Item.text(f"blue {i}"),))
        for i in range(8)
    )
    made = replace(small(folder), feeds=(Feed(ToyRows("rows", rows)),), steps=1)
    with pytest.raises(DataError, match=r"gone.png: No such file or directory; was it moved or removed"):
        made.make(tmp_path / "raise", nowhere)
    replace(made, on_error="skip").make(tmp_path / "skip", nowhere)
    (done,) = [r for r in read_log(tmp_path / "skip" / "log.jsonl") if "loss" in r]
    assert (done["rows"], done["skipped_rows"]) == (7, 1)


FORM = (Pattern("title -> text"),)


def lacking(folder, empty, count=24, **changes):
    """A stage none of whose rows of these steps can form the pattern of its feed."""
    drawn = Order.of((count,), (1.0,), 8, 8, seed=0)
    bare = {a.row for step in empty for a in drawn.rows_of(step)}
    rows = tuple(
        Example(f"r/{i}", "rows", "retrieval", Item(()), (),
                fields={"title": Item.text(f"red {i}")} | ({} if i in bare else {"text": Item.text(f"blue {i}")}))
        for i in range(count)
    )  # fmt: skip
    feeds = (Feed(ToyRows("rows", rows), patterns=FORM, missing="skip"),)
    return replace(small(folder, **changes), feeds=feeds)


@pytest.mark.parametrize(
    ("empty", "owner", "name", "call", "saved"),
    [
        (1, loop, "cached_step", 2, 2),  # behind the empty batch
        (1, loop._Training, "nothing", 1, 1),  # in it: it resumes with it
        (2, loop._Training, "nothing", 1, 2),  # which is the last, so that nothing is left to be probed
        (0, loop, "cached_step", 2, 2),  # what is measured at the start is another batch
    ],
)
def test_a_batch_of_which_no_row_is_left_is_a_step_without_update(
    folder, tmp_path, monkeypatch, empty, owner, name, call, saved
):
    made = lacking(folder, [empty], chunk_tokens="auto", memory="auto", memory_gb=0.1)
    whole, out = tmp_path / "whole", tmp_path / "out"
    for path in (whole, out):
        path.mkdir()
    made.make(whole, nowhere)
    log = read_log(whole / "log.jsonl")
    steps = [r for r in log if "loss" in r]
    assert [(r["step"], r["rows"], r["loss"] == "nan") for r in steps] == [
        (s, 0 if s == empty else 8, s == empty) for s in range(3)
    ]
    assert [r["lr"] for r in steps] == [pytest.approx(made.optimizer.lr_at(s, 3), rel=1e-4) for s in range(3)]
    (event,) = [r for r in log if r.get("event") == "empty batch"]
    assert (event["step"], event["left_out"]) == (empty, {"rows": 8})
    assert "cannot form 'title -> text'" in event["why"][0]
    assert steps[-1].get("skipped_steps", 0) == 0 and steps[-1]["lacking"] == {"rows": 8}
    assert not [r for r in log if r.get("event") in ("step skipped", "no gradient")]
    assert len([r for r in log if r.get("event") == "chunks keep"]) == 1

    kill_in(monkeypatch, owner, name, call)
    with pytest.raises(Killed):
        made.make(out, nowhere)
    monkeypatch.undo()
    assert resume.existing(out)[-1].name == f"step-{saved:08d}"
    made.make(out, nowhere)
    assert Embedder.load(out).digest == Embedder.load(whole).digest != Embedder.load(folder / "model").digest


def test_a_batch_that_loses_many_rows_for_want_of_a_pattern_is_told_once(folder, tmp_path, capfd):
    made = lacking(folder, [])
    bare = {a.row for step in range(3) for a in Order.of((24,), (1.0,), 8, 8, seed=0).rows_of(step)[:2]}
    (feed,) = made.feeds
    rows = tuple(
        replace(e, fields={"title": e.fields["title"]}) if i in bare else e for i, e in enumerate(feed.source.rows)
    )
    replace(made, feeds=(replace(feed, source=ToyRows("rows", rows)),)).make(tmp_path, nowhere)
    log = read_log(tmp_path / "log.jsonl")
    (event,) = [r for r in log if r.get("event") == "thin batch"]
    assert (event["step"], event["rows"], event["lacking"]) == (0, 6, 2)
    assert "cannot form 'title -> text'" in event["first"]
    assert "6 rows without a pattern" in capfd.readouterr().err
    assert [r["lacking"]["rows"] for r in log if "loss" in r] == [2, 4, 6]


def test_empty_batches_are_evaluated_behind_and_no_trial_of_patience(folder, tmp_path):
    check = Validate((Shards(str(folder / "rows"), name="rows"),), every=11, limit=8)
    made = lacking(folder, range(1, 23), 8 * 24, steps=24, save_every=100, validate=check)
    made.make(tmp_path, nowhere)
    log = read_log(tmp_path / "log.jsonl")
    assert [r["step"] for r in log if r.get("event") == "empty batch"] == list(range(1, 23))
    assert [r["step"] for r in log if r.get("event") == "evaluation"] == [10, 21, 23]


def test_a_stage_all_of_whose_batches_are_empty_is_refused_at_the_start(folder, tmp_path):
    made = lacking(folder, range(3))
    with pytest.raises(DataError, match=r"stage 'train': no row is left of 3 batches in a row, .* 24 of 'rows'; the"):
        made.make(tmp_path, nowhere)
    assert not (tmp_path / "log.jsonl").exists()


def test_an_empty_batch_is_previewed_as_such_and_another_one_is_estimated(folder):
    made = lacking(folder, [0])
    (line,) = preview(made, 0, nowhere)
    assert "batch 0: no row is left, the step does nothing; left_out {'rows': 8}" in line
    assert len(list(preview(made, 1, nowhere))) > 8
    assert int(estimates(made, nowhere)["longest item"].split()[0]) > 0


@pytest.mark.parametrize(
    ("changes", "told"), [({"batch": 1}, 1), ({"objectives": {"default": (NextToken(),)}}, 1), ({}, 0)]
)
def test_a_stage_that_learns_nothing_says_so_once(folder, tmp_path, changes, told):
    small(folder, **changes).make(tmp_path, nowhere)
    events = [r for r in read_log(tmp_path / "log.jsonl") if r.get("event") == "no gradient"]
    assert len(events) == told
    assert all("InfoNCE needs positives and negatives" in e["why"] for e in events)


def test_a_batch_smaller_than_the_ranks_is_refused_before_anything_is_loaded(folder, tmp_path, monkeypatch):
    from omni2vec.train.gather import Group

    monkeypatch.setattr(Group, "current", staticmethod(lambda: Group(0, 16)))
    with pytest.raises(ValueError, match="stage 'train': batch=8 is smaller than the 16 ranks"):
        small(folder).make(tmp_path, nowhere)
    assert not list(tmp_path.iterdir())


def test_a_stage_out_of_memory_begins_the_same_step_again_in_smaller_chunks(folder, tmp_path, monkeypatch):
    from omni2vec.train.engine import Local
    from omni2vec.train.guard import Restart, wished

    made = small(folder, steps=4, chunk_tokens=200, memory="boundaries", save_every=100)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for path in (whole, cut):
        path.mkdir()
    made.make(whole, nowhere)
    real, calls = Local.embed, []

    def embed(self, inputs, *rest):
        calls.append(inputs)
        if len(calls) > 3 and len(inputs.ids) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, inputs, *rest)

    monkeypatch.setattr(Local, "embed", embed)
    with pytest.raises(Restart, match=r"step [123] begins again with chunk_tokens=100"):
        made.make(cut, nowhere)
    assert wished(cut, take=False)["chunk_tokens"] == 100
    assert not (cut / "model.safetensors").exists()
    made.make(cut, nowhere)
    weights = [load_file(p / "model.safetensors") for p in (whole, cut)]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=0, atol=2e-4)
    log = read_log(cut / "log.jsonl")
    assert [r["step"] for r in log if "loss" in r] == [0, 1, 2, 3]
    assert [r["chunk_tokens"] for r in log if r.get("event") == "begun again"] == [100]
    assert not list(cut.glob("*.json.*")) and wished(cut) is None
