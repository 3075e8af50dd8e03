"""One daemon per user and host: its lock, and the page on which it says how it is.

Invariants
----------
* The lock (`flock`) decides whether a daemon runs; the page only informs, and is believed while the lock is held.
* The lock file is never unlinked by us: a second holder could slip in. Where somebody else did it, `lost` says so.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

import orjson

ASKING_S = 0.1
# What was logged before a stop is sent within this: far less than who asked for it, systemd say, waits.
LINGER_S = 5.0


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
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        # Who only asks whether a daemon runs holds the lock for a moment, too.
        deadline_s = time.monotonic() + ASKING_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline_s:
                    os.close(fd)
                    raise AlreadyRunning(self.running_pid()) from None
                time.sleep(0.005)
        text = b"%d\n" % os.getpid()
        os.pwrite(fd, text, 0)
        os.ftruncate(fd, len(text))
        self._fd = fd

    def lost(self) -> str | None:
        """Say why another daemon may run beside this one, if it may; for the process that holds the lock."""
        held = os.fstat(self._fd)
        try:
            there = os.stat(self._lock_path, follow_symlinks=False)
        except OSError:
            there = None
        if there is not None and (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino):
            return None
        return (
            f"{self._lock_path}, the lock of this syncd (process {os.getpid()}), was removed or replaced: another syncd may "
            "run by now, so this one stops. Nothing is lost; `syncd start` starts one if none runs."
        )

    def running_pid(self) -> int | None:
        """Return the running daemon's process id, or None if none runs."""
        try:
            fd = os.open(self._lock_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                text = os.pread(fd, 32, 0).strip()
                return int(text) if text.isdigit() else 0
            return None
        finally:
            os.close(fd)

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
