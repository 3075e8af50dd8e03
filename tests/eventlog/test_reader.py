"""The reader, over every damage a segment can have."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog import reader as reader_module
from eventlog.reader import StreamReader, backwards, end_of, find_runs, read
from eventlog.record import BadLine, decode, encode
from tests.logs import HandmadePiece, handmade_run


@pytest.fixture
def piece(tmp_path: Path) -> HandmadePiece:
    """Seqs 0 (start) to 5."""
    made = handmade_run(tmp_path)
    for i in range(1, 6):
        made.log(x=i)
    return made


def seqs_of(piece: HandmadePiece, **options: int) -> list[int]:
    return [record.seq for record in StreamReader(piece.piece.dir, **options).read().records]


def test_all_records_come_back_in_order(piece: HandmadePiece):
    assert seqs_of(piece) == [0, 1, 2, 3, 4, 5]


def test_reading_begins_at_a_seq(piece: HandmadePiece):
    assert seqs_of(piece, seq=4) == [4, 5]


def test_a_cut_at_every_byte_of_the_last_three_records_leaves_the_whole_ones(piece: HandmadePiece):
    # faults: 6
    whole = piece.segment.read_bytes()
    for size in range(piece.offset_of(3), len(whole)):
        piece.segment.write_bytes(whole[:size])
        committed = whole[:size].count(b"\n") - 1  # less the header

        assert seqs_of(piece) == list(range(committed))


def test_a_record_written_in_two_halves_is_read_once_and_whole(piece: HandmadePiece):  # faults: 1 2 4
    reader = StreamReader(piece.piece.dir)
    reader.read()
    line = encode(6, 0, "metrics", {"x": 6})

    piece.append(line[:20])
    in_the_middle = reader.read()
    piece.append(line[20:])

    assert (in_the_middle.records, in_the_middle.damage) == ([], [])
    assert [record.data for record in reader.read().records] == [{"x": 6}]


def test_a_torn_tail_before_a_later_segment_is_left_out(piece: HandmadePiece):  # faults: 5 12
    piece.append(encode(6, 0, "metrics", {"x": "torn"})[:-1])
    piece.new_segment()
    piece.log(x="again")

    chunk = StreamReader(piece.piece.dir).read()

    assert chunk.records[-1].data == {"x": "again"}
    assert [record.seq for record in chunk.records] == list(range(7))
    assert chunk.damage == []


def test_a_flipped_digit_costs_that_record_and_is_reported(piece: HandmadePiece):  # faults: 13 14
    offset = piece.offset_of(3)
    piece.overwrite(offset + piece.lines[3].index(b'"x":3') + 4, b"8")

    chunk = StreamReader(piece.piece.dir).read()

    assert [record.seq for record in chunk.records] == [0, 1, 2, 4, 5]
    (damage,) = chunk.damage
    assert (damage.first_seq, damage.last_seq, damage.offset) == (3, 3, offset)
    assert "checksum" in damage.cause


def test_several_damaged_records_are_one_range(piece: HandmadePiece):  # faults: 15
    begin, end = piece.offset_of(2), piece.offset_of(5)
    piece.overwrite(begin, b"\0" * (end - begin - 1) + b"\n")

    chunk = StreamReader(piece.piece.dir).read()

    assert [record.seq for record in chunk.records] == [0, 1, 5]
    assert [(damage.first_seq, damage.last_seq) for damage in chunk.damage] == [(2, 4)]


@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_flipped_byte_costs_at_most_two_records(
    tmp_path_factory: pytest.TempPathFactory, where: float, flip: int
):
    made = handmade_run(tmp_path_factory.mktemp("log"))
    for i in range(1, 6):
        made.log(x=i)
    data = bytearray(made.segment.read_bytes())
    at = int(where * len(data))
    data[at] ^= flip
    made.segment.write_bytes(data)

    reader = StreamReader(made.piece.dir)
    chunk = reader.read()
    damage = chunk.damage + reader.end()

    # A newline that is gone glues two records together; nothing can cost more.
    seqs = [record.seq for record in chunk.records]
    assert len(seqs) >= 4
    assert all(record.data in ({"config": {}}, {"x": record.seq}) for record in chunk.records)
    assert damage or reader.torn_bytes() or len(seqs) == 6


def test_empty_lines_nul_bytes_and_garbage_cost_no_record(piece: HandmadePiece):  # faults: 17 19
    piece.append(b"\n\xef\xbb\xbf\n\0\0\0\n{}\n\xff\xfe\r\n")
    piece.log(x=6)

    chunk = StreamReader(piece.piece.dir).read()

    assert [record.seq for record in chunk.records] == list(range(7))
    assert [damage.lost for damage in chunk.damage] == [0]


def test_records_copied_into_a_new_segment_after_a_failed_fsync_come_once(piece: HandmadePiece):  # faults: 64
    copied = piece.lines[4:6]
    piece.new_segment(first_seq=4)
    piece.append(b"".join(copied))
    piece.new_segment(first_seq=6)
    piece.log(x=6)

    assert seqs_of(piece) == list(range(7))
    assert seqs_of(piece, seq=5) == [5, 6]


def test_a_deleted_segment_is_reported_once_with_its_range(piece: HandmadePiece):  # faults: 31
    first = piece.segment
    piece.new_segment()
    piece.log(x=6)
    piece.log(x=7)
    os.unlink(first)

    chunk = StreamReader(piece.piece.dir).read()

    assert [record.seq for record in chunk.records] == [6, 7]
    assert [(damage.first_seq, damage.last_seq) for damage in chunk.damage] == [(0, 5)]


def test_a_reader_that_waits_at_gaps_says_what_is_missing_and_finds_it_when_it_comes(piece: HandmadePiece):
    first = piece.segment
    whole = first.read_bytes()
    piece.new_segment()
    piece.log(x=6)
    first.write_bytes(whole[: whole.index(piece.lines[4]) + 3])
    reader = StreamReader(piece.piece.dir)
    reader.waits_at_gaps = True

    before, again = reader.read(), reader.read()
    first.write_bytes(whole)
    after = reader.read()

    assert [record.seq for record in before.records] == [0, 1, 2, 3]
    assert before.gap == again.gap == (4, 5, whole.index(piece.lines[4]) + 3)
    assert "events 4 to 5 of main-0001 are missing" in (before.blocked or "")
    assert ([record.seq for record in after.records], after.gap, after.damage) == ([4, 5, 6], None, [])


def test_a_reader_that_waits_at_gaps_no_more_passes_over_what_is_missing(piece: HandmadePiece):
    piece.overwrite(piece.offset_of(2) + 20, b"#")
    reader = StreamReader(piece.piece.dir)
    reader.waits_at_gaps = True
    waiting = reader.read()

    reader.waits_at_gaps = False
    on = reader.read()

    assert [record.seq for record in waiting.records + on.records] == [0, 1, 3, 4, 5]
    assert (waiting.damage, [(d.first_seq, d.last_seq) for d in on.damage]) == ([], [(2, 2)])


_at = st.floats(0, 1)
_as_it_comes = st.one_of(
    st.just("whole"),
    st.just("absent"),
    st.tuples(st.just("cut"), _at, _at),
    st.tuples(st.just("hole"), _at, _at),
)


def _come_so_far(whole: bytes, how: str | tuple[str, float, float]) -> bytes | None:
    if how in ("whole", "absent"):
        return whole if how == "whole" else None
    kind, *places = how
    begin, end = sorted(int(place * len(whole)) for place in places)
    return whole[:begin] if kind == "cut" else whole[:begin] + bytes(end - begin) + whole[end:]


@given(
    looks=st.lists(
        st.tuples(st.lists(_as_it_comes, min_size=4, max_size=4), st.booleans(), st.integers(1, 2000)),
        max_size=8,
    ),
    is_new_at_last=st.booleans(),
)
def test_however_files_come_while_it_looks_a_reader_that_waits_at_gaps_finds_each_record_once(
    looks: list[tuple[list[Any], bool, int]], is_new_at_last: bool
):
    with tempfile.TemporaryDirectory() as root:
        piece = handmade_run(Path(root))
        wholes: dict[Path, bytes] = {}
        for x in range(1, 17):
            if x % 4 == 0 and x < 16:
                piece.new_segment()
            piece.log(x="long" * 3 * (x % 5))
            wholes[piece.segment] = piece.segment.read_bytes()
        reader = StreamReader(piece.piece.dir)
        seqs, lost = [], 0
        # What is wrong in the very last line is seen when another follows it.
        last, whole_so_far = piece.segment, dict(wholes)
        piece.log(x="it goes on")
        wholes[last] = last.read_bytes()
        at_last = [(["whole"] * 4, is_new_at_last, 1), (["whole"] * 4, False, 1)]
        for number, (hows, is_new, limit_bytes) in enumerate([*looks, *at_last]):
            so_far = whole_so_far if number < len(looks) else wholes
            for (path, whole), how in zip(so_far.items(), hows, strict=True):
                data = _come_so_far(whole, how)
                path.unlink(missing_ok=True) if data is None else path.write_bytes(data)
            if is_new:
                reader = StreamReader(piece.piece.dir, seq=reader.next_seq, hint=reader.place)
            reader.waits_at_gaps = True
            more = True
            while more:
                chunk = reader.read(limit_bytes)
                seqs += [record.seq for record in chunk.records]
                lost += sum(damage.lost for damage in chunk.damage)
                more = chunk.more

        assert (seqs, lost) == (list(range(18)), 0)


def test_a_segment_of_an_unknown_format_is_refused_and_the_others_are_read(
    piece: HandmadePiece,
):  # faults: 18
    from eventlog.record import frame

    piece.new_segment()
    piece.segment.write_bytes(frame(b'"format":9,"first_seq":6}') + encode(6, 0, "metrics", {"x": "?"}))
    piece.seq = 7
    piece.new_segment()
    piece.log(x=7)

    chunk = StreamReader(piece.piece.dir).read()

    assert [record.seq for record in chunk.records] == [0, 1, 2, 3, 4, 5, 7]
    assert "format 9" in chunk.damage[0].cause


def test_a_file_that_became_shorter_is_reported_and_nothing_is_read_twice(
    piece: HandmadePiece,
):  # faults: 25 33
    reader = StreamReader(piece.piece.dir)
    reader.read()
    piece.cut(piece.offset_of(4))
    shorter = reader.read()
    piece.new_segment()
    piece.log(x=6)

    chunk = reader.read()

    assert shorter.records == []
    assert [record.seq for record in chunk.records] == [6]
    assert "shorter" in chunk.damage[0].cause


def test_a_symlinked_segment_is_not_followed(piece: HandmadePiece, tmp_path: Path):  # faults: 35
    elsewhere = tmp_path / "elsewhere.jsonl"
    piece.segment.rename(elsewhere)
    piece.segment.symlink_to(elsewhere)

    reader = StreamReader(piece.piece.dir)

    assert reader.read().records == []
    assert "cannot be opened" in reader.end()[0].cause


@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
def test_small_reads_find_what_one_large_read_finds(piece: HandmadePiece, limit: int):  # faults: 9 10
    reader = StreamReader(piece.piece.dir)
    seqs: list[int] = []
    more = True
    while more:
        chunk = reader.read(limit)
        seqs += [record.seq for record in chunk.records]
        more = chunk.more

    assert seqs == [0, 1, 2, 3, 4, 5]


def test_a_reader_goes_on_from_a_remembered_place(piece: HandmadePiece):
    first = StreamReader(piece.piece.dir)
    first.read()
    piece.log(x=6)

    again = StreamReader(piece.piece.dir, seq=first.next_seq, hint=first.place)

    assert [record.seq for record in again.read().records] == [6]


@pytest.mark.parametrize(
    "place", [("events-000000000000.jsonl", 5), ("events-000000000099.jsonl", 0), ("x", 0)]
)
def test_a_hint_that_does_not_hold_is_no_harm(piece: HandmadePiece, place: tuple[str, int]):
    reader = StreamReader(piece.piece.dir, seq=3, hint=place)

    assert [record.seq for record in reader.read().records] == [3, 4, 5]


def test_growth_is_seen_without_reading(piece: HandmadePiece):
    reader = StreamReader(piece.piece.dir)
    reader.read()
    assert not reader.has_grown()

    piece.log(x=6)

    assert reader.has_grown()


def test_a_line_under_way_is_no_growth_until_more_of_it_is_there(piece: HandmadePiece):
    piece.append(b'{"crc":"')
    reader = StreamReader(piece.piece.dir)
    reader.read()
    assert not reader.has_grown()

    piece.append(b"62ab")

    assert reader.has_grown()


def test_the_end_is_found_without_reading_the_whole(piece: HandmadePiece):
    piece.append(b'{"crc":"torn')

    assert end_of(piece.piece.dir) == (6, 1_763_712_000_005_000)


def test_growth_that_is_not_read_yet_is_seen_after_a_segment(piece: HandmadePiece):
    reader = StreamReader(piece.piece.dir)
    reader.read()
    piece.new_segment()

    assert reader.has_grown()


@given(
    parts=st.lists(
        st.one_of(st.integers(0, 120), st.binary(max_size=120), st.integers(1, 400).map(bytes)), max_size=12
    )
)
def test_from_the_end_on_it_finds_what_it_finds_from_the_beginning(parts: list[int | bytes]):
    # faults: 19
    content = b"".join(
        encode(seq, seq, "metrics", {"x": "y" * part}) if isinstance(part, int) else part
        for seq, part in enumerate(parts)
    )
    committed = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]
    expected = []
    for line in committed:
        with suppress(BadLine):
            expected.append(decode(line))

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile() as file:
        patch.setattr(reader_module, "TAIL_BYTES", 7)
        patch.setattr(reader_module, "CHUNK_BYTES", 50)
        patch.setattr(reader_module, "LINE_MAX_BYTES", 250)
        file.write(content)
        file.flush()
        found = list(backwards(file.fileno()))

    assert found == expected[::-1]


@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_the_end_is_found_before_more_garbage_than_a_line_may_have(
    piece: HandmadePiece, monkeypatch: pytest.MonkeyPatch, newline: bytes
):
    # faults: 19
    monkeypatch.setattr(reader_module, "LINE_MAX_BYTES", 500)
    piece.append(bytes(3_000_000) + newline)

    assert end_of(piece.piece.dir)[0] == 6


def test_a_segment_that_begins_with_a_record_has_lost_its_header(piece: HandmadePiece):
    content = piece.segment.read_bytes()
    piece.segment.write_bytes(content[content.index(b"\n") + 1 :])

    chunk = StreamReader(piece.piece.dir).read()

    assert [record.seq for record in chunk.records] == list(range(6))
    assert [(found.offset, found.lost) for found in chunk.damage] == [(0, 0)]
    assert "the header is missing" in chunk.damage[0].cause


def test_foreign_files_are_left_alone(piece: HandmadePiece, tmp_path: Path):
    (piece.piece.dir / "notes.txt").write_text("mine")
    (piece.piece.dir / "events-1.jsonl").write_text("not a segment's name")
    (tmp_path / "demo" / "not-a-run").mkdir()
    (tmp_path / "stray.txt").write_text("")

    assert seqs_of(piece) == list(range(6))
    assert [path.name for path in find_runs(tmp_path)] == ["run"]


def test_a_run_is_read_piece_after_piece(piece: HandmadePiece, tmp_path: Path):
    from tests.logs import resumed

    later = resumed(piece.identity, tmp_path)
    later.log(x="later")

    records = list(read(tmp_path / "demo" / "run"))

    assert [record.seq for record in records] == [0, 1, 2, 3, 4, 5, 0, 1]
