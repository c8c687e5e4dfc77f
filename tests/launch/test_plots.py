"""Curves as text: the shape, the scale, what is broken, and never a line too long."""

from __future__ import annotations

import math
import random

import pytest
from omni2vec.launch.plots import AXIS, curve, number, percent, shares, spark


def _drawn(values: list[float], width: int, height: int, **options: object) -> list[str]:
    return [line.plain for line in curve(range(len(values)), values, width, height, **options)]  # type: ignore[arg-type]


def test_a_falling_line_goes_from_the_upper_left_to_the_lower_right() -> None:
    lines = _drawn([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], AXIS + 4, 2)
    assert lines == ["      8 ┤⠑⢄  ", "      1 ┤  ⠑⢄"]


def test_a_constant_is_a_level_line() -> None:
    lines = _drawn([3.0] * 9, AXIS + 4, 2, plain=True)
    assert sum("*" in line for line in lines) == 1
    assert "****" in "".join(lines)


def test_more_steps_than_columns_are_averaged() -> None:
    wild = [float(i % 2) for i in range(4000)]  # 0 and 1 in turn: half, in every column
    top = curve(range(4000), wild, 50, 3)[0].plain
    assert float(top.split()[0]) == pytest.approx(0.5, abs=0.03)  # a column has some 48 of them


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_marked_and_sets_no_scale(bad: float) -> None:
    values = [1.0, 2.0, 3.0, 4.0, bad, 4.0, 3.0, 2.0]
    lines = _drawn(values, AXIS + 16, 3)
    assert lines[0].strip().startswith("4 ┤")
    assert lines[-1].strip().startswith("1 ┤")
    assert lines[0].count("×") == 1


def test_nothing_finite_is_said_in_words() -> None:
    assert "no finite value" in "".join(_drawn([math.nan, math.inf], 40, 3))
    assert "no finite value" in "".join(_drawn([], 40, 3))


def test_a_scale_of_many_decades_is_logarithmic_and_says_so() -> None:
    lines = _drawn([10.0**-i for i in range(8)], AXIS + 4, 4)
    assert any(line.strip().startswith("log") for line in lines)
    low = _drawn([10.0**-i for i in range(8)], AXIS + 4, 2)
    assert [line[AXIS:] for line in low] == ["⠑⢄  ", "  ⠑⢄"]  # a straight line on it


def test_every_line_is_as_wide_as_asked_whatever_the_values() -> None:
    chance = random.Random(0)
    odd = [0.0, -1e-300, 1e300, math.nan, math.inf, -math.inf, 1e-9, -5.0, 123456.0]
    for _ in range(300):
        values = [
            chance.choice(odd) if chance.random() < 0.3 else chance.gauss(0, 1) for _ in range(chance.randint(1, 90))
        ]
        width, height = chance.randint(AXIS + 2, 120), chance.randint(1, 7)
        for plain in (False, True):
            lines = _drawn(values, width, height, plain=plain)
            assert len(lines) == height
            if "no finite" not in "".join(lines):
                assert {len(line) for line in lines} == {width}
            assert not plain or "".join(lines).isascii()


def test_numbers_are_short_and_true() -> None:
    for value in (0.0, 1.0, 0.02131, 431.2, 9999.0, 12_345.0, 1.5e6, 2e9, 3e13, 2e-5, -0.5, -123.4, -2e-5, 1e-12):
        text = number(value)
        assert len(text) <= 7
        unit = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1.0)
        assert float(text.rstrip("kMGT")) * unit == pytest.approx(value, rel=0.06)
    assert [number(v) for v in (12_345.0, 2e-5, 0.5, math.inf)] == ["12.3k", "2.0e-5", "0.5", "inf"]
    assert percent(0.381) == "38.1%"


def test_a_spark_rises_with_its_values_and_marks_what_is_broken() -> None:
    assert spark([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8) == "▁▂▃▄▅▆▇█"
    assert spark([1.0, math.nan, 2.0], 8) == "▁×█"
    assert spark([math.nan], 8) == "×"
    assert len(spark([float(i) for i in range(1000)], 20)) == 20


def test_shares_fill_the_bar_and_name_every_part() -> None:
    bar, *legend = shares({"data": 0.1, "forward": 0.5, "backward": 1.4}, 60)
    assert len(bar.plain) == 60
    assert [round(s.end - s.start) for s in bar.spans] == [3, 15, 42]
    text = " ".join(line.plain for line in legend)
    assert "data 5% 100 ms" in text
    assert "backward 70% 1,400 ms" in text
    assert shares({"data": 0.0}, 60) == []
