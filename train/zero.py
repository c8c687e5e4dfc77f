"""DeepSpeed's settings as a typed value: what we choose, what a user's own JSON may add, and what contradicts."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .precision import Precision

Stage = Literal[0, 1, 2, 3]
Reduce = Literal["step", "chunk"]

# Of its top level, what people set: a key that is nearly one of these is a slip, and DeepSpeed would say nothing.
_KEYS = (
    "activation_checkpointing", "aio", "bf16", "communication_data_type", "comms_logger", "data_types",
    "flops_profiler", "fp16", "gradient_accumulation_steps", "gradient_clipping", "gradient_predivide_factor",
    "optimizer", "prescale_gradients", "scheduler", "steps_per_print", "torch_autocast", "train_batch_size",
    "train_micro_batch_size_per_gpu", "wall_clock_breakdown", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "zero_optimization",
)  # fmt: skip
_AUTO = "auto"  # what other trainers fill in; so do we


@dataclass(frozen=True)
class Zero:
    """How much of the training state is split over the ranks (ZeRO, arXiv:1910.02054).

    stage: 0 nothing, 1 moments, 2 and gradients, 3 and weights; None: the JSON's, else 2. Stage 0 is our own engine,
    without DeepSpeed. offload_optimizer, offload_parameters (stage 3): to the host's memory. reduce: gradients are
    summed over ranks once a step, while each rank holds its whole gradient, or once a chunk (stages 2 and 3).
    bucket_mb: of gradients in one reduction. persistence_threshold: parameters of at most so many elements stay whole
    under stage 3; None: DeepSpeed's own. json: a DeepSpeed configuration whose further settings are taken.
    """

    stage: Stage | None = None
    offload_optimizer: bool = False
    offload_parameters: bool = False
    reduce: Reduce = "step"
    bucket_mb: int = 256
    persistence_threshold: int | None = None
    json: str = ""

    def __post_init__(self) -> None:
        if self.stage not in (None, 0, 1, 2, 3):
            raise ValueError(f"Zero(stage={self.stage!r}); expected 0, 1, 2 or 3")
        if self.reduce not in ("step", "chunk"):
            raise ValueError(f"Zero(reduce={self.reduce!r}); expected 'step' or 'chunk'")
        if not self.bucket_mb >= 1 or (self.persistence_threshold or 0) < 0:
            raise ValueError(
                f"Zero(bucket_mb={self.bucket_mb}, persistence_threshold={self.persistence_threshold}); expected 1 or "
                "more, and 0 or more"
            )
        if not self.json:
            self._agree(self.stage)

    def _agree(self, stage: int | None) -> None:
        """Settings that the stage has no use for are a mistake."""
        stage = 2 if stage is None else stage
        for name, given, least in (
            ("offload_parameters=True", self.offload_parameters, 3),
            ("persistence_threshold", self.persistence_threshold is not None, 3),
            ("reduce='chunk'", self.reduce == "chunk", 2),
            ("offload_optimizer=True", self.offload_optimizer, 1),
            ("json", bool(self.json), 1),
        ):
            if given and stage < least:
                raise ValueError(f"Zero(stage={stage}, {name}): that needs stage {least} or more")

    @property
    def used(self) -> Stage:
        """The stage: as given, else the JSON's, else 2. Reads the JSON."""
        if self.stage is not None or not self.json:
            return 2 if self.stage is None else self.stage
        found = _table(self._read(), "zero_optimization", self.json).get("stage", 2)
        if found not in (0, 1, 2, 3):
            raise ValueError(f"{self.json}: zero_optimization.stage is {found!r}; expected 0, 1, 2 or 3")
        stage: Stage = found
        return stage

    def config(self, precision: Precision, clip: float) -> dict[str, Any]:
        """DeepSpeed's JSON: ours, with what the user's own adds. Raises ValueError where it contradicts us."""
        stage = self.used
        self._agree(stage)
        ours = self._ours(stage, precision, clip)
        if not self.json:
            return ours
        theirs = self._read()
        _refuse(theirs, self.json)
        for key, given, expected, why in _contradictions(theirs, ours, precision, self):
            raise ValueError(f"{self.json}: {key} is {given!r}; expected {expected} ({why})")
        return _merged(theirs, ours)

    def _ours(self, stage: int, precision: Precision, clip: float) -> dict[str, Any]:
        elements = self.bucket_mb * 2**20 // 4
        zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": elements, "allgather_bucket_size": elements}
        if self.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu"}
        if self.offload_parameters:
            zero["offload_param"] = {"device": "cpu"}
        if self.persistence_threshold is not None:
            zero["stage3_param_persistence_threshold"] = self.persistence_threshold
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # it only feeds DeepSpeed's own reports
            "gradient_accumulation_steps": 1,  # chunks are ours
            "managed_gradient_accumulation": self.reduce == "step",
            "gradient_clipping": float(clip),  # its default is 1
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW has a kernel for the CPU too
            "zero_optimization": zero,
        }
        if precision == "bf16-true":
            config["bf16"] = {"enabled": True, "check_grad_overflow": True}
            config["communication_data_type"] = "fp32"
        return config

    def _read(self) -> dict[str, Any]:
        path = Path(self.json)
        if not path.is_file():
            raise FileNotFoundError(f"Zero(json={self.json!r}): there is no such file")
        try:
            found = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.json}: line {error.lineno} is no JSON: {error.msg}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{self.json}: expected a JSON object, found {type(found).__name__}")
        return found


def _table(config: Mapping[str, Any], key: str, path: str) -> dict[str, Any]:
    found = config.get(key, {})
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {key} is {found!r}; expected an object")
    return found


def _refuse(theirs: Mapping[str, Any], path: str) -> None:
    """Sections that would take over what the stage decides, and slips."""
    for key in theirs:
        near = difflib.get_close_matches(key, _KEYS, 1, 0.8)
        if near and key not in _KEYS:
            raise ValueError(f"{path}: no setting is called {key}; did you mean {near[0]}?")
    for key, instead in (
        ("optimizer", "the stage's optimizer=AdamW(...)"),
        ("scheduler", "the stage's optimizer=AdamW(schedule=...)"),
    ):
        if key in theirs:
            raise ValueError(f"{path}: {key} is set; remove it: {instead} decides")
    for key in ("zero_optimization", "fp16", "bf16", "torch_autocast", "data_types"):
        _table(theirs, key, path)
    zero = theirs.get("zero_optimization", {})
    for key in ("offload_optimizer", "offload_param"):
        if zero.get(key, {}).get("device") == "nvme":
            raise ValueError(f"{path}: zero_optimization.{key}.device is 'nvme'; expected 'cpu' or 'none'")
    for key in ("mics_shard_size", "zenflow", "zero_quantized_gradients", "zero_quantized_weights"):
        if zero.get(key) not in (None, False, -1, _AUTO):
            raise ValueError(
                f"{path}: zero_optimization.{key} is set; remove it: it changes the arithmetic or whose is what"
            )
    if zero.get("round_robin_gradients") is True:
        raise ValueError(f"{path}: zero_optimization.round_robin_gradients is True; its ranges cannot be saved by name")
    if zero.get("compute_grad_norm") is False:
        raise ValueError(f"{path}: zero_optimization.compute_grad_norm is False; the norm is logged and clipped by")


def _contradictions(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], precision: Precision, zero: Zero
) -> Iterator[tuple[str, Any, Any, str]]:
    """(key, what the file says, what was expected, who says so)."""
    for key, why in (
        ("gradient_accumulation_steps", "chunks are cut by chunk_tokens, not counted here"),
        ("train_micro_batch_size_per_gpu", "batch and chunk_tokens decide; leave it out"),
        ("managed_gradient_accumulation", f"Zero(reduce={zero.reduce!r})"),
        ("gradient_clipping", "the stage's clip"),
        ("zero_force_ds_cpu_optimizer", "the optimiser is torch's"),
    ):
        if theirs.get(key, _AUTO) not in (_AUTO, ours[key]):
            yield key, theirs[key], ours[key], why
    if theirs.get("train_batch_size", _AUTO) != _AUTO:
        yield "train_batch_size", theirs["train_batch_size"], repr(_AUTO), "the stage's batch decides; leave it out"
    table = theirs.get("zero_optimization", {})
    for key, asked in (
        ("stage", zero.stage is not None),
        ("stage3_param_persistence_threshold", zero.persistence_threshold is not None),
    ):
        mine = ours["zero_optimization"].get(key)
        if asked and table.get(key, _AUTO) not in (_AUTO, mine):
            yield f"zero_optimization.{key}", table[key], mine, f"the stage's Zero(); leave {key} out of one of them"
    for key, asked in (("offload_optimizer", zero.offload_optimizer), ("offload_param", zero.offload_parameters)):
        if asked and table.get(key, {}).get("device", "cpu") != "cpu":
            yield f"zero_optimization.{key}.device", table[key]["device"], "'cpu'", "Zero(...)"
    for section, meant in (("fp16", ("fp16",)), ("bf16", ("bf16", "bf16-true")), ("torch_autocast", ("bf16", "fp16"))):
        given = theirs.get(section, {}).get("enabled", _AUTO)
        if given != _AUTO and given != (precision in meant):
            yield f"{section}.enabled", given, precision in meant, f"the stage's precision={precision!r}"
    given = theirs.get("communication_data_type") or _AUTO
    if given not in (_AUTO, "fp32"):
        yield "communication_data_type", given, "'fp32'", "ranks' gradients add up in float32"
    given = theirs.get("data_types", {}).get("grad_accum_dtype") or _AUTO
    if given not in (_AUTO, "fp32") and precision != "bf16-true":
        yield "data_types.grad_accum_dtype", given, "'fp32'", "chunks add up in float32"


def _merged(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Both, ours where both speak of one key but for sizes; precision is ours alone, "auto" is dropped."""
    out = {k: v for k, v in theirs.items() if v != _AUTO and k not in ("fp16", "bf16", "torch_autocast", "data_types")}
    zero = {k: v for k, v in theirs.get("zero_optimization", {}).items() if v != _AUTO}
    out.update({k: v for k, v in ours.items() if k != "zero_optimization"})
    sizes = ("reduce_bucket_size", "allgather_bucket_size")
    mine = {k: v for k, v in ours["zero_optimization"].items() if not (k in sizes and k in zero)}
    for key in ("offload_optimizer", "offload_param"):  # theirs may say how, ours only that
        if key in mine and key in zero:
            mine[key] = {**zero[key], **mine[key]}
    out["zero_optimization"] = {**zero, **mine}
    return out
