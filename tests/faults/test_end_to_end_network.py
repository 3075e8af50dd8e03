"""FAULTS H and K through a whole daemon: the network, the server or the clock fails; with hints and without any.

A test names how often a line may have come twice, to the same place; without that, none did.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import orjson
import pytest

import eventlog
from eventlog import read
from eventlog.cursor import cursors
from syncd import daemon as daemon_module
from syncd import run_sync
from syncd.daemon import DOUBT_S, PROBE_FIRST_S, PROBE_S
from syncd.fold import Bases, Fold
from syncd.http import Http
from syncd.shipper import BATCH_MAX_BYTES, RETRY_AFTER_MAX_S
from tests.faults.worlds import World, another_run
from tests.syncd.front import Front
from tests.syncd.syncing import DEADLINE_S, xs
from tests.wandb_server import API_KEY, Request, WandbServer, make_certificates, wait_for

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a tenth of a second be what a second is to users."""
    for name, seconds in (("DOUBT_S", DOUBT_S), ("PROBE_S", PROBE_S), ("PROBE_FIRST_S", PROBE_FIRST_S)):
        monkeypatch.setattr(daemon_module, name, seconds / 10)


def posts(world: World) -> list[Request]:
    """Return the requests that carried lines."""
    return [request for request in world.server.requests if request.kind == "file_stream"]


def rows_of(world: World, run_id: str, project: str = "demo") -> list[Any]:
    with world.server.lock:
        there = {(run.project, run.run_id): run for run in world.server.runs()}
        return xs(there[project, run_id]) if (project, run_id) in there else []


def has_noticed(world: World) -> bool:
    """Whether the daemon knows, or has begun to ask, that the network is away."""
    return not world.daemon.gate.is_open or bool(world.daemon._probes)


# -- H: answers that are lost, that ask for patience, and that refuse ------------------------------------------


# faults: 68
def test_an_answer_lost_after_the_rows_were_taken_puts_no_row_there_twice(world: World):
    world.log(0)
    world.arrived()

    world.server.faults.add("drop", kind="file_stream", applied=True, times=1)
    world.log(1)

    world.settled(replayed=1)
    assert world.there.replayed_lines == 1


# faults: 68
@pytest.mark.parametrize("operation", ["RunResumeStatus", "UpsertBucket"])
def test_an_answer_lost_while_the_run_is_begun_there_makes_no_second_run(world: World, operation: str):
    world.server.faults.add("drop", kind=f"graphql:{operation}", applied=True, times=1)
    world.log(0, 1)

    world.settled()

    assert world.server.faults.happened == 1
    assert len(world.server.runs()) == 1


# faults: 69
@pytest.mark.parametrize(
    ("said", "wait_s"),
    [
        (lambda: "60", 60.0),
        (lambda: date_in(60.0), 60.0),
        (lambda: date_in(10 * DAY_S), RETRY_AFTER_MAX_S),
        (lambda: "99999999999999999999", RETRY_AFTER_MAX_S),
        (lambda: "1e999", RETRY_AFTER_MAX_S),
    ],
    ids=["seconds", "a date", "a date far away", "for ever", "infinity"],
)
def test_a_server_that_asks_for_patience_gets_it_and_an_hour_at_most(
    world: World, said: Callable[[], str], wait_s: float
):
    world.server.faults.add("status", kind="file_stream", status=429, retry_after=said(), times=1)
    world.log(0)
    world.start()

    wait_for(lambda: posts(world), "the refusal", DEADLINE_S)
    # The clock goes on while we look.
    wait_for(lambda: wait_s - DEADLINE_S < world.waits_s() <= wait_s, "the wait", DEADLINE_S)
    assert len(posts(world)) == 1
    world.sleep(wait_s)

    world.settled()


# faults: 69
@pytest.mark.parametrize("said", ["0", "-5", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "nan"])
def test_a_server_that_asks_for_no_patience_or_for_nonsense_is_asked_again_soon(world: World, said: str):
    world.server.faults.add("status", kind="file_stream", status=429, retry_after=said, times=1)
    world.log(0)

    world.settled()

    assert world.server.faults.happened == 1


def date_in(seconds: float) -> str:
    return formatdate(time.time() + seconds, usegmt=True)


# faults: 69
def test_an_allowance_that_is_used_up_holds_its_project_and_no_other(world: World):
    world.server.rate_limit = (0, 30.0)
    world.log(0)
    world.arrived()

    world.log(1)
    another_run(world.root, "other", "elsewhere")
    wait_for(lambda: rows_of(world, "other", "elsewhere") == [0], "the other project's row", DEADLINE_S)
    assert rows_of(world, "run") == [0]
    world.server.rate_limit = None
    world.sleep(30.0)

    world.settled()


# faults: 70
@pytest.mark.parametrize("refusal", [400, 422])
def test_a_row_that_the_server_refuses_is_a_counted_stub_and_those_around_it_arrive(
    world: World, refusal: int
):
    world.server.faults.add("status", kind="file_stream", status=refusal, containing="poison")
    world.log(0)
    world.arrived()

    world.log(1, text="poison")
    world.log(2, text="wholesome")
    why = f"refused by the server (HTTP {refusal}: injected {refusal})"
    world.rows[1] = {"_step": 1, "_tidelog_stub": f"{why}; the record is in the local log"}

    world.settled()
    assert world.cursor().not_shown[why] == 1


# faults: 71
@pytest.mark.parametrize("new_key", [API_KEY, "n" * 40], ids=["the same key again", "another key"])
def test_a_key_that_is_refused_for_a_while_pauses_the_upload_and_costs_nothing(world: World, new_key: str):
    other = another_run(world.root, "other", "elsewhere")
    world.log(0)
    world.arrived()

    world.server.keys.clear()
    world.log(1)
    wait_for(lambda: world.daemon.gate.needs_a_person, "the pause", DEADLINE_S)
    # The training knows nothing of it.
    world.log(2)
    other.log(x=1, step=1, commit=True)
    world.server.keys.add(new_key)
    world.key = new_key

    world.settled()
    assert rows_of(world, "other", "elsewhere") == [0, 1]


# faults: 71
@pytest.mark.parametrize("refusal", [403, 404])
def test_a_project_that_refuses_parks_its_runs_alone_and_a_retry_brings_the_rest(world: World, refusal: int):
    beside = another_run(world.root, "beside")
    refused = [another_run(world.root, f"refused{number}", "closed") for number in range(2)]
    dirs = [piece.piece.dir.parent for piece in refused]
    world.log(0)
    world.arrived()
    wait_for(lambda: len(world.server.runs()) == 4 and all(map(xs, world.server.runs())), "all", DEADLINE_S)

    world.server.faults.add("status", project="closed", status=refusal)
    for piece in (beside, *refused):
        piece.log(x=1, step=1, commit=True)
    wait_for(lambda: all(map(is_parked, dirs)), "the parking", DEADLINE_S)
    world.log(1)
    world.arrived()
    wait_for(lambda: rows_of(world, "beside") == [0, 1], "the run beside it", DEADLINE_S)
    assert not is_parked(world.run_dir)
    assert not is_parked(beside.piece.dir.parent)
    world.server.faults.clear()
    world.stop()
    world.sync(asked_for=dirs)

    world.settled()
    assert [rows_of(world, f"refused{number}", "closed") for number in range(2)] == [[0, 1], [0, 1]]
    assert all(run.replayed_lines == 0 for run in world.server.runs())


def is_parked(run_dir: Path) -> bool:
    return [cursor.state for cursor in cursors(run_dir)] == ["parked"]


# -- H: a network that is away, or that lies -------------------------------------------------------------------


# faults: 72
@pytest.mark.parametrize("way", ["down", "silence", "black_hole"])
def test_what_is_logged_while_nobody_answers_arrives_once_when_somebody_does(world: World, way: str):
    world.log(0)
    world.arrived()

    getattr(world.server, way)()
    world.log(1)
    wait_for(lambda: has_noticed(world), "the daemon's doubt", DEADLINE_S)
    world.log(2)
    world.server.up()

    # What stood still in a silence may be heard after it was given up.
    world.settled(replayed=0 if way == "down" else 2)


# faults: 72
def test_a_connection_that_the_network_forgot_is_given_up_and_its_rows_arrive_once(world: World):
    with Front(world.server.port) as front:
        world.base_url = front.base_url
        world.log(0)
        world.arrived()

        front.swallow()
        world.log(1)
        wait_for(lambda: front.swallowed_requests >= 2, "the row's request and a probe", DEADLINE_S)
        world.log(2)
        front.heal()

        world.settled()


# faults: 72
@pytest.mark.parametrize("page", ["portal", "redirect"])
def test_the_page_of_a_captive_portal_acknowledges_nothing(world: World, page: str):
    world.log(0)
    world.arrived()

    world.server.faults.add(page)
    world.log(1)
    wait_for(lambda: not world.daemon.gate.is_open, "the pause", DEADLINE_S)
    assert rows_of(world, "run") == [0]
    assert sum(world.cursor().acked.values()) == 1
    world.log(2)
    world.server.faults.clear()

    world.settled()


# faults: 72
def test_while_the_name_of_the_host_is_unknown_nothing_is_lost(world: World, monkeypatch: pytest.MonkeyPatch):
    world.base_url = world.base_url.replace("127.0.0.1", "localhost")
    world.log(0)
    world.arrived()

    with monkeypatch.context() as network:
        network.setattr(socket, "getaddrinfo", nobody_knows)
        # A connection that is open needs no name.
        world.server.down()
        world.server.up()
        world.log(1)
        wait_for(lambda: "DNS" in (world.daemon.gate.reason or ""), "the pause", DEADLINE_S)
        world.log(2)

    world.settled()


def nobody_knows(*_: object, **__: object) -> list[Any]:
    raise socket.gaierror(socket.EAI_AGAIN, os.strerror(0))


# faults: 72
def test_a_server_that_cannot_prove_who_it_is_gets_nothing_until_it_can(
    tmp_path: Path, is_watching: bool, monkeypatch: pytest.MonkeyPatch
):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    made = make_certificates(ours)
    monkeypatch.setenv("SSL_CERT_FILE", str(make_certificates(theirs).ca))
    with (
        WandbServer(entity="ent", tls=made) as server,
        World(tmp_path / "runs", server, is_watching) as world,
    ):
        world.log(0)
        world.start()
        wait_for(lambda: "certificate" in (world.daemon.gate.reason or ""), "the pause", DEADLINE_S)
        world.log(1)
        assert server.requests == []

        monkeypatch.setenv("SSL_CERT_FILE", str(made.ca))

        world.settled()


# faults: 72
@pytest.mark.parametrize("damage", ["truncate", "drip"])
def test_an_answer_that_ends_in_the_middle_or_never_is_no_acknowledgement(
    world: World, monkeypatch: pytest.MonkeyPatch, damage: str
):
    # Where a user's request has minutes.
    monkeypatch.setitem(Http.__init__.__kwdefaults__, "answer_s", 0.5)
    world.log(0)
    world.arrived()

    world.server.faults.add(damage, kind="file_stream", times=1)
    world.log(1)

    world.settled(replayed=1)
    assert world.there.replayed_lines == 1


# faults: 72
def test_a_request_that_is_cut_off_in_its_middle_leaves_nothing_there(world: World):
    world.log(0)
    world.arrived()

    world.server.faults.add("reset", kind="file_stream", after_bytes=1000, over_bytes=10_000, times=2)
    world.log(1, text="t" * 50_000)

    world.settled()
    assert world.server.faults.happened == 2


# faults: 72
@pytest.mark.parametrize(
    ("slowness", "drip_s"), [("slow_read", 0.1), ("drip", 0.002)], ids=["a slow reader", "a slow answer"]
)
def test_what_is_slow_and_gets_on_is_waited_for(world: World, slowness: str, drip_s: float):
    world.server.faults.add(slowness, kind="file_stream", drip_s=drip_s)
    world.log(0, text="t" * 300_000)

    world.settled()


# faults: 73
def test_what_was_logged_while_offline_goes_in_full_batches(world: World):
    world.log(0)
    world.arrived()
    world.server.down()
    world.log(1)
    wait_for(lambda: not world.daemon.gate.is_open, "the pause", DEADLINE_S)

    world.log(*range(2, 200), text="t" * 20_000)
    world.server.clear_requests()
    world.server.up()

    world.settled()
    sizes = [request.bytes for request in posts(world)]
    assert max(sizes) < BATCH_MAX_BYTES + 100_000
    assert sum(size for size in sizes if size > BATCH_MAX_BYTES // 2) > 0.8 * sum(sizes)


# faults: 74
@pytest.mark.parametrize(
    ("extra", "batches"),
    [(-1, [2]), (0, [2]), (1, [1, 1])],
    ids=["one byte under the limit", "at the limit", "one byte over the limit"],
)
def test_two_rows_go_together_when_they_are_within_the_limit(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int, batches: list[int]
):
    # More than a batch is read at once, so that it is the batch that is cut.
    monkeypatch.setattr(run_sync, "READ_BYTES", 4 * BATCH_MAX_BYTES)
    half = "t" * (BATCH_MAX_BYTES // 2)
    with World(tmp_path / "trial", world.server, is_watching=False) as trial:
        trial.log(0, 1, text=half)
        # Between two lines is a comma.
        surplus = sum(line_bytes(trial)) + 1 - (BATCH_MAX_BYTES + extra)
    world.log(0, text=half)
    world.log(1, text=half[surplus:])
    assert sum(line_bytes(world)) + 1 == BATCH_MAX_BYTES + extra

    world.settled()

    lines = [request.body.get("files", {}).get("wandb-history.jsonl", {}) for request in posts(world)]
    assert [len(part["content"]) for part in lines if part] == batches


def line_bytes(world: World) -> list[int]:
    fold = Fold(Bases())
    lines = [line for record in read(world.run_dir) for line in fold.feed(record)]
    return [len(orjson.dumps(line.text)) for line in lines]


# faults: 75
def test_a_run_resumed_while_offline_keeps_its_steps(world: World):
    def train() -> None:
        with eventlog.init(project="demo", id="resumed", root=world.root, resume="allow") as run:
            for _ in range(3):
                run.log({"x": run.step})

    world.start()
    train()
    wait_for(lambda: rows_of(world, "resumed") == [0, 1, 2], "the first rows", DEADLINE_S)

    world.server.down()
    train()
    train()
    world.server.up()
    wait_for(lambda: len(rows_of(world, "resumed")) == 9, "the rest", DEADLINE_S)

    world.settled()
    there = world.server.run("ent", "demo", "resumed")
    assert [(row["_step"], row["x"]) for row in there.history] == [(step, step) for step in range(9)]
    assert there.complete
    assert there.replayed_lines == 0


# -- K: clocks -------------------------------------------------------------------------------------------------


# faults: 88
@pytest.mark.parametrize("jump_s", [-HOUR_S, 10 * DAY_S], ids=["an hour back", "ten days ahead"])
def test_a_wall_clock_that_jumps_there_and_back_changes_nothing_and_nobody_gets_restless(
    world: World, monkeypatch: pytest.MonkeyPatch, jump_s: float
):
    world.log(0)
    world.arrived()

    with monkeypatch.context() as wall:
        real_s, real_ns = time.time, time.time_ns
        wall.setattr(time, "time", lambda: real_s() + jump_s)
        wall.setattr(time, "time_ns", lambda: real_ns() + int(jump_s * 1e9))
        world.jump_s = jump_s
        world.log(1)
        world.arrived()
        # A wait counts the seconds that pass, whatever the clock on the wall says.
        world.server.faults.add("status", kind="file_stream", status=503, times=2)
        world.log(2)
        world.arrived()
    world.jump_s = 0.0
    world.log(3)

    world.settled()
    runtimes = [row["_runtime"] for row in world.held()]
    assert runtimes == sorted(runtimes)
    assert len(posts(world)) <= 10


# faults: 89
def test_times_of_files_in_the_future_hide_no_row(world: World):
    tomorrow = time.time() + DAY_S
    for x in range(3):
        world.log(x)
        os.utime(world.run.segment, (tomorrow, tomorrow))
        world.arrived()

    world.settled()


# faults: 90
def test_after_a_night_asleep_a_run_goes_on_at_once(world: World):
    world.log(0)
    world.arrived()

    world.sleep(8 * HOUR_S)
    world.log(1)

    world.settled()


# faults: 90
def test_a_night_asleep_in_the_middle_of_an_outage_ends_the_wait(world: World):
    world.log(0)
    world.arrived()
    world.server.faults.add("status", kind="file_stream", status=503, retry_after="3000")
    world.log(1)
    wait_for(lambda: world.waits_s() > 2000.0, "the wait", DEADLINE_S)

    world.server.faults.clear()
    world.sleep(8 * HOUR_S)

    world.settled()


# faults: 90
def test_a_request_under_way_when_the_machine_fell_asleep_is_made_again(world: World):
    with Front(world.server.port) as front:
        world.base_url = front.base_url
        world.log(0)
        world.arrived()

        front.swallow()
        world.log(1)
        wait_for(lambda: front.swallowed_requests, "the row's request", DEADLINE_S)
        world.sleep(8 * HOUR_S)
        wait_for(lambda: front.swallowed_requests >= 2, "a probe", DEADLINE_S)
        front.heal()

        world.settled()


# -- the two modes ---------------------------------------------------------------------------------------------


# faults: 40
def test_a_daemon_that_hears_of_changes_brings_a_row_long_before_it_would_have_looked(
    world: World, is_watching: bool
):
    world.log(0)
    world.arrived()
    if is_watching:
        # Nothing but a hint can make it look in time.
        wait_for(lambda: world.waits_s() > 2 * DEADLINE_S, "the daemon's rest", DEADLINE_S)
        assert daemon_module.SCAN_S > 2 * DEADLINE_S

    world.log(1)

    world.settled()
