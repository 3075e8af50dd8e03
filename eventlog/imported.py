"""Writes the log of a run that another program recorded: records that have their times already.

    records from the first on, each time ──append──▶ those that are not there yet ──▶ segments
                                    token ──begin──▶ segments of another token go

Invariants
----------
* Given the same events and console again, it writes none twice: their number says which are there. So whoever
  translates a file that still grows begins at its beginning each time, and a killed translation is begun again.
* A token is that of one log: begun with another, the piece has nothing of what was there before, wherever the one who
  replaced it was killed.
* Its lock is held while it is open: to a reader the writer lives for as long.
* What `flush` returned from survives a power cut.

Unlike a training run's writer it is not in the way of anything: a full disk raises `OSError`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eventlog.parquet import Brief, Unreadable
from eventlog.piece import LOCK_FILE, RunIdentity, hold, sync_directory, write_lock_text
from eventlog.reader import end_of
from eventlog.record import BadLine, encode
from eventlog.segment import ROTATE_BYTES, Header, Sealed, Segment, next_attempt, sealed_in, segments_in

_BUFFER_BYTES = 256 * 1024
_HEADER_MAX_BYTES = 4096
_STREAMS = ("events", "console", "files")


class ImportedPiece:
    """One piece of an imported run."""

    def __init__(self, run_dir: Path, identity: RunIdentity, writer: str, lock_fd: int) -> None:
        self.dir = run_dir / writer
        self._identity = identity
        self._lock_fd = lock_fd
        self._streams: dict[str, _Stream] = {}

    @classmethod
    def open(cls, run_dir: Path, identity: RunIdentity, writer: str) -> ImportedPiece | None:
        """Open the piece, which may be there already; return None while another process has it open."""
        directory = run_dir / writer
        directory.mkdir(mode=0o700, exist_ok=True)
        lock_fd = _locked(directory)
        return cls(run_dir, identity, writer, lock_fd) if lock_fd is not None else None

    def begin(self, token: str) -> None:
        """Get ready to take the records of the log of that token, from its first on."""
        headers = {path: header_of(path) for path in segments_of(self.dir)}
        is_begun = any(header is not None and header.token == token for header in headers.values())
        for path, header in headers.items():
            # In a log that was begun, one whose header is lost is part of it: its records prove themselves.
            if not is_begun or (header is not None and header.token != token):
                _remove(path)
        self._streams = {
            stream: _Stream(self.dir, self._identity.log_id, self.dir.name, token, stream)
            for stream in _STREAMS
        }
        # What is known of a file changes between two looks at it: whoever adds one knows what is there.
        self._streams["files"].go_to_end()

    def append(
        self,
        stream: str,
        kind: str,
        data: Mapping[str, Any],
        time_us: int,
        step: int | None = None,
        commit: bool = False,
    ) -> None:
        """Take the next record of `events` or `console`, and write it unless it is there; of `files`, a new one."""
        self._streams[stream].append(kind, data, time_us, step, commit)

    def flush(self) -> None:
        """Make all that was appended durable."""
        for stream in self._streams.values():
            stream.close()
        sync_directory(self.dir)

    def close(self) -> None:
        """Let the piece go: to a reader its writer is dead from now on."""
        for stream in self._streams.values():
            stream.close()
        os.close(self._lock_fd)


class _Stream:
    """One stream: counts what it is given, and writes what is new."""

    def __init__(self, piece_dir: Path, log_id: str, writer: str, token: str, stream: str) -> None:
        self._dir = piece_dir
        self._identity = (log_id, writer, token, stream)
        self._there = end_of(piece_dir, stream)[0]
        self._seq = 0
        self._fd = -1
        self._size = 0
        self._lines: list[bytes] = []
        self._waiting_bytes = 0

    def append(
        self, kind: str, data: Mapping[str, Any], time_us: int, step: int | None, commit: bool
    ) -> None:
        seq, self._seq = self._seq, self._seq + 1
        if seq < self._there:
            return
        line = encode(seq, time_us, kind, data, step, commit)
        if self._fd < 0 or self._size + self._waiting_bytes + len(line) > ROTATE_BYTES:
            self.close()
            self._create(seq, time_us)
        self._lines.append(line)
        self._waiting_bytes += len(line)
        if self._waiting_bytes >= _BUFFER_BYTES:
            self._write()

    def go_to_end(self) -> None:
        self._seq = self._there

    def close(self) -> None:
        """Write and sync what there is; the next record begins another segment."""
        if self._fd < 0:
            return
        try:
            self._write()
            os.fsync(self._fd)
        finally:
            os.close(self._fd)
            self._fd = -1

    def _create(self, first_seq: int, time_us: int) -> None:
        log_id, writer, token, stream = self._identity
        # A killed translation may have left a segment of that seq, with nothing whole in it.
        attempt = next_attempt(os.listdir(self._dir), stream, first_seq)
        path = self._dir / Segment(stream, first_seq, attempt).name
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        header = Header(log_id, writer, token, stream, first_seq, time_us).encode()
        self._lines, self._waiting_bytes, self._size = [header], len(header), 0

    def _write(self) -> None:
        data = memoryview(b"".join(self._lines))
        self._size += len(data)
        self._lines, self._waiting_bytes = [], 0
        while data:
            data = data[os.write(self._fd, data) :]


def segments_of(piece_dir: Path) -> list[Path]:
    """Return the piece's segments, and its sealed ones, of each stream in their order."""
    names = os.listdir(piece_dir)
    found: list[Path] = []
    for stream in _STREAMS:
        found += [piece_dir / segment.name for segment in segments_in(names, stream)]
        found += [piece_dir / sealed.name for sealed in sealed_in(names, stream)]
    return found


def header_of(path: Path) -> Header | None:
    """Return the segment's header, or None if there is none that can be read."""
    sealed = Sealed.parse(path.name)
    if sealed is not None:
        try:
            return Brief.load(path.parent, sealed).header
        except Unreadable:
            return None
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        line, newline, _ = os.read(fd, _HEADER_MAX_BYTES).partition(b"\n")
    finally:
        os.close(fd)
    try:
        return Header.decode(line) if newline else None
    except BadLine:
        return None


def _remove(path: Path) -> None:
    sealed = Sealed.parse(path.name)
    os.unlink(path)
    if sealed is not None:
        (path.parent / sealed.brief_name).unlink(missing_ok=True)


def _locked(directory: Path) -> int | None:
    """Return a descriptor that holds the piece's lock, or None if another process does."""
    fd = hold(directory / LOCK_FILE)
    if fd is not None:
        write_lock_text(fd, 0)
    return fd
