"""Merging folders: rules on real files, in blocks of any size, and what is refused."""

import json
import math
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omni2vec.data.types import DataError
from omni2vec.model.checkpoint import digest_of_folder
from omni2vec.model.embedder import Embedder, Learned, remade
from omni2vec.model.merge.average import Average, Weighted
from omni2vec.model.merge.blocks import Reader
from omni2vec.model.merge.dare import Dare
from omni2vec.model.merge.delta_guided import DeltaGuided
from omni2vec.model.merge.ema import Ema
from omni2vec.model.merge.fisher import Fisher
from omni2vec.model.merge.merge import merge
from omni2vec.model.merge.opened import prepare
from omni2vec.model.merge.slerp import Slerp
from omni2vec.model.merge.task_arithmetic import TaskArithmetic
from omni2vec.model.merge.ties import Ties
from omni2vec.model.merge.weights import Folder
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .small import mixed, tiny

SMALL = 1 << 18  # bytes of a block


def drawn(seed, *shape, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def folder(path, tensors, config=None):
    """A model's folder of tensors."""
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({"model_type": "toy", "dtype": "float32"} | (config or {})))
    return path


def some(seed, dtype=torch.float32):
    """Two tensors that are several blocks of SMALL, one that is a part of one, and a buffer of whole numbers."""
    return {
        "a.weight": drawn(seed, 300, 700).to(dtype),
        "b.weight": drawn(seed + 50, 7, 20_001).to(dtype),
        "c.bias": drawn(seed + 90, 13).to(dtype),
        "steps": torch.arange(5),
    }


@pytest.fixture
def three(tmp_path):
    """A base and two models of it."""
    base = some(0)
    paths = [folder(tmp_path / "base", base)]
    for i in (1, 2):
        moved = {k: v + drawn(100 * i + n, *v.shape, scale=0.1) if v.is_floating_point() else v
                 for n, (k, v) in enumerate(base.items())}  # fmt: skip
        paths.append(folder(tmp_path / f"m{i}", moved))
    return paths


def weights(path):
    return load_file(path / "model.safetensors")


def fishers(tmp_path, paths):
    files = []
    for i, p in enumerate(paths):
        files.append(tmp_path / f"fisher{i}.safetensors")
        save_file({k: v.float().square() + 0.1 for k, v in weights(p).items() if v.is_floating_point()}, files[-1])
    return tuple(map(str, files))


RULES = [Average(), Weighted((0.7, 0.3)), Slerp(0.3), Slerp(0.3, "model"), TaskArithmetic((0.4,)), Ties(0.2),
         Ties(0.3, over="model"), Dare(0.6, seed=3), Dare(0.5, ties=True), Ema(0.8), DeltaGuided()]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equal_inputs_come_back_to_the_bit(rule, three, tmp_path):
    if isinstance(rule, Dare | TaskArithmetic):
        rule = replace(rule, scales=(0.5,))
    base = three[0] if rule.needs_base else None
    one = three[1] if not isinstance(rule, Ties | Dare) else three[0]  # what these drop is not the model's any more
    merge(tmp_path / "out", [one, one], rule, base=base)
    for name, tensor in weights(one).items():
        assert torch.equal(weights(tmp_path / "out")[name], tensor), name


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_size_of_blocks_and_of_files_does_not_matter_to_the_bit(rule, three, tmp_path):
    merge(tmp_path / "large", three[1:], rule, base=three[0])
    merge(tmp_path / "small", three[1:], rule, base=three[0], block_bytes=SMALL, shard_bytes=1 << 20)
    assert len(list((tmp_path / "small").glob("model-*-of-00002.safetensors"))) == 2
    index = json.loads((tmp_path / "small/model.safetensors.index.json").read_text())["weight_map"]
    large = weights(tmp_path / "large")
    assert set(index) == set(large)
    for name, file in index.items():
        with safe_open(tmp_path / "small" / file, "pt") as found:
            assert torch.equal(found.get_tensor(name), large[name]), name
    merge(tmp_path / "again", [tmp_path / "small"] * 2, Average())  # several files are read, too
    assert all(torch.equal(t, large[name]) for name, t in weights(tmp_path / "again").items())


@pytest.mark.parametrize(
    "rule, end",
    [(Weighted((1.0, 0.0)), 1), (Weighted((0.0, 2.0)), 2), (Slerp(0.0), 1), (Slerp(1.0, "model"), 2), (Ema(1.0), 1),
     (Ema(0.0), 2), (TaskArithmetic((0.0,)), 0), (TaskArithmetic((1.0, 0.0)), 1), (Dare(0.0, (0.0, 1.0)), 2),
     (Ties(1.0, weights=(0.0, 1.0)), 2)], ids=str,
)  # fmt: skip
def test_an_end_of_the_path_is_that_model(rule, end, three, tmp_path):
    merge(tmp_path / "out", three[1:], rule, base=three[0])
    exact = not isinstance(rule, Dare | Ties)  # θ0 + (θ - θ0), rounded twice
    for name, tensor in weights(three[end]).items():
        found = weights(tmp_path / "out")[name]
        assert torch.equal(found, tensor) if exact else torch.allclose(found, tensor, atol=1e-6), name


@pytest.mark.parametrize("rule", [Average(), TaskArithmetic((0.3,)), Ties(0.3), DeltaGuided(), Slerp(0.5)], ids=str)
def test_the_order_of_models_does_not_matter_where_they_weigh_the_same(rule, three, tmp_path):
    merge(tmp_path / "ab", three[1:], rule, base=three[0])
    merge(tmp_path / "ba", three[:0:-1], rule, base=three[0])
    for name, tensor in weights(tmp_path / "ab").items():
        assert torch.allclose(weights(tmp_path / "ba")[name], tensor, atol=1e-7, rtol=0), name


def test_half_precision_is_added_in_more_than_it_has(tmp_path):
    paths = [folder(tmp_path / str(i), {"w": drawn(i, 4000).bfloat16()}) for i in range(9)]
    merge(tmp_path / "out", paths, Average())
    found = weights(tmp_path / "out")["w"]
    assert found.dtype == torch.bfloat16
    stacked = torch.stack([weights(p)["w"] for p in paths])
    exact = stacked.double().mean(0)
    assert torch.equal(found, exact.to(torch.bfloat16))
    added = torch.zeros(4000, dtype=torch.bfloat16)
    for w in stacked:
        added += w / 9
    assert (added.double() - exact).abs().mean() > 2 * (found.double() - exact).abs().mean()


def test_another_dtype_is_written_and_said_in_the_configuration(three, tmp_path):
    merge(tmp_path / "out", three[1:], Average(), dtype=torch.bfloat16)
    assert weights(tmp_path / "out")["a.weight"].dtype == torch.bfloat16
    assert weights(tmp_path / "out")["steps"].dtype == torch.int64
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_whole_numbers_are_the_firsts_and_that_they_differ_is_told(three, tmp_path):
    changed = weights(three[2]) | {"steps": torch.arange(5) + 1}
    save_file(changed, three[2] / "model.safetensors")
    record = merge(tmp_path / "out", three[1:], Average())
    assert torch.equal(weights(tmp_path / "out")["steps"], torch.arange(5))
    assert any("steps holds whole numbers that differ" in line for line in record["told"])


def test_the_record_names_the_inputs_by_what_they_hold(three, tmp_path):
    record = merge(tmp_path / "out", three[1:], Ties(0.3), base=three[0])
    assert record == json.loads((tmp_path / "out/merge.json").read_text())
    assert [m["digest"] for m in record["models"]] == [digest_of_folder(str(p)) for p in three[1:]]
    assert record["rule"]["name"] == "Ties" and record["rule"]["density"] == 0.3
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.old"))


def test_memory_is_that_of_blocks_not_of_models(tmp_path):
    """Three models of 24 MB, blocks of 256 kB: less than 16 MB is taken, the files' own pages apart."""
    noise = drawn(0, 6 << 10, 1 << 10)
    paths = [folder(tmp_path / str(i), {"w": noise * (i + 1)}) for i in range(3)]
    del noise
    merge(tmp_path / "warm", paths, Average(), block_bytes=SMALL)
    peak, done = [0], threading.Event()

    def anonymous():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not say what a process takes")

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.001)

    before, watcher = anonymous(), threading.Thread(target=watch)
    watcher.start()
    merge(tmp_path / "out", paths, Ties(0.2), base=paths[0], block_bytes=SMALL)
    done.set()
    watcher.join()
    assert peak[0] - before < 16 << 20


def test_a_block_is_let_go_before_the_next_is_read(tmp_path):
    noise = torch.zeros(8 << 20)  # four blocks of 8 MB
    paths = [folder(tmp_path / str(i), {"w": noise}) for i in range(2)]
    plan = prepare(paths, Average())
    held = []

    class Seen(Folder):
        def read(self, key, start, stop):
            values = super().read(key, start, stop)
            held.append(weakref.ref(values.untyped_storage()))
            most.append(sum(r() is not None for r in held))
            return values

    most, seen = [], tuple(Seen(m.label, m.folder, m.tensors.entries) for m in plan.models)
    kept = list(Reader(replace(plan, tensors=seen), [], 2 << 20).blocks(next(iter(plan.first.entries))))
    assert len(held) == 8 and max(most) == 2 and len(kept) > 4


# ---- what is refused


def test_a_missing_tensor_is_named(three, tmp_path):
    save_file({k: v for k, v in weights(three[2]).items() if k != "b.weight"}, three[2] / "model.safetensors")
    with pytest.raises(DataError, match=r"m2 lacks b\.weight"):
        merge(tmp_path / "out", three[1:], Average())
    with pytest.raises(DataError, match=r"m1 has b\.weight \(of 1\), which .*m2 has not"):
        merge(tmp_path / "out", [three[2], three[1]], Average())


def test_a_shape_that_differs_is_named_with_both(three, tmp_path):
    save_file(weights(three[2]) | {"a.weight": drawn(0, 301, 700)}, three[2] / "model.safetensors")
    with pytest.raises(DataError, match=r"a\.weight is \[300, 700\] in .*m1 and \[301, 700\] in .*m2"):
        merge(tmp_path / "out", three[1:], Average())


def test_words_of_other_numbers_are_refused(three, tmp_path):
    for path, vocabulary in zip(three[1:], ({"a": 0, "b": 1}, {"b": 0, "a": 1}), strict=True):
        (path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    with pytest.raises(DataError, match=r"the token 'a' is number 0 in .*m1 and 1 in .*m2"):
        merge(tmp_path / "out", three[1:], Average())


def test_another_number_of_heads_is_another_model(three, tmp_path):
    for heads, path in enumerate(three[1:], 4):
        (path / "config.json").write_text(json.dumps({"text_config": {"num_attention_heads": heads}}))
    with pytest.raises(DataError, match=r"text_config\.num_attention_heads is 4 in .* and 5"):
        merge(tmp_path / "out", three[1:], Average())


def test_a_number_that_is_none_is_traced_to_its_model(three, tmp_path):
    bad = weights(three[2])
    bad["c.bias"][3] = math.nan
    save_file(bad, three[2] / "model.safetensors")
    with pytest.raises(DataError, match=r"c\.bias in .*m2 has numbers that are not finite"):
        merge(tmp_path / "out", three[1:], Average())
    assert not (tmp_path / "out").exists()


def test_what_is_beyond_half_precision_says_so(tmp_path):
    paths = [folder(tmp_path / str(i), {"w": torch.full((4,), 60000.0 * i)}) for i in range(3)]
    with pytest.raises(DataError, match=r"w: merged, it goes beyond torch\.float16"):
        merge(tmp_path / "out", paths[1:], TaskArithmetic(), base=paths[0], dtype=torch.float16)


@pytest.mark.parametrize(
    "rule, words",
    [(Weighted((1.0, 2.0, 3.0)), "3 numbers for 2 models"), (Weighted((0.0,)), "one above 0"),
     (Slerp(1.5), "expected 0"), (Ties(0.0), "above 0"), (Dare(1.0), "less than 1"), (Ema(2.0), "decay=2"),
     (Fisher(("one",)), "1 files of Fisher tensors for 2 models"), (DeltaGuided(-1.0), "0 or more"),
     (Average(), None)],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(rule, words, three, tmp_path):
    if words is None:
        with pytest.raises(DataError, match="1 model to merge; give two or more"):
            merge(tmp_path / "out", three[1:2], rule)
        return
    with pytest.raises(DataError, match=words):
        merge(tmp_path / "out", three[1:], rule, base=three[0])


def test_a_rule_of_differences_asks_for_the_base(three, tmp_path):
    with pytest.raises(DataError, match=r"Ties works on the differences .* give it as base"):
        merge(tmp_path / "out", three[1:], Ties())


def test_a_file_that_was_cut_short_is_named(three, tmp_path):
    file = three[2] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"m2/model.safetensors: ends inside"):
        merge(tmp_path / "out", three[1:], Average())


# ---- embedders


def moved(seed, scale=None, **settings):
    """A tiny embedder whose weights are a little elsewhere."""
    embedder = tiny(**settings)
    if scale is not None:
        embedder = remade(embedder, replace(embedder.settings, scale=scale), None)
    with torch.no_grad():
        for n, p in enumerate(embedder.parameters()):
            p += drawn(seed * 1000 + n, *p.shape, scale=0.01)
    return embedder


def test_merged_embedders_load_and_tied_weights_stay_tied(tmp_path):
    paths = [moved(i, Learned(20.0)).save(tmp_path / str(i)) for i in (1, 2)]
    merge(tmp_path / "out", paths, Average())
    one, two, out = (Embedder.load(p) for p in (*paths, tmp_path / "out"))
    assert set(weights(tmp_path / "out")) == set(weights(paths[0]))
    model = out.base.model
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    for (name, mean), a, b in zip(out.state_dict().items(), one.state_dict().values(), two.state_dict().values(),
                                  strict=True):  # fmt: skip
        assert torch.equal(mean, ((a.double() + b.double()) / 2).float()), name
    assert out.log_scale.item() not in (one.log_scale.item(), two.log_scale.item())
    assert out.encode_items(mixed(4, video=False)).isfinite().all()


def test_a_copy_of_tied_weights_that_one_model_saved_is_no_difference(tmp_path):
    paths = [moved(i).save(tmp_path / str(i)) for i in (1, 2)]
    tensors = weights(paths[1])
    embedding = next(k for k in tensors if "embed_tokens" in k)
    save_file(
        tensors | {"lm_head.weight": tensors[embedding].clone()}, paths[1] / "model.safetensors", {"format": "pt"}
    )
    merge(tmp_path / "ab", paths, Average())
    merge(tmp_path / "ba", paths[::-1], Dare(0.5), base=paths[0])
    assert "lm_head.weight" not in weights(tmp_path / "ab")
    both = weights(tmp_path / "ba")
    assert torch.equal(both["lm_head.weight"], both[embedding])


def test_a_base_without_our_parts_takes_their_mean(tmp_path):
    base = tiny().save(tmp_path / "base")
    for own in ("omni2vec.safetensors", "omni2vec.json"):
        (base / own).unlink()
    paths = [moved(i, Learned(20.0)).save(tmp_path / str(i)) for i in (1, 2)]
    record = merge(tmp_path / "out", paths, TaskArithmetic((0.5,)), base=base)
    scales = [Embedder.load(p).log_scale.item() for p in (*paths, tmp_path / "out")]
    assert scales[2] == pytest.approx(sum(scales[:2]) / 2, abs=1e-6)
    assert any("the base lacks log_scale" in line for line in record["told"])


def test_how_a_base_makes_its_vectors_does_not_matter(tmp_path):
    paths = [tiny().save(tmp_path / "base"), *(moved(i, pooling="mean").save(tmp_path / str(i)) for i in (1, 2))]
    merge(tmp_path / "out", paths[1:], Ties(0.5), base=paths[0])
    assert Embedder.load(tmp_path / "out").settings.pooling == "mean"


@pytest.mark.parametrize("name, value", [("pooling", "mean"), ("attention", "bidirectional"), ("normalise", False)])
def test_models_that_make_vectors_differently_are_refused(name, value, tmp_path):
    paths = [tiny().save(tmp_path / str(i)) for i in (1, 2)]
    record = json.loads((paths[1] / "omni2vec.json").read_text())
    record["settings"][name] = value
    (paths[1] / "omni2vec.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=f"{name} is .* their vectors are made differently"):
        merge(tmp_path / "out", paths, Average())


def test_settings_that_change_no_vector_are_told(tmp_path):
    paths = [moved(1, Learned(20.0)).save(tmp_path / "1"), moved(2, Learned(30.0)).save(tmp_path / "2")]
    record = merge(tmp_path / "out", paths, Average())
    assert any(line.startswith("scale differs in") for line in record["told"])


@pytest.mark.parametrize("kind", ["old", "partial"])
def test_folders_that_only_look_like_leftovers_are_models_like_any(kind, three, tmp_path):
    mine = three[1].rename(tmp_path / f"out.{kind}")
    merge(tmp_path / "out", (mine, three[2]), Average())
    merge(tmp_path / "out", (mine, three[2]), Weighted((1.0, 0.0)))
    assert torch.equal(weights(tmp_path / "out")["c.bias"], weights(mine)["c.bias"])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["base", "out", mine.name, three[2].name])


def test_what_is_refused_leaves_nothing_and_the_old_output_stays(three, tmp_path):
    merge(tmp_path / "out", three[1:], Average())
    before = (tmp_path / "out/model.safetensors").read_bytes()
    save_file(weights(three[2]) | {"c.bias": torch.full((13,), math.nan)}, three[2] / "model.safetensors")
    with pytest.raises(DataError, match="not finite"):
        merge(tmp_path / "out", three[1:], Average())
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".out*"))


def test_an_output_moved_aside_by_a_killed_merge_comes_back(three, tmp_path):
    merge(tmp_path / "out", three[1:], Average())
    (tmp_path / "out").rename(tmp_path / ".out.old")
    with pytest.raises(DataError, match="two or more"):
        merge(tmp_path / "out", three[1:2], Average())
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_place_that_cannot_be_written_is_named(three, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"out: not merged .*Not a directory"):
        merge(tmp_path / "file/out", three[1:], Average())


@pytest.mark.parametrize(
    "rule, says",
    [(TaskArithmetic((math.nan,)), "finite"), (Ties(scale=math.inf), "finite"), (Dare(scales=(math.inf,)), "finite"),
     (Ties(weights=(0.0,)), "one above 0")],
)  # fmt: skip
def test_numbers_that_no_merge_can_have_are_named_as_such(rule, says, three, tmp_path):
    with pytest.raises(DataError, match=says):
        merge(tmp_path / "out", three[1:], rule, base=three[0])
