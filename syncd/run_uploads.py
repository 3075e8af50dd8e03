"""Brings a run's files to one sink beside its lines: a task of its own, so that a large file holds no line up.

    files ──Track──▶ Uploads ──step──▶ PUT ──▶ done ──▶ `uploaded`, in a batch of lines ──told──▶ cursor
    made by syncd ──────▶ ┘

Invariants
----------
* One step is under way at a time, and none when the run is let go.
* What the cursor says is stored was told to the server, which acknowledged it.
* A file that is not here is asked for again while the run may change, until it has stood still for a minute.
* A file that is made from the log is sent when it differs from what is there, and after all that was logged.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from eventlog.cursor import Cursor
from syncd.attach import Attached
from syncd.shipper import Backoff, Outcome, Verdict
from syncd.track import Patience, Track, may_change
from syncd.transfer import Content
from syncd.uploads import Done, Uploads
from syncd.wandb_api import WandbApi

# File records are small, and each stands for a request or two.
READ_BYTES = 64 * 1024


class RunUploads:
    """What one run still owes to one sink besides its lines."""

    def __init__(
        self,
        run_dir: Path,
        log_id: str,
        api: WandbApi,
        attached: Attached,
        cursor: Cursor,
        wake: Callable[[], object],
        clock: Callable[[], float],
        standstill_s: float,
    ) -> None:
        self.backoff = Backoff()
        self._wake = wake
        self._clock = clock
        self._run_dir = run_dir
        self._standstill_s = standstill_s
        self._patience = Patience(standstill_s)
        self._awaited: str | None = None
        """Which file of those that were logged is not here yet."""
        self._track = Track(run_dir, "files", log_id, standstill_s)
        self._place: dict[str, Any] = {}
        self.not_stored: dict[str, int] = {}
        """How many files and artifacts are not on the server, by reason."""
        if cursor.files is not None:
            self.not_stored = cursor.files["not_stored"]
            if "writer" in cursor.files:
                self._place = cursor.files
                self._track.go_on(cursor.files)
        self._uploads = Uploads(
            run_dir, api, attached.entity, attached.project, attached.run_id, self.not_stored, self._may_come
        )
        self.made = dict(cursor.made)
        """What each file that is made from the log was made of, as it is there, or was given up."""
        self._offered: dict[str, str] = {}
        # Where each portion that was read ends, and what was lost until there: what was read ahead is read again.
        self._portions: deque[tuple[str, int, int]] = deque()
        self._lost = self._track.lost
        self._telling: Done | None = None
        self._step: asyncio.Task[Outcome] | None = None

    @property
    def writer(self) -> str:
        """The piece whose files are read; empty before the first."""
        return self._track.writer

    @property
    def wants_next_piece(self) -> bool:
        return self._track.ended or not self._track.writer

    @property
    def has_work(self) -> bool:
        """Whether something that was logged so far is not told."""
        return self._uploads.has_work or self._uploads.done is not None or self._track.more

    @property
    def is_under_way(self) -> bool:
        """Whether something is on its way to the server."""
        return self._step is not None and not self._step.done()

    @property
    def has_untold(self) -> bool:
        """Whether something is there that the server was not told of: begun anew, it would be sent again."""
        return self._step is not None or self._uploads.done is not None

    @property
    def is_telling_all(self) -> bool:
        """Whether all that was logged so far is stored or given up, and told with what `to_tell` returned."""
        return not self._uploads.has_work and not self._track.more and self._telling == self._uploads.done

    @property
    def has_read_all(self) -> bool:
        """Whether no further file of this piece can come."""
        return self._track.ended

    @property
    def lost(self) -> int:
        return self._track.lost

    @property
    def blocked(self) -> str | None:
        """Why what comes next cannot be read or sent just now."""
        return self._track.blocked or self._awaited

    @property
    def is_waiting(self) -> bool:
        return self._track.is_waiting

    def follow(self, writer: str) -> None:
        """Go on with the files of that piece."""
        self._track.follow(writer)

    def want_made(self, path: str, digest: str, content: Callable[[], Content]) -> bool:
        """Let a file that is made from the log be there as `digest` says; say whether it is stored so."""
        if path in self._offered and not self.has_work:
            # It was given up, and is counted; the same would be given up again.
            self.made[path] = self._offered.pop(path)
        if self.made.get(path) == digest:
            return True
        done = self._uploads.done
        if self._offered.get(path) == digest and done is not None and path in done.paths:
            return True
        if path not in self._offered:
            self._offered[path] = digest
            self._uploads.offer_made({path: content()})
        return False

    def settle(self, now_s: float) -> Outcome | None:
        """Take in what became of the step that was under way; return the trouble that it met, if it did."""
        trouble = None
        if self._step is not None and self._step.done():
            outcome, self._step = self._step.result(), None
            self._awaited = outcome.reason if outcome.verdict is Verdict.AWAITED else None
            if self._awaited is not None:
                self._patience.waits_for(self._awaited, now_s)
            if outcome.verdict is Verdict.ACK:
                self.backoff.reset()
            else:
                self.backoff.failed(self._clock(), random.random(), outcome.retry_after_s)
                trouble = outcome
        if not self.has_work:
            self._patience.begin_anew()
        return trouble

    def read(self, is_closed: bool, now_s: float) -> None:
        """Take in what was logged next, unless something is left to do."""
        if self._step is None and not self._uploads.has_work and self._track.writer:
            records = self._track.read(READ_BYTES, is_closed, now_s)
            self._uploads.offer(records, self._track.writer)
            if records:
                self._portions.append((self._track.writer, self._track.next_seq, self._track.lost))

    def begin(self, now_s: float) -> None:
        """Let the next step be under way, if there is one and it is time."""
        if self._step is None and self._uploads.has_work and now_s >= self.backoff.not_before_s:
            self._step = asyncio.ensure_future(self._uploads.step())
            self._step.add_done_callback(lambda _: self._wake())

    def due_s(self) -> float:
        """Return when there is something more to do without a hint."""
        if self._telling is None and self._uploads.done is not None:
            # What was stored while something else was being told is yet to be told itself.
            return float("-inf")
        if self._step is not None:
            return float("inf")
        return self.backoff.not_before_s if self._uploads.has_work or self._track.more else float("inf")

    def to_tell(self) -> list[str]:
        """Return the paths that are stored and to be told to the server."""
        self._telling = self._uploads.done
        return list(self._telling.paths) if self._telling is not None else []

    def told(self, refused: Iterable[str] = ()) -> dict[str, Any]:
        """The server answered to what `to_tell` returned; return what the cursor keeps of it.

        `refused` has a reason for each path that the server did not want to hear of.
        """
        if self._telling is None:
            return {}
        done, self._telling = self._telling, None
        done = self._uploads.told(done, refused)
        self.made |= {path: self._offered.pop(path) for path in done.paths if path in self._offered}
        self.not_stored = dict(done.not_stored)
        if done.place is not None:
            writer, seq = done.place
            while self._portions and self._portions[0][0] == writer and self._portions[0][1] <= seq:
                self._lost = self._portions.popleft()[2]
            self._place = {"writer": writer, "seq": seq, "place": None, "lost": self._lost}
        return {"made": dict(self.made), "files": {**self._place, "not_stored": self.not_stored}}

    def _may_come(self) -> bool:
        """Whether a file that is not here may be on its way."""
        is_given_up = self._patience.is_over or not self._standstill_s
        return not is_given_up and may_change(self._run_dir, self.writer, self._standstill_s)

    def cancel(self) -> None:
        """Leave what is under way; the next process does it again."""
        if self._step is not None:
            self._step.cancel()
