"""The roots that this user's runs are under, so that `syncd` finds them from any directory.

Invariants
----------
* The list is replaced whole, under a lock: two runs that start at once are both in it.
* Nothing depends on it but convenience: a list that cannot be read is empty, and one that cannot be written is said so
  by the caller, never by an exception out of `init`.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import orjson

ROOTS_FILE = "roots.json"
DAEMON_LOCK = "syncd.lock"
LATEST = "latest"


def state_dir() -> Path:
    """Return the directory of this user's state: `$TIDELOG_STATE_DIR`, or where the platform keeps such things."""
    chosen = os.environ.get("TIDELOG_STATE_DIR")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_state_dir("tidelog"))


def root_of(given: Path | str | None) -> Path:
    """Return the root that was given, else `$EVENTLOG_ROOT`, else `./runs`."""
    return Path(given or os.environ.get("EVENTLOG_ROOT") or "runs")


def registered() -> list[Path]:
    """Return the roots in the order in which they were first used; some may be gone by now."""
    try:
        fd = os.open(state_dir() / ROOTS_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return []
    with open(fd, "rb") as file:
        try:
            content = orjson.loads(file.read())
        except ValueError:
            return []
    # No path has a NUL in it; whoever used one would fail over it.
    usable = (
        [root for root in content if isinstance(root, str) and "\0" not in root]
        if isinstance(content, list)
        else []
    )
    return [Path(root) for root in usable]


def register(root: Path) -> None:
    """Enter `root` in the list, or raise `OSError`."""
    root = Path(os.path.abspath(root))
    if root in registered():
        return
    directory = state_dir()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock_fd = os.open(directory / "roots.lock", flags, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        roots = [*registered(), root]
        temporary = directory / f".{ROOTS_FILE}.{os.urandom(4).hex()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, orjson.dumps([str(known) for known in dict.fromkeys(roots)]) + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, directory / ROOTS_FILE)
    finally:
        os.close(lock_fd)


def daemon_is_watching() -> bool:
    """Say whether this user's `syncd` runs on this host."""
    try:
        fd = os.open(state_dir() / DAEMON_LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        return True
    finally:
        os.close(fd)


def link_latest(root: Path, run_dir: Path) -> None:
    """Let `<root>/latest` lead to a run, for people; where that name is taken, it leads nowhere."""
    link = root / LATEST
    if link.is_symlink() or not link.exists():
        temporary = root / f".{LATEST}.{os.urandom(4).hex()}"
        with suppress(OSError):
            os.symlink(os.path.relpath(run_dir, root), temporary)
            os.replace(temporary, link)


def make_way(root: Path, run_dir: Path) -> None:
    """Remove the link where a project of that name is about to be: its runs would come to lie in another run."""
    link = root / LATEST
    if run_dir.parent == link and link.is_symlink():
        link.unlink(missing_ok=True)
