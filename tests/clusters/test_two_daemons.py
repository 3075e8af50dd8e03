"""docs/clusters.md, "NFS, Lustre and the like": two daemons on one root, and writers that another host cannot ask."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from eventlog.cursor import cursors
from eventlog.piece import STALE_S
from syncd import run_sync
from syncd.daemon import Daemon
from tests.clusters.arrived import assert_arrived, is_complete, rows_of
from tests.clusters.conftest import NewHost
from tests.clusters.hosts import REPOSITORY, rows_printed
from tests.syncd.syncing import sync_while
from tests.wandb_server import WandbServer, wait_for

JOB = ("-m", "tests.clusters.job")
DAEMON = ("-m", "syncd", "start", "--foreground", "--flush=0.2")


def holder_of(run_dir: Path) -> int:
    """Return the process that holds the run, of those that would upload it."""
    (lock,) = (run_dir / "sync").glob("*.lock")
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    (pid,) = {
        int(each[4]) for each in held if each[1] == "FLOCK" and each[5].endswith(f":{lock.stat().st_ino}")
    }
    return pid


def beginning_with(directory: Path, text: str) -> dict[str, str]:
    """Return the environment of processes that run this text first."""
    (directory / "first").mkdir()
    (directory / "first" / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": f"{directory / 'first'}:{REPOSITORY}"}


def lease_of(seconds: int) -> str:
    return f"import eventlog.cursor\neventlog.cursor.LEASE_S, eventlog.cursor.RENEW_S = {seconds}, 0.5\n"


def test_of_two_daemons_on_one_root_the_other_goes_on_when_one_is_killed(
    server: WandbServer, host: NewHost, shared: Path, tmp_path: Path
):
    node, login, other = host("node7", has_network=False), host("login1"), host("login2")
    soon = beginning_with(tmp_path, lease_of(3))
    root = f"--root={shared}"

    with (
        node.process(*JOB, "200", HOLD_AT="100"),
        login.process(*DAEMON, root, **soon) as one,
        other.process(*DAEMON, root, **soon) as two,
    ):
        wait_for(lambda: rows_of(server) == 99, "the rows of a run that goes on")
        assert one.poll() is None
        assert two.poll() is None
        {one.pid: one, two.pid: two}[holder_of(shared / "demo" / "run")].kill()
        node.go()
        wait_for(lambda: is_complete(server), "the end of the run")

    assert_arrived(server, 200, shared / "demo" / "run")


def test_two_daemons_whose_locks_do_not_reach_each_other_send_each_row_once(
    server: WandbServer, host: NewHost, shared: Path, tmp_path: Path
):
    node, login, other = host("node7", has_network=False), host("login1"), host("login2")
    # Without locks between clients each host holds its own lock file; what is in the directory is the same for both.
    alone = beginning_with(
        tmp_path,
        "import fcntl\n_flock = fcntl.flock\n"
        "fcntl.flock = lambda fd, how: None if how == fcntl.LOCK_EX | fcntl.LOCK_NB else _flock(fd, how)\n"
        # And one that nobody believes: they take the run from each other, all the time.
        + lease_of(0),
    )
    root = f"--root={shared}"

    with (
        node.process(*JOB, "200", HOLD_AT="100"),
        login.process(*DAEMON, root, **alone) as one,
        other.process(*DAEMON, root, **alone),
    ):
        wait_for(lambda: rows_of(server) == 99, "the rows of a run that goes on")
        one.kill()
        node.go()
        wait_for(lambda: is_complete(server), "the end of the run")

    assert_arrived(server, 200, shared / "demo" / "run")


def test_a_silent_writer_of_another_host_is_waited_for_ten_minutes_and_then_a_word_is_enough(
    server: WandbServer, host: NewHost, shared: Path, monkeypatch: pytest.MonkeyPatch
):
    node, login, run_dir = host("node7", has_network=False), host("login1"), shared / "demo" / "run"
    with node.process(*JOB, "100", HOLD_AT="50") as training:
        rows_printed(training, 49)
        training.kill()
        training.wait(60)
    for name in ("HOT_S", "WARM_S", "COLD_S"):
        monkeypatch.setattr(run_sync, name, 0.05)
    later_s = 0.0

    def state() -> list[str]:
        return [cursor.state for cursor in cursors(run_dir)]

    def play(_: Daemon) -> None:
        nonlocal later_s
        wait_for(lambda: rows_of(server) == 49 and state() == ["live"], "all rows but the open one")
        later_s = STALE_S - 60
        looked_at = time.monotonic() + 0.5
        wait_for(lambda: time.monotonic() > looked_at, "some more looks")
        assert state() == ["live"]
        later_s = STALE_S + 60
        wait_for(lambda: state() == ["crashed"], "the end of patience")

    sync_while(server, shared, play, clock=lambda: time.monotonic() + later_s)
    said = [cursor.error for cursor in cursors(run_dir)]
    word = login.syncd("retry", str(run_dir), "--ended")
    done = login.syncd("sync", str(run_dir))

    assert "retry demo/run --ended" in (said[0] or "")
    assert word.returncode == done.returncode == 0, done.stdout + done.stderr
    assert not is_complete(server)
    assert_arrived(server, 50, run_dir)
