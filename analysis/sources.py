"""Which files a query reads, and as what: the way from the views to the disk.

    view ──▶ internal.live_events_of(runs) ──file_names──▶ names ──▶ read_json, read_parquet

Invariants
----------
* A query opens files of the runs that it asks for only, if it says which; DuckDB asks for their names while it plans.
* A query that began to plan before a `refresh` is answered as before it.
* Types are never detected: what a column is does not depend on what was logged.

No file is opened here but briefs, to see whether they are whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from analysis.catalog import SegmentRow
from analysis.sqltext import literal
from eventlog.record import LINE_MAX_BYTES, BadLine, unframe
from eventlog.segment import STREAMS, Sealed

if TYPE_CHECKING:
    import duckdb

FOUND = chr(30)
"""Stands before run ids of which only those count of which nothing is kept, and for all of these: `internal.found()`."""

TRAJECTORY = """STRUCT(id VARCHAR, "group" VARCHAR, reward DOUBLE, advantage DOUBLE, rewards JSON,
    turns STRUCT(role VARCHAR, content VARCHAR, tool_call_id VARCHAR, duration_s DOUBLE,
        prompt_tokens BIGINT, completion_tokens BIGINT,
        tool_calls STRUCT(id VARCHAR, name VARCHAR, arguments JSON, result VARCHAR, error VARCHAR, duration_s DOUBLE)[])[],
    token_ids BIGINT[], metrics JSON, prompt_tokens BIGINT, completion_tokens BIGINT,
    policy_version BIGINT, stop_reason VARCHAR, started_us BIGINT, duration_s DOUBLE, exception VARCHAR, info JSON)"""
# The views that read files: name, stream, and the type that `data` is read as; of a sealed stream there is one.
_LIVE = (
    ("live_events", "events", "JSON"),
    ("live_console", "console", "JSON"),
    ("live_files", "files", "JSON"),
    ("live_trajectories", "trajectories", TRAJECTORY),
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
SOURCES = (*(f"live_{stream}" for stream in STREAMS), *_SEALED, "briefs")
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
"""
# Between the names in one text: DuckDB takes a list over from Python name by name.
_BETWEEN = chr(31)
_BRIEFS = r"""
CREATE OR REPLACE MACRO internal.briefs_of(runs) AS TABLE
SELECT run_dir, writer, metrics
FROM {briefs} JOIN (SELECT file, run_dir, writer FROM internal.spans_of(runs))
    ON file = regexp_replace(filename, '\.json$', '.parquet')
WHERE metrics IS NOT NULL
"""
_LIVE_COLUMNS = "seq, kind, step, commit, as_text, data"


class Files:
    """Which files a connection's queries read: of all runs, of those that have one of these ids, or of those just found.

    What is kept of a run says its files in one text, which is looked into when somebody asks for that run.
    """

    def __init__(self) -> None:
        self._generations: dict[int, _Generation] = {}
        self._newest = 0
        self._defined: set[str] = set()
        self._passed_over: set[str] = set()

    def next(self, found: Mapping[str, list[SourcesOfRun]], kept: Mapping[str, list[str]]) -> int:
        """Take what there is now, by run id; return its generation. The one before it stays for who began with it."""
        self._newest += 1
        self._generations[self._newest] = _Generation(found, kept)
        self._generations.pop(self._newest - 2, None)
        return self._newest

    def sources(self, generation: int) -> set[str]:
        """Return the sources that there are at all."""
        return set(self._generations[generation].sources)

    def is_to_be_defined(self, what: str, is_there: bool) -> bool:
        """Whether something is there, or was: what never was is nothing in the template as well."""
        if is_there:
            self._defined.add(what)
        return what in self._defined

    def is_passed_over(self, file: str) -> bool:
        """Remember that a query came upon a line of this file that is no record; false, so that it is no row either."""
        self._passed_over.add(file)
        return False

    def passed_over(self) -> dict[str, list[str]]:
        """Return the run directories with the streams in which that was, and forget it."""
        files, self._passed_over = self._passed_over, set()
        found: dict[str, list[str]] = {}
        for run_dir, stream in sorted(set(map(_stream_of, files))):
            found.setdefault(run_dir, []).append(stream)
        return found

    def of(self, generation: int, source: str, run_ids: list[str] | None) -> str:
        """Return the names for DuckDB, in one text."""
        return self._generations[generation].of(source, run_ids)


class _Generation:
    def __init__(self, found: Mapping[str, list[SourcesOfRun]], kept: Mapping[str, list[str]]) -> None:
        self._found = found
        self._kept = kept
        self._of_many: dict[tuple[str, bool], str] = {}
        self._examples = dict(self._first_of_each())
        self.sources = self._examples.keys()

    def of(self, source: str, run_ids: list[str] | None) -> str:
        # Where there is none another's is read, of which nothing counts: DuckDB refuses to read no file.
        return self._names(source, run_ids) or self._example(source)

    def _names(self, source: str, run_ids: list[str] | None) -> str:
        if run_ids is not None and run_ids != [FOUND, FOUND]:
            is_found_only = run_ids[:1] == [FOUND]
            of_each = self._found_of if is_found_only else self._of_run
            return _joined(source, chain.from_iterable(map(of_each, dict.fromkeys(run_ids))))
        of = source, run_ids is None
        if of not in self._of_many:
            found = chain.from_iterable(self._found.values())
            self._of_many[of] = _joined(source, chain(found, self._all_kept()) if run_ids is None else found)
        return self._of_many[of]

    def _found_of(self, run_id: str) -> Iterable[SourcesOfRun]:
        return self._found.get(run_id, ())

    def _of_run(self, run_id: str) -> Iterator[SourcesOfRun]:
        yield from self._found_of(run_id)
        yield from map(orjson.loads, self._kept.get(run_id, ()))

    def _all_kept(self) -> Iterator[SourcesOfRun]:
        return map(orjson.loads, chain.from_iterable(self._kept.values()))

    def _example(self, source: str) -> str:
        """Return a file of the source; one that is still there, if any is."""
        if not os.path.exists(self._examples[source]):
            runs = chain(chain.from_iterable(self._found.values()), self._all_kept())
            names = chain.from_iterable(run.get(source, ()) for run in runs)
            self._examples[source] = next(filter(os.path.exists, names), self._examples[source])
        return self._examples[source]

    def _first_of_each(self) -> Iterator[tuple[str, str]]:
        texts = list(chain.from_iterable(self._kept.values()))
        together = "".join(texts)
        for source in SOURCES:
            # Nothing is parsed to see that it is not in any.
            kept = (text for text in texts if source in text) if source in together else ()
            runs = chain(chain.from_iterable(self._found.values()), map(orjson.loads, kept))
            if (names := next((run[source] for run in runs if source in run), None)) is not None:
                yield source, names[0]


def _stream_of(file: str) -> tuple[str, str]:
    """
    >>> _stream_of("/runs/demo/first/main-0001/events-000000000000.jsonl")
    ('demo/first', 'events')
    """
    project, run, _, name = Path(file).parts[-4:]
    return f"{project}/{run}", name.partition("-")[0]


def _joined(source: str, runs: Iterable[SourcesOfRun]) -> str:
    return _BETWEEN.join(name for run in runs for name in run.get(source, ()))


SourcesOfRun = dict[str, list[str]]
"""The files of a run, by source."""


def sources_of(segments: Iterable[SegmentRow]) -> dict[str, SourcesOfRun]:
    """Return the files of each run directory, by source."""
    found: dict[str, SourcesOfRun] = {}
    for segment in segments:
        of_run = found.setdefault(segment.run_dir, {})
        is_sealed = segment.file.endswith(".parquet")
        of_run.setdefault(f"{'sealed' if is_sealed else 'live'}_{segment.stream}", []).append(segment.file)
        if is_sealed and segment.stream == "events":
            brief = _brief_of(segment)
            of_run.setdefault("briefs" if brief else "events_without_brief", []).append(brief or segment.file)
    return found


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


def define(
    con: duckdb.DuckDBPyConnection,
    files: Files,
    generation: int,
    names: Sequence[tuple[str, str, str]],
    is_damaged: bool,
) -> None:
    """Define what depends on which files there are; the views stand on it.

    `names` are (run directory, project, run id) of the runs that are not called as their directories are.
    """
    for what, is_there, statement in _definitions(generation, files.sources(generation), names, is_damaged):
        if files.is_to_be_defined(what, is_there):
            con.execute(statement)


def define_nothing(con: duckdb.DuckDBPyConnection) -> None:
    """Define the same over no file."""
    for _, _, statement in _definitions(0, set(), [], is_damaged=False):
        con.execute(statement)


def _definitions(
    generation: int, there: set[str], names: Sequence[tuple[str, str, str]], is_damaged: bool
) -> Iterator[tuple[str, bool, str]]:
    """Yield what is defined, whether there is any of it, and the statement."""
    for part, attribute in enumerate(("project", "run_id"), start=1):
        raw = _raw_name(part, {name[0]: name[part] for name in names})
        yield attribute, bool(names), f"CREATE OR REPLACE MACRO internal.{attribute}_of(run_dir) AS {raw}"

    def asked(source: str) -> str | None:
        called = f"file_names({generation}, '{source}', runs)"
        return f"string_split({called}, {literal(_BETWEEN)})" if source in there else None

    damaged = "AND (filename, crc) NOT IN (SELECT (file, crc) FROM internal.damaged)" if is_damaged else ""
    for view, stream, data_type in _LIVE:
        lines = _json(asked(f"live_{stream}"), _LINE | {"data": data_type})
        # What is no JSON is all NULL. As a CASE: only there Python is asked, which remembers the file.
        lines = f"(FROM {lines} WHERE CASE WHEN crc IS NULL THEN is_passed_over(filename) ELSE true END)"
        statement = _SOURCE.format(view=view, lines=lines, columns=_LIVE_COLUMNS, undamaged=damaged)
        yield view, f"live_{stream}" in there, statement
    for view, types in _SEALED.items():
        columns = ", ".join(_AS_LIVE.get(name, name) for name in types if name != "time")
        lines = _columns(asked(view), types)
        yield view, view in there, _SOURCE.format(view=view, lines=lines, columns=columns, undamaged="")
    yield "briefs", "briefs" in there, _BRIEFS.format(briefs=_json(asked("briefs"), _BRIEF))


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


def _raw_name(part: int, odd: Mapping[str, str]) -> str:
    """Return the SQL for a run's raw name: its directory's, but where `run.json` says otherwise."""
    plain = f"split_part(run_dir, '/', {part})"
    if not odd:
        return plain
    entries = ", ".join(f"{literal(run_dir)}: {literal(name)}" for run_dir, name in odd.items())
    return f"coalesce(MAP {{{entries}}}[run_dir], {plain})"
