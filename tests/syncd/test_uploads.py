"""Files and artifacts of a run on their way to a real server: what arrives, what is counted, what is repeated."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from eventlog.reader import StreamReader
from eventlog.record import Record
from syncd.http import Answer
from syncd.shipper import Outcome, Verdict
from syncd.transfer import DAMAGED, MISSING, Made, MadeOnDisk
from syncd.uploads import BAD_NAME, BATCH_FILES, Done, Uploads
from syncd.wandb_api import WandbApi, headers_of
from tests.logs import HandmadePiece, handmade_run
from tests.wandb_server import Fault, WandbServer
from tests.wandb_server.server import API_KEY
from tests.wandb_server.store import StoredRun

DEADLINE_S = 30.0
RUN = ("ent", "demo", "run")
WRITER = "main-0001"


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer(entity="ent") as running:
        running.seed_run("demo", "run")
        yield running


class FileLog:
    """A run's `files` stream and store, written by hand."""

    def __init__(self, root: Path) -> None:
        events = handmade_run(root)
        self.run_dir = events.piece.dir.parent
        self.stream = HandmadePiece(events.identity, events.piece, "files")
        (self.run_dir / "files").mkdir()

    def store(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        self.path_of(sha256).write_bytes(content)
        return sha256

    def file(self, path: str, content: bytes) -> Path:
        """Log a file; return where its content lies."""
        sha256 = self.store(content)
        self.stream.log("file", path=path, sha256=sha256, size=len(content))
        return self.path_of(sha256)

    def path_of(self, sha256: str) -> Path:
        return self.run_dir / "files" / sha256

    def records(self, first_seq: int = 0) -> list[Record]:
        return StreamReader(self.run_dir / WRITER, "files", first_seq).read().records


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    return FileLog(tmp_path)


class Bringing:
    """Brings a log's files to the server, as `RunSync` does; what it heard is kept."""

    def __init__(self, server: WandbServer, log: FileLog, key: str = API_KEY) -> None:
        self.server, self.log, self.key = server, log, key
        self.cursor = Done(place=(WRITER, 0))
        self.outcomes: list[Outcome] = []

    def run(self, made: dict[str, Any] | None = None, tries: int = 30) -> StoredRun:
        """Go on from the cursor to the end of the log, as a new process."""
        asyncio.run(asyncio.wait_for(self.main(made or {}, tries), DEADLINE_S))
        return self.server.run(*RUN)

    async def main(self, made: dict[str, Any], tries: int) -> None:
        api = WandbApi(self.server.base_url, lambda: self.key)
        try:
            uploads = Uploads(self.log.run_dir, api, *RUN, not_stored=self.cursor.not_stored)
            assert self.cursor.place is not None
            uploads.offer(self.log.records(self.cursor.place[1]), WRITER)
            uploads.offer_made(made)
            while (uploads.has_work or uploads.done) and tries:
                tries -= 1
                self.outcomes.append(await uploads.step())
                await self._tell(api, uploads)
        finally:
            await api.close()

    async def _tell(self, api: WandbApi, uploads: Uploads) -> None:
        done = uploads.done
        if done is None:
            return
        answer = Answer(200, content={})
        if done.paths:
            answer = await api.file_stream(*RUN, orjson.dumps({"uploaded": done.paths}))
        if answer.content is not None and answer.status == 200:
            uploads.told(done)
            self.cursor = Done((), done.place or self.cursor.place, done.not_stored)

    @property
    def not_stored(self) -> dict[str, int]:
        return dict(self.cursor.not_stored)


@pytest.fixture
def bringing(server: WandbServer, log: FileLog) -> Bringing:
    return Bringing(server, log)


def count(server: WandbServer, kind: str) -> int:
    return sum(request.kind.startswith(kind) for request in server.requests)


def test_a_file_arrives_and_the_server_is_told(server: WandbServer, log: FileLog, bringing: Bringing):
    log.file("media/images/a.png", b"png")
    log.file("sub dir/empty é.txt", b"")

    run = bringing.run()

    assert run.files == {"media/images/a.png": b"png", "sub dir/empty é.txt": b""}
    assert run.uploaded == ["media/images/a.png", "sub dir/empty é.txt"]
    assert bringing.cursor.place == (WRITER, 2)
    assert server.violations == []


def test_a_large_file_arrives_whole(server: WandbServer, log: FileLog, bringing: Bringing):
    content = os.urandom(3 * 1024 * 1024 + 17)
    log.file("model.bin", content)

    run = bringing.run()

    assert run.files["model.bin"] == content


def test_many_files_are_asked_for_in_batches(server: WandbServer, log: FileLog, bringing: Bringing):
    for i in range(2 * BATCH_FILES + 1):
        log.file(f"{i}.txt", b"%d" % i)

    run = bringing.run()

    assert len(run.files) == 2 * BATCH_FILES + 1
    assert count(server, "graphql:CreateRunFiles") == 3


def test_a_later_record_of_a_path_replaces_an_earlier_one(
    server: WandbServer, log: FileLog, bringing: Bringing
):
    log.file("notes.txt", b"old")
    log.file("notes.txt", b"new")

    run = bringing.run()

    assert run.files == {"notes.txt": b"new"}
    assert count(server, "files") == 1


def test_files_that_syncd_makes_go_the_same_way(server: WandbServer, bringing: Bringing):
    run = bringing.run({"config.yaml": Made(b"lr:\n")})

    assert (run.files, run.uploaded) == ({"config.yaml": b"lr:\n"}, ["config.yaml"])


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"!")


def shorten(path: Path) -> None:
    os.truncate(path, 2)


def link_elsewhere(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("happening", "reason"),
    [(damage, DAMAGED), (shorten, DAMAGED), (Path.unlink, MISSING), (Path.read_bytes, None)],
)
def test_a_file_that_is_not_what_was_logged_is_counted_and_the_rest_goes_on(
    server: WandbServer,
    log: FileLog,
    bringing: Bringing,
    happening: Callable[[Path], object],
    reason: str | None,
):  # faults: 31, 35
    log.file("before.txt", b"before")
    happening(log.file("odd.txt", b"odd" * 200_000))
    log.file("after.txt", b"after")

    run = bringing.run()

    expected = {"before.txt", "after.txt"} | ({"odd.txt"} if reason is None else set())
    assert set(run.files) == set(run.uploaded) == expected
    assert bringing.not_stored == ({reason: 1} if reason else {})
    assert bringing.cursor.place == (WRITER, 3)


def test_a_link_in_the_store_is_not_followed(server: WandbServer, log: FileLog, bringing: Bringing):
    # faults: 35
    link_elsewhere(log.file("link.txt", b"secret"))

    run = bringing.run()

    assert run.files == {}
    assert bringing.not_stored == {MISSING: 1}


@pytest.mark.parametrize("path", ["../up.txt", "/etc/passwd", "a//b", "", "wandb-history.jsonl", "a\nb"])
def test_a_name_that_is_not_below_the_run_is_counted(
    server: WandbServer, log: FileLog, bringing: Bringing, path: str
):  # faults: 93
    log.file(path, b"x")
    log.file("fine.txt", b"y")

    run = bringing.run()

    assert run.files == {"fine.txt": b"y"}
    assert bringing.not_stored == {BAD_NAME: 1}


def test_a_record_cannot_name_a_file_outside_the_store(
    server: WandbServer, log: FileLog, bringing: Bringing, tmp_path: Path
):
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 1_000_000)
    log.stream.log(
        "file", path="a.txt", sha256=os.path.relpath(secret, log.run_dir / "files"), size=1_000_000
    )

    run = bringing.run()

    assert run.files == {}
    assert server.requests == []


def test_the_server_does_not_hear_of_a_file_whose_size_is_wrong(
    server: WandbServer, log: FileLog, bringing: Bringing
):
    shorten(log.file("short.txt", b"short"))

    bringing.run()

    assert server.requests == []
    assert bringing.not_stored == {DAMAGED: 1}


class ShrinkingApi(WandbApi):
    """The file that is sent becomes shorter when its first bytes have left."""

    file: Path

    async def put(self, url: str, upload_headers: Sequence[str], content: Any, size: int) -> Answer:
        async def shrinking() -> AsyncIterator[bytes]:
            async for chunk in content:
                yield chunk
                shorten(self.file)

        return await super().put(url, upload_headers, shrinking(), size)


def test_a_file_that_shrinks_while_it_is_sent_ends_its_request(server: WandbServer, log: FileLog):
    async def main() -> Done | None:
        api = ShrinkingApi(server.base_url, lambda: API_KEY)
        api.file = log.file("model.bin", os.urandom(2_000_000))
        uploads = Uploads(log.run_dir, api, *RUN)
        uploads.offer(log.records(), WRITER)
        await uploads.step()
        await api.close()
        return uploads.done

    done = asyncio.run(asyncio.wait_for(main(), DEADLINE_S))

    assert done == Done((), (WRITER, 1), {DAMAGED: 1})
    assert server.run(*RUN).files == {}


TROUBLE = [
    Fault("drop"),
    Fault("drop", applied=True),
    Fault("truncate"),
    Fault("status", status=408),
    Fault("status", status=429, retry_after="0"),
    Fault("status", status=503),
    Fault("status", status=502, applied=True),
    Fault("hang", hang_s=0.05),
    Fault("portal"),
    Fault("redirect"),
]


@pytest.mark.parametrize("kind", ["graphql:CreateRunFiles", "files", "file_stream"])
@pytest.mark.parametrize("fault", TROUBLE, ids=lambda fault: f"{fault.action}-{fault.status}-{fault.applied}")
def test_trouble_on_the_way_delays_and_loses_nothing(
    server: WandbServer, log: FileLog, bringing: Bringing, kind: str, fault: Fault
):  # faults: 68, 72
    for i in range(5):
        log.file(f"{i}.txt", b"%d" % i)
    server.faults.add(Fault(**{**fault_fields(fault), "kind": kind, "times": 2}))

    run = bringing.run()

    assert run.files == {f"{i}.txt": b"%d" % i for i in range(5)}
    assert set(run.uploaded) == set(run.files)
    assert bringing.not_stored == {}
    assert bringing.cursor.place == (WRITER, 5)
    assert server.violations == []


def fault_fields(fault: Fault) -> dict[str, Any]:
    return {name: getattr(fault, name) for name in Fault.__dataclass_fields__}


# Stores differ in what they call it.
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_an_expired_url_is_asked_for_again(
    server: WandbServer, log: FileLog, bringing: Bringing, status: int
):
    log.file("a.txt", b"a")
    server.faults.add("status", kind="files", status=status, times=2)

    run = bringing.run()

    assert run.files == {"a.txt": b"a"}
    assert count(server, "graphql:CreateRunFiles") == 3


def test_a_file_that_the_store_refuses_again_and_again_is_counted(
    server: WandbServer, log: FileLog, bringing: Bringing
):  # faults: 70
    log.file("bad.txt", b"poison")
    log.file("good.txt", b"good")
    server.faults.add("status", kind="files", status=403, containing="poison")

    run = bringing.run()

    assert run.files == {"good.txt": b"good"}
    assert bringing.not_stored == {"file refused by its store (HTTP 403: injected 403)": 1}
    assert bringing.cursor.place == (WRITER, 2)


def test_a_name_that_the_server_refuses_is_looked_for_and_counted(
    server: WandbServer, log: FileLog, bringing: Bringing
):  # faults: 70
    for name in ("a", "b", "poison", "c", "d"):
        log.file(name, name.encode())
    server.faults.add("status", kind="graphql:CreateRunFiles", status=400, containing="poison")

    run = bringing.run()

    assert set(run.files) == {"a", "b", "c", "d"}
    assert bringing.not_stored == {"file refused by the server (HTTP 400: injected 400)": 1}


@pytest.mark.parametrize(
    ("status", "verdict"), [(401, Verdict.UNAUTHORISED), (403, Verdict.FORBIDDEN), (404, Verdict.FORBIDDEN)]
)
def test_a_refusal_of_the_key_or_the_run_is_the_callers_to_handle(
    server: WandbServer, log: FileLog, bringing: Bringing, status: int, verdict: Verdict
):  # faults: 71
    log.file("a.txt", b"a")
    server.faults.add("status", kind="graphql:CreateRunFiles", status=status)

    run = bringing.run(tries=1)

    assert [outcome.verdict for outcome in bringing.outcomes] == [verdict]
    assert run.files == {}
    assert bringing.cursor.place == (WRITER, 0)


def test_the_server_says_how_long_to_wait(server: WandbServer, log: FileLog, bringing: Bringing):
    log.file("a.txt", b"a")
    server.faults.add("status", kind="files", status=429, retry_after="7")

    bringing.run(tries=1)

    assert bringing.outcomes[0].retry_after_s == 7.0


class DyingApi(WandbApi):
    """Before and after every request counts down, and cancels everything at zero."""

    left = 0
    dying: asyncio.Task[Any] | None = None

    def count_down(self) -> None:
        self.left -= 1
        if self.left < 0 and self.dying is not None:
            self.dying.cancel()

    async def _graphql(self, *args: Any) -> Answer:
        self.count_down()
        answer = await super()._graphql(*args)
        self.count_down()
        return answer

    async def put(self, *args: Any) -> Answer:
        self.count_down()
        answer = await super().put(*args)
        self.count_down()
        return answer


def dies_at(server: WandbServer, log: FileLog, at: int) -> bool:
    """Bring a log's files with a process that dies at that point; return whether it got so far."""

    async def main() -> bool:
        api = DyingApi(server.base_url, lambda: API_KEY)
        uploads = Uploads(log.run_dir, api, *RUN)
        uploads.offer(log.records(), WRITER)
        api.left, api.dying = at, asyncio.ensure_future(uploads.step())
        try:
            await api.dying
        except asyncio.CancelledError:
            return True
        finally:
            await api.close()
        return False

    return asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


@pytest.mark.parametrize("at", range(9))
def test_a_process_that_dies_at_any_request_leaves_work_that_the_next_one_ends(
    server: WandbServer, log: FileLog, bringing: Bringing, at: int
):  # faults: 44
    for i in range(3):
        log.file(f"{i}.txt", b"%d" % i)

    died = dies_at(server, log, at)
    run = bringing.run()

    assert died == (at < 8)
    assert run.files == {f"{i}.txt": b"%d" % i for i in range(3)}
    assert set(run.uploaded) == set(run.files)
    assert bringing.not_stored == {}


def test_a_cancelled_step_can_be_taken_again(server: WandbServer, log: FileLog):
    log.file("a.txt", b"a")
    log.file("b.txt", b"b")
    server.faults.add("hang", kind="files")

    async def main() -> Done | None:
        api = WandbApi(server.base_url, lambda: API_KEY)
        uploads = Uploads(log.run_dir, api, *RUN)
        uploads.offer(log.records(), WRITER)
        step = asyncio.ensure_future(uploads.step())
        while count(server, "graphql:CreateRunFiles") == 0:
            await asyncio.sleep(0.01)
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)
        server.faults.clear()
        await uploads.step()
        await api.close()
        return uploads.done

    done = asyncio.run(asyncio.wait_for(main(), DEADLINE_S))

    assert done == Done(("a.txt", "b.txt"), (WRITER, 2), {})


def test_what_is_over_while_the_server_is_being_told_is_told_next(server: WandbServer, log: FileLog):
    for i in range(BATCH_FILES + 1):
        log.file(f"{i}", b"x")

    async def main() -> tuple[Done | None, Done | None]:
        api = WandbApi(server.base_url, lambda: API_KEY)
        uploads = Uploads(log.run_dir, api, *RUN)
        uploads.offer(log.records(), WRITER)
        await uploads.step()
        first = uploads.done
        await uploads.step()
        assert first is not None
        uploads.told(first)
        await api.close()
        return first, uploads.done

    first, second = asyncio.run(asyncio.wait_for(main(), DEADLINE_S))

    assert first is not None
    assert first.place == (WRITER, BATCH_FILES)
    assert second == Done((str(BATCH_FILES),), (WRITER, BATCH_FILES + 1), {})


class OddApi(WandbApi):
    """A server that answers whatever it likes."""

    answer: Any = None

    async def create_run_files(self, *args: Any) -> Answer:
        return Answer(200, content={"data": self.answer})


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"createRunFiles": None},
        {"createRunFiles": {"files": 7}},
        {"createRunFiles": {"files": [None, 3, {}, {"name": 4}, {"name": "a.txt", "uploadUrl": {}}]}},
        {"createRunFiles": {"files": [{"name": "other", "uploadUrl": "http://127.0.0.1:1/"}]}},
        {"createRunFiles": {"files": [{"name": "a.txt", "uploadUrl": "file:///etc/passwd"}]}},
        {
            "createRunFiles": {
                "files": [{"name": "a.txt", "uploadUrl": "http://[::1"}],
                "uploadHeaders": {"a": 1},
            }
        },
    ],
)
def test_an_answer_that_makes_no_sense_is_trouble_and_no_crash(
    server: WandbServer, log: FileLog, answer: Any
):
    log.file("a.txt", b"a")

    async def main() -> Outcome:
        api = OddApi(server.base_url, lambda: API_KEY)
        api.answer = answer
        uploads = Uploads(log.run_dir, api, *RUN)
        uploads.offer(log.records(), WRITER)
        outcome = await uploads.step()
        await api.close()
        assert uploads.done is None
        return outcome

    outcome = asyncio.run(asyncio.wait_for(main(), DEADLINE_S))

    assert outcome.verdict in (Verdict.RETRY, Verdict.UNREACHABLE)
    assert count(server, "files") == 0


def test_a_server_on_https_cannot_lead_an_upload_to_plain_http(server: WandbServer):
    async def main() -> Answer:
        api = WandbApi("https://api.example.com", lambda: API_KEY)
        answer = await api.put(server.base_url + "/_files/runs/ent/demo/run/a", [], Made(b"a").chunks(), 1)
        await api.close()
        return answer

    answer = asyncio.run(main())

    assert answer.status == 403
    assert count(server, "files") == 0


def test_upload_headers_cannot_carry_anything_of_ours():
    lines = [
        "Authorization: Basic x",
        "HOST: b",
        "content-length: 3",
        "Cookie: c",
        "x: a\r\nCookie: b",
        "ok: 1",
    ]

    headers = headers_of(lines)

    assert headers == {"ok": "1"}


def test_a_file_that_is_long_in_the_making_is_given_up_when_nobody_waits_for_it(tmp_path: Path):
    made: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def parts() -> Iterator[bytes]:
        for number in range(1000):
            made.append(number)
            begun.set()
            go_on.wait(DEADLINE_S)
            yield b"part"

    async def play() -> None:
        task = asyncio.ensure_future(MadeOnDisk(tmp_path, parts).prepare())
        await asyncio.to_thread(begun.wait, DEADLINE_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        go_on.set()

    asyncio.run(play())

    assert len(made) <= 2
