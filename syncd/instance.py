"""One daemon per user and host: its lock, and the page on which it says how it is.

Invariants
----------
* The lock (`flock`) decides whether a daemon runs; the page only informs, and is believed while the lock is held.
* Where there are no locks, the text of the lock file decides, as long as its process lives on this host.
* The lock file is never unlinked by us: a second holder could slip in. Where somebody else did it, `lost` says so.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import orjson

from eventlog.piece import holder_here, open_lock, text_of, this_host, try_lock, write_lock_text

log = logging.getLogger("syncd")

ASKING_S = 0.1
# What was logged before a stop is sent within this: far less than who asked for it, systemd say, waits.
LINGER_S = 5.0
_TEXT_MAX_BYTES = 4096


class AlreadyRunning(Exception):
    """Another daemon holds the lock."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        super().__init__(
            f"another syncd is already running on this machine (process {pid or 'unknown'}). "
            "It watches every root that a run was logged to; `syncd status` shows what it does, `syncd stop` ends it."
        )


class Instance:
    """This user's place for one daemon on this host."""

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir
        self.log_path = state_dir / "syncd.log"
        self._lock_path = state_dir / "syncd.lock"
        self._page_path = state_dir / "syncd.json"
        self._fd = -1

    def acquire(self) -> None:
        """Become the daemon, or raise `AlreadyRunning`."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = open_lock(self._lock_path)
        # Who only asks whether a daemon runs holds the lock for a moment, too.
        deadline_s = time.monotonic() + ASKING_S
        while (held := try_lock(fd)) is False and time.monotonic() <= deadline_s:
            time.sleep(0.005)
        pid = self.running_pid() if not held else None
        if held is False or pid is not None:
            os.close(fd)
            raise AlreadyRunning(pid)
        if held is None:
            log.warning(
                "%s: its file system has no locks. Whether a syncd runs here is told by its process id alone; "
                "TIDELOG_STATE_DIR on a disk of this machine's own is better.",
                self.directory,
            )
        write_lock_text(fd, time.time_ns() // 1000, held is True)
        self._fd = fd

    def lost(self) -> str | None:
        """Say why another daemon may run beside this one, if it may; for the process that holds the lock."""
        held = os.fstat(self._fd)
        try:
            there = os.stat(self._lock_path, follow_symlinks=False)
        except OSError:
            there = None
        is_there = there is not None and (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)
        # Without locks two may begin at the same moment: who wrote its text last stays.
        said = text_of(os.pread(self._fd, _TEXT_MAX_BYTES, 0))
        if is_there and (said.get("host") != this_host() or said.get("pid") == os.getpid()):
            return None
        return (
            f"{self._lock_path}, the lock of this syncd (process {os.getpid()}), was removed or replaced: another syncd may "
            "run by now, so this one stops. Nothing is lost; `syncd start` starts one if none runs."
        )

    def running_pid(self) -> int | None:
        """Return the running daemon's process id, or None if none runs."""
        holder = holder_here(self._lock_path)
        return None if holder is None else int(holder.get("pid") or 0)

    def write_page(self, page: dict[str, Any]) -> None:
        temporary = self._page_path.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(orjson.dumps({**page, "pid": os.getpid()}))
        os.replace(temporary, self._page_path)

    def page(self) -> dict[str, Any]:
        """Return what the running daemon last said of itself; nothing if none runs."""
        pid = self.running_pid()
        if pid is None:
            return {}
        try:
            page = orjson.loads(self._page_path.read_bytes())
        except (OSError, ValueError):
            return {}
        # A page of a daemon that was killed may lie here until the next one writes its own.
        return page if isinstance(page, dict) and page.get("pid") == pid else {}
