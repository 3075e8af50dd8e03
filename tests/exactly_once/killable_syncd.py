"""Runs `syncd sync`, again and again, each time in a process of its own that strace watches from its first call on.

    {"strace": options, "program": …, "root": …, "output": …} ──▶ a fork, held until strace is attached ──▶ exit code

One line of JSON on the standard input asks for one process, and one line on the standard output says how it ended,
below 0 by a signal.  What is imported here is not imported there: a Python that starts would take longer, and make more
system calls, than all the rest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from importlib import import_module
from typing import NoReturn

import anyio._backends._asyncio
import httpcore

import syncd.cli
import syncd.daemon

IMPORTED = (anyio._backends._asyncio, httpcore, syncd.cli, syncd.daemon)
GO = b"!"
NOT_TRACED = 70


def main() -> None:
    for line in sys.stdin:
        print(run_once(**json.loads(line)), flush=True)


def run_once(strace: list[str], program: str, root: str, output: str) -> int:
    """Run `program` as `python -m program sync --json root` would, under `strace`; return how it ended."""
    waiting, going = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(going)
        become(program, root, output, waiting)
    os.close(waiting)
    with subprocess.Popen(
        ["strace", "--follow-forks", f"--attach={pid}", *strace],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as tracer:
        assert tracer.stderr is not None
        said = ""
        while "attached" not in said and (line := tracer.stderr.readline()):
            said += line
        if "attached" in said:
            os.write(going, GO)
        os.close(going)
        _, status = os.waitpid(pid, 0)
        tracer.communicate()
    if os.waitstatus_to_exitcode(status) == NOT_TRACED:
        raise RuntimeError(said)
    return os.waitstatus_to_exitcode(status)


def become(program: str, root: str, output: str, waiting: int) -> NoReturn:
    """Be that program once a byte says so, and end as it does."""
    fd = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    code = NOT_TRACED
    try:
        if os.read(waiting, 1) == GO:
            sys.argv = [program, "sync", "--json", root]
            import_module(program).main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    except BaseException:  # noqa: BLE001 - the top of a process: what went wrong is told, and the exit code says so
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
