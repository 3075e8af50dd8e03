"""The daemon and its host: how an outage is noticed, what is asked meanwhile, and how soon all goes on after it."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from eventlog.cursor import cursors, is_held
from eventlog.piece import RunIdentity, claim_secondary
from syncd import daemon as daemon_module
from syncd import run_sync as run_sync_module
from syncd.cli import main
from syncd.daemon import DOUBT_S, MAX_TURNS, PROBE_FIRST_S, PROBE_S, Daemon, Entry, Gate
from syncd.fold import HISTORY
from syncd.run_sync import COLD_S
from syncd.wandb_api import Answer, WandbApi
from tests.faults.turns import Clock, rest, sync_of
from tests.logs import HandmadePiece, handmade_run, resumed
from tests.syncd.front import Front
from tests.syncd.syncing import DEADLINE_S, finished_run, options_of, sync, sync_while, xs
from tests.wandb_server import API_KEY, WandbServer
from tests.wandb_server.limits import ProjectLimit
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
    assert {key[0].name for key, entry in daemon.entries.items() if entry.parked} == {"bad0", "bad1"}
    assert all("retry" in (e.error or "") for e in daemon.entries.values() if e.parked)


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


def test_runs_that_share_an_allowance_spread_it_and_hardly_meet_its_end(server: WandbServer, tmp_path: Path):
    # faults: 69
    server.project_limit = ProjectLimit(requests=20, per_s=2.0)
    fill(tmp_path, 60)

    sync(server, tmp_path)

    answers = Counter(request.status for request in server.requests if request.kind == "file_stream")
    assert all(run.complete and run.replayed_lines == 0 for run in server.runs())
    assert answers[200] >= 60
    # A request that is on its way may use what another was counting on.
    assert answers[429] <= 5


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


def fill(root: Path, runs: int, project: str = "demo", rows: int = 5) -> None:
    for number in range(runs):
        piece = handmade_run(root, f"{project}{number:02}", project)
        for i in range(rows):
            piece.log(x=i, step=i)
        piece.log("exit", exitcode=0)
        piece.die()


class Counting(Daemon):
    """Counts the turns it starts, and how many runs are open at most."""

    def count_from_now(self) -> None:
        self.turns = 0
        self.most_open = 0

    def _start_turn(self, entry: Entry, now_s: float) -> None:
        super()._start_turn(entry, now_s)
        self.turns += 1
        self.most_open = max(self.most_open, sum(entry.is_open for entry in self.entries.values()))


def test_of_many_runs_the_first_are_done_before_the_last_are_begun(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # faults: 43
    monkeypatch.setattr(daemon_module, "WINDOW", 4)
    fill(tmp_path, 24)
    daemon = Counting(**options_of(server, tmp_path))
    daemon.count_from_now()

    asyncio.run(asyncio.wait_for(daemon.run(), DEADLINE_S))

    assert all(run.complete and run.replayed_lines == 0 for run in server.runs())
    # Those of the window, and never more: a file descriptor and a fold each.
    assert daemon.most_open <= 4
    begun = [r.path for r in server.requests if r.kind == "file_stream"]
    last_begun = begun.index(next(path for path in begun if "demo23" in path))
    assert sum(1 for path in set(begun) if path not in begun[last_begun:]) >= 24 - 4 - 1


def test_a_run_that_is_being_written_waits_for_no_place(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # faults: 43
    monkeypatch.setattr(daemon_module, "WINDOW", 1)
    fill(tmp_path, 1, "alpha")
    live = handmade_run(tmp_path, "live", "zeta")
    live.log(x=7, step=0, commit=True)
    # It has the only place, and keeps it.
    server.faults.add("hang", kind="file_stream", project="alpha", hang_s=10 * SOON_S)

    def play(_: Daemon) -> None:
        wait_for(lambda: rows(server) == [7], "the live run's row", SOON_S)
        server.faults.clear()
        wait_for(lambda: 4 in rows(server), "the other's rows")

    sync_while(server, tmp_path, play)

    live.die()


def test_a_run_in_trouble_gives_its_place_to_those_that_wait(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # faults: 43
    monkeypatch.setattr(daemon_module, "WINDOW", 1)
    fill(tmp_path, 2, "bad")
    fill(tmp_path, 3, "good")
    server.faults.add("status", project="bad", status=503, retry_after="3600")

    def play(_: Daemon) -> None:
        done = lambda: {run.run_id for run in server.runs() if run.complete}  # noqa: E731
        wait_for(lambda: done() == {"good00", "good01", "good02"}, "the others", SOON_S)

    sync_while(server, tmp_path, play)


class Hours:
    """A clock that a test puts forward, and a daemon in its own process that goes by it."""

    def __init__(self, server: WandbServer, root: Path, **options: Any) -> None:
        self.ahead_s = 0.0
        clock = lambda: time.monotonic() + self.ahead_s  # noqa: E731 - as the daemon's field has it
        self.daemon = Counting(
            **{**options_of(server, root), "until_synced": False, "clock": clock, **options}
        )
        self.daemon.count_from_now()

    async def next_look(self, runs: int) -> None:
        """Let every run be looked at once more."""
        entries = self.daemon.entries
        await until(lambda: len(entries) == runs, "the runs")
        self.ahead_s += COLD_S + 1.0
        now_s = self.daemon.clock()
        self.daemon._wake.set()
        await until(lambda: all(entry.due_s > now_s for entry in entries.values()), "a look at each")


async def until(condition: Callable[[], object], what: str) -> None:
    await asyncio.to_thread(wait_for, condition, what, DEADLINE_S)


def test_a_thousand_runs_at_rest_are_looked_at_and_not_opened(server: WandbServer, tmp_path: Path):
    # faults: 43
    runs = 1000
    for number in range(runs):
        identity = RunIdentity.new("demo", f"run{number:04}", None)
        identity.publish(identity.directory(tmp_path))
    hours = Hours(server, tmp_path)

    async def story() -> None:
        running = asyncio.ensure_future(hours.daemon.run())
        # To find out that there is nothing to do, and that nothing came meanwhile.
        for _ in range(2):
            await hours.next_look(runs)
        hours.daemon.count_from_now()
        for _ in range(3):
            await hours.next_look(runs)
        hours.daemon.stop()
        await running

    asyncio.run(asyncio.wait_for(story(), 4 * DEADLINE_S))

    assert hours.daemon.turns == 0


def test_what_comes_to_a_run_at_rest_is_found_without_a_hint(server: WandbServer, tmp_path: Path):
    # faults: 43
    first = finished_run(tmp_path)
    finished_run(tmp_path, "other")
    hours = Hours(server, tmp_path)

    async def story() -> None:
        running = asyncio.ensure_future(hours.daemon.run())
        await until(lambda: [run.complete for run in server.runs()] == [True, True], "the upload")
        for _ in range(2):
            await hours.next_look(2)
        hours.daemon.count_from_now()
        later = resumed(first.identity, tmp_path)
        later.log(x=5, step=5, commit=True)
        later.die()
        await hours.next_look(2)
        await until(lambda: 5 in xs(server.run("ent", "demo", "run")), "the row")
        hours.daemon.stop()
        await running

    asyncio.run(asyncio.wait_for(story(), 4 * DEADLINE_S))

    assert server.run("ent", "demo", "run").replayed_lines == 0


def test_one_huge_run_lets_the_small_ones_pass_and_gets_on_all_the_same(server: WandbServer, tmp_path: Path):
    # faults: 76
    huge = handmade_run(tmp_path, "a-huge")
    for i in range(400):
        huge.log(x=i, text="t" * 60_000, step=i)
    huge.log("exit", exitcode=0)
    huge.die()
    fill(tmp_path, 99, rows=50)

    sync(server, tmp_path, max_turns=1)

    posts = [request for request in server.requests if request.kind == "file_stream"]
    of_the_huge = [i for i, request in enumerate(posts) if "a-huge" in request.path]
    small_ends = [i for i, r in enumerate(posts) if r.body.get("complete") and "a-huge" not in r.path]
    assert all(run.complete and run.replayed_lines == 0 for run in server.runs())
    assert len(small_ends) == 99
    # All of the small ones are there before it is, and it waits for a few requests of each that is open, not for all.
    assert small_ends[-1] < of_the_huge[-1]
    assert max(later - earlier for earlier, later in pairwise(of_the_huge)) <= 3 * daemon_module.WINDOW


def test_a_stop_brings_what_was_just_logged_there_first(server: WandbServer, tmp_path: Path):  # faults: 84
    piece = live_run(tmp_path)

    def play(_: Daemon) -> None:
        wait_for(lambda: rows(server) == [0], "the first row")
        for x in range(1, 8):
            piece.log(x=x, step=x, commit=True)

    sync_while(server, tmp_path, play, flush_s=600.0)

    piece.die()
    (run,) = server.runs()
    assert (xs(run), run.replayed_lines) == (list(range(8)), 0)
    (cursor,) = cursors(tmp_path / "demo" / "run")
    assert (cursor.acked[HISTORY], cursor.next) == (8, {"writer": "main-0001", "seq": 9})


def test_a_stop_with_nothing_to_send_waits_for_nothing(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # faults: 84
    monkeypatch.setattr(daemon_module, "ROOTS_S", 10 * SOON_S)
    finished_run(tmp_path)
    took_s: list[float] = []

    async def story() -> None:
        linger_s = 10 * SOON_S
        daemon = Daemon(**{**options_of(server, tmp_path), "until_synced": False, "linger_s": linger_s})
        running = asyncio.ensure_future(daemon.run())
        await until(lambda: [e.caught_up for e in daemon.entries.values()] == [True], "the upload")
        begin_s = time.monotonic()
        daemon.stop()
        await running
        took_s.append(time.monotonic() - begin_s)

    asyncio.run(asyncio.wait_for(story(), 4 * DEADLINE_S))

    assert took_s[0] < SOON_S


@pytest.mark.parametrize("is_told_twice", [False, True])
def test_a_stop_that_cannot_send_ends_all_the_same_and_the_next_daemon_sends_nothing_twice(
    server: WandbServer, tmp_path: Path, is_told_twice: bool
):  # faults: 84 85
    piece = live_run(tmp_path)
    linger_s = 10 * SOON_S if is_told_twice else 0.5
    took_s: list[float] = []

    async def story() -> None:
        daemon = Daemon(**{**options_of(server, tmp_path), "until_synced": False, "linger_s": linger_s})
        running = asyncio.ensure_future(daemon.run())
        await until(lambda: rows(server) == [0], "the first row")
        # The answer is lost with the daemon: the rows are there, and it does not know.
        server.faults.add("hang", kind="file_stream", hang_s=20 * SOON_S, applied=True)
        piece.log(x=1, step=1, commit=True)
        await until(lambda: rows(server) == [0, 1], "the row whose answer does not come")
        piece.log(x=2, step=2, commit=True)
        begin_s = time.monotonic()
        daemon.stop()
        if is_told_twice:
            daemon.stop()
        await running
        took_s.append(time.monotonic() - begin_s)

    asyncio.run(asyncio.wait_for(story(), 4 * DEADLINE_S))
    server.faults.clear()
    piece.log("exit", exitcode=0)
    piece.die()
    sync(server, tmp_path)

    (run,) = server.runs()
    assert took_s[0] < SOON_S
    assert (xs(run), run.complete) == ([0, 1, 2], True)
    # The batch that was in flight, to the place where it is.
    assert run.replayed_lines <= 1
    assert server.violations == []


def test_a_run_whose_turns_raise_again_and_again_is_parked_and_a_retry_lifts_that(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # faults: 87
    monkeypatch.setattr(daemon_module, "CRASH_BACKOFF_S", 0.01)
    for name, value in server.env(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "runs"
    fill(root, 3)
    poisoned = root / "demo" / "demo01"

    class Poisoned(WandbApi):
        async def resume_status(self, entity: str | None, project: str, run_id: str) -> Answer:
            if run_id == "demo01":
                raise TypeError("of a kind that nobody thought of")
            return await super().resume_status(entity, project, run_id)

    daemon = sync(server, root, api=Poisoned(server.base_url, lambda: API_KEY))
    parked = {key[0].name: entry.error or "" for key, entry in daemon.entries.items() if entry.parked}
    done = {run.run_id for run in server.runs() if run.complete}
    said = CliRunner().invoke(main, ["retry", str(poisoned)])
    sync(server, root)

    assert done == {"demo00", "demo02"}
    assert parked.keys() == {"demo01"}
    assert "TypeError: of a kind that nobody thought of" in parked["demo01"]
    assert "`syncd retry demo/demo01`" in parked["demo01"]
    assert said.exit_code == 0, said.output
    assert server.run("ent", "demo", "demo01").complete


def test_a_disk_that_fails_again_and_again_parks_nothing(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # faults: 87
    monkeypatch.setattr(daemon_module, "CRASH_BACKOFF_S", 0.01)
    finished_run(tmp_path)
    refusals = iter([OSError(28, "No space left on device")] * (2 * daemon_module.CRASHES_MAX))

    def key() -> str:
        if error := next(refusals, None):
            raise error
        return API_KEY

    sync(server, tmp_path, key=key)

    assert next(refusals, None) is None
    assert server.runs()[0].complete


# -- one run's trouble is no other's -----------------------------------------------------------------------------


def fill_project(root: Path, project: str, count: int) -> None:
    for number in range(count):
        piece = handmade_run(root, f"{project}{number}", project)
        piece.log(x=1, step=1)
        piece.log("exit", exitcode=0)
        piece.die()


def is_complete(server: WandbServer, run_id: str) -> bool:
    return any(run.run_id == run_id and run.complete for run in server.runs())


@pytest.mark.usefixtures("hasty")
def test_a_project_whose_requests_hang_holds_up_no_other(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # faults: 43
    monkeypatch.setattr(daemon_module, "SCAN_S", 0.1)
    # Until it is over: more of them than there are turns, by far.
    server.faults.add("hang", kind="file_stream", project="bad")
    fill_project(tmp_path, "bad", 3 * MAX_TURNS)

    def play(_: Daemon) -> None:
        wait_for(lambda: server.faults.happened >= MAX_TURNS, "turns that hang", SOON_S)
        fill_project(tmp_path, "good", 2)
        wait_for(lambda: is_complete(server, "good0") and is_complete(server, "good1"), "the others", SOON_S)
        server.faults.clear()

    sync_while(server, tmp_path, play)


def test_runs_that_are_told_to_wait_hold_no_place_in_the_window(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(daemon_module, "WINDOW", 4)
    server.faults.add("status", kind="file_stream", project="busy", status=429, retry_after="300")
    fill_project(tmp_path, "busy", 8)
    fill_project(tmp_path, "other", 1)

    def play(_: Daemon) -> None:
        wait_for(lambda: is_complete(server, "other0"), "the run of another project", SOON_S)

    sync_while(server, tmp_path, play)


def test_a_key_that_one_project_refuses_shuts_the_gate_for_none(server: WandbServer, tmp_path: Path):
    server.faults.add("status", kind="file_stream", project="bad", status=401)
    fill_project(tmp_path, "bad", 2)
    fill_project(tmp_path, "good", 2)
    states: set[str] = set()

    def note(daemon: Daemon) -> None:
        states.add("online" if daemon.gate.is_open else "offline")

    def play(daemon: Daemon) -> None:
        wait_for(lambda: is_complete(server, "good0") and is_complete(server, "good1"), "the others", SOON_S)
        wait_for(
            lambda: any("401" in (c.error or "") for c in cursors(tmp_path / "bad" / "bad0")), "its reason"
        )

    sync_while(server, tmp_path, play, on_change=note)

    assert states == {"online"}


def test_syncing_several_projects_brings_those_that_take_the_key(server: WandbServer, tmp_path: Path):
    server.faults.add("status", kind="file_stream", project="bad", status=401)
    # Not there yet when the other is refused.
    server.faults.add("hang", kind="file_stream", project="good", hang_s=1.0, times=1)
    fill_project(tmp_path, "bad", 1)
    fill_project(tmp_path, "good", 1)

    said = CliRunner().invoke(
        main,
        ["sync", "--patience", "2", str(tmp_path)],
        env={**server.env(tmp_path), "TIDELOG_STATE_DIR": str(tmp_path / "state")},
    )

    assert said.exit_code == 1, said.output
    assert is_complete(server, "good0")


# -- which directory is the run ----------------------------------------------------------------------------------


def test_of_a_run_and_its_backup_the_one_that_is_written_goes_on(server: WandbServer, tmp_path: Path):
    piece = live_run(tmp_path)
    run_dir = piece.piece.dir.parent
    # Its name comes first.
    backup = shutil.copytree(run_dir, run_dir.with_name("a-backup"))

    def play(daemon: Daemon) -> None:
        wait_for(lambda: rows(server) == [0], "the first row")
        piece.log(x=1, step=1, commit=True)
        wait_for(lambda: rows(server) == [0, 1], "the row that only the run has", SOON_S)
        wait_for(lambda: daemon.twins == {backup: run_dir}, "the copy to be left out")

    sync_while(server, tmp_path, play)

    piece.die()
    assert server.violations == []


def test_a_copy_that_goes_on_is_the_run_from_then_on(server: WandbServer, tmp_path: Path):
    piece = live_run(tmp_path / "a")
    piece.die()
    run_dir = tmp_path / "b" / "demo" / "run"
    shutil.copytree(tmp_path / "a" / "demo" / "run", run_dir)

    def play(daemon: Daemon) -> None:
        wait_for(lambda: rows(server) == [0], "the first row")
        wait_for(lambda: run_dir in daemon.twins, "the copy to be left out")
        goes_on = resumed(piece.identity, tmp_path / "b")
        goes_on.log(x=1, step=1, commit=True)
        daemon.hint(run_dir)
        wait_for(lambda: rows(server) == [0, 1], "the row that only the copy has", SOON_S)
        goes_on.die()

    sync_while(server, tmp_path, play, roots=lambda: [tmp_path / "a", tmp_path / "b"])

    assert server.violations == []


def test_one_directory_by_two_ways_is_one_run(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path / "root")
    (tmp_path / "way").symlink_to("root")

    daemon = sync(server, tmp_path, roots=lambda: [tmp_path / "root", tmp_path / "way"])

    (entry,) = daemon.entries.values()
    (run,) = server.runs()
    assert run.complete
    assert not entry.parked
    assert all(cursor.error is None for cursor in cursors(tmp_path / "root" / "demo" / "run"))


def test_a_run_that_is_deleted_while_it_is_asked_for_is_let_go(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path)
    run_dir = tmp_path / "demo" / "run"
    server.faults.add("status", kind="file_stream", status=503)

    async def deleted_meanwhile() -> Daemon:
        daemon = Daemon(**options_of(server, tmp_path, roots=list, asked_for=[run_dir]))
        running = asyncio.ensure_future(daemon.run())
        await until(lambda: server.faults.happened > 0, "a try")
        shutil.rmtree(run_dir)
        await asyncio.wait_for(running, DEADLINE_S)
        return daemon

    assert asyncio.run(deleted_meanwhile()).entries == {}


def test_ranks_of_a_run_that_was_made_anew_are_found(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(daemon_module, "SCAN_S", 0.1)
    finished_run(tmp_path)

    def play(daemon: Daemon) -> None:
        wait_for(lambda: is_complete(server, "run"), "the run")
        shutil.rmtree(tmp_path / "demo" / "run")
        wait_for(lambda: not daemon.entries, "it to be let go")
        anew = handmade_run(tmp_path, "run", upload_ranks="all")
        other = HandmadePiece(anew.identity, claim_secondary(anew.identity.directory(tmp_path), "rank3"))
        other.log("start", config={})
        wait_for(lambda: any(rank == 3 for _, rank in list(daemon.entries)), "rank 3", SOON_S)
        anew.die()
        other.die()

    sync_while(server, tmp_path, play)


# -- what rests ---------------------------------------------------------------------------------------------------


def test_a_run_of_which_another_host_says_nothing_any_more_is_let_go_until_it_does(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_sync_module, "STALE_S", 0.3)
    piece = live_run(tmp_path)
    piece.die()
    lock = piece.piece.dir / "lock"
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"host": "node7", "boot_id": "x"}))

    def play(daemon: Daemon) -> None:
        wait_for(lambda: rows(server) == [0], "the first row")
        wait_for(lambda: not any(e.is_open for e in list(daemon.entries.values())), "it to be let go", SOON_S)
        # It is heard of again.
        piece.log(x=1, step=1, commit=True)
        daemon.hint(piece.piece.dir.parent)
        wait_for(lambda: rows(server) == [0, 1], "the row after the silence", SOON_S)

    sync_while(server, tmp_path, play)


def test_while_the_key_is_refused_no_run_is_held(server: WandbServer, tmp_path: Path):
    piece = live_run(tmp_path)

    def play(daemon: Daemon) -> None:
        wait_for(lambda: rows(server) == [0], "the first row")
        server.faults.add("status", status=401)
        piece.log(x=1, step=1, commit=True)
        wait_for(lambda: daemon.gate.needs_a_person, "the refusal", SOON_S)
        wait_for(
            lambda: not is_held(tmp_path / "demo" / "run", time.time_ns() // 1000),
            "the run to be free",
            SOON_S,
        )
        server.faults.clear()
        wait_for(lambda: rows(server) == [0, 1], "the row after a login", SOON_S)

    sync_while(server, tmp_path, play)

    piece.die()
    assert server.violations == []


def test_runs_whose_identity_is_damaged_hold_no_place_in_the_window(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(daemon_module, "WINDOW", 2)
    fill_project(tmp_path, "bad", 2)
    fill_project(tmp_path, "good", 1)

    async def damaged_before_their_turns() -> None:
        daemon = Daemon(**options_of(server, tmp_path, until_synced=False))
        for run_dir in sorted((tmp_path / "bad").iterdir()):
            daemon._add(run_dir)
            (run_dir / "run.json").write_text("{")
        running = asyncio.ensure_future(daemon.run())
        await until(lambda: is_complete(server, "good0"), "the run that is whole")
        daemon.stop()
        await asyncio.wait_for(running, DEADLINE_S)

    asyncio.run(damaged_before_their_turns())
