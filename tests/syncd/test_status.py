"""What `syncd status` says of a run, and whether something of it is missing there: read from disk alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from eventlog.cursor import Lease, Sink
from eventlog.seal import seal
from syncd.cli import SHOWN_MAX, _table
from syncd.status import Looking, RunStatus, Trend
from tests.logs import TIME_US, HandmadePiece, handmade_run, resumed
from tests.syncd.syncing import finished_run, sync, sync_while
from tests.wandb_server import WandbServer, wait_for


def statuses(root: Path, looking: Looking | None = None, online: bool = True) -> list[RunStatus]:
    return (looking or Looking()).look([root], time.time_ns() // 1000, online)


def ended(piece: HandmadePiece) -> None:
    piece.log("exit", exitcode=0)
    piece.die()


def test_a_run_that_no_server_has_heard_of_waits_with_all_its_records(tmp_path: Path):
    finished_run(tmp_path, rows=5)

    (run,) = statuses(tmp_path)

    assert (run.run, run.state, run.records, run.acked, run.url) == ("demo/run", "waiting", 7, 0, None)
    assert run.lacks_something


def test_the_lag_of_a_sealed_run_is_that_of_its_first_record_as_before(tmp_path: Path):
    piece = finished_run(tmp_path)
    run_dir = piece.piece.dir.parent
    before = Looking().look([tmp_path], TIME_US + 60_000_000, online=True)

    seal(run_dir)

    assert before == Looking().look([tmp_path], TIME_US + 60_000_000, online=True)
    assert (before[0].lag_s, before[0].records) == (60.0, 7)


def test_a_run_that_is_there_lacks_nothing(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path, rows=5)
    sync(server, tmp_path)

    (run,) = statuses(tmp_path)

    assert (run.state, run.backlog, run.not_shown) == ("synced", 0, {})
    assert not run.lacks_something


def test_a_killed_run_that_is_there_lacks_nothing(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.log(x=1, step=1)
    piece.die()
    sync(server, tmp_path)

    (run,) = statuses(tmp_path)

    assert run.state == "crashed"
    assert not run.lacks_something


def test_what_wandbs_own_client_would_not_show_either_is_counted_and_lacks_nothing(
    server: WandbServer, tmp_path: Path
):
    piece = handmade_run(tmp_path)
    piece.log(x=1, step=5)
    piece.log(x=2, step=3)
    ended(piece)
    sync(server, tmp_path)

    (run,) = statuses(tmp_path)

    assert list(run.not_shown.values()) == [1]
    assert not run.lacks_something


@pytest.mark.parametrize("what", ["a refused row", "a damaged row", "a missing file"])
def test_a_run_of_which_something_is_not_there_lacks_it(server: WandbServer, tmp_path: Path, what: str):
    piece = handmade_run(tmp_path)
    line = piece.log(x="poison", step=1)
    if what == "a refused row":
        server.faults.add("status", kind="file_stream", status=422, containing="poison")
    elif what == "a damaged row":
        piece.overwrite(piece.segment.read_bytes().index(line) + 40, b"\x00")
    else:
        files = HandmadePiece(piece.identity, piece.piece, "files")
        files.log("file", path="gone.bin", sha256="0" * 64, size=1)
    ended(piece)
    sync(server, tmp_path)

    (run,) = statuses(tmp_path)

    assert run.state == "synced"
    assert sum(run.not_shown.values()) >= 1
    assert run.lacks_something


def test_a_run_of_which_nothing_can_be_read_says_so_and_lacks_it(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.die()
    piece.segment.write_bytes(b"\x00garbage\n")
    sync(server, tmp_path)

    (run,) = statuses(tmp_path)

    assert "eventlog verify" in (run.error or "")
    assert run.lacks_something


def test_two_destinations_of_a_run_are_two_lines_each_named_as_it_is_there(
    server: WandbServer, tmp_path: Path
):
    finished_run(tmp_path)
    sync(server, tmp_path)
    sync(server, tmp_path, project="elsewhere")

    runs = statuses(tmp_path)

    assert sorted(run.run for run in runs) == ["demo/run", "elsewhere/run"]
    assert {run.state for run in runs} == {"synced"}
    assert len({run.url for run in runs}) == 2


def test_a_run_that_was_deleted_here_has_no_status(server: WandbServer, tmp_path: Path):
    finished_run(tmp_path)
    sync(server, tmp_path)
    shutil.rmtree(tmp_path / "demo" / "run")

    assert statuses(tmp_path) == []


# Root without what lets it pass over all modes; anybody else is refused as is.
AS_ORDINARY = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
LOOK = """
import json, sys, time
from pathlib import Path
from syncd.status import Looking
looked = Looking().look([Path(sys.argv[1])], time.time_ns() // 1000, online=True)
print(json.dumps([[run.run, run.state, run.error] for run in looked]))
"""


def as_ordinary(root: Path) -> list[list[Any]]:
    """Look as somebody to whom modes apply."""
    command = [*AS_ORDINARY, sys.executable, "-c", LOOK, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    found: list[list[Any]] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(AS_ORDINARY and not shutil.which("setpriv"), reason="nothing is forbidden to root")
@pytest.mark.parametrize(
    ("closed", "mode", "what"),
    [
        ("", 0o500, "written"),
        ("sync", 0o500, "written"),
        ("main-0001", 0o000, "read"),
        ("main-0001/events-000000000000.jsonl", 0o000, "read"),
        ("run.json", 0o000, "read"),
    ],
)
def test_a_run_that_this_user_may_not_read_or_write_waits_and_says_for_what(
    tmp_path: Path, closed: str, mode: int, what: str
):
    finished_run(tmp_path / "runs")
    run_dir = tmp_path / "runs" / "demo" / "run"
    (run_dir / "sync").mkdir() if closed == "sync" else None
    (run_dir / closed).chmod(mode)

    ((run, state, error),) = as_ordinary(tmp_path / "runs")

    (run_dir / closed).chmod(0o700)
    assert (run, state) == ("demo/run", "waiting")
    assert f"{str(run_dir / closed)!r} may not be {what} by this user" in error
    assert f"chmod u+rwX {run_dir / closed}" in error


def test_a_run_that_somebody_else_is_uploading_is_not_said_to_be_closed(tmp_path: Path):
    finished_run(tmp_path / "runs")
    run_dir = tmp_path / "runs" / "demo" / "run"
    lease = Lease.take(run_dir, Sink("http://w", None, "demo", "run"), time.time_ns() // 1000)
    assert lease is not None
    run_dir.joinpath("sync").chmod(0o500)

    found = as_ordinary(tmp_path / "runs")

    run_dir.joinpath("sync").chmod(0o700)
    lease.release()
    assert found == [["demo/run", "waiting", None]]


def test_a_run_whose_identity_is_damaged_is_listed_with_the_way_out(tmp_path: Path):
    finished_run(tmp_path)
    (tmp_path / "demo" / "run" / "run.json").write_text("{}")

    (run,) = statuses(tmp_path)

    assert (run.run, run.state, run.lacks_something) == ("demo/run", "waiting", True)
    assert "Its segments are intact; restore the file from a copy." in (run.error or "")


@pytest.mark.parametrize(("online", "state"), [(True, "syncing"), (False, "waiting")])
def test_a_run_whose_files_are_left_waits_where_nobody_is_at_it(
    server: WandbServer, tmp_path: Path, online: bool, state: str
):
    piece = handmade_run(tmp_path)
    files = HandmadePiece(piece.identity, piece.piece, "files")
    content = tmp_path / "demo" / "run" / "files" / "a.txt"
    content.parent.mkdir()
    content.write_bytes(b"a")
    files.log("file", path="a.txt", stored="a.txt", sha256=hashlib.sha256(b"a").hexdigest(), size=1)
    ended(piece)
    server.faults.add("status", kind="files", status=503)
    sync_while(
        server,
        tmp_path,
        lambda daemon: wait_for(
            lambda: statuses(tmp_path)[0].acked == 2 and statuses(tmp_path)[0].error, "the rows"
        ),
    )

    (run,) = statuses(tmp_path, online=online)

    assert (run.backlog, run.files_left, run.state) == (0, 1, state)


def test_a_run_below_a_root_that_the_daemon_does_not_look_at_waits_and_says_so(tmp_path: Path):
    finished_run(tmp_path / "here")
    finished_run(tmp_path / "there")

    here, there = Looking().look(
        [tmp_path / "here", tmp_path / "there"],
        time.time_ns() // 1000,
        online=True,
        unwatched={tmp_path / "there"},
    )

    assert here.error is None
    assert there.state == "waiting"
    assert f"`syncd sync {tmp_path / 'there' / 'demo' / 'run'}` uploads it now" in (there.error or "")


def test_a_run_that_was_synced_is_not_read_again_until_something_changes(server: WandbServer, tmp_path: Path):
    piece = finished_run(tmp_path)
    finished_run(tmp_path, "waiting")
    sync(server, tmp_path, asked_for=[piece.piece.dir.parent], roots=list)
    looking = Looking()
    first = statuses(tmp_path, looking)
    content = piece.segment.read_bytes()

    # In place: no directory is told.
    piece.segment.write_bytes(b"")
    unread = statuses(tmp_path, looking)
    anew = statuses(tmp_path)
    piece.segment.write_bytes(content)
    resumed(piece.identity, tmp_path).log(x=9, step=9)
    grown = statuses(tmp_path, looking)

    assert [(run.run, run.state) for run in first] == [("demo/run", "synced"), ("demo/waiting", "waiting")]
    assert unread == first
    assert anew != first
    assert (grown[0].run, grown[0].state, grown[0].backlog) == ("demo/run", "live", 2)


def line(run: str, acked: int, backlog: int, state: str = "syncing") -> RunStatus:
    return RunStatus(run, acked + backlog, acked, backlog, 1.0, state, None, None, {}, 0)


def shown(*arguments: Any, **options: Any) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(_table({}, *arguments, **options))
    return console.export_text()


def test_a_rate_is_of_the_last_seconds_and_what_is_left_follows_from_it():
    trend = Trend(window_s=10)
    for second in range(100):
        # Slow at first; only the last ten seconds count.
        acked = second if second < 80 else 80 + (second - 80) * 50
        trend.note(second, [line("demo/a", acked, 5_000), line("demo/still", 7, 10), line("demo/done", 7, 0)])

    assert trend.rate("demo/a") == 50.0
    assert trend.left_s(line("demo/a", 0, 5_000)) == 100.0
    assert (trend.rate("demo/still"), trend.left_s(line("demo/still", 7, 10))) == (0.0, None)
    assert trend.left_s(line("demo/done", 7, 0)) is None
    row = next(text for text in shown([line("demo/a", 4_030, 5_000)], trend).splitlines() if "demo/a" in text)
    assert row.split() == ["demo/a", "syncing", "9,030", "4,030", "5,000", "1", "s", "50", "2", "min"]


def test_of_very_many_runs_those_that_are_synced_are_counted():
    runs = [line(f"demo/{number:03d}", 5, 0, "synced") for number in range(SHOWN_MAX)]
    runs += [line("demo/late", 5, 1_200), replace(runs[0], run="demo/lost", not_shown={"too large": 2})]

    text, whole = shown(runs), shown(runs, shows_all=True)

    assert "42 runs: 41 synced, 1 syncing; 1,200 records to go. --all shows the synced ones." in text
    assert "demo/late" in text
    assert "demo/lost" in text
    assert "demo/000" not in text
    assert "demo/000" in whole
