"""The daemon and its host: how an outage is noticed, what is asked meanwhile, and how soon all goes on after it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from syncd import daemon as daemon_module
from syncd.cli import main
from syncd.daemon import DOUBT_S, MAX_TURNS, PROBE_FIRST_S, PROBE_S, Daemon, Gate
from syncd.fold import HISTORY
from syncd.wandb_api import WandbApi
from tests.faults.turns import Clock, rest, sync_of
from tests.logs import HandmadePiece, handmade_run
from tests.syncd.front import Front
from tests.syncd.syncing import finished_run, sync, sync_while, xs
from tests.wandb_server import API_KEY, WandbServer
from tests.wandb_server.waiting import wait_for

# Far below the minute that a request is given, and above what a loaded machine needs.
SOON_S = 15.0


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a tenth of a second be what a second is to users."""
    for name, seconds in (("DOUBT_S", DOUBT_S), ("PROBE_S", PROBE_S), ("PROBE_FIRST_S", PROBE_FIRST_S)):
        monkeypatch.setattr(daemon_module, name, seconds / 10)


@pytest.fixture
def front(server: WandbServer) -> Iterator[Front]:
    with Front(server.port) as made:
        yield made


def live_run(root: Path) -> HandmadePiece:
    piece = handmade_run(root)
    piece.log(x=0, step=0, commit=True)
    return piece


def rows(server: WandbServer) -> list[int]:
    return [x for run in server.runs() for x in xs(run)]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("way", ["down", "silence", "black_hole"])
def test_when_the_network_returns_all_goes_on_soon_and_nothing_twice(
    server: WandbServer, tmp_path: Path, way: str
):  # faults: 72
    piece = live_run(tmp_path)

    def play(daemon: Daemon) -> None:
        wait_for(lambda: rows(server) == [0], "the first row")
        getattr(server, way)()
        piece.log(x=1, step=1, commit=True)
        wait_for(lambda: not daemon.gate.is_open or daemon._probes, "the daemon's doubt", SOON_S)
        server.up()
        wait_for(lambda: rows(server) == [0, 1], "the row after the outage", SOON_S)
        piece.log(x=2, step=2, commit=True)
        wait_for(lambda: rows(server) == [0, 1, 2], "the row after that", SOON_S)

    sync_while(server, tmp_path, play)

    piece.die()
    assert server.violations == []


@pytest.mark.usefixtures("hasty")
def test_a_request_on_a_connection_that_the_network_forgot_is_made_again_soon_after_its_return(
    server: WandbServer, front: Front, tmp_path: Path
):  # faults: 72
    piece = live_run(tmp_path)

    def play(_: Daemon) -> None:
        wait_for(lambda: rows(server) == [0], "the first row")
        front.swallow()
        piece.log(x=1, step=1, commit=True)
        # The row's, and the probe that was sent since nothing was heard of it.
        wait_for(lambda: front.swallowed_requests >= 2, "the daemon's doubt", SOON_S)
        front.heal()
        wait_for(lambda: rows(server) == [0, 1], "the row after the outage", SOON_S)

    sync_while(server, tmp_path, play, api=WandbApi(front.base_url, lambda: API_KEY))

    piece.die()
    assert server.violations == []


@pytest.mark.usefixtures("hasty")
def test_a_server_that_takes_its_time_is_asked_for_nothing_twice(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path)
    server.faults.add("hang", kind="file_stream", hang_s=10 * daemon_module.DOUBT_S, times=1)

    sync(server, tmp_path)

    (run,) = server.runs()
    posts = [request.body for request in server.requests if request.kind == "file_stream"]
    assert [body["files"][HISTORY]["offset"] for body in posts if HISTORY in body.get("files", {})] == [0]
    assert (xs(run), run.complete) == ([0, 1, 2, 3, 4], True)
    # It was asked whether it is there, and was.
    assert asked(server)["graphql:Viewer"] > 0


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", ["portal", "drop"])
def test_while_the_host_is_away_one_small_question_is_asked_now_and_then_whatever_the_number_of_runs(
    server: WandbServer, tmp_path: Path, fault: str
):  # faults: 72
    for number in range(20):
        finished_run(tmp_path, f"run{number}")
    probes = 6
    in_vain: Counter[str] = Counter()

    def play(_: Daemon) -> None:
        server.faults.add(fault)
        wait_for(lambda: asked(server)["graphql:Viewer"] >= probes, "the probes", SOON_S)
        in_vain.update(asked(server))
        server.faults.clear()
        wait_for(lambda: len(server.runs()) == 20 and all(r.complete for r in server.runs()), "all runs")

    server.faults.add(fault)
    sync_while(server, tmp_path, play)

    # What was begun before anybody knew, and then only the probes.
    assert in_vain.total() - in_vain["graphql:Viewer"] <= MAX_TURNS
    assert all(run.replayed_lines == 0 for run in server.runs())


def asked(server: WandbServer) -> Counter[str]:
    return Counter(request.kind for request in server.requests)


def test_many_turns_that_fail_at_once_delay_the_first_probe_no_more_than_one():
    one, many = Gate(), Gate()

    one.shut("refused", 0.0, jitter=1.0)
    for _ in range(MAX_TURNS):
        many.shut("refused", 0.0, jitter=1.0)

    assert one.next_try_s == many.next_try_s == PROBE_FIRST_S


@pytest.mark.parametrize("refusal", [403, 404])
def test_a_project_that_refuses_parks_its_runs_and_those_of_another_go_on(
    server: WandbServer, tmp_path: Path, refusal: int
):  # faults: 71
    for project in ("good", "bad"):
        for number in range(2):
            piece = handmade_run(tmp_path, f"{project}{number}", project)
            piece.log(x=1, step=1)
            piece.log("exit", exitcode=0)
            piece.die()
    server.faults.add("status", project="bad", status=refusal)

    daemon = sync(server, tmp_path)

    assert {run.run_id for run in server.runs() if run.complete} == {"good0", "good1"}
    assert {key[0].name for key, entry in daemon.entries.items() if entry.sync.parked} == {"bad0", "bad1"}
    assert all("retry" in (e.sync.error or "") for e in daemon.entries.values() if e.sync.parked)


def test_a_key_that_is_refused_in_the_middle_pauses_all_and_the_new_one_goes_on_where_it_was(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # faults: 71
    monkeypatch.setattr(daemon_module, "PROBE_S", 0.1)
    piece = live_run(tmp_path)
    keys = [API_KEY]
    new_key = "n" * 40

    def play(daemon: Daemon) -> None:
        wait_for(lambda: rows(server) == [0], "the first row")
        server.keys.clear()
        server.keys.add(new_key)
        piece.log(x=1, step=1, commit=True)
        wait_for(lambda: daemon.gate.needs_a_person, "the pause")
        keys[0] = new_key
        piece.log(x=2, step=2, commit=True)
        wait_for(lambda: rows(server) == [0, 1, 2], "the rest")

    sync_while(server, tmp_path, play, api=WandbApi(server.base_url, lambda: keys[0]))

    piece.die()
    assert server.runs()[0].replayed_lines == 0


def test_what_is_left_of_an_allowance_is_obeyed_for_its_project_and_no_other(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # faults: 69
    monkeypatch.setattr(daemon_module, "SCAN_S", 0.1)
    # Said with an acknowledgement: nothing remains for two seconds.
    first = live_run(tmp_path)
    server.rate_limit = (0, 2.0)

    def play(_: Daemon) -> None:
        wait_for(lambda: rows(server) == [0], "the first row")
        server.rate_limit = None
        first.log(x=1, step=1, commit=True)
        other = handmade_run(tmp_path, "other", "elsewhere")
        other.log(x=7, step=0, commit=True)
        wait_for(lambda: 7 in rows(server), "the other project's row")
        assert 1 not in rows(server)
        wait_for(lambda: 1 in rows(server), "the row that had to wait")
        other.die()

    sync_while(server, tmp_path, play)

    first.die()
    begun = [r.at_s for r in server.requests if r.kind == "file_stream" and "/demo/" in r.path]
    # The server counts from its answer, and we from when it came.
    assert begun[1] - begun[0] >= 2.0


def test_a_moved_run_goes_on_below_another_root_of_the_same_daemon(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # faults: 29
    monkeypatch.setattr(daemon_module, "SCAN_S", 0.1)
    old, new = tmp_path / "old", tmp_path / "new"
    piece = live_run(old)
    (new / "demo").mkdir(parents=True)

    def play(_: Daemon) -> None:
        wait_for(lambda: rows(server) == [0], "the first row")
        (old / "demo" / "run").rename(new / "demo" / "run")
        piece.segment = new / piece.segment.relative_to(old)
        piece.log(x=1, step=1, commit=True)
        wait_for(lambda: rows(server) == [0, 1], "the row after the move")

    daemon_roots: Callable[[], list[Path]] = lambda: [old, new]  # noqa: E731 - as the daemon's field has it
    sync_while(server, old, play, roots=daemon_roots)

    # An answer that comes after the move finds no cursor to be noted in.
    assert server.runs()[0].replayed_lines <= 1


def test_two_projects_are_two_destinations_of_one_run(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path)

    sync(server, tmp_path)
    sync(server, tmp_path, project="elsewhere")
    sync(server, tmp_path)

    assert sorted((run.project, tuple(xs(run))) for run in server.runs()) == [
        ("demo", (0, 1, 2, 3, 4)),
        ("elsewhere", (0, 1, 2, 3, 4)),
    ]
    assert all(run.complete and run.replayed_lines == 0 for run in server.runs())


def test_nobody_waits_for_a_probe_that_is_under_way_when_the_daemon_stops(
    server: WandbServer, tmp_path: Path
):
    finished_run(tmp_path)
    before = threading.active_count()
    server.silence()

    def play(daemon: Daemon) -> None:
        daemon.gate.shut("away", daemon.clock(), 0.0)
        daemon.hint(tmp_path / "demo" / "run")
        wait_for(lambda: len(daemon._probes) > 0, "the probe")

    sync_while(server, tmp_path, play)

    server.up()
    assert threading.active_count() == before


def test_whoever_waits_for_another_process_waits_for_what_was_there_when_it_began(
    server: WandbServer, tmp_path: Path
):  # faults: 86
    piece = live_run(tmp_path)
    clock = Clock()
    api = WandbApi(server.base_url, lambda: API_KEY)
    holder, waiter = (sync_of(piece, api, clock) for _ in range(2))
    seen: list[bool] = []

    async def play() -> None:
        await rest(holder, clock)
        piece.log(x=1, step=1, commit=True)
        await waiter.turn(clock.now_s)
        seen.append(waiter.caught_up)
        clock.now_s += 60.0
        await holder.turn(clock.now_s)
        # It never ends: there is always a row that is not there yet.
        piece.log(x=2, step=2, commit=True)
        await waiter.turn(clock.now_s)
        seen.append(waiter.caught_up)
        holder.close()
        await api.close()

    asyncio.run(play())

    piece.die()
    assert seen == [False, True]


def test_a_root_with_two_names_is_one(server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in server.env(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    root, link = tmp_path / "runs", tmp_path / "link"
    finished_run(root)
    link.symlink_to(root)
    roots = [f"--root={path}" for path in (root, link)]

    synced = CliRunner().invoke(main, ["sync", *roots])
    shown = CliRunner().invoke(main, ["status", "--json", *roots])

    assert synced.exit_code == 0, synced.output
    assert [run["state"] for run in json.loads(shown.output)["runs"]] == ["synced"]
