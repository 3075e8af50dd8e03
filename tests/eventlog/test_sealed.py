"""`eventlog.sealed`: whatever was recorded comes out of the columns as it went in."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.record import Record, decode, encode, encode_data, frame_record
from eventlog.sealed import LONG_KINDS, Rollup, records_of, rollups_of, schema, table_of
from eventlog.trajectory import ToolCall, Trajectory, Turn, encode_trajectory
from tests.eventlog.test_record import rows, values

KINDS = [*LONG_KINDS, "start", "summary", "console", "of a later version"]
some_keys = st.sampled_from(["loss", "a", "b", ""]) | st.text(max_size=3)
logged = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.dictionaries(some_keys, values, max_size=4) | rows,
        st.none() | st.integers(0, 9),
        st.booleans(),
    ),
    min_size=1,
    max_size=80,
)


def recorded(things: list[tuple[str, Any, int | None, bool]], first_seq: int = 0) -> list[Record]:
    """Return records as a reader gives them."""
    return [
        decode(encode(first_seq + i, 1_000 + 7 * i, kind, data, step, commit)[:-1])
        for i, (kind, data, step, commit) in enumerate(things)
    ]


def in_full(record: Record) -> tuple[Any, ...]:
    """All that a record says: unlike `==`, with NaN equal to itself, and 1, 1.0 and True apart."""
    head = record.seq, record.time_us, record.kind, record.step, record.commit
    return *head, encode_data(record.data), set(record.lossy)


@given(things=logged)
def test_any_records_come_out_of_the_columns_as_they_went_in(things):
    # faults: 91
    records = recorded(things)

    back = records_of(table_of(records, "events"), "events")

    assert list(map(in_full, back)) == list(map(in_full, records))


def test_many_records_of_several_shapes_keep_the_order_of_their_keys():
    shapes = [{"a": 1.5, "b": 2}, {"b": 2.5, "a": 1}, {"a": "text"}, {"c": None, "a": math.nan, "b": [1]}]
    records = recorded([("metrics", shapes[i % 4], i, True) for i in range(400)], first_seq=50)

    back = records_of(table_of(records, "events"), "events")

    assert [list(record.data) for record in back] == [list(record.data) for record in records]
    assert list(map(in_full, back)) == list(map(in_full, records))


def test_records_with_thousands_of_keys_of_their_own():
    records = recorded([("metrics", {f"{i}/{k}": float(k) for k in range(3000)}, i, True) for i in range(3)])

    back = records_of(table_of(records, "events"), "events")

    assert list(map(in_full, back)) == list(map(in_full, records))


def test_the_values_of_a_metric_lie_together_in_order():
    records = recorded([("metrics", {"b": float(i), "a": i}, i, True) for i in range(50)])

    table = table_of(records, "events")

    assert table.column("key").to_pylist() == ["a"] * 50 + ["b"] * 50
    assert table.column("seq").to_pylist() == [*range(50), *range(50)]
    assert table.column("int").to_pylist()[:50] == list(range(50))
    assert table.column("value").to_pylist()[50:] == [float(i) for i in range(50)]
    # The first key of the record has its time, once.
    assert table.column("time").null_count == 50


def test_the_columns_are_the_same_whatever_was_logged():
    one = table_of(recorded([("metrics", {"loss": 0.5}, 0, True)]), "events")
    other = table_of(recorded([("alert", {"title": "x"}, None, False)]), "events")

    assert one.schema == other.schema == schema("events")


def trajectory(**fields: Any) -> Record:
    usual: dict[str, Any] = {
        "turns": [
            Turn("user", "2+2?"),
            Turn("assistant", "", [ToolCall("add", {"a": [2, None]}, "c1", "4", None, 0.5)], None, 1.5),
            Turn("tool", "4", tool_call_id="c1"),
        ],
        "reward": 1.0,
        "advantage": -0.5,
        "group": "g",
        "id": "t",
        "token_ids": [1, 2, 3],
        "mask": [0, 1, 1],
        "logprobs": [-0.25, -1.5],
        "metrics": {"m": 1.0},
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "started_us": 5,
        "duration_s": 2.5,
        "info": {"deep": {"er": [1]}},
    }
    encoded, as_text = encode_trajectory(Trajectory(**usual | fields))
    return decode(frame_record(3, 9, "trajectory", encoded, as_text, step=4)[:-1])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"turns": [], "token_ids": [], "mask": [], "logprobs": []},
        {"reward": None, "advantage": None, "group": None, "id": None, "duration_s": None, "info": {}},
        {"exception": "TimeoutError: judge"},
    ],
)
def test_a_usual_trajectory_has_columns(fields):
    record = trajectory(**fields)

    table = table_of([record], "trajectories")

    assert table.column("json").to_pylist() == [None]
    assert list(map(in_full, records_of(table, "trajectories"))) == [in_full(record)]


@pytest.mark.parametrize(
    "fields",
    [
        {"reward": 1},
        {"reward": math.nan},
        {"reward": "high"},
        {"mask": [0, 2, 300]},
        {"logprobs": [-1, -2.0]},
        {"token_ids": [1.5]},
        {"turns": [Turn("user", ["parts", {"of": 1}])]},  # type: ignore[arg-type]
        {"turns": [Turn("user", "x", [ToolCall("f", {}, duration_s=1)])]},
        {"info": {"x": 2**70, "y": math.inf}},
        {"group": 7},
        {"started_us": 1.5},
    ],
)
def test_a_strange_trajectory_comes_out_as_it_went_in(fields):
    record = trajectory(**fields)

    back = records_of(table_of([trajectory(), record], "trajectories"), "trajectories")

    assert list(map(in_full, back)) == list(map(in_full, [trajectory(), record]))


def test_a_rollup_says_what_a_metric_came_to():
    given_values = [3.0, math.nan, 1, 7.5, math.inf, -2.0, True, "text", 4]
    records = recorded([("metrics", {"m": value}, 10 + i, True) for i, value in enumerate(given_values)])

    rollup = rollups_of(table_of(records, "events"))["m"]

    assert rollup == Rollup(
        n=5, sum=13.5, min=-2.0, min_step=15, max=7.5, max_step=13, last=4.0, last_step=18, last_seq=8
    )


@given(
    parts=st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32) | st.just(math.nan), min_size=1, max_size=40),
        min_size=1,
        max_size=4,
    )
)
def test_rollups_of_parts_add_up_to_that_of_the_whole(parts):
    flat = [value for part in parts for value in part]
    records = recorded([("metrics", {"m": value}, i, True) for i, value in enumerate(flat)])
    whole = rollups_of(table_of(records, "events"))["m"]

    added, begin = Rollup(), 0
    for part in parts:
        added.add(rollups_of(table_of(records[begin : begin + len(part)], "events"))["m"])
        begin += len(part)

    assert added.sum == pytest.approx(whole.sum)
    added.sum = whole.sum
    assert repr(added) == repr(whole)
