"""The fold: W&B's step rule, step metrics and summary, and that a saved state is as good as the records."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.record import Record, frame_object, unframe_object
from syncd.fold import (
    COMPLETE_ROWS,
    HISTORY,
    LINE_MAX_BYTES,
    LINE_TOO_LONG,
    REPEATED_STEP,
    STUB,
    Bases,
    Fold,
    Line,
)

START_US = 1_763_712_000_000_000


def records_of(*calls: tuple[str, dict[str, Any]] | tuple[str, dict[str, Any], int, bool]) -> list[Record]:
    """Number the calls and date them a second apart."""
    records = []
    for seq, (kind, data, *rest) in enumerate(calls):
        step, commit = rest if rest else (None, False)
        records.append(Record(seq, START_US + seq * 1_000_000, kind, data, step, commit))
    return records


def rows_of(lines: list[Line]) -> list[dict[str, Any]]:
    return [json.loads(line.text) for line in lines]


def folded(records: list[Record], bases: Bases | None = None) -> tuple[Fold, list[Line]]:
    fold = Fold(bases or Bases())
    lines = [line for record in records for line in fold.feed(record)]
    return fold, lines


def metrics(step: int, commit: bool = False, **data: Any) -> tuple[str, dict[str, Any], int, bool]:
    return ("metrics", data, step, commit)


def test_a_row_stays_open_until_a_later_step_is_seen():
    records = records_of(metrics(0, a=1), metrics(0, b=2), metrics(1, a=3))

    _, lines = folded(records)

    (row,) = rows_of(lines)
    assert (row["a"], row["b"], row["_step"]) == (1, 2, 0)


def test_commit_closes_the_row_and_moves_to_the_next_step():
    fold, lines = folded(records_of(metrics(0, commit=True, a=1), metrics(1, commit=True, a=2)))

    assert [row["_step"] for row in rows_of(lines)] == [0, 1]
    assert fold.step == 2


def test_the_exit_closes_the_open_row():
    _, lines = folded(records_of(metrics(4, a=1), ("exit", {"exitcode": 0})))

    assert [row["_step"] for row in rows_of(lines)] == [4]


def test_a_repeated_step_is_not_shown_and_counted():
    fold, lines = folded(records_of(metrics(5, a=1), metrics(3, a=2), metrics(6, a=3)))

    assert [row["a"] for row in rows_of(lines)] == [1]
    assert fold.not_shown == {REPEATED_STEP: 1}


def test_an_empty_call_makes_a_row_of_the_three_added_keys():
    _, lines = folded(records_of(metrics(0, commit=True)))

    assert [set(row) for row in rows_of(lines)] == [{"_step", "_timestamp", "_runtime"}]


def test_times_are_those_of_the_last_call_and_of_the_closing():
    start = ("start", {"config": {}})
    _, lines = folded(records_of(start, metrics(0, a=1), metrics(0, a=2), metrics(1, a=3)))

    (row,) = rows_of(lines)
    assert row["_timestamp"] == (START_US + 2_000_000) / 1e6
    assert row["_runtime"] == 3.0


def test_a_clock_set_back_does_not_make_a_run_younger():
    fold = Fold(Bases())
    fold.feed(Record(0, START_US, "start", {}))
    fold.feed(Record(1, START_US + 9_000_000, "metrics", {"a": 1}, 0, True))

    lines = fold.feed(Record(2, START_US - 3_600_000_000, "metrics", {"a": 1}, 1, True))

    assert rows_of(lines)[0]["_runtime"] == 9.0


def test_a_resumed_piece_goes_on_with_the_runtime_of_the_first():
    fold = Fold(Bases())
    fold.feed(Record(0, START_US, "start", {"config": {"a": 1, "b": 1}}))
    fold.feed(Record(1, START_US + 10_000_000, "metrics", {"x": 1}, 0, False))

    closed = fold.feed(Record(0, START_US + 99_000_000, "start", {"config": {"b": 2}}))
    lines = fold.feed(Record(1, START_US + 100_000_000, "metrics", {"x": 2}, 1, True))

    assert [row["x"] for row in rows_of(closed)] == [1]
    assert rows_of(lines)[0]["_runtime"] == 11.0
    assert fold.config == {"a": 1, "b": 2}


def test_nested_values_stay_nested_and_grow_together_within_a_step():
    _, lines = folded(records_of(metrics(0, n={"x": 1}), metrics(0, True, n={"y.z": 2}, empty={})))

    (row,) = rows_of(lines)
    assert row["n"] == {"x": 1, "y.z": 2}
    assert "empty" not in row


def test_numbers_beyond_int64_become_floats_and_nan_is_a_bare_token():
    _, lines = folded(records_of(metrics(0, True, big=2**63, nan=math.nan, inf=-math.inf, none=None)))

    assert '"big":9223372036854775808' not in lines[0].text
    assert '"nan":NaN,"inf":-Infinity,"none":null' in lines[0].text


def test_a_step_metric_that_a_row_lacks_is_filled_in_with_its_latest_value():
    define = ("define_metric", {"name": "eval/*", "step_metric": "global_step", "step_sync": True})
    _, lines = folded(
        records_of(define, metrics(0, True, global_step=40), metrics(1, True, **{"eval/only": 1}))
    )

    assert rows_of(lines)[1]["global_step"] == 40


def test_the_summary_shows_the_last_value_or_the_statistics_that_were_asked_for():
    define = ("define_metric", {"name": "loss", "summary": ["min", "mean", "first"]})
    fold, _ = folded(records_of(define, metrics(0, True, loss=1.0, n={"x": 1}), metrics(1, True, loss=0.5)))

    summary = fold.summary()

    assert summary["loss"] == {"min": 0.5, "mean": 0.75, "first": 1.0}
    assert summary["n"] == {"x": 1}
    assert summary["_step"] == 1


def test_an_explicit_summary_value_switches_the_statistics_off():
    define = ("define_metric", {"name": "loss", "summary": ["min"]})
    explicit = ("summary", {"set": [[["loss"], 7]]})
    fold, _ = folded(records_of(define, metrics(0, True, loss=1.0), explicit))
    assert fold.summary()["loss"] == 7

    fold.feed(Record(3, START_US, "metrics", {"loss": 2.0}, 1, True))

    assert fold.summary()["loss"] == 2.0


def test_deleting_a_summary_key_removes_what_is_below_it():
    delete = ("summary", {"delete": [["n"]]})
    fold, _ = folded(records_of(metrics(0, True, n={"x": 1, "y": 2}, a=1), delete))

    assert "n" not in fold.summary()
    assert fold.summary()["a"] == 1


def test_a_value_where_a_dict_was_replaces_it_in_the_summary():
    fold, _ = folded(records_of(metrics(0, True, n={"x": {"y": 1}}), metrics(1, True, n=5)))

    assert fold.summary()["n"] == 5


def test_a_line_over_the_limit_becomes_a_stub_and_the_next_keeps_its_number():
    fold, lines = folded(records_of(metrics(0, True, big="x" * LINE_MAX_BYTES), metrics(1, True, a=1)))

    first, second = rows_of(lines)
    assert "big" not in first
    assert first["_step"] == 0
    assert (second["a"], lines[1].number) == (1, 1)
    assert fold.not_shown == {LINE_TOO_LONG: 1}


def test_lines_begin_at_the_bases_and_steps_after_those_that_are_taken():
    bases = Bases(history=10, first_step=10, runtime_s=100.0)
    _, lines = folded(records_of(("start", {}), metrics(0, True, a=1), metrics(20, True, a=2)), bases)

    assert [(line.file, line.number) for line in lines] == [(HISTORY, 10), (HISTORY, 11)]
    assert [row["_step"] for row in rows_of(lines)] == [10, 20]
    assert rows_of(lines)[0]["_runtime"] == 101.0


# -- the property that exactly-once stands on -----------------------------------------------------------------------

keys = st.sampled_from(["loss", "eval/a", "eval/b", "global_step", "n", "a.b", "_private", "é"])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.floats(), max_size=3),
)
values = st.recursive(scalars, lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=5)
some_metrics = st.tuples(
    st.just("metrics"),
    # Mostly plain numbers: what is carried from row to row is made of them.
    st.dictionaries(keys, st.one_of(st.integers(0, 9), st.integers(0, 9), values), max_size=4),
    st.integers(0, 12),
    st.booleans(),
)
calls = st.one_of(
    some_metrics,
    some_metrics,
    some_metrics,
    st.tuples(st.just("config"), st.dictionaries(keys, values, max_size=2)),
    st.tuples(
        st.just("define_metric"),
        st.fixed_dictionaries(
            {"name": st.sampled_from(["loss", "eval/*", "*", "n.loss", "global_step"])},
            optional={
                "step_metric": st.sampled_from(["global_step", "n.global_step", "_step"]),
                "step_sync": st.booleans(),
                "hidden": st.booleans(),
                "summary": st.lists(st.sampled_from(["min", "max", "mean", "last", "first", "none", "copy"])),
                "overwrite": st.booleans(),
            },
        ),
    ),
    st.tuples(
        st.just("summary"),
        st.fixed_dictionaries(
            {},
            optional={
                "set": st.lists(st.tuples(st.lists(keys, min_size=1, max_size=2), values), max_size=2),
                "delete": st.lists(st.lists(keys, min_size=1, max_size=2), max_size=2),
            },
        ),
    ),
    st.tuples(st.just("start"), st.fixed_dictionaries({"config": st.dictionaries(keys, values, max_size=2)})),
    st.tuples(st.just("exit"), st.just({"exitcode": 1})),
    st.tuples(st.just("unheard of"), st.just({"x": 1})),
)


def through_the_disk(state: dict[str, Any]) -> dict[str, Any]:
    return unframe_object(frame_object(state)[:-1])


def _fields(record: Record) -> list[Any]:
    return [record.seq, record.time_us, record.kind, record.data, record.step, record.commit]


@settings(max_examples=400)
@given(calls=st.lists(calls, max_size=25), data=st.data())
def test_going_on_from_any_saved_state_equals_replaying_from_record_0(calls: list[Any], data: st.DataObject):
    # Each fold gets records of its own, as if decoded afresh: none may live on what another one changed.
    text = frame_object(
        {"records": [[r.seq, r.time_us, r.kind, r.data, r.step, r.commit] for r in records_of(*calls)]}
    )

    def fresh() -> list[Record]:
        return [Record(*fields) for fields in unframe_object(text[:-1])["records"]]

    bases = Bases(history=7, first_step=data.draw(st.integers(0, 8), label="first step"), runtime_s=2.5)
    cut = data.draw(st.integers(0, len(calls)), label="records before the state was saved")
    replayed, all_lines = folded(fresh(), bases)
    all_lines += replayed.end_piece()

    before, lines = folded(fresh()[:cut], bases)
    resumed = Fold.resume(through_the_disk(before.state()))
    assert (resumed.row_seq, resumed.not_shown) == (before.row_seq, before.not_shown)
    for record in fresh()[cut:]:
        lines += resumed.feed(record)
    lines += resumed.end_piece()

    assert lines == all_lines
    assert resumed.summary_text() == replayed.summary_text()
    assert frame_object(resumed.state()) == frame_object(replayed.state())


@given(calls=st.lists(calls, max_size=25), data=st.data())
def test_a_saved_state_stays_as_it_was_while_folds_go_on_from_it(calls: list[Any], data: st.DataObject):
    records = records_of(*calls)
    cut = data.draw(st.integers(0, len(calls)), label="records before the state was saved")
    fold, _ = folded(records[:cut])
    state = fold.state()
    as_saved = frame_object(state)
    resumed = Fold.resume(state)

    for record in through_the_disk({"later": [_fields(r) for r in records[cut:]]})["later"]:
        fold.feed(Record(*record))
        resumed.feed(Record(*record))

    assert frame_object(state) == as_saved


@given(calls=st.lists(calls, max_size=25))
def test_line_numbers_have_no_gaps_and_steps_only_grow(calls: list[Any]):
    fold, lines = folded(records_of(*calls))
    lines += fold.end_piece()

    assert [line.number for line in lines] == list(range(len(lines)))
    steps = [row["_step"] for row in rows_of(lines)]
    assert steps == sorted(set(steps))


@given(calls=st.lists(calls, max_size=12))
def test_closing_a_dead_piece_early_or_at_the_next_start_gives_the_same_lines(calls: list[Any]):
    first, later = records_of(*calls), Record(0, START_US + 10**9, "start", {})
    waited, waited_lines = folded(first)
    waited_lines += waited.feed(later)

    early, early_lines = folded(first)
    early_lines += early.end_piece()
    early_lines += early.feed(later)

    assert early_lines == waited_lines


def test_a_row_that_was_too_large_for_its_record_is_counted_as_too_long():
    fold = Fold(Bases())
    values = {"_step": 0, "_timestamp": 1.0, "_runtime": 0.0, "x": 1, STUB: "its values are elsewhere"}
    fold.feed(Record(0, 0, "start", {"config": {}, "rows": COMPLETE_ROWS}))

    (line,) = fold.feed(Record(1, 1, "metrics", values, 0, True))

    assert json.loads(line.text) == values
    assert fold.not_shown == {LINE_TOO_LONG: 1}
