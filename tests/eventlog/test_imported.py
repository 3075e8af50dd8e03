"""The log of a run that was recorded elsewhere: written again and again, it has each record once."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from eventlog import imported
from eventlog.imported import ImportedPiece
from eventlog.piece import RunIdentity, closed
from eventlog.reader import StreamReader, read
from eventlog.record import Record
from eventlog.seal import clean, seal

WRITER, TOKEN = "main-0001", "0a1b2c3d"


@pytest.fixture
def identity() -> RunIdentity:
    return RunIdentity("a" * 32, "demo", "run", None, 1)


def opened(root: Path, identity: RunIdentity, token: str = TOKEN) -> ImportedPiece:
    identity.publish(identity.directory(root))
    piece = ImportedPiece.open(identity.directory(root), identity, WRITER)
    assert piece is not None
    piece.begin(token)
    return piece


def imported_once(root: Path, identity: RunIdentity, rows: int, token: str = TOKEN) -> None:
    piece = opened(root, identity, token)
    for i in range(rows):
        piece.append("events", "metrics", {"i": i}, 1000 + i, step=i, commit=True)
    piece.close()


def records(root: Path, identity: RunIdentity, stream: str = "events") -> list[Record]:
    return list(read(identity.directory(root), stream, WRITER))


def numbers(root: Path, identity: RunIdentity) -> list[Any]:
    return [record.data["i"] for record in records(root, identity)]


def test_what_is_written_comes_back_with_its_own_times(tmp_path: Path, identity: RunIdentity):
    imported_once(tmp_path, identity, 2)

    assert records(tmp_path, identity) == [
        Record(0, 1000, "metrics", {"i": 0}, 0, True),
        Record(1, 1001, "metrics", {"i": 1}, 1, True),
    ]


def test_the_same_again_adds_nothing(tmp_path: Path, identity: RunIdentity):
    imported_once(tmp_path, identity, 3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("events-*")}

    imported_once(tmp_path, identity, 3)

    assert {path: path.read_bytes() for path in tmp_path.rglob("events-*")} == before


def test_more_of_the_same_adds_the_rest(tmp_path: Path, identity: RunIdentity):
    for rows in (2, 2, 5, 9):
        imported_once(tmp_path, identity, rows)

    assert numbers(tmp_path, identity) == list(range(9))
    assert StreamReader(identity.directory(tmp_path) / WRITER).read().damage == []


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_wherever_a_writer_was_killed_the_next_goes_on(tmp_path: Path, identity: RunIdentity, cut: int):
    imported_once(tmp_path, identity, 4)
    (segment,) = tmp_path.rglob("events-*")
    os.truncate(segment, min(cut, segment.stat().st_size))

    imported_once(tmp_path, identity, 6)

    assert numbers(tmp_path, identity) == list(range(6))


def test_another_token_is_another_log(tmp_path: Path, identity: RunIdentity):
    imported_once(tmp_path, identity, 9)

    imported_once(tmp_path, identity, 2, token="ffffffff")

    assert numbers(tmp_path, identity) == [0, 1]


@pytest.mark.parametrize("survivor", ["events", "console"])
def test_whoever_replaces_a_log_may_be_killed_on_the_way(
    tmp_path: Path, identity: RunIdentity, survivor: str
):
    piece = opened(tmp_path, identity)
    for stream in ("events", "console"):
        piece.append(stream, "metrics", {"i": 99}, 1)
    piece.close()
    # What was there when the next one was killed: the new log is begun, and one segment of the old is left.
    old = {path: path.read_bytes() for path in tmp_path.rglob(f"{survivor}-*")}
    imported_once(tmp_path, identity, 1, token="ffffffff")
    for path, content in old.items():
        path.with_name(path.name.replace("0.jsonl", "0.7.jsonl")).write_bytes(content)

    imported_once(tmp_path, identity, 2, token="ffffffff")

    assert numbers(tmp_path, identity) == [0, 1]
    assert records(tmp_path, identity, "console") == []


def test_a_segment_whose_header_is_lost_stays_part_of_its_log(tmp_path: Path, identity: RunIdentity):
    piece = opened(tmp_path, identity)
    for stream in ("events", "console"):
        piece.append(stream, "metrics", {"i": 0}, 1)
    piece.close()
    (segment,) = tmp_path.rglob("events-*")
    content = bytearray(segment.read_bytes())
    content[12] ^= 1
    segment.write_bytes(content)

    imported_once(tmp_path, identity, 2)

    assert numbers(tmp_path, identity) == [0, 1]
    assert len(list(tmp_path.rglob("events-*"))) == 2


def test_a_file_is_added_behind_those_that_are_there(tmp_path: Path, identity: RunIdentity):
    for name in ("a", "b"):
        piece = opened(tmp_path, identity)
        piece.append("files", "file", {"path": name}, 1)
        piece.close()

    assert [record.data["path"] for record in records(tmp_path, identity, "files")] == ["a", "b"]


def test_it_lives_for_as_long_as_it_is_open(tmp_path: Path, identity: RunIdentity):
    run_dir = identity.directory(tmp_path)
    piece = opened(tmp_path, identity)
    piece.append("events", "metrics", {"i": 0}, 1)
    piece.flush()

    assert not closed(run_dir, WRITER)
    assert ImportedPiece.open(run_dir, identity, WRITER) is None

    piece.close()
    assert closed(run_dir, WRITER)


def test_segments_are_as_large_as_everywhere(
    tmp_path: Path, identity: RunIdentity, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(imported, "ROTATE_BYTES", 500)

    imported_once(tmp_path, identity, 20)

    assert numbers(tmp_path, identity) == list(range(20))
    sizes = [path.stat().st_size for path in tmp_path.rglob("events-*")]
    assert len(sizes) > 3
    assert max(sizes) <= 500


def test_nobody_else_may_read_it(tmp_path: Path, identity: RunIdentity):
    imported_once(tmp_path, identity, 1)

    paths = [path for path in tmp_path.rglob("*") if path.is_relative_to(identity.directory(tmp_path))]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert set(modes.values()) == {0o600, 0o700}, modes


def sealed_and_gone(root: Path, identity: RunIdentity) -> None:
    assert seal(identity.directory(root)).sealed
    assert {verdict.kept_because for verdict in clean(identity.directory(root))} == {None}


def test_the_same_again_adds_nothing_to_what_is_sealed(tmp_path: Path, identity: RunIdentity):
    imported_once(tmp_path, identity, 3)
    sealed_and_gone(tmp_path, identity)

    imported_once(tmp_path, identity, 5)

    assert numbers(tmp_path, identity) == [0, 1, 2, 3, 4]
    assert [path.name for path in tmp_path.rglob("*.jsonl")] == ["events-000000000003.jsonl"]


def test_another_token_throws_away_what_is_sealed_as_well(tmp_path: Path, identity: RunIdentity):
    imported_once(tmp_path, identity, 3)
    sealed_and_gone(tmp_path, identity)

    imported_once(tmp_path, identity, 2, token="ffffffff")

    assert numbers(tmp_path, identity) == [0, 1]
    assert not list(tmp_path.rglob("*.parquet"))
    assert not list(tmp_path.rglob("events-*-*.json"))
