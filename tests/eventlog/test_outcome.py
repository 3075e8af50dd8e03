"""`eventlog.outcome`: the summary, in every order in which things can happen to it."""

from __future__ import annotations

import datetime
import enum
import gc
import math
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.outcome import SummaryState
from eventlog.record import Record, as_logged, encode_data
from syncd.fold import Bases, Fold

numbers = st.integers(-5, 5) | st.floats(-5, 5, width=16)
values = numbers | st.text("xy", max_size=2)
rows = st.fixed_dictionaries(
    {}, optional={"a": values, "val/a": values, "n": st.dictionaries(st.sampled_from("xy"), numbers)}
)
metrics = st.builds(
    lambda row, ahead, commit: ("metrics", row, ahead, commit),
    rows,
    st.integers(-1, 2),
    st.booleans(),
)
words = st.lists(st.sampled_from(["min", "max", "mean", "first", "last"]), unique=True, min_size=1)
definitions = st.builds(
    lambda name, summary, overwrite: (
        "define_metric",
        {"name": name, "summary": summary, **({"overwrite": True} if overwrite else {})},
    ),
    st.sampled_from(["a", "val/a", "n.x"]),
    words,
    st.booleans(),
)
plain_paths = st.sampled_from([["a"], ["val/a"], ["by hand"]])
set_by_hand = st.builds(
    lambda path, value: ("summary", {"set": [[path, value]], "delete": []}), plain_paths, numbers
)
deleted = st.builds(lambda path: ("summary", {"set": [], "delete": [path]}), st.sampled_from([["a"], ["n"]]))
logs = st.lists(metrics | metrics | definitions | set_by_hand | deleted, max_size=25)


def as_records(log: list[Any]) -> list[Record]:
    """The log as a writer would have it: steps are those of W&B's rule.

    What is changed by hand is so between two rows: while one is open, the server hears of it before that row.
    """
    records, step = [Record(0, 1_000_000, "start", {"config": {}})], 0
    for number, (kind, data, *rest) in enumerate(log):
        at = None
        commit = False
        if kind == "metrics":
            at = max(0, step + rest[0])
            commit = rest[1] or any(each[0] == "summary" for each in log[number:])
            step = max(step, at + commit)
        records.append(Record(len(records), 1_000_000, kind, data, at, commit))
    return [*records, Record(len(records), 1_000_000, "exit", {"exitcode": 0})]


def is_known(log: list[Any]) -> bool:
    """Whether the two agree on what the log means: what is deleted, or set by hand, is not asked for statistics."""
    defined = {data["name"].partition(".")[0] for kind, data, *_ in log if kind == "define_metric"}
    touched = {
        path[0]
        for kind, data, *_ in log
        if kind == "summary"
        for path in [*data["delete"], *(path for path, _ in data["set"])]
    }
    return not defined & touched


@given(logs.filter(is_known))
def test_the_script_sees_the_summary_that_the_server_gets(log: list[Any]):
    records = as_records(log)
    fold, state = Fold(Bases()), SummaryState(keeps_all=True)

    for record in records:
        fold.feed(record)
        state.take(record)

    shown = {key: value for key, value in fold.summary().items() if not key.startswith("_")}
    assert comparable(state.items) == comparable(shown)


def comparable(tree: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty, which the server never hears of; and NaN is itself."""
    inner = {key: comparable(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: "NaN" if value != value else value for key, value in inner.items() if value != {}}


@given(logs.filter(is_known), st.integers(0, 25))
def test_statistics_that_are_asked_for_late_are_those_of_the_whole_log(log: list[Any], looks_at: int):
    records = as_records(log)
    early, late = SummaryState(keeps_all=True), SummaryState()
    seen = 0

    def read_again() -> None:
        late.remember_what_follows()
        again = SummaryState(keeps_all=True)
        for record in records[:seen]:
            again.take(record)
        late.become(again)

    late.read_again = read_again
    for seen, record in enumerate(records, 1):
        early.take(record)
        late.take(record)
        if seen == looks_at:
            assert comparable(late.items) == comparable(early.items)

    assert comparable(late.items) == comparable(early.items)


def test_the_log_is_read_again_once_and_not_before_somebody_looks():
    state, reads = logged({"a": 1.0, "b": 3.0, "c": 0.0}), 0

    def read_again() -> None:
        nonlocal reads
        reads += 1
        state.remember_what_follows()
        again = SummaryState(keeps_all=True)
        again.take(Record(0, 1, "metrics", {"a": 1.0, "b": 3.0, "c": 0.0}, 0, True))
        for name in "ab":
            again.define(name, ["min"], False)
        # Meanwhile, another thread goes on.
        log(state, {"a": 0.5, "b": 4.0}, 1)
        state.become(again)

    state.read_again = read_again
    state.define("a", ["min"], False)
    state.define("b", ["min"], False)
    reads_before_a_look = reads
    shown = state.copy_of(())
    state.define("c", ["max"], False)

    assert (reads_before_a_look, reads) == (0, 1)
    assert shown == {"a": {"min": 0.5}, "b": {"min": 3.0}, "c": 0.0}
    assert state.items["c"] == {"max": 0.0}
    assert reads == 1


def test_a_log_that_cannot_be_read_again_leaves_what_is_known():
    state = logged({"a": 1.0})
    state.read_again = lambda: state.become(None)

    state.define("a", ["min"], False)
    first = state.items["a"]
    log(state, {"a": 3.0}, 1)

    assert (first, state.items["a"]) == (1.0, {"min": 3.0})


def test_statistics_know_numbers_beyond_those_of_floats():
    state = SummaryState()
    state.define("a", ["max", "min"], False)

    for step, value in enumerate((1.0, 10**400, -(10**400))):
        log(state, {"a": value}, step)

    assert state.items["a"] == {"max": math.inf, "min": -math.inf}


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ([1, 2], lambda value: value.append(3)),
        ({"x": [1]}, lambda value: value["x"].append(3)),
        ({1, 2}, lambda value: value.add(3)),
        (np.zeros(2), lambda value: value.fill(7)),
        (np.zeros(()), lambda value: value.fill(7)),
    ],
)
def test_the_summary_is_what_the_log_says_whatever_becomes_of_the_value(
    value: Any, change: Callable[[Any], None]
):
    state = SummaryState()
    row = {"v": value, "n": 1}
    before = as_logged(row)

    log(state, row, 0)
    change(value)

    assert state.items == before


def test_a_row_of_enums_and_dates_is_shown_as_the_log_has_it():
    state = logged({"e": Phase.TRAIN, "d": datetime.date(2020, 1, 2), "n": 1})

    assert state.items == {"e": "train", "d": "2020-01-02", "n": 1}


def test_a_logged_tensor_keeps_nothing_alive():
    torch = pytest.importorskip("torch")
    state = SummaryState()
    weights = torch.nn.Parameter(torch.ones(3))
    hidden = weights * 2
    is_alive = weakref.ref(hidden)

    loss = (hidden**2).sum()
    log(state, {"loss": loss}, 0)
    del loss, hidden
    gc.collect()

    assert is_alive() is None
    assert state.items == {"loss": 12.0}


def test_closing_a_row_costs_what_its_own_keys_do():
    state = SummaryState()
    state.define("*", ["min"], False)
    log(state, {f"class/{i}": i for i in range(500)}, 0)
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        log(state, {"loss": 1.0}, 1)
    finally:
        sys.setprofile(None)

    assert calls < 100


def test_threads_may_log_new_keys_while_others_define_and_look():
    state = SummaryState()
    state.define("loss*", ["min", "mean"], False)
    failed: list[BaseException] = []

    def go(number: int) -> None:
        try:
            for i in range(300):
                log(state, {f"loss{number}_{i}": i}, i)
                state.define(f"other{number}_{i}", ["max"], False)
                len(state.copy_of(()))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is to say it
            failed.append(error)

    switch_interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=go, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch_interval_s)

    assert failed == []
    assert len(state.items) == 1200


class Phase(enum.Enum):
    TRAIN = "train"


def log(state: SummaryState, row: dict[str, Any], step: int) -> None:
    state.take_row(row, *encode_data(row), step, True)


def logged(row: dict[str, Any]) -> SummaryState:
    state = SummaryState()
    log(state, row, 0)
    return state
