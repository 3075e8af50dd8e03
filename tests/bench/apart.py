"""Runs what is measured in processes of its own, which see a home of their own and nothing else.

Invariants
----------
* What a process measured is the last line that it prints, as JSON; what its libraries print goes before.
* A process that fails ends the benchmark, with all that it said.
* A process's memory is that of all that it started as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# How often memory is looked at, and after how many looks for what was started meanwhile, which costs more.
LOOK_S = 0.02
LOOKS = 5


class Cost(NamedTuple):
    """What one command took; compared by its wall."""

    wall_s: float
    rss_bytes: int


@dataclass
class Peak:
    """The most memory that was seen."""

    rss_bytes: int = 0


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


def cost_of(command: list[str], env: dict[str, str], directory: Path) -> Cost:
    """Run a command to its end in a directory."""
    with tempfile.TemporaryFile() as said:
        begin_s = time.perf_counter()
        process = subprocess.Popen(command, env=env, cwd=directory, stdout=said, stderr=subprocess.STDOUT)
        with memory_of(process.pid) as peak:
            process.wait()
            wall_s = time.perf_counter() - begin_s
        if process.returncode != 0:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read().decode(errors='replace')}")
    return Cost(wall_s, peak.rss_bytes)


@contextmanager
def memory_of(pid: int) -> Iterator[Peak]:
    """Look at the memory of a process for as long as this lasts."""
    peak, over = Peak(), threading.Event()
    watching = threading.Thread(target=_watch, args=(pid, peak, over), daemon=True)
    watching.start()
    try:
        yield peak
    finally:
        over.set()
        watching.join()


def _watch(pid: int, peak: Peak, over: threading.Event) -> None:
    looks, family = 0, []
    while not over.wait(LOOK_S):
        if looks % LOOKS == 0:
            with suppress(psutil.NoSuchProcess):
                family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        looks += 1
        peak.rss_bytes = max(peak.rss_bytes, sum(map(_rss_bytes, family)))


def _rss_bytes(member: psutil.Process) -> int:
    try:
        return int(member.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
