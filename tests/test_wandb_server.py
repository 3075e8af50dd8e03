"""The behaviour of tests/wandb_server, one rule of the W&B protocol or one control at a time."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.wandb_server import (
    API_KEY,
    DeletedAnswers,
    Fault,
    ProjectLimit,
    ResumeAnswers,
    WandbServer,
    differences,
    make_certificates,
    wait_for,
)
from tests.wandb_server.faults import RETRYABLE

STARTED = json.dumps({"lr": {"value": 0.1}, "_wandb": {"value": {"t": {"5": "0.31.0"}, "m": []}}})


class Client:
    """A client with no care at all: it sends what it is told and shows what comes back."""

    def __init__(
        self,
        server: WandbServer,
        key: str = API_KEY,
        timeout_s: float = 10.0,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self.http = httpx.Client(
            base_url=server.base_url, auth=("api", key), timeout=timeout_s, trust_env=False, verify=verify
        )

    def graphql(self, operation: str, **variables: Any) -> httpx.Response:
        body = {"query": "", "operationName": operation, "variables": variables}
        return self.http.post("/graphql", json=body)

    def upsert(self, run: str = "r", **variables: Any) -> dict[str, Any]:
        given = {"name": run, "project": "p", "entity": "ent", **variables}
        return self.graphql("UpsertBucket", **given).json()["data"]["upsertBucket"]

    def resume(self, run: str = "r") -> dict[str, Any] | None:
        model = self.graphql("RunResumeStatus", project="p", entity="ent", name=run).json()["data"]["model"]
        return model and model["bucket"]

    def post(self, body: Any, run: str = "r", **options: Any) -> httpx.Response:
        return self.http.post(f"/files/ent/p/{run}/file_stream", json=body, **options)

    def rows(self, offset: int, *rows: dict[str, Any], run: str = "r") -> httpx.Response:
        return self.post(lines("wandb-history.jsonl", offset, *map(json.dumps, rows)), run)

    def console(self, offset: int, *text: str) -> httpx.Response:
        return self.post(lines("output.log", offset, *text))


def lines(name: str, offset: int, *content: str) -> dict[str, Any]:
    return {"files": {name: {"offset": offset, "content": list(content)}}}


def row(step: int, **values: Any) -> dict[str, Any]:
    return {"_step": step, **values}


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def client(server: WandbServer) -> Client:
    """A client whose run `r` exists."""
    client = Client(server)
    client.upsert(config=STARTED)
    return client


# Keys


def test_a_request_without_a_valid_key_is_refused(server):
    stranger = Client(server, key="wrong")

    assert stranger.graphql("Viewer").status_code == 401
    assert stranger.post({}).status_code == 401
    assert httpx.post(f"{server.base_url}/graphql", json={}, trust_env=False).status_code == 401


def test_keys_are_rotated_while_the_server_runs(server):
    old, new = Client(server), Client(server, key="new")

    server.keys.add("new")
    both = [old.graphql("Viewer").status_code, new.graphql("Viewer").status_code]
    server.keys.discard(API_KEY)

    assert both == [200, 200]
    assert old.graphql("Viewer").status_code == 401
    assert new.graphql("Viewer").status_code == 200


# GraphQL


def test_viewer_names_the_default_entity(server):
    viewer = Client(server).graphql("Viewer").json()["data"]["viewer"]

    assert viewer["entity"] == "ent"


def test_an_unknown_operation_is_an_error_that_names_it(server):
    answer = Client(server).graphql("LaunchRockets").json()

    assert "LaunchRockets" in answer["errors"][0]["message"]


def test_an_operation_may_be_named_in_the_query_alone(server):
    answer = Client(server).http.post("/graphql", json={"query": "query Viewer { viewer { entity } }"})

    assert answer.json()["data"]["viewer"]["entity"] == "ent"


def test_upsert_creates_a_run_and_says_so(server):
    client = Client(server)

    first = client.upsert(displayName="nice", tags=["a"], notes="n", groupName="g", jobType="train")
    again = client.upsert()

    assert (first["inserted"], again["inserted"]) == (True, False)
    assert first["bucket"]["project"] == again["bucket"]["project"]
    run = server.run("ent", "p", "r")
    assert (run.display_name, run.tags, run.notes, run.group, run.job_type) == (
        "nice",
        ["a"],
        "n",
        "g",
        "train",
    )


def test_upsert_leaves_alone_what_is_null(server, client):
    client.upsert(displayName="nice", tags=["a"], config=None)

    client.upsert(displayName=None, tags=None, notes="new")

    run = server.run("ent", "p", "r")
    assert (run.display_name, run.tags, run.notes, run.config["lr"]) == ("nice", ["a"], "new", 0.1)


def test_upsert_replaces_the_whole_config(server, client):
    client.upsert(config=json.dumps({"only": {"value": {"x": [1]}}}))

    assert server.run("ent", "p", "r").config == {"only": {"x": [1]}}


def test_a_config_that_is_not_wrapped_is_a_violation(server, client):
    client.upsert(config='{"lr": 0.1}')

    assert "config key 'lr' is not wrapped" in server.violations[0]


def test_a_run_whose_config_is_refused_is_not_created(server):
    answer = Client(server).graphql("UpsertBucket", name="r", project="p", config="{")

    assert answer.status_code == 400
    assert server.runs() == []


def test_a_deleted_run_is_gone_and_cannot_be_created_again(server, client):
    client.graphql("DeleteRun", id=client.upsert()["bucket"]["id"])

    upsert = client.graphql("UpsertBucket", name="r", project="p", entity="ent")

    assert (upsert.status_code, client.post({}).status_code, client.resume()) == (409, 404, None)
    assert "use another run id" in upsert.json()["errors"][0]["message"]
    assert server.violations == []


def test_how_a_deleted_run_is_answered_can_be_chosen(server, client):
    server.deleted_answers = DeletedAnswers(file_stream=410, upsert=400)
    server.delete_run("ent", "p", "r")

    upsert = client.graphql("UpsertBucket", name="r", project="p", entity="ent")

    assert (client.post({}).status_code, upsert.status_code) == (410, 400)


ALERT = {"entityName": "ent", "projectName": "p", "runName": "r", "text": "x", "severity": "WARN"}


def test_alerts_are_kept_in_order_with_all_that_was_sent(server, client):
    client.graphql("NotifyScriptableRunAlert", **ALERT, title="first", waitDuration=60_000)
    client.graphql("NotifyScriptableRunAlert", **ALERT, title="second")

    assert server.alerts == [
        {**ALERT, "title": "first", "waitDuration": 60_000},
        {**ALERT, "title": "second"},
    ]


def test_an_alert_whose_answer_was_lost_is_there_twice_if_it_is_sent_again(server, client):
    server.faults.add("drop", applied=True, kind="graphql:NotifyScriptableRunAlert", times=1)
    with pytest.raises(httpx.TransportError):
        client.graphql("NotifyScriptableRunAlert", **ALERT, title="t")

    client.graphql("NotifyScriptableRunAlert", **ALERT, title="t")

    assert [alert["title"] for alert in server.alerts] == ["t", "t"]


# The file stream


def test_lines_are_spliced_at_their_offset(server, client):
    client.rows(0, row(0), row(1))
    client.rows(2, row(2))

    assert server.run("ent", "p", "r").history == [row(0), row(1), row(2)]
    assert server.violations == []


def test_the_same_lines_at_the_same_offset_change_nothing(server, client):
    client.rows(0, row(0), row(1))

    client.rows(1, row(1), row(2))

    run = server.run("ent", "p", "r")
    assert run.history == [row(0), row(1), row(2)]
    assert run.replayed_lines == 1
    assert server.violations == []


def test_history_events_and_console_have_offsets_of_their_own(server, client):
    client.rows(0, row(0), row(1))

    client.post(lines("wandb-events.jsonl", 0, '{"_wandb":true}'))
    client.console(0, "hello")

    status = client.resume()
    counts = [status[name] for name in ("historyLineCount", "eventsLineCount", "logLineCount")]
    assert counts == [2, 1, 1]
    assert server.violations == []


def test_the_summary_is_replaced_whole(server, client):
    client.post(lines("wandb-summary.json", 0, '{"a":1,"b":2}'))

    client.post(lines("wandb-summary.json", 0, '{"a":NaN}'))

    assert list(server.run("ent", "p", "r").summary) == ["a"]


def test_a_gap_is_a_violation(server, client):
    client.rows(3, row(3))

    assert "leaves a gap: offset 3, but the server has 0 lines" in server.violations[0]
    assert client.resume()["historyLineCount"] == 4


def test_a_gap_in_the_console_is_a_violation(server, client):
    client.console(0, "one")

    client.console(2, "three")

    assert "output.log leaves a gap: offset 2, but the server has 1 lines" in server.violations[0]


def test_overwriting_a_line_by_another_is_a_violation(server, client):
    client.rows(0, row(0, loss=1))

    client.rows(0, row(0, loss=2))

    assert "line 0 is overwritten by another line" in server.violations[0]


def test_one_of_the_last_32_console_lines_may_change(server, client):
    client.console(0, *map(str, range(40)))

    client.console(8, "changed")

    assert server.run("ent", "p", "r").console_lines[8] == "changed"
    assert server.violations == []


def test_an_older_console_line_may_not_change(server, client):
    client.console(0, *map(str, range(40)))

    client.console(7, "changed")

    assert "output.log line 7 is overwritten" in server.violations[0]


@pytest.mark.parametrize("line", ["{", "[1]", '"text"', "", "NaN"])
def test_a_history_line_that_is_no_json_object_is_a_violation(server, client, line):
    client.post(lines("wandb-history.jsonl", 0, line))

    assert "line 0 is not a JSON object" in server.violations[0]


def test_bare_nan_and_infinity_are_json_here(server, client):
    client.post(lines("wandb-history.jsonl", 0, '{"_step":0,"a":NaN,"b":Infinity,"c":-Infinity}'))

    assert server.violations == []


@pytest.mark.parametrize("step", [1, 0])
def test_a_step_that_does_not_increase_is_a_violation(server, client, step):
    client.rows(0, row(0), row(1))

    client.rows(2, row(step))

    assert f"line 2 has _step {step}, not above 1" in server.violations[0]


def test_a_row_without_a_step_is_a_violation(server, client):
    client.rows(0, {"loss": 1})

    assert "no integer _step" in server.violations[0]


def test_posting_before_upsert_is_refused_and_a_violation(server):
    answer = Client(server).rows(0, row(0))

    assert answer.status_code == 404
    assert "before any UpsertBucket" in server.violations[0]


def test_a_body_over_10_mib_is_a_violation(server, client):
    client.rows(0, row(0, text="x" * (10 * 1024 * 1024)))

    assert "is over 10485760" in server.violations[0]


def test_two_requests_in_flight_for_one_run_are_a_violation(server, client):
    server.faults.add("hang", kind="file_stream", times=1)
    first = threading.Thread(target=Client(server).post, args=({},))
    first.start()
    # Not its arrival: until the fault is taken, the second request might be the one that hangs.
    wait_for(lambda: server.faults.happened, "the first request hanging")

    client.post({})
    server.faults.clear()
    first.join()

    assert "two file_stream requests in flight at once" in server.violations[0]


def test_a_request_that_its_client_gave_up_is_no_longer_in_flight(server, client):
    server.faults.add("hang", kind="file_stream", times=1)
    with pytest.raises(httpx.ReadTimeout):
        Client(server, timeout_s=0.1).rows(0, row(0))

    client.rows(0, row(0))

    assert server.violations == []
    assert server.run("ent", "p", "r").replayed_lines == 0


def test_a_refused_request_changes_nothing(server, client):
    good = lines("wandb-history.jsonl", 0, '{"_step":0}')["files"]
    bad = lines("output.log", 0, "text")["files"]
    bad["output.log"]["offset"] = -1

    answer = client.post({"files": {**good, **bad}})

    assert answer.status_code == 400
    assert server.run("ent", "p", "r").history == []


def test_outside_strict_mode_nothing_is_a_violation():
    with WandbServer(strict=False) as server:
        client = Client(server)
        client.upsert()

        client.rows(5, {"no": "step"})

        assert server.violations == []


def test_an_append_server_doubles_replayed_lines():
    with WandbServer(append=True) as server:
        client = Client(server)
        client.upsert()

        client.rows(0, row(0))
        client.rows(0, row(0))

        assert server.run("ent", "p", "r").history == [row(0), row(0)]


def test_gzip_is_refused_unless_the_server_offers_it(server, client):
    body = gzip.compress(json.dumps(lines("wandb-history.jsonl", 0, '{"_step":0}')).encode())

    refused = client.http.post(
        "/files/ent/p/r/file_stream", content=body, headers={"content-encoding": "gzip"}
    )
    server.app.features.add("FILESTREAM_GZIP")
    taken = client.http.post("/files/ent/p/r/file_stream", content=body, headers={"content-encoding": "gzip"})

    assert (refused.status_code, taken.status_code) == (400, 200)
    assert "which this server did not offer" in server.violations[0]
    assert server.run("ent", "p", "r").history == [row(0)]


def test_rate_limit_headers_are_sent_when_set(server, client):
    server.rate_limit = (12, 3.5)

    headers = client.post({}).headers

    assert (headers["RateLimit-Remaining"], headers["RateLimit-Reset"]) == ("12", "3.5")


def test_the_stop_button_is_seen_in_the_answer(server, client):
    before = client.post({}).json()
    server.stop_run("ent", "p", "r")

    pressed = client.post({}).json()
    server.stop_run("ent", "p", "r", stopped=False)

    assert (before, pressed, client.post({}).json()) == ({}, {"stopped": True}, {})


def test_a_project_has_so_many_requests_in_a_window_and_no_more():
    clock = [1000.0]
    with WandbServer(now=lambda: clock[0]) as server:
        client = Client(server)
        client.upsert()
        server.project_limit = ProjectLimit(requests=2, per_s=10)

        answers = [client.rows(0, row(0)), client.post({}), client.post({})]
        clock[0] += 10
        later = client.post({})

        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["RateLimit-Remaining"] for answer in answers] == ["500", "0", "0"]
        assert (answers[2].headers["RateLimit-Reset"], answers[2].headers["Retry-After"]) == ("10", "10")
        assert later.status_code == 200


@pytest.mark.parametrize(
    ("retry_after", "header"), [("date", "Thu, 01 Jan 1970 00:16:50 GMT"), ("seconds", "10"), (None, None)]
)
def test_a_refusal_by_the_rate_limit_says_when_to_come_back(retry_after, header):
    with WandbServer(now=lambda: 1000.0) as server:
        client = Client(server)
        client.upsert()
        server.project_limit = ProjectLimit(requests=1, per_s=10, retry_after=retry_after)

        client.post({})

        assert client.post({}).headers.get("Retry-After") == header


def test_one_projects_limit_is_not_anothers(server, client):
    client.upsert(project="q")
    server.project_limit = ProjectLimit(requests=1, per_s=60)
    client.post({})

    assert client.post({}).status_code == 429
    assert client.http.post("/files/ent/q/r/file_stream", json={}).status_code == 200


def test_what_the_rate_limit_refuses_changes_nothing(server, client):
    server.project_limit = ProjectLimit(requests=1, per_s=60)
    client.post({})

    client.rows(0, row(0))

    assert server.run("ent", "p", "r").history == []


def test_requests_are_counted_by_project_and_second():
    clock = [1000.2]
    with WandbServer(now=lambda: clock[0]) as server:
        client = Client(server)
        client.upsert()
        client.post({})
        clock[0] = 1002.9
        client.post({})

        assert server.requests_per_second("ent", "p") == {1000: 2, 1002: 1}
        assert server.requests_per_second("ent", "q") == {}


def test_run_ids_are_percent_decoded_in_paths(server):
    client = Client(server)
    client.upsert("a b/ü")

    client.rows(0, row(0), run="a%20b%2F%C3%BC")

    assert server.run("ent", "p", "a b/ü").history == [row(0)]


# States


@pytest.mark.parametrize(("exitcode", "state"), [(0, "finished"), (1, "failed"), (255, "failed")])
def test_the_exit_code_decides_between_finished_and_failed(server, client, exitcode, state):
    client.post({"complete": True, "exitcode": exitcode})

    assert server.state(server.run("ent", "p", "r")) == state


def test_a_run_without_heartbeats_is_crashed():
    clock = [1000.0]
    with WandbServer(now=lambda: clock[0], crashed_after_s=60) as server:
        client = Client(server)
        client.upsert()
        run = server.run("ent", "p", "r")

        states = []
        for clock[0], heartbeat in [(1060.0, True), (1120.0, False), (1121.0, False)]:
            states.append(server.state(run))
            if heartbeat:
                client.post({})

        assert states == ["running", "running", "crashed"]


@pytest.mark.parametrize("last_word", [{}, {"complete": True, "exitcode": 0}])
def test_a_post_makes_a_crashed_or_finished_run_running_again(last_word):
    clock = [1000.0]
    with WandbServer(now=lambda: clock[0]) as server:
        client = Client(server)
        client.upsert()
        client.post(last_word)
        clock[0] += 10_000

        client.post({})

        assert server.state(server.run("ent", "p", "r")) == "running"


def test_a_pause_that_was_announced_is_no_crash():
    clock = [1000.0]
    with WandbServer(now=lambda: clock[0]) as server:
        client = Client(server)
        client.upsert()
        client.post({"preempting": True})

        clock[0] += 10_000

        assert server.state(server.run("ent", "p", "r")) == "preempted"


# Resume


def test_a_run_that_nobody_created_has_no_resume_status(server):
    assert Client(server).resume() is None


def test_resume_gives_counts_tails_summary_and_config(server, client):
    client.rows(0, row(0), row(1))
    client.post(lines("wandb-events.jsonl", 0, '{"_wandb":true,"_runtime":15}'))
    client.post(lines("wandb-summary.json", 0, '{"_step":1}'))

    status = client.resume()

    assert json.loads(status["historyTail"]) == ['{"_step": 1}']
    assert json.loads(status["eventsTail"]) == ['{"_wandb":true,"_runtime":15}']
    assert status["summaryMetrics"] == '{"_step":1}'
    assert json.loads(status["config"])["lr"] == {"value": 0.1}
    assert "t" in json.loads(status["wandbConfig"])


def test_a_config_without_t_makes_a_run_that_resume_takes_for_new(server):
    client = Client(server)
    client.upsert(config='{"_wandb":{"value":{}}}')

    status = client.resume()

    assert json.loads(status["wandbConfig"]) == {}


def test_upsert_answers_the_history_count(server, client):
    client.rows(0, row(0), row(1))

    assert client.upsert()["bucket"]["historyLineCount"] == 2


def test_late_counts_catch_up_after_some_answers(server, client):
    server.resume = ResumeAnswers("late", behind=1, queries=2)
    client.rows(0, row(0))
    client.rows(1, row(1), row(2))

    answers = [client.resume() for _ in range(3)]

    assert [answer["historyLineCount"] for answer in answers] == [1, 1, 3]
    assert [json.loads(answer["historyTail"]) for answer in answers][1:] == [
        ['{"_step": 0}'],
        ['{"_step": 2}'],
    ]


def test_upsert_is_late_too_and_brings_resume_no_nearer_to_the_truth(server, client):
    server.resume = ResumeAnswers("late", behind=1, queries=1)
    client.rows(0, row(0))

    upserted = [client.upsert()["bucket"]["historyLineCount"] for _ in range(3)]

    assert upserted == [0, 0, 0]
    assert [client.resume()["historyLineCount"] for _ in range(2)] == [0, 1]


def test_late_counts_catch_up_with_time():
    clock = [1000.0]
    with WandbServer(now=lambda: clock[0], resume=ResumeAnswers("late", lag_s=4)) as server:
        client = Client(server)
        client.upsert(config=STARTED)

        client.rows(0, row(0))
        at_once = client.resume()["historyLineCount"]
        clock[0] += 4

        assert (at_once, client.resume()["historyLineCount"]) == (0, 1)


@pytest.mark.parametrize(
    ("of", "counts"), [("history", [1, 2, 2]), ("events", [2, 1, 2]), ("console", [2, 2, 1])]
)
def test_each_of_the_three_counts_can_be_late_alone(server, client, of, counts):
    server.resume = ResumeAnswers("late", of=(of,))
    for i in range(2):
        client.post(
            {
                "files": {
                    "wandb-history.jsonl": {"offset": i, "content": [json.dumps(row(i))]},
                    "wandb-events.jsonl": {"offset": i, "content": ["{}"]},
                    "output.log": {"offset": i, "content": ["text"]},
                }
            }
        )

    status = client.resume()

    names = ("historyLineCount", "eventsLineCount", "logLineCount")
    assert [status[name] for name in names] == counts


def test_counts_can_lack_some_lines(server, client):
    server.resume = ResumeAnswers("late", lines=3, queries=1)
    client.rows(0, *[row(i) for i in range(10)])

    answers = [client.resume() for _ in range(2)]

    assert [answer["historyLineCount"] for answer in answers] == [7, 10]
    assert json.loads(answers[0]["historyTail"]) == ['{"_step": 6}']


def test_a_stale_tail_is_older_than_the_count(server, client):
    server.resume = ResumeAnswers("stale", queries=None)
    client.rows(0, row(0))
    client.rows(1, row(1))

    status = client.resume()

    assert status["historyLineCount"] == 2
    assert json.loads(status["historyTail"]) == ['{"_step": 0}']


def test_a_seeded_run_looks_like_another_clients(server):
    server.seed_run("p", "r", 3, config={"lr": 1}, events=2, console=["hi"], displayName="theirs")

    status = Client(server).resume()

    assert [status[name] for name in ("historyLineCount", "eventsLineCount", "logLineCount")] == [3, 2, 1]
    assert status["displayName"] == "theirs"
    assert "t" in json.loads(status["wandbConfig"])
    assert server.violations == []


def test_a_scan_returns_the_rows_of_a_range_of_steps(server, client):
    client.rows(0, row(0), row(5), row(9), row(10))

    page = client.graphql(
        "HistoryPage", entity="ent", project="p", run="r", minStep=5, maxStep=10, pageSize=5
    ).json()

    lines_of_page = page["data"]["project"]["run"]["history"]
    assert list(map(json.loads, lines_of_page)) == [row(5), row(9)]


# Files


def upload(client: Client, name: str, content: bytes, headers: bool = True) -> httpx.Response:
    answer = client.graphql("CreateRunFiles", entity="ent", project="p", run="r", files=[name])
    target = answer.json()["data"]["createRunFiles"]
    wanted = dict(header.split(": ") for header in target["uploadHeaders"]) if headers else {}
    url = target["files"][0]["uploadUrl"]
    return httpx.put(url, content=content, headers=wanted, trust_env=False)


def test_a_file_is_uploaded_without_a_key_and_then_announced(server, client):
    answer = upload(client, "media/a b.txt", b"content")
    client.post({"uploaded": ["media/a b.txt"]})

    run = server.run("ent", "p", "r")
    assert answer.status_code == 200
    assert run.files == {"media/a b.txt": b"content"}
    assert run.uploaded == ["media/a b.txt"]
    assert server.violations == []


def test_a_file_that_is_announced_and_was_never_put_is_a_violation(server, client):
    client.post({"uploaded": ["media/a.txt"]})

    assert "'media/a.txt' is announced as uploaded, and was not" in server.violations[0]


def test_completing_without_a_file_that_was_promised_is_a_violation(server, client):
    client.graphql("CreateRunFiles", entity="ent", project="p", run="r", files=["a.txt"])

    client.post({"complete": True, "exitcode": 0})

    assert "complete, but never uploaded: a.txt" in server.violations[0]


def test_completing_without_a_media_file_that_a_row_names_is_a_violation(server, client):
    image = {"_type": "image-file", "path": "media/images/a.png", "sha256": "", "size": 1}
    client.rows(0, row(0, images={"_type": "images/separated", "all": [image]}))

    client.post({"complete": True, "exitcode": 0})

    assert "complete, but never uploaded: media/images/a.png" in server.violations[0]


def test_completing_after_every_file_is_right(server, client):
    image = {"_type": "image-file", "path": "media/images/a.png", "sha256": "", "size": 1}
    client.rows(0, row(0, image=image))
    upload(client, "media/images/a.png", b"x")

    client.post({"uploaded": ["media/images/a.png"], "complete": True, "exitcode": 0})

    assert server.violations == []


def test_an_expired_url_is_refused_until_another_is_asked_for(server, client):
    answer = client.graphql("CreateRunFiles", entity="ent", project="p", run="r", files=["a.txt"]).json()
    target = answer["data"]["createRunFiles"]
    headers = dict(header.split(": ") for header in target["uploadHeaders"])
    server.expire_urls()

    old = httpx.put(target["files"][0]["uploadUrl"], content=b"", headers=headers, trust_env=False)
    new = upload(client, "a.txt", b"content")

    assert (old.status_code, new.status_code) == (403, 200)
    assert server.run("ent", "p", "r").files == {"a.txt": b"content"}


def test_an_upload_that_ends_before_its_length_is_not_stored(server, client):
    answer = client.graphql("CreateRunFiles", entity="ent", project="p", run="r", files=["a.txt"]).json()
    url = httpx.URL(answer["data"]["createRunFiles"]["files"][0]["uploadUrl"])
    head = f"PUT {url.raw_path.decode()} HTTP/1.1\r\nHost: x\r\nX-Upload-Token: tidelog\r\nContent-Length: 9\r\n\r\n"

    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + b"half")
        connection.shutdown(socket.SHUT_WR)
        rest = connection.recv(1000)

    assert not rest.startswith(b"HTTP/1.1 200")
    assert server.run("ent", "p", "r").files == {}


def test_upload_urls_lead_to_another_host(server, client):
    answer = client.graphql("CreateRunFiles", entity="ent", project="p", run="r", files=["a.txt"]).json()

    url = httpx.URL(answer["data"]["createRunFiles"]["files"][0]["uploadUrl"])
    assert url.host != httpx.URL(server.base_url).host


def test_an_upload_without_the_upload_headers_is_refused(server, client):
    answer = upload(client, "a.txt", b"", headers=False)

    assert answer.status_code == 403
    assert "without the upload header" in server.violations[0]


def test_a_key_sent_to_a_file_url_is_a_violation(server, client):
    client.http.put("/_files/runs/ent/p/r/a.txt", content=b"")

    assert "the API key was sent to a signed URL" in server.violations[0]


ARTIFACT = {
    "entityName": "ent",
    "projectName": "p",
    "runName": "r",
    "artifactTypeName": "run_table",
    "artifactCollectionName": "run-r-tab",
    "digest": "d1",
    "clientID": "c1",
    "sequenceClientID": "s1",
    "enableDigestDeduplication": True,
    "aliases": [{"artifactCollectionName": "run-r-tab", "alias": "latest"}],
}


def put_artifact_file(answer: httpx.Response, content: bytes) -> None:
    [edge] = answer.json()["data"]["createArtifactFiles"]["files"]["edges"]
    headers = dict(header.split(": ") for header in edge["node"]["uploadHeaders"])
    httpx.put(edge["node"]["uploadUrl"], content=content, headers=headers, trust_env=False)


def put_manifest(client: Client, artifact_id: str, contents: dict[str, Any]) -> None:
    answer = client.graphql(
        "CreateArtifactManifest", artifactID=artifact_id, name="wandb_manifest.json", digest="m"
    )
    file = answer.json()["data"]["createArtifactManifest"]["artifactManifest"]["file"]
    headers = dict(header.split(": ") for header in file["uploadHeaders"])
    body = json.dumps({"version": 1, "contents": contents})
    httpx.put(file["uploadUrl"], content=body, headers=headers, trust_env=False)


def test_an_artifact_is_committed_once_and_then_known_by_its_digest(server, client):
    md5_of_hello = "XUFAKrxLKna5cZ2REBfFkg=="
    created = client.graphql("CreateArtifact", input=ARTIFACT).json()["data"]["createArtifact"]["artifact"]
    file = {"artifactID": created["id"], "name": "tab.json", "md5": md5_of_hello}

    put_artifact_file(client.graphql("CreateArtifactFiles", artifactFiles=[file]), b"hello")
    put_manifest(client, created["id"], {"tab.json": {"digest": md5_of_hello, "size": 5}})
    client.graphql("CommitArtifact", artifactID=created["id"])
    again = client.graphql("CreateArtifact", input={**ARTIFACT, "clientID": "c2"}).json()

    assert created["state"] == "PENDING"
    assert again["data"]["createArtifact"]["artifact"]["state"] == "COMMITTED"
    assert again["data"]["createArtifact"]["artifact"]["id"] == created["id"]
    assert server.violations == []


def test_a_client_id_that_comes_again_means_the_same_artifact(server, client):
    first = client.graphql("CreateArtifact", input=ARTIFACT).json()
    again = client.graphql("CreateArtifact", input=ARTIFACT).json()
    other = client.graphql("CreateArtifact", input={**ARTIFACT, "clientID": "c2"}).json()

    ids = [each["data"]["createArtifact"]["artifact"]["id"] for each in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]


def test_an_artifact_without_its_files_is_not_committed(server, client):
    created = client.graphql("CreateArtifact", input=ARTIFACT).json()["data"]["createArtifact"]["artifact"]
    put_manifest(client, created["id"], {"tab.json": {"digest": "missing", "size": 5}})

    answer = client.graphql("CommitArtifact", artifactID=created["id"])

    assert answer.status_code == 400
    assert "is committed without tab.json" in server.violations[0]


# Faults


def test_a_dropped_request_was_not_carried_out(server, client):
    server.faults.add("drop", kind="file_stream", times=1)

    with pytest.raises(httpx.RemoteProtocolError):
        client.rows(0, row(0))

    assert server.run("ent", "p", "r").history == []
    assert server.requests[-1].status is None


def test_an_answer_can_be_lost_after_the_commit(server, client):
    server.faults.add("drop", applied=True, kind="file_stream", times=1)

    with pytest.raises(httpx.RemoteProtocolError):
        client.rows(0, row(0))
    client.rows(0, row(0))

    run = server.run("ent", "p", "r")
    assert (run.history, run.replayed_lines) == ([row(0)], 1)


def test_a_hanging_request_is_answered_when_it_is_released(server, client):
    server.faults.add("hang", kind="file_stream")
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(client.rows(0, row(0))))
    waiting.start()
    wait_for(lambda: server.faults.happened, "the hang")

    still_nothing = list(answers)
    server.faults.clear()
    waiting.join()

    assert still_nothing == []
    assert answers[0].status_code == 200


def test_a_hanging_request_is_answered_after_its_time(server, client):
    server.faults.add("hang", hang_s=0.05, times=1)

    assert client.post({}).status_code == 200


def test_an_answer_can_drip_byte_by_byte(server, client):
    server.faults.add("drip", drip_s=0.001, times=1)
    started = time.monotonic()

    answer = client.post({})

    assert answer.json() == {}
    assert time.monotonic() - started > 0.05


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503])
def test_any_status_can_be_injected(server, client, status):
    server.faults.add("status", status=status, times=1)

    assert [client.post({}).status_code, client.post({}).status_code] == [status, 200]


@pytest.mark.parametrize("retry_after", ["2", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_429_carries_retry_after(server, client, retry_after):
    server.faults.add("status", status=429, retry_after=retry_after, times=1)

    assert client.post({}).headers["Retry-After"] == retry_after


def test_only_bodies_over_the_limit_meet_413(server, client):
    server.faults.add("status", status=413, over_bytes=1000)

    statuses = [client.rows(0, row(0)).status_code, client.rows(1, row(1, x="x" * 1000)).status_code]

    assert statuses == [200, 413]


def test_only_a_body_with_the_poison_line_meets_422(server, client):
    server.faults.add("status", status=422, containing="POISON")

    statuses = [client.rows(0, row(0)).status_code, client.rows(1, row(1, x="POISON")).status_code]

    assert statuses == [200, 422]


def test_a_captive_portal_answers_200_and_html(server, client):
    server.faults.add("portal", kind="file_stream", times=1)

    answer = client.rows(0, row(0))

    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html")
    assert server.run("ent", "p", "r").history == []


def test_a_captive_portal_can_redirect_to_its_page(server, client):
    server.faults.add("redirect")

    answer = client.post({}, follow_redirects=True)

    assert answer.history[0].status_code == 302
    assert "sign in" in answer.text


def test_a_truncated_answer_breaks_off(server, client):
    server.faults.add("truncate", times=1)

    with pytest.raises(httpx.RemoteProtocolError):
        client.rows(0, row(0))

    assert server.run("ent", "p", "r").history == [row(0)]


@pytest.mark.parametrize(
    ("kind", "viewer", "file_stream"),
    [
        ("any", 503, 503),
        ("graphql", 503, 200),
        ("graphql:Viewer", 503, 200),
        ("graphql:Other", 200, 200),
        ("file_stream", 200, 503),
    ],
)
def test_a_fault_befalls_its_kind_only(server, client, kind, viewer, file_stream):
    server.faults.add("status", kind=kind)

    assert client.graphql("Viewer").status_code == viewer
    assert client.post({}).status_code == file_stream


def test_a_fault_befalls_its_run_only(server, client):
    client.upsert("other")
    server.faults.add("status", run="ent/p/other")

    assert [client.post({}, "r").status_code, client.post({}, "other").status_code] == [200, 503]


def test_uploads_can_fail_too(server, client):
    server.faults.add("status", kind="files")

    assert upload(client, "a.txt", b"").status_code == 503


def test_a_fault_befalls_its_project_only(server, client):
    client.upsert(project="q")
    server.faults.add("status", status=403, project="ent/q")

    assert client.post({}).status_code == 200
    assert client.http.post("/files/ent/q/r/file_stream", json={}).status_code == 403
    assert client.graphql("RunResumeStatus", entity="ent", project="q", name="r").status_code == 403


def test_a_connection_can_be_reset_in_the_middle_of_a_body(server, client):
    server.faults.add("reset", kind="file_stream", after_bytes=100_000, times=1)

    with pytest.raises(httpx.TransportError):
        client.rows(0, row(0, text="x" * 8_000_000))

    assert server.run("ent", "p", "r").history == []
    assert client.rows(0, row(0)).status_code == 200


def test_an_upload_can_be_cut(server, client):
    server.faults.add("reset", kind="files", after_bytes=1, times=1)

    with pytest.raises(httpx.TransportError):
        upload(client, "a.bin", b"x" * 8_000_000)

    assert server.run("ent", "p", "r").files == {}


def test_a_body_that_is_read_slowly_stalls_the_clients_writes(server, client):
    server.faults.add("slow_read", kind="files", drip_s=0.5, over_bytes=1_000_000)
    answer = client.graphql("CreateRunFiles", entity="ent", project="p", run="r", files=["a"]).json()
    url = answer["data"]["createRunFiles"]["files"][0]["uploadUrl"]

    with pytest.raises(httpx.WriteTimeout):
        httpx.put(url, content=b"x" * 30_000_000, timeout=httpx.Timeout(10, write=0.1), trust_env=False)


def test_a_body_that_is_read_slowly_arrives_whole_at_last(server, client):
    server.faults.add("slow_read", kind="files", drip_s=0.001, times=1)

    upload(client, "a.bin", b"x" * 1_000_000)

    assert len(server.run("ent", "p", "r").files["a.bin"]) == 1_000_000
    assert server.requests[-1].fault.action == "slow_read"


def test_a_fault_lapses():
    clock = [1000.0]
    with WandbServer(now=lambda: clock[0]) as server:
        client = Client(server)
        server.faults.add("status", for_s=10)

        during = client.graphql("Viewer").status_code
        clock[0] += 10

        assert (during, client.graphql("Viewer").status_code) == (503, 200)


def test_an_unknown_fault_is_refused_with_the_choice(server):
    with pytest.raises(ValueError, match="use one of drop, hang"):
        server.faults.add("earthquake")


def test_down_refuses_connections_and_up_listens_on_the_same_port(server, client):
    client.post({})

    server.down()
    with pytest.raises(httpx.TransportError):
        client.post({})
    with pytest.raises(httpx.ConnectError):
        client.post({})
    server.up()

    assert client.post({}).status_code == 200


def test_in_a_silence_connections_are_accepted_and_nothing_comes_back(server):
    server.silence()
    waiting = Client(server, timeout_s=0.2)

    with pytest.raises(httpx.ReadTimeout):
        waiting.graphql("Viewer")
    server.up()

    assert waiting.graphql("Viewer").status_code == 200


def test_what_was_sent_into_a_silence_is_served_after_it(server):
    answers: list[httpx.Response] = []
    server.silence()
    waiting = threading.Thread(target=lambda: answers.append(Client(server).graphql("Viewer")))
    waiting.start()

    server.up()
    waiting.join()

    assert answers[0].status_code == 200


@pytest.mark.parametrize("way", ["silence", "black_hole"])
def test_an_open_connection_stands_still(server, way):
    client = Client(server, timeout_s=0.2)
    client.graphql("Viewer")

    getattr(server, way)()

    with pytest.raises(httpx.TimeoutException):
        client.graphql("Viewer")


@pytest.mark.parametrize("way", ["silence", "black_hole"])
def test_an_open_connection_goes_on_after_it(server, way):
    client = Client(server)
    client.graphql("Viewer")
    answers: list[httpx.Response] = []
    getattr(server, way)()
    waiting = threading.Thread(target=lambda: answers.append(client.graphql("Viewer")))
    waiting.start()

    server.up()
    waiting.join()

    assert answers[0].status_code == 200


def test_a_black_hole_does_not_even_accept(server):
    server.black_hole()

    with pytest.raises(httpx.ConnectTimeout):
        Client(server, timeout_s=0.3).graphql("Viewer")
    server.up()

    assert Client(server).graphql("Viewer").status_code == 200


# TLS


def test_a_client_that_trusts_the_ca_gets_through_and_another_does_not(tmp_path):
    made = make_certificates(tmp_path)
    with WandbServer(tls=made) as server:
        trusting = Client(server, verify=ssl.create_default_context(cafile=str(made.ca)))

        answer = trusting.graphql("Viewer")

        assert server.base_url.startswith("https://")
        assert answer.status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            Client(server).graphql("Viewer")


def test_upload_urls_and_broken_answers_speak_tls_too(tmp_path):
    made = make_certificates(tmp_path)
    trust = ssl.create_default_context(cafile=str(made.ca))
    with WandbServer(tls=made) as server:
        client = Client(server, verify=trust)
        client.upsert()
        answer = client.graphql("CreateRunFiles", entity="ent", project="p", run="r", files=["a"]).json()
        target = answer["data"]["createRunFiles"]
        headers = dict(header.split(": ") for header in target["uploadHeaders"])
        url = target["files"][0]["uploadUrl"]

        stored = httpx.put(url, content=b"x", headers=headers, trust_env=False, verify=trust)
        server.faults.add("drop", times=1)

        assert (stored.status_code, url.startswith("https://localhost")) == (200, True)
        with pytest.raises(httpx.TransportError):
            client.post({})


def test_down_drops_a_request_under_way(server):
    client = Client(server)
    server.faults.add("hang")
    failures: list[Exception] = []

    def attempt() -> None:
        try:
            client.graphql("Viewer")
        except httpx.TransportError as error:
            failures.append(error)

    waiting = threading.Thread(target=attempt)
    waiting.start()
    wait_for(lambda: server.faults.happened, "the hang")
    server.down()
    waiting.join()

    assert len(failures) == 1


def test_random_misbehaviour_is_the_same_for_the_same_seed():
    def outcomes(seed: int) -> list[Any]:
        with WandbServer() as server:
            client = Client(server)
            server.random_misbehaviour(seed, rate=0.5)
            for _ in range(40):
                try:
                    client.graphql("Viewer")
                except httpx.TransportError:
                    continue
            return [request.fault for request in server.requests]

    first = outcomes(1)

    assert first == outcomes(1)
    assert first != outcomes(2)
    assert {fault for fault in first if fault} <= set(RETRYABLE)
    assert None in first


def test_a_careful_client_gets_every_row_through_random_misbehaviour(server, client):
    server.random_misbehaviour(seed=3, rate=0.4)
    rows = [row(step) for step in range(60)]

    for offset in range(0, 60, 3):
        for _ in range(100):
            try:
                if client.rows(offset, *rows[offset : offset + 3]).status_code == 200:
                    break
            except httpx.TransportError:
                continue

    assert differences(rows, server.run("ent", "p", "r").history) == []
    assert server.violations == []
    assert server.run("ent", "p", "r").replayed_lines > 0


# What is recorded


def test_every_request_is_recorded_without_the_key(server, client):
    client.rows(0, row(0))

    upsert, post = server.requests
    assert (upsert.kind, upsert.operation, upsert.variables["name"]) == (
        "graphql:UpsertBucket",
        "UpsertBucket",
        "r",
    )
    assert (post.kind, post.status, post.run) == ("file_stream", 200, ("ent", "p", "r"))
    assert post.body["files"]["wandb-history.jsonl"]["offset"] == 0
    assert "authorization" not in post.headers


def test_requests_are_forgotten_when_asked():
    with WandbServer(keep_requests=False) as server:
        Client(server).graphql("Viewer")

        assert server.requests == []
        assert server.app.request_count == 1


# The checker


def test_the_checker_accepts_the_same_rows_whatever_their_clocks_and_number_types():
    logged = [{"_step": 0, "a": 1, "n": float("nan")}, {"_step": 1, "a": 2.0}]
    held = [{"n": float("nan"), "a": 1.0, "_step": 0, "_runtime": 3.0}, {"a": 2, "_step": 1}]

    assert differences(logged, held) == []


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        ([row(0), row(2)], "1 row is lost"),
        ([row(0), row(1), row(1), row(2)], "1 row is there too often"),
        ([row(0), row(1), row(2), row(9)], "1 row is there that nobody logged"),
        ([row(1), row(0), row(2)], "in another order"),
    ],
)
def test_the_checker_names_what_is_wrong(held, sentence):
    [found] = differences([row(0), row(1), row(2)], held)

    assert sentence in found


def test_the_checker_catches_the_append_server():
    with WandbServer(append=True) as server:
        client = Client(server)
        client.upsert()
        server.faults.add("drop", applied=True, kind="file_stream", times=1)
        with pytest.raises(httpx.TransportError):
            client.rows(0, row(0))
        client.rows(0, row(0))

        assert differences([row(0)], server.run("ent", "p", "r").history) != []


# As a process


@pytest.fixture
def process_url(tmp_path: Path) -> Iterator[str]:
    port_file = tmp_path / "port"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.wandb_server", "--port-file", str(port_file), "--entity", "demo"],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(port_file.exists, "the port file")
        yield f"http://127.0.0.1:{port_file.read_text()}"
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_a_server_process_is_steered_over_http(process_url):
    http = httpx.Client(base_url=process_url, auth=("api", API_KEY), trust_env=False)
    http.post("/_test/seed", json={"project": "p", "run_id": "r", "rows": 3}).raise_for_status()

    http.post("/_test/faults", json={"action": "status", "status": 502, "times": 1}).raise_for_status()
    statuses = [http.post("/files/demo/p/r/file_stream", json={}).status_code for _ in range(2)]
    http.post("/files/demo/p/r/file_stream", json=lines("wandb-history.jsonl", 9, '{"_step":9}'))

    run = http.get("/_test/runs/demo/p/r").json()
    assert statuses == [502, 200]
    assert (run["state"], run["history_count"]) == ("running", 10)
    assert "leaves a gap" in http.get("/_test/violations").json()[0]
    assert http.get("/_test/requests").json()[0]["fault"] == "status"


def test_every_control_is_reached_over_http(process_url):
    http = httpx.Client(base_url=process_url, auth=("api", API_KEY), trust_env=False)

    def steer(path: str, **body: Any) -> Any:
        return http.post(f"/_test/{path}", json=body).raise_for_status().json()

    steer("seed", project="p", run_id="r", rows=3)
    steer("resume", mode="late", lines=2, of=["history"])
    status = http.post(
        "/graphql",
        json={
            "operationName": "RunResumeStatus",
            "variables": {"project": "p", "entity": "demo", "name": "r"},
        },
    ).json()["data"]["model"]["bucket"]
    steer("deleted_answers", file_stream=410)
    steer("expire_urls")
    steer("runs/demo/p/r/stop")
    stopped = http.post("/files/demo/p/r/file_stream", json={}).json()
    steer("runs/demo/p/r/stop", stopped=False)
    steer("project_limit", requests=1, per_s=60)
    statuses = [http.post("/files/demo/p/r/file_stream", json={}).status_code for _ in range(2)]
    steer("project_limit")
    http.delete("/_test/runs/demo/p/r").raise_for_status()
    statuses.append(http.post("/files/demo/p/r/file_stream", json={}).status_code)

    assert (status["historyLineCount"], stopped, statuses) == (1, {"stopped": True}, [200, 429, 410])
    assert sum(http.get("/_test/traffic/demo/p").json().values()) == 5


@pytest.mark.parametrize("how", ["down", "silence", "black_hole"])
def test_a_server_process_goes_away_for_some_seconds(process_url, how):
    def answers() -> bool:
        try:
            health = httpx.get(f"{process_url}/_test/health", trust_env=False, timeout=0.2)
            return health.status_code == 200
        except httpx.TransportError:
            return False

    httpx.post(
        f"{process_url}/_test/down", json={"seconds": 0.5, "how": how}, trust_env=False
    ).raise_for_status()

    wait_for(lambda: not answers(), "the outage")
    wait_for(answers, "its end")


# Under load


def test_three_clients_upload_10_000_rows_each(server):
    rows = [row(step, loss=step * 0.5) for step in range(10_000)]

    def ship(run: str) -> None:
        client = Client(server)
        client.upsert(run)
        for offset in range(0, len(rows), 1000):
            client.rows(offset, *rows[offset : offset + 1000], run=run)

    clients = [threading.Thread(target=ship, args=(name,)) for name in ("a", "b", "c")]
    for client in clients:
        client.start()
    for client in clients:
        client.join()

    assert [len(run.history_lines) for run in server.runs()] == [10_000] * 3
    assert server.violations == []


def test_a_fault_is_a_value_that_can_be_prepared(server, client):
    server.faults.add(Fault("status", status=500, times=1))

    assert client.post({}).status_code == 500
