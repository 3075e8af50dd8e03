"""Follows one stream of a run through its pieces, each to its end before the next.

    names of the pieces ──follow──▶ Track ──read──▶ records, in order

Invariants
----------
* Records come in the order of the run's history; damage is passed over and counted.
* A piece has ended when nobody can add to it and all of it was read; that was known before the last read.
* A track that goes on from its place gives what it would have given without the pause.

Which pieces there are, and whether one is closed, is asked of the caller.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eventlog.reader import StreamReader
from eventlog.record import Record


class Track:
    """One stream of one run."""

    def __init__(self, run_dir: Path, stream: str, log_id: str) -> None:
        self.writer = ""
        """The piece that is being read; empty before the first."""
        self.more = False
        """There is more on the disk right now."""
        self.ended = False
        """All of this piece was read, and nothing will be added to it."""
        self.blocked: str | None = None
        """Why a segment that is there cannot be read just now."""
        self.lost = 0
        """How many records were damaged or missing."""
        self._run_dir = run_dir
        self._stream = stream
        self._log_id = log_id
        self._reader: StreamReader | None = None

    def follow(self, writer: str) -> None:
        """Go on with the beginning of that piece."""
        self._read_from(writer, 0, None)

    def go_on(self, place: dict[str, Any]) -> None:
        """Go on from a `place` that was remembered."""
        hint = place["place"]
        self.lost = place["lost"]
        self._read_from(place["writer"], place["seq"], (hint[0], hint[1]) if hint else None)

    def place(self) -> dict[str, Any] | None:
        """Return where the next record is, to be remembered; None before the first piece."""
        if self._reader is None:
            return None
        return {
            "writer": self.writer,
            "seq": self._reader.next_seq,
            "place": self._reader.place,
            "lost": self.lost,
        }

    @property
    def next_seq(self) -> int:
        return self._reader.next_seq if self._reader is not None else 0

    def read(self, limit_bytes: int, is_closed: bool) -> list[Record]:
        """Return the next records of the piece.  `is_closed` says that it could not grow any more when asked."""
        assert self._reader is not None
        if self.ended:
            return []
        chunk = self._reader.read(limit_bytes)
        damage = chunk.damage
        self.more = chunk.more
        self.blocked = chunk.blocked
        if chunk.blocked is not None:
            return chunk.records
        # Nothing is written to any stream after an `exit`.
        if not chunk.more and (is_closed or (chunk.records and chunk.records[-1].kind == "exit")):
            self.ended = True
            damage = damage + self._reader.end()
        self.lost += sum(found.lost for found in damage)
        return chunk.records

    def _read_from(self, writer: str, seq: int, hint: tuple[str, int] | None) -> None:
        self.writer = writer
        self.ended = self.more = False
        self._reader = StreamReader(self._run_dir / writer, self._stream, seq, hint, self._log_id)
