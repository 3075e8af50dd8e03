"""The shipper: batches, acks and back-off, for every outage a user can have, without a sleep."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.fold import CONSOLE, EVENTS, HISTORY, SUMMARY, Line
from syncd.shipper import (
    BACKOFF_MAX_S,
    BATCH_MAX_BYTES,
    HEARTBEAT_S,
    RETRY_AFTER_MAX_S,
    UNFINISHED_S,
    Allowance,
    Backoff,
    Batch,
    Outcome,
    Pace,
    Shipper,
    Verdict,
    outcome_of,
)

RETRY = Outcome(Verdict.RETRY, "HTTP 500")
REFUSED = Outcome(Verdict.REFUSED, "HTTP 422")
TOO_LARGE = Outcome(Verdict.TOO_LARGE, "HTTP 413")


def new_shipper(**options: Any) -> Shipper:
    return Shipper({HISTORY: 0, EVENTS: 0, CONSOLE: 0}, **options)


def history(*numbers: int, text: str | None = None) -> list[Line]:
    return [Line(HISTORY, n, text or json.dumps({"x": n, "_step": n})) for n in numbers]


def sent(batch: Batch | None) -> dict[str, Any]:
    assert batch is not None
    parsed: dict[str, Any] = json.loads(batch.body())
    return parsed


def test_a_batch_carries_consecutive_lines_at_their_number_with_the_summary():
    shipper = new_shipper()
    shipper.offer(history(0, 1))
    shipper.want_summary('{"x":1}')

    body = sent(shipper.next_batch(now_s=0.0, live=True))

    assert body == {
        "files": {
            "wandb-history.jsonl": {"offset": 0, "content": ['{"x": 0, "_step": 0}', '{"x": 1, "_step": 1}']},
            "wandb-summary.json": {"offset": 0, "content": ['{"x":1}']},
        }
    }


def test_nothing_else_is_sent_while_a_batch_is_in_flight():
    shipper = new_shipper()
    shipper.offer(history(0))
    shipper.next_batch(now_s=0.0, live=False)

    assert shipper.next_batch(now_s=100.0, live=False) is None


def test_what_did_not_arrive_is_sent_again_as_it_was():
    shipper = new_shipper()
    shipper.offer(history(0, 1))
    first = shipper.next_batch(now_s=0.0, live=False)

    sends_something_else = shipper.failed(RETRY)

    assert not sends_something_else
    assert shipper.next_batch(now_s=0.0, live=False) == first


def test_a_week_of_failures_is_tried_again_every_minute_at_most():
    backoff = Backoff()
    now_s = 0.0

    for _ in range(7 * 24 * 60):
        backoff.failed(now_s, jitter=1.0)
        assert backoff.not_before_s - now_s <= BACKOFF_MAX_S
        now_s = backoff.not_before_s

    assert now_s > 6 * 24 * 3600


def test_the_server_may_ask_for_more_patience():  # faults: 69
    backoff = Backoff()

    backoff.failed(now_s=0.0, jitter=0.0, retry_after_s=90.0)

    assert backoff.not_before_s == 90.0


def test_a_project_that_is_held_is_held_for_the_longest_that_was_asked_for():  # faults: 69
    pace = Pace()

    pace.hold("ent/a", 30.0)
    pace.hold("ent/a", 20.0)

    assert pace.not_before_s("ent/a") == 30.0
    assert pace.not_before_s("ent/b") == float("-inf")


@pytest.mark.parametrize("requests", [3, 10, 100])
def test_what_is_left_of_an_allowance_is_spread_over_its_time_and_never_used_up(requests: int):  # faults: 69
    pace = Pace()
    sent: Counter[int] = Counter()
    gaps_s: list[float] = []
    last_s = 0.0

    # For ten minutes of which each is counted by itself, whatever may be sent is.
    for tenth in range(6000):
        now_s, minute = tenth / 10, tenth // 600
        if now_s < pace.not_before_s("demo"):
            continue
        sent[minute] += 1
        pace.sent("demo", now_s)
        pace.told("demo", Allowance(1000.0 * (1 - sent[minute] / requests), 60.0 * (minute + 1) - now_s))
        gaps_s.append(now_s - last_s)
        last_s = now_s

    assert max(sent.values()) <= requests
    # And not all at the beginning of each minute.
    assert max(gaps_s) <= 60.0 * 2 / (requests - 1)
    assert sum(sent.values()) > 10 * requests / 2


def test_an_allowance_that_is_hardly_used_makes_nobody_wait():
    pace = Pace()

    pace.sent("demo", 0.0)
    pace.told("demo", Allowance(999.0, 60.0))
    pace.sent("demo", 1.0)

    assert pace.not_before_s("demo") - 1.0 < 0.1
    assert pace.not_before_s("other") == float("-inf")


def test_an_ack_moves_the_cursor_and_the_next_lines_follow_it():
    shipper = new_shipper()
    shipper.offer(history(0, 1))
    shipper.next_batch(now_s=0.0, live=False)

    shipper.acked_batch()
    shipper.offer(history(2))

    assert shipper.acked[HISTORY] == 2
    assert sent(shipper.next_batch(now_s=0.0, live=False))["files"][HISTORY]["offset"] == 2


def test_lines_that_are_acked_already_are_passed_over_in_a_replay():
    shipper = Shipper({HISTORY: 2, EVENTS: 0, CONSOLE: 0})

    shipper.offer(history(0, 1, 2))

    assert sent(shipper.next_batch(now_s=0.0, live=False))["files"][HISTORY] == {
        "offset": 2,
        "content": ['{"x": 2, "_step": 2}'],
    }


def test_a_live_run_is_sent_every_flush_and_a_backlog_at_once():
    shipper = new_shipper(flush_s=5.0)
    shipper.offer(history(0))
    shipper.next_batch(now_s=0.0, live=True)
    shipper.acked_batch()
    shipper.offer(history(1))

    assert shipper.next_batch(now_s=4.9, live=True) is None
    assert shipper.next_batch(now_s=4.9, live=False) is not None


def test_a_quiet_live_run_gets_a_heartbeat():
    shipper = new_shipper()
    shipper.offer(history(0))
    shipper.next_batch(now_s=0.0, live=True)
    shipper.acked_batch()

    assert shipper.next_batch(now_s=HEARTBEAT_S - 1, live=True) is None
    assert sent(shipper.next_batch(now_s=HEARTBEAT_S, live=True)) == {}


def test_a_run_that_is_over_gets_no_heartbeat():
    shipper = new_shipper()

    assert shipper.next_batch(now_s=1e9, live=False) is None
    assert shipper.due_s(live=False) == float("inf")


def test_complete_goes_with_the_batch_that_leaves_nothing_behind():
    shipper = new_shipper()
    half = BATCH_MAX_BYTES // 2 + 1
    shipper.offer(history(0, text="x" * half) + history(1, text="x" * half))
    shipper.want_summary("{}")
    shipper.want_exit(3)

    first = sent(shipper.next_batch(now_s=0.0, live=False))
    shipper.acked_batch()
    last = sent(shipper.next_batch(now_s=0.0, live=False))
    shipper.acked_batch()

    assert "complete" not in first
    assert last["files"].keys() == {HISTORY, SUMMARY}
    assert (last["complete"], last["exitcode"]) == (True, 3)
    assert shipper.finished
    assert shipper.drained


def test_complete_goes_alone_when_what_went_with_it_was_refused():
    shipper = new_shipper()
    shipper.want_summary("{}")
    shipper.want_exit(0)

    sent(shipper.next_batch(now_s=0.0, live=False))
    refused_at_once = shipper.failed(Outcome(Verdict.REFUSED, "400"))
    summary = sent(shipper.next_batch(now_s=0.0, live=False))
    shipper.failed(Outcome(Verdict.REFUSED, "400"))
    last = sent(shipper.next_batch(now_s=0.0, live=False))

    assert refused_at_once
    assert summary.keys() == {"files"}
    assert last == {"complete": True, "exitcode": 0}


@pytest.mark.parametrize("extra", [-1, 0, 1], ids=["one byte under", "at the limit", "one byte over"])
def test_a_batch_is_cut_at_the_limit(extra: int):  # faults: 74
    shipper = new_shipper()
    half = BATCH_MAX_BYTES // 2
    shipper.offer(history(0, text="x" * (half - 3)) + history(1, text="x" * (half - 2 + extra)))

    batch = shipper.next_batch(now_s=0.0, live=False)

    assert batch is not None
    assert len(batch.lines) == (2 if extra <= 0 else 1)
    assert sum(map(len, batch.encoded)) <= BATCH_MAX_BYTES


def test_a_line_over_the_limit_goes_alone():  # faults: 74
    shipper = new_shipper()
    shipper.offer(history(0, text="x" * (BATCH_MAX_BYTES + 1)) + history(1))

    batch = shipper.next_batch(now_s=0.0, live=False)

    assert batch is not None
    assert [line.number for line in batch.lines] == [0]


def test_a_413_halves_what_is_sent_until_it_fits():
    shipper = new_shipper()
    shipper.offer(history(*range(8)))
    sizes = []

    for _ in range(3):
        batch = shipper.next_batch(now_s=0.0, live=False)
        assert batch is not None
        sizes.append(len(batch.lines))
        shipper.failed(TOO_LARGE)

    assert sizes == [8, 4, 2]


def test_a_size_that_was_refused_is_not_tried_again():
    shipper = new_shipper()
    shipper.offer(history(*range(8)))
    sizes = []

    for _ in range(5):
        batch = shipper.next_batch(now_s=0.0, live=False)
        assert batch is not None
        sizes.append(len(batch.lines))
        if len(batch.lines) > 4:
            shipper.failed(TOO_LARGE)
        else:
            shipper.acked_batch()
            shipper.offer(history(*range(8 + 4 * len(sizes), 12 + 4 * len(sizes))))

    assert sizes.count(8) == 1
    assert max(sizes[1:]) == 4


@given(poison=st.sets(st.integers(0, 19), max_size=4))
def test_refused_lines_become_stubs_and_the_others_arrive_as_they_are(poison: set[int]):  # faults: 70
    shipper = new_shipper()
    shipper.offer(history(*range(20)))
    shipper.want_summary("{}")
    server: dict[int, dict[str, Any]] = {}

    for _ in range(500):
        batch = shipper.next_batch(now_s=0.0, live=False)
        if batch is None:
            break
        rows = {line.number: json.loads(line.text) for line in batch.lines}
        if any(row.get("x") in poison for row in rows.values()):
            shipper.failed(REFUSED)
        else:
            server |= rows
            shipper.acked_batch()

    assert shipper.drained
    assert {n for n, row in server.items() if "x" not in row} == poison
    assert {n: row["_step"] for n, row in server.items()} == {n: n for n in range(20)}
    assert set(shipper.stubs) == {(HISTORY, n) for n in poison}


def test_a_stub_is_the_same_line_after_a_restart():
    first = new_shipper()
    first.offer(history(0))
    first.next_batch(now_s=0.0, live=False)
    first.failed(REFUSED)
    stubbed = first.next_batch(now_s=0.0, live=False)

    restarted = new_shipper(stubs=dict(first.stubs))
    restarted.offer(history(0))

    assert restarted.next_batch(now_s=0.0, live=False) == stubbed


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_stub_that_is_refused_as_well_is_taken_back(is_restarted: bool):
    shipper = new_shipper()
    shipper.offer(history(0))
    line = shipper.next_batch(now_s=0.0, live=False)
    goes_on = shipper.failed(REFUSED)
    if is_restarted:
        shipper = new_shipper(stubs=dict(shipper.stubs))
        shipper.offer(history(0))
    stub = shipper.next_batch(now_s=0.0, live=False)

    waits = not shipper.failed(REFUSED)

    assert goes_on
    assert waits
    assert stub != line
    assert shipper.stubs == {}
    assert shipper.next_batch(now_s=0.0, live=False) == line
    shipper.acked_batch()
    assert shipper.drained


def test_a_line_that_is_no_longer_than_its_stub_is_not_what_is_too_large():
    shipper = new_shipper()
    shipper.offer(history(0))
    line = shipper.next_batch(now_s=0.0, live=False)

    assert not shipper.failed(TOO_LARGE)

    assert shipper.stubs == {}
    assert shipper.next_batch(now_s=0.0, live=False) == line


def test_a_refused_summary_does_not_hold_up_the_rows():
    shipper = new_shipper()
    shipper.want_summary('{"bad":1}')
    shipper.next_batch(now_s=0.0, live=False)

    shipper.failed(REFUSED)

    assert shipper.drained
    assert shipper.summary_refused == "HTTP 422"


def screen(*texts: str, first: int = 0) -> list[Line]:
    return [Line(CONSOLE, n, text) for n, text in enumerate(texts, start=first)]


def test_lines_that_may_change_are_sent_at_their_place_and_again_when_they_changed():
    shipper = new_shipper(flush_s=5.0)
    shipper.want_screen(screen("a", "b", "c"), None)
    first = sent(shipper.next_batch(now_s=0.0, live=True))
    shipper.acked_batch()

    shipper.want_screen(screen("a", "B", "c"), None)

    assert first == {"files": {CONSOLE: {"offset": 0, "content": ["a", "b", "c"]}}}
    assert sent(shipper.next_batch(now_s=5.0, live=True)) == {
        "files": {CONSOLE: {"offset": 1, "content": ["B", "c"]}}
    }
    shipper.acked_batch()
    assert shipper.acked[CONSOLE] == 0
    assert shipper.drained


def test_a_line_that_is_being_written_is_shown_at_most_every_ten_seconds():
    shipper = new_shipper(flush_s=5.0)
    sent_at_s = []

    for now_s in range(31):
        shipper.want_screen([], Line(CONSOLE, 0, f"{now_s} %"))
        if shipper.next_batch(float(now_s), live=True) is not None:
            sent_at_s.append(now_s)
            shipper.acked_batch()

    assert sent_at_s == [0, UNFINISHED_S, 2 * UNFINISHED_S, 3 * UNFINISHED_S]


def test_final_lines_and_those_that_may_change_are_one_block():
    shipper = new_shipper()
    shipper.want_screen(screen("a", "b"), None)
    shipper.next_batch(now_s=0.0, live=True)
    shipper.acked_batch()

    shipper.offer(screen("a"))
    shipper.want_screen(screen("b", "c", first=1), None)

    assert sent(shipper.next_batch(now_s=9.0, live=True))["files"] == {
        CONSOLE: {"offset": 0, "content": ["a", "b", "c"]}
    }


def test_a_refused_screen_holds_nothing_up():
    shipper = new_shipper()
    shipper.want_screen(screen("poison"), None)
    shipper.want_summary("{}")
    arrived = []

    for _ in range(10):
        batch = shipper.next_batch(now_s=0.0, live=False)
        if batch is None:
            break
        if batch.screen:
            shipper.failed(REFUSED)
        else:
            arrived.append(batch.summary)
            shipper.acked_batch()

    assert arrived == ["{}"]
    assert shipper.summary_refused is None


def test_a_stored_file_is_told_until_it_is_acknowledged():
    shipper = new_shipper()
    shipper.want_uploaded(["media/a.png", "b.txt"])

    first = sent(shipper.next_batch(now_s=0.0, live=False))
    shipper.failed(RETRY)
    again = sent(shipper.next_batch(now_s=0.0, live=False))
    shipper.acked_batch()

    assert first == again == {"uploaded": ["media/a.png", "b.txt"]}
    assert shipper.drained


def test_of_stored_files_only_the_refused_one_is_given_up_and_counted():
    shipper = new_shipper()
    shipper.offer(history(0))
    shipper.want_uploaded(["a.png", "bad.png", "c.png"])
    told: list[str] = []

    for _ in range(20):
        batch = shipper.next_batch(now_s=0.0, live=False)
        if batch is None:
            break
        if "bad.png" in batch.uploaded:
            assert shipper.failed(REFUSED)
        else:
            told += batch.uploaded
            shipper.acked_batch()

    assert told == ["a.png", "c.png"]
    assert shipper.acked[HISTORY] == 1
    assert shipper.uploaded_refused == ["file refused by the server (HTTP 422)"]
    assert shipper.drained


@pytest.mark.parametrize("file", [HISTORY, EVENTS, CONSOLE])
def test_a_refused_line_of_any_file_becomes_a_stub(file: str):  # faults: 70
    shipper = new_shipper()
    text = "2026-01-02T03:04:05.764296 odd" if file == CONSOLE else '{"odd":1,"_timestamp":1.5}'
    shipper.offer([Line(file, 0, text)])
    shipper.next_batch(now_s=0.0, live=False)

    shipper.failed(REFUSED)

    body = sent(shipper.next_batch(now_s=0.0, live=False))
    assert "odd" not in str(body)
    assert "HTTP 422" in str(body)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (None, Verdict.UNREACHABLE),
        (200, Verdict.ACK),
        (302, Verdict.UNREACHABLE),
        (400, Verdict.REFUSED),
        (401, Verdict.UNAUTHORISED),
        (403, Verdict.FORBIDDEN),
        (404, Verdict.FORBIDDEN),
        (407, Verdict.RETRY),
        (408, Verdict.RETRY),
        (409, Verdict.RETRY),
        (413, Verdict.TOO_LARGE),
        (422, Verdict.REFUSED),
        (429, Verdict.RETRY),
        (500, Verdict.RETRY),
        (501, Verdict.RETRY),
        (503, Verdict.RETRY),
    ],
)
def test_each_status_has_one_meaning(status: int | None, verdict: Verdict):
    assert outcome_of(status, {}, is_object=True, wall_s=0.0).verdict is verdict


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_a_page_for_people_says_nothing_about_a_line(status: int):
    headers = {"Content-Type": "text/html; charset=utf-8", "Content-Length": "120"}

    assert outcome_of(status, headers, is_object=False, wall_s=0.0).verdict is Verdict.RETRY


def test_a_page_with_status_200_is_a_captive_portal_and_no_ack():
    outcome = outcome_of(200, {}, is_object=False, wall_s=0.0)

    assert outcome.verdict is Verdict.UNREACHABLE


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "1e99"}, RETRY_AFTER_MAX_S),
        ({"Retry-After": "Thu, 01 Jan 1970 00:02:00 GMT"}, 20.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"RateLimit-Remaining": "0", "RateLimit-Reset": "9"}, 9.0),
        ({"RateLimit-Remaining": "5", "RateLimit-Reset": "9"}, None),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], wait_s: float | None):  # faults: 69
    assert outcome_of(429, headers, is_object=True, wall_s=100.0).retry_after_s == wait_s


def test_lines_may_join_those_that_wait_for_as_long_as_all_of_them_go_together():
    half = "h" * (BATCH_MAX_BYTES // 2)
    shipper = new_shipper(flush_s=5.0)
    shipper.offer(history(0))
    begun = shipper.may_take_more
    shipper.next_batch(now_s=0.0, live=True)
    in_flight = shipper.may_take_more
    shipper.acked_batch()
    shipper.offer(history(1, text=half))

    assert (begun, in_flight, shipper.may_take_more) == (True, False, False)
    # And then it does not wait for its time.
    assert shipper.next_batch(now_s=0.1, live=True) is not None
