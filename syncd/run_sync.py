"""Brings one run to one sink: reads, folds, ships, and remembers how far it came.

    events ──Track──▶ Fold ────┐
    console ─Track──▶ Console ─┴▶ Shipper ──▶ WandbApi
    files ───Track──▶ RunUploads ──────────────▶ │
    alerts ─────────▶ Alerts ──────────────────▶ │
                               └─ cursor ◀─ ack ─┘

Invariants
----------
* The attach record is durable before the first line is sent.
* A cursor counts for the log that it was written for. Where W&B's files were made into a log anew, what is on the
  server is compared with it before anything is sent.
* The cursor's fold is the state at a place below which every line, the summary and the config are acknowledged;
  going on from it sends nothing else again but the batch that was in flight.
* `complete` is said when nothing of the run is left here: no line, no file, no alert.
* A run is written to one sink by one process at a time: a lock is held while it is open here.
* Trouble is kept in `trouble` for the caller; only a broken log on disk may raise.

`turn` does one thing, at most a request or two, and says when it wants to be called again.  It never sleeps.
"""

from __future__ import annotations

import json
import logging
import random
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from eventlog import cursor as cursors
from eventlog import piece as pieces
from eventlog.cursor import Cursor, Lease, Sink
from eventlog.errors import NotARun
from eventlog.piece import STALE_S, RunIdentity
from eventlog.reader import StreamReader, end_of, pieces_of, read
from eventlog.record import json_of
from syncd import attach, metadata
from syncd.alerts import Alerted, Alerts, in_a_log_made_anew
from syncd.attach import Attach, Attached, Compare, Park, Wait
from syncd.comparison import Comparison
from syncd.console import Console, output_text
from syncd.fold import COMPLETE_ROWS, CONSOLE, HISTORY, SUMMARY, Bases, Fold, Line
from syncd.http import Answer, dig
from syncd.run_files import CONFIG, METADATA, config_yaml, metadata_json
from syncd.run_uploads import RunUploads
from syncd.shipper import FLUSH_S, Backoff, Batch, Outcome, Pace, Shipper, Verdict
from syncd.status import A_COPY, NOTHING_HEARD, TAKEN_FOR_THERE, Progress, files_left, progress
from syncd.track import STANDSTILL_S, Track
from syncd.transfer import Made, MadeOnDisk, outcome_of_answer
from syncd.wandb_api import WandbApi

log = logging.getLogger("syncd")

# Lines come out a little larger than the records they are made of: this much of a log makes one full batch.
READ_BYTES = 640 * 1024
# Console text and file records are read in smaller portions, beside the events.
READ_BESIDE_BYTES = 128 * 1024
# A power cut may cost this much of the cursor; what is sent again then is already where it goes.
DURABLE_S = 30.0
# How often a run is looked at without a hint: while it grows, while it may, and when it is over.
HOT_S, WARM_S, COLD_S = 1.0, 10.0, 60.0
LOCK_BUSY_S = 1.0
COMPARED_S = 0.2
DAMAGED = "damaged or missing in the log"
UNREADABLE = "none of its records can be read: `eventlog verify` shows the damage"
OFFLINE_MODE = "logged with mode=offline: `syncd sync` uploads it"
REWOUND = (
    "it goes back to step {step:g}, and what is there behind that cannot be taken back here. `wandb sync` of that "
    "piece's directory can; `--force append` sends its rows behind those that are there."
)
GONE = (
    "W&B does not have this run any more. Was it deleted there, or may the key not see it? "
    "`syncd retry RUN --new-id` uploads it as a run of its own."
)


class RunSync:
    """One run on its way to one sink.  With a `rank` above 0: what that rank wrote, as a run of its own."""

    def __init__(
        self,
        run_dir: Path,
        sink: Sink,
        api: WandbApi,
        *,
        rank: int = 0,
        asked_for: bool = False,
        choice: str | None = None,
        edits: metadata.Edits = metadata.NO_EDITS,
        flush_s: float = FLUSH_S,
        steady_s: float = attach.STEADY_S,
        standstill_s: float = STANDSTILL_S,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        self.run_dir = run_dir
        self.identity = RunIdentity.load(run_dir)
        self.sink = sink
        self.rank = rank
        self.trouble: Outcome | None = None
        """Why the last turn did not get through, for the daemon to see whether it concerns the host."""
        self.caught_up = False
        """All that was in the log at the last look is acknowledged."""
        self.is_replaced = False
        """Another log lies under this path now: this one has nothing to do with it."""
        self._choice = choice
        self._edits = edits
        self._api = api
        self._asked_for = asked_for
        # What stands still gets one more try when a person asks for it, and not one at each look.
        self._forgives = asked_for
        self._flush_s = flush_s
        self._steady_s = steady_s
        self._standstill_s = standstill_s
        self._pace = pace or Pace()
        self._clock = clock
        # Called when something happened between two turns.
        self._wake = wake
        self._lease: Lease | None = None
        self._cursor = Cursor(sink, rank)
        self._backoff = Backoff()
        self._known_pieces: dict[str, tuple[str, str | None]] = {}
        self._lookers: dict[str, StreamReader] = {}
        self._counts_seen: dict[str, int] | None = None
        self._counts_since_s = 0.0
        self._comparison: Comparison | None = None
        self._empty_since_s: float | None = None
        self._end_wanted: tuple[str, int] | None = None
        # A person who asks for a run that was uploaded wants to know whether it is there.
        self._asks_for_it = asked_for
        self._start_anew()

    def _start_anew(self) -> None:
        """Forget what was read, folded and sent: the cursor knows it."""
        for name in ("_fold", "_console", "_shipper", "_events", "_text"):
            self.__dict__.pop(name, None)
        self._attached: Attached | None = None
        self._uploads: RunUploads | None = None
        self._alerts: Alerts | None = None
        self._config: str | None = None
        self._environment: str | None = None
        self._live = False
        self._remark: str | None = None
        self._grew_s = float("-inf")
        # When the server last heard something of the run, and of which piece.
        self._spoke_s, self._spoke_of = float("-inf"), ""
        self._durable_s = float("-inf")
        self._heard: tuple[Any, int] | None = None
        self._heard_s = float("inf")

    # Made when they are first needed: of ten thousand runs that rest, each would hold some kilobytes for nothing.

    @cached_property
    def _fold(self) -> Fold:
        return Fold(Bases())

    @cached_property
    def _console(self) -> Console:
        return Console()

    @cached_property
    def _shipper(self) -> Shipper:
        return Shipper({})

    @cached_property
    def _events(self) -> Track:
        return Track(self.run_dir, "events", self.identity.log_id, self._standstill_s)

    @cached_property
    def _text(self) -> Track:
        return Track(self.run_dir, "console", self.identity.log_id, self._standstill_s)

    @property
    def parked(self) -> bool:
        return self._cursor.state == "parked"

    @property
    def error(self) -> str | None:
        return self._cursor.error

    @property
    def is_open(self) -> bool:
        """Whether this process holds the run, and what is folded of it."""
        return self._lease is not None

    @property
    def is_live(self) -> bool:
        """Whether its writer lives, as far as was known at the last look."""
        return self._live

    @property
    def got_to(self) -> tuple[object, ...]:
        """Changes with every progress, whoever makes it; an error that reads otherwise is none."""
        now = self._cursor
        compared = self._comparison.rows_read if self._comparison is not None else 0
        sent = now.told, now.acked, now.next, now.files, now.made, now.alerted, now.finished
        return now.attach, compared, *sent

    @property
    def is_over(self) -> bool:
        """All that there is and will be is acknowledged, unless the run is resumed."""
        return self.caught_up and (self._events.ended or not self._events.writer)

    @property
    def is_idle(self) -> bool:
        """Nothing is left to do until something is logged, or a person does something."""
        # Of a writer of which nothing is heard any more, only what it writes is news.
        return (self.caught_up and not self._live) or self.parked

    @property
    def is_busy(self) -> bool:
        """Whether something of it goes on between two turns."""
        return self._comparison is not None or (self._uploads is not None and self._uploads.is_under_way)

    @property
    def may_be_closed(self) -> bool:
        """Whether opening it again would repeat nothing."""
        return not self.is_busy and (self._uploads is None or not self._uploads.has_untold)

    def note_trouble(self) -> None:
        """Keep for `status` why the last turn did not get through: it was no trouble of the host's."""
        if self._lease is not None and self.trouble is not None:
            self._note(self.trouble.reason)

    def progress(self) -> Progress:
        """Return how far this run is, but for the age of what waits."""
        return progress(self.run_dir, self._pieces(), self._cursor, with_age=False)

    async def turn(self, now_s: float) -> float:
        """Do the next thing there is to do; return when to be called again if no hint comes before.

        If it raises, nothing of what it had read, folded or sent is kept: the next turn begins from the cursor.
        """
        try:
            return await self._turn(now_s)
        except BaseException as error:
            self._let_go()
            if isinstance(error, FileNotFoundError) and not self.run_dir.exists():
                return self._is_gone(now_s)
            raise

    async def _turn(self, now_s: float) -> float:
        self.trouble = None
        self.caught_up = False
        if self._is_of_another_log():
            self._let_go()
            self.is_replaced = True
            return now_s + HOT_S
        if self._lease is None and not self.run_dir.exists():
            return self._is_gone(now_s)
        if self._lease is not None and not self._lease.keep(_now_us()):
            log.info("%s: another syncd has taken it over, or its lock was removed", self.run_dir)
            self._let_go()
        if self._lease is None and not self._open():
            # Whoever holds it does the work; here it is enough to see it done.
            self._cursor = cursors.load(self.run_dir, self.sink) or self._cursor
            self.caught_up = self._other_has_caught_up()
            return now_s + LOCK_BUSY_S
        if self.parked:
            return now_s + COLD_S
        if now_s < self._not_before_s:
            return self._not_before_s
        if self._is_being_made_anew():
            self._let_go()
            self._known_pieces.clear()
            return now_s + LOCK_BUSY_S
        if self._attached is None:
            wait_s = await self._attach(now_s)
            if self._attached is None:
                return now_s + wait_s
        if self._asks_for_it:
            wait_s = await self._ask_for_it(now_s)
            if self._asks_for_it:
                return now_s + wait_s
        has_looked = self._has_room
        if has_looked and not await self._read(now_s):
            return self._later(now_s)
        is_silent = now_s < self._silent_until_s
        if not is_silent and not await self._tell(now_s):
            return self._later(now_s)
        self._upload(now_s)
        if not is_silent:
            await self._ship(now_s)
        has_room = not has_looked and self._has_room and self.trouble is None
        # What came while there was no room gave its hint already.
        if has_room and not await self._read(now_s):
            return self._later(now_s)
        if self.trouble is None and now_s >= self._alert_s:
            await self._alert()
        self._look_whether_caught_up()
        return self._later(now_s)

    def _is_gone(self, now_s: float) -> float:
        # Deleted or moved: the next scan finds out which.
        self.trouble = Outcome(Verdict.RETRY, "its directory is gone")
        return now_s + WARM_S

    def close(self, durable: bool = True) -> None:
        """Let the run go; the next turn begins from the cursor."""
        if self._lease is None:
            return
        try:
            if self._attached is not None and not self.parked and self._changed_since_saved():
                self._remember(durable)
        except OSError as error:
            # A full disk, or a run that was deleted: the cursor on the disk is older, and that is safe.
            log.warning("%s: the cursor was not written: %s", self.run_dir, error)
        finally:
            self._let_go()

    def park_as_copy_of(self, first: Path) -> None:
        """Note that another directory of the same log is uploaded, and this one is not."""
        cursor = cursors.load(self.run_dir, self.sink) or Cursor(self.sink, self.rank)
        error = f"{A_COPY}{first}: only that one is uploaded. `syncd retry RUN --new-id` uploads this one as a run of its own."
        if (cursor.state, cursor.error) != ("parked", error):
            self._cursor = cursor
            self._park(error)

    def park_after(self, error: BaseException) -> None:
        """Note that the run stands still, since its turns end in `error` however often they are tried."""
        lease = Lease.take(self.run_dir, self.sink, _now_us())
        if lease is None:
            # Another process has it, and comes to its own end.
            return
        try:
            self._cursor = cursors.load(self.run_dir, self.sink) or Cursor(self.sink, self.rank)
            self._park(
                f"an error in syncd or in the run's files ended each of its turns ({type(error).__name__}: {error}); "
                "`syncd logs` says where. `syncd retry RUN` tries again."
            )
        finally:
            lease.release()

    def hasten(self) -> None:
        """Let what is read be sent at once from now on: there will be no later."""
        self._flush_s = self._shipper.flush_s = 0.0

    def hurry(self) -> None:
        """The network is back: whatever was waited for is worth a try now."""
        self._backoff.reset()
        for beside in (self._uploads, self._alerts):
            if beside is not None:
                beside.backoff.reset()

    def _let_go(self) -> None:
        if self._uploads is not None:
            self._uploads.cancel()
        if self._comparison is not None:
            self._comparison.cancel()
            self._comparison = None
        if self._lease is not None:
            self._lease.release()
            self._lease = None
            # Whoever opens it reads the cursor again; until then it says how far the run is.
            self._cursor = replace(self._cursor, fold=None, console=None, told={}, made={}, alerted=None)
        self._start_anew()

    # -- the pieces --------------------------------------------------------------------------------------------

    def _pieces(self) -> list[str]:
        """Return the pieces of this run's history, up to one that is not to be uploaded without being asked for."""
        names = pieces_of(self.run_dir, self.rank, self._cursor.pieces)
        if not self._asked_for:
            # What the server knows of was asked for before; the rest waits.
            known = [self._known(name) for name in names]
            held = [
                i
                for i, (token, mode) in enumerate(known)
                if mode == "offline" and token not in self._cursor.pieces
            ]
            self._remark = OFFLINE_MODE if held else self._remark if self._remark != OFFLINE_MODE else None
            names = names[: held[0]] if held else names
        return names

    def _known(self, name: str) -> tuple[str | None, str | None]:
        """Return a piece's token and mode; None while it has no records: it may never have any."""
        if name not in self._known_pieces:
            # Kept, so that what cannot be read is looked at once.
            reader = self._lookers.setdefault(name, StreamReader(self.run_dir / name))
            is_closed = pieces.closed(self.run_dir, name)
            record = reader.first()
            if record is None and not (is_closed and reader.end()):
                return None, None
            # Of one that is over and has nothing but damage, the damage is to be counted.
            token = reader.header.token if reader.header else attach.UNKNOWN + name
            mode = record.data.get("mode") if record is not None and record.kind == "start" else None
            self._known_pieces[name] = token, mode
            del self._lookers[name]
        return self._known_pieces[name]

    def _tokens(self) -> list[str]:
        return [token for name in self._pieces() if (token := self._known(name)[0]) is not None]

    def _first_start(self) -> dict[str, Any] | None:
        """Return the first piece's `start` facts, or None while it is being born."""
        for name in self._pieces():
            record = StreamReader(self.run_dir / name).first()
            if record is not None:
                return record.data if record.kind == "start" else {}
        return None

    @property
    def _is_imported(self) -> bool:
        """Whether this is the log of a run that W&B's SDK recorded."""
        return (self._first_start() or {}).get("rows") == COMPLETE_ROWS

    def _pieces_after(self, writer: str) -> list[str]:
        """Return the pieces with records after `writer`: a piece without any may never have one."""
        names = self._pieces()
        if writer and writer not in names:
            # Held back, or deleted: nothing comes after it, and surely not the beginning.
            return []
        later = names[names.index(writer) + 1 :] if writer else names
        return [name for name in later if self._known(name)[0] is not None]

    @property
    def _is_last(self) -> bool:
        """Whether the events of the last piece there is were read to their end, for good."""
        return self._events.ended and not self._pieces_after(self._events.writer)

    # -- the cursor --------------------------------------------------------------------------------------------

    def _open(self) -> bool:
        self._lease = Lease.take(self.run_dir, self.sink, _now_us())
        if self._lease is None:
            self.trouble = Outcome(Verdict.RETRY, "another syncd is uploading this run")
            return False
        self._cursor = cursors.load(self.run_dir, self.sink) or Cursor(self.sink, self.rank)
        if not self._is_of_this_log(self._cursor):
            self._cursor = self._what_holds_of(self._cursor)
        if self.parked and (self._forgives or (self.error or "").startswith(A_COPY)):
            self._cursor = replace(self._cursor, state="waiting", error=None)
        self._forgives = False
        if self._choice is not None and self._cursor.attach is None:
            self._cursor = replace(self._cursor, choice=self._choice)
        if self._cursor.attach is not None:
            try:
                self._resume(self._cursor)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                # Of another version, say. Without it the position is found again as if the cursor were lost.
                log.warning("%s: the cursor cannot be gone on from (%r)", self.run_dir, error)
                self._start_anew()
                self._cursor = Cursor(self.sink, self.rank)
        return True

    def _is_of_another_log(self) -> bool:
        try:
            return RunIdentity.load(self.run_dir).log_id != self.identity.log_id
        except NotARun:
            # Deleted, or on its way elsewhere: what is held open can still be read.
            return False

    def _is_of_this_log(self, cursor: Cursor) -> bool:
        if cursor.attach is None:
            return True
        pairs = zip(cursor.pieces, self._tokens(), strict=False)
        same_pieces = all(known == ours or ours.startswith(attach.UNKNOWN) for known, ours in pairs)
        return cursor.attach.get("log_id") == self.identity.log_id and same_pieces

    def _what_holds_of(self, cursor: Cursor) -> Cursor:
        """Return what of a cursor counts for the log that lies here now: nothing of it, or of its places."""
        assert cursor.attach is not None
        if not self._is_imported or cursor.attach.get("log_id") != self.identity.log_id:
            log.warning("%s: the cursor is of another log, and is not used", self.run_dir)
            return Cursor(self.sink, self.rank)
        log.info("%s: its log was made anew, and is compared with what is there", self.run_dir)
        return replace(
            Cursor(self.sink, self.rank),
            told=cursor.told,
            # That it has pieces and is not attached says that an earlier log was.
            pieces=cursor.pieces,
            made=cursor.made,
            alerted=in_a_log_made_anew(cursor.alerted),
            stubs=cursor.stubs,
            choice=cursor.choice,
            state=cursor.state,
            error=cursor.error,
            generation=cursor.generation,
        )

    @property
    def _is_made_anew(self) -> bool:
        return self._cursor.attach is None and bool(self._cursor.pieces)

    def _is_being_made_anew(self) -> bool:
        """Whether another process makes the piece that is read anew."""
        writer = self._events.writer
        if not writer or self._fold.start.get("rows") != COMPLETE_ROWS:
            return False
        reader = StreamReader(self.run_dir / writer)
        reader.first()
        token = reader.header.token if reader.header is not None else attach.UNKNOWN + writer
        return token != self._known(writer)[0]

    def _other_has_caught_up(self) -> bool:
        """Whether the process that holds the run has sent all that was here at the first look, but an open row."""
        names = self._pieces()
        if self._end_wanted is None and names:
            self._end_wanted = (names[-1], end_of(self.run_dir / names[-1])[0])
        fold = self._cursor.fold
        if fold is None or self._end_wanted is None or fold["writer"] not in names:
            return False
        writer, seq = self._end_wanted
        if writer in names and (names.index(fold["writer"]), fold["seq"]) < (names.index(writer), seq):
            return False
        is_over = fold["writer"] == names[-1] and pieces.closed(self.run_dir, names[-1])
        return not is_over or self._cursor.finished or self._has_no_exit_and_no_file_left(fold, names)

    def _has_no_exit_and_no_file_left(self, fold: dict[str, Any], names: list[str]) -> bool:
        return fold["state"]["exitcode"] is None and not files_left(self.run_dir, names, self._cursor)

    def _resume(self, cursor: Cursor) -> None:
        assert cursor.attach is not None
        self._start_anew()
        attached = Attached.of(cursor.attach)
        self._fold = Fold.resume(cursor.fold["state"]) if cursor.fold else Fold(attached.bases)
        self._console = (
            Console.resume(cursor.console["state"]) if cursor.console else Console(attached.bases.console)
        )
        for track, place in ((self._events, cursor.fold), (self._text, cursor.console)):
            if place is not None:
                track.go_on(place)
        self._uploads = RunUploads(
            self.run_dir,
            self.identity.log_id,
            self._api,
            attached,
            cursor,
            self._wake,
            self._clock,
            self._standstill_s,
        )
        self._alerts = Alerts(self._api, attached, cursor.alerted, self._save_alerted)
        self._shipper = Shipper(
            dict(cursor.acked),
            stubs={(file, number): reason for file, number, reason in cursor.stubs},
            finished=cursor.finished,
            flush_s=self._flush_s,
            summary_refused=cursor.told.get("summary_refused"),
        )
        if cursor.finished:
            self._shipper.want_exit(self._fold.exitcode)
        # Last: without it the rest counts for nothing, and half of it would number lines from nowhere.
        self._attached = attached

    def _remember(self, durable: bool = False) -> None:
        """Write the cursor: what is acknowledged, and the fold if it has nothing unacknowledged behind it."""
        written = replace(
            self._cursor,
            acked=dict(self._shipper.acked),
            stubs=[[file, number, reason] for (file, number), reason in sorted(self._shipper.stubs.items())],
            finished=self._shipper.finished,
            made=dict(self._uploads.made) if self._uploads is not None else self._cursor.made,
            alerted=self._alerts.alerted if self._alerts is not None else self._cursor.alerted,
            not_shown=self._not_shown(),
        )
        place, text_place = self._events.place(), self._text.place()
        if place is not None and not self.parked and self._has_nothing_behind:
            next_seq = place["seq"] if self._fold.row_seq is None else self._fold.row_seq
            written = replace(
                written,
                next={"writer": place["writer"], "seq": next_seq},
                fold={**place, "state": self._fold.state()},
                console={**text_place, "state": self._console.state()} if text_place else None,
                state=self._state(),
                error=self._remark,
            )
        self._save(written, durable)

    def _not_shown(self) -> dict[str, int]:
        reasons = dict(self._fold.not_shown)

        def count(reason: str, times: int = 1) -> None:
            if times:
                reasons[reason] = reasons.get(reason, 0) + times

        assert self._uploads is not None
        count(DAMAGED, self._events.lost + self._text.lost + self._uploads.lost)
        for reason in self._shipper.stubs.values():
            count(reason)
        if self._shipper.summary_refused:
            count(f"summary refused by the server ({self._shipper.summary_refused})")
        assert self._attached is not None
        count(TAKEN_FOR_THERE, self._attached.unsent)
        assert self._alerts is not None
        for beside in (self._alerts.not_sent, self._uploads.not_stored):
            for reason, times in beside.items():
                count(reason, times)
        return reasons

    def _save(self, cursor: Cursor, durable: bool) -> None:
        self._cursor = cursors.save(self.run_dir, cursor, _now_us(), durable)

    def _state(self) -> str:
        if self._live:
            return "live"
        return "synced" if self._fold.exitcode is not None else "crashed"

    # -- attaching ---------------------------------------------------------------------------------------------

    async def _attach(self, now_s: float) -> float:
        """Agree with the server where the lines begin; return how long to wait if that is not known yet."""
        start = self._first_start()
        if start is None:
            return self._look_why_empty(now_s)
        if self._is_rewound(start):
            return COLD_S
        if self._comparison is not None and not self._comparison.is_over:
            return COMPARED_S
        answer = await self._api.resume_status(self.sink.entity, self.sink.project, self.sink.run_id)
        if not self._passed(answer, "model" in answer.data):
            return self._wait_s(now_s)
        model = answer.data.get("model")
        try:
            server = attach.parse_server_run(model.get("bucket") if isinstance(model, dict) else None)
        except ValueError as error:
            return self._senseless(str(error), now_s)
        if server is None and self._is_made_anew:
            self._park(GONE)
            return COLD_S
        decision = attach.decide(
            self.identity.log_id,
            self._tokens(),
            server,
            self._steady_for_s(server, now_s),
            append=self._cursor.choice == cursors.APPEND,
            is_imported=start.get("rows") == COMPLETE_ROWS,
            is_made_anew=self._is_made_anew,
        )
        if isinstance(decision, Wait):
            return min(1.0, self._steady_s / 4)
        if isinstance(decision, Park):
            self._park(decision.error)
            return COLD_S
        if isinstance(decision, Compare):
            assert server is not None
            found = self._decide_by_comparison(server, model, decision.bases)
            if not isinstance(found, Attach):
                return found
            decision = found
        # What was sent is there now.
        self._asks_for_it = False
        if decision.is_known:
            assert server is not None
            return await self._attach_again(decision, server, model, start, now_s)
        return await self._attach_first(decision, server, start, now_s)

    def _is_rewound(self, start: dict[str, Any]) -> bool:
        """Park a run that goes back to an earlier step of its own, unless a person wants its rows all the same."""
        step = start.get("rewound_to")
        if step is None or cursors.APPEND in (self._choice, self._cursor.choice):
            return False
        self._park(REWOUND.format(step=step))
        return True

    def _steady_for_s(self, server: attach.ServerRun | None, now_s: float) -> float:
        """Return for how long the server's counts have been seen as they are."""
        if server is not None and server.counts != self._counts_seen:
            self._counts_seen, self._counts_since_s = server.counts, now_s
        # A test may not want to wait; the rule it then checks is the same.
        return (now_s - self._counts_since_s) * (attach.STEADY_S / max(self._steady_s, 1e-9))

    async def _ask_for_it(self, now_s: float) -> float:
        """Find out whether what was acknowledged is still there; return how long to wait if that is not known yet."""
        assert self._attached is not None
        attached, acked = self._attached, self._shipper.acked[HISTORY]
        answer = await self._api.resume_status(attached.entity, attached.project, attached.run_id)
        if not self._passed(answer, "model" in answer.data):
            return self._wait_s(now_s)
        try:
            server = attach.parse_server_run(dig(answer.data, "model").get("bucket"))
        except ValueError as error:
            return self._senseless(str(error), now_s)
        counted = server.counts[HISTORY] if server is not None else 0
        if server is None:
            self._park(GONE)
        elif counted >= acked:
            self._asks_for_it = False
        elif self._steady_for_s(server, now_s) < attach.STEADY_S:
            return min(1.0, self._steady_s / 4)
        else:
            self._park(
                f"W&B says that it has {counted:,} rows of this run, and it has acknowledged {acked:,}. Was it deleted there "
                "and begun anew? `syncd retry RUN --new-id` uploads it as a run of its own."
            )
        return COLD_S

    def _decide_by_comparison(
        self, server: attach.ServerRun, model: Any, bases: Bases | None
    ) -> Attach | float:
        """Compare the server's rows with the log's; until that is done, return how long to wait."""
        if self._comparison is None:
            entity = dig(model, "entity").get("name") or self.sink.entity or ""
            self._comparison = Comparison(
                self.run_dir,
                self._pieces(),
                self._api.base_url,
                self._api.key or "",
                f"{entity}/{dig(model).get('name') or self.sink.project}/{self.sink.run_id}",
                server.last_event_s,
                bases,
            )
        comparison = self._comparison
        if not comparison.is_over:
            return COMPARED_S
        self._comparison = None
        if comparison.overlap is None:
            self._trouble(Outcome(Verdict.RETRY, comparison.trouble or ""))
            return max(HOT_S, self._not_before_s - self._clock())
        decision = attach.decide_by(comparison.overlap, server, self._cursor.choice, bases)
        if isinstance(decision, Park):
            self._park(decision.error)
            return COLD_S
        return decision

    def _look_why_empty(self, now_s: float) -> float:
        """Note why nothing of the run can be read, if there is a reason; return when to look again."""
        blocked, is_damaged = self._obstacles()
        self.caught_up = blocked is None
        self._note(self._remark or blocked or (UNREADABLE if is_damaged else None))
        if self._empty_since_s is None:
            self._empty_since_s = now_s
        # A run has its first record as soon as it is born; one without was killed before, or is damaged.
        return HOT_S if now_s - self._empty_since_s < WARM_S else COLD_S

    def _obstacles(self) -> tuple[str | None, bool]:
        """Return why a segment cannot be opened just now, and whether a piece has nothing but damage."""
        names = self._pieces()
        is_damaged = any(self._known(name)[0] is not None for name in names)
        for name in names:
            blocked = StreamReader(self.run_dir / name).read(1).blocked
            if blocked is not None:
                return blocked, is_damaged
        return None, is_damaged

    async def _attach_first(
        self, decision: Attach, server: attach.ServerRun | None, start: dict[str, Any], now_s: float
    ) -> float:
        others = server.config if server is not None else {}
        tokens = self._tokens()[: max(1, len(self._cursor.pieces))]
        mark = attach.mark_of(self.identity.log_id, tokens, decision.bases)
        config = metadata.config_json(start.get("config") or {}, {}, start, mark, others)
        told = self._params(start)
        # What another client had told of this very run may have been edited since, on W&B's pages.
        untold = {} if decision.is_continued and self._edits == metadata.NO_EDITS else told
        answer = await self._api.upsert_run(
            name=self.sink.run_id, project=self.sink.project, entity=self.sink.entity, config=config, **untold
        )
        bucket = dig(answer.data, "upsertBucket", "bucket")
        if not self._passed(answer, bool(bucket)):
            return self._wait_s(now_s)
        if server is None and dig(answer.data, "upsertBucket").get("inserted") is False:
            self._park(
                "another process made this run on the server at the same moment. What is here stays here and can be "
                "queried. `syncd retry RUN --new-id` uploads it as a run of its own."
            )
            return COLD_S
        entity = dig(bucket, "project", "entity").get("name") or self.sink.entity
        if not entity:
            return self._senseless("it does not say which entity the run belongs to", now_s)
        self._begin(
            Attached(
                str(entity),
                str(dig(bucket, "project").get("name") or self.sink.project),
                str(bucket.get("name") or self.sink.run_id),
                str(bucket.get("id") or ""),
                decision.bases,
                others,
                server.summary if server is not None else {},
                decision.summary_from,
                decision.forced,
                decision.unsent,
            ),
            decision.acked,
            tokens,
            {"config": metadata.digest(config), **told},
            self._cursor.alerted,
        )
        return 0.0

    async def _attach_again(
        self,
        decision: Attach,
        server: attach.ServerRun,
        model: Any,
        start: dict[str, Any],
        now_s: float,
    ) -> float:
        """Go on where the server's mark says; what people edited there meanwhile is left alone."""
        mark = server.mark or {}
        marked = [str(token) for token in mark.get("pieces") or []]
        tokens = marked
        if decision.is_compared:
            # In the places of an earlier log's pieces are this one's.
            tokens = self._tokens()[: max(1, len(marked))]
        if tokens != marked:
            ours = attach.mark_of(self.identity.log_id, tokens, decision.bases)
            answer = await self._api.upsert_run(
                name=self.sink.run_id,
                project=self.sink.project,
                entity=self.sink.entity,
                config=metadata.marked(server.config, ours),
            )
            if not self._passed(answer, bool(dig(answer.data, "upsertBucket", "bucket"))):
                return self._wait_s(now_s)
        # All that is in the pieces it knows of may have been told already: nothing of them is told again.
        known = [name for name in self._pieces() if self._known(name)[0] in tokens]
        at = [known[-1], end_of(self.run_dir / known[-1])[0]] if known else None
        for name in known:
            record = StreamReader(self.run_dir / name).first()
            given = record.data if record is not None and record.kind == "start" else {}
            start = {**start, **{fact: value for fact, value in given.items() if value is not None}}
        # Which alerts were sent is forgotten with the cursor: not to send any twice, none of those is.
        lost = {"writer": "", "seq": -1, "until_us": _now_us(), "not_sent": {}}
        self._begin(
            Attached(
                str(dig(model, "entity").get("name") or self.sink.entity or ""),
                str(dig(model).get("name") or self.sink.project),
                self.sink.run_id,
                server.storage_id,
                decision.bases,
                server.config,
                # What was there before the first row of ours; after a start at nothing, all of it is ours.
                server.summary if decision.is_compared or decision.bases != Bases() else {},
                decision.summary_from,
                decision.forced,
                decision.unsent,
            ),
            decision.acked,
            tokens,
            {**self._params(start), **self._cursor.told, "at": at},
            self._cursor.alerted if self._is_made_anew else lost,
        )
        return 0.0

    def _begin(
        self,
        attached: Attached,
        acked: dict[str, int],
        tokens: list[str],
        told: dict[str, Any],
        alerted: dict[str, Any] | None = None,
    ) -> None:
        url = "/".join((self._api.base_url, attached.entity, attached.project, "runs", attached.run_id))
        begun = replace(
            self._cursor,
            attach=attached.record(self.identity.log_id, url),
            told=told,
            pieces=tokens,
            acked=acked,
            alerted=alerted,
            # Of an earlier log: what comes from here on may be other lines.
            stubs=[stub for stub in self._cursor.stubs if stub[1] < acked[stub[0]]],
            choice=None,
            error=None,
        )
        # Durable before the first line: a power cut after it must not make us choose other bases.
        self._save(begun, durable=True)
        self._backoff.reset()
        self._resume(self._cursor)

    def _senseless(self, what: str, now_s: float) -> float:
        """Note an answer that makes no sense; return how long to wait before it is asked for again."""
        self._trouble(Outcome(Verdict.RETRY, f"the server's answer makes no sense: {what}"))
        return self._wait_s(now_s)

    def _wait_s(self, now_s: float) -> float:
        return COLD_S if self.parked else self._not_before_s - now_s

    def _params(self, start: dict[str, Any]) -> dict[str, Any]:
        return metadata.params(start, self.identity.run_id, self.rank, self._edits)

    # -- reading -----------------------------------------------------------------------------------------------

    async def _read(self, now_s: float) -> bool:
        """Fold what is next in the log, up to a full batch; False if a new piece could not be agreed on."""
        if (self._events.ended or not self._events.writer) and not await self._next_piece():
            return False
        if not self._events.writer:
            return True
        had_ended = self._events.ended
        # To lines that wait already, only what goes with them: the cursor can follow when all of it is acknowledged.
        limit_bytes = READ_BYTES if self._shipper.has_room else READ_BYTES // 2
        # Asked first: what is read after a yes is all there will ever be.
        records = self._events.read(limit_bytes, not had_ended and self._is_closed(), now_s)
        lines: list[Line] = []
        for record in records:
            lines += self._fold.feed(record)
            if record.kind == "alert":
                assert self._alerts is not None
                self._alerts.note(self._events.writer, record, self._pieces())
            elif record.kind in ("start", "config", "define_metric", "machine", "facts"):
                self._config = None
        if self._events.ended:
            lines += self._fold.end_piece()
        # A sample every few seconds is no reason to send a whole summary.
        if self._events.ended > had_ended or any(r.kind not in ("system", "alert") for r in records):
            self._want_summary()
        lines += self._read_console(now_s)
        self._shipper.offer(lines)
        self._live = self._is_live(bool(records), now_s)
        return True

    def _is_closed(self) -> bool:
        """Whether the piece that is being read cannot grow any more, as far as can be known without its records."""
        writer = self._events.writer
        is_closed = self._fold.exitcode is not None or pieces.closed(self.run_dir, writer)
        return is_closed or cursors.is_vouched_for(self.run_dir, writer)

    def _is_live(self, grew: bool, now_s: float) -> bool:
        """Whether the writer lives, as far as can be known; it is told to the server for as long."""
        if self._events.ended:
            self._remark = self._remark if self._remark == OFFLINE_MODE else self._blocked
            return False
        if grew:
            self._grew_s = now_s
        lock = pieces.lock_text(self.run_dir / self._events.writer)
        # The heartbeat of another host's writer: its clock is not ours, so only a change says something.
        heard = (lock.get("heartbeat"), self._events.next_seq)
        if heard != self._heard or lock.get("boot_id") == pieces.this_boot_id():
            self._heard, self._heard_s = heard, now_s
        is_heard = now_s - self._heard_s < STALE_S
        if self._remark != OFFLINE_MODE:
            self._remark = self._blocked or (
                None
                if is_heard
                else self._with_names(
                    f"{NOTHING_HEARD} for 10 minutes from its writer (process {lock.get('pid')} on {lock.get('host')}). "
                    "If that is gone for good, `syncd retry RUN --ended` sends what still waits for it."
                )
            )
        return is_heard

    @property
    def _blocked(self) -> str | None:
        """Why something that is there, or is about to be, cannot be read just now."""
        beside = self._uploads.blocked if self._uploads is not None else None
        return self._events.blocked or self._text.blocked or beside

    @property
    def _is_waiting(self) -> bool:
        """Whether something is missing that may be on its way."""
        uploads = self._uploads
        return (
            self._events.is_waiting or self._text.is_waiting or (uploads is not None and uploads.is_waiting)
        )

    def _read_console(self, now_s: float) -> list[Line]:
        """Fold what is next of the console: the same pieces, each to its end as well."""
        if self._text.ended or not self._text.writer:
            # Only pieces that the events have come to: the server knows of those.
            names = [name for name in self._pieces_after(self._text.writer) if self._has_reached(name)]
            if not names:
                return []
            self._text.follow(names[0])
        lines = []
        for record in self._text.read(READ_BESIDE_BYTES, self._has_ended(self._text.writer), now_s):
            lines += self._console.feed(record)
        if self._text.ended:
            lines += self._console.end_piece()
        self._shipper.want_screen(*self._console.open_lines())
        return lines

    def _has_reached(self, writer: str) -> bool:
        names = self._pieces()
        return (
            writer in names[: names.index(self._events.writer) + 1] if self._events.writer in names else False
        )

    def _has_ended(self, writer: str) -> bool:
        """Whether the events of that piece were read to their end: its other streams do not grow any more."""
        return self._has_reached(writer) and (writer != self._events.writer or self._events.ended)

    def _whole_summary(self) -> str:
        assert self._attached is not None
        if self._fold.next_line[HISTORY] < self._attached.summary_from:
            return json_of(self._attached.others_summary)
        others = {k: v for k, v in self._attached.others_summary.items() if k not in self._fold.deleted}
        return json_of({**others, **self._fold.summary()})

    def _want_summary(self) -> None:
        text = self._whole_summary()
        # After a restart the cursor knows whether this very summary is there.
        if metadata.digest(text) != self._cursor.told.get("summary"):
            self._shipper.want_summary(text)

    async def _next_piece(self) -> bool:
        """Go to the piece after the current one, if there is one; False if it could not be agreed on."""
        names = self._pieces_after(self._events.writer)
        if not names:
            return True
        token = self._known(names[0])[0]
        assert token is not None
        if token not in self._cursor.pieces and not await self._announce(names[0], token):
            return False
        self._events.follow(names[0])
        self._fold.begin_piece()
        self._shipper.want_exit(None)
        return True

    async def _announce(self, name: str, token: str) -> bool:
        """Add a piece to the server's mark, unless another log or another copy of this one got there first."""
        assert self._attached is not None
        first = StreamReader(self.run_dir / name).first()
        if first is not None and first.kind == "start" and self._is_rewound(first.data):
            return False
        answer = await self._api.resume_status(
            self._attached.entity, self._attached.project, self.sink.run_id
        )
        if not self._passed(answer, "model" in answer.data):
            return False
        tokens = [*self._cursor.pieces, token]
        try:
            server = attach.parse_server_run(dig(answer.data, "model").get("bucket"))
        except ValueError as error:
            self._trouble(Outcome(Verdict.RETRY, f"the server's answer makes no sense: {error}"))
            return False
        conflict = attach.conflict_with(self.identity.log_id, tokens, server)
        if conflict is not None and attach.is_of_log(self.identity.log_id, server) and self._is_imported:
            # Another log was made of the same files, and has got further.
            self._save(self._what_holds_of(self._cursor), durable=True)
            self._let_go()
            return False
        if conflict is not None:
            self._park(conflict)
            return False
        # The mark goes out with the config, before the first line of the piece: see `_tell`.
        self._cursor = replace(self._cursor, pieces=tokens)
        self._config = None
        return True

    # -- sending -----------------------------------------------------------------------------------------------

    def _wanted_config(self) -> str:
        if self._config is None:
            self._environment = None
            assert self._attached is not None
            fold = self._fold
            mark = attach.mark_of(self.identity.log_id, self._cursor.pieces, self._attached.bases)
            self._config = metadata.config_json(
                fold.config, fold.definitions, fold.start, mark, self._attached.others_config
            )
        return self._config

    def _untold(self) -> dict[str, Any]:
        """Return what the server was not told of the run's config and names."""
        if self._has_folded_nothing or self._replaying or self._is_behind(self._cursor.told.get("at")):
            # What is folded so far is older than what the server was told.
            return {}
        untold = metadata.newer(self._params(self._fold.start), self._cursor.told)
        config = self._wanted_config()
        if metadata.digest(config) != self._cursor.told.get("config"):
            untold["config"] = config
        return untold

    def _is_behind(self, at: list[Any] | None) -> bool:
        """Whether that event is still to be folded, as after a kill."""
        if at is None:
            return False
        names = self._pieces()
        order = {name: i for i, name in enumerate(names)}
        here = (order.get(self._events.writer, -1), self._events.next_seq)
        return here < (order.get(at[0], -1), at[1])

    @property
    def _silent_until_s(self) -> float:
        """Until when a live run is only read: W&B counts requests, and what is read meanwhile goes in one."""
        is_urgent = not self._live or self._events.more or not self._shipper.may_take_more
        if is_urgent or self._spoke_of != self._events.writer:
            return float("-inf")
        return self._spoke_s + self._flush_s

    def _spoke(self, now_s: float) -> None:
        self._spoke_s, self._spoke_of = now_s, self._events.writer

    async def _tell(self, now_s: float) -> bool:
        """Bring the server's config and names up to date with what is folded; False if that failed."""
        untold = self._untold()
        if not untold:
            return True
        assert self._attached is not None
        names = untold.keys() - {"config"}
        answer = await self._api.upsert_run(
            name=self._attached.run_id,
            project=self._attached.project,
            entity=self._attached.entity,
            # Without it, only the config is touched.
            id=self._attached.storage_id or None if names else None,
            **untold,
        )
        if not self._passed(answer, bool(dig(answer.data, "upsertBucket", "bucket"))):
            return False
        self._backoff.reset()
        self._spoke(now_s)
        told = {**self._cursor.told, **untold, "at": [self._events.writer, self._events.next_seq]}
        if "config" in untold:
            told["config"] = metadata.digest(untold["config"])
        self._save(replace(self._cursor, told=told), durable=False)
        return True

    async def _ship(self, now_s: float) -> None:
        # Others of the project may have sent something since the turn began.
        may_send = self._clock() >= self._pace.not_before_s(self._project)
        batch = self._shipper.next_batch(now_s, self._live and not self._events.more) if may_send else None
        if batch is None:
            if self._changed_since_saved():
                self._remember()
            return
        assert self._attached is not None
        self._spoke(now_s)
        self._pace.sent(self._project, self._clock())
        answer = await self._api.file_stream(
            self._attached.entity, self._attached.project, self._attached.run_id, batch.body()
        )
        outcome = outcome_of_answer(answer)
        if outcome.allowance is not None:
            self._pace.told(self._project, outcome.allowance)
        if outcome.retry_after_s:
            self._pace.hold(self._project, self._clock() + outcome.retry_after_s)
        if outcome.verdict is Verdict.ACK:
            self._acked(batch, answer, now_s)
        elif self._shipper.failed(outcome):
            self._note_settled(batch)
            # A stub is remembered before it is sent: sent again, it must be the same line.
            self._remember()
            self._note(outcome.reason)
        else:
            if len(self._shipper.stubs) != len(self._cursor.stubs):
                # One was taken back.
                self._remember()
            self._trouble(outcome)

    def _acked(self, batch: Batch, answer: Answer, now_s: float) -> None:
        self._shipper.acked_batch()
        self._backoff.reset()
        if (answer.content or {}).get("stopped") is True and self._cursor.stopped != self._events.writer:
            # Somebody pressed Stop on the run's page: `run.should_stop` finds it in the cursor.
            self._cursor = replace(self._cursor, stopped=self._events.writer)
            self._remember()
        self._note_settled(batch)
        durable = batch.exitcode is not None or now_s - self._durable_s >= DURABLE_S
        if durable:
            self._durable_s = now_s
        if not batch.is_heartbeat:
            self._remember(durable)

    def _note_settled(self, batch: Batch) -> None:
        """Note what need not be told again: the server knows it, or refused to."""
        settled = self._shipper.summary_settled
        if batch.summary is not None and settled is not None:
            said = {"summary": metadata.digest(settled), "summary_refused": self._shipper.summary_refused}
            self._cursor = replace(self._cursor, told={**self._cursor.told, **said})
        if batch.uploaded and self._shipper.has_told_uploads:
            assert self._uploads is not None
            refused, self._shipper.uploaded_refused = self._shipper.uploaded_refused, []
            self._cursor = replace(self._cursor, **self._uploads.told(refused))

    def _upload(self, now_s: float) -> None:
        """Keep the files on their way beside the lines."""
        uploads = self._uploads
        assert uploads is not None
        if uploads.wants_next_piece:
            later = [name for name in self._pieces_after(uploads.writer) if self._has_reached(name)]
            if later and not uploads.has_work:
                uploads.follow(later[0])
        trouble = uploads.settle(now_s)
        if trouble is not None:
            self._note_upload_trouble(trouble)
        uploads.read(self._has_ended(uploads.writer), now_s)
        # Together with what was logged, if that is not on its way yet: a request for each file costs enough.
        has_made_all = self._has_made_all()
        uploads.begin(now_s)
        if self._shipper.has_told_uploads:
            paths = uploads.to_tell()
            self._shipper.want_uploaded(paths)
            if not paths:
                # An artifact, or what could not be stored: there is nothing to tell.
                self._cursor = replace(self._cursor, **uploads.told())
        if has_made_all:
            self._want_exit()

    def _want_exit(self) -> bool:
        """Let a run of which all is made be complete, unless something is left here that this would come too early for."""
        assert self._uploads is not None
        if not self._uploads.is_telling_all or self._has_alerts:
            return False
        self._shipper.want_exit(self._fold.exitcode)
        return True

    def _has_made_all(self) -> bool:
        """Once all is folded, let the files that are made from the log be stored as they are to be; say whether they are."""
        uploads = self._uploads
        assert uploads is not None
        assert self._attached is not None
        if not self._events.ended or self._replaying or self._has_folded_nothing:
            return False
        config = self._wanted_config()
        if self._environment is None:
            self._environment = metadata_json(json.loads(config))
        environment = self._environment
        has_metadata = uploads.want_made(
            METADATA, metadata.digest(environment), lambda: Made(environment.encode())
        )
        if not (self._is_last and self._text_has_ended() and self._files_have_ended()):
            return False
        summary = self._whole_summary()
        place = self._text.place()
        has_made = [
            has_metadata,
            uploads.want_made(
                CONFIG, metadata.digest(config), lambda: Made(config_yaml(json.loads(config)).encode())
            ),
            uploads.want_made(SUMMARY, metadata.digest(summary), lambda: Made(summary.encode())),
        ]
        if place is not None and self._console.next_line > self._attached.bases.console:
            # What was printed is known by how much of it there is.
            printed = f"{place['writer']} {place['seq']}"
            has_made.append(uploads.want_made(CONSOLE, printed, self._whole_console))
        return all(has_made)

    def _whole_console(self) -> MadeOnDisk:
        """Return the whole of what was printed, as the file that W&B shows."""
        names = self._pieces()

        def parts() -> Iterator[bytes]:
            for name in names:
                for text in output_text(read(self.run_dir, "console", name)):
                    yield text.encode("utf-8", "replace")

        # Beside the cursor, since /tmp may be memory.
        return MadeOnDisk(self.run_dir / cursors.SYNC_DIR, parts)

    def _note_upload_trouble(self, trouble: Outcome) -> None:
        if trouble.verdict is Verdict.FORBIDDEN:
            self._trouble(trouble)
            return
        # The lines have a back-off of their own: files often go to another host.
        self.trouble = trouble
        if trouble.verdict in (Verdict.RETRY, Verdict.AWAITED):
            self._note(trouble.reason)

    def _text_has_ended(self) -> bool:
        return self._text.writer == self._events.writer and self._text.ended

    def _files_have_ended(self) -> bool:
        uploads = self._uploads
        assert uploads is not None
        return uploads.writer == self._events.writer and uploads.has_read_all

    @property
    def _may_follow(self) -> bool:
        """Whether the console or the files are done with a piece, and the events have gone on to a later one."""
        uploads = self._uploads
        if uploads is None:
            return False
        done = [self._text.writer] if self._text.ended or not self._text.writer else []
        done += [uploads.writer] if uploads.wants_next_piece and not uploads.has_work else []
        return any(self._has_reached(name) for writer in done for name in self._pieces_after(writer))

    def _look_whether_caught_up(self) -> None:
        if self._attached is None or self.trouble is not None or self.parked:
            return
        assert self._uploads is not None
        is_over = self._events.ended and not self._replaying
        if is_over and not (self._has_made_all() and self._want_exit()):
            return
        has_read_all = not self._events.more and not self._text.more and not self._may_follow
        has_read_all = has_read_all and self._blocked is None
        has_read_all = has_read_all and (not self._events.ended or self._is_last)
        self.caught_up = has_read_all and self._has_nothing_behind and not self._uploads.has_work
        if self.caught_up and self._replaying:
            # A power cut took records that the server has, and the cursor that knew them is lost as well. Lines
            # from here on would be taken for those: better to stop than to lose them.
            self._park(
                f"the server has {self._shipper.acked[HISTORY]} history lines of this log, and the log makes only "
                f"{self._fold.next_line[HISTORY]}: its end was lost after it was uploaded. What is here stays here and "
                "can be queried. `syncd retry RUN --new-id` uploads it as a run of its own."
            )

    @property
    def _has_folded_nothing(self) -> bool:
        """Whether nothing of the piece is folded yet."""
        # Of a later piece without a readable record nothing ever is: what was folded before it still holds.
        return self._events.next_seq == 0 and not (
            self._events.ended and self._events.writer in self._pieces()[1:]
        )

    @property
    def _replaying(self) -> bool:
        """Whether the fold still makes lines that the server has, as after a lost cursor."""
        return self._fold.next_line[HISTORY] < self._shipper.acked[HISTORY]

    @property
    def _has_nothing_behind(self) -> bool:
        """Whether all that was read is acknowledged: going on from here would leave nothing out."""
        return self._shipper.drained and not self._has_alerts and not self._untold()

    def _changed_since_saved(self) -> bool:
        """Whether something came about that no ack will write down."""
        if not self._has_nothing_behind:
            return False
        for track, saved in ((self._events, self._cursor.fold), (self._text, self._cursor.console)):
            if track.writer and (
                saved is None or (saved["writer"], saved["seq"]) != (track.writer, track.next_seq)
            ):
                return True
        assert self._uploads is not None
        says_why = self._blocked is not None and self._cursor.error != self._remark
        return says_why or self._cursor.state != self._state() or self._cursor.made != self._uploads.made

    # -- alerts ------------------------------------------------------------------------------------------------

    @property
    def _has_alerts(self) -> bool:
        return self._alerts is not None and self._alerts.has_work

    @property
    def _has_room(self) -> bool:
        """Whether more may be read: nothing of what was read before waits to be sent, or all of it goes together."""
        if self._alerts is not None and self._alerts.is_full:
            return False
        # What is tried again is sent as it was; of a long log, each batch is to bring the cursor on.
        may_join = self._live and not self._events.more and self._backoff.tries == 0
        return self._shipper.has_room or (may_join and self._shipper.may_take_more)

    @property
    def _alert_s(self) -> float:
        """When the next alert may be sent; infinity if there is none."""
        assert self._alerts is not None
        return self._alerts.backoff.not_before_s if self._alerts.has_work else float("inf")

    async def _alert(self) -> None:
        assert self._alerts is not None
        outcome = await self._alerts.step()
        if outcome.verdict is Verdict.ACK:
            self._alerts.backoff.reset()
            self._remember()
            return
        self.trouble = outcome
        self._alerts.backoff.failed(self._clock(), random.random(), outcome.retry_after_s)
        if outcome.verdict is Verdict.RETRY:
            self._note(outcome.reason)

    def _save_alerted(self, alerted: Alerted | None) -> None:
        self._save(replace(self._cursor, alerted=alerted), durable=True)

    # -- answers -----------------------------------------------------------------------------------------------

    @property
    def _project(self) -> str:
        if self._attached is not None:
            return f"{self._attached.entity}/{self._attached.project}"
        return f"{self.sink.entity or ''}/{self.sink.project}"

    @property
    def _not_before_s(self) -> float:
        return max(self._backoff.not_before_s, self._pace.not_before_s(self._project))

    def _passed(self, answer: Answer, says_what_was_asked: bool) -> bool:
        """Whether an answer is an acknowledgement; if not, what is to be done about it has been noted."""
        outcome = outcome_of_answer(answer)
        if outcome.verdict is Verdict.ACK:
            if says_what_was_asked:
                return True
            outcome = Outcome(Verdict.RETRY, "the server's answer leaves out what was asked")
        if outcome.verdict in (Verdict.REFUSED, Verdict.TOO_LARGE):
            self.trouble = outcome
            self._park(
                f"W&B refused the run's description ({outcome.reason}). `syncd retry RUN` tries again."
            )
        elif answer.status == 409 and "deleted" in outcome.reason:
            self.trouble = outcome
            self._park(
                f"the run was deleted on W&B, which does not take its id again ({outcome.reason}). "
                "`syncd retry RUN --new-id` uploads it as a run of its own."
            )
        else:
            self._trouble(outcome)
        return False

    def _trouble(self, outcome: Outcome) -> None:
        self.trouble = outcome
        if outcome.verdict is Verdict.FORBIDDEN:
            self._park(
                f"W&B refused this run ({outcome.reason}). Was it deleted there? Check the entity, the project and the "
                "key's rights; `syncd retry RUN` tries again, `--new-id` uploads it as a run of its own."
            )
            return
        # From now on, not from when it was asked: a slow answer must not eat up the wait that it asks for.
        self._backoff.failed(self._clock(), random.random(), outcome.retry_after_s)
        if outcome.verdict not in (Verdict.UNREACHABLE, Verdict.UNAUTHORISED):
            self._note(outcome.reason)

    def _note(self, error: str | None) -> None:
        if error != self._cursor.error:
            self._save(replace(self._cursor, error=error), durable=False)

    def _park(self, error: str) -> None:
        self._save(replace(self._cursor, state="parked", error=self._with_names(error)), durable=True)

    def _with_names(self, error: str) -> str:
        """Return a sentence whose commands can be typed as they stand."""
        run = shlex.quote(str(self.run_dir))
        if self._is_imported:
            # No root that `syncd retry` or `syncd status` knows has it.
            error = error.replace("`syncd retry RUN", f"`syncd sync {run}")
            return re.sub("(?<!force )--(new-id|append)(?=[ `])", r"--force \1", error)
        # A copy has no name but its directory's.
        is_copy = error.startswith(A_COPY)
        name = run if is_copy else f"{self.identity.project}/{self.identity.run_id}"
        return error.replace("retry RUN", f"retry {name}")

    def _later(self, now_s: float) -> float:
        if self.parked:
            return now_s + COLD_S
        if self._attached is None:
            # It was let go, to be attached to anew.
            return max(now_s, self._not_before_s)
        has_next = self._events.more or self._text.more or self._may_follow
        if has_next and self._has_room:
            return max(now_s, self._not_before_s)
        look_s = now_s + (COLD_S if not self._live else HOT_S if now_s - self._grew_s < WARM_S else WARM_S)
        if self._is_waiting:
            look_s = min(look_s, now_s + HOT_S)
        if self._events.ended and self._shipper.has_room and not self._is_last:
            look_s = now_s
        ship_s = max(self._shipper.due_s(self._live and not self._events.more), self._silent_until_s)
        due_s = min(ship_s, look_s)
        if self._uploads is not None and self._alerts is not None:
            due_s = min(due_s, self._uploads.due_s(), self._alert_s)
        return max(due_s, self._not_before_s)


def _now_us() -> int:
    return time.time_ns() // 1000
