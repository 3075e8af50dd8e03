"""A run that is still being written is brought as far as it is, and is not finished by it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd.wandb_files import WandbFile, being_written
from tests.contract.clients import World, start_by_the_sdk, world
from tests.wandb_server.waiting import wait_for
from tests.wandb_sync.logged import dotwandb, numbers, syncd, synced, wandb_sync

# Blocks reach the disk when they are full: what is padded fills them.
TALKATIVE = """
import sys
run = wandb.init(project="p", id="r")
def log(numbers):
    for i in numbers:
        run.log({"i": i, "padding": "x" * 4000})
log(range(100))
print("logged", flush=True)
sys.stdin.readline()
log(range(100, 200))
print("logged", flush=True)
sys.stdin.readline()
run.finish()
"""


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, "there", WANDB_MODE="offline") as one:
        yield one


@pytest.fixture
def trainer(there: World) -> Iterator[subprocess.Popen[str]]:
    process = start_by_the_sdk(there, TALKATIVE, new_session=True)
    _wait_until_logged(process, there, 0)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _wait_until_logged(process: subprocess.Popen[str], there: World, above: int) -> None:
    assert process.stdout is not None
    while "logged" not in process.stdout.readline():
        pass
    # The SDK's other process writes the file.
    wait_for(lambda: dotwandb(there).stat().st_size > above + 300_000, "the file to grow")


def _go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.slow
def test_a_live_run_is_brought_piece_by_piece_and_finished_once(there: World, trainer: subprocess.Popen[str]):
    first = synced(there, "wandb")
    begun = numbers(there)
    assert len(begun) > 50
    assert begun == list(range(len(begun)))
    assert [run["state"] for run in first["runs"]] == ["live"]
    assert not there.run.complete
    assert list(there.directory.glob("wandb/*/*.synced")) == []

    size = dotwandb(there).stat().st_size
    _go_on(trainer)
    _wait_until_logged(trainer, there, size)
    synced(there, "wandb")
    more = numbers(there)
    assert len(more) > len(begun) + 50
    assert more == list(range(len(more)))

    _go_on(trainer)
    trainer.communicate()
    synced(there, "wandb")
    assert numbers(there) == list(range(200))
    assert there.run.complete
    assert len(list(there.directory.glob("wandb/*/*.synced"))) >= 1
    assert there.server.violations == []


@pytest.mark.slow
def test_a_hole_in_a_file_that_is_still_written_may_be_filled(there: World, trainer: subprocess.Popen[str]):
    path = dotwandb(there)
    hole = 5 * 32768
    with open(path, "r+b") as file:
        file.seek(hole)
        filled = file.read(100)
        file.seek(hole)
        file.write(bytes(100))
    done = syncd(there, "sync", "wandb")
    begun = numbers(there)
    assert done.returncode == 1
    assert begun == list(range(len(begun)))

    with open(path, "r+b") as file:
        file.seek(hole)
        file.write(filled)
    for _ in range(2):
        _go_on(trainer)
    trainer.communicate()
    synced(there, "wandb")

    assert len(begun) < 50
    assert numbers(there) == list(range(200))
    assert there.server.violations == []


@pytest.mark.slow
def test_a_trainer_that_is_killed_holds_nobody_up(there: World, trainer: subprocess.Popen[str]):
    synced(there, "wandb")
    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.communicate()
    # W&B's other process is as dead as it, but for the moment that the kernel takes.
    wait_for(lambda: not being_written().have(WandbFile(dotwandb(there))), "the end of all that wrote it")

    said = synced(there, "wandb")

    assert numbers(there) == list(range(len(numbers(there))))
    assert [run["state"] for run in said["runs"]] == ["crashed"]
    assert not there.run.complete


@pytest.mark.slow
def test_a_run_that_wandb_uploads_itself_is_left_to_it(there: World):
    there.env["WANDB_MODE"] = "online"
    trainer = start_by_the_sdk(there, TALKATIVE, new_session=True)
    try:
        _wait_until_logged(trainer, there, 0)
        requests = len(there.server.requests)

        done = syncd(there, "sync", str(dotwandb(there)))

        assert done.returncode == 1
        assert "uploaded, by W&B's own process" in " ".join(done.stderr.split())
        users = {request.headers.get("user-agent") for request in there.server.requests[requests:]}
        assert not any("tidelog" in str(user).lower() for user in users)
    finally:
        os.killpg(trainer.pid, signal.SIGKILL)
        trainer.communicate()


@pytest.mark.slow
def test_wandb_sync_afterwards_sees_that_there_is_nothing_to_do(there: World, trainer: subprocess.Popen[str]):
    for _ in range(2):
        _go_on(trainer)
    trainer.communicate()
    synced(there, "wandb")

    there.server.clear_requests()

    wandb_sync(there)

    assert there.server.requests == []
