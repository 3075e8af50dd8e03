"""Every kind of run there is: ranks, copies, namesakes, moved, deleted, resumed offline, and on another host."""

from __future__ import annotations

import asyncio
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from eventlog import piece as pieces
from eventlog.cursor import Sink, cursors, is_vouched_for, vouch_for_end
from eventlog.piece import RunIdentity, claim_primary, claim_secondary
from eventlog.store import Store
from syncd import daemon as daemon_module
from syncd import run_sync
from syncd.artifacts import manifest_digest
from syncd.cli import main
from syncd.daemon import Daemon
from syncd.run_sync import DAMAGED, STALE_S, RunSync
from syncd.uploads import BATCH_FILES
from syncd.wandb_api import Answer, WandbApi
from tests import logs
from tests.logs import HandmadePiece, handmade_run, resumed
from tests.syncd.syncing import finished_run, sync, sync_while, xs
from tests.wandb_server import WandbServer
from tests.wandb_server.server import API_KEY
from tests.wandb_server.waiting import wait_for


def rank_of(primary: HandmadePiece, rank: int, rows: int = 2) -> HandmadePiece:
    """Log what another rank of the run would."""
    piece = HandmadePiece(primary.identity, claim_secondary(primary.piece.dir.parent, f"rank{rank}"))
    piece.log("start", config={"rank": rank}, name="a name")
    for i in range(rows):
        piece.log(x=100 * rank + i, step=i)
    piece.log("exit", exitcode=0)
    piece.die()
    return piece


def stored_file(piece: HandmadePiece, path: str, content: bytes) -> None:
    """Log the one file of the piece."""
    log_file(HandmadePiece(piece.identity, piece.piece, "files"), path, content)


def log_file(files: HandmadePiece, path: str, content: bytes) -> None:
    stored = Store(files.piece.dir.parent, is_durable=False).put(content)
    files.log("file", path=path, sha256=stored.sha256, size=stored.size)


def retry(run: str | Path, *options: str, root: Path) -> str:
    result = CliRunner().invoke(main, ["retry", str(run), *options, "--root", str(root)])
    assert result.exit_code == 0, result.output
    return result.output


def as_seen_from_elsewhere(piece: HandmadePiece) -> None:
    """Let the piece's lock say that its writer runs on another host."""
    lock = piece.piece.dir / pieces.LOCK_FILE
    said = orjson.loads(lock.read_bytes())
    lock.write_bytes(orjson.dumps({**said, "host": "node-17", "boot_id": "another"}) + b"\n")


# -- ranks -----------------------------------------------------------------------------------------------------


def test_by_default_only_the_primary_is_uploaded(server: WandbServer, tmp_path: Path):
    rank_of(finished_run(tmp_path), 1)

    sync(server, tmp_path)

    assert [run.run_id for run in server.runs()] == ["run"]


def test_64_ranks_can_be_64_runs_of_one_group(server: WandbServer, tmp_path: Path):
    primary = finished_run(tmp_path, upload_ranks="all", name="a name")
    for rank in range(1, 64):
        rank_of(primary, rank)

    sync(server, tmp_path)

    found = {run.run_id: run for run in server.runs()}
    assert len(found) == 64
    assert {run.group for run in found.values()} == {"run"}
    assert xs(found["run"]) == [0, 1, 2, 3, 4]
    assert xs(found["run-rank63"]) == [6300, 6301]
    assert found["run-rank63"].display_name == "a name-rank63"
    assert all(server.state(run) == "finished" for run in found.values())
    assert server.violations == []


def test_a_rank_that_is_resumed_on_a_host_whose_clock_is_behind_goes_on_after_its_first_piece(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    primary = handmade_run(tmp_path, upload_ranks="all")
    rank_of(primary, 3)
    sync(server, tmp_path)
    monkeypatch.setattr(logs, "TIME_US", logs.TIME_US - 3_600_000_000)
    later = HandmadePiece(primary.identity, claim_secondary(primary.piece.dir.parent, "rank3"))
    later.log("start", config={})
    later.log(x=302, step=2)
    later.log("exit", exitcode=0)
    later.die()

    sync(server, tmp_path)

    primary.die()
    assert xs(server.run("ent", "demo", "run-rank3")) == [300, 301, 302]
    assert {cursor.state for cursor in cursors(tmp_path / "demo" / "run")} == {"live", "synced"}


# -- copies and namesakes --------------------------------------------------------------------------------------


def test_a_copy_is_parked_with_a_way_out_which_works(server: WandbServer, tmp_path: Path):
    # faults: 30
    finished_run(tmp_path)
    copy = tmp_path / "demo" / "run-copy"
    shutil.copytree(tmp_path / "demo" / "run", copy)
    sync(server, tmp_path)
    (cursor,) = cursors(copy)
    assert cursor.state == "parked"
    assert f"retry {copy} --new-id" in (cursor.error or "")

    retry(copy, "--new-id", root=tmp_path)
    sync(server, tmp_path)

    assert len(server.runs()) == 2
    assert [xs(run) for run in server.runs()] == [[0, 1, 2, 3, 4]] * 2


def test_a_copy_whose_original_is_gone_goes_on_as_the_run(server: WandbServer, tmp_path: Path):
    piece = finished_run(tmp_path)
    sync(server, tmp_path)
    copy = tmp_path / "demo" / "run-copy"
    shutil.copytree(tmp_path / "demo" / "run", copy)
    sync(server, tmp_path)

    shutil.rmtree(tmp_path / "demo" / "run")
    later = HandmadePiece(piece.identity, claim_primary(copy))
    later.log("start", config={})
    later.log(x=5, step=5)
    later.log("exit", exitcode=0)
    later.die()
    sync(server, tmp_path)

    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("way", ["--append", "--new-id"])
def test_the_same_id_on_two_machines_is_parked_and_both_ways_out_work(
    server: WandbServer,
    tmp_path: Path,
    way: str,
):
    finished_run(tmp_path / "here", rows=3)
    finished_run(tmp_path / "there", rows=2)
    sync(server, tmp_path / "here")
    sync(server, tmp_path / "there")
    (cursor,) = cursors(tmp_path / "there" / "demo" / "run")
    assert cursor.state == "parked"
    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2]

    retry("demo/run", way, root=tmp_path / "there")
    sync(server, tmp_path / "there")

    if way == "--append":
        assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 0, 1]
        assert [row["_step"] for row in server.run("ent", "demo", "run").history] == [0, 1, 2, 3, 4]
    else:
        (other,) = [run for run in server.runs() if run.run_id != "run"]
        assert xs(other) == [0, 1]
    assert server.violations == []


def test_a_run_that_was_told_to_get_a_new_id_does_so_under_a_running_daemon(
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(daemon_module, "SCAN_S", 0.1)
    finished_run(tmp_path / "here", rows=3)
    sync(server, tmp_path / "here")
    finished_run(tmp_path / "there", rows=2)

    def play(daemon: Daemon) -> None:
        wait_for(lambda: any(entry.parked for entry in list(daemon.entries.values())), "the parking")
        retry("demo/run", "--new-id", root=tmp_path / "there")
        wait_for(lambda: len(server.runs()) == 2 and server.runs()[1].complete, "the run under its new id")

    sync_while(server, tmp_path / "there", play)


# -- deleted ---------------------------------------------------------------------------------------------------


def test_a_run_that_was_deleted_here_is_let_go(
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(daemon_module, "SCAN_S", 0.1)
    piece = handmade_run(tmp_path, "gone")
    piece.log(x=1, step=1)
    finished_run(tmp_path, "stays")

    def play(daemon: Daemon) -> None:
        wait_for(lambda: len(server.runs()) == 2 and server.run("ent", "demo", "stays").complete, "both runs")
        # Out of the way first: the daemon may be about to write a cursor between its files.
        (tmp_path / "demo" / "gone").rename(tmp_path.parent / f"{tmp_path.name}-gone")
        finished_run(tmp_path, "later")
        wait_for(
            lambda: len(server.runs()) == 3 and server.run("ent", "demo", "later").complete, "the later run"
        )
        wait_for(
            lambda: (tmp_path / "demo" / "gone", 0) not in daemon.entries, "the deleted run to be let go"
        )

    sync_while(server, tmp_path, play)

    assert not (tmp_path / "demo" / "gone").exists()


@pytest.mark.parametrize("cursor", ["kept", "lost"])
def test_a_run_that_was_deleted_there_is_parked_with_a_way_out_which_works(
    server: WandbServer, tmp_path: Path, cursor: str
):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0, commit=True)
    sync(server, tmp_path)
    server.delete_run("ent", "demo", "run")
    piece.log(x=1, step=1, commit=True)
    piece.log("exit", exitcode=0)
    piece.die()
    if cursor == "lost":
        shutil.rmtree(tmp_path / "demo" / "run" / "sync")

    sync(server, tmp_path)
    (stands,) = cursors(tmp_path / "demo" / "run")

    assert stands.state == "parked"
    assert "deleted" in (stands.error or "")
    assert "--new-id" in (stands.error or "")
    retry("demo/run", "--new-id", root=tmp_path)
    sync(server, tmp_path)
    (run,) = server.runs()
    assert (xs(run), run.complete) == ([0, 1], True)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_run_whose_description_is_refused_is_parked_and_tried_again_when_asked(
    server: WandbServer, tmp_path: Path, status: int
):
    finished_run(tmp_path)
    finished_run(tmp_path, "other")
    server.faults.add("status", kind="graphql:UpsertBucket", status=status, containing='"run"')

    sync(server, tmp_path)
    (stands,) = cursors(tmp_path / "demo" / "run")

    assert [run.run_id for run in server.runs()] == ["other"]
    assert stands.state == "parked"
    assert f"HTTP {status}" in (stands.error or "")
    assert "syncd retry demo/run" in (stands.error or "")
    server.faults.clear()
    retry("demo/run", root=tmp_path)
    sync(server, tmp_path)
    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3, 4]


def test_of_two_machines_that_begin_one_id_at_the_same_moment_the_later_is_parked(
    server: WandbServer, tmp_path: Path
):
    finished_run(tmp_path / "here", rows=3)
    finished_run(tmp_path / "there", rows=2)

    class OvertakenApi(WandbApi):
        """Between its question and its request, the other machine is through with both."""

        async def upsert_run(self, **variables: Any) -> Answer:
            await asyncio.to_thread(sync, server, tmp_path / "here")
            return await super().upsert_run(**variables)

    sync(server, tmp_path / "there", api=OvertakenApi(server.base_url, lambda: API_KEY))

    (stands,) = cursors(tmp_path / "there" / "demo" / "run")
    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2]
    assert stands.state == "parked"
    assert "--new-id" in (stands.error or "")
    assert server.violations == []


# -- resumed offline -------------------------------------------------------------------------------------------


def test_a_piece_that_was_logged_offline_waits_to_be_asked_for_and_the_one_before_does_not(
    server: WandbServer,
    tmp_path: Path,
):
    first = finished_run(tmp_path, rows=2, mode="online")
    later = resumed(first.identity, tmp_path, mode="offline")
    later.log(x=2, step=2)
    later.log("exit", exitcode=0)
    later.die()

    sync(server, tmp_path)
    (cursor,) = cursors(tmp_path / "demo" / "run")

    assert xs(server.run("ent", "demo", "run")) == [0, 1]
    assert "mode=offline" in (cursor.error or "")

    sync(server, tmp_path, asked_for=[tmp_path / "demo" / "run"])

    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2]


def test_a_piece_that_was_asked_for_once_is_no_longer_held_back(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_sync, "COLD_S", 0.05)
    first = finished_run(tmp_path, rows=2)
    later = resumed(first.identity, tmp_path, mode="offline")
    later.log("system", cpu=1.0)
    later.log(x=2, step=2)
    later.log("exit", exitcode=0)
    later.die()
    sync(server, tmp_path, asked_for=[tmp_path / "demo" / "run"])

    def play(daemon: Daemon) -> None:
        wait_for(
            lambda: any(e.failures == 0 and e.caught_up for e in list(daemon.entries.values())), "a look"
        )

    sync_while(server, tmp_path, play)

    run = server.run("ent", "demo", "run")
    assert (xs(run), len(run.events)) == ([0, 1, 2], 1)
    assert next(cursors(tmp_path / "demo" / "run")).error is None


def test_the_files_of_every_piece_are_there_before_the_run_is_complete(server: WandbServer, tmp_path: Path):
    first = handmade_run(tmp_path)
    stored_file(first, "one.bin", b"1" * 100)
    first.die()
    for number in range(2, 5):
        piece = resumed(first.identity, tmp_path)
        piece.log(x=number, step=number)
        if number == 4:
            stored_file(piece, "last.bin", b"9" * 100)
            piece.log("exit", exitcode=0)
        piece.die()
    server.faults.add("hang", kind="files", containing="1111", times=1, hang_s=0.5)

    sync(server, tmp_path)

    assert {"one.bin", "last.bin"} <= set(server.run("ent", "demo", "run").uploaded)
    *before, last = [request.body for request in server.requests if request.kind == "file_stream"]
    assert not any("complete" in body for body in before)
    assert (last["complete"], last["exitcode"]) == (True, 0)


def test_damage_among_the_files_is_counted_once_whenever_they_are_read_again(
    server: WandbServer, tmp_path: Path
):
    events = handmade_run(tmp_path)
    stored_file(events, "one.bin", b"1")
    files = HandmadePiece(events.identity, events.piece, "files", seq=1)
    files.segment = events.piece.dir / "files-000000000000.jsonl"
    line = files.log("file", path="broken", sha256="0" * 64, size=1)
    # Still to be uploaded when the daemon stops: what was read along with it is read again.
    entries = {"x": {"ref": "s3://b/x", "digest": "abc"}}
    manifest = Store(events.piece.dir.parent, is_durable=False).put(orjson.dumps(entries))
    names = {"name": "n", "type": "t", "description": None, "metadata": {}, "aliases": [], "tags": []}
    ids = {"client_id": "c", "sequence_client_id": "d", "digest": manifest_digest(entries), "size": 0}
    files.log("artifact", manifest=manifest.sha256, **names, **ids)
    files.overwrite(files.segment.read_bytes().index(line) + 40, b"Z")
    events.log("exit", exitcode=0)
    events.die()
    server.faults.add("status", kind="graphql:CreateArtifact", status=503)
    run_dir = events.piece.dir.parent

    def play(daemon: Daemon) -> None:
        wait_for(lambda: any((c.files or {}).get("writer") for c in cursors(run_dir)), "the first file")

    for _ in range(2):
        sync_while(server, tmp_path, play)
    server.faults.clear()
    sync(server, tmp_path)

    (cursor,) = cursors(tmp_path / "demo" / "run")
    assert cursor.not_shown[DAMAGED] == 1


def test_files_that_are_stored_while_others_wait_to_be_told_are_told_next(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path)
    for i in range(10):
        piece.log(x=i, text="t" * 60_000, step=i)
    piece.log("exit", exitcode=0)
    # More than are asked for at once, and all stored before the last of some slow batches leaves, which tells of them.
    names = [f"{i}.bin" for i in range(BATCH_FILES + 8)]
    files = HandmadePiece(piece.identity, piece.piece, "files")
    for name in names:
        log_file(files, name, name.encode())
    piece.die()
    server.faults.add("status", kind="file_stream", status=413, over_bytes=200_000)
    server.faults.add("hang", kind="file_stream", hang_s=0.3)

    sync(server, tmp_path)

    run = server.run("ent", "demo", "run")
    assert run.complete
    assert {*names, "config.yaml", "wandb-summary.json"} <= set(run.uploaded)


def test_a_console_that_is_replayed_changes_no_line_there(server: WandbServer, tmp_path: Path):  # faults: 47
    events = handmade_run(tmp_path)
    console = HandmadePiece(events.identity, events.piece, "console")
    for i in range(3000):
        console.log("console", source="stdout", text=f"epoch {i}: 10 %" + " " * 60)
        console.log("console", source="stdout", text=f"\repoch {i}: done\n")
    events.log("exit", exitcode=0)
    events.die()
    sync(server, tmp_path)
    before = server.run("ent", "demo", "run").console_lines
    shutil.rmtree(tmp_path / "demo" / "run" / "sync")

    sync(server, tmp_path)

    assert server.run("ent", "demo", "run").console_lines == before
    assert server.violations == []


# -- broken ones -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what", ["entity is a list", "run.json is a FIFO", "run.json is a loop", "no pieces"]
)
def test_a_broken_run_keeps_no_other_from_being_uploaded(server: WandbServer, tmp_path: Path, what: str):
    finished_run(tmp_path, "good")
    bad = tmp_path / "demo" / "bad"
    bad.mkdir()
    if what == "entity is a list":
        said = orjson.loads((tmp_path / "demo" / "good" / "run.json").read_bytes())
        (bad / "run.json").write_bytes(orjson.dumps({**said, "entity": []}))
    elif what == "run.json is a FIFO":
        os.mkfifo(bad / "run.json")
    elif what == "run.json is a loop":
        (bad / "run.json").symlink_to(bad / "run.json")
    else:
        RunIdentity.new("demo", "bad", None).publish(bad)

    sync(server, tmp_path)

    assert server.run("ent", "demo", "good").complete


def test_a_resumed_piece_of_which_nothing_can_be_read_is_counted(server: WandbServer, tmp_path: Path):
    first = finished_run(tmp_path)
    later = resumed(first.identity, tmp_path)
    later.die()
    later.segment.write_bytes(b"garbage\n" * 50)

    sync(server, tmp_path)

    (cursor,) = cursors(tmp_path / "demo" / "run")
    assert xs(server.run("ent", "demo", "run")) == [0, 1, 2, 3, 4]
    assert cursor.not_shown == {DAMAGED: 1}
    assert not server.run("ent", "demo", "run").complete


# -- on another host -------------------------------------------------------------------------------------------


async def turns(sync_: RunSync, now_s: float, count: int = 30) -> None:
    for _ in range(count):
        await sync_.turn(now_s)


def test_a_writer_on_another_host_that_is_not_heard_of_is_no_longer_said_to_live(
    server: WandbServer,
    tmp_path: Path,
):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0)
    piece.log(x=1, step=1)
    piece.die()
    as_seen_from_elsewhere(piece)
    run_dir = tmp_path / "demo" / "run"

    async def play() -> tuple[list[Any], list[Any], list[Any]]:
        api = WandbApi(server.base_url, lambda: API_KEY)
        identity = RunIdentity.load(run_dir)
        sync_ = RunSync(
            run_dir, Sink(server.base_url, None, identity.project, "run"), api, flush_s=0.0, steady_s=0.0
        )
        seen = []
        for now_s in (0.0, 60.0, STALE_S + 61.0):
            await turns(sync_, now_s)
            seen.append([*(c.state for c in cursors(run_dir)), *(c.error is None for c in cursors(run_dir))])
        await api.close()
        sync_.close()
        return seen[0], seen[1], seen[2]

    first, later, stale = asyncio.run(play())

    assert first == later == ["live", True]
    assert stale == ["crashed", False]
    # Its last row may still be added to: whoever knows better can say so.
    assert xs(server.run("ent", "demo", "run")) == [0]
    retry("demo/run", "--ended", root=tmp_path)
    sync(server, tmp_path)
    assert xs(server.run("ent", "demo", "run")) == [0, 1]
    assert not server.run("ent", "demo", "run").complete


def test_a_word_for_the_end_of_a_writer_counts_for_nothing_once_it_is_heard_of(tmp_path: Path):
    piece = handmade_run(tmp_path)
    as_seen_from_elsewhere(piece)
    run_dir, writer = piece.piece.dir.parent, piece.piece.writer
    vouch_for_end(run_dir, writer)
    before = is_vouched_for(run_dir, writer)

    lock = piece.piece.dir / pieces.LOCK_FILE
    lock.write_bytes(orjson.dumps({**orjson.loads(lock.read_bytes()), "heartbeat": 1}) + b"\n")

    assert (before, is_vouched_for(run_dir, writer)) == (True, False)
    piece.die()


def test_hints_cost_no_more_the_more_there_are(server: WandbServer, tmp_path: Path):
    live = handmade_run(tmp_path)
    rank_of(live, 1)
    live.log(x=0, step=0, commit=True)
    taken: list[float] = []

    class Counting(Daemon):
        def _take_hints(self, now_s: float) -> None:
            taken.append(now_s)
            super()._take_hints(now_s)

    async def play() -> None:
        api = WandbApi(server.base_url, lambda: API_KEY)
        daemon = Counting(roots=lambda: [tmp_path], api=api, steady_s=0.0, flush_s=0.05)
        running = asyncio.ensure_future(daemon.run())
        for _ in range(200):
            for _ in range(100):
                daemon.hint(tmp_path / "demo" / "run")
            await asyncio.sleep(0)
        daemon.stop()
        await running

    asyncio.run(asyncio.wait_for(play(), 30))

    assert all(later - earlier >= daemon_module.HINTS_S for earlier, later in pairwise(taken))
    live.die()


# -- what is in a run besides rows -----------------------------------------------------------------------------


def test_system_metrics_are_lines_of_their_own(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.log("system", **{"cpu": 12.5, "proc.memory.rssMB": 100})
    piece.log(x=1, step=1)
    piece.log("exit", exitcode=0)
    piece.die()

    sync(server, tmp_path)

    (line,) = server.run("ent", "demo", "run").events
    assert line["_wandb"] is True
    assert line["system.cpu"] == 12.5
    assert line["system.proc.memory.rssMB"] == 100
    assert line["_timestamp"] == pytest.approx(1_763_712_000.001)
    assert xs(server.run("ent", "demo", "run")) == [1]


def test_a_segment_of_another_log_is_not_uploaded_as_ours(server: WandbServer, tmp_path: Path):
    ours = handmade_run(tmp_path, "ours")
    ours.log(x=0, step=0)
    other = finished_run(tmp_path / "elsewhere", "other", rows=9)
    foreign = ours.piece.dir / "events-000000000002.jsonl"
    shutil.copy(other.segment, foreign)
    ours.die()

    sync(server, tmp_path)

    assert xs(server.run("ent", "demo", "ours")) == [0]


def test_a_stop_from_the_runs_page_is_remembered_in_the_cursor(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0, commit=True)

    def play(_: Daemon) -> None:
        wait_for(lambda: any(run.history for run in server.runs()), "the first row")
        server.stop_run("ent", "demo", "run")
        piece.log(x=1, step=1, commit=True)
        wait_for(lambda: any(c.stopped for c in cursors(tmp_path / "demo" / "run")), "the word to stop")

    sync_while(server, tmp_path, play)

    piece.die()
    assert [cursor.stopped for cursor in cursors(tmp_path / "demo" / "run")] == ["main-0001"]


def test_a_rate_limit_holds_every_run_of_its_project_and_no_other(server: WandbServer, tmp_path: Path):
    # faults: 69
    for i in range(6):
        finished_run(tmp_path, f"run{i}")
    server.faults.add("status", kind="file_stream", status=429, retry_after="1", times=1)

    sync(server, tmp_path)

    posts = [request for request in server.requests if request.kind == "file_stream"]
    limited = next(i for i, request in enumerate(posts) if request.status == 429)
    waited = [request.at_s - posts[limited].at_s for request in posts[limited + 1 :]]
    # Those that were under way at the moment may land; the rest waits.
    assert sum(wait_s < 1.0 for wait_s in waited) <= 8
    assert all(run.complete for run in server.runs())
