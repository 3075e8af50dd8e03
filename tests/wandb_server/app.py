"""HTTP in, HTTP out: parse a request, ask the store, answer — or misbehave as `faults` says.

    request ──▶ which fault? ──▶ key ──▶ graphql, store ──▶ record ──▶ answer, whole or damaged

Invariants
----------
* A request is carried out wholly or not at all, under the store's lock, and recorded before its answer leaves.
* Everything is decided on the one event loop; other threads only read, or change under the store's lock.
* `/_test/…` steers the server: no key, no faults, no record. Uploads to `/_files/…` need no key either.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote

import orjson
from starlette.responses import Response

from tests.wandb_server import graphql
from tests.wandb_server.faults import Fault, Faults
from tests.wandb_server.limits import Traffic
from tests.wandb_server.store import Rejected, RunKey, Store

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

PORTAL_PAGE = b"<!DOCTYPE html><html><body><h1>Welcome to Hotel Wi-Fi</h1>Please sign in.</body></html>"
# A request that hangs looks this often whether it is released.
RELEASE_POLL_S = 0.02


class Transport(Protocol):
    """What the app needs of asyncio's: to write raw bytes and to end a connection."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def get_extra_info(self, name: str) -> Any: ...


@dataclass(frozen=True)
class Request:
    """One request as the server saw it. `status` is None when the client got no answer."""

    method: str
    path: str
    kind: str
    operation: str | None
    variables: dict[str, Any] | None
    body: Any
    headers: dict[str, str]
    status: int | None
    bytes: int
    at_s: float
    run: RunKey | None
    fault: Fault | None


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Incoming:
    """A request under way: what is known of it before anything is decided."""

    method: str
    parts: list[str]
    headers: dict[str, str]
    content: bytes
    query: str = ""
    kind: str = "other"
    run: RunKey | None = None
    operation: str | None = None
    body: Any = None
    problem: Rejected | None = None

    @property
    def path(self) -> str:
        return "/" + "/".join(self.parts)


@dataclass
class App:
    """The ASGI application. Its fields are the knobs that a test turns."""

    store: Store
    faults: Faults
    now: Callable[[], float]
    transport_of: Callable[[Scope], Transport]
    steering: Callable[[Scope, Receive, Send], Awaitable[None]]
    keys: set[str] = field(default_factory=set)
    features: set[str] = field(default_factory=set)
    rate_limit: tuple[float, float] | None = None
    traffic: Traffic = field(default_factory=Traffic)
    scheme: str = "http"
    keep_requests: bool = True
    requests: list[Request] = field(default_factory=list)
    request_count: int = 0
    # The connections of the file_stream requests under way: each run may have one.
    in_flight: dict[RunKey, list[Transport]] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = [unquote(part) for part in scope["raw_path"].decode("ascii").split("/")[1:]]
        if parts[0] == "_test":
            await self.steering(scope, receive, send)
        elif _is_file_stream(parts):
            run = (parts[1], parts[2], parts[3])
            transport = self.transport_of(scope)
            self._check_alone(run)
            self.in_flight.setdefault(run, []).append(transport)
            try:
                await self._serve(scope, receive, send, parts)
            finally:
                self.in_flight[run].remove(transport)
        else:
            await self._serve(scope, receive, send, parts)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, parts: list[str]) -> None:
        headers = {name.decode("latin1"): value.decode("latin1") for name, value in scope["headers"]}
        early = self._early_fault(parts, headers)
        if early is not None and early.action == "reset":
            await self._reset(early, scope, receive)
            return
        content = await _read(receive, early.drip_s if early is not None else 0.0)
        if content is None:
            return
        query = scope["query_string"].decode("ascii")
        incoming = self._parsed(Incoming(scope["method"], parts, headers, content, query))
        if incoming.run is not None:
            self.traffic.count(incoming.run[:2], self.now())
        fault = None
        if incoming.kind != "portal":
            fault = self.faults.take(incoming.kind, incoming.run, incoming.content)
        answer = await self._answer_or_damage(incoming, fault, receive)
        self._record(incoming, answer.status if answer else None, fault or early)
        await self._deliver(answer, fault, scope, receive, send)

    async def _answer_or_damage(
        self, incoming: Incoming, fault: Fault | None, receive: Receive
    ) -> Answer | None:
        """What the client is to get; None if it gets nothing, or is gone."""
        if fault is None:
            return self._carry_out(incoming)
        answer = self._carry_out(incoming) if fault.carried_out else None
        if fault.action == "drop":
            return None
        if fault.action == "hang" and not await self._hang(fault, receive):
            return None
        if fault.action in ("status", "portal", "redirect"):
            return _fault_answer(fault)
        return answer or self._carry_out(incoming)

    def _early_fault(self, parts: list[str], headers: dict[str, str]) -> Fault | None:
        """The fault that befalls a request before its body is there: by path and length."""
        kind, run = "graphql", None
        if _is_file_stream(parts):
            kind, run = "file_stream", (parts[1], parts[2], parts[3])
        elif parts[0] == "_files":
            kind, run = "files", (parts[2], parts[3], parts[4]) if parts[1] == "runs" else None
        elif parts != ["graphql"]:
            return None
        return self.faults.take_early(kind, run, int(headers.get("content-length", 0)))

    async def _reset(self, fault: Fault, scope: Scope, receive: Receive) -> None:
        """End the connection with an RST once so much of the body was read."""
        read_bytes = 0
        while read_bytes < fault.after_bytes:
            message = await receive()
            read_bytes += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        transport = self.transport_of(scope)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        await _disconnect(receive)

    def _check_alone(self, run: RunKey) -> None:
        # A client that gave a request up and sent the next is in the right, although the end of its first
        # connection may reach this loop after the second request: ask the kernel.
        if any(not _hung_up(transport) for transport in self.in_flight.get(run, [])):
            self.store.violate(f"{'/'.join(run)}: two file_stream requests in flight at once")

    def _parsed(self, incoming: Incoming) -> Incoming:
        """Fill in kind, run, operation and body, or the problem that prevents it."""
        parts = incoming.parts
        try:
            if parts == ["graphql"]:
                incoming.kind = "graphql"
                incoming.body = self._json(incoming)
                if not isinstance(incoming.body, dict):
                    raise Rejected(400, "a GraphQL request is a JSON object")
                incoming.operation = graphql.operation_name(incoming.body)
                incoming.kind = f"graphql:{incoming.operation}"
                incoming.run = graphql.run_key(self.store, incoming.body.get("variables") or {})
            elif _is_file_stream(parts):
                incoming.kind = "file_stream"
                incoming.run = (parts[1], parts[2], parts[3])
                incoming.body = self._json(incoming)
            elif parts[:2] == ["_files", "runs"] and len(parts) > 5:
                incoming.kind = "files"
                incoming.run = (parts[2], parts[3], parts[4])
            elif parts[:2] == ["_files", "artifacts"] and len(parts) > 3:
                incoming.kind = "files"
            elif parts == ["_portal"]:
                incoming.kind = "portal"
        except Rejected as problem:
            incoming.problem = problem
        return incoming

    def _json(self, incoming: Incoming) -> Any:
        encoding = incoming.headers.get("content-encoding")
        if encoding == "gzip" and "FILESTREAM_GZIP" in self.features:
            incoming.content = gzip.decompress(incoming.content)
        elif encoding is not None:
            self.store.violate(f"{incoming.path}: a {encoding} body, which this server did not offer")
            raise Rejected(400, f"content encoding {encoding!r} is not offered")
        try:
            return orjson.loads(incoming.content)
        except ValueError:
            pass
        try:
            return json.loads(incoming.content)
        except ValueError:
            self.store.violate(f"{incoming.path}: the body is not JSON: {incoming.content[:100]!r}")
            raise Rejected(400, "the body is not JSON") from None

    def _carry_out(self, incoming: Incoming) -> Answer:
        try:
            if incoming.kind not in ("files", "portal") and not self._authorized(incoming.headers):
                raise Rejected(401, "the API key is missing or not valid")
            if incoming.problem is not None:
                raise incoming.problem
            with self.store.lock:
                return self._answer(incoming)
        except Rejected as rejected:
            return _error(rejected)

    def _answer(self, incoming: Incoming) -> Answer:
        now_s = self.now()
        if incoming.kind == "file_stream":
            assert incoming.run is not None
            admitted, limits = self.traffic.admit(incoming.run[:2], now_s)
            if not admitted:
                return Answer(429, orjson.dumps({"error": "the project's rate limit is exceeded"}), limits)
            answer = self.store.file_stream(incoming.run, incoming.body, len(incoming.content), now_s)
            return Answer(200, orjson.dumps(answer), self._limits() | limits)
        if incoming.operation is not None:
            # Signed URLs lead to another host than the API's, to which no client may send its key.
            files_url = f"{self.scheme}://" + incoming.headers["host"].replace("127.0.0.1", "localhost")
            context = graphql.Context(self.store, files_url, frozenset(self.features), now_s)
            data = graphql.execute(context, incoming.operation, incoming.body.get("variables") or {})
            return Answer(200, orjson.dumps({"data": data}))
        if incoming.kind == "files":
            return self._file(incoming, now_s)
        if incoming.kind == "portal":
            return Answer(200, PORTAL_PAGE, {"content-type": "text/html"})
        raise Rejected(404, f"there is nothing at {incoming.path!r}")

    def _file(self, incoming: Incoming, now_s: float) -> Answer:
        if incoming.method == "PUT":
            self._put(incoming, now_s)
            return Answer(200, b"")
        content = self._stored(incoming)
        if content is None:
            raise Rejected(404, f"file {incoming.path!r} is unknown")
        return Answer(200, content, {"content-type": "application/octet-stream"})

    def _put(self, incoming: Incoming, now_s: float) -> None:
        if "authorization" in incoming.headers:
            self.store.violate(f"{incoming.path}: the API key was sent to a signed URL")
        name, _, value = graphql.UPLOAD_HEADER.partition(": ")
        if incoming.headers.get(name) != value:
            self.store.violate(f"{incoming.path}: uploaded without the upload header {name!r}")
            raise Rejected(403, f"the signature covers the header {name!r}, which is missing")
        if incoming.query != f"signature={self.store.signature}":
            raise Rejected(403, "the URL has expired; ask for another")
        if incoming.run is not None:
            self.store.put_file(incoming.run, "/".join(incoming.parts[5:]), incoming.content, now_s)
        elif incoming.parts[2] in self.store.artifacts.by_id:
            self.store.artifacts.put(incoming.parts[2], "/".join(incoming.parts[3:]), incoming.content)
        else:
            raise Rejected(404, f"artifact {incoming.parts[2]!r} is unknown")

    def _stored(self, incoming: Incoming) -> bytes | None:
        if incoming.run is not None:
            return self.store.run(incoming.run).files.get("/".join(incoming.parts[5:]))
        return self.store.artifacts.content(incoming.parts[2], "/".join(incoming.parts[3:]))

    def _authorized(self, headers: dict[str, str]) -> bool:
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            user, _, key = base64.b64decode(credentials, validate=True).decode().partition(":")
        except ValueError:
            return False
        return user == "api" and key in self.keys

    def _limits(self) -> dict[str, str]:
        if self.rate_limit is None:
            return {}
        remaining, reset_s = self.rate_limit
        return {"RateLimit-Remaining": f"{remaining:g}", "RateLimit-Reset": f"{reset_s:g}"}

    def _record(self, incoming: Incoming, status: int | None, fault: Fault | None) -> None:
        self.request_count += 1
        if not self.keep_requests:
            return
        is_graphql = incoming.operation is not None
        self.requests.append(
            Request(
                method=incoming.method,
                path=incoming.path,
                kind=incoming.kind,
                operation=incoming.operation,
                variables=(incoming.body.get("variables") or {}) if is_graphql else None,
                body=incoming.content if incoming.kind == "files" else incoming.body,
                headers={name: value for name, value in incoming.headers.items() if name != "authorization"},
                status=status,
                bytes=len(incoming.content),
                at_s=self.now(),
                run=incoming.run,
                fault=fault,
            )
        )

    async def _hang(self, fault: Fault, receive: Receive) -> bool:
        """Wait until the fault is cleared or over; False when the client gave up meanwhile."""
        loop = asyncio.get_running_loop()
        until_s, clearings = loop.time() + fault.hang_s, self.faults.clearings
        gone = asyncio.ensure_future(receive())
        try:
            while not gone.done():
                if self.faults.clearings != clearings or loop.time() >= until_s:
                    return True
                await asyncio.wait({gone}, timeout=RELEASE_POLL_S)
            return False
        finally:
            gone.cancel()

    async def _deliver(
        self, answer: Answer | None, fault: Fault | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        damage = fault.action if fault is not None and fault.action in ("truncate", "drip") else None
        if answer is not None and damage is None:
            response = Response(answer.body, answer.status, answer.headers, "application/json")
            await response(scope, receive, send)
            return
        transport = self.transport_of(scope)
        if answer is None:
            transport.abort()
        elif damage == "truncate":
            transport.write(_raw(answer)[: -(len(answer.body) // 2 + 1)])
            transport.close()
        else:
            assert fault is not None
            await _drip(transport, _raw(answer), fault.drip_s, receive)
        await _disconnect(receive)


def _hung_up(transport: Transport) -> bool:
    """Whether the client closed its end, even if the event loop has not heard of it yet."""
    if transport.is_closing():
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket"), getattr(select, "POLLRDHUP", select.POLLHUP))
    return bool(poll.poll(0))


def _is_file_stream(parts: list[str]) -> bool:
    return len(parts) == 5 and parts[0] == "files" and parts[4] == "file_stream"


async def _read(receive: Receive, pause_s: float) -> bytes | None:
    """The whole body, with a pause before each part; None if the client went away before its end."""
    chunks = []
    while True:
        if pause_s:
            # What is not read fills the buffers on both sides, and then the client's writes stand still.
            await asyncio.sleep(pause_s)
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks)


async def _disconnect(receive: Receive) -> None:
    """Wait until the protocol has seen the end of the connection, and would ignore an answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _drip(transport: Transport, raw: bytes, drip_s: float, receive: Receive) -> None:
    gone = asyncio.ensure_future(receive())
    for byte in raw:
        transport.write(bytes([byte]))
        await asyncio.wait({gone}, timeout=drip_s)
        if gone.done():
            break
    gone.cancel()
    transport.close()


def _raw(answer: Answer) -> bytes:
    """The answer as bytes on the wire, for the faults that damage these."""
    head = [f"HTTP/1.1 {answer.status} -", "content-type: application/json"]
    head += [f"content-length: {len(answer.body)}", "connection: close", "", ""]
    return "\r\n".join(head).encode() + answer.body


def _fault_answer(fault: Fault) -> Answer:
    if fault.action == "portal":
        return Answer(200, PORTAL_PAGE, {"content-type": "text/html"})
    if fault.action == "redirect":
        return Answer(302, b"", {"location": "/_portal", "content-type": "text/html"})
    headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    return Answer(fault.status, orjson.dumps({"error": f"injected {fault.status}"}), headers)


def _error(rejected: Rejected) -> Answer:
    # The message in both places: GraphQL clients read `errors`, the file stream's logs read `error`.
    body = {"data": None, "errors": [{"message": rejected.message}], "error": rejected.message}
    return Answer(rejected.status, orjson.dumps(body))
