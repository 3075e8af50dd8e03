"""One daemon per user and host: its lock, and the page on which it says how it is.

Invariants
----------
* The lock (`flock`) decides whether a daemon runs; the page only informs, and is believed while the lock is held.
* Where there are no locks, the text of the lock file decides, as long as its process lives on this host.
* The lock file is never unlinked by us: a second holder could slip in. Where somebody else did it, `lost` says so.
* A process id is one of this process's world only if the lock's text says so: a home, and with it the lock, may be
  shared by containers and by hosts.
* A disk that is full costs the lock's text and the page, and no daemon its place.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from eventlog import roots
from eventlog.piece import (
    LOCK_TEXT_MAX_BYTES,
    ask_lock,
    holder_by,
    open_lock,
    text_of,
    this_boot_id,
    this_host,
    try_lock,
)

log = logging.getLogger("syncd")

ASKING_S = 0.1
# What was logged before a stop is sent within this: far less than who asked for it, systemd say, waits.
LINGER_S = 5.0
UNKNOWN = "unknown"
"""What the page says of a daemon that runs and has not said how it is."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds the lock, as the lock's text says it."""

    pid: int = 0
    """0: it could not write it."""
    host: str = ""
    boot_id: str = ""
    pid_namespace: int | None = None

    @classmethod
    def this_process(cls) -> Holder:
        return cls(os.getpid(), this_host(), this_boot_id(), _pid_namespace())

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> Holder:
        """
        >>> Holder.of({"pid": 7, "host": "node1", "boot_id": "b", "pid_namespace": 1}).pid, Holder.of({}).pid
        (7, 0)
        """
        pid, namespace = said.get("pid"), said.get("pid_namespace")
        return cls(
            pid if type(pid) is int else 0,
            str(said.get("host", "")),
            str(said.get("boot_id", "")),
            namespace if type(namespace) is int else None,
        )

    @property
    def is_here(self) -> bool:
        """Whether its process id means that process here as well, and no stranger."""
        here = (this_boot_id(), _pid_namespace())
        return self.pid > 0 and (self.boot_id, self.pid_namespace) == here

    def __str__(self) -> str:
        if not self.pid:
            return "process unknown"
        if self.is_here:
            return f"process {self.pid}"
        if self.boot_id == this_boot_id():
            return f"process {self.pid} of another container on this machine, {self.host!r}"
        return f"process {self.pid} on {self.host!r}"


class NotToBeSeen(Exception):
    """Whether a daemon runs cannot be told: this user may not look."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"whether a syncd runs cannot be told: {str(path)!r} may not be looked at ({error.strerror}). It belongs to "
            "another user, who may have a syncd running (after a `sudo syncd start`, say, root): ask as that user, or set "
            "TIDELOG_STATE_DIR to a directory of your own."
        )


class AlreadyRunning(Exception):
    """Another daemon holds the lock."""

    def __init__(self, holder: Holder, only: Sequence[str] | None = None) -> None:
        watched = "every root that a run was logged to"
        if only is not None:
            watched = f"{' and '.join(map(repr, only)) or 'no root'}, and no other root"
        super().__init__(
            f"another syncd is already running ({holder}). It watches {watched}; `syncd status` shows what it does, "
            "`syncd stop` ends it."
        )


class Instance:
    """This user's place for one daemon on this host."""

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir
        self.log_path = state_dir / "syncd.log"
        self._lock_path = state_dir / roots.DAEMON_LOCK
        self._page_path = state_dir / roots.DAEMON_PAGE
        self._fd = -1

    def acquire(self) -> None:
        """Become the daemon, or raise `AlreadyRunning`."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = open_lock(self._lock_path)
        # Who only asks whether a daemon runs holds the lock for a moment, too.
        deadline_s = time.monotonic() + ASKING_S
        while (held := try_lock(fd)) is False and time.monotonic() <= deadline_s:
            time.sleep(0.005)
        holder = _holder_by(held, os.pread(fd, LOCK_TEXT_MAX_BYTES, 0))
        if holder is not None:
            os.close(fd)
            raise AlreadyRunning(holder, self.only_roots())
        if held is None:
            log.warning(
                "%s: its file system has no locks. Whether a syncd runs here is told by its process id alone; "
                "TIDELOG_STATE_DIR on a disk of this machine's own is better.",
                self.directory,
            )
        self._fd = fd
        said = {**asdict(Holder.this_process()), "heartbeat": time.time_ns() // 1000}
        text = orjson.dumps(said if held else {**said, "locked": False}) + b"\n"
        try:
            # What an earlier holder wrote has its place on a full disk, and so has what replaces it.
            written = os.pwrite(fd, text, 0)
        except OSError:
            written = 0
        # Half a text, or another's, would name a stranger.
        os.ftruncate(fd, written if written == len(text) else 0)

    def lost(self) -> str | None:
        """Say why another daemon may run beside this one, if it may; for the process that holds the lock."""
        try:
            held = os.fstat(self._fd)
            there = os.stat(self._lock_path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            # Not to be looked at just now, as where a network file system is away: that it was removed, nobody says.
            return None
        else:
            # Without locks two may begin at the same moment: who wrote its text last stays.
            said = Holder.of(text_of(os.pread(self._fd, LOCK_TEXT_MAX_BYTES, 0)))
            is_ours = not said.is_here or said.pid == os.getpid()
            if is_ours and (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino):
                return None
        return (
            f"{self._lock_path}, the lock of this syncd (process {os.getpid()}), was removed or replaced: another syncd may "
            "run by now, so this one stops. Nothing is lost; `syncd start` starts one if none runs."
        )

    def holder(self) -> Holder | None:
        """Return who is the daemon, or None if none runs; raise `NotToBeSeen` where that cannot be told."""
        try:
            return _holder_by(*ask_lock(self._lock_path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise NotToBeSeen(self._lock_path, error) from None

    def running_pid(self) -> int | None:
        """Return the running daemon's process id where it runs, 0 if it could not say it; None if none is known to run."""
        try:
            holder = self.holder()
        except NotToBeSeen:
            return None
        return None if holder is None else holder.pid

    def write_page(self, page: dict[str, Any]) -> None:
        temporary = self._page_path.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(orjson.dumps({**page, "pid": os.getpid()}))
        os.replace(temporary, self._page_path)

    def page(self) -> dict[str, Any]:
        """Return what the running daemon last said of itself; nothing if none runs."""
        try:
            holder = self.holder()
        except NotToBeSeen as error:
            return {"state": UNKNOWN, "error": str(error)}
        if holder is None:
            return {}
        try:
            page = orjson.loads(self._page_path.read_bytes())
        except (OSError, ValueError):
            page = None
        # A page of a daemon that was killed may lie here until the next one writes its own.
        if isinstance(page, dict) and page.get("pid") == holder.pid:
            return page
        reason = f"it has not written how it is into {str(self._page_path)!r}; `syncd logs` may say why"
        return {"state": UNKNOWN, "pid": holder.pid or None, "error": reason}

    def only_roots(self) -> list[str] | None:
        """Return the roots that the running daemon was told to watch and no other; None if it watches all that are known."""
        page = self.page()
        return list(page.get("roots", [])) if page.get("has_chosen_roots") else None


def _holder_by(is_free: bool | None, line: bytes) -> Holder | None:
    said = holder_by(is_free, line)
    return None if said is None else Holder.of(said)


def _pid_namespace() -> int | None:
    """Return what tells process ids of this process's world from those of others; None where there is one world."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None
