"""Runs a daemon in the test's own process until all is uploaded, or while the test plays with the world."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from syncd.daemon import Daemon
from syncd.wandb_api import WandbApi
from tests.logs import HandmadePiece, handmade_run
from tests.wandb_server import WandbServer
from tests.wandb_server.server import API_KEY
from tests.wandb_server.store import StoredRun

DEADLINE_S = 30.0


def options_of(
    server: WandbServer, root: Path, key: Callable[[], str] = lambda: API_KEY, **options: Any
) -> dict[str, Any]:
    """Return what a daemon for this server and root is made of."""
    defaults = {
        "roots": lambda: [root],
        "api": WandbApi(server.base_url, key),
        "until_synced": True,
        "steady_s": 0.0,
        "standstill_s": 0.0,
        "flush_s": 0.05,
    }
    return {**defaults, **options}


def daemon_of(server: WandbServer, root: Path, **options: Any) -> Daemon:
    return Daemon(**options_of(server, root, **options))


def sync(server: WandbServer, root: Path, **options: Any) -> Daemon:
    """Upload everything below `root` and return the daemon that did it."""
    daemon = daemon_of(server, root, **options)
    asyncio.run(asyncio.wait_for(daemon.run(), DEADLINE_S))
    return daemon


def sync_while(server: WandbServer, root: Path, play: Callable[[Daemon], Any], **options: Any) -> None:
    """Run a daemon, and `play` with the world while it runs (in a thread of its own)."""

    async def both() -> None:
        daemon = daemon_of(server, root, until_synced=False, **options)
        running = asyncio.ensure_future(daemon.run())
        await asyncio.wait_for(asyncio.to_thread(play, daemon), DEADLINE_S)
        daemon.stop()
        await asyncio.wait_for(running, DEADLINE_S)

    asyncio.run(both())


def xs(run: StoredRun) -> list[Any]:
    return [row.get("x") for row in run.history]


def finished_run(root: Path, run_id: str = "run", rows: int = 5, **start: Any) -> HandmadePiece:
    piece = handmade_run(root, run_id, **start)
    for i in range(rows):
        piece.log(x=i, step=i)
    piece.log("exit", exitcode=0)
    piece.die()
    return piece
