"""Outages of days on a clock that is handed over: how much is asked in vain, and what the way back costs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.record import encode
from syncd.daemon import PROBE_S, Gate
from syncd.http import Answer
from syncd.shipper import BATCH_MAX_BYTES
from syncd.wandb_api import WandbApi
from tests.faults.turns import Clock, rest, sync_of, turn
from tests.logs import TIME_US, handmade_run
from tests.syncd.syncing import sync, xs
from tests.wandb_server import API_KEY, WandbServer

HOUR_S = 3600.0
WEEK_H = 7 * 24
HOUR_US = 3_600_000_000

# Uploads all below a root, and prints the most memory that it ever had.
SYNC = """
import asyncio, sys
from pathlib import Path
from syncd.daemon import Daemon
from syncd.wandb_api import WandbApi
api = WandbApi(sys.argv[1], lambda: sys.argv[2])
daemon = Daemon(roots=lambda: [Path(sys.argv[3])], api=api, until_synced=True, steady_s=0.0)
asyncio.run(daemon.run())
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


class Remote(WandbApi):
    """The real one, behind a link that can be cut; counts what is asked in each hour while it is."""

    def __init__(self, base_url: str, clock: Clock) -> None:
        super().__init__(base_url, lambda: API_KEY)
        self.is_away = False
        self.in_vain: Counter[int] = Counter()
        self._clock = clock

    async def resume_status(self, entity: str | None, project: str, run_id: str) -> Answer:
        return self._nothing() or await super().resume_status(entity, project, run_id)

    async def upsert_run(self, **variables: Any) -> Answer:
        return self._nothing() or await super().upsert_run(**variables)

    async def file_stream(self, entity: str, project: str, run_id: str, body: bytes) -> Answer:
        return self._nothing() or await super().file_stream(entity, project, run_id, body)

    def _nothing(self) -> Answer | None:
        if not self.is_away:
            return None
        self.in_vain[int(self._clock.now_s // HOUR_S)] += 1
        return Answer(None, {}, None, error="the network is unreachable")


# -- one run ---------------------------------------------------------------------------------------------------


# faults: 72 73
def test_a_week_offline_is_asked_for_twice_a_minute_and_drains_in_full_batches(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0, commit=True)
    clock = Clock()
    api = Remote(server.base_url, clock)
    run_sync = sync_of(piece, api, clock)

    async def story() -> None:
        await rest(run_sync, clock)
        api.is_away, begin_s = True, clock.now_s
        for hour in range(1, WEEK_H + 1):
            piece.log(x=hour, text="t" * 64_000, step=hour, commit=True)
            while clock.now_s < begin_s + hour * HOUR_S:
                before_s = clock.now_s
                await turn(run_sync, clock, begin_s + hour * HOUR_S)
                assert clock.now_s > before_s, "a turn that asks for another at once"
        api.is_away = False
        server.clear_requests()
        await rest(run_sync, clock)
        await api.close()

    asyncio.run(story())

    sizes = [request.bytes for request in server.requests if request.kind == "file_stream"]
    assert max(api.in_vain.values()) <= 130
    assert sum(api.in_vain.values()) <= 100 * WEEK_H
    assert xs(server.runs()[0]) == list(range(WEEK_H + 1))
    assert server.runs()[0].replayed_lines == 0
    # Nine in ten bytes go in batches that are at least half full.
    assert max(sizes) < BATCH_MAX_BYTES + 100_000
    assert sum(size for size in sizes if size > BATCH_MAX_BYTES // 2) > 0.9 * sum(sizes)


# faults: 73
def test_a_backlog_four_times_as_long_takes_no_more_memory(server: WandbServer, tmp_path: Path):
    def peak_of_uploading(rows: int) -> int:
        root = tmp_path / str(rows)
        piece = handmade_run(root, f"rows{rows}")
        for i in range(rows):
            piece.log(x=i, text="t" * 64_000, step=i)
        piece.log("exit", exitcode=0)
        piece.die()
        arguments = [sys.executable, "-c", SYNC, server.base_url, API_KEY, str(root)]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return int(subprocess.run(arguments, env=env, stdout=subprocess.PIPE, check=True).stdout)

    peaks_kib = [peak_of_uploading(160), peak_of_uploading(640)]

    assert [len(run.history) for run in server.runs()] == [160, 640]
    # 30 MiB more to upload; what is left of it in memory are the allocator's habits.
    assert peaks_kib[1] - peaks_kib[0] < 15 * 1024


# faults: 75
def test_a_run_resumed_again_after_an_upload_keeps_its_steps(server: WandbServer, tmp_path: Path):
    for part in range(3):
        with eventlog.init(project="demo", id="run", root=tmp_path, resume="allow") as run:
            for _ in range(3):
                run.log({"x": run.step})
        if part == 0:
            sync(server, tmp_path)

    sync(server, tmp_path)

    there = server.run("ent", "demo", "run")
    assert [(row["_step"], row["x"]) for row in there.history] == [(step, step) for step in range(9)]
    assert there.replayed_lines == 0
    assert server.violations == []


# faults: 88
def test_over_jumps_of_the_wall_clock_time_does_not_go_back_and_no_turn_is_wasted(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path)
    clock = Clock()
    api = Remote(server.base_url, clock)
    run_sync = sync_of(piece, api, clock)
    runtimes: list[float] = []
    turns: list[int] = []

    async def story() -> None:
        for x, jump_us in enumerate([0, HOUR_US, 0, 240 * HOUR_US, -HOUR_US, 2 * HOUR_US]):
            piece.append(encode(piece.seq, TIME_US + jump_us, "metrics", {"x": x}, x, True))
            piece.seq += 1
            taken = 0
            while not server.runs() or len(server.runs()[0].history) <= x:
                await turn(run_sync, clock)
                taken += 1
            turns.append(taken)
            runtimes.append(server.runs()[0].summary["_runtime"])
        await api.close()

    asyncio.run(story())

    assert xs(server.runs()[0]) == [0, 1, 2, 3, 4, 5]
    assert runtimes == sorted(runtimes)
    assert max(turns) <= 5


# faults: 90
def test_a_machine_that_slept_through_an_outage_waits_for_nothing_more(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.log(x=0, step=0, commit=True)
    clock = Clock()
    api = Remote(server.base_url, clock)
    run_sync = sync_of(piece, api, clock)

    async def story() -> None:
        await rest(run_sync, clock)
        piece.log(x=1, step=1, commit=True)
        api.is_away = True
        while sum(api.in_vain.values()) < 10:
            await turn(run_sync, clock)
        api.is_away = False
        clock.now_s += 8 * HOUR_S
        await run_sync.turn(clock.now_s)
        await api.close()

    asyncio.run(story())

    assert xs(server.runs()[0]) == [0, 1]


# -- the host --------------------------------------------------------------------------------------------------


# faults: 72 90
@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_over_a_night_without_a_network_the_host_is_probed_now_and_then_and_its_return_seen_at_once(
    jitter: float,
):
    gate = Gate()
    now_s, tries_s = 0.0, [0.0]

    gate.shut("the network is unreachable", now_s, jitter)
    while now_s < 8 * HOUR_S:
        now_s = gate.next_try_s
        tries_s.append(now_s)
        gate.asked(now_s, jitter)

    waits_s = [after - before for before, after in pairwise(tries_s)]
    # Whenever the network returns, it is seen at the next try.
    assert max(waits_s) <= PROBE_S
    # With the jitter, a steady probe comes after half of that at the earliest.
    assert len(tries_s) <= 8 * HOUR_S / (PROBE_S / 2) + 6
    assert gate.since_s == 0.0
