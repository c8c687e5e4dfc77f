"""What other readers need beside the weights: limits in the processor, keys in the config, module files.

New and legacy keys stand side by side, so that older servers read the folder too. What such files cannot say is never
said approximately: `reason` gives the words, and nothing is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import __version__
from ..model.backbones.text import TextFormat, TextLM
from ..model.embedder import Embedder
from ..model.layouts import LEGACY
from ..model.template import Template

POOLING = {"last": "lasttoken", "mean": "mean", "weighted": "weightedmean", "cls": "cls"}


def reason(embedder: Embedder) -> str:
    """Why sentence-transformers' files cannot say what this embedder does; "" where they can."""
    settings, template = embedder.settings, embedder.template
    if settings.pooling not in POOLING:
        return f"{settings.pooling} pooling has weights of its own, for which sentence-transformers has no module"
    if settings.projection:
        return "the learned projection behind the pooling is a part of omni2vec alone"
    if embedder.adapter is not None:
        return "an adapter is loaded into the class it was trained in, and sentence-transformers loads another"
    if settings.attention == "causal" and _natural(embedder) != "causal":
        return "it attends causally, and the stock class both ways"
    if template.flat_positions:
        return "its media have plain positions, and the stock model gives them their own"
    if settings.mask_instruction:
        return "the instruction is left out of the pooling, and sentence-transformers pools over every token of a chat"
    if template.chat:
        if template.instruct != "system":
            return "its instruction is not a system turn, and sentence-transformers makes every prompt one"
        if template.order:
            return f"its parts stand as {', '.join(template.order)}, and sentence-transformers keeps any order"
    elif template.placeholders:
        return "its prompts have pictures but no chat template, and sentence-transformers places no placeholders"
    elif template.tail:
        return "its raw text has a tail, which sentence-transformers does not add"
    return ""


def export(embedder: Embedder, folder: Path, sentence_transformers: bool = True) -> None:
    """Completes a folder that `embedder.save` wrote. sentence_transformers: write its files too (see `reason`)."""
    if embedder.template.chat:
        (folder / "chat_template.jinja").write_text(chat(embedder.template), encoding="utf-8")
    _limits(embedder, folder)
    if (folder / "config.json").exists():
        _config(embedder, folder / "config.json")
    if sentence_transformers:
        if why := reason(embedder):
            raise ValueError(f"sentence-transformers' files would lie: {why}")
        for name, content in _module_files(embedder).items():
            write(folder / name, content)


def without_clips(folder: Path) -> None:
    """Takes clips out of what the folder promises to sentence-transformers."""
    path = folder / "sentence_bert_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["modality_config"].pop("video", None)
    write(path, content)


def chat(template: Template) -> str:
    """The chat template with the tail inside, so that every reader of the folder appends it."""
    if not template.tail:
        return template.chat
    tail = "{{ " + json.dumps(template.tail, ensure_ascii=False) + " }}"
    return template.chat + ("{% if add_generation_prompt %}" + tail + "{% endif %}" if template.generation else tail)


def prompt(template: Template, instruction: str) -> str:
    """`instruction` as sentence-transformers must be given it: raw text wants the frame around it."""
    if template.chat or not instruction:
        return instruction
    return template.frame.replace("{instruction}", instruction) + template.separator


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _limits(embedder: Embedder, folder: Path) -> None:
    """The embedder's limits on pixels and frames, where the stock processors look for them."""
    limits = embedder.limits
    whole, pictures, clips = (
        folder / f for f in ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
    )
    image = {"size": {"shortest_edge": limits.min_pixels, "longest_edge": limits.max_pixels}}
    if whole.exists():
        found = json.loads(whole.read_text(encoding="utf-8"))
        if "image_processor" in found:
            found["image_processor"] |= image
        if "image_processor" in found and "video_processor" in found:
            found["video_processor"] |= _clips(embedder, found["image_processor"])
        write(whole, found)
    if pictures.exists():
        write(pictures, json.loads(pictures.read_text(encoding="utf-8")) | image)
    if pictures.exists() and clips.exists():
        own = _clips(embedder, json.loads(pictures.read_text(encoding="utf-8")))
        write(clips, json.loads(clips.read_text(encoding="utf-8")) | own)


def _clips(embedder: Embedder, image: dict[str, Any]) -> dict[str, Any]:
    """Qwen2-VL caps a frame by the size; Qwen3-VL caps a clip by it, and a frame by a number of tokens."""
    limits = embedder.limits
    own: dict[str, Any] = {
        "do_sample_frames": True,
        "fps": limits.fps,
        "max_frames": limits.max_frames,
        "cap_pixels_per_frame": True,
        "image_mean": image["image_mean"],
        "image_std": image["image_std"],
    }
    most = limits.max_video_pixels
    if embedder.backbone.model.config.model_type == "qwen3_vl":
        own["max_video_tokens"] = max(1, most // (image["patch_size"] * image["merge_size"]) ** 2)
        most *= limits.max_frames
    return {**own, "size": {"shortest_edge": limits.min_pixels, "longest_edge": most}}


def _config(embedder: Embedder, path: Path) -> None:
    """Keys that other readers look for. transformers obeys is_causal from 5.2, and with it sentence-transformers."""
    config = json.loads(path.read_text(encoding="utf-8"))
    settings = embedder.settings
    config.pop("auto_map", None)  # of code that is not in this folder
    if embedder.prefixes:
        config |= {"is_matryoshka": True, "matryoshka_dimensions": list(embedder.prefixes)}  # vLLM
    natural = _natural(embedder)
    for part in (config, config.get("text_config")):
        if part is None:
            continue
        part.pop("is_causal", None)
        if settings.attention != "causal" and natural == "causal":
            part["is_causal"] = False
    write(path, config)


def _natural(embedder: Embedder) -> str:
    """How the stock class attends when it is left alone."""
    backbone = embedder.backbone
    return backbone.natural if isinstance(backbone, TextLM) else "causal"


def longest(embedder: Embedder) -> int:
    """Tokens of the longest input: the limits', within the positions that a language model has."""
    inside = embedder.backbone.format
    return (
        min(embedder.limits.max_tokens, inside.longest)
        if isinstance(inside, TextFormat)
        else embedder.limits.max_tokens
    )


def _module_files(embedder: Embedder) -> dict[str, Any]:
    settings, template = embedder.settings, embedder.template
    mode = POOLING[settings.pooling]
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] * settings.normalise)]
    pooling = {
        "embedding_dimension": embedder.width,
        "pooling_mode": mode,
        "include_prompt": True,
        # text-embeddings-inference requires the first and the third; vLLM before 2026-08 reads nothing else.
        **{key: old == mode for key, old in LEGACY.items()},
    }
    query, target = prompt(template, template.query), prompt(template, template.target)
    main: dict[str, Any] = {
        "__version__": {"omni2vec": __version__},
        "model_type": "SentenceTransformer",
        "prompts": {"query": query, "document": target},
        "default_prompt_name": "query" if query else None,
        "similarity_fn_name": "cosine",
    }
    if settings.dim:
        main["truncate_dim"] = settings.dim
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        "config_sentence_transformers.json": main,
        "sentence_bert_config.json": _transformer(embedder),
        "1_Pooling/config.json": pooling,
    }
    if settings.normalise:
        files["2_Normalize/config.json"] = {
            "module_input_name": "sentence_embedding",
            "module_output_name": "sentence_embedding",
        }
    return files


def _transformer(embedder: Embedder) -> dict[str, Any]:
    """sentence_bert_config.json. The message modality sends every input through the chat template."""
    template = embedder.template
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    modalities = {"text": forward, **{kind: forward for kind, _ in template.placeholders}}
    out: dict[str, Any] = {
        "transformer_task": "feature-extraction",
        "modality_config": modalities,
        "module_output_name": "token_embeddings",
        "max_seq_length": longest(embedder),
        "do_lower_case": False,
        "unpad_inputs": False,
    }
    if template.chat:
        shape = "structured" if template.placeholders else _shape(template.chat)
        modalities["message"] = {**forward, "format": shape}
        out["processing_kwargs"] = {"chat_template": {"add_generation_prompt": template.generation}}
    return out


def _shape(chat: str) -> str:
    """Whether a text-only chat template takes lists of parts or plain strings."""
    return "structured" if any(mark in chat for mark in (".type", "'type'", '"type"')) else "flat"
