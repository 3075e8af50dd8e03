"""The API key is seen by the server that it is for, in the header that it belongs in, and by nothing and nobody else.

trainer ──▶ log ──▶ syncd ──▶ Front (repeats the key in every error) ──▶ WandbServer
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.wandb_server import WandbServer, wait_for

REPOSITORY = Path(__file__).parents[2]
KEY = "canary/+" + "c4n4ry" * 6
BASIC = base64.b64encode(f"api:{KEY}".encode()).decode()
FORMS = [KEY, BASIC, quote(KEY, safe=""), quote(KEY), base64.b64encode(KEY.encode()).decode()]

TRAINER = """
import os, sys, eventlog
key = sys.stdin.read()
config = {"lr": 0.1, "environ": dict(os.environ), "WANDB_API_KEY": key, "wandb": {"api_key": key}}
with eventlog.init(project="demo", id="run", config=config) as run:
    run.log({"x": 1})
"""


class Front(ThreadingHTTPServer):
    """What stands before the server: it forwards, or fails in a way and tells the key to whoever reads it."""

    daemon_threads = True

    def __init__(self, behind: int) -> None:
        super().__init__(("127.0.0.1", 0), _Front)
        self.behind = behind
        self.way = "forward"
        self.failed: set[str] = set()
        self.seen: list[str] = []
        """Everything that came, but the `Authorization` header."""
        self.keys: set[tuple[str, str | None]] = set()
        """Each method, and what stood in that header."""

    def answer(self, way: str) -> tuple[int, bytes, str]:
        message = f"denied: {KEY} {BASIC} {quote(KEY, safe='')}"
        body = json.dumps({"error": message, "errors": [{"message": message}]}).encode()
        if way == "portal":
            return 200, f"<html>{message}</html>".encode(), "text/html"
        return (200 if way == "graphql" else int(way)), body, "application/json"


class _Front(BaseHTTPRequestHandler):
    server: Front

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        front, way = self.server, self.server.way
        authorization = self.headers["Authorization"]
        del self.headers["Authorization"]
        front.keys.add((self.command, authorization))
        front.seen.append(f"{self.path} {self.headers} {body!r}")
        if way == "forward":
            there = http.client.HTTPConnection("127.0.0.1", front.behind)
            login = {} if authorization is None else {"Authorization": authorization}
            there.request(self.command, self.path, body, {**self.headers, **login})
            response = there.getresponse()
            status, content, kind = response.status, response.read(), "application/json"
        else:
            front.failed.add(way)
            status, content, kind = front.answer("500" if way == "truncated" else way)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) + (100 if way == "truncated" else 0)))
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        if way != "forward":
            self.send_header("X-Denied", KEY)
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_POST

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer(entity="ent", api_key=KEY) as running:
        yield running


@pytest.fixture
def front(server: WandbServer) -> Iterator[Front]:
    with Front(server.port) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def put_key(place: str, env: dict[str, str], host: str) -> Path | None:
    """Leave the key in one place; return the file that may hold it."""
    home = Path(env["HOME"])
    if place == "environment":
        env["WANDB_API_KEY"] = KEY
        return None
    path, text = {
        ".env": (home / ".env", f"export WANDB_API_KEY='{KEY}' # the key\n"),
        "netrc": (Path(env["NETRC"]), f"machine {host}\n  login user\n  password {KEY}\n"),
        "settings": (Path(env["WANDB_CONFIG_DIR"]) / "settings", f"[default]\napi_key = {KEY}\n"),
    }[place]
    path.write_text(text)
    return path


@pytest.mark.parametrize("place", ["environment", ".env", "netrc", "settings"])
def test_the_key_is_nowhere_but_where_it_belongs(  # faults: 71 96
    server: WandbServer, front: Front, tmp_path: Path, place: str
):
    home = tmp_path / "home"
    host = f"127.0.0.1:{front.server_port}"
    env = {
        **os.environ,
        **server.env(home),
        "WANDB_BASE_URL": f"http://{host}",
        "HOME": str(home),
        "TIDELOG_STATE_DIR": str(home / "state"),
        "EVENTLOG_ROOT": str(tmp_path / "runs"),
        "PYTHONPATH": str(REPOSITORY),
    }
    del env["WANDB_API_KEY"]
    holder = put_key(place, env, host)
    said: list[str] = []

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, env=env, cwd=home, input=KEY, capture_output=True, text=True, timeout=60, check=False
        )
        said.append(f"{arguments} {done.stdout} {done.stderr}")
        return done

    def status() -> dict[str, Any]:
        run("-m", "syncd", "status")
        shown: dict[str, Any] = json.loads(run("-m", "syncd", "status", "--json").stdout)
        pid = shown["daemon"].get("pid")
        if pid is not None:
            said.append(Path(f"/proc/{pid}/cmdline").read_text())
        return shown

    def shows(what: str) -> bool:
        return re.search(what, json.dumps(status(), ensure_ascii=False)) is not None

    run("-c", TRAINER)
    front.way = "500"
    run("-m", "syncd", "start")
    try:
        wait_for(lambda: shows("HTTP 500: denied"), "the server's own words")
        for way, shown in (
            ("graphql", r"HTTP 500: \w+: denied"),
            ("portal", "captive portal"),
            ("truncated", "hung up"),
            ("401", "refused the API key"),
            ("403", "parked"),
        ):
            front.way = way
            wait_for(lambda shown=shown: shows(shown), f"{way} to be shown")  # type: ignore[misc]
    finally:
        run("-m", "syncd", "stop")
    retried = run("-m", "syncd", "retry", "demo/run")
    front.way = "401"
    refused = [run("-m", "syncd", command, *run_) for command, *run_ in (["sync"], ["verify", "demo/run"])]
    front.way = "forward"
    synced = run("-m", "syncd", "sync")
    # W&B's SDK takes no key with such letters, and says so.
    run("-m", "syncd", "verify", "demo/run")

    assert (retried.returncode, synced.returncode) == (0, 0), synced.stderr
    assert [done.returncode for done in refused] == [1, 1]
    assert front.failed == {"500", "graphql", "portal", "truncated", "401", "403"}
    assert front.keys == {("POST", f"Basic {BASIC}"), ("PUT", None)}
    stored = server.run("ent", "demo", "run")
    outputs = {
        "what was said": "\n".join(said),
        "what was sent": "\n".join(front.seen),
        "what is stored there": repr(stored),
        **{
            str(path): path.read_bytes().decode(errors="replace") + str(path)
            for path in tmp_path.rglob("*")
            if path.is_file() and path != holder
        },
    }
    assert any(path.endswith("syncd.log") for path in outputs)
    assert any(path.endswith(".jsonl") for path in outputs)
    assert "denied: …" in outputs["what was said"]
    assert [where for where, text in outputs.items() if any(form in text for form in FORMS)] == []
