"""What is drawn in a terminal, as text; and what is too much for a picture."""

from __future__ import annotations

import math
from pathlib import Path

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from analysis.plots import CHARTS_MAX, Axis, Line, drawn, save


def text_of(*lines: Line, **options: object) -> list[str]:
    return [text.plain for text in drawn("loss", lines, **options)]  # type: ignore[arg-type]


def test_a_rising_line_goes_from_the_lower_left_to_the_upper_right() -> None:
    picture = text_of(Line("up", [0, 10], [0, 1]), width=30, is_ascii=True)

    columns = [(row.index("*"), row.rindex("*")) for row in picture[1:16]]
    assert columns == sorted(columns, reverse=True)
    assert columns[-1][0] == 5
    assert columns[0][1] == 29


def test_a_single_outlier_among_many_points_is_drawn() -> None:
    ys = [0.0] * 10_000
    ys[5_000] = 1.0

    picture = text_of(Line("flat", range(10_000), ys), width=40, is_ascii=True)

    assert "*" in picture[1]


def test_what_is_not_finite_breaks_the_line() -> None:
    picture = text_of(Line("gap", [0, 1, 2, 3], [1, math.nan, math.inf, 1]), width=40, is_ascii=True)

    assert sum(row.count("*") for row in picture[:-1]) == 2


def test_nothing_but_nan_is_an_empty_picture() -> None:
    picture = text_of(Line("nan", [0, 1], [math.nan, math.nan]), width=40)

    assert picture[-1] == "━━ nan   last nan"


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    points=st.lists(st.tuples(finite, st.floats()), max_size=20),
    width=st.integers(30, 120),
    log_x=st.booleans(),
    log_y=st.booleans(),
    x=st.sampled_from(["step", "time"]),
    is_ascii=st.booleans(),
)
def test_any_points_have_a_picture_that_fits(
    points: list[tuple[float, float]], width: int, log_x: bool, log_y: bool, x: str, is_ascii: bool
) -> None:
    line = Line("run", [x for x, _ in points], [y for _, y in points])

    picture = text_of(line, width=width, x=x, log_x=log_x, log_y=log_y, is_ascii=is_ascii)

    assert max(map(len, picture)) <= width
    assert not is_ascii or all(row.isascii() for row in picture)


@example(low=3.0, high=3.0000000000000004, is_log=True, is_time=False)
@given(low=finite, high=finite, is_log=st.booleans(), is_time=st.booleans())
def test_ticks_are_few_and_on_the_axis(low: float, high: float, is_log: bool, is_time: bool) -> None:
    axis = Axis.over([low, high], is_log, is_time)

    ticks = axis.ticks(5)

    assert len(ticks) <= 20
    assert all(at is not None and -0.01 <= at <= 1.01 for at in (axis.at(value) for value, _ in ticks))


def test_a_picture_of_very_many_charts_is_refused_in_words(tmp_path: Path) -> None:
    charts = [(f"key{number}", [Line("run", [0, 1], [0.0, 1.0])]) for number in range(CHARTS_MAX + 1)]

    with pytest.raises(click.UsageError, match="101 charts are too many"):
        save(tmp_path / "x.svg", "svg", charts, "step", False, False)

    assert not list(tmp_path.iterdir())
