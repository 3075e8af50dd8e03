"""The network at its worst, over real sockets: whatever happens to a request, it ends, as an answer."""

from __future__ import annotations

import asyncio
import base64
import gzip
import os
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from syncd.http import ANSWER_S, PART_BYTES, Answer, Http

KEY = "canary0123" * 4
BASIC = base64.b64encode(f"api:{KEY}".encode()).decode()

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def _no_proxy_and_no_certificates_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


# -- a server that says what it is told to ---------------------------------------------------------------------


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on the loopback; yields its port, and ends every conversation at the end."""
    talks: set[asyncio.Task[Any]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            # The client gave up, as it should.
            writer.transport.abort()
        except asyncio.CancelledError:
            # The test is over.
            writer.transport.abort()
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def request_of(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Read one request; return its head and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(
        (line[15:] for line in head.lower().split("\r\n") if line.startswith("content-length:")), "0"
    )
    return head, await reader.readexactly(int(length))


def saying(*parts: bytes, then: str = "close") -> Handler:
    """Answer one request with these bytes, then `close`, `reset` or fall `silent`."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then == "silent":
            await asyncio.Event().wait()
        if then == "reset":
            # Without lingering, an end is a reset.
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    return handler


def repeating(first: bytes, again: bytes) -> Handler:
    """Answer with the one and then, for ever and a little at a time, the other."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(first)
        while True:
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(0.001)

    return handler


def answer_of(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def asked(
    handler: Handler, http: Http | None = None, tls: ssl.SSLContext | None = None, **send: Any
) -> Answer:
    """Return what `Http` makes of such a server."""

    async def ask() -> Answer:
        async with serving(handler, tls) as port:
            url = f"{'http' if tls is None else 'https'}://{send.pop('host', '127.0.0.1')}:{port}/graphql"
            return await sent(http or Http(), **{"url": url, **send})

    return asyncio.run(ask())


async def sent(http: Http, url: str, **send: Any) -> Answer:
    try:
        return await http.send(**{"method": "POST", "url": url, "content": b"{}", "headers": {}, **send})
    finally:
        await http.close()


# -- answers ---------------------------------------------------------------------------------------------------


def test_an_answer_is_its_status_its_headers_and_its_object():
    answer = asked(saying(answer_of(b'{"data":{"viewer":{}}}', "Retry-After: 7", status="429 Slow Down")))

    assert (answer.status, answer.headers["retry-after"]) == (429, "7")
    assert answer.data == {"viewer": {}}


def test_a_packed_answer_is_unpacked():
    packed = gzip.compress(b'{"limits":null}')

    answer = asked(saying(answer_of(packed, "Content-Encoding: gzip")))

    assert answer.content == {"limits": None}


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b"", b'{"half', b'{"x":"\xff"}', b"1e999"])
def test_an_answer_that_is_no_object_has_no_content(body: bytes):  # faults: 72
    answer = asked(saying(answer_of(body)))

    assert (answer.status, answer.content, answer.error) == (200, None, "")


def test_an_error_is_told_in_the_servers_words_made_fit_for_a_terminal():
    answer = asked(saying(answer_of(b'{"error":"no \\u001b[31msuch\\n run"}', status="404 Not Found")))

    assert (answer.status, answer.error) == (404, "no [31msuch run")


def test_a_body_arrives_whole_and_the_key_as_a_password():
    seen: list[tuple[str, bytes]] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await request_of(reader))
        writer.write(answer_of(b"{}"))

    body = os.urandom(5 * PART_BYTES + 7)
    answer = asked(handler, content=body, key=KEY)

    assert answer.status == 200
    assert seen[0][1] == body
    assert f"authorization: basic {BASIC}".lower() in seen[0][0].lower()


def test_a_streamed_body_of_known_length_is_not_chunked():
    seen: list[tuple[str, bytes]] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await request_of(reader))
        writer.write(answer_of(b""))

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    answer = asked(handler, method="PUT", content=parts(), headers={"Content-Length": "6"})

    assert answer.status == 200
    assert seen[0][1] == b"onetwo"
    assert "transfer-encoding" not in seen[0][0].lower()
    assert "authorization" not in seen[0][0].lower()


def test_what_the_callers_body_raises_is_the_callers():
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        raise FileNotFoundError("the file is gone")

    with pytest.raises(FileNotFoundError, match="the file is gone"):
        asked(saying(answer_of(b"{}")), content=parts(), headers={"Content-Length": "6"})


def test_a_body_may_take_longer_than_an_answer_when_the_line_is_slow():
    """The loop's clock jumps on with each part."""
    jumped_s = 0.0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal jumped_s
        loop = asyncio.get_running_loop()
        real_time = loop.time
        loop.time = lambda: real_time() + jumped_s  # type: ignore[method-assign]
        for _ in range(4):
            yield b"x" * 10
            jumped_s += 0.7 * ANSWER_S

    patient = Http(silence_s=100 * ANSWER_S)
    answer = asked(saying(answer_of(b"{}")), patient, content=parts(), headers={"Content-Length": "40"})

    assert answer.status == 200


def test_as_many_requests_as_the_caller_likes_are_under_way_at_once():
    arrived = 0
    all_there = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        await request_of(reader)
        arrived += 1
        if arrived == 40:
            all_there.set()
        await all_there.wait()
        writer.write(answer_of(b"{}"))

    async def ask() -> list[Answer]:
        http = Http()
        async with serving(handler) as port:
            url = f"http://127.0.0.1:{port}/"
            answers = await asyncio.gather(*(http.send("POST", url, b"", {}) for _ in range(40)))
            await http.close()
            return answers

    assert {answer.status for answer in asyncio.run(ask())} == {200}


# -- bad networks ----------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
SHORT = {"connect_s": 0.3, "silence_s": 0.3, "answer_s": 0.6}


@pytest.mark.parametrize(
    ("handler", "said"),
    {
        "hung up before a byte": (saying(), "hung up"),
        "reset before a byte": (saying(then="reset"), "broke"),
        "reset in mid-body": (saying(HEAD + b'{"a"', then="reset"), "broke"),
        "truncated body": (saying(HEAD + b'{"a":1}'), "hung up"),
        "truncated chunks": (
            saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\n{"),
            "hung up",
        ),
        "truncated head": (saying(b"HTTP/1.1 200 OK\r\nContent-Le"), "hung up"),
        "no HTTP": (saying(b"220 mail.example.com ESMTP\r\n"), "not HTTP"),
        "binary garbage": (saying(bytes(range(256)) * 10), "not HTTP"),
        "silence": (saying(then="silent"), "says nothing for 0.3 s"),
        "silence in mid-body": (saying(HEAD + b"{", then="silent"), "says nothing for 0.3 s"),
        "drip of a head": (repeating(b"HTTP/1.1 200 OK\r\n", b"a"), "too slowly"),
        "drip of a body": (repeating(HEAD.replace(b"1000", b"9999999"), b" "), "too slowly"),
        "1xx without end": (repeating(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "too slowly"),
        "101 unasked": (saying(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"), "not HTTP"),
        "header bomb": (saying(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000), "not HTTP"),
        "header line bomb": (saying(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 1_000_000), "not HTTP"),
        "too large": (saying(answer_of(b" " * 200_000)), "too large"),
        "too large, packed": (
            saying(answer_of(gzip.compress(b" " * 9**8), "Content-Encoding: gzip")),
            "too large",
        ),
        "damaged packing": (saying(answer_of(b"no gzip", "Content-Encoding: gzip")), "damaged"),
    }.values(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_network_ends_in_words_for_people(handler: Handler, said: str):  # faults: 68 72
    answer = asked(handler, Http(**SHORT, answer_max_bytes=100_000), key=KEY)

    assert answer.status is None
    assert said in answer.error
    assert "127.0.0.1" in answer.error
    assert answer.error.isprintable()
    assert "Error" not in answer.error


def test_an_answer_packed_twice_is_not_unpacked_twice():
    bomb = gzip.compress(gzip.compress(b" " * 10_000_000))

    answer = asked(saying(answer_of(bomb, "Content-Encoding: gzip, gzip")))

    assert (answer.status, answer.content) == (200, None)


def test_an_answer_without_a_length_ends_with_the_connection():
    answer = asked(saying(b'HTTP/1.0 200 OK\r\n\r\n{"a":1}'))

    assert answer.content == {"a": 1}


def test_a_refused_connection_is_told_as_such():  # faults: 72
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{bound.getsockname()[1]}"

        answer = asyncio.run(sent(Http(), f"http://{host}/"))

    assert (answer.status, answer.error) == (None, f"cannot connect to {host}: connection refused")


def test_a_black_hole_ends_after_the_time_for_connecting():  # faults: 72
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as waiting:
        waiting.connect(full.getsockname())
        host = f"127.0.0.1:{full.getsockname()[1]}"

        answer = asyncio.run(sent(Http(connect_s=0.2), f"http://{host}/"))

    assert (answer.status, answer.error) == (None, f"no connection to {host} within 0.2 s")


def test_a_server_that_stops_reading_ends_the_request():
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    answer = asked(handler, Http(silence_s=0.3), content=bytes(50_000_000))

    assert answer.status is None
    assert "takes nothing for 0.3 s" in answer.error


def test_an_unknown_name_is_told_as_such():  # faults: 72
    answer = asyncio.run(sent(Http(), "http://nowhere.invalid/"))

    assert answer.status is None
    assert "nowhere.invalid" in answer.error


@pytest.mark.parametrize(
    "url", ["", "nonsense", "localhost:8080", "ftp://x/", "http://[::", "http://", f"http://{'ä' * 70}.com/"]
)
def test_an_address_that_is_none_is_an_answer_too(url: str):
    answer = asyncio.run(sent(Http(), url))

    assert answer.status is None
    assert "http:// or https://" in answer.error


def test_an_address_is_not_repeated_beyond_its_host():
    """A signed address is a secret: whoever has it may write the file."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{bound.getsockname()[1]}"

        answer = asyncio.run(sent(Http(), f"http://user:secret@{host}/path?signature=secret"))

    assert host in answer.error
    assert "secret" not in answer.error


@pytest.mark.parametrize("value", ["secret\r\nHost: evil", "secret\x00", "secret schlüssel", "secret \udce4"])
def test_a_header_that_cannot_be_sent_is_not_repeated(value: str):
    answer = asked(saying(answer_of(b"{}")), headers={"X-Signature": value})

    assert answer.status is None
    assert "secret" not in answer.error


def test_a_body_of_another_length_than_said_is_told_as_such():
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"

    answer = asked(saying(answer_of(b"{}")), content=parts(), headers={"Content-Length": "6"})

    assert answer.status is None
    assert "not what its headers say" in answer.error


def test_dead_connections_cost_one_failure_and_not_one_each():
    """As after a suspended laptop woke in another network: what was open is silent, what is new is answered."""
    are_dead = False

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        born_dead = are_dead
        while True:
            await request_of(reader)
            if are_dead and not born_dead:
                await asyncio.Event().wait()
            writer.write(answer_of(b"{}"))

    async def ask() -> list[int | None]:
        nonlocal are_dead
        http = Http(silence_s=0.3)
        async with serving(handler) as port:
            url = f"http://127.0.0.1:{port}/"
            # Several connections are open and idle now.
            await asyncio.gather(*(http.send("POST", url, b"", {}) for _ in range(3)))
            are_dead = True
            answers = [await http.send("POST", url, b"", {}) for _ in range(4)]
            await http.close()
            return [answer.status for answer in answers]

    assert asyncio.run(ask()) == [None, 200, 200, 200]


def test_a_failure_leaves_the_others_that_are_under_way_alone():
    slow_is_there = asyncio.Event()
    has_failed = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await request_of(reader)
            if "/fail" in head:
                return
            if "/slow" in head:
                slow_is_there.set()
                await has_failed.wait()
            writer.write(answer_of(b"{}"))

    async def ask() -> list[int | None]:
        http = Http()
        async with serving(handler) as port:
            url = f"http://127.0.0.1:{port}"
            await http.send("POST", url, b"", {})
            slow = asyncio.ensure_future(http.send("POST", url + "/slow", b"", {}))
            await slow_is_there.wait()
            failed = await http.send("POST", url + "/fail", b"", {})
            has_failed.set()
            statuses = [failed.status, (await slow).status]
            await http.close()
            return statuses

    assert asyncio.run(ask()) == [None, 200]


def test_a_cancelled_request_hangs_up():
    hung_up = asyncio.Event()
    arrived = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        arrived.set()
        await reader.read()
        hung_up.set()

    async def ask() -> None:
        http = Http()
        async with serving(handler) as port:
            request = asyncio.ensure_future(http.send("POST", f"http://127.0.0.1:{port}/", b"", {}))
            await arrived.wait()
            request.cancel()
            await hung_up.wait()
            await http.close()

    asyncio.run(ask())


# -- what leaves, and what stays -------------------------------------------------------------------------------


def test_a_redirect_is_an_answer_and_is_not_followed():  # faults: 72
    seen: list[str] = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await request_of(reader))[0])

    async def ask() -> Answer:
        async with serving(elsewhere) as port:
            moved = answer_of(b"", f"Location: http://127.0.0.1:{port}/", status="307 Temporary Redirect")
            async with serving(saying(moved)) as first:
                return await sent(Http(), f"http://127.0.0.1:{first}/", key=KEY)

    assert asyncio.run(ask()).status == 307
    assert seen == []


def test_a_cookie_is_not_sent_back():
    seen: list[str] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append((await request_of(reader))[0].lower())
            writer.write(answer_of(b"{}", "Set-Cookie: session=1; Path=/"))

    async def ask() -> None:
        http = Http()
        async with serving(handler) as port:
            for _ in range(2):
                await http.send("POST", f"http://127.0.0.1:{port}/", b"", {})
        await http.close()

    asyncio.run(ask())

    assert len(seen) == 2
    assert not any("cookie" in head for head in seen)


@pytest.mark.parametrize("packed", [False, True])
def test_a_server_that_repeats_the_key_is_not_quoted_with_it(packed: bool):  # faults: 96
    body = f'{{"error":"key {KEY} ({BASIC}) is wrong","errors":[{{"message":"{KEY}"}}]}}'.encode()
    headers = [f"WWW-Authenticate: Basic realm={KEY}", *(["Content-Encoding: gzip"] if packed else [])]

    answer = asked(
        saying(answer_of(gzip.compress(body) if packed else body, *headers, status="500 Oh")), key=KEY
    )

    assert answer.error == "key … (…) is wrong"
    assert KEY not in repr(answer)
    assert BASIC not in repr(answer)


# -- TLS -------------------------------------------------------------------------------------------------------


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and signed by it: good.pem for 127.0.0.1, other.pem for another host, expired.pem; each with its key."""
    directory = tmp_path_factory.mktemp("certificates")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(directory, "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Test CA")
    for name, host, days in (
        ("good", "IP:127.0.0.1", "2"),
        ("other", "DNS:other.example", "2"),
        ("expired", "IP:127.0.0.1", "-1"),
    ):
        (directory / "ext").write_text(f"subjectAltName={host}\n")
        openssl(directory, "req", *curve, "-keyout", f"{name}.key", "-out", "csr", "-subj", "/CN=server")
        signed = ("-req", "-in", "csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        openssl(directory, "x509", *signed, "-days", days, "-extfile", "ext", "-out", f"{name}.pem")
    (directory / "hashed").mkdir()
    (directory / "hashed" / "ca.pem").write_bytes((directory / "ca.pem").read_bytes())
    openssl(directory, "rehash", "hashed")
    return directory


def presenting(certificates: Path, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


@pytest.mark.parametrize(
    ("name", "path"),
    [("SSL_CERT_FILE", "ca.pem"), ("SSL_CERT_DIR", "hashed"), ("REQUESTS_CA_BUNDLE", "ca.pem")],
)
def test_an_authority_of_ones_own_is_trusted(
    certificates: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str
):
    monkeypatch.setenv(name, str(certificates / path))

    answer = asked(saying(answer_of(b"{}")), tls=presenting(certificates, "good"))

    assert (answer.status, answer.error) == (200, "")


@pytest.mark.parametrize(
    ("certificate", "authority", "reason"),
    [
        ("good", None, "unable to get local issuer certificate"),
        ("ca", None, "self-signed certificate"),
        ("other", "ca.pem", "IP address mismatch"),
        ("expired", "ca.pem", "certificate has expired"),
    ],
)
def test_a_certificate_that_proves_nothing_ends_the_request_before_the_key_leaves(
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
    certificate: str,
    authority: str | None,
    reason: str,
):  # faults: 72
    if authority:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / authority))
    monkeypatch.setenv("WANDB_INSECURE_DISABLE_SSL", "true")
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read())

    answer = asked(handler, tls=presenting(certificates, certificate), key=KEY)

    assert answer.status is None
    assert reason in answer.error
    assert "SSL_CERT_FILE" in answer.error
    assert "127.0.0.1" in answer.error
    assert b"".join(seen) == b""


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize("path", ["missing", "ca.key"])
def test_certificates_that_cannot_be_read_are_named(
    certificates: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str
):
    monkeypatch.setenv(name, str(certificates / path))

    answer = asyncio.run(sent(Http(), "https://127.0.0.1:1/"))

    assert answer.status is None
    assert name in answer.error


def test_mended_certificates_are_noticed_without_a_restart(
    certificates: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes((certificates / "other.pem").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))

    async def ask() -> list[int | None]:
        http = Http()
        async with serving(saying(answer_of(b"{}")), presenting(certificates, "good")) as port:
            before = await http.send("POST", f"https://127.0.0.1:{port}/", b"", {})
            bundle.write_bytes((certificates / "ca.pem").read_bytes())
            after = await http.send("POST", f"https://127.0.0.1:{port}/", b"", {})
            await http.close()
            return [before.status, after.status]

    assert asyncio.run(ask()) == [None, 200]


def test_a_server_that_speaks_no_tls_is_told_as_such():
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def ask() -> Answer:
        async with serving(handler) as port:
            return await sent(Http(), f"https://127.0.0.1:{port}/")

    answer = asyncio.run(ask())

    assert answer.status is None
    assert "TLS with 127.0.0.1" in answer.error


def test_garbage_in_the_middle_of_tls_is_an_answer_too(certificates: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        under_tls = os.dup(writer.get_extra_info("socket").fileno())
        os.write(under_tls, b"\x17\x03\x03\x00\x20" + bytes(32))
        os.close(under_tls)
        await asyncio.Event().wait()

    answer = asked(handler, Http(silence_s=5), tls=presenting(certificates, "good"))

    assert answer.status is None
    assert "TLS with 127.0.0.1" in answer.error


# -- proxies ---------------------------------------------------------------------------------------------------


class Proxy:
    """A proxy that tunnels, or forwards one request; with a password, only for who knows it."""

    def __init__(self, password: str | None = None, refuses: str | None = None) -> None:
        self.heads: list[str] = []
        self._wanted = None if password is None else base64.b64encode(f"me:{password}".encode()).decode()
        self._refuses = refuses

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        method, target, _ = head.split(" ", 2)
        if self._refuses is not None or (self._wanted is not None and self._wanted not in head):
            writer.write(answer_of(b"", status=self._refuses or "407 Proxy Authentication Required"))
            return
        host, _, port = target.removeprefix("http://").partition("/")[0].partition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            there_writer.write(head.encode())
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def asked_through(
    proxy: Handler,
    monkeypatch: pytest.MonkeyPatch,
    tls: ssl.SSLContext | None,
    login: str = "",
    variable: str = "",
) -> Answer:
    async def ask() -> Answer:
        async with serving(proxy) as proxy_port, serving(saying(answer_of(b"{}")), tls) as port:
            scheme = "http" if tls is None else "https"
            monkeypatch.setenv(variable or f"{scheme.upper()}_PROXY", f"http://{login}127.0.0.1:{proxy_port}")
            return await sent(Http(), f"{scheme}://127.0.0.1:{port}/", key=KEY)

    return asyncio.run(ask())


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_tunnels_and_does_not_see_the_key(
    certificates: Path, monkeypatch: pytest.MonkeyPatch, variable: str
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    proxy = Proxy("pass:word")

    answer = asked_through(
        proxy, monkeypatch, presenting(certificates, "good"), login="me:pass%3Aword@", variable=variable
    )

    assert (answer.status, answer.error) == (200, "")
    (head,) = proxy.heads
    assert head.startswith("CONNECT 127.0.0.1:")
    assert BASIC not in head


def test_a_plain_address_goes_through_its_proxy_too(monkeypatch: pytest.MonkeyPatch):
    proxy = Proxy("word")

    answer = asked_through(proxy, monkeypatch, None, login="me:word@")

    assert answer.status == 200
    assert proxy.heads[0].startswith("POST http://127.0.0.1:")


@pytest.mark.parametrize("is_tunnel", [True, False])
def test_a_proxy_that_wants_a_login_says_so_and_its_password_is_not_told(
    certificates: Path, monkeypatch: pytest.MonkeyPatch, is_tunnel: bool
):
    tls = presenting(certificates, "good") if is_tunnel else None

    answer = asked_through(Proxy("word"), monkeypatch, tls, login="me:wrong-secret@")

    assert answer.status == 407
    assert "HTTPS_PROXY" in answer.error
    assert "wrong-secret" not in repr(answer)


def test_a_tunnel_that_is_refused_is_the_proxys_word_and_not_the_servers(
    certificates: Path, monkeypatch: pytest.MonkeyPatch
):
    """A 403 of W&B's own would park the run."""
    answer = asked_through(
        Proxy(refuses="403 Filtered"), monkeypatch, presenting(certificates, "good"), login="me:secret@"
    )

    assert answer.status is None
    assert answer.error.startswith("the proxy 127.0.0.1:")
    assert answer.error.endswith("refuses (403 Filtered)")


def test_a_proxy_that_is_away_is_told_from_a_server_that_is(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        proxy = f"localhost:{bound.getsockname()[1]}"
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@{proxy}")

        answer = asyncio.run(sent(Http(), "https://api.wandb.example/"))

    assert answer.error == f"cannot connect to the proxy {proxy}: connection refused"


@pytest.mark.parametrize("exempt", ["*", "127.0.0.1"])
def test_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch, exempt: str):
    monkeypatch.setenv("NO_PROXY", exempt)
    proxy = Proxy()

    assert asked_through(proxy, monkeypatch, None).status == 200
    assert proxy.heads == []


@pytest.mark.parametrize(
    "proxy", ["carrier-pigeon://me:secret@coop", "http://me:secret@host:port", "http://[::"]
)
def test_a_proxy_that_is_no_address_is_an_answer_that_keeps_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str
):
    monkeypatch.setenv("HTTPS_PROXY", proxy)

    answer = asyncio.run(sent(Http(), "https://127.0.0.1:1/"))

    assert answer.status is None
    assert "HTTPS_PROXY" in answer.error
    assert "secret" not in answer.error


def test_a_socks_proxy_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")

    answer = asyncio.run(sent(Http(), "https://127.0.0.1:1/"))

    assert answer.status is None
    assert "pip install 'httpx[socks]'" in answer.error
