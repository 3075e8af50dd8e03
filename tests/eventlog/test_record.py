"""`eventlog.record`: whatever is logged comes back, and whatever was changed is seen."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import uuid
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eventlog.record import LINE_MAX_BYTES, BadLine, Record, decode, encode, frame, json_of, unframe

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text()
    | st.text(st.characters())
    | st.text(st.characters(categories=("Cs",)), min_size=1)
    | st.binary()
    | st.sampled_from(
        [2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, -0.0, math.inf, "null", "NaN", "\x00\n"]
    )
    | st.floats(width=32).map(np.float32)
    | st.integers(-128, 127).map(np.int8)
)
keys = st.text() | st.integers(0, 3) | st.booleans() | st.sampled_from(["1", "True", "a"])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=3)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)
rows = st.dictionaries(keys, values, max_size=5)


def assert_equal_or_lossy(
    given_value: Any, back: Any, path: tuple[Any, ...], lossy: set[tuple[Any, ...]]
) -> None:
    """Fail unless `back` is `given_value`, or the record says that a text stands there."""
    if path in lossy:
        assert isinstance(back, str)
    elif isinstance(given_value, Mapping):
        named = {str(key).encode("utf-8", "replace").decode(): item for key, item in given_value.items()}
        assert list(back) == list(named)
        for name, item in named.items():
            assert_equal_or_lossy(item, back[name], (*path, name), lossy)
    elif isinstance(given_value, (list, tuple, set)):
        given_value = list(given_value)
        assert len(back) == len(given_value)
        for i, item in enumerate(given_value):
            assert_equal_or_lossy(item, back[i], (*path, i), lossy)
    elif isinstance(given_value, (float, np.floating)) and math.isnan(given_value):
        assert math.isnan(back)
    elif isinstance(given_value, (float, np.generic)):
        assert back == given_value
        assert math.copysign(1, back) == math.copysign(1, given_value)
    else:
        assert back == given_value
        assert type(back) is type(given_value)


@given(row=rows)
def test_whatever_is_logged_comes_back_equal_or_is_named_as_lossy(row):
    # faults: 91
    record = decode(encode(7, 1, "metrics", row, step=3, commit=True)[:-1])

    assert (record.seq, record.time_us, record.kind, record.step, record.commit) == (7, 1, "metrics", 3, True)
    assert_equal_or_lossy(row, record.data, (), set(record.lossy))


@given(row=rows)
def test_the_same_row_always_gives_the_same_line_of_one_line(row):
    line = encode(0, 1, "metrics", row)

    assert line == encode(0, 1, "metrics", row)
    assert line.index(b"\n") == len(line) - 1


@given(row=rows, data=st.data())
def test_a_line_cut_anywhere_is_not_taken_for_a_record(row, data):
    # faults: 6
    line = encode(0, 1, "metrics", row)[:-1]
    cut = data.draw(st.integers(0, len(line) - 1), label="bytes left")

    with pytest.raises(BadLine):
        decode(line[:cut])


@given(row=rows, data=st.data())
def test_a_flipped_bit_anywhere_is_seen(row, data):
    # faults: 13
    line = bytearray(encode(0, 1, "metrics", row)[:-1])
    bit = data.draw(st.integers(0, 8 * len(line) - 1), label="bit")

    line[bit // 8] ^= 1 << bit % 8

    with pytest.raises(BadLine):
        decode(bytes(line))


def test_every_single_flipped_bit_of_one_line_is_seen():
    # faults: 13
    line = encode(7, 1_763_712_000_123_456, "metrics", {"loss": 123.456}, step=7)[:-1]

    for bit in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadLine):
            decode(bytes(flipped))


def test_a_digit_that_changed_into_another_digit_is_seen():
    # faults: 13
    line = encode(7, 1, "metrics", {"loss": 123.456})[:-1]

    with pytest.raises(BadLine, match="checksum does not match"):
        decode(line.replace(b"123.456", b"133.456"))


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: float
    y: Any


@pytest.mark.parametrize(
    ("value", "back"),
    [
        (np.float64(0.5), 0.5),
        (np.float32(0.1), pytest.approx(0.1, abs=1e-8)),
        (np.float16(1.5), 1.5),
        (np.longdouble(1.5), 1.5),
        (np.int64(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.bool_(True), True),
        (np.array([1, 2]), [1, 2]),
        (np.array([[1.0, 2.0]]), [[1.0, 2.0]]),
        (np.arange(6).reshape(2, 3)[:, ::2], [[0, 2], [3, 5]]),
        (np.array([math.inf, 1.0]), [math.inf, 1.0]),
        (np.array(7), 7),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
        (torch.tensor(2.0, requires_grad=True), 2.0),
        (Colour.RED, "red"),
        (Point(1.0, "a"), {"x": 1.0, "y": "a"}),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (datetime(2026, 1, 2, tzinfo=timezone.utc), "2026-01-02T00:00:00+00:00"),
    ],
    ids=repr,
)
def test_a_value_of_science_is_stored_as_what_it_holds(value, back):
    # faults: 91
    record = decode(encode(0, 1, "metrics", {"x": value})[:-1])

    assert record.data == {"x": back}
    assert record.lossy == ()


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def test_a_value_that_cannot_be_stored_never_costs_its_row():
    # faults: 91
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: Any = "bottom"
    for _ in range(255):
        deep = [deep]

    row = {
        "cycle": cycle,
        "deep": deep,
        "bytes": b"\xff",
        "object": object(),
        "hostile": Hostile(),
        "function": len,
    }
    record = decode(encode(0, 1, "metrics", {**row, "loss": 0.5})[:-1])

    assert record.data["loss"] == 0.5
    assert {path[0] for path in record.lossy} == set(row)
    assert record.data["hostile"] == "<Hostile>"


def test_a_set_or_deque_is_a_list_and_bytes_are_their_text():
    row = {"set": {1}, "frozen": frozenset("a"), "deque": deque([1, {2}]), "range": range(3), "bytes": b"ab"}

    record = decode(encode(0, 1, "metrics", row)[:-1])

    assert record.data == {"set": [1], "frozen": ["a"], "deque": [1, [2]], "range": [0, 1, 2], "bytes": "ab"}
    assert record.lossy == (("bytes",),)


def test_a_range_without_end_is_a_text():
    record = decode(encode(0, 1, "metrics", {"all": range(10**12)})[:-1])

    assert (record.data["all"], record.lossy) == ("range(0, 1000000000000)", (("all",),))


def test_the_last_of_two_keys_that_become_equal_wins_and_is_marked():
    record = decode(encode(0, 1, "metrics", {1: "int", "1": "text"})[:-1])

    assert record.data == {"1": "text"}
    assert record.lossy == (("1",),)


def test_a_string_that_reads_nan_stays_a_string():
    record = decode(encode(0, 1, "metrics", {"loss": math.nan, "note": "NaN"})[:-1])

    assert math.isnan(record.data["loss"])
    assert record.data["note"] == "NaN"


def test_a_key_that_json_knows_is_kept_in_its_place():
    line = encode(0, 1, "metrics", {"b": 1, "a": None, "c": math.inf})

    assert list(decode(line[:-1]).data) == ["b", "a", "c"]


def test_a_line_over_the_limit_is_refused_before_it_is_parsed():
    # faults: 99
    with pytest.raises(BadLine, match="more than a record may have"):
        unframe(b'{"crc":"00000000",' + b"[" * LINE_MAX_BYTES)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" " * 40,
        b"\x00" * 40,
        b'{"seq":0}',
        b"\xef\xbb\xbf" + encode(0, 1, "exit", {})[:-1],
        encode(0, 1, "x", {}),
    ],
    ids=["empty", "blanks", "NULs", "no checksum", "BOM", "newline left on"],
)
def test_what_is_not_a_line_is_damage(line):
    # faults: 17, 19
    with pytest.raises(BadLine):
        decode(line)


def test_a_whole_line_that_is_no_record_is_damage_and_not_a_crash():
    for rest in (
        b'"seq":0}',
        b"1]",
        b'"seq":0,"time":1,"kind":"x","data":{},"as_text":[["float","gone"]]}',
        b'"seq":"0","time":1,"kind":"x","data":{}}',
        b'"seq":0,"time":null,"kind":"x","data":{}}',
        b'"seq":0,"time":1,"kind":"x","data":[1]}',
    ):
        with pytest.raises(BadLine):
            decode(frame(rest)[:-1])


def test_a_key_of_a_later_version_is_passed_over():
    line = frame(b'"seq":0,"time":1,"kind":"new","colour":"red","data":{"a":1}}')

    assert decode(line[:-1]) == Record(0, 1, "new", {"a": 1})


@given(
    row=st.dictionaries(
        st.text(st.characters(codec="utf-8")), st.floats() | st.integers(-(2**70), 2**70) | st.none()
    )
)
def test_json_for_wandb_is_what_python_reads_back(row):
    back = json.loads(json_of(row))

    assert_equal_or_lossy(row, back, (), set())
