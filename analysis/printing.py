"""Results as text and files: a table, JSON, CSV, Markdown, Parquet.

Invariants
----------
* JSON is one object a line, for programs: the values are whole, JSON columns are JSON, and what JSON has no word for (NaN)
  is text. CSV and Parquet are whole as well. The table is for people: it fits the terminal, and what does not fit is cut.
* What is for people has no control characters: what a run is called cannot move the cursor. Files for programs are exact.
* Rows are printed as they come: memory does not grow with them.
* A file is there whole or not at all, with the permissions that it had.

What was asked is not known here.
"""

from __future__ import annotations

import csv
import errno
import math
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
import orjson

from eventlog.record import encode_data

if TYPE_CHECKING:
    import duckdb
SHAPES = ("table", "json", "csv", "parquet", "markdown")
# What a file's name says of its format.
SUFFIXES = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".md": "markdown",
    ".txt": "table",
}
# More rows than anybody reads in a terminal; the other formats print all.
_ROWS_SHOWN = 500
_CELL_CHARS = 200
_ROWS_AT_ONCE = 10_000
# Between two columns, and the least that tells something of a cell that is cut.
_GAP, _COLUMN_MIN = 2, 10
# A pipe has no width to fit into.
_UNBOUNDED = 10_000
_NUMBER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL(\(.*\))?")
# What a terminal obeys instead of showing it: control characters, and marks that turn the direction of what follows.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# As Python has DuckDB's 'infinity' and '-infinity'.
_ENDLESS = {datetime.max: "infinity", datetime.min: "-infinity", date.max: "infinity", date.min: "-infinity"}

Row = tuple[Any, ...]


@dataclass(slots=True)
class Result:
    """What a query found: rows that are fetched when they are asked for."""

    names: list[str]
    types: list[str]
    fetched: Iterator[Row]
    count: int = 0
    """How many rows were asked for so far."""

    @property
    def rows(self) -> Iterator[Row]:
        for row in self.fetched:
            self.count += 1
            yield row


def result_of(con: duckdb.DuckDBPyConnection) -> Result | None:
    """Return the result of what was executed last; None if it has none, as SET has."""
    described = con.description
    if not described:
        return None
    names = unique([column[0] for column in described])
    return Result(names, [str(column[1]) for column in described], _rows(con))


def show(result: Result, shape: str, out: TextIO | None = None) -> None:
    """Print a result, to stdout if nothing else is given."""
    {"table": _table, "json": _json, "csv": _csv, "markdown": _markdown}[shape](result, out or sys.stdout)


def shape_of(shape: str | None, output: Path | None) -> str:
    """Return the format that was asked for, else what the file's name says, else a table; Parquet needs a file."""
    if shape is None and output is not None:
        shape = SUFFIXES.get(output.suffix.lower())
        if shape is None:
            raise click.UsageError(
                f"{str(output)!r} does not say which format. Give --format, or a name that ends in "
                f"{', '.join(SUFFIXES)}."
            )
    if shape == "parquet" and output is None:
        raise click.UsageError("Parquet is no text for a terminal or a pipe. Say where to: -o FILE.parquet.")
    return shape or "table"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; it takes the place of `path` when all went well, and is gone otherwise.

    Where a link leads to is replaced, and the link stays. A pipe, a device or what a process has open is written to.
    """
    try:
        file = _end_of_links(path)
        if file is None:
            yield path
            return
        if not file.parent.is_dir():
            raise click.ClickException(f"there is no directory {str(file.parent)!r}. Make it first.")
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            temporary.touch(exist_ok=False)
            if file.exists():
                # Before anything is in it: what nobody else may read is never open to them.
                temporary.chmod(stat.S_IMODE(file.stat().st_mode))
            yield temporary
            os.replace(temporary, file)
        finally:
            with suppress(OSError):
                temporary.unlink()
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise click.ClickException(
            f"{str(path)!r} could not be written: {error.strerror or error}."
        ) from None


def _end_of_links(path: Path) -> Path | None:
    """Return the file that the path leads to at last, be it there or not; None where there is none to replace."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            return None
    at = path.absolute()
    while at.is_symlink():
        directory = at.parent.resolve()
        # /dev/stdout leads there: what it is open on is its owner's to begin and to end.
        if directory.is_relative_to("/proc"):
            return None
        at = directory / at.readlink()
    return at


def unique(names: list[str]) -> list[str]:
    """Return the names with a number after each that was there before.

    >>> unique(["step", "value", "value", "value_1"])
    ['step', 'value', 'value_1', 'value_1_1']
    """
    seen: dict[str, int] = {}
    for name in names:
        while name in seen:
            seen[name] += 1
            name = f"{name}_{seen[name]}"
        seen[name] = 0
    return list(seen)


def visible(text: str) -> str:
    r"""Return the text with what a terminal would obey as it is written in Python; lines stay lines.

    >>> print(visible("\x1b[31mred\u202e and\nmore"))
    \x1b[31mred\u202e and
    more
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def cell(value: Any, chars: int = _CELL_CHARS) -> str:
    r"""Return what a table shows of a value: one line, cut where nobody would read on.

    >>> cell(0.30000000000000004), cell(None), cell("two\nlines"), cell(12), cell("x" * 500)[-3:]
    ('0.3', '', 'two lines', '12', 'xx…')
    """
    if value is None:
        return ""
    if isinstance(value, date) and (endless := _endless(value)):
        return endless
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    text = visible(" ".join(str(value).split()))
    return text if len(text) <= chars else text[: chars - 1] + "…"


def widest_column(widths: list[int], available: int) -> int:
    """Return how wide a column may be at most, so that all fit: the narrow ones whole, the others equally wide.

    >>> widest_column([4, 30, 50], 60), widest_column([4, 30, 50], 100), widest_column([], 100)
    (28, 66, 100)
    """
    left, ascending = available, sorted(widths)
    for at, width in enumerate(ascending):
        share = left // (len(ascending) - at)
        if width > share:
            return share
        left -= width
    return left + (ascending[-1] if ascending else 0)


def _rows(con: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    while rows := con.fetchmany(_ROWS_AT_ONCE):
        yield from rows


def print_json(content: dict[str, Any], out: TextIO | None = None) -> None:
    click.echo(encode_data(content)[0].decode(), file=out)


def _json(result: Result, out: TextIO) -> None:
    for row in result.rows:
        values = zip(result.names, row, result.types, strict=True)
        print_json({name: _for_json(value, kind) for name, value, kind in values}, out)


def _for_json(value: Any, kind: str) -> Any:
    if kind == "JSON" and isinstance(value, str):
        return orjson.loads(value)
    if isinstance(value, date):
        return _endless(value) or value
    # A literal like 0.5 makes a DECIMAL of a whole column.
    return float(value) if isinstance(value, Decimal) else value


def _endless(value: date) -> str | None:
    return _ENDLESS.get(value.replace(tzinfo=None) if isinstance(value, datetime) else value)


def _csv(result: Result, out: TextIO) -> None:
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(result.names)
    for row in result.rows:
        lines.writerow(
            [_endless(value) or value.isoformat() if isinstance(value, date) else value for value in row]
        )


def _markdown(result: Result, out: TextIO) -> None:
    def line(cells: list[str]) -> None:
        click.echo(f"| {' | '.join(cells)} |", file=out)

    line([_in_markdown(name) for name in result.names])
    line(["---:" if _NUMBER.fullmatch(kind) else "---" for kind in result.types])
    for row in result.rows:
        line([_in_markdown(value) for value in row])


def _in_markdown(value: Any) -> str:
    r"""
    >>> _in_markdown("a|b")
    'a\\|b'
    """
    return cell(value, chars=sys.maxsize).replace("\\", "\\\\").replace("|", "\\|")


def _table(result: Result, out: TextIO) -> None:
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = [cell(name) for name in result.names]
    rows: list[list[str]] = []
    is_more = False
    for row in result.rows:
        if len(rows) == _ROWS_SHOWN:
            is_more = True
            break
        rows.append([cell(value) for value in row])
    console = Console(file=out)
    if not console.is_terminal:
        console = Console(file=out, width=_UNBOUNDED)
    widths = [max(map(cell_len, column)) for column in zip(names, *rows, strict=True)]
    widest = widest_column(widths, console.width - _GAP * (len(names) - 1))
    if widest < _COLUMN_MIN:
        # Too many columns to stand side by side.
        for cells in rows:
            below = Table(box=None, pad_edge=False, show_header=False)
            for name, value in zip(names, cells, strict=True):
                below.add_row(Text(name, style="bold"), Text(value))
            console.print(below, "")
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, kind in zip(names, result.types, strict=True):
            justify: Any = "right" if _NUMBER.fullmatch(kind) else "left"
            table.add_column(Text(name), justify=justify, overflow="ellipsis", no_wrap=True, max_width=widest)
        for cells in rows:
            # As text: a key like `[bold]` is no markup.
            table.add_row(*map(Text, cells))
        console.print(table)
    if is_more:
        click.echo(
            f"… and more: these are the first {_ROWS_SHOWN} rows. `--json` prints all.",
            err=True,
        )
