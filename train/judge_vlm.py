"""YesNo: a generative model that is asked whether a candidate fits a query, and answers through its own logits.

The score is sigmoid(logit of yes - logit of no) where the answer would begin, which is the softmax over these two words
alone (UniME-V2's judge; ReMatch). Any model that an Embedder loads with its language-model head; pictures too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.asking import QUESTION, question_of
from ..data.chunks import Chunk, plan
from ..data.types import DataError, Limits, Prompted, Step, Where, digest
from ..model.embedder import Embedder
from .judge import Pair


@dataclass(frozen=True)
class YesNo:
    """A step, or what Embedder.load takes: a vision-language model, or an embedder trained on yes/no rows
    (data/asking.py), which shows it the very same prompts.

    The rows' instruction stands where the template puts instructions. log_odds: logit of yes less logit of no, in place
    of its sigmoid; a probability that nears 1 for several candidates tells them apart no longer. limits: in place of
    the model's own. tokens: of a packed row.
    """

    model: Step | str
    question: str = QUESTION
    yes: str = "Yes"
    no: str = "No"
    log_odds: bool = False
    limits: Limits | None = None
    tokens: int = field(default=0, compare=False)
    device: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.yes or not self.no or self.yes == self.no:
            raise ValueError(f"YesNo: yes={self.yes!r}, no={self.no!r}; expected two unlike words")

    def outside(self, where: Where) -> dict[str, str]:
        """The digest of a model that no step made."""
        from ..model.checkpoint import digest_of_folder

        return {f"judge {self.model}": digest_of_folder(self.model)} if isinstance(self.model, str) else {}

    def open(self, where: Where) -> _Loaded:
        """Raises DataError for a model that sees its answer, or has no language-model head."""
        embedder = Embedder.load(
            self.model if isinstance(self.model, str) else where(self.model), device=self.device or None
        )
        if embedder.settings.attention == "bidirectional":
            raise DataError(
                f"YesNo: {self.model} attends both ways, and would see its answer; take a causal model, or "
                "attention='prefix'"
            )
        words = repr((self.question, self.yes, self.no, self.log_odds, self.limits))
        return _Loaded(self, embedder.eval(), digest("yes no", embedder.digest, words))


@dataclass
class _Loaded:
    """A Judge."""

    settings: YesNo
    embedder: Embedder
    digest: str
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def told(self) -> Mapping[str, int]:
        return dict(self.counts)

    def scores(self, pairs: Sequence[Pair], instruction: str) -> NDArray[np.float32]:
        """See Judge."""
        if not pairs:
            return np.zeros(0, np.float32)
        prompts = [self._prompt(p, instruction) for p in pairs]
        words = self._words(prompts[0])
        limits = replace(self.settings.limits or self.embedder.limits, draft=False)
        costs = self.embedder.format.count(prompts, [limits] * len(prompts))
        self.counts["pairs_cut"] += sum(c.cut > 0 for c in costs)
        budget = self.settings.tokens or (16384 if self.embedder.device.type == "cuda" else 4096)
        out = np.zeros(len(pairs), np.float32)
        for chunk in plan(costs, max(budget, *(c.tokens for c in costs)))[0]:
            out[list(chunk.entries)] = self._chunk(prompts, chunk, limits, words)
        return out

    def _prompt(self, pair: Pair, instruction: str) -> Prompted:
        item = question_of(pair.query, pair.candidate, self.settings.question)
        return Prompted(item, "query", instruction, answer=self.settings.yes, key=pair.key)

    def _words(self, prompt: Prompted) -> tuple[int, int, int]:
        """(how many tokens both answers begin with, the token of yes that follows, and that of no). A template may
        write the same in front of every answer, such as a line break."""
        limits = self.embedder.limits
        found = []
        for word in (self.settings.yes, self.settings.no):
            asked = replace(prompt, answer=word)
            inputs = self.embedder.format.collate([asked], [limits])
            found.append(inputs.ids[inputs.prefix[0] :].tolist())
        yes, no = found
        same = next((i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b), -1)
        if same < 0:
            raise DataError(
                f"YesNo: {self.settings.yes!r} and {self.settings.no!r} are {yes} and {no} in tokens, and one begins "
                "with the other; take other words"
            )
        return same, yes[same], no[same]

    def _chunk(
        self, prompts: Sequence[Prompted], chunk: Chunk, limits: Limits, words: tuple[int, int, int]
    ) -> NDArray[np.float32]:
        embedder, (same, yes, no) = self.embedder, words
        mine = [prompts[e] for e in chunk.entries]
        inputs = embedder.format.collate(mine, [limits] * len(mine), chunk.dummies).to(embedder.device)
        starts = accumulate((0, *inputs.lengths))
        places = [a + prefix - 1 + same for a, prefix in zip(starts, inputs.prefix, strict=False)][: len(mine)]
        base: Any = embedder.base
        with torch.inference_mode():
            hidden = base.embed(inputs, base.towers(inputs), embedder.settings.attention)
            logits = base.logits(hidden[places]).float()
        odds = logits[:, yes] - logits[:, no]
        found: NDArray[np.float32] = (odds if self.settings.log_odds else odds.sigmoid()).cpu().numpy()
        return found
