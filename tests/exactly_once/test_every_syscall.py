"""SIGKILL at every system call of one full attach, ship and finish, and then again from there.

The calls are those that change something, on the disk or on the server, and those that read an answer: between two of
them a kill makes no difference that a kill at the next one does not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.syncd.test_run_sync import finished_run, sync, xs
from tests.wandb_server import WandbServer

REPOSITORY = Path(__file__).parents[2]
CALLS = ["write", "sendto", "recvfrom", "fsync", "rename", "mkdir", "flock"]
# More of one call than a cycle has: the loop ends when a cycle ran to its end.
MANY = 60

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def killed_at(call: str, number: int, root: Path, env: dict[str, str]) -> bool:
    """Run `syncd sync`, killed on entry to the number-th such call; False if it got to its end before."""
    done = subprocess.run(
        [
            "strace",
            "--follow-forks",
            "--output=/dev/null",
            f"--trace={call}",
            f"--inject={call}:signal=KILL:when={number}",
            sys.executable,
            "-m",
            "syncd",
            "sync",
            "--json",
            str(root),
        ],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode != 0


@pytest.mark.slow
@pytest.mark.needs_root
@needs_strace
@pytest.mark.parametrize("call", CALLS)
def test_a_kill_at_any_system_call_loses_and_doubles_nothing(call: str, tmp_path: Path):  # faults: 44 45 101
    kills = 0
    with WandbServer(entity="ent") as server:
        for number in range(1, MANY):
            root = tmp_path / str(number)
            run_id = f"run{number}"
            finished_run(root, run_id, rows=20)
            home = tmp_path / "home"
            env = {
                **os.environ,
                **server.env(home),
                "HOME": str(home),
                "TIDELOG_STATE_DIR": str(home / "state"),
            }

            if not killed_at(call, number, root, env):
                break
            kills += 1
            # Counts need no time to stand still here: the server is honest.
            sync(server, root, steady_s=0.0)

            run = server.run("ent", "demo", run_id)
            assert xs(run) == list(range(20)), f"killed at {call} {number}"
            assert run.complete
        assert server.violations == []
    assert 0 < kills < MANY - 1
