"""Attaching: where a run begins on a server, and when it must not begin."""

from __future__ import annotations

import json
from typing import Any

import pytest

from syncd.attach import STEADY_S, Attach, Park, Wait, conflict_with, decide, mark_of, parse_server_run
from syncd.fold import CONSOLE, EVENTS, HISTORY, Bases
from syncd.metadata import MARK

LOG = "a" * 32


def server_run(rows: int = 0, mark: dict[str, Any] | None = None, **fields: Any) -> Any:
    config = {"lr": {"value": 1}} | ({MARK: {"value": mark}} if mark else {})
    bucket = {
        "id": "x",
        "historyLineCount": rows,
        "eventsLineCount": 3,
        "logLineCount": 5,
        "historyTail": json.dumps([json.dumps({"_step": 41, "_runtime": 12.5})]),
        "summaryMetrics": '{"_step": 40, "_wandb": {"runtime": 11}}',
        "config": json.dumps(config),
        "wandbConfig": '{"t": {}}',
        **fields,
    }
    return parse_server_run(bucket)


def test_a_run_that_the_server_does_not_know_begins_at_nothing():
    decision = decide(LOG, ["p1"], None, steady_for_s=0.0)

    assert decision == Attach(Bases(), {HISTORY: 0, EVENTS: 0, CONSOLE: 0})


def test_a_run_made_ahead_of_time_that_never_started_is_new():
    ahead = parse_server_run({"id": "x", "wandbConfig": "{}"})

    assert decide(LOG, ["p1"], ahead, steady_for_s=0.0) == Attach(
        Bases(), {HISTORY: 0, EVENTS: 0, CONSOLE: 0}
    )


def test_a_run_of_another_client_is_continued_after_what_is_there():
    decision = decide(LOG, ["p1"], server_run(rows=10), steady_for_s=STEADY_S)

    assert decision == Attach(Bases(10, 3, 5, 42, 12.5), {HISTORY: 10, EVENTS: 3, CONSOLE: 5})


def test_counts_are_not_believed_before_they_stood_still():
    assert decide(LOG, ["p1"], server_run(rows=10), steady_for_s=STEADY_S - 0.1) == Wait()


def test_a_lost_cursor_is_found_again_by_the_mark():
    bases = Bases(10, 3, 5, 42, 12.5)
    server = server_run(rows=25, mark=mark_of(LOG, ["p1"], bases))

    decision = decide(LOG, ["p1", "p2"], server, steady_for_s=STEADY_S)

    assert decision == Attach(bases, {HISTORY: 25, EVENTS: 3, CONSOLE: 5}, is_known=True)


def test_a_count_that_lags_below_the_base_is_not_believed():
    server = server_run(rows=7, mark=mark_of(LOG, ["p1"], Bases(10, 0, 0, 42, 12.5)))

    decision = decide(LOG, ["p1"], server, steady_for_s=STEADY_S)

    assert isinstance(decision, Attach)
    assert decision.acked[HISTORY] == 10


def test_another_logs_run_is_left_alone():
    server = server_run(rows=10, mark=mark_of("b" * 32, ["p1"], Bases()))

    decision = decide(LOG, ["p1"], server, steady_for_s=STEADY_S)

    assert isinstance(decision, Park)
    assert "another log" in decision.error


def test_a_copy_that_was_resumed_elsewhere_is_left_alone():  # faults: 30
    server = server_run(rows=10, mark=mark_of(LOG, ["p1", "theirs"], Bases()))

    assert conflict_with(LOG, ["p1", "ours"], server) is not None
    assert conflict_with(LOG, ["p1", "theirs", "p3"], server) is None


@pytest.mark.parametrize(
    "mark", [{"log_id": LOG}, {"log_id": LOG, "bases": "x", "first_step": 0, "runtime_s": 0}]
)
def test_a_mark_that_cannot_be_read_stops_everything(mark: dict[str, Any]):
    decision = decide(LOG, ["p1"], server_run(rows=1, mark=mark), steady_for_s=STEADY_S)

    assert isinstance(decision, Park)


@pytest.mark.parametrize("count", [-1, "7", 1.5, True])
def test_a_count_that_is_none_is_refused(count: Any):
    with pytest.raises(ValueError, match="historyLineCount"):
        server_run(historyLineCount=count)


@pytest.mark.parametrize("tail", ["not json", "[]", "[1]", '["{"]', None, 7])
def test_a_tail_that_makes_no_sense_leaves_the_counts(tail: Any):
    server = server_run(rows=10, historyTail=tail, summaryMetrics=None)

    assert server.next_step == 10


NONSENSE = {
    "nested without end": {"summaryMetrics": "[" * 100_000, "historyTail": '["' + "[" * 100_000 + '"]'},
    "a step longer than a float": {"summaryMetrics": '{"_step": 1' + "0" * 400 + "}"},
    "a runtime without end": {"historyTail": json.dumps(['{"_runtime": Infinity}'])},
}


@pytest.mark.parametrize("fields", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_in_an_answer_counts_as_absent(fields: dict[str, Any]):
    found = server_run(rows=10, **fields)

    assert found.next_step <= 42
    assert found.runtime_s <= 12.5


@pytest.mark.parametrize(
    "mark",
    [
        {"bases": [float("inf"), 0, 0], "first_step": 0, "runtime_s": 0},
        {"bases": [0, 0, 0], "first_step": float("inf"), "runtime_s": 0},
        {"bases": [0, 0, 0], "first_step": 0, "runtime_s": 10**400},
        {"bases": [-5, 0, 0], "first_step": 0, "runtime_s": 0},
    ],
    ids=str,
)
def test_a_mark_of_ours_that_makes_no_sense_parks_the_run(mark: dict[str, Any]):
    server = server_run(rows=10, mark={"log_id": LOG, "pieces": ["p1"], **mark})

    assert isinstance(decide(LOG, ["p1"], server, steady_for_s=STEADY_S), Park)
