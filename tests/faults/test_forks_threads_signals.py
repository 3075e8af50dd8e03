"""Section F, inside a process: threads that log at once, children that log as well, signals at any moment.

What a signal handler does between any two bytecodes of the writer is `tests/eventlog/test_writer`; here are whole runs.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from click.testing import CliRunner

from eventlog.cli import main
from eventlog.piece import closed
from eventlog.reader import read, writers
from eventlog.record import Record
from tests.faults.machine import trainer


def rows_in(run_dir: Path, writer: str | None = None) -> list[tuple[object, int]]:
    """Return who logged which rows, after checking that the log is whole and its seqs have no gap."""
    records: list[Record] = list(read(run_dir, writer=writer))
    assert [record.seq for record in records] == list(range(len(records)))
    assert not [record for record in records if record.kind == "gap"]
    return [(record.data["who"], record.data["i"]) for record in records if record.kind == "metrics"]


def assert_each_in_order(rows: list[tuple[object, int]], told: dict[str, int]) -> None:
    """Fail unless each of `told` logged its rows once and in its own order, and nobody else any."""
    assert {str(who) for who, _ in rows} <= told.keys()
    for who, count in told.items():
        assert [i for each, i in rows if str(each) == who] == list(range(count)), who


def assert_all_is_whole(run_dir: Path) -> None:
    verified = CliRunner().invoke(main, ["verify", str(run_dir)])
    assert verified.exit_code == 0, verified.output


# Small segments, so that a rotation falls among the threads, and a sync as often as it can be.
THREADS = """
import threading
from eventlog import writer
writer.ROTATE_BYTES = 20_000
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
start = threading.Barrier(64)
counts = {}

def log(who):
    start.wait()
    for i in range(60):
        run.log({"who": who, "i": i})
        if i % 10 == 0:
            run.log_trajectory(eventlog.Trajectory([], info={"who": who, "i": i}))
            run.flush(durable=True)
    counts[who] = 60

threads = [threading.Thread(target=log, args=(who,), daemon=True) for who in range(64)]
for thread in threads: thread.start()
for thread in threads: thread.join()
run.finish()
tell(dropped=run.dropped, counts={str(who): count for who, count in counts.items()})
"""


def test_sixty_four_threads_log_each_row_once_and_each_in_its_order(tmp_path: Path):
    with trainer(THREADS, tmp_path) as training:
        told = training.told()
        assert training.ended() == 0, training.said

    run_dir = tmp_path / "demo" / "run"
    assert told["dropped"] == 0
    assert len(told["counts"]) == 64
    assert_each_in_order(rows_in(run_dir), told["counts"])
    trajectories = [record.data["info"] for record in read(run_dir, "trajectories")]
    for who in range(64):
        assert [each["i"] for each in trajectories if each["who"] == who] == list(range(0, 60, 10))
    assert [record.step for record in read(run_dir) if record.kind == "metrics"] == list(range(64 * 60))
    assert len(list((run_dir / "main-0001").glob("events-*"))) > 10
    assert_all_is_whole(run_dir)


# Forks while its threads are in the middle of a log: a lock may be held that no thread of the child will release.
FORKS = """
import threading
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
stop = threading.Event()
counts = {}

def log(who):
    i = 0
    while not stop.is_set():
        run.log({"who": who, "i": i})
        i += 1
    counts[who] = i

threads = [threading.Thread(target=log, args=(f"thread {k}",), daemon=True) for k in range(4)]
for thread in threads: thread.start()
children = []
for k in range(8):
    child = os.fork()
    if child == 0:
        for i in range(5):
            run.log({"who": f"child {k}", "i": i})
            run.log_trajectory(eventlog.Trajectory([], info={"i": i}))
        assert run.dropped == 0 and (k > 1 or run.flush(durable=True))
        # As a worker ends; or as it is ended.
        os.kill(os.getpid(), 9) if k % 2 else sys.exit(0)
    children.append(child)
    os.waitpid(child, 0)
stop.set()
for thread in threads: thread.join()
run.finish()
tell(dropped=run.dropped, counts=counts)
"""


def test_children_of_a_process_whose_threads_are_logging_have_logs_of_their_own(tmp_path: Path):
    # faults: 59
    with trainer(FORKS, tmp_path) as training:
        told = training.told()
        assert training.ended() == 0, training.said

    run_dir = tmp_path / "demo" / "run"
    assert told["dropped"] == 0
    assert_each_in_order(rows_in(run_dir), told["counts"])
    children = [writer for writer in writers(run_dir) if writer.startswith("fork-")]
    assert len(children) == 8
    found = [rows_in(run_dir, child) for child in children]
    assert sorted(rows[0][0] for rows in found) == sorted(f"child {k}" for k in range(8))
    for child, rows in zip(children, found, strict=True):
        assert_each_in_order(rows, {str(rows[0][0]): 5})
        assert len(list(read(run_dir, "trajectories", child))) == 5
        assert closed(run_dir, child)
    exits = [[record.kind for record in read(run_dir, writer=child)][-1] for child in children]
    assert sorted(exits) == ["exit"] * 4 + ["metrics"] * 4
    assert_all_is_whole(run_dir)


def test_workers_of_a_data_loader_log_beside_and_their_end_is_not_the_runs(tmp_path: Path):
    # faults: 59
    script = """
import multiprocessing
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)

def work(who):
    for i in range(20):
        run.log({"who": who, "i": i})
    return who

def work_for_ever(ready):
    run.log({"who": "terminated", "i": 0})
    ready.set()
    while True:
        multiprocessing.Event().wait(100)

context = multiprocessing.get_context("fork")
with context.Pool(3) as pool:
    assert sorted(pool.map(work, ["a", "b", "c"], chunksize=1)) == ["a", "b", "c"]
    run.log({"who": "parent", "i": 0})
ready = context.Event()
worker = context.Process(target=work_for_ever, args=(ready,))
worker.start()
ready.wait()
worker.terminate()
worker.join()
run.log({"who": "parent", "i": 1})
tell(dropped=run.dropped)
"""
    with trainer(script, tmp_path) as training:
        assert training.told() == {"dropped": 0}
        assert training.ended() == 0, training.said

    run_dir = tmp_path / "demo" / "run"
    beside = [writer for writer in writers(run_dir) if writer.startswith("fork-")]
    rows = [row for writer in beside for row in rows_in(run_dir, writer)]
    assert_each_in_order(rows, {"a": 20, "b": 20, "c": 20, "terminated": 1})
    assert rows_in(run_dir) == [("parent", 0), ("parent", 1)]
    assert [record.kind for record in read(run_dir)][-1] == "exit"
    assert_all_is_whole(run_dir)


def test_a_program_that_the_trainer_started_and_that_outlives_it_holds_no_run(tmp_path: Path):
    # faults: 58, 59
    script = """
import subprocess
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
run.log({"who": "trainer", "i": 0})
run.log_trajectory(eventlog.Trajectory([]))
# With all descriptors that it may have.
program = subprocess.Popen(["sleep", "1000"], close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
tell(program=program.pid)
ask()
"""
    with trainer(script, tmp_path) as training:
        program = training.told()["program"]
        try:
            training.kill()
            training.ended()
            os.kill(program, 0)

            assert closed(tmp_path / "demo" / "run", "main-0001")
        finally:
            os.kill(program, signal.SIGKILL)


# A scheduler's warning, say, whose handler logs; in the main thread, while others log as well, and cut in on once by itself.
SIGNALS = """
import itertools, signal, threading
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
run.log_trajectory(eventlog.Trajectory([]))
stop, tickets, handled = threading.Event(), itertools.count(), []
counts = {"main": 0}
is_handling = False

def handle(signum, frame):
    global is_handling
    ticket, is_nested = next(tickets), is_handling
    is_handling = True
    if not is_nested:
        signal_soon()
    run.log({"who": "handler", "i": ticket})
    run.log_trajectory(eventlog.Trajectory([]))
    handled.append(ticket)
    is_handling = is_nested

def signal_soon():
    signal.setitimer(signal.ITIMER_REAL, 1e-6 + len(handled) % 40 * 5e-6)

def log(who):
    i = 0
    while not stop.is_set():
        run.log({"who": who, "i": i})
        i += 1
    counts[who] = i

signal.signal(signal.SIGALRM, handle)
threads = [threading.Thread(target=log, args=(f"thread {k}",), daemon=True) for k in range(3)]
for thread in threads: thread.start()
while len(handled) < 200:
    signal_soon()
    run.log({"who": "main", "i": counts["main"]})
    counts["main"] += 1
    if counts["main"] % 50 == 0:
        run.flush(durable=True)
signal.setitimer(signal.ITIMER_REAL, 0)
stop.set()
for thread in threads: thread.join()
run.finish()
tell(dropped=run.dropped, counts=counts, handled=handled)
"""


def test_a_signal_handler_that_logs_while_all_threads_do_costs_no_row(tmp_path: Path):
    with trainer(SIGNALS, tmp_path) as training:
        told = training.told()
        assert training.ended() == 0, training.said

    run_dir = tmp_path / "demo" / "run"
    rows = rows_in(run_dir)
    assert told["dropped"] == 0
    assert_each_in_order([row for row in rows if row[0] != "handler"], told["counts"])
    assert sorted(i for who, i in rows if who == "handler") == sorted(told["handled"])
    assert len(list(read(run_dir, "trajectories"))) == 1 + len(told["handled"])
    assert_all_is_whole(run_dir)


# Somebody leans on Ctrl-C, and the script goes on each time.
INTERRUPTS = """
import signal, threading
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
logged, i, interrupts = [], 0, 0

def interrupt(signum, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
while interrupts < 300:
    try:
        signal.setitimer(signal.ITIMER_REAL, 2e-4 + interrupts % 10 * 1e-4)
        while True:
            i += 1
            run.log({"who": "main", "i": i})
            logged.append(i)
    except KeyboardInterrupt:
        interrupts += 1
signal.setitimer(signal.ITIMER_REAL, 0)
# Nothing is held that another thread would wait for.
others = threading.Thread(target=lambda: (run.log({"who": "other", "i": 0}), run.flush(durable=True)), daemon=True)
others.start()
others.join(100)
tell(alive=others.is_alive(), dropped=run.dropped)
tell(logged=logged)
run.finish()
"""


def test_interrupts_at_any_moment_leave_a_run_that_goes_on(tmp_path: Path):
    with trainer(INTERRUPTS, tmp_path) as training:
        assert training.told() == {"alive": False, "dropped": 0}
        logged = training.told()["logged"]
        assert training.ended() == 0, training.said

    run_dir = tmp_path / "demo" / "run"
    rows = [i for who, i in rows_in(run_dir) if who == "main"]
    assert set(logged) <= set(rows)
    # One that was interrupted is there or not, and none twice.
    assert rows == sorted(set(rows))
    assert_all_is_whole(run_dir)
