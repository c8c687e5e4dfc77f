"""A small backbone whose arithmetic stays in float64, and rows in memory: for tests of exactness."""

from dataclasses import dataclass, field

import numpy as np
import torch
from omni2vec.data.loader import Loader
from omni2vec.data.mix import Feed
from omni2vec.data.types import Cost, Example, Item, Limits, Text
from omni2vec.model.attention import Segments, packed_attention
from omni2vec.model.embedder import Embedder, Learned, Settings
from omni2vec.model.template import Template
from omni2vec.model.types import Inputs, Towers
from torch import nn
from torch.utils.checkpoint import checkpoint

VOCABULARY = 50


def tokens_of(text):
    return [4 + ord(c) % (VOCABULARY - 4) for c in text]


class ToyFormat:
    """A letter is a token. A text that begins with "#" has a medium: two tower rows of the letter behind it."""

    def count(self, prompts, limits):
        return [Cost(len(self._ids(p)) + len(p.answer), len(p.answer), ("image",) * self._pictured(p)) for p in prompts]

    def collate(self, prompts, limits, dummies=(), skip=False):
        ids, labels, rows, patches, lengths, prefix, failed = [], [], [], [], [], [], []
        for i, p in enumerate(prompts):
            prompt, answer = self._ids(p), tokens_of(p.answer)
            if self._pictured(p):
                rows += [len(ids), len(ids) + 1]
                patches += [[ord(p.item.parts[0].text[1])] * 3] * 2
                if p.item.parts[0].text[1] == "!":
                    failed.append(i)
            labels += [-100] * (len(prompt) - 1) + [*answer, -100]
            ids += prompt + answer
            lengths.append(len(prompt) + len(answer))
            prefix.append(len(prompt))
        for kind in dummies:
            if kind == "image":
                rows += [len(ids), len(ids) + 1]
                patches += [[128] * 3] * 2
            own = [1, 1, 2] if kind == "image" else [2]
            ids += own
            labels += [-100] * len(own)
            lengths.append(len(own))
            prefix.append(len(own))
        media = {"rows": torch.tensor(rows), "patches": torch.tensor(patches, dtype=torch.uint8)} if rows else {}
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        return Inputs(
            ids=torch.tensor(ids), lengths=tuple(lengths), prefix=tuple(prefix), positions=positions,
            pooled=torch.ones(len(ids), dtype=torch.bool), labels=torch.tensor(labels), media=media,
            keys=tuple(p.key for p in prompts) + ("",) * len(dummies),
            groups=tuple(p.group for p in prompts) + (-1,) * len(dummies), failed=tuple(failed), dummies=len(dummies),
        )  # fmt: skip

    def _pictured(self, prompt):
        return prompt.item.parts[0].text.startswith("#")

    def _ids(self, prompt):
        return [1, 1] * self._pictured(prompt) + tokens_of(prompt.item.parts[0].text) + [2]


class Block(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x, segments):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(1, 2, 0, 3)
        seen, _ = packed_attention(self, q[None], k[None], v[None], None, segments=segments)
        x = x + self.drop(self.out(seen[0].flatten(1)))
        return x + self.drop(self.mlp(x))


class Model(nn.Module):
    def __init__(self, width, dropout):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.place = nn.Embedding(64, width)
        self.visual = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY)
        self.checkpointing, self.tower_calls = False, 0

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None):
        self.checkpointing = True

    def gradient_checkpointing_disable(self):
        self.checkpointing = False


class ToyBackbone(nn.Module):
    def __init__(self, width=16, dropout=0.0):
        super().__init__()
        self.model, self.width, self.format = Model(width, dropout), width, ToyFormat()

    def towers(self, inputs):
        if "patches" not in inputs.media:
            return Towers()
        self.model.tower_calls += 1
        pixels = inputs.media["patches"].to(self.model.visual.weight.dtype) / 255
        return Towers({"image": (self.model.visual(pixels),)})

    def embed(self, inputs, towers, attention):
        x = self.model.embed(inputs.ids) + self.model.place(inputs.positions[0])
        if towers.features:
            x = x.index_add(0, inputs.media["rows"], towers.features["image"][0].to(x.dtype))
        segments = Segments(inputs.lengths, inputs.prefix, attention)
        for block in self.model.blocks:
            checkpointed = self.model.checkpointing and self.training and torch.is_grad_enabled()
            x = checkpoint(block, x, segments, use_reentrant=False) if checkpointed else block(x, segments)
        return self.model.norm(x)

    def logits(self, hidden):
        return self.model.lm_head(hidden)

    def groups(self):
        tower = list(self.model.visual.parameters())
        own = {id(p) for p in tower}
        return {"tower": tower, "language": [p for p in self.model.parameters() if id(p) not in own]}


@dataclass(frozen=True)
class ToyRows:
    name: str
    rows: tuple = field(repr=False)
    digest: str = "toy"

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def open(self, where):
        return self


def rows(name="toy", count=40, seed=0, answers=True):
    """Queries of ragged lengths, one to three positives, some negatives, shared documents, answers on every third."""
    rng = np.random.default_rng(seed)

    def word(n):
        return "".join(chr(97 + int(c)) for c in rng.integers(0, 26, n))

    found = []
    for i in range(count):
        query = ("#" if i % 4 == 0 else "") + word(int(rng.integers(3, 20)))
        positives = tuple(
            Item.text("shared" if i % 7 == k else word(int(rng.integers(2, 12)))) for k in range(1 + i % 3)
        )
        negatives = tuple(Item.text(word(5)) for _ in range(i % 3))
        answer = word(int(rng.integers(1, 15))) if answers and i % 3 == 0 else ""
        found.append(Example(f"{name}/0/{i}", name, "retrieval", Item.text(query), positives, negatives, answer=answer))
    return ToyRows(name, tuple(found))


def embedder(dropout=0.0, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    settings = Settings(scale=Learned(init=8.0))
    return Embedder(ToyBackbone(dropout=dropout), Template(instruct="none"), settings).to(dtype).train()


def loader(sources, feeds=None, batch=12, sub_batch=None, budget=1 << 30, **settings):
    feeds = feeds or [Feed(s, positives=3, negatives=2) for s in sources]
    return Loader(
        sources,
        feeds,
        ToyFormat(),
        Limits(),
        batch=batch,
        sub_batch=sub_batch or batch,
        seed=0,
        budget=budget,
        **settings,
    )


def texts(item):
    return [p.text for p in item.parts if isinstance(p, Text)]
