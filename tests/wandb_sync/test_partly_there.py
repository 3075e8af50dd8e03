"""A run of which the server has a part already is completed, and nothing of it is sent twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.clients import World, start_by_the_sdk, world
from tests.wandb_server.waiting import wait_for
from tests.wandb_sync.logged import ROWS, dotwandb, log_offline, numbers, syncd, synced, wandb_sync

LONG = 100_000
SHORT = 400
# Rows are small, so that a long run is logged soon; W&B's client sends them in several requests.
LONG_SCRIPT = f"""
run = wandb.init(project="p", id="r")
for i in range({LONG}):
    run.log({{"i": i}})
run.finish()
"""
# Goes on until it is killed; what is padded reaches the disk soon.
ENDLESS = """
import itertools, time
run = wandb.init(project="p", id="r", resume="allow", settings=wandb.Settings(x_file_stream_transmit_interval=1))
for i in itertools.count(run.step):
    run.log({"i": i, "padding": "x" * 2000})
    time.sleep(0.002)
"""


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return log_offline(tmp_path_factory.mktemp("long"), [LONG_SCRIPT])


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return log_offline(tmp_path_factory.mktemp("short"), [ROWS % SHORT])


@pytest.fixture
def short(short_run: Path, tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, "short", short_run) as there:
        yield there


@pytest.mark.slow
def test_what_a_killed_wandb_sync_left_half_done_is_completed(long_run: Path, tmp_path: Path):
    with world(tmp_path, "half", long_run, WANDB_MODE="online") as there:
        command = [sys.executable, "-m", "wandb", "sync", "wandb"]
        half = subprocess.Popen(
            command, env=there.env, cwd=there.directory, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wait_for(lambda: there.server.runs() and there.run.history_lines, "the first rows")
        os.killpg(half.pid, signal.SIGKILL)
        half.wait()
        begun = len(there.run.history_lines)
        assert begun < LONG, "it was killed too late to show anything"

        said = synced(there, "wandb")

        assert numbers(there) == list(range(LONG))
        assert said["taken"][0]["rows"] == LONG
        assert there.run.complete
        assert there.server.violations == []


@pytest.mark.slow
def test_a_run_that_was_killed_online_is_completed(tmp_path: Path):
    with world(tmp_path, "online", WANDB_MODE="online") as there:
        _log_until_killed(there)
        begun = numbers(there)

        done = syncd(there, "sync", str(dotwandb(there).parent))

        assert done.returncode == 0, done.stdout + done.stderr
        there_now = numbers(there)
        assert there_now == list(range(len(there_now)))
        assert there_now[: len(begun)] == begun
        # It did not end: W&B shows it as crashed.
        assert not there.run.complete


@pytest.mark.slow
def test_the_last_piece_of_a_run_that_was_resumed_and_killed_online_is_completed(tmp_path: Path):
    with world(tmp_path, "online", WANDB_MODE="online") as there:
        _log_until_killed(there)
        first = dotwandb(there).parent
        first.rename(tmp_path / "elsewhere")
        _log_until_killed(there)
        begun = numbers(there)

        done = syncd(there, "sync", str(dotwandb(there).parent))

        assert done.returncode == 0, done.stdout + done.stderr
        assert numbers(there)[: len(begun)] == begun
        steps = [row["_step"] for row in there.run.history]
        assert steps == list(range(len(steps)))


def _log_until_killed(there: World) -> None:
    before = len(there.run.history_lines) if there.server.runs() else 0
    trainer = start_by_the_sdk(there, ENDLESS, new_session=True)
    wait_for(lambda: there.server.runs() and len(there.run.history_lines) > before + 20, "rows online")
    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.communicate()


@pytest.mark.slow
def test_syncing_again_sends_no_row_again(short: World):
    synced(short, "wandb")
    short.server.clear_requests()

    synced(short, "wandb", "--include-synced")

    assert numbers(short) == list(range(SHORT))
    assert [r for r in short.server.requests if r.kind == "file_stream"] == []


@pytest.mark.slow
def test_what_people_edited_on_wandbs_pages_is_theirs(short: World):
    wandb_sync(short, "wandb")
    with short.server.lock:
        short.run.display_name, short.run.notes = "edited", "by hand"

    synced(short, "wandb", "--include-synced")

    assert (short.run.display_name, short.run.notes) == ("edited", "by hand")
    assert numbers(short) == list(range(SHORT))


@pytest.mark.slow
def test_a_file_that_was_copied_in_part_and_then_whole_arrives_once(short: World, tmp_path: Path):
    path = dotwandb(short)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    synced(short, "wandb")
    begun = numbers(short)
    assert 50 < len(begun) < SHORT

    path.write_bytes(whole)
    synced(short, "wandb", "--include-synced")

    assert numbers(short) == list(range(SHORT))
    assert short.run.complete
    assert short.server.violations == []


@pytest.mark.slow
def test_a_log_that_was_deleted_is_made_again_and_nothing_is_sent_twice(short: World):
    synced(short, "wandb")
    lines = list(short.run.history_lines)
    shutil.rmtree(short.directory / "wandb" / ".tidelog")

    synced(short, "wandb", "--include-synced")

    assert short.run.history_lines == lines
    assert short.server.violations == []


@pytest.mark.slow
def test_what_wandb_sync_has_doubled_is_not_touched_without_a_word(short: World):
    for _ in range(2):
        wandb_sync(short, "wandb", "--include-synced")
    doubled = numbers(short)
    assert len(doubled) == 2 * SHORT

    stopped = syncd(short, "sync", "wandb", "--include-synced")
    assert stopped.returncode == 1
    assert "--force" in stopped.stdout
    assert numbers(short) == doubled

    synced(short, "wandb", "--include-synced", "--force", "continue")
    assert numbers(short) == doubled


@pytest.mark.slow
def test_rows_that_are_not_of_this_run_are_left_alone(short: World):
    short.server.seed_run("p", "r", 7, entity="ent")
    before = list(short.run.history_lines)

    stopped = syncd(short, "sync", "wandb")
    assert stopped.returncode == 1
    assert "they are not the beginning of this run" in " ".join(stopped.stdout.split())
    assert short.run.history_lines == before

    synced(short, "wandb", "--force", "append")
    assert short.run.history_lines[:7] == before
    assert numbers(short)[-SHORT:] == list(range(SHORT))


@pytest.mark.slow
def test_a_run_whose_id_is_taken_gets_a_new_one_when_asked(short: World):
    short.server.seed_run("p", "r", 7, entity="ent")

    synced(short, "wandb", "--force", "new-id")

    (other,) = [run for run in short.server.runs() if run.run_id != "r"]
    assert [row["i"] for row in other.history] == list(range(SHORT))
