"""The code that a model card shows: how to load a release in omni2vec, in sentence-transformers, in plain transformers.

A release runs exactly these texts in fresh processes before it is one, so what a card shows has been seen to work.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ..model.embedder import Settings
from ..model.template import Template
from .export import prompt

INSTRUCTION = "Find the caption that matches."
PICTURE = "picture.png"
STATES = {
    "last": "states[-1]",
    "mean": "states.mean(0)",
    "weighted": "torch.arange(1.0, len(states) + 1) @ states / (len(states) + 1)",
    "cls": "states[0]",
}


@dataclass(frozen=True)
class Reader:
    """What the snippets are written for. `at`: the hub name or folder; base, revision: of an adapter's base model."""

    at: str
    template: Template
    settings: Settings
    base: str = ""
    revision: str = ""

    @property
    def pictures(self) -> bool:
        return bool(self.template.image)

    def example(self) -> list[str]:
        """The example's inputs, as lines of code: what to load, and the list of inputs."""
        if not self.pictures:
            return ['inputs = ["a red circle", "a blue square"]']
        return [
            f"picture = Image.open({_quoted(PICTURE)})",
            'inputs = ["a red circle", picture, {"image": picture, "text": "What is it?"}]',
        ]

    def omni2vec(self) -> str:
        return _lines(
            *["from PIL import Image"] * self.pictures,
            "from omni2vec import Embedder",
            "",
            f"embedder = Embedder.load({_quoted(self.at)})",
            *self.example(),
            f"vectors = embedder.encode(inputs, instruction={_quoted(INSTRUCTION)})",
        )

    def sentence_transformers(self) -> str:
        return _lines(
            *["from PIL import Image"] * self.pictures,
            "from sentence_transformers import SentenceTransformer",
            "",
            f"model = SentenceTransformer({_quoted(self.at)})",
            *self.example(),
            f"vectors = model.encode(inputs, prompt={_quoted(prompt(self.template, INSTRUCTION))})",
        )

    def transformers(self) -> str:
        """Some ten lines around one function `embed`; "" where plain transformers cannot say what the pooling is."""
        if self.settings.pooling not in STATES or self.settings.projection or self.settings.mask_instruction:
            return ""
        if self.template.chat:
            return self._chat()
        return self._placed() if self.pictures else self._text()

    def _chat(self) -> str:
        def said(text: str) -> str:
            return f'[{{"type": "text", "text": {text}}}]' if self.pictures else text

        asked = _quoted(INSTRUCTION)
        shown = '{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}'
        return _lines(
            *["from PIL import Image"] * self.pictures,
            "import torch",
            *self._imports("AutoProcessor"),
            "",
            f"processor = AutoProcessor.from_pretrained({_quoted(self.at)})",
            *self._model(),
            "",
            f"def embed({'*parts' if self.pictures else 'text'}, instruction={_quoted(self.template.query)}):",
            f'    turns = [{{"role": "user", "content": {"list(parts)" if self.pictures else "text"}}}]',
            "    if instruction:",
            f'        turns.insert(0, {{"role": "system", "content": {said("instruction")}}})',
            f'    settings = {{"add_generation_prompt": {self.template.generation}, "return_tensors": "pt"}}',
            "    inputs = processor.apply_chat_template(turns, tokenize=True, return_dict=True, **settings)",
            *self._pooled("**inputs"),
            "",
            *[f"picture = Image.open({_quoted(PICTURE)})"] * self.pictures,
            f"vector = embed({shown if self.pictures else _quoted('a red circle')}, instruction={asked})",
        )

    def _text(self) -> str:
        default = _quoted(prompt(self.template, self.template.query))
        return _lines(
            "import torch",
            *self._imports("AutoTokenizer"),
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({_quoted(self.at)})",
            *self._model(),
            "",
            f"def embed(text, prompt={default}):",
            f"    inputs = tokenizer(prompt + text{self._tail()}, add_special_tokens={self.template.specials}, "
            'return_tensors="pt")',
            *self._pooled("**inputs"),
            "",
            f'vector = embed("a red circle", prompt={_quoted(prompt(self.template, INSTRUCTION))})',
        )

    def _placed(self) -> str:
        """Raw text with a placeholder for the picture (VLM2Vec)."""
        flat = self.template.flat_positions
        positions = '    positions = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)'
        return _lines(
            "from PIL import Image",
            "import torch",
            *self._imports("AutoProcessor"),
            "",
            f"processor = AutoProcessor.from_pretrained({_quoted(self.at)})",
            *self._model(),
            "",
            f'def embed(text="", picture=None, instruction={_quoted(self.template.query)}):',
            f'    words = [{_quoted(self.template.image)} if picture else "", instruction, text]',
            f"    line = {_quoted(self.template.joint)}.join(w for w in words if w){self._tail()}",
            '    inputs = processor(text=[line], images=[picture] if picture else None, return_tensors="pt")',
            *[positions] * flat,
            *self._pooled("**inputs" + ", position_ids=positions" * flat),
            "",
            f"picture = Image.open({_quoted(PICTURE)})",
            f'vector = embed("What is it?", picture, instruction={_quoted(INSTRUCTION)})',
        )

    def _tail(self) -> str:
        """What raw text has behind it; a chat template writes it itself."""
        return f" + {_quoted(self.template.tail)}" if self.template.tail else ""

    def _imports(self, processor: str) -> list[str]:
        if not self.base:
            return [f"from transformers import AutoModel, {processor}"]
        return ["from peft import PeftModel", f"from transformers import AutoModelForImageTextToText, {processor}"]

    def _model(self) -> list[str]:
        if not self.base:
            return [f"model = AutoModel.from_pretrained({_quoted(self.at)}).eval()"]
        revision = f", revision={_quoted(self.revision)}" if self.revision else ""
        return [
            f"base = AutoModelForImageTextToText.from_pretrained({_quoted(self.base)}{revision})",
            f"model = PeftModel.from_pretrained(base, {_quoted(self.at)}).merge_and_unload().eval().model",
        ]

    def _pooled(self, given: str) -> list[str]:
        state = STATES[self.settings.pooling]
        cut = f"[: {self.settings.dim}]" if self.settings.dim else ""
        state = f"({state}){cut}" if cut else state
        return [
            "    with torch.inference_mode():",
            f"        states = model({given}).last_hidden_state[0].float()",
            f"    return torch.nn.functional.normalize({state}, dim=0)"
            if self.settings.normalise
            else f"    return {state}",
        ]


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A Python string in double quotes."""

    return json.dumps(text, ensure_ascii=False)
