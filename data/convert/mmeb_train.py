"""MMEB-train (VLM2Vec, arXiv:2410.05160 and 2507.04590): the image tasks that multimodal embedders are trained on.

A snapshot has a folder of Parquet files a task, and its pictures apart, zipped: unpack them first. The texts are told
apart in mmeb_texts.py.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ..index import full_digest
from ..parts import probe
from ..shards import write_shards
from ..sources import Shards
from ..tables import cells
from ..types import Blob, DataError, Example, Item, Part, Source, Text, Where
from .mmeb_texts import TASKS, plain, query, target

Version = Literal["original", "diverse_instruction"]
COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")
NEGATIVE = ("neg_text", "neg_image_path")  # most tasks leave them empty, older files out
_TOLD = 1000  # skipped rows that are listed; all are counted
_BOTH = "the two tell together what of a query is the instruction, so fetch both whole"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MmebTrain:
    """{root}/{task}/{version}-*.parquet -> train/{task}, for every task there, or for those named.

    version: "original", or "diverse_instruction" with ten wordings an instruction. images: the folder that picture
    paths ("images/CIRR/Train/...") are relative to, by default the root. rows: of a task, the first ones; 0 for all.
    on_error: what becomes of a row whose picture is missing or broken, or one side of which is empty: "raise", or
    "skip" it and list it in train/{task}/skipped.json. A task that a killed run had finished is not made again.
    """

    resumes = True
    root: str
    name: str = "mmeb_train"
    version: Version = "original"
    tasks: tuple[str, ...] = ()
    images: str = ""
    rows: int = 0
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        for what, value, words in (
            ("version", self.version, get_args(Version)),
            ("on_error", self.on_error, ("raise", "skip")),
        ):
            if value not in words:
                raise DataError(f"{self.name}: {what}={value!r}; expected {' or '.join(map(repr, words))}")
        unknown = [t for t in self.tasks if t not in TASKS]
        if unknown or self.rows < 0:
            raise DataError(
                f"{self.name}: tasks={self.tasks!r}, rows={self.rows}; expected 0 rows or more of {', '.join(TASKS)}"
            )

    def outside(self, where: Where) -> Mapping[str, str]:
        """The digests of the tables. Pictures are too many: after a change in them, make the step anew."""
        return {
            path.relative_to(self.root).as_posix(): full_digest(path)
            for version in dict.fromkeys(("original", self.version))
            for task in self.found()
            for path in _files(Path(self.root) / task, version)
        }

    def found(self) -> tuple[str, ...]:
        """The tasks that are converted. Raises DataError for a task that is named and not there, for none at all, and
        for a folder of rows that is no task known here."""
        root = Path(self.root)
        there = sorted(p.name for p in root.glob("*") if p.is_dir() and _files(p, self.version))
        missing = [t for t in self.tasks if t not in there]
        strange = [t for t in there if t not in TASKS] if not self.tasks else []
        if missing or not there:
            raise DataError(f"{root}: {self._why(missing, [t for t in there if t in TASKS])}")
        if strange:
            raise DataError(
                f"{root / strange[0]}: no task known here; name those wanted by tasks=, of {', '.join(TASKS)}"
            )
        return self.tasks or tuple(there)

    def _why(self, missing: Sequence[str], there: Sequence[str]) -> str:
        """Why tasks that are named, or all, are not found among those that are there."""
        no = f"no {missing[0] if missing else 'TASK'}/{self.version}-*.parquet in it"
        if not there:
            return (
                f"{no}; name the folder of TIGER-Lab/MMEB-train, which holds a folder a task (train.parquet alone is "
                "an older state of it)"
            )
        wanted = [t for t in self.tasks if t in there] or there
        return (
            f"{no} ({len(missing)} of {len(self.tasks)} tasks are not there); fetch the others, or name those that "
            f"are: MmebTrain(..., tasks={tuple(wanted)!r}), or tasks={','.join(wanted)} where it is a recipe's setting"
        )

    def make(self, out: Path, where: Where) -> None:
        """Fills out/train/{task}, one task after the other, each aside and renamed."""
        tasks = self.found()
        (out / "train").mkdir(parents=True, exist_ok=True)
        for left in out.glob(".*.part"):  # of a run that was killed
            shutil.rmtree(left)
        for task in tasks:
            if not (out / "train" / task).exists():
                aside = out / f".{task}.part"
                self._write(task, aside)
                aside.rename(out / "train" / task)

    def _write(self, task: str, out: Path) -> None:
        reading = _Reading(task, Path(self.images or self.root), self.on_error == "skip")
        rows = list(_rows(Path(self.root) / task, task, self.version, self.rows or None))
        write_shards(reading.examples(rows), out, prefix="train")
        whole = sum(not row.divided for row in rows)
        if whole:
            log.warning(
                "%s: the instruction of %d of %d queries is not known, and stays in them", task, whole, len(rows)
            )
        if reading.skipped:
            log.warning("%s: %d of %d rows skipped; skipped.json lists them", task, len(reading.skipped), len(rows))
            told = {"rows": len(rows), "skipped": len(reading.skipped), "first": reading.skipped[:_TOLD]}
            (out / "skipped.json").write_text(json.dumps(told, indent=1, ensure_ascii=False))


class Side(NamedTuple):
    """A text and a picture's path, either of which may be ""."""

    text: str
    image: str


class Row(NamedTuple):
    """One row of a table, its texts without placeholders and told apart."""

    where: str  # file and row, for errors
    instruction: str
    target_instruction: str
    query: Side
    positive: Side
    negative: Side
    divided: bool  # whether the query's instruction was found


def _files(folder: Path, version: str) -> list[Path]:
    return sorted({*folder.glob(f"{version}-*.parquet"), *folder.glob(f"{version}.parquet")})


def _cells(folder: Path, version: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """(file and row, its six columns as strings) of a version. Raises DataError for a missing column and a value that
    is no string."""
    for path in _files(folder, version):
        for i, row in enumerate(cells(path, None)):
            where = f"{path}: row {i}"
            missing = [c for c in COLUMNS if c not in row]
            if missing:
                raise DataError(f"{where}: no column {missing[0]!r}; there are {', '.join(map(repr, row))}")
            values = {c: row.get(c) for c in (*COLUMNS, *NEGATIVE)}
            for column, value in values.items():
                if not isinstance(value, str | None):
                    raise DataError(f"{where}: {column} is a {type(value).__name__} ({value!r:.60}), expected a string")
            yield where, {c: v or "" for c, v in values.items()}


def _rows(folder: Path, task: str, version: Version, most: int | None) -> Iterator[Row]:
    """The rows of a task; those of a paraphrased version beside their originals."""
    paraphrased = version != "original"
    originals = _cells(folder, "original") if paraphrased else iter(())
    end = ("", {"qry": ""})
    for i, (where, row) in enumerate(_cells(folder, version)):
        if i == most:
            return
        before = next(originals, end)
        if paraphrased and before is end:
            raise DataError(f"{where}: original-*.parquet beside it has {i} rows only; {_BOTH}")
        yield _row(where, row, task, before[1]["qry"] if paraphrased else None)
    if (more := next(originals, end)) is not end:
        raise DataError(f"{more[0]}: {version}-*.parquet beside it has no such row; {_BOTH}")


def _row(where: str, row: Mapping[str, str], task: str, original: str | None) -> Row:
    text = plain(row["qry"])
    found = query(text, task, None if original is None else plain(original))
    instruction, asked = found or ("", text)
    positive, negative, told = plain(row["pos_text"]), plain(row["neg_text"]), ""
    if row["pos_image_path"]:
        told, positive = target(positive)
    if row["neg_image_path"]:
        negative = target(negative)[1]
    return Row(
        where,
        instruction,
        told,
        Side(asked, row["qry_image_path"]),
        Side(positive, row["pos_image_path"]),
        Side(negative, row["neg_image_path"]),
        found is not None,
    )


class _UnusableError(DataError):
    """A row that may be skipped: its picture is missing or broken, or a side is empty."""


@dataclass
class _Reading:
    """Rows -> Examples, with the pictures of one folder."""

    task: str
    images: Path
    skip: bool
    skipped: list[str] = field(default_factory=list)  # "file: row i: why"
    _ids: dict[Side, str] = field(default_factory=dict)  # of right answers that stand in other rows

    def examples(self, rows: Sequence[Row]) -> Iterator[Example]:
        right: dict[Side, dict[Side, None]] = defaultdict(dict)  # one query in several rows: a picture's five captions
        for row in rows:
            right[row.query][row.positive] = None
        made = 0
        for row in rows:
            try:
                example = self._example(row, made, list(right[row.query]))
            except _UnusableError as error:
                if not self.skip:
                    raise DataError(f"{error}; on_error='skip' leaves such rows out and lists them") from None
                self.skipped.append(str(error))
                continue
            made += 1
            yield example
        if not made:
            why = f": {self.skipped[0]}" if self.skipped else ""
            raise DataError(f"{self.images}: none of the {len(rows)} rows of {self.task} can be used{why}")

    def _example(self, row: Row, number: int, right: Sequence[Side]) -> Example:
        kind = TASKS[self.task].kind
        asked, positive = self._item(row.query, row.where, "query"), self._item(row.positive, row.where, "positive")
        others = [self._id(side, row.where) for side in right if side != row.positive]
        known = [positive.id, *(other for other in others if other)]
        wrong = () if row.negative == Side("", "") else (self._item(row.negative, row.where, "negative"),)
        return Example(
            key=f"{self.task}/train/{number}",
            source=self.task,
            task=kind,
            query=asked,
            positives=(positive,),
            negatives=tuple(item for item in wrong if item.id not in known),
            known=tuple(dict.fromkeys(known)),
            label=row.positive.text if kind == "classification" else "",
            instruction=row.instruction,
            target_instruction=row.target_instruction,
            answer=row.positive.text if kind in ("classification", "vqa") else "",
        )

    def _item(self, side: Side, where: str, which: str) -> Item:
        parts: list[Part] = [self._picture(side.image, where)] if side.image else []
        if side.text:
            parts.append(Text(side.text))
        if not parts:
            raise _UnusableError(f"{where}: the {which} has neither a text nor a picture")
        return Item(tuple(parts))

    def _id(self, side: Side, where: str) -> str:
        """Of a right answer that another row holds; "" where that row cannot be used either."""
        if side not in self._ids:
            try:
                self._ids[side] = self._item(side, where, "positive").id
            except _UnusableError:
                self._ids[side] = ""
        return self._ids[side]

    def _picture(self, name: str, where: str) -> Part:
        """The picture of a path, which must not leave the folder: a table from elsewhere names no file outside it."""
        root = os.path.abspath(self.images)  # noqa: PTH100  (resolve() would follow links, of which hub caches are made)
        path = os.path.normpath(os.path.join(root, name))  # noqa: PTH118
        if not path.startswith(os.path.join(root, "")):  # noqa: PTH118
            raise DataError(f"{where}: picture {name!r} is outside {root}; do not use this table")
        try:
            data = Path(path).read_bytes()
        except (OSError, ValueError) as error:  # a ValueError for a name with a zero byte
            why = getattr(error, "strerror", None) or error
            raise _UnusableError(
                f"{where}: no picture {name!r} in {root} ({why}); unpack the set's images_zip/*.zip into "
                "images/ there, or say by images= where they are"
            ) from None
        try:
            return probe("image", Blob(data), f"{where}: {name}")
        except DataError as error:
            raise _UnusableError(str(error)) from None


def sources(data: str, tasks: Sequence[str]) -> dict[str, Source]:
    """Task -> its rows: the shards in `data`, or those that are made of the snapshot there. Raises DataError naming the
    tasks that are not there."""
    top = Path(data)
    shards = top / "train" if (top / "train").is_dir() else top
    if any(shards.glob("*/*.tar")):
        missing = [t for t in tasks if not any((shards / t).glob("*.tar"))]
        if missing:
            raise DataError(f"{shards}: no shards of {', '.join(missing)}; convert them, or name the others by tasks=")
        return {t: Shards(str(shards / t)) for t in tasks}
    made = MmebTrain(data, tasks=tuple(tasks), on_error="skip")  # what is left out is counted and listed
    made.found()
    return {t: Shards(made, f"train/{t}") for t in tasks}
