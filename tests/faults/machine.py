"""A machine that misbehaves on demand: system calls that fail, disks that are small or lose their power, clocks that jump.

    trainer(script)           a real process that logs, and does one step after the other as it is asked to
    strace(pid, inject)       its system calls fail, from now until the end of the block
    tmpfs(size, inodes)       a disk that is soon full
    Removable                 a disk that goes and comes back
    Ext4                      a disk whose power can be cut
    fake_clock(environ)       a wall clock that a test moves

Invariants
----------
* Nothing outlives its block: mounts are made in a mount namespace of their own, which ends with the process that holds
  it, and this process ends with the test that asked for it, however that ends.
* What the machine that runs the tests cannot do skips the test, with the reason.

What must come of it is said by the tests.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
import pytest

REPOSITORY = Path(__file__).parents[2]
# Two busy cores may take long; a test that waits for so long has failed.
DEADLINE_S = 120.0

_PRELUDE = """
import os, sys
import orjson, eventlog

def tell(**said):
    # Not by write(2): that is what fails.
    os.writev(1, [orjson.dumps(said) + b"\\n"])

def ask():
    line = b""
    while not line.endswith(b"\\n"):
        # Not from a buffer, so that a child and its parent can share the pipe.
        byte = os.read(0, 1)
        if not byte:
            os._exit(3)
        line += byte
    return orjson.loads(line)
"""


# ── a process that logs ──────────────────────────────────────────────────────────────────────────────────────


class Trainer:
    """A process that runs a script, which says `tell(key=value)` and waits for what the test `ask()`s."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid
        self.said = ""
        """What it wrote to stderr; known once it has ended."""

    def ask(self, **asked: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(orjson.dumps(asked) + b"\n")
        self._process.stdin.flush()

    def told(self) -> dict[str, Any]:
        """Return what it tells next; fail with what it wrote to stderr if it has ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            self.ended()
            pytest.fail(f"the trainer ended: {self.said}")
        told: dict[str, Any] = orjson.loads(line)
        return told

    def rest(self) -> list[dict[str, Any]]:
        """Return all that it tells until it ends; a word that a kill cut short is none."""
        told, errors = self._process.communicate(timeout=DEADLINE_S)
        self.said = errors.decode()
        return [orjson.loads(line) for line in told.split(b"\n")[:-1]]

    def ended(self) -> int:
        """Return its exit status."""
        if self._process.poll() is None or not self.said:
            self.rest()
        return self._process.returncode

    def kill(self) -> None:
        self._process.kill()


@contextmanager
def trainer(
    script: str, *arguments: object, command: Sequence[str] = (), **environ: str
) -> Iterator[Trainer]:
    """Run `script` by Python, by way of `command` if one is given."""
    process = subprocess.Popen(
        [*command, sys.executable, "-c", _PRELUDE + script, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Trainer(process)
    finally:
        if process.poll() is None:
            # With its children: they may hang where it hung.
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        process.wait()


# ── system calls that fail ───────────────────────────────────────────────────────────────────────────────────


@contextmanager
def strace(pid: int, *injected: str, output: Path = Path(os.devnull), threads: bool = True) -> Iterator[None]:
    """Let system calls of a process and its children fail as `injected` says, as in `write:error=EIO:when=3`.

    `output` gets these calls, or all if nothing is injected; without `threads`, those of the main thread alone.
    """
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    expressions = ["-f"] if threads else []
    if injected:
        expressions += ["-e", "trace=" + ",".join(each.partition(":")[0] for each in injected)]
    for each in injected:
        expressions += ["-e", f"inject={each}"]
    tracing = subprocess.Popen(
        ["strace", "-y", "-o", str(output), *expressions, "-p", str(pid)], stderr=subprocess.PIPE, text=True
    )
    assert tracing.stderr is not None
    try:
        # It says so once all threads are held.
        first = tracing.stderr.readline()
        if "attached" not in first:
            tracing.wait()
            if "perm" in first or "not implemented" in first:
                pytest.skip(f"strace may not trace here: {first.strip()}")
            pytest.fail(first + tracing.stderr.read())
        yield
    finally:
        # Both let the process go on as if nothing had been. Asked to end, strace would wait until a delay is over.
        if any("delay" in each for each in injected):
            tracing.kill()
        else:
            tracing.terminate()
        tracing.stderr.close()
        tracing.wait()


# ── disks ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Mounts:
    """A mount namespace, and the process that keeps it: it ends with its standard input."""

    def __init__(self, *commands: Sequence[str]) -> None:
        script = "".join(f"{' '.join(command)} || exit 1\n" for command in commands) + "echo mounted; read _"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "mounted\n":
            errors = self._holder.communicate()[1]
            pytest.skip(f"nothing can be mounted here: {errors.strip()}")

    def path(self, directory: Path) -> Path:
        """Return where this process, which is not in the namespace, sees what is mounted there."""
        return Path(f"/proc/{self._holder.pid}/root{directory}")

    def run(self, *command: str) -> None:
        subprocess.run(
            ["nsenter", "--mount", "--target", str(self._holder.pid), *command],
            check=True,
            capture_output=True,
        )

    def end(self) -> None:
        self._holder.communicate()


@contextmanager
def tmpfs(directory: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory; `options` as in `size=64k` or `nr_inodes=8` or `ro`."""
    directory.mkdir()
    mounts = _Mounts(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)])
    try:
        yield mounts.path(directory)
    finally:
        mounts.end()


class Removable:
    """A file system in memory that goes and comes back, each time a new one.  Use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        self._mounts = _Mounts(self._mount)

    @property
    def path(self) -> Path:
        return self._mounts.path(self._directory)

    @property
    def _mount(self) -> list[str]:
        return ["mount", "-t", "tmpfs", "tmpfs", str(self._directory)]

    def remove(self) -> None:
        self._mounts.run("umount", str(self._directory))

    def put_back(self) -> None:
        self._mounts.run(*self._mount)

    def __enter__(self) -> Removable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mounts.end()


class Ext4:
    """A file system on a disk of its own.  Use it as a context manager."""

    # ext4's own: stop at once, as if the power were gone; what its journal holds is kept or not.
    _SHUTDOWN, _KEEP_JOURNAL, _LOSE_JOURNAL = 0x8004587D, 1, 2

    def __init__(self, directory: Path) -> None:
        self._image = directory / "disk.img"
        self._directory = directory / "disk"
        self._directory.mkdir()
        if shutil.which("mkfs.ext4") is None:
            pytest.skip("mkfs.ext4 is not installed")
        with open(self._image, "wb") as image:
            image.truncate(16 * 1024 * 1024)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._image)], check=True)
        self._mounts = self._mounted()

    @property
    def path(self) -> Path:
        return self._mounts.path(self._directory)

    def cut_power(self, keeps_journal: bool = False) -> None:
        """From now on nothing reaches the disk any more, and what had not is lost."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            how = self._KEEP_JOURNAL if keeps_journal else self._LOSE_JOURNAL
            fcntl.ioctl(fd, self._SHUTDOWN, struct.pack("I", how))
        finally:
            os.close(fd)

    def restart(self) -> None:
        """Mount the disk anew, once nobody has a file open there."""
        self._mounts.run("umount", str(self._directory))
        self._mounts.end()
        self._mounts = self._mounted()

    def _mounted(self) -> _Mounts:
        return _Mounts(["mount", "-o", "loop", str(self._image), str(self._directory)])

    def __enter__(self) -> Ext4:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mounts.end()


# ── clocks ───────────────────────────────────────────────────────────────────────────────────────────────────


class FakeClock:
    """The wall clock of processes that have `environ`; their monotonic clock is the machine's."""

    def __init__(self, file: Path) -> None:
        libraries = sorted(Path("/usr/lib").glob("**/faketime/libfaketime.so.1"))
        if not libraries:
            pytest.skip("libfaketime is not installed")
        self._file = file
        self.jump("+0s")
        self.environ = {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }

    def jump(self, offset: str) -> None:
        """Let the clock be off by so much from now on, as in `-1h` or `+10d`."""
        # By rename: it is read all the time.
        new = self._file.with_suffix(".new")
        new.write_text(offset)
        new.rename(self._file)
