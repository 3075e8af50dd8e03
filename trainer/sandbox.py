"""Runs a Python program that nobody has read, and says whether it came to its end.

    program ─▶ unshare (no network) ─▶ setpriv (user nobody) ─▶ python: limits, Landlock, then the program ─▶ Outcome

Guaranteed: the program has a process, a session and a directory of its own, which are gone when `run` returns; an
empty environment; limits on wall and CPU seconds, on the size of a file and, but for macOS, on memory. It passes only
by running to its end: leaving early (`exit`, `os._exit`) or printing something does not count.

Where the system lets us (`isolation()` says so, by trying to get out): no network, as root or where users may make name
spaces; no further processes or threads; nobody's rights in place of root's, with `setpriv`; with Landlock (Linux 5.13)
it changes no file outside its directory, and (6.12) signals no other process.

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
import ctypes, os, resource, struct, sys

# linux/landlock.h: the system calls, and the rights by the version that brought them.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE = 1 << 1
CHANGES = WRITE_FILE | sum(1 << bit for bit in range(4, 13))
REFER, TRUNCATE = (2, 1 << 13), (3, 1 << 14)
SCOPED = (6, 0b11)  # abstract sockets and signals
NO_NEW_PRIVS = 38

def restrict():
    call = ctypes.CDLL(None).syscall
    version = call(CREATE_RULESET, None, 0, 1) if sys.platform == "linux" else -1
    if version < 1:
        return
    changes = CHANGES | sum(right for since, right in (REFER, TRUNCATE) if version >= since)
    handled = struct.pack("QQQ", changes, 0, SCOPED[1])[: 24 if version >= SCOPED[0] else 8]
    rules = call(CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    for path, rights in ((".", changes), (os.devnull, WRITE_FILE)):
        fd = os.open(path, os.O_PATH)
        call(ADD_RULE, rules, 1, struct.pack("=Qi", rights, fd), 0)
        os.close(fd)
    ctypes.CDLL(None).prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    call(RESTRICT_SELF, rules, 0)
    os.close(rules)

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
    restrict()
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
    no_signals = _is_refused(f"import os; os.kill({os.getpid()}, 0)")
    with tempfile.NamedTemporaryFile(prefix="sandbox-") as ours:
        no_changes = _is_refused(f"open({ours.name!r}, 'a')")
    return ", ".join(
        [
            "no network" if no_network else "network not cut off",
            "no processes" if no_processes else "processes not limited",
            "no signals" if no_signals else "may signal this user's processes",
            "no changes to files" if no_changes else "may change this user's files",
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
