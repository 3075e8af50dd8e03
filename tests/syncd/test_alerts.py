"""Alerts: at most once, and whoever does not get one can see why."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from eventlog.cursor import SYNC_DIR, cursors
from eventlog.record import encode
from syncd.daemon import Daemon
from syncd.status import ALERT_TOO_OLD, ALERT_UNCERTAIN
from syncd.wandb_api import WandbApi
from tests.faults.turns import Clock, sync_of, turn
from tests.logs import HandmadePiece, handmade_run
from tests.syncd.syncing import sync, sync_while
from tests.wandb_server import API_KEY, WandbServer
from tests.wandb_server.waiting import wait_for


def alert(piece: HandmadePiece, title: str, age_s: float = 0.0) -> None:
    """Log an alert; unlike other handmade records, its time is near the wall clock's."""
    time_us = int((time.time() - age_s) * 1e6)
    data = {"title": title, "text": "it diverged", "level": "WARN", "wait_s": 60.0}
    piece.append(encode(piece.seq, time_us, "alert", data))
    piece.seq += 1


def run_with_alerts(root: Path, *titles: str, age_s: float = 0.0) -> None:
    piece = handmade_run(root)
    piece.log(x=1, step=1)
    for title in titles:
        alert(piece, title, age_s)
    piece.log("exit", exitcode=0)
    piece.die()


def titles(server: WandbServer) -> list[str]:
    return [sent["title"] for sent in server.alerts]


def not_sent(root: Path) -> dict[str, int]:
    (cursor,) = cursors(root / "demo" / "run")
    return cursor.not_shown


def test_alerts_arrive_in_order_with_all_that_was_said(server: WandbServer, tmp_path: Path):
    run_with_alerts(tmp_path, "first", "second")

    sync(server, tmp_path)

    assert titles(server) == ["first", "second"]
    sent: dict[str, Any] = server.alerts[0]
    assert (sent["text"], sent["severity"], sent["waitDuration"]) == ("it diverged", "WARN", 60_000)
    assert server.run("ent", "demo", "run").complete
    assert not_sent(tmp_path) == {}


def test_an_alert_is_not_sent_again_by_the_next_daemon(server: WandbServer, tmp_path: Path):
    run_with_alerts(tmp_path, "once")

    for _ in range(3):
        sync(server, tmp_path)

    assert titles(server) == ["once"]


def test_an_alert_whose_answer_was_lost_is_not_sent_again_and_is_counted(server: WandbServer, tmp_path: Path):
    # faults: 68
    run_with_alerts(tmp_path, "once", "another")
    server.faults.add("drop", kind="graphql:NotifyScriptableRunAlert", applied=True, times=1)

    sync(server, tmp_path)

    assert titles(server) == ["once", "another"]
    assert not_sent(tmp_path) == {ALERT_UNCERTAIN: 1}


def test_an_alert_that_was_refused_for_now_is_sent_later(server: WandbServer, tmp_path: Path):
    run_with_alerts(tmp_path, "once")
    server.faults.add("status", kind="graphql:NotifyScriptableRunAlert", status=429, retry_after="0", times=2)

    sync(server, tmp_path)

    assert titles(server) == ["once"]
    assert not_sent(tmp_path) == {}


def test_an_alert_that_found_no_connection_is_sent_when_there_is_one(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.log(x=1, step=1, commit=True)

    def play(daemon: Daemon) -> None:
        wait_for(lambda: any(run.history for run in server.runs()), "the first row")
        server.down()
        alert(piece, "once")
        wait_for(lambda: not daemon.gate.is_open, "the outage")
        server.up()
        wait_for(lambda: titles(server) == ["once"], "the alert")
        piece.log("exit", exitcode=0)
        piece.die()
        wait_for(lambda: server.run("ent", "demo", "run").complete, "the end")

    sync_while(server, tmp_path, play)

    assert titles(server) == ["once"]
    assert not_sent(tmp_path) == {}


def test_a_server_that_wants_no_more_alerts_now_gets_the_rows_all_the_same(
    server: WandbServer, tmp_path: Path
):  # faults: 69
    piece = handmade_run(tmp_path)
    alert(piece, "later")
    server.faults.add("status", kind="graphql:NotifyScriptableRunAlert", status=429, retry_after="600")

    def play(_: Daemon) -> None:
        wait_for(lambda: server.faults.happened > 0, "the refusal")
        piece.log(x=1, step=1, commit=True)
        wait_for(lambda: any(run.history for run in server.runs()), "the row")

    sync_while(server, tmp_path, play)

    piece.die()
    assert titles(server) == []


def test_a_backlog_of_alerts_is_not_held_in_memory(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    for number in range(20_000):
        alert(piece, f"alert {number}")
    piece.die()
    clock = Clock()
    api = WandbApi(server.base_url, lambda: API_KEY)
    run_sync = sync_of(piece, api, clock)

    async def play() -> int:
        most = 0
        for _ in range(30):
            await turn(run_sync, clock)
            most = max(most, len(run_sync._alerts._waiting) if run_sync._alerts else 0)
        run_sync.close()
        await api.close()
        return most

    most = asyncio.run(play())

    # One portion that was read.
    assert 0 < most < 8_000
    assert titles(server)[:2] == ["alert 0", "alert 1"]


@pytest.mark.parametrize("wait_s", [1e20, float("nan"), -1, "soon"])
def test_a_senseless_time_to_be_quiet_costs_no_alert(server: WandbServer, tmp_path: Path, wait_s: object):
    piece = handmade_run(tmp_path)
    time_us = int(time.time() * 1e6)
    piece.append(encode(piece.seq, time_us, "alert", {"title": "t", "text": "", "wait_s": wait_s}))
    piece.seq += 1
    piece.log("exit", exitcode=0)
    piece.die()

    sync(server, tmp_path)

    assert titles(server) == ["t"]


def test_an_alert_of_yesterday_wakes_nobody(server: WandbServer, tmp_path: Path):
    run_with_alerts(tmp_path, "old", age_s=24 * 3600)

    sync(server, tmp_path)

    assert titles(server) == []
    assert not_sent(tmp_path) == {ALERT_TOO_OLD: 1}


def test_with_the_cursor_it_is_forgotten_what_was_sent_so_nothing_is_sent_twice(
    server: WandbServer, tmp_path: Path
):  # faults: 47
    run_with_alerts(tmp_path, "once")
    sync(server, tmp_path)
    shutil.rmtree(tmp_path / "demo" / "run" / SYNC_DIR)

    sync(server, tmp_path)

    assert titles(server) == ["once"]
    assert not_sent(tmp_path) == {ALERT_UNCERTAIN: 1}


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_key_that_may_not_alert_holds_nothing_up(server: WandbServer, tmp_path: Path, status: int):
    run_with_alerts(tmp_path, "refused")
    server.faults.add("status", kind="graphql:NotifyScriptableRunAlert", status=status)

    sync(server, tmp_path)

    assert server.run("ent", "demo", "run").complete
    (reason,) = not_sent(tmp_path)
    assert f"alert refused by the server (HTTP {status}" in reason
