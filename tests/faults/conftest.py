"""What the fault tests share: a server, and a daemon that hears of changes or only looks for itself.

    inotify   it hears of changes, and looks for itself so seldom that the test would have failed before
    sweep     it hears of nothing, and looks for itself all the time

So what arrives in the one mode was heard of, and what arrives in the other was found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd import daemon as daemon_module
from syncd import run_sync, shipper
from syncd.daemon import Daemon
from syncd.watch import Watch
from tests.faults.worlds import World
from tests.syncd.syncing import DEADLINE_S, daemon_of
from tests.wandb_server import WandbServer

Play = Callable[..., None]

NEVER_S = 20 * DEADLINE_S


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer(entity="ent") as running:
        yield running


@pytest.fixture(params=["inotify", "sweep"])
def is_watching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the daemon hears of changes; how often it looks for itself is the opposite."""
    is_watching = bool(request.param == "inotify")
    for name in ("HOT_S", "WARM_S", "COLD_S"):
        monkeypatch.setattr(run_sync, name, NEVER_S if is_watching else 0.05)
    monkeypatch.setattr(daemon_module, "SCAN_S", NEVER_S if is_watching else 0.1)
    # A heartbeat is an occasion to look.
    monkeypatch.setattr(shipper, "HEARTBEAT_S", NEVER_S)
    monkeypatch.setattr(daemon_module, "HINT_S", 0.01)
    monkeypatch.setattr(shipper, "BACKOFF_FIRST_S", 0.05)
    return is_watching


@pytest.fixture
def scanning(is_watching: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scan come often in both modes: whether a run was moved or deleted, it alone finds out."""
    monkeypatch.setattr(daemon_module, "SCAN_S", 0.1)


@pytest.fixture
def world(server: WandbServer, tmp_path: Path, is_watching: bool) -> Iterator[World]:
    with World(tmp_path / "runs", server, is_watching) as made:
        yield made


@pytest.fixture
def sync_while(is_watching: bool) -> Play:
    """Run a daemon while the test plays with the world."""

    def run(server: WandbServer, root: Path, play: Callable[[], Any], **options: Any) -> None:
        asyncio.run(_both(server, root, play, is_watching, options))

    return run


async def _both(
    server: WandbServer, root: Path, play: Callable[[], Any], is_watching: bool, options: dict[str, Any]
) -> None:
    daemon: Daemon = daemon_of(server, root, until_synced=False, **options)
    loop = asyncio.get_running_loop()
    watch = Watch(daemon.hint, loop.call_soon_threadsafe)
    if is_watching:
        daemon.watch_roots = watch.look_after
    running = asyncio.ensure_future(daemon.run())
    try:
        await asyncio.wait_for(asyncio.to_thread(play), DEADLINE_S)
    finally:
        watch.stop()
        daemon.stop()
        await asyncio.wait_for(running, DEADLINE_S)
