"""SQL over the logs, as they are on the disk: DuckDB in memory, nothing imported, nothing written below the root.

    con = analysis.connect("runs")
    con.sql("SELECT run_id, state, last_step FROM runs").df()

Invariants
----------
* The views have the same columns and types whatever was logged, also where nothing was.
* What was committed before a query began is in its answer; what is not committed never is.
* Which *files* there are is known from the last `refresh`: rows appended to them show at the next query, new runs, pieces
  and segments after `refresh(con)` or in a new connection.  So does what no record says: that a run has crashed, and how
  far its upload has come.

The views are in `views.sql`, with what their columns mean, and the macros in `macros.sql`.  Checksums are `eventlog
verify`'s to judge: a query sees damage that breaks a line's JSON, and leaves that record out; a flipped digit it sees only
with `verify=True`.
"""

from __future__ import annotations

import os
import time
import uuid
import warnings
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import duckdb

from analysis import index, schema
from analysis.catalog import Catalog, committed_seq, damaged_lines, look
from analysis.index import KeptRun, Progress
from analysis.pivot import pivoted
from analysis.rows import fill
from analysis.sources import Files, SourcesOfRun, define, sources_of
from eventlog.roots import root_of
from eventlog.segment import STREAMS

__all__ = ["connect", "history", "passed_over", "refresh"]

# A training node's other cores are for training; and each thread may buffer two lines of the longest kind.
_THREADS_MAX = 8


def __getattr__(name: str) -> Any:
    # W&B's public API: what it needs is imported by whoever asks for it.
    if name == "Api":
        from analysis.api import Api

        return Api
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def connect(
    root: Path | str | None = None, *, verify: bool = False, progress: Progress = lambda done, of: None
) -> duckdb.DuckDBPyConnection:
    """Return a connection with views over all runs below `root`: `$EVENTLOG_ROOT`, else `./runs`, if not given.

    Of many settled runs what the views say is kept in the user's cache directory (index.py).  The first connection makes
    that, in some milliseconds for each run, and tells `progress` how many are done, and of how many.
    `verify` reads every byte once, here and at each `refresh`, and leaves out every record that is not what its writer wrote.
    """
    con = duckdb.connect()
    con.execute(f"SET threads = {min(_THREADS_MAX, os.cpu_count() or 1)}")
    asked = _Asked(root_of(root).absolute(), verify)
    con.create_function("committed_seq", committed_seq, ["VARCHAR"], "BIGINT", side_effects=True)
    # Without side effects: DuckDB asks when it plans a query, where the files of one must be known.
    con.create_function(
        "file_names", asked.file_names, ["BIGINT", "VARCHAR", "VARCHAR[]"], "VARCHAR", null_handling="special"
    )
    con.create_function("is_passed_over", asked.files.is_passed_over, ["VARCHAR"], "BOOLEAN")
    asked.kept = index.attach(con, None if verify else asked.root)
    schema.make(con)
    con.execute("INSERT INTO internal.root VALUES (?, ?, ?)", [str(asked.root), verify, asked.key])
    looked_ns = time.time_ns()
    found = _load(con, asked)
    if not verify:
        new = [run_dir for run_dir in index.settled(found.catalog, looked_ns) if run_dir not in found.damaged]
        if index.is_worth_it(len(new), len(asked.kept) - found.n_changed) and index.keep(
            con, asked.root, found.sources, new, found.damaged, looked_ns, progress
        ):
            con.execute("DETACH kept")
            asked.kept = index.attach(con, asked.root)
            found = _load(con, asked)
    for notice in found.catalog.notices:
        warnings.warn(notice, stacklevel=2)
    return con


def refresh(con: duckdb.DuckDBPyConnection) -> None:
    """Look below the root again; `con` may be a cursor of the connection."""
    asked = _asked_of(con)
    con.begin()
    try:
        found = _load(con, asked)
    except BaseException:
        con.rollback()
        raise
    con.commit()
    for notice in found.catalog.notices:
        warnings.warn(notice, stacklevel=2)


def passed_over(con: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """Return where queries came upon lines that are no records, since this was asked last: run directories, and their streams.

    At the end of a live one, what is just being written may be such a line.  None of these lines is in an answer.
    """
    return _asked_of(con).files.passed_over()


def history(con: duckdb.DuckDBPyConnection, run: str) -> duckdb.DuckDBPyRelation:
    """Return what a run logged as a table: a row for each step, a column for each key, in the order of their names.

    Of a key that was logged twice in a step, the last value; a null is none.  A column is VARCHAR if any of its values is a
    text, else DOUBLE.
    """
    logged = """SELECT internal.project_of(run_dir) AS project, step, place, replace(path, chr(31), '.') AS key,
        CASE WHEN value IS NOT NULL OR text IS NOT NULL THEN {value: value, text: text} END AS cell
        FROM internal.leaf_of([$run]) WHERE number IS NOT NULL"""
    keys = con.execute(
        f"SELECT key, bool_or(cell.text IS NOT NULL AND cell.value IS NULL) FROM ({logged}) GROUP BY key ORDER BY key",
        {"run": run},
    ).fetchall()
    if not keys:
        return con.sql("SELECT NULL::VARCHAR AS project, NULL::BIGINT AS step WHERE false")
    columns = [
        (key, "coalesce({cell}.text, {cell}.value::VARCHAR)" if is_text else "{cell}.value")
        for key, is_text in keys
    ]
    return con.sql(pivoted(logged, ["project", "step"], columns), params={"run": run})


@dataclass(eq=False)
class _Asked:
    """What a connection is asked about, and what is known of it between two looks."""

    known: ClassVar[weakref.WeakValueDictionary[str, _Asked]] = weakref.WeakValueDictionary()
    """By key; each is kept by its connection, which calls it."""

    root: Path
    verify: bool
    kept: dict[str, KeptRun] = field(default_factory=dict)
    files: Files = field(default_factory=Files)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.known[self.key] = self

    def file_names(self, generation: int, source: str, run_ids: list[str] | None) -> str:
        return self.files.of(generation, source, run_ids)


def _asked_of(con: duckdb.DuckDBPyConnection) -> _Asked:
    row = con.execute("SELECT files FROM internal.root").fetchone()
    assert row is not None
    return _Asked.known[row[0]]


@dataclass(frozen=True)
class _Found:
    catalog: Catalog
    sources: dict[str, SourcesOfRun]
    n_changed: int
    damaged: set[str]
    """Run directories that are known to have lost records, and to be as they were then."""


def _load(con: duckdb.DuckDBPyConnection, asked: _Asked) -> _Found:
    """Look at what is below the root and not kept, or no longer as it was kept, and let the views know."""
    as_kept = index.holding(asked.kept.values(), str(asked.root))
    known_damaged = {run_dir for run_dir in as_kept if asked.kept[run_dir].is_damaged}
    holding = as_kept - known_damaged
    catalog = look(asked.root, asked.verify, skip=holding.__contains__)
    damaged: list[dict[str, str]] = []
    if asked.verify:
        lines = [file for stream in STREAMS for file in catalog.files(stream, sealed=False)]
        damaged = [{"file": file, "crc": crc} for file in lines for crc in damaged_lines(file)]
    changed = asked.kept.keys() - holding
    for table, rows in (
        ("found_runs", catalog.runs),
        ("found_pieces", catalog.pieces),
        ("found_segments", catalog.segments),
        ("found_cursors", catalog.cursors),
        ("changed", [{"run_dir": run_dir} for run_dir in changed]),
        ("damaged", damaged),
    ):
        con.execute(f"DELETE FROM internal.{table}")
        fill(con, "internal", table, rows)
    sources = sources_of(catalog.segments)
    found: dict[str, list[SourcesOfRun]] = {}
    for row in catalog.runs:
        found.setdefault(row.run_id, []).append(sources.get(row.run_dir, {}))
    kept: dict[str, list[str]] = {}
    for run in asked.kept.values():
        if run.run_dir in holding:
            kept.setdefault(run.run_id, []).append(run.files)
    names = con.execute(
        """SELECT run_dir, project, run_id FROM internal.runs
        WHERE run_dir <> project || '/' || run_id OR contains(project, '/')"""
    ).fetchall()
    define(con, asked.files, asked.files.next(found, kept), names, is_damaged=bool(damaged))
    return _Found(catalog, sources, len(changed), known_damaged)
