"""Decodes sealed segments in a process beside this one, so that this one stays small: pyarrow alone takes 50 MiB.

    parquet.records_in ──one row group, please──▶ child: pyarrow ──▶ its records

Invariants
----------
* What comes back, and what is raised, is what `parquet.groups_of` would give here.
* The child is begun when it is first needed, ends when nothing was asked for a while, and with this process, however
  that ends.  One that was killed is begun anew, once for each question.
* Memory is one row group, here and there.

A process wants it or not, as a whole: see `decode_beside`.
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from eventlog import parquet
from eventlog.child import command, environment
from eventlog.errors import PyarrowMissing
from eventlog.parquet import Unreadable
from eventlog.record import Record

# To begin a child takes a third of a second; while there is anything to decode, there is more within a moment.
IDLE_S = 10.0
_LENGTH = struct.Struct("<Q")

_RECORDS, _END, _UNREADABLE, _GONE, _NO_PYARROW = range(5)


class ChildLost(OSError):
    """The child was killed, and so was the one after it."""


class Decoder:
    """One child, when there is something to decode."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The child's, if there is one."""
        return self._child.pid if self._child is not None else None

    def groups_of(
        self, path: Path, stream: str, seq: int = 0, newest_first: bool = False, skip: int = 0
    ) -> Iterator[list[Record]]:
        """Yield what `parquet.groups_of` does."""
        then: int | None = skip
        while then is not None:
            what, content, then = self._ask((os.fspath(path), stream, seq, newest_first, then))
            if what == _RECORDS:
                yield [Record(*values) for values in content]
            elif what == _UNREADABLE:
                raise Unreadable(content)
            elif what == _GONE:
                raise FileNotFoundError(2, os.strerror(2), str(path))
            elif what == _NO_PYARROW:
                raise PyarrowMissing(content)

    def close(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            assert child.stdin is not None
            assert child.stdout is not None
            with suppress(OSError):
                child.stdin.close()
            child.stdout.close()
            child.wait()

    def _ask(self, question: tuple[Any, ...]) -> tuple[int, Any, int | None]:
        for _ in range(2):
            if self._child is None:
                self._child = self._begin()
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            # It may have ended since the last question: of idleness, or killed for the memory of others.
            with suppress(BrokenPipeError, EOFError):
                _send(self._child.stdin, question)
                what, content, skip = _receive(self._child.stdout)
                return what, content, skip
            child = self._child
            self.close()
        raise ChildLost(
            f"{question[0]!r} cannot be read just now: the process that decodes it ended ({child.returncode}), twice"
        )

    def _begin(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command("eventlog.decoder", str(self._idle_s)),
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )


def decode_beside() -> None:
    """Let this process never import pyarrow to read a log, but ask a child."""
    parquet.groups_of = Decoder().groups_of


# ── the child ────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """Answer questions from stdin on stdout, until nobody asks any more."""
    # Who presses Ctrl-C means the process that asks; it may have something to finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    idle_s = float(sys.argv[1])
    with suppress(EOFError, BrokenPipeError):
        while select.select([questions], [], [], idle_s)[0]:
            _send(answers, _answer(*_receive(questions)))


def _answer(path: str, stream: str, seq: int, newest_first: bool, skip: int) -> tuple[int, Any, int | None]:
    """Return what the row group after `skip` others that reach `seq` has, and how many to skip then; None for no more."""
    try:
        groups = parquet.groups_of(Path(path), stream, seq, newest_first, skip)
        records = next(groups, None)
    except Unreadable as error:
        return _UNREADABLE, str(error), None
    except FileNotFoundError:
        return _GONE, path, None
    except PyarrowMissing as error:
        return _NO_PYARROW, str(error), None
    if records is None:
        return _END, None, None
    return (
        _RECORDS,
        [(r.seq, r.time_us, r.kind, r.data, r.step, r.commit, r.lossy) for r in records],
        skip + 1,
    )


def _send(pipe: IO[bytes], content: Any) -> None:
    data = marshal.dumps(content)
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    size = _LENGTH.unpack(_exactly(pipe, _LENGTH.size))[0]
    return marshal.loads(_exactly(pipe, size))


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


if __name__ == "__main__":
    main()
