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


def test_a_child_that_cannot_be_started_is_tried_again_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run_dir, later = (finished_run(tmp_path, name).piece.dir.parent for name in ("run", "later"))
    # As while an environment is made anew; where no process may be begun it is the same error, with another number.
    interpreter, made = tmp_path / "python", tmp_path / "made"
    made.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    made.chmod(0o755)
    sealer = Sealer([str(interpreter), "-m", "eventlog", "seal"], again_s=0.01)
    tries = []
    begin = sealer._begin

    async def counted(run_dirs: list[Path]) -> asyncio.subprocess.Process | None:
        tries.append(run_dirs)
        return await begin(run_dirs)

    sealer._begin = counted  # type: ignore[method-assign]

    async def play(running: asyncio.Task[None]) -> None:
        sealer.offer(run_dir)
        await until(lambda: len(tries) > 3 or running.done())
        made.rename(interpreter)
        sealer.offer(later)
        await until(lambda: not sealer._offered or running.done())

    with caplog.at_level("INFO"):
        seal_while(sealer, play)

    assert not to_seal(run_dir)
    assert not to_seal(later)
    assert caplog.text.count("no process can be started that seals runs") == 1
    assert caplog.text.count("runs are sealed again") == 1


def test_who_stops_takes_the_child_along(tmp_path: Path):
    run_dir = finished_run(tmp_path).piece.dir.parent
    sealer = Sealer([sys.executable, "-c", "import time; time.sleep(600)"])
    children: list[psutil.Process] = []
    # Of this process's other tests, some may be ending.
    others = psutil.Process().children()

    async def play(running: asyncio.Task[None]) -> None:
        sealer.offer(run_dir)
        await until(lambda: set(psutil.Process().children()) - set(others))
        children.extend(child for child in psutil.Process().children() if child not in others)
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
