"""Runs what is measured in processes of its own, which see a home of their own and nothing else.

Invariants
----------
* What a process measured is the last line that it prints, as JSON; what its libraries print goes before.
* A process that fails ends the benchmark, with all that it said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def measured(module: str, *arguments: object, home: Path, python: str = sys.executable) -> Any:
    """Return what `python -m tests.bench.<module> arguments…` measured."""
    command = [python, "-m", f"tests.bench.{module}", *map(str, arguments)]
    return json.loads(output(command, environment(home)).splitlines()[-1])


def environment(home: Path) -> dict[str, str]:
    """Return what a process that is measured has around it: nothing of the caller's own runs and settings."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        # Without bytecode every import compiles: an import that nobody pays twice.
        if not name.startswith(("WANDB_", "EVENTLOG_", "TIDELOG_", "PYTHONDONTWRITEBYTECODE"))
    }
    return {
        **inherited,
        "HOME": str(home),
        "TMPDIR": str(home),
        "TIDELOG_STATE_DIR": f"{home}/state",
        "TRACKIO_DIR": f"{home}/trackio",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "PYTHONPATH": str(REPOSITORY),
    }


def output(command: list[str], env: dict[str, str] | None = None) -> str:
    """Return what a command prints."""
    done = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def seconds(command: list[str], env: dict[str, str] | None = None) -> float:
    """Return how long a command takes, start and end of its process included."""
    begin_s = time.perf_counter()
    output(command, env)
    return time.perf_counter() - begin_s
