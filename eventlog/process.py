"""The facts of a `start` record: which process this is, on which machine, from which commit.

Invariants
----------
* A fact that cannot be found out is null; none costs more than a moment, and none fails a run.
* No fact holds a credential.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eventlog.piece import this_boot_id, this_host
from eventlog.redact import redacted_argv, without_credentials

# Set by torchrun, Slurm and Open MPI, in the order in which they are believed.
_RANK = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
_WORLD_SIZE = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# A repository on a slow file system costs a run's start at most this.
_GIT_TIMEOUT_S = 2.0


def rank_of(environ: Mapping[str, str]) -> int:
    """Return this process's rank in its job; 0 if it has none.

    >>> rank_of({"SLURM_PROCID": "3"}), rank_of({"RANK": "", "OMPI_COMM_WORLD_RANK": "x"})
    (3, 0)
    """
    return _first_number(environ, _RANK) or 0


def facts(version: str) -> dict[str, Any]:
    """Return the process's part of a `start` record."""
    program = sys.argv[0] if sys.argv else ""
    return {
        "host": this_host(),
        "boot_id": this_boot_id(),
        "pid": os.getpid(),
        "rank": rank_of(os.environ),
        "world_size": _first_number(os.environ, _WORLD_SIZE),
        "program": program,
        "argv": redacted_argv(sys.argv),
        "cwd": _cwd(),
        "executable": sys.executable,
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu_count": os.cpu_count(),
        "git": _git(),
        "version": version,
    }


def _first_number(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    values = (environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isascii() and value.isdigit()), None)


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _git() -> dict[str, str | None] | None:
    """Return the commit and remote of the repository around the working directory, or None outside of one."""
    cwd = _cwd()
    if cwd is None or not any((parent / ".git").exists() for parent in (Path(cwd), *Path(cwd).parents)):
        return None
    remote = _git_says("config", "--get", "remote.origin.url")
    return {
        "commit": _git_says("rev-parse", "--verify", "HEAD"),
        "remote": without_credentials(remote) if remote else None,
    }


def _git_says(*arguments: str) -> str | None:
    import subprocess

    try:
        answer = subprocess.run(
            ["git", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode("utf-8", "replace").strip() or None
