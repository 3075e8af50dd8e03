"""Attaching to a run of which another client may have sent a part: what may be gone on from, and what may not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.cursor import APPEND, CONTINUE
from syncd.attach import Attach, Overlap, Park, compare, decide_by
from syncd.console import SCREEN_LINES
from syncd.fold import CONSOLE, EVENTS, HISTORY, Bases
from tests.syncd.test_attach import server_run

Rows = list[dict[str, Any]]


def rows(*steps: int, of: str = "ours") -> Rows:
    return [{"_step": step, "_timestamp": 1000.0 + step, of: step} for step in steps]


def decided(ours: Rows, theirs: Rows, counted: int | None = None, events_there: int = 0) -> Attach | Park:
    overlap = compare(ours, theirs)
    server = server_run(rows=len(theirs) if counted is None else counted)
    assert server is not None
    return decide_by(
        Overlap(
            overlap.rows,
            overlap.before,
            overlap.there,
            overlap.behind,
            overlap.behind_is_later,
            events_there,
            overlap.difference,
        ),
        server,
    )


def test_nothing_there_begins_at_nothing():
    decision = decided(rows(0, 1), [])

    assert isinstance(decision, Attach)
    assert (decision.bases, decision.acked[HISTORY], decision.summary_from) == (Bases(), 0, 0)


def test_a_beginning_that_is_there_is_gone_on_from():
    decision = decided(rows(0, 1, 2), rows(0, 1))

    assert isinstance(decision, Attach)
    assert decision.bases == Bases()
    # The screen's last lines may have changed since: they are said again, in their places.
    assert decision.acked == {HISTORY: 2, EVENTS: 3, CONSOLE: max(0, 5 - SCREEN_LINES)}
    assert decision.summary_from == 2


def test_of_a_run_that_is_there_whole_no_row_is_sent():
    decision = decided(rows(0, 1, 2), rows(0, 1, 2))

    assert isinstance(decision, Attach)
    assert (decision.acked[HISTORY], decision.summary_from) == (3, 3)


def test_rows_that_the_file_has_lost_are_left_there_with_their_summary():
    decision = decided(rows(0, 1), rows(0, 1, 2, 3))

    assert isinstance(decision, Attach)
    assert decision.acked[HISTORY] == 2
    # All that the log makes is before this line: the summary there is never replaced by an older one.
    assert decision.summary_from == 3


def test_rows_of_earlier_pieces_are_left_before_ours():
    decision = decided(rows(5, 6, 7), rows(0, 1, of="others") + rows(5, 6), events_there=2)

    assert isinstance(decision, Attach)
    assert (decision.bases.history, decision.bases.first_step) == (2, 0)
    assert decision.acked[HISTORY] == 4
    assert decision.bases.events == 3 - 2


def test_ours_go_behind_others_that_end_before_them():
    decision = decided(rows(50, 51), rows(0, 1, of="others"))

    assert isinstance(decision, Attach)
    assert (decision.bases.history, decision.acked[HISTORY]) == (2, 2)
    assert decision.bases.events == 3


def test_rows_that_were_sent_twice_are_for_a_person_to_judge():
    ours = rows(0, 1)
    again = [{**row, "_step": row["_step"] + 2} for row in ours]

    decision = decided(ours, ours + again)

    assert isinstance(decision, Park)
    assert "2 rows behind all of this run's 2" in decision.error


def test_a_row_that_is_another_is_named():
    theirs = rows(0, 1)
    theirs[1]["ours"] = 7

    decision = decided(rows(0, 1, 2), theirs)

    assert isinstance(decision, Park)
    assert "row 1 of this run (step 1): ours is 1 here and 7 there" in decision.error
    assert all(f"--force {choice}" in decision.error for choice in ("append", "continue", "new-id"))


def test_a_count_that_is_not_what_is_shown_proves_nothing():
    decision = decided(rows(0, 1, 2), rows(0, 1), counted=3)

    assert isinstance(decision, Park)
    assert "cannot be told for certain" in decision.error


def test_a_person_may_take_what_is_there_for_the_beginning():
    server = server_run(rows=9)
    assert server is not None

    decision = decide_by(compare(rows(0, 1), rows(0, of="others")), server, CONTINUE)

    assert isinstance(decision, Attach)
    assert (decision.bases, decision.acked[HISTORY]) == (Bases(), 2)


def test_a_person_may_have_all_of_it_sent_behind_what_is_there():
    server = server_run(rows=9)
    assert server is not None

    decision = decide_by(compare(rows(0, 1), rows(0, of="others")), server, APPEND)

    assert isinstance(decision, Attach)
    assert (decision.bases.history, decision.acked[HISTORY], decision.bases.first_step) == (9, 9, 42)


@pytest.mark.parametrize("choice", [APPEND, CONTINUE])
def test_where_it_can_be_told_nobodys_choice_is_needed(choice: str):
    server = server_run(rows=2)
    assert server is not None
    overlap = compare(rows(0, 1, 2), rows(0, 1))

    assert decide_by(overlap, server, choice) == decide_by(overlap, server)


def test_a_log_without_rows_goes_behind_whatever_is_there():
    decision = decided([], rows(0, 1, of="others"))

    assert isinstance(decision, Attach)
    assert decision.acked[HISTORY] == 0
    assert decision.summary_from == 1


@given(before=st.integers(0, 5), there=st.integers(0, 5), rest=st.integers(0, 5), behind=st.integers(0, 5))
def test_however_rows_lie_on_each_other_it_is_seen(before: int, there: int, rest: int, behind: int):
    """With rows still to come here, none of ours lie behind there."""
    steps = range(before, before + there + rest)
    theirs = rows(*range(before), of="others") + rows(*steps[:there])
    theirs += rows(*range(100, 100 + behind)) if not rest and there else []

    overlap = compare(rows(*steps), theirs)

    if not steps:
        assert overlap.rows == 0
        return
    assert (overlap.rows, overlap.before, overlap.there) == (len(steps), before, there)
    assert overlap.behind == (behind if not rest and there else 0)
    assert overlap.behind_is_later
    assert overlap.difference is None
