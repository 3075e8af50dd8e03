"""Machines of a cluster, on one machine: what makes two hosts two is made so with namespaces.

    Host ── uts: its name ── mount: its boot id ── net: none, if it has no network
      └── its own home and state directory: the daemon of one is not seen by another

One thing stays shared: the kernel, and so its locks.  A lock that is free proves nothing where its text names another
host, and one that is held is one that is held, as on a file system whose locks reach all clients.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from eventlog.piece import LOCK_FILE, lock_text, primaries
from tests.processes import group_of

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 60.0
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
# $0 is the boot id's file, $1 the host's name: then it is the program that it is asked to be.
_BECOME = f'mount --bind "$0" {_BOOT_ID} && hostname "$1" && shift && exec "$@"'


@cache
def why_no_namespaces() -> str | None:
    """Return why this machine lets nobody be another host; None if it does."""
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True, check=False
    )
    return tried.stderr.strip() if tried.returncode else None


@dataclass
class Host:
    """A machine.  What runs on it is ended with the test, by `process`."""

    name: str
    directory: Path
    environment: dict[str, str]
    has_network: bool = True
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def __post_init__(self) -> None:
        home = self.directory / self.name
        home.mkdir(parents=True)
        (home / "boot_id").write_text(f"{self.boot_id}\n")
        self.home = home

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            **self.environment,
            "HOME": str(self.home),
            "TIDELOG_STATE_DIR": str(self.home / "state"),
            "PYTHONPATH": str(REPOSITORY),
            "WANDB_SILENT": "false",
        }

    def command(self, *arguments: str) -> list[str]:
        """Return how a program is run there."""
        spaces = ["--uts", "--mount", *([] if self.has_network else ["--net"])]
        become = ["sh", "-c", _BECOME, str(self.home / "boot_id"), self.name]
        return ["unshare", *spaces, *become, *arguments]

    @contextmanager
    def process(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Run `python ARGUMENTS` there; whatever is left of it dies at the end."""
        with self.started(sys.executable, *arguments, **environment) as process:
            yield process

    @contextmanager
    def script(self, text: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Run a batch script there, of which `train.py` is the job."""
        rows = environment.pop("ROWS", "60")
        (self.home / "train.py").write_text(
            f"import sys\nfrom tests.clusters.job import main\nsys.argv[1:] = [{rows!r}]\nmain()\n"
        )
        (self.home / "batch.sh").write_text(text)
        path = f"{Path(sys.executable).parent}:{self.home}:{os.environ['PATH']}"
        with self.started("bash", "batch.sh", PATH=path, TMPDIR=str(self.scratch), **environment) as process:
            yield process

    @contextmanager
    def started(self, *command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        with group_of(
            self.command(*command),
            cwd=self.home,
            env={**self.env, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as started:
            yield started

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program there to its end."""
        return subprocess.run(
            self.command(*command),
            cwd=self.home,
            env={**self.env, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    @property
    def scratch(self) -> Path:
        """A directory on its own disk."""
        directory = self.home / "scratch"
        directory.mkdir(exist_ok=True)
        return directory

    def go(self) -> None:
        """Let the job that waits go on."""
        (self.home / "go").touch()

    def syncd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "syncd", *arguments)


def silent_for(run_dir: Path, seconds: float) -> None:
    """Let the last writer of a run have been heard of so long ago, and no later."""
    text = lock_text(run_dir / primaries(run_dir)[-1])
    _say(run_dir, {**text, "heartbeat": text["heartbeat"] - int(seconds * 1e6)})


def as_on_another_host(run_dir: Path) -> None:
    """Let the last writer of a run be one that this host cannot ask, until its next heartbeat."""
    _say(run_dir, {**lock_text(run_dir / primaries(run_dir)[-1]), "host": "node7", "boot_id": "another"})


def _say(run_dir: Path, text: dict[str, Any]) -> None:
    (run_dir / primaries(run_dir)[-1] / LOCK_FILE).write_text(json.dumps(text) + "\n")


def rows_printed(training: subprocess.Popen[str], until: int) -> None:
    """Read what a job prints until it has logged that row."""
    assert training.stdout is not None
    for line in training.stdout:
        if line.strip() == str(until):
            return
    raise AssertionError(f"the job ended before it logged row {until}")
