"""Syncs a run whenever its trainer asks for it by a file, as wandb-osh does between a compute and a login node.

    trainer: hook ──▶ DIR/<hash>.command, the run's directory in it ──▶ watch ──sync──▶ W&B
                                └────────────── removed ◀──────────────────┘ acknowledged

Invariants
----------
* A trigger goes when what it asked for is acknowledged, and only if it was not written again meanwhile.
* One that cannot be followed is tried again, ever more rarely, and delays no other; its trouble is said once.
* Triggers are strangers' texts: small, regular files and no links, and all that they can ask for is the sync of one
  run's directory.
* A signal is lost at no instant: it waits until it is looked for, and then ends what is under way.

The directory is looked at every second: it lies on a network file system, where no hint would come.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from eventlog.piece import RUN_FILE
from syncd import wandb_files
from syncd.sync import NothingThere, Plan, Watcher, Wishes, plan

SUFFIX = ".command"
TEXT_MAX_BYTES = 4096
LOOK_S = 1.0
RETRY_MIN_S, RETRY_MAX_S = 1.0, 60.0
# What a trigger is called while it is removed: no trainer writes there, and no look finds it.
ASIDE_SUFFIX = ".done"
# No link is followed, and no pipe waited for.
_READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_STOPPING = frozenset((signal.SIGTERM, signal.SIGINT))


class Seen(NamedTuple):
    """A trigger as it lies there; written again, it is another."""

    mtime_ns: int
    inode: int
    size: int


@dataclass(slots=True)
class _Failed:
    seen: Seen
    tries: int
    not_before_s: float


@dataclass(slots=True)
class Agenda:
    """Decides which triggers to follow now.  Time is a parameter.

    >>> agenda, written = Agenda(), {"a.command": Seen(1, 1, 9)}
    >>> agenda.due(written, 0.0)
    ['a.command']
    >>> agenda.failed("a.command", written["a.command"], 0.0)
    >>> agenda.due(written, 0.5), agenda.due(written, 1.0)
    ([], ['a.command'])
    """

    _failed: dict[str, _Failed] = field(default_factory=dict)

    def due(self, seen: Mapping[str, Seen], now_s: float) -> list[str]:
        """Return the names of those that are to be followed, the oldest first."""
        self._failed = {
            name: failed for name, failed in self._failed.items() if seen.get(name) == failed.seen
        }
        waiting = {name for name, failed in self._failed.items() if now_s < failed.not_before_s}
        return sorted(seen.keys() - waiting, key=lambda name: (seen[name], name))

    def failed(self, name: str, seen: Seen, now_s: float) -> None:
        """Try that one again later; at once if it is written anew."""
        before = self._failed.get(name)
        tries = before.tries + 1 if before is not None and before.seen == seen else 0
        wait_s = min(RETRY_MAX_S, RETRY_MIN_S * 2.0 ** min(tries, 10))
        self._failed[name] = _Failed(seen, tries, now_s + wait_s)

    def refused(self, name: str, seen: Seen) -> None:
        """Leave that one alone until it is written anew."""
        self._failed[name] = _Failed(seen, 0, float("inf"))


class NotFollowed(Exception):
    """What a trigger says cannot be done, however often it is tried: a sentence for a person."""


class Stopped(BaseException):
    """Somebody wants it to end: nothing that is wrong with a run, and never taken for it."""


class UntilStopped(Watcher):
    """Ends a sync when a signal waits: wherever it is ended, the next one goes on from there."""

    looks = True

    def has_read(self, size_bytes: int) -> None:
        _stop_if_asked()

    def uploading(self, total: int, done: int, sent_bytes: int, trouble: str | None) -> None:
        _stop_if_asked()


# -- what is asked for -----------------------------------------------------------------------------------------


def plan_of(run: Path, wishes: Wishes) -> Plan:
    """Say what there is to sync in a run's directory: no pattern is one, nor is a directory of many runs."""
    is_run = run.is_dir() and (os.path.isfile(run / RUN_FILE) or wandb_files.files_at(run)[1])
    if not is_run:
        raise NothingThere(f"cannot sync {str(run)!r}: there is no run's directory of that name.")
    return plan([str(run)], (), wishes)


def watch(
    directory: Path,
    follow: Callable[[Path], str | None],
    say: Callable[[str], object],
    clock: Callable[[], float],
    look_s: float = LOOK_S,
) -> None:
    """Follow triggers until SIGTERM or Ctrl-C.

    `follow` syncs a run directory; it returns why not all of it arrived, or None, and may raise `NotFollowed` or
    `Stopped`.
    """
    agenda = Agenda()
    said: dict[str, str] = {}
    _bring_back(directory)

    def say_once(name: str, text: str) -> None:
        if said.get(name) != text:
            say(f"{name}: {text}")
        said[name] = text

    with suppress(Stopped), _signals_wait():
        while True:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                seen = look(directory)
            except OSError as error:
                # A network file system's bad minute: the next look may well succeed.
                say_once(str(directory), f"it cannot be looked at ({error.strerror}).")
                seen = {}
            else:
                for gone in said.keys() - seen.keys():
                    del said[gone]
            for name in agenda.due(seen, clock()):
                _stop_if_asked()
                try:
                    trouble = _follow(directory / name, seen[name], follow)
                except NotFollowed as error:
                    say_once(name, str(error))
                    agenda.refused(name, seen[name])
                    continue
                if trouble is not None:
                    say_once(name, trouble)
                    agenda.failed(name, seen[name], clock())
            _stop_if_asked()
            time.sleep(look_s)


def look(directory: Path) -> dict[str, Seen]:
    """Return the triggers that lie there."""
    found = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX):
                with suppress(OSError):
                    seen = _seen(entry.stat(follow_symlinks=False))
                    if seen.size:
                        # An empty one is being written.
                        found[entry.name] = seen
    return found


def _seen(status: os.stat_result) -> Seen:
    return Seen(status.st_mtime_ns, status.st_ino, status.st_size)


def _follow(path: Path, seen: Seen, follow: Callable[[Path], str | None]) -> str | None:
    text = _text_of(path)
    if not text.strip():
        # Gone again, by a hand that knows why; or it is being written.
        return None
    run = Path(text.strip())
    if not run.is_absolute() or "\0" in text:
        raise NotFollowed(f"a run's directory is named by its absolute path, not {text[:80]!r}.")
    try:
        trouble = follow(run)
        if trouble is None:
            _remove(path, seen)
    except (NotFollowed, Stopped):
        raise
    except NothingThere as error:
        # It may come yet: for a minute, a network file system knows nothing of what another machine made.
        return str(error)
    except Exception as error:  # noqa: BLE001 - the daemon's loop: what one run's files do to us concerns no other
        return f"{str(run)!r}: {error!r}"
    return trouble


def _remove(path: Path, seen: Seen) -> None:
    """Remove a trigger unless it was written again.

    Under another name nobody writes it any more: what is compared is what is removed.
    """
    aside = path.with_name(path.name + ASIDE_SUFFIX)
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        # Opening it asks a network file system's server; a mere look may be answered from seconds ago.
        fd = os.open(aside, _READING)
        try:
            is_same = _seen(os.fstat(fd)) == seen
        finally:
            os.close(fd)
        if is_same:
            os.unlink(aside)
        else:
            # What the trainer may have written under the name by now asks for the same.
            os.rename(aside, path)


def _bring_back(directory: Path) -> None:
    """Take up what was left by a watcher that was killed while it removed a trigger: once too often does no harm."""
    for aside in directory.glob(f"*{SUFFIX}{ASIDE_SUFFIX}"):
        with suppress(OSError):
            os.rename(aside, aside.with_suffix(""))


def _text_of(path: Path) -> str:
    try:
        fd = os.open(path, _READING)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise NotFollowed(f"it cannot be read ({error.strerror}).") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotFollowed("it is not a file.")
        text = os.read(fd, TEXT_MAX_BYTES + 1)
    except OSError as error:
        raise NotFollowed(f"it cannot be read ({error.strerror}).") from None
    finally:
        os.close(fd)
    if len(text) > TEXT_MAX_BYTES:
        raise NotFollowed("it is too long to hold a path.")
    return os.fsdecode(text)


# -- signals ---------------------------------------------------------------------------------------------------


def _stop_if_asked() -> None:
    if signal.sigpending() & _STOPPING:
        raise Stopped


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let signals wait until they are looked for.

    A sync has handlers of its own, and takes them away when it ends: for a moment, a signal would kill.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        while signal.sigpending() & _STOPPING:
            signal.sigwait(_STOPPING)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
