"""The views and macros of a connection, from a template: DuckDB binds each as it is made from text, which takes a second.

Invariants
----------
* The template is what the text makes, in this version of DuckDB; it holds definitions only, and is replaced whole.
* Without it, or with a broken one, the text is run: slower, and the same.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.resources import files

import duckdb

from analysis import cached, sources
from analysis.sqltext import literal


def make(con: duckdb.DuckDBPyConnection) -> None:
    """Make all that does not depend on what is below a root; `kept` is attached, and the functions are there."""
    if path := cached.find("schema"):
        try:
            con.execute(f"ATTACH {literal(str(path))} AS template (READ_ONLY)")
            con.execute("COPY FROM DATABASE template TO memory (SCHEMA); DETACH template")
            return
        except duckdb.Error:
            with suppress(duckdb.Error):
                con.execute("DETACH DATABASE IF EXISTS template")
    _make_from_text(con)
    _save(con)


def _make_from_text(con: duckdb.DuckDBPyConnection) -> None:
    _run(con, "tables.sql")
    con.execute(f"CREATE MACRO internal.trajectory_of(json) AS TRY_CAST(json::JSON AS {sources.TRAJECTORY})")
    # Over nothing first: DuckDB looks for every file each time that a view over it is defined.
    sources.define_nothing(con)
    _run(con, "views.sql")
    _run(con, "macros.sql")


def _save(con: duckdb.DuckDBPyConnection) -> None:
    # Who cannot save it makes it again the next time.
    with suppress(OSError, duckdb.Error), cached.writing(con, "schema", "template"):
        con.execute("COPY FROM DATABASE memory TO template (SCHEMA)")


def _run(con: duckdb.DuckDBPyConnection, name: str) -> None:
    con.execute(files("analysis").joinpath(name).read_text(encoding="utf-8"))
