"""The command `syncd`, as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.logs import handmade_run
from tests.wandb_server import WandbServer
from tests.wandb_server.server import API_KEY
from tests.wandb_server.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer(entity="ent") as running:
        yield running


@pytest.fixture
def env(server: WandbServer, tmp_path: Path) -> Iterator[dict[str, str]]:
    home = tmp_path / "home"
    variables = {
        **os.environ,
        **server.env(home),
        "HOME": str(home),
        "TIDELOG_STATE_DIR": str(home / "state"),
        "PYTHONPATH": str(REPOSITORY),
    }
    yield variables
    syncd(variables, "stop")


def syncd(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "syncd", *arguments],
        env=env,
        cwd=env["HOME"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def status(env: dict[str, str], root: Path) -> dict[str, Any]:
    done = syncd(env, "status", "--json", "--root", str(root))
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def finished_run(root: Path) -> None:
    piece = handmade_run(root)
    piece.log(x=1, step=0)
    piece.log("exit", exitcode=0)
    piece.die()


def test_start_returns_when_healthy_and_the_run_arrives(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    finished_run(tmp_path / "runs")

    started = syncd(env, "start", "--root", str(tmp_path / "runs"))
    wait_for(lambda: server.runs() and server.runs()[0].complete, "the upload")
    wait_for(lambda: status(env, tmp_path / "runs")["runs"][0]["backlog"] == 0, "the cursor")

    assert started.returncode == 0, started.stderr
    found = status(env, tmp_path / "runs")
    assert found["daemon"]["state"] == "online"
    (run,) = found["runs"]
    assert {"run", "records", "acked", "backlog", "lag_s", "state", "error", "url"} <= run.keys()
    assert (run["run"], run["records"], run["acked"], run["state"]) == ("demo/run", 3, 3, "synced")


def test_a_second_daemon_exits_with_3_and_names_the_first(env: dict[str, str], tmp_path: Path):  # faults: 80
    syncd(env, "start", "--root", str(tmp_path))
    pid = status(env, tmp_path)["daemon"]["pid"]

    second = syncd(env, "start", "--root", str(tmp_path))
    third = syncd(env, "start", "--foreground", "--root", str(tmp_path))

    assert (second.returncode, third.returncode) == (3, 3)
    assert str(pid) in second.stderr
    assert str(pid) in third.stderr


def test_after_a_kill_the_next_daemon_takes_over(env: dict[str, str], tmp_path: Path):  # faults: 80 83
    syncd(env, "start", "--root", str(tmp_path))
    os.kill(status(env, tmp_path)["daemon"]["pid"], signal.SIGKILL)
    wait_for(lambda: status(env, tmp_path)["daemon"]["state"] == "stopped", "the end of the first")

    again = syncd(env, "start", "--root", str(tmp_path))

    assert again.returncode == 0, again.stderr


def test_being_offline_is_healthy(server: WandbServer, env: dict[str, str], tmp_path: Path):
    server.down()
    finished_run(tmp_path / "runs")

    started = syncd(env, "start", "--root", str(tmp_path / "runs"))
    wait_for(lambda: status(env, tmp_path / "runs")["daemon"]["state"] == "offline", "the daemon to notice")
    server.up()
    wait_for(lambda: server.runs() and server.runs()[0].complete, "the upload")

    assert started.returncode == 0


def test_stop_says_that_nothing_runs(env: dict[str, str]):
    stopped = syncd(env, "stop")

    assert (stopped.returncode, stopped.stdout) == (0, "syncd is not running.\n")


def test_sync_returns_0_when_all_is_acknowledged(server: WandbServer, env: dict[str, str], tmp_path: Path):
    finished_run(tmp_path / "runs")

    done = syncd(env, "sync", str(tmp_path / "runs" / "demo" / "run"))

    assert done.returncode == 0, done.stderr
    assert "synced" in done.stdout
    assert server.run("ent", "demo", "run").complete


def test_sync_beside_a_running_daemon_waits_for_it(server: WandbServer, env: dict[str, str], tmp_path: Path):
    # faults: 86
    finished_run(tmp_path / "runs")
    syncd(env, "start", "--root", str(tmp_path / "runs"))

    done = syncd(env, "sync", str(tmp_path / "runs"))

    assert done.returncode == 0, done.stderr
    assert [row["x"] for row in server.run("ent", "demo", "run").history] == [1]
    assert server.violations == []


def test_sync_without_a_key_says_how_to_get_one(env: dict[str, str], tmp_path: Path):
    finished_run(tmp_path / "runs")
    del env["WANDB_API_KEY"]

    done = syncd(env, "sync", str(tmp_path / "runs"))

    assert done.returncode == 2
    assert "wandb login" in done.stderr


def test_sync_with_a_wrong_key_says_so_and_never_shows_it(env: dict[str, str], tmp_path: Path):  # faults: 96
    finished_run(tmp_path / "runs")
    env["WANDB_API_KEY"] = "9" * 40

    done = syncd(env, "sync", str(tmp_path / "runs"))

    assert done.returncode == 1
    assert "refused the API key" in done.stderr
    everything = (
        done.stdout
        + done.stderr
        + "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    )
    assert "9" * 40 not in everything


def test_sync_gives_up_on_a_server_that_is_away_and_loses_nothing(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    finished_run(tmp_path / "runs")
    server.down()

    gave_up = syncd(env, "sync", "--patience", "0.1", str(tmp_path / "runs"))
    server.up()
    again = syncd(env, "sync", str(tmp_path / "runs"))

    assert gave_up.returncode == 1
    assert "Not everything is uploaded" in gave_up.stderr
    assert again.returncode == 0
    assert server.run("ent", "demo", "run").complete


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_sync_of_what_is_no_run_is_wrong_usage(env: dict[str, str], tmp_path: Path, path: str):
    (tmp_path / "empty").mkdir()

    done = syncd(env, "sync", str(tmp_path / path))

    assert done.returncode == 2
    assert path in done.stderr


def test_the_key_of_a_dotenv_file_is_used(server: WandbServer, env: dict[str, str], tmp_path: Path):
    finished_run(tmp_path / "runs")
    del env["WANDB_API_KEY"]
    (Path(env["HOME"]) / ".env").write_text(f"WANDB_API_KEY='{API_KEY}'\n")

    assert syncd(env, "sync", str(tmp_path / "runs")).returncode == 0
    assert server.run("ent", "demo", "run").complete


def test_sync_gives_up_on_a_server_that_answers_and_never_takes_anything(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    finished_run(tmp_path / "runs")
    server.faults.add("status", status=503)

    done = syncd(env, "sync", "--patience", "0.5", str(tmp_path / "runs"))

    assert done.returncode == 1
    assert "503" in done.stderr


def test_sync_of_a_parked_run_tries_again_also_beside_a_daemon(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    finished_run(tmp_path / "runs")
    server.faults.add("status", kind="file_stream", status=403)
    syncd(env, "start", "--root", str(tmp_path / "runs"))
    wait_for(lambda: status(env, tmp_path / "runs")["runs"][0]["state"] == "parked", "the run to be parked")
    server.faults.clear()

    done = syncd(env, "sync", str(tmp_path / "runs" / ".." / "runs" / "demo" / "run"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert server.run("ent", "demo", "run").complete
