"""The peers that the project itself has no use for, in an environment of their own.

It is made once, below the directory that `$TIDELOG_BENCH_CACHE` names; without that, or without these packages, their
rows say so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

VARIABLE = "TIDELOG_BENCH_CACHE"
# trackio brings gradio's client, tensorboard grpc, mlflow a server's parts: none is wanted in the environment that the tests
# run in.
PACKAGES = (
    "trackio==0.43.0",
    "tensorboard==2.21.0",
    "mlflow-skinny==3.17.2",
    "sqlalchemy==2.1.9",
    "alembic==1.20.1",
)


class NotHad(Exception):
    """Why there is no such environment, for people."""


@cache
def python() -> str:
    """Return the interpreter that has the peers, or raise `NotHad`."""
    place = os.environ.get(VARIABLE)
    if not place:
        raise NotHad(f"{VARIABLE} names no directory to install it in")
    environment = Path(os.path.abspath(place)) / "-".join(PACKAGES).replace("==", "-")
    interpreter = environment / "bin" / "python"
    is_ready = environment / "ready"
    if not is_ready.exists():
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(environment)],
            [str(interpreter), "-m", "pip", "install", "--quiet", *PACKAGES],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise NotHad((done.stderr.strip().splitlines() or ["it cannot be installed"])[-1][:120])
        is_ready.touch()
    return str(interpreter)
