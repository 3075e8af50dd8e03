"""Decides what to send next for one run, and when.  Does none of the sending.

    offer(lines) ──▶ backlog ──next_batch(now)──▶ Batch   (run_sync posts it)
                       ▲                            │
    acked_batch() ─────┴──────────── failed(outcome)

Invariants
----------
* At most one batch is in flight.
* A line leaves the backlog only by an ack, or by becoming a stub, which is kept in `stubs`. A stub that is refused as
  well was made for nothing: the line takes its place again.
* A batch sent again carries the same lines at the same numbers, so a server that has them changes nothing.
* `acked` counts lines that never change again. The screen's last lines are sent beside them, and count for nothing.
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

from syncd.fold import CONSOLE, EVENTS, HISTORY, SUMMARY, Line, stub_of

# Proxies refuse larger bodies with a 413; W&B's own client sends up to 12 MB and loses the run there.
BATCH_MAX_BYTES = 1024 * 1024
# W&B limits requests per project; a live run is sent at most this often.
FLUSH_S = 5.0
# W&B calls a run crashed when it hears nothing for a while; its own client says something every 30 s.
HEARTBEAT_S = 30.0
# A line that is being written, a progress bar say, is shown as it stands this often.
UNFINISHED_S = 10.0
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
# W&B says what is left of a project's requests on this scale.
ALLOWANCE = 1000.0
# A server that asks for more patience than this is asked again after it all the same.
RETRY_AFTER_MAX_S = 3600.0
_NOT_THEIRS = "not W&B's answer: a proxy or a captive portal?"


class Verdict(Enum):
    """What an answer means for what was sent."""

    ACK = "acknowledged"
    RETRY = "try again"
    UNREACHABLE = "the network is away"
    TOO_LARGE = "send less at once"
    REFUSED = "something in it is refused"
    UNAUTHORISED = "the key is refused"
    FORBIDDEN = "this run or project is refused"
    AWAITED = "what is to be sent is not here yet"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a project's requests: so many of 1000, whatever their number, until they are counted anew."""

    left: float
    reset_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    verdict: Verdict
    reason: str = ""
    retry_after_s: float | None = None
    allowance: Allowance | None = None
    is_of_the_host: bool = False
    """There was no connection: whoever asks for anything there hears the same."""


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
            # What is left of the project's allowance comes with an ack as well.
            return Outcome(
                Verdict.ACK, retry_after_s=retry_after_s(headers, wall_s), allowance=allowance(headers)
            )
        return Outcome(Verdict.UNREACHABLE, "something other than W&B answers (a captive portal?)")
    if 300 <= status < 400:
        return Outcome(Verdict.UNREACHABLE, f"HTTP {status}: redirected elsewhere (a captive portal?)")
    reason = f"HTTP {status}" + (f": {error}" if error else "")
    if status == 401:
        return Outcome(Verdict.UNAUTHORISED, reason)
    if status in (402, 403, 404, 410):
        if not is_object:
            # A proxy's or a portal's page: it says nothing about the run.
            return Outcome(Verdict.RETRY, f"{reason} ({_NOT_THEIRS})")
        return Outcome(Verdict.FORBIDDEN, reason)
    if status == 413:
        return Outcome(Verdict.TOO_LARGE, reason)
    if status in (400, 422):
        if is_page(headers):
            return Outcome(Verdict.RETRY, f"{reason} ({_NOT_THEIRS})")
        return Outcome(Verdict.REFUSED, reason)
    # 407 (a proxy wants a login), 408, 409, 425, 429, 5xx and whatever else there may be: never a reason to give up.
    return Outcome(Verdict.RETRY, reason, retry_after_s(headers, wall_s))


def is_page(headers: Mapping[str, str]) -> bool:
    """Whether an answer is a page for people: neither W&B nor a store for files answers with one."""
    lowered = {key.lower(): value for key, value in headers.items()}
    # Google's store says so of nothing as well.
    return "text/html" in lowered.get("content-type", "") and lowered.get("content-length") != "0"


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


def allowance(headers: Mapping[str, str]) -> Allowance | None:
    """Return what the server says is left of the project's requests; None if it does not say.

    >>> allowance({"RateLimit-Remaining": "750", "RateLimit-Reset": "30"})
    Allowance(left=750.0, reset_s=30.0)
    """
    lowered = {key.lower(): value for key, value in headers.items()}
    try:
        left, reset_s = float(lowered["ratelimit-remaining"]), float(lowered["ratelimit-reset"])
    except (KeyError, ValueError):
        return None
    is_sensible = 0.0 <= left <= ALLOWANCE and 0.0 <= reset_s <= RETRY_AFTER_MAX_S
    return Allowance(left, reset_s) if is_sensible else None


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


@dataclass(slots=True)
class Pace:
    """When each project may be talked to again: W&B counts requests per project, not per run.

    What is left of an allowance is spread over the time for which it is to last, so that nobody meets its end.
    """

    _not_before_s: dict[str, float] = field(default_factory=dict)
    _gap_s: dict[str, float] = field(default_factory=dict)
    _left: dict[str, float] = field(default_factory=dict)

    def hold(self, project: str, until_s: float) -> None:
        self._not_before_s[project] = max(until_s, self.not_before_s(project))

    def not_before_s(self, project: str) -> float:
        return self._not_before_s.get(project, float("-inf"))

    def sent(self, project: str, now_s: float) -> None:
        """A request leaves; the next of the project has to wait for its share of the time."""
        if project in self._gap_s:
            self.hold(project, now_s + self._gap_s[project])

    def told(self, project: str, now: Allowance) -> None:
        """An answer says what is left."""
        # By this request and by whatever others of the project sent since the last.
        used = self._left.get(project, ALLOWANCE) - now.left
        self._left[project] = now.left
        # Unless it is counted anew: then a request takes what it took before.
        if used >= 0:
            self._gap_s[project] = now.reset_s * min(1.0, used / max(now.left, 1.0))


@dataclass(frozen=True, slots=True)
class Batch:
    """One file_stream request: consecutive lines of each server file, and what goes with them."""

    lines: tuple[Line, ...] = ()
    encoded: tuple[bytes, ...] = ()
    screen: tuple[Line, ...] = ()
    """Console lines that may still change, from the first of them that did."""
    summary: str | None = None
    uploaded: tuple[str, ...] = ()
    exitcode: int | None = None

    @property
    def is_heartbeat(self) -> bool:
        return self == Batch()

    def body(self) -> bytes:
        """Return the request's JSON."""
        parts = []
        for file in (HISTORY, EVENTS, CONSOLE):
            chosen = [
                (line.number, text)
                for line, text in zip(self.lines, self.encoded, strict=True)
                if line.file == file
            ]
            if file == CONSOLE:
                chosen += [(line.number, orjson.dumps(line.text)) for line in self.screen]
            if chosen:
                content = b",".join(text for _, text in chosen)
                parts.append(b'"%b":{"offset":%d,"content":[%b]}' % (file.encode(), chosen[0][0], content))
        if self.summary is not None:
            parts.append(b'"%b":{"offset":0,"content":[%b]}' % (SUMMARY.encode(), orjson.dumps(self.summary)))
        fields = [b'"files":{%b}' % b",".join(parts)] if parts else []
        if self.uploaded:
            fields.append(b'"uploaded":%b' % orjson.dumps(self.uploaded))
        if self.exitcode is not None:
            fields.append(b'"complete":true,"exitcode":%d' % self.exitcode)
        return b"{%b}" % b",".join(fields)


@dataclass(slots=True)
class Shipper:
    """What one run still owes to one sink."""

    acked: dict[str, int]
    """Per server file, the next line that is not acknowledged."""
    stubs: dict[tuple[str, int], str] = field(default_factory=dict)
    """Lines (server file, number) that the server refused, and why: a stub was sent in their place."""
    finished: bool = False
    flush_s: float = FLUSH_S
    summary_refused: str | None = None
    summary_settled: str | None = None
    """The summary that the server has, or that it refused."""
    uploaded_refused: list[str] = field(default_factory=list)
    """Why paths of `want_uploaded` were given up: one reason for each."""
    in_flight: Batch | None = None
    _backlog: deque[tuple[Line, bytes]] = field(default_factory=deque)
    _backlog_bytes: int = 0
    _replaced: dict[tuple[str, int], Line] = field(default_factory=dict)
    """What the stubs in the backlog stand in for."""
    _screen: tuple[Line, ...] = ()
    _unfinished: Line | None = None
    _shown: dict[int, str] = field(default_factory=dict)
    """Console lines that may still change, as the server last got them."""
    _unfinished_sent_s: float = float("-inf")
    _summary: str | None = None
    _uploaded: tuple[str, ...] = ()
    _exitcode: int | None = None
    _max_bytes: int = BATCH_MAX_BYTES
    _max_lines: int | None = None
    _last_sent_s: float = float("-inf")

    def offer(self, lines: list[Line]) -> None:
        """Take lines in order.  Those that are acknowledged already, as in a replay, are passed over."""
        for line in lines:
            if line.number < self.acked[line.file]:
                continue
            reason = self.stubs.get((line.file, line.number))
            if reason is not None:
                self._replaced[line.file, line.number] = line
                line = stub_of(line, reason)
            encoded = orjson.dumps(line.text)
            self._backlog.append((line, encoded))
            self._backlog_bytes += len(encoded)

    def want_screen(self, finished: list[Line], unfinished: Line | None) -> None:
        """Let the server show console lines that may still change; the line being written is shown less often."""
        # In a replay, what stood on the screen once is final there by now.
        acked = self.acked[CONSOLE]
        finished = [line for line in finished if line.number >= acked]
        unfinished = unfinished if unfinished is not None and unfinished.number >= acked else None
        self._screen, self._unfinished = tuple(finished), unfinished
        first = min(
            (line.number for line in (*finished, *([unfinished] if unfinished else []))), default=None
        )
        self._shown = {n: text for n, text in self._shown.items() if first is not None and n >= first}

    def want_uploaded(self, paths: list[str]) -> None:
        """Let the server hear that these files are stored."""
        self._uploaded = tuple(dict.fromkeys((*self._uploaded, *paths)))

    def want_summary(self, text: str) -> None:
        """Let the server's summary become `text`."""
        self._summary = text

    def want_exit(self, exitcode: int | None) -> None:
        """Let the run be marked complete with `exitcode`, by the request that leaves nothing behind; None takes that back."""
        self._exitcode = exitcode
        if exitcode is None:
            self.finished = False

    @property
    def has_told_uploads(self) -> bool:
        """Whether the server acknowledged every path of `want_uploaded`."""
        return not self._uploaded

    @property
    def has_room(self) -> bool:
        """Whether lines may be offered: a backlog is filled only when it is empty, so that memory stays bounded."""
        return not self._backlog and self.in_flight is None

    @property
    def may_take_more(self) -> bool:
        """Whether half a batch of lines more would still go with those that wait, in one request."""
        is_plain = self.in_flight is None and self._max_lines is None
        return is_plain and self._backlog_bytes < self._max_bytes // 2

    @property
    def drained(self) -> bool:
        """Whether all that was offered is acknowledged."""
        return (
            not self._backlog
            and self.in_flight is None
            and self._summary == self.summary_settled
            and not self._uploaded
            and (self._exitcode is None or self.finished)
        )

    def next_batch(self, now_s: float, live: bool) -> Batch | None:
        """Return what to send now and consider it in flight; None if there is nothing, or it is not time."""
        if self.in_flight is not None or now_s < self.due_s(live):
            return None
        self.in_flight = self._make_batch(now_s, live)
        if self.in_flight is not None:
            self._last_sent_s = now_s
        return self.in_flight

    def due_s(self, live: bool) -> float:
        """Return when there will be something to send as things stand; infinity if nothing."""
        if not self.drained and (not live or self._backlog_bytes >= self._max_bytes // 2):
            return float("-inf")
        due_s = float("inf")
        if live:
            due_s = self._last_sent_s + HEARTBEAT_S
            if not self.drained or any(self._changed(line) for line in self._screen):
                due_s = self._last_sent_s + self.flush_s
            if self._unfinished is not None and self._changed(self._unfinished):
                due_s = min(
                    due_s, max(self._unfinished_sent_s + UNFINISHED_S, self._last_sent_s + self.flush_s)
                )
        return due_s

    def acked_batch(self) -> None:
        """The server has what is in flight."""
        batch = self._landed()
        for line in batch.lines:
            self._backlog.popleft()
            self._replaced.pop((line.file, line.number), None)
            self.acked[line.file] = line.number + 1
        self._backlog_bytes -= sum(map(len, batch.encoded))
        self._shown.update((line.number, line.text) for line in batch.screen)
        self._uploaded = tuple(path for path in self._uploaded if path not in batch.uploaded)
        if batch.summary is not None:
            self.summary_settled, self.summary_refused = batch.summary, None
        if batch.exitcode is not None:
            self.finished = True
        if self._max_lines is not None:
            self._max_lines *= 2
            if self._max_lines > len(self._backlog):
                self._max_lines = None

    def failed(self, outcome: Outcome) -> bool:
        """The server does not have what is in flight, or may not have it: it stays owed.

        Return whether something else will be sent next, which need not wait: less at once, or a stub.
        """
        batch = self._landed()
        if outcome.verdict not in (Verdict.TOO_LARGE, Verdict.REFUSED) or batch.is_heartbeat:
            return False
        parts = (batch.lines, batch.screen, batch.summary, batch.uploaded, batch.exitcode is not None)
        if len(batch.lines) > 1 or len(batch.uploaded) > 1 or sum(bool(part) for part in parts) > 1:
            if outcome.verdict is Verdict.TOO_LARGE and len(batch.lines) > 1:
                # For good: whoever refuses a size today refuses it in a minute.
                self._max_bytes = sum(len(text) + 1 for text in batch.encoded) // 2
            self._max_lines = max(1, len(batch.lines) // 2)
            return True
        if batch.lines:
            return self._refused(batch.lines[0], outcome)
        if batch.summary is not None:
            self.summary_refused = outcome.reason
            self.summary_settled = batch.summary
            return True
        if batch.uploaded:
            self._uploaded = self._uploaded[1:]
            self.uploaded_refused.append(f"file refused by the server ({outcome.reason})")
            return True
        if batch.screen:
            # They come again when they are final, and are looked at one by one then.
            self._shown.update((line.number, line.text) for line in batch.screen)
            return True
        return False

    def _landed(self) -> Batch:
        batch, self.in_flight = self.in_flight, None
        assert batch is not None, "an answer to nothing"
        return batch

    def _make_batch(self, now_s: float, live: bool) -> Batch | None:
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
        is_part = len(lines) < len(self._backlog)
        whole = Batch(
            tuple(lines),
            tuple(encoded),
            () if is_part else self._new_screen(lines, now_s),
            None if is_part else self._new_summary(),
            () if is_part else self._uploaded,
            # In a request that leaves nothing behind.
            None if is_part or self.finished else self._exitcode,
        )
        if whole.is_heartbeat:
            return whole if live else None
        if self._max_lines is None:
            return whole
        # While what was refused is looked for, one thing goes at a time.
        alone = (
            Batch(whole.lines, whole.encoded),
            Batch(screen=whole.screen),
            Batch(summary=whole.summary),
            Batch(uploaded=whole.uploaded[:1]),
            Batch(exitcode=whole.exitcode),
        )
        return next(part for part in alone if not part.is_heartbeat)

    def _new_screen(self, before: list[Line], now_s: float) -> tuple[Line, ...]:
        """Return the lines that may change, from the first that did: with those `before`, one block, as W&B wants it."""
        lines = list(self._screen)
        if self._unfinished is not None and now_s >= self._unfinished_sent_s + UNFINISHED_S:
            lines.append(self._unfinished)
        changed = [line.number for line in lines if self._changed(line)]
        if not changed:
            return ()
        if lines[-1] is self._unfinished:
            self._unfinished_sent_s = now_s
        begins_block = not any(line.file == CONSOLE for line in before)
        return tuple(line for line in lines if line.number >= changed[0] or not begins_block)

    def _changed(self, line: Line) -> bool:
        return self._shown.get(line.number) != line.text

    def _new_summary(self) -> str | None:
        return self._summary if self._summary != self.summary_settled else None

    def _refused(self, line: Line, outcome: Outcome) -> bool:
        """Let a stub stand in for the line, or the line again for its stub; return whether that need not wait."""
        place = (line.file, line.number)
        reason = f"refused by the server ({outcome.reason})"
        stub = stub_of(line, reason)
        is_stub = place in self.stubs
        if is_stub or (outcome.verdict is Verdict.TOO_LARGE and len(stub.text) >= len(line.text)):
            # It is neither the line nor a size, then, and `status` says what the server answers.
            self._max_bytes, self._max_lines = BATCH_MAX_BYTES, None
            if is_stub:
                del self.stubs[place]
                self._put_first(self._replaced.pop(place))
            return False
        self.stubs[place], self._replaced[place] = reason, line
        self._put_first(stub)
        # The next answer is about the stub alone.
        self._max_lines = 1
        return True

    def _put_first(self, line: Line) -> None:
        """Let `line` take the place of the first of the backlog."""
        _, before = self._backlog.popleft()
        encoded = orjson.dumps(line.text)
        self._backlog.appendleft((line, encoded))
        self._backlog_bytes += len(encoded) - len(before)
