"""Keeps all runs below some roots on their way to W&B.  One loop, no thread or process per run.

    roots ──scan──▶ runs ──due──▶ RunSync.turn ──▶ when to look again
      ▲ hints (watch)                  │ trouble
                                       ▼
                        Gate: the network is away / the key is refused

Invariants
----------
* At most `MAX_TURNS` runs have a request in flight.
* At most `WINDOW` runs that nobody writes any more are open: of many, the first are done before the last are begun. One
  that has to wait for long is not.
* Turns that hang, while the host answers others, take no place from those that would not; of one project no more are
  begun beside them.
* A run to which nothing came is not opened again; to see that costs a few `stat`.
* The gate is shut when the host is away or refuses the key, and not for what only some requests meet.
* While it is shut nothing is sent but a cheap probe now and then; when it opens, every run is due at once.
* A request that hangs is no reason to wait for it: when the network was away meanwhile, it is made again.
* A run that fails, whatever the reason, delays only itself.
* Stopping at any instant, by whatever signal, costs nothing but time. Asked to stop, what was logged until then is
  sent first, if that does not take long; asked again, nothing is waited for.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

from eventlog import cursor as cursors
from eventlog.cursor import SYNC_DIR, Sink, run_id_there
from eventlog.errors import NotARun
from eventlog.piece import LOCK_FILE, RUN_FILE, RunIdentity, primaries
from eventlog.reader import StreamReader, find_runs, pieces_of
from eventlog.segment import rank_of_writer
from syncd.attach import STEADY_S
from syncd.instance import LINGER_S
from syncd.metadata import NO_EDITS, Edits
from syncd.run_sync import COLD_S, WARM_S, RunSync
from syncd.shipper import FLUSH_S, Outcome, Pace, Verdict
from syncd.status import Progress, is_written
from syncd.track import STANDSTILL_S
from syncd.transfer import outcome_of_answer
from syncd.wandb_api import WandbApi

log = logging.getLogger("syncd")

MAX_TURNS = 8
# With those that hang. Each holds a connection, and a batch.
HANGING_MAX = 32
# So many that hang say that the next of their project will.
HANGING_OF_PROJECT = 2
# Each takes a file descriptor and the memory of a fold; for `MAX_TURNS` requests a few would do.
WINDOW = 32
SCAN_S = 60.0
# So many runs are looked at, or looked for, before a turn may go on: some milliseconds' worth.
AT_ONCE = 50
# Roots are entered in their list by `init`; the list is short and looking at it is cheap.
ROOTS_S = 2.0
# How soon a returning network is noticed: soon after a hiccup, and at worst after this. One small request each,
# whether or not the one before was answered: that may have left into a network that swallows everything.
PROBE_FIRST_S, PROBE_S = 0.25, 5.0
# A turn of many requests, or of a large one, may well take longer than this; it only makes the daemon ask.
DOUBT_S = 5.0
# A hint may come with every record; a run is looked at no more often than this for hints alone.
HINT_S = 0.5
# Hints of all runs are taken together: a writer may give thousands a second.
HINTS_S = 0.1
CRASH_BACKOFF_S = 30.0
# A run that is due later than that gives up its place in the window: to open it again takes some milliseconds.
HOLD_S = 5.0
# A turn that raises so often in a row will raise tomorrow, too.
CRASHES_MAX = 5


@dataclass(slots=True)
class Gate:
    """Whether the host can be talked to at all.  Pure: the caller says what time it is."""

    reason: str | None = None
    since_s: float = 0.0
    next_try_s: float = 0.0
    tries: int = 0
    needs_a_person: bool = False
    """The key is refused: time alone will not open it."""

    @property
    def is_open(self) -> bool:
        return self.reason is None

    def shut(self, reason: str, now_s: float, jitter: float, needs_a_person: bool = False) -> None:
        if self.reason is None:
            self.since_s, self.tries = now_s, 0
            self.reason = reason
            self.asked(now_s, jitter)
        self.reason, self.needs_a_person = reason, needs_a_person

    def asked(self, now_s: float, jitter: float) -> None:
        """Note that a probe leaves, and so when the next one may."""
        wait_s = PROBE_S if self.is_open else min(PROBE_S, PROBE_FIRST_S * 2.0**self.tries)
        self.tries = min(self.tries + 1, 10)
        self.next_try_s = now_s + wait_s * (0.5 + 0.5 * jitter)

    def open(self, now_s: float) -> None:
        if self.reason is not None:
            self.since_s = now_s
        self.reason, self.needs_a_person = None, False


# What changes with whatever happens to a run's log, and to what its destinations have of it.
Look = tuple[int, int]
# A run's directory, and the rank whose part of it this is: 0 for the run itself.
RunKey = tuple[Path, int]


@dataclass(slots=True)
class Entry:
    """One run that the daemon knows: of ten thousand, most rest, and are to take next to nothing."""

    key: RunKey
    log_id: str
    sink: Sink
    due_s: float = float("inf")
    run_id_there: str | None = None
    """The id to upload it under, if a person chose another."""
    sync: RunSync | None = None
    """None while it rests, and before its first turn."""
    caught_up: bool = False
    parked: bool = False
    error: str | None = None
    """How its last turn left it."""
    last_turn_s: float = float("-inf")
    task: asyncio.Task[float] | None = None
    hinted: bool = False
    is_wanted: bool = False
    """It is to be looked at again as soon as its turn is over."""
    failures: int = 0
    failure: BaseException | None = None
    """What the last turn raised, if it did."""
    is_given_up: bool = False
    """The last turn hung, and was ended for that."""
    got_to: tuple[object, ...] = ()
    said: str = ""
    """What the log has of its trouble already."""
    looked_at: Look | None = None
    """What its files were like when the turn under way began, if it was closed then."""
    rests_at: Look | None = None
    """What they are like while there is nothing to do."""

    @property
    def is_open(self) -> bool:
        return self.sync is not None and self.sync.is_open

    def close(self, durable: bool = True) -> None:
        if self.sync is not None:
            self.sync.close(durable)


@dataclass
class Daemon:
    """The loop.  `run()` returns when `stop()` was called or, with `until_synced`, when all is acknowledged."""

    roots: Callable[[], Iterable[Path]]
    api: WandbApi
    asked_for: list[Path] = field(default_factory=list)
    """Run directories to sync whatever root they are in, also those logged with mode=offline."""
    entity: str | None = None
    project: str | None = None
    choice: str | None = None
    """What a person chose for runs that the server has in part: see `Cursor.choice`."""
    edits: Edits = NO_EDITS
    max_turns: int = MAX_TURNS
    until_synced: bool = False
    flush_s: float = FLUSH_S
    linger_s: float = LINGER_S
    """How long, once it is to stop, it may go on to send what was logged until then."""
    steady_s: float = STEADY_S
    standstill_s: float = STANDSTILL_S
    """How long nothing must have come of what is missing in a run, before it is taken for lost."""
    lost_place: Callable[[], str | None] = lambda: None
    """Say why another daemon may run beside this one, if one may."""
    on_change: Callable[[Daemon], None] = lambda daemon: None
    on_over: Callable[[Path], None] = lambda run_dir: None
    """Is told of a run that nobody writes any more and of which all is acknowledged."""
    watch_roots: Callable[[list[Path]], bool] = lambda roots: False
    """Look after the watching of the roots, and hint what was missed; say whether how they are watched has changed."""
    clock: Callable[[], float] = time.monotonic
    """Any monotonic seconds."""
    last_good_s: float = float("-inf")
    """When a run last got on."""
    finished: bool = False
    """`run` returned since all was done."""
    gate: Gate = field(default_factory=Gate)
    entries: dict[RunKey, Entry] = field(default_factory=dict)
    twins: dict[Path, Path] = field(default_factory=dict)
    """Copies of a run directory, and the one that is uploaded."""
    _logs: dict[tuple[str, Sink], Path] = field(default_factory=dict)
    _pace: Pace = field(default_factory=Pace)
    _hinted: set[Path] = field(default_factory=set)
    _hints_at_s: float = float("-inf")
    _wants_ranks: dict[Path, bool] = field(default_factory=dict)
    _asked_for: frozenset[Path] = frozenset()
    _in_doubt: set[RunKey] = field(default_factory=set)
    """Runs whose trouble may be the host's: a probe will tell."""
    _asked_s: float = float("-inf")
    """When the last probe left."""
    _probes: list[asyncio.Task[None]] = field(default_factory=list)
    """Those that are not answered yet, in the order in which they left."""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _scanning: Iterator[Path] = field(default_factory=lambda: iter(()))
    _is_scanning: bool = True
    _due: list[tuple[float, int, Entry]] = field(default_factory=list)
    """When each run is due, the next first; what a run is not due at any more is passed over."""
    _pushes: Iterator[int] = field(default_factory=count)
    _running: dict[RunKey, Entry] = field(default_factory=dict)
    _window: set[RunKey] = field(default_factory=set)
    _waiting: deque[Entry] = field(default_factory=deque)
    """Runs that are due and may not be begun yet: the window is full."""
    _undone: set[RunKey] = field(default_factory=set)
    """Runs of which not all is acknowledged, or nobody has looked."""
    _ends_at_s: float = float("inf")
    _is_lingering: bool = False
    _lingering: dict[RunKey, float] = field(default_factory=dict)
    """Once it is to stop: the runs that may still have something to send, and since when each is asked."""

    async def run(self) -> None:
        next_scan_s = next_roots_s = float("-inf")
        self.last_good_s = self.clock()
        self._asked_for = frozenset(self.asked_for)
        known: list[Path] = []
        self._say_change()
        try:
            while not self._has_ended():
                now_s = self.clock()
                if now_s >= next_roots_s:
                    self._look_whether_alone()
                    known = list(self.roots())
                    next_roots_s = now_s + ROOTS_S
                    if self.watch_roots(known):
                        self._say_change()
                if now_s >= next_scan_s:
                    self._scanning = self._scan(known)
                    next_scan_s = now_s + SCAN_S
                self._is_scanning = len(list(islice(self._scanning, AT_ONCE))) == AT_ONCE
                if self._hinted and now_s >= self._hints_at_s:
                    self._take_hints(now_s)
                if self._ends_at_s < float("inf") and not self._is_lingering and not self._hinted:
                    self._begin_to_linger(now_s)
                if now_s >= self._next_probe_s():
                    self.gate.asked(now_s, random.random())
                    self._asked_s = now_s
                    self._probes.append(asyncio.ensure_future(self._probe()))
                    self._probes[-1].add_done_callback(self._probe_ended)
                # Before the next turns: a run that is done must not be looked at again and again.
                if self.until_synced and self._all_done():
                    self.finished = True
                    return
                if self.gate.is_open:
                    self._start_turns(now_s)
                hints_s = self._hints_at_s if self._hinted else float("inf")
                scan_s = now_s if self._is_scanning else next_scan_s
                await self._wait(min(next_roots_s, scan_s, hints_s, self._next_due_s(), self._ends_at_s))
        finally:
            await self._wind_up()

    def stop(self) -> None:
        """End `run` soon, and at once if it was asked for before.  Call it from the loop's thread."""
        is_first = self._ends_at_s == float("inf")
        self._ends_at_s = self.clock() + self.linger_s if is_first else float("-inf")
        self._wake.set()

    def complaint(self) -> str:
        """Say what keeps the runs from getting on."""
        if self.gate.reason is not None:
            return self.gate.reason
        for (run_dir, _), entry in self.entries.items():
            if not entry.caught_up:
                trouble = entry.sync.trouble if entry.sync is not None else None
                reason = str(
                    entry.failure or entry.error or (trouble.reason if trouble else "it does not get on")
                )
                return f"{run_dir.name}: {reason}"
        return "nothing gets on"

    def hint(self, run_dir: Path) -> None:
        """Something happened in a run.  Call it from the loop's thread, as often as it happens: it costs nothing."""
        if not self._hinted:
            self._wake.set()
        self._hinted.add(run_dir)

    def _look_at_once(self, run_dir: Path, rank: int) -> None:
        """What a run had begun beside its turns is done: no need to wait, as for a hint, that there be more."""
        entry = self.entries.get((run_dir, rank))
        if entry is not None:
            entry.is_wanted = entry.task is not None
            self._want_at(entry, self.clock())
            self._wake.set()

    def _take_hints(self, now_s: float) -> None:
        hinted = list(islice(self._hinted, AT_ONCE))
        self._hinted.difference_update(hinted)
        self._hints_at_s = now_s if self._hinted else now_s + HINTS_S
        for run_dir in hinted:
            is_left_out = run_dir in self.twins and run_id_there(run_dir) is None
            # A copy that goes on where the other stands still is the run from now on.
            if not is_left_out or _is_written(run_dir, 0):
                self.twins.pop(run_dir, None)
                self._add(run_dir)
            keys = [(run_dir, 0)]
            if self._wants_ranks.get(run_dir):
                keys = [key for key in self.entries if key[0] == run_dir]
            for entry in [self.entries[key] for key in keys if key in self.entries]:
                if not entry.failures:
                    entry.hinted = True
                    self._want_at(entry, max(now_s, entry.last_turn_s + HINT_S))

    # -- runs --------------------------------------------------------------------------------------------------

    def _scan(self, roots: Iterable[Path]) -> Iterator[Path]:
        """Find out which runs there are, one by one: a caller who has something else to do in between does it."""
        found = set(self.asked_for)
        for root in roots:
            for run_dir in find_runs(root):
                known = self.entries.get((run_dir, 0))
                # Of ten thousand paths one of each is enough.
                found.add(known.key[0] if known is not None else run_dir)
                yield run_dir
        # A copy whose original is gone is the run now: it was moved.
        # One that a person wants under another id is a run of its own.
        twins = {copy: first for copy, first in self.twins.items() if _exists(first)}
        self.twins = {copy: first for copy, first in twins.items() if run_id_there(copy) is None}
        for run_dir in sorted(found - self.twins.keys()):
            self._add(run_dir)
            yield run_dir
        for key in [key for key in self.entries if key[0] not in found]:
            if not _exists(key[0]) and key in self.entries and self.entries[key].task is None:
                self._drop(key)

    def _add(self, run_dir: Path) -> None:
        """Take up a run that is not known yet, and its ranks if each is to be a run of its own."""
        try:
            self._add_ranks(run_dir)
        except (OSError, NotARun) as error:
            # A directory that vanishes, or that we may not look into: the next scan asks again.
            log.warning("%s is left out: %s", run_dir, error)

    def _add_ranks(self, run_dir: Path) -> None:
        known = self.entries.get((run_dir, 0))
        if known is not None and known.run_id_there != run_id_there(run_dir):
            # A person wants it uploaded under another id from now on.
            if not self.let_go(run_dir):
                return
            known = None
        if known is None:
            self._add_rank(run_dir, 0)
        elif known.last_turn_s > float("-inf"):
            # Its first record is read by its own first turn, and not at the start by a scan of ten thousand.
            for rank in self._ranks_of(run_dir):
                if (run_dir, rank) not in self.entries:
                    self._add_rank(run_dir, rank)

    def let_go(self, run_dir: Path) -> bool:
        """Hold a run and its ranks no longer, until the next hint or scan; False while one has a request in flight."""
        keys = [key for key in self.entries if key[0] == run_dir]
        if any(self.entries[key].task is not None for key in keys):
            return False
        for key in keys:
            self._drop(key)
        return True

    def _drop(self, key: RunKey) -> None:
        self.entries.pop(key).close()
        self._window.discard(key)
        self._undone.discard(key)
        if key[1] == 0:
            self._wants_ranks.pop(key[0], None)

    def _take_up_anew(self, run_dir: Path) -> None:
        """Another log lies under the path of a run."""
        if self.let_go(run_dir):
            self._add(run_dir)

    def _ranks_of(self, run_dir: Path) -> list[int]:
        """Return the ranks that are to be runs of their own: none, unless the run's first `start` says so."""
        if run_dir not in self._wants_ranks:
            names = primaries(run_dir)
            start = StreamReader(run_dir / names[0]).first() if names else None
            if start is None:
                return []
            self._wants_ranks[run_dir] = start.data.get("upload_ranks") == "all"
        if not self._wants_ranks[run_dir]:
            return []
        return sorted({rank for name in os.listdir(run_dir) if (rank := rank_of_writer(name))})

    def _add_rank(self, run_dir: Path, rank: int) -> None:
        try:
            identity = RunIdentity.load(run_dir)
        except NotARun as error:
            # A directory that is being born has no run.json yet; the next scan sees it.
            log.debug("%s", error)
            return
        other_id = run_id_there(run_dir)
        run_id = other_id or identity.run_id
        sink = Sink(
            self.api.base_url,
            self.entity or identity.entity,
            # One text for all runs of a project.
            sys.intern(self.project or identity.project),
            f"{run_id}-rank{rank}" if rank else run_id,
        )
        entry = Entry((run_dir, rank), identity.log_id, sink, run_id_there=other_id)
        first = self._logs.setdefault((identity.log_id, sink), run_dir)
        if first != run_dir and (first, rank) in self.entries and _exists(first):
            if _is_same(first, run_dir):
                # One directory by two ways, as of a bind mount.
                self.twins[run_dir] = first
                return
            if _claim(run_dir, rank, identity, sink) <= _claim(first, rank, identity, sink):
                self._leave_out(entry, first)
                return
            # A backup, say, whose name comes first.
            copy = self.entries[first, rank]
            if not self.let_go(first):
                self._hinted.add(run_dir)
                return
            self._leave_out(copy, run_dir)
        self._logs[identity.log_id, sink] = run_dir
        self.entries[run_dir, rank] = entry
        self._undone.add((run_dir, rank))
        self._set_due(entry, self.clock())

    def _leave_out(self, copy: Entry, first: Path) -> None:
        """Two directories with one identity would write over each other's lines."""
        run_dir, _ = copy.key
        self.twins[run_dir] = first
        log.warning("%s is a copy of %s: only the latter is uploaded", run_dir, first)
        self._sync_of(copy).park_as_copy_of(first)

    def _sync_of(self, entry: Entry) -> RunSync:
        """Return what brings a run there, or raise `NotARun`: it was deleted meanwhile."""
        if entry.sync is None:
            run_dir, rank = entry.key
            entry.sync = RunSync(
                run_dir,
                entry.sink,
                self.api,
                rank=rank,
                asked_for=run_dir in self._asked_for,
                choice=self.choice,
                edits=self.edits,
                flush_s=0.0 if self._is_lingering else self.flush_s,
                steady_s=self.steady_s,
                standstill_s=self.standstill_s,
                pace=self._pace,
                clock=self.clock,
                wake=lambda: self._look_at_once(run_dir, rank),
            )
        return entry.sync

    def progress_of(self, entry: Entry) -> Progress:
        """Return how far a run is, but for the age of what waits."""
        return self._sync_of(entry).progress()

    # -- turns -------------------------------------------------------------------------------------------------

    def _set_due(self, entry: Entry, due_s: float) -> None:
        entry.due_s = due_s
        heapq.heappush(self._due, (due_s, next(self._pushes), entry))

    def _want_at(self, entry: Entry, due_s: float) -> None:
        """Let a run be due no later than that; during a turn, its end says when it is."""
        if entry.task is None and due_s < entry.due_s:
            self._set_due(entry, due_s)

    def _start_turns(self, now_s: float) -> None:
        for _ in range(AT_ONCE):
            entry = self._next_entry(now_s) if self._has_place(now_s) else None
            if entry is None:
                return
            if self._hangs(entry.sink, now_s):
                self._set_due(entry, now_s + DOUBT_S)
                continue
            if self._is_lingering and entry.key not in self._lingering:
                continue
            if not entry.is_open:
                entry.looked_at = _look_of(*entry.key)
                if entry.rests_at is not None and entry.looked_at == entry.rests_at:
                    self._set_due(entry, now_s + COLD_S)
                    continue
                if not self._may_open(entry):
                    self._waiting.append(entry)
                    continue
            self._start_turn(entry, now_s)

    def _next_entry(self, now_s: float) -> Entry | None:
        """Return the run that is due for the longest time: one with a long backlog starves nobody."""
        while True:
            if self._waiting and len(self._window) < WINDOW:
                entry = self._waiting.popleft()
                is_due = entry.due_s <= now_s
            elif self._due and self._due[0][0] <= now_s:
                due_s, _, entry = heapq.heappop(self._due)
                is_due = due_s == entry.due_s
            else:
                return None
            if is_due and entry.task is None and self.entries.get(entry.key) is entry:
                return entry

    def _has_place(self, now_s: float) -> bool:
        """Whether a turn may be begun; those that hang are not waited for, nor is a probe that does."""
        if self._in_doubt and self._probes and now_s - self._asked_s < DOUBT_S:
            return False
        moving = sum(now_s - entry.last_turn_s < DOUBT_S for entry in self._running.values())
        return moving < self.max_turns and len(self._running) < HANGING_MAX

    def _hangs(self, sink: Sink, now_s: float) -> bool:
        """Whether turns of that project hang."""
        project = sink.entity, sink.project
        hanging = (e.sink for e in self._running.values() if now_s - e.last_turn_s >= DOUBT_S)
        return sum((each.entity, each.project) == project for each in hanging) >= HANGING_OF_PROJECT

    def _may_open(self, entry: Entry) -> bool:
        """Whether a run may be begun: it is being written, or there is a place in the window."""
        if len(self._window) < WINDOW:
            self._window.add(entry.key)
            return True
        return _is_written(*entry.key)

    def _start_turn(self, entry: Entry, now_s: float) -> None:
        try:
            sync = self._sync_of(entry)
        except NotARun as error:
            # Deleted or moved: the next scan finds out which.
            log.debug("%s", error)
            self._window.discard(entry.key)
            self._set_due(entry, now_s + WARM_S)
            return
        if sync.identity.log_id != entry.log_id:
            self._take_up_anew(entry.key[0])
            return
        entry.last_turn_s, entry.hinted, entry.rests_at = now_s, False, None
        self._running[entry.key] = entry
        entry.task = asyncio.ensure_future(sync.turn(now_s))
        entry.task.add_done_callback(lambda task: self._turn_ended(entry, task))

    def _turn_ended(self, entry: Entry, task: asyncio.Task[float]) -> None:
        entry.task = None
        del self._running[entry.key]
        self._wake.set()
        sync, key = entry.sync, entry.key
        assert sync is not None
        self._set_due(entry, self._due_after(entry, sync, task))
        entry.caught_up, entry.parked, entry.error = sync.caught_up, sync.parked, sync.error
        may_wait = not sync.is_live and not sync.is_busy and not self._is_lingering
        has_to_wait = may_wait and entry.due_s > self.clock() + HOLD_S
        if (has_to_wait and sync.may_be_closed) or self.gate.needs_a_person:
            sync.close()
        if sync.is_open and not sync.is_live and not sync.caught_up and not has_to_wait:
            self._window.add(key)
        else:
            self._window.discard(key)
        if sync.caught_up or sync.parked:
            self._undone.discard(key)
        else:
            self._undone.add(key)
        is_at_its_end = sync.caught_up or sync.parked or sync.trouble is not None or entry.failure is not None
        # A turn that was under way before may have read before as well.
        if is_at_its_end and entry.last_turn_s >= self._lingering.get(key, float("inf")):
            del self._lingering[key]
        if entry.rests_at is not None and sync.run_dir not in self._asked_for:
            entry.sync, entry.got_to = None, ()
        if self.until_synced and sync.trouble is not None and not _exists(sync.run_dir):
            # It was asked for by its path: there is nowhere else to look.
            self._drop(key)
        elif sync.is_replaced:
            self._take_up_anew(sync.run_dir)
        elif sync.rank == 0 and sync.run_dir not in self._wants_ranks:
            self._add(sync.run_dir)

    def _due_after(self, entry: Entry, sync: RunSync, task: asyncio.Task[float]) -> float:
        """Take note of what came of a turn; return when the next is due."""
        now_s = self.clock()
        if task.cancelled():
            return now_s
        error = task.exception()
        if error is not None:
            return self._crashed(entry, sync, error, now_s)
        entry.failures, entry.failure, entry.is_given_up = 0, None, False
        due_s = now_s if entry.is_wanted else task.result()
        entry.is_wanted = False
        if entry.hinted:
            due_s = min(due_s, now_s + HINT_S)
        if sync.trouble is None or sync.got_to != entry.got_to:
            self.last_good_s = now_s
        entry.got_to = sync.got_to
        if sync.is_idle:
            # Nothing is expected from it: let its lock and its memory go until something comes.
            is_ours, is_over = sync.is_open, sync.is_over
            sync.close()
            looks, before = _look_of(*entry.key), entry.looked_at
            # What was logged during the turn may not have been read by it; what another process has may become ours.
            is_as_before = looks is not None and before is not None and looks[0] == before[0]
            entry.rests_at = looks if is_ours and is_as_before else None
            if is_ours and is_over:
                self.on_over(sync.run_dir)
        if sync.trouble is None:
            entry.said = ""
        else:
            self._note_trouble(entry, sync, sync.trouble)
        return due_s

    def _crashed(self, entry: Entry, sync: RunSync, error: BaseException, now_s: float) -> float:
        """A bug or a broken disk: this run waits, the others go on."""
        entry.failures += 1
        entry.failure = error
        log.error("%s: %r", sync.run_dir, error, exc_info=error)
        # What the machine lacks it may have again; what is wrong with the run, or with us, a person has to see.
        if entry.failures >= CRASHES_MAX and not isinstance(error, (OSError, MemoryError)):
            try:
                sync.park_after(error)
                entry.failures = 0
            except Exception as again:  # noqa: BLE001 - what ends its turns may end this as well
                log.error("%s: it cannot be parked: %r", sync.run_dir, again)
        return now_s + min(CRASH_BACKOFF_S * max(entry.failures, 1), 600.0)

    def _note_trouble(self, entry: Entry, sync: RunSync, trouble: Outcome) -> None:
        if trouble.is_of_the_host:
            self._shut(trouble.reason, trouble.verdict)
            return
        if trouble.verdict in (Verdict.UNREACHABLE, Verdict.UNAUTHORISED):
            # Of one run's or one project's requests, or of all: the probe finds out.
            self._in_doubt.add(entry.key)
            return
        if trouble.reason != entry.said:
            log.info("%s: %s", sync.run_dir, trouble.reason)
            entry.said = trouble.reason
        if self._waiting and not sync.is_live:
            # It has to wait, and others need not.
            sync.close()

    # -- the end -----------------------------------------------------------------------------------------------

    def _look_whether_alone(self) -> None:
        reason = self.lost_place()
        if reason is not None and self._ends_at_s == float("inf"):
            log.error("%s", reason)
            self.stop()

    def _begin_to_linger(self, now_s: float) -> None:
        """Let what was logged until now go at once, and begin nothing else."""
        self._is_lingering = True
        for key, entry in self.entries.items():
            if entry.is_open or entry.hinted:
                self._lingering[key] = now_s
                if entry.sync is not None:
                    entry.sync.hasten()
                entry.is_wanted = entry.task is not None
                if entry.task is None:
                    self._set_due(entry, now_s)
        # With nothing to send there is nothing to wait for.
        self._wake.set()

    def _has_ended(self) -> bool:
        if self.clock() >= self._ends_at_s:
            return True
        # While the host is away nothing can be sent but what is on its way already.
        may_get_on = bool(self._lingering) and self.gate.is_open
        return self._is_lingering and not self._running and not may_get_on

    # -- the host ----------------------------------------------------------------------------------------------

    def _shut(self, reason: str, verdict: Verdict) -> None:
        if verdict is Verdict.UNAUTHORISED:
            reason = f"W&B refused the API key ({reason}). Run `wandb login` or set WANDB_API_KEY; it is tried again."
        if self.gate.is_open:
            log.warning("offline: %s", reason)
        self.gate.shut(reason, self.clock(), random.random(), verdict is Verdict.UNAUTHORISED)
        if self.gate.needs_a_person:
            # Another process may have a key that is taken, such as the training itself at its end.
            for entry in self.entries.values():
                if entry.task is None:
                    entry.close(durable=False)
        self._say_change()

    def _next_probe_s(self) -> float:
        """Return when to ask whether the host is there: while the gate is shut, a turn hangs, or trouble may be its own."""
        hang_s = [entry.last_turn_s + DOUBT_S for entry in self._running.values()]
        doubt_s = min(hang_s, default=float("inf"))
        if self._in_doubt or not self.gate.is_open:
            doubt_s = float("-inf")
        return max(doubt_s, self.gate.next_try_s)

    def _probe_ended(self, task: asyncio.Task[None]) -> None:
        self._probes.remove(task)
        self._wake.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("the probe failed: %r", task.exception())

    def _say_change(self) -> None:
        try:
            self.on_change(self)
        except OSError as error:
            # A full disk: what the daemon is for needs no page about it.
            log.warning("the daemon's state could not be written: %s", error)

    async def _probe(self) -> None:
        answer = await self.api.probe()
        outcome = outcome_of_answer(answer)
        in_doubt, self._in_doubt = self._in_doubt, set()
        if outcome.verdict in (Verdict.UNREACHABLE, Verdict.UNAUTHORISED):
            self._shut(outcome.reason, outcome.verdict)
            return
        for entry in [self.entries[key] for key in in_doubt if key in self.entries]:
            self._note_its_own(entry)
        now_s = self.clock()
        # One that left before and has no answer: the network swallowed it, and was away in between.
        before = self._probes[: self._probes.index(asyncio.current_task())]  # type: ignore[arg-type]
        away_s = 0.0 if self.gate.is_open else now_s - self.gate.since_s
        if not self.gate.is_open:
            log.info("online again after %.1f s", away_s)
            self.gate.open(now_s)
            self._say_change()
        for probe in self._probes:
            if probe is not asyncio.current_task():
                probe.cancel()
        # After a hiccup each run keeps its own patience: it may have been one run that caused it.
        if away_s >= PROBE_S or before:
            await self._hurry(now_s)

    def _note_its_own(self, entry: Entry) -> None:
        """The host is there: what a run met is a matter of its own requests."""
        if entry.sync is None or entry.sync.trouble is None:
            return
        reason = entry.sync.trouble.reason
        if reason != entry.said:
            log.info("%s: %s", entry.key[0], reason)
            entry.said = reason
        try:
            entry.sync.note_trouble()
        except OSError as error:
            log.warning("%s: the cursor was not written: %s", entry.key[0], error)

    async def _hurry(self, now_s: float) -> None:
        """The network was away and is back: nothing that was begun before is worth waiting for."""
        await self.api.forget_connections()
        for entry in self.entries.values():
            if entry.sync is not None:
                entry.sync.hurry()
            if entry.rests_at is None:
                self._want_at(entry, now_s)
            # Once, until it gets on: on a slow line it may have been about to.
            if entry.task is not None and now_s - entry.last_turn_s >= DOUBT_S and not entry.is_given_up:
                entry.is_given_up = True
                entry.task.cancel()

    # -- waiting -----------------------------------------------------------------------------------------------

    def _next_due_s(self) -> float:
        if not self.gate.is_open:
            return self._next_probe_s()
        # The end of a turn wakes the loop; until then there may be no place for another.
        due_s = self._due[0][0] if self._due and self._has_place(self.clock()) else float("inf")
        return min(due_s, self._next_probe_s())

    async def _wait(self, until_s: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), max(0.0, until_s - self.clock()))
        except asyncio.TimeoutError:
            return
        self._wake.clear()

    def _all_done(self) -> bool:
        return not self._is_scanning and not self._undone and not self._running

    async def _wind_up(self) -> None:
        late = [entry.task for entry in self._running.values() if entry.task is not None]
        for task in (*self._probes, *late):
            # What does not land is sent again by the next daemon, to the same place.
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for entry in self.entries.values():
            # An older cursor costs a power cut's next start a few lines more: no reason to let anybody wait.
            entry.close(durable=False)
        await self.api.close()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # Not to be looked at, so there is nothing to say against it.
        return True


def _is_written(run_dir: Path, rank: int) -> bool:
    try:
        return is_written(run_dir, pieces_of(run_dir, rank))
    except OSError:
        # Its turn finds out what is the matter.
        return True


def _is_same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return os.path.samefile(one, other)
    return False


def _claim(run_dir: Path, rank: int, identity: RunIdentity, sink: Sink) -> tuple[bool, bool, int]:
    """Return what speaks for this directory, of several with one log, being the run.

    It is written; it has the name that its run was begun under; it was uploaded the farthest.
    """
    try:
        cursor = cursors.load(run_dir, sink)
        generation = cursor.generation if cursor is not None else 0
        is_at_home = run_dir == identity.directory(run_dir.parent.parent)
        return is_written(run_dir, pieces_of(run_dir, rank)), is_at_home, generation
    except OSError:
        return False, False, -1


def _size_and_time(file: os.DirEntry[str]) -> tuple[int, int]:
    """Return how large a file is and, of a lock, when its writer last said that it lives."""
    facts = file.stat(follow_symlinks=False)
    return facts.st_size, facts.st_mtime_ns if file.name == LOCK_FILE else 0


def _look_of(run_dir: Path, rank: int) -> Look | None:
    """Return what a run is like, but for its earlier pieces; None if it cannot be told."""
    try:
        names = pieces_of(run_dir, rank)
        look: list[object] = [*names, os.stat(run_dir / RUN_FILE).st_mtime_ns]
        if names:
            with os.scandir(run_dir / names[-1]) as files:
                look += sorted((file.name, *_size_and_time(file)) for file in files)
        synced_ns = 0
        with suppress(FileNotFoundError):
            synced_ns = os.stat(run_dir / SYNC_DIR).st_mtime_ns
        # A number takes a twentieth of what it is made of.
        return hash(tuple(look)), synced_ns
    except OSError:
        return None
