"""Cursors on disk: two generations, of which one can always be read."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from eventlog.cursor import SYNC_DIR, Cursor, Sink, cursors, load, lock, save, unreadable

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


def test_one_process_at_a_time_holds_a_run_for_a_sink(tmp_path: Path):  # faults: 86
    held = lock(tmp_path, SINK)

    assert held is not None
    assert lock(tmp_path, SINK) is None
    os.close(held)


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
