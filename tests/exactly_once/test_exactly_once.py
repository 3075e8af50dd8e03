"""The claim, proven with real processes, real kills and a server that misbehaves.

After whatever happened, the server's lines are the fold of the log, byte for byte, and hold each row that was
logged once and in order.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eventlog import read
from eventlog.reader import find_runs
from syncd.fold import Bases, Fold
from tests.processes import group_of
from tests.wandb_server import WandbServer
from tests.wandb_server.check import differences
from tests.wandb_server.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
DEADLINE_S = 90.0


@contextmanager
def process(*arguments: str, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run `python ARGUMENTS` in a process group of its own; whatever is left of it dies at the end."""
    pipe = subprocess.PIPE
    with group_of([sys.executable, *arguments], cwd=REPOSITORY, env=env, stdout=pipe, stderr=pipe) as started:
        yield started


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer(entity="ent") as running:
        yield running


def environment(server: WandbServer, tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    return {
        **os.environ,
        **server.env(home),
        "HOME": str(home),
        "TIDELOG_STATE_DIR": str(home / "state"),
        "PYTHONPATH": str(REPOSITORY),
        "WANDB_SILENT": "true",
    }


def trainer(root: Path, run_id: str, rows: int, pause_s: float = 0.0) -> tuple[str, ...]:
    return ("-m", "tests.exactly_once.logging_trainer", str(root), run_id, str(rows), str(pause_s))


def daemon(root: Path) -> tuple[str, ...]:
    return ("-m", "syncd", "start", "--foreground", "--root", str(root), "--flush", "0.2")


def finish_a_run(root: Path, run_id: str, rows: int, env: dict[str, str]) -> None:
    with process(*trainer(root, run_id, rows), env=env) as training:
        _, errors = training.communicate(timeout=DEADLINE_S)
        assert training.returncode == 0, errors


def sync(root: Path, env: dict[str, str]) -> None:
    """Upload the rest with the command that users have; it must say that all is there."""
    done = subprocess.run(
        [sys.executable, "-m", "syncd", "sync", "--drain", "--json", str(root)],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(run["backlog"] == 0 for run in json.loads(done.stdout)["runs"]), done.stdout


def folded(run_dir: Path) -> list[str]:
    """Return the lines that the log makes, by one replay from its first record."""
    fold = Fold(Bases())
    lines = [line.text for record in read(run_dir) for line in fold.feed(record)]
    return lines + [line.text for line in fold.end_piece()]


def assert_there_once(server: WandbServer, root: Path, rows: dict[str, int]) -> None:
    assert server.violations == []
    assert len(list(find_runs(root))) == len(rows)
    for run_id, count in rows.items():
        held = server.run("ent", "proof", run_id)
        assert held.history_lines == folded(root / "proof" / run_id)
        assert [row["x"] for row in held.history] == list(range(count))


@pytest.mark.slow
def test_killing_the_daemon_while_three_trainers_write_loses_and_doubles_nothing(
    server: WandbServer, root: Path, tmp_path: Path
):  # faults: 44 68
    env = environment(server, tmp_path)
    rows = {"one": 900, "two": 900, "three": 900}
    chance = random.Random(7)
    server.random_misbehaviour(seed=7, rate=0.25)

    kills = 0
    with (
        process(*trainer(root, "one", rows["one"], 0.03), env=env) as one,
        process(*trainer(root, "two", rows["two"], 0.03), env=env) as two,
        process(*trainer(root, "three", rows["three"], 0.03), env=env) as three,
    ):
        trainers = (one, two, three)
        while kills < 20 or any(training.poll() is None for training in trainers):
            seen, enough = len(server.requests), chance.randint(1, 12)

            def has_talked(seen: int = seen, enough: int = enough) -> bool:
                over = all(training.poll() is not None for training in trainers)
                return len(server.requests) >= seen + (1 if over else enough)

            with process(*daemon(root), env=env):
                # Killed after some requests, however fast the machine is, and a little later: the kills fall
                # between requests and into them.
                wait_for(has_talked, "the daemon's requests")
                time.sleep(chance.uniform(0.0, 0.1))
            kills += 1
    server.faults.clear()
    sync(root, env)

    assert kills >= 20
    # On average more than one for each daemon, or nothing was proven.
    assert server.faults.happened > kills
    assert_there_once(server, root, rows)
    assert all(held.complete and held.exitcode == 0 for held in server.runs())


@pytest.mark.slow
def test_a_trainer_killed_and_resumed_makes_one_history_in_order(
    server: WandbServer, root: Path, tmp_path: Path
):
    env = environment(server, tmp_path)
    returned: list[int] = []

    with process(*daemon(root), env=env):
        for _ in range(3):
            with process(*trainer(root, "resumed", 10_000, 0.002), env=env) as training:
                assert training.stdout is not None
                lines = [training.stdout.readline() for _ in range(100)]
                training.kill()
                returned += [int(line) for line in lines] + [int(x) for x in training.stdout.read().split()]
        wait_for(lambda: len(server.runs()) == 1, "the run on the server")
    sync(root, env)

    held = server.run("ent", "proof", "resumed")
    assert sorted(path.name for path in (root / "proof" / "resumed").glob("main-*")) == [
        "main-0001",
        "main-0002",
        "main-0003",
    ]
    assert_there_once(server, root, {"resumed": len(held.history_lines)})
    assert set(returned) <= {row["x"] for row in held.history}
    # Killed, not finished: W&B shows such a run as crashed, which it was.
    assert not held.complete


@pytest.mark.slow
def test_a_deleted_cursor_is_found_again_and_nothing_is_doubled(
    server: WandbServer, root: Path, tmp_path: Path
):
    # faults: 47
    env = environment(server, tmp_path)
    with process(*trainer(root, "forgotten", 400, 0.005), env=env) as training:
        with process(*daemon(root), env=env):
            wait_for(
                lambda: any(len(run.history_lines) > 50 for run in server.runs()), "some rows on the server"
            )
        training.wait(timeout=DEADLINE_S)
        shutil.rmtree(root / "proof" / "forgotten" / "sync")

    sync(root, env)

    assert_there_once(server, root, {"forgotten": 400})


def test_cursors_full_of_garbage_are_as_good_as_deleted(server: WandbServer, root: Path, tmp_path: Path):
    # faults: 46
    env = environment(server, tmp_path)
    finish_a_run(root, "garbage", 50, env)
    sync(root, env)
    for path in (root / "proof" / "garbage" / "sync").glob("*.json*"):
        path.write_bytes(b'{"crc":"00000000","format":1}\n\xff\x00')

    sync(root, env)

    assert_there_once(server, root, {"garbage": 50})


def test_syncing_again_sends_no_line_a_second_time(server: WandbServer, root: Path, tmp_path: Path):
    env = environment(server, tmp_path)
    finish_a_run(root, "again", 50, env)
    sync(root, env)
    server.clear_requests()

    sync(root, env)

    assert [request for request in server.requests if request.kind == "file_stream"] == []
    assert_there_once(server, root, {"again": 50})


def test_a_second_server_gets_all_of_what_the_first_one_has(server: WandbServer, root: Path, tmp_path: Path):
    env = environment(server, tmp_path)
    finish_a_run(root, "both", 60, env)
    sync(root, env)

    with WandbServer(entity="ent") as other:
        sync(root, environment(other, tmp_path))

        assert_there_once(other, root, {"both": 60})
    assert_there_once(server, root, {"both": 60})


def test_an_outage_in_the_middle_delays_the_rows_and_loses_none(
    server: WandbServer, root: Path, tmp_path: Path
):
    env = environment(server, tmp_path)
    with process(*daemon(root), env=env), process(*trainer(root, "outage", 300, 0.01), env=env) as training:
        wait_for(lambda: any(len(run.history_lines) > 20 for run in server.runs()), "some rows on the server")
        server.down()
        training.wait(timeout=DEADLINE_S)
        server.up()
        wait_for(lambda: server.run("ent", "proof", "outage").complete, "the run to be complete")

    assert_there_once(server, root, {"outage": 300})


def test_the_check_fails_on_a_server_that_appends_instead_of_splicing(root: Path, tmp_path: Path):
    """The negative control: what the other tests trust in must be able to fail."""
    with WandbServer(entity="ent", append=True, strict=False) as wrong:
        env = environment(wrong, tmp_path)
        finish_a_run(root, "doubled", 50, env)
        wrong.faults.add("drop", kind="file_stream", applied=True, times=1)
        sync(root, env)

        held = wrong.run("ent", "proof", "doubled")
        wanted = [json.loads(line) for line in folded(root / "proof" / "doubled")]
        assert differences(wanted, held.history) != []
        with pytest.raises(AssertionError):
            assert_there_once(wrong, root, {"doubled": 50})
