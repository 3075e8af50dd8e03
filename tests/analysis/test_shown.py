"""The rows and the summary that `analysis` makes of a log are those that `syncd` sends, whatever was logged."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from analysis.shown import history, sampled, system, told
from eventlog.record import Record, json_of
from syncd.fold import EVENTS, HISTORY, Bases, Fold

KEYS = ["a", "b", "n", "eval/x", "eval/y", "global_step"]
numbers = st.one_of(
    st.integers(-3, 3), st.sampled_from([0.5, math.nan, math.inf, -math.inf, 2**53 + 1, 2**63, -(2**70)])
)
plain = st.one_of(numbers, st.none(), st.booleans(), st.sampled_from(["", "text"]), st.just([1, 2**64]))
values = st.one_of(plain, st.dictionaries(st.sampled_from(["x", "y.z"]), plain, max_size=2))
metrics = st.fixed_dictionaries(
    {
        "kind": st.just("metrics"),
        "data": st.dictionaries(st.sampled_from(KEYS), values, max_size=3),
        "step": st.one_of(st.none(), st.integers(0, 6)),
        "commit": st.booleans(),
    }
)
definitions = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "eval/*", "eval/x", "*"])},
    optional={
        "step_metric": st.sampled_from(["global_step", "b"]),
        "step_sync": st.booleans(),
        "overwrite": st.booleans(),
        "summary": st.lists(
            st.sampled_from(["min", "max", "mean", "last", "first", "none"]), max_size=2, unique=True
        ),
    },
)
paths = st.sampled_from([["a"], ["n"], ["n", "x"], ["best"]])
by_hand = st.fixed_dictionaries(
    {"set": st.lists(st.tuples(paths, plain), max_size=2), "delete": st.lists(paths, max_size=1)}
)
others = st.one_of(
    st.fixed_dictionaries({"kind": st.just("define_metric"), "data": definitions}),
    st.fixed_dictionaries({"kind": st.just("system"), "data": st.just({"cpu": 2**70})}),
    st.fixed_dictionaries({"kind": st.just("summary"), "data": by_hand}),
    st.just({"kind": "start", "data": {"config": {"lr": 1}, "name": None, "tags": ["t"]}}),
    st.just({"kind": "exit", "data": {"exitcode": 0}}),
    st.just({"kind": "config", "data": {"lr": 2, "e": {}, "n": math.nan}}),
)
# Forwards, mostly.
clocks = st.integers(-1_000_000, 3_000_000)
logs = st.lists(st.tuples(st.one_of(metrics, metrics, others), clocks), max_size=14)


def records(log: list[tuple[dict[str, Any], int]]) -> list[Record]:
    made, time_us = [Record(0, 1_000_000_000, "start", {"config": {}})], 1_000_000_000
    for seq, (what, later_us) in enumerate(log, start=1):
        time_us += later_us
        made.append(
            Record(seq, time_us, what["kind"], what["data"], what.get("step"), what.get("commit", False))
        )
    return made


def lines_of(fold: Fold, log: list[Record], file: str) -> list[Any]:
    lines = [line for record in log for line in fold.feed(record)] + fold.end_piece()
    return [json.loads(line.text) for line in lines if line.file == file]


def as_lines(rows: Any) -> str:
    return json.dumps([json.loads(json_of(row)) for row in rows], sort_keys=True)


@given(logs)
def test_the_rows_are_the_lines_that_syncd_sends(log: list[tuple[dict[str, Any], int]]) -> None:
    made = records(log)

    rows, samples = list(history([made])), list(system([made]))

    assert as_lines(rows) == json.dumps(lines_of(Fold(Bases()), made, HISTORY), sort_keys=True)
    assert as_lines(samples) == json.dumps(lines_of(Fold(Bases()), made, EVENTS), sort_keys=True)


@given(logs)
def test_the_summary_is_the_one_that_syncd_sends(log: list[tuple[dict[str, Any], int]]) -> None:
    made = records(log)
    fold = Fold(Bases())
    rows = lines_of(fold, made, HISTORY)

    found = told([made])

    assert as_lines([found.summary]) == as_lines([fold.summary()])
    assert found.last_step == (rows[-1]["_step"] if rows else -1)


def test_rows_that_wandbs_own_client_closed_stay_as_they_are() -> None:
    start = Record(0, 10, "start", {"config": {}, "rows": "complete"})
    rows = [
        Record(1, 20, "metrics", {"x": 1, "_step": 0, "_timestamp": 5.0, "_runtime": 2.5}, 0),
        Record(2, 30, "metrics", {"x": 2**64, "_step": 0, "_timestamp": 6.0, "_runtime": 3.5}, 0),
        Record(3, 40, "summary", {"set": [[["x"], 2]], "delete": []}),
    ]
    fold = Fold(Bases())

    found = list(history([[start, *rows]]))

    assert [row["_step"] for row in found] == [0, 1]
    assert as_lines(found) == json.dumps(lines_of(fold, [start, *rows], HISTORY), sort_keys=True)
    assert told([[start, *rows]]).summary == fold.summary() == {"x": 2}


def test_a_piece_whose_start_is_damaged_begins_a_time_of_its_own() -> None:
    first = [Record(0, 1_000_000, "start", {}), Record(1, 3_000_000, "metrics", {"x": 1}, 0)]
    second = [Record(1, 90_000_000, "metrics", {"x": 2}, 1), Record(2, 91_000_000, "exit", {"exitcode": 0})]

    assert [(row["_step"], row["_runtime"]) for row in history([first, second])] == [(0, 2.0), (1, 3.0)]
    assert told([first, second]).summary["_runtime"] == 3


def test_a_key_that_was_deleted_by_hand_is_gone_until_it_is_logged_again() -> None:
    log = [
        Record(0, 10, "start", {}),
        Record(1, 20, "metrics", {"a": 1, "b": 1, "n": {"x": 1}}, 0, commit=True),
        Record(2, 30, "summary", {"set": [], "delete": [["a"], ["b"], ["n"]]}),
        Record(3, 40, "metrics", {"b": 2}, 1, commit=True),
    ]
    fold = Fold(Bases())
    lines_of(fold, log, HISTORY)

    summary = told([log]).summary

    assert summary == fold.summary()
    assert {key for key in summary if not key.startswith("_")} == {"b"}


@given(st.integers(0, 30_000), st.integers(1, 700))
def test_a_sample_is_spread_over_all_rows(n: int, samples: int) -> None:
    found = [row["n"] for row in sampled(({"n": i} for i in range(n)), samples)]

    gaps = [after - before for before, after in pairwise(found)]
    assert len(found) == min(n, samples)
    assert found[:1] == [0][:n]
    assert samples == 1 or found[-1:] == ([n - 1] if n else [])
    assert all(0 < gap <= 2 * n / samples + 1 for gap in gaps)
