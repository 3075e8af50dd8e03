"""Section E: what a cursor may never say, and what its loss may never cost."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from eventlog.cursor import cursors
from syncd.fold import HISTORY
from tests.exactly_once.test_state_machine import Killed, MortalApi
from tests.faults.turns import rest, sync_of
from tests.logs import handmade_run, resumed
from tests.syncd.syncing import finished_run, sync, xs
from tests.wandb_server import WandbServer


# faults: 44 50
@pytest.mark.parametrize("reaches", [False, True], ids=["before the server", "after the server"])
def test_the_cursor_is_never_ahead_of_what_the_server_confirmed(
    server: WandbServer, tmp_path: Path, reaches: bool
):
    piece = finished_run(tmp_path)
    api = MortalApi(server.base_url)
    api.dies = (2, reaches)

    with pytest.raises(Killed):
        asyncio.run(rest(sync_of(piece, api)))

    (cursor,) = cursors(piece.piece.dir.parent)
    assert cursor.acked[HISTORY] == 0
    sync(server, tmp_path)
    assert xs(server.runs()[0]) == [0, 1, 2, 3, 4]
    assert server.runs()[0].replayed_lines == (5 if reaches else 0)


# faults: 49
def test_of_a_batch_accepted_in_parts_no_part_is_sent_twice(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    for i in range(64):
        piece.log(x=i, text="y" * 500, step=i, commit=True)
    piece.die()
    server.faults.add("status", kind="file_stream", status=413, over_bytes=10_000)

    sync(server, tmp_path)

    assert xs(server.runs()[0]) == list(range(64))
    assert server.runs()[0].replayed_lines == 0


# faults: 51
def test_a_run_that_vanished_and_came_back_is_not_sent_again(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path / "root")
    sync(server, tmp_path / "root")
    shutil.move(tmp_path / "root" / "demo" / "run", tmp_path / "away")
    sync(server, tmp_path / "root")
    shutil.move(tmp_path / "away", tmp_path / "root" / "demo" / "run")
    server.clear_requests()

    sync(server, tmp_path / "root")

    assert [request for request in server.requests if request.kind == "file_stream"] == []


# faults: 44
def test_killed_after_a_new_config_was_told_the_newest_is_there_in_the_end(
    server: WandbServer, tmp_path: Path
):
    first = finished_run(tmp_path, config={"lr": 1})
    sync(server, tmp_path)
    later = resumed(first.identity, tmp_path, config={"lr": 2})
    later.log(x=5, step=5, commit=True)
    later.die()
    api = MortalApi(server.base_url)
    # It asks what is there and tells the config; killed at the rows.
    api.dies = (2, False)
    with pytest.raises(Killed):
        asyncio.run(rest(sync_of(later, api)))
    assert server.runs()[0].config["lr"] == 2

    server.faults.add("drop", kind="graphql:UpsertBucket", applied=True, times=1)
    sync(server, tmp_path)

    assert xs(server.runs()[0]) == [0, 1, 2, 3, 4, 5]
    assert server.runs()[0].config["lr"] == 2


# faults: 44
def test_a_resumed_run_killed_before_its_first_row_is_not_complete(server: WandbServer, tmp_path: Path):
    first = finished_run(tmp_path)
    sync(server, tmp_path)
    resumed(first.identity, tmp_path).die()

    sync(server, tmp_path)

    assert not server.runs()[0].complete
