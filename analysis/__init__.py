"""SQL over the logs, as they are on the disk: DuckDB in memory, nothing imported, nothing written.

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
import uuid
import warnings
import weakref
from collections.abc import Iterable
from importlib.resources import files as files_of
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import orjson

from analysis.catalog import Catalog, RunRow, SegmentRow, committed_seqs, damaged_lines, look
from analysis.sqltext import identifier, literal
from eventlog.record import LINE_MAX_BYTES, BadLine, unframe
from eventlog.roots import root_of
from eventlog.segment import STREAMS, Sealed

__all__ = ["connect", "history", "refresh"]

# A training node's other cores are for training; and each thread may buffer two lines of the longest kind.
_THREADS_MAX = 8

_TRAJECTORY = """STRUCT(id VARCHAR, "group" VARCHAR, reward DOUBLE, advantage DOUBLE, rewards JSON,
    turns STRUCT(role VARCHAR, content VARCHAR, tool_call_id VARCHAR, duration_s DOUBLE,
        prompt_tokens BIGINT, completion_tokens BIGINT,
        tool_calls STRUCT(id VARCHAR, name VARCHAR, arguments JSON, result VARCHAR, error VARCHAR, duration_s DOUBLE)[])[],
    token_ids BIGINT[], metrics JSON, prompt_tokens BIGINT, completion_tokens BIGINT,
    policy_version BIGINT, stop_reason VARCHAR, started_us BIGINT, duration_s DOUBLE, exception VARCHAR, info JSON)"""
# The views that read files: name, stream, and the type that `data` is read as; of a sealed stream there is one.
_SOURCES = (
    ("live_events", "events", "JSON"),
    ("live_console", "console", "JSON"),
    ("live_files", "files", "JSON"),
    ("live_trajectories", "trajectories", _TRAJECTORY),
    ("live_trajectories_as_json", "trajectories", "JSON"),
)
# Where a sealed column says it in other words than a record does.
_AS_LIVE = {"commit": "nullif(commit, false) AS commit", "as_text": "internal.marks(as_text) AS as_text"}
# The columns of sealed segments, as eventlog/FORMAT.md has them; and which of them have such.
_RECORD = {"seq": "BIGINT", "time": "BIGINT", "kind": "VARCHAR", "step": "BIGINT", "commit": "BOOLEAN"}
_CELL = {"nth": "INTEGER", "key": "VARCHAR", "value": "DOUBLE", "int": "BIGINT", "text": "VARCHAR"}
_REST = {"json": "VARCHAR", "as_text": "VARCHAR"}
_SEALED_TURNS = """STRUCT(role VARCHAR, content VARCHAR,
    tool_calls STRUCT(id VARCHAR, name VARCHAR, arguments VARCHAR, result VARCHAR, error VARCHAR, duration_s DOUBLE)[],
    tool_call_id VARCHAR, duration_s DOUBLE, prompt_tokens BIGINT, completion_tokens BIGINT)[]"""
_SEALED_TRAJECTORY = {
    "id": "VARCHAR",
    '"group"': "VARCHAR",
    "reward": "DOUBLE",
    "advantage": "DOUBLE",
    "rewards": "VARCHAR",
    "turns": _SEALED_TURNS,
    "metrics": "VARCHAR",
    "prompt_tokens": "BIGINT",
    "completion_tokens": "BIGINT",
    "policy_version": "BIGINT",
    "stop_reason": "VARCHAR",
    "started_us": "BIGINT",
    "duration_s": "DOUBLE",
    "exception": "VARCHAR",
    "info": "VARCHAR",
    "token_ids": "BIGINT[]",
    "mask": "TINYINT[]",
    "logprobs": "DOUBLE[]",
    "ref_logprobs": "DOUBLE[]",
}
_SEALED = {
    "sealed_events": {**_RECORD, **_CELL, **_REST},
    "sealed_console": {**_RECORD, **_CELL, **_REST},
    "sealed_files": {**_RECORD, **_CELL, **_REST},
    "events_without_brief": {**_RECORD, **_CELL, **_REST},
    "sealed_trajectories": {**_RECORD, **_SEALED_TRAJECTORY, **_REST},
}
_LINE = {"crc": "VARCHAR", **_RECORD, "as_text": "VARCHAR[][]"}
# Of a sealed segment's brief: what its metrics came to.
_BRIEF = {
    "metrics": """MAP(VARCHAR, STRUCT(n BIGINT, sum DOUBLE, min DOUBLE, min_step BIGINT, max DOUBLE, max_step BIGINT,
        last DOUBLE, last_step BIGINT, last_seq BIGINT))"""
}
# Every column that says where a record is from is computed from the file's name alone. DuckDB evaluates a filter on such
# a column once per name and opens no other file. That still looks at every name: who knows the run asks with it, and
# the files are those of that run from the start, so the curve of one out of 10,000 costs what that run's files do.
_SOURCE = r"""
CREATE OR REPLACE MACRO internal.{view}_of(runs) AS TABLE
SELECT run_dir, writer, number, number * 1000000000000 + seq AS place, internal.moment(time) AS time,
    {columns}
FROM (
    SELECT * EXCLUDE (file, first, last), try_cast(regexp_extract(writer, '^main-(\d+)$', 1) AS INTEGER) AS number
    FROM (
        SELECT *, parse_path(filename, 'forward_slash')[-2] AS writer,
            parse_path(filename, 'forward_slash')[-4] || '/' || parse_path(filename, 'forward_slash')[-3] AS run_dir
        FROM {lines}
    )
    JOIN (SELECT file, first, last FROM internal.spans_of(runs)) ON file = filename
    WHERE seq BETWEEN first AND last {undamaged}
)
WHERE runs IS NULL OR list_contains(runs, internal.run_id_of(run_dir))
"""
# Between the names in one text: DuckDB takes a list over from Python name by name.
_BETWEEN = chr(31)
_BRIEFS = """
CREATE OR REPLACE MACRO internal.briefs_of(runs) AS TABLE
SELECT parse_path(filename, 'forward_slash')[-4] || '/' || parse_path(filename, 'forward_slash')[-3] AS run_dir,
    parse_path(filename, 'forward_slash')[-2] AS writer, metrics
FROM {briefs}
WHERE metrics IS NOT NULL
"""
_LIVE_COLUMNS = "seq, kind, step, commit, as_text, data"


def __getattr__(name: str) -> Any:
    # W&B's public API: what it needs is imported by whoever asks for it.
    if name == "Api":
        from analysis.api import Api

        return Api
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def connect(root: Path | str | None = None, *, verify: bool = False) -> duckdb.DuckDBPyConnection:
    """Return a connection with views over all runs below `root`: `$EVENTLOG_ROOT`, else `./runs`, if not given.

    `verify` reads every byte once, here and at each `refresh`, and leaves out every record that is not what its writer wrote.
    """
    root = root_of(root).absolute()
    con = duckdb.connect()
    con.execute(f"SET threads = {min(_THREADS_MAX, os.cpu_count() or 1)}")
    con.create_function("committed_seqs", committed_seqs, ["VARCHAR[]"], "BIGINT[]", side_effects=True)
    files = _Files()
    # Without side effects: DuckDB asks when it plans a query, where the files of one must be known.
    con.create_function(
        "files_of", files.of, ["BIGINT", "VARCHAR", "VARCHAR[]"], "VARCHAR", null_handling="special"
    )
    _run_script(con, "tables.sql")
    con.execute(f"CREATE MACRO internal.trajectory_of(json) AS TRY_CAST(json::JSON AS {_TRAJECTORY})")
    con.execute("INSERT INTO internal.root VALUES (?, ?, ?)", [str(root), verify, files.key])
    # Defined over nothing first: DuckDB looks for every file each time that a view over it is defined.
    _define_sources(con, files, Catalog(), is_damaged=False)
    for view in (*(name for name, *_ in _SOURCES), *_SEALED, "briefs"):
        con.execute(f"CREATE VIEW internal.{view} AS FROM internal.{view}_of(NULL)")
    _run_script(con, "views.sql")
    _run_script(con, "macros.sql")
    _load(con, files, look(root, verify), verify)
    return con


def refresh(con: duckdb.DuckDBPyConnection) -> None:
    """Look below the root again; `con` may be a cursor of the connection."""
    found = con.execute("SELECT path, verify, files FROM internal.root").fetchone()
    assert found is not None
    root, verify, key = found
    con.begin()
    try:
        _load(con, _Files.known[key], look(Path(root), verify), verify)
    except BaseException:
        con.rollback()
        raise
    con.commit()


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
    # By number: two keys may differ in capitals alone, and one may be called `step`.
    numbers = ", ".join(str(n) for n in range(len(keys)))
    names = ", ".join(f"({n}, {literal(key)})" for n, (key, _) in enumerate(keys))
    columns = ", ".join(
        (f'coalesce("{n}".text, "{n}".value::VARCHAR)' if is_text else f'"{n}".value')
        + f" AS {identifier(key)}"
        for n, (key, is_text) in enumerate(keys)
    )
    return con.sql(
        f"""SELECT project, step, {columns} FROM (
            PIVOT (SELECT project, step, place, n, cell FROM ({logged}) JOIN (VALUES {names}) names (n, key) USING (key))
            ON n IN ({numbers}) USING arg_max(cell, place) GROUP BY project, step
        ) wide ORDER BY wide.project, wide.step""",
        params={"run": run},
    )


class _Files:
    """Which files a connection's queries read: of all runs, or of those that have one of these ids.

    Each `refresh` has a generation, which is in the definitions that it makes: a query that began to plan before it is
    answered as before it.
    """

    known: ClassVar[weakref.WeakValueDictionary[str, _Files]] = weakref.WeakValueDictionary()
    """By key; each is kept by its connection, which calls it."""

    def __init__(self) -> None:
        self.key = uuid.uuid4().hex
        self._generations: dict[int, dict[tuple[str, str | None], str]] = {}
        self._newest = 0
        self.known[self.key] = self

    def next(self, sources: _Sources, run_ids: dict[str, str]) -> int:
        """Take what there is now; return its generation. The one before it is kept."""
        names: dict[tuple[str, str | None], list[str]] = {}
        for source, files in sources.items():
            for run_dir, file in files:
                names.setdefault((source, None), []).append(file)
                names.setdefault((source, run_ids[run_dir]), []).append(file)
        self._newest += 1
        self._generations[self._newest] = {of: _BETWEEN.join(files) for of, files in names.items()}
        self._generations.pop(self._newest - 2, None)
        return self._newest

    def of(self, generation: int, source: str, run_ids: list[str] | None) -> str:
        """Return the names for DuckDB, which asks while it plans."""
        files = self._generations[generation]
        if run_ids is None:
            return files[source, None]
        named = [files[source, run_id] for run_id in dict.fromkeys(run_ids) if (source, run_id) in files]
        # Of a run without such a file another's is read, of which nothing counts: DuckDB refuses to read none.
        return _BETWEEN.join(named) or files[source, None].partition(_BETWEEN)[0]


_Sources = dict[str, list[tuple[str, str]]]


def _sources_of(catalog: Catalog) -> _Sources:
    """Return (run directory, file) of each source that there is."""
    sources: _Sources = {}
    for segment in catalog.segments:
        is_sealed = segment.file.endswith(".parquet")
        source = f"{'sealed' if is_sealed else 'live'}_{segment.stream}"
        sources.setdefault(source, []).append((segment.run_dir, segment.file))
        if is_sealed and segment.stream == "events":
            brief = _brief_of(segment)
            source = "briefs" if brief else "events_without_brief"
            sources.setdefault(source, []).append((segment.run_dir, brief or segment.file))
    return sources


def _brief_of(segment: SegmentRow) -> str | None:
    """Return the file that says what the metrics of a segment came to, if it is whole and all its records count."""
    path = Path(segment.file)
    sealed = Sealed.parse(path.name)
    if sealed is None or segment.first > sealed.first_seq or segment.last != sealed.next_seq - 1:
        return None
    brief = path.with_name(sealed.brief_name)
    try:
        unframe(brief.read_bytes().rstrip(b"\n"))
    except (OSError, BadLine):
        return None
    return str(brief)


def _load(con: duckdb.DuckDBPyConnection, files: _Files, catalog: Catalog, verify: bool) -> None:
    for notice in catalog.notices:
        warnings.warn(notice, stacklevel=3)
    damaged: list[dict[str, str]] = []
    if verify:
        lines = [file for stream in STREAMS for file in catalog.files(stream, sealed=False)]
        damaged = [{"file": file, "crc": crc} for file in lines for crc in damaged_lines(file)]
    for table, rows in (
        ("runs", catalog.runs),
        ("pieces", catalog.pieces),
        ("segments", catalog.segments),
        ("cursors", catalog.cursors),
        ("damaged", damaged),
    ):
        _fill(con, table, rows)
    _define_sources(con, files, catalog, is_damaged=bool(damaged))


def _define_sources(
    con: duckdb.DuckDBPyConnection, files: _Files, catalog: Catalog, is_damaged: bool
) -> None:
    """Define what depends on which files there are; the views stand on it."""
    for part, name in enumerate(("project", "run_id")):
        con.execute(
            f"CREATE OR REPLACE MACRO internal.{name}_of(run_dir) AS {_raw_name(name, part, catalog.runs)}"
        )
    sources = _sources_of(catalog)
    generation = files.next(sources, {run.run_dir: run.run_id for run in catalog.runs})

    def names(source: str) -> str | None:
        asked = f"files_of({generation}, '{source}', runs)"
        return f"string_split({asked}, {literal(_BETWEEN)})" if source in sources else None

    damaged = "AND (filename, crc) NOT IN (SELECT (file, crc) FROM internal.damaged)" if is_damaged else ""
    for view, stream, data_type in _SOURCES:
        con.execute(
            _SOURCE.format(
                view=view,
                lines=_json(names(f"live_{stream}"), _LINE | {"data": data_type}),
                columns=_LIVE_COLUMNS,
                undamaged=f"AND crc IS NOT NULL {damaged}",
            )
        )
    for view, types in _SEALED.items():
        columns = ", ".join(_AS_LIVE.get(name, name) for name in types if name != "time")
        con.execute(
            _SOURCE.format(view=view, lines=_columns(names(view), types), columns=columns, undamaged="")
        )
    con.execute(_BRIEFS.format(briefs=_json(names("briefs"), _BRIEF)))


def _fill(con: duckdb.DuckDBPyConnection, table: str, rows: Iterable[object]) -> None:
    """Replace what is in the table by `rows`: dataclasses or dicts with the table's columns."""
    columns = con.execute(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE schema_name = 'internal' AND table_name = ?",
        [table],
    ).fetchall()
    con.execute(f"DELETE FROM internal.{table}")
    con.execute(
        f"INSERT INTO internal.{table} BY NAME SELECT unnest(from_json(?, ?), recursive := true)",
        [orjson.dumps(list(rows)).decode(), orjson.dumps([dict(columns)]).decode()],
    )


def _json(files: str | None, types: dict[str, str]) -> str:
    """Return the SQL for these keys of the lines of these files: one row each, NULL where a line has them not."""
    if not files:
        return _nothing(types)
    # Never detected, and no row is worth an error: one strange value must not cost the others their query.
    columns = ", ".join(f"{name}: {literal(kind)}" for name, kind in types.items())
    return (
        f"read_json({files}, columns = {{{columns}}}, format = 'newline_delimited', compression = 'none', "
        f"ignore_errors = true, hive_partitioning = false, filename = true, maximum_object_size = {LINE_MAX_BYTES})"
    )


def _columns(files: str | None, types: dict[str, str]) -> str:
    """Return the SQL for the rows of these sealed segments."""
    if not files:
        return _nothing(types)
    return f"read_parquet({files}, hive_partitioning = false, filename = true)"


def _nothing(types: dict[str, str]) -> str:
    # DuckDB refuses to read no file at all.
    typed = ", ".join(f"NULL::{kind} AS {name}" for name, kind in {"filename": "VARCHAR", **types}.items())
    return f"(SELECT {typed} WHERE false)"


def _raw_name(attribute: str, part: int, runs: list[RunRow]) -> str:
    """Return the SQL for a run's raw name: its directory's, but where `run.json` says otherwise."""
    odd = {
        run.run_dir: getattr(run, attribute)
        for run in runs
        if run.run_dir.split("/")[part] != getattr(run, attribute)
    }
    plain = f"split_part(run_dir, '/', {part + 1})"
    if not odd:
        return plain
    entries = ", ".join(f"{literal(run_dir)}: {literal(name)}" for run_dir, name in odd.items())
    return f"coalesce(MAP {{{entries}}}[run_dir], {plain})"


def _run_script(con: duckdb.DuckDBPyConnection, name: str) -> None:
    con.execute(files_of("analysis").joinpath(name).read_text(encoding="utf-8"))
