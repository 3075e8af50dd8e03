"""From SQL text to results: the connection, statements, parameters, and errors in words.

Invariants
----------
* A text is looked at whole before any of it runs: a parameter that is missing costs nothing.
* What DuckDB says stays, with the place; only its guesses at names give way to ours.
* What was passed over is said on stderr, with how much it is and how to see it; never on stdout.

What a query may do is DuckDB's to say: this is the user's own shell, and `COPY … TO` writes where they ask.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from analysis.naming import Run, keys_of, macros, nearest, runs_of, signature, views
from analysis.printing import visible
from analysis.sqltext import literal
from eventlog.progress import counting

if TYPE_CHECKING:
    import duckdb

Values = Mapping[str, Any]

_INTEGER = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_MISSING = re.compile(
    r"Catalog Error: Table (?P<function>Function )?with name (?P<name>\S+) does not exist!.*?(?=\n\nLINE|\Z)",
    re.DOTALL,
)
_ABORTED = "Current transaction is aborted"
# Where a query names a run or a key, so that an answer of no rows can be explained.
_RUN_NAMED = re.compile(r"(?:\bcurve\s*\(\s*|\brun_id\s*=\s*)'((?:[^']|'')*)'", re.IGNORECASE)
_KEY_NAMED = re.compile(
    r"(?:\bcurve\s*\(\s*'(?:[^']|'')*'\s*,\s*|\bkey\s*=\s*)'((?:[^']|'')*)'", re.IGNORECASE
)


@contextmanager
def connected(
    root: Path | None, verify: bool = False, pack: Path | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Give a connection, over a pack if one is given; say on stderr what was passed over, and where to look if there is nothing."""
    with needing("duckdb"):
        import analysis
        from analysis import pack as packs
    with said_notices(), packs.in_words(), counting("looked into once:", "runs") as progress:
        con = packs.connect(pack) if pack else analysis.connect(root, verify=verify, progress=progress)
    try:
        # It would stand in the middle of the output.
        con.execute("SET enable_progress_bar = false")
        # A name in a query is never a variable of this program.
        con.execute("SET python_enable_replacements = false")
        if pack is None:
            say_what_is_damaged(con)
            found = con.execute(
                "SELECT path, (SELECT count(*) FROM internal.runs) FROM internal.root"
            ).fetchone()
            if found is not None and not found[1]:
                say(f"There is no run in {found[0]!r}. Give --root, or set EVENTLOG_ROOT.")
        yield con
    finally:
        con.close()


def say(what: str) -> None:
    """Say it on stderr; a run is called what it likes."""
    click.echo(visible(what), err=True)


@contextmanager
def needing(*libraries: str, extra: str = "analysis") -> Iterator[None]:
    """Say what to install where one of these is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in libraries:
            raise
        raise click.ClickException(f"{library!r} is not installed. Install `tidelog[{extra}]`.") from None


@contextmanager
def said_notices() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        yield
    for notice in notices:
        say(f"analysis: {notice.message}")


@contextmanager
def in_words(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """End the command with DuckDB's own words, and the exit code, if what is done here is refused or fails."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        say(explained(con, error))
        sys.exit(1 if isinstance(error, duckdb.IOException) else 2)


@contextmanager
def in_the_line_before() -> Iterator[None]:
    """Let DuckDB name the line before the one that it means: that of a query which has a line of ours above it."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise type(error)(re.sub(r"^LINE (\d+):", _line_before, str(error), flags=re.MULTILINE)) from None


def _line_before(found: re.Match[str]) -> str:
    # As long as it was, where the number is: the caret below it points at its place.
    return f"LINE {int(found[1]) - 1:>{len(found[1])}}:"


def parameters(given: Sequence[str]) -> dict[str, Any]:
    """Return the values of `name=value` texts: whole numbers, numbers, else texts; in single quotes it is a text anyway.

    >>> parameters(["n=3", "lr=1e-5", "run=baseline", "id='007'"])
    {'n': 3, 'lr': 1e-05, 'run': 'baseline', 'id': '007'}
    """
    values = {}
    for each in given:
        name, equals, value = each.partition("=")
        name = name.removeprefix("$")
        if not equals or not name.isidentifier():
            raise click.UsageError(
                f"{each!r} is no parameter. Write it as name=value, and $name in the query."
            )
        values[name] = _typed(value)
    return values


def _typed(value: str) -> int | float | str:
    if _INTEGER.fullmatch(value):
        return int(value)
    if _FLOAT.fullmatch(value):
        return float(value)
    is_quoted = len(value) >= 2 and value[0] == value[-1] == "'"
    return value[1:-1] if is_quoted else value


def statements(con: duckdb.DuckDBPyConnection, text: str, values: Values) -> list[duckdb.Statement]:
    """Return the statements of a text, all of whose parameters have a value; raises `duckdb.Error` where it is no SQL."""
    found: list[duckdb.Statement] = con.extract_statements(text)
    given = f"Given are: {', '.join(values)}." if values else "None is given."
    for name in sorted(_asked(found) - values.keys()):
        raise click.UsageError(f"the query has ${name}, which has no value. Give -p {name}=…. {given}")
    return found


def refuse_unless_condition(con: duckdb.DuckDBPyConnection, text: str) -> None:
    """Refuse what is more than one condition, such as `true); COPY …`; raises `duckdb.Error` where it is no SQL."""
    import duckdb

    with in_the_line_before():
        con.extract_statements(f"SELECT (\n{text}\n)")
    try:
        # What closes the parenthesis above closes no bracket: what parses in both ends in neither.
        con.extract_statements(f"SELECT [\n{text}\n]")
    except duckdb.Error:
        raise click.UsageError(
            f"a condition is one expression, which {text!r} is not. `analysis sql` takes any query."
        ) from None


def refuse_unused(found: Sequence[duckdb.Statement], values: Values) -> None:
    """Refuse a parameter that no statement asks for: its name is a slip."""
    asked = _asked(found)
    for name in values.keys() - asked:
        raise click.UsageError(f"the query has no ${name}. {nearest(name, sorted(asked))}")


def _asked(found: Sequence[duckdb.Statement]) -> set[str]:
    return {name for statement in found for name in statement.named_parameters}


def has_rows(statement: duckdb.Statement) -> bool:
    """Whether it is asked for its rows: a SELECT, and not a SET or a COPY."""
    expected = [kind.name for kind in statement.expected_result_type]
    # A PIVOT is several statements in one, and may be anything.
    return expected == ["QUERY_RESULT"] or statement.type.name == "MULTI"


def execute(
    con: duckdb.DuckDBPyConnection, query: str | duckdb.Statement, values: Values | None = None
) -> None:
    """Execute the query; if a file went away after it was listed (a run was deleted), look once more and do it again."""
    import duckdb

    mine = None
    if values and not isinstance(query, str):
        mine = {name: value for name, value in values.items() if name in query.named_parameters} or None
    elif values:
        mine = dict(values)
    try:
        con.execute(query, mine)
    except duckdb.IOException:
        if not looked_again(con):
            raise
        con.execute(query, mine)


def rows_of(
    con: duckdb.DuckDBPyConnection, runs: Sequence[Run], query: str
) -> Iterator[tuple[Run, tuple[Any, ...]]]:
    """Yield a row of these runs after the other, with whose it is; of the query the first columns are project and run_id.

    In it `$ids` are the ids of these runs, for a macro such as `config_of`.
    """
    execute(con, query, {"ids": [run.run_id for run in runs]})
    named = {(run.project, run.run_id): run for run in runs}
    for project, run_id, *row in con.fetchall():
        # The id may be that of a run of another project, too.
        if run := named.get((project, run_id)):
            yield run, tuple(row)


def looked_again(con: duckdb.DuckDBPyConnection) -> bool:
    """Look below the root again; False if the connection is over a pack, which stays what it is."""
    from analysis import refresh

    if not is_over_logs(con):
        return False
    refresh(con)
    return True


def is_over_logs(con: duckdb.DuckDBPyConnection) -> bool:
    found = con.execute("SELECT count(*) FROM duckdb_tables() WHERE schema_name = 'internal'").fetchone()
    return found is not None and found[0] > 0


def explained(con: duckdb.DuckDBPyConnection, error: duckdb.Error) -> str:
    """Return DuckDB's message, with our views in place of its own guesses where a view or a macro is not there."""
    import duckdb

    message = str(error)
    if _ABORTED in message:
        return f"{message}: `ROLLBACK;` ends it."
    missing = _MISSING.match(message)
    if missing is None:
        return message
    name = missing["name"]
    try:
        if not missing["function"]:
            what, near = "view", nearest(name, views(con))
        else:
            what, near = "macro", nearest(name, [signature(*macro) for macro in macros(con)])
    except duckdb.Error:
        # What went wrong may be in its way too.
        return message
    return f"There is no {what} {name!r}. {near}{message[missing.end() :]}"


def why_nothing(con: duckdb.DuckDBPyConnection, text: str) -> list[str]:
    """Return what may explain that a query found no rows: the runs and keys that it names and that are not there."""
    runs = runs_of(con)
    ids = [run.run_id for run in runs]
    named = _names(_RUN_NAMED, text)
    reasons = [f"There is no run {name!r}. {nearest(name, ids)}" for name in named if name not in ids]
    keys = _names(_KEY_NAMED, text)
    if keys and not reasons:
        asked = [run for run in runs if not named or run.run_id in named]
        settings = con.execute("SELECT DISTINCT key FROM config").fetchall() if not named else []
        known = [*keys_of(con, asked), *(key for (key,) in settings)]
        whose = f"Run {named[0]!r} has no" if len(named) == 1 else "No run has a"
        reasons = [f"{whose} key {name!r}. {nearest(name, known)}" for name in keys if name not in known]
    return reasons


def _names(pattern: re.Pattern[str], text: str) -> list[str]:
    return [name.replace("''", "'") for name in dict.fromkeys(pattern.findall(text))]


def say_what_is_damaged(con: duckdb.DuckDBPyConnection) -> None:
    """Say of each run how many lines failed their checksum; this is known only where it was asked for."""
    rows = con.execute(
        "SELECT r.project || '/' || r.run_id, count(*) FROM internal.damaged d JOIN internal.found_segments s USING (file) "
        "JOIN internal.runs r USING (run_dir) GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    _say_damage(rows)


def say_what_is_lost(con: duckdb.DuckDBPyConnection, runs: Sequence[Run]) -> None:
    """Say of each run how many of its events are missing between others: their lines are damaged."""
    _say_damage([(run.full, count) for run, count in lost_records(con, runs, ["events"]).items()])


def say_what_was_passed_over(con: duckdb.DuckDBPyConnection) -> None:
    """Say it of the streams in which the queries since the last time came upon a damaged line."""
    from analysis import passed_over

    if not is_over_logs(con) or con.execute("FROM internal.root WHERE verify").fetchall():
        # `say_what_is_damaged` has said more.
        return
    if found := passed_over(con):
        runs = {run.run_dir: run for run in runs_of(con)}
        for run_dir, streams in found.items():
            lost = lost_records(con, [runs[run_dir]], streams)
            _say_damage([(run.full, count) for run, count in lost.items()])
        # Looking there came upon them again.
        passed_over(con)


def lost_records(
    con: duckdb.DuckDBPyConnection, runs: Sequence[Run], streams: Sequence[str]
) -> dict[Run, int]:
    """Return how many records are missing between others, of each run that lost any."""
    rows = con.execute(
        f"SELECT run_dir, sum(lost)::BIGINT FROM internal.lost_of(?) WHERE stream IN ({', '.join(map(literal, streams))}) "
        "GROUP BY run_dir",
        [[run.run_id for run in runs]],
    ).fetchall()
    lost = dict(rows)
    return {run: lost[run.run_dir] for run in runs if run.run_dir in lost}


def _say_damage(rows: Sequence[tuple[str, int]]) -> None:
    for run, count in rows:
        say(f"analysis: {run}: {damage(run, count)}")


def damage(run: str, count: int) -> str:
    what = "1 damaged record is" if count == 1 else f"{count:,} damaged records are"
    return f"{what} left out. `eventlog verify {run}` says where."
