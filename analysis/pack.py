"""Packs: all runs as a few large Parquet files, for other machines and engines.

    PACK/current ─▶ snapshot-000002/pack.json                                     (manifest.py says what is in it)
                    snapshot-000002/metrics/project=demo/<name>.parquet
                    snapshot-000002/runs/<name>.parquet

Invariants
----------
* A pack is one snapshot at any moment: it is written beside the one before, and one rename of `current` makes it the pack.
  Killed anywhere, it leaves the old one whole; the next pack removes what was left behind.
* What did not change is not written again: its files are the same ones, linked.  Where nothing changed nothing is touched.
* A snapshot stays while somebody reads it here, and until the pack after the next for those who read it otherwise.
* Rows have the columns of the views, `project` among them, so that a directory's name is for pruning only.
* Memory is bounded: runs are read in chunks, sorted by DuckDB within its limit, and written a row group at a time.

Of a run that is being written each view shows some moment of that pack; the next one replaces it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import click

from analysis.asking import damage
from analysis.manifest import (
    FILE_BYTES,
    Manifest,
    NotAPack,
    PackedFile,
    PackedRun,
    Plan,
    Run,
    chunks,
    digest_of,
    plan,
    rewrite,
)
from analysis.naming import NotFound
from analysis.sqltext import identifier, literal
from eventlog.roots import root_of

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class _View:
    sorted_by: str
    is_divided: bool = False
    """By project: those that can be large.  The others would be many tiny files."""
    rows_at_once: int = 64 * 2048
    """That DuckDB hands out: fewer where one row may be megabytes."""


_RECORD = "project, run_id, writer, seq"
_TEXTS = 2048
# All but `records`: it is the log itself, and holds once more what the others do; a log's directory is easily copied.
VIEWS = {
    "runs": _View("project, run_id"),
    "config": _View("project, run_id, key"),
    "summary": _View("project, run_id, key"),
    "rollup": _View("project, run_id, key, writer"),
    "metrics": _View("project, run_id, key, step, writer, seq", is_divided=True),
    "system": _View("project, run_id, key, time, writer, seq", is_divided=True),
    "trajectories": _View(_RECORD, is_divided=True, rows_at_once=_TEXTS),
    "messages": _View(f"{_RECORD}, turn", is_divided=True, rows_at_once=_TEXTS),
    "tool_calls": _View(f"{_RECORD}, turn, call", is_divided=True, rows_at_once=_TEXTS),
    "console": _View(f"{_RECORD}, line", is_divided=True, rows_at_once=_TEXTS),
    "checkpoints": _View(_RECORD),
    "alerts": _View(_RECORD),
    "files": _View(_RECORD),
    "sync_state": _View("project, run_id, base_url, sink_project, sink_run_id"),
}
CURRENT, MANIFEST = "current", "pack.json"
_LOCK, _STAGING, _SNAPSHOT = ".lock", ".packing", "snapshot-"
# What tests/bench/pack.py finds best for a curve, and costs nothing in size: a run of 10⁶ values is one row group.
_GROUP_ROWS = 1_000_000
# A row group is in memory as a whole where it is written and where it is read.
_GROUP_BYTES = 128 * 1024 * 1024
_CHUNK_BYTES = 256 * 1024 * 1024
_CHUNK_RUNS = 1000
_READ_BYTES = 4 * 1024 * 1024
_MEMORY = "1GB"
# A directory's name has at most 255 bytes.
_PART_CHARS = 200

Progress = Callable[[int], object]


class Busy(Exception):
    """Another process writes this pack."""


class NoRuns(Exception):
    """There is no run below the root, and something was asked that this would turn into a loss."""


@dataclass(slots=True)
class Packed:
    """What a pack came to."""

    pack: Path
    plan: Plan
    snapshot: str | None = None
    """None where there was nothing to do."""
    written_bytes: int = 0
    written_files: int = 0
    manifest: Manifest = field(default_factory=Manifest)
    damaged: dict[Run, int] = field(default_factory=dict)
    """How many records are missing between others, of those that were written."""


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Packing:
    """A look at a root and a pack, and what the one has that the other has not."""

    root: Path
    pack: Path
    verify: bool
    con: duckdb.DuckDBPyConnection
    old: Manifest
    old_dir: Path | None
    views: dict[str, dict[str, str]]
    found: dict[Run, PackedRun]
    sizes: dict[Run, int]
    """What there is to read of each run, in bytes."""
    plan: Plan

    @classmethod
    @contextmanager
    def looked(
        cls, root: Path | None, pack: Path, *, prune: bool = False, verify: bool = False
    ) -> Iterator[Packing]:
        """Look at both; raise `NotAPack` where `pack` is something else."""
        import analysis

        root = root_of(root).absolute()
        _refuse_what_is_no_pack(pack)
        old_dir = _current(pack)
        old = _manifest(old_dir) if old_dir else Manifest()
        con = analysis.connect(root, verify=verify)
        try:
            views = {view: _columns(con, view) for view in VIEWS}
            # Before anything is read: what comes meanwhile is there twice rather than never.
            segments = _segments(con)
            found = _runs(con, segments, views, time.time_ns() // 1000)
            sizes = _sizes(segments)
            if not found:
                if prune and old.runs:
                    raise NoRuns(
                        f"There is no run in {str(root)!r}, and --prune would empty the pack. Give --root, or set EVENTLOG_ROOT."
                    )
                warnings.warn(
                    f"There is no run in {str(root)!r}. Give --root, or set EVENTLOG_ROOT.", stacklevel=3
                )
            made = plan(old, found, prune)
            yield cls(root, pack, verify, con, old, old_dir, views, found, sizes, made)
        finally:
            con.close()

    @property
    def is_nothing(self) -> bool:
        return self.plan.is_nothing and (self.old.views == self.views or not (self.found or self.old.runs))

    @property
    def bytes_to_read(self) -> int:
        """Return how many bytes `write` reports to its progress."""
        return sum(self.sizes.get(run, 0) for run in self.plan.written) * len(VIEWS)

    def dry(self) -> Packed:
        """Return what `write` would do, and do nothing."""
        return Packed(self.pack, self.plan, manifest=self.old)

    def write(self, progress: Progress = lambda size: None, file_bytes: int = FILE_BYTES) -> Packed:
        """Write what is new, and make it the pack; raise `Busy` while another process does so."""
        done = self.dry()
        if self.is_nothing:
            return done
        with _locked(self.pack):
            if _current(self.pack) != self.old_dir:
                raise Busy(f"{str(self.pack)!r} was written by another process meanwhile. Pack again.")
            _sweep(self.pack, self.old_dir)
            staging = self.pack / _STAGING
            staging.mkdir()
            try:
                self._write(staging, done, progress, file_bytes)
                _commit(self.pack, staging, done)
            except BaseException:
                # The old pack is whole; a killed process leaves this for the next one.
                shutil.rmtree(staging, ignore_errors=True)
                raise
            _sweep(self.pack, self.pack / str(done.snapshot), self.old_dir)
        return done

    def _write(self, staging: Path, done: Packed, progress: Progress, file_bytes: int) -> None:
        spill = staging / "spill"
        spill.mkdir()
        self.con.execute(f"SET temp_directory = {literal(str(spill))}")
        self.con.execute(f"SET memory_limit = '{_MEMORY}'")
        # Rows are put in order below.
        self.con.execute("SET preserve_insertion_order = false")
        done.manifest = Manifest(self.views, self._packed_runs())
        for view, shape in VIEWS.items():
            files = self.old.files_of(view)
            parts: Sequence[str | None] = [None]
            if shape.is_divided:
                parts = sorted({run[0] for run in self.plan.written} | {file.part or "" for file in files})
            for part in parts:
                of_part = [file for file in files if file.part == part]
                done.manifest.files += self._write_part(
                    staging, view, part, of_part, done, progress, file_bytes
                )
            if not done.manifest.files_of(view):
                # So that every engine finds the columns.
                with _Writer(staging, view, None, self._schema(view), file_bytes) as writer:
                    writer.begin()
                done.manifest.files += writer.files
        done.damaged = self._damaged()
        shutil.rmtree(spill, ignore_errors=True)

    def _write_part(
        self,
        staging: Path,
        view: str,
        part: str | None,
        files: list[PackedFile],
        done: Packed,
        progress: Progress,
        file_bytes: int,
    ) -> list[PackedFile]:
        written = [run for run in self.plan.written if part is None or run[0] == part]
        made = rewrite(files, written, self.plan.removed, self.old.views != self.views)
        kept = [file for file in made.kept if file.rows]
        for file in kept:
            assert self.old_dir is not None
            _link(self.old_dir / file.path, staging / file.path)
        if not made.runs:
            return kept
        merged = [str(self.old_dir / file.path) for file in made.merged] if self.old_dir else []
        carried = set(made.carried)
        with _Writer(staging, view, part, self._schema(view), file_bytes) as writer:
            for chunk in chunks(made.runs, self._costs(made.merged), _CHUNK_BYTES, _CHUNK_RUNS):
                query = self._query(view, chunk, carried, merged)
                with self.con.cursor() as cursor:
                    for batch in cursor.sql(query).to_arrow_reader(VIEWS[view].rows_at_once):
                        writer.write(batch)
                progress(sum(self.sizes.get(run, 0) for run in chunk if run not in carried))
        done.written_bytes += sum(file.bytes for file in writer.files)
        done.written_files += len(writer.files)
        return kept + writer.files

    def _query(self, view: str, chunk: list[Run], carried: set[Run], merged: list[str]) -> str:
        """Return the SQL for the rows of these runs of one project, from the log or from the files of the old pack."""
        sources = []
        if fresh := [run for run in chunk if run not in carried]:
            sources.append(f"SELECT * FROM {view}_of([{_ids(fresh)}]) WHERE {_among(fresh)}")
        if old := [run for run in chunk if run in carried]:
            now, before = self.views[view], self.old.views[view]
            columns = ", ".join(
                f"{identifier(name)}::{now[name]} AS {identifier(name)}" for name in before if name in now
            )
            sources.append(f"SELECT {columns} FROM {_parquet(merged)} WHERE {_among(old)}")
        if len(sources) == 1 and fresh:
            return f"{sources[0]} ORDER BY {VIEWS[view].sorted_by}"
        typed = ", ".join(f"NULL::{kind} AS {identifier(name)}" for name, kind in self.views[view].items())
        return f"SELECT * FROM ((SELECT {typed} WHERE false) UNION ALL BY NAME {' UNION ALL BY NAME '.join(sources)}) ORDER BY {VIEWS[view].sorted_by}"

    def _costs(self, merged: Sequence[PackedFile]) -> dict[Run, int]:
        """Return about how much of each run is read at once: of a Parquet file several times what it takes there."""
        costs = {run: 10 * file.bytes // len(file.runs) for file in merged for run in file.runs}
        return {**costs, **{run: self.sizes.get(run, 0) for run in self.plan.written}}

    def _packed_runs(self) -> dict[Run, PackedRun]:
        runs = {run: self.old.runs[run] for run in [*self.plan.gone, *self.plan.another]}
        runs.update({run: self.found[run] for run in [*self.plan.unchanged, *self.plan.written]})
        return dict(sorted(runs.items()))

    def _schema(self, view: str) -> pa.Schema:
        return self.con.cursor().sql(f"SELECT * FROM {view} WHERE false").to_arrow_reader(1).schema

    def _damaged(self) -> dict[Run, int]:
        """Return how many records are missing of the runs that are written."""
        lost: dict[Run, int] = {}
        for chunk in chunks(self.plan.written, self.sizes, _CHUNK_BYTES, _CHUNK_RUNS):
            rows = self.con.execute(
                f"""SELECT project, run_id, sum(lost)::BIGINT FROM internal.lost_of([{_ids(chunk)}])
                JOIN internal.runs USING (run_dir) WHERE {_among(chunk)} GROUP BY ALL"""
            ).fetchall()
            lost.update({(project, run_id): count for project, run_id, count in rows})
        return lost


def _columns(con: duckdb.DuckDBPyConnection, view: str) -> dict[str, str]:
    return {row[0]: row[1] for row in con.execute(f"DESCRIBE {view}").fetchall()}


def _ids(runs: Sequence[Run]) -> str:
    return ", ".join(literal(run_id) for _, run_id in runs)


def _among(runs: Sequence[Run]) -> str:
    """Return the SQL for a row of one of these runs, which are of one project."""
    return f"project = {literal(runs[0][0])} AND run_id IN ({_ids(runs)})"


def _parquet(files: Sequence[str]) -> str:
    return f"read_parquet([{', '.join(map(literal, files))}], hive_partitioning = false)"


class _Segment(NamedTuple):
    run: Run
    writer: str
    file: str
    first: int
    last: int


def _segments(con: duckdb.DuckDBPyConnection) -> list[_Segment]:
    """Return all segments with the records that count now, in an order that depends on these alone."""
    rows = con.execute(
        """SELECT project, run_id, s.writer, s.file, s.first, s.last
        FROM internal.spans_of(NULL) s JOIN internal.runs USING (run_dir) ORDER BY ALL"""
    ).fetchall()
    return [_Segment((project, run_id), *rest) for project, run_id, *rest in rows]


def _runs(
    con: duckdb.DuckDBPyConnection, segments: Sequence[_Segment], views: Mapping[str, Any], now_us: int
) -> dict[Run, PackedRun]:
    """Return the runs with a digest of their state, from what is known without reading them."""
    from eventlog.errors import NotARun
    from eventlog.piece import STALE_S, RunIdentity

    facts: dict[Run, list[Any]] = {}
    log_ids: dict[Run, list[str]] = {}
    for project, run_id, run_dir, path, entity in con.execute(
        "SELECT project, run_id, run_dir, path, entity FROM internal.runs ORDER BY ALL"
    ).fetchall():
        run = (project, run_id)
        facts.setdefault(run, []).append([run_dir, path, entity])
        # A run that was deleted meanwhile says nothing more.
        with suppress(NotARun):
            log_ids.setdefault(run, []).append(RunIdentity.load(Path(path)).log_id)
    for project, run_id, *fact in con.execute(
        f"""SELECT project, run_id, writer, is_closed, heartbeat_us IS NOT NULL AND {now_us} - heartbeat_us > {STALE_S * 1e6:.0f}
        FROM internal.pieces JOIN internal.runs USING (run_dir) ORDER BY ALL"""
    ).fetchall():
        facts[project, run_id].append(fact)
    for segment in segments:
        facts[segment.run].append([segment.writer, Path(segment.file).name, segment.first, segment.last])
    for project, run_id, *fact in con.execute(
        """SELECT project, run_id, sink, state, error, next_number, next_seq, not_shown, c.url
        FROM internal.cursors c JOIN internal.runs USING (run_dir) ORDER BY ALL"""
    ).fetchall():
        facts[project, run_id].append(fact)
    return {run: PackedRun(digest_of(facts[run], views), sorted(log_ids[run])) for run in sorted(log_ids)}


def _sizes(segments: Sequence[_Segment]) -> dict[Run, int]:
    """Return in how many bytes the records of each run are."""
    sizes: dict[Run, int] = {}
    for segment in segments:
        with suppress(OSError):
            sizes[segment.run] = sizes.get(segment.run, 0) + os.stat(segment.file).st_size
    return sizes


class _Writer:
    """Writes sorted rows into files of a good size, named by what is in them."""

    def __init__(
        self, staging: Path, view: str, part: str | None, schema: pa.Schema, file_bytes: int
    ) -> None:
        self.files: list[PackedFile] = []
        self._view, self._part, self._schema, self._file_bytes = view, part, schema, file_bytes
        self._staging = staging
        self._dir = f"{view}/{_part_name(part)}" if part is not None else view
        self._file: Any = None
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = self._rows_of_file = 0
        self._runs: dict[Run, None] = {}

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            if self._file is not None:
                self._file.close()
            return
        self._write_group()
        self._finish()

    def write(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        while batch.num_rows > _GROUP_ROWS - self._rows:
            head, batch = batch.slice(0, _GROUP_ROWS - self._rows), batch.slice(_GROUP_ROWS - self._rows)
            self._add(head)
            self._write_group()
        self._add(batch)
        if self._bytes >= _GROUP_BYTES or self._rows >= _GROUP_ROWS:
            self._write_group()

    def _add(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes

    def _write_group(self) -> None:
        import pyarrow as pa

        if not self._rows:
            return
        group = pa.Table.from_batches(self._batches, self._schema)
        self.begin().write_table(group, row_group_size=_GROUP_ROWS)
        named = group.select(["project", "run_id"]).group_by(["project", "run_id"]).aggregate([]).to_pylist()
        self._runs.update({(row["project"], row["run_id"]): None for row in named})
        self._rows_of_file += self._rows
        self._batches, self._rows, self._bytes = [], 0, 0
        if self._path.stat().st_size >= self._file_bytes:
            self._finish()

    @property
    def _path(self) -> Path:
        return self._staging / self._dir / ".writing"

    def begin(self) -> Any:
        """Open a file, which is there even if no row comes."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Steps and times lie close together; of values and texts many come again. BYTE_STREAM_SPLIT would take up to a
            # quarter off floats that do not, but Spark's vectorized reader refuses it, and with that the whole file.
            deltas = [
                column.name
                for column in self._schema
                if pa.types.is_integer(column.type) or pa.types.is_timestamp(column.type)
            ]
            self._file = pq.ParquetWriter(
                self._path,
                self._schema,
                compression="zstd",
                use_dictionary=[column.name for column in self._schema if column.name not in deltas],
                column_encoding=dict.fromkeys(deltas, "DELTA_BINARY_PACKED"),
                write_page_index=True,
            )
        return self._file

    def _finish(self) -> None:
        if self._file is None:
            return
        self._file.close()
        digest, size = hashlib.sha256(), 0
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())
            while data := file.read(_READ_BYTES):
                digest.update(data)
                size += len(data)
        name = f"{digest.hexdigest()[:32]}.parquet"
        os.rename(self._path, self._path.with_name(name))
        self.files.append(
            PackedFile(
                f"{self._dir}/{name}", self._view, self._part, self._rows_of_file, size, sorted(self._runs)
            )
        )
        self._file, self._rows_of_file, self._runs = None, 0, {}


def _part_name(project: str) -> str:
    """
    >>> _part_name("demo"), _part_name("a b/ü"), _part_name("")
    ('project=demo', 'project=a%20b%2F%C3%BC', 'project=__HIVE_DEFAULT_PARTITION__')
    """
    name = quote(project, safe="") or "__HIVE_DEFAULT_PARTITION__"
    if len(name) > _PART_CHARS:
        name = f"{name[:_PART_CHARS].rpartition('%')[0]}-{hashlib.sha256(project.encode()).hexdigest()[:16]}"
    return f"project={name}"


@contextmanager
def _locked(pack: Path) -> Iterator[None]:
    pack.mkdir(parents=True, exist_ok=True)
    fd = os.open(pack / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"{str(pack)!r} is being written by another process. Wait for it; nothing was changed."
            ) from None
        yield
    finally:
        os.close(fd)


def _refuse_what_is_no_pack(pack: Path) -> None:
    if pack.exists() and not pack.is_dir():
        raise NotAPack(f"{str(pack)!r} is a file. Give a directory, or a name for a new one.")
    names = sorted(os.listdir(pack)) if pack.exists() else []
    # Where the first pack was killed, only these are there.
    if CURRENT not in names and not all(name.startswith((_LOCK, _STAGING, _SNAPSHOT)) for name in names):
        raise NotAPack(f"{str(pack)!r} is no pack, and not empty. Give a name for a new directory.")


def _link(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, to)
    except OSError:
        # Not every file system has links.
        shutil.copyfile(file, to)


def _commit(pack: Path, staging: Path, done: Packed) -> None:
    """Make what is staged the pack: it is the old one until the last rename, and this one from there on."""
    with open(staging / MANIFEST, "xb") as file:
        file.write(done.manifest.encode())
        file.flush()
        os.fsync(file.fileno())
    for directory, _, _ in os.walk(staging):
        _sync(Path(directory))
    done.snapshot = f"{_SNAPSHOT}{_newest(pack) + 1:06d}"
    os.rename(staging, pack / done.snapshot)
    link = pack / f"{_STAGING}-{CURRENT}"
    with suppress(FileNotFoundError):
        link.unlink()
    os.symlink(done.snapshot, link)
    os.rename(link, pack / CURRENT)
    _sync(pack)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _newest(pack: Path) -> int:
    return max((int(path.name.removeprefix(_SNAPSHOT)) for path in pack.glob(f"{_SNAPSHOT}*")), default=0)


def _sweep(pack: Path, *kept: Path | None) -> None:
    """Remove what a killed pack left behind, and the snapshots but these that nobody reads."""
    shutil.rmtree(pack / _STAGING, ignore_errors=True)
    for path in pack.glob(f"{_SNAPSHOT}*"):
        if path in kept:
            continue
        with suppress(FileNotFoundError), open(path / MANIFEST, "rb") as manifest:
            try:
                fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            # Who opens it now finds that it is gone, and looks for `current` again.
            (path / MANIFEST).unlink()
        shutil.rmtree(path, ignore_errors=True)


# ── in words ─────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def in_words() -> Iterator[None]:
    """End the command with a sentence if a pack is none, or cannot be written."""
    try:
        yield
    except (NotAPack, NoRuns) as error:
        raise NotFound(str(error)) from None
    except Busy as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(
            f"the pack could not be written: {error}. The one before it is as it was."
        ) from None


def content_of(done: Packed) -> dict[str, Any]:
    """Return what a pack came to, for programs."""
    made = done.plan
    views = {
        view: {
            "files": len(files),
            "rows": sum(file.rows for file in files),
            "bytes": sum(file.bytes for file in files),
        }
        for view in done.manifest.views
        for files in [done.manifest.files_of(view)]
    }
    return {
        "pack": str(done.pack),
        "snapshot": done.snapshot,
        "runs": {
            name: list(map("/".join, getattr(made, name)))
            for name in ("new", "changed", "gone", "removed", "another")
        }
        | {"unchanged": len(made.unchanged)},
        "written": {"files": done.written_files, "bytes": done.written_bytes},
        "views": views,
        "damaged": {"/".join(run): count for run, count in done.damaged.items()},
    }


def said(done: Packed, is_dry: bool) -> str:
    """Return what a pack came to, in a sentence."""
    made = done.plan
    counts = (
        (made.new, "new"),
        (made.changed, "changed"),
        (made.unchanged, "as before"),
        (made.gone, "no longer below the root, kept"),
        (made.removed, "removed"),
    )
    runs = ", ".join(f"{len(runs):,} {what}" for runs, what in counts if runs) or "none"
    if is_dry:
        return f"{done.pack}: runs: {runs}. Nothing was written."
    if done.snapshot is None:
        return f"{done.pack}: runs: {runs}. Nothing to do."
    files = done.manifest.files
    return (
        f"{done.pack}: runs: {runs}. Wrote {done.written_files:,} files, {_megabytes(done.written_bytes)}; "
        f"there are {len(files):,}, {_megabytes(sum(file.bytes for file in files))}."
    )


def warned(done: Packed) -> Iterator[str]:
    """Yield what a person has to know."""
    for run, count in done.damaged.items():
        name = "/".join(run)
        yield f"{name}: {damage(name, count)}"
    for run in done.plan.another:
        yield f"{'/'.join(run)} is left out: the pack has another run of that name. --prune puts this one in its place."


def _megabytes(size: int) -> str:
    """
    >>> _megabytes(53_931), _megabytes(5_300_000_000)
    ('0.1 MB', '5,300.0 MB')
    """
    return f"{size / 1e6:,.1f} MB"


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Snapshot:
    """A pack as it is at one moment; it stays while this is held."""

    dir: Path
    manifest: Manifest
    _held: Any

    def files(self, view: str) -> list[str]:
        return [str(self.dir / file.path) for file in self.manifest.files_of(view)]


def opened(pack: Path) -> Snapshot:
    """Return what a pack holds now, of its directory, or of that of a snapshot that was copied somewhere."""
    while True:
        directory = pack.absolute() if (pack / MANIFEST).is_file() else _current(pack)
        if directory is None:
            raise NotAPack(
                f"{str(pack)!r} is no pack: it has no {CURRENT!r}. Make one: analysis pack -o {pack}"
            )
        try:
            file = open(directory / MANIFEST, "rb")  # noqa: SIM115  it is held
        except FileNotFoundError:
            # Replaced since; another look finds what by.
            if directory == _current(pack):
                raise NotAPack(
                    f"{str(directory)!r} has no {MANIFEST!r}. Restore it from a copy, or pack anew."
                ) from None
            continue
        fcntl.flock(file, fcntl.LOCK_SH)
        if (directory / MANIFEST).exists():
            return Snapshot(directory, Manifest.decode(file.read(), str(directory / MANIFEST)), file)
        file.close()


def connect(pack: Path | str) -> duckdb.DuckDBPyConnection:
    """Return a connection with the views over a pack; it is the pack of this moment, whatever comes after."""
    import duckdb

    snapshot = opened(Path(pack))
    con = duckdb.connect()
    # Read by each of the views.
    weakref.finalize(con, snapshot._held.close)
    con.execute("CREATE SCHEMA internal")
    for view, columns in snapshot.manifest.views.items():
        selected = ", ".join(
            f"{identifier(name)}::JSON AS {identifier(name)}" if kind == "JSON" else identifier(name)
            for name, kind in columns.items()
        )
        con.execute(f"CREATE VIEW {view} AS SELECT {selected} FROM {_parquet(snapshot.files(view))}")
        con.execute(
            f"CREATE MACRO {view}_of(runs) AS TABLE FROM {view} WHERE runs IS NULL OR list_contains(runs, run_id)"
        )
    con.execute(
        "CREATE VIEW internal.runs AS SELECT project || '/' || run_id AS run_dir, path, project, run_id FROM main.runs"
    )
    return con


def _current(pack: Path) -> Path | None:
    try:
        return pack.absolute() / os.readlink(pack / CURRENT)
    except FileNotFoundError:
        return None
    except OSError:
        raise NotAPack(
            f"{str(pack)!r} is no pack: its {CURRENT!r} is no link. Give a new directory."
        ) from None


def _manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    try:
        return Manifest.decode(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise NotAPack(
            f"{str(directory)!r} has no {MANIFEST!r}. Restore it from a copy, or pack anew."
        ) from None
