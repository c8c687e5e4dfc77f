"""Small embedders and their releases, which several tests share."""

import json
import os
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omni2vec.launch.release import Release
from omni2vec.model.backbones.tiny import Tiny, build
from omni2vec.model.embedder import Embedder

WORDS = ["a red circle above the blue square", "find the image that matches the caption"] * 20
READERS = {"omni2vec", "sentence-transformers", "transformers"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small lose by threads; the fresh processes inherit the environment."""
    before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(before[0])
    os.environ.pop("OMP_NUM_THREADS")
    if before[1] is not None:
        os.environ["OMP_NUM_THREADS"] = before[1]


def small(kind="qwen2_vl", template=None, **settings):
    """An embedder of a few hundred thousand weights. `template`: settings of its Template."""
    patch = 16 if kind == "qwen3_vl" else 14
    tiny = Tiny(texts=(), kind=kind, patch=patch, width=48, layers=2, heads=2, vision=32, depth=3, vocabulary=400)
    made = build(tiny, WORDS)
    changed = replace(made.template, **(template or {}))
    backbone = type(made.backbone)(made.backbone.model, made.backbone.processor, changed)
    return Embedder(backbone, changed, replace(made.settings, **settings)).eval()


def here(script, folder):
    """Runs a reader's code in this process: seconds less than a fresh one for each, for all but one of these tests."""
    out = script.with_suffix(".json")
    before, arguments = Path.cwd(), sys.argv
    try:
        os.chdir(script.parent)
        sys.argv = [str(script), str(out)]
        runpy.run_path(str(script))
    finally:
        os.chdir(before)
        sys.argv = arguments
    return json.loads(out.read_text())


def released(embedder, tmp_path, **fields):
    """The folder of a release that was not checked yet."""
    source = embedder.save(tmp_path / "source")
    out = tmp_path / "release"
    out.mkdir()
    Release("release", str(source), check=False, **fields).make(out, lambda step: tmp_path)
    return out


def read(path):
    return json.loads(path.read_text())
