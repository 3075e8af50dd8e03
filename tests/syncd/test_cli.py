"""The command `syncd`, as a user types it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd.daemon_log import MAX_BYTES
from syncd.fold import HISTORY
from tests.locks import NO_LOCKS_AT_ALL
from tests.logs import HandmadePiece, handmade_run
from tests.wandb_server import WandbServer
from tests.wandb_server.server import API_KEY
from tests.wandb_server.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
# Who waits for so long has failed.
DEADLINE_S = 60.0


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


def foreground(env: dict[str, str], root: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "syncd", "start", "--foreground", "--root", str(root), *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
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


def test_the_log_of_a_daemon_in_the_background_is_turned_over(env: dict[str, str], tmp_path: Path):
    log = Path(env["TIDELOG_STATE_DIR"]) / "syncd.log"
    log.parent.mkdir()
    log.write_bytes(b"said for months\n" * (MAX_BYTES // 16))

    assert syncd(env, "start", "--root", str(tmp_path)).returncode == 0

    assert sum(file.stat().st_size for file in log.parent.glob("syncd.log*")) < MAX_BYTES + 1000
    assert "uploads to" in log.read_text()
    assert "said for months" not in log.read_text()


def test_a_second_daemon_exits_with_3_and_names_the_first(env: dict[str, str], tmp_path: Path):  # faults: 80
    syncd(env, "start", "--root", str(tmp_path))
    pid = status(env, tmp_path)["daemon"]["pid"]

    second = syncd(env, "start", "--root", str(tmp_path))
    third = syncd(env, "start", "--foreground", "--root", str(tmp_path))

    assert (second.returncode, third.returncode) == (3, 3)
    assert str(pid) in second.stderr
    assert str(pid) in third.stderr


def test_where_no_lock_can_be_taken_one_daemon_runs_all_the_same_and_brings_what_is_logged_there(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "sitecustomize.py").write_text(NO_LOCKS_AT_ALL)
    env["PYTHONPATH"] = f"{tmp_path / 'first'}:{REPOSITORY}"
    root = tmp_path / "runs"
    job = f"import eventlog\nwith eventlog.init(project='demo', id='run', root={str(root)!r}) as run: run.log({{'x': 1}})"

    started = syncd(env, "start", "--root", str(root))
    second = syncd(env, "start", "--foreground", "--root", str(root))
    logged = subprocess.run([sys.executable, "-c", job], env=env, capture_output=True, text=True, check=False)
    wait_for(lambda: server.runs() and server.runs()[0].complete, "the upload")
    stopped = syncd(env, "stop")

    assert (started.returncode, second.returncode) == (0, 3), started.stderr + second.stderr
    assert logged.returncode == 0, logged.stderr
    assert "has stopped" in stopped.stdout
    assert (Path(env["TIDELOG_STATE_DIR"]) / "syncd.log").read_text().count("process id alone") == 1
    assert status(env, root)["daemon"]["state"] == "stopped"


def test_after_a_kill_the_next_daemon_takes_over(env: dict[str, str], tmp_path: Path):  # faults: 80 83
    syncd(env, "start", "--root", str(tmp_path))
    os.kill(status(env, tmp_path)["daemon"]["pid"], signal.SIGKILL)
    wait_for(lambda: status(env, tmp_path)["daemon"]["state"] == "stopped", "the end of the first")

    again = syncd(env, "start", "--root", str(tmp_path))

    assert again.returncode == 0, again.stderr


def test_a_daemon_whose_lock_was_removed_says_so_and_leaves_the_place_to_the_next(
    env: dict[str, str], tmp_path: Path
):  # faults: 81
    first = foreground(env, tmp_path)
    wait_for(lambda: status(env, tmp_path)["daemon"]["pid"] == first.pid, "the first")

    (Path(env["TIDELOG_STATE_DIR"]) / "syncd.lock").unlink()
    second = foreground(env, tmp_path)
    _, said = first.communicate(timeout=DEADLINE_S)

    assert first.returncode == 1
    assert "syncd.lock, the lock of this syncd" in said
    wait_for(lambda: status(env, tmp_path)["daemon"]["pid"] == second.pid, "the second")
    assert syncd(env, "stop").returncode == 0
    second.communicate(timeout=DEADLINE_S)
    assert second.returncode == 0


def test_a_daemon_may_have_as_many_files_open_as_it_is_allowed_to(env: dict[str, str], tmp_path: Path):
    # faults: 43
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    daemon = foreground(
        env, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    )
    wait_for(lambda: status(env, tmp_path)["daemon"]["pid"] == daemon.pid, "the daemon")

    limits = Path(f"/proc/{daemon.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    assert line.split()[3] == line.split()[4]
    daemon.terminate()
    daemon.communicate(timeout=DEADLINE_S)


@pytest.mark.parametrize("moment", ["at once", "with its lock", "with its page"])
def test_a_daemon_that_is_stopped_while_it_starts_ends_and_the_next_one_starts(
    server: WandbServer, env: dict[str, str], tmp_path: Path, moment: str
):  # faults: 85
    finished_run(tmp_path / "runs")
    state = Path(env["TIDELOG_STATE_DIR"])
    sign = {
        "at once": state.parent,
        "with its lock": state / "syncd.lock",
        "with its page": state / "syncd.json",
    }

    daemon = foreground(env, tmp_path / "runs")
    wait_for(sign[moment].exists, f"the daemon to be stopped {moment}")
    daemon.terminate()
    daemon.communicate(timeout=DEADLINE_S)
    again = syncd(env, "start", "--root", str(tmp_path / "runs"))

    assert daemon.returncode in (0, -signal.SIGTERM)
    assert again.returncode == 0, again.stderr
    wait_for(lambda: server.runs() and server.runs()[0].complete, "the upload")
    assert server.run("ent", "demo", "run").replayed_lines <= 1


def test_a_daemon_that_is_stopped_in_the_middle_of_a_request_waits_for_its_answer_and_told_twice_for_none(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):  # faults: 84 85
    finished_run(tmp_path / "runs")
    server.faults.add("hang", kind="file_stream", hang_s=10 * DEADLINE_S)

    twice = foreground(env, tmp_path / "runs", "--linger=15")
    wait_for(lambda: server.faults.happened == 1, "a request")
    begin_s = time.monotonic()
    # A second one counts once the first was heard.
    while twice.poll() is None:
        twice.terminate()
        time.sleep(0.01)
    took_s = time.monotonic() - begin_s
    once = foreground(env, tmp_path / "runs", "--linger=15")
    wait_for(lambda: server.faults.happened == 2, "the next one's request")
    once.terminate()
    server.faults.clear()
    once.communicate(timeout=DEADLINE_S)

    assert took_s < 10.0
    assert once.returncode == 0
    run = server.run("ent", "demo", "run")
    assert (len(run.history), run.complete, run.replayed_lines) == (1, True, 0)


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


def test_sync_of_a_run_that_is_being_written_brings_all_but_its_open_row_and_says_so(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    piece = handmade_run(tmp_path / "runs")
    for x in range(4):
        piece.log(x=x, step=x)

    done = syncd(env, "sync", str(tmp_path / "runs"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "demo/run: it is still being written: its open row follows." in " ".join(done.stdout.split())
    assert [row["x"] for row in server.run("ent", "demo", "run").history] == [0, 1, 2]


def test_sync_of_a_run_that_is_being_written_fails_where_a_closed_row_could_not_be_brought(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    piece = handmade_run(tmp_path / "runs")
    for x in range(4):
        piece.log(x=x, step=x)
    server.faults.add("status", kind="file_stream", status=503)

    done = syncd(env, "sync", "--patience", "2", str(tmp_path / "runs"))

    assert done.returncode == 1
    assert "503" in done.stderr


def test_sync_beside_a_running_daemon_waits_for_it(server: WandbServer, env: dict[str, str], tmp_path: Path):
    # faults: 86
    finished_run(tmp_path / "runs")
    syncd(env, "start", "--root", str(tmp_path / "runs"))

    done = syncd(env, "sync", str(tmp_path / "runs"))

    assert done.returncode == 0, done.stderr
    assert [row["x"] for row in server.run("ent", "demo", "run").history] == [1]
    assert server.violations == []


def test_sync_of_a_copied_root_that_followed_the_link_to_the_latest_run(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    finished_run(tmp_path / "runs")
    (tmp_path / "runs" / "latest").symlink_to("demo/run")
    # As `scp -r` does it.
    shutil.copytree(tmp_path / "runs", tmp_path / "copied", symlinks=False)

    done = syncd(env, "sync", str(tmp_path / "copied"))

    assert (tmp_path / "copied" / "latest" / "run.json").is_file()
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.run("ent", "demo", "run").complete


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

    # Long enough for a busy machine to get one answer.
    done = syncd(env, "sync", "--patience", "4", str(tmp_path / "runs"))

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


def test_a_run_under_a_new_id_is_found_by_that_id(server: WandbServer, env: dict[str, str], tmp_path: Path):
    finished_run(tmp_path)
    (run_dir,) = (tmp_path / "demo").iterdir()
    root = ("--root", str(tmp_path))
    assert syncd(env, "retry", "demo/run", "--new-id", *root).returncode == 0
    assert syncd(env, "sync", str(run_dir)).returncode == 0
    (named,) = status(env, tmp_path)["runs"]

    verified = syncd(env, "verify", named["run"], *root)

    assert named["run"] != "demo/run"
    assert verified.returncode == 0, verified.stderr
    assert "all 1 rows are there" in verified.stdout


def test_sync_and_status_say_what_is_not_there_and_why(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    piece = handmade_run(tmp_path)
    # Not in the summary, which would be refused for it as well.
    piece.log("define_metric", name="odd", summary=["none"])
    piece.log(x=1, step=1)
    piece.log(odd="poison", step=2)
    piece.log(x=2, step=1)
    damaged = piece.log(x=3, step=3)
    piece.log(x=4, step=4)
    piece.log("exit", exitcode=0)
    piece.die()
    piece.overwrite(piece.segment.read_bytes().index(damaged) + 40, b"\x00")
    HandmadePiece(piece.identity, piece.piece, "files").log("file", path="gone", sha256="0" * 64, size=1)
    piece.stand_still()
    server.faults.add("status", kind="file_stream", status=422, containing="poison")

    synced = syncd(env, "sync", str(tmp_path))

    (run,) = status(env, tmp_path)["runs"]
    assert synced.returncode == 1
    assert (run["state"], run["backlog"], run["files_left"]) == ("synced", 0, 0)
    assert run["not_shown"] == {
        "step repeated or in the past": 1,
        "damaged or missing in the log": 1,
        "refused by the server (HTTP 422: injected 422)": 1,
        "file missing here": 1,
    }
    said = " ".join(synced.stdout.split())
    assert "1 not shown there: file missing here" in said
    assert "1 not shown there: damaged or missing in the log" in said


def test_verify_says_whether_all_is_there(server: WandbServer, env: dict[str, str], tmp_path: Path):
    finished_run(tmp_path)
    assert syncd(env, "sync", str(tmp_path)).returncode == 0

    good = syncd(env, "verify", "demo/run", "--json", "--root", str(tmp_path))
    with server.lock:
        run = server.run("ent", "demo", "run")
        run.lines[HISTORY][0] = run.lines[HISTORY][0].replace('"x":1', '"x":2')
        run._changes += 1
    bad = syncd(env, "verify", "demo/run", "--json", "--root", str(tmp_path))

    assert (good.returncode, bad.returncode) == (0, 1)
    assert json.loads(good.stdout)[0]["is_good"] is True
    assert json.loads(bad.stdout)[0]["counts"] == {"different": 1}


@pytest.mark.parametrize("arguments", [["--watch"], ["--watch", "--json"]])
def test_status_that_watches_writes_again_and_again_to_what_is_no_terminal(
    env: dict[str, str], tmp_path: Path, arguments: list[str]
):
    finished_run(tmp_path / "runs")
    command = [sys.executable, "-m", "syncd", "status", *arguments, "--root", str(tmp_path / "runs")]

    with subprocess.Popen(command, env=env, cwd=env["HOME"], stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        seen: list[str] = []
        while len(seen) < 2:
            line = watching.stdout.readline()
            assert line
            seen += [line] if "demo/run" in line and "waiting" in line else []
        watching.send_signal(signal.SIGINT)
        code = watching.wait(timeout=20)

    assert code == 0
    if "--json" in arguments:
        assert [json.loads(line)["runs"][0]["run"] for line in seen] == ["demo/run"] * 2


def test_a_list_of_roots_that_cannot_be_read_is_said_and_makes_status_end_with_1(
    env: dict[str, str], tmp_path: Path
):
    finished_run(tmp_path / "runs")
    roots_file = Path(env["TIDELOG_STATE_DIR"]) / "roots.json"
    roots_file.parent.mkdir(parents=True)
    roots_file.write_text("")

    shown, as_json = syncd(env, "status"), syncd(env, "status", "--json")
    with_a_root = syncd(env, "status", "--root", str(tmp_path / "runs"))

    assert (shown.returncode, as_json.returncode, with_a_root.returncode) == (1, 1, 0)
    assert str(roots_file) in json.loads(as_json.stdout)["error"]
    assert "cannot be read" in " ".join(shown.stdout.split())
    assert "cannot be read" not in " ".join(with_a_root.stdout.split())


def test_a_run_below_another_root_than_the_daemons_waits_in_status(env: dict[str, str], tmp_path: Path):
    (tmp_path / "other").mkdir()
    finished_run(tmp_path / "runs")
    page = Path(env["TIDELOG_STATE_DIR"]) / "syncd.json"
    with foreground(env, tmp_path / "other") as daemon:
        wait_for(page.exists, "the daemon")
        told = json.loads(page.read_bytes())
        page.write_bytes(
            json.dumps({**told, "has_chosen_roots": True, "roots": [str(tmp_path / "other")]}).encode()
        )

        (run,) = status(env, tmp_path / "runs")["runs"]
        page.write_bytes(
            json.dumps({**told, "has_chosen_roots": True, "roots": [str(tmp_path / "runs")]}).encode()
        )
        (watched,) = status(env, tmp_path / "runs")["runs"]
        daemon.terminate()

    assert run["state"] == "waiting"
    assert "was started for other roots" in run["error"]
    assert watched["error"] is None


# -- retry ---------------------------------------------------------------------------------------------------------


DEAF = """
from syncd import cli, watch
watch.Watch.look_after = lambda self, roots: False
cli.main()
"""


@pytest.mark.parametrize("missing", ["nothing", "socket", "inotify"])
def test_a_daemon_takes_up_at_once_what_is_retried(
    server: WandbServer, env: dict[str, str], tmp_path: Path, missing: str
):
    finished_run(tmp_path / "runs")
    server.faults.add("status", kind="file_stream", run="run", status=403)
    module = ("-c", DEAF) if missing == "inotify" else ("-m", "syncd")
    command = [sys.executable, *module, "start", "--foreground", f"--root={tmp_path / 'runs'}"]
    daemon = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    wait_for(lambda: status(env, tmp_path / "runs")["runs"][0]["state"] == "parked", "the run to be parked")
    server.faults.clear()
    if missing == "socket":
        (Path(env["TIDELOG_STATE_DIR"]) / "syncd.sock").unlink()

    retried = syncd(env, "retry", "demo/run", f"--root={tmp_path / 'runs'}")
    wait_for(lambda: server.run("ent", "demo", "run").complete, "the upload", 10.0)

    assert (retried.returncode, retried.stdout) == (0, "")
    assert [path.name for path in (tmp_path / "runs" / "demo" / "run").glob(".*")] == []
    daemon.terminate()
    daemon.communicate(timeout=DEADLINE_S)


@pytest.mark.parametrize("options", [[], ["--append"], ["--new-id"]])
def test_a_run_that_waits_for_its_next_try_can_be_retried_beside_the_daemon_that_has_it(
    server: WandbServer, env: dict[str, str], tmp_path: Path, options: list[str]
):
    finished_run(tmp_path / "runs")
    server.faults.add("status", kind="file_stream", run="run", status=500)
    daemon = foreground(env, tmp_path / "runs")
    wait_for(lambda: status(env, tmp_path / "runs")["runs"][0]["error"], "the daemon to wait with the run")
    # So often that its next try is not at once.
    wait_for(lambda: server.faults.happened >= 3, "some tries")

    retried = syncd(env, "retry", "demo/run", *options, f"--root={tmp_path / 'runs'}")
    server.faults.clear()
    # Behind another log's rows it goes once these stood still for ten seconds.
    wait_for(lambda: any(run.complete for run in server.runs()), "the upload", 30.0)

    assert retried.returncode == 0, retried.stderr
    (there,) = (run for run in server.runs() if run.complete)
    assert [row["x"] for row in there.history] == [1]
    assert (there.run_id == "run") == ("--new-id" not in options)
    daemon.terminate()
    daemon.communicate(timeout=DEADLINE_S)


def test_a_run_whose_root_the_daemon_does_not_watch_is_not_taken_up_by_a_retry(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    finished_run(tmp_path / "elsewhere")
    server.faults.add("status", kind="file_stream", run="run", status=403)
    syncd(env, "sync", str(tmp_path / "elsewhere"))
    syncd(env, "start", f"--root={tmp_path / 'runs'}")

    retried = syncd(env, "retry", "demo/run", f"--root={tmp_path / 'elsewhere'}")

    assert retried.returncode == 0, retried.stderr
    assert "does not watch this run's root: `syncd sync " in retried.stdout


def test_a_run_that_stands_still_for_another_reason_is_not_ended_by_anybodys_word(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    finished_run(tmp_path)
    server.faults.add("status", kind="file_stream", run="run", status=403)
    syncd(env, "sync", str(tmp_path))

    ended = syncd(env, "retry", "demo/run", "--ended", f"--root={tmp_path}")

    assert ended.returncode == 1
    assert "HTTP 403: injected 403" in ended.stderr
    assert "without --ended" in ended.stderr
    assert not list((tmp_path / "demo" / "run" / "sync").glob("ended.*"))


# -- what may be wrong with what is given --------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["retry"], ["retry", "--new-id"], ["verify"]])
def test_a_run_with_a_damaged_identity_is_a_sentence(env: dict[str, str], tmp_path: Path, command: list[str]):
    finished_run(tmp_path)
    (tmp_path / "demo" / "run" / "run.json").write_text("{}")

    said = syncd(env, *command, str(tmp_path / "demo" / "run"))

    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert "restore the file from a copy" in said.stderr
    assert not (tmp_path / "demo" / "run" / "sync").exists()


@pytest.mark.parametrize("options", [[], ["--foreground"]])
@pytest.mark.parametrize("place", ["a file", "in no directory that can be made"])
def test_a_state_directory_that_cannot_be_is_a_sentence(
    env: dict[str, str], tmp_path: Path, place: str, options: list[str]
):
    (tmp_path / "file").touch()
    state = tmp_path / "file" if place == "a file" else Path("/proc/nowhere")

    started = syncd({**env, "TIDELOG_STATE_DIR": str(state)}, "start", *options)
    stopped = syncd({**env, "TIDELOG_STATE_DIR": str(state)}, "stop")

    assert started.returncode == 1
    assert "Traceback" not in started.stderr
    assert "Set TIDELOG_STATE_DIR to a directory" in started.stderr
    assert (stopped.returncode, stopped.stdout) == (0, "syncd is not running.\n")


def test_a_root_that_no_file_system_can_have_is_passed_over(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    finished_run(tmp_path / "runs")
    state = Path(env["TIDELOG_STATE_DIR"])
    state.mkdir(parents=True)
    (state / "roots.json").write_text(json.dumps(["/a\0b", str(tmp_path / "runs")]))

    started = syncd(env, "start")
    wait_for(lambda: server.runs() and server.runs()[0].complete, "the upload")

    assert started.returncode == 0
    assert syncd(env, "status").returncode == 0


def test_start_says_what_is_watched_and_what_is_not_there(env: dict[str, str], tmp_path: Path):
    started = syncd(env, "start", f"--root={tmp_path}", f"--root={tmp_path / 'typo'}")
    page = json.loads((Path(env["TIDELOG_STATE_DIR"]) / "syncd.json").read_text())
    second = syncd(env, "start", f"--root={tmp_path / 'other'}")
    syncd(env, "stop")
    syncd(env, "start")
    third = syncd(env, "start")

    assert started.returncode == 0
    assert f"--root '{tmp_path / 'typo'}' is not there. It is watched as soon as it is." in started.stderr
    assert page["roots"] == [str(tmp_path), str(tmp_path / "typo")]
    assert (second.returncode, third.returncode) == (3, 3)
    assert (
        f"It watches '{tmp_path}' and '{tmp_path / 'typo'}', and no other root; `syncd status`"
        in second.stderr
    )
    assert "It watches every root that a run was logged to;" in third.stderr


def test_a_root_that_is_new_comes_onto_the_page(env: dict[str, str], tmp_path: Path):
    state = Path(env["TIDELOG_STATE_DIR"])
    syncd(env, "start")

    (state / "roots.json").write_text(json.dumps([str(tmp_path)]))

    def roots() -> list[str]:
        found: list[str] = json.loads((state / "syncd.json").read_text())["roots"]
        return found

    assert roots() == []
    wait_for(lambda: roots() == [str(tmp_path)], "the page")


def test_start_shows_only_what_its_own_daemon_said_where_that_does_not_start(
    env: dict[str, str], tmp_path: Path
):
    syncd(env, "start", f"--root={tmp_path}")
    syncd(env, "stop")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import os, sys\nif '--foreground' in sys.orig_argv: os._exit(7)\n"
    )

    failed = syncd({**env, "PYTHONPATH": f"{broken}:{REPOSITORY}"}, "start", f"--root={tmp_path}")

    assert failed.returncode == 1
    assert "could not write why" in failed.stderr
    assert "`syncd start --foreground` shows it" in failed.stderr


def test_start_from_a_directory_with_a_module_of_pythons_name_starts(env: dict[str, str], tmp_path: Path):
    # The command `syncd` itself does not look there.
    (tmp_path / "queue.py").write_text("raise SystemExit('mine')\n")
    starting = [
        sys.executable,
        "-c",
        "import sys; sys.path.pop(0); from syncd.cli import main; main()",
        "start",
    ]

    started = subprocess.run(starting, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert started.returncode == 0, started.stderr


def test_a_copy_that_is_retried_is_told_the_way_out_and_stays_where_it_is(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    finished_run(tmp_path / "runs")
    copy = shutil.copytree(tmp_path / "runs" / "demo" / "run", tmp_path / "runs" / "demo" / "z-backup")
    syncd(env, "sync", str(tmp_path / "runs"))

    retried = syncd(env, "retry", str(copy))

    states = {run["state"] for run in status(env, tmp_path / "runs")["runs"]}
    assert retried.returncode == 1
    assert "--new-id" in retried.stderr
    assert states == {"synced", "parked"}
