"""One run on its way to a real server: what is sent, what is remembered, and when it stops."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eventlog import reader as reader_module
from eventlog.cursor import cursors, save
from syncd import daemon as daemon_module
from syncd.daemon import HINT_S, Daemon
from syncd.fold import HISTORY
from syncd.metadata import MARK
from syncd.shipper import BATCH_MAX_BYTES, FLUSH_S
from syncd.wandb_api import Answer, WandbApi
from tests.faults.turns import Clock, rest, sync_of, turn
from tests.logs import HandmadePiece, handmade_run, resumed
from tests.syncd.syncing import DEADLINE_S, finished_run, sync, sync_while, xs
from tests.wandb_server import WandbServer
from tests.wandb_server.server import API_KEY
from tests.wandb_server.store import ResumeAnswers
from tests.wandb_server.waiting import wait_for


def test_a_finished_run_arrives_whole(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path, config={"lr": 0.1}, name="a name", tags=["t"], notes="n", group="g", job_type="j")

    sync(server, tmp_path)

    run = server.run("ent", "demo", "run")
    assert xs(run) == [0, 1, 2, 3, 4]
    assert (run.display_name, run.tags, run.notes, run.group, run.job_type) == (
        "a name",
        ["t"],
        "n",
        "g",
        "j",
    )
    assert run.config["lr"] == 0.1
    assert run.summary["x"] == 4
    assert server.state(run) == "finished"
    assert server.violations == []


def test_a_killed_run_has_all_its_rows_and_is_not_complete(server: WandbServer, tmp_path: Path):  # faults: 58
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0)
    piece.log(x=1, step=1)
    piece.append(b'{"crc":"torn')
    piece.die()

    sync(server, tmp_path)

    run = server.run("ent", "demo", "run")
    assert xs(run) == [0, 1]
    assert not run.complete


def test_a_finished_run_that_is_resumed_is_running_again_and_finishes_again(
    server: WandbServer, tmp_path: Path
):
    first = finished_run(tmp_path, rows=2)
    sync(server, tmp_path)
    later = resumed(first.identity, tmp_path)
    later.log(x=2, step=2)
    later.log(x=3, step=3)

    states: list[str] = []

    def play(_: Daemon) -> None:
        run = server.run("ent", "demo", "run")
        wait_for(lambda: xs(run) == [0, 1, 2], "the resumed run's rows")
        states.append(server.state(run))
        later.log("exit", exitcode=3)
        later.die()
        wait_for(lambda: run.complete, "the second end")
        states.append(server.state(run))

    sync_while(server, tmp_path, play)

    assert states == ["running", "failed"]
    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3]
    assert server.run("ent", "demo", "run").config[MARK]["pieces"] == [first.piece.token, later.piece.token]


def test_rows_go_after_those_that_another_client_left_there(server: WandbServer, tmp_path: Path):
    server.seed_run("demo", "run", rows=10, config={"theirs": 1}, summary={"seeded": 9, "old": 1})
    finished_run(tmp_path, config={"ours": 2})

    sync(server, tmp_path)

    run = server.run("ent", "demo", "run")
    assert [row["_step"] for row in run.history] == list(range(15))
    assert xs(run)[10:] == [0, 1, 2, 3, 4]
    assert (run.config["theirs"], run.config["ours"]) == (1, 2)
    assert (run.summary["old"], run.summary["x"]) == (1, 4)
    assert server.violations == []


@pytest.mark.parametrize(
    "answers", [ResumeAnswers("honest"), ResumeAnswers("stale", 4), ResumeAnswers("late", 2)]
)
def test_a_lost_cursor_is_found_again_whatever_the_server_says(
    server: WandbServer, tmp_path: Path, answers: ResumeAnswers
):  # faults: 47
    piece = handmade_run(tmp_path)
    for i in range(10):
        piece.log(x=i, step=i)
    sync(server, tmp_path)
    shutil.rmtree(tmp_path / "demo" / "run" / "sync")
    for i in range(10, 15):
        piece.log(x=i, step=i)
    piece.log("exit", exitcode=0)
    piece.die()
    server.resume = answers

    sync(server, tmp_path)

    run = server.run("ent", "demo", "run")
    assert xs(run) == list(range(15))
    assert run.complete
    assert server.violations == []


def test_names_that_people_changed_there_stay(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path, name="ours", tags=["ours"])
    sync(server, tmp_path)
    run = server.run("ent", "demo", "run")
    run.display_name, run.tags = "theirs", ["theirs"]
    shutil.rmtree(tmp_path / "demo" / "run" / "sync")

    sync(server, tmp_path)

    assert (run.display_name, run.tags) == ("theirs", ["theirs"])


def test_names_that_a_later_piece_gave_and_people_changed_stay_too(server: WandbServer, tmp_path: Path):
    # faults: 47
    first = finished_run(tmp_path, name="first", tags=["first"])
    later = resumed(first.identity, tmp_path, name="later", tags=["later"])
    later.log("exit", exitcode=0)
    later.die()
    sync(server, tmp_path)
    run = server.run("ent", "demo", "run")
    run.display_name, run.tags = "theirs", ["theirs"]
    shutil.rmtree(tmp_path / "demo" / "run" / "sync")

    sync(server, tmp_path)

    assert (run.display_name, run.tags) == ("theirs", ["theirs"])


def test_with_a_lost_cursor_no_older_config_is_told_again(server: WandbServer, tmp_path: Path):  # faults: 47
    first = handmade_run(tmp_path, config={"lr": 1})
    first.die()
    later = resumed(first.identity, tmp_path, config={"lr": 2})
    later.log("config", lr=3)
    later.log("exit", exitcode=0)
    later.die()
    sync(server, tmp_path)
    shutil.rmtree(tmp_path / "demo" / "run" / "sync")
    server.clear_requests()

    sync(server, tmp_path)

    upserts = [request for request in server.requests if request.kind == "graphql:UpsertBucket"]
    told = [json.loads(request.body["variables"]["config"])["lr"]["value"] for request in upserts]
    assert set(told) <= {3}
    assert server.run("ent", "demo", "run").config["lr"] == 3


def test_another_logs_run_is_left_alone_and_the_run_is_parked(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path / "a")
    finished_run(tmp_path / "b")
    sync(server, tmp_path / "a")

    daemon = sync(server, tmp_path / "b")

    (entry,) = daemon.entries.values()
    assert entry.parked
    assert "another log" in (entry.error or "")
    assert len(server.run("ent", "demo", "run").history) == 5


def test_of_two_copies_of_a_directory_one_is_uploaded(server: WandbServer, tmp_path: Path):  # faults: 30
    finished_run(tmp_path)
    shutil.copytree(tmp_path / "demo" / "run", tmp_path / "demo" / "twin")

    daemon = sync(server, tmp_path)

    assert daemon.twins == {tmp_path / "demo" / "twin": tmp_path / "demo" / "run"}
    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3, 4]
    assert server.violations == []


def test_a_moved_run_goes_on_where_it_was(server: WandbServer, tmp_path: Path):  # faults: 29
    finished_run(tmp_path / "a")
    sync(server, tmp_path / "a")
    (tmp_path / "b" / "elsewhere").mkdir(parents=True)
    shutil.move(tmp_path / "a" / "demo" / "run", tmp_path / "b" / "elsewhere" / "renamed")
    server.clear_requests()

    sync(server, tmp_path / "b")

    assert [request for request in server.requests if request.kind == "file_stream"] == []


def test_a_project_that_refuses_us_parks_its_runs_and_no_others(
    server: WandbServer, tmp_path: Path
):  # faults: 71
    finished_run(tmp_path, "refused")
    finished_run(tmp_path, "fine")
    server.faults.add("status", kind="file_stream", run="refused", status=403)

    daemon = sync(server, tmp_path)

    parked = {path.name: entry.parked for (path, _), entry in daemon.entries.items()}
    assert parked == {"refused": True, "fine": False}
    assert xs(server.run("ent", "demo", "fine")) == [0, 1, 2, 3, 4]


def test_a_rotated_key_pauses_everything_until_the_new_one_is_there(
    server: WandbServer, tmp_path: Path
):  # faults: 71
    finished_run(tmp_path)
    keys = ["9" * 40]

    def play(daemon: Daemon) -> None:
        wait_for(lambda: not daemon.gate.is_open, "the pause")
        assert "wandb login" in (daemon.gate.reason or "")
        assert keys[0] not in (daemon.gate.reason or "")
        keys[0] = API_KEY
        wait_for(lambda: server.runs() and server.runs()[0].complete, "the upload with the new key")

    sync_while(server, tmp_path, play, key=lambda: keys[0])

    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "drop"},
        {"action": "drop", "applied": True},
        {"action": "status", "status": 500, "applied": True},
        {"action": "status", "status": 429, "retry_after": "0"},
        {"action": "portal"},
        {"action": "redirect"},
        {"action": "truncate"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["file_stream", "graphql:UpsertBucket", "graphql:RunResumeStatus"])
def test_every_passing_trouble_delays_and_changes_nothing(
    server: WandbServer, tmp_path: Path, fault: dict[str, Any], kind: str
):  # faults: 44 68 69 72
    finished_run(tmp_path)
    server.faults.add(**fault, kind=kind, times=1)

    sync(server, tmp_path)

    run = server.run("ent", "demo", "run")
    assert xs(run) == [0, 1, 2, 3, 4]
    assert run.complete
    assert server.violations == []


def test_a_line_that_the_server_refuses_becomes_a_stub_and_is_counted(server: WandbServer, tmp_path: Path):
    # faults: 70
    piece = handmade_run(tmp_path)
    for i in range(40):
        piece.log(x="poison" if i == 17 else i, step=i)
    piece.log("exit", exitcode=0)
    piece.die()
    server.faults.add("status", kind="file_stream", status=422, containing="poison")

    sync(server, tmp_path)

    run = server.run("ent", "demo", "run")
    assert xs(run) == [*range(17), None, *range(18, 40)]
    assert "_tidelog_stub" in run.history[17]
    (cursor,) = cursors(tmp_path / "demo" / "run")
    assert [(file, line) for file, line, _ in cursor.stubs] == [(HISTORY, 17)]
    assert list(cursor.not_shown.values()) == [1]


def test_the_last_thing_to_be_refused_does_not_keep_the_run_from_its_end(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path)
    for ending in ('"uploaded":["wandb-summary.json"]', ',"wandb-summary.json"]'):
        server.faults.add("status", kind="file_stream", status=400, containing=ending)

    sync(server, tmp_path)

    (cursor,) = cursors(tmp_path / "demo" / "run")
    assert server.run("ent", "demo", "run").complete
    assert cursor.not_shown == {"file refused by the server (HTTP 400: injected 400)": 1}


def test_a_summary_that_was_refused_is_not_sent_again_after_the_end(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path)
    server.faults.add("status", kind="file_stream", status=422, containing='"wandb-summary.json":{')
    sync(server, tmp_path)
    server.clear_requests()

    sync(server, tmp_path)

    (cursor,) = cursors(tmp_path / "demo" / "run")
    assert [request for request in server.requests if request.kind == "file_stream"] == []
    assert server.run("ent", "demo", "run").complete
    assert list(cursor.not_shown) == ["summary refused by the server (HTTP 422: injected 422)"]


@pytest.mark.parametrize("status", [413, 422])
def test_a_proxy_that_refuses_everything_for_a_while_costs_no_row(
    server: WandbServer, tmp_path: Path, status: int
):
    finished_run(tmp_path)
    # The whole, two rows, one, and what stands in for that: then it is known that it is not the row.
    server.faults.add("status", kind="file_stream", status=status, times=4)

    sync(server, tmp_path)

    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3, 4]
    (cursor,) = cursors(tmp_path / "demo" / "run")
    assert cursor.stubs == []
    assert cursor.not_shown == {}


def test_a_proxy_that_refuses_large_bodies_gets_smaller_ones(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    for i in range(64):
        piece.log(x=i, text="y" * 1000, step=i)
    piece.log("exit", exitcode=0)
    piece.die()
    server.faults.add("status", kind="file_stream", status=413, over_bytes=10_000)

    sync(server, tmp_path)

    assert xs(server.run("ent", "demo", "run")) == list(range(64))
    assert max(r.bytes for r in server.requests if r.kind == "file_stream" and r.status == 200) <= 10_000


def test_damaged_records_are_passed_over_counted_and_the_rest_arrives(server: WandbServer, tmp_path: Path):
    # faults: 13
    piece = handmade_run(tmp_path)
    for i in range(6):
        piece.log(x=i, step=i)
    piece.overwrite(piece.offset_of(3) + 4, b"?")
    piece.log("exit", exitcode=0)
    piece.die()

    sync(server, tmp_path)

    assert xs(server.run("ent", "demo", "run")) == [0, 1, 3, 4, 5]
    (cursor,) = cursors(tmp_path / "demo" / "run")
    assert cursor.not_shown == {"damaged or missing in the log": 1}


def test_an_offline_run_is_uploaded_when_it_is_asked_for_and_not_before(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path, mode="offline")

    def play(daemon: Daemon) -> None:
        wait_for(lambda: any(entry.error for entry in daemon.entries.values()), "the refusal")

    sync_while(server, tmp_path, play)
    assert server.runs() == []

    sync(server, tmp_path, asked_for=[tmp_path / "demo" / "run"])
    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3, 4]


def test_a_long_backlog_goes_in_full_batches_of_a_mebibyte(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    for i in range(3000):
        piece.log(x=i, text="z" * 1000, step=i)
    piece.log("exit", exitcode=0)
    piece.die()

    sync(server, tmp_path)

    sizes = [r.bytes for r in server.requests if r.kind == "file_stream" and r.bytes > 1000]
    assert xs(server.run("ent", "demo", "run")) == list(range(3000))
    assert max(sizes) <= 1024 * 1024 + 10_000
    assert len(sizes) <= 6


def test_what_the_cursor_says_is_what_the_server_has(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    for i in range(5):
        piece.log(x=i, step=i)

    sync(server, tmp_path)

    (cursor,) = cursors(tmp_path / "demo" / "run")
    # The row of step 4 is still open: its record is not acknowledged.
    assert cursor.acked["wandb-history.jsonl"] == 4
    assert cursor.next == {"writer": "main-0001", "seq": 5}
    assert json.loads(json.dumps(cursor.attach))["url"].endswith("/ent/demo/runs/run")


def test_a_cursor_that_another_log_left_behind_is_not_believed(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path)
    sync(server, tmp_path)
    run_dir = tmp_path / "demo" / "run"
    shutil.move(run_dir / "sync", tmp_path / "kept")
    shutil.rmtree(run_dir)
    finished_run(tmp_path, rows=8)
    shutil.move(tmp_path / "kept", run_dir / "sync")

    daemon = sync(server, tmp_path)

    (entry,) = daemon.entries.values()
    assert entry.parked
    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3, 4]


def test_a_cursor_whose_state_cannot_be_read_is_as_good_as_lost(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    for i in range(4):
        piece.log(x=i, step=i)
    sync(server, tmp_path)
    (cursor,) = cursors(tmp_path / "demo" / "run")
    assert cursor.fold is not None
    del cursor.fold["state"]["next_free_step"]
    save(tmp_path / "demo" / "run", cursor, now_us=1)
    piece.log(x=4, step=4)
    piece.log("exit", exitcode=0)
    piece.die()

    sync(server, tmp_path)

    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3, 4]
    assert server.violations == []


def test_a_segment_that_was_begun_and_never_written_holds_nothing_up(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    for i in range(3):
        piece.log(x=i, step=i)
    (piece.piece.dir / "events-000000000004.jsonl").touch()
    piece.die()
    sync(server, tmp_path)
    later = resumed(piece.identity, tmp_path)
    later.log(x=3, step=3)
    later.log("exit", exitcode=0)
    later.die()

    sync(server, tmp_path)

    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3]


def test_of_two_resumed_copies_the_second_is_parked_after_one_question(server: WandbServer, tmp_path: Path):
    # faults: 30
    first = finished_run(tmp_path / "a", rows=2)
    sync(server, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for root, x in ((tmp_path / "a", 10), (tmp_path / "b", 20)):
        later = resumed(first.identity, root)
        later.log(x=x, step=2)
        later.log("exit", exitcode=0)
        later.die()
    sync(server, tmp_path / "a")
    server.clear_requests()

    daemon = sync(server, tmp_path / "b")

    (entry,) = daemon.entries.values()
    assert entry.parked
    assert len(server.requests) == 1
    assert xs(server.run("ent", "demo", "run")) == [0, 1, 10]


def test_a_resumed_piece_with_a_damaged_start_is_running_until_its_own_exit(
    server: WandbServer, tmp_path: Path
):
    first = finished_run(tmp_path, rows=2)
    sync(server, tmp_path)
    later = resumed(first.identity, tmp_path)
    later.log(x=2, step=2)
    later.log(x=3, step=3)
    later.overwrite(later.offset_of(0) + 4, b"?")
    sync(server, tmp_path)
    run = server.run("ent", "demo", "run")
    while_running = (xs(run), server.state(run))

    later.log("exit", exitcode=0)
    later.die()
    sync(server, tmp_path)

    assert while_running == ([0, 1, 2], "running")
    assert (xs(run), server.state(run)) == ([0, 1, 2, 3], "finished")


def test_an_answer_that_leaves_out_what_was_asked_is_no_answer(server: WandbServer, tmp_path: Path):
    server.seed_run("demo", "run", rows=10)
    finished_run(tmp_path)

    class Forgetful(WandbApi):
        asked = 0

        async def resume_status(self, entity: str | None, project: str, run_id: str) -> Answer:
            answer = await super().resume_status(entity, project, run_id)
            self.asked += 1
            return Answer(200, {}, {"data": None}) if self.asked == 1 else answer

    api = Forgetful(server.base_url, lambda: API_KEY)
    daemon = Daemon(roots=lambda: [tmp_path], api=api, until_synced=True, steady_s=0.0)
    asyncio.run(asyncio.wait_for(daemon.run(), DEADLINE_S))

    assert [row["_step"] for row in server.run("ent", "demo", "run").history] == list(range(15))
    assert server.violations == []


def test_a_turn_that_raises_loses_nothing_of_what_it_had_read(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path)
    keys = iter([ValueError("no key just now")])

    def key() -> str:
        # In the middle of the upload: after two questions, with the first rows in hand.
        if len(server.requests) == 2 and (error := next(keys, None)):
            raise error
        return API_KEY

    daemon_module.CRASH_BACKOFF_S, before = 0.1, daemon_module.CRASH_BACKOFF_S
    try:
        sync(server, tmp_path, key=key)
    finally:
        daemon_module.CRASH_BACKOFF_S = before

    assert next(keys, None) is None
    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3, 4]
    assert server.violations == []


def test_an_integer_too_long_for_any_number_there_arrives_as_infinity(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path, config={"huge": 10**5000})
    piece.log(x=[{"huge": 10**5000}], step=0)
    piece.log("exit", exitcode=0)
    piece.die()

    sync(server, tmp_path)

    assert xs(server.run("ent", "demo", "run")) == [[{"huge": float("inf")}]]


def test_a_piece_that_cannot_be_read_is_read_once_however_often_it_is_looked_at(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = finished_run(tmp_path)
    later = resumed(first.identity, tmp_path)
    later.append(b"of a later version\n" * 50_000)
    later.overwrite(later.segment.read_bytes().index(b"\n") + 30, b"\x00")
    read_bytes: list[int] = []

    def counted(fd: int, offset: int, limit_bytes: int) -> bytes:
        data = whole_lines(fd, offset, limit_bytes)
        read_bytes.append(len(data))
        return data

    whole_lines = reader_module._whole_lines
    monkeypatch.setattr(reader_module, "_whole_lines", counted)
    clock = Clock()
    api = WandbApi(server.base_url, lambda: API_KEY)
    run_sync = sync_of(first, api, clock)

    async def play() -> None:
        for _ in range(30):
            await turn(run_sync, clock)
        run_sync.close()
        await api.close()

    asyncio.run(play())

    later.die()
    assert sum(read_bytes) < 1.5 * later.segment.stat().st_size
    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3, 4]


def test_an_error_that_reads_otherwise_each_time_is_no_progress(server: WandbServer, tmp_path: Path):
    run_sync = sync_of(finished_run(tmp_path), WandbApi(server.base_url, lambda: API_KEY))
    before = run_sync.got_to

    run_sync._note("HTTP 500: request 1")
    run_sync._note("HTTP 500: request 2")

    assert run_sync.got_to == before


def test_a_quiet_run_is_running_for_as_long_as_its_writer_lives_and_then_crashed(tmp_path: Path):
    clock = Clock()
    states: list[str] = []
    with WandbServer(entity="ent", now=lambda: clock.now_s) as server:
        piece = handmade_run(tmp_path)
        piece.log(x=0, step=0, commit=True)
        api = WandbApi(server.base_url, lambda: API_KEY)
        run_sync = sync_of(piece, api, clock)

        async def pass_time(seconds: float) -> None:
            until_s = clock.now_s + seconds
            while clock.now_s < until_s:
                await turn(run_sync, clock, until_s)
            states.append(server.state(server.run("ent", "demo", "run")))

        async def story() -> None:
            for _ in range(6):
                await pass_time(600.0)
            piece.die()
            await pass_time(3600.0)
            run_sync.close()
            await api.close()

        asyncio.run(story())

    assert states == ["running"] * 6 + ["crashed"]


def test_a_line_that_is_being_written_is_shown_now_and_then_and_whole_in_the_end(
    server: WandbServer, tmp_path: Path
):
    events = handmade_run(tmp_path)
    console = HandmadePiece(events.identity, events.piece, "console")
    clock = Clock()
    api = WandbApi(server.base_url, lambda: API_KEY)
    run_sync = sync_of(events, api, clock)
    shown: list[str] = []

    async def story() -> None:
        for percent in range(0, 100, 2):
            console.log("console", source="stdout", text=f"\r{percent} %")
            await run_sync.turn(clock.now_s)
            clock.now_s += 1.0
            lines = server.run("ent", "demo", "run").console_lines if server.runs() else []
            shown.append(lines[0].partition(" ")[2] if lines else "")
        console.log("console", source="stdout", text="\rdone\n")
        events.log("exit", exitcode=0)
        events.die()
        while not server.run("ent", "demo", "run").complete:
            await turn(run_sync, clock)
            # Files go beside the turns.
            await asyncio.sleep(0)
        run_sync.close()
        await api.close()

    asyncio.run(story())

    # 50 s, and every 10 s at most.
    assert 3 <= len(set(shown) - {""}) <= 6
    assert [line.partition(" ")[2] for line in server.run("ent", "demo", "run").console_lines] == ["done"]
    assert server.violations == []


def test_a_row_of_a_live_run_is_there_one_flush_after_it_was_logged_at_the_latest(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path)
    clock = Clock()
    api = WandbApi(server.base_url, lambda: API_KEY)
    run_sync = sync_of(piece, api, clock)
    logged: list[int] = []
    waited: dict[int, int] = {}

    async def story() -> None:
        due = 0.0
        # Tenths of a second, so that none of them is a rounded one.
        for tenth in range(300):
            clock.now_s = tenth / 10
            if tenth % 7 == 0:
                piece.log(x=len(logged), step=len(logged), commit=True)
                logged.append(tenth)
                due = min(due, clock.now_s + HINT_S)
            while due <= clock.now_s:
                due = await run_sync.turn(clock.now_s)
            there = xs(server.runs()[0]) if server.runs() else []
            waited.update({x: tenth - logged[x] for x in there if x not in waited})
        run_sync.close()
        await api.close()

    asyncio.run(story())

    piece.die()
    posts = [request for request in server.requests if request.kind == "file_stream"]
    assert max(waited.values()) <= 10 * FLUSH_S
    # All but those of the last flush, and no more requests than one for each.
    assert len(waited) >= len(logged) - 8
    assert len(posts) <= 30.0 / FLUSH_S + 2


def test_a_config_that_changes_with_every_row_is_told_once_a_flush(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    clock = Clock()
    api = WandbApi(server.base_url, lambda: API_KEY)
    run_sync = sync_of(piece, api, clock)

    async def story() -> None:
        for second in range(30):
            clock.now_s = float(second)
            piece.log("config", second=second)
            piece.log(x=second, step=second, commit=True)
            for _ in range(3):
                await run_sync.turn(clock.now_s)
        run_sync.close()
        await api.close()

    asyncio.run(story())

    piece.die()
    told = [request for request in server.requests if request.kind == "graphql:UpsertBucket"]
    assert server.runs()[0].config["second"] >= 25 - FLUSH_S
    assert len(told) <= 30.0 / FLUSH_S + 2


def test_a_live_run_that_logs_more_than_is_sent_at_once_lets_its_cursor_follow(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path)
    clock = Clock()
    api = WandbApi(server.base_url, lambda: API_KEY)
    run_sync = sync_of(piece, api, clock)
    behind: list[int] = []

    async def story() -> None:
        for second in range(20):
            clock.now_s = float(second)
            # More than a batch; of lines so much longer than their records, one portion is more than a batch as well.
            for _ in range(20):
                piece.log(x=piece.seq, text='"' * 30_000, step=piece.seq, commit=True)
            for _ in range(3):
                await run_sync.turn(clock.now_s)
            (cursor,) = cursors(tmp_path / "demo" / "run")
            there = len(server.runs()[0].history)
            behind.append(there - (cursor.next["seq"] if cursor.next is not None else 0))
        run_sync.close()
        await api.close()

    asyncio.run(story())

    piece.die()
    assert len(server.runs()[0].history) > 100
    assert max(behind) * 120_000 <= BATCH_MAX_BYTES


def test_while_a_server_takes_nothing_no_more_is_read_than_a_batch(server: WandbServer, tmp_path: Path):
    # faults: 77
    piece = handmade_run(tmp_path)
    clock = Clock()
    api = WandbApi(server.base_url, lambda: API_KEY)
    run_sync = sync_of(piece, api, clock)
    ahead_bytes: list[int] = []

    async def story() -> None:
        await rest(run_sync, clock)
        server.faults.add("status", kind="file_stream", status=503)
        begin = piece.seq
        for i in range(120):
            piece.log(x=i, text="t" * 60_000, step=i, commit=True)
            clock.now_s += 10.0
            await run_sync.turn(clock.now_s)
            ahead_bytes.append((run_sync._events.next_seq - begin) * 60_000)
        server.faults.clear()
        await rest(run_sync, clock)
        run_sync.close()
        await api.close()

    asyncio.run(story())

    piece.die()
    # One batch, and the row that came across its limit.
    assert 0 < max(ahead_bytes) <= BATCH_MAX_BYTES + 60_000
    assert xs(server.run("ent", "demo", "run")) == list(range(120))


def test_what_was_sent_in_large_batches_goes_on_in_small_ones_after_a_restart(
    server: WandbServer, tmp_path: Path
):  # faults: 78
    piece = handmade_run(tmp_path)
    for i in range(64):
        piece.log(x=i, text="t" * 60_000, step=i)
    piece.log("exit", exitcode=0)
    piece.die()
    clock = Clock()
    api = WandbApi(server.base_url, lambda: API_KEY)
    before = sync_of(piece, api, clock)

    async def killed_in_the_middle() -> None:
        while not server.runs() or len(server.runs()[0].history) < 20:
            await turn(before, clock)
        # The next batch arrives, and its answer does not.
        server.faults.add("truncate", kind="file_stream", times=1)
        while server.faults.happened == 0:
            await turn(before, clock)
        before._let_go()
        await api.close()

    asyncio.run(killed_in_the_middle())
    there = len(server.runs()[0].history)
    server.clear_requests()
    server.faults.add("status", kind="file_stream", status=413, over_bytes=200_000)
    sync(server, tmp_path)

    (run,) = server.runs()
    taken = [r.bytes for r in server.requests if r.kind == "file_stream" and r.status == 200]
    assert 20 < there < 64
    assert xs(run) == list(range(64))
    assert max(taken) <= 200_000
    # What was in flight goes again, to the same place.
    assert 0 < run.replayed_lines <= BATCH_MAX_BYTES // 60_000
    assert server.violations == []
