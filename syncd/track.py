"""Follows one stream of a run through its pieces, each to its end before the next.

    names of the pieces ──follow──▶ Track ──read──▶ records, in order

Invariants
----------
* Records come in the order of the run's history; damage is passed over and counted.
* Records that are missing before others are waited for as long as the piece may change, and no longer than it stands
  still there for a minute: a directory that is being copied shows any part of it first.
* A piece has ended when nobody can add to it and all of it was read; that was known before the last read.
* A track that goes on from its place gives what it would have given without the pause.

Which pieces there are, and whether one is closed, is asked of the caller.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventlog import piece as pieces
from eventlog.reader import StreamReader
from eventlog.record import Record

# What is missing is on its way for as long as something of it comes at least this often.
STANDSTILL_S = 60.0


@dataclass(slots=True)
class Patience:
    """For how long to wait for what is missing.  Pure: the caller says what time it is."""

    standstill_s: float
    is_over: bool = False
    """It was waited for in vain. So is no other thing, until `begin_anew`: damage in many places costs one wait."""
    _missing: object = None
    _since_s: float = 0.0

    def waits_for(self, missing: object, now_s: float) -> bool:
        """Whether to go on waiting; `missing` changes when something of it comes.

        >>> patience = Patience(60.0)
        >>> [patience.waits_for(*at) for at in (("b, c", 0), ("b, c", 59), ("c", 60), ("c", 119), ("c", 120))]
        [True, True, True, True, False]
        """
        if missing != self._missing:
            self._missing, self._since_s = missing, now_s
        self.is_over = self.is_over or now_s - self._since_s >= self.standstill_s
        return not self.is_over

    def end(self) -> None:
        self.is_over = True

    def begin_anew(self) -> None:
        self.is_over, self._missing = False, None


def may_change(run_dir: Path, writer: str, standstill_s: float) -> bool:
    """Whether something may come to that piece: its writer may live, or somebody was at its files a moment ago."""
    if not pieces.lock_owner_is_gone(run_dir / writer):
        return True
    changed_s = _changed_s((run_dir / writer, run_dir / "files"))
    return abs(time.time() - changed_s) < standstill_s


def _changed_s(directories: Iterable[Path]) -> float:
    """Return when something was last made, changed or removed there."""
    newest_s = 0.0
    for directory in directories:
        try:
            with os.scandir(directory) as files:
                times = [file.stat(follow_symlinks=False).st_mtime for file in files]
            newest_s = max(newest_s, os.stat(directory).st_mtime, *times)
        except OSError:
            # Not there yet, or something went while we looked: then there will be another look.
            continue
    return newest_s


class Track:
    """One stream of one run."""

    def __init__(self, run_dir: Path, stream: str, log_id: str, standstill_s: float) -> None:
        self.writer = ""
        """The piece that is being read; empty before the first."""
        self.more = False
        """There is more on the disk right now."""
        self.ended = False
        """All of this piece was read, and nothing will be added to it."""
        self.blocked: str | None = None
        """Why a segment that is there cannot be read just now."""
        self.is_waiting = False
        """Records are missing, and may be on their way: `blocked` says which."""
        self.lost = 0
        """How many records were damaged or missing."""
        self._standstill_s = standstill_s
        self._patience = Patience(standstill_s)
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

    def read(self, limit_bytes: int, is_closed: bool, now_s: float) -> list[Record]:
        """Return the next records of the piece.  `is_closed` says that it could not grow any more when asked."""
        assert self._reader is not None
        if self.ended:
            return []
        self._reader.waits_at_gaps = not self._patience.is_over
        chunk = self._reader.read(limit_bytes)
        damage = chunk.damage
        self.more = chunk.more
        self.blocked = chunk.blocked
        self.is_waiting = chunk.gap is not None and self._waits_for(chunk.gap, now_s)
        if chunk.gap is not None and not self.is_waiting:
            # The next read passes over what is missing.
            self.blocked, self.more = None, True
        if chunk.blocked is not None:
            self.lost += sum(found.lost for found in damage)
            return chunk.records
        if not chunk.more:
            self._patience.begin_anew()
        # Nothing is written to any stream after an `exit`.
        if not chunk.more and (is_closed or (chunk.records and chunk.records[-1].kind == "exit")):
            self.ended = True
            damage = damage + self._reader.end()
        self.lost += sum(found.lost for found in damage)
        return chunk.records

    def _waits_for(self, gap: object, now_s: float) -> bool:
        if not may_change(self._run_dir, self.writer, self._standstill_s):
            self._patience.end()
        return self._patience.waits_for(gap, now_s)

    def _read_from(self, writer: str, seq: int, hint: tuple[str, int] | None) -> None:
        self.writer = writer
        self.ended = self.more = self.is_waiting = False
        self._patience.begin_anew()
        self._reader = StreamReader(self._run_dir / writer, self._stream, seq, hint, self._log_id)
