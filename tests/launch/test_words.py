"""Words to values, and whether values fit their annotations."""

from pathlib import Path
from typing import Literal

import pytest
from omni2vec.launch.words import RecipeError, fits, parse, spell


@pytest.mark.parametrize(
    ("word", "annotation", "value"),
    [
        ("3", int, 3),
        ("1_000", int, 1000),
        ("1e-3", float, 0.001),
        ("inf", float, float("inf")),
        ("true", bool, True),
        ("False", bool, False),
        ("", str, ""),
        ("none", int | None, None),
        ("7", int | None, 7),
        ("7", str | int, 7),
        ("seven", int | str, "seven"),
        ("none", str, "none"),
        ("mean", Literal["mean", "last"], "mean"),
        ("2", Literal[1, 2], 2),
        ("1,2,3", tuple[int, ...], (1, 2, 3)),
        ("(0.9, 0.95)", tuple[float, float], (0.9, 0.95)),
        ("", tuple[str, ...], ()),
        ("a/b", Path, Path("a/b")),
    ],
)
def test_a_word_is_read_by_its_annotation(word, annotation, value):
    made = parse(word, annotation, "x")
    assert made == value and type(made) is type(value)


@pytest.mark.parametrize(
    ("word", "annotation"),
    [
        ("3.5", int),
        ("yes", bool),
        ("1", bool),
        ("median", Literal["mean", "last"]),
        ("1,x", tuple[int, ...]),
        ("1,2,3", tuple[float, float]),
        ("x", int | None),
        ("{}", dict),
    ],
)
def test_a_word_that_does_not_fit_is_refused_with_what_was_expected(word, annotation):
    with pytest.raises(RecipeError) as error:
        parse(word, annotation, "setting 'x'")
    assert "setting 'x'" in str(error.value) and word in str(error.value) and spell(annotation) in str(error.value)


@pytest.mark.parametrize(
    ("value", "annotation", "good"),
    [
        (1, float, True),
        (True, int, False),
        ("1", int, False),
        (None, int | None, True),
        ("up", Literal["up", "down"], True),
        ("upp", Literal["up", "down"], False),
        ((1, 2), tuple[int, ...], True),
        ([1, 2], tuple[int, ...], False),
        ((1,), tuple[int, int], False),
        ({"a": 1.5}, dict[str, float], True),
        ({"a": "x"}, dict[str, float], False),
        (object(), "some name only a type checker knows", True),
    ],
)
def test_a_value_fits_its_annotation_or_not(value, annotation, good):
    assert fits(value, annotation) is good
