"""Speaks HTTP: sends, and returns what came back.  Knows nothing of W&B.

    send ──▶ body, part by part ──▶ (proxy) ──▶ server ──▶ answer, bounded in time and size ──▶ Answer
              each part may stall for `silence_s`            done `answer_s` after the last part was taken

Invariants
----------
* An answer is a value: no refusal, silence, damage or garbage raises.  Only the caller's own body may.
* Every request ends.  One that gets on may take as long as the line needs for its body.
* A key goes into the `Authorization` header of the request it is given for, and nowhere else: redirects are not
  followed, and an answer that repeats the key is stripped of it.
* What a server sends is untrusted and bounded in size, also when it is packed.
* TLS is always verified: neither WANDB_INSECURE_DISABLE_SSL nor any other switch turns that off.
* After a failure no connection from before it is used again: whatever broke one has broken the others.

Nothing is sent twice here, not even when a server closes an idle connection at the very moment of its use.  Lines
may be sent again and alerts may not; only the caller knows which it was.

Proxies (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY) and certificates (SSL_CERT_FILE, SSL_CERT_DIR,
REQUESTS_CA_BUNDLE) are the environment's.
"""

from __future__ import annotations

import asyncio
import base64
import os
import platform
import socket
import ssl
import sys
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import quote, urlsplit

import certifi
import h11
import orjson

# With its command line, which nobody calls here, the library takes twice as long to import and 6 MiB more. Where that
# cannot be had, it does without by itself.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
import httpx  # noqa: E402

CONNECT_S = 10.0
# What stands in front of a server gives up after a minute as a rule; an answer that comes later does not come.
SILENCE_S = 60.0
# A byte now and then is no silence. 2 MB, more than any answer that is of use, come in this time at 7 kB/s.
ANSWER_S = 300.0
ANSWER_MAX_BYTES = 32 * 1024 * 1024
# Less than the idle time-outs of proxies; more than the 5 s between two requests of a live run.
IDLE_S = 15.0
# A stall is a part that does not leave: with larger ones a slow line would look like a stall (here: 270 B/s).
PART_BYTES = 16 * 1024
ERROR_MAX_CHARS = 200

# A suspended laptop or another network leaves connections that are open here and nowhere else. The kernel gives them
# up when nobody confirms what it sends, long before the server's silence counts; and it holds back what the line
# cannot take yet, so that "sent" means nearly that.
_SOCKET_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_USER_TIMEOUT", 10_000),
            ("TCP_KEEPIDLE", 10),
            ("TCP_KEEPINTVL", 5),
            ("TCP_KEEPCNT", 4),
            ("TCP_NOTSENT_LOWAT", 128 * 1024),
        )
        if hasattr(socket, name)
    ),
]

# Whatever a network, a server or an address may be the cause of.
_TROUBLE = (
    httpx.HTTPError,
    httpx.InvalidURL,
    h11.ProtocolError,
    OSError,
    UnicodeError,
    zlib.error,
)
_PROXY_LOGIN = "the proxy wants a login: set HTTPS_PROXY to http://USER:PASSWORD@HOST:PORT"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `status` is None if no answer did, `content` is None unless it is a JSON object."""

    status: int | None
    headers: dict[str, str] = field(default_factory=dict)
    content: dict[str, Any] | None = None
    error: str = ""
    """What went wrong, for people: short, printable and without the key."""
    never_left: bool = False
    """There was no connection to send anything on: the server knows nothing of it."""

    @property
    def data(self) -> dict[str, Any]:
        """A GraphQL answer's data."""
        data = (self.content or {}).get("data")
        return data if isinstance(data, dict) else {}


class Http:
    """Connections to whatever hosts are asked for; how many at once is the caller's to say."""

    def __init__(
        self,
        *,
        connect_s: float = CONNECT_S,
        silence_s: float = SILENCE_S,
        answer_s: float = ANSWER_S,
        answer_max_bytes: int = ANSWER_MAX_BYTES,
    ) -> None:
        self._timeout = httpx.Timeout(silence_s, connect=connect_s, pool=None)
        self._answer_s = answer_s
        self._answer_max_bytes = answer_max_bytes
        self._pool: _Pool | None = None
        self.requests = self.sent_bytes = 0
        """How many were begun, and how much of their bodies was handed to the network, sent again included."""

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.client.aclose()

    async def forget_connections(self) -> None:
        """Begin the next request on a connection of its own; those under way keep theirs."""
        pool, self._pool = self._pool, None
        if pool is not None and pool.calls == 0:
            await pool.client.aclose()

    async def send(
        self,
        method: str,
        url: str,
        content: bytes | AsyncIterable[bytes],
        headers: dict[str, str],
        key: str | None = None,
    ) -> Answer:
        """Send one request; with `key`, as user `api` with that password.

        A body that is not bytes needs a `Content-Length` header, unless it may go chunked. What its iterator raises is
        raised here.
        """
        try:
            pool = self._pool = self._pool or _Pool(_client(self._timeout))
        except _Misconfigured as error:
            return Answer(None, error=_printable(str(error)))
        call = _Call(content, asyncio.get_running_loop(), self._count)
        self.requests += 1
        if isinstance(content, bytes):
            headers = {**headers, "Content-Length": str(len(content))}
        pool.calls += 1
        try:
            answer = await self._in_time(call, self._exchange(pool.client, method, url, call, headers, key))
            pool.has_answered = True
        except _TROUBLE as error:
            if error is call.body_error:
                raise
            answer = self._failure(error, _host_of(url), call.peer)
            # A context is as old as its pool: certificates may have been mended since.
            if self._pool is pool and (pool.has_answered or _cause(error, ssl.SSLError)):
                self._pool = None
        finally:
            pool.calls -= 1
            if pool.calls == 0 and self._pool is not pool:
                await pool.client.aclose()
        return answer

    def _count(self, size: int) -> None:
        self.sent_bytes += size

    async def _in_time(self, call: _Call, exchange: Coroutine[Any, Any, Answer]) -> Answer:
        """Return what `exchange` returns, unless the answer is not there `answer_s` after the body left."""
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(exchange)
        try:
            while not task.done():
                left_s = call.got_on_s + self._answer_s - loop.time()
                if left_s <= 0:
                    raise _TooSlow
                await asyncio.wait({task}, timeout=left_s)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _exchange(
        self,
        client: httpx.AsyncClient,
        method: str,
        url: str,
        call: _Call,
        headers: dict[str, str],
        key: str | None,
    ) -> Answer:
        async with client.stream(
            method,
            url,
            content=call,
            auth=None if key is None else ("api", key),
            headers=headers,
            extensions={"trace": call.trace},
        ) as response:
            # The library unpacks without a bound, so its hands are kept off.
            packed = response.headers.get("content-encoding", "").strip().lower() in ("gzip", "x-gzip")
            unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16) if packed else None
            received = bytearray()
            async for part in response.aiter_raw():
                room = self._answer_max_bytes + 1 - len(received)
                received += part[:room] if unpacker is None else unpacker.decompress(part, room)
                if len(received) > self._answer_max_bytes:
                    raise _TooLarge
        status = response.status_code
        said = {name: _without(key, value) for name, value in response.headers.items()}
        # Bytes that are no UTF-8 stay wrong, so that they are no JSON either.
        content = _object(_without(key, bytes(received).decode(errors="surrogateescape")))
        error = message_of((content or {}).get("error") or (content or {}).get("errors"))
        if status == 407:
            error = _PROXY_LOGIN
        return Answer(status, said, content, error if status >= 400 else "")

    def _failure(self, error: Exception, host: str, peer: str | None) -> Answer:
        if isinstance(error, httpx.ProxyError) and str(error).startswith("407"):
            return Answer(407, error=_PROXY_LOGIN)
        at = host if peer in (None, host) else f"the proxy {peer}"
        untrusted = _cause(error, ssl.SSLCertVerificationError)
        tls, unknown, system = (_cause(error, kind) for kind in (ssl.SSLError, socket.gaierror, OSError))
        if untrusted is not None:
            reason = untrusted.verify_message.rstrip(".")
            text = (
                f"certificate verify failed for {host} ({reason}); SSL_CERT_FILE names an authority to trust"
            )
        elif tls is not None:
            text = f"TLS with {host} failed ({(tls.reason or 'garbage').replace('_', ' ').lower()})"
        elif unknown is not None:
            text = f"the name {at} is not known (DNS: {unknown.strerror})"
        elif isinstance(error, httpx.ConnectTimeout):
            text = f"no connection to {at} within {self._timeout.connect:g} s"
        elif isinstance(error, httpx.ConnectError):
            reason = "it hangs up" if system is None else os.strerror(system.errno).lower()
            text = f"cannot connect to {at}: {reason}"
        else:
            text = next(text for kind, text in _WORDS if isinstance(error, kind)).format(
                at=at, host=host, silence_s=self._timeout.read, answer_s=self._answer_s, error=error
            )
        never_left = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
        return Answer(None, error=_printable(text), never_left=never_left)


@dataclass(slots=True)
class _Pool:
    """Connections of one time; let go when something breaks, and closed when the last call has left."""

    client: httpx.AsyncClient
    calls: int = 0
    has_answered: bool = False


class _Call:
    """The body of one request on its way, and what is learned of its connection."""

    def __init__(
        self,
        content: bytes | AsyncIterable[bytes],
        loop: asyncio.AbstractEventLoop,
        count: Callable[[int], None],
    ) -> None:
        self.got_on_s = loop.time()
        """When the last part was taken, or the connection was begun."""
        self.peer: str | None = None
        """The host that was connected to: the server's, or a proxy's.  None for a connection that was there."""
        self.body_error: Exception | None = None
        self._content = content
        self._loop = loop
        self._count = count

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if isinstance(self._content, bytes):
            for part in _parts(self._content):
                yield part
                self._got_on(part)
            return
        try:
            async for content in self._content:
                for part in _parts(content):
                    yield part
                    self._got_on(part)
        except (OSError, UnicodeError) as error:
            self.body_error = error
            raise

    def _got_on(self, part: bytes) -> None:
        self.got_on_s = self._loop.time()
        self._count(len(part))

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            self.peer = _named(info["host"], info["port"])
        elif event == "connection.connect_tcp.complete":
            connected: socket.socket = info["return_value"].get_extra_info("socket")
            for level, option, value in _SOCKET_OPTIONS:
                # A kernel without one of them only notices later.
                with suppress(OSError):
                    connected.setsockopt(level, option, value)


class _Misconfigured(Exception):
    """The environment asks for a proxy or certificates that cannot be had."""


class _TooSlow(OSError):
    pass


class _TooLarge(OSError):
    pass


# What is said of an error that is none of the connection's own; the first that fits. No text of the library's: its
# errors repeat headers and addresses, which may be secret.
_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (_TooSlow, "{host} answers too slowly (not done after {answer_s:g} s)"),
    (_TooLarge, "the answer of {host} is too large to be W&B's"),
    (httpx.ReadTimeout, "{host} says nothing for {silence_s:g} s"),
    (httpx.WriteTimeout, "{host} takes nothing for {silence_s:g} s"),
    (httpx.ProxyError, "{at} refuses ({error})"),
    (h11.LocalProtocolError, "the request to {host} is not what its headers say"),
    (httpx.LocalProtocolError, "the request to {host} is not what its headers say"),
    (httpx.RemoteProtocolError, "{host} hung up in the middle, or what it says is not HTTP"),
    (httpx.NetworkError, "the connection to {host} broke"),
    (httpx.DecodingError, "the answer of {host} is damaged"),
    (zlib.error, "the answer of {host} is damaged"),
    (httpx.UnsupportedProtocol, "{host} is no address to send to: it begins with http:// or https://"),
    (httpx.InvalidURL, "{host} is no address to send to: it is http:// or https:// and a host"),
    (UnicodeError, "the request to {host} has a header that is not ASCII"),
    (Exception, "the request to {host} failed"),
)


def _client(timeout: httpx.Timeout) -> httpx.AsyncClient:
    try:
        return httpx.AsyncClient(
            timeout=timeout,
            follow_redirects=False,
            verify=_certificates(),
            headers={
                "User-Agent": f"tidelog-syncd (python {platform.python_version()})",
                "Accept-Encoding": "gzip",
            },
            # Nobody may leave things here that are sent along later.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=IDLE_S),
        )
    except ImportError:
        raise _Misconfigured("a SOCKS proxy is set, which needs: pip install 'httpx[socks]'") from None
    except (ValueError, httpx.InvalidURL):
        # Not in the library's words: they may hold the proxy's password.
        raise _Misconfigured(
            "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY is not http://HOST:PORT or socks5://HOST:PORT"
        ) from None


def _certificates() -> ssl.SSLContext:
    """Return whom to trust: whom the environment names, else the system's authorities and Mozilla's."""
    environ = os.environ
    names = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if environ.get(name)]
    names = names or [name for name in ("REQUESTS_CA_BUNDLE",) if environ.get(name)]
    if not names:
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for name in names:
        path = environ[name]
        try:
            if os.path.isdir(path.split(os.pathsep)[0]):
                context.load_verify_locations(capath=path)
            else:
                context.load_verify_locations(cafile=path)
        except OSError as error:
            raise _Misconfigured(
                f"{name} is {path!r}, where no certificates can be read ({error.strerror or 'not PEM'}). "
                "Mend that, or unset it"
            ) from None
    return context


def _parts(content: bytes) -> Iterator[bytes]:
    for start in range(0, len(content), PART_BYTES):
        yield content[start : start + PART_BYTES]


def _cause(error: Any, kind: type[OSError]) -> Any:
    """Return the first system error of that kind among those that led to this one; None if there is none."""
    while error is not None:
        # Without a number it is a wrapper around the one that says what happened.
        if isinstance(error, kind) and error.errno is not None:
            return error
        # One for each address that was tried.
        tried = getattr(error, "exceptions", ())
        error = tried[0] if tried else error.__cause__ or error.__context__
    return None


def _host_of(url: str) -> str:
    """Return the host of an address, and nothing else of it: the rest may be secret."""
    try:
        parts = urlsplit(url)
        return _named(parts.hostname or "the server", parts.port)
    except ValueError:
        return "the server"


def _named(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port in (None, 80, 443) else f"{name}:{port}"


def _without(key: str | None, text: str) -> str:
    """Take the key out of what a server says, in each form in which it may have seen it.

    >>> _without("a/long/secret", "a/long/secret, a%2Flong%2Fsecret, YXBpOmEvbG9uZy9zZWNyZXQ=")
    '…, …, …'
    """
    # Without a least length, a key of one letter would make holes in every answer.
    if key is None or len(key) < 8:
        return text
    basic = base64.b64encode(f"api:{key}".encode(errors="replace")).decode()
    for form in (basic, basic.rstrip("="), key, quote(key, safe="")):
        text = text.replace(form, "…")
    return text


def _object(body: str) -> dict[str, Any] | None:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None


def dig(content: Any, *keys: str) -> dict[str, Any]:
    """Return the object below `keys` in an untrusted answer, or an empty one."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def message_of(errors: Any) -> str:
    """Return an error body in words, for people; control characters would end up in their terminal."""
    first = errors[0] if isinstance(errors, list) and errors else errors
    text = first.get("message") if isinstance(first, dict) else first
    return _printable(str(text or ""))


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:ERROR_MAX_CHARS]
