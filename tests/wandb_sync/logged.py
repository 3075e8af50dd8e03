"""Runs that W&B's own SDK logged, and the two commands that bring them to a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.contract.clients import World, finish, start_by_the_sdk, world
from tests.wandb_server.waiting import wait_for

# What a run of a few hundred rows is made by: the file is larger than some of its blocks.
ROWS = """
run = wandb.init(project="p", id="r", config={"lr": 0.1})
for i in range(%d):
    run.log({"loss": 1 / (i + 1), "i": i, "text": "x" * (i %% 200)})
run.finish()
"""
ALL_ON = {
    "WANDB_CONSOLE": "wrap",
    "WANDB_X_DISABLE_STATS": "false",
    "WANDB_X_STATS_SAMPLING_INTERVAL": "0.5",
    "WANDB_X_SAVE_REQUIREMENTS": "true",
}


def log_offline(directory: Path, scripts: list[str], **variables: str) -> Path:
    """Run the scripts with the SDK offline, one after the other; return where they ran."""
    with world(directory, "logged", WANDB_MODE="offline", **variables) as logging:
        for script in scripts:
            finish(start_by_the_sdk(logging, script))
        return logging.directory


def wandb_sync(there: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run(there, [sys.executable, "-m", "wandb", "sync", *arguments])


def syncd(there: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run(there, [sys.executable, "-m", "syncd", *arguments])


def synced(there: World, *arguments: str) -> dict[str, Any]:
    """Run `syncd sync` to its good end; return what it says for scripts."""
    done = syncd(there, "sync", *arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _run(there: World, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**there.env, "WANDB_MODE": "online"},
        cwd=there.directory,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def dotwandb(there: World) -> Path:
    """Return the one `.wandb` file of that world."""
    (found,) = there.directory.glob("wandb/*run-*/*.wandb")
    return found


def numbers(there: World, key: str = "i") -> list[Any]:
    """Return what the server has under `key`, in the order of its lines."""
    return [row.get(key) for row in there.run.history if key in row]


def killed_when(process: subprocess.Popen[str], is_time: Callable[[], object]) -> None:
    """Kill a process, and whatever it started, as soon as it is time."""
    wait_for(lambda: is_time() or process.poll() is not None)
    os.killpg(process.pid, 9)
    process.wait()
