"""The command `analysis`: SQL over the logs, from a terminal.

Invariants
----------
* `--json` prints one object a line, for programs: the values are whole, JSON columns are JSON, and what JSON has no word for
  (NaN) is text. The table is for people: it fits the terminal, and what does not fit is cut.
* Exit codes: 0 it ran; 1 the world failed; 2 wrong usage, or a query that DuckDB refuses.

What a query may do is DuckDB's to say: this is the user's own shell, and `COPY … TO` writes where they ask.
"""

from __future__ import annotations

import csv
import difflib
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from eventlog.record import encode_data

if TYPE_CHECKING:
    import duckdb

# More rows than anybody reads in a terminal; the other formats print all.
_ROWS_SHOWN = 500
_CELL_CHARS = 200
_ROWS_AT_ONCE = 10_000
# Between two columns, and the least that tells something of a cell that is cut.
_GAP, _COLUMN_MIN = 2, 10
_NUMBER = re.compile(r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL(\(.*\))?")
_OVERVIEW = "project, run_id, name, state, last_step, records, trajectories, backlog, started, duration_s"

Row = tuple[Any, ...]

_root_option = click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Where the runs are. [default: $EVENTLOG_ROOT, else ./runs]",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tidelog", prog_name="analysis")
def main() -> None:
    """Ask training runs anything, in SQL, while they run."""


@main.command()
@click.argument("query", required=False)
@_root_option
@click.option(
    "-f", "--file", "query_file", type=click.File("r"), help="Read the query from a file (`-`: stdin)."
)
@click.option(
    "--format", "shape", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True
)
@_json_option
@click.option(
    "--verify", is_flag=True, help="Check every record's checksum first, and leave out what is damaged."
)
def sql(
    query: str | None, root: Path | None, query_file: Any, shape: str, as_json: bool, verify: bool
) -> None:
    """Run QUERY and print what it finds. Without one, print the views and some queries to start from.

    \b
    analysis sql "SELECT run_id, state, last_step FROM runs"
    analysis sql "SELECT step, value FROM curve('baseline', 'train/loss')" --format csv
    """
    if query and query_file:
        raise click.UsageError("give the query or a file with it, not both.")
    text = query_file.read() if query_file else query
    with _connected(root, verify) as con:
        if not text or not text.strip():
            _print_guide(con)
            return
        _run(con, text, lambda: _print("json" if as_json else shape, con))


@main.command()
@_root_option
@click.option(
    "--where", metavar="SQL", help="Only these, e.g. \"state = 'live' AND config ->> 'lr' = '1e-6'\"."
)
@click.option(
    "--sort", metavar="COLUMN", help="By this column of `runs`; -COLUMN is downwards.  [default: started]"
)
@_json_option
def runs(root: Path | None, where: str | None, sort: str | None, as_json: bool) -> None:
    """List the runs. `--json` has all columns, config and summary among them."""
    with _connected(root, verify=False) as con:
        column = (sort or "started").removeprefix("-")
        known = [name for name, _ in _columns(con, "runs")]
        if column not in known:
            raise click.UsageError(f"runs have no column {column!r}. {_nearest(column, known)}")
        direction = "DESC" if sort and sort.startswith("-") else "ASC"
        query = (
            f"SELECT {'*' if as_json else _OVERVIEW} FROM runs WHERE ({where or 'true'}\n) "
            f'ORDER BY "{column}" {direction} NULLS LAST, project, run_id'
        )
        _run(con, query, lambda: _print("json" if as_json else "table", con))


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _connected(root: Path | None, verify: bool) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a connection; say on stderr what was passed over, and where to look if there is nothing."""
    try:
        import analysis
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name!r} is not installed. Install `tidelog[analysis]`.") from None
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        con = analysis.connect(root, verify=verify)
    # It would stand in the middle of the output.
    con.execute("SET enable_progress_bar = false")
    for notice in notices:
        click.echo(f"analysis: {notice.message}", err=True)
    try:
        found = con.execute("SELECT path, (SELECT count(*) FROM internal.runs) FROM internal.root").fetchone()
        if found is not None and not found[1]:
            click.echo(f"There is no run in {found[0]!r}. Give --root, or set EVENTLOG_ROOT.", err=True)
        yield con
    finally:
        con.close()


def _run(con: duckdb.DuckDBPyConnection, query: str, show: Callable[[], None]) -> None:
    """Execute the query and show its result, or end the command with DuckDB's own words."""
    import duckdb

    try:
        execute(con, query)
        show()
    except duckdb.IOException as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except duckdb.Error as error:
        click.echo(_explained(con, str(error)), err=True)
        sys.exit(2)


def execute(con: duckdb.DuckDBPyConnection, query: str) -> None:
    """Execute the query; if a file went away after it was listed (a run was deleted), look once more and do it again."""
    import duckdb

    from analysis import refresh

    try:
        con.execute(query)
    except duckdb.IOException:
        refresh(con)
        con.execute(query)


def _explained(con: duckdb.DuckDBPyConnection, message: str) -> str:
    """Return DuckDB's message, with our views in place of its own guesses where a view is not there."""
    missing = re.match(
        r"Catalog Error: Table with name (\S+) does not exist!.*?(?=\n\nLINE|\Z)", message, re.DOTALL
    )
    if missing is None:
        return message
    return f"There is no view {missing[1]!r}. {_nearest(missing[1], _views(con))}{message[missing.end() :]}"


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"The nearest: {', '.join(near)}." if near else f"There are: {', '.join(known)}."


def _views(con: duckdb.DuckDBPyConnection) -> list[str]:
    rows = con.execute(
        "SELECT view_name FROM duckdb_views() WHERE schema_name = 'main' AND NOT internal ORDER BY 1"
    ).fetchall()
    return [name for (name,) in rows]


def _columns(con: duckdb.DuckDBPyConnection, view: str) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in con.execute(f"DESCRIBE {view}").fetchall()]


# ── printing ─────────────────────────────────────────────────────────────────────────────────────────────────


def _print(shape: str, con: duckdb.DuckDBPyConnection) -> None:
    described = con.description
    if not described:
        # A statement that has no result, such as SET.
        return
    names = unique([column[0] for column in described])
    types = [str(column[1]) for column in described]
    {"table": _print_table, "json": _print_json, "csv": _print_csv}[shape](con, names, types)


def unique(names: list[str]) -> list[str]:
    """Return the names with a number after each that was there before.

    >>> unique(["step", "value", "value"])
    ['step', 'value', 'value_1']
    """
    seen: dict[str, int] = {}
    numbered = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        numbered.append(f"{name}_{count}" if count else name)
    return numbered


def _rows(con: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    while rows := con.fetchmany(_ROWS_AT_ONCE):
        yield from rows


def _print_json(con: duckdb.DuckDBPyConnection, names: list[str], types: list[str]) -> None:
    for row in _rows(con):
        values = {name: _for_json(value, kind) for name, value, kind in zip(names, row, types, strict=True)}
        click.echo(encode_data(values)[0].decode())


def _for_json(value: Any, kind: str) -> Any:
    if kind == "JSON" and isinstance(value, str):
        return orjson.loads(value)
    # A literal like 0.5 makes a DECIMAL of a whole column.
    return float(value) if isinstance(value, Decimal) else value


def _print_csv(con: duckdb.DuckDBPyConnection, names: list[str], types: list[str]) -> None:
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(names)
    for row in _rows(con):
        out.writerow([value.isoformat() if isinstance(value, datetime) else value for value in row])


def _print_table(con: duckdb.DuckDBPyConnection, names: list[str], types: list[str]) -> None:
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = con.fetchmany(_ROWS_SHOWN + 1)
    cells = [[cell(value) for value in row] for row in rows[:_ROWS_SHOWN]]
    console = Console()
    if not console.is_terminal:
        # A pipe has no width to fit into.
        console = Console(width=10_000)
    widths = [max(map(cell_len, column)) for column in zip(names, *cells, strict=True)]
    widest = widest_column(widths, console.width - _GAP * (len(names) - 1))
    if widest < _COLUMN_MIN:
        # Too many columns to stand side by side.
        for row in cells:
            below = Table(box=None, pad_edge=False, show_header=False)
            for name, value in zip(names, row, strict=True):
                below.add_row(Text(name, style="bold"), Text(value))
            console.print(below, "")
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, kind in zip(names, types, strict=True):
            justify: Any = "right" if _NUMBER.fullmatch(kind) else "left"
            table.add_column(Text(name), justify=justify, overflow="ellipsis", no_wrap=True, max_width=widest)
        for row in cells:
            # As text: a key like `[bold]` is no markup.
            table.add_row(*map(Text, row))
        console.print(table)
    if len(rows) > _ROWS_SHOWN:
        click.echo(
            f"… and more: these are the first {_ROWS_SHOWN} rows. `--format csv` or `--json` prints all.",
            err=True,
        )


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


def cell(value: Any) -> str:
    r"""Return what a table shows of a value: one line, cut where nobody would read on.

    >>> cell(0.30000000000000004), cell(None), cell("two\nlines"), cell(12), cell("x" * 500)[-3:]
    ('0.3', '', 'two lines', '12', 'xx…')
    """
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    text = " ".join(str(value).split())
    return text if len(text) <= _CELL_CHARS else text[: _CELL_CHARS - 1] + "…"


def _print_guide(con: duckdb.DuckDBPyConnection) -> None:
    from analysis.queries import QUERIES

    click.echo("The views:\n")
    for view in _views(con):
        click.echo(f"  {view}({', '.join(name for name, _ in _columns(con, view))})")
    click.echo("  curve('run id', 'metric')\n\nSome queries:")
    for question, query in QUERIES.items():
        click.echo(f"\n-- {question}{query.rstrip()};")
