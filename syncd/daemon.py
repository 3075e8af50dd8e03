"""Keeps all runs below some roots on their way to W&B.  One loop, no thread or process per run.

    roots ──scan──▶ runs ──due──▶ RunSync.turn ──▶ when to look again
      ▲ hints (watch)                  │ trouble
                                       ▼
                        Gate: the network is away / the key is refused

Invariants
----------
* At most `MAX_TURNS` runs have a request in flight.
* While the gate is shut nothing is sent but a cheap probe now and then; when it opens, every run is due at once.
* A request that hangs is no reason to wait for it: when the network was away meanwhile, it is made again.
* A run that fails, whatever the reason, delays only itself.
* Stopping at any instant, by whatever signal, costs nothing but time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from eventlog.cursor import Sink, run_id_there
from eventlog.errors import NotARun
from eventlog.piece import RunIdentity, primaries
from eventlog.reader import StreamReader, find_runs
from eventlog.segment import rank_of_writer
from syncd.attach import STEADY_S
from syncd.metadata import NO_EDITS, Edits
from syncd.run_sync import RunSync
from syncd.shipper import FLUSH_S, Pace, Verdict
from syncd.transfer import outcome_of_answer
from syncd.wandb_api import WandbApi

log = logging.getLogger("syncd")

MAX_TURNS = 8
SCAN_S = 60.0
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
        self.reason = None


# A run's directory, and the rank whose part of it this is: 0 for the run itself.
RunKey = tuple[Path, int]


@dataclass(slots=True)
class Entry:
    """One run that the daemon knows."""

    sync: RunSync
    due_s: float
    run_id_there: str | None = None
    """The id to upload it under, if a person chose another."""
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
    steady_s: float = STEADY_S
    on_change: Callable[[Daemon], None] = lambda daemon: None
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
    _probes: list[asyncio.Task[None]] = field(default_factory=list)
    """Those that are not answered yet, in the order in which they left."""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    async def run(self) -> None:
        next_scan_s = next_roots_s = float("-inf")
        self.last_good_s = self.clock()
        self._asked_for = frozenset(self.asked_for)
        known: list[Path] = []
        self._say_change()
        try:
            while not self._stopping:
                now_s = self.clock()
                if now_s >= next_roots_s:
                    known = list(self.roots())
                    next_roots_s = now_s + ROOTS_S
                    if self.watch_roots(known):
                        self._say_change()
                if now_s >= next_scan_s:
                    self._scan(known, now_s)
                    next_scan_s = now_s + SCAN_S
                if self._hinted and now_s >= self._hints_at_s:
                    self._take_hints(now_s)
                if now_s >= self._next_probe_s():
                    self.gate.asked(now_s, random.random())
                    self._probes.append(asyncio.ensure_future(self._probe()))
                    self._probes[-1].add_done_callback(self._probe_ended)
                # Before the next turns: a run that is done must not be looked at again and again.
                if self.until_synced and self._all_done():
                    self.finished = True
                    return
                if self.gate.is_open:
                    self._start_turns(now_s)
                hints_s = self._hints_at_s if self._hinted else float("inf")
                await self._wait(min(next_roots_s, next_scan_s, hints_s, self._next_due_s()))
        finally:
            await self._wind_up()

    def stop(self) -> None:
        """End `run` soon.  Call it from the loop's thread."""
        self._stopping = True
        self._wake.set()

    def complaint(self) -> str:
        """Say what keeps the runs from getting on."""
        if self.gate.reason is not None:
            return self.gate.reason
        for (run_dir, _), entry in self.entries.items():
            if not entry.sync.caught_up:
                trouble = entry.sync.trouble
                reason = str(
                    entry.failure or entry.sync.error or (trouble.reason if trouble else "it does not get on")
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
            entry.due_s = min(entry.due_s, self.clock())
            self._wake.set()

    def _take_hints(self, now_s: float) -> None:
        hinted, self._hinted = self._hinted, set()
        self._hints_at_s = now_s + HINTS_S
        for run_dir in hinted:
            if run_dir not in self.twins or run_id_there(run_dir) is not None:
                self.twins.pop(run_dir, None)
                self._add(run_dir, now_s)
            keys = [(run_dir, 0)]
            if self._wants_ranks.get(run_dir):
                keys = [key for key in self.entries if key[0] == run_dir]
            for entry in [self.entries[key] for key in keys if key in self.entries]:
                if not entry.failures:
                    entry.hinted = True
                    entry.due_s = min(entry.due_s, max(now_s, entry.last_turn_s + HINT_S))

    # -- runs --------------------------------------------------------------------------------------------------

    def _scan(self, roots: Iterable[Path], now_s: float) -> None:
        found = set(self.asked_for)
        for root in roots:
            found.update(find_runs(root))
        # A copy whose original is gone is the run now: it was moved.
        # One that a person wants under another id is a run of its own.
        twins = {copy: first for copy, first in self.twins.items() if _exists(first)}
        self.twins = {copy: first for copy, first in twins.items() if run_id_there(copy) is None}
        for run_dir in sorted(found - self.twins.keys()):
            self._add(run_dir, now_s)
        for key in [key for key in self.entries if key[0] not in found]:
            if not _exists(key[0]) and self.entries[key].task is None:
                self.entries.pop(key).sync.close()

    def _add(self, run_dir: Path, now_s: float) -> None:
        """Take up a run that is not known yet, and its ranks if each is to be a run of its own."""
        try:
            self._add_ranks(run_dir, now_s)
        except OSError as error:
            # A directory that vanishes, or that we may not look into: the next scan asks again.
            log.warning("%s is left out: %s", run_dir, error)

    def _add_ranks(self, run_dir: Path, now_s: float) -> None:
        known = self.entries.get((run_dir, 0))
        if known is not None and known.run_id_there != run_id_there(run_dir):
            # A person wants it uploaded under another id from now on.
            if not self._forget(run_dir):
                return
            known = None
        if known is None:
            self._add_rank(run_dir, 0, now_s)
        if (run_dir, 0) in self.entries:
            for rank in self._ranks_of(run_dir):
                if (run_dir, rank) not in self.entries:
                    self._add_rank(run_dir, rank, now_s)

    def _forget(self, run_dir: Path) -> bool:
        """Let a run and its ranks go; False while one of them has a request in flight."""
        keys = [key for key in self.entries if key[0] == run_dir]
        if any(self.entries[key].task is not None for key in keys):
            return False
        for key in keys:
            self.entries.pop(key).sync.close()
        self._wants_ranks.pop(run_dir, None)
        return True

    def _take_up_anew(self, run_dir: Path) -> None:
        """Another log lies under the path of a run."""
        if self._forget(run_dir):
            self._add(run_dir, self.clock())

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

    def _add_rank(self, run_dir: Path, rank: int, now_s: float) -> None:
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
            self.project or identity.project,
            f"{run_id}-rank{rank}" if rank else run_id,
        )
        first = self._logs.setdefault((identity.log_id, sink), run_dir)
        is_copy = first != run_dir and (first, rank) in self.entries and _exists(first)
        if not is_copy:
            self._logs[identity.log_id, sink] = run_dir
        sync = RunSync(
            run_dir,
            sink,
            self.api,
            rank=rank,
            asked_for=run_dir in self._asked_for,
            choice=self.choice,
            edits=self.edits,
            flush_s=self.flush_s,
            steady_s=self.steady_s,
            pace=self._pace,
            clock=self.clock,
            wake=lambda: self._look_at_once(run_dir, rank),
        )
        if is_copy:
            # Two directories with one identity would write over each other's lines.
            self.twins[run_dir] = first
            log.warning("%s is a copy of %s: only the latter is uploaded", run_dir, first)
            sync.park_as_copy_of(first)
            return
        self.entries[run_dir, rank] = Entry(sync, due_s=now_s, run_id_there=other_id)

    def _start_turns(self, now_s: float) -> None:
        busy = sum(entry.task is not None for entry in self.entries.values())
        due = [e for e in self.entries.values() if e.task is None and e.due_s <= now_s]
        # Longest overdue first, so that one run with a long backlog starves nobody.
        for entry in sorted(due, key=lambda e: e.last_turn_s)[: self.max_turns - busy]:
            entry.last_turn_s, entry.hinted = now_s, False
            entry.task = asyncio.ensure_future(entry.sync.turn(now_s))
            entry.task.add_done_callback(lambda task, entry=entry: self._turn_ended(entry, task))  # type: ignore[misc]

    def _turn_ended(self, entry: Entry, task: asyncio.Task[float]) -> None:
        entry.task = None
        self._wake.set()
        now_s = self.clock()
        if task.cancelled():
            entry.due_s = now_s
            return
        error = task.exception()
        if error is not None:
            # A bug or a broken disk: this run waits, the others go on.
            entry.failures += 1
            entry.failure = error
            entry.due_s = now_s + min(CRASH_BACKOFF_S * entry.failures, 600.0)
            log.error("%s: %r", entry.sync.run_dir, error, exc_info=error)
            return
        entry.failures, entry.failure, entry.is_given_up = 0, None, False
        entry.due_s = now_s if entry.is_wanted else task.result()
        entry.is_wanted = False
        if entry.sync.is_replaced:
            self._take_up_anew(entry.sync.run_dir)
            return
        if entry.hinted:
            entry.due_s = min(entry.due_s, now_s + HINT_S)
        trouble = entry.sync.trouble
        if trouble is None or entry.sync.got_to != entry.got_to:
            self.last_good_s = now_s
        entry.got_to = entry.sync.got_to
        if entry.sync.is_idle:
            # Nothing is expected from it: let its lock and its memory go until the next look.
            entry.sync.close()
        if trouble is None:
            return
        if trouble.verdict in (Verdict.UNREACHABLE, Verdict.UNAUTHORISED):
            self._shut(trouble.reason, trouble.verdict)
        else:
            log.info("%s: %s", entry.sync.run_dir, trouble.reason)

    # -- the host ----------------------------------------------------------------------------------------------

    def _shut(self, reason: str, verdict: Verdict) -> None:
        if verdict is Verdict.UNAUTHORISED:
            reason = f"W&B refused the API key ({reason}). Run `wandb login` or set WANDB_API_KEY; it is tried again."
        if self.gate.is_open:
            log.warning("offline: %s", reason)
        self.gate.shut(reason, self.clock(), random.random(), verdict is Verdict.UNAUTHORISED)
        self._say_change()

    def _next_probe_s(self) -> float:
        """Return when to ask whether the host is there: while the gate is shut, and while a turn hangs."""
        hang_s = [e.last_turn_s + DOUBT_S for e in self.entries.values() if e.task is not None]
        doubt_s = min(hang_s, default=float("inf")) if self.gate.is_open else float("-inf")
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
        if outcome.verdict in (Verdict.UNREACHABLE, Verdict.UNAUTHORISED):
            self._shut(outcome.reason, outcome.verdict)
            return
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

    async def _hurry(self, now_s: float) -> None:
        """The network was away and is back: nothing that was begun before is worth waiting for."""
        await self.api.forget_connections()
        for entry in self.entries.values():
            entry.sync.hurry()
            entry.due_s = min(entry.due_s, now_s)
            # Once, until it gets on: on a slow line it may have been about to.
            if entry.task is not None and now_s - entry.last_turn_s >= DOUBT_S and not entry.is_given_up:
                entry.is_given_up = True
                entry.task.cancel()

    # -- waiting -----------------------------------------------------------------------------------------------

    def _next_due_s(self) -> float:
        if not self.gate.is_open:
            return self._next_probe_s()
        if sum(entry.task is not None for entry in self.entries.values()) >= self.max_turns:
            # The end of a turn wakes the loop; until then there is no place for another.
            return self._next_probe_s()
        due_s = [entry.due_s for entry in self.entries.values() if entry.task is None]
        return min(*due_s, self._next_probe_s(), float("inf"))

    async def _wait(self, until_s: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), max(0.0, until_s - self.clock()))
        except asyncio.TimeoutError:
            return
        self._wake.clear()

    def _all_done(self) -> bool:
        return all(e.task is None and (e.sync.caught_up or e.sync.parked) for e in self.entries.values())

    async def _wind_up(self) -> None:
        for probe in self._probes:
            probe.cancel()
        tasks = [entry.task for entry in self.entries.values() if entry.task is not None]
        if tasks:
            # What is in flight may land; what does not is sent again by the next daemon, to the same place.
            _, late = await asyncio.wait(tasks, timeout=5.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for entry in self.entries.values():
            entry.sync.close()
        await self.api.close()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # Not to be looked at, so there is nothing to say against it.
        return True
