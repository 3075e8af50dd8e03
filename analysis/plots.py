"""Draws curves: in a terminal, as lines of text, and into a PNG or SVG file.

Invariants
----------
* What is drawn in a terminal is a pure function of the lines and the canvas: no clock, no terminal, no file.
* Every finite value (up to 1e300) is in the picture: where more points than dots fall into one column, it spans from the lowest to the
  highest of them.
* Without colours, runs are told apart by their marks; without Unicode, everything is ASCII.

The terminal's picture is our own: the libraries there are keep the figure in a global, and change their calls at each release.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.text import Text

# Told apart also by most people who do not see all colours.
COLOURS = ("cyan", "yellow", "magenta", "green", "red", "blue", "white")
MARKS = "*+ox#@%&"
HEIGHT = 15
# Dots of a braille character: two columns of four, and the bit of each.
_DOTS_X, _DOTS_Y = 2, 4
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BRAILLE = 0x2800
# Beyond it, the arithmetic of axes ends; so does the meaning of a metric.
_LARGEST = 1e300
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_TIME_STEPS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, _HOUR, 2 * _HOUR, 6 * _HOUR, 12 * _HOUR)
# The names of axes.
# Of a picture: one of more is a wall that nobody looks at, and takes minutes.
CHARTS_MAX = 100
_X_NAMES = {"step": "step", "time": "time since the run began"}


@dataclass(frozen=True, slots=True)
class Line:
    """What is drawn of one curve."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    behind: Sequence[float] | None = None
    """What was smoothed, drawn faintly in a picture."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Where a value stands on it: from 0 to 1."""

    low: float
    high: float
    is_log: bool = False
    is_time: bool = False

    @classmethod
    def over(cls, values: Sequence[float], is_log: bool = False, is_time: bool = False) -> Axis:
        placed = [value for value in values if _has_place(value, is_log)]
        low, high = (min(placed), max(placed)) if placed else (1.0, 1.0) if is_log else (0.0, 0.0)
        # The logarithms of two neighbours may be one.
        if is_log and math.log10(low) == math.log10(high):
            low, high = low / 2, high * 2
        elif low == high:
            around = abs(low) / 2 or 0.5
            low, high = low - around, high + around
        return cls(low, high, is_log, is_time)

    def at(self, value: float) -> float | None:
        if not _has_place(value, self.is_log):
            return None
        if self.is_log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int) -> list[tuple[float, str]]:
        """Return round values on the axis, and how each is written.

        >>> Axis(0.0, 100.0).ticks(5)
        [(0.0, '0'), (20.0, '20'), (40.0, '40'), (60.0, '60'), (80.0, '80'), (100.0, '100')]
        >>> [text for _, text in Axis(1e-6, 1e-3, is_log=True).ticks(4)]
        ['1e-06', '1e-05', '0.0001', '0.001']
        >>> [text for _, text in Axis(0.0, 7200.0, is_time=True).ticks(4)]
        ['0', '30 min', '1 h', '1 h 30 min', '2 h']
        """
        found = self._log_ticks(about) if self.is_log else self._even_ticks(about)
        return [(value, text) for value, text in found if self._is_on(value)]

    def _is_on(self, value: float) -> bool:
        at = self.at(value)
        return at is not None and -1e-6 <= at <= 1 + 1e-6

    def _even_ticks(self, about: int) -> list[tuple[float, str]]:
        step = self._step(about)
        if self.low + step == self.low or self.high + step == self.high:
            return [(self.low, f"{self.low:.6g}")]
        first = math.ceil(self.low / step - 1e-9)
        values = [first * step + number * step for number in range(4 * about)]
        inside = [value for value in values if value <= self.high + step * 1e-9]
        if self.is_time:
            return [(value, written_time(value)) for value in inside]
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        is_plain = max(abs(self.low), abs(self.high)) < 1e6 and digits <= 4
        return [(value, f"{value + 0.0:.{digits}f}" if is_plain else f"{value:.4g}") for value in inside]

    def _step(self, about: int) -> float:
        rough = (self.high - self.low) / about
        if self.is_time:
            days = (_DAY * 10**power * times for power in range(9) for times in (1, 2, 5))
            parts = (times * 10.0**power for power in range(-6, 0) for times in (1, 2, 5))
            return next((step for step in (*parts, *_TIME_STEPS, *days) if step >= rough * 0.8), rough)
        power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 0.0
        return next((times * power for times in (1, 2, 5) if times * power >= rough * 0.8), 10 * power)

    def _log_ticks(self, about: int) -> list[tuple[float, str]]:
        low, high = math.log10(self.low), math.log10(self.high)
        powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        if len(powers) >= 2:
            every = math.ceil(len(powers) / about)
            values = [10.0**power for power in powers[::every]]
        else:
            begin, end = math.floor(low), math.ceil(high)
            values = [times * 10.0**power for power in range(begin, end + 1) for times in (1, 2, 3, 5, 7)]
            values = [value for value in values if self.low <= value <= self.high]
            values = values if len(values) > 1 else [self.low, self.high]
        return [(value, written_time(value) if self.is_time else f"{value:.4g}") for value in values]


def _has_place(value: float, is_log: bool) -> bool:
    return abs(value) <= _LARGEST and (value >= 1 / _LARGEST or not is_log)


def written_time(seconds: float) -> str:
    """
    >>> written_time(45), written_time(90), written_time(86400 * 3 + 3600), written_time(0.25)
    ('45 s', '1 min 30 s', '3 d 1 h', '0.25 s')
    """
    if 0 < seconds < _MINUTE:
        return f"{seconds:.4g} s"
    parts, rest = [], round(seconds)
    for size, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0"


@dataclass(slots=True)
class Canvas:
    """Characters that lines are drawn on; `dots` of each character are its own where it is braille."""

    width: int
    height: int
    is_braille: bool
    cells: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """(column, row) → (dots, number of the line that came last)."""

    @property
    def size(self) -> tuple[int, int]:
        return (self.width * _DOTS_X, self.height * _DOTS_Y) if self.is_braille else (self.width, self.height)

    def dot(self, x: int, y: int, line: int) -> None:
        at, bits = (x, y), 1
        if self.is_braille:
            at, bits = (x // _DOTS_X, y // _DOTS_Y), _BITS[x % _DOTS_X][y % _DOTS_Y]
        self.cells[at] = (self.cells.get(at, (0, 0))[0] | bits, line)

    def stroke(self, x0: int, y0: int, x1: int, y1: int, line: int) -> None:
        length = max(abs(x1 - x0), abs(y1 - y0), 1)
        for at in range(length + 1):
            self.dot(round(x0 + (x1 - x0) * at / length), round(y0 + (y1 - y0) * at / length), line)

    def row(self, y: int) -> Iterator[tuple[str, int | None]]:
        for x in range(self.width):
            dots, line = self.cells.get((x, y), (0, -1))
            if line < 0:
                yield " ", None
            else:
                yield chr(_BRAILLE + dots) if self.is_braille else MARKS[line % len(MARKS)], line


def drawn(
    title: str,
    lines: Sequence[Line],
    width: int = 80,
    x: str = "step",
    log_x: bool = False,
    log_y: bool = False,
    is_ascii: bool = False,
    has_colours: bool = True,
) -> list[Text]:
    """Return the picture as lines of text of at most that width."""
    from rich.text import Text

    x_axis = Axis.over([each for line in lines for each in line.xs], log_x, is_time=x == "time")
    y_axis = Axis.over([each for line in lines for each in line.ys], log_y)
    y_ticks = y_axis.ticks(about=5)
    gutter = max(len(text) for _, text in y_ticks)
    tee, side, corner, floor, below = ("+", "|", "+", "-", "+") if is_ascii else ("┤", "│", "└", "─", "┬")
    canvas = Canvas(
        max(10, width - gutter - 2), HEIGHT, is_braille=not is_ascii and (has_colours or len(lines) == 1)
    )
    for number, line in enumerate(lines):
        for stroke in _strokes(line, x_axis, y_axis, canvas.size):
            canvas.stroke(*stroke, number)
    marked = {}
    for value, text in y_ticks:
        if (at := y_axis.at(value)) is not None:
            marked[round((1 - min(max(at, 0), 1)) * (HEIGHT - 1))] = text
    picture = [Text(_fitting(title, width, is_ascii), style="bold")]
    for y in range(HEIGHT):
        row = Text(f"{marked.get(y, ''):>{gutter}} {tee if y in marked else side}")
        for drawn_by, characters in groupby(canvas.row(y), key=itemgetter(1)):
            row.append(
                "".join(each for each, _ in characters), style=None if drawn_by is None else _colour(drawn_by)
            )
        row.rstrip()
        picture.append(row)
    picture.extend(_below(x_axis, canvas.width, gutter, (corner, floor, below), _X_NAMES[x]))
    picture.extend(_legend(lines, width, canvas.is_braille, is_ascii))
    return picture


def save(
    path: Path, kind: str, charts: Sequence[tuple[str, Sequence[Line]]], x: str, log_x: bool, log_y: bool
) -> None:
    """Write the charts, one below the other, into a file of that kind: `png` or `svg`."""
    if len(charts) > CHARTS_MAX:
        raise click.UsageError(
            f"{len(charts):,} charts are too many for one picture, which has {CHARTS_MAX} at most. Name fewer metrics; "
            "`analysis report` takes any number."
        )
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name!r} is not installed, which pictures are drawn with. Install `tidelog[analysis]`; "
            "without -o the curves are drawn in the terminal."
        ) from None

    # A figure of its own: pyplot would look for a screen.
    figure = Figure(figsize=(8, 1 + 3.4 * len(charts)), layout="constrained")
    panels = figure.subplots(len(charts), 1, squeeze=False)[:, 0]
    for panel, (title, lines) in zip(panels, charts, strict=True):
        for number, line in enumerate(lines):
            colour = f"C{number}"
            if line.behind is not None:
                panel.plot(line.xs, line.behind, color=colour, alpha=0.25, linewidth=1)
            marker = "o" if len(line.xs) == 1 else None
            panel.plot(line.xs, line.ys, color=colour, linewidth=1.5, label=line.label, marker=marker)
        panel.set_title(title, parse_math=False)
        panel.set_xlabel(_X_NAMES[x])
        panel.grid(alpha=0.3)
        if log_x:
            panel.set_xscale("log")
        if log_y:
            panel.set_yscale("log")
        if x == "time" and not log_x:
            axis = Axis.over([each for line in lines for each in line.xs], is_time=True)
            panel.set_xticks(*zip(*axis.ticks(about=6), strict=True))
        for text in panel.legend().get_texts():
            text.set_parse_math(False)
    figure.savefig(path, format=kind, dpi=150)


def not_drawn(lines: Sequence[Line], log_x: bool, log_y: bool) -> int:
    """Return how many points have no place in the picture: NaN, infinite, or not above zero on a logarithmic axis."""
    x_axis, y_axis = Axis(1.0, 2.0, log_x), Axis(1.0, 2.0, log_y)
    return sum(
        x_axis.at(x) is None or y_axis.at(y) is None
        for line in lines
        for x, y in zip(line.xs, line.ys, strict=True)
    )


def _strokes(
    line: Line, x_axis: Axis, y_axis: Axis, size: tuple[int, int]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield the strokes from each column's points to those of the next; what has no place breaks the line."""
    width, height = size
    last: tuple[int, int] | None = None
    span: tuple[int, int, int] | None = None
    """Of the column under way: its number, and the lowest and highest dot in it."""
    for x, y in zip(line.xs, line.ys, strict=True):
        at_x, at_y = x_axis.at(x), y_axis.at(y)
        if at_x is None or at_y is None:
            last = None
            continue
        dot = (round(at_x * (width - 1)), round((1 - at_y) * (height - 1)))
        if span is not None and span[0] == dot[0] and last is not None:
            span = (span[0], min(span[1], dot[1]), max(span[2], dot[1]))
        else:
            if span is not None:
                yield span[0], span[1], span[0], span[2]
            if last is not None:
                yield *last, *dot
            span = (dot[0], dot[1], dot[1])
        last = dot
    if span is not None:
        yield span[0], span[1], span[0], span[2]


def _below(axis: Axis, width: int, gutter: int, signs: tuple[str, str, str], name: str) -> Iterator[Text]:
    from rich.text import Text

    corner, floor, below = signs
    ruler, written = [floor] * width, [" "] * (width + gutter + 2)
    end = 0
    for value, text in axis.ticks(about=max(2, width // 12)):
        at = axis.at(value)
        if at is None:
            continue
        column = round(min(max(at, 0), 1) * (width - 1))
        ruler[column] = below
        begin = min(max(end, column + gutter + 2 - len(text) // 2), len(written) - len(text))
        if begin >= end:
            written[begin : begin + len(text)] = text
            end = begin + len(text) + 1
    yield Text(f"{' ' * gutter} {corner}{''.join(ruler)}")
    line = "".join(written).rstrip()
    if len(line) + len(name) + 3 <= len(written):
        line = f"{line}   {name}"
    elif end:
        yield Text(line)
        line = f"{name:>{len(written)}}"
    yield Text(line)


def _legend(lines: Sequence[Line], width: int, is_braille: bool, is_ascii: bool) -> Iterator[Text]:
    from rich.text import Text

    for number, line in enumerate(lines):
        sign = "━━" if is_braille else MARKS[number % len(MARKS)]
        last = f"last {line.ys[-1]:.4g}" if line.ys else "no values"
        text = Text(f"{sign} ", style=_colour(number))
        room = width - len(sign) - len(last) - 4
        text.append(_fitting(line.label, room, is_ascii), style="none")
        text.append(f"   {last}", style="dim")
        yield text


def _fitting(text: str, width: int, is_ascii: bool) -> str:
    if is_ascii:
        text = text.encode("ascii", "backslashreplace").decode()
    more = "..." if is_ascii else "…"
    return text if len(text) <= width else text[: max(0, width - len(more))] + more


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
