"""The content store of a run: what was logged as a file, under the SHA-256 of its content.

    content ──hash──▶ files/.<random> ──fsync──▶ rename ──▶ files/<sha256>

Invariants
----------
* A name appears with its whole content, and never changes afterwards; what is there already is not written again.
* No symlink is followed, so that nothing is written outside of the run's directory.
* `put` returned ⇒ the content survives a power cut, if the store is durable.
* A file of any size goes through in pieces; none is in memory whole.

A killed writer leaves a name that begins with a dot; nobody reads it. Nothing here knows what the content is for.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eventlog.piece import sync_directory

FILES_DIR = "files"
_CHUNK_BYTES = 1024 * 1024

Content = bytes | Path
"""What is to be stored: the bytes themselves, or the file that holds them."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Which content it was."""

    sha256: str
    md5: str
    """In hex. W&B knows the files of an artifact by it."""
    size: int


class Unreadable(OSError):
    """The file that holds the content cannot be read; whether the store can be written is another matter."""


class Store:
    """Stores content for one run.  Safe to use from threads and from several processes."""

    def __init__(self, run_dir: Path, is_durable: bool) -> None:
        self._run_dir = run_dir
        self._is_durable = is_durable

    def put(self, content: Content, may_link: bool = False) -> Stored:
        """Store `content` and say what it was, or raise `OSError` (`Unreadable`, say) and leave nothing.

        A file that nobody changes any more may be linked: it takes no space again, where the file system can do it.
        """
        dir_fd = self._open_directory()
        try:
            linked = self._linked(content, dir_fd) if may_link and isinstance(content, Path) else None
            stored = linked or self._copied(content, dir_fd)
        finally:
            os.close(dir_fd)
        if self._is_durable:
            sync_directory(self._run_dir / FILES_DIR)
        return stored

    def _linked(self, path: Path, dir_fd: int) -> Stored | None:
        stored = digests(path)
        is_there = self._holds(dir_fd, stored)
        if not is_there and _is_linked(path, stored.sha256, dir_fd):
            is_there = self._holds(dir_fd, stored)
        return stored if is_there else None

    def _copied(self, content: Content, dir_fd: int) -> Stored:
        # In one pass: a file that changes meanwhile is stored as what was read of it, under the right name.
        unnamed = f".{os.urandom(8).hex()}"
        fd = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
        try:
            stored = _read_through(content, fd)
            if not self._holds(dir_fd, stored):
                if self._is_durable:
                    os.fsync(fd)
                os.rename(unnamed, stored.sha256, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            return stored
        finally:
            os.close(fd)
            with suppress(FileNotFoundError):
                os.unlink(unnamed, dir_fd=dir_fd)

    def _open_directory(self) -> int:
        directory = self._run_dir / FILES_DIR
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            if self._is_durable:
                sync_directory(self._run_dir)
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _holds(self, dir_fd: int, stored: Stored) -> bool:
        """Say whether the content is there; what else has its name is replaced."""
        try:
            fd = os.open(
                stored.sha256, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd
            )
        except OSError:
            return False
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size != stored.size:
                return False
            if self._is_durable:
                # Its writer may have had no such care.
                os.fsync(fd)
            return True
        finally:
            os.close(fd)


def _is_linked(path: Path, name: str, dir_fd: int) -> bool:
    """Give a file a name in the store as well, and say whether that worked."""
    try:
        os.link(os.path.realpath(path), name, dst_dir_fd=dir_fd)
    except OSError:
        # On another file system, of another owner, or there is a wrong one: it is copied.
        return False
    return True


def copied(source: Path, to: Path) -> Stored:
    """Copy a file to a name that is not there yet, and say what it was; or raise `OSError` and leave nothing."""
    fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        return _read_through(source, fd)
    except BaseException:
        os.unlink(to)
        raise
    finally:
        os.close(fd)


def digests(content: Content) -> Stored:
    """Say what `content` is, and store nothing."""
    return _read_through(content, None)


def _read_through(content: Content, fd: int | None) -> Stored:
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    for chunk in _chunks(content):
        sha256.update(chunk)
        md5.update(chunk)
        size += len(chunk)
        if fd is not None:
            _write_whole(fd, chunk)
    return Stored(sha256.hexdigest(), md5.hexdigest(), size)


def _chunks(content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    try:
        with open(content, "rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise Unreadable(error.errno, error.strerror, str(content)) from error


def _write_whole(fd: int, chunk: bytes) -> None:
    with memoryview(chunk) as rest:
        done = 0
        while done < len(rest):
            done += os.write(fd, rest[done:])
