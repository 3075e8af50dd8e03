"""A training that is killed with SIGKILL, again and again, and resumed: it comes out as one that never was."""

import os
import random
import signal
import subprocess
import sys

import pytest
import torch

import eventlog
from eventlog.reader import find_runs
from tests.trainer.doubles import SMALL, write_problems
from trainer import checkpoint


def command(name, directory, *more):
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    return [
        sys.executable, "-m", "trainer", "train", "base", "--run-name", name,
        "--root", str(directory / "runs"), "--output-dir", str(directory / name), "--data", str(directory / "train.jsonl"),
        *settings, *more,
    ]  # fmt: skip


@pytest.fixture
def directory(tmp_path):
    write_problems(tmp_path / "train.jsonl")
    return tmp_path


def env(directory):
    return {**os.environ, "HOME": str(directory), "OMP_NUM_THREADS": "1", "WANDB_CONSOLE": "off"}


def run_dir(directory, name):
    (found,) = [path for path in find_runs(directory / "runs") if path.name == name]
    return found


def rows(run_dir):
    return [
        (record.step, {k: v for k, v in record.data.items() if not k.startswith("system/")})
        for record in eventlog.read(run_dir)
        if record.kind == "metrics"
    ]


def trajectories(run_dir):
    timed = ("started_us", "duration_s", "turns")
    return [
        (record.step, {k: v for k, v in record.data.items() if k not in timed})
        for record in eventlog.read(run_dir, "trajectories")
    ]


@pytest.mark.slow
def test_killed_anywhere_and_resumed_it_logs_and_learns_what_an_unbroken_one_does(directory):
    subprocess.run(command("whole", directory), env=env(directory), check=True, capture_output=True)

    chance = random.Random(5)
    for _ in range(8):
        process = subprocess.Popen(
            command("parts", directory, "--resume"), env=env(directory), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        # Killed after some lines of what it says: in the warm-up, in a step, after a checkpoint, wherever that is.
        for _ in range(chance.randint(3, 30)):
            if not process.stdout.readline():
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    subprocess.run(
        command("parts", directory, "--resume"), env=env(directory), check=True, capture_output=True
    )

    whole, parts = run_dir(directory, "whole"), run_dir(directory, "parts")
    assert len(list(parts.glob("main-*"))) > 3  # it was killed, and more than once after it had begun
    assert any("training_step/loss" in row for _, row in rows(whole))  # there was something to learn
    assert rows(parts) == rows(whole)
    assert trajectories(parts) == trajectories(whole)
    first = checkpoint.load_newest(directory / "whole", warn=pytest.fail)
    second = checkpoint.load_newest(directory / "parts", warn=pytest.fail)
    assert first["totals"] == second["totals"]
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    assert first["optimiser"]["state"].keys() == second["optimiser"]["state"].keys()
