"""Adapters merge as products: dense or as an adapter, the same function as their base with the merged ΔW in it."""

import json
import math
import shutil

import pytest
import torch
from omni2vec.data.types import DataError
from omni2vec.model.embedder import Embedder
from omni2vec.model.lora import Lora, attach
from omni2vec.model.merge.adapters import Product, cut, open_adapter, summed
from omni2vec.model.merge.average import Average, Weighted
from omni2vec.model.merge.merge import merge
from omni2vec.model.merge.slerp import Slerp
from omni2vec.model.merge.task_arithmetic import TaskArithmetic
from omni2vec.model.merge.ties import Ties
from safetensors.torch import load_file, save_file

from .small import mixed, tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny().save(tmp_path_factory.mktemp("lora") / "base")


def adapted(base, out, seed, lora, factor=1.0):
    """An adapter on the base, of some noise."""
    embedder = attach(Embedder.load(base), lora)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in embedder.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=chance) * 0.15 * factor)
        embedder.log_scale += 0.1 * seed
    return embedder.save(out)


@pytest.fixture(scope="module")
def pair(base, tmp_path_factory):
    """Adapters of other ranks, scalings and targets."""
    at = tmp_path_factory.mktemp("pair")
    one = adapted(base, at / "one", 1, Lora(rank=4, alpha=8.0))
    two = adapted(base, at / "two", 2, Lora(rank=6, alpha=6.0, rslora=True, targets=("q_proj", "v_proj", "up_proj")))
    return one, two


def vectors(embedder):
    return embedder.encode_items(mixed(4, video=False))


def delta(folder, base):
    """ΔW of every map, by peft's own merging."""
    from peft import PeftModel

    before = {k: v.clone() for k, v in Embedder.load(base).base.model.state_dict().items()}
    model = PeftModel.from_pretrained(Embedder.load(base).base.model, str(folder)).merge_and_unload()
    return {k: v - before[k] for k, v in model.state_dict().items()}, before


def test_an_adapter_and_itself_merge_into_the_adapters_function(base, pair, tmp_path):
    for folder in pair:
        merge(tmp_path / "dense", [folder, folder], Average())
        assert not (tmp_path / "dense/adapter_config.json").exists()
        want, found = vectors(Embedder.load(folder)), vectors(Embedder.load(tmp_path / "dense"))
        assert torch.allclose(found, want, atol=1e-5) and (want - vectors(Embedder.load(base))).abs().max() > 1e-3


def test_dense_weights_are_the_base_and_the_sum_of_products(base, pair, tmp_path):
    merge(tmp_path / "out", pair, TaskArithmetic((0.6, -0.3)), block_bytes=1 << 18)
    (one, before), (two, _) = (delta(p, base) for p in pair)
    out = Embedder.load(tmp_path / "out").base.model.state_dict()
    for name, w in before.items():
        assert torch.allclose(out[name], w + 0.6 * one[name] - 0.3 * two[name], atol=1e-5), name


def test_the_mean_of_factors_is_no_mean_of_products(base, pair, tmp_path):
    twin = adapted(base, tmp_path / "twin", 3, Lora(rank=4, alpha=8.0))
    merge(tmp_path / "right", [pair[0], twin], Average(), rank=8)
    first, second = (load_file(p / "adapter_model.safetensors") for p in (pair[0], twin))
    wrong = Embedder.load(pair[0])
    wrong.save(tmp_path / "wrong")
    save_file({k: (first[k] + second[k]) / 2 for k in first}, tmp_path / "wrong/adapter_model.safetensors")
    merge(tmp_path / "dense", [pair[0], twin], Average())
    dense, right, wrong = (vectors(Embedder.load(tmp_path / n)) for n in ("dense", "right", "wrong"))
    assert torch.allclose(right, dense, atol=1e-5)
    assert (wrong - dense).abs().max() > 1e-2


def test_an_adapter_of_the_ranks_sum_loses_nothing_and_loads_in_peft(base, pair, tmp_path):
    record = merge(tmp_path / "low", pair, Weighted((0.7, 0.3)), rank=10)
    merge(tmp_path / "dense", pair, Weighted((0.7, 0.3)))
    assert record["lost_norm"] < 1e-6
    low, dense = Embedder.load(tmp_path / "low"), Embedder.load(tmp_path / "dense")
    assert low.adapter is not None and dense.adapter is None
    assert torch.allclose(vectors(low), vectors(dense), atol=1e-5)
    assert low.log_scale.item() == pytest.approx(dense.log_scale.item(), abs=1e-6)


def test_a_lower_rank_says_what_share_of_the_norm_it_lost(base, pair, tmp_path):
    record = merge(tmp_path / "low", pair, Average(), rank=3)
    (one, _), (two, _) = (delta(p, base) for p in pair)
    (low, _) = delta(tmp_path / "low", base)
    lost = whole = 0.0
    for name in one:
        mean = (one[name] + two[name]).double() / 2
        lost, whole = lost + float((low[name] - mean).square().sum()), whole + float(mean.square().sum())
    assert record["lost_norm"] == pytest.approx(math.sqrt(lost / whole), rel=1e-3) and record["lost_norm"] > 0.1
    config = json.loads((tmp_path / "low/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (3, 3, False)
    assert record["lost_most"]["lost_norm"] >= record["lost_norm"]


def test_the_cut_is_the_nearest_matrix_of_its_rank():
    chance = torch.Generator().manual_seed(0)
    parts = [Product(torch.randn(40, r, generator=chance), torch.randn(r, 30, generator=chance)) for r in (3, 5)]
    whole = summed(parts, (0.5, -2.0))
    dense = whole.left @ whole.right
    u, s, v = torch.linalg.svd(dense)
    for rank in (1, 4, 8):
        found, lost, total = cut(whole, rank)
        assert torch.allclose(found.left @ found.right, u[:, :rank] * s[:rank] @ v[:rank], atol=1e-9)
        assert lost == pytest.approx(float(s[rank:].square().sum()), abs=1e-9)
        assert total == pytest.approx(float(dense.square().sum()))
    assert cut(whole, 12)[0].left.shape == (40, 12)  # zeros beyond the product's own rank


def test_a_nonlinear_rule_sees_adapters_as_dense_models(base, pair, tmp_path):
    merge(tmp_path / "out", pair, Ties(0.5))  # on differences from the adapters' own base
    out, before = Embedder.load(tmp_path / "out").base.model.state_dict(), delta(pair[0], base)[1]
    assert sum(int((out[k] != before[k]).any()) for k in before) == 14
    with pytest.raises(DataError, match="Slerp of adapters is no sum of their products"):
        merge(tmp_path / "low", pair, Slerp(0.5), rank=4)


def test_an_adapter_and_a_dense_model_merge_dense(base, pair, tmp_path):
    merge(tmp_path / "dense", [pair[0], pair[0]], Average())
    merge(tmp_path / "out", [tmp_path / "dense", pair[0]], Average())
    assert torch.allclose(vectors(Embedder.load(tmp_path / "out")), vectors(Embedder.load(pair[0])), atol=1e-5)
    with pytest.raises(DataError, match="dense is no adapter"):
        merge(tmp_path / "low", [tmp_path / "dense", pair[0]], Average(), rank=4)


def test_adapters_on_different_bases_are_refused(base, pair, tmp_path):
    other = tiny()
    with torch.no_grad():
        other.base.model.get_input_embeddings().weight += 0.01
    stranger = adapted(other.save(tmp_path / "other"), tmp_path / "stranger", 1, Lora(rank=4))
    for rank in (0, 4):
        with pytest.raises(DataError, match="adapters on different bases cannot be merged"):
            merge(tmp_path / "out", [pair[0], stranger], Average(), rank=rank)


def test_a_copy_of_the_base_elsewhere_is_the_same_base(base, pair, tmp_path):
    again = adapted(tiny().save(tmp_path / "copy"), tmp_path / "again", 1, Lora(rank=4, alpha=8.0))
    merge(tmp_path / "out", [pair[0], again], Average())
    assert torch.allclose(vectors(Embedder.load(tmp_path / "out")), vectors(Embedder.load(pair[0])), atol=1e-5)


def test_an_adapter_that_is_no_product_is_refused(base, tmp_path):
    dora = adapted(base, tmp_path / "dora", 1, Lora(rank=4, dora=True))
    with pytest.raises(DataError, match="an adapter of kind DoRA is no product"):
        merge(tmp_path / "out", [dora, dora], Average())


def test_a_rounded_base_is_refused_for_dense_weights(pair, tmp_path):
    shutil.copytree(pair[0], tmp_path / "rounded")
    record = json.loads((tmp_path / "rounded/omni2vec.json").read_text())
    (tmp_path / "rounded/omni2vec.json").write_text(json.dumps({**record, "quantized": "nf4"}))
    with pytest.raises(DataError, match="its base was rounded to nf4"):
        merge(tmp_path / "out", [tmp_path / "rounded"] * 2, Average())
    merge(tmp_path / "out", [tmp_path / "rounded"] * 2, Average(), rank=4)
    assert json.loads((tmp_path / "out/omni2vec.json").read_text())["quantized"] == "nf4"


def test_tensors_that_stand_in_place_of_the_bases_are_merged_as_they_are(base, pair, tmp_path):
    saved = []
    for i, folder in enumerate(pair):
        saved.append(shutil.copytree(folder, tmp_path / f"saved{i}"))
        tensors = load_file(saved[-1] / "adapter_model.safetensors")
        tensors["base_model.model.model.language_model.norm.weight"] = torch.full((64,), 2.0 + i)
        save_file(tensors, saved[-1] / "adapter_model.safetensors")
    merge(tmp_path / "dense", saved, Weighted((0.25, 0.75)))
    norm = next(
        v for k, v in load_file(tmp_path / "dense/model.safetensors").items() if k.endswith("model.norm.weight")
    )
    assert norm.tolist() == [2.75] * 64
    merge(tmp_path / "low", saved, TaskArithmetic((0.5,)), rank=10)
    low = load_file(tmp_path / "low/adapter_model.safetensors")
    assert low["base_model.model.model.language_model.norm.weight"].tolist() == [2.5] * 64  # 1 + (1 + 2) / 2


@pytest.mark.parametrize("kind", ["embedding", "turned"])
def test_products_that_lie_the_other_way_are_turned(kind, tmp_path):
    chance = torch.Generator().manual_seed(0)
    w, a, b = (torch.randn(s, generator=chance) for s in ((20, 6), (3, 20), (6, 3)))
    (tmp_path / "base").mkdir()
    save_file({"m.emb.weight": w}, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text("{}")
    (tmp_path / "adapter").mkdir()
    ends = ("lora_embedding_A", "lora_embedding_B") if kind == "embedding" else ("lora_A.weight", "lora_B.weight")
    factors = {f"base_model.model.m.emb.{end}": f for end, f in zip(ends, (a, b), strict=True)}
    save_file(factors, tmp_path / "adapter/adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base"), "r": 3, "lora_alpha": 6}
    config["fan_in_fan_out"] = kind == "turned"
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    merge(tmp_path / "out", [tmp_path / "adapter"] * 2, Average())
    found = load_file(tmp_path / "out/model.safetensors")["m.emb.weight"]
    assert torch.allclose(found, w + 2 * (b @ a).T, atol=1e-5)


def test_scalings_by_pattern_are_obeyed(pair, tmp_path):
    shutil.copytree(pair[0], tmp_path / "own")
    config = json.loads((tmp_path / "own/adapter_config.json").read_text())
    config["alpha_pattern"] = {"layers.0.self_attn.q_proj": 80.0}
    (tmp_path / "own/adapter_config.json").write_text(json.dumps(config))
    plain, own = open_adapter(pair[0]).products, open_adapter(tmp_path / "own").products
    ratios = {t.removeprefix("model."): (own[t].left / plain[t].left).mean().item() for t in plain}
    assert ratios.pop("layers.0.self_attn.q_proj.weight") == pytest.approx(10.0)
    assert set(ratios.values()) == {1.0}
