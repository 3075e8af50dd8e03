"""The roots that this user's runs are under, so that `syncd` finds them from any directory.

Invariants
----------
* The list is replaced whole, under a lock: two runs that start at once are both in it.
* Nothing depends on it but convenience: a list that cannot be read is empty, and `unreadable` says so to who asks; one
  that cannot be written is said so by the caller, never by an exception out of `init`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from eventlog.piece import holder_here

ROOTS_FILE = "roots.json"
DAEMON_LOCK = "syncd.lock"
DAEMON_PAGE = "syncd.json"
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
    with suppress(FileNotFoundError, _Damaged):
        return _read()
    return []


def unreadable() -> str | None:
    """Say that the list is there and cannot be read, and the way out; None if it can, or if there is none."""
    try:
        _read()
    except FileNotFoundError:
        return None
    except _Damaged as damaged:
        return (
            f"{str(state_dir() / ROOTS_FILE)!r}, the list of the roots that runs were logged to, cannot be read: {damaged}. "
            "Name the roots with --root; delete that file, and each root is entered again when a run is next logged there."
        )
    return None


def register(root: Path) -> None:
    """Enter `root` in the list, or raise `OSError`."""
    root = Path(os.path.abspath(root))
    if root not in registered():
        state_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(lambda roots: dict.fromkeys([*roots, root]))


def forget(root: Path) -> bool:
    """Take `root` out of the list, or raise `OSError`; return False if it is not in it."""
    root = Path(os.path.abspath(root))
    if root not in registered():
        return False
    _replace(lambda roots: [known for known in roots if known != root])
    return True


def daemon_is_watching(root: Path | None = None) -> bool:
    """Say whether this user's `syncd` runs on this host and, if `root` is given, looks at that one."""
    holder = holder_here(state_dir() / DAEMON_LOCK)
    if holder is None or root is None:
        return holder is not None
    page: Any = None
    with suppress(OSError, ValueError):
        page = orjson.loads((state_dir() / DAEMON_PAGE).read_bytes())
    # One that has just started says in a moment what it looks at.
    return not isinstance(page, dict) or page.get("pid") != holder.get("pid") or is_watched(root, page)


def is_watched(root: Path, page: Mapping[str, Any]) -> bool:
    """Say whether the daemon that said this of itself looks at `root`: at those it was given, else at all in the list."""
    if "roots" not in page:
        # An earlier version of it does not say.
        return True
    looks_at = page["roots"] if page.get("has_chosen_roots") else registered()
    return os.path.realpath(root) in map(os.path.realpath, looks_at)


class _Damaged(Exception):
    """What stands there is no list of paths."""


def _read() -> list[Path]:
    try:
        fd = os.open(state_dir() / ROOTS_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(fd, "rb") as file:
            content = orjson.loads(file.read())
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(ROOTS_FILE) from None
    except OSError as error:
        raise _Damaged(error.strerror or str(error)) from None
    except ValueError as error:
        raise _Damaged(f"it is no JSON ({error})") from None
    if not isinstance(content, list) or not all(isinstance(root, str) for root in content):
        raise _Damaged("it is no list of paths")
    # No path has a NUL in it; whoever used one would fail over it.
    return [Path(root) for root in content if "\0" not in root]


def _replace(change: Callable[[list[Path]], Iterable[Path]]) -> None:
    directory = state_dir()
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock_fd = os.open(directory / "roots.lock", flags, 0o600)
    try:
        # Without locks, of two new roots at the same moment one may be missing: `init` enters it the next time.
        with suppress(OSError):
            fcntl.flock(lock_fd, fcntl.LOCK_EX)
        try:
            roots = change(_read())
        except FileNotFoundError:
            roots = change([])
        except _Damaged as damaged:
            # What it still says of other roots is not thrown away for one more.
            raise OSError(errno.EINVAL, f"the list there is damaged: {damaged}") from None
        temporary = directory / f".{ROOTS_FILE}.{os.urandom(4).hex()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, orjson.dumps([str(known) for known in roots]) + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, directory / ROOTS_FILE)
    finally:
        os.close(lock_fd)


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
