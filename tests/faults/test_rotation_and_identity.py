"""Section C: segments that come, go, shrink and move, on their way to a server."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from eventlog.cursor import cursors
from syncd.run_sync import DAMAGED
from tests.faults.conftest import Play
from tests.logs import handmade_run
from tests.syncd.syncing import finished_run, sync, xs
from tests.wandb_server import WandbServer, wait_for


# faults: 22 40
def test_rotation_under_the_daemons_eyes_loses_and_doubles_nothing(
    server: WandbServer, tmp_path: Path, sync_while: Play
):
    pieces = [handmade_run(tmp_path, f"run{number}") for number in range(3)]

    def play() -> None:
        for i in range(30):
            for piece in pieces:
                if i % 3 == 0:
                    piece.new_segment()
                piece.log(x=i, step=i, commit=True)
        wait_for(
            lambda: len(server.runs()) == 3 and all(len(run.history) == 30 for run in server.runs()),
            "all rows",
        )

    sync_while(server, tmp_path, play)

    assert [xs(run) for run in server.runs()] == [list(range(30))] * 3
    assert server.violations == []


# faults: 24
def test_rotation_while_the_daemon_is_down_is_caught_up_with(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0, commit=True)
    sync(server, tmp_path)
    for i in range(1, 6):
        piece.new_segment()
        piece.log(x=i, step=i, commit=True)
    piece.die()

    sync(server, tmp_path)

    assert xs(server.runs()[0]) == list(range(6))
    assert server.runs()[0].replayed_lines == 0


# faults: 25 33
def test_a_segment_cut_behind_the_cursor_sends_nothing_again(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    for i in range(5):
        piece.log(x=i, step=i, commit=True)
    sync(server, tmp_path)
    piece.cut(piece.offset_of(3))
    piece.die()

    sync(server, tmp_path)

    assert xs(server.runs()[0]) == list(range(5))
    assert server.runs()[0].replayed_lines == 0
    assert server.violations == []


# faults: 26
def test_a_segment_cut_during_an_outage_gives_what_is_left(
    server: WandbServer, tmp_path: Path, sync_while: Play
):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0, commit=True)

    def play() -> None:
        wait_for(lambda: server.runs() and xs(server.runs()[0]), "the first row")
        server.down()
        for i in range(1, 4):
            piece.log(x=i, step=i, commit=True)
        piece.cut(piece.offset_of(3))
        piece.new_segment()
        piece.log(x=4, step=4, commit=True)
        server.up()
        wait_for(lambda: xs(server.runs()[0])[-1] == 4, "the last row")

    sync_while(server, tmp_path, play)

    # What had been read before the cut is sent; what had not is gone.
    assert xs(server.runs()[0]) in ([0, 1, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4])
    assert server.violations == []


# faults: 27
def test_a_hole_where_a_segment_was_cut_under_its_writer_costs_only_itself(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path)
    for i in range(4):
        piece.log(x=i, step=i, commit=True)
    sync(server, tmp_path)
    size = piece.segment.stat().st_size
    piece.cut(0)
    os.truncate(piece.segment, size)
    piece.append(b"\n")
    piece.log(x=4, step=4, commit=True)
    piece.die()

    sync(server, tmp_path)

    assert xs(server.runs()[0]) == [0, 1, 2, 3, 4]
    assert server.violations == []


# faults: 28
def test_a_run_deleted_and_begun_again_under_its_name_is_another_log(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path, rows=3)
    sync(server, tmp_path)
    shutil.rmtree(tmp_path / "demo" / "run")
    finished_run(tmp_path, rows=5)

    daemon = sync(server, tmp_path)

    (entry,) = daemon.entries.values()
    assert entry.parked
    assert xs(server.runs()[0]) == [0, 1, 2]


# faults: 31
def test_a_segment_deleted_before_it_was_uploaded_is_counted_and_the_rest_arrives(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path)
    for i in range(9):
        if i == 6 or i == 3:
            piece.new_segment()
        piece.log(x=i, step=i, commit=True)
    piece.die()
    (piece.piece.dir / "events-000000000004.jsonl").unlink()

    sync(server, tmp_path)

    assert xs(server.runs()[0]) == [0, 1, 2, 6, 7, 8]
    (cursor,) = cursors(piece.piece.dir.parent)
    assert cursor.not_shown == {DAMAGED: 3}


# faults: 34
@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_segment_that_may_be_read_again_is_uploaded(server: WandbServer, tmp_path: Path, sync_while: Play):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0, commit=True)
    piece.segment.chmod(0)

    def play() -> None:
        piece.segment.chmod(0o600)
        wait_for(lambda: server.runs() and xs(server.runs()[0]) == [0], "the row")

    sync_while(server, tmp_path, play)

    assert server.violations == []


# faults: 35
def test_a_linked_run_directory_is_not_followed(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path / "elsewhere")
    (tmp_path / "root" / "demo").mkdir(parents=True)
    (tmp_path / "root" / "demo" / "run").symlink_to(tmp_path / "elsewhere" / "demo" / "run")

    sync(server, tmp_path / "root")

    assert server.runs() == []
