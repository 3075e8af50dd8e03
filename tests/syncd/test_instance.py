"""One daemon for a user and host: who it is, whether it runs, and that no stranger is taken for it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from syncd.instance import UNKNOWN, Holder, Instance
from tests.syncd.test_cli import DEADLINE_S, env, finished_run, foreground, server, status, syncd
from tests.wandb_server import WandbServer
from tests.wandb_server.waiting import wait_for

__all__ = ["env", "server"]

IN_A_CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True, check=False).returncode == 0


def state_of(env: dict[str, str]) -> Path:
    directory = Path(env["TIDELOG_STATE_DIR"])
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def held_by(env: dict[str, str], **text: object) -> int:
    """Hold the daemon's lock as the process that `text` says."""
    fd = os.open(state_of(env) / "syncd.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, json.dumps(text).encode())
    return fd


# The first process of a container, which a `stop` in there must not take for the daemon.
TRAINING = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: print("the training was signalled", flush=True))
stopped = subprocess.run([sys.executable, "-m", "syncd", "stop"], capture_output=True, text=True)
print(stopped.returncode, stopped.stdout, stopped.stderr)
"""


@pytest.mark.skipif(not may_unshare(), reason="needs PID namespaces")
@pytest.mark.parametrize("socket", ["answers", "is gone"])
def test_stop_in_another_container_stops_the_daemon_or_says_where_it_runs_and_signals_nobody(
    env: dict[str, str], tmp_path: Path, socket: str
):
    command = [*IN_A_CONTAINER, sys.executable, "-m", "syncd", "start", "--foreground", f"--root={tmp_path}"]
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as daemon:
        try:
            wait_for((state_of(env) / "syncd.json").exists, "the daemon")
            if socket == "is gone":
                (state_of(env) / "syncd.sock").unlink()

            training = subprocess.run(
                [*IN_A_CONTAINER, sys.executable, "-c", TRAINING],
                env=env,
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                check=False,
            )

            assert "was signalled" not in training.stdout
            assert "kill -9" not in training.stdout
            assert "process 1 of another container on this machine" in training.stdout
            if socket == "answers":
                assert training.stdout.startswith("0 syncd (process 1 of another container")
                daemon.wait(DEADLINE_S)
            else:
                assert "Run `syncd stop` there." in training.stdout
                assert daemon.poll() is None
        finally:
            daemon.kill()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"host": "node7", "boot_id": "another"}, "on 'node7'), and cannot be reached from here. Run `syncd stop` there."),
        ({"host": "here", "pid_namespace": 1}, "of another container on this machine"),
    ],
)  # fmt: skip
def test_a_process_of_another_host_or_container_is_never_signalled(
    env: dict[str, str], text: dict[str, object], said: str
):
    here = Holder.this_process()
    # A process that can be signalled, and would end of it.
    with subprocess.Popen(["sleep", "600"]) as stranger:
        fd = held_by(env, **{"boot_id": here.boot_id, "pid_namespace": here.pid_namespace, **text, "pid": stranger.pid})  # fmt: skip
        try:
            stopped = syncd(env, "stop")

            assert (stopped.returncode, stranger.poll()) == (1, None)
            assert said in stopped.stderr
        finally:
            os.close(fd)
            stranger.kill()


def test_a_daemon_without_a_socket_is_stopped_by_a_signal(env: dict[str, str], tmp_path: Path):
    daemon = foreground(env, tmp_path)
    wait_for(lambda: status(env, tmp_path)["daemon"]["state"] == "online", "the daemon")
    (state_of(env) / "syncd.sock").unlink()

    stopped = syncd(env, "stop")

    daemon.communicate(timeout=DEADLINE_S)
    assert (stopped.returncode, daemon.returncode) == (0, 0)
    assert stopped.stdout == f"syncd (process {daemon.pid}) has stopped.\n"


# -- its place -----------------------------------------------------------------------------------------------------


def test_a_lock_that_cannot_be_looked_at_for_a_moment_was_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    instance = Instance(tmp_path)
    instance.acquire()
    fails = OSError(errno.EACCES, "Permission denied")

    def stat(*_: object, **__: object) -> os.stat_result:
        raise fails

    with monkeypatch.context() as away:
        away.setattr(os, "stat", stat)
        assert instance.lost() is None
        fails = OSError(errno.ESTALE, "Stale file handle")
        assert instance.lost() is None

    assert instance.lost() is None
    (tmp_path / "syncd.lock").unlink()
    assert "was removed or replaced" in (instance.lost() or "")
    (tmp_path / "syncd.lock").touch()
    assert "was removed or replaced" in (instance.lost() or "")


def test_a_full_disk_costs_the_locks_text_and_not_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "syncd.lock").write_text('{"pid": 1234567, "host": "of an earlier daemon"}')
    instance = Instance(tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        instance.acquire()

    assert instance.holder() == Holder()
    assert instance.page()["state"] == UNKNOWN
    assert str(instance.holder()) == "process unknown"


def may_mount(at: Path) -> bool:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(at)], capture_output=True, check=False)  # fmt: skip
    return mounted.returncode == 0


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 512)


def test_start_on_a_full_disk_sees_that_it_runs_and_status_shows_it(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):  # faults: 62
    state = state_of(env)
    if not may_mount(state):
        pytest.skip("needs a file system of its own")
    try:
        fill(state / "fill")
        finished_run(tmp_path / "runs")

        started = syncd(env, "start", f"--root={tmp_path / 'runs'}")
        wait_for(lambda: server.runs() and server.runs()[0].complete, "the upload")
        shown = syncd(env, "status", f"--root={tmp_path / 'runs'}")
        stopped = syncd(env, "stop")

        assert started.returncode == 0, started.stderr
        assert started.stdout.startswith("syncd is running (process ")
        assert shown.stdout.startswith("syncd: unknown")
        assert "it has not written how it is" in " ".join(shown.stdout.split())
        assert stopped.stdout == "syncd (process unknown) has stopped.\n"
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)


def test_a_daemon_that_lost_its_place_leaves_the_next_ones_socket(env: dict[str, str], tmp_path: Path):
    first = foreground(env, tmp_path)
    wait_for(lambda: status(env, tmp_path)["daemon"]["state"] == "online", "the first")
    (state_of(env) / "syncd.lock").unlink()
    second = foreground(env, tmp_path)

    first.communicate(timeout=DEADLINE_S)
    wait_for(lambda: status(env, tmp_path)["daemon"]["pid"] == second.pid, "the second")
    wait_for(lambda: status(env, tmp_path)["daemon"]["state"] == "online", "its page")

    assert (state_of(env) / "syncd.sock").exists()
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=DEADLINE_S)
    assert not (state_of(env) / "syncd.sock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_state_directory_of_another_user_is_not_taken_for_one_without_a_daemon(
    monkeypatch: pytest.MonkeyPatch,
):
    from click.testing import CliRunner

    from syncd.cli import main

    # Where another user may go; pytest's directories are this user's own.
    directory = Path("/tmp") / f"tidelog-instance-{os.getpid()}"
    directory.mkdir(mode=0o755)
    (directory / "syncd.lock").touch(mode=0o600)
    monkeypatch.setenv("TIDELOG_STATE_DIR", str(directory))
    try:
        os.seteuid(65534)
        stopped = CliRunner().invoke(main, ["stop"])
        started = CliRunner().invoke(main, ["start"])
        page = Instance(directory).page()
    finally:
        os.seteuid(0)
        shutil.rmtree(directory)

    assert (stopped.exit_code, started.exit_code) == (1, 1)
    assert "belongs to another user" in stopped.output
    assert "belongs to another user" in started.output
    assert page["state"] == UNKNOWN
