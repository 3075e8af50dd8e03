"""Logs written by hand, and a vocabulary of what can happen to them.

The bytes come from `record` and `segment` alone, so that a test of the reading half does not trust the writing half.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eventlog.piece import Piece, RunIdentity, claim_primary
from eventlog.record import encode
from eventlog.segment import Header, Segment

TIME_US = 1_763_712_000_000_000


@dataclass
class HandmadePiece:
    """One piece whose segments are written here; `seq` is the next."""

    identity: RunIdentity
    piece: Piece
    stream: str = "events"
    seq: int = 0
    lines: list[bytes] = field(default_factory=list)
    """Every record's line, in order."""
    segment: Path = Path()

    def new_segment(self, first_seq: int | None = None, attempt: int = 0) -> Path:
        first_seq = self.seq if first_seq is None else first_seq
        self.segment = self.piece.dir / Segment(self.stream, first_seq, attempt).name
        header = Header(
            self.identity.log_id, self.piece.writer, self.piece.token, self.stream, first_seq, TIME_US
        )
        self.segment.write_bytes(header.encode())
        return self.segment

    def log(self, kind: str = "metrics", step: int | None = None, commit: bool = False, **data: Any) -> bytes:
        """Append one record to the current segment; return its line."""
        if self.segment == Path():
            self.new_segment()
        line = encode(self.seq, TIME_US + self.seq * 1000, kind, data, step, commit)
        self.append(line)
        self.lines.append(line)
        self.seq += 1
        return line

    def append(self, data: bytes) -> None:
        """Add raw bytes: a torn tail, or worse."""
        with open(self.segment, "ab") as file:
            file.write(data)

    def cut(self, size_bytes: int) -> None:
        """Let the segment end after so many bytes, as a crash in the middle of a write would."""
        with open(self.segment, "r+b") as file:
            file.truncate(size_bytes)

    def overwrite(self, offset: int, data: bytes) -> None:
        """Change bytes in place, as a bad disk would."""
        with open(self.segment, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def offset_of(self, seq: int) -> int:
        """Return where the line of that record begins in the current segment."""
        return self.segment.read_bytes().index(self.lines[seq])

    def stand_still(self, for_s: float = 3600.0) -> None:
        """Let nothing have come to the piece for so long."""
        for path in (*self.piece.dir.iterdir(), self.piece.dir):
            os.utime(path, (time.time() - for_s,) * 2)

    def die(self) -> None:
        """Let the lock go, as a killed writer does."""
        self.piece.release()


def handmade_run(root: Path, run_id: str = "run", project: str = "demo", **start: Any) -> HandmadePiece:
    """Begin a run with a `start` record."""
    identity = RunIdentity.new(project, run_id, None)
    identity.publish(identity.directory(root))
    return resumed(identity, root, **start)


def resumed(identity: RunIdentity, root: Path, **start: Any) -> HandmadePiece:
    """Begin another piece of a run with a `start` record."""
    piece = HandmadePiece(identity, claim_primary(identity.directory(root)))
    piece.log("start", **{"config": {}, **start})
    return piece
