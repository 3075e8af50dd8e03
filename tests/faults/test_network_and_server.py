"""Section H: outages of days, which pass on a clock that is handed over, and what comes after them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from syncd.run_sync import RunSync
from syncd.shipper import BATCH_MAX_BYTES, Verdict
from syncd.wandb_api import WandbApi
from tests.faults.turns import Clock, rest, sync_of, turn
from tests.logs import handmade_run, resumed
from tests.syncd.syncing import sync, xs
from tests.wandb_server import API_KEY, WandbServer

DAY_S = 86_400.0


# faults: 68 73
def test_three_days_offline_cost_what_was_logged_in_them_and_nothing_again(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0, commit=True)
    api, clock = WandbApi(server.base_url, lambda: API_KEY), Clock()
    run_sync = sync_of(piece, api, clock)

    async def story() -> None:
        await rest(run_sync, clock)
        server.down()
        back_s = clock.now_s + 3 * DAY_S
        for i in range(1, 200):
            piece.log(x=i, text="t" * 20_000, step=i, commit=True)
            await turn(run_sync, clock, back_s)
        assert run_sync.trouble is None or run_sync.trouble.verdict is Verdict.UNREACHABLE
        clock.now_s = back_s
        server.up()
        server.clear_requests()
        await rest(run_sync, clock)
        await api.close()

    asyncio.run(story())

    run = server.runs()[0]
    sizes = [request.bytes for request in server.requests if request.kind == "file_stream"]
    assert xs(run) == list(range(200))
    assert run.replayed_lines == 0
    assert max(sizes) < BATCH_MAX_BYTES + 100_000


# faults: 72
def test_while_the_network_is_away_a_run_asks_once_a_minute_and_no_more(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    api, clock = WandbApi(server.base_url, lambda: API_KEY), Clock()
    run_sync: RunSync = sync_of(piece, api, clock)
    tries = 0

    async def story() -> None:
        nonlocal tries
        server.down()
        while clock.now_s < 3600.0:
            before_s = clock.now_s
            await turn(run_sync, clock)
            assert clock.now_s > before_s
            tries += 1
        await api.close()

    asyncio.run(story())

    # Twice a minute at the most lively end of the jitter, and some quick ones at first.
    assert 60 <= tries <= 130


# faults: 75
def test_a_run_resumed_twice_while_offline_keeps_its_steps(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    for i in range(9):
        if i in (3, 6):
            piece.die()
            piece = resumed(piece.identity, tmp_path, resumed=True, step=i)
        piece.log(x=i, step=10 * i, commit=True)
    piece.die()

    sync(server, tmp_path)

    assert [row["_step"] for row in server.runs()[0].history] == [10 * i for i in range(9)]
