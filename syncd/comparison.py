"""Finds out, beside the loop, how much of a run is on the server that another client may have brought there.

    log ──Fold──▶ rows ─────┐
                            ├─ attach.compare ──▶ Overlap
    W&B ──read_back──▶ rows ┘

Invariants
----------
* Nothing is changed, here or there.
* Every row that is there is looked at: what cannot be told for certain comes out as a difference.
* It runs in a thread, and ends soon after `cancel`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from eventlog.reader import read
from syncd.attach import Overlap, compare
from syncd.fold import EVENTS, HISTORY, Bases, Fold
from syncd.read_back import CannotRead, read_back


class Comparison:
    """One run's rows against those of one run on the server."""

    def __init__(
        self,
        run_dir: Path,
        pieces: list[str],
        base_url: str,
        key: str,
        run: str,
        last_event_s: float | None,
        bases: Bases | None = None,
    ) -> None:
        """`bases` is where an earlier log of the run began there, if one did."""
        self.overlap: Overlap | None = None
        self.trouble: str | None = None
        """Why it could not be found out."""
        self.rows_read = 0
        self._run_dir = run_dir
        self._pieces = pieces
        self._at = (base_url, key, run)
        self._last_event_s = last_event_s
        self._bases = bases or Bases()
        self._events_there = 0
        self._is_cancelled = threading.Event()
        threading.Thread(target=self._run, name=f"comparison {run}", daemon=True).start()

    @property
    def is_over(self) -> bool:
        return self.overlap is not None or self.trouble is not None

    def cancel(self) -> None:
        self._is_cancelled.set()

    def _run(self) -> None:
        try:
            with read_back(*self._at) as api:
                # What the rows are asked of.
                api.description()
                found = compare(self._ours(), self._theirs(api.rows(0, None)))
            self.overlap = replace(found, events_there=self._events_there)
        except CannotRead as error:
            self.trouble = str(error)
        except Exception as error:  # noqa: BLE001 - the top of a thread: whoever waits must hear of it
            self.trouble = f"the rows could not be compared: {error!r}"

    def _theirs(self, rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            if self._is_cancelled.is_set():
                raise CannotRead("it was not waited for.")
            self.rows_read += 1
            yield row

    def _ours(self) -> Iterator[dict[str, Any]]:
        fold, events = Fold(self._bases), 0
        for name in self._pieces:
            fold.begin_piece()
            for record in read(self._run_dir, "events", name):
                for line in fold.feed(record):
                    if line.file == HISTORY:
                        yield json.loads(line.text)
                    elif line.file == EVENTS:
                        events += 1
                        if json.loads(line.text).get("_timestamp") == self._last_event_s:
                            self._events_there = events
