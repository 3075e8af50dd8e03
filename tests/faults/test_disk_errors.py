"""Section G: whatever a system call says, the training goes on, and the log holds all that is not counted as dropped.

The disk says no by `strace` where no disk here could be made to; a disk that is full is a real one.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from eventlog.cli import main
from eventlog.reader import read
from eventlog.record import Record
from eventlog.segment import STREAMS
from tests.exactly_once.test_exactly_once import process
from tests.faults.machine import strace, tmpfs, trainer
from tests.wandb_server import WandbServer, wait_for

pytestmark = pytest.mark.needs_root

# One run for each id that it is asked for. Every record says which call it came from, so that the test knows which
# are missing; a segment holds a few of them only, so that a rotation falls into each run.
MANY_RUNS = """
from eventlog import writer
writer.ROTATE_BYTES = 1500

def everything(run):
    row = lambda n: run.log({"n": n, "pad": "x" * 300})
    yield from [row] * 4
    yield lambda n: run.flush(durable=True)
    yield from [row, row]
    yield lambda n: run.log_trajectory(eventlog.Trajectory([], info={"n": n}))
    yield lambda n: run.log({"n": n, "page": eventlog.Html(f"<p>{n}")})
    yield lambda n: run.config.update({"n": n})
    yield lambda n: run.summary.update({"n": n})
    yield lambda n: run.alert(str(n), "text")
    yield lambda n: run.define_metric(f"n{n}")
    yield lambda n: run.log_trajectory(eventlog.Trajectory([], info={"n": n}))
    yield from [row, row]
    yield lambda n: run.flush(durable=True)

while (asked := ask())["id"]:
    run = eventlog.init(project="demo", id=asked["id"], root=sys.argv[1], quiet=True)
    tell(ready=True)
    ask()
    kept = []
    for n, call in enumerate(everything(run)):
        before = run.dropped
        call(n)
        if run.dropped == before:
            kept.append(n)
    tell(kept=kept)
    ask()
    run.finish()
    tell(dropped=run.dropped)
"""
# Two flushes make no record; a page makes two, of which the first is in the stream `files`; and there is an exit.
FLUSHES, RECORDS = {4, 16}, 15 + 1 + 1


@dataclass(frozen=True)
class Fault:
    """What is injected while a run logs."""

    call: str
    error: str
    when: str
    beside: str = ""

    @property
    def injected(self) -> list[str]:
        first = f"{self.call}:error={self.error}:when={self.when}"
        return [first, self.beside] if self.beside else [first]


ERRORS = ["EDQUOT", "EIO", "EMFILE", "ESTALE", "EROFS", "ENOSPC", "EINTR"]
# Python makes a call again that was interrupted: for ever, if it always is.
ALWAYS = {"EINTR": "1..3"}
LASTING = [error for error in ERRORS if error not in ALWAYS]
# These are made only after a record's write failed: of two writes, one at least is not that of a header.
TWO_WRITES_FAIL = "write:error=ENOSPC:when=1..2"
TABLE = {
    "write": [Fault("write", e, w) for e in ERRORS for w in ("1", "2", "3..4", "9", ALWAYS.get(e, "1+"))],
    "fdatasync": [Fault("fdatasync", e, w) for e in ERRORS for w in ("1", "2", ALWAYS.get(e, "1+"))],
    "fsync": [Fault("fsync", e, w) for e in ERRORS for w in ("1", "2", ALWAYS.get(e, "1+"))],
    "openat": [Fault("openat", e, w) for e in ERRORS for w in ("1", "3", ALWAYS.get(e, "1+"))],
    "close": [Fault("close", e, w) for e in ERRORS for w in ("1", ALWAYS.get(e, "1+"))],
    "mkdir": [Fault("?mkdir,?mkdirat", e, ALWAYS.get(e, "1+")) for e in ERRORS],
    "rename": [Fault("?rename,?renameat,?renameat2", e, ALWAYS.get(e, "1+")) for e in ERRORS],
    "pread64": [Fault("pread64", e, "1+", TWO_WRITES_FAIL) for e in LASTING],
    "unlink": [Fault("?unlink,?unlinkat", e, "1+", "write:error=ENOSPC:when=1+") for e in LASTING],
    "fstat": [Fault("?fstat,?newfstatat", e, "1+", TWO_WRITES_FAIL) for e in LASTING],
}


def records_of(run_dir: Path) -> list[Record]:
    """Return what a run logged, of all streams; the start and the gaps are the log's own."""
    found = [record for stream in STREAMS for record in read(run_dir, stream)]
    return [record for record in found if record.kind not in ("start", "gap")]


def calls_in(records: list[Record]) -> set[int]:
    """Return the numbers of the calls that made the records."""
    texts = {"alert": "title", "define_metric": "name"}
    found = {str(record.data[texts[record.kind]]).strip("n") for record in records if record.kind in texts}
    for record in records:
        if record.kind in ("metrics", "config"):
            found.add(str(record.data["n"]))
        elif record.kind == "trajectory":
            found.add(str(record.data["info"]["n"]))
        elif record.kind == "summary":
            found.add(str(record.data["set"][0][1]))
    return {int(n) for n in found}


def gaps_in(run_dir: Path) -> list[tuple[int, str]]:
    return [(r.data["dropped"], r.data["reason"]) for r in read(run_dir) if r.kind == "gap"]


def failed_calls(output: Path) -> set[str]:
    """Return the names of the system calls that were made to fail."""
    return set(re.findall(r"(\w+)(?:\(| resumed>).*\(INJECTED\)", output.read_text()))


def assert_all_is_whole(root: Path) -> None:
    verified = CliRunner().invoke(main, ["verify", "--root", str(root)])
    assert verified.exit_code == 0, verified.output


@pytest.mark.parametrize("call", TABLE)
def test_a_system_call_that_fails_costs_what_is_counted_and_no_training(tmp_path: Path, call: str):
    # faults: 61, 63, 64, 65
    with trainer(MANY_RUNS, tmp_path / "root") as training:
        for number, fault in enumerate(TABLE[call]):
            training.ask(id=f"run{number}")
            training.told()
            with strace(training.pid, *fault.injected, output=tmp_path / "calls"):
                training.ask()
                kept = training.told()["kept"]
            assert failed_calls(tmp_path / "calls") & set(re.findall(r"\w+", fault.call)), fault
            training.ask()
            dropped = training.told()["dropped"]

            run_dir = tmp_path / "root" / "demo" / f"run{number}"
            records, gaps = records_of(run_dir), gaps_in(run_dir)
            assert RECORDS - len(records) == dropped, fault
            assert set(kept) - FLUSHES <= calls_in(records), fault
            assert sum(count for count, _ in gaps) == dropped, fault
            words = (os.strerror(getattr(errno, fault.error)), os.strerror(errno.ENOSPC))
            assert all(reason.endswith(words) for _, reason in gaps), fault
        training.ask(id="")

        assert training.ended() == 0, training.said
    assert_all_is_whole(tmp_path / "root")


# A forked child has a piece to claim before it can log.
FORKED = """
import time
# How long it waits before it tries again is not the point here.
sys.modules["eventlog.run"].RETRY_S = 0.05
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
while ask()["fork"]:
    child = os.fork()
    if child == 0:
        tell(pid=os.getpid())
        ask()
        for i in range(3):
            run.log({"i": i})
        tell(writer=run._piece and run._piece.writer)
        ask()
        deadline_s = time.monotonic() + 100
        while True:
            i, before = i + 1, run.dropped
            run.log({"i": i})
            if run.dropped == before or time.monotonic() > deadline_s:
                break
            time.sleep(0.05)
        tell(writer=run._piece.writer, logged=i + 1, dropped=run.dropped)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("call", ["?mkdir,?mkdirat", "openat", "fsync", "?rename,?renameat,?renameat2"])
def test_a_forked_child_that_can_claim_no_piece_goes_on_and_logs_when_it_can(tmp_path: Path, call: str):
    # faults: 59, 63
    with trainer(FORKED, tmp_path) as training:
        for error in ("EIO", "ENOSPC", "EMFILE"):
            training.ask(fork=True)
            child = training.told()["pid"]
            with strace(child, f"{call}:error={error}:when=1+"):
                training.ask()
                assert training.told()["writer"] is None
            training.ask()
            told = training.told()

            records = list(read(tmp_path / "demo" / "run", writer=told["writer"]))
            rows = [record.data["i"] for record in records if record.kind == "metrics"]
            gaps = [record.data["dropped"] for record in records if record.kind == "gap"]
            assert told["dropped"] >= 3
            assert rows == list(range(told["dropped"], told["logged"]))
            assert sum(gaps) == told["dropped"]
        training.ask(fork=False)

        assert training.ended() == 0, training.said
    assert "cannot log" in training.said


def test_a_stderr_that_takes_no_word_fails_no_training(tmp_path: Path):
    # faults: 63
    script = """
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
run = eventlog.init(project="demo", id="run", root=sys.argv[1])
run.log({"large": "x" * eventlog.record.LINE_MAX_BYTES})
tell(dropped=run.dropped)
"""
    with trainer("import eventlog.record\n" + script, tmp_path) as training:
        told = training.told()

        assert told == {"dropped": 1}
        assert training.ended() == 0


# ── a disk that is full ──────────────────────────────────────────────────────────────────────────────────────

# Logs until twenty records are dropped, and then, if there is space, until two more are kept.
UNTIL_FULL = """
import time
run = eventlog.init(project="demo", id="run", root=sys.argv[1])
kept = {"metrics": [], "trajectory": []}
calls = 0

def log(kind):
    global calls
    before, n, calls = run.dropped, calls, calls + 1
    if kind == "metrics":
        run.log({"n": n, "pad": "x" * 2000})
    else:
        run.log_trajectory(eventlog.Trajectory([eventlog.Turn("user", "x" * 3000)], info={"n": n}))
    if run.dropped > before:
        return False
    kept[kind].append(n)
    return True

while run.dropped < 20:
    log("trajectory" if calls % 3 else "metrics")
tell(dropped=run.dropped)
if ask()["again"]:
    for kind in kept:
        deadline_s = time.monotonic() + 100
        while not log(kind) and time.monotonic() < deadline_s:
            time.sleep(0.05)
tell(kept=kept, calls=calls)
run.finish()
tell(dropped=run.dropped)
"""


def kept_in(run_dir: Path) -> dict[str, list[int]]:
    return {
        "metrics": [r.data["n"] for r in read(run_dir) if r.kind == "metrics"],
        "trajectory": [r.data["info"]["n"] for r in read(run_dir, "trajectories")],
    }


@pytest.mark.parametrize("full", ["size=160k", "nr_inodes=9"])
def test_a_full_disk_costs_what_is_counted_until_there_is_space(tmp_path: Path, full: str):
    # faults: 61, 66
    with tmpfs(tmp_path / "disk", full) as disk:
        (disk / "ballast").write_bytes(b"x" * 60_000)
        with trainer(UNTIL_FULL, disk / "root") as training:
            training.told()
            for path in (disk / "root").rglob("*.jsonl"):
                assert path.read_bytes().endswith(b"\n")
            (disk / "ballast").unlink()
            training.ask(again=True)
            told = training.told()
            dropped = training.told()["dropped"]

            assert training.ended() == 0, training.said
        run_dir = disk / "root" / "demo" / "run"
        assert kept_in(run_dir) == told["kept"]
        assert told["calls"] - sum(map(len, told["kept"].values())) == dropped
        assert sum(count for count, _ in gaps_in(run_dir)) == dropped
        assert all("No space left on device" in reason for _, reason in gaps_in(run_dir))
        assert [record.kind for record in read(run_dir)][-1] == "exit"
        assert training.said.count("No space left on device") == 1
        assert_all_is_whole(disk / "root")


def test_a_disk_that_is_full_to_the_end_is_said_at_the_end(tmp_path: Path):
    # faults: 61
    with tmpfs(tmp_path / "disk", "size=160k") as disk:
        with trainer(UNTIL_FULL, disk / "root") as training:
            training.told()
            training.ask(again=False)
            told = training.told()
            dropped = training.told()["dropped"]

            assert training.ended() == 0, training.said
        run_dir = disk / "root" / "demo" / "run"
        assert kept_in(run_dir) == told["kept"]
        # An exit is small, and may find room where no row does.
        assert told["calls"] + 1 - len(records_of(run_dir)) == dropped
        assert f"{dropped} records of demo/run could not be written and are lost" in training.said
        assert_all_is_whole(disk / "root")


def test_a_disk_that_was_made_read_only_is_as_good_as_full(tmp_path: Path):
    # faults: 63
    script = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
run.log({"i": 0})
tell()
ask()
for i in range(1, 5):
    run.log({"i": i})
tell(dropped=run.dropped)
run.finish()
tell(dropped=run.dropped)
"""
    with tmpfs(tmp_path / "disk", "size=1m") as disk, trainer(script, disk) as training:
        training.told()
        # What is open for writing keeps a file system from being made read-only: an error of the disk does not ask.
        with strace(
            training.pid, *(f"{call}:error=EROFS" for call in ("write", "openat", "unlinkat", "mkdir"))
        ):
            training.ask()
            assert training.told() == {"dropped": 4}
            assert training.told() == {"dropped": 5}

        assert training.ended() == 0
        assert [r.data.get("i") for r in read(disk / "demo" / "run")] == [None, 0]
        assert_all_is_whole(disk)


def test_a_root_that_is_read_only_is_an_error_with_the_way_out(tmp_path: Path):
    # faults: 63
    script = """
try:
    eventlog.init(project="demo", root=sys.argv[1])
except eventlog.RootNotWritable as error:
    tell(error=str(error))
"""
    with tmpfs(tmp_path / "disk", "ro") as disk, trainer(script, disk / "root") as training:
        error = training.told()["error"]

        assert repr(str(disk / "root")) in error
        assert "Read-only file system" in error
        assert "EVENTLOG_ROOT" in error


# ── writes that fall short ───────────────────────────────────────────────────────────────────────────────────

LARGE_ROWS = """
import time
from eventlog import writer
# How long it waits before it tries again is not the point here.
writer.RETRY_S = 0.05
run = eventlog.init(project="demo", id="run", root=sys.argv[1], durability="none", quiet=True)
run.log({"i": 0})
tell()
ask()
run.log({"i": 1, "large": "x" * 200_000})
tell(dropped=run.dropped)
ask()
i, deadline_s = 2, time.monotonic() + 100
while True:
    before = run.dropped
    run.log({"i": i})
    if run.dropped == before or time.monotonic() > deadline_s:
        break
    i += 1
    time.sleep(0.05)
tell(last=i, dropped=run.dropped)
run.finish()
"""


def segments_of(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("main-0001/events-*.jsonl"))


def test_a_write_that_falls_short_is_continued_where_it_stopped(tmp_path: Path):
    # faults: 12
    with tmpfs(tmp_path / "disk", "size=400k") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 250_000)
        with trainer(LARGE_ROWS, disk) as training:
            training.told()
            (segment,) = segments_of(disk / "demo" / "run")
            # It stops after its first write, which fills the disk, and before the next.
            with strace(training.pid, "write:signal=STOP:when=1"):
                training.ask()
                wait_for(lambda: not segment.read_bytes().endswith(b"\n"), "half a row")
                ballast.unlink()
                os.kill(training.pid, signal.SIGCONT)
                assert training.told() == {"dropped": 0}
            training.ask()
            training.told()

            assert training.ended() == 0, training.said
        assert segments_of(disk / "demo" / "run") == [segment]
        assert [r.data["i"] for r in read(disk / "demo" / "run") if r.kind == "metrics"] == [0, 1, 2]
        assert_all_is_whole(disk)


@pytest.mark.parametrize("error", LASTING)
def test_half_a_row_that_cannot_be_cut_off_is_glued_to_no_other(tmp_path: Path, error: str):
    # faults: 12, 61, 63
    with tmpfs(tmp_path / "disk", "size=400k") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 250_000)
        with trainer(LARGE_ROWS, disk) as training:
            training.told()
            with strace(training.pid, f"ftruncate:error={error}", output=tmp_path / "calls"):
                training.ask()
                assert training.told() == {"dropped": 1}
            assert failed_calls(tmp_path / "calls") == {"ftruncate"}
            ballast.unlink()
            training.ask()
            told = training.told()

            assert training.ended() == 0, training.said
        torn, whole = segments_of(disk / "demo" / "run")
        assert not torn.read_bytes().endswith(b"\n")
        assert whole.read_bytes().endswith(b"\n")
        assert [r.data["i"] for r in read(disk / "demo" / "run") if r.kind == "metrics"] == [0, told["last"]]
        assert sum(count for count, _ in gaps_in(disk / "demo" / "run")) == told["dropped"]
        assert_all_is_whole(disk)


# ── nothing to wait for ──────────────────────────────────────────────────────────────────────────────────────


def test_a_disk_that_hangs_in_its_sync_holds_no_log_up(tmp_path: Path):
    # faults: 63, 79
    script = """
import time
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
tell()
ask()
run.log({"i": 0})
deadline_s = time.monotonic() + 100
while not run._events._is_syncing and time.monotonic() < deadline_s:
    time.sleep(0.01)
for i in range(1, 1000):
    run.log({"i": i})
    run.log_trajectory(eventlog.Trajectory([]))
tell(is_syncing=run._events._is_syncing, dropped=run.dropped)
ask()
"""
    with trainer(script, tmp_path) as training:
        training.told()
        # Ten minutes: whatever a sync is waited for by has not returned before the test ends.
        with strace(training.pid, "fdatasync:delay_enter=600000000"):
            training.ask()

            assert training.told() == {"is_syncing": True, "dropped": 0}
        training.kill()

    run_dir = tmp_path / "demo" / "run"
    assert [r.data["i"] for r in read(run_dir) if r.kind == "metrics"] == list(range(1000))
    assert len(list(read(run_dir, "trajectories"))) == 999


def test_a_log_is_one_write_and_asks_the_system_for_nothing_else(tmp_path: Path):
    # faults: 79
    script = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
row = {f"metric_{k}": k / 7 for k in range(10)}
for i in range(10):
    run.log(row)
tell()
ask()
for i in range(100):
    run.log(row)
tell()
ask()
"""
    with trainer(script, tmp_path / "root") as training:
        training.told()
        with strace(training.pid, output=tmp_path / "calls", threads=False):
            training.ask()
            training.told()

    calls = [line.partition("(")[0] for line in (tmp_path / "calls").read_text().splitlines() if "(" in line]
    assert calls.count("write") == 100
    # Reading what it is asked, telling; handing Python's lock to another thread; memory.
    others = {
        "read",
        "writev",
        "futex",
        "restart_syscall",
        "clock_gettime",
        "brk",
        "mmap",
        "munmap",
        "madvise",
    }
    assert set(calls) - {"write"} <= others


def test_a_daemon_that_was_stopped_holds_no_log_up_and_uploads_all_when_it_goes_on(
    server: WandbServer, tmp_path: Path
):
    # faults: 79
    script = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
run.log({"i": 0})
tell()
ask()
for i in range(1, 500):
    run.log({"i": i})
run.finish()
tell(dropped=run.dropped)
"""
    home = tmp_path / "home"
    environ = {**os.environ, **server.env(home), "HOME": str(home), "TIDELOG_STATE_DIR": str(home / "state")}
    daemon_command = ("-m", "syncd", "start", "--foreground", "--root", str(tmp_path / "root"))
    with process(*daemon_command, env=environ) as daemon, trainer(script, tmp_path / "root") as training:
        training.told()
        wait_for(lambda: server.runs() and server.runs()[0].history, "the first row")

        daemon.send_signal(signal.SIGSTOP)
        training.ask()

        assert training.told() == {"dropped": 0}
        assert training.ended() == 0
        assert len(server.runs()[0].history) == 1
        daemon.send_signal(signal.SIGCONT)
        wait_for(lambda: server.runs()[0].complete, "all the rest")
    assert [row["i"] for row in server.runs()[0].history] == list(range(500))


# faults: 64
def test_a_last_sync_that_fails_is_said(tmp_path: Path):
    script = """
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
run.log({"x": 1})
tell(ready=True)
ask()
run.finish()
"""
    with trainer(script, tmp_path) as training:
        training.told()
        with strace(training.pid, "?fsync,fdatasync:error=EIO"):
            training.ask(go=True)
            status = training.ended()

    assert status == 0
    assert "could not be synced" in training.said
    assert "perhaps not a power cut" in training.said
