"""The learned step of int8 vectors: its start, its place in checkpoints and engines, and the codes that it gives."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from omni2vec.data.types import Item
from omni2vec.model import codes
from omni2vec.model.embedder import Embedder, Learned, freeze, remade
from omni2vec.model.lora import Lora, attach
from omni2vec.train.engine import Local
from omni2vec.train.optim import AdamW
from omni2vec.train.precision import cast

from .small import tiny


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def stepped(embedder=None, **settings):
    embedder = embedder or tiny()
    return remade(embedder, replace(embedder.settings, int8=True, **settings), embedder.adapter)


def collated(embedder, *texts):
    prompts = embedder.prompts([Item.text(t) for t in texts])
    return embedder.format.collate(prompts, [embedder.limits] * len(prompts))


@pytest.mark.parametrize("dim", [64, 1024])
def test_unit_vectors_fill_int8_and_are_hardly_clipped_at_the_start(dim):
    vectors = F.normalize(torch.randn(2000, dim, generator=torch.Generator().manual_seed(0)), dim=-1)
    step = 4 / (127 * math.sqrt(dim))
    clipped = (vectors.abs() > 127.5 * step).float().mean()
    assert clipped < 1e-4
    assert codes.int8(vectors, step).abs().max() == 127
    rounded = codes.floats(codes.int8(vectors, step), step)
    cosines = torch.cosine_similarity(vectors, rounded)
    assert cosines.mean() > 0.9999  # 1 - (4 / 127)**2 / 24, by rounding alone
    assert cosines.min() > 0.999
    lsq = 2 * vectors.abs().mean() / math.sqrt(127)  # LSQ's own start: errors four times as large
    assert (vectors - codes.floats(codes.int8(vectors, lsq), lsq)).abs().mean() > 4 * (vectors - rounded).abs().mean()


def test_the_scale_has_the_step_behind_it_and_the_gradient_reaches_both():
    embedder = stepped(scale=Learned(20.0))
    assert embedder.step == pytest.approx(4 / (127 * 8))
    assert tiny().step is None
    out = Local(embedder, AdamW()).embed(collated(embedder, "a", "b"))
    assert embedder.scale.shape == (1,)
    assert out.scale.tolist() == pytest.approx([20.0, embedder.step])
    (out.scale * torch.tensor([2.0, 3.0])).sum().backward()
    assert embedder.log_scale.grad.item() == pytest.approx(40.0)
    assert embedder.log_step.grad.item() == pytest.approx(3 * embedder.step)
    assert tiny()(collated(embedder, "a")).scale.shape == (1,)


def test_the_step_is_a_new_part_without_weight_decay_and_can_be_frozen():
    embedder = stepped()
    groups = AdamW(weight_decay=0.1).groups(embedder.parts())
    (own,) = [g for g in groups if any(p is embedder.log_step for p in g["params"])]
    assert (own["part"], own["weight_decay"]) == ("new", 0.0)
    freeze(embedder, ("step",))
    assert not embedder.log_step.requires_grad
    with pytest.raises(ValueError, match="freeze='step': this model's parts are"):
        freeze(tiny(), ("step",))


def test_the_step_stays_in_float32_where_all_is_half():
    embedder = stepped()
    cast(embedder, "bf16-true")
    assert embedder.log_step.dtype == torch.float32
    assert embedder(collated(embedder, "a")).scale.dtype == torch.float32


def test_checkpoints_and_remade_embedders_keep_the_step_and_one_without_it_gets_its_start(tmp_path):
    embedder = stepped()
    with torch.no_grad():
        embedder.log_step += 0.5
    learned = embedder.step
    again = Embedder.load(embedder.save(tmp_path / "model"), device="cpu")
    assert again.step == learned
    assert again.digest == embedder.digest != tiny().digest
    assert attach(again, Lora(rank=2)).step == learned
    assert remade(embedder, replace(embedder.settings, projection=32), None).step == pytest.approx(4 / (127 * 32**0.5))
    plain = tiny().save(tmp_path / "plain")
    assert Embedder.load(plain, device="cpu").step is None
    record = json.loads((plain / "omni2vec.json").read_text())
    record["settings"]["int8"] = True
    (plain / "omni2vec.json").write_text(json.dumps(record))
    assert Embedder.load(plain, device="cpu").step == pytest.approx(4 / (127 * 8))


def test_a_record_from_before_there_were_steps_and_tokens_loads_with_its_digest(tmp_path):
    embedder = tiny()
    folder = embedder.save(tmp_path / "model")
    record = json.loads((folder / "omni2vec.json").read_text())
    del record["settings"]["int8"], record["settings"]["tokens"]
    (folder / "omni2vec.json").write_text(json.dumps(record))
    assert Embedder.load(folder, device="cpu").digest == embedder.digest


def test_codes_are_those_of_the_float_vectors():
    embedder, texts = stepped(), ["a red circle", "a blue square", "find it"]
    vectors = embedder.encode(texts)
    found = embedder.encode(texts, precision="int8")
    assert found.dtype == torch.int8
    assert torch.equal(found, codes.int8(vectors, embedder.step))
    assert torch.equal(embedder.encode(texts, precision="binary"), codes.binary(vectors))
    assert torch.equal(embedder.encode(texts[0], precision="int8"), found[0])
    cut = embedder.encode(texts, precision="int8", dim=16)
    assert torch.equal(cut, codes.int8(embedder.encode(texts, dim=16), 2 * embedder.step))
    short = remade(embedder, replace(embedder.settings, dim=16), None)
    assert short.step == pytest.approx(2 * embedder.step)
    assert torch.equal(short.encode(texts, precision="int8"), cut)


def test_int8_without_a_step_and_an_unknown_precision_say_what_to_do():
    with pytest.raises(ValueError, match=r"learned no step; train it with Quantised .*codes.calibrated"):
        tiny().encode("a", precision="int8")
    with pytest.raises(ValueError, match="precision='int4'; expected one of 'float', 'int8', 'binary'"):
        tiny().encode("a", precision="int4")
    assert tiny().encode("a", precision="binary").shape == (8,)
