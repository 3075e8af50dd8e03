"""`WandbServer`: the app on a loopback port, in a thread of its own.

Invariants
----------
* The port is bound from the first moment to the last, also while `down()`: nobody else can take it.
* All methods may be called from any thread; those that act on sockets run on the event loop and wait for it.
* The clock is a parameter: with `now=` a test makes a run crash without waiting.

The network can be bad in three ways: `down` (refused), `silence` (accepted, and then not a byte) and `black_hole`
(not even accepted). `up` ends each of them.

Uvicorn parses the HTTP; the listening socket is ours, because a real outage closes it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from tests.wandb_server.app import App, Request, Transport
from tests.wandb_server.certificates import Certificates
from tests.wandb_server.faults import RETRYABLE, Fault, Faults
from tests.wandb_server.limits import ProjectLimit
from tests.wandb_server.steering import steering_app
from tests.wandb_server.store import (
    CONSOLE,
    CRASHED_AFTER_S,
    EVENTS,
    HISTORY,
    DeletedAnswers,
    ResumeAnswers,
    Store,
    StoredRun,
)

__all__ = ["API_KEY", "Request", "WandbServer"]

# The SDK takes a key of 40 characters for a real one.
API_KEY = "0123456789" * 4
LOOP_ANSWER_S = 10.0
# Linux takes one more than the backlog says; a few more prove that it takes no more.
BLACK_HOLE_FILLERS = 4

T = TypeVar("T")


class WandbServer:
    """A W&B server on http://127.0.0.1:<port>; a context manager. See the package for an example."""

    def __init__(
        self,
        *,
        api_key: str | Iterable[str] = API_KEY,
        entity: str = "ent",
        strict: bool = True,
        append: bool = False,
        port: int = 0,
        features: Iterable[str] = (),
        resume: ResumeAnswers | None = None,
        crashed_after_s: float = CRASHED_AFTER_S,
        keep_requests: bool = True,
        tls: Certificates | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.store = Store(
            entity=entity,
            strict=strict,
            append=append,
            crashed_after_s=crashed_after_s,
            resume=resume or ResumeAnswers(),
        )
        self.faults = Faults(now)
        self.app = App(
            store=self.store,
            faults=self.faults,
            now=now,
            transport_of=self._transport_of,
            steering=steering_app(self),
            keys={api_key} if isinstance(api_key, str) else set(api_key),
            features=set(features),
            keep_requests=keep_requests,
            scheme="https" if tls else "http",
        )
        self._now = now
        self._socket = _bound_socket(port)
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="wandb-server", daemon=True)
        self._listener: asyncio.Server | None = None
        self._tls = _tls_context(tls)
        # Connections of our own that fill the queue of a black hole.
        self._fillers: list[socket.socket] = []
        self._state = ServerState()
        self._config = uvicorn.Config(
            self.app,
            http=H11Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            proxy_headers=False,
            log_config=None,
            # A client may keep its connection through a long quiet; the server is not the one to end it.
            timeout_keep_alive=3600,
        )
        self._config.load()

    # Running

    def __enter__(self) -> WandbServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._thread.start()
        self.up()

    def stop(self) -> None:
        """Release what hangs, close everything, end the thread. The store stays readable."""
        self.faults.clear()
        self._on_loop(self._go_down())
        self._on_loop(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LOOP_ANSWER_S)
        self._loop.close()
        self._close_fillers()
        self._socket.close()

    def down(self) -> None:
        """Close the listening socket (connection refused) and drop every open connection."""
        self._on_loop(self._go_down())

    def silence(self) -> None:
        """Let the kernel accept connections, and nobody read from them or answer; the open ones stand still too."""
        self._on_loop(self._go_silent(backlog=512))

    def black_hole(self) -> None:
        """Let every attempt to connect go unanswered, and every open connection stand still."""
        self._on_loop(self._go_silent(backlog=0))

    def up(self) -> None:
        """Listen again, on the same port; what stood still goes on, what waited in a silence is served."""
        self._on_loop(self._go_up())

    def down_soon(self, for_s: float, how: str = "down") -> None:
        """From the event loop: be `down`, in `silence` or a `black_hole` for so long, once the answer has left."""
        ways = {
            "down": self._go_down,
            "silence": lambda: self._go_silent(backlog=512),
            "black_hole": lambda: self._go_silent(backlog=0),
        }
        go = ways[how]
        answer_leaves_s = 0.1
        self._loop.call_later(answer_leaves_s, lambda: self._loop.create_task(go()))
        self._loop.call_later(answer_leaves_s + for_s, lambda: self._loop.create_task(self._go_up()))

    @property
    def base_url(self) -> str:
        return f"{self.app.scheme}://127.0.0.1:{self.port}"

    def env(self, directory: Path | str) -> dict[str, str]:
        """The WANDB_* variables that point an SDK here and keep all that it writes in `directory`."""
        directory = Path(directory)
        for name in ("wandb-dir", "cache", "config", "data", "artifacts"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        return {
            "WANDB_BASE_URL": self.base_url,
            "WANDB_API_KEY": sorted(self.app.keys)[0] if self.app.keys else API_KEY,
            "WANDB_DIR": str(directory / "wandb-dir"),
            "WANDB_CACHE_DIR": str(directory / "cache"),
            "WANDB_CONFIG_DIR": str(directory / "config"),
            "WANDB_DATA_DIR": str(directory / "data"),
            "WANDB_ARTIFACT_DIR": str(directory / "artifacts"),
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DISABLE_GIT": "true",
            "NETRC": str(directory / "netrc"),
            "NO_PROXY": "*",
            "no_proxy": "*",
            "HTTP_PROXY": "",
            "HTTPS_PROXY": "",
            "http_proxy": "",
            "https_proxy": "",
        }

    # What the server holds

    @property
    def lock(self) -> threading.RLock:
        """Held by the server while it carries out a request; hold it to see several things at one moment."""
        return self.store.lock

    def run(self, entity: str, project: str, run_id: str) -> StoredRun:
        """The live run; KeyError when there is none."""
        return self.store.runs[(entity, project, run_id)]

    def runs(self) -> list[StoredRun]:
        with self.lock:
            return list(self.store.runs.values())

    def state(self, run: StoredRun) -> str:
        """The run's state now, by the server's clock."""
        return run.state(self._now())

    @property
    def violations(self) -> list[str]:
        return self.store.violations

    @property
    def alerts(self) -> list[dict[str, Any]]:
        return self.store.alerts

    @property
    def requests(self) -> list[Request]:
        """Every request so far, oldest first: a copy."""
        return list(self.app.requests)

    def clear_requests(self) -> None:
        self.app.requests.clear()

    # Steering

    @property
    def keys(self) -> set[str]:
        """The API keys that are valid now: add and discard to rotate them."""
        return self.app.keys

    @property
    def resume(self) -> ResumeAnswers:
        return self.store.resume

    @resume.setter
    def resume(self, answers: ResumeAnswers) -> None:
        self.store.resume = answers

    @property
    def rate_limit(self) -> tuple[float, float] | None:
        """(RateLimit-Remaining, RateLimit-Reset in s) of every file_stream answer; None sends neither."""
        return self.app.rate_limit

    @rate_limit.setter
    def rate_limit(self, remaining_and_reset_s: tuple[float, float] | None) -> None:
        self.app.rate_limit = remaining_and_reset_s

    @property
    def project_limit(self) -> ProjectLimit | None:
        """How many file_stream requests each project may send; None sets no limit."""
        return self.app.traffic.limit

    @project_limit.setter
    def project_limit(self, limit: ProjectLimit | None) -> None:
        self.app.traffic.limit = limit

    def requests_per_second(self, entity: str, project: str) -> dict[int, int]:
        """How many requests about the project came in each second of the clock."""
        return self.app.traffic.per_second((entity, project))

    def expire_urls(self) -> None:
        """Let every upload URL that was handed out be refused from now on."""
        self.store.signature += 1

    @property
    def deleted_answers(self) -> DeletedAnswers:
        return self.store.deleted_answers

    @deleted_answers.setter
    def deleted_answers(self, answers: DeletedAnswers) -> None:
        self.store.deleted_answers = answers

    def delete_run(self, entity: str, project: str, run_id: str) -> None:
        """Delete a run as on W&B's page: its id cannot be used again."""
        with self.lock:
            self.store.delete(self.run(entity, project, run_id).storage_id)

    def random_misbehaviour(self, seed: int, rate: float, choose_from: Sequence[Fault] = RETRYABLE) -> None:
        self.faults.random_misbehaviour(seed, rate, choose_from)

    def stop_run(self, entity: str, project: str, run_id: str, stopped: bool = True) -> None:
        """Press the Stop button of W&B's page."""
        with self.lock:
            self.run(entity, project, run_id).stopped = stopped

    def seed_run(
        self,
        project: str,
        run_id: str,
        rows: int | Sequence[dict[str, Any]] = 0,
        *,
        entity: str | None = None,
        events: int = 0,
        console: Sequence[str] = (),
        config: dict[str, Any] | None = None,
        summary: dict[str, Any] | None = None,
        started: bool = True,
        **params: Any,
    ) -> StoredRun:
        """Put a run there as another client left it; `params` are UpsertBucket's (displayName, tags …).

        `rows` is a number of rows {"seeded": i, "_step": i, …}, or the rows. `started=False` leaves out
        `_wandb.t`, so that resume does not see the run.
        """
        now_s = self._now()
        lines = [json.dumps(row) for row in (_seeded_rows(rows, now_s) if isinstance(rows, int) else rows)]
        wrapped = {key: {"value": value} for key, value in (config or {}).items()}
        telemetry = {"t": {"4": "3.11.0", "5": "0.31.0", "12": "0.31.0"}} if started else {}
        wrapped["_wandb"] = {"value": {**telemetry, "m": []}}
        last_row = json.loads(lines[-1]) if lines else {}
        files: dict[str, Any] = {
            HISTORY: {"offset": 0, "content": lines},
            EVENTS: {"offset": 0, "content": [_seeded_event(i, now_s) for i in range(events)]},
            CONSOLE: {"offset": 0, "content": list(console)},
            "wandb-summary.json": {"offset": 0, "content": [json.dumps(summary or last_row)]},
        }
        with self.lock:
            variables = {"name": run_id, "project": project, "entity": entity, "config": json.dumps(wrapped)}
            run, _ = self.store.upsert({**variables, **params}, now_s)
            body = {"files": {name: chunk for name, chunk in files.items() if chunk["content"]}}
            self.store.file_stream(run.key, body, 0, now_s)
        return run

    # Sockets

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LOOP_ANSWER_S)

    async def _go_up(self) -> None:
        if self._fillers:
            self._close_fillers()
            self._rebind()
        if self._listener is None:
            self._listener = await self._loop.create_server(
                self._protocol, sock=self._socket, backlog=512, ssl=self._tls
            )
        for connection in list(self._state.connections):
            connection.transport.resume_reading()  # type: ignore[union-attr]

    async def _go_down(self) -> None:
        # Bound without listening: connections are refused, and the port stays ours.
        self._rebind()
        for connection in list(self._state.connections):
            connection.transport.abort()  # type: ignore[union-attr]

    async def _go_silent(self, backlog: int) -> None:
        self._rebind()
        # Listening without accepting: the kernel shakes hands as long as there is room in the queue.
        self._socket.listen(backlog)
        if backlog == 0:
            self._fillers = [_connecting_socket(self.port) for _ in range(BLACK_HOLE_FILLERS)]
        for connection in list(self._state.connections):
            connection.transport.pause_reading()  # type: ignore[union-attr]

    def _rebind(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        else:
            self._socket.close()
        self._socket = _bound_socket(self.port)

    def _close_fillers(self) -> None:
        for filler in self._fillers:
            filler.close()
        self._fillers = []

    def _protocol(self) -> asyncio.Protocol:
        return H11Protocol(config=self._config, server_state=self._state, app_state={}, _loop=self._loop)

    def _transport_of(self, scope: dict[str, Any]) -> Transport:
        """The connection on which a request came: its peer's address is unique while it is open."""
        for connection in self._state.connections:
            if connection.client == tuple(scope["client"]):  # type: ignore[union-attr]
                return connection.transport  # type: ignore[union-attr, return-value]
        return _GoneTransport()


class _GoneTransport:
    """The client closed its connection already: there is nothing left to damage."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...

    def is_closing(self) -> bool:
        return True

    def get_extra_info(self, name: str) -> Any: ...


def _bound_socket(port: int) -> socket.socket:
    # With the protocol named, asyncio turns Nagle's algorithm off; else each small answer waits 40 ms.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    os.set_inheritable(bound.fileno(), False)
    return bound


def _connecting_socket(port: int) -> socket.socket:
    """A connection under way: whether it is accepted is not waited for."""
    connecting = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connecting.setblocking(False)
    connecting.connect_ex(("127.0.0.1", port))
    return connecting


def _tls_context(made: Certificates | None) -> ssl.SSLContext | None:
    if made is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    return context


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _seeded_rows(count: int, now_s: float) -> list[dict[str, Any]]:
    return [{"seeded": i, "_step": i, "_timestamp": now_s, "_runtime": float(i)} for i in range(count)]


def _seeded_event(number: int, now_s: float) -> str:
    return json.dumps(
        {"_wandb": True, "_timestamp": now_s, "_runtime": 15.0 * number, "system.cpu": 1.0 * number}
    )
