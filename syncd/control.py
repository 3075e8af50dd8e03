"""What other programs ask of the daemon: how it is, in JSON and in Prometheus' text, and to do something now.

    curl --unix-socket ~/.local/state/tidelog/syncd.sock http://syncd/metrics

    GET  /status     what `syncd status --json` prints
    GET  /metrics    the same in numbers (Prometheus text format 0.0.4), for node_exporter's textfile collector or a proxy
    POST /stop       what `syncd stop` does
    POST /look?run=DIR       look at this run now
    POST /let-go?run=DIR     hold this run no longer, so that what is to become of it can be changed; then, /look

Invariants
----------
* It is a Unix socket of mode 0600, and who is at the other end is asked of the kernel: nobody but this user and root is
  answered.
* Nothing that is asked here waits for the network, or makes uploads wait: logs are read in a thread, one look at a time.
* The key is not known here.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import h11
import orjson

from syncd.status import RunStatus, as_json

log = logging.getLogger("syncd")

SOCKET = "syncd.sock"
# Whoever asks says so at once; none of the questions has a body.
_ASKING_S = 10.0
_REQUEST_MAX_BYTES = 16 * 1024
_JSON = "application/json"
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
# struct ucred of unix(7): pid, uid, gid.
_UCRED = struct.Struct("3i")
# sockaddr_un has room for so many bytes, the last of them NUL.
_PATH_MAX_BYTES = 107

Look = Callable[[], tuple[dict[str, Any], list[RunStatus]]]
"""Returns the daemon's page, and the runs; called in a thread."""


@dataclass
class Control:
    """The socket, open while this is entered."""

    path: Path
    look: Look
    do: dict[str, Callable[[], object]]
    """What `POST /<name>` does."""
    do_with_run: dict[str, Callable[[Path], bool]] = field(default_factory=dict)
    """What `POST /<name>?run=DIR` does; False is answered with 409."""
    sent: Callable[[], tuple[int, int]] = lambda: (0, 0)
    """Returns how many requests were made, and how many bytes they took."""
    _server: asyncio.Server | None = None
    _bound: os.stat_result | None = None
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def __aenter__(self) -> Control:
        try:
            listening = _bound(self.path)
            self._bound = os.stat(self.path)
            self._server = await asyncio.start_unix_server(self._answer, sock=listening)
        except OSError as error:
            # Uploads need nothing of it.
            log.warning("%s is not listened on: %s", self.path, error)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            with suppress(OSError):
                # Where this daemon lost its place, the next one's socket lies there.
                if self._bound is not None and os.path.samestat(self._bound, os.stat(self.path)):
                    self.path.unlink()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if may_ask(writer.get_extra_info("socket")):
                method, path = await asyncio.wait_for(_asked(reader), _ASKING_S)
                writer.write(_response(*await self._said(method, path)))
                await asyncio.wait_for(writer.drain(), _ASKING_S)
        except (OSError, EOFError, asyncio.TimeoutError, h11.RemoteProtocolError):
            # Who asks so, or goes away, gets no answer.
            return
        finally:
            writer.close()

    async def _said(self, method: str, path: str) -> tuple[int, str, bytes]:
        """Return the status, the content's type, and the content."""
        name, _, query = path.partition("?")
        name = name.strip("/")
        run = parse_qs(query, errors="surrogateescape").get("run", [""])[0]
        if method == "POST" and name in self.do_with_run and run:
            does = self.do_with_run[name](Path(run))
            return 202 if does else 409, _JSON, orjson.dumps({"does" if does else "does_not": name})
        if method == "POST" and name in self.do:
            self.do[name]()
            return 202, _JSON, orjson.dumps({"does": name})
        if method != "GET" or name not in ("status", "metrics"):
            known = ["GET /status", "GET /metrics", *(f"POST /{each}" for each in self.do)]
            known += [f"POST /{each}?run=DIR" for each in self.do_with_run]
            return 404, _JSON, orjson.dumps({"error": f"there is no {method} {path}", "there_are": known})
        async with self._looking:
            daemon, runs = await asyncio.to_thread(self.look)
        if name == "status":
            return 200, _JSON, orjson.dumps(as_json(daemon, runs))
        return 200, _PROMETHEUS, metrics(daemon, runs, *self.sent()).encode()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("syncd", timeout=_ASKING_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


def ask(path: Path, name: str, run_dir: Path | None = None) -> bool | None:
    """Ask the daemon at that socket to do something: return whether it does, or None if no daemon answers."""
    connection = _Connection(path)
    try:
        # A path is bytes.
        query = "" if run_dir is None else f"?run={quote(os.fsencode(run_dir))}"
        connection.request("POST", f"/{name}{query}")
        return connection.getresponse().status == 202
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def listening_pid(path: Path) -> int | None:
    """Return which process listens at that socket; None if nobody does, or the kernel does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking, suppress(OSError):
        asking.settimeout(_ASKING_S)
        asking.connect(os.fspath(path))
        pid, _, _ = _UCRED.unpack(asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return int(pid)
    return None


def may_ask(connection: socket.socket) -> bool:
    """Whether the process at the other end is this user's, or root's; where the kernel does not tell, the file's mode counts."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid in (os.geteuid(), 0)


def metrics(daemon: dict[str, Any], runs: Sequence[RunStatus], requests: int = 0, sent_bytes: int = 0) -> str:
    """Return the text that Prometheus reads.

    >>> print(metrics({"state": "online"}, []).splitlines()[2])
    tidelog_syncd_online 1
    """
    states = Counter(run.state for run in runs)
    not_shown = Counter[str]()
    for run in runs:
        not_shown.update(run.not_shown)
    waits_s = max((run.lag_s for run in runs if run.backlog), default=0.0)
    found = (
        ("online", "gauge", "1 if W&B can be reached", [("", int(daemon.get("state") == "online"))]),
        (
            "runs",
            "gauge",
            "Runs by state",
            [(_label("state", state), n) for state, n in sorted(states.items())],
        ),
        ("requests_total", "counter", "Requests since the daemon began", [("", requests)]),
        ("sent_bytes_total", "counter", "What their bodies had", [("", sent_bytes)]),
        ("records", "gauge", "Events of all runs' histories", [("", sum(run.records for run in runs))]),
        ("acked_records", "gauge", "Those that W&B has acknowledged", [("", sum(run.acked for run in runs))]),
        ("backlog_records", "gauge", "Those that it has not", [("", sum(run.backlog for run in runs))]),
        ("lag_seconds", "gauge", "Age of the oldest record that W&B has not", [("", waits_s)]),
        (
            "files_left",
            "gauge",
            "Files and artifacts still to be uploaded",
            [("", sum(run.files_left for run in runs))],
        ),
        (
            "not_shown_records",
            "gauge",
            "Records that stay here, by reason",
            [(_label("reason", reason), n) for reason, n in sorted(not_shown.items())],
        ),
    )
    lines = []
    for name, kind, what, values in found:
        lines += [f"# HELP tidelog_syncd_{name} {what}", f"# TYPE tidelog_syncd_{name} {kind}"]
        lines += [f"tidelog_syncd_{name}{label} {value}" for label, value in values]
    return "\n".join(lines) + "\n"


def _label(name: str, value: str) -> str:
    r"""
    >>> print(_label("reason", 'two\nlines of "it"'))
    {reason="two\nlines of \"it\""}
    """
    escaped = value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    return f'{{{name}="{escaped}"}}'


def _bound(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _PATH_MAX_BYTES:
        raise OSError(f"its path has more than {_PATH_MAX_BYTES} bytes; TIDELOG_STATE_DIR chooses another")
    # Whoever holds the instance's lock is the only one to listen: what lies there was left by one that was killed.
    with suppress(FileNotFoundError):
        path.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listening.bind(str(path))
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(mask)
    return listening


async def _asked(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Return the method and the path of what is asked, when all of it is there."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_REQUEST_MAX_BYTES)
    asked: tuple[str, str] | None = None
    left = _REQUEST_MAX_BYTES
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(4096)
            left -= len(data)
            if not data or left < 0:
                raise EOFError("the question has no end")
            connection.receive_data(data)
        elif isinstance(event, h11.Request):
            asked = event.method.decode("ascii"), event.target.decode("latin-1")
        elif isinstance(event, h11.EndOfMessage) and asked:
            return asked


def _response(status: int, kind: str, body: bytes) -> bytes:
    headers = [("content-type", kind), ("content-length", str(len(body))), ("connection", "close")]
    connection = h11.Connection(h11.SERVER)
    parts = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
    return b"".join(filter(None, map(connection.send, parts)))
