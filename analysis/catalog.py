"""Which files hold what: the runs below a root, their pieces, and which records of each segment count.

    root ──look──▶ Catalog(runs, pieces, segments, cursors, notices)

Invariants
----------
* A record counts if its line is committed, and in one segment only: the first that holds its seq.  So torn tails, also
  those that happen to be whole JSON, and records that were written twice are out, whatever file comes after them.
* Of what is there sealed and as it was written, the sealed counts, unless it is plainly broken.
* Whether a piece is closed is asked before its end is read: what is said to be the end stays the end.
* Anything that FORMAT.md does not name is left alone; nothing is ever written.

Only names, headers and the ends of segments are read here.  What is between them is DuckDB's to read, so a damaged line in
the middle is not seen here, unless `damaged_lines` is asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from eventlog.cursor import cursors
from eventlog.errors import NotARun
from eventlog.parquet import Brief, Unreadable, is_intact
from eventlog.piece import RunIdentity, closed, lock_text, ran_here
from eventlog.reader import backwards, find_runs
from eventlog.record import LINE_MAX_BYTES, BadLine, unframe
from eventlog.segment import (
    STREAMS,
    Header,
    Sealed,
    UnknownFormat,
    is_writer_name,
    primary_number,
    sealed_in,
    segments_in,
)

# Nearly every last line is within this many bytes of the end; a longer one costs further reads.
_TAIL_BYTES = 8 * 1024
# A header has some 250 bytes.
_HEADER_BYTES = 4 * 1024
_READ_BYTES = 4 * 1024 * 1024
_PARQUET = b"PAR1"
NO_RECORD = -1
# A list of names may be old by the time that it is used.
_LOOK_AGAIN = 5


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run.  `run_dir` is `<project directory>/<run directory>`, the key of all that follows."""

    run_dir: str
    path: str
    project: str
    run_id: str
    entity: str | None


@dataclass(frozen=True, slots=True)
class PieceRow:
    """One writer of a run.  `number` is that of a primary piece."""

    run_dir: str
    writer: str
    number: int | None
    is_closed: bool
    heartbeat_us: int | None
    """When another machine's writer was last heard; null if this machine can ask the lock."""


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """One segment; of its records those count whose seq is from `first` to `last`."""

    file: str
    run_dir: str
    writer: str
    stream: str
    first: int
    last: int | None
    """Null while the file may grow: then it is looked up for each query."""


@dataclass(frozen=True, slots=True)
class CursorRow:
    """How far one destination has come.  `next_number` is the primary piece that `next_seq` belongs to."""

    run_dir: str
    sink: str
    base_url: str
    sink_entity: str | None
    sink_project: str
    sink_run_id: str
    state: str
    error: str | None
    url: str | None
    finished: bool
    next_number: int | None
    next_seq: int | None
    not_shown: dict[str, int]
    time_us: int


@dataclass(slots=True)
class Catalog:
    """What is below a root at one moment."""

    runs: list[RunRow] = field(default_factory=list)
    pieces: list[PieceRow] = field(default_factory=list)
    segments: list[SegmentRow] = field(default_factory=list)
    cursors: list[CursorRow] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    """What was passed over, and why, in words."""
    noticed: set[str] = field(default_factory=set)
    """The run directories in which that was."""

    def files(self, stream: str, *, sealed: bool) -> list[str]:
        return [s.file for s in self.segments if s.stream == stream and s.file.endswith(".parquet") == sealed]


@dataclass(frozen=True, slots=True)
class End:
    """The last committed record of a segment."""

    seq: int = NO_RECORD
    kind: str | None = None


def look(root: Path, verify: bool = False, skip: Callable[[str], bool] = lambda run_dir: False) -> Catalog:
    """Return what is below `root`, but for the run directories that are to be skipped; a root that is not there has nothing.

    With `verify`, every byte of what is sealed is read, and what is not as it was counts for nothing.
    """
    root = root.absolute()
    catalog = Catalog()
    for path in find_runs(root, skip):
        try:
            identity = RunIdentity.load(path)
            str(path).encode()
        except NotARun as error:
            catalog.notices.append(str(error))
            continue
        except UnicodeEncodeError:
            catalog.notices.append(f"{str(path)!r} is left out: its path is not UTF-8. Rename the directory.")
            continue
        run_dir = f"{path.parent.name}/{path.name}"
        catalog.runs.append(RunRow(run_dir, str(path), identity.project, identity.run_id, identity.entity))
        known = len(catalog.notices)
        _look_at_pieces(catalog, run_dir, path, verify)
        if len(catalog.notices) > known:
            catalog.noticed.add(run_dir)
        catalog.cursors.extend(_cursor_rows(run_dir, path))
    return catalog


def committed_seq(file: str) -> int:
    """Return the last committed seq of a file, -1 where there is none (or no such file any more)."""
    return end_of_segment(file).seq


def end_of_segment(file: str) -> End:
    """Return the last committed record of a segment, from its last bytes."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return End()
    try:
        return _end(fd)
    finally:
        os.close(fd)


def counted(ends: list[tuple[str, int]], is_closed: bool) -> list[tuple[str, int, int | None]]:
    """Return (file, first, last) for a stream's segments, in their order, from (file, last committed seq).

    The second segment repeats two records that an fsync had failed to vouch for; the third may still grow:

    >>> counted([("a", 120), ("b", 122), ("c", 130)], is_closed=False)
    [('a', 0, 120), ('b', 121, 122), ('c', 123, None)]
    """
    rows: list[tuple[str, int, int | None]] = []
    first = 0
    for at, (file, last) in enumerate(ends):
        may_grow = at == len(ends) - 1 and not is_closed
        rows.append((file, first, None if may_grow else last))
        first = max(first, last + 1)
    return rows


def damaged_lines(file: str) -> Iterator[str]:
    """Yield the checksum that stands in each committed line of the segment that is not what its writer wrote.

    This reads the whole file.  A line that has no such place needs no mention: no query sees it.
    """
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    with open(fd, "rb", buffering=_READ_BYTES) as lines:
        while line := lines.readline(LINE_MAX_BYTES):
            # Without a newline it is still being written, or never will be: `counted` and `committed_seq` leave it out.
            if line.endswith(b"\n"):
                try:
                    unframe(line[:-1])
                except BadLine:
                    yield line[8:16].decode("latin-1")


def _look_at_pieces(catalog: Catalog, run_dir: str, path: Path, verify: bool) -> None:
    for name in (name for name in _directories(path) if is_writer_name(name)):
        for again in reversed(range(_LOOK_AGAIN)):
            try:
                found = _look_at_piece(run_dir, path, name, verify, is_last_look=not again)
                break
            except FileNotFoundError:
                # Sealed, merged or removed since the names were read: what replaced them has another name.
                continue
        catalog.pieces.append(found.piece)
        catalog.segments += found.segments
        catalog.notices += found.notices


@dataclass(slots=True)
class _Piece:
    piece: PieceRow
    segments: list[SegmentRow] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def _look_at_piece(run_dir: str, path: Path, name: str, verify: bool, is_last_look: bool) -> _Piece:
    """Raises `FileNotFoundError` if a file of the piece goes meanwhile; at the last look it is left out."""
    is_closed = closed(path, name)
    files = _files(path / name)
    found = _Piece(PieceRow(run_dir, name, primary_number(name), is_closed, None))
    for stream in STREAMS:
        ends, last_kind = _ends(found.notices, path / name, files, stream, verify, is_last_look)
        # Events come first in STREAMS: nothing is written to any stream after an `exit`.
        is_closed = is_closed or last_kind == "exit"
        found.segments += [
            SegmentRow(file, run_dir, name, stream, first, last)
            for file, first, last in counted(ends, is_closed)
        ]
    heard_us = None if is_closed else _heard_us(path / name)
    found.piece = PieceRow(run_dir, name, primary_number(name), is_closed, heard_us)
    return found


def _ends(
    notices: list[str], piece_dir: Path, names: list[str], stream: str, verify: bool, is_last_look: bool
) -> tuple[list[tuple[str, int]], str | None]:
    """Return (file, last committed seq) of the stream's files in order, and the kind of the last record of all."""
    sealed = [each for each in sealed_in(names, stream) if _counts(notices, piece_dir, each, verify)]
    found = [(each.first_seq, -1, str(piece_dir / each.name), each.next_seq - 1) for each in sealed]
    kinds: dict[int, str | None] = {}
    segments = segments_in(names, stream)
    for at, segment in enumerate(segments):
        # Where the next one begins, at the latest; of the last, its end is to be seen.
        next_seq = segments[at + 1].first_seq if at + 1 < len(segments) else None
        holders = [each for each in sealed if each.first_seq <= segment.first_seq < each.next_seq]
        if next_seq is not None and any(next_seq <= each.next_seq for each in holders):
            continue
        file = str(piece_dir / segment.name)
        try:
            end = _end_of_known_format(file)
        except UnknownFormat as error:
            notices.append(f"{file!r} is left out: {error}")
            continue
        except FileNotFoundError:
            if not is_last_look:
                raise
            continue
        if next_seq is None and any(end.seq < each.next_seq for each in holders):
            continue
        found.append((segment.first_seq, segment.attempt, file, end.seq))
        kinds[end.seq] = end.kind
    found.sort()
    last = max((end for *_, end in found), default=NO_RECORD)
    last_kind = kinds.get(last)
    for each in sealed:
        if each.next_seq - 1 == last and last not in kinds:
            with suppress(Unreadable):
                last_kind = Brief.load(piece_dir, each).last.kind
    return [(file, end) for *_, file, end in found], last_kind


def _counts(notices: list[str], piece_dir: Path, sealed: Sealed, verify: bool) -> bool:
    """Whether a sealed segment is whole, as far as a look at its end tells; with `verify`, each of its bytes."""
    path = piece_dir / sealed.name
    try:
        if verify:
            is_whole = is_intact(piece_dir, Brief.load(piece_dir, sealed))
        else:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - len(_PARQUET)))
                is_whole = size > 2 * len(_PARQUET) and file.read() == _PARQUET
    except FileNotFoundError:
        raise
    except (OSError, Unreadable):
        is_whole = False
    if not is_whole:
        notices.append(
            f"{str(path)!r} is damaged, and left out: what it was made of counts, if it is still there."
        )
    return is_whole


def _end_of_known_format(file: str) -> End:
    """Return the segment's end, or raise `UnknownFormat`."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise
    except OSError:
        return End()
    try:
        try:
            Header.decode(os.pread(fd, _HEADER_BYTES, 0).partition(b"\n")[0])
        except UnknownFormat:
            raise
        except BadLine:
            # Its records are read all the same: each proves itself.
            pass
        return _end(fd)
    finally:
        os.close(fd)


def _end(fd: int) -> End:
    last = next(backwards(fd), None)
    return End() if last is None else End(last.seq, last.kind)


def _heard_us(piece_dir: Path) -> int | None:
    text = lock_text(piece_dir)
    if ran_here(text):
        return None
    heard = text.get("heartbeat", 0)
    return heard if isinstance(heard, int) else 0


def _cursor_rows(run_dir: str, path: Path) -> Iterator[CursorRow]:
    for cursor in cursors(path):
        at = cursor.next or {}
        yield CursorRow(
            run_dir=run_dir,
            sink=cursor.sink.name,
            base_url=cursor.sink.base_url,
            sink_entity=cursor.sink.entity,
            sink_project=cursor.sink.project,
            sink_run_id=cursor.sink.run_id,
            state=cursor.state,
            error=cursor.error,
            url=(cursor.attach or {}).get("url"),
            finished=cursor.finished,
            next_number=primary_number(at["writer"]) if at else None,
            next_seq=at["seq"] if at else None,
            not_shown=cursor.not_shown,
            time_us=cursor.time,
        )


def _directories(parent: Path) -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _files(piece_dir: Path) -> list[str]:
    try:
        with os.scandir(piece_dir) as entries:
            return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except OSError:
        return []
