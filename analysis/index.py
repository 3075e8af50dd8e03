"""What is kept of settled runs, so that ten thousand of them cost a look at their directories.

    connect ──attach──▶ kept ──holds?──▶ what changed is looked at anew ──keep──▶ the next index

A run is settled if each of its pieces is closed: its log says nothing more, whoever asks.  What is kept of it is what
catalog.py found, and what the views say of it: its config, summary, rollup, alerts, checkpoints, and its row of `runs`.

Invariants
----------
* What is kept counts while each directory of the run has the time that it had: whatever is added, sealed, removed, or
  acknowledged by a destination renames or makes a file in one of them.  Only who changes a byte *within* a file, behind the
  log's back, is not noticed: `connect(verify=True)` reads everything, and neither reads nor writes an index.
* A run is kept only if its directories were at rest for some seconds before anybody looked: so a change within the clock's
  last tick is no exception.
* An index is replaced whole, by a rename.  Who has the old one open goes on with it.
* Of a run that has lost records only that is kept: it is looked at each time, so that who asks for it hears of it.
* It is the cache that it seems: one that is missing, broken, or cannot be written costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import duckdb
import orjson

from analysis import cached
from analysis.catalog import Catalog
from analysis.rows import fill
from analysis.sources import SourcesOfRun
from analysis.sqltext import literal
from eventlog.cursor import SYNC_DIR

# Fewer runs than these are looked at as fast as an index of them is read.
WORTH_RUNS = 64
# And while so many of those that are kept are not more than this part, they are looked at each time.
_WORTH_PART = 0.01
# A file system may tell the time in steps of two seconds; a server's clock may be a little off.
_AT_REST_NS = 5_000_000_000
_BATCH_RUNS = 256
_COMPUTED = ("config", "summary", "rollup", "alerts", "checkpoints", "facts")
_OF_WHOLE_RUNS = ("pieces", "segments", "cursors", *_COMPUTED, "objects")
_TABLES = ("runs", *_OF_WHOLE_RUNS)
_RUN_COLUMNS = ("run_dir", "path", "project", "run_id", "entity", "dirs", "times", "files", "is_damaged")

Progress = Callable[[int, int], object]
"""Is told how many runs of how many are done."""


class KeptRun(NamedTuple):
    """What the index says of a run, as far as it is needed before any query; a tuple, for there may be very many."""

    run_dir: str
    run_id: str
    dirs: str
    times: int
    files: str
    is_damaged: bool


def attach(con: duckdb.DuckDBPyConnection, root: Path | None) -> dict[str, KeptRun]:
    """Attach what is kept of this root as `kept`, an empty one if nothing is; return its runs by their directory."""
    path = cached.find(_name(root)) if root else None
    if path:
        try:
            con.execute(f"ATTACH {literal(str(path))} AS kept (READ_ONLY)")
            rows = con.execute(
                "SELECT run_dir, run_id, dirs, times, files, is_damaged FROM kept.runs"
            ).fetchall()
            return {row[0]: row for row in map(KeptRun._make, rows)}
        except duckdb.Error:
            # Replaced since it was found, or by who has another idea of it: it will be made anew.
            with suppress(duckdb.Error):
                con.execute("DETACH DATABASE IF EXISTS kept")
    con.execute("ATTACH ':memory:' AS kept")
    make_tables(con, "kept")
    return {}


def make_tables(con: duckdb.DuckDBPyConnection, database: str) -> None:
    (home,) = con.execute("SELECT current_database()").fetchall()[0]
    con.execute(f"USE {database}")
    try:
        con.execute(files("analysis").joinpath("kept.sql").read_text(encoding="utf-8"))
    finally:
        con.execute(f"USE {home}")


def holding(kept: Iterable[KeptRun], root: str) -> set[str]:
    """Return the directories of those runs in which nothing has changed."""
    found = set()
    for run in kept:
        try:
            if times_of(f"{root}/{run.run_dir}", run.dirs) == run.times:
                found.add(run.run_dir)
        except OSError:
            # Gone, or not to be looked at any more: so it is no longer what it was.
            continue
    return found


def times_of(path: str, dirs: str) -> int:
    """Return what the times of a run's directory and of these in it come to, in one number; or raise `OSError`."""
    times = os.stat(path).st_mtime_ns
    for name in dirs.split("/"):
        times = (times * 31 + os.stat(f"{path}/{name}").st_mtime_ns) & 0x7FFF_FFFF_FFFF_FFFF
    return times


def settled(catalog: Catalog, looked_ns: int) -> list[str]:
    """Return the run directories, in order, that will say nothing new; `looked_ns` is when the catalog began to look."""
    writers: dict[str, list[str]] = {}
    for piece in catalog.pieces:
        writers.setdefault(piece.run_dir, []).append(piece.writer)
    is_open = {piece.run_dir for piece in catalog.pieces if not piece.is_closed}
    return [
        run.run_dir
        for run in catalog.runs
        if run.run_dir in writers
        and run.run_dir not in is_open
        and run.run_dir not in catalog.noticed
        and _was_at_rest(run.path, writers[run.run_dir], looked_ns)
    ]


def _was_at_rest(path: str, names: Iterable[str], looked_ns: int) -> bool:
    """Whether a run's directory and these in it were left alone for some seconds before, and are still."""
    try:
        newest_ns = max(os.stat(f"{path}/{name}").st_mtime_ns for name in ("", *names))
    except OSError:
        return False
    return newest_ns < looked_ns - _AT_REST_NS


def is_worth_it(new: int, kept: int) -> bool:
    """Whether an index is to be written for so many settled runs of which nothing is kept.

    >>> is_worth_it(30, 0), is_worth_it(64, 0), is_worth_it(64, 10_000), is_worth_it(100, 10_000)
    (False, True, False, True)
    """
    return new >= max(WORTH_RUNS, kept * _WORTH_PART)


def keep(
    con: duckdb.DuckDBPyConnection,
    root: Path,
    sources: dict[str, SourcesOfRun],
    run_dirs: Sequence[str],
    damaged: Collection[str],
    looked_ns: int,
    progress: Progress,
) -> bool:
    """Write an index of these runs and of what is kept and holds; say whether there is a new one.

    `damaged` are those of which only that is kept, and holds.

    `looked_ns` is when the catalog began to look.  Raises nothing but what an interruption raises.
    """
    try:
        with cached.writing(con, _name(root), "fresh"):
            # Of each of many queries one bar: `progress` is told of all.
            con.execute("SET enable_progress_bar = false")
            try:
                make_tables(con, "fresh")
                for table in _TABLES:
                    con.execute(
                        f"INSERT INTO fresh.{table} FROM kept.{table} ANTI JOIN internal.changed USING (run_dir)"
                    )
                con.execute(f"INSERT INTO fresh.runs FROM kept.runs WHERE run_dir IN {_list(damaged)}")
                for at in range(0, len(run_dirs), _BATCH_RUNS):
                    progress(at, len(run_dirs))
                    _add(con, run_dirs[at : at + _BATCH_RUNS], sources, looked_ns)
                progress(len(run_dirs), len(run_dirs))
            finally:
                con.execute("RESET enable_progress_bar")
    except (OSError, duckdb.Error):
        # No room, no right, or a segment that was sealed meanwhile: the next connection tries again.
        return False
    return True


def _add(
    con: duckdb.DuckDBPyConnection,
    run_dirs: Sequence[str],
    sources: dict[str, SourcesOfRun],
    looked_ns: int,
) -> None:
    """Add a batch of runs of which nothing is kept."""
    found = con.execute(
        """SELECT r.run_dir, r.path, r.project, r.run_id, entity, string_agg(p.writer, '/' ORDER BY p.writer)
        FROM internal.found_runs r JOIN internal.found_pieces p USING (run_dir)
        WHERE list_contains(?, run_dir) GROUP BY ALL ORDER BY run_dir""",
        [run_dirs],
    ).fetchall()
    con.begin()
    try:
        ids = _list({run_id for _, _, _, run_id, _, _ in found})
        these = f"run_dir IN {_list(run_dirs)}"
        for table in _COMPUTED:
            con.execute(f"INSERT INTO fresh.{table} FROM internal.{table}_read({ids}) WHERE {these}")
        con.execute(
            f"""INSERT INTO fresh.objects SELECT run_dir, coalesce(config, '{{}}'), coalesce(summary, '{{}}')
            FROM internal.found_runs
            LEFT JOIN (SELECT run_dir, internal.object(key, value) AS config FROM fresh.config GROUP BY ALL)
                USING (run_dir)
            LEFT JOIN (SELECT run_dir, internal.object(key, json) AS summary FROM fresh.summary GROUP BY ALL)
                USING (run_dir)
            WHERE {these}"""
        )
        for table in ("pieces", "segments", "cursors"):
            con.execute(f"INSERT INTO fresh.{table} BY NAME FROM internal.found_{table} WHERE {these}")
        lost = con.execute(
            f"SELECT run_dir FROM internal.lost_of({ids}) WHERE {these} AND stream = 'events'"
        ).fetchall()
        damaged = {run_dir for (run_dir,) in lost}
        rows = []
        for run_dir, path, project, run_id, entity, writers in found:
            dirs = f"{writers}/{SYNC_DIR}" if os.path.isdir(f"{path}/{SYNC_DIR}") else writers
            # After all that was read of it: what changed meanwhile, or may have, is not believed.
            times = times_of(path, dirs)
            if _was_at_rest(path, dirs.split("/"), looked_ns):
                names = orjson.dumps(sources.get(run_dir, {})).decode()
                values = (run_dir, path, project, run_id, entity, dirs, times, names, run_dir in damaged)
                rows.append(dict(zip(_RUN_COLUMNS, values, strict=True)))
        fill(con, "fresh", "runs", rows)
        whole = "SELECT run_dir FROM fresh.runs WHERE NOT is_damaged"
        for table in _OF_WHOLE_RUNS:
            con.execute(f"DELETE FROM fresh.{table} WHERE {these} AND run_dir NOT IN ({whole})")
        con.commit()
    except BaseException:
        con.rollback()
        raise


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(map(literal, sorted(values)))}]"


def _name(root: Path) -> str:
    return f"runs-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"
