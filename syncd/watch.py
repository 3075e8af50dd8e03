"""Hears that a run grew, for latency's sake.  The daemon's own looks are the truth.

Losing events, the observer, or inotify itself costs seconds, never data: nothing here is needed for anything but
speed, so nothing here may fail loudly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
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

log = logging.getLogger("syncd")

# Without the filter the daemon's own reads would make events.
_EVENTS: list[type[FileSystemEvent]] = [
    FileModifiedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileDeletedEvent,
    DirCreatedEvent,
]


class Watch:
    """Calls `hint(run_dir)` from its own thread when something happened in that run."""

    def __init__(self, hint: Callable[[Path], object]) -> None:
        self._hint = hint
        # Made when there is something to watch: its descriptors are few on a shared host.
        self._observer: BaseObserver | None = None
        self._watched: dict[Path, ObservedWatch] = {}
        self._refused: set[Path] = set()

    def add(self, root: Path) -> bool:
        """Begin to watch a root and return True, unless it is watched already, missing, or beyond a limit."""
        if root in self._watched or root in self._refused or not root.is_dir():
            return False
        try:
            if self._observer is None:
                observer = Observer()
                observer.start()
                self._observer = observer
            handler = _Handler(root, self._hint)
            self._watched[root] = self._observer.schedule(
                handler, str(root), recursive=True, event_filter=_EVENTS
            )
        except OSError as error:
            # ENOSPC is the limit on inotify watches, EMFILE that on its instances.
            self._refused.add(root)
            log.warning("cannot watch %s (%s): it is looked at once a minute instead", root, error)
            return False
        return True

    def stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(timeout=5.0)


class _Handler(FileSystemEventHandler):
    def __init__(self, root: Path, hint: Callable[[Path], object]) -> None:
        self._root = root
        self._hint = hint

    def on_any_event(self, event: FileSystemEvent) -> None:
        run_dir = run_of(self._root, Path(str(event.src_path)))
        if run_dir is not None:
            self._hint(run_dir)


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
