"""Keeps all runs below some roots on their way to W&B.  One loop, no thread or process per run.

    roots ──scan──▶ runs ──due──▶ RunSync.turn ──▶ when to look again
      ▲ hints (watch)                  │ trouble
                                       ▼
                        Gate: the network is away / the key is refused

Invariants
----------
* At most `MAX_TURNS` runs have a request in flight.
* While the gate is shut nothing is sent but one cheap probe; when it opens, every run is due at once.
* A run that fails, whatever the reason, delays only itself.
* Stopping at any instant, by whatever signal, costs nothing but time.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from eventlog.cursor import Sink
from eventlog.errors import NotARun
from eventlog.piece import RunIdentity
from eventlog.reader import find_runs
from syncd.attach import STEADY_S
from syncd.run_sync import RunSync
from syncd.shipper import FLUSH_S, Verdict, outcome_of
from syncd.wandb_api import WandbApi

log = logging.getLogger("syncd")

MAX_TURNS = 8
SCAN_S = 60.0
# Roots are entered in their list by `init`; the list is short and looking at it is cheap.
ROOTS_S = 2.0
# How soon a returning network is noticed: soon after a hiccup, and at worst after this. One small request each.
PROBE_FIRST_S, PROBE_S = 0.25, 5.0
# A hint may come with every record; a run is looked at no more often than this for hints alone.
HINT_S = 0.5
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
        self.reason, self.needs_a_person = reason, needs_a_person
        wait_s = min(PROBE_S, PROBE_FIRST_S * 2.0**self.tries)
        self.tries = min(self.tries + 1, 10)
        self.next_try_s = now_s + wait_s * (0.5 + 0.5 * jitter)

    def open(self, now_s: float) -> None:
        if self.reason is not None:
            self.since_s = now_s
        self.reason = None


@dataclass(slots=True)
class Entry:
    """One run that the daemon knows."""

    sync: RunSync
    due_s: float
    last_turn_s: float = float("-inf")
    task: asyncio.Task[float] | None = None
    hinted: bool = False
    failures: int = 0
    generation: int = 0


@dataclass
class Daemon:
    """The loop.  `run()` returns when `stop()` was called or, with `until_synced`, when all is acknowledged."""

    roots: Callable[[], Iterable[Path]]
    api: WandbApi
    asked_for: list[Path] = field(default_factory=list)
    """Run directories to sync whatever root they are in, also those logged with mode=offline."""
    entity: str | None = None
    project: str | None = None
    until_synced: bool = False
    flush_s: float = FLUSH_S
    steady_s: float = STEADY_S
    on_change: Callable[[Daemon], None] = lambda daemon: None
    watch_root: Callable[[Path], bool] = lambda root: False
    """Begin to watch a root if it is not watched; say whether it was begun."""
    last_good_s: float = field(default_factory=time.monotonic)
    """When a run last got on."""
    finished: bool = False
    """`run` returned since all was done."""
    gate: Gate = field(default_factory=Gate)
    entries: dict[Path, Entry] = field(default_factory=dict)
    twins: dict[Path, Path] = field(default_factory=dict)
    """Copies of a run directory, and the one that is uploaded."""
    _logs: dict[tuple[str, Sink], Path] = field(default_factory=dict)
    _probing: asyncio.Task[None] | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    async def run(self) -> None:
        next_scan_s = next_roots_s = float("-inf")
        known: list[Path] = []
        self._say_change()
        try:
            while not self._stopping:
                now_s = time.monotonic()
                if now_s >= next_roots_s:
                    known = list(self.roots())
                    next_roots_s = now_s + ROOTS_S
                    # All are asked: a root may not have existed before.
                    if sum(self.watch_root(root) for root in known):
                        next_scan_s = now_s
                if now_s >= next_scan_s:
                    self._scan(known, now_s)
                    next_scan_s = now_s + SCAN_S
                if not self.gate.is_open and now_s >= self.gate.next_try_s and self._probing is None:
                    self._probing = asyncio.ensure_future(self._probe())
                    self._probing.add_done_callback(self._probe_ended)
                if self.gate.is_open:
                    self._start_turns(now_s)
                if self.until_synced and self._all_done():
                    self.finished = True
                    return
                await self._wait(min(next_roots_s, next_scan_s, self._next_due_s()))
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
        for run_dir, entry in self.entries.items():
            if not entry.sync.caught_up:
                trouble = entry.sync.trouble
                reason = entry.sync.error or (trouble.reason if trouble else "it does not get on")
                return f"{run_dir.name}: {reason}"
        return "nothing gets on"

    def hint(self, run_dir: Path) -> None:
        """Something happened in a run.  Call it from the loop's thread."""
        entry = self.entries.get(run_dir)
        if entry is None:
            if run_dir not in self.twins:
                self._add(run_dir, time.monotonic())
        elif not entry.failures:
            entry.hinted = True
            entry.due_s = min(entry.due_s, max(time.monotonic(), entry.last_turn_s + HINT_S))
        self._wake.set()

    # -- runs --------------------------------------------------------------------------------------------------

    def _scan(self, roots: Iterable[Path], now_s: float) -> None:
        found = set(self.asked_for)
        for root in roots:
            found.update(find_runs(root))
        # A copy whose original is gone is the run now: it was moved.
        self.twins = {copy: first for copy, first in self.twins.items() if first.exists()}
        for run_dir in sorted(found - self.entries.keys() - self.twins.keys()):
            self._add(run_dir, now_s)
        for run_dir in self.entries.keys() - found:
            if not run_dir.exists() and self.entries[run_dir].task is None:
                self.entries.pop(run_dir).sync.close()

    def _add(self, run_dir: Path, now_s: float) -> None:
        try:
            identity = RunIdentity.load(run_dir)
        except NotARun as error:
            # A directory that is being born has no run.json yet; the next scan sees it.
            log.debug("%s", error)
            return
        sink = Sink(
            self.api.base_url,
            self.entity or identity.entity,
            self.project or identity.project,
            identity.run_id,
        )
        first = self._logs.setdefault((identity.log_id, sink), run_dir)
        if first != run_dir and first in self.entries and first.exists():
            # Two directories with one identity would write over each other's lines.
            self.twins[run_dir] = first
            log.warning("%s is a copy of %s: only the latter is uploaded", run_dir, first)
            return
        self._logs[(identity.log_id, sink)] = run_dir
        asked_for = run_dir in self.asked_for
        sync = RunSync(
            run_dir, sink, self.api, asked_for=asked_for, flush_s=self.flush_s, steady_s=self.steady_s
        )
        self.entries[run_dir] = Entry(sync, due_s=now_s)

    def _start_turns(self, now_s: float) -> None:
        busy = sum(entry.task is not None for entry in self.entries.values())
        due = [e for e in self.entries.values() if e.task is None and e.due_s <= now_s]
        # Longest overdue first, so that one run with a long backlog starves nobody.
        for entry in sorted(due, key=lambda e: e.last_turn_s)[: MAX_TURNS - busy]:
            entry.last_turn_s, entry.hinted = now_s, False
            entry.task = asyncio.ensure_future(entry.sync.turn(now_s))
            entry.task.add_done_callback(lambda task, entry=entry: self._turn_ended(entry, task))  # type: ignore[misc]

    def _turn_ended(self, entry: Entry, task: asyncio.Task[float]) -> None:
        entry.task = None
        self._wake.set()
        if task.cancelled():
            return
        now_s = time.monotonic()
        error = task.exception()
        if error is not None:
            # A bug or a broken disk: this run waits, the others go on.
            entry.failures += 1
            entry.due_s = now_s + min(CRASH_BACKOFF_S * entry.failures, 600.0)
            log.error("%s: %r", entry.sync.run_dir, error, exc_info=error)
            return
        entry.failures = 0
        entry.due_s = task.result()
        if entry.hinted:
            entry.due_s = min(entry.due_s, now_s + HINT_S)
        trouble = entry.sync.trouble
        if trouble is None or entry.sync.generation != entry.generation:
            self.last_good_s = now_s
        entry.generation = entry.sync.generation
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
        self.gate.shut(reason, time.monotonic(), random.random(), verdict is Verdict.UNAUTHORISED)
        self._say_change()

    def _probe_ended(self, task: asyncio.Task[None]) -> None:
        self._probing = None
        self._wake.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("the probe failed: %r", task.exception())
            self.gate.next_try_s = time.monotonic() + PROBE_S

    def _say_change(self) -> None:
        try:
            self.on_change(self)
        except OSError as error:
            # A full disk: what the daemon is for needs no page about it.
            log.warning("the daemon's state could not be written: %s", error)

    async def _probe(self) -> None:
        answer = await self.api.viewer()
        outcome = outcome_of(
            answer.status, answer.headers, answer.content is not None, time.time(), answer.error
        )
        if outcome.verdict in (Verdict.UNREACHABLE, Verdict.UNAUTHORISED):
            self._shut(outcome.reason, outcome.verdict)
            return
        now_s = time.monotonic()
        away_s = now_s - self.gate.since_s
        log.info("online again after %.1f s", away_s)
        self.gate.open(now_s)
        # After a hiccup each run keeps its own patience: it may have been one run that caused it.
        for entry in self.entries.values() if away_s >= PROBE_S else ():
            entry.sync.hurry()
            entry.due_s = min(entry.due_s, now_s)
        self._say_change()

    # -- waiting -----------------------------------------------------------------------------------------------

    def _next_due_s(self) -> float:
        if not self.gate.is_open:
            return self.gate.next_try_s if self._probing is None else float("inf")
        if sum(entry.task is not None for entry in self.entries.values()) >= MAX_TURNS:
            # The end of a turn wakes the loop; until then there is no place for another.
            return float("inf")
        return min((e.due_s for e in self.entries.values() if e.task is None), default=float("inf"))

    async def _wait(self, until_s: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), max(0.0, until_s - time.monotonic()))
        except asyncio.TimeoutError:
            return
        self._wake.clear()

    def _all_done(self) -> bool:
        return all(e.task is None and (e.sync.caught_up or e.sync.parked) for e in self.entries.values())

    async def _wind_up(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
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
