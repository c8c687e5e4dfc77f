"""The Release step: a trained embedder becomes a folder that omni2vec, sentence-transformers and transformers load.

The folder is the same function in each of them, or it is not made: the step loads it back in fresh processes, by the
code that its card shows, and compares vectors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..data.types import DataError, Step, Where
from ..eval.evaluate import Evaluate
from ..model.checkpoint import ADAPTER, snapshot
from ..model.embedder import Embedder
from ..model.lora import merged
from .card import About, Scores, card
from .export import export, longest, reason, without_clips, write
from .graph import Recipe
from .push import REPO
from .record import write as record
from .verify import LEAST, Verified, reader_of, vectors, verify


@dataclass(frozen=True)
class Release:
    """A release of `model` (a step, a folder or a hub name) with a model card, checked before it is one.

    report: the Evaluate step whose scores the card shows. base_model, revision: hub name and commit of what it was
    trained from; an adapter's own configuration is pointed at them. adapter: release the LoRA alone, else it is merged
    in. dtype: of the weights, by default as they are. allow: "all" refuses what sentence-transformers cannot say,
    "omni2vec" releases it without their files, and the card says why. check: load it back and compare.
    """

    name: str
    model: Step | str
    report: Evaluate | None = None
    title: str = ""
    license: str = "apache-2.0"
    base_model: str = ""
    revision: str = ""
    languages: tuple[str, ...] = ("en",)
    tags: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    adapter: bool = False
    allow: Literal["all", "omni2vec"] = "all"
    check: bool = True

    def __post_init__(self) -> None:
        if self.report is not None and self.report.model != self.model:
            raise DataError(f"release '{self.name}': report '{self.report.name}' scores another model than is released")
        if self.adapter and not self.base_model:
            raise DataError(f"release '{self.name}': adapter=True needs base_model, the hub name that readers load")

    def make(self, out: Path, where: Where) -> None:
        """Fills `out`. Raises DataError where a reader's vectors differ, or a layout cannot be said (see `allow`)."""
        source = snapshot(self.model if isinstance(self.model, str) else where(self.model))
        embedder = Embedder.load(source, device="cpu", dtype=torch.float32)
        before = vectors(embedder) if self.check else {}
        ready, exact = self._ready(embedder, source)
        why = reason(ready)
        if why and self.allow == "all":
            raise DataError(
                f"release '{self.name}': sentence-transformers cannot load this faithfully: {why}. Change it, or set "
                'allow="omni2vec" for a folder without its files'
            )
        _fill(ready, out)
        export(ready, out, sentence_transformers=not why)
        if self.adapter:
            self._point(out)
        scores = Scores.load(where(self.report)) if self.report else None
        self._card(ready, out, why, scores, None)
        if self.check:
            # Rounded weights are another function, by a little: then the readers are held against each other.
            verified = verify(out, before if exact else None)
            moved = 1.0 if exact else _moved(out, before)
            if verified.clips is not None and verified.clips < LEAST:
                without_clips(out)
            self._card(ready, out, why, scores, verified, moved)
            say(self.name, verified)

    def _ready(self, embedder: Embedder, source: Path) -> tuple[Embedder, bool]:
        """As it will be saved (merged unless it goes out as an adapter, in its dtype); whether nothing was rounded."""
        if self.adapter and embedder.adapter is None:
            raise DataError(f"release '{self.name}': adapter=True, but {source} has no adapter; set adapter=False")
        if self.adapter and embedder.settings.tokens:
            raise DataError(
                f"release '{self.name}': adapter=True, but its base has no rows for the {embedder.settings.tokens} "
                "embedding tokens, and other readers would fail on it; set adapter=False, which merges"
            )
        saved = _saved_dtype(source)
        dtype = self.dtype or saved
        exact = dtype == "float32" or (dtype == saved and embedder.adapter is None)
        ready = embedder if self.adapter else merged(embedder)
        ready.backbone.model.to(getattr(torch, dtype))
        return ready, exact

    def _point(self, out: Path) -> None:
        """peft writes the base's path on this machine; readers need its name on the hub."""
        config = json.loads((out / ADAPTER).read_text(encoding="utf-8"))
        write(out / ADAPTER, config | {"base_model_name_or_path": self.base_model, "revision": self.revision or None})

    def _card(
        self,
        embedder: Embedder,
        out: Path,
        why: str,
        scores: Scores | None,
        verified: Verified | None,
        moved: float = 1.0,
    ) -> None:
        title = self.title or self.name
        about = About(
            title.rsplit("/", 1)[-1],
            self.license,
            self.base_model,
            self.languages,
            self.tags,
            self.datasets,
            library="peft" if self.adapter else "omni2vec" if why else "sentence-transformers",
            pipeline="feature-extraction" if why else "sentence-similarity",
            reason=why,
            notes=notes(embedder, verified, moved),
            record=record(Recipe(self.name, (self,))),
        )
        reader = reader_of(out, title if REPO.fullmatch(title) else "path/to/this/folder")
        (out / "README.md").write_text(card(embedder, reader, about, scores, verified), encoding="utf-8")


def notes(embedder: Embedder, verified: Verified | None, moved: float = 1.0) -> tuple[str, ...]:
    """What a reader must know to get the same vectors. moved: cosine to the vectors before weights were rounded."""
    template = embedder.template
    shrinks = "shrinks pictures, then cuts the longest text" if template.image else "cuts the longest text"
    out = [f"Beyond {longest(embedder):,} tokens omni2vec {shrinks}; other readers cut from the end or fail."]
    clips = verified.clips if verified else None
    if clips is not None and clips < LEAST:
        out.append(f"Clips: in omni2vec only. The stock processor feeds them otherwise (cosine {clips:.4f}).")
    elif clips is not None:
        out.append(f"Clips give the same vectors in sentence-transformers (cosine {clips:.7f}).")
    if template.full_stop:
        out.append("omni2vec ends an instruction without punctuation in a full stop; elsewhere, write it yourself.")
    if not template.target_instructed:
        out.append(f"Documents always have the instruction “{template.target}”.")
    if moved < 1.0:
        out.append(f"The weights were rounded for this folder: cosine {moved:.5f} to the trained model's vectors.")
    if embedder.settings.dim:
        out.append("Vectors are cut; sentence-transformers does not normalise them again after the cut.")
    return tuple(out)


def say(name: str, verified: Verified) -> None:
    """One line a reader."""
    for reader, found in verified.cosines.items():
        print(f"release '{name}': {reader} gives the same vectors, least cosine {min(found.values()):.7f}")
    for reader, why in verified.missing.items():
        print(f"release '{name}': {reader} was not checked: {why}", file=sys.stderr)


def _saved_dtype(folder: Path) -> str:
    """The dtype that the checkpoint is saved in; an adapter's is its base's."""
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
        folder = snapshot(base)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _moved(folder: Path, before: Mapping[str, Tensor]) -> float:
    """The least cosine between the vectors before the weights were rounded, and after."""
    after = vectors(Embedder.load(folder, device="cpu", dtype=torch.float32))
    return min(float(torch.cosine_similarity(v, after[case], dim=0)) for case, v in before.items())


def _fill(embedder: Embedder, out: Path) -> None:
    """Saves into `out`, which exists: a step fills the folder that it is given."""
    for file in embedder.save(out / "model").iterdir():
        file.rename(out / file.name)
    (out / "model").rmdir()
