"""Whole weights out of checkpoints: one file, or the embedder that the stage would have left."""

from dataclasses import replace

import pytest
import torch
from omni2vec import Embedder
from omni2vec.data.shards import write_shards
from omni2vec.data.types import DataError, Example, Item
from omni2vec.model.embedder import Learned
from omni2vec.model.lora import Lora
from omni2vec.train.consolidate import complete, consolidate, export
from omni2vec.train.gather import Group
from omni2vec.train.optim import AdamW
from omni2vec.train.resume import State, path_of
from omni2vec.train.snapshot import Saver
from safetensors import safe_open
from safetensors.torch import load_file

from ..model.small import tiny
from .shares import Share, net, on_ranks
from .stages import stage


def nowhere(step):
    raise AssertionError(f"no step is needed, asked for {step}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("consolidate")
    write_shards([Example("r/0", "r", "retrieval", Item.text("red"), (Item.text("blue"),))], path / "rows")
    tiny().save(path / "model")
    return path


def trained(made, out):
    """The embedder of `made` behind two updates by gradients drawn at random, and its checkpoint."""
    torch.manual_seed(made.seed)
    engine = made.engine(made.load(nowhere), Group())
    for step in range(2):
        for p in engine.parameters:
            p.grad = torch.randn_like(p)
        engine.update(step, made.steps)
    with Saver(engine, out, base="the model") as saver:
        saver.save(State(step=2))
    return complete(engine.embedder), path_of(out, 2)


@pytest.mark.parametrize("kind", ["full", "lora", "adapter on an adapter", "new parts, some not trained"])
def test_an_exported_checkpoint_is_what_the_stage_would_have_left(folder, tmp_path, kind):
    made = replace(stage(folder, "full"), optimizer=AdamW(lr=1e-2))
    if kind == "lora":
        made = replace(made, lora=Lora(rank=4))
    if kind == "adapter on an adapter":
        first, _ = trained(replace(made, lora=Lora(rank=2)), tmp_path / "first")
        made = replace(made, model=str(first.save(tmp_path / "adapted")), lora=Lora(rank=4))
    if kind == "new parts, some not trained":
        rates = {"new": 0.0, "tower": 0.0}
        made = replace(made, pooling="latent", scale=Learned(20.0), optimizer=AdamW(lr=1e-2, rates=rates))
    embedder, checkpoint = trained(made, tmp_path / "run")
    whole = embedder.save(tmp_path / "whole")
    found = export(made, checkpoint, tmp_path / "exported", nowhere, base="the model")
    assert Embedder.load(found).digest == Embedder.load(whole).digest
    assert Embedder.load(found).digest != Embedder.load(folder / "model").digest
    assert {p.name for p in found.iterdir()} == {p.name for p in whole.iterdir()}


def test_an_export_onto_another_model_is_refused(folder, tmp_path):
    made = stage(folder, "full")
    _, checkpoint = trained(made, tmp_path / "run")
    with pytest.raises(DataError, match="digest the model, this one from another"):
        export(made, checkpoint, tmp_path / "out", nowhere, base="another")
    with pytest.raises(DataError, match=r"is of another model: .* not trained here, and"):
        export(replace(made, pooling="mean", lora=Lora(rank=4)), lora_of(folder, tmp_path), tmp_path / "out", nowhere)
    assert not (tmp_path / "out").exists()


def lora_of(folder, tmp_path):
    """A checkpoint with adapters on the tower, which the stage that is exported has not."""
    return trained(replace(stage(folder, "full"), lora=Lora(rank=4, tower=True)), tmp_path / "other")[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_file_of_whole_float32_weights_comes_from_any_ranks(tmp_path, dtype):
    def one(group):
        with Saver(Share(net(dtype=dtype), group.rank, 3), tmp_path, group) as saver:
            saver.save(State(step=1))

    assert on_ranks(3, one) == [None] * 3
    file = consolidate(path_of(tmp_path, 1), tmp_path / "made" / "weights.safetensors")
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    found, wanted = load_file(file), dict(net(dtype=dtype).named_parameters())
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight.float())
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}  # what transformers asks for


def test_a_damaged_checkpoint_leaves_no_file(tmp_path):
    with Saver(Share(net()), tmp_path) as saver:
        saver.save(State(step=1))
    (part,) = path_of(tmp_path, 1).glob("part-*")
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="its digest is another; remove that folder to resume from the beginning"):
        consolidate(path_of(tmp_path, 1), tmp_path / "made.safetensors")
    assert not list(tmp_path.glob("made*"))
