"""The GPU benchmark, in miniature on whatever is here; its models, in shape alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.slow
def test_the_miniature_compares_every_variant_before_it_is_timed():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--miniature"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert not done.returncode, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    loops = ["vlm2vec", "no head", "sorted", "tower kept"]
    for mode, names in {"lora": [*loops, "packed", "boundaries"], "full": [*loops[:3], "packed", "boundaries"]}.items():
        result = found[mode]["text_and_pictures"]
        exact, rounded = result["exact"]["gradients_apart"], result["at_size"]["gradients_apart"]
        assert set(names) <= set(exact) and max(exact.values()) < 1e-4
        assert set(names) <= set(rounded) and max(rounded.values()) <= result["at_size"]["limit"] < 0.2
        assert all(len(result["variants"][n]["seconds"]) == 2 for n in names)
        assert result["variants"]["boundaries"]["computed_over_real_tokens"] == 1
        assert result["variants"]["vlm2vec"]["computed_over_real_tokens"] > 1.3
        assert result["model_tflop"] > 0 and set(names[1:]) <= set(result["gain_of_each_switch"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_what_can_be_run():
    command = [sys.executable, str(BENCHMARKS / "gpu.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode and "no CUDA device here" in done.stderr and "--miniature" in done.stderr


@pytest.mark.parametrize(("size", "billions"), [("2b", 2.208985600), ("7b", 8.291375616)])
def test_the_models_have_the_published_number_of_parameters(size, billions, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_model

    embedder = gpu_model.build(size, "full", torch.device("meta"), low=True)
    assert sum(p.numel() for p in embedder.base.model.parameters()) == round(billions * 1e9)
