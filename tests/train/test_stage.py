"""A stage: killed and resumed it gives the same weights to the bit; what it trains, freezes, skips and refuses."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omni2vec import Embedder
from omni2vec.data.mix import Feed
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import DataError, Example, Item, Limits
from omni2vec.model.embedder import Fixed, Learned
from omni2vec.model.lora import Lora
from omni2vec.train.monitor import read_log
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.optim import AdamW
from omni2vec.train.resume import existing
from omni2vec.train.stage import Stage, Validate
from omni2vec.train.trouble import Patience
from safetensors.torch import load_file

from ..model.small import mixed, tiny
from .stages import STEPS, stage

SCRIPT = Path(__file__).parent / "stages.py"


def nowhere(step):
    raise AssertionError(f"no step is needed, asked for {step}")


def examples(count=24):
    items = mixed(2 * count, seed=5, video=False)
    return [
        Example(f"rows/{i}", "rows", "retrieval", items[2 * i], (items[2 * i + 1],), (Item.text(f"wrong {i}"),),
                instruction="find the caption", answer="a red circle" if i % 2 else "")
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("stage")
    write_shards(examples(), path / "rows")
    tiny().save(path / "model")
    return path


def start(folder, variant, out):
    command = [sys.executable, str(SCRIPT), str(folder), variant, str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process):
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error.decode()[-2000:]


def kill_at(folder, variant, out, step):
    """Start the stage and kill -9 it once the log shows `step`, and a checkpoint is there."""
    process = start(folder, variant, out)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if existing(out) and any(r["step"] >= step and "loss" in r for r in read_log(out / "log.jsonl")):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The folders of uninterrupted runs, by variant."""
    out = {v: tmp_path_factory.mktemp("whole") / v for v in ("lora", "best", "adaptive")}
    for process in [start(folder, v, p) for v, p in out.items()]:
        finish(process)
    return out


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        ("lora", "adapter_model"),
        pytest.param("adaptive", "model", marks=pytest.mark.slow),  # test_elastic.py kills one with adaptive shares
        pytest.param("best", "model", marks=pytest.mark.slow),
    ],
)
def test_a_killed_stage_resumes_to_the_same_weights_to_the_bit(folder, whole, tmp_path, variant, weights):
    cut = tmp_path / "cut"
    kill_at(folder, variant, cut, 4)
    assert {p.name for p in existing(cut)[0].iterdir()} == {"state.json", "part-00000-of-00001.safetensors"}
    assert not (cut / f"{weights}.safetensors").exists()
    finish(start(folder, variant, cut))
    a, b = (load_file(p / f"{weights}.safetensors") for p in (whole[variant], cut))
    assert set(a) == set(b)
    assert all(torch.equal(a[n], b[n]) for n in a)
    losses = [[(r["step"], r["loss"]) for r in read_log(p / "log.jsonl") if "loss" in r] for p in (whole[variant], cut)]
    assert losses[0] == losses[1]
    assert [s for s, _ in losses[1]] == list(range(STEPS))
    assert not (cut / "checkpoints").exists()


def test_shares_follow_the_losses_and_the_temperature_the_progress(whole):
    log = read_log(whole["adaptive"] / "log.jsonl")
    shares = [(r["step"], r["sources"]) for r in log if r.get("event") == "shares"]
    assert [s for s, _ in shares] == [2, 6]  # the last but one of every block of four
    assert all(sum(v.values()) == pytest.approx(1, abs=1e-3) for _, v in shares)
    assert shares[0][1]["few"] == pytest.approx(1 / 3, abs=1e-3)  # both stand where they began
    assert abs(shares[1][1]["few"] - 1 / 3) > 1e-3
    scales = [r["scale"] for r in log if "loss" in r]
    wanted = [1 / (0.1 + (0.02 - 0.1) * t / STEPS) for t in range(STEPS)]
    assert scales == pytest.approx(wanted, rel=1e-4)
    assert Embedder.load(whole["adaptive"]).settings.scale == Fixed(50.0)


def test_the_output_is_an_embedder_and_has_learned(folder, whole):
    before, after = Embedder.load(folder / "model"), Embedder.load(whole["best"])
    assert before.digest != after.digest
    losses = [r["loss"] for r in read_log(whole["best"] / "log.jsonl") if "loss" in r]
    assert losses[-1] < losses[0]


def test_an_adapter_s_folder_loads_on_its_base(folder, whole):
    adapted, base = Embedder.load(whole["lora"]), Embedder.load(folder / "model")
    from omni2vec.model.lora import merged

    items = mixed(6, video=False)
    vectors = adapted.encode(items)
    assert not torch.allclose(vectors, base.encode(items), atol=1e-3)
    torch.testing.assert_close(merged(adapted).encode(items), vectors, rtol=0, atol=1e-5)


def small(folder, **changes):
    made = replace(stage(folder, "full"), steps=2, save_every=100)
    return replace(made, **changes)


def test_frozen_parts_stay_equal_to_the_bit(folder, tmp_path):
    small(folder, freeze=("tower", "projector")).make(tmp_path, nowhere)
    before, after = load_file(folder / "model" / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    same = {n for n in before if torch.equal(before[n], after[n])}
    assert {n for n in before if "visual" in n} == {n for n in same if "visual" in n}
    assert any(n not in same for n in before if "language" in n or "layers" in n)


def test_the_same_seed_gives_the_same_weights_for_any_workers(folder, tmp_path):
    for workers in (0, 2):
        out = tmp_path / str(workers)
        out.mkdir()
        small(folder, workers=workers).make(out, nowhere)
    a, b = (load_file(tmp_path / w / "model.safetensors") for w in "02")
    assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("memory", ["auto", "all", "offloaded", "vectors"])
def test_memory_plans_train_alike(folder, tmp_path, memory):
    for name, plan in (("a", "boundaries"), ("b", memory)):
        (tmp_path / name).mkdir()
        small(folder, memory=plan).make(tmp_path / name, nowhere)
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    for n in a:
        torch.testing.assert_close(a[n], b[n], rtol=0, atol=1e-5)


def test_auto_measures_a_chunk_and_says_so_in_the_log(folder, tmp_path):
    small(folder, chunk_tokens="auto", memory="auto", memory_gb=0.008).make(tmp_path, nowhere)
    start, memory = (
        next(r for r in read_log(tmp_path / "log.jsonl") if r.get("event") == name) for name in ("start", "chunks keep")
    )
    assert {"boundaries", "vectors"} & memory.keys()  # 8 MiB do not hold all activations of a batch
    assert 20 < start["chunk_tokens"] < 4096


@pytest.mark.parametrize("frozen", [("tower",), ("projector",)])
def test_frozen_parts_in_half_precision_are_validated_as_they_are_trained(folder, tmp_path, frozen):
    rows = Shards(str(folder / "rows"), name="rows")
    check = Validate((rows,), every=1, limit=8)
    small(folder, precision="bf16", freeze=frozen, validate=check).make(tmp_path, nowhere)
    assert len([r for r in read_log(tmp_path / "log.jsonl") if r.get("event") == "evaluation"]) == 2


def test_bf16_autocast_trains_float32_weights(folder, tmp_path):
    small(folder, precision="bf16").make(tmp_path, nowhere)
    weights = load_file(tmp_path / "model.safetensors")
    before = load_file(folder / "model" / "model.safetensors")
    assert all(w.dtype == torch.float32 for w in weights.values())
    assert any(not torch.equal(weights[n], before[n]) for n in weights)


def test_early_stopping_keeps_the_best(folder, tmp_path):
    rows = Shards(str(folder / "rows"), name="rows")
    check = Validate((rows,), every=1, limit=8, patience=2, gain=10.0)
    small(folder, steps=20, validate=check, take="best").make(tmp_path, nowhere)
    log = read_log(tmp_path / "log.jsonl")
    assert len([r for r in log if "loss" in r]) == 3  # the first is best by default, two without a gain
    assert any(r.get("event") == "stopped early" for r in log)


def test_checkpoints_are_pruned_but_for_the_newest(folder, tmp_path, monkeypatch):
    from omni2vec.train import resume

    seen = []
    real = resume.prune
    monkeypatch.setattr(
        resume, "prune", lambda out, *given: (real(out, *given), seen.append([p.name for p in existing(out)]))
    )
    small(folder, steps=6, save_every=2, keep=2).make(tmp_path, nowhere)
    assert [len(s) for s in seen] == [1, 2, 2]
    assert seen[-1] == ["step-00000004", "step-00000006"]


def test_rows_that_cannot_be_decoded_are_skipped_counted_and_limited(folder, tmp_path):
    rows = examples(16)
    from omni2vec.data.types import Blob, Image

    bad = Item((Image(Blob(b"no picture at all"), 50, 50),))
    rows[3] = replace(rows[3], query=bad)
    write_shards(rows, tmp_path / "rows")
    source = Shards(str(tmp_path / "rows"), name="rows")
    made = replace(small(folder), feeds=(Feed(source),), batch=16, steps=1)
    with pytest.raises(DataError, match="key rows/shard-000000/000003"):
        made.make(tmp_path, nowhere)
    out = tmp_path / "out"
    out.mkdir()
    replace(made, on_error="skip").make(out, nowhere)
    (done,) = [r for r in read_log(out / "log.jsonl") if "loss" in r]
    assert (done["rows"], done["skipped_rows"]) == (15, 1)
    with pytest.raises(DataError, match="max_skipped=0"):
        replace(made, on_error="skip", max_skipped=0).make(tmp_path / "out2", nowhere)


def test_what_the_limits_shrink_and_cut_is_counted_by_source(folder, tmp_path):
    tight = Limits(max_tokens=18, max_pixels=9216, min_pixels=576)
    small(folder, steps=1, batch=24, limits=tight).make(tmp_path, nowhere)
    (done,) = [r for r in read_log(tmp_path / "log.jsonl") if "loss" in r]
    assert done["shrunk"]["rows"] > 0
    assert done["cut"]["rows"] > 0


def test_bad_settings_name_the_stage_and_what_there_is(folder, tmp_path):
    rows = Shards(str(folder / "rows"), name="rows")
    with pytest.raises(ValueError, match=r"stage 'x': source 'rows' wants objective 'sts'; there are default"):
        Stage("x", "m", (Feed(rows, objective="sts"),), steps=1)
    with pytest.raises(ValueError, match="no source goes to objective 'b'"):
        Stage("x", "m", (Feed(rows),), steps=1, objectives={"default": (InfoNCE(),), "b": (InfoNCE(),)})
    with pytest.raises(ValueError, match="take='best' needs validate"):
        Stage("x", "m", (Feed(rows),), steps=1, take="best")
    with pytest.raises(ValueError, match="parts are tower, projector, language, head, scale"):
        small(folder, freeze=("eyes",)).load(nowhere)
    with pytest.raises(ValueError, match="chunk_tokens"):
        small(folder, chunk_tokens=20).make(tmp_path, nowhere)


def test_the_preview_shows_the_batch_as_the_model_sees_it(folder):
    text = "\n".join(small(folder).preview(1, nowhere))
    assert "8 rows (rows 8)" in text
    assert "<|im_start|>system\\nfind the caption<|im_end|>" in text
    assert "<|image_pad|>*" in text
    assert "pooled (last) at token" in text
    assert "labels)" in text


def test_the_rates_of_parts_are_apart(folder):
    made = small(folder, optimizer=AdamW(lr=1e-3, rates={"tower": 0.1, "projector": 0.0}))
    engine = made.engine(made.load(nowhere))
    rates = {g["part"]: g["lr"] for g in engine.optimizer.param_groups}
    assert rates["tower"] == pytest.approx(1e-4)
    assert rates["language"] == pytest.approx(1e-3)
    assert "projector" not in rates


def test_a_second_adapter_keeps_what_the_first_has_learned(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.mkdir()
    adapted = small(folder, lora=Lora(rank=4), optimizer=AdamW(lr=1e-2))
    adapted.make(first, nowhere)
    # A rate that moves nothing: the second output must be the first's function.
    again = replace(adapted, model=str(first), optimizer=AdamW(lr=1e-12))
    again.make(second, nowhere)
    items = mixed(4, video=False)
    before, after, base = (Embedder.load(p).encode(items) for p in (first, second, folder / "model"))
    assert (before - base).abs().max() > 1e-3
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_a_later_stage_keeps_the_learned_pooling_and_scale(folder, tmp_path):
    small(folder, pooling="latent", scale=Learned(20.0), optimizer=AdamW(lr=1e-2)).make(tmp_path, nowhere)
    made = Embedder.load(tmp_path)
    later = small(folder, model=str(tmp_path), limits=Limits(max_tokens=300)).load(nowhere)
    assert later.limits.max_tokens == 300
    assert torch.equal(later.latent.latents, made.latent.latents)
    assert made.scale != 20.0
    assert torch.equal(later.scale, made.scale)
    assert small(folder, model=str(tmp_path), scale=Fixed(30.0)).load(nowhere).scale.item() == pytest.approx(30.0)


def test_drafts_are_for_training_and_leave_with_it(folder):
    made = small(folder, limits=Limits(max_tokens=300, draft=True))
    embedder = made.load(nowhere)
    assert not embedder.limits.draft
    with made.loader(embedder, nowhere, 4096) as loader:
        assert loader._work.limits[0].draft


def test_a_run_whose_gradients_stay_infinite_stops(folder, tmp_path, monkeypatch):
    from omni2vec.train import loop
    from omni2vec.train.engine import Local, Updated

    monkeypatch.setattr(loop, "Patience", lambda stage: Patience(stage, limit=3))
    monkeypatch.setattr(Local, "update", lambda self, step, total: Updated(float("nan"), 0.0, False))
    with pytest.raises(
        ValueError, match="stage 'train': the gradient was not finite for 3 steps in a row, up to step 2"
    ):
        small(folder, steps=9).make(tmp_path, nowhere)
