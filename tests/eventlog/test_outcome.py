"""`eventlog.outcome`: the summary, in every order in which things can happen to it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from eventlog.outcome import SummaryState
from eventlog.record import Record
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


@given(logs.filter(is_known))
def test_statistics_that_are_asked_for_late_are_those_of_the_whole_log(log: list[Any]):
    records = as_records(log)
    early, late = SummaryState(keeps_all=True), SummaryState()

    for record in records:
        early.take(record)
        late.take(record)
        if record.kind == "define_metric":
            again = SummaryState(keeps_all=True)
            for each in records[: record.seq + 1]:
                again.take(each)
            late.become(again)

    assert comparable(late.items) == comparable(early.items)
