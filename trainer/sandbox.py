"""Runs a Python program that nobody has read, and says whether it came to its end.

    program ─▶ unshare (no network) ─▶ setpriv (user nobody) ─▶ python: limits, then the program ─▶ Outcome

Guaranteed: the program has a process, a session and a directory of its own, which are gone when `run` returns; an
empty environment; limits on wall and CPU seconds, on the size of a file and, but for macOS, on memory. It passes only
by running to its end: leaving early (`exit`, `os._exit`) or printing something does not count.

Where the system lets us (`isolation()` says so, by trying to get out): no network, as root or where users may make name
spaces; no further processes or threads; nobody's rights in place of root's, with `setpriv`.

Not guaranteed: that it reads no file which everybody may read, nor disturbs another program in the sandbox; that many
small files do not fill the disk; that a process, where there can be more than one, did not leave the group; and that
it does not search its interpreter's memory for the word that means "passed". This keeps out what a model writes by
accident, not a person who means to break out.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534
# Of what the program reports, this much is read: more would be its memory filling ours.
REPORT_MAX_BYTES = 500


@dataclass(frozen=True)
class Limits:
    wall_s: float = 10.0  # twice the CPU's: another process may have the core
    cpu_s: int = 5
    memory_bytes: int = 512 * 2**20
    file_bytes: int = 2**20


@dataclass(frozen=True)
class Outcome:
    passed: bool
    error: str | None  # in words, if not
    duration_s: float


# The program's own prints go nowhere: the only thing on the old standard output is what this writes at the end.
_BOOT = """
import os, resource, sys

def main():
    report, (cpu_s, memory, file) = os.dup(1), map(int, sys.argv[1:])
    word = sys.stdin.readline().strip().encode()
    with open("program.py", encoding="utf-8") as source:
        text = source.read()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for limit, value in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        try:
            # A second more for the hard limit: what ends it is then SIGXCPU, which says why.
            resource.setrlimit(limit, (value, value + (limit == resource.RLIMIT_CPU)))
        except (OSError, ValueError):
            # macOS has no limit of the address space; the others hold.
            if limit != resource.RLIMIT_AS:
                raise
    sys.argv[1:] = []
    try:
        exec(compile(text, "program.py", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        word = (type(error).__name__ + ": " + str(error)).encode(errors="replace")[:400]
    os.write(report, word)
    os._exit(0)

main()
"""


def run(program: str, limits: Limits | None = None) -> Outcome:
    """Run `program`; it passed if it came to its end without an exception, within the limits."""
    return _run(program, limits or Limits(), _wrapper())


@functools.cache
def isolation() -> str:
    """Say in words what keeps a program in on this machine: by trying to get out."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        no_network = _is_refused(f"import socket; socket.create_connection({server.getsockname()!r}, 5)")
    no_processes = _is_refused("import os; os.fork() or os._exit(0)")
    return ", ".join(
        [
            "no network" if no_network else "network not cut off",
            "no processes" if no_processes else "processes not limited",
            "the user nobody"
            if _is_refused(f"import os; assert os.getuid() == {os.getuid()}")
            else "this user",
        ]
    )


def _is_refused(program: str) -> bool:
    error = run(program).error
    # A machine too busy to run it at all has refused nothing.
    return error is not None and "Error" in error


def _run(program: str, limits: Limits, wrapper: Sequence[str]) -> Outcome:
    started_s = time.monotonic()
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as directory:
        Path(directory, "program.py").write_text(program, encoding="utf-8", errors="replace")
        if "setpriv" in " ".join(wrapper):
            os.chown(directory, NOBODY, NOBODY)
        numbers = [str(n) for n in (limits.cpu_s, limits.memory_bytes, limits.file_bytes)]
        process = subprocess.Popen(
            [*wrapper, sys.executable, "-I", "-S", "-c", _BOOT, *numbers],
            cwd=directory,
            env={"PATH": os.defpath, "HOME": directory, "LANG": "C.UTF-8"},
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        with process:
            try:
                report = _report_of(process, word, deadline_s=started_s + limits.wall_s)
            finally:
                # The group outlives its leader if the program forked: it is killed in any case.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
    duration_s = time.monotonic() - started_s
    if report == word:
        return Outcome(True, None, duration_s)
    return Outcome(False, _reason(report, process.returncode, limits), duration_s)


def _report_of(process: subprocess.Popen[bytes], word: str, deadline_s: float) -> str | None:
    """Return what the program reported before it closed its end; None if it did not by then."""
    assert process.stdin is not None
    assert process.stdout is not None
    # It may be gone already: then there is no report to come either.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(word.encode() + b"\n")
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN | select.POLLHUP)
    report = b""
    while len(report) < REPORT_MAX_BYTES:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            return None
        piece = os.read(process.stdout.fileno(), REPORT_MAX_BYTES)
        if not piece:
            break
        report += piece
    return report.decode(errors="replace")


def _reason(report: str | None, code: int, limits: Limits) -> str:
    if report is None:
        return f"it was still running after {limits.wall_s:g} s"
    if report:
        return report
    if code == -signal.SIGXCPU:
        return f"it used more than {limits.cpu_s} s of CPU time"
    return f"it ended before its tests did (exit code {code})"


@functools.cache
def _wrapper() -> tuple[str, ...]:
    """Return the command that isolates best of those that work here."""
    network = _first_that_works((), [["unshare", "--net"], ["unshare", "--map-root-user", "--net"]])
    if os.getuid() != 0:
        return network
    other_user = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --no-new-privs".split()
    may_read = [f"--{kind}=-all,+dac_read_search" for kind in ("bounding-set", "inh-caps", "ambient-caps")]
    # Root's Python may lie where nobody cannot read it: then reading is the one right that is kept.
    return _first_that_works(network, [[*other_user, "--bounding-set=-all"], [*other_user, *may_read]])


def _first_that_works(before: tuple[str, ...], commands: Sequence[Sequence[str]]) -> tuple[str, ...]:
    for command in commands:
        found = shutil.which(command[0])
        wrapper = (*before, found or "", *command[1:])
        # Not loaded by the interpreter's start: the program must be able to read the standard library.
        if found and _run("import fractions, statistics", Limits(), wrapper).passed:
            return wrapper
    return before
