"""Section K, where the trainer is: a wall clock that jumps costs no record, no order and no second of waiting."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from eventlog.cli import main
from eventlog.entry import read_earlier
from eventlog.piece import closed, primaries
from eventlog.reader import StreamReader, read
from eventlog.writer import StreamWriter
from tests.faults.machine import FakeClock, trainer

# Logs three rows each time that it is asked to, and tells when they are on the disk and how often it looked for that.
ROWS = """
import select, time
sys.modules["eventlog.run"]._SYNC_INTERVAL_S = 0.1
run = eventlog.init(project="demo", id="run", root=sys.argv[1], resume="allow", quiet=True)
looks, look = 0, run._sync_and_look

def count_and_look():
    global looks
    looks += 1
    look()

run._sync_and_look = count_and_look
i = run.step
tell(step=run.step)
while ask()["more"]:
    looks_before, began_s = looks, time.monotonic()
    for i in range(i, i + 3):
        run.log({"i": i})
    i += 1
    while run._events.is_dirty and time.monotonic() < began_s + 100:
        # libfaketime makes an error of time.sleep.
        select.select([], [], [], 0.01)
    took_s = time.monotonic() - began_s
    tell(dirty=run._events.is_dirty, looks=looks - looks_before, took_s=took_s, wall_s=time.time())
run.finish()
"""


@pytest.mark.parametrize("jump", ["-1h", "+10d", "+8h"])
def test_over_a_jump_of_the_wall_clock_rows_keep_their_order_and_are_synced_in_time(
    tmp_path: Path, jump: str
):
    # faults: 88, 90
    clock = FakeClock(tmp_path / "clock")
    with trainer(ROWS, tmp_path / "root", **clock.environ) as training:
        training.told()
        walls_s = []
        for offset in ("+0s", jump, "+0s"):
            clock.jump(offset)
            training.ask(more=True)
            told = training.told()
            # The monotonic clock alone says when: a sleeping machine's stands still as well.
            assert not told["dirty"]
            assert told["looks"] <= told["took_s"] * 10 + 2
            walls_s.append(told["wall_s"])
        training.ask(more=False)
        assert training.ended() == 0, training.said

    run_dir = tmp_path / "root" / "demo" / "run"
    records = list(read(run_dir))
    rows = [record for record in records if record.kind == "metrics"]
    assert [record.seq for record in records] == list(range(len(records)))
    assert [record.data["i"] for record in rows] == list(range(9))
    # A time is what the clock said.
    jumped = rows[3].time_us < rows[2].time_us, rows[6].time_us < rows[5].time_us
    assert jumped == ((True, False) if jump == "-1h" else (False, True))
    assert (walls_s[1] < walls_s[0], walls_s[2] < walls_s[1]) == jumped
    assert len(list((run_dir / "main-0001").glob("events-*"))) == 1
    assert read_earlier(run_dir).runtime_s >= 0
    assert CliRunner().invoke(main, ["verify", str(run_dir)]).exit_code == 0


def test_a_run_is_continued_by_a_process_whose_clock_is_behind(tmp_path: Path):
    # faults: 88
    clock = FakeClock(tmp_path / "clock")
    for offset, step in (("+10d", 0), ("-1h", 3), ("+0s", 6)):
        clock.jump(offset)
        with trainer(ROWS, tmp_path / "root", **clock.environ) as training:
            assert training.told() == {"step": step}
            training.ask(more=True)
            training.told()
            training.kill()
            training.ended()

    run_dir = tmp_path / "root" / "demo" / "run"
    assert primaries(run_dir) == ["main-0001", "main-0002", "main-0003"]
    assert [r.data["i"] for r in read(run_dir) if r.kind == "metrics"] == list(range(9))


@pytest.mark.needs_root
def test_a_machine_that_slept_or_booted_between_two_pieces_changes_nothing(tmp_path: Path):
    # faults: 90
    run_dir = tmp_path / "demo" / "run"
    # The first piece is written where eight hours of sleep and ten days of work are behind; the next where they are not.
    slept = ["unshare", "--time", "--boottime", "893000", "--monotonic", "864000"]
    with trainer("tell()\nask()", command=slept) as probe:
        try:
            probe.told()
        except pytest.fail.Exception as failure:
            pytest.skip(f"no time namespace can be made here: {failure}")

    with trainer(ROWS, tmp_path, command=slept) as training:
        training.told()
        training.ask(more=True)
        assert not training.told()["dirty"]
        assert not closed(run_dir, "main-0001")
        training.kill()
        training.ended()
    assert closed(run_dir, "main-0001")
    with trainer(ROWS, tmp_path) as training:
        assert training.told() == {"step": 3}
        training.ask(more=True)
        assert not training.told()["dirty"]

    assert primaries(run_dir) == ["main-0001", "main-0002"]
    assert [r.data["i"] for r in read(run_dir) if r.kind == "metrics"] == list(range(6))


def test_a_process_that_was_stopped_for_long_is_alive_and_keeps_its_run(tmp_path: Path):
    # faults: 58, 90
    with trainer(ROWS, tmp_path) as first:
        first.told()
        os.kill(first.pid, signal.SIGSTOP)
        with trainer(ROWS, tmp_path) as second:
            second.told()
            second.ask(more=True)
            second.told()
            second.ask(more=False)
            assert second.ended() == 0
        os.kill(first.pid, signal.SIGCONT)
        first.ask(more=True)
        first.told()
        first.ask(more=False)
        assert first.ended() == 0

    assert f"is being written by process {first.pid}" in second.said
    assert primaries(tmp_path / "demo" / "run") == ["main-0001"]
    assert [r.data["i"] for r in read(tmp_path / "demo" / "run") if r.kind == "metrics"] == [0, 1, 2]


@pytest.mark.parametrize("mtime_s", [0, time.time() + 864000], ids=["long ago", "in ten days"])
def test_growth_is_seen_whatever_the_time_of_a_file_says(tmp_path: Path, mtime_s: float):
    # faults: 89
    log = StreamWriter(tmp_path, "a" * 32, "main-0001", "0" * 8, "events")
    reader = StreamReader(tmp_path)
    for i in range(3):
        log.append("metrics", {"i": i})
        os.utime(tmp_path / "events-000000000000.jsonl", (mtime_s, mtime_s))

        assert reader.has_grown()
        assert [record.data["i"] for record in reader.read().records] == [i]
        assert not reader.has_grown()
