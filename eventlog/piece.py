"""Who writes a run, and who still does: identities, claims and locks.  FORMAT.md, "Pieces and writers".

Invariants
----------
* A directory is claimed by `mkdir`, so two processes never write in one piece.
* The lock decides who lives; its text only informs, and is never trusted where `flock` may not reach.
* That a file system has no locks is not that somebody holds one: then nothing is certain, and writers write all the same.
* `closed` is said only of a piece that can never grow again.  Ask it *before* the last read, not after: a writer
  may append between a read and its death.

Nothing here reads or writes a record.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from eventlog.errors import NotARun
from eventlog.segment import FORMAT, directory_name, primary_name, primary_number

RUN_FILE = "run.json"
LOCK_FILE = "lock"
HEARTBEAT_S = 30.0
# A writer on another host is not waited for any longer than this without a sign of life. FORMAT.md, "Pieces and writers".
STALE_S = 600.0
LOCK_TEXT_MAX_BYTES = 4096
# A process that is younger than what it is said to have written is another one; a clock is set by less than this.
_CLOCK_S = 2.0


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What `run.json` says: who a run is, for ever."""

    log_id: str
    project: str
    run_id: str
    entity: str | None
    created_us: int

    @classmethod
    def new(cls, project: str, run_id: str, entity: str | None) -> RunIdentity:
        return cls(os.urandom(16).hex(), project, run_id, entity, time.time_ns() // 1000)

    def directory(self, root: Path) -> Path:
        return root / directory_name(self.project) / directory_name(self.run_id)

    @classmethod
    def load(cls, run_dir: Path) -> RunIdentity:
        """Return the identity of the run in `run_dir`, or raise `NotARun`."""
        path = run_dir / RUN_FILE
        try:
            content = orjson.loads(_read_small(path))
            found = cls(
                content["log_id"],
                content["project"],
                content["run_id"],
                content["entity"],
                content["created"],
            )
            version = content["format"]
            texts = (found.log_id, found.project, found.run_id, "" if found.entity is None else found.entity)
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("a name in it is no text")
        except FileNotFoundError:
            raise NotARun(f"{str(run_dir)!r} has no {RUN_FILE}: it is not a run of an event log.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NotARun(
                f"{str(path)!r} cannot be read: {error}. Its segments are intact; restore the file from a copy."
            ) from None
        if version != FORMAT:
            raise NotARun(
                f"{str(path)!r} has format {version!r}, and this version reads format {FORMAT}. Update tidelog to read it."
            )
        return found

    def publish(self, run_dir: Path) -> RunIdentity:
        """Write `run.json` unless there is one; return the identity that holds from now on.

        Processes that start the same run at once agree on whichever was first.
        """
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = run_dir / f".{RUN_FILE}.{os.urandom(4).hex()}"
        content = {
            "format": FORMAT,
            "log_id": self.log_id,
            "project": self.project,
            "entity": self.entity,
            "run_id": self.run_id,
            "created": self.created_us,
        }
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                write_all(fd, orjson.dumps(content) + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)
            os.link(temporary, run_dir / RUN_FILE)
        except FileExistsError:
            return RunIdentity.load(run_dir)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        sync_directory(run_dir)
        return self


class Piece:
    """A directory that this process, and no other, writes in.  Made by `claim_primary` and `claim_secondary`."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        self.writer = directory.name
        self.token = os.urandom(4).hex()
        self._lock_fd = -1
        self._is_locked = False
        unborn = directory / f".{LOCK_FILE}.new"
        try:
            self._lock_fd = os.open(
                unborn, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            # Nobody else knows this file yet: where it cannot be locked, nothing can be, and the text says so.
            self._is_locked = try_lock(self._lock_fd) is True
            self.heartbeat(time.time_ns() // 1000)
            # A piece whose lock or whose text a power cut took would look alive for ever.
            os.fdatasync(self._lock_fd)
            # It gets its name held and with its text: a reader never sees it free before its writer has died.
            os.rename(unborn, directory / LOCK_FILE)
            sync_directory(directory)
            sync_directory(directory.parent)
        except BaseException:
            self.abandon()
            raise

    def heartbeat(self, now_us: int) -> None:
        """Say in the lock's text that this writer lived at `now_us`.  A disk that refuses it costs nothing."""
        try:
            write_lock_text(self._lock_fd, now_us, self._is_locked)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise

    def release(self) -> None:
        """Let the lock go; the piece is closed from now on."""
        if self._lock_fd >= 0:
            # Forgotten first: whoever is interrupted in between must not close another file's number.
            fd, self._lock_fd = self._lock_fd, -1
            os.close(fd)

    def abandon(self) -> None:
        """Give up a piece without a record: it is tried again, and each try would leave a directory."""
        self.release()
        with suppress(OSError):
            for name in os.listdir(self.dir):
                os.unlink(self.dir / name)
            os.rmdir(self.dir)

    # A forked child shares its parent's lock: closing the child's descriptor leaves the parent's lock held, and
    # keeping it would make a dead parent look alive.
    abandon_after_fork = release


def claim_primary(run_dir: Path) -> Piece:
    """Claim the run's next primary piece."""
    number = 1 + max((primary_number(name) or 0 for name in primaries(run_dir)), default=0)
    while True:
        directory = run_dir / primary_name(number)
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            number += 1
            continue
        return Piece(directory)


def claim_secondary(run_dir: Path, label: str) -> Piece:
    """Claim a directory for a writer beside the primary: `label` is `rank3`, `fork` or `second`."""
    while True:
        directory = run_dir / f"{label}-{os.urandom(4).hex()}"
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return Piece(directory)


def primaries(run_dir: Path) -> list[str]:
    """Return the names of the primary pieces, in the order of the run's history."""
    numbered = ((primary_number(name), name) for name in _names(run_dir))
    return [name for _, name in sorted((number, name) for number, name in numbered if number is not None)]


def closed(run_dir: Path, writer: str) -> bool:
    """Say whether the piece can never grow again, by its lock or a later piece.

    A piece that ends in an `exit` record is closed as well; whoever has read that record knows it.
    """
    number = primary_number(writer)
    if number is not None and any((primary_number(name) or 0) > number for name in _names(run_dir)):
        return True
    return lock_owner_is_gone(run_dir / writer)


def lock_owner_is_gone(piece_dir: Path) -> bool:
    """Say whether the piece's writer is certainly dead: a free lock of this host, or of one of its earlier boots."""
    try:
        is_free, line = ask_lock(piece_dir / LOCK_FILE)
    except OSError:
        # Not created yet, or out of reach: nothing is certain.
        return False
    # Held; or there are no locks; or not a text of ours, or one that a full disk cut short: nothing is certain.
    text = text_of(line)
    return is_free is True and "host" in text and ran_here(text)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, or raise: a disk that fills up takes a part, and fails the next call."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def open_lock(path: Path) -> int:
    """Return a descriptor of a lock file, which is made if it is not there."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def try_lock(fd: int, shared: bool = False) -> bool | None:
    """Take the lock of an open file, without waiting: False if another holds it, None if its file system has no locks."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        # ENOLCK is NFS without its lock service; others say ENOTSUP or ENOSYS.
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def hold(path: Path) -> int | None:
    """Return a descriptor that holds that lock file for this process alone, or None if another process does.

    Raises `OSError` where there are no locks.
    """
    fd = open_lock(path)
    held = try_lock(fd)
    if held:
        return fd
    os.close(fd)
    if held is None:
        raise OSError(errno.ENOLCK, "its file system has no locks", str(path))
    return None


def ask_lock(path: Path) -> tuple[bool | None, bytes]:
    """Return what `try_lock` says of a lock file, which is not held by it any more, and its text.

    Raises `OSError` if it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return try_lock(fd, shared=True), os.pread(fd, LOCK_TEXT_MAX_BYTES, 0)
    finally:
        os.close(fd)


def holder_by(is_free: bool | None, line: bytes) -> dict[str, Any] | None:
    """Return what the text of a lock says of the process on this host that holds it, by what `try_lock` said; or None.

    Without locks it is the text that is believed, as long as its process lives.
    """
    text = text_of(line)
    if is_free is None:
        return text if text.get("host") == this_host() and may_live(text) else None
    return None if is_free else text


def holder_here(path: Path) -> dict[str, Any] | None:
    """Return what a lock file says of the process on this host that holds it; None if none does, or if it cannot be opened."""
    try:
        return holder_by(*ask_lock(path))
    except OSError:
        return None


def write_lock_text(fd: int, now_us: int, is_locked: bool = True) -> None:
    """Say in the file of a lock who holds it, and that it lived at `now_us`."""
    text = {"host": this_host(), "boot_id": this_boot_id(), "pid": os.getpid(), "heartbeat": now_us}
    if not is_locked:
        text["locked"] = False
    line = orjson.dumps(text) + b"\n"
    os.pwrite(fd, line, 0)
    os.ftruncate(fd, len(line))


def lock_text(piece_dir: Path) -> dict[str, Any]:
    """Return what the lock's text says (`host boot_id pid heartbeat`), or nothing.  It informs, and decides nothing."""
    try:
        return text_of(_read_small(piece_dir / LOCK_FILE))
    except OSError:
        return {}


def text_of(line: bytes) -> dict[str, Any]:
    """Return what `write_lock_text` said, with a heartbeat that is a whole number; nothing for anything else."""
    try:
        text = orjson.loads(line)
    except ValueError:
        return {}
    if not isinstance(text, dict):
        return {}
    heartbeat = text.get("heartbeat", 0)
    return text | {"heartbeat": heartbeat if type(heartbeat) is int else 0}


def ran_here(text: Mapping[str, Any]) -> bool:
    """Say whether the writer of a lock's text ran where its lock can be asked: on this host, or on this kernel.

    A restarted container has another name on the same kernel, and one kernel has one set of locks. A writer that could
    take none left nothing to be asked.
    """
    is_here = text.get("host") == this_host() or text.get("boot_id") == this_boot_id()
    return is_here and text.get("locked") is not False


def may_live(text: Mapping[str, Any]) -> bool:
    """Say whether the process of a lock's text may live, by the text alone: for where there are no locks."""
    if text.get("host") != this_host():
        # Or in another container, where it has another number.
        return True
    if text.get("boot_id") != this_boot_id() or type(text.get("pid")) is not int:
        return False
    import psutil

    try:
        return bool(psutil.Process(text["pid"]).create_time() <= text["heartbeat"] / 1e6 + _CLOCK_S)
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
    except psutil.AccessDenied:
        return True


@cache
def this_host() -> str:
    return os.uname().nodename


@cache
def this_boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        import psutil

        return f"boot-{psutil.boot_time():.0f}"


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable, where the file system can."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot sync a directory, and need not.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_small(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, 64 * 1024)
    finally:
        os.close(fd)
