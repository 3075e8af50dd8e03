"""Drives one `RunSync` by hand, on a clock that the test passes: days of outage take no time."""

from __future__ import annotations

from eventlog.cursor import Sink
from syncd.run_sync import RunSync
from syncd.wandb_api import WandbApi
from tests.logs import HandmadePiece

TURNS_MAX = 500


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0


def sync_of(piece: HandmadePiece, api: WandbApi, clock: Clock | None = None) -> RunSync:
    clock = clock or Clock()
    identity = piece.identity
    sink = Sink(api.base_url, identity.entity, identity.project, identity.run_id)
    return RunSync(piece.piece.dir.parent, sink, api, clock=lambda: clock.now_s)


async def turn(sync: RunSync, clock: Clock, until_s: float = float("inf")) -> None:
    """Take a turn, and let the time pass that it asks for, if that is before `until_s`."""
    due_s = await sync.turn(clock.now_s)
    clock.now_s = max(clock.now_s, min(due_s, until_s))


async def rest(sync: RunSync, clock: Clock | None = None) -> None:
    """Go on until nothing is left to do."""
    clock = clock or Clock()
    looks = 0
    for _ in range(TURNS_MAX):
        await turn(sync, clock)
        looks = looks + 1 if sync.caught_up and sync.trouble is None else 0
        if looks == 2:
            return
    raise AssertionError(f"it does not come to rest: {sync.error}")
