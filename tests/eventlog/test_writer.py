"""`eventlog.writer`: what `append` said is written is there, once and in order, whatever the disk does."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from eventlog import writer as writer_module
from eventlog.errors import UsageError
from eventlog.reader import Damage, StreamReader
from eventlog.record import LINE_MAX_BYTES, Record
from eventlog.segment import ROTATE_AGE_S, ROTATE_BYTES
from eventlog.writer import StreamWriter
from tests.bytecodes import Interrupted, at_bytecode_of, at_every_bytecode

PROJECT = Path(__file__).parents[2]


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def open_writer(
    directory: Path,
    durability: str = "interval",
    clock_s: Callable[[], float] | None = None,
    stream: str = "events",
) -> StreamWriter:
    return StreamWriter(directory, "a" * 32, "main-0001", "0" * 8, stream, durability, clock_s or Clock())


def read_all(directory: Path, stream: str = "events") -> tuple[list[Record], list[Damage]]:
    reader = StreamReader(directory, stream)
    records, damage = [], []
    while True:
        chunk = reader.read()
        records += chunk.records
        damage += chunk.damage
        if not chunk.more:
            return records, damage + reader.end()


def values_in(directory: Path) -> list[Any]:
    """Return what the metrics of an undamaged stream hold under `i`."""
    records, damage = read_all(directory)
    assert damage == []
    assert [record.seq for record in records] == list(range(len(records)))
    return [record.data["i"] for record in records if record.kind == "metrics"]


def gaps_in(directory: Path) -> list[int]:
    return [record.data["dropped"] for record in read_all(directory)[0] if record.kind == "gap"]


def segments(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_record_is_on_disk_when_append_returns(tmp_path: Path):
    log = open_writer(tmp_path)

    assert log.append("metrics", {"i": 0}, step=3, commit=True)

    (record,), damage = read_all(tmp_path)
    assert (record.seq, record.kind, record.data, record.step, record.commit) == (
        0,
        "metrics",
        {"i": 0},
        3,
        True,
    )
    assert damage == []


def test_a_stream_without_records_has_no_file(tmp_path: Path):
    open_writer(tmp_path).close()

    assert segments(tmp_path) == []


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_segment_is_for_its_user_alone_whatever_the_umask(tmp_path: Path, umask: int):
    # faults: 95
    log = open_writer(tmp_path)
    before = os.umask(umask)

    try:
        log.append("metrics", {"i": 0})
    finally:
        os.umask(before)

    assert (tmp_path / "events-000000000000.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_restarted_writer_never_adds_to_an_old_segment(tmp_path: Path):
    # faults: 60
    open_writer(tmp_path).append("metrics", {"i": 0})
    before = (tmp_path / "events-000000000000.jsonl").read_bytes()

    open_writer(tmp_path).append("metrics", {"i": 1})

    assert (tmp_path / "events-000000000000.jsonl").read_bytes() == before
    assert segments(tmp_path) == ["events-000000000000.1.jsonl", "events-000000000000.jsonl"]


def test_a_new_segment_is_behind_all_that_are_there_even_if_one_before_them_is_gone(tmp_path: Path):
    for _ in range(3):
        open_writer(tmp_path).append("metrics", {"i": 0})
    (tmp_path / "events-000000000000.jsonl").unlink()

    open_writer(tmp_path).append("metrics", {"i": 1})

    assert segments(tmp_path) == [f"events-000000000000.{n}.jsonl" for n in (1, 2, 3)]


def test_a_symlink_under_a_segments_name_is_not_followed(tmp_path: Path):
    # faults: 94
    target = tmp_path / "precious"
    target.write_text("untouched")
    directory = tmp_path / "piece"
    directory.mkdir()
    (directory / "events-000000000000.jsonl").symlink_to(target)

    assert open_writer(directory).append("metrics", {"i": 0})

    assert target.read_text() == "untouched"


def test_a_segment_cut_to_nothing_under_its_writer_has_no_hole_and_keeps_what_comes_after(tmp_path: Path):
    # faults: 25, 27
    log = open_writer(tmp_path)
    for i in range(3):
        log.append("metrics", {"i": i})

    os.truncate(tmp_path / "events-000000000000.jsonl", 0)
    for i in range(3, 6):
        log.append("metrics", {"i": i})

    records, damage = read_all(tmp_path)
    assert [record.data["i"] for record in records] == [3, 4, 5]
    assert [(each.first_seq, each.last_seq) for each in damage] == [(0, 2)]
    assert log.sync()


def test_an_old_segment_is_followed_by_a_new_one(tmp_path: Path):
    clock = Clock()
    log = open_writer(tmp_path, clock_s=clock)
    log.append("metrics", {"i": 0})
    log.append("metrics", {"i": 1})

    clock.now_s += ROTATE_AGE_S
    log.append("metrics", {"i": 2})

    assert segments(tmp_path) == ["events-000000000000.jsonl", "events-000000000002.jsonl"]
    assert values_in(tmp_path) == [0, 1, 2]


def test_a_large_segment_is_followed_by_a_new_one(tmp_path: Path):
    log = open_writer(tmp_path)
    large = "x" * (ROTATE_BYTES // 2)

    for i in range(3):
        log.append("metrics", {"i": i, "large": large})

    assert segments(tmp_path) == ["events-000000000000.jsonl", "events-000000000002.jsonl"]
    assert values_in(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("durability", ["none", "interval", "always"])
def test_many_segments_cost_no_descriptors(tmp_path: Path, durability: str):
    clock = Clock()
    log = open_writer(tmp_path, durability, clock)
    before = len(os.listdir("/proc/self/fd"))

    for i in range(30):
        log.append("metrics", {"i": i})
        clock.now_s += ROTATE_AGE_S
        if durability == "interval":
            log.sync()
    log.append("metrics", {"i": 30})

    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert values_in(tmp_path) == list(range(31))


def test_a_directory_that_is_moved_keeps_its_writer(tmp_path: Path):
    # faults: 29
    clock = Clock()
    (tmp_path / "here").mkdir()
    log = open_writer(tmp_path / "here", clock_s=clock)
    log.append("metrics", {"i": 0})

    (tmp_path / "here").rename(tmp_path / "there")
    clock.now_s += ROTATE_AGE_S

    assert log.append("metrics", {"i": 1})
    assert values_in(tmp_path / "there") == [0, 1]


def test_a_record_over_the_limit_is_dropped_and_those_around_it_survive(tmp_path: Path):
    # faults: 11
    log = open_writer(tmp_path)
    log.append("metrics", {"i": 0})

    assert not log.append("metrics", {"i": 1, "large": "x" * LINE_MAX_BYTES})
    log.append("metrics", {"i": 2})

    assert log.dropped == 1
    assert values_in(tmp_path) == [0, 2]
    assert gaps_in(tmp_path) == [1]


def test_a_deleted_segment_is_noticed_and_the_next_record_is_kept(tmp_path: Path):
    # faults: 31
    log = open_writer(tmp_path)
    log.append("metrics", {"i": 0})
    assert not log.is_deleted()

    (tmp_path / "events-000000000000.jsonl").unlink()

    assert log.is_deleted()
    assert log.append("metrics", {"i": 1})
    assert segments(tmp_path) == ["events-000000000001.jsonl"]


def test_a_segment_deleted_while_it_is_synced_stays_open_until_the_sync_is_over(tmp_path: Path):
    # faults: 31
    log = open_writer(tmp_path)
    log.append("metrics", {"i": 0})
    real, said = log._force, []

    def delete_and_look(segment: Any) -> None:
        (tmp_path / segment.name).unlink()
        said.append(log.is_deleted())
        real(segment)

    log._force = delete_and_look  # type: ignore[method-assign]

    assert log.sync()
    assert said == [False]
    assert log.is_deleted()


def test_a_deleted_directory_is_counted_and_never_silent(tmp_path: Path):
    # faults: 31
    directory = tmp_path / "piece"
    directory.mkdir()
    log = open_writer(directory)
    log.append("metrics", {"i": 0})

    shutil.rmtree(directory)

    assert log.is_deleted()
    assert not log.append("metrics", {"i": 1})
    assert log.dropped == 1


def test_threads_that_append_at_once_lose_nothing_and_keep_their_order(tmp_path: Path):
    # faults: 1
    log = open_writer(tmp_path, clock_s=Clock())
    stop = threading.Event()

    def append(thread: int) -> None:
        for n in range(500):
            assert log.append("metrics", {"i": (thread, n)})

    def sync() -> None:
        while not stop.is_set():
            log.sync()

    threads = [threading.Thread(target=append, args=(k,)) for k in range(4)]
    syncing = threading.Thread(target=sync)
    for thread in [*threads, syncing]:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    syncing.join()

    values = [tuple(value) for value in values_in(tmp_path)]
    assert sorted(values) == [(k, n) for k in range(4) for n in range(500)]
    for k in range(4):
        assert [n for thread, n in values if thread == k] == list(range(500))


def test_a_signal_handler_may_log_in_the_middle_of_a_log(tmp_path: Path):
    log = open_writer(tmp_path)
    acknowledged: list[str] = []
    from_handler: list[str] = []

    def log_again(signum: int, frame: Any) -> None:
        value = f"handler {len(from_handler)}"
        if log.append("metrics", {"i": value}):
            from_handler.append(value)

    before = signal.signal(signal.SIGALRM, log_again)
    signal.setitimer(signal.ITIMER_REAL, 1e-4, 1.3e-4)
    try:
        while len(from_handler) < 500:
            value = f"main {len(acknowledged)}"
            if log.append("metrics", {"i": value}):
                acknowledged.append(value)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert sorted(values_in(tmp_path)) == sorted(acknowledged + from_handler)


def at_bytecode(n: int, act: Callable[[], None], call: Callable[[], Any]) -> tuple[Any, bool]:
    return at_bytecode_of([writer_module], n, act, call)


def first_record(log: StreamWriter, clock: Clock) -> None:
    """The next record is the first, and opens the stream."""


def ordinary(log: StreamWriter, clock: Clock) -> None:
    log.append("metrics", {"i": "before"})


def at_a_rotation(log: StreamWriter, clock: Clock) -> None:
    log.append("metrics", {"i": "before"})
    clock.now_s += ROTATE_AGE_S


situations = pytest.mark.parametrize("situation", [first_record, ordinary, at_a_rotation])


@at_every_bytecode
@situations
def test_a_handler_may_log_between_any_two_bytecodes_of_a_log(tmp_path: Path, situation: Callable[..., None]):
    n, reached = 0, True
    while reached:
        n += 1
        clock = Clock()
        directory = tmp_path / str(n)
        directory.mkdir()
        log = open_writer(directory, clock_s=clock)
        situation(log, clock)
        acknowledged: set[str] = set() if situation is first_record else {"before"}

        def append(value: str, log: StreamWriter = log, acknowledged: set[str] = acknowledged) -> None:
            if log.append("metrics", {"i": value}):
                acknowledged.add(value)

        _, reached = at_bytecode(n, lambda: append("handler"), lambda: append("main"))
        append("after")

        written = values_in(directory)
        assert sorted(written) == sorted(acknowledged), f"bytecode {n}"
        assert {"main", "after"} <= acknowledged
        assert log.dropped == ("handler" not in acknowledged and reached)
        log.close()
    assert n > 100


@at_every_bytecode
@situations
def test_a_log_may_be_interrupted_between_any_two_bytecodes(tmp_path: Path, situation: Callable[..., None]):
    def interrupt() -> None:
        raise Interrupted

    n, reached = 0, True
    while reached:
        n += 1
        clock = Clock()
        directory = tmp_path / str(n)
        directory.mkdir()
        log = open_writer(directory, clock_s=clock)
        situation(log, clock)

        try:
            _, reached = at_bytecode(n, interrupt, lambda log=log: log.append("metrics", {"i": "main"}))
        except Interrupted:
            reached = True
        assert log.append("metrics", {"i": "after"})

        # The interrupted record may be there or not; all others are.
        expected = ["after"] if situation is first_record else ["before", "after"]
        assert [value for value in values_in(directory) if value != "main"] == expected, f"bytecode {n}"
        assert values_in(directory).count("main") <= 1
        # And each is at hand, should an fsync fail.
        kept = {seq for segment in log._open for seq, _ in writer_module._records_in(bytes(segment.unsynced))}
        assert kept == set(range(log.next_seq)), f"bytecode {n}"
        log.close()
    assert n > 100


def end(log: StreamWriter) -> bool:
    is_written = log.end("exit", b'{"exitcode":0}', [], 0)
    return log.close() and is_written


@at_every_bytecode
@situations
@pytest.mark.parametrize("is_a_descriptor_free", [True, False])
def test_a_handler_may_end_the_stream_between_any_two_bytecodes_of_a_log(
    tmp_path: Path,
    situation: Callable[..., None],
    is_a_descriptor_free: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    opened = os.open

    def no_descriptor(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & (os.O_CREAT | os.O_DIRECTORY):
            return opened(path, flags, *args, **options)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    n, reached = 0, True
    while reached:
        n += 1
        clock = Clock()
        directory = tmp_path / str(n)
        directory.mkdir()
        log = open_writer(directory, clock_s=clock)
        situation(log, clock)
        acknowledged = set() if situation is first_record else {"before"}

        def append(value: str, log: StreamWriter = log, acknowledged: set[str] = acknowledged) -> None:
            if log.append("metrics", {"i": value}):
                acknowledged.add(value)

        def end_it(log: StreamWriter = log) -> None:
            with monkeypatch.context() as patch:
                if not is_a_descriptor_free:
                    patch.setattr(os, "open", no_descriptor)
                end(log)

        refused = []
        try:
            _, reached = at_bytecode(n, end_it, lambda append=append: append("main"))
        except UsageError:
            refused.append("main")
        if reached:
            with pytest.raises(UsageError, match="finished"):
                append("after")

        records, damage = read_all(directory)
        assert damage == []
        assert [record.seq for record in records] == list(range(len(records))), f"bytecode {n}"
        if reached:
            assert [record.kind for record in records].index("exit") == len(records) - 1, f"bytecode {n}"
        assert all(path.read_bytes().count(b"\n") > 1 for path in directory.iterdir()), f"bytecode {n}"
        if is_a_descriptor_free:
            logged = {record.data["i"] for record in records if record.kind == "metrics"}
            assert logged == acknowledged, f"bytecode {n}"
        assert log.dropped + len(acknowledged) + len(refused) == 1 + (situation is not first_record)
    assert n > 100


def test_threads_that_log_while_the_stream_is_ended_are_before_its_end_or_refused(tmp_path: Path):
    for attempt in range(20):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        log = open_writer(directory)
        logged = [0, 0, 0]

        def work(who: int, log: StreamWriter = log, logged: list[int] = logged) -> None:
            with suppress(UsageError):
                while log.append("metrics", {"i": who}):
                    logged[who] += 1

        threads = [threading.Thread(target=work, args=(who,)) for who in range(3)]
        for thread in threads:
            thread.start()
        while sum(logged) < 100 * attempt:
            pass
        assert end(log)
        for thread in threads:
            thread.join()

        records, damage = read_all(directory)
        assert damage == []
        assert records[-1].kind == "exit"
        values = [record.data["i"] for record in records[:-1]]
        assert [values.count(who) for who in range(3)] == logged
        assert log.dropped == 0


def test_handlers_may_cut_in_on_handlers(tmp_path: Path):
    rng = random.Random(0)
    for attempt in range(300):
        clock = Clock()
        directory = tmp_path / str(attempt)
        directory.mkdir()
        log = open_writer(directory, clock_s=clock)
        rng.choice((first_record, ordinary, at_a_rotation))(log, clock)
        acknowledged = ["before"] if log.next_seq else []

        def append(value: str, log: StreamWriter = log, acknowledged: list[str] = acknowledged) -> None:
            if log.append("metrics", {"i": value}):
                acknowledged.append(value)

        def handler(value: str = "handler", append: Callable[[str], None] = append) -> None:
            at_bytecode(rng.randint(1, 150), lambda: append("handler's handler"), lambda: append(value))
            append("handler again")

        at_bytecode(rng.randint(1, 250), handler, lambda append=append: append("main"))
        append("after")

        assert sorted(values_in(directory)) == sorted(acknowledged), f"attempt {attempt}"
        log.close()


def test_unsynced_lines_take_bounded_memory_while_the_disk_hangs(tmp_path: Path):
    log = open_writer(tmp_path)

    for i in range(60):
        log.append("metrics", {"i": i, "large": "x" * 500_000})

    segment = log._at[2]
    assert segment is not None
    assert len(segment.unsynced) <= writer_module._UNSYNCED_MAX_BYTES
    kept = [seq for seq, _ in writer_module._records_in(bytes(segment.unsynced))]
    assert kept == list(range(33))
    assert log.sync()
    assert len(segment.unsynced) == 0


def test_always_means_that_nothing_waits_for_a_sync(tmp_path: Path):
    log = open_writer(tmp_path, "always")

    log.append("metrics", {"i": 0})

    assert not log.is_dirty


def test_a_sync_makes_the_log_clean_until_the_next_record(tmp_path: Path):
    log = open_writer(tmp_path)
    log.append("metrics", {"i": 0})
    assert log.is_dirty

    assert log.sync()
    assert not log.is_dirty

    log.append("metrics", {"i": 1})
    assert log.is_dirty


def test_an_unknown_durability_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="'sometimes'"):
        open_writer(tmp_path, "sometimes")


# ── the disk says no ─────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def small_tmpfs(directory: Path, size_kib: int) -> Iterator[Path]:
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(directory)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.mark.needs_root
@pytest.mark.parametrize("row_chars", [10, 3000, 40_000])
def test_a_full_disk_is_counted_and_logging_goes_on_when_there_is_space(tmp_path: Path, row_chars: int):
    # faults: 61
    clock = Clock()
    with small_tmpfs(tmp_path / "disk", 256) as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 100_000)
        piece = disk / "piece"
        piece.mkdir()
        log = open_writer(piece, clock_s=clock)
        kept = []
        for i in range(20_000):
            if log.append("metrics", {"i": i, "pad": "x" * row_chars}):
                kept.append(i)
            elif log.dropped == 50:
                break
        assert log.dropped == 50
        assert log.trouble == "ENOSPC: No space left on device"
        for name in segments(piece):
            assert (piece / name).read_bytes().endswith(b"\n")

        ballast.unlink()
        clock.now_s += writer_module.RETRY_S
        assert log.append("metrics", {"i": "after", "pad": "x" * row_chars})
        log.close()

        assert values_in(piece) == [*kept, "after"]
        assert gaps_in(piece) == [50]
        # One attempt a second, and none leaves an empty file.
        assert len(segments(piece)) <= 3


@pytest.mark.needs_root
def test_a_full_disk_costs_a_training_next_to_nothing(tmp_path: Path):
    # faults: 61
    with small_tmpfs(tmp_path / "disk", 64) as disk:
        log = open_writer(disk)
        while log.append("metrics", {"i": 0, "pad": "x" * 1000}):
            pass
        attempts = []
        log._create = lambda *_: attempts.append(1)  # type: ignore[method-assign,assignment,return-value]

        for _ in range(1000):
            log.append("metrics", {"i": 0})

        assert log.dropped == 1001
        assert attempts == []
        log.abandon_after_fork()


@pytest.mark.needs_root
def test_no_inode_for_the_next_segment_leaves_the_old_one_in_use(tmp_path: Path):
    # faults: 65, 66
    clock = Clock()
    directory = tmp_path / "disk"
    directory.mkdir()
    options = "size=1m,nr_inodes=2"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        log = open_writer(directory, clock_s=clock)
        log.append("metrics", {"i": 0})
        clock.now_s += ROTATE_AGE_S

        assert log.append("metrics", {"i": 1})

        log.close()
        assert values_in(directory) == [0, 1]
        assert segments(directory) == ["events-000000000000.jsonl"]
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_limit_on_file_size_begins_a_new_segment_and_loses_nothing(tmp_path: Path):
    # faults: 12, 66
    log = open_writer(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        said = [log.append("metrics", {"i": i}) for i in range(200)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert all(said)
    assert log.dropped == 0
    assert values_in(tmp_path) == list(range(200))
    assert len(segments(tmp_path)) > 3


def test_a_record_over_the_limit_on_file_size_is_dropped_alone(tmp_path: Path):
    # faults: 66
    clock = Clock()
    log = open_writer(tmp_path, clock_s=clock)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        log.append("metrics", {"i": 0})
        assert not log.append("metrics", {"i": 1, "large": "x" * 9000})
        clock.now_s += writer_module.RETRY_S
        log.append("metrics", {"i": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert values_in(tmp_path) == [0, 2]
    assert gaps_in(tmp_path) == [1]


def strace(inject: str, script: str, directory: Path) -> None:
    """Run `script` with a fault injected into one of its system calls."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    done = subprocess.run(
        [
            "strace",
            "-f",
            "-o",
            "/dev/null",
            "-e",
            f"inject={inject}",
            sys.executable,
            "-c",
            script,
            str(directory),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "ptrace" in done.stderr.lower():
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr


APPEND_AND_SYNC = """
import sys, time
from pathlib import Path
from eventlog.writer import StreamWriter
from tests.bytecodes import Interrupted, at_bytecode_of, at_every_bytecode
log = StreamWriter(Path(sys.argv[1]), "a" * 32, "main-0001", "0" * 8, "events", DURABILITY)
assert all(log.append("metrics", {"i": i}) for i in range(10))
assert log.sync()
assert all(log.append("metrics", {"i": i}) for i in range(10, 20))
assert log.sync() is SECOND_SYNC
assert all(log.append("metrics", {"i": i}) for i in range(20, 30))
assert log.dropped == DROPPED
"""


def appending(durability: str = "interval", second_sync: bool = True, dropped: int = 0) -> str:
    script = APPEND_AND_SYNC.replace("DURABILITY", repr(durability)).replace("SECOND_SYNC", repr(second_sync))
    return script.replace("DROPPED", repr(dropped))


@pytest.mark.needs_root
def test_after_a_failed_fsync_the_unsynced_records_are_in_a_new_segment_with_their_seqs(tmp_path: Path):
    # faults: 64
    strace("fdatasync:error=EIO:when=2", appending(), tmp_path)

    assert values_in(tmp_path) == list(range(30))
    assert segments(tmp_path) == [
        "events-000000000000.jsonl",
        "events-000000000010.jsonl",
        "events-000000000020.jsonl",
    ]
    # What the failed segment may have lost on the disk is whole in the one after it.
    for name in ("events-000000000000.jsonl",):
        (tmp_path / name).write_bytes(b"\n".join((tmp_path / name).read_bytes().split(b"\n")[:11]) + b"\n")
    assert values_in(tmp_path) == list(range(30))


@pytest.mark.needs_root
def test_a_disk_that_fails_every_fsync_keeps_the_records_and_says_that_they_are_not_durable(tmp_path: Path):
    # faults: 63
    strace("fdatasync:error=EIO:when=2+", appending(second_sync=False), tmp_path)

    assert values_in(tmp_path) == list(range(30))


@pytest.mark.needs_root
def test_always_counts_a_record_that_could_not_be_made_durable(tmp_path: Path):
    # faults: 63, 64
    script = """
import sys
from pathlib import Path
from eventlog.writer import StreamWriter
from tests.bytecodes import Interrupted, at_bytecode_of, at_every_bytecode
log = StreamWriter(Path(sys.argv[1]), "a" * 32, "main-0001", "0" * 8, "events", "always")
assert log.append("metrics", {"i": 0})
assert not log.append("metrics", {"i": 1})
assert log.dropped == 1
assert log.trouble == "fsync: EIO: Input/output error"
"""
    strace("fdatasync:error=EIO:when=2+", script, tmp_path)

    assert values_in(tmp_path) == [0, 1]


@pytest.mark.needs_root
def test_a_segment_whose_fsync_failed_is_copied_however_late_and_never_trusted_again(tmp_path: Path):
    # faults: 64
    script = """
import sys
from pathlib import Path
from eventlog.writer import StreamWriter
from tests.bytecodes import Interrupted, at_bytecode_of, at_every_bytecode
now_s = [0.0]
log = StreamWriter(Path(sys.argv[1]), "a" * 32, "main-0001", "0" * 8, "events", "interval", lambda: now_s[0])
assert all(log.append("metrics", {"i": i}) for i in range(10))
assert not log.sync()
assert not log.sync()
assert log.is_dirty
now_s[0] += 60
assert log.sync()
assert not log.is_dirty
"""
    # The second is that of the copy.
    strace("fdatasync:error=EIO:when=1..2", script, tmp_path)

    assert segments(tmp_path) == ["events-000000000000.1.jsonl", "events-000000000000.jsonl"]
    (tmp_path / "events-000000000000.jsonl").unlink()
    assert values_in(tmp_path) == list(range(10))


@pytest.mark.needs_root
def test_a_fsync_that_fails_without_durability_is_said_and_costs_no_record(tmp_path: Path):
    strace("fdatasync:error=EIO:when=2", appending("none", second_sync=False), tmp_path)

    assert values_in(tmp_path) == list(range(30))


@pytest.mark.needs_root
@pytest.mark.parametrize(("durability", "failures"), [("none", 11), ("interval", 30)])
def test_what_nobody_can_vouch_for_is_never_said_to_be_durable(
    tmp_path: Path, durability: str, failures: int
):
    # faults: 57, 64
    script = """
import sys
from pathlib import Path
from eventlog import writer
from eventlog.segment import ROTATE_AGE_S
now_s = [0.0]
clock_s = lambda: now_s[0]
log = writer.StreamWriter(Path(sys.argv[1]), "a" * 32, "main-0001", "0" * 8, "events", DURABILITY, clock_s)
# More segments than are kept in memory, each of which fails its sync.
for i in range(writer._RETIRED_MAX + 3):
    assert log.append("metrics", {"i": i})
    assert not log.sync()
    now_s[0] += ROTATE_AGE_S
"""
    healed = """
for _ in range(40):
    now_s[0] += 60
    log.sync()
assert log.append("metrics", {"i": "healed"})
assert not log.sync()
assert not log.is_dirty
assert log.dropped == 0
"""
    strace(
        f"fdatasync:error=EIO:when=1..{failures}",
        script.replace("DURABILITY", repr(durability)) + healed,
        tmp_path,
    )

    assert values_in(tmp_path) == [*range(11), "healed"]


@pytest.mark.parametrize("durability", ["none", "interval"])
def test_a_sync_comes_for_every_segment_however_many_were_closed_before_it(
    tmp_path: Path, durability: str, monkeypatch: pytest.MonkeyPatch
):
    # faults: 57
    clock = Clock()
    log = open_writer(tmp_path, durability, clock)
    for i in range(writer_module._RETIRED_MAX + 3):
        log.append("metrics", {"i": i})
        clock.now_s += ROTATE_AGE_S
    synced: list[str] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    assert log.sync()
    assert sorted(synced) == [str(tmp_path / name) for name in segments(tmp_path)]
    assert not log.is_dirty


@pytest.mark.needs_root
@pytest.mark.parametrize("code", ["EIO", "EDQUOT", "ENOSPC", "ESTALE", "EROFS"])
def test_a_write_that_fails_once_is_made_in_a_new_segment(tmp_path: Path, code: str):
    # faults: 63
    # The first write of the process is the header, the second record 0.
    strace(f"write:error={code}:when=5", appending(), tmp_path)

    assert segments(tmp_path) == ["events-000000000000.jsonl", "events-000000000003.jsonl"]
    assert values_in(tmp_path) == list(range(30))


def test_no_descriptor_for_the_next_segment_leaves_the_old_one_in_use(tmp_path: Path):
    # faults: 63, 65
    clock = Clock()
    log = open_writer(tmp_path, clock_s=clock)
    log.append("metrics", {"i": 0})
    clock.now_s += ROTATE_AGE_S
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert log.append("metrics", {"i": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    clock.now_s += writer_module.RETRY_S
    log.append("metrics", {"i": 2})

    assert log.dropped == 0
    assert segments(tmp_path) == ["events-000000000000.jsonl", "events-000000000002.jsonl"]
    assert values_in(tmp_path) == [0, 1, 2]
