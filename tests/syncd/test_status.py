"""What `syncd status` says of a run, and whether something of it is missing there: read from disk alone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from syncd.status import RunStatus, run_statuses
from tests.logs import HandmadePiece, handmade_run
from tests.syncd.syncing import finished_run, sync
from tests.wandb_server import WandbServer


def statuses(root: Path) -> list[RunStatus]:
    return run_statuses([root], time.time_ns() // 1000, online=True)


def ended(piece: HandmadePiece) -> None:
    piece.log("exit", exitcode=0)
    piece.die()


def test_a_run_that_no_server_has_heard_of_waits_with_all_its_records(tmp_path: Path):
    finished_run(tmp_path, rows=5)

    (run,) = statuses(tmp_path)

    assert (run.run, run.state, run.records, run.acked, run.url) == ("demo/run", "waiting", 7, 0, None)
    assert run.lacks_something


def test_a_run_that_is_there_lacks_nothing(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path, rows=5)
    sync(server, tmp_path)

    (run,) = statuses(tmp_path)

    assert (run.state, run.backlog, run.not_shown) == ("synced", 0, {})
    assert not run.lacks_something


def test_a_killed_run_that_is_there_lacks_nothing(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.log(x=1, step=1)
    piece.die()
    sync(server, tmp_path)

    (run,) = statuses(tmp_path)

    assert run.state == "crashed"
    assert not run.lacks_something


def test_what_wandbs_own_client_would_not_show_either_is_counted_and_lacks_nothing(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path)
    piece.log(x=1, step=5)
    piece.log(x=2, step=3)
    ended(piece)
    sync(server, tmp_path)

    (run,) = statuses(tmp_path)

    assert list(run.not_shown.values()) == [1]
    assert not run.lacks_something


@pytest.mark.parametrize("what", ["a refused row", "a damaged row", "a missing file"])
def test_a_run_of_which_something_is_not_there_lacks_it(server: WandbServer, tmp_path: Path, what: str):
    piece = handmade_run(tmp_path)
    line = piece.log(x="poison", step=1)
    if what == "a refused row":
        server.faults.add("status", kind="file_stream", status=422, containing="poison")
    elif what == "a damaged row":
        piece.overwrite(piece.segment.read_bytes().index(line) + 40, b"\x00")
    else:
        files = HandmadePiece(piece.identity, piece.piece, "files")
        files.log("file", path="gone.bin", sha256="0" * 64, size=1)
    ended(piece)
    sync(server, tmp_path)

    (run,) = statuses(tmp_path)

    assert run.state == "synced"
    assert sum(run.not_shown.values()) >= 1
    assert run.lacks_something


def test_a_run_of_which_nothing_can_be_read_says_so_and_lacks_it(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.die()
    piece.segment.write_bytes(b"\x00garbage\n")
    sync(server, tmp_path)

    (run,) = statuses(tmp_path)

    assert "eventlog verify" in (run.error or "")
    assert run.lacks_something


def test_two_destinations_of_a_run_are_two_lines_each_named_as_it_is_there(
    server: WandbServer, tmp_path: Path
):
    finished_run(tmp_path)
    sync(server, tmp_path)
    sync(server, tmp_path, project="elsewhere")

    runs = statuses(tmp_path)

    assert sorted(run.run for run in runs) == ["demo/run", "elsewhere/run"]
    assert {run.state for run in runs} == {"synced"}
    assert len({run.url for run in runs}) == 2


def test_a_run_that_was_deleted_here_has_no_status(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path)
    sync(server, tmp_path)
    shutil.rmtree(tmp_path / "demo" / "run")

    assert statuses(tmp_path) == []
