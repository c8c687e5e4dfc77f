"""What a stage makes of its embedder before it trains: embedding tokens, a step of int8, masked instructions, sizes."""

from dataclasses import replace

import pytest
import torch
from omni2vec import Embedder
from omni2vec.data.mix import Feed
from omni2vec.data.shards import write_shards
from omni2vec.data.sources import Shards
from omni2vec.data.types import DataError, Item
from omni2vec.model.embedder import remade
from omni2vec.train.objectives.at_layer import AtLayer
from omni2vec.train.objectives.infonce import InfoNCE
from omni2vec.train.objectives.matryoshka import Matryoshka
from omni2vec.train.objectives.orthogonality import Orthogonality
from omni2vec.train.objectives.quantised import Quantised
from omni2vec.train.objectives.soft_label import SoftLabel
from omni2vec.train.stage import Stage

from ..model.small import tiny
from .test_stage import examples, nowhere


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("settings")
    scored = [replace(e, scores={"rerank": (0.9, 0.1)}, answer="") for e in examples(16)]
    write_shards(scored, path / "rows")
    tiny().save(path / "model")
    return path


def stage(folder, *objectives, **changes):
    feeds = (Feed(Shards(str(folder / "rows")), negatives=1),)
    settings = {"steps": 2, "batch": 8, "chunk_tokens": 600, "memory": "boundaries", **changes}
    return Stage("train", str(folder / "model"), feeds, objectives={"default": objectives}, **settings)


def test_every_kind_of_objective_trains_and_its_settings_are_saved(folder, tmp_path):
    objectives = (
        Matryoshka(Quantised(InfoNCE()), dims=(0, 16), weights=(1.0, 0.5)),
        AtLayer(InfoNCE()),
        SoftLabel(),
        Orthogonality(),
    )
    out = tmp_path / "out"
    out.mkdir()
    made = stage(folder, *objectives, tokens=2)
    made.make(out, nowhere)
    trained = Embedder.load(out)
    settings = trained.settings
    assert (settings.tokens, settings.int8, settings.matryoshka) == (2, True, (trained.dim, 16))
    before = made.load(nowhere)
    assert trained.step != before.step
    items = [Item.text("a red circle"), Item.text("a blue square")]
    codes = trained.encode(items, precision="int8")
    floats = trained.encode(items)
    assert codes.dtype == torch.int8
    assert float((codes * trained.step - floats).abs().max()) < 1.01 * trained.step / 2 + 1e-6


def test_a_masked_instruction_is_no_part_of_a_mean(folder):
    told = {}
    for mask in (True, False):
        made = stage(folder, InfoNCE(), pooling="mean", attention="bidirectional", mask_instruction=mask).load(nowhere)
        assert made.settings.mask_instruction is mask
        prompts = made.prompts([Item.text("a cat")], "query", "find the caption")
        told[mask] = made.format.collate(prompts, [made.limits]).pooled
    assert int(told[True].sum()) < int(told[False].sum())


def test_states_without_embedding_tokens_and_scores_that_rows_lack_say_what_to_do(folder, tmp_path):
    with pytest.raises(ValueError, match="tokens=16"):
        stage(folder, InfoNCE(), Orthogonality()).make(tmp_path, nowhere)
    with pytest.raises(DataError, match=r"rows/\S+: no score 'judge'"):
        stage(folder, SoftLabel(score="judge")).make(tmp_path, nowhere)
    with pytest.raises(ValueError, match="layer 9: expected 1 to"):
        stage(folder, AtLayer(InfoNCE(), layer=9)).make(tmp_path, nowhere)


def test_what_an_inner_layer_learns_is_no_setting_of_the_output(folder):
    inner = AtLayer(Quantised(Matryoshka(InfoNCE(), dims=(0, 16), weights=(1.0, 0.5))))
    settings = stage(folder, InfoNCE(), inner).load(nowhere).settings
    assert (settings.int8, settings.matryoshka) == (False, ())


def test_prefixes_are_of_whole_vectors_and_those_within_the_size_are_offered(folder, tmp_path):
    short = remade(tiny(), replace(tiny().settings, dim=16), None)
    short.save(tmp_path / "short")
    matryoshka = Matryoshka(InfoNCE(), dims=(0, 16, 8), weights=(1.0, 0.5, 0.5))
    made = replace(stage(folder, matryoshka), model=str(tmp_path / "short")).load(nowhere)
    assert made.settings.matryoshka == (short.size, 16, 8)
    assert (made.dim, made.prefixes) == (16, (8, 16))


def test_tokens_that_a_model_has_cannot_be_asked_away(folder, tmp_path):
    stage(folder, InfoNCE(), tokens=2).load(nowhere).save(tmp_path / "tokens")
    again = replace(stage(folder, InfoNCE(), tokens=0), model=str(tmp_path / "tokens"))
    with pytest.raises(ValueError, match="tokens=0: this embedder has 2 embedding tokens"):
        again.load(nowhere)
