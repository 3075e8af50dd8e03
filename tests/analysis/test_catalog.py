"""Which records of which segment count, whatever state the files are in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.catalog import NO_RECORD, committed_seq, counted, damaged_lines, look
from eventlog.reader import read
from eventlog.record import encode
from eventlog.segment import Header
from tests.logs import TIME_US, handmade_run, resumed


def spans(root: Path) -> list[tuple[int, int | None]]:
    return [(segment.first, segment.last) for segment in look(root).segments]


def test_a_dead_segment_cut_at_any_byte_ends_with_its_last_committed_record(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    for x in range(3):
        run.log(step=x, x=x)
    run.die()

    found, committed = [], []
    for cut in range(run.segment.stat().st_size, -1, -1):
        run.cut(cut)
        found.append(spans(tmp_path))
        committed.append([(0, max((record.seq for record in read(run.piece.dir.parent)), default=NO_RECORD))])

    assert found == committed


def test_a_torn_tail_of_any_length_does_not_move_the_end_of_an_earlier_segment(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    torn = encode(1, TIME_US, "metrics", {"x": 1}, 0)[:-1]
    for byte in torn[:-1]:
        run.append(bytes([byte]))
    run.append(torn[-1:])
    run.new_segment()
    run.log(step=0, x=2)

    found = spans(tmp_path)

    assert found == [(0, 0), (1, None)]


def test_the_end_behind_a_line_of_many_reads_is_found(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=0, x="x" * 1_000_000)
    run.append(b"y" * 100_000)

    found = [committed_seq(str(run.segment)), committed_seq(str(tmp_path / "gone"))]

    assert found == [1, NO_RECORD]


def test_a_damaged_last_line_does_not_count(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=0, x=1)
    run.overwrite(run.offset_of(1) + 40, b"9")

    found = [committed_seq(str(run.segment))]

    assert found == [0]


@given(st.lists(st.integers(-1, 20), min_size=1, max_size=6), st.booleans())
def test_each_seq_counts_in_the_first_segment_that_has_it(lasts: list[int], is_closed: bool) -> None:
    ends = [(str(n), last) for n, last in enumerate(lasts)]

    rows = counted(ends, is_closed)

    counts = [seq for _, first, last in rows if last is not None for seq in range(first, last + 1)]
    known = lasts if is_closed else lasts[:-1]
    assert counts == list(range(max(known, default=-1) + 1))
    assert (rows[-1][2] is None) is not is_closed


@pytest.mark.parametrize("how", ["exit", "next piece", "lock"])
def test_a_piece_that_cannot_grow_has_a_known_end(tmp_path: Path, how: str) -> None:
    run = handmade_run(tmp_path)
    if how == "exit":
        run.log("exit", exitcode=0)
    elif how == "lock":
        run.die()
    else:
        resumed(run.identity, tmp_path)

    found = look(tmp_path)

    assert found.pieces[0].is_closed
    assert found.segments[0].last == run.seq - 1


def test_a_piece_that_lives_has_no_known_end(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)

    found = look(tmp_path)

    assert not found.pieces[0].is_closed
    assert [(segment.file, segment.last) for segment in found.segments] == [(str(run.segment), None)]


def test_a_damaged_header_costs_nothing(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.overwrite(40, b"?")
    run.die()

    found = look(tmp_path)

    assert spans(tmp_path) == [(0, 0)]
    assert found.notices == []


def test_a_run_without_a_readable_identity_is_passed_over_with_a_word(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    (run.piece.dir.parent / "run.json").write_text("{")

    found = look(tmp_path)

    assert found.runs == []
    assert len(found.notices) == 1
    assert "cannot be read" in found.notices[0]


def test_damaged_lines_are_known_by_their_checksum(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=0, x=1)
    damaged_crc = run.lines[1][8:16].decode()
    run.overwrite(run.offset_of(1) + 40, b"9")
    run.append(b"torn")

    found = list(damaged_lines(str(run.segment)))

    assert found == [damaged_crc]


def test_a_segment_with_only_a_header_has_no_records(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    empty = run.new_segment(first_seq=1)
    run.die()

    found = spans(tmp_path)

    assert found == [(0, 0), (1, NO_RECORD)]
    assert Header.decode(empty.read_bytes()[:-1]).first_seq == 1
