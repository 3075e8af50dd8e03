"""A training that is killed with SIGKILL, again and again, and resumed: it comes out as one that never was."""

import random
import signal
import subprocess

import pytest
import torch

import eventlog
from eventlog.reader import find_runs
from tests.trainer.doubles import small_training
from trainer import checkpoint


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
def test_killed_anywhere_and_resumed_it_logs_and_learns_what_an_unbroken_one_does(tmp_path):
    command, env = small_training(tmp_path, "base", "whole")
    subprocess.run(command, env=env, check=True, capture_output=True)
    command, env = small_training(tmp_path, "base", "parts", "--resume")

    chance = random.Random(5)
    for _ in range(8):
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        # Killed after some lines of what it says: in the warm-up, in a step, after a checkpoint, wherever that is.
        for _ in range(chance.randint(3, 30)):
            if not process.stdout.readline():
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    subprocess.run(command, env=env, check=True, capture_output=True)

    whole, parts = run_dir(tmp_path, "whole"), run_dir(tmp_path, "parts")
    assert len(list(parts.glob("main-*"))) > 3  # it was killed, and more than once after it had begun
    assert any("training_step/loss" in row for _, row in rows(whole))  # there was something to learn
    assert rows(parts) == rows(whole)
    assert trajectories(parts) == trajectories(whole)
    first = checkpoint.load_newest(tmp_path / "whole", warn=pytest.fail)
    second = checkpoint.load_newest(tmp_path / "parts", warn=pytest.fail)
    assert first["totals"] == second["totals"]
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    assert first["optimiser"]["state"].keys() == second["optimiser"]["state"].keys()
