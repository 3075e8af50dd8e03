"""The lines of a report's charts: what is left out of a long one, and what a path and its numbers say."""

from __future__ import annotations

import math
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from analysis.report_charts import Chart, Line, drawn, kept, notes, points_each, thinned

values = st.lists(st.floats(), min_size=1, max_size=300)


def numbers(markup: str, name: str) -> list[float]:
    (text,) = re.findall(rf' data-{name}="([^"]*)"', markup)
    return [math.nan if each == "n" else float(each) for each in text.split(",")]


@given(values=values, most=st.integers(4, 40), gap=st.integers(1, 9))
def test_what_is_left_out_is_never_an_extreme_nor_an_end(values: list[float], most: int, gap: int) -> None:
    steps = [n * gap for n in range(len(values))]

    at = kept(steps, values, most)

    finite = [value for value in values if math.isfinite(value)]
    shown = [values[n] for n in at if math.isfinite(values[n])]
    assert len(at) <= most
    assert list(at) == sorted(set(at))
    assert (at[0], at[-1]) == (0, len(values) - 1)
    if finite:
        assert (min(shown), max(shown)) == (min(finite), max(finite))


def test_a_stretch_without_a_number_breaks_the_line_also_where_points_are_left_out() -> None:
    values = [math.nan if 400 <= n < 600 else float(n % 7) for n in range(1000)]
    line = thinned(Line(0, range(1000), values), 50)

    path = re.findall(r' d="([^"]*)" class="line"', drawn(Chart("x", [line])))

    assert path[0].count("M") == 2


def test_a_line_carries_the_numbers_that_it_is_drawn_from() -> None:
    line = Line(3, [10, 20, 25], [0.5, math.inf, -0.25], band=([0.25, math.nan, -0.5], [0.75, math.nan, 0.0]))

    markup = drawn(Chart("x", [line]))

    assert numbers(markup, "s") == [10, 10, 5]
    assert str(numbers(markup, "v")) == "[0.5, nan, -0.25]"
    assert str(numbers(markup, "l")) == "[0.25, nan, -0.5]"
    assert str(numbers(markup, "h")) == "[0.75, nan, 0.0]"


def test_lone_values_are_dots_and_values_without_a_place_are_marked_and_counted() -> None:
    line = Line(0, [0, 1, 2, 3], [1.0, math.nan, 2.0, 1e305])

    chart = Chart("x", [line], missing=[len(line.missing)])

    assert re.findall(r' d="(M[\d ]+h0M[\d ]+h0)" class="line"', drawn(chart)) != []
    assert re.findall(r' d="(M[\d. ]+v-5M[\d. ]+v-5)" class="missing"', drawn(chart)) != []
    assert notes(chart) == ["2 values are NaN or infinite: no line there, and a mark on the axis."]


def test_a_chart_of_one_step_or_of_huge_numbers_is_a_chart() -> None:
    for line in (
        Line(0, [7], [1.0]),
        Line(0, [2**62, 2**62 + 1], [-1e300, 1e300]),
        Line(0, [0, 1], [0.0, 5e-324]),
    ):
        markup = drawn(Chart("x", [line]))

        assert "nan" not in markup
        assert "inf" not in markup


def test_five_runs_of_fifty_metrics_and_ten_thousand_steps_are_below_three_megabytes() -> None:
    steps = range(10_000)
    curves = 5 * 50
    # What one curve comes to, of numbers that have all their digits.
    line = thinned(Line(0, steps, [math.sin(n * 1.7) / 3 for n in steps]), points_each(curves))

    size = len(drawn(Chart("section/some_metric", [line])))

    assert curves * size < 3_000_000


def test_colours_come_again_dashed() -> None:
    markup: Any = drawn(Chart("x", [Line(0, [0, 1], [0, 1]), Line(8, [0, 1], [1, 0])]))

    assert re.findall(r'class="l ([^"]*)"', markup) == ["c0", "c0 again"]
