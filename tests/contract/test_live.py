"""A run while it runs: its rows are there, it is said to run, and a quiet does not make it look dead."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from eventlog.reader import find_runs
from syncd.daemon import Daemon
from syncd.shipper import HEARTBEAT_S
from tests.contract.clients import World, finish, start_by_the_sdk, start_by_us, world
from tests.contract.comparable import assert_same, own_headers
from tests.contract.scripts import LIVE
from tests.syncd.syncing import sync_while
from tests.wandb_server import wait_for

# The SDK's heartbeat comes 30 s after the request before it, and none of its settings makes that shorter.
SDK_LIMIT_S = 120.0


@pytest.mark.slow
def test_a_live_run_is_shown_and_kept_alive_as_the_sdk_does(tmp_path: Path):
    # Otherwise the SDK waits 15 s before each request for what else there may be.
    online = {"WANDB_MODE": "online", "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}
    with (
        world(tmp_path, "sdk", **online) as theirs,
        world(tmp_path, "ours") as ours,
        start_by_the_sdk(theirs, LIVE) as their_script,
        start_by_us(ours, LIVE) as our_script,
    ):
        root = Path(ours.env["EVENTLOG_ROOT"])
        # Nobody watches the root, as the command does: a run is found when the daemon begins.
        wait_for(lambda: list(find_runs(root)), "the log")
        quiet_s = 0.0

        def play(_: Daemon) -> None:
            nonlocal quiet_s
            wait_for(lambda: shown(ours) == [1, 2], "the first rows")
            assert ours.server.state(ours.run) == "running"
            for number in (1, 2):
                quiet_s += HEARTBEAT_S
                wait_for(lambda number=number: len(heartbeats(ours)) == number, f"heartbeat {number}")
            finish(our_script)
            wait_for(lambda: ours.run.complete, "the end")

        sync_while(ours.server, root, play, clock=lambda: time.monotonic() + quiet_s)
        wait_for(lambda: heartbeats(theirs), "the SDK's heartbeat", SDK_LIMIT_S)
        assert theirs.server.state(theirs.run) == "running"
        assert shown(theirs) == [1, 2]
        finish(their_script)

        assert heartbeats(ours) == [*heartbeats(theirs), *heartbeats(theirs)]
        assert shown(ours) == [1, 2, 3]
        assert_same(ours.run, theirs.run)


def shown(of: World) -> list[Any]:
    """The rows that the server has by now."""
    return [row.get("x") for run in of.server.runs() for row in run.history]


def heartbeats(of: World) -> list[Any]:
    """How each request was made that carries nothing, but says that the run is alive."""
    return [
        (request.method, request.path, own_headers(request), request.body)
        for request in of.stream
        if not request.body
    ]
