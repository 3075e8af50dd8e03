"""Runs that are over are sealed by a child, and nothing waits for it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from eventlog.seal import to_seal
from syncd.sealing import Sealer
from tests.logs import handmade_run
from tests.syncd.syncing import DEADLINE_S, finished_run
from tests.syncd.test_cli import env, server, status, syncd
from tests.wandb_server import WandbServer
from tests.wandb_server.waiting import wait_for

__all__ = ["env", "server"]


async def until(condition: Callable[[], object]) -> None:
    async def waits() -> None:
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(waits(), DEADLINE_S)


def seal_while(sealer: Sealer, play: Callable[[asyncio.Task[None]], Awaitable[None]]) -> None:
    """Let the sealer run, and play with it until that is done."""

    async def both() -> None:
        running = asyncio.ensure_future(sealer.run())
        await play(running)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(both())


def test_what_is_over_is_sealed_once_and_what_lives_is_left(tmp_path: Path):
    over = [finished_run(tmp_path, f"run{number}").piece.dir.parent for number in range(20)]
    live = handmade_run(tmp_path, "live")
    live.log(x=1)
    sealer = Sealer()

    async def play(_: object) -> None:
        for run_dir in [*over, live.piece.dir.parent]:
            sealer.offer(run_dir)
        await until(lambda: not sealer._offered)

    seal_while(sealer, play)
    for run_dir in over:
        sealer.offer(run_dir)

    assert len(list(tmp_path.rglob("events-*.parquet"))) == 20
    assert not list(live.piece.dir.glob("*.parquet"))
    assert len(list(tmp_path.rglob("events-*.jsonl"))) == 21
    assert not sealer._offered


def test_a_damaged_run_is_said_once_and_keeps_no_other_from_being_sealed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    damaged, whole = finished_run(tmp_path, "damaged"), finished_run(tmp_path, "whole")
    damaged.overwrite(damaged.offset_of(2) + 20, b"\x00\x00")
    damaged_dir, whole_dir = damaged.piece.dir.parent, whole.piece.dir.parent
    sealer = Sealer()

    async def play(_: object) -> None:
        sealer.offer(damaged_dir)
        sealer.offer(whole_dir)
        await until(lambda: not sealer._offered)
        sealer.offer(damaged_dir)

    seal_while(sealer, play)

    assert not to_seal(whole_dir)
    assert "eventlog verify demo/damaged" in caplog.text
    assert caplog.text.count("not everything was sealed") == 1
    assert not sealer._offered


def test_who_stops_takes_the_child_along(tmp_path: Path):
    run_dir = finished_run(tmp_path).piece.dir.parent
    sealer = Sealer([sys.executable, "-c", "import time; time.sleep(600)"])
    children: list[psutil.Process] = []

    async def play(running: asyncio.Task[None]) -> None:
        sealer.offer(run_dir)
        await until(psutil.Process().children)
        children.extend(psutil.Process().children())
        await until(lambda: os.getpriority(os.PRIO_PROCESS, children[0].pid) == 19)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    seal_while(sealer, play)

    assert len(children) == 1
    assert not children[0].is_running()


def test_the_daemon_has_what_it_uploaded_sealed(server: WandbServer, env: dict[str, str], tmp_path: Path):
    over, left = finished_run(tmp_path / "runs", "over"), handmade_run(tmp_path / "runs", "live")
    left.log(x=1, step=0)

    syncd(env, "start", "--root", str(tmp_path / "runs"))
    wait_for(lambda: not to_seal(over.piece.dir.parent), "the seal")
    wait_for(lambda: len(server.runs()) == 2, "both runs")

    assert list(over.piece.dir.glob("events-*.parquet"))
    assert not list(left.piece.dir.glob("*.parquet"))


def test_the_daemon_seals_nothing_where_it_is_not_to(
    server: WandbServer, env: dict[str, str], tmp_path: Path
):
    over = finished_run(tmp_path / "runs", "over")

    syncd(env, "start", "--no-seal", "--root", str(tmp_path / "runs"))
    wait_for(lambda: status(env, tmp_path / "runs")["runs"][0]["state"] == "synced", "the upload")
    syncd(env, "stop")

    assert to_seal(over.piece.dir.parent)
