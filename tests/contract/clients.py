"""Runs a script by W&B's SDK and by us, each in a world of its own: a server, a home and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.wandb_server import Request, StoredRun, WandbServer

REPOSITORY = Path(__file__).parents[2]
# `make contract-oldest` sets it to an interpreter that has the oldest SDK we are compared with.
SDK_PYTHON = os.environ.get("TIDELOG_SDK_PYTHON", sys.executable)
SCRIPT = "train.py"


@dataclass(frozen=True)
class World:
    """A server, and an environment in which a process can see nothing else."""

    server: WandbServer
    home: Path
    env: dict[str, str]

    @property
    def directory(self) -> Path:
        """Where its processes run."""
        return self.home / "here"

    @property
    def run(self) -> StoredRun:
        return self.server.run("ent", "p", "r")

    @property
    def stream(self) -> list[Request]:
        """The requests of the file stream."""
        return [request for request in self.server.requests if request.kind == "file_stream"]

    def start(
        self, script: str, started_as: str = "file", python: str = sys.executable, new_session: bool = False
    ) -> subprocess.Popen:
        """Start a script, in one of the ways in which Python takes one; it reads what is written to `stdin`."""
        (self.directory / SCRIPT).write_text(script)
        ways = {"file": [SCRIPT], "module": ["-m", SCRIPT.removesuffix(".py")], "text": ["-c", script]}
        command = [python, *ways[started_as], "--lr", "0.1"]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            command, env=self.env, cwd=self.directory, text=True, start_new_session=new_session, **pipes
        )

    def command(self, *arguments: str, python: str = sys.executable) -> None:
        done = subprocess.run(
            [python, *arguments],
            env=self.env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Both:
    """What the two servers got for one script."""

    ours: World
    theirs: World

    def each(self, what: Callable[[World], Any]) -> tuple[Any, Any]:
        return what(self.ours), what(self.theirs)


@contextmanager
def world(tmp_path: Path, name: str, directory: Path | None = None, **variables: str) -> Iterator[World]:
    """A world whose working directory is a copy of `directory`; `variables` go into its environment."""
    home = tmp_path / name
    if directory is None:
        (home / "here").mkdir(parents=True)
    else:
        shutil.copytree(directory, home / "here", symlinks=True)
    with WandbServer(entity="ent") as server:
        env = {
            **os.environ,
            **server.env(home),
            "HOME": str(home),
            "TIDELOG_STATE_DIR": str(home / "state"),
            "EVENTLOG_ROOT": str(home / "runs"),
            "PYTHONPATH": str(REPOSITORY),
            "WANDB_CONSOLE": "off",
            "WANDB_X_DISABLE_STATS": "true",
            **variables,
        }
        # The SDK calls this the run's root; we, who write nothing there, know only the working directory.
        del env["WANDB_DIR"]
        yield World(server, home, env)


def finish(process: subprocess.Popen) -> None:
    """Let the script read the end of its input, and wait for its own."""
    said, complained = process.communicate()
    assert process.returncode == 0, said + complained


def start_by_the_sdk(theirs: World, script: str, **options: Any) -> subprocess.Popen:
    return theirs.start("import wandb\n" + script, python=SDK_PYTHON, **options)


def start_by_us(ours: World, script: str, **options: Any) -> subprocess.Popen:
    return ours.start("import eventlog as wandb\n" + script, **options)


def by_the_sdk(
    scripts: list[str], tmp_path: Path, mode: str = "online", started_as: str = "file", **options: Any
) -> World:
    with world(tmp_path, "sdk", WANDB_MODE=mode, **options) as theirs:
        for script in scripts:
            finish(start_by_the_sdk(theirs, script, started_as=started_as))
        if mode == "offline":
            (directory,) = theirs.directory.glob("wandb/offline-run-*")
            theirs.env["WANDB_MODE"] = "online"
            theirs.command("-m", "wandb", "sync", str(directory), python=SDK_PYTHON)
        return theirs


def by_us(scripts: list[str], tmp_path: Path, started_as: str = "file", **options: Any) -> World:
    with world(tmp_path, "ours", **options) as ours:
        for script in scripts:
            finish(start_by_us(ours, script, started_as=started_as))
            ours.command("-m", "syncd", "sync")
        assert ours.server.violations == []
        return ours


def by_both(scripts: list[str], tmp_path: Path, mode: str = "online", **options: Any) -> Both:
    """Run the scripts, one after the other, by each client; `mode` is the SDK's: ours is always offline first."""
    with ThreadPoolExecutor() as pool:
        theirs = pool.submit(by_the_sdk, scripts, tmp_path, mode, **options)
        ours = by_us(scripts, tmp_path, **options)
        return Both(ours, theirs.result())
