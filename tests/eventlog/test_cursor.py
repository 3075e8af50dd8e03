"""Cursors on disk: two generations, of which one can always be read."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from eventlog.cursor import (
    LEASE_S,
    RENEW_S,
    SYNC_DIR,
    Cursor,
    Lease,
    Sink,
    cursors,
    is_held,
    load,
    save,
    unreadable,
)
from eventlog.piece import this_boot_id, this_host
from tests.locks import WITHOUT_LOCKS, no_locks

SINK = Sink("https://api.wandb.ai", None, "demo", "run")


def test_a_cursor_comes_back_as_it_was(tmp_path: Path):
    cursor = Cursor(SINK, attach={"entity": "e"}, acked={"h": 3}, fold={"state": {"nan": float("inf")}})

    written = save(tmp_path, cursor, now_us=5, durable=True)

    assert load(tmp_path, SINK) == written == replace(cursor, generation=1, time=5)


def test_the_last_durable_generation_stands_in_for_one_that_was_damaged(tmp_path: Path):  # faults: 46
    durable = save(tmp_path, Cursor(SINK, acked={"h": 1}), now_us=1, durable=True)
    later = save(tmp_path, replace(durable, acked={"h": 2}), now_us=2)
    save(tmp_path, replace(later, acked={"h": 3}), now_us=3)
    (tmp_path / SYNC_DIR / f"{SINK.name}.json").write_bytes(b"\0" * 40)

    assert load(tmp_path, SINK) == durable


NOW_US = 1_763_712_000_000_000


def elsewhere(run_dir: Path, now_us: int) -> None:
    """Let an uploader on another host have said, so long ago, that it holds the run; its lock cannot be seen here."""
    lock = run_dir / SYNC_DIR / f"{SINK.name}.lock"
    lock.parent.mkdir(exist_ok=True)
    text = {"host": "another", "boot_id": "x", "pid": 1, "heartbeat": now_us}
    lock.write_text(json.dumps(text) + "\n")


def test_one_process_at_a_time_holds_a_run_for_a_sink(tmp_path: Path):  # faults: 86
    lease = Lease.take(tmp_path, SINK, NOW_US)

    assert lease is not None
    assert Lease.take(tmp_path, SINK, NOW_US) is None
    lease.release()
    assert Lease.take(tmp_path, SINK, NOW_US) is not None


@pytest.mark.parametrize(
    ("heard_s", "is_free"), [(1, False), (LEASE_S - 1, False), (LEASE_S + 1, True), (-3600, True)]
)
def test_a_run_that_another_host_holds_is_taken_over_when_that_is_silent(
    tmp_path: Path, heard_s: float, is_free: bool
):  # faults: 82
    elsewhere(tmp_path, NOW_US - int(heard_s * 1e6))

    assert (Lease.take(tmp_path, SINK, NOW_US) is not None) is is_free


def test_who_holds_a_run_says_so_and_sees_when_another_host_has_taken_it(tmp_path: Path):  # faults: 82
    lease = Lease.take(tmp_path, SINK, NOW_US)
    assert lease is not None
    lock = tmp_path / SYNC_DIR / f"{SINK.name}.lock"
    heard = []
    for second in (1, RENEW_S + 1, RENEW_S + 2):
        assert lease.keep(NOW_US + int(second * 1e6))
        heard.append(json.loads(lock.read_bytes())["heartbeat"] - NOW_US)

    elsewhere(tmp_path, NOW_US)

    assert heard == [0, (RENEW_S + 1) * 1e6, (RENEW_S + 1) * 1e6]
    assert not lease.keep(NOW_US + int(200e6))
    lease.release()
    assert json.loads(lock.read_bytes())["host"] == "another"


def test_a_lease_whose_file_was_removed_is_none(tmp_path: Path):
    lease = Lease.take(tmp_path, SINK, NOW_US)
    assert lease is not None
    assert lease.keep(NOW_US)
    (tmp_path / "sync" / f"{SINK.name}.lock").unlink()

    another = Lease.take(tmp_path, SINK, NOW_US)

    assert another is not None
    assert not lease.keep(NOW_US)
    assert another.keep(NOW_US)


def test_a_run_is_held_as_long_as_somebody_has_any_of_its_leases(tmp_path: Path):
    before = is_held(tmp_path, NOW_US)
    lease = Lease.take(tmp_path, SINK, NOW_US)
    assert lease is not None
    meanwhile = is_held(tmp_path, NOW_US)
    lease.release()

    assert (before, meanwhile, is_held(tmp_path, NOW_US)) == (False, True, False)


def test_what_is_released_is_free_at_once_on_any_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lease = Lease.take(tmp_path, SINK, NOW_US)
    assert lease is not None
    lease.release()
    monkeypatch.setattr("eventlog.cursor.ran_here", lambda text: False)

    assert Lease.take(tmp_path, SINK, NOW_US) is not None


def by(run_dir: Path, pid: int, heartbeat_us: int) -> None:
    """Let a process of this host have said that it holds the run."""
    text = {
        "host": this_host(),
        "boot_id": this_boot_id(),
        "pid": pid,
        "heartbeat": heartbeat_us,
        "locked": False,
    }
    (run_dir / SYNC_DIR).mkdir(exist_ok=True)
    (run_dir / SYNC_DIR / f"{SINK.name}.lock").write_text(json.dumps(text) + "\n")


@pytest.mark.parametrize("says", WITHOUT_LOCKS)
def test_without_locks_a_run_is_held_by_who_says_so_for_as_long_as_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: int
):
    now_us = time.time_ns() // 1000
    monkeypatch.setattr(fcntl, "flock", no_locks(says))
    with subprocess.Popen(["sleep", "60"]) as other:
        by(tmp_path, other.pid, now_us)
        while_it_lives = Lease.take(tmp_path, SINK, now_us)
        # One that is younger than the word is another, by the same number.
        by(tmp_path, other.pid, now_us - int(60e6))
        after_another = Lease.take(tmp_path, SINK, now_us)
        other.kill()
    by(tmp_path, other.pid, now_us)
    after_it = Lease.take(tmp_path, SINK, now_us)

    assert while_it_lives is None
    assert after_another is not None
    assert after_it is not None
    assert after_it.keep(now_us)
    after_it.release()
    assert Lease.take(tmp_path, SINK, now_us) is not None


def test_without_locks_another_hosts_word_counts_as_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fcntl, "flock", no_locks())

    elsewhere(tmp_path, NOW_US)
    assert Lease.take(tmp_path, SINK, NOW_US) is None

    assert Lease.take(tmp_path, SINK, NOW_US + int(LEASE_S * 1e6)) is not None


@pytest.mark.parametrize("fails", ["ftruncate", "pread"])
def test_a_disk_that_became_read_only_or_went_lets_the_run_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
):
    lease = Lease.take(tmp_path, SINK, NOW_US)
    assert lease is not None

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as read_only:
        read_only.setattr(os, fails, refuse)
        lease.release()

    assert Lease.take(tmp_path, SINK, NOW_US) is not None


def test_a_full_disk_costs_the_word_and_not_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    lease = Lease.take(tmp_path, SINK, NOW_US)

    assert lease is not None
    assert lease.keep(NOW_US + int(100e6))
    assert Lease.take(tmp_path, SINK, NOW_US) is None


def test_killed_between_the_two_renames_the_newest_is_the_one_before(tmp_path: Path):  # faults: 45
    first = save(tmp_path, Cursor(SINK, acked={"h": 1}), now_us=1)
    current = tmp_path / SYNC_DIR / f"{SINK.name}.json"
    os.replace(current, current.with_name(current.name + ".previous"))

    assert load(tmp_path, SINK) == first
    assert list(cursors(tmp_path)) == [first]


@pytest.mark.parametrize("garbage", [b"", b"\n", b"{}", b'{"crc":"00000000","format":1}\n', b"\xff" * 100])
def test_garbage_is_as_good_as_no_cursor(tmp_path: Path, garbage: bytes):  # faults: 46
    directory = tmp_path / SYNC_DIR
    directory.mkdir()
    (directory / f"{SINK.name}.json").write_bytes(garbage)

    assert load(tmp_path, SINK) is None
    assert list(cursors(tmp_path)) == []
    assert unreadable(tmp_path) == directory / f"{SINK.name}.json"


def test_a_cursor_of_a_newer_version_is_not_guessed_at(tmp_path: Path):  # faults: 48
    from eventlog.record import frame_object

    (tmp_path / SYNC_DIR).mkdir()
    newer = frame_object({"format": 2, "sink": {}, "surprise": 1})
    (tmp_path / SYNC_DIR / f"{SINK.name}.json").write_bytes(newer)

    assert load(tmp_path, SINK) is None


def test_a_symlink_is_not_followed(tmp_path: Path):  # faults: 94
    save(tmp_path, Cursor(SINK), now_us=1)
    current = tmp_path / SYNC_DIR / f"{SINK.name}.json"
    current.rename(tmp_path / "elsewhere")
    current.symlink_to(tmp_path / "elsewhere")

    assert load(tmp_path, SINK) is None


def test_two_destinations_keep_two_cursors(tmp_path: Path):
    other = replace(SINK, base_url="https://wandb.example.org")
    save(tmp_path, Cursor(SINK, acked={"h": 1}), now_us=1)
    save(tmp_path, Cursor(other, acked={"h": 2}), now_us=1)

    assert {cursor.sink: cursor.acked["h"] for cursor in cursors(tmp_path)} == {SINK: 1, other: 2}
    assert unreadable(tmp_path) is None


def test_a_kill_between_the_renames_of_a_durable_save_leaves_two_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):  # faults: 45
    first = save(tmp_path, Cursor(SINK, acked={"h": 1}), now_us=1, durable=True)
    path = tmp_path / SYNC_DIR / f"{SINK.name}.json"
    rename = os.replace

    def killed_at_the_second(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, replace(first, acked={"h": 2}), now_us=2, durable=True)
    monkeypatch.undo()
    durable = load(tmp_path, SINK)
    assert durable is not None

    save(tmp_path, replace(durable, acked={"h": 3}), now_us=3)
    path.write_bytes(b"\0" * 40)

    assert load(tmp_path, SINK) == durable
