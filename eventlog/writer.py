"""Appends one stream's records to its segments: one `write(2)` each, nothing in between.

    append ──▶ line ──▶ os.write(O_APPEND) ──▶ the record survives this process
                                 sync ──▶ fdatasync ──▶ it survives a power cut

Invariants
----------
* `append` returned True ⇒ the whole line is in the kernel, and on the disk if durability is "always".
* It returned False ⇒ `dropped` counts it. What is not in the log at all is said by a `gap` record, as soon as there
  is space.
* A seq is taken by a successful write, so seqs have no gaps.
* A file ends on a whole record, but for the write under way; a file that could not be cut back is never added to.
* A segment whose fsync failed is not trusted again: what it may have lost is written once more, elsewhere.
* `sync` returned True ⇒ every record there is is on the disk, also those of segments that were closed meanwhile; once
  nobody can vouch for one of them, it never says so again.
* `append` never waits for a disk: what waits is `sync`, which another thread calls (`durability="always"` is the
  exception that the caller asked for).
* Once `end` or `close` has begun, nothing is written but the last record. Whoever logs beside it was before it, or gets
  `UsageError`, also the call that a signal handler cut in on to end the stream.

A signal handler may log in the middle of a `log` of its thread, at any bytecode, and Ctrl-C may end one there. No lock
helps against one's own thread, so what is in memory is believed only if it was stored by the call that began last;
else the end of the file says how far the log is.

The reading half knows all this from FORMAT.md. What a record means is not known here.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from eventlog.errors import UsageError
from eventlog.record import LINE_MAX_BYTES, BadLine, TextMark, encode_data, frame_record, unframe
from eventlog.segment import ROTATE_AGE_S, ROTATE_BYTES, Header, Segment, next_attempt

DURABILITIES = ("none", "interval", "always")
# With a full disk, an attempt costs two system calls: at most one a second, or training would feel it.
RETRY_S = 1.0
# A disk that keeps failing fsync gets a new copy of the unsynced records ever more rarely.
_REWRITE_RETRY_MAX_S = 60.0
# One second of trajectories at 16 MB/s. Beyond it, unsynced lines are only in their file.
_UNSYNCED_MAX_BYTES = 16 * 1024 * 1024
# A disk that fails for hours: the oldest segments stay as they are, unsynced, so that memory is bounded.
_RETIRED_MAX = 8
# Longer than any disk takes that still works.
_SYNC_WAIT_S = 60.0
_ATTEMPTS_MAX = 10


# How much of a segment a sync is for: its next seq, bytes in `unsynced`, lines left out.
_UpTo = tuple[int, int, int]


@dataclass(slots=True, eq=False)
class _OpenSegment:
    """A file that this process appends to, or did and has still to sync."""

    # -1 once there were too many: a sync opens it again.
    fd: int
    name: str
    first_seq: int
    rotate_at_s: float
    # All records before this one are on the disk.
    synced_seq: int
    # The lines that no fsync has vouched for yet. Reading them back from the file would not do: after a failed fsync
    # some file systems (Btrfs) show the old content again. Roughly in order, at times twice. One buffer, because a
    # second's lines are to be forgotten in one go, while a `log` waits, and are not for the garbage collector to count.
    unsynced: bytearray = field(default_factory=bytearray)
    # How many lines are not in it although no fsync had vouched for them; of these, how many one did since.
    left_out: int = 0
    left_out_synced: int = 0
    is_named_durably: bool = False
    is_distrusted: bool = False

    def remember(self, line: bytes) -> None:
        if len(self.unsynced) + len(line) <= _UNSYNCED_MAX_BYTES or not self.unsynced:
            self.unsynced += line
        else:
            self.left_out += 1

    def upto(self, before_seq: int) -> _UpTo:
        return before_seq, len(self.unsynced), self.left_out

    def synced(self, upto: _UpTo) -> None:
        """Note that all that there was at `upto` is on the disk.  Only one sync at a time does so."""
        self.synced_seq, size, self.left_out_synced = upto
        del self.unsynced[:size]

    def forget(self) -> None:
        """Keep no line in memory."""
        # Counted first: whoever is interrupted in between must not believe that the lines are still there.
        self.left_out += 1
        self.unsynced.clear()


# How far the log is: the next seq, the bytes of the current segment, that segment, and the mark of the call that
# stored this. One tuple, so that one store changes all.
_At = tuple[int, int, "_OpenSegment | None", object]
# What a record says, before it has a seq: kind, data, as_text, time_us, step, commit.
_Told = tuple[str, bytes, list[TextMark], int, "int | None", bool]


class _TooLong(Exception):
    """A record over the limit."""


class StreamWriter:
    """Writes one stream of one piece.  Safe to use from threads and from signal handlers."""

    def __init__(
        self,
        piece_dir: Path,
        log_id: str,
        writer: str,
        token: str,
        stream: str,
        durability: str = "interval",
        clock_s: Callable[[], float] = time.monotonic,
        on_drop: Callable[[str], None] | None = None,
    ) -> None:
        if durability not in DURABILITIES:
            raise ValueError(f"durability is one of {', '.join(DURABILITIES)}, not {durability!r}.")
        self.stream = stream
        self.dropped = 0
        self.trouble: str | None = None
        """What went wrong last, in words; None as long as nothing did."""
        # Reentrant: a signal handler that logs runs in the middle of a call of the very thread that it interrupts.
        self.lock = threading.RLock()
        self.syncs_each_record = durability == "always"
        self._remembers = durability != "none"
        self._clock_s = clock_s
        self._on_drop = on_drop or self.owe_gap
        self._identity = (log_id, writer, token)
        # Through the descriptor, so that a directory that is moved while it is written keeps its writer.
        self._dir_fd = os.open(piece_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # The current one, and those that are not yet known to be on the disk.
        self._open: list[_OpenSegment] = []
        # Whether there is a record that may not be on the disk, and that no later sync can put there.
        self._is_unsure = False
        # Taken before `lock`, never inside it.
        self._sync_lock = threading.RLock()
        self._is_syncing = False
        # The mark of the call that began last: if `_at` does not carry it, a call was cut short or cut in on.
        self._latest: object = None
        self._at: _At = (0, 0, None, None)
        # Counted without a call in between, at which a signal handler could count as well.
        self._owed: defaultdict[str, int] = defaultdict(int)
        # Not `lock`: another stream's writer says here what it dropped, while it holds its own.
        self._owed_lock = threading.RLock()
        self._is_writing = False
        # Set while the current segment is exchanged: a signal handler that logs just then is counted as dropped.
        self._is_moving = False
        self._is_ended = False
        # Ended in the middle of a `write` of this thread, which is still to find out.
        self._is_cut_off = False
        self._retry_at_s = 0.0
        self._rewrite_at_s = 0.0
        self._rewrite_pause_s = RETRY_S

    @property
    def next_seq(self) -> int:
        return self._at[0]

    @property
    def is_dirty(self) -> bool:
        """Whether there is something that `sync` would make durable."""
        seq, _, segment, _ = self._at
        return len(self._open) > (segment is not None) or (segment is not None and segment.synced_seq < seq)

    @property
    def unsynced_bytes(self) -> int:
        """How much of the current segment waits for a `sync`, as far as it is remembered."""
        segment = self._at[2]
        return 0 if segment is None else len(segment.unsynced)

    def append(
        self, kind: str, data: Mapping[Any, Any], step: int | None = None, commit: bool = False
    ) -> bool:
        """Write one record; say whether it is in the log, and on the disk if durability is "always"."""
        time_us = time.time_ns() // 1000
        # Before the lock: this may run a stranger's `__str__`, and take long.
        encoded, as_text = encode_data(data)
        return self.append_encoded(kind, encoded, as_text, time_us, step, commit)

    def append_encoded(
        self,
        kind: str,
        data: bytes,
        as_text: list[TextMark],
        time_us: int,
        step: int | None = None,
        commit: bool = False,
    ) -> bool:
        """Like `append`, with data that `encode_data` has been over."""
        with self.lock:
            is_written = self.write(kind, data, as_text, time_us, step, commit)
        return is_written and (not self.syncs_each_record or self.sync_record())

    def write(
        self,
        kind: str,
        data: bytes,
        as_text: list[TextMark],
        time_us: int,
        step: int | None = None,
        commit: bool = False,
    ) -> bool:
        """Like `append_encoded`, and never sync.  The caller holds `lock`."""
        is_nested = self._is_writing
        told = (kind, data, as_text, time_us, step, commit)
        try:
            self._is_writing = True
            # Asked only now: whoever ends the stream before this finds nobody writing, and after it, somebody.
            if self._is_ended:
                raise _ended()
            return self._write_nested(told) if is_nested else self._write_outermost(told)
        except _TooLong:
            return self._drop(f"a record is over the limit of {LINE_MAX_BYTES:,} bytes")
        finally:
            self._is_writing = is_nested

    def sync_record(self) -> bool:
        """Make the record that was just written durable, or count it as dropped."""
        if self._sync_all():
            return True
        with self.lock:
            self.dropped += 1
        return False

    def owe_gap(self, reason: str) -> None:
        """Let a `gap` record say, before the next record, that one was dropped."""
        with self._owed_lock:
            self._owed[reason] += 1

    def retry_now(self) -> None:
        """Let the next `append` try, however recently the last one failed."""
        self._retry_at_s = 0.0

    def is_deleted(self) -> bool:
        """Say whether somebody deleted the current segment; if so, the next record begins a new one, or is dropped."""
        with self.lock:
            segment = self._at[2]
            # Nobody closes what a sync is using just now; whoever asks, asks again.
            if segment is None or self._is_writing or self._is_syncing:
                return False
            try:
                # A file that cannot be asked (a stale handle) cannot be written either, and `append` says that.
                if os.fstat(segment.fd).st_nlink > 0:
                    return False
            except OSError:
                return False
            self._leave()
            self._close_segment(segment)
            self.trouble = f"{segment.name} was deleted while it was written"
            return True

    def sync(self) -> bool:
        """Make all that was written before this call durable; say whether it is.

        Waits for the disk, while `append` goes on in other threads.
        """
        return self._sync_all() and not self._is_unsure

    def _sync_all(self) -> bool:
        with self.lock:
            if self._is_writing:
                return self._sync_nested()
        # Not for ever: a signal handler may have cut in while its thread holds what the other one waits for.
        if not self._sync_lock.acquire(timeout=_SYNC_WAIT_S):
            return False
        try:
            with self.lock:
                if self._is_syncing:
                    # A signal handler, in the middle of another `sync` of this thread, which will go on.
                    return False
                self._is_syncing = True
                before_seq, _, current, _ = self._at
                upto = current.upto(before_seq) if current is not None else None
                retired = [segment for segment in self._open if segment is not current]
            try:
                for segment in retired:
                    # While the disk refuses one segment, the next would only become the next to be copied.
                    if not self._sync_segment(segment):
                        return False
                if current is None or current.synced_seq >= before_seq:
                    return not (self._is_ended and self._is_unsure)
                return self._sync_segment(current, upto)
            finally:
                self._is_syncing = False
        finally:
            self._sync_lock.release()

    def end(self, kind: str, data: bytes, as_text: list[TextMark], time_us: int) -> bool:
        """Write the stream's last record, which nothing comes after; say whether it is in the log.

        Who comes second writes nothing.
        """
        return self._end((kind, data, as_text, time_us, None, False))

    def close(self) -> bool:
        """End the stream, sync it (unless durability is "none") and let go of the files; say whether all is durable."""
        with self.lock:
            self._end(None)
            if self._is_writing:
                # A signal handler, in the middle of a write, which then goes on and keeps its files.
                return not self._remembers or self.sync()
        is_durable = self.sync() if self._remembers else True
        # For whoever made a record, and has still to ask for its sync.
        self._is_unsure = self._is_unsure or not is_durable
        if not self._sync_lock.acquire(timeout=_SYNC_WAIT_S):
            return False
        try:
            with self.lock:
                # Likewise in the middle of a sync.
                if not self._is_writing and not self._is_syncing:
                    self.abandon_after_fork()
        finally:
            self._sync_lock.release()
        return is_durable

    def abandon_after_fork(self) -> None:
        """Close this process's descriptors, and nothing else: in a forked child the files are the parent's."""
        self._at = (self._at[0], 0, None, self._at[3])
        for segment in list(self._open):
            self._close_segment(segment)
        if self._dir_fd >= 0:
            _close(self._dir_fd)
            self._dir_fd = -1

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────

    def _write_outermost(self, told: _Told) -> bool:
        now_s = self._clock_s()
        # A second try, in a new segment, for what ails one file alone: a limit on its size, say.
        for _ in range(2):
            at: _At | None = self._begin()
            assert at is not None
            seq, end, segment, _ = at
            if segment is None or self._owed or end >= ROTATE_BYTES or now_s >= segment.rotate_at_s:
                at = self._prepare(at, now_s)
                if at is None:
                    break
                seq, _, segment, _ = at
            if self._put(at, told):
                return True
            self._give_up()
            assert segment is not None
            if seq == segment.first_seq:
                self._retry_at_s = now_s + RETRY_S
                break
        return self._drop(self.trouble or "the write failed")

    def _write_nested(self, told: _Told) -> bool:
        """Write in the middle of another `write` of this thread: nothing is opened, closed or given up here."""
        if self._is_moving or self._at[2] is None:
            return self._drop(self.trouble or "a signal handler logged while a segment was being opened")
        return self._put(self._begin(), told) or self._drop(self.trouble or "the write failed")

    def _end(self, last: _Told | None) -> bool:
        with self.lock:
            if self._is_ended:
                return True
            is_nested = self._is_writing
            self._is_ended = True
            try:
                self._is_writing = True
                if last is None:
                    return True
                if not is_nested:
                    return self._write_outermost(last)
                at = self._begin()
                is_written = self._write_apart(at[0], last) if at[2] is None else self._put(at, last)
                return is_written or self._drop(self.trouble or "the write failed")
            finally:
                self._is_writing = is_nested
                if is_nested:
                    self._cut_off()

    def _cut_off(self) -> None:
        """Let the `write` that this cuts in on find its stream ended, even if it stands just before its `write(2)`."""
        self._is_cut_off = True
        # Its mark is not the latest any more: it looks at what became of its line.
        segment = self._begin()[2]
        if segment is None:
            return
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(segment.name, flags, dir_fd=self._dir_fd)
        except OSError:
            # No descriptor is free, or the file is deleted: then what can be neither written nor read.
            self._is_unsure = True
            os.dup2(self._dir_fd, segment.fd, inheritable=False)
        else:
            # Under the same number, which thus cannot become another file's.
            os.dup2(fd, segment.fd, inheritable=False)
            _close(fd)

    def _write_apart(self, seq: int, told: _Told) -> bool:
        """Write the last record into a segment of its own: the call that this cuts in on is about to open one."""
        kind, data, as_text, time_us, step, commit = told
        try:
            segment, _ = self._create(seq, self._clock_s())
            try:
                _write_whole(
                    segment.fd, frame_record(seq, time_us, kind, data, as_text, step=step, commit=commit)
                )
                if self._remembers:
                    self._force(segment)
            except OSError:
                self._discard(segment)
                raise
        except OSError as error:
            self.trouble = _in_words(error)
            return False
        _close(segment.fd)
        return True

    def _begin(self) -> _At:
        """Return how far the log is, under a new mark, which `_at` does not carry until the write is done.

        A handler that cuts in before that reads the end of the file; whoever finds another mark later was cut in on.
        """
        while True:
            before = self._latest
            mark = object()
            self._latest = mark
            seq, end, segment, stored = self._at
            if stored is not before and segment is not None:
                seq, end = self._read_end(seq, end, segment)
            # If a handler ran meanwhile, it left behind a state in which nothing says that we are about to write.
            if self._latest is mark:
                return seq, end, segment, mark

    def _put(self, at: _At, told: _Told) -> bool:
        """Write one record at `at`, whole, or leave nothing of it."""
        kind, data, as_text, time_us, step, commit = told
        while True:
            seq, end, segment, mark = at
            assert segment is not None
            line = frame_record(seq, time_us, kind, data, as_text, step=step, commit=commit)
            length = len(line)
            if length > LINE_MAX_BYTES:
                raise _TooLong
            trouble = "ENOSPC: the write was cut short"
            try:
                written = _write(segment.fd, line)
            except OSError as error:
                written, trouble = 0, _in_words(error)
            if self._latest is mark:
                if written == length:
                    if self._remembers:
                        segment.remember(line)
                    # A handler that cuts in just here has changed the mark: this store is then known to be old.
                    self._at = (seq + 1, end + length, segment, mark)
                    return True
                self.trouble = trouble
                # Cuts off what was written of the line.
                self._latest = object()
                self._begin()
                return False
            # A signal handler has logged since `at` was read: before our write, and it has our seq, or after it.
            if self._is_first(segment, end, seq, line):
                return True
            if self._is_cut_off:
                raise _ended()
            # Readers pass over a line whose seq another one had first.
            at = self._begin()

    def _is_first(self, segment: _OpenSegment, end: int, seq: int, line: bytes) -> bool:
        """Say whether `line` is what readers find under `seq`, looking from `end` on."""
        try:
            data = os.pread(segment.fd, os.fstat(segment.fd).st_size - end, end)
        except OSError as error:
            self.trouble = _in_words(error)
            return False
        return next((there for there_seq, there in _records_in(data) if there_seq == seq), None) == line

    def _read_end(self, seq: int, end: int, segment: _OpenSegment) -> tuple[int, int]:
        """Return the next seq and the size of a segment that had these at some time, and cut off a torn line."""
        try:
            data = os.pread(segment.fd, os.fstat(segment.fd).st_size - end, end)
            whole = data[: data.rfind(b"\n") + 1]
            for there_seq, line in _records_in(whole):
                if there_seq == seq:
                    if self._remembers:
                        segment.remember(line)
                    seq += 1
            end += len(whole)
            if len(whole) < len(data):
                os.ftruncate(segment.fd, end)
        except OSError as error:
            self.trouble = _in_words(error)
        return seq, end

    def _prepare(self, at: _At, now_s: float) -> _At | None:
        """Return a place in a segment in which what was dropped before is said, or None."""
        _, end, segment, _ = at
        is_due = segment is None or end >= ROTATE_BYTES or now_s >= segment.rotate_at_s
        if is_due and now_s >= self._retry_at_s:
            # An old segment that no new one can follow goes on: better large than none.
            at = self._open_next(at, now_s)
        if at[2] is None:
            return None
        while self._owed:
            with self._owed_lock:
                reason, count = next(iter(self._owed.items()))
            gap = orjson.dumps({"dropped": count, "reason": reason})
            if not self._put(at, ("gap", gap, [], time.time_ns() // 1000, None, False)):
                self._give_up()
                self._retry_at_s = now_s + RETRY_S
                return None
            with self._owed_lock:
                self._owed[reason] -= count
                if not self._owed[reason]:
                    del self._owed[reason]
            at = self._begin()
        return at

    def _open_next(self, at: _At, now_s: float) -> _At:
        """Return the beginning of a new segment, or `at` if there can be none."""
        seq, _, _, mark = at
        try:
            opened, end = self._create(seq, now_s)
        except OSError as error:
            self.trouble = _in_words(error)
            self._retry_at_s = now_s + RETRY_S
            return at
        try:
            self._is_moving = True
            is_next = self._latest is mark
            if is_next:
                self._open.append(opened)
                self._at = (seq, end, opened, mark)
                self._close_old()
        finally:
            self._is_moving = False
        if self._is_cut_off and self._at[3] is mark:
            # The stream was ended before the new segment was the current one: its last record is elsewhere.
            self._leave()
            self._open.remove(opened)
            is_next = False
        if not is_next:
            # A signal handler logged into the old segment: the new one's name would lie.
            self._discard(opened)
        if self._is_cut_off:
            raise _ended()
        return self._begin()

    def _create(self, first_seq: int, now_s: float) -> tuple[_OpenSegment, int]:
        """Return a new segment and its size, with its header written, or raise `OSError` and leave none."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        first = next_attempt(os.listdir(self._dir_fd), self.stream, first_seq)
        # A signal handler may take a name before us; so many in a row means that something else is wrong.
        for attempt in range(first, first + _ATTEMPTS_MAX):
            name = Segment(self.stream, first_seq, attempt).name
            with suppress(FileExistsError):
                fd = os.open(name, flags, 0o600, dir_fd=self._dir_fd)
                break
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        created = _OpenSegment(fd, name, first_seq, now_s + ROTATE_AGE_S, synced_seq=first_seq)
        header = Header(*self._identity, self.stream, first_seq, time.time_ns() // 1000).encode()
        try:
            _write_whole(fd, header)
        except BaseException:
            self._discard(created)
            raise
        return created, len(header)

    def _give_up(self) -> None:
        """Never add to the current segment again; its whole records stay."""
        segment = self._at[2]
        assert segment is not None
        if self._leave() > segment.first_seq:
            self._close_old()
        else:
            # Without this, a full disk would collect one empty file for each attempt.
            self._open.remove(segment)
            self._discard(segment)

    def _leave(self) -> int:
        """Have no current segment, and return the next seq."""
        try:
            self._is_moving = True
            seq, _, _, mark = self._begin()
            self._at = (seq, 0, None, mark)
            return seq
        finally:
            self._is_moving = False

    def _close_old(self) -> None:
        """Let go of segments that no sync will come for, or that a failing disk makes too many."""
        old = [segment for segment in self._open if segment is not self._at[2] and segment.fd >= 0]
        # Nobody closes what a sync is using just now.
        while len(old) > (_RETIRED_MAX if self._remembers else 0) and not self._is_syncing:
            segment = old.pop(0)
            segment.forget()
            if segment.is_distrusted:
                self._is_unsure = True
                self._close_segment(segment)
            else:
                fd, segment.fd = segment.fd, -1
                _close(fd)

    def _close_segment(self, segment: _OpenSegment) -> None:
        self._open.remove(segment)
        _close(segment.fd)

    def _discard(self, segment: _OpenSegment) -> None:
        with suppress(OSError):
            os.unlink(segment.name, dir_fd=self._dir_fd)
        _close(segment.fd)

    def _drop(self, reason: str) -> bool:
        self.dropped += 1
        self.trouble = reason
        self._on_drop(reason)
        return False

    # ── syncing ──────────────────────────────────────────────────────────────────────────────────────────────

    def _sync_segment(self, segment: _OpenSegment, upto: _UpTo | None = None) -> bool:
        """Sync `segment` up to there, or, without, for good."""
        if not segment.is_distrusted:
            try:
                self._force(segment)
            except OSError as error:
                self.trouble = f"fsync: {_in_words(error)}"
                segment.is_distrusted = True
            else:
                with self.lock:
                    if upto is None:
                        self._close_segment(segment)
                    else:
                        segment.synced(upto)
                return True
        return self._rewrite(segment)

    def _sync_nested(self) -> bool:
        """Sync in the middle of a `write` of this thread."""
        segment = self._at[2]
        if segment is None:
            return False
        try:
            self._force(segment)
        except OSError as error:
            self.trouble = f"fsync: {_in_words(error)}"
            segment.is_distrusted = True
            return False
        return len(self._open) == 1

    def _force(self, segment: _OpenSegment) -> None:
        if not segment.is_named_durably:
            # Without this a power cut could take the file with all that was synced in it.
            try:
                os.fsync(self._dir_fd)
            except OSError as error:
                # Some network file systems cannot sync a directory, and need not.
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise
            segment.is_named_durably = True
        if segment.fd >= 0:
            os.fdatasync(segment.fd)
            return
        # What was deleted meanwhile need not be synced.
        with suppress(FileNotFoundError):
            fd = os.open(segment.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._dir_fd)
            try:
                os.fdatasync(fd)
            finally:
                _close(fd)

    def _rewrite(self, failed: _OpenSegment) -> bool:
        """Write what `failed` may have lost into a segment of its own, with the same seqs, and sync that.

        A second fsync of the same file would succeed without having written anything.
        """
        with self.lock:
            now_s = self._clock_s()
            if self._is_writing or now_s < self._rewrite_at_s:
                return False
            if failed is self._at[2]:
                self._leave()
        lines = sorted(dict(_records_in(bytes(failed.unsynced))).items())
        fresh = None
        try:
            if lines:
                fresh, _ = self._create(lines[0][0], now_s)
                for _, line in lines:
                    _write_whole(fresh.fd, line)
                self._force(fresh)
        except OSError as error:
            if fresh is not None:
                self._discard(fresh)
            self.trouble = f"fsync: {_in_words(error)}"
            self._rewrite_at_s = now_s + self._rewrite_pause_s
            self._rewrite_pause_s = min(2 * self._rewrite_pause_s, _REWRITE_RETRY_MAX_S)
            return False
        self._rewrite_pause_s = RETRY_S
        with self.lock:
            self._close_segment(failed)
        if fresh is not None:
            _close(fresh.fd)
        if not self._remembers or failed.left_out > failed.left_out_synced:
            # Lines that were left out are where an fsync failed.
            self._is_unsure = True
            return False
        return True


def _ended() -> UsageError:
    return UsageError("the run is finished. Log before finish(), or begin another run with eventlog.init().")


def _records_in(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the whole records in `data`, which may begin and end in the middle of one, with their seqs."""
    for line in data.split(b"\n")[:-1]:
        with suppress(BadLine):
            content = unframe(line)
            if "seq" in content:
                yield content["seq"], line + b"\n"


def _write(fd: int, line: bytes) -> int:
    """Return how many bytes of `line` were written: a short write is continued once."""
    written = os.write(fd, line)
    if written < len(line):
        with memoryview(line) as view:
            written += os.write(fd, view[written:])
    return written


def _write_whole(fd: int, line: bytes) -> None:
    if _write(fd, line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _close(fd: int) -> None:
    with suppress(OSError):
        os.close(fd)


def _in_words(error: OSError) -> str:
    return f"{errno.errorcode.get(error.errno or 0, 'an error')}: {error.strerror}"
