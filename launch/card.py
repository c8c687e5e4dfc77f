"""The model card of a release: metadata that the hub reads, scores beside chance and baselines, code that was run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..data.addresses import redacted_text
from ..eval.compare import compare
from ..eval.report import markdown, summary
from ..eval.stored import load as load_report
from ..model.embedder import Embedder
from .export import longest
from .snippets import Reader

if TYPE_CHECKING:
    from ..eval.types import Report
    from .verify import Verified


@dataclass(frozen=True)
class Scores:
    """A report and its baselines."""

    report: Report
    baselines: tuple[Report, ...] = ()

    @staticmethod
    def load(folder: Path) -> Scores:
        """From the output folder of an Evaluate step."""
        found = sorted((folder / "baselines").glob("*/report.json"), key=lambda p: int(p.parent.name))
        return Scores(load_report(folder), tuple(load_report(p.parent) for p in found))


@dataclass(frozen=True)
class About:
    """What a release says of itself that its files do not."""

    title: str
    license: str
    base_model: str = ""
    languages: tuple[str, ...] = ("en",)
    tags: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    library: str = "sentence-transformers"
    pipeline: str = "sentence-similarity"
    reason: str = ""  # why there are no sentence-transformers files
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] | None = None


def card(embedder: Embedder, reader: Reader, about: About, scores: Scores | None, verified: Verified | None) -> str:
    """The text of README.md."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    settings = embedder.settings
    loader = PackageLoader("omni2vec", "launch")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    checked, unchecked = _checks(verified)
    return environment.get_template("card.md.j2").render(
        metadata=metadata(reader, about, scores),
        title=about.title,
        takes=_takes(reader),
        dim=f"{embedder.dim:,}",
        base=about.base_model,
        version=__version__,
        facts=_facts(embedder, about),
        normalise=settings.normalise,
        omni2vec=reader.omni2vec(),
        sentence_transformers="" if about.reason else reader.sentence_transformers(),
        transformers=reader.transformers(),
        reason=about.reason,
        notes=about.notes,
        scores=_table(scores),
        bases=[r.model for r in scores.baselines] if scores else [],
        digests=(scores.report.digest, scores.report.data) if scores else (),
        checked=checked,
        unchecked=unchecked,
        record=json.dumps(portable(about.record), indent=1, ensure_ascii=False) if about.record else "",
    )


def metadata(reader: Reader, about: About, scores: Scores | None) -> str:
    """The YAML between the dashes, by huggingface_hub's own classes."""
    from huggingface_hub import EvalResult, ModelCardData

    kinds = ["multimodal"] if reader.pictures else []
    tags = [*dict.fromkeys([about.library, "omni2vec", "feature-extraction", *kinds, *about.tags])]
    results = [
        EvalResult(
            task_type=str(row["kind"]),
            dataset_type=str(row["task"]),
            dataset_name=str(row["task"]),
            metric_type=str(row["metric"]),
            metric_value=round(100 * float(row["value"]), 2),
        )
        for row in (summary(scores.report)[:-1] if scores else [])
    ]
    data = ModelCardData(
        language=list(about.languages),
        license=about.license,
        library_name=about.library,
        pipeline_tag=about.pipeline,
        base_model=about.base_model or None,
        datasets=list(about.datasets) or None,
        tags=tags,
        model_name=about.title if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def portable(value: Any) -> Any:
    """A record as others may read it: without the machine's own paths, of which the last name is kept, and without what
    an address may hold of passwords and signatures."""
    if isinstance(value, Mapping):
        return {k: portable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [portable(v) for v in value]
    if isinstance(value, str):
        return f".../{Path(value).name}" if Path(value).is_absolute() else redacted_text(value)
    return value


def _takes(reader: Reader) -> str:
    names = {"image": "pictures", "video": "clips", "audio": "sounds"}
    kinds = ["text", *(names[kind] for kind, _ in reader.template.placeholders)]
    return kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} and {kinds[-1]}, alone or together,"


def _facts(embedder: Embedder, about: About) -> list[tuple[str, str]]:
    settings, template, limits = embedder.settings, embedder.template, embedder.limits
    count = sum(p.numel() for p in embedder.backbone.parameters())
    facts = [
        ("parameters", f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.2f} million"),
        ("dimensions", _dimensions(embedder)),
        ("pooling", f"{settings.pooling}, {settings.attention} attention"),
        ("prompt", _prompt(embedder)),
        ("longest input", f"{longest(embedder):,} tokens"),
        ("licence", about.license),
    ]
    if template.image:
        facts.insert(5, ("pictures", f"{limits.min_pixels:,} to {limits.max_pixels:,} pixels after the resize"))
    if template.video:
        facts.insert(6, ("clips", f"{limits.fps:g} frames a second, at most {limits.max_frames}"))
    return facts


def _dimensions(embedder: Embedder) -> str:
    trained = embedder.prefixes
    cut = f"; may be cut to {', '.join(map(str, trained))} and normalised again" if trained else ""
    return f"{embedder.dim:,}{cut}"


def _prompt(embedder: Embedder) -> str:
    template = embedder.template
    where = {"system": "in the system turn", "front": "in front of the text", "none": "nowhere"}[template.instruct]
    layout = "" if template.layout == "omni2vec" else f"layout {template.layout}, "
    turn = ", the assistant's turn opened" if template.generation else ""
    default = f"; by default “{template.query}”" if template.query else ""
    return f"{layout}instruction {where}{turn}{default}"


def _table(scores: Scores | None) -> str:
    if scores is None:
        return ""
    return markdown(scores.report, [compare(scores.report, base) for base in scores.baselines]).rstrip()


def _checks(verified: Verified | None) -> tuple[Sequence[tuple[str, str, str]], Sequence[tuple[str, str]]]:
    if verified is None:
        return [], []
    rows = [(name, "; ".join(found), f"{min(found.values()):.7f}") for name, found in verified.cosines.items()]
    return rows, list(verified.missing.items())
