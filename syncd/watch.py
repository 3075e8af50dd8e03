"""Hears that a run grew, for latency's sake.  The daemon's own looks are the truth.

    roots ──look_after──▶ each is watched ──something happened, or was missed──▶ hint(run_dir)
                             or polled, and why ──is new, or has a new piece──▶ hint(run_dir)

Invariants
----------
* Each root that is there is watched by inotify, or polled for a reason that can be read; never neither.
* Where events may have been missed, all runs of the root are hinted as soon as that is known.
* Nothing here is needed for anything but speed: losing events, the observer, or inotify itself costs seconds, never
  data. So nothing here fails loudly.

Whether a known run of a polled root grew is not asked here: the daemon looks at it as often as it is hot.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch
from watchdog.utils import BaseThread, UnsupportedLibcError

from eventlog.cursor import SYNC_DIR
from eventlog.piece import RUN_FILE, lock_owner_is_gone
from eventlog.reader import find_runs
from syncd import mounts

log = logging.getLogger("syncd")

# How long something new may wait in a root of which no events tell.
POLL_S = 5.0
# By then a limit of inotify's may have been raised, or others may have let go what they held of it.
RETRY_S = 600.0
_NEVER_S = float("inf")
_STOP_S = 5.0
NO_MORE = "inotify's limits leave too little for it; `syncd doctor` says how to raise them"

# Without the filter the daemon's own reads would make events.
_EVENTS: list[type[FileSystemEvent]] = [
    FileModifiedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileDeletedEvent,
    DirCreatedEvent,
]

Hint = Callable[[Path], object]
Soon = Callable[[Callable[[], None]], object]
# Which directory lies under a root's path: another one may come to lie there.
Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Watched:
    identity: Identity
    watch: ObservedWatch


@dataclass(slots=True)
class _Polled:
    identity: Identity
    reason: str
    next_try_s: float
    """When to try to watch it; never, where that would be of no use."""
    next_poll_s: float = -_NEVER_S
    seen: dict[str, int] = field(default_factory=dict)
    """The runs that were there, and when something was last made or removed in the directory of each."""


class Watch:
    """Calls `hint(run_dir)` by way of `soon` when something happened in that run, or may have.

    `soon(call)` lets the caller's thread make a call, as a loop's `call_soon_threadsafe`; one is under way at most.
    """

    def __init__(
        self,
        hint: Hint,
        soon: Soon,
        clock: Callable[[], float] = time.monotonic,
        kind_of: Callable[[Path], str | None] = mounts.kind_of,
    ) -> None:
        self._hint = _Coalesced(hint, soon)
        self._clock = clock
        self._kind_of = kind_of
        # Made when there is something to watch: its descriptors are few on a shared host.
        self._observer: _Observer | None = None
        self._watched: dict[Path, _Watched] = {}
        self._polled: dict[Path, _Polled] = {}

    def look_after(self, roots: Iterable[Path]) -> bool:
        """Watch these roots and no others, each as well as it can be; return whether `polled` has changed.

        Call it every second or two: a root may come, go or come back, and what watches it may die.
        """
        before, now_s = self.polled, self._clock()
        there = {root: identity for root in roots if (identity := _identity(root)) is not None}
        try:
            fault = self._watch(there, now_s)
        except Exception as error:  # noqa: BLE001 - what is wrong with a library costs speed, and nothing else
            fault = f"watchdog failed ({error!r})"
        if fault is not None:
            self._end(fault, there, now_s)
        for root, polled in self._polled.items():
            if now_s >= polled.next_poll_s:
                self._poll(root, polled, now_s)
        return self.polled != before

    @property
    def polled(self) -> dict[Path, str]:
        """The roots that are polled, and why."""
        return {root: polled.reason for root, polled in self._polled.items()}

    @property
    def degraded(self) -> str | None:
        """What is not as it could be, and is tried again by itself."""
        reasons = [f"{root}: {p.reason}" for root, p in self._polled.items() if p.next_try_s < _NEVER_S]
        return "; ".join(reasons) or None

    def stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()

    # -- by inotify --------------------------------------------------------------------------------------------

    def _watch(self, there: Mapping[Path, Identity], now_s: float) -> str | None:
        """Bring the watches to what is there; return what is wrong with the observer, if it has to go."""
        if self._observer is not None and self._observer.is_dead():
            return "a thread that hears of changes died"
        for root in changed(self._identities(), there):
            self._forget(root)
        if self._observer is not None and self._observer.has_lost_a_mount():
            for root in list(self._watched):
                self._forget(root)
        for root, identity in there.items():
            polled = self._polled.get(root)
            if root not in self._watched and (polled is None or now_s >= polled.next_try_s):
                self._begin(root, identity, now_s)
        for root, watched in list(self._watched.items()):
            assert self._observer is not None
            if root in self._observer.refused:
                self._forget(root)
                self._poll_instead(root, watched.identity, NO_MORE, now_s + RETRY_S)
            elif not self._observer.hears(watched.watch):
                # It died, or its directory went and another one came that looks the same.
                self._forget(root)
                self._poll_instead(root, watched.identity, "its watch ended", now_s)
        return None

    def _begin(self, root: Path, identity: Identity, now_s: float) -> None:
        kind = self._kind_of(root)
        if not mounts.tells_all(kind):
            self._poll_instead(root, identity, f"it lies on {kind}, where others write unheard", _NEVER_S)
            return
        try:
            if self._observer is None:
                self._observer = _Observer(self._missed)
            watch = self._observer.schedule(root, _Handler(root, self._hint))
        except (OSError, RuntimeError) as error:
            # ENOSPC is the limit on inotify's watches, EMFILE that on its instances; or no more threads may be begun.
            is_limit = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EMFILE)
            reason = NO_MORE if is_limit else f"it cannot be watched ({error})"
            self._poll_instead(root, identity, reason, now_s + RETRY_S)
            return
        if self._polled.pop(root, None) is not None:
            log.info("%s is watched again", root)
        self._watched[root] = _Watched(identity, watch)
        self._hint_all(root)

    def _forget(self, root: Path) -> None:
        self._polled.pop(root, None)
        watched = self._watched.pop(root, None)
        if watched is not None and self._observer is not None:
            self._observer.unschedule(root, watched.watch)

    def _end(self, fault: str, there: Mapping[Path, Identity], now_s: float) -> None:
        """Let the observer go, and poll what it watched.

        There is another one at the next look, and no sooner, so that one which always dies costs little.
        """
        observer, self._observer = self._observer, None
        self._watched = {}
        for root in there.keys() - self._polled.keys():
            self._poll_instead(root, there[root], fault, now_s)
        if observer is not None:
            # Not here: what is broken may wait for ever for its own threads.
            threading.Thread(target=_stop_broken, args=[observer], daemon=True).start()

    def _missed(self) -> None:
        """Inotify had more to tell than it could keep.  Called from a thread of the observer's."""
        log.info("more happened than inotify could keep: all runs are looked at")
        for root in list(self._watched):
            self._hint_all(root)

    def _hint_all(self, root: Path) -> None:
        for run_dir in find_runs(root):
            self._hint(run_dir)

    def _identities(self) -> dict[Path, Identity]:
        watched = {root: known.identity for root, known in self._watched.items()}
        return watched | {root: known.identity for root, known in self._polled.items()}

    # -- by polling --------------------------------------------------------------------------------------------

    def _poll_instead(self, root: Path, identity: Identity, reason: str, next_try_s: float) -> None:
        known = self._polled.setdefault(root, _Polled(identity, "", next_try_s))
        if known.reason != reason:
            # Once, however often it is tried in vain.
            log.warning("%s is looked at every %g s instead of watched: %s", root, POLL_S, reason)
        known.reason, known.next_try_s = reason, next_try_s

    def _poll(self, root: Path, polled: _Polled, now_s: float) -> None:
        polled.next_poll_s = now_s + POLL_S
        now_there = {}
        for run_dir in find_runs(root):
            try:
                # A new piece is a new directory in it.
                changed_ns = os.stat(run_dir).st_mtime_ns
            except OSError:
                # It went while we looked.
                continue
            now_there[str(run_dir)] = changed_ns
            if polled.seen.get(str(run_dir)) != changed_ns:
                self._hint(run_dir)
        polled.seen = now_there


class _Coalesced:
    """Hands on hints, each run's once, however many come before they are taken.

    A writer may give thousands a second. A loop that was woken for each has no room left in its pipe for a signal,
    and never hears that it is to stop.
    """

    def __init__(self, hint: Hint, soon: Soon) -> None:
        self._hint = hint
        self._soon = soon
        self._lock = threading.Lock()
        self._waiting: dict[Path, None] = {}

    def __call__(self, run_dir: Path) -> None:
        with self._lock:
            is_first = not self._waiting
            self._waiting[run_dir] = None
        if is_first:
            self._soon(self._take)

    def _take(self) -> None:
        with self._lock:
            taken, self._waiting = self._waiting, {}
        for run_dir in taken:
            self._hint(run_dir)


class _Handler(FileSystemEventHandler):
    def __init__(self, root: Path, hint: Hint) -> None:
        self._root = root
        self._hint = hint

    def on_any_event(self, event: FileSystemEvent) -> None:
        run_dir = run_of(self._root, Path(str(event.src_path)))
        if run_dir is not None:
            self._hint(run_dir)


class _Observer:
    """watchdog's observer, and what it keeps to itself: what it missed, what it was refused, and that it died."""

    def __init__(self, missed: Callable[[], object]) -> None:
        self.refused: set[Path] = set()
        """The roots of which not every directory is watched."""
        self._missed = missed
        self._lost_a_mount = threading.Event()
        self._observer, self._threads = self._started()

    def schedule(self, root: Path, handler: FileSystemEventHandler) -> ObservedWatch:
        self.refused.discard(root)
        watch = self._observer.schedule(handler, str(root), recursive=True, event_filter=_EVENTS)
        if root in self.refused:
            # All or nothing: what we held in vain, others on this machine would lack.
            self.unschedule(root, watch)
            raise OSError(errno.ENOSPC, "inotify watch limit reached")
        return watch

    def unschedule(self, root: Path, watch: ObservedWatch) -> None:
        self._observer.unschedule(watch)
        self.refused.discard(root)

    def is_dead(self) -> bool:
        return not all(thread.is_alive() for thread in self._threads)

    def hears(self, watch: ObservedWatch) -> bool:
        """Whether the thread of this watch lives: it ends with the root's directory."""
        return any(emitter.watch == watch and emitter.is_alive() for emitter in self._observer.emitters)

    def has_lost_a_mount(self) -> bool:
        """Whether a file system went since this was last asked.  It may be back, looking as it did, but unwatched."""
        if not self._lost_a_mount.is_set():
            return False
        self._lost_a_mount.clear()
        return True

    def stop(self) -> None:
        for thread in self._threads:
            thread.stop()
        for thread in self._threads:
            thread.join(_STOP_S)

    def _started(self) -> tuple[BaseObserver, list[BaseThread]]:
        """Return the observer, and the threads without which it hears nothing."""
        try:
            from watchdog.observers.inotify import InotifyEmitter, InotifyWatchGroup
            from watchdog.observers.inotify_c import (
                CallbackId,
                InotifyConstants,
                InotifyEvent,
                InotifyFD,
                Mask,
                WatchCallback,
                WatchDescriptor,
            )
        except (ImportError, UnsupportedLibcError):
            # Another system, or a watchdog before 7, which cannot be asked: there the daemon's scan finds what it missed.
            plain = Observer()
            plain.start()
            return plain, [plain]
        ours = self

        class Ear(InotifyFD):
            def add_callback(
                self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId
            ) -> WatchDescriptor:
                if not may_grow(Path(os.fsdecode(path))):
                    # As if it were gone: watchdog goes on without it.
                    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
                try:
                    return super().add_callback(path, mask, callback, id_)
                except OSError as error:
                    # watchdog goes on without this directory, and says so to nobody.
                    if error.errno == errno.ENOSPC and isinstance(callback, InotifyWatchGroup):
                        ours.refused.add(Path(os.fsdecode(callback.path)))
                    raise

            def handle_event(self, event: InotifyEvent) -> None:
                super().handle_event(event)
                # After watchdog's own work: by now the directories that it had missed are watched.
                if event.is_queue_overflow:
                    ours._missed()
                elif event.mask & InotifyConstants.IN_UNMOUNT:
                    ours._lost_a_mount.set()

        ear = Ear()
        ear.start()
        observer = BaseObserver(InotifyEmitter, inotify_fd=ear)
        observer.start()
        return observer, [observer, ear]


def _stop_broken(observer: _Observer) -> None:
    try:
        observer.stop()
    except Exception as error:  # noqa: BLE001 - the top of a thread; what is left of it, nobody hears any more
        log.warning("what watched before could not be stopped: %r", error)


def changed(known: Mapping[Path, Identity], there: Mapping[Path, Identity]) -> list[Path]:
    """Return the known roots that are gone, or in whose place another directory lies.

    >>> a, b, c = Path("/a"), Path("/b"), Path("/c")
    >>> changed({a: (1, 7), b: (1, 8), c: (1, 9)}, {a: (1, 7), b: (2, 8)}) == [b, c]
    True
    """
    return [root for root, identity in known.items() if there.get(root) != identity]


def run_of(root: Path, path: Path) -> Path | None:
    """Return the run directory that `path` is in; None for what is no writer's business, as the cursors.

    >>> run_of(Path("/r"), Path("/r/demo/baseline/main-0001/events-000000000000.jsonl"))
    PosixPath('/r/demo/baseline')
    >>> run_of(Path("/r"), Path("/r/demo/baseline/sync/x.json"))
    """
    try:
        parts = path.relative_to(root).parts
    except ValueError:
        return None
    if len(parts) < 2 or (len(parts) > 2 and parts[2] == "sync"):
        return None
    return root / parts[0] / parts[1]


def may_grow(directory: Path) -> bool:
    """Whether there may be news in a directory: not in a run's `sync` and `files`, nor in a piece whose writer is gone.

    Of ten thousand runs nearly all are over: theirs would be two thirds of the watches, and of the memory for them.
    """
    if not (directory.parent / RUN_FILE).exists():
        return True
    return directory.name not in (SYNC_DIR, "files") and not lock_owner_is_gone(directory)


def _identity(root: Path) -> Identity | None:
    try:
        found = os.stat(root)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None
