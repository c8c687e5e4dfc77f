"""The passes over all blocks: looks first, where a rule asks for them, then the merged elements into files.

What is read at a time is a block of every model, of the base and of what stands beside; what is computed at a time is a
part of it that a processor's caches hold, so that a rule's own copies count for nothing. Memory is `block` bytes times
these, and some 50 MB, whatever the models' size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...data.types import DataError
from .alike import equal
from .opened import Plan
from .types import PIECE, Block, Look, Rule
from .weights import STOCK, Entry, Key, header, matched, read, widened
from .writing import Wanted, Writer, named, sharded, write_index

Advance = Callable[[int], None]
_PART = 4 * PIECE  # elements that are computed at a time: 1 MB of float32


def write(
    plan: Plan, rule: Rule, out: Path, dtype: torch.dtype | None, block: int, shard: int, advance: Advance
) -> list[str]:
    """The merged tensors into files of `shard` bytes. Gives what is to be told: integers that differ.

    block: bytes of one model's elements in float32; at least 256 kB, since blocks begin at whole pieces.
    """
    reader = Reader(plan, [header(Path(f)) for f in rule.beside], elements(block))
    floating = [k for k, e in plan.first.entries.items() if e.floating and k not in plan.copies]
    whole = None
    if rule.scope == "model":
        whole = _looked(rule, plan, lambda: (b for k in floating for b in reader.blocks(k)))
    told = []
    for group, files in _files(plan, dtype, shard).items():
        for name, tensors in files:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            with Writer(out / name, tensors) as writer:
                for wanted in tensors:
                    told += _tensor(Key(group, wanted.name), wanted.dtype, rule, reader, whole, writer)
                    advance(wanted.count)
        if group == STOCK:
            write_index(out, [tensors for _, tensors in files])
    return told


def _tensor(key: Key, dtype: torch.dtype, rule: Rule, reader: Reader, whole: Look | None, writer: Writer) -> list[str]:
    plan = reader.plan
    entry = plan.first.entries[key]
    if not entry.floating:  # counters, masks and positions have no mean: the first model's
        for a, b in reader.spans(entry.count):
            writer.write(plan.first.read(key, a, b))
        same = all(equal(plan.first, key, other, key) for other in plan.tensors[1:])
        return [] if same else [f"{key} holds whole numbers that differ: those of {plan.first.label} are kept"]
    once = list(reader.blocks(key)) if entry.count <= reader.size else None  # read once, to look and to merge

    def blocks() -> Iterable[Block]:
        return reader.blocks(key) if once is None else once

    found = _looked(rule, plan, blocks) if rule.scope == "tensor" else whole
    for block in blocks():
        writer.write(_rounded(rule.merge(block, found), dtype, block, plan))
    return []


def _looked(rule: Rule, plan: Plan, blocks: Callable[[], Iterable[Block]]) -> Look | None:
    look = rule.look(len(plan.models), plan.base is not None)
    while look is not None:
        for block in blocks():
            look.see(block)
        if not look.again():
            break
    return look


def _rounded(values: Tensor, dtype: torch.dtype, block: Block, plan: Plan) -> Tensor:
    """In the dtype of the file. Raises DataError where a number is none."""
    made = values.to(dtype)
    if not bool(made.isfinite().all()):
        for theta, tensors in zip(block.models, plan.tensors, strict=True):
            if not bool(theta.isfinite().all()):
                raise DataError(f"{block.name} in {tensors.label} has numbers that are not finite; mend that model")
        most = torch.finfo(dtype).max
        raise DataError(
            f"{block.name}: merged, it goes beyond {dtype} ({most:g}); give a wider dtype, or smaller scales"
        )
    return made


@dataclass(frozen=True)
class Reader:
    """Blocks of a tensor, of all models and of what stands beside them, in parts. size: elements read at a time."""

    plan: Plan
    beside: Sequence[Mapping[str, Entry]]
    size: int

    def spans(self, count: int) -> Iterator[tuple[int, int]]:
        yield from ((a, min(a + self.size, count)) for a in range(0, count, self.size))

    def blocks(self, key: Key) -> Iterator[Block]:
        plan, own = self.plan, self.plan.copies.get(key, key)
        extra = [_beside(own, f) for f in self.beside]
        based = plan.base is not None and key in plan.base.entries
        for a, b in self.spans(plan.first.entries[key].count):
            models = [t.read(key, a, b) for t in plan.tensors]
            base = plan.base.read(key, a, b) if plan.base is not None and based else None
            beside = [read(e, a, b) for e in extra]
            for at in range(0, b - a, _PART):
                part = slice(at, at + _PART)
                own_base = base[part].clone() if base is not None else None  # copies: a view would hold it all
                mine, others = [m[part].clone() for m in models], [f[part].clone() for f in beside]
                yield self._part(str(own), a + at, mine, own_base, others)
            del models, base, beside  # before the next are read, or both would be in memory

    def _part(
        self, name: str, start: int, models: Sequence[Tensor], base: Tensor | None, beside: Sequence[Tensor]
    ) -> Block:
        """In the first model's dtype. Where the base lacks the tensor, the models' mean stands for it."""
        kind = models[0].dtype
        if self.plan.base is not None and base is None:
            base = torch.stack([m.double() for m in models]).mean(0)
        origin = None if base is None else base.to(kind)
        return Block(name, start, tuple(m.to(kind) for m in models), origin, tuple(widened(f).float() for f in beside))


def _beside(key: Key, found: Mapping[str, Entry]) -> Entry:
    name = matched(key.name, found) if key.name not in found else key.name
    if name is None:
        held = next(iter(found.values())).file if found else "its file"
        raise DataError(f"{held} has no tensor for {key}; make it of this model")
    return found[name]


def _files(plan: Plan, dtype: torch.dtype | None, shard: int) -> dict[str, list[tuple[str, list[Wanted]]]]:
    """By group, the files and what each holds, in order."""
    groups: dict[str, list[Wanted]] = {}
    for key, entry in plan.first.entries.items():
        kind = dtype if dtype is not None and entry.floating else entry.dtype
        groups.setdefault(key.group, []).append(Wanted(key.name, kind, entry.shape, entry.count))
    out = {}
    for group, tensors in groups.items():
        files = sharded(tensors, shard if group == STOCK else 1 << 62)
        names = named(len(files)) if group == STOCK else [group]
        out[group] = list(zip(names, files, strict=True))
    return out


def elements(block_bytes: int) -> int:
    """Of a block of so many bytes of float32: whole pieces, one at least."""
    return max(PIECE, block_bytes // 4 // PIECE * PIECE)
