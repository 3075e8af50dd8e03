"""Decides what to send next for one run, and when.  Does none of the sending.

    offer(lines) ──▶ backlog ──next_batch(now)──▶ Batch   (run_sync posts it)
                       ▲                            │
    acked(now) ────────┴──────── failed(outcome, now)

Invariants
----------
* At most one batch is in flight.
* A line leaves the backlog only by an ack, or by becoming a stub, which is kept in `stubs`.
* A batch sent again carries the same lines at the same numbers, so a server that has them changes nothing.
* `complete` goes alone, after everything else is acked.

There is no clock, thread, file or socket here: the caller passes `now_s` (any monotonic seconds) and `jitter`
(0 … 1), so that every outage is a test without a sleep.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from enum import Enum

import orjson

from syncd.fold import CONSOLE, EVENTS, HISTORY, SUMMARY, Line, stub

# Proxies refuse larger bodies with a 413; W&B's own client sends up to 12 MB and loses the run there.
BATCH_MAX_BYTES = 1024 * 1024
# W&B limits requests per project; a live run is sent at most this often.
FLUSH_S = 5.0
# W&B calls a run crashed when it hears nothing for a while; its own client says something every 30 s.
HEARTBEAT_S = 30.0
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
# A server that asks for more patience than this is asked again after it all the same.
RETRY_AFTER_MAX_S = 3600.0


class Verdict(Enum):
    """What an answer means for what was sent."""

    ACK = "acknowledged"
    RETRY = "try again"
    UNREACHABLE = "the network is away"
    TOO_LARGE = "send less at once"
    REFUSED = "something in it is refused"
    UNAUTHORISED = "the key is refused"
    FORBIDDEN = "this run or project is refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    reason: str = ""
    retry_after_s: float | None = None


def outcome_of(
    status: int | None, headers: Mapping[str, str], is_object: bool, wall_s: float, error: str = ""
) -> Outcome:
    """Say what an answer means: `status` is None if none came, `is_object` whether its body is a JSON object.

    A 2xx with any other body is not W&B: a captive portal answers every request with a page.
    """
    if status is None:
        return Outcome(Verdict.UNREACHABLE, error or "no answer")
    if 200 <= status < 300:
        if is_object:
            return Outcome(Verdict.ACK)
        return Outcome(Verdict.UNREACHABLE, "something other than W&B answers (a captive portal?)")
    if 300 <= status < 400:
        return Outcome(Verdict.UNREACHABLE, f"HTTP {status}: redirected elsewhere (a captive portal?)")
    reason = f"HTTP {status}" + (f": {error}" if error else "")
    if status == 401:
        return Outcome(Verdict.UNAUTHORISED, reason)
    if status in (402, 403, 404, 410):
        return Outcome(Verdict.FORBIDDEN, reason)
    if status == 413:
        return Outcome(Verdict.TOO_LARGE, reason)
    if status in (400, 422):
        return Outcome(Verdict.REFUSED, reason)
    # 407 (a proxy wants a login), 408, 409, 425, 429, 5xx and whatever else there may be: never a reason to give up.
    return Outcome(Verdict.RETRY, reason, retry_after_s(headers, wall_s))


def retry_after_s(headers: Mapping[str, str], wall_s: float) -> float | None:
    """Return how long the server asks to wait (`Retry-After` as seconds or a date, else `RateLimit-Reset` when
    nothing remains), between 0 and an hour; None if it does not say.

    >>> retry_after_s({"retry-after": "7"}, 0.0)
    7.0
    >>> retry_after_s({"retry-after": "Thu, 01 Jan 1970 00:01:00 GMT"}, 45.0)
    15.0
    """
    lowered = {key.lower(): value for key, value in headers.items()}
    text = lowered.get("retry-after")
    if text is None and lowered.get("ratelimit-remaining", "").strip() == "0":
        text = lowered.get("ratelimit-reset")
    if text is None:
        return None
    try:
        wait_s = float(text)
    except ValueError:
        try:
            when = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=timezone.utc)
        wait_s = (when - datetime.fromtimestamp(wall_s, timezone.utc)).total_seconds()
    if wait_s != wait_s:
        return None
    return min(max(wait_s, 0.0), RETRY_AFTER_MAX_S)


@dataclass(slots=True)
class Backoff:
    """When to try again: doubling, jittered, and never longer than a minute unless the server asks for it."""

    tries: int = 0
    not_before_s: float = float("-inf")

    def failed(self, now_s: float, jitter: float, retry_after_s: float | None = None) -> None:
        wait_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(self.tries, 16))
        self.tries += 1
        self.not_before_s = now_s + max(retry_after_s or 0.0, wait_s * (0.5 + 0.5 * jitter))

    def reset(self) -> None:
        self.tries = 0
        self.not_before_s = float("-inf")


@dataclass(frozen=True, slots=True)
class Batch:
    """One file_stream request: consecutive lines of each server file, and what goes with them."""

    lines: tuple[Line, ...] = ()
    encoded: tuple[bytes, ...] = ()
    summary: str | None = None
    exitcode: int | None = None

    @property
    def is_heartbeat(self) -> bool:
        return not self.lines and self.summary is None and self.exitcode is None

    def body(self) -> bytes:
        """Return the request's JSON."""
        parts = []
        for file in (HISTORY, EVENTS, CONSOLE):
            chosen = [i for i, line in enumerate(self.lines) if line.file == file]
            if chosen:
                content = b",".join(self.encoded[i] for i in chosen)
                parts.append(
                    b'"%b":{"offset":%d,"content":[%b]}'
                    % (file.encode(), self.lines[chosen[0]].number, content)
                )
        if self.summary is not None:
            parts.append(b'"%b":{"offset":0,"content":[%b]}' % (SUMMARY.encode(), orjson.dumps(self.summary)))
        fields = [b'"files":{%b}' % b",".join(parts)] if parts else []
        if self.exitcode is not None:
            fields.append(b'"complete":true,"exitcode":%d' % self.exitcode)
        return b"{%b}" % b",".join(fields)


@dataclass(slots=True)
class Shipper:
    """What one run still owes to one sink."""

    acked: dict[str, int]
    """Per server file, the next line that is not acknowledged."""
    stubs: dict[int, str] = field(default_factory=dict)
    """History lines that the server refused, and why: a stub was sent in their place."""
    finished: bool = False
    flush_s: float = FLUSH_S
    summary_refused: str | None = None
    backoff: Backoff = field(default_factory=Backoff)
    in_flight: Batch | None = None
    _backlog: deque[tuple[Line, bytes]] = field(default_factory=deque)
    _backlog_bytes: int = 0
    _summary: str | None = None
    _summary_acked: str | None = None
    _exitcode: int | None = None
    _max_bytes: int = BATCH_MAX_BYTES
    _max_lines: int | None = None
    _last_sent_s: float = float("-inf")

    def offer(self, lines: list[Line]) -> None:
        """Take lines in order.  Those that are acknowledged already, as in a replay, are passed over."""
        for line in lines:
            if line.number < self.acked[line.file]:
                continue
            reason = self.stubs.get(line.number) if line.file == HISTORY else None
            if reason is not None:
                line = line._replace(text=stub(line.text, reason))
            encoded = orjson.dumps(line.text)
            self._backlog.append((line, encoded))
            self._backlog_bytes += len(encoded)

    def want_summary(self, text: str) -> None:
        """Let the server's summary become `text`."""
        self._summary = text

    def want_exit(self, exitcode: int | None) -> None:
        """Let the run be marked complete with `exitcode` when all is acknowledged; None takes that back."""
        self._exitcode = exitcode
        if exitcode is None:
            self.finished = False

    @property
    def has_room(self) -> bool:
        """Whether lines may be offered: a backlog is filled only when it is empty, so that memory stays bounded."""
        return not self._backlog and self.in_flight is None

    @property
    def drained(self) -> bool:
        """Whether all that was offered is acknowledged."""
        return (
            not self._backlog
            and self.in_flight is None
            and self._summary == self._summary_acked
            and (self._exitcode is None or self.finished)
        )

    def next_batch(self, now_s: float, live: bool) -> Batch | None:
        """Return what to send now and consider it in flight; None if there is nothing, or it is not time."""
        if self.in_flight is not None or now_s < self.due_s(live):
            return None
        self.in_flight = self._make_batch(live)
        if self.in_flight is not None:
            self._last_sent_s = now_s
        return self.in_flight

    def due_s(self, live: bool) -> float:
        """Return when there will be something to send as things stand; infinity if nothing."""
        if self.drained:
            due_s = self._last_sent_s + HEARTBEAT_S if live else float("inf")
        elif live and self._backlog_bytes < self._max_bytes // 2:
            due_s = self._last_sent_s + self.flush_s
        else:
            due_s = float("-inf")
        return max(due_s, self.backoff.not_before_s)

    def acked_batch(self) -> None:
        """The server has what is in flight."""
        batch = self._landed()
        for line in batch.lines:
            self._backlog.popleft()
            self.acked[line.file] = line.number + 1
        self._backlog_bytes -= sum(map(len, batch.encoded))
        if batch.summary is not None:
            self._summary_acked = batch.summary
        if batch.exitcode is not None:
            self.finished = True
        if self._max_lines is not None:
            self._max_lines *= 2
            if self._max_lines > len(self._backlog):
                self._max_lines = None
        self._max_bytes = min(BATCH_MAX_BYTES, self._max_bytes * 2)
        self.backoff.reset()

    def failed(self, outcome: Outcome, now_s: float, jitter: float) -> None:
        """The server does not have what is in flight, or may not have it: it stays owed."""
        batch = self._landed()
        if outcome.verdict in (Verdict.TOO_LARGE, Verdict.REFUSED) and not batch.is_heartbeat:
            if len(batch.lines) > 1 or (batch.lines and batch.summary is not None):
                if outcome.verdict is Verdict.TOO_LARGE:
                    self._max_bytes = sum(len(text) + 1 for text in batch.encoded) // 2
                self._max_lines = max(1, len(batch.lines) // 2)
                return
            if batch.lines and batch.lines[0].file == HISTORY and batch.lines[0].number not in self.stubs:
                self._make_stub(batch.lines[0], outcome)
                return
            if batch.summary is not None:
                self.summary_refused = outcome.reason
                self._summary_acked = batch.summary
                return
        # Also when a stub is refused: then it is not the line, and `status` says what the server answers.
        self.backoff.failed(now_s, jitter, outcome.retry_after_s)

    def _landed(self) -> Batch:
        batch, self.in_flight = self.in_flight, None
        assert batch is not None, "an answer to nothing"
        return batch

    def _make_batch(self, live: bool) -> Batch | None:
        if self._backlog:
            lines: list[Line] = []
            encoded: list[bytes] = []
            size = 0
            for line, text in self._backlog:
                # At least one line goes, however long it is.
                if lines and (size + len(text) > self._max_bytes or len(lines) == self._max_lines):
                    break
                lines.append(line)
                encoded.append(text)
                size += len(text) + 1
            # While a refused line is looked for, the summary stays out of it.
            alone = self._max_lines is not None or len(lines) < len(self._backlog)
            return Batch(tuple(lines), tuple(encoded), None if alone else self._new_summary())
        if self._new_summary() is not None:
            return Batch(summary=self._new_summary())
        if self._exitcode is not None and not self.finished:
            return Batch(exitcode=self._exitcode)
        return Batch() if live else None

    def _new_summary(self) -> str | None:
        return self._summary if self._summary != self._summary_acked else None

    def _make_stub(self, line: Line, outcome: Outcome) -> None:
        self.stubs[line.number] = f"refused by the server ({outcome.reason})"
        _, encoded = self._backlog.popleft()
        replaced = line._replace(text=stub(line.text, self.stubs[line.number]))
        encoded_stub = orjson.dumps(replaced.text)
        self._backlog.appendleft((replaced, encoded_stub))
        self._backlog_bytes += len(encoded_stub) - len(encoded)
        self._max_lines = None
        self._max_bytes = BATCH_MAX_BYTES
