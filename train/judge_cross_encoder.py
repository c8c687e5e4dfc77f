"""CrossEncoder: a reranker of texts from transformers, which reads query and candidate together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.types import DataError, Events, Item, Step, Text, Where, digest
from .judge import Pair


@dataclass(frozen=True)
class CrossEncoder:
    """A folder or hub name that AutoModelForSequenceClassification loads, with one output, its logit, or two (the
    second's less the first's). Texts alone.

    sigmoid: scores in 0 to 1 instead of logits. instructed: the rows' instruction stands in front of the query, on a
    line of its own. max_tokens: of a pair; the longer text is cut, and the report has how many pairs were. batch: pairs
    of like length that run together.
    """

    model: Step | str
    max_tokens: int = 512
    batch: int = field(default=32, compare=False)
    sigmoid: bool = False
    instructed: bool = False
    device: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.max_tokens < 8 or self.batch < 1:
            raise ValueError(
                f"CrossEncoder: max_tokens={self.max_tokens}, batch={self.batch}; expected 8 or more, 1 or more"
            )

    def outside(self, where: Where) -> dict[str, str]:
        """The digest of a model that no step made."""
        from ..model.checkpoint import digest_of_folder

        return {f"judge {self.model}": digest_of_folder(self.model)} if isinstance(self.model, str) else {}

    def open(self, where: Where) -> _Loaded:
        """Raises DataError for a model of another number of outputs, or without the head that makes them."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from ..model.checkpoint import digest_of_folder

        folder = self.model if isinstance(self.model, str) else str(where(self.model))
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
        if missing := sorted(found["missing_keys"]):  # transformers draws them at random, with a warning
            raise DataError(
                f"{folder}: has no {missing[0]} (of {len(missing)} tensors that a judge needs), so its scores would be "
                "random; give a reranker, not an embedder or a language model"
            )
        if model.config.num_labels not in (1, 2):
            raise DataError(
                f"{folder}: {model.config.num_labels} outputs; a judge has one, or two of which the second says yes"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        settings = repr((self.max_tokens, self.sigmoid, self.instructed))
        longest = min(self.max_tokens, int(tokenizer.model_max_length))
        name = digest("cross encoder", digest_of_folder(folder), settings)
        return _Loaded(self, model.eval().to(device), tokenizer, longest, name)


@dataclass
class _Loaded:
    """A Judge."""

    settings: CrossEncoder
    model: Any
    tokenizer: Any
    longest: int
    digest: str
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def told(self) -> Mapping[str, int]:
        return dict(self.counts)

    def scores(self, pairs: Sequence[Pair], instruction: str) -> NDArray[np.float32]:
        """See Judge. Raises DataError, with the row's key, for a picture or a sound."""
        front = f"{instruction}\n" if self.settings.instructed and instruction else ""
        queries = [front + text_of(p.query, p.key) for p in pairs]
        candidates = [text_of(p.candidate, p.key) for p in pairs]
        whole = self.tokenizer(queries, candidates)["input_ids"] if pairs else []
        lengths = [len(ids) for ids in whole]
        self.counts["pairs_cut"] += sum(n > self.longest for n in lengths)
        order = sorted(range(len(pairs)), key=lambda i: -lengths[i])
        out = np.zeros(len(pairs), np.float32)
        for start in range(0, len(order), self.settings.batch):
            mine = order[start : start + self.settings.batch]
            out[mine] = self._batch([queries[i] for i in mine], [candidates[i] for i in mine])
        return out

    def _batch(self, queries: list[str], candidates: list[str]) -> NDArray[np.float32]:
        inputs = self.tokenizer(
            queries,
            candidates,
            padding=True,
            truncation="longest_first",
            max_length=self.longest,
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            logits = self.model(**inputs).logits.float()
        score = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
        found: NDArray[np.float32] = (score.sigmoid() if self.settings.sigmoid else score).cpu().numpy()
        return found


def text_of(item: Item, key: str) -> str:
    """An Item's texts and events, a line each. Raises DataError for any other medium."""
    lines: list[str] = []
    for part in item.parts:
        match part:
            case Text(text):
                lines.append(text)
            case Events(events, _):
                lines.extend(f"{e.action} {e.text}" for e in events)
            case _:
                kind = type(part).__name__.lower()
                raise DataError(f"{key}: holds {kind}, and this judge reads texts alone; take YesNo or Endpoint")
    return "\n".join(lines)
