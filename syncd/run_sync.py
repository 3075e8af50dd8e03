"""Brings one run to one sink: reads, folds, ships, and remembers how far it came.

    pieces ──StreamReader──▶ Fold ──▶ Shipper ──▶ WandbApi
                               └── cursor ◀── ack ──┘

Invariants
----------
* The attach record is durable before the first line is sent.
* The cursor's fold is the state at a place below which every line, the summary and the config are acknowledged;
  going on from it sends nothing else again but the batch that was in flight.
* A run is written to by one process at a time: `sync/lock` is held while it is open here.
* Trouble is kept in `trouble` for the caller; only a broken log on disk may raise.

`turn` does one thing, at most a request or two, and says when it wants to be called again.  It never sleeps.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eventlog import cursor as cursors
from eventlog import piece as pieces
from eventlog.cursor import Cursor, Sink
from eventlog.piece import RunIdentity
from eventlog.reader import StreamReader, end_of
from syncd import attach, metadata
from syncd.attach import Attach, Park, Wait
from syncd.fold import HISTORY, Bases, Fold, Line
from syncd.shipper import FLUSH_S, Backoff, Outcome, Shipper, Verdict, outcome_of
from syncd.status import Progress, progress
from syncd.wandb_api import Answer, WandbApi

log = logging.getLogger("syncd")

# Lines come out a little larger than the records they are made of: this much of a log makes one full batch.
READ_BYTES = 640 * 1024
# A power cut may cost this much of the cursor; what is sent again then is already where it goes.
DURABLE_S = 30.0
# How often a run is looked at without a hint: while it grows, while it may, and when it is over.
HOT_S, WARM_S, COLD_S = 1.0, 10.0, 60.0
LOCK_BUSY_S = 1.0
DAMAGED = "damaged or missing in the log"
OFFLINE_MODE = "logged with mode=offline: `syncd sync` uploads it"


@dataclass(frozen=True, slots=True)
class Attached:
    """Where the run is on the server."""

    entity: str
    project: str
    run_id: str
    storage_id: str
    bases: Bases
    others_config: dict[str, Any]
    others_summary: dict[str, Any]

    def record(self, log_id: str, url: str) -> dict[str, Any]:
        return {
            "log_id": log_id,
            "entity": self.entity,
            "project": self.project,
            "run_id": self.run_id,
            "storage_id": self.storage_id,
            "url": url,
            "history_base": self.bases.history,
            "events_base": self.bases.events,
            "console_base": self.bases.console,
            "first_step": self.bases.first_step,
            "runtime_base_s": self.bases.runtime_s,
            "others_config": self.others_config,
            "others_summary": self.others_summary,
        }

    @classmethod
    def of(cls, record: dict[str, Any]) -> Attached:
        bases = Bases(
            record["history_base"],
            record["events_base"],
            record["console_base"],
            record["first_step"],
            record["runtime_base_s"],
        )
        return cls(
            record["entity"],
            record["project"],
            record["run_id"],
            record["storage_id"],
            bases,
            record["others_config"],
            record["others_summary"],
        )


class RunSync:
    """One run on its way to one sink."""

    def __init__(
        self,
        run_dir: Path,
        sink: Sink,
        api: WandbApi,
        *,
        asked_for: bool = False,
        flush_s: float = FLUSH_S,
        steady_s: float = attach.STEADY_S,
    ) -> None:
        self.run_dir = run_dir
        self.identity = RunIdentity.load(run_dir)
        self.sink = sink
        self.trouble: Outcome | None = None
        """Why the last turn did not get through, for the daemon to see whether it concerns the host."""
        self.caught_up = False
        """All that was in the log at the last look is acknowledged."""
        self._api = api
        self._asked_for = asked_for
        self._flush_s = flush_s
        self._steady_s = steady_s
        self._backoff = Backoff()
        self._lock_fd = -1
        self._cursor = Cursor(sink)
        self._attached: Attached | None = None
        self._fold = Fold(Bases())
        self._shipper = Shipper({})
        self._writer = ""
        self._reader: StreamReader | None = None
        self._live = False
        self._more = False
        self._ended = False
        self._damaged = 0
        self._grew_s = float("-inf")
        self._durable_s = float("-inf")
        self._counts_seen: dict[str, int] | None = None
        self._counts_since_s = 0.0

    @property
    def parked(self) -> bool:
        return self._cursor.state == "parked"

    @property
    def error(self) -> str | None:
        return self._cursor.error

    @property
    def generation(self) -> int:
        """Grows with every write of the cursor, whoever makes the progress that is in it."""
        return self._cursor.generation

    @property
    def is_idle(self) -> bool:
        """Nothing is left to do until the run is resumed, or a person does something."""
        return (self.caught_up and self._ended) or self.parked or self.error == OFFLINE_MODE

    def progress(self) -> Progress:
        """Return how far this run is."""
        return progress(self.run_dir, self._cursor)

    async def turn(self, now_s: float) -> float:
        """Do the next thing there is to do; return when to be called again if no hint comes before.

        If it raises, nothing of what it had read, folded or sent is kept: the next turn begins from the cursor.
        """
        try:
            return await self._turn(now_s)
        except BaseException:
            self._let_go()
            raise

    async def _turn(self, now_s: float) -> float:
        self.trouble = None
        self.caught_up = False
        if self._lock_fd < 0 and not self._open():
            # Whoever holds it does the work; here it is enough to see it done.
            self._cursor = cursors.load(self.run_dir, self.sink) or self._cursor
            self.caught_up = self._other_has_caught_up()
            return now_s + LOCK_BUSY_S
        if self.parked:
            return now_s + COLD_S
        if now_s < self._backoff.not_before_s:
            return self._backoff.not_before_s
        if self._attached is None:
            wait_s = await self._attach(now_s)
            if self._attached is None:
                return now_s + wait_s
        if self._shipper.has_room and not await self._read(now_s):
            return self._later(now_s)
        if not await self._tell(now_s):
            return self._later(now_s)
        await self._ship(now_s)
        return self._later(now_s)

    def close(self) -> None:
        """Let the run go; the next turn begins from the cursor."""
        if self._lock_fd < 0:
            return
        try:
            if self._attached is not None and not self.parked and self._changed_since_saved():
                self._remember(durable=True)
        except OSError as error:
            # A full disk, or a run that was deleted: the cursor on the disk is older, and that is safe.
            log.warning("%s: the cursor was not written: %s", self.run_dir, error)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
        self._attached, self._reader = None, None
        self._fold, self._shipper = Fold(Bases()), Shipper({})
        self._more = self._ended = self._live = False

    def hurry(self) -> None:
        """The network is back: whatever was waited for is worth a try now."""
        self._backoff.reset()
        self._shipper.backoff.reset()

    # -- the cursor --------------------------------------------------------------------------------------------

    def _open(self) -> bool:
        directory = self.run_dir / cursors.SYNC_DIR
        directory.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            self.trouble = Outcome(Verdict.RETRY, "another syncd is uploading this run")
            return False
        self._lock_fd = fd
        self._cursor = cursors.load(self.run_dir, self.sink) or Cursor(self.sink)
        if not self._is_of_this_log(self._cursor):
            log.warning("%s: the cursor is of another log, and is not used", self.run_dir)
            self._cursor = Cursor(self.sink)
        if self._asked_for and self.parked:
            self._cursor = replace(self._cursor, state="waiting", error=None)
        if self._cursor.attach is not None:
            try:
                self._resume(self._cursor)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                # Of another version, say. Without it the position is found again as if the cursor were lost.
                log.warning("%s: the cursor cannot be gone on from (%r)", self.run_dir, error)
                self._cursor = Cursor(self.sink)
        return True

    def _is_of_this_log(self, cursor: Cursor) -> bool:
        if cursor.attach is None:
            return True
        pairs = zip(cursor.pieces, self._tokens(), strict=False)
        same_pieces = all(known == ours or ours.startswith(attach.UNKNOWN) for known, ours in pairs)
        return cursor.attach.get("log_id") == self.identity.log_id and same_pieces

    def _other_has_caught_up(self) -> bool:
        """Whether the process that holds the run has sent all but a row that is still open."""
        fold = self._cursor.fold
        names = pieces.primaries(self.run_dir)
        if fold is None or not names or fold["writer"] != names[-1]:
            return False
        return bool(fold["seq"] >= end_of(self.run_dir / names[-1])[0])

    def _resume(self, cursor: Cursor) -> None:
        assert cursor.attach is not None
        attached = Attached.of(cursor.attach)
        fold, writer, reader = Fold(attached.bases), "", None
        if cursor.fold is not None:
            fold = Fold.resume(cursor.fold["state"])
            writer, place = cursor.fold["writer"], cursor.fold["place"]
            reader = StreamReader(
                self.run_dir / writer, seq=cursor.fold["seq"], hint=(place[0], place[1]) if place else None
            )
        # Nothing is assigned before everything is there: half of it would number lines from nowhere.
        self._attached, self._fold, self._writer, self._reader = attached, fold, writer, reader
        self._shipper = Shipper(
            dict(cursor.acked),
            stubs={int(number): reason for number, reason in cursor.stubs},
            finished=cursor.finished,
            flush_s=self._flush_s,
        )
        self._ended = False
        self._damaged = cursor.not_shown.get(DAMAGED, 0)
        if cursor.finished:
            self._shipper.want_exit(self._fold.exitcode)

    def _remember(self, durable: bool = False) -> None:
        """Write the cursor: what is acknowledged, and the fold if it has nothing unacknowledged behind it."""
        not_shown = dict(self._fold.not_shown)
        if self._damaged:
            not_shown[DAMAGED] = self._damaged
        for reason in self._shipper.stubs.values():
            not_shown[reason] = not_shown.get(reason, 0) + 1
        if self._shipper.summary_refused:
            not_shown[f"summary refused by the server ({self._shipper.summary_refused})"] = 1
        written = replace(
            self._cursor,
            acked=dict(self._shipper.acked),
            stubs=[[number, reason] for number, reason in sorted(self._shipper.stubs.items())],
            finished=self._shipper.finished,
            not_shown=not_shown,
        )
        if self._shipper.drained and self._reader is not None and not self.parked and self._told_all():
            seq = self._reader.next_seq
            next_seq = seq if self._fold.row_seq is None else self._fold.row_seq
            written = replace(
                written,
                next={"writer": self._writer, "seq": next_seq},
                fold={
                    "writer": self._writer,
                    "seq": seq,
                    "place": self._reader.place,
                    "state": self._fold.state(),
                },
                state=self._state(),
                error=None,
            )
        self._save(written, durable)

    def _save(self, cursor: Cursor, durable: bool) -> None:
        self._cursor = cursors.save(self.run_dir, cursor, time.time_ns() // 1000, durable)

    def _state(self) -> str:
        if self._live:
            return "live"
        return "synced" if self._fold.exitcode is not None else "crashed"

    # -- attaching ---------------------------------------------------------------------------------------------

    async def _attach(self, now_s: float) -> float:
        """Agree with the server where the lines begin; return how long to wait if that is not known yet."""
        first = self._first_piece()
        if first is None:
            self.caught_up = True
            return HOT_S
        token, start = first
        if start.get("mode") == "offline" and not self._asked_for:
            self._note(OFFLINE_MODE)
            return COLD_S
        answer = await self._api.resume_status(self.sink.entity, self.sink.project, self.sink.run_id)
        if not self._passed(answer, "model" in answer.data):
            return self._backoff.not_before_s - now_s
        model = answer.data.get("model")
        try:
            server = attach.parse_server_run(model.get("bucket") if isinstance(model, dict) else None)
        except ValueError as error:
            self._backoff.failed(now_s, random.random())
            self._note(f"the server's answer makes no sense: {error}")
            return self._backoff.not_before_s - now_s
        if server is not None and server.counts != self._counts_seen:
            self._counts_seen, self._counts_since_s = server.counts, now_s
        # A test may not want to wait; the rule it then checks is the same.
        steady_for_s = (now_s - self._counts_since_s) * (attach.STEADY_S / max(self._steady_s, 1e-9))
        ours = self._tokens()
        decision = attach.decide(self.identity.log_id, ours, server, steady_for_s)
        if isinstance(decision, Wait):
            return min(1.0, self._steady_s / 4)
        if isinstance(decision, Park):
            self._park(decision.error)
            return COLD_S
        if server is not None and server.mark is not None:
            self._attach_again(decision, server, model)
            return 0.0
        return await self._attach_first(decision, server, token, start, now_s)

    async def _attach_first(
        self,
        decision: Attach,
        server: attach.ServerRun | None,
        token: str,
        start: dict[str, Any],
        now_s: float,
    ) -> float:
        others = server.config if server is not None else {}
        mark = attach.mark_of(self.identity.log_id, [token], decision.bases)
        config = metadata.config_json(start.get("config") or {}, {}, start, mark, others)
        told = metadata.params(start)
        answer = await self._api.upsert_run(
            name=self.sink.run_id, project=self.sink.project, entity=self.sink.entity, config=config, **told
        )
        bucket = _dig(answer.data, "upsertBucket", "bucket")
        if not self._passed(answer, bool(bucket)):
            return self._backoff.not_before_s - now_s
        if server is None and _dig(answer.data, "upsertBucket").get("inserted") is False:
            self._park(
                "another process made this run on the server at the same moment. Log under another run id; what is "
                "here stays here and can be queried."
            )
            return COLD_S
        entity = _dig(bucket, "project", "entity").get("name") or self.sink.entity
        if not entity:
            self._backoff.failed(now_s, random.random())
            self._note("the server did not say which entity the run belongs to")
            return self._backoff.not_before_s - now_s
        self._begin(
            Attached(
                str(entity),
                str(_dig(bucket, "project").get("name") or self.sink.project),
                str(bucket.get("name") or self.sink.run_id),
                str(bucket.get("id") or ""),
                decision.bases,
                others,
                server.summary if server is not None else {},
            ),
            decision.acked,
            [token],
            {"config": metadata.digest(config), **told},
        )
        return 0.0

    def _attach_again(self, decision: Attach, server: attach.ServerRun, model: Any) -> None:
        """Go on where the server's mark says; what people edited there meanwhile is left alone."""
        first = self._first_piece()
        mark = server.mark or {}
        known = [str(token) for token in mark.get("pieces") or []]
        self._begin(
            Attached(
                str(_dig(model, "entity").get("name") or self.sink.entity),
                str(_dig(model).get("name") or self.sink.project),
                self.sink.run_id,
                server.storage_id,
                decision.bases,
                server.config,
                # What was there before the first row of ours; after a start at nothing, all of it is ours.
                server.summary if decision.bases != Bases() else {},
            ),
            decision.acked,
            known,
            metadata.params(first[1]) if first else {},
        )

    def _begin(
        self, attached: Attached, acked: dict[str, int], tokens: list[str], told: dict[str, Any]
    ) -> None:
        url = "/".join((self._api.base_url, attached.entity, attached.project, "runs", attached.run_id))
        begun = replace(
            self._cursor,
            attach=attached.record(self.identity.log_id, url),
            told=told,
            pieces=tokens,
            acked=acked,
            error=None,
        )
        # Durable before the first line: a power cut after it must not make us choose other bases.
        self._save(begun, durable=True)
        self._backoff.reset()
        self._resume(self._cursor)

    def _first_piece(self) -> tuple[str, dict[str, Any]] | None:
        """Return the first piece's token and `start` facts, or None while it is being born."""
        for name in pieces.primaries(self.run_dir):
            reader = StreamReader(self.run_dir / name)
            record = reader.first()
            if record is not None:
                token = reader.header.token if reader.header else attach.UNKNOWN + name
                return token, record.data if record.kind == "start" else {}
        return None

    def _tokens(self) -> list[str]:
        return [token for name in pieces.primaries(self.run_dir) if (token := self._token(name)) is not None]

    def _token(self, name: str) -> str | None:
        """Return a piece's token, or None while it has no records: it may never have any."""
        reader = StreamReader(self.run_dir / name)
        if reader.first() is None:
            return None
        return reader.header.token if reader.header else attach.UNKNOWN + name

    # -- reading -----------------------------------------------------------------------------------------------

    async def _read(self, now_s: float) -> bool:
        """Fold what is next in the log, up to a full batch; False if a new piece could not be agreed on."""
        if (self._reader is None or self._ended) and not await self._next_piece(now_s):
            return self.trouble is None and not self.parked
        reader = self._reader
        assert reader is not None
        # Asked first: what is read after a yes is all there will ever be.
        closed = pieces.closed(self.run_dir, self._writer)
        chunk = reader.read(READ_BYTES)
        lines: list[Line] = []
        for record in chunk.records:
            lines += self._fold.feed(record)
        damage = chunk.damage
        self._more = chunk.more
        exited = self._fold.exitcode is not None
        self._live = not closed and not exited
        if chunk.records:
            self._grew_s = now_s
        if not chunk.more and not self._live:
            damage = damage + reader.end()
            lines += self._fold.end_piece()
            self._ended = True
            if not self._has_later_piece():
                self._shipper.want_exit(self._fold.exitcode)
        self._damaged += sum(found.lost for found in damage)
        self._shipper.offer(lines)
        if chunk.records or lines:
            self._shipper.want_summary(self._summary_text())
        return True

    def _summary_text(self) -> str:
        assert self._attached is not None
        if not self._attached.others_summary:
            return self._fold.summary_text()
        from eventlog.record import json_of

        return json_of({**self._attached.others_summary, **self._fold.summary()})

    async def _next_piece(self, now_s: float) -> bool:
        """Go to the piece after the current one, if there is one and the server agrees that it is ours."""
        for name in self._later_pieces():
            token = self._token(name)
            if token is None:
                # A later piece with records means that this one never got any.
                continue
            if token not in self._cursor.pieces and not await self._announce(token, now_s):
                return False
            self._writer = name
            self._reader = StreamReader(self.run_dir / name)
            self._ended = False
            # Its `start` may be damaged: what the piece before came to is not what this one comes to.
            self._fold.exitcode = None
            self._shipper.want_exit(None)
            return True
        return False

    async def _announce(self, token: str, now_s: float) -> bool:
        """Add a piece to the server's mark, unless another log or another copy of this one got there first."""
        assert self._attached is not None
        answer = await self._api.resume_status(
            self._attached.entity, self._attached.project, self.sink.run_id
        )
        if not self._passed(answer, "model" in answer.data):
            return False
        tokens = [*self._cursor.pieces, token]
        try:
            server = attach.parse_server_run(_dig(answer.data, "model").get("bucket"))
        except ValueError as error:
            self._trouble(Outcome(Verdict.RETRY, f"the server's answer makes no sense: {error}"))
            return False
        conflict = attach.conflict_with(self.identity.log_id, tokens, server)
        if conflict is not None:
            self._park(conflict)
            return False
        # The mark goes out with the config, before the first line of the piece: see `_tell`.
        self._cursor = replace(self._cursor, pieces=tokens)
        return True

    def _later_pieces(self) -> list[str]:
        names = pieces.primaries(self.run_dir)
        return names[names.index(self._writer) + 1 :] if self._writer in names else names

    def _has_later_piece(self) -> bool:
        return any(self._token(name) is not None for name in self._later_pieces())

    # -- sending -----------------------------------------------------------------------------------------------

    def _config(self) -> str:
        assert self._attached is not None
        mark = attach.mark_of(self.identity.log_id, self._cursor.pieces, self._attached.bases)
        fold = self._fold
        return metadata.config_json(
            fold.config, fold.definitions, fold.start, mark, self._attached.others_config
        )

    def _told_all(self) -> bool:
        told = self._cursor.told
        config_told = told.get("config") == metadata.digest(self._config())
        return config_told and not metadata.newer(metadata.params(self._fold.start), told)

    async def _tell(self, now_s: float) -> bool:
        """Bring the server's config and names up to date with what is folded; False if that failed."""
        if self._reader is None or self._reader.next_seq == 0 or self._replaying:
            # What is folded so far is nothing, or older than what the server was told.
            return True
        assert self._attached is not None
        told = self._cursor.told
        changed = metadata.newer(metadata.params(self._fold.start), told)
        config = self._config()
        digest = metadata.digest(config)
        if digest == told.get("config") and not changed:
            return True
        answer = await self._api.upsert_run(
            name=self._attached.run_id,
            project=self._attached.project,
            entity=self._attached.entity,
            config=config if digest != told.get("config") else None,
            id=self._attached.storage_id or None if changed else None,
            **changed,
        )
        if not self._passed(answer, bool(_dig(answer.data, "upsertBucket", "bucket"))):
            return False
        self._backoff.reset()
        self._save(replace(self._cursor, told={**told, "config": digest, **changed}), durable=False)
        return True

    async def _ship(self, now_s: float) -> None:
        live = self._live and not self._more
        batch = self._shipper.next_batch(now_s, live)
        if batch is None:
            if self._changed_since_saved():
                self._remember()
            self._look_whether_caught_up()
            return
        assert self._attached is not None
        answer = await self._api.file_stream(
            self._attached.entity, self._attached.project, self._attached.run_id, batch.body()
        )
        outcome = self._outcome(answer)
        if outcome.verdict is Verdict.ACK:
            self._shipper.acked_batch()
            self._backoff.reset()
            durable = batch.exitcode is not None or now_s - self._durable_s >= DURABLE_S
            if durable:
                self._durable_s = now_s
            if not batch.is_heartbeat:
                self._remember(durable)
            self._look_whether_caught_up()
            return
        self._shipper.failed(outcome, time.monotonic(), random.random())
        if outcome.verdict in (Verdict.REFUSED, Verdict.TOO_LARGE):
            # A stub is remembered before it is sent: sent again, it must be the same line.
            self._remember()
            self._note(outcome.reason)
            self.trouble = outcome
        else:
            self._trouble(outcome)

    def _look_whether_caught_up(self) -> None:
        at_end = self._shipper.drained and not self._more and not (self._ended and self._has_later_piece())
        self.caught_up = at_end and self._told_all()
        if at_end and self._replaying:
            # A power cut took records that the server has, and the cursor that knew them is lost as well. Lines
            # from here on would be taken for those: better to stop than to lose them.
            self._park(
                f"the server has {self._shipper.acked[HISTORY]} history lines of this log, and the log makes only "
                f"{self._fold.next_line[HISTORY]}: its end was lost after it was uploaded. Go on under another run id; "
                "what is here stays here and can be queried."
            )

    @property
    def _replaying(self) -> bool:
        """Whether the fold still makes lines that the server has, as after a lost cursor."""
        return self._fold.next_line[HISTORY] < self._shipper.acked[HISTORY]

    def _changed_since_saved(self) -> bool:
        """Whether records were folded that gave nothing to send."""
        fold = self._cursor.fold
        if not self._shipper.drained or self._reader is None:
            return False
        here = (self._writer, self._reader.next_seq)
        return fold is None or (fold["writer"], fold["seq"]) != here or self._cursor.state != self._state()

    # -- answers -----------------------------------------------------------------------------------------------

    def _outcome(self, answer: Answer) -> Outcome:
        return outcome_of(
            answer.status, answer.headers, answer.content is not None, time.time(), answer.error
        )

    def _passed(self, answer: Answer, says_what_was_asked: bool) -> bool:
        """Whether an answer is an acknowledgement; if not, what is to be done about it has been noted."""
        outcome = self._outcome(answer)
        if outcome.verdict is Verdict.ACK:
            if says_what_was_asked:
                return True
            outcome = Outcome(Verdict.RETRY, "the server's answer leaves out what was asked")
        if outcome.verdict in (Verdict.REFUSED, Verdict.TOO_LARGE):
            self._park(
                f"W&B refused the run's description ({outcome.reason}). `syncd sync {self.run_dir}` tries again."
            )
        self._trouble(outcome)
        return False

    def _trouble(self, outcome: Outcome) -> None:
        self.trouble = outcome
        if outcome.verdict is Verdict.FORBIDDEN:
            self._park(
                f"W&B refused this run ({outcome.reason}). Check the entity, the project and the key's rights; "
                f"`syncd sync {self.run_dir}` tries again."
            )
            return
        # From now on, not from when it was asked: a slow answer must not eat up the wait that it asks for.
        self._backoff.failed(time.monotonic(), random.random(), outcome.retry_after_s)
        if outcome.verdict is Verdict.RETRY:
            self._note(outcome.reason)

    def _note(self, error: str | None) -> None:
        if error != self._cursor.error:
            self._save(replace(self._cursor, error=error), durable=False)

    def _park(self, error: str) -> None:
        self._save(replace(self._cursor, state="parked", error=error), durable=True)

    def _later(self, now_s: float) -> float:
        if self.parked:
            return now_s + COLD_S
        if self._more and self._shipper.has_room:
            return max(now_s, self._backoff.not_before_s)
        look_s = now_s + (COLD_S if not self._live else HOT_S if now_s - self._grew_s < WARM_S else WARM_S)
        if self._ended and self._shipper.has_room and self._has_later_piece():
            look_s = now_s
        return max(
            min(self._shipper.due_s(self._live and not self._more), look_s), self._backoff.not_before_s
        )


def _dig(content: Any, *keys: str) -> dict[str, Any]:
    """Return the object below `keys` in an untrusted answer, or an empty one."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}
