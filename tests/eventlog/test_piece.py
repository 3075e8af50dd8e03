"""Claims, locks, and the verdict whether a piece can still grow."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import orjson
import pytest

from eventlog.errors import NotARun
from eventlog.piece import (
    LOCK_FILE,
    RunIdentity,
    claim_primary,
    claim_secondary,
    closed,
    hold,
    lock_owner_is_gone,
    lock_text,
    primaries,
)
from tests.locks import WITHOUT_LOCKS, no_locks


def test_processes_that_publish_at_once_agree_on_the_first(tmp_path: Path):
    first = RunIdentity.new("demo", "run", None).publish(tmp_path)
    second = RunIdentity.new("demo", "run", None).publish(tmp_path)

    assert second == first == RunIdentity.load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b'{"format":9,"log_id":"a","project":"p","run_id":"r","entity":null,"created":1}'],
)
def test_a_directory_without_a_readable_identity_is_not_a_run(tmp_path: Path, text: bytes):
    (tmp_path / "run.json").write_bytes(text)

    with pytest.raises(NotARun):
        RunIdentity.load(tmp_path)


def test_each_primary_takes_the_next_number(tmp_path: Path):
    (tmp_path / "main-0007").mkdir()

    claimed = [claim_primary(tmp_path).writer, claim_primary(tmp_path).writer]

    assert claimed == ["main-0008", "main-0009"]
    assert primaries(tmp_path) == ["main-0007", "main-0008", "main-0009"]


def test_a_piece_is_open_while_its_writer_lives_and_closed_when_it_is_gone(tmp_path: Path):
    piece = claim_primary(tmp_path)
    assert not closed(tmp_path, piece.writer)

    piece.release()

    assert closed(tmp_path, piece.writer)


def test_a_piece_is_closed_when_a_later_one_exists(tmp_path: Path):
    first = claim_primary(tmp_path)
    claim_primary(tmp_path)

    assert closed(tmp_path, first.writer)


def test_a_secondary_writer_is_not_superseded(tmp_path: Path):
    rank = claim_secondary(tmp_path, "rank3")
    claim_secondary(tmp_path, "rank3")

    assert not closed(tmp_path, rank.writer)


def test_a_free_lock_of_another_host_proves_nothing(tmp_path: Path):
    piece = claim_primary(tmp_path)
    piece.release()
    lock = piece.dir / LOCK_FILE
    text = {**orjson.loads(lock.read_bytes()), "host": "elsewhere", "boot_id": "another"}
    lock.write_bytes(orjson.dumps(text))

    assert not closed(tmp_path, piece.writer)


@pytest.mark.parametrize("other", ["host", "boot_id"])
def test_a_free_lock_of_this_host_or_this_kernel_proves_a_death(tmp_path: Path, other: str):
    piece = claim_primary(tmp_path)
    piece.release()
    lock = piece.dir / LOCK_FILE
    lock.write_bytes(orjson.dumps({**orjson.loads(lock.read_bytes()), other: "another"}))

    assert closed(tmp_path, piece.writer)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"7"])
def test_a_lock_without_a_text_proves_nothing(tmp_path: Path, text: bytes):
    piece = claim_primary(tmp_path)
    piece.release()
    (piece.dir / LOCK_FILE).write_bytes(text)

    assert not lock_owner_is_gone(piece.dir)


def test_a_child_that_let_the_lock_go_does_not_free_it(tmp_path: Path):  # faults: 59
    piece = claim_primary(tmp_path)

    child = os.fork()
    if child == 0:
        piece.abandon_after_fork()
        os._exit(0)
    os.waitpid(child, 0)

    assert not closed(tmp_path, piece.writer)


@pytest.mark.parametrize("fails", ["fsync", "fdatasync"])
def test_a_claim_whose_disk_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str):
    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, fails, refuse)

    for claim in (claim_primary, lambda directory: claim_secondary(directory, "fork")):
        with pytest.raises(OSError, match="Input/output"):
            claim(tmp_path)

    assert os.listdir(tmp_path) == []


def test_an_identity_that_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)

    with pytest.raises(OSError, match="space"):
        RunIdentity.new("p", "r", None).publish(tmp_path / "run")

    assert os.listdir(tmp_path / "run") == []


def test_a_claim_that_fails_leaves_no_directory_and_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # faults: 63
    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", refuse)
    before = os.listdir("/proc/self/fd")

    for _ in range(5):
        with pytest.raises(OSError, match="Input/output"):
            claim_secondary(tmp_path, "fork")

    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("says", WITHOUT_LOCKS)
def test_without_locks_a_piece_is_written_and_nothing_is_certain_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: int
):
    with monkeypatch.context() as without:
        without.setattr(fcntl, "flock", no_locks(says))
        piece = claim_primary(tmp_path)
        piece.heartbeat(7)
        assert not closed(tmp_path, piece.writer)
        with pytest.raises(OSError, match="no locks"):
            hold(tmp_path / "seal.lock")

    # On another day they work, and the lock of a writer that lives is free.
    assert not closed(tmp_path, piece.writer)
    assert lock_text(piece.dir)["heartbeat"] == 7


def test_the_text_of_a_lock_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # faults: 57
    synced: list[str] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    claim_primary(tmp_path).release()

    assert synced == [".lock.new"]


@pytest.mark.parametrize("heartbeat", [None, "soon", 1.5, True])
def test_a_heartbeat_that_is_no_time_counts_as_none(tmp_path: Path, heartbeat: object):
    piece = claim_primary(tmp_path)
    text = {"host": "elsewhere", "boot_id": "other", "pid": 1, "heartbeat": heartbeat}
    (piece.dir / LOCK_FILE).write_bytes(orjson.dumps(text))

    assert lock_text(piece.dir) == text | {"heartbeat": 0}
    piece.release()
