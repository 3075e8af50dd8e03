"""Any order of events and faults, and still each row once: a story told at random, compared with a model.

    story ─▶ a log on the disk ─▶ RunSync ─▶ two servers
      │           │ damage         │ kills      │ outages, lost answers, stale counts
      └─▶ model ──┴────────────────┴────────────┴─▶ the same rows, whenever all comes to rest

The log, the cursor and the servers are real, and so is what befalls them; time is a number that the story passes.
A kill is an exception where the request is made: what a `RunSync` had in memory is gone, what is on the disk stays.

Left out: damage to what was read already, and a log rolled back behind what was sent.  There no answer is right but
to stop, which `tests/faults` checks.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import certifi
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from eventlog import cursor as cursors
from eventlog.cursor import Sink
from eventlog.piece import RunIdentity, claim_primary
from eventlog.record import encode
from syncd import attach
from syncd.run_sync import DAMAGED, RunSync
from syncd.wandb_api import Answer, WandbApi
from tests.exactly_once.model import LoggedLine, shown
from tests.logs import TIME_US, HandmadePiece
from tests.wandb_server import API_KEY, ResumeAnswers, StoredRun, WandbServer, differences

# More turns than any of these runs needs, with all the waiting for counts to stand still.
TURNS_MAX = 300
# Thousands of small files, and nothing of them is to outlive the test.
MEMORY = Path("/dev/shm")
POISON = "poisonous"
FAULTS = (
    {"action": "drop"},
    {"action": "drop", "applied": True},
    {"action": "truncate"},
    {"action": "portal"},
    {"action": "status", "status": 401},
    {"action": "status", "status": 408},
    {"action": "status", "status": 413, "over_bytes": 700, "kind": "file_stream"},
    {"action": "status", "status": 429, "retry_after": "7"},
    {"action": "status", "status": 500, "applied": True},
    {"action": "status", "status": 503},
)
ANSWERS = (ResumeAnswers(), ResumeAnswers("late", lag_s=8.0), ResumeAnswers("stale", behind=3, queries=None))

OF_NOTHING = b'{"crc":"00000000","format":1}\n'

numbers = itertools.count()
uploaders = st.sampled_from([0, 0, 1])
values = st.one_of(
    st.integers(-9, 9),
    st.sampled_from([0.5, float("nan"), float("inf"), -0.0, 2**62, None, True, "é\n", [1, 2.5]]),
)
# What is logged, at which step after the current one (None: no step is named), `commit`, and whether W&B refuses it.
Call = tuple[Any, int | None, bool | None, bool]
calls = st.lists(
    st.tuples(
        values,
        st.sampled_from([None, None, 0, 0, 1, 1, 5, -1]),
        st.sampled_from([None, None, True, False]),
        st.sampled_from([False] * 9 + [True]),
    ),
    min_size=1,
    max_size=5,
)


class Clock:
    """The story's monotonic clock, and the servers'."""

    def __init__(self) -> None:
        self.now_s = 0.0


class Killed(BaseException):
    """The daemon's process ends here."""


class MortalApi(WandbApi):
    """The real one.  It can be told to die at a request, and knows which lines went out and were not acknowledged."""

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url, lambda: API_KEY)
        self.unsure_lines = 0
        self.dies: tuple[int, bool] | None = None
        """After how many more requests, and whether that one still reaches the server."""

    async def resume_status(self, entity: str | None, project: str, run_id: str) -> Answer:
        return await self._mortally(super().resume_status(entity, project, run_id), 0)

    async def upsert_run(self, **variables: Any) -> Answer:
        return await self._mortally(super().upsert_run(**variables), 0)

    async def file_stream(self, entity: str, project: str, run_id: str, body: bytes) -> Answer:
        files = json.loads(body).get("files", {})
        lines = sum(len(part["content"]) for file, part in files.items() if file != "wandb-summary.json")
        return await self._mortally(super().file_stream(entity, project, run_id, body), lines)

    async def _mortally(self, request: Any, lines: int) -> Answer:
        if self.dies is not None and self.dies[0] > 0:
            self.dies = (self.dies[0] - 1, self.dies[1])
        elif self.dies is not None:
            if self.dies[1]:
                await request
                self.unsure_lines += lines
            else:
                request.close()
            self.dies = None
            raise Killed
        answer: Answer = await request
        if answer.status != 200 or answer.content is None:
            self.unsure_lines += lines
        return answer


class Story(RuleBasedStateMachine):
    """One run, what its trainers and its disk do, and two uploaders to two servers."""

    servers: tuple[WandbServer, WandbServer]
    clock: Clock
    sync_type: type[RunSync] = RunSync
    api_type: type[MortalApi] = MortalApi

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="story", dir=MEMORY if MEMORY.is_dir() else None))
        self.loop = asyncio.new_event_loop()
        self.time_us = TIME_US
        self.xs = itertools.count()
        self.identity = RunIdentity.new("demo", f"run{next(numbers)}", None)
        self.run_dir = self.identity.directory(self.root)
        self.identity.publish(self.run_dir)
        self.pieces: list[list[LoggedLine]] = []
        self.is_written = False
        self.half: LoggedLine | None = None
        """A line of which one half is on the disk."""
        self.seen_bytes: dict[Path, int] = {}
        """How long each segment was when somebody may have read it."""
        self.seeded = [0, 0]
        self.uploaders = [Uploader(self, number) for number in (0, 1)]

    def teardown(self) -> None:
        try:
            if self.is_written:
                self.die()
            for uploader in self.uploaders:
                uploader.rest()
                uploader.check()
        finally:
            for uploader in self.uploaders:
                uploader.calm()
                uploader.server.resume = ResumeAnswers()
                uploader.server.store.runs.clear()
                uploader.server.store.violations.clear()
                uploader.server.clear_requests()
                uploader.kill()
                self.loop.run_until_complete(uploader.api.close())
            self.loop.close()
            shutil.rmtree(self.root)

    # -- the trainer -------------------------------------------------------------------------------------------

    @initialize(seeded=st.sampled_from([0, 3]), answers=st.sampled_from(ANSWERS))
    def begin(self, seeded: int, answers: ResumeAnswers) -> None:
        if seeded:
            # Another client was there before us, in three requests.
            self.seeded[0] = seeded
            for rows in range(1, seeded + 1):
                rows_there = [
                    {"theirs": i, "_step": i, "_timestamp": 0.0, "_runtime": 0.0} for i in range(rows)
                ]
                run = self.servers[0].seed_run("demo", self.identity.run_id, rows_there)
                self.uploaders[0].sent_again = run.replayed_lines
        self.servers[0].resume = answers
        self.resume()

    @precondition(lambda self: not self.is_written)
    @rule()
    def resume(self) -> None:
        so_far = shown(self.pieces)
        self.piece = HandmadePiece(self.identity, claim_primary(self.run_dir))
        self.piece.new_segment()
        self.pieces.append([])
        self.is_written, self.half = True, None
        self.step = so_far.next_step
        self.write("start", {"config": {"piece": len(self.pieces)}})
        # Not in the summary, which would be refused for it as well (and is, where this record is lost).
        self.write("define_metric", {"name": "odd", "summary": ["none"]})

    @precondition(lambda self: self.is_written and self.half is None)
    @rule(calls=calls, in_two=st.booleans())
    def log(self, calls: list[Call], in_two: bool) -> None:
        """Call `log` as often as that; the last call may stop in the middle of its write."""
        for number, call in enumerate(calls, start=1):
            self.log_once(call, in_two and number == len(calls))

    @precondition(lambda self: self.half is not None)
    @rule()
    def write_the_other_half(self) -> None:
        assert self.half is not None
        self.piece.append(self.half.text[self.half_bytes :])
        self.pieces[-1].append(self.half)
        self.half = None

    @precondition(lambda self: self.is_written and self.half is None)
    @rule(value=st.integers(0, 9))
    def set_config(self, value: int) -> None:
        self.write("config", {"set": value})

    @precondition(lambda self: self.is_written and self.half is None)
    @rule(value=st.integers(0, 100))
    def sample(self, value: int) -> None:
        self.write("system", {"cpu": value})

    @precondition(lambda self: self.is_written)
    @rule(copies=st.integers(0, 2))
    def rotate(self, copies: int) -> None:
        """Go on in a new segment, with the last records once more, as after a failed fsync; what was torn stays so."""
        here = [line for line in self.pieces[-1] if line.path == self.piece.segment and line.seq >= 0]
        again = here[len(here) - min(copies, len(here)) :]
        torn, self.half = self.half, None
        next_seq = self.piece.seq - (torn is not None)
        first_seq = again[0].seq if again else next_seq
        taken = [_attempt(path) for path in self.piece.piece.dir.glob(f"events-{first_seq:012d}*.jsonl")]
        self.piece.new_segment(first_seq, max(taken, default=-1) + 1)
        for line in [*again, *([torn] if torn else [])]:
            self.append(LoggedLine(**{**vars(line), "is_whole": True}))

    @precondition(lambda self: self.is_written and self.half is None)
    @rule(exitcode=st.sampled_from([0, 0, 3]))
    def finish(self, exitcode: int) -> None:
        self.write("exit", {"exitcode": exitcode})
        self.die()

    @precondition(lambda self: self.is_written)
    @rule()
    def die(self) -> None:
        self.piece.die()
        self.is_written, self.half = False, None

    @rule(jump_s=st.sampled_from([-3600, -5, 0.001, 60, 864_000]))
    def set_the_wall_clock(self, jump_s: float) -> None:
        self.time_us += int(jump_s * 1e6)

    # -- the trainer's disk ------------------------------------------------------------------------------------

    @precondition(lambda self: self.pieces and self.unread_lines())
    @rule(data=st.data())
    def flip_a_byte(self, data: st.DataObject) -> None:
        line = data.draw(st.sampled_from(self.unread_lines()), label="line")
        at = data.draw(st.integers(0, len(line.text) - 2), label="byte")
        other = line.text[at] ^ data.draw(st.integers(1, 255), label="bits")
        with open(line.path, "r+b") as file:
            file.seek(line.offset + at)
            file.write(bytes([other]))
        line.is_whole = False

    @precondition(lambda self: self.is_written and self.half is None)
    @rule(garbage=st.sampled_from([b"", b"\0" * 30, b"\xff\xfe{}", b'{"crc":"00000000","seq":1}', b"   "]))
    def write_garbage(self, garbage: bytes) -> None:
        self.append(LoggedLine(self.piece.segment, 0, garbage + b"\n", is_whole=False))

    @precondition(lambda self: self.is_written)
    @rule(data=st.data())
    def lose_power_at_the_trainer(self, data: st.DataObject) -> None:
        """What nobody read yet may be gone from the file's end."""
        size = self.piece.segment.stat().st_size
        cut = data.draw(st.integers(self.seen_bytes.get(self.piece.segment, 0), size), label="bytes left")
        self.piece.cut(cut)
        self.pieces[-1] = [
            line
            for line in self.pieces[-1]
            if line.path != self.piece.segment or line.offset + len(line.text) <= cut
        ]
        self.die()

    @precondition(lambda self: self.unread_segments())
    @rule(data=st.data())
    def lose_a_segment(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(self.unread_segments()), label="segment")
        path.unlink()
        self.pieces[-1] = [line for line in self.pieces[-1] if line.path != path]

    # -- the daemon and its servers ----------------------------------------------------------------------------

    @rule(
        which=uploaders,
        calls=calls,
        fault=st.one_of(st.none(), st.sampled_from(FAULTS)),
        kind=st.sampled_from(["any", "file_stream", "file_stream", "graphql"]),
        times=st.integers(1, 2),
    )
    def upload(
        self, which: int, calls: list[Call], fault: dict[str, Any] | None, kind: str, times: int
    ) -> None:
        """Let it work while the trainer logs, if there is one; some requests may go wrong."""
        if fault is not None:
            self.servers[which].faults.add(**{"kind": kind, **fault, "times": times})
        for call in calls:
            self.log_once(call)
            self.uploaders[which].turn()

    @rule(which=uploaders, calls=calls, requests=st.integers(0, 3), reaches=st.booleans())
    def upload_until_killed(self, which: int, calls: list[Call], requests: int, reaches: bool) -> None:
        """Kill it at a request, before or after that reached the server; between two turns if it makes too few."""
        uploader = self.uploaders[which]
        uploader.api.dies = (requests, reaches)
        for call in calls:
            self.log_once(call)
            uploader.turn()
            if uploader.sync is None:
                break
        uploader.api.dies = None
        uploader.kill()

    @rule(which=uploaders, how=st.sampled_from(["stopped", "power", "deleted", b"", b"\0" * 50, OF_NOTHING]))
    def end_the_daemon(self, which: int, how: Any) -> None:
        """Stop it, cut its power, or kill it and take its cursor away or fill it with garbage."""
        uploader = self.uploaders[which]
        if how == "stopped":
            uploader.stop()
        elif how == "power":
            uploader.lose_power()
        else:
            uploader.lose_cursor(None if how == "deleted" else how)

    @rule(seconds=st.sampled_from([0.5, 6.0, 31.0, 3600.0, 1e6]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule(which=uploaders, is_up=st.booleans())
    def the_network_comes_and_goes(self, which: int, is_up: bool) -> None:
        self.servers[which].up() if is_up else self.servers[which].down()

    @rule(which=uploaders, answers=st.sampled_from(ANSWERS))
    def the_counts_lag(self, which: int, answers: ResumeAnswers) -> None:
        self.servers[which].resume = answers

    # -- what must hold ----------------------------------------------------------------------------------------

    @rule(which=uploaders)
    def all_comes_to_rest(self, which: int) -> None:
        self.uploaders[which].rest()
        self.uploaders[which].check()

    # -- how it is done ----------------------------------------------------------------------------------------

    def log_once(self, call: Call, in_two: bool = False) -> None:
        if not self.is_written or self.half is not None:
            return
        value, ahead, commit, is_odd = call
        data = {"x": next(self.xs), "y": value, **({"odd": POISON} if is_odd else {})}
        step = self.step if ahead is None else self.step + ahead
        closes = commit is True or (ahead is None and commit is not False)
        if step >= self.step:
            self.step = step + closes
        self.write("metrics", data, step, closes, in_two)

    def write(
        self,
        kind: str,
        data: dict[str, Any],
        step: int | None = None,
        commit: bool = False,
        in_two: bool = False,
    ) -> None:
        self.time_us += 1000
        text = encode(self.piece.seq, self.time_us, kind, data, step, commit)
        line = LoggedLine(self.piece.segment, 0, text, self.piece.seq, kind, step or 0, commit, data)
        self.piece.seq += 1
        self.append(line, len(text) // 2 if in_two else None)

    def append(self, line: LoggedLine, half_bytes: int | None = None) -> None:
        line.path = self.piece.segment
        line.offset = line.path.stat().st_size
        self.piece.append(line.text[:half_bytes])
        if half_bytes is None:
            self.pieces[-1].append(line)
        else:
            self.half, self.half_bytes = line, half_bytes

    def unread_lines(self) -> list[LoggedLine]:
        return [
            line
            for line in self.pieces[-1]
            if line.is_whole and line.offset >= self.seen_bytes.get(line.path, 0) and line.path.exists()
        ]

    def unread_segments(self) -> list[Path]:
        """Return those that nobody has read, but for the last: what that one held would not be missed."""
        if not self.is_written:
            return []
        paths = set(self.piece.piece.dir.glob("events-*.jsonl")) - {self.piece.segment}
        return sorted(path for path in paths if not self.seen_bytes.get(path))

    def look(self) -> None:
        self.seen_bytes = {path: path.stat().st_size for path in self.run_dir.glob("main-*/events-*.jsonl")}


class Uploader:
    """What uploads the run to one of the servers, over all its lives."""

    def __init__(self, story: Story, number: int) -> None:
        self.story = story
        self.number = number
        self.server = story.servers[number]
        self.api = story.api_type(self.server.base_url)
        self.sink = Sink(self.server.base_url, None, "demo", story.identity.run_id)
        self.sync: RunSync | None = None
        self.sent_again = 0
        """How many lines may have been sent twice for a reason."""
        self.knows_all = True
        self.calm()

    @property
    def cursor_path(self) -> Path:
        return self.story.run_dir / "sync" / f"{self.sink.name}.json"

    def turn(self) -> None:
        story = self.story
        story.look()
        self.sync = self.sync or story.sync_type(
            story.run_dir,
            self.sink,
            self.api,
            clock=lambda: story.clock.now_s,
        )
        try:
            due_s = story.loop.run_until_complete(self._turn(self.sync))
        except Killed:
            self.sync = None
            return
        finally:
            assert not self.server.violations, f"rows: {self.server.violations}"
        story.clock.now_s = max(story.clock.now_s, min(due_s, story.clock.now_s + 60.0))

    async def _turn(self, sync: RunSync) -> float:
        due_s = await sync.turn(self.story.clock.now_s)
        # Files go beside the turns.
        while beside := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(beside)
            due_s = self.story.clock.now_s
        return due_s

    def kill(self) -> None:
        if self.sync is not None:
            # As the kernel does for a process that is gone: the lock is free, and nothing is written.
            self.sync._let_go()
            self.sync = None

    def stop(self) -> None:
        if self.sync is not None:
            self.sync.close()
            self.sync = None

    def lose_power(self) -> None:
        """Only what was made durable is left of the cursor."""
        self.kill()
        durable = Path(f"{self.cursor_path}.previous")
        if durable.exists():
            self.cursor_path.unlink(missing_ok=True)
            cursor = cursors.load(self.story.run_dir, self.sink)
            run = self.stored()
            if cursor is not None and run is not None:
                self.sent_again += sum(len(run.lines[file]) - acked for file, acked in cursor.acked.items())

    def lose_cursor(self, garbage: bytes | None) -> None:
        self.kill()
        self.knows_all = False
        for path in (self.cursor_path, Path(f"{self.cursor_path}.previous")):
            if path.exists():
                path.unlink() if garbage is None else path.write_bytes(garbage)

    def calm(self) -> None:
        self.server.faults.clear()
        self.server.up()
        # Once refused, always refused.
        self.server.faults.add("status", kind="file_stream", status=422, containing=POISON)

    def rest(self) -> None:
        self.calm()
        looks = 0
        for _ in range(TURNS_MAX):
            self.turn()
            assert self.sync is not None
            assert not self.sync.parked, f"rows: it stopped: {self.sync.error}"
            looks = looks + 1 if self.sync.caught_up and self.sync.trouble is None else 0
            # Caught up with what there was at its last look, which may have been before the story's last word.
            if looks == 2:
                return
        raise AssertionError(f"it does not come to rest: {self.sync and self.sync.error}")

    def stored(self) -> StoredRun | None:
        return self.server.store.runs.get(("ent", "demo", self.story.identity.run_id))

    def check(self) -> None:
        story, run = self.story, self.stored()
        seeded = story.seeded[self.number]
        wanted = shown(story.pieces, seeded, story.is_written)
        if run is None:
            assert wanted.rows == []
            return
        held = [_without_stub(row) for row in run.history]
        theirs = [{"theirs": i, "_step": i} for i in range(seeded)]
        assert not (wrong := differences([*theirs, *map(_refused, wanted.rows)], held)), f"rows: {wrong}"
        assert [event["system.cpu"] for event in run.events] == wanted.samples
        assert wanted.config.items() <= run.config.items(), f"rows: config {run.config}"
        cursor = cursors.load(story.run_dir, self.sink)
        if "odd" not in wanted.summary:
            summary = {key: run.summary.get(key) for key in wanted.summary}
            assert not (wrong := differences([wanted.summary], [summary])), f"rows: summary {wrong}"
        elif cursor is not None:
            assert any(reason.startswith("summary refused") for reason in cursor.not_shown), "rows: summary"
        # It goes with the last rows, so a client that loses those may be found out by it.
        ended = (run.complete, run.exitcode)
        assert ended == (wanted.exitcode is not None, wanted.exitcode), f"rows: ended {ended}"
        assert run.replayed_lines <= self.sent_again + self.api.unsure_lines, (
            "rows: some were sent again in vain"
        )
        if cursor is not None and not story.is_written:
            assert 0 <= cursor.not_shown.get(DAMAGED, 0) - wanted.lost <= wanted.lost_at_an_end
            assert cursor.not_shown.get("step repeated or in the past", 0) == wanted.repeated


def _attempt(segment: Path) -> int:
    """Return the `.n` of a segment's name."""
    return int(segment.stem.partition(".")[2] or 0)


def _refused(row: dict[str, Any]) -> dict[str, Any]:
    """Return what is shown of a row: of a poisonous one, that it is here."""
    return {"_step": row["_step"], "is_stub": True} if "odd" in row else row


def _without_stub(row: dict[str, Any]) -> dict[str, Any]:
    if "_tidelog_stub" not in row:
        return row
    return {"_step": row["_step"], "is_stub": True}


@dataclass
class World:
    """Two servers and the clock by which they go: for all the stories, since each has a run of its own."""

    clock: Clock
    servers: tuple[WandbServer, WandbServer]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    clock = Clock()
    with (
        WandbServer(entity="ent", now=lambda: clock.now_s) as one,
        WandbServer(entity="ent", now=lambda: clock.now_s) as other,
    ):
        yield World(clock, (one, other))


@pytest.fixture(autouse=True)
def _few_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each new connection would load some 150 authorities, for servers that have no certificate."""
    first = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----")
    (tmp_path / "one.pem").write_text("".join(first[:2]) + "\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "one.pem"))


def tell(story: type[Story], world: World, examples: int, **options: Any) -> None:
    told = type(story.__name__, (story,), vars(world))
    run_state_machine_as_test(
        told,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            derandomize=True,
            deadline=None,
            database=None,
            # A story of 30 steps can be read; to make it shorter takes minutes.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            **options,
        ),
    )


class BelievesInArrival(MortalApi):
    """Takes a request that was sent for one that was acknowledged."""

    async def file_stream(self, entity: str, project: str, run_id: str, body: bytes) -> Answer:
        answer = await super().file_stream(entity, project, run_id, body)
        return answer if answer.content is not None else Answer(200, {}, {})


class TakesAPortalForTheServer(MortalApi):
    async def file_stream(self, entity: str, project: str, run_id: str, body: bytes) -> Answer:
        answer = await super().file_stream(entity, project, run_id, body)
        return Answer(200, {}, {}) if answer.status == 200 else answer


class ForgetsToStub(MortalApi):
    """Gives a line that is refused up, with all that was sent beside it."""

    async def file_stream(self, entity: str, project: str, run_id: str, body: bytes) -> Answer:
        answer = await super().file_stream(entity, project, run_id, body)
        return Answer(200, {}, {}) if answer.status == 422 else answer


class ForgetsWhatIsAcked(RunSync):
    def _save(self, cursor: cursors.Cursor, durable: bool) -> None:
        super()._save(replace(cursor, acked=dict.fromkeys(cursor.acked, 0)), durable)


class ForgetsTheOpenRow(RunSync):
    """Goes on behind a row that was not sent yet."""

    def _resume(self, cursor: cursors.Cursor) -> None:
        if cursor.fold is not None:
            state = {**cursor.fold["state"], "row": None, "row_seq": None}
            cursor = replace(cursor, fold={**cursor.fold, "state": state})
        super()._resume(cursor)


class ForgetsTheConfig(RunSync):
    """Says once what the config is."""

    def _untold(self) -> dict[str, Any]:
        return {what: value for what, value in super()._untold().items() if what != "config"}


class ForgetsTheSummary(RunSync):
    def _want_summary(self) -> None: ...


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_type": BelievesInArrival},
        {"api_type": TakesAPortalForTheServer},
        {"api_type": ForgetsToStub},
        {"sync_type": ForgetsWhatIsAcked},
        {"sync_type": ForgetsTheOpenRow},
        {"sync_type": ForgetsTheConfig},
        {"sync_type": ForgetsTheSummary},
    ],
    ids=lambda wrong: str(*(getattr(value, "__name__", name) for name, value in wrong.items())),
)
def test_a_client_that_does_it_wrong_is_found_out(world: World, wrong: dict[str, Any]):
    with pytest.raises(AssertionError, match=r"^rows: "):
        tell(type("WrongStory", (Story,), wrong), world, examples=600)


def test_a_client_that_believes_the_first_count_is_found_out(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attach, "STEADY_S", 0.0)

    with pytest.raises(AssertionError, match=r"^rows: "):
        tell(Story, world, examples=200)


def test_whatever_happens_each_row_is_there_once_and_in_order(world: World):
    # faults: 100
    tell(Story, world, examples=200)
