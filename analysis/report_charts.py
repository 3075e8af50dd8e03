"""Charts of a report as SVG: lines, bands, levels, and the numbers that a reader's pointer asks for.

Invariants
----------
* A chart is a pure function of its lines. Its size is bounded by how many points a line may have, whatever was logged.
* Where points are left out, the lowest and the highest of every column stay, and the first and the last.
* What has no place (NaN, infinite, beyond 1e300) breaks the line, is marked on the axis and is counted below the chart.
* Beside its path a line carries the steps and values that it is drawn from, as numbers; the page's script reads nothing else.

Colours are classes: what they look like, by day and by night, is the style sheet's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from analysis.plots import Axis
from analysis.report_markup import Html, tag

COLOURS = 8
"""After so many the colours come again, dashed."""
WIDTH, HEIGHT = 600, 230
# Of all curves together, and what one has at least and at most. A point costs some 20 bytes.
_POINTS, _POINTS_MIN, POINTS_MAX = 120_000, 40, 1_000
_RIGHT, _TOP, _BOTTOM = 10, 8, 22
# Of a digit in an axis' font; and the room between the label and the axis.
_DIGIT, _GAP = 6.4, 8
# Paths are in tenths of a pixel, whole: shorter than decimals.
_FINE = 10
# Room above the highest and below the lowest value.
_AIR = 0.06
_MARKED_MAX = 40
# Between the labels of two moments, which may be near to each other.
_LABEL = 13
# For whether a value has a place on an axis at all.
_ANYWHERE = Axis(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Line:
    of: int
    """Whose it is: the number of its colour."""
    steps: Sequence[int]
    values: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    """Its lower and its upper end at each step; NaN where there is none."""
    behind: tuple[Sequence[int], Sequence[float]] | None = None
    """What was smoothed, drawn faintly."""
    label: str = ""
    """What it is of its run, where a chart has several of one."""
    style: str = ""
    """A class of its own: `second`, `third`, `under`; and `dots`, which are not joined."""

    @property
    def missing(self) -> list[int]:
        """The steps whose value has no place in a chart."""
        steps, values = self.behind or (self.steps, self.values)
        return [step for step, value in zip(steps, values, strict=True) if not has_place(value)]


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    lines: Sequence[Line]
    levels: Sequence[tuple[float, str]] = ()
    """Horizontal lines, with what each means."""
    moments: Sequence[tuple[int, int, str]] = ()
    """Vertical ones: step, whose, and what was then."""
    notes: Sequence[str] = ()
    table: tuple[list[str], list[list[str | float]]] | None = None
    """What stands beside it: the names of the columns, and the rows."""
    missing: Sequence[int] = field(default_factory=tuple)
    """How many values of each line have no place; counted before points were left out."""


def has_place(value: float) -> bool:
    """Whether a chart can show it."""
    return _ANYWHERE.at(value) is not None


def points_each(lines: int) -> int:
    """Return how many points a line may have, so that all of them make a file that can be sent.

    >>> points_each(1), points_each(250), points_each(100_000)
    (1000, 480, 40)
    """
    return min(max(_POINTS // max(1, lines), _POINTS_MIN), POINTS_MAX)


def thinned(line: Line, most: int) -> Line:
    """Return the line with at most so many points, its extremes among them."""
    at = kept(line.steps, line.values, most)
    behind = None
    if line.behind is not None:
        steps, values = line.behind
        others = kept(steps, values, most)
        behind = ([steps[n] for n in others], [values[n] for n in others])
    return replace(
        line,
        steps=[line.steps[n] for n in at],
        values=[line.values[n] for n in at],
        band=None if line.band is None else ([line.band[0][n] for n in at], [line.band[1][n] for n in at]),
        behind=behind,
    )


def kept(steps: Sequence[int], values: Sequence[float], most: int) -> Sequence[int]:
    """Return which points stay: of each of equally wide columns, the lowest and the highest; and the first and the last.

    A column in which no value is finite keeps one, so that the line breaks there.

    >>> kept([0, 1, 2, 3, 4, 5, 6, 7], [5, 1, 9, 4, 4, 4, 4, 7], 6)
    [0, 1, 2, 4, 7]
    """
    count = len(values)
    if count <= most:
        return range(count)
    columns = max(1, (most - 2) // 2)
    first, span = steps[0], steps[-1] - steps[0] + 1
    found = {0, count - 1}
    column, low, high, broken = 0, -1, -1, -1

    def close() -> None:
        found.update(each for each in ((low, high) if low >= 0 else (broken,)) if each >= 0)

    for n, value in enumerate(values):
        if (now := (steps[n] - first) * columns // span) != column:
            close()
            column, low, high, broken = now, -1, -1, -1
        if not math.isfinite(value):
            broken = n
        elif low < 0:
            low = high = n
        elif value < values[low]:
            low = n
        elif value > values[high]:
            high = n
    close()
    return sorted(found)


def drawn(chart: Chart) -> Html:
    """Return the chart as an SVG."""
    x_axis = Axis.over([step for line in chart.lines for step in (line.steps[0], line.steps[-1])])
    y_axis = _y_axis(chart)
    y_ticks = y_axis.ticks(about=5)
    left = math.ceil(max((len(label) for _, label in y_ticks), default=1) * _DIGIT) + _GAP + 4
    place = _Place(x_axis, y_axis, left, WIDTH - left - _RIGHT, HEIGHT - _TOP - _BOTTOM)
    return tag(
        "svg",
        tag("g", _grid(place, y_ticks), class_="grid"),
        tag(
            "g",
            [_level(place, *level) for level in chart.levels],
            [_moment(place, row, *moment) for row, moment in enumerate(chart.moments)],
            [_line(place, line) for line in chart.lines],
            class_="lines",
        ),
        class_="chart",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=_said(chart),
        data_x=f"{x_axis.low!r} {x_axis.high!r}",
        data_y=f"{y_axis.low!r} {y_axis.high!r}",
        data_box=f"{left} {_TOP} {place.width} {place.height}",
    )


def colour(number: int) -> str:
    """Return the classes of a line's colour.

    >>> colour(1), colour(9)
    ('c1', 'c1 again')
    """
    return f"c{number % COLOURS}" + (" again" if number >= COLOURS else "")


def written(value: float) -> str:
    """
    >>> written(0.123456789), written(20000.0), written(float("nan")), written(float("-inf")), written(3)
    ('0.123457', '20000', 'NaN', '-∞', '3')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where values are in the picture."""

    x_axis: Axis
    y_axis: Axis
    left: int
    width: int
    height: int

    def x(self, step: float) -> float:
        at = self.x_axis.at(step)
        return self.left + (at or 0.0) * self.width

    def y(self, value: float) -> float | None:
        at = self.y_axis.at(value)
        return None if at is None else _TOP + (1 - at) * self.height


def _y_axis(chart: Chart) -> Axis:
    values = [level for level, _ in chart.levels]
    for line in chart.lines:
        values.extend(line.values)
        if line.behind is not None:
            values.extend(line.behind[1])
        for end in line.band or ():
            values.extend(end)
    axis = Axis.over(values)
    air = (axis.high - axis.low) * _AIR
    return Axis(axis.low - air, axis.high + air)


def _grid(place: _Place, y_ticks: Sequence[tuple[float, str]]) -> Iterator[Html]:
    floor = _TOP + place.height
    for value, label in y_ticks:
        if (y := place.y(value)) is not None:
            yield tag("path", d=f"M{place.left} {y:.1f}h{place.width}")
            yield tag("text", label, x=place.left - _GAP, y=f"{y + 3.5:.1f}", class_="y")
    for step, _ in place.x_axis.ticks(about=6):
        # A step is whole: half of one is no tick.
        if step == round(step):
            yield tag("text", f"{round(step):,}", x=f"{place.x(step):.1f}", y=floor + 16, class_="x")
    yield tag("path", d=f"M{place.left} {floor}h{place.width}", class_="floor")


def _level(place: _Place, value: float, label: str) -> Html | None:
    y = place.y(value)
    if y is None:
        return None
    return tag(
        "g",
        tag("path", d=f"M{place.left} {y:.1f}h{place.width}"),
        tag("text", label, x=WIDTH - _RIGHT - 2, y=f"{y - 4:.1f}"),
        class_="level",
    )


def _moment(place: _Place, row: int, step: int, of: int, label: str) -> Html:
    x = place.x(step)
    # On the side where there is room.
    is_left = x > place.left + place.width * 0.7
    return tag(
        "g",
        tag("path", d=f"M{x:.1f} {_TOP}v{place.height}"),
        tag(
            "text",
            label,
            x=f"{x + (-5 if is_left else 5):.1f}",
            y=_TOP + 10 + row * _LABEL,
            class_="end" if is_left else None,
        ),
        class_=f"moment {colour(of)}",
        data_of=of,
    )


def _line(place: _Place, line: Line) -> Html:
    behind = line.behind
    only = [n for n, value in enumerate(line.values) if math.isfinite(value)]
    dot = None
    if len(only) == 1:
        y = place.y(line.values[only[0]])
        dot = (
            tag("circle", cx=f"{place.x(line.steps[only[0]]):.1f}", cy=f"{y:.1f}", r=3)
            if y is not None
            else None
        )
    ticks = "".join(f"M{place.x(step):.1f} {_TOP + place.height}v-5" for step in line.missing[:_MARKED_MAX])
    return tag(
        "g",
        _scaled("band", _band(place, line)),
        _scaled("faint", _path(place, *behind) if behind else ""),
        _scaled("line", _path(place, line.steps, line.values, is_joined=line.style != "dots")),
        tag("path", d=ticks, class_="missing") if ticks else None,
        dot,
        class_=f"l {colour(line.of)} {line.style}".rstrip(),
        data_of=line.of,
        data_label=line.label or None,
        data_s=",".join(_deltas(line.steps)),
        data_v=",".join(map(_short, line.values)),
        data_l=",".join(map(_short, line.band[0])) if line.band else None,
        data_h=",".join(map(_short, line.band[1])) if line.band else None,
    )


def _scaled(kind: str, path: str) -> Html | None:
    return tag("path", d=path, class_=kind, transform=f"scale({1 / _FINE:g})") if path else None


def _path(place: _Place, steps: Sequence[int], values: Sequence[float], is_joined: bool = True) -> str:
    """Return the path through the points, as moves from each to the next; what has no place breaks it."""
    parts: list[str] = []
    last: tuple[int, int] | None = None
    is_alone = False
    for step, value in zip(steps, values, strict=True):
        y = place.y(value)
        if y is None:
            # A cap is drawn only where there is a line, were it of no length.
            parts.append("h0" if is_alone else "")
            last, is_alone = None, False
            continue
        now = (round(place.x(step) * _FINE), round(y * _FINE))
        if last is None or not is_joined:
            parts.append("h0" if is_alone else "")
            parts.append(f"M{now[0]} {now[1]}")
            is_alone = True
        else:
            dx, dy = now[0] - last[0], now[1] - last[1]
            parts.append(f"l{dx}{'' if dy < 0 else ' '}{dy}" if dy else f"h{dx}")
            is_alone = False
        last = now
    parts.append("h0" if is_alone else "")
    return "".join(parts)


def _band(place: _Place, line: Line) -> str:
    """Return the outline of each stretch of the band."""
    if line.band is None:
        return ""
    path = []
    stretch: list[tuple[float, float, float]] = []
    # The last one ends the last stretch.
    for step, low, high in [*zip(line.steps, *line.band, strict=True), (0, math.nan, math.nan)]:
        top, bottom = place.y(high), place.y(low)
        if top is not None and bottom is not None:
            stretch.append((place.x(step), top, bottom))
            continue
        if len(stretch) > 1:
            over = [f"{round(x * _FINE)} {round(top * _FINE)}" for x, top, _ in stretch]
            under = [f"{round(x * _FINE)} {round(bottom * _FINE)}" for x, _, bottom in reversed(stretch)]
            path.append(f"M{'L'.join(over + under)}z")
        stretch = []
    return "".join(path)


def _deltas(steps: Sequence[int]) -> Iterator[str]:
    last = 0
    for step in steps:
        yield str(step - last)
        last = step


def _short(value: float) -> str:
    """
    >>> _short(0.123456789), _short(float("nan")), _short(1e-07)
    ('.123457', 'n', '1e-07')
    """
    if not math.isfinite(value):
        return "n"
    number = f"{value:.6g}"
    return number.replace("0.", ".", 1) if number.startswith(("0.", "-0.")) else number


def _said(chart: Chart) -> str:
    """What the picture shows, for who does not see it."""
    steps = [step for line in chart.lines for step in (line.steps[0], line.steps[-1])]
    lines = "1 line" if len(chart.lines) == 1 else f"{len(chart.lines)} lines"
    return f"{chart.title}: {lines} over the steps {min(steps)} to {max(steps)}"


def notes(chart: Chart) -> list[str]:
    """Return what is to be said below the chart."""
    missing = sum(chart.missing)
    if not missing:
        return list(chart.notes)
    what = "1 value is" if missing == 1 else f"{missing:,} values are"
    return [*chart.notes, f"{what} NaN or infinite: no line there, and a mark on the axis."]
