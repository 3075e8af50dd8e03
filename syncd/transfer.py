"""Brings contents to the URLs that a server gave for them, and says what became of each.

    {name: (content, target)} ──put_all──▶ PUT, a few at once ──▶ {name: Outcome}

Invariants
----------
* Stored content is proved while it is read: its last bytes leave only when all of it is what was logged, so
  that no server ever has a damaged file whole.
* A file that shrinks, grows, vanishes or cannot be read ends its request; nothing waits for it.
* An outcome is a value: `ACK` it is stored; `REFUSED` it never will be; `FORBIDDEN` a fresh URL, or another look
  at the disk, may help; `AWAITED` it is not all here, and may be on its way; anything else is trouble on the way, and
  says nothing about the content. The reasons of the second and third are fit to be counted.

What the URLs are for, and what is done about an outcome, is known to `uploads` and `artifacts`.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

from syncd.http import Answer
from syncd.shipper import Outcome, Verdict, is_page, outcome_of
from syncd.wandb_api import WandbApi

# Large files are long in coming anyway; many at once would only take the lines' share of the network.
PUTS_AT_ONCE = 4
# Signed URLs expire, disks come back: so often is the same thing tried before it is left out for good.
TRIES = 3
MISSING = "file missing here"
DAMAGED = "file not what was logged"
_CHUNK_BYTES = 256 * 1024
_SHA256 = re.compile("[0-9a-f]{64}")


class NotSent(Exception):
    """The content cannot be sent as it is here; nobody has it whole."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class Content(Protocol):
    """Bytes whose length is known once they are prepared."""

    @property
    def size(self) -> int: ...

    async def prepare(self) -> None:
        """Be ready to be sent; raise `NotSent` if a glance shows that it cannot be."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Give the bytes, or raise `NotSent` before the last of them."""


@dataclass(frozen=True, slots=True)
class Made:
    """Content that `syncd` makes itself."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    async def prepare(self) -> None:
        return None

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.data


class MadeOnDisk:
    """Content that `syncd` makes itself, too large to be held, and long in the making: a file without a name."""

    def __init__(self, directory: Path, parts: Callable[[], Iterator[bytes]]) -> None:
        """`parts` gives it, in a thread of its own; `directory` is where there is room for it."""
        self.size = 0
        self._directory = directory
        self._parts = parts
        self._file: IO[bytes] | None = None
        self._is_given_up = threading.Event()

    async def prepare(self) -> None:
        if self._file is not None:
            return
        try:
            self._file = await asyncio.to_thread(self._make)
        except asyncio.CancelledError:
            # The thread would go on to the end, and whoever stops would wait for it.
            self._is_given_up.set()
            raise
        except OSError as error:
            raise NotSent(
                Outcome(Verdict.FORBIDDEN, f"file that cannot be made here ({error.strerror})")
            ) from None
        self.size = os.fstat(self._file.fileno()).st_size

    async def chunks(self) -> AsyncIterator[bytes]:
        assert self._file is not None, "sent before it was prepared"
        for begin in range(0, self.size, _CHUNK_BYTES):
            yield os.pread(self._file.fileno(), _CHUNK_BYTES, begin)

    def _make(self) -> IO[bytes]:
        file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - it lives as long as this does
        for part in self._parts():
            if self._is_given_up.is_set():
                break
            file.write(part)
        file.flush()
        return file


def nothing_comes() -> bool:
    """What is not here is lost."""
    return False


@dataclass(frozen=True, slots=True)
class Stored:
    """Content of the run's store, `files/<sha256>`."""

    run_dir: Path
    sha256: str
    size: int
    may_come: Callable[[], bool] = nothing_comes
    """Say whether what is missing of it may be on its way, as while the run is being copied."""

    async def prepare(self) -> None:
        with self._opened():
            pass

    async def chunks(self) -> AsyncIterator[bytes]:
        proof = hashlib.sha256()
        left = self.size
        with self._opened() as fd:
            while left:
                chunk = _read(fd, min(left, _CHUNK_BYTES))
                if not chunk:
                    raise _not_all_here(self.sha256, self.size - left, self.may_come, DAMAGED)
                proof.update(chunk)
                left -= len(chunk)
                if not left and proof.hexdigest() != self.sha256:
                    raise NotSent(Outcome(Verdict.REFUSED, DAMAGED))
                yield chunk

    @contextmanager
    def _opened(self) -> Iterator[int]:
        with _opened(self.run_dir, self.sha256, self.may_come) as fd:
            here_bytes = os.fstat(fd).st_size
            if here_bytes < self.size:
                raise _not_all_here(self.sha256, here_bytes, self.may_come, DAMAGED)
            if here_bytes > self.size:
                raise NotSent(Outcome(Verdict.REFUSED, DAMAGED))
            yield fd


def read_stored(run_dir: Path, sha256: str, may_come: Callable[[], bool] = nothing_comes) -> bytes:
    """Return content of the store whose size is not known; raise `NotSent` if it is not what was logged."""
    data = bytearray()
    with _opened(run_dir, sha256, may_come) as fd:
        while chunk := _read(fd, _CHUNK_BYTES):
            data += chunk
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _not_all_here(sha256, len(data), may_come, DAMAGED)
    return bytes(data)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server wants a content to be put; untrusted."""

    url: str
    headers: tuple[str, ...] = ()

    @classmethod
    def of(cls, url: Any, headers: Any) -> Target | None:
        """Return what an answer says, or None if it names no URL."""
        if not isinstance(url, str) or not url:
            return None
        lines = headers if isinstance(headers, list) else []
        return cls(url, tuple(line for line in lines if isinstance(line, str)))


async def put_all(api: WandbApi, jobs: Mapping[str, tuple[Content, Target]]) -> dict[str, Outcome]:
    """Put everything; what had not begun when trouble came has no outcome."""
    outcomes: dict[str, Outcome] = {}
    waiting = iter(jobs.items())

    async def work() -> None:
        for name, (content, target) in waiting:
            outcomes[name] = await put(api, content, target)
            if any(is_trouble(outcome) for outcome in outcomes.values()):
                return

    await asyncio.gather(*(work() for _ in range(min(PUTS_AT_ONCE, len(jobs)))))
    return {name: outcomes[name] for name in jobs if name in outcomes}


async def put(api: WandbApi, content: Content, target: Target) -> Outcome:
    """Put one content."""
    try:
        await content.prepare()
        answer = await api.put(target.url, target.headers, content.chunks(), content.size)
    except NotSent as not_sent:
        return not_sent.outcome
    return _put_outcome(answer)


def is_trouble(outcome: Outcome) -> bool:
    """Whether an outcome says something about the way, not about the content."""
    return outcome.verdict not in (Verdict.ACK, Verdict.REFUSED, Verdict.FORBIDDEN)


def outcome_of_answer(answer: Answer) -> Outcome:
    """Say what an answer of W&B's API means."""
    outcome = outcome_of(answer.status, answer.headers, answer.content is not None, time.time(), answer.error)
    return replace(outcome, is_of_the_host=True) if answer.never_left else outcome


def _put_outcome(answer: Answer) -> Outcome:
    """Say what a store's answer means: it has no body to speak of, and its refusals are about the URL."""
    is_theirs = not is_page(answer.headers)
    outcome = outcome_of(answer.status, answer.headers, is_theirs, time.time(), answer.error)
    if outcome.verdict is Verdict.UNREACHABLE:
        # Often another host than W&B's: that this one is away says nothing about the other.
        return Outcome(Verdict.RETRY, f"the store for files: {outcome.reason}")
    refusals = (Verdict.UNAUTHORISED, Verdict.FORBIDDEN, Verdict.TOO_LARGE, Verdict.REFUSED)
    # The key was not sent, and some stores call an expired URL a bad request.
    if outcome.verdict in refusals:
        return Outcome(Verdict.FORBIDDEN, f"file refused by its store ({outcome.reason})")
    return outcome


@contextmanager
def _opened(run_dir: Path, sha256: str, may_come: Callable[[], bool]) -> Iterator[int]:
    if not _SHA256.fullmatch(sha256):
        raise NotSent(Outcome(Verdict.REFUSED, DAMAGED))
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(run_dir / "files" / sha256, flags)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise _not_all_here(sha256, 0, may_come, MISSING) from None
        # A link is nothing that was logged.
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise NotSent(Outcome(Verdict.REFUSED, MISSING)) from None
        raise NotSent(Outcome(Verdict.FORBIDDEN, _unreadable(error))) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotSent(Outcome(Verdict.REFUSED, MISSING))
        yield fd
    finally:
        os.close(fd)


def _read(fd: int, size: int) -> bytes:
    """Return at least one byte, but at the end."""
    try:
        return os.read(fd, size)
    except OSError as error:
        raise NotSent(Outcome(Verdict.FORBIDDEN, _unreadable(error))) from None


def _not_all_here(sha256: str, here_bytes: int, may_come: Callable[[], bool], reason: str) -> NotSent:
    """Say that a file is not all here; `reason` is why it is counted where the rest will not come."""
    if not may_come():
        return NotSent(Outcome(Verdict.REFUSED, reason))
    # Each byte that comes makes it another reason: that is how a wait knows of it.
    return NotSent(
        Outcome(
            Verdict.AWAITED,
            f"the file {sha256[:12]}… is not all here ({here_bytes:,} bytes are), and may be on its way",
        )
    )


def _unreadable(error: OSError) -> str:
    return f"file unreadable here ({error.strerror})"
