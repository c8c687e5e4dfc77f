"""`omni2vec pack --set`, and which folders `omni2vec eval` scores."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from omni2vec.data.shards import write_shards
from omni2vec.data.types import DataError, Example, Item
from omni2vec.launch.pack import known_set
from omni2vec.launch.scorable import scorable


def test_a_setting_that_the_command_lacks_is_told_as_a_recipes(tmp_path: Path) -> None:
    (tmp_path / "in/CIRR").mkdir(parents=True)
    row = {"qry": "x", "qry_image_path": "images/none.jpg", "pos_text": "y", "pos_image_path": ""}
    parquet.write_table(arrow.Table.from_pylist([row]), tmp_path / "in/CIRR/original-0.parquet")
    with pytest.raises(
        DataError, match=r"The command has no images=, on_error=: in a recipe, write MmebTrain\('.*/in', "
    ):
        known_set("mmeb_train", tmp_path / "in", tmp_path / "out")


def test_folders_of_fields_alone_are_left_out_of_a_scoring_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Example("s/0", "s", "retrieval", Item.text("q"), (Item.text("p"),))
    fields = replace(plain, query=Item(()), positives=(), fields={"a": Item.text("q"), "b": Item.text("p")})
    for name, rows in (("plain", [plain]), ("fields", [fields]), ("both", [plain, replace(fields, key="s/1")])):
        write_shards(rows, tmp_path / "test" / name)
    with caplog.at_level(logging.WARNING):
        kept = scorable([str(tmp_path / "test")])
    assert sorted(kept) == [str(tmp_path / "test" / name) for name in ("both", "plain")]
    assert f"left out, rows of fields: {tmp_path / 'test' / 'fields'}; score them by" in caplog.text
    only = [str(tmp_path / "test" / "fields")]
    assert scorable(only) == only
