"""`eventlog.segment`: which file holds which records, by name alone."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eventlog.record import BadLine, frame
from eventlog.segment import (
    FORMAT,
    STREAMS,
    Header,
    Segment,
    UnknownFormat,
    directory_name,
    is_writer_name,
    primary_name,
    primary_number,
    segments_in,
)

segments = st.builds(
    Segment, st.sampled_from(STREAMS), st.integers(0, 10**12 - 1), attempt=st.integers(0, 1000)
)


@given(segment=segments)
def test_a_segments_name_says_what_it_is(segment):
    assert Segment.parse(segment.name) == segment


@given(found=st.lists(segments, unique=True), stream=st.sampled_from(STREAMS))
def test_segments_are_read_in_the_order_of_their_first_seq_and_then_of_the_attempts(found, stream):
    ordered = segments_in([segment.name for segment in found], stream)

    assert ordered == sorted(
        (segment for segment in found if segment.stream == stream),
        key=lambda segment: (segment.first_seq, segment.attempt),
    )


@pytest.mark.parametrize(
    "name",
    [
        "lock",
        "run.json",
        "events-0.jsonl",
        "events-000000000000.parquet",
        "events-000000000000.jsonl.tmp",
        "../events-000000000000.jsonl",
        "metrics-000000000000.jsonl",
        "",
    ],
)
def test_a_file_of_another_name_is_left_alone(name):
    assert Segment.parse(name) is None


@given(
    header=st.builds(
        Header,
        st.text(st.characters(codec="utf-8")),
        st.text(st.characters(codec="utf-8")),
        st.text(st.characters(codec="utf-8")),
        st.sampled_from(STREAMS),
        st.integers(0, 2**63 - 1),
        st.integers(0, 2**63 - 1),
    )
)
def test_a_header_comes_back_as_it_was_written(header):
    assert Header.decode(header.encode()[:-1]) == header


def test_a_segment_of_a_later_format_is_refused_with_the_way_out():
    # faults: 18
    line = frame(b'"format":%d}' % (FORMAT + 1))[:-1]

    with pytest.raises(UnknownFormat, match="Update tidelog"):
        Header.decode(line)


def test_a_record_is_not_taken_for_a_header():
    with pytest.raises(BadLine):
        Header.decode(frame(b'"seq":0,"time":1,"kind":"start","data":{}}')[:-1])


@given(raw=st.text(min_size=1))
@example("../../x")
@example("a/b")
@example(".")
@example("..")
@example("x" * 300)
@example("nul\x00newline\n")
@example(".hidden")
@example("é" * 200)
@example("\ud800")
def test_no_id_leaves_its_directory_or_hides(raw):
    # faults: 93
    name = directory_name(raw)

    assert os.path.basename(name) == name
    assert name not in ("", ".", "..")
    assert not name.startswith(".")
    assert len(name.encode()) <= 128
    assert name.isascii()
    assert name.isprintable()


@given(ids=st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True))
@example(ids=["a/b", "a_b"])
@example(ids=["a/b", "a?b"])
@example(ids=["x" * 300, "x" * 301])
@example(ids=[".a", "_a"])
def test_different_ids_have_different_directories(ids):
    # faults: 93
    assert directory_name(ids[0]) != directory_name(ids[1])


@given(number=st.integers(1, 10**7))
def test_a_primary_pieces_name_says_its_number(number):
    assert primary_number(primary_name(number)) == number
    assert is_writer_name(primary_name(number))


@pytest.mark.parametrize("name", ["rank3-9c1d4e07", "fork-00000000", "second-ffffffff"])
def test_a_secondary_is_a_writer_and_not_a_primary(name):
    assert is_writer_name(name)
    assert primary_number(name) is None


@pytest.mark.parametrize(
    "name", ["sync", "files", "main-1", "rank3", "rank3-9C1D4E07", "main-0001.tmp", ".main-0001"]
)
def test_another_directory_is_no_writers(name):
    assert not is_writer_name(name)
