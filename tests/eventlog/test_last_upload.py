"""`finish(sync_timeout=)`: until W&B has the run, by whoever uploads it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventlog import last_upload
from eventlog.cursor import Lease, Sink
from syncd.instance import Instance
from tests.exactly_once.test_exactly_once import folded, process
from tests.syncd.syncing import finished_run
from tests.wandb_server import WandbServer, wait_for

REPOSITORY = Path(__file__).parents[2]
ROWS = 200
SCRIPT = """
import eventlog, sys, time
run = eventlog.init(project="demo", id="run", root=sys.argv[1], resume="allow")
for i in range(run.step, run.step + int(sys.argv[3])):
    run.log({"x": i}, step=i)
began_s = time.monotonic()
run.finish(sync_timeout=float(sys.argv[2]))
print(time.monotonic() - began_s)
"""
# What a training node without `tidelog[sync]` has instead of httpx.
WITHOUT_HTTPX = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "httpx" else find_spec(name, *rest)
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer(entity="ent") as running:
        yield running


@pytest.fixture
def env(server: WandbServer, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        **server.env(tmp_path / "home"),
        "HOME": str(tmp_path / "home"),
        "TIDELOG_STATE_DIR": str(tmp_path / "home" / "state"),
        "PYTHONPATH": str(REPOSITORY),
        "WANDB_SILENT": "false",
    }


def trained(env: dict[str, str], root: Path, timeout_s: float, before: str = "") -> tuple[float, str]:
    """Train, finish, and return how long that took and what was said."""
    done = subprocess.run(
        [sys.executable, "-c", before + SCRIPT, str(root), str(timeout_s), str(ROWS)],
        env=env,
        cwd=env["HOME"],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return float(done.stdout), done.stderr


def assert_there(server: WandbServer, root: Path, rows: int) -> None:
    held = server.run("ent", "demo", "run")
    assert server.violations == []
    assert [row["x"] for row in held.history] == list(range(rows))
    assert held.history_lines == folded(root / "demo" / "run")
    assert held.complete


def test_without_a_daemon_finish_uploads_the_run_itself(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    _, said = trained(env, tmp_path / "runs", 60)

    assert "is uploaded from here" in said
    assert "is not uploaded" not in said
    assert_there(server, tmp_path / "runs", ROWS)


def test_the_end_of_an_earlier_piece_is_not_taken_for_that_of_the_one_that_resumed_it(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    trained(env, tmp_path / "runs", 60)

    trained(env, tmp_path / "runs", 60)

    assert_there(server, tmp_path / "runs", 2 * ROWS)


def test_with_a_daemon_finish_waits_for_it_and_starts_no_second_uploader(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    started = tmp_path / "started"
    counting = f"""
import subprocess
popen = subprocess.Popen.__init__
def counted(self, args, *rest, **how):
    if "sync" in args:
        open({str(started)!r}, "a").write("once")
    popen(self, args, *rest, **how)
subprocess.Popen.__init__ = counted
"""

    with process("-m", "syncd", "start", "--foreground", "--flush=0.2", env=env) as daemon:
        state = Path(env["TIDELOG_STATE_DIR"]) / "syncd.json"
        wait_for(state.exists, "the daemon")
        _, said = trained(env, tmp_path / "runs", 60, counting)
        assert daemon.poll() is None

    assert "is not uploaded" not in said
    assert not started.exists()
    assert_there(server, tmp_path / "runs", ROWS)


def test_a_daemon_does_not_take_a_run_that_is_offline_and_finish_does(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    with process("-m", "syncd", "start", "--foreground", env=env):
        wait_for((Path(env["TIDELOG_STATE_DIR"]) / "syncd.json").exists, "the daemon")
        trained({**env, "WANDB_MODE": "offline"}, tmp_path / "runs", 60)

    assert_there(server, tmp_path / "runs", ROWS)


def test_a_daemon_that_watches_other_roots_is_not_waited_for_in_vain(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    sooner = "import eventlog.last_upload as upload; upload._DAEMON_S = 0.5"

    with process("-m", "syncd", "start", "--foreground", f"--root={tmp_path / 'other'}", env=env):
        wait_for((Path(env["TIDELOG_STATE_DIR"]) / "syncd.json").exists, "the daemon")
        trained(env, tmp_path / "runs", 60, sooner)

    assert_there(server, tmp_path / "runs", ROWS)


def test_a_daemon_that_watches_other_roots_is_not_waited_for_though_another_had_an_earlier_piece(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    sooner = "import eventlog.last_upload as upload; upload._DAEMON_S = 0.5"
    trained(env, tmp_path / "runs", 60)

    with process("-m", "syncd", "start", "--foreground", f"--root={tmp_path / 'other'}", env=env):
        wait_for((Path(env["TIDELOG_STATE_DIR"]) / "syncd.json").exists, "the daemon")
        _, said = trained(env, tmp_path / "runs", 20, sooner)

    assert "is not uploaded" not in said
    assert_there(server, tmp_path / "runs", 2 * ROWS)


@pytest.mark.parametrize("is_held", [True, False])
def test_a_daemon_is_trusted_as_long_as_somebody_holds_the_run(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_held: bool
):
    monkeypatch.setenv("TIDELOG_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("WANDB_BASE_URL", env["WANDB_BASE_URL"])
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(last_upload, "_DAEMON_S", 0.3)
    Instance(tmp_path / "state").acquire()
    run_dir = finished_run(tmp_path / "runs").piece.dir.parent
    lease = Lease.take(run_dir, Sink("http://w", None, "demo", "run"), time.time_ns() // 1000)
    assert lease is not None
    if not is_held:
        lease.release()

    reason = last_upload.wait(run_dir, "main-0001", 5, is_offline=False)

    assert ("syncd has taken it up" if is_held else "there is no API key for") in (reason or "")


def test_with_the_server_away_it_ends_with_its_time_says_what_is_left_and_a_later_sync_completes_it(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    server.down()

    waited_s, said = trained(env, tmp_path / "runs", 5)
    server.up()
    later = subprocess.run(
        [sys.executable, "-m", "syncd", "sync", str(tmp_path / "runs")],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert 5 <= waited_s < 10
    assert f"has not acknowledged {ROWS + 2} of its {ROWS + 2} records" in said
    assert "cannot connect to" in said
    assert f"`syncd sync {tmp_path / 'runs' / 'demo' / 'run'}` goes on from there" in said
    assert later.returncode == 0, later.stdout + later.stderr
    assert_there(server, tmp_path / "runs", ROWS)


def test_the_child_is_gone_when_finish_returns(server: WandbServer, env: dict[str, str], tmp_path: Path):
    server.black_hole()

    # A child has a second at least, and so is at work when this ends.
    trained(env, tmp_path / "runs", 1)

    running = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in running


def test_without_a_key_it_says_so_and_waits_for_nobody_to_type_one(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    _, said = trained({**env, "WANDB_API_KEY": ""}, tmp_path / "runs", 3)

    assert "there is no API key for" in said
    assert server.runs() == []


def test_without_the_packages_of_syncd_it_says_so_once(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    _, said = trained(env, tmp_path / "runs", 1, WITHOUT_HTTPX)

    assert said.count("no syncd runs on this host, and syncd's packages are not installed here") == 1
    assert f"has not acknowledged {ROWS + 2} of its" in said


def test_what_another_host_uploads_meanwhile_is_enough(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    elsewhere = {**env, "TIDELOG_STATE_DIR": str(tmp_path / "elsewhere")}

    with process(
        "-m", "syncd", "start", "--foreground", "--flush=0.2", f"--root={tmp_path / 'runs'}", env=elsewhere
    ):
        wait_for((tmp_path / "elsewhere" / "syncd.json").exists, "the daemon")
        began_s = time.monotonic()
        _, said = trained({**env, "WANDB_API_KEY": ""}, tmp_path / "runs", 60)

    assert time.monotonic() - began_s < 60
    assert "is not uploaded" not in said
    assert_there(server, tmp_path / "runs", ROWS)
