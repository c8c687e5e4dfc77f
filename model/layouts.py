"""Whose folder is this? A checkpoint's prompt template, pooling, normalisation and limits, told from its files.

Most threads that begin with "cannot reproduce" end in a setting that did not travel with the weights. So each known
layout is a function here, and what a folder says about itself (sentence-transformers files) beats what we know of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..data.types import DataError, Limits
from .template import Template

if TYPE_CHECKING:
    from .types import Attention

Pooling = Literal["last", "mean", "weighted", "cls"]
_POOLING: dict[str, Pooling] = {"lasttoken": "last", "mean": "mean", "weightedmean": "weighted", "cls": "cls"}
LEGACY = {  # one of six booleans, as sentence-transformers wrote it before 5.4
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
_KNOWN_LIMITS = ("qwen3_vl_embedding", "gme")  # set by the originals' code, whatever the processor's files say
_ENCODERS = ("bert", "roberta", "mpnet", "electra", "deberta", "distilbert", "xlm-roberta", "xlm", "albert", "esm")


@dataclass(frozen=True)
class Layout:
    """What a folder's vectors need besides its weights."""

    template: Template
    pooling: Pooling = "last"
    normalise: bool = True
    attention: Attention = "causal"
    mask_instruction: bool = False  # instruction tokens are left out of mean-type pooling
    limits: Limits = field(default_factory=Limits)  # what the model was made with, where the folder says so
    base: str = ""  # an adapter's base model and its revision
    revision: str = ""
    truncate: int = 0  # dimensions kept of a vector; 0: all

    @property
    def name(self) -> str:
        return self.template.layout


def plain(processor: Any) -> Layout:
    """A VLM or language model that is no embedder yet: our own layout.

    The instruction is the system turn, the assistant's turn is opened, its last token is pooled: as Qwen3-VL-Embedding
    does it, and as sentence-transformers renders a prompt for any model with a chat template.
    """
    return Layout(Template.of(processor))


def qwen3_vl_embedding(processor: Any) -> Layout:
    """arXiv:2601.04720. Rules: QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_embedding.py.

    Parts stand in the order given, as sentence-transformers has them; the original always puts clips, then pictures,
    then texts.
    """
    side = 32 * 32  # pixels of one picture token
    template = Template.of(
        processor,
        layout="qwen3_vl_embedding",
        query="Represent the user's input.",
        target="Represent the user's input.",
        full_stop=True,
        shot=(),
    )
    limits = Limits(8192, 1800 * side, 4 * side, max_frames=64, fps=1.0, max_video_pixels=768 * side)
    return Layout(template, limits=limits)


def gme(processor: Any) -> Layout:
    """arXiv:2412.16855. Rules: gme_inference.py beside the weights, and its mteb wrapper (gme_v_models.py)."""
    side = 28 * 28
    template = Template.of(
        processor,
        layout="gme",
        query="You are a helpful assistant.",
        target="You are a helpful assistant.",
        target_instructed=False,
        tail="<|endoftext|>",
        empty="",
        shot=(),
    )
    return Layout(template, limits=Limits(1800, 1280 * side, 4 * side))


def vlm2vec(processor: Any) -> Layout:
    """arXiv:2507.04590. Rules: TIGER-AI-Lab/VLM2Vec, process_input_text in src/model/processor.py.

    No chat template. The placeholder stands without vision markers, by which the Qwen2-VL code of its day found the
    pictures when it assigned positions: so the model was trained, and scored, with one counter for all tokens.
    """
    side = 28 * 28
    template = Template.of(
        processor,
        layout="vlm2vec",
        chat="",
        instruct="front",
        separator=" ",
        generation=False,
        order=("image", "video"),
        empty="",
        specials=False,
        shot=(),
        flat_positions=True,
    )
    limits = Limits(max_pixels=1280 * side, min_pixels=4 * side)
    return Layout(template, limits=limits)


LAYOUTS: Mapping[str, Callable[[Any], Layout]] = {
    "omni2vec": plain,
    "qwen3_vl_embedding": qwen3_vl_embedding,
    "gme": gme,
    "vlm2vec": vlm2vec,
}


def layout_of(folder: str | Path, base: str | Path | None = None, name: str = "", processor: Any = None) -> Layout:
    """The layout of a local checkpoint folder.

    base: the folder of an adapter's base model, where the processor may lie. name: a key of LAYOUTS, where the files
    do not give it away. processor: the transformers processor or tokenizer, if it is loaded already. Raises DataError,
    naming the file, for settings that cannot be taken over faithfully (a Dense module, two poolings at once).
    """
    folder = Path(folder)
    if name and name not in LAYOUTS:
        raise DataError(f"layout {name!r} is not known; expected one of {', '.join(LAYOUTS)}")
    if processor is None:
        processor = processor_of(folder, base)
    adapter = _json(folder / "adapter_config.json")
    known = LAYOUTS[name or _recognise(folder)](processor)
    if (folder / "modules.json").exists() and not _own_code(folder):
        known = _sentence_transformers(folder, processor, known)
    elif not adapter:
        known = replace(known, attention=_attention(_json(folder / "config.json")))
        if (
            known.attention == "bidirectional"
        ):  # no token has seen more than another: sentence-transformers' default too
            known = replace(known, pooling="mean")
    return replace(
        known,
        base=str(adapter.get("base_model_name_or_path") or ""),
        revision=str(adapter.get("revision") or ""),
    )


def processor_of(folder: Path, base: str | Path | None = None) -> Any:
    """The transformers processor or tokenizer of a folder; an adapter without one has its base model's."""
    from transformers import AutoProcessor

    own = any((folder / f).exists() for f in ("tokenizer_config.json", "tokenizer.json"))
    return AutoProcessor.from_pretrained(str(folder if own or base is None else base))


def _recognise(folder: Path) -> str:
    """A key of LAYOUTS, from the traces that the originals leave in their folders."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace")[:20_000].lower() if card.exists() else ""
    config, name = _json(folder / "config.json"), folder.resolve().name.lower()
    code = json.dumps(config.get("auto_map", {})).lower()
    if (folder / "gme_inference.py").exists() or "gme" in code or re.match(r"gme-qwen2-?vl", name):
        return "gme"
    if (folder / "adapter_config.json").exists() and ("vlm2vec" in name or "vlm2vec" in text):
        return "vlm2vec"
    if config.get("model_type") == "qwen3_vl":
        script = (folder / "scripts" / "qwen3_vl_embedding.py").exists()
        if script or "qwen3-vl-embedding" in name or "# qwen3-vl-embedding" in text:
            return "qwen3_vl_embedding"
    return "omni2vec"


def _own_code(folder: Path) -> bool:
    """Whether modules.json names classes of the folder's own (GME): we know its rules, and run no foreign code."""
    return any("sentence_transformers." not in m["type"] for m in _modules(folder))


def _sentence_transformers(folder: Path, processor: Any, known: Layout) -> Layout:
    """What the folder's sentence-transformers files say, over what is known of its kind."""
    layout = _pooling(folder, replace(known, normalise=False))
    bert = _json(folder / "sentence_bert_config.json")
    modalities = bert.get("modality_config", {})
    if "message" in modalities:  # then every input goes through the chat template, and a prompt is the system turn
        chat = bert.get("processing_kwargs", {}).get("chat_template", {})
        # Nothing is added behind a chat template there: a tail, if any, is inside.
        template = replace(known.template, generation=bool(chat.get("add_generation_prompt", False)), tail="")
    else:
        template = Template.of(
            getattr(processor, "tokenizer", processor),
            layout="sentence_transformers",
            chat="",
            instruct="front",
            separator="",
            generation=False,
            specials=True,
            empty="",
            joint="",
            shot=(),
        )
    settings = _json(folder / "config_sentence_transformers.json")
    template = _prompts(template, settings)
    config = _json(folder / "config.json")
    limits = layout.limits if known.name in _KNOWN_LIMITS else _pixels(processor, layout.limits)
    if bert.get("max_seq_length"):
        limits = replace(limits, max_tokens=int(bert["max_seq_length"]))
    return replace(
        layout,
        template=template,
        attention=_attention(config) if config else layout.attention,
        limits=limits,
        truncate=int(settings.get("truncate_dim") or 0),
    )


def _pixels(processor: Any, limits: Limits) -> Limits:
    """The bounds that the folder's own processor keeps pictures and clips in."""
    size = getattr(getattr(processor, "image_processor", None), "size", None) or {}
    clips = getattr(processor, "video_processor", None)
    return replace(
        limits,
        min_pixels=int(size.get("shortest_edge") or limits.min_pixels),
        max_pixels=int(size.get("longest_edge") or limits.max_pixels),
        fps=float(getattr(clips, "fps", None) or limits.fps),
        max_frames=int(getattr(clips, "max_frames", None) or limits.max_frames),
    )


def _pooling(folder: Path, layout: Layout) -> Layout:
    for module in _modules(folder):
        kind = module["type"].rsplit(".", 1)[-1]
        where = folder / module.get("path", "")
        if kind == "Transformer":
            continue
        if kind == "Normalize":
            layout = replace(layout, normalise=True)
        elif kind == "Pooling":
            path = where / "config.json"
            found = _json(path)
            modes = found.get("pooling_mode") or [m for key, m in LEGACY.items() if found.get(key)] or ["mean"]
            modes = [modes] if isinstance(modes, str) else list(modes)
            if len(modes) != 1 or modes[0] not in _POOLING:
                raise DataError(f"{path}: pooling {'+'.join(modes)}; omni2vec pools by one of {', '.join(_POOLING)}")
            layout = replace(layout, pooling=_POOLING[modes[0]], mask_instruction=not found.get("include_prompt", True))
        else:
            raise DataError(
                f"{folder / 'modules.json'}: module {kind} (in {module.get('path') or '.'}) cannot be taken over "
                "faithfully: omni2vec reads Transformer, Pooling and Normalize; load it with sentence-transformers"
            )
    return layout


def _prompts(template: Template, settings: Mapping[str, Any]) -> Template:
    """Default instructions from the folder's prompts. Raw text: "Instruct: X\\nQuery:" is told apart from its X."""
    prompts = settings.get("prompts") or {}
    default = prompts.get(settings.get("default_prompt_name") or "", "")
    query = prompts.get("query") or default
    target = next((prompts[k] for k in ("document", "passage", "corpus") if k in prompts), default)
    if template.chat:
        return replace(template, query=query or template.query, target=target or template.target)
    framed = re.fullmatch(r"(Instruct: )(.+)(\s*\nQuery: ?)", query, flags=re.DOTALL)
    if framed and not target:
        return replace(template, query=framed[2], frame=f"{framed[1]}{{instruction}}{framed[3]}")
    return replace(template, query=query, target=target)


def _attention(config: Mapping[str, Any]) -> Attention:
    """Encoders and decoders that were turned into encoders see both ways."""
    text = config.get("text_config", config)
    if text.get("is_causal") is False or text.get("use_bidirectional_attention"):
        return "bidirectional"
    kind = str(config.get("model_type", ""))
    encoder = kind.endswith(_ENCODERS) and not config.get("is_decoder", False)
    return "bidirectional" if encoder else "causal"


def _modules(folder: Path) -> list[dict[str, Any]]:
    path = folder / "modules.json"
    found = _json(path, list)
    if not all(isinstance(m, dict) and isinstance(m.get("type"), str) for m in found):
        raise DataError(f"{path}: expected a list of modules, each with a 'type'")
    return list(found)


def _json(path: Path, kind: type = dict) -> Any:
    """The file's content, empty where there is no such file."""
    if not path.exists():
        return kind()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON: {error}; was the download cut short?") from error
    if not isinstance(found, kind):
        raise DataError(f"{path}: expected a JSON {kind.__name__}, got {type(found).__name__}")
    return found
