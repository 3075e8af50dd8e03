"""`eventlog.parquet`: a sealed segment is what was sealed, or it says that it is not."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventlog import parquet
from eventlog.errors import PyarrowMissing
from eventlog.parquet import Brief, Unreadable, Writing, is_intact, records_in
from eventlog.record import Record, decode, encode
from eventlog.segment import Header, Sealed

HEADER = Header("a" * 32, "main-0001", "0123abcd", "events", 10, 5)


def some_records(first_seq: int, count: int) -> list[Record]:
    return [
        decode(encode(seq, 1_000 * seq, "metrics", {"loss": seq / 7, "n": seq}, seq, True)[:-1])
        for seq in range(first_seq, first_seq + count)
    ]


def sealed_in(directory: Path, groups: int = 3, each: int = 20) -> Sealed:
    """Write row groups of `each` records, from seq 10 on."""
    writing = Writing(directory, HEADER)
    for group in range(groups):
        writing.add(some_records(10 + group * each, each))
    sealed = writing.commit()
    writing.close()
    return sealed


def test_what_was_written_is_read_back_group_by_group(tmp_path: Path):
    sealed = sealed_in(tmp_path)

    assert sealed == Sealed("events", 10, 70)
    assert [len(group) for group in records_in(tmp_path, sealed)] == [20, 20, 20]
    assert [r for group in records_in(tmp_path, sealed) for r in group] == some_records(10, 60)


def test_reading_begins_where_it_is_asked_to(tmp_path: Path):
    sealed = sealed_in(tmp_path)

    assert [r.seq for group in records_in(tmp_path, sealed, seq=45) for r in group] == list(range(45, 70))


def test_the_newest_group_may_come_first(tmp_path: Path):
    sealed = sealed_in(tmp_path)

    assert [group[0].seq for group in records_in(tmp_path, sealed, newest_first=True)] == [50, 30, 10]


def test_the_brief_says_what_is_in_it(tmp_path: Path):
    sealed = sealed_in(tmp_path)

    brief = Brief.load(tmp_path, sealed)

    assert (brief.header, brief.sealed, brief.records) == (HEADER, sealed, 60)
    assert [brief.first, brief.last] == [some_records(10, 1)[0], some_records(69, 1)[0]]
    assert brief.size == os.path.getsize(tmp_path / sealed.name)
    assert (brief.metrics["loss"].n, brief.metrics["loss"].max, brief.metrics["n"].last_step) == (
        60,
        69 / 7,
        69,
    )


def test_a_brief_stays_short_whatever_its_records_hold(tmp_path: Path):
    text = "x" * (parquet._BRIEF_DATA_MAX_BYTES + 1)
    records = [decode(encode(seq, seq, "config", {"prompt": text})[:-1]) for seq in (10, 11)]
    writing = Writing(tmp_path, HEADER)
    writing.add(records)
    sealed = writing.commit()
    writing.close()

    brief = Brief.load(tmp_path, sealed)

    assert os.path.getsize(tmp_path / sealed.brief_name) < 2000
    assert [(each.seq, each.kind, each.data) for each in (brief.first, brief.last)] == [
        (10, "config", {}),
        (11, "config", {}),
    ]
    assert [r for group in records_in(tmp_path, sealed) for r in group] == records


def test_what_would_have_a_brief_that_is_not_read_back_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parquet, "BRIEF_MAX_BYTES", 500)
    writing = Writing(tmp_path, HEADER)
    writing.add(some_records(10, 5))

    with pytest.raises(Unreadable, match="2 metrics, too many"):
        writing.commit()

    writing.close()
    assert os.listdir(tmp_path) == []


def test_that_pyarrow_is_missing_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sealed = sealed_in(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    assert Brief.load(tmp_path, sealed).records == 60
    with pytest.raises(PyarrowMissing, match="pip install"):
        next(records_in(tmp_path, sealed))


def test_others_may_not_read_it_and_nothing_is_left_beside_it(tmp_path: Path):
    sealed = sealed_in(tmp_path)

    assert sorted(os.listdir(tmp_path)) == sorted([sealed.name, sealed.brief_name])
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_what_is_not_committed_leaves_nothing(tmp_path: Path):
    writing = Writing(tmp_path, HEADER)
    writing.add(some_records(10, 5))

    writing.close()

    assert os.listdir(tmp_path) == []


def test_what_does_not_come_back_as_it_was_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = parquet.table_of
    monkeypatch.setattr(parquet, "table_of", lambda records, stream: real(records[:-1], stream))
    writing = Writing(tmp_path, HEADER)
    writing.add(some_records(10, 5))

    with pytest.raises(Unreadable, match="not what was written"):
        writing.commit()

    writing.close()
    assert os.listdir(tmp_path) == []


def test_any_other_program_can_read_it_and_knows_whose_it_is(tmp_path: Path):
    sealed = sealed_in(tmp_path)

    table = pq.read_table(tmp_path / sealed.name)

    cells = zip(table.column("key").to_pylist(), table.column("int").to_pylist(), strict=True)
    assert [value for key, value in cells if key == "n"] == list(range(10, 70))
    assert Header.decode(table.schema.metadata[b"tidelog"]) == HEADER


# faults: 13 21
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_seen_or_changes_nothing(tmp_path: Path, data: st.DataObject):
    sealed = Sealed("events", 10, 70)
    if not (tmp_path / sealed.name).exists():
        sealed_in(tmp_path)
        (tmp_path / "whole").write_bytes((tmp_path / sealed.name).read_bytes())
    content = bytearray((tmp_path / "whole").read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1), label="bit")
    content[bit // 8] ^= 1 << bit % 8
    (tmp_path / sealed.name).write_bytes(content)

    try:
        found = [record for group in records_in(tmp_path, sealed) for record in group]
    except Unreadable:
        found = some_records(10, 60)

    # A group that is not found for its statistics is missing by its seqs, which a reader sees.
    assert set(map(repr, found)) <= set(map(repr, some_records(10, 60)))
    assert not is_intact(tmp_path, Brief.load(tmp_path, sealed))


# faults: 21
@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 10, b"no Parquet" * 100])
def test_what_is_no_parquet_is_unreadable(tmp_path: Path, content: bytes):
    sealed = sealed_in(tmp_path)
    (tmp_path / sealed.name).write_bytes(content)

    with pytest.raises(Unreadable, match=sealed.name):
        list(records_in(tmp_path, sealed))


def test_a_damaged_brief_is_unreadable(tmp_path: Path):
    sealed = sealed_in(tmp_path)
    path = tmp_path / sealed.brief_name
    path.write_bytes(path.read_bytes().replace(b'"records":60', b'"records":61'))

    with pytest.raises(Unreadable, match=sealed.brief_name):
        Brief.load(tmp_path, sealed)
