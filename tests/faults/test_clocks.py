"""Section K: clocks that jump, stand still or lie."""

from __future__ import annotations

import asyncio
from pathlib import Path

from eventlog.record import encode
from syncd.wandb_api import WandbApi
from tests.faults.turns import Clock, rest, sync_of
from tests.logs import TIME_US, handmade_run
from tests.syncd.syncing import sync, xs
from tests.wandb_server import API_KEY, WandbServer

HOUR_US = 3600 * 1_000_000


# faults: 88
def test_a_wall_clock_that_jumps_changes_no_order_and_loses_no_row(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    for i, jump_us in enumerate([0, -HOUR_US, 240 * HOUR_US, -240 * HOUR_US, 1]):
        piece.append(encode(piece.seq, TIME_US + jump_us, "metrics", {"x": i}, i, True))
        piece.seq += 1
    piece.die()

    sync(server, tmp_path)

    run = server.runs()[0]
    assert xs(run) == [0, 1, 2, 3, 4]
    assert all(row["_runtime"] >= 0 for row in run.history)
    assert server.violations == []


# faults: 90
def test_after_a_night_asleep_a_run_goes_on_with_one_request(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0, commit=True)
    api, clock = WandbApi(server.base_url, lambda: API_KEY), Clock()
    run_sync = sync_of(piece, api, clock)

    async def story() -> None:
        await rest(run_sync, clock)
        server.clear_requests()
        clock.now_s += 8 * 3600.0
        piece.log(x=1, step=1, commit=True)
        await run_sync.turn(clock.now_s)
        await api.close()

    asyncio.run(story())

    assert xs(server.runs()[0]) == [0, 1]
    assert len([request for request in server.requests if request.kind == "file_stream"]) == 1
