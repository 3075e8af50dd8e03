"""Reads streams back: tolerant of damage, honest about it, and bounded in memory.

    segments, sealed or not ──StreamReader──▶ Chunk(records, damage) ──▶ where to go on

Invariants
----------
* Only committed lines come out, each seq at most once, in order: also over torn tails, rewritten segments and
  damage in the middle.
* A line under way is waited for, never skipped; a line that is wrong is skipped, never waited for.
* A reader that goes on from a remembered place yields what it would have yielded without the pause, also if segments
  were sealed, merged and removed meanwhile.
* Memory is one chunk, or one line where a line is longer.
* With `waits_at_gaps`, a reader stops where records are missing before others, and finds them if they come after all.

Nothing is ever written, repaired or deleted here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from eventlog.errors import RunNotFound
from eventlog.parquet import Brief, Unreadable, is_intact, records_in
from eventlog.piece import RUN_FILE, primaries
from eventlog.record import LINE_MAX_BYTES, BadLine, Record, record_of, unframe
from eventlog.segment import (
    Header,
    Sealed,
    Segment,
    UnknownFormat,
    files_of,
    is_writer_name,
    place_in_stream,
    rank_of_writer,
    sealed_in,
)

CHUNK_BYTES = 1024 * 1024
# What is looked at one by one: gone again before the garbage collector counts it, which takes a fifth of the time.
_READ_BYTES = 128 * 1024
# Not waiting: whoever may write in a shared root may put a FIFO there.
OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
HINT_BYTES = 64 * 1024
# A header and a record of usual size: whoever wants one record need not check a thousand.
FIRST_BYTES = 4096
# A query looks at the end of every file that may still grow: a few records are enough to find the last.
TAIL_BYTES = 8 * 1024
# What a record takes in a segment that is not sealed: by this a sealed one's are counted against a limit of bytes.
_SEALED_RECORD_BYTES = 400
# A list of files may be old by the time it is used; one that is old again and again is not worth waiting for.
_LOOK_AGAIN = 5


@dataclass(frozen=True, slots=True)
class Damage:
    """Records that are not there any more, or bytes that never were a record."""

    path: Path
    offset: int
    first_seq: int
    last_seq: int
    cause: str

    @property
    def lost(self) -> int:
        """How many records this cost: 0 if only the bytes between two records are wrong."""
        return self.last_seq - self.first_seq + 1


@dataclass(slots=True)
class Chunk:
    """What one `StreamReader.read` found."""

    records: list[Record] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    more: bool = False
    """There is more on the disk right now; without it, the reader stands at the committed end."""
    blocked: str | None = None
    """Why a segment that is there cannot be read just now: what comes after it waits."""
    gap: tuple[int, int, int] | None = None
    """Which seqs are missing, from and to, before what is there, and how large the file is at whose end they are; also
    said in `blocked`. Only a reader that `waits_at_gaps` has one."""


class _Foreign(BadLine):
    """A header that names another log: somebody put the file here."""


@dataclass(slots=True)
class _Suspect:
    path: Path
    offset: int
    cause: str


class StreamReader:
    """Reads one stream of one piece, and can be asked again for what came since."""

    def __init__(
        self,
        piece_dir: Path,
        stream: str = "events",
        seq: int = 0,
        hint: tuple[str, int] | None = None,
        log_id: str | None = None,
    ) -> None:
        """Begin at `seq`; `hint` is the `place` of an earlier reader there, and saves reading up to it.

        With `log_id`, segments whose headers name another log are damage.
        """
        self.piece_dir = piece_dir
        self.log_id = log_id
        self.stream = stream
        self.next_seq = seq
        self.waits_at_gaps = False
        """Records that are missing are waited for: they may be on their way, as while a directory is being copied."""
        self.header: Header | None = None
        self._segment: Segment | Sealed | None = Segment.parse(hint[0]) if hint else None
        self._offset = hint[1] if hint and self._segment else 0
        self._seen_bytes = -1
        self._hinted = self._segment is not None
        self._refused: Segment | Sealed | None = None
        # What of a sealed segment is decoded and was not asked for yet, and what follows it there.
        self._decoded: list[Record] = []
        self._groups: Iterator[list[Record]] | None = None
        # Where in the stream the segment is that a sealed one stands in for, and which sealed ones cannot be read.
        self._in_place_of: tuple[int, int] | None = None
        self._unreadable: set[Sealed] = set()
        # A line that was wrong: how many records it cost is known when the next good one comes.
        self._suspect: _Suspect | None = None

    @property
    def place(self) -> tuple[str, int] | None:
        """The segment's name and the byte where the next line begins.

        While it is not known what a wrong line cost, that is where this line begins: who goes on from there meets it too.
        """
        if self._segment is None:
            return None
        suspect = self._suspect
        is_here = suspect is not None and suspect.path.name == self._segment.name
        return self._segment.name, suspect.offset if suspect is not None and is_here else self._offset

    def has_grown(self) -> bool:
        """Say whether anything was written since the last `read`, for the price of a `stat`, or of a listing if not."""
        if self._segment is not None:
            try:
                # More than at the last look, not more than was read: a line under way may be there for long.
                if os.stat(self.piece_dir / self._segment.name).st_size != self._seen_bytes:
                    return True
            except OSError:
                return True
        return bool(self._later(self._segments()))

    def read(self, limit_bytes: int = CHUNK_BYTES) -> Chunk:
        """Return the next records, from at most `limit_bytes` of segments (more only for a longer line)."""
        chunk = Chunk()
        # Listed before reading: a segment that has a successor in this list has all its bytes by now.
        segments = self._segments()
        if self._hinted and not self._hint_holds():
            self._enter(None)
        self._hinted = False
        if self._segment is None:
            if not segments:
                return chunk
            first = self._beginning(segments)
            if self._stops_before(chunk, first):
                return chunk
            self._enter(first)
        budget = limit_bytes
        while True:
            try:
                read_bytes = self._read_on(chunk, budget)
            except FileNotFoundError as error:
                segments = self._segments()
                if self._enter_what_covers(segments):
                    continue
                self._suspect = self._suspect or _Suspect(
                    Path(error.filename), 0, f"cannot be opened: {error.strerror}"
                )
                read_bytes = 0
            if chunk.blocked is not None:
                return chunk
            budget -= read_bytes
            if budget <= 0:
                chunk.more = True
                return chunk
            if read_bytes:
                continue
            assert self._segment is not None
            if self._segment not in segments and self._enter_what_covers(segments):
                continue
            later = self._later(segments)
            if (not later or later[0].first_seq > self.next_seq) and self._enter_what_stands_in(chunk):
                continue
            if not later:
                return chunk
            if self._stops_before(chunk, later[0]):
                return chunk
            if self.waits_at_gaps:
                # Whatever was wrong cost nothing so far; what is wrong next is to be known by its own place.
                self._suspect = None
            # What is left here without a newline is a torn tail: its writer carried on elsewhere.
            self._enter(later[0])

    def first(self) -> Record | None:
        """Return the next record, if there is one; the reader is of no further use after it."""
        files = self._segments()
        if files and isinstance(files[0], Sealed) and self.stream == "events" and self.next_seq == 0:
            with suppress(Unreadable, FileNotFoundError):
                brief = Brief.load(self.piece_dir, files[0])
                self.header = brief.header
                if brief.first.data:
                    return brief.first
        while True:
            chunk = self.read(FIRST_BYTES)
            if chunk.records:
                return chunk.records[0]
            if not chunk.more:
                return None

    def end(self) -> list[Damage]:
        """Return the damage at the very end; for a closed piece that was read to the end."""
        if self._suspect is None:
            return []
        suspect, self._suspect = self._suspect, None
        segment = Segment.parse(suspect.path.name)
        # What was sealed of that segment ends here.
        has_all = any(
            segment is not None and sealed.first_seq <= segment.first_seq < sealed.next_seq == self.next_seq
            for sealed in self._sealed()
        )
        last_seq = self.next_seq - has_all
        return [Damage(suspect.path, suspect.offset, self.next_seq, last_seq, suspect.cause)]

    def torn_bytes(self) -> int:
        """Return how many bytes after the last newline stand in the segment being read."""
        if self._segment is None or isinstance(self._segment, Sealed):
            return 0
        try:
            return max(0, os.stat(self.piece_dir / self._segment.name).st_size - self._offset)
        except OSError:
            return 0

    def _stops_before(self, chunk: Chunk, segment: Segment | Sealed) -> bool:
        """Whether records are missing between what was read and that segment, and are waited for."""
        if self.waits_at_gaps and segment.first_seq > self.next_seq:
            self._stop_at_gap(chunk, segment.first_seq - 1, self._seen_bytes)
        return chunk.gap is not None

    def _stop_at_gap(self, chunk: Chunk, last_seq: int, size_bytes: int) -> None:
        chunk.gap = (self.next_seq, last_seq, size_bytes)
        chunk.blocked = f"{self.stream} {self.next_seq:,} to {last_seq:,} of {self.piece_dir.name} are missing, and may be on their way"
        suspect = self._suspect
        if suspect is not None and self._segment is not None and suspect.path.name == self._segment.name:
            # What is wrong there may be whole the next time.
            self._offset, self._suspect = min(self._offset, suspect.offset), None

    def _enter(self, segment: Segment | Sealed | None) -> None:
        """Begin with a segment."""
        self._segment, self._offset = segment, 0
        self._decoded, self._groups, self._in_place_of = [], None, None

    def _enter_what_covers(self, segments: list[Segment | Sealed]) -> bool:
        """The segment being read is gone: go on in the one that it was sealed into, if it was."""
        # The last of them: where one ends and the next begins, there is more in the next.
        for segment in reversed(segments):
            if isinstance(segment, Sealed) and segment.first_seq <= self.next_seq <= segment.next_seq:
                # The listing of a network file system may name for a while what is gone.
                is_another = segment != self._segment
                if is_another:
                    self._enter(segment)
                return is_another
        return False

    def _enter_what_stands_in(self, chunk: Chunk) -> bool:
        """The segment being read was cut short or damaged since it was sealed: go on in the sealed one, if it is whole."""
        if self._segment is None or isinstance(self._segment, Sealed):
            return False
        for sealed in self._sealed():
            if sealed.first_seq <= self.next_seq < sealed.next_seq and self._is_whole(sealed):
                if self._suspect is not None:
                    at = self._suspect
                    chunk.damage.append(
                        Damage(at.path, at.offset, self.next_seq, self.next_seq - 1, at.cause)
                    )
                    self._suspect = None
                here = place_in_stream(self._segment)
                self._enter(sealed)
                self._in_place_of = here
                return True
        return False

    def _is_whole(self, sealed: Sealed) -> bool:
        if sealed not in self._unreadable:
            with suppress(Unreadable, FileNotFoundError):
                brief = Brief.load(self.piece_dir, sealed)
                if self.log_id in (None, brief.header.log_id) and is_intact(self.piece_dir, brief):
                    return True
            self._unreadable.add(sealed)
        return False

    def _later(self, segments: list[Segment | Sealed]) -> list[Segment | Sealed]:
        """Return what comes after the segment being read."""
        if self._segment is None:
            return segments
        here = self._in_place_of or place_in_stream(self._segment)
        return [segment for segment in segments if place_in_stream(segment) > here]

    def _beginning(self, segments: list[Segment | Sealed]) -> Segment | Sealed:
        """Return the first segment that can hold the next seq, without reading those before it."""
        started = [s for s in segments if s.first_seq <= self.next_seq]
        if not started:
            # What came before is missing.
            return segments[0]
        # A segment that was begun to hold records once more may have been cut short: then they are in the one before.
        while len(started) > 1:
            end_seq = end_of_segment(self.piece_dir, started[-2])
            if end_seq is None or end_seq <= self.next_seq:
                break
            started.pop()
        return started[-1]

    def _segments(self) -> list[Segment | Sealed]:
        return files_of(_names_in(self.piece_dir), self.stream)

    def _sealed(self) -> list[Sealed]:
        return sealed_in(_names_in(self.piece_dir), self.stream)

    def _hint_holds(self) -> bool:
        """Whether a line begins at the hinted byte, and no record before it is missing from the seqs."""
        assert self._segment is not None
        try:
            fd = os.open(self.piece_dir / self._segment.name, OPEN_FLAGS)
        except OSError:
            return False
        try:
            if self._offset == 0:
                return True
            if os.pread(fd, 1, self._offset - 1) != b"\n":
                return False
            line, newline, _ = os.pread(fd, HINT_BYTES, self._offset).partition(b"\n")
        finally:
            os.close(fd)
        if not newline:
            # At the end of what is committed, or before a long line: nothing contradicts the hint.
            return True
        try:
            return bool(unframe(line).get("seq") == self.next_seq)
        except BadLine:
            return False

    def _read_on(self, chunk: Chunk, limit_bytes: int) -> int:
        """Read on in the current segment; return how many bytes that were, 0 at its end.

        Raises `FileNotFoundError` if it is gone.
        """
        if isinstance(self._segment, Sealed):
            return self._read_sealed(chunk, self._segment, limit_bytes)
        return self._read_segment(chunk, limit_bytes)

    def _read_sealed(self, chunk: Chunk, sealed: Sealed, limit_bytes: int) -> int:
        path = self.piece_dir / sealed.name
        try:
            if self._groups is None:
                self.header = Brief.load(self.piece_dir, sealed).header
                if self.log_id not in (None, self.header.log_id):
                    raise Unreadable(f"the segment belongs to another log ({self.header.log_id})")
                has_more = self.next_seq < sealed.next_seq
                self._groups = records_in(self.piece_dir, sealed, self.next_seq) if has_more else iter(())
                self._seen_bytes = os.stat(path).st_size
            while not self._decoded:
                self._decoded = next(self._groups)
        except StopIteration:
            return 0
        except Unreadable as error:
            if self.next_seq < sealed.next_seq and self.waits_at_gaps:
                self._groups = None
                self._stop_at_gap(chunk, sealed.next_seq - 1, os.stat(path).st_size)
                return 0
            if self.next_seq < sealed.next_seq:
                chunk.damage.append(Damage(path, 0, self.next_seq, sealed.next_seq - 1, str(error)))
                self.next_seq, self._suspect = sealed.next_seq, None
            self._groups = iter(())
            return 0
        count = max(1, limit_bytes // _SEALED_RECORD_BYTES)
        taken, self._decoded = self._decoded[:count], self._decoded[count:]
        for record in taken:
            self._take_record(chunk, path, record)
        return len(taken) * _SEALED_RECORD_BYTES

    def _read_segment(self, chunk: Chunk, limit_bytes: int) -> int:
        """Read whole lines."""
        assert self._segment is not None
        path = self.piece_dir / self._segment.name
        try:
            fd = os.open(path, OPEN_FLAGS)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                # No permission, a stale handle, too many files: it may be readable in a moment.
                chunk.blocked = f"{path.name} cannot be opened: {error.strerror}"
                return 0
            self._suspect = self._suspect or _Suspect(path, 0, f"cannot be opened: {error.strerror}")
            return 0
        try:
            self._seen_bytes = os.fstat(fd).st_size
            if self._seen_bytes < self._offset:
                # What is written there from now on begins further up; what was read is known by its seq.
                self._suspect = self._suspect or _Suspect(path, self._seen_bytes, "the file became shorter")
                self._offset = 0
            begin = self._offset
            data = _whole_lines(fd, begin, limit_bytes)
        except OSError as error:
            chunk.blocked = f"{path.name} cannot be read: {error.strerror}"
            return 0
        finally:
            os.close(fd)
        if self._segment != self._refused:
            self._take(chunk, path, data)
        if not isinstance(self._segment, Sealed) and chunk.gap is None:
            self._offset = begin + len(data)
        return len(data)

    def _take(self, chunk: Chunk, path: Path, data: bytes) -> None:
        """Take in the lines at `_offset`, which goes along."""
        lines = data.split(b"\n")
        # `_whole_lines` gives a piece of a line only if it is longer than a line may be.
        too_long = lines.pop()
        if self._offset == 0 and lines and lines[0][18:24] == b'"seq":':
            self._suspect = self._suspect or _Suspect(
                path, 0, "it begins with a record: the header is missing"
            )
        for line in lines:
            try:
                content = unframe(line)
                if "format" in content:
                    self._take_header(Header.of(content))
                else:
                    record = record_of(content)
                    if record.seq == self.next_seq and self._suspect is None:
                        # Nearly every record, for the price of no further call.
                        chunk.records.append(record)
                        self.next_seq += 1
                    elif record.seq > self.next_seq and self.waits_at_gaps:
                        self._stop_at_gap(chunk, record.seq - 1, 0)
                        return
                    else:
                        self._take_record(chunk, path, record)
            except BadLine as error:
                if self._suspect is None:
                    self._suspect = _Suspect(path, self._offset, str(error))
                    if self._enter_what_stands_in(chunk):
                        return
                if isinstance(error, (UnknownFormat, _Foreign)):
                    self._refused = self._segment
                    return
            self._offset += len(line) + 1
        if too_long:
            self._suspect = self._suspect or _Suspect(path, self._offset, "the line is too long")

    def _take_header(self, header: Header) -> None:
        if self.log_id not in (None, header.log_id):
            raise _Foreign(f"the segment belongs to another log ({header.log_id})")
        self.header = header

    def _take_record(self, chunk: Chunk, path: Path, record: Record) -> None:
        if record.seq < self.next_seq:
            return
        if record.seq > self.next_seq or self._suspect is not None:
            suspect = self._suspect or _Suspect(path, self._offset, "the records are missing")
            chunk.damage.append(
                Damage(suspect.path, suspect.offset, self.next_seq, record.seq - 1, suspect.cause)
            )
            self._suspect = None
        chunk.records.append(record)
        self.next_seq = record.seq + 1


def read(
    run_dir: Path | str, stream: str = "events", writer: str | None = None, seq: int = 0
) -> Iterator[Record]:
    """Yield a run's committed records, in order and in bounded memory.

    Without `writer`: those of all primary pieces, which is the run's history. `seq` is where to begin in the
    (first) piece. Damage is passed over; `eventlog verify` reports it.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise RunNotFound(f"there is no run directory {str(run_dir)!r}.")
    for name in [writer] if writer else primaries(run_dir):
        reader = StreamReader(run_dir / name, stream, seq)
        seq = 0
        while True:
            chunk = reader.read(_READ_BYTES)
            yield from chunk.records
            if chunk.blocked is not None:
                raise OSError(f"run {str(run_dir)!r}: {chunk.blocked}. The log itself is intact.")
            if not chunk.more:
                break


def end_of(piece_dir: Path, stream: str = "events") -> tuple[int, int]:
    """Return the stream's next seq and the time of its last record in microseconds, (0, 0) if it has none.

    Reads only the end of the last segments.
    """
    last = next(newest_first(piece_dir, stream), None)
    return (0, 0) if last is None else (last.seq + 1, last.time_us)


def span_of(piece_dir: Path) -> tuple[int, int | None]:
    """Return the next seq of a piece's events, and when the first was logged, where one brief says both (else None)."""
    files = _files_to_the_end(piece_dir, "events")
    if len(files) == 1 and isinstance(files[0], Sealed) and files[0].first_seq == 0:
        with suppress(Unreadable, FileNotFoundError):
            brief = Brief.load(piece_dir, files[0])
            return brief.last.seq + 1, brief.first.time_us
    return end_of(piece_dir)[0], None


def last_step_of(piece_dir: Path) -> int | None:
    """Return the step of the piece's last metrics; reads the ends of its segments."""
    for file in reversed(_files_to_the_end(piece_dir, "events")):
        if isinstance(file, Sealed):
            with suppress(Unreadable, FileNotFoundError):
                step = Brief.load(piece_dir, file).last_step
                if step is not None:
                    return step
        with suppress(FileNotFoundError):
            for record in _backwards_in(piece_dir, file):
                if record.kind == "metrics":
                    return record.step
    return None


def newest_first(piece_dir: Path, stream: str = "events") -> Iterator[Record]:
    """Yield the stream's committed records, the newest first; damage is passed over.

    The very first may come without its data: of `events` only where they are long.
    """
    oldest_seq: int | None = None
    for _ in range(_LOOK_AGAIN):
        try:
            for file in reversed(_files_to_the_end(piece_dir, stream)):
                for record in _backwards_in(piece_dir, file):
                    if oldest_seq is None or record.seq < oldest_seq:
                        oldest_seq = record.seq
                        yield record
            return
        except FileNotFoundError:
            # Sealed, merged or removed since they were listed: what replaced them is in the next list.
            continue


def _names_in(piece_dir: Path) -> list[str]:
    try:
        return os.listdir(piece_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files_to_the_end(piece_dir: Path, stream: str) -> list[Segment | Sealed]:
    """Return the files that hold the stream; the last has its end, also where a segment was cut since it was sealed."""
    # Of ten thousand runs, most names are of other streams.
    names = [name for name in _names_in(piece_dir) if name.startswith(stream)]
    files = files_of(names, stream)
    beside = [sealed for sealed in sealed_in(names, stream) if sealed not in files]
    if beside and beside[-1].next_seq > (end_of_segment(piece_dir, files[-1]) or 0):
        files.append(beside[-1])
    return files


def _backwards_in(piece_dir: Path, file: Segment | Sealed) -> Iterator[Record]:
    if isinstance(file, Sealed):
        with suppress(Unreadable):
            # Most want to know the newest, and need no Parquet for it.
            last = Brief.load(piece_dir, file).last
            yield last
            for records in records_in(piece_dir, file, newest_first=True):
                yield from (record for record in reversed(records) if record.seq < last.seq)
        return
    try:
        fd = os.open(piece_dir / file.name, OPEN_FLAGS)
    except FileNotFoundError:
        raise
    except OSError:
        return
    with open(fd, "rb"):
        yield from backwards(fd)


def backwards(fd: int) -> Iterator[Record]:
    """Yield a segment's committed records, the newest first; damage is passed over.

    Memory is one read, or one line where a line is longer.
    """
    end = os.fstat(fd).st_size
    want, is_committed = TAIL_BYTES, False
    # What was read of the line that begins further up, from its end on.
    parts: list[bytes] = []
    while end > 0:
        begin = max(0, end - want)
        data, end = os.pread(fd, end - begin, begin), begin
        want = min(4 * want, CHUNK_BYTES)
        if not is_committed:
            # What follows the last newline was never committed.
            data, newline, _ = data.rpartition(b"\n")
            is_committed = newline != b""
            if not is_committed:
                continue
        # The first may begin further up: only at the start of the file it is whole.
        first, *lines = data.split(b"\n")
        if lines:
            lines[-1] += b"".join(reversed(parts))
            parts = []
        parts.append(first)
        if begin == 0:
            lines.insert(0, b"".join(reversed(parts)))
        elif sum(map(len, parts)) > LINE_MAX_BYTES:
            # It is no record, and need not be kept to see that: none has a newline at its end.
            parts = [b"\n"]
        for line in reversed(lines):
            with suppress(BadLine):
                content = unframe(line)
                if "seq" in content:
                    yield record_of(content)


def end_of_segment(piece_dir: Path, segment: Segment | Sealed) -> int | None:
    """Return the seq after the last one in a segment, or None: it has none, or cannot be read."""
    if isinstance(segment, Sealed):
        return segment.next_seq
    with suppress(OSError), open(os.open(piece_dir / segment.name, OPEN_FLAGS), "rb") as file:
        last = next(backwards(file.fileno()), None)
        return None if last is None else last.seq + 1
    return None


def writers(run_dir: Path) -> list[str]:
    """Return the names of all writers' directories: the primary pieces in order, then the others by name."""
    primary = primaries(run_dir)
    others = sorted(name for name in os.listdir(run_dir) if is_writer_name(name) and name not in set(primary))
    return [*primary, *others]


def pieces_of(run_dir: Path, rank: int, known: Sequence[str] = ()) -> list[str]:
    """Return the directories of what one rank wrote, in the order of its history.

    The primary pieces have numbers. Those of another rank are ordered by the clock of the host that began them, but for
    the `known` ones, by their tokens: they come first and in that order, since hosts' clocks differ.
    """
    if rank == 0:
        return primaries(run_dir)
    timed = []
    for name in os.listdir(run_dir):
        if rank_of_writer(name) == rank:
            reader = StreamReader(run_dir / name)
            reader.first()
            token, time_us = (reader.header.token, reader.header.time_us) if reader.header else ("", 0)
            number = known.index(token) if token in known else len(known)
            timed.append((number, time_us, name))
    return [name for _, _, name in sorted(timed)]


def find_runs(root: Path, skip: Callable[[str], bool] = lambda run_dir: False) -> Iterator[Path]:
    """Yield the run directories below `root`, sorted: `<root>/<project>/<run_id>` with a `run.json` in it.

    Those are not looked at for which `skip("<project>/<run_id>")` is true.
    """
    for project in _directories(root):
        directory = root / project
        for name in _directories(directory):
            # Another user's run, below a root that is shared, may not let us look.
            if not skip(f"{project}/{name}") and os.path.isfile(f"{directory}/{name}/{RUN_FILE}"):
                yield directory / name


def _directories(parent: Path) -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _whole_lines(fd: int, offset: int, limit_bytes: int) -> bytes:
    """Return the committed lines at `offset`: up to `limit_bytes` of them, or one line however long it is.

    A line over `LINE_MAX_BYTES` comes back in pieces without a newline, to be skipped.
    """
    want = max(limit_bytes, 1)
    while True:
        data = os.pread(fd, want, offset)
        whole = data.rfind(b"\n") + 1
        if want > limit_bytes and whole:
            # Enlarged for one long line: what follows it waits for the next read.
            return data[: data.find(b"\n") + 1]
        if whole or len(data) < want:
            return data[:whole]
        if want > LINE_MAX_BYTES:
            return data
        want = min(4 * want, LINE_MAX_BYTES + 1)
