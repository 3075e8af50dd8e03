"""How one of our modules is started as a process of its own.

Invariants
----------
* What lies in the directory that a person happens to be in is never imported: a `queue.py` there is theirs.
* What `PYTHONPATH` names is found as ever.
"""

from __future__ import annotations

import os
import sys

# What PYTHONSAFEPATH does from Python 3.11 on: `-c` has put "" first, for the current directory.
_WITHOUT_CURRENT_DIRECTORY = (
    "import runpy, sys; sys.path[:] = filter(None, sys.path); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of ours; it goes with `environment`."""
    if sys.version_info >= (3, 11):
        return [sys.executable, "-m", module, *arguments]
    return command_before_3_11(module, *arguments)


def command_before_3_11(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", _WITHOUT_CURRENT_DIRECTORY, module, *arguments]


def environment() -> dict[str, str]:
    """Return this process's environment, as a child of ours gets it."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}
