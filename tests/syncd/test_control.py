"""The daemon's socket, asked as other programs ask it."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from syncd import control
from syncd.control import SOCKET, Control
from tests.syncd.test_cli import env, finished_run, server, status, syncd
from tests.wandb_server import WandbServer
from tests.wandb_server.waiting import wait_for

__all__ = ["env", "server"]


def asking(env: dict[str, str]) -> httpx.Client:
    path = Path(env["TIDELOG_STATE_DIR"]) / SOCKET
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://syncd", timeout=30)


def test_the_daemon_says_how_it_is_and_stops_when_it_is_told(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    root = tmp_path / "runs"
    finished_run(root)
    syncd(env, "start", "--root", str(root))
    wait_for(lambda: status(env, root)["runs"][0]["state"] == "synced", "the upload")

    with asking(env) as client:
        said, numbers = client.get("/status"), client.get("/metrics")
        unknown = client.get("/secrets")
        mode = os.stat(Path(env["TIDELOG_STATE_DIR"]) / SOCKET).st_mode
        stopping = client.post("/stop")
    wait_for(lambda: status(env, root)["daemon"]["state"] == "stopped", "the end")

    assert said.json()["runs"] == status(env, root)["runs"]
    assert said.json()["daemon"]["state"] == "online"
    lines = numbers.text.splitlines()
    assert numbers.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert {
        'tidelog_syncd_runs{state="synced"} 1',
        "tidelog_syncd_acked_records 3",
        "tidelog_syncd_online 1",
    } <= {*lines}
    counted = dict(line.split() for line in lines if line.startswith("tidelog_syncd_") and "{" not in line)
    assert int(counted["tidelog_syncd_requests_total"]) >= 3
    assert int(counted["tidelog_syncd_sent_bytes_total"]) > 100
    assert (unknown.status_code, stopping.status_code) == (404, 202)
    assert "GET /metrics" in unknown.json()["there_are"]
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert not (Path(env["TIDELOG_STATE_DIR"]) / SOCKET).exists()


def test_what_a_killed_daemon_left_is_taken_over(env: dict[str, str], tmp_path: Path):
    syncd(env, "start", "--root", str(tmp_path))
    os.kill(status(env, tmp_path)["daemon"]["pid"], 9)
    wait_for(lambda: status(env, tmp_path)["daemon"]["state"] == "stopped", "the end of the first")
    assert (Path(env["TIDELOG_STATE_DIR"]) / SOCKET).exists()

    syncd(env, "start", "--root", str(tmp_path))

    with asking(env) as client:
        assert client.get("/status").json()["daemon"]["pid"] == status(env, tmp_path)["daemon"]["pid"]


ASK_AS = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
asking = socket.socket(socket.AF_UNIX)
asking.connect(sys.argv[1])
asking.sendall(b"POST /stop HTTP/1.1\\r\\nHost: syncd\\r\\n\\r\\n")
print(asking.recv(100))
"""


def ask_as(uid: int, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ASK_AS, str(path), str(uid)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_nobody_else_is_answered_even_where_the_file_lets_them_in():
    # Where another user may go; pytest's directories are this user's own.
    path = Path("/tmp") / f"tidelog-control-{os.getpid()}.sock"
    stopped = []

    async def play() -> tuple[subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
        async with Control(path, lambda: ({}, []), {"stop": lambda: stopped.append(1)}):
            kept_out = await asyncio.to_thread(ask_as, 65534, path)
            path.chmod(0o777)
            return kept_out, await asyncio.to_thread(ask_as, 65534, path)

    kept_out, let_in = asyncio.run(play())

    assert "PermissionError" in kept_out.stderr
    # Closed without a word: how that shows depends on how far the question had come.
    assert let_in.stdout in ("", "b''\n")
    assert "PermissionError" not in let_in.stderr
    assert stopped == []


def test_a_path_that_is_too_long_costs_the_socket_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async def enter() -> None:
        async with Control(tmp_path / ("x" * 200), lambda: ({}, []), {}):
            pass

    asyncio.run(enter())

    assert "TIDELOG_STATE_DIR chooses another" in caplog.text


@pytest.mark.parametrize(
    "question", [b"", b"GET /status HTTP/1.1\r\n", b"nonsense\r\n\r\n", b"GET /" + b"x" * 100_000]
)
def test_a_question_without_an_end_or_a_sense_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, question: bytes
):
    monkeypatch.setattr(control, "_ASKING_S", 0.2)
    path = tmp_path / "s"

    def ask() -> tuple[bytes, int]:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(path))
            try:
                asking.sendall(question)
                answer = asking.recv(10)
            except OSError:
                answer = b""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            return answer, client.get("http://syncd/status").status_code

    async def play() -> tuple[bytes, int]:
        async with Control(path, lambda: ({}, []), {}):
            return await asyncio.to_thread(ask)

    assert asyncio.run(play()) == (b"", 200)
