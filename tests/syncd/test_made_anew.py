"""The log of a run that W&B's SDK recorded is made anew: what is there is compared with it, and nothing is doubled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventlog.cursor import APPEND, CONTINUE, Cursor, Sink, cursors
from eventlog.imported import ImportedPiece
from eventlog.piece import RunIdentity
from syncd import sync as sync_module
from syncd.alerts import in_a_log_made_anew
from syncd.daemon import Daemon
from syncd.fold import HISTORY
from syncd.metadata import MARK
from syncd.run_sync import RunSync
from syncd.status import ALERT_UNCERTAIN, TAKEN_FOR_THERE, RunStatus, run_status
from syncd.wandb_api import WandbApi
from syncd.wandb_records import Event, Translator
from tests.syncd.syncing import DEADLINE_S, sync
from tests.syncd.test_wandb_records import EXIT, items, record, row, run_record
from tests.wandb_server import API_KEY, WandbServer
from tests.wandb_server.store import StoredRun

pytestmark = pytest.mark.slow

IDENTITY = RunIdentity("a" * 32, "demo", "run", None, 1)


def rows(*numbers: int) -> list[bytes]:
    return [row(i, at_s=float(i), x=i) for i in numbers]


def made(root: Path, *files: list[bytes], token: str = "0000000") -> Path:
    """Make the log of these files, whatever there was before; each piece has a token of that beginning."""
    run_dir = IDENTITY.directory(root)
    IDENTITY.publish(run_dir)
    for number, payloads in enumerate(files, start=1):
        piece = ImportedPiece.open(run_dir, IDENTITY, f"main-{number:04}")
        assert piece is not None
        piece.begin(f"{token}{number}")
        translator = Translator()
        things = [thing for payload in payloads for thing in translator.feed(payload)]
        for thing in [*things, *translator.end()]:
            assert isinstance(thing, Event)
            is_row = thing.kind == "metrics"
            piece.append(thing.stream, thing.kind, thing.data, thing.time_us, thing.step, is_row)
        piece.flush()
        piece.close()
    return run_dir


def synced(server: WandbServer, run_dir: Path, **options: Any) -> Cursor:
    sync(server, run_dir.parents[1], roots=list, asked_for=[run_dir], **options)
    return cursor_of(run_dir)


def cursor_of(run_dir: Path) -> Cursor:
    return max(cursors(run_dir), key=lambda cursor: cursor.time)


def status_of(run_dir: Path) -> RunStatus:
    return run_status(run_dir, cursor_of(run_dir).sink, 0, online=True)


def there(server: WandbServer) -> StoredRun:
    return server.run("ent", "demo", "run")


def xs(server: WandbServer) -> list[Any]:
    return [line.get("x") for line in there(server).history]


# -- what goes on ----------------------------------------------------------------------------------------------


def test_a_file_that_has_grown_goes_on_behind_what_is_there(server: WandbServer, tmp_path: Path):
    synced(server, made(tmp_path, [run_record(), *rows(0, 1, 2)]))
    with server.lock:
        there(server).notes = "by hand"

    cursor = synced(server, made(tmp_path, [run_record(), *rows(0, 1, 2, 3, 4), EXIT], token="1111111"))

    assert xs(server) == [0, 1, 2, 3, 4]
    assert there(server).complete
    assert there(server).notes == "by hand"
    assert there(server).config[MARK]["pieces"] == cursor.pieces == ["11111111"]
    assert (cursor.state, cursor.error) == ("synced", None)
    assert server.violations == []


@pytest.mark.parametrize("keeps_cursor", [True, False], ids=["its cursor", "no cursor"])
def test_what_was_made_anew_and_is_the_same_is_not_sent_again(
    server: WandbServer, tmp_path: Path, keeps_cursor: bool
):
    file = [run_record(), *rows(0, 1, 2), EXIT]
    synced(server, made(tmp_path, file))
    if not keeps_cursor:
        for path in (tmp_path / "demo" / "run" / "sync").iterdir():
            path.unlink()

    cursor = synced(server, made(tmp_path, file, token="1111111"))

    assert xs(server) == [0, 1, 2]
    assert there(server).replayed_lines == 0
    assert cursor.pieces == ["11111111"]
    assert server.violations == []


def test_a_second_file_is_announced_after_the_first_was_made_anew(server: WandbServer, tmp_path: Path):
    first, second = [run_record(), *rows(0, 1), EXIT], [run_record(), *rows(2, 3), EXIT]
    synced(server, made(tmp_path, first))

    cursor = synced(server, made(tmp_path, first, second, token="1111111"))

    assert xs(server) == [0, 1, 2, 3]
    assert cursor.pieces == ["11111111", "11111112"]
    assert server.violations == []


def test_another_log_of_the_same_files_goes_on_where_the_first_is(server: WandbServer, tmp_path: Path):
    first, second = [run_record(), *rows(0, 1), EXIT], [run_record(), *rows(2, 3), EXIT]
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    run_dir = made(here, first)
    synced(server, run_dir)
    synced(server, made(elsewhere, first, second, token="1111111"))

    synced(server, made(here, first, second))

    assert xs(server) == [0, 1, 2, 3]
    assert cursor_of(run_dir).state == "synced"
    assert server.violations == []


def test_an_answer_that_was_lost_while_the_mark_is_changed_costs_nothing(server: WandbServer, tmp_path: Path):
    synced(server, made(tmp_path, [run_record(), *rows(0, 1)]))
    server.faults.add("drop", kind="graphql:UpsertBucket", applied=True, times=1)

    synced(server, made(tmp_path, [run_record(), *rows(0, 1, 2), EXIT], token="1111111"))

    assert xs(server) == [0, 1, 2]
    assert server.violations == []


def test_the_stub_of_a_refused_row_stands_for_it(server: WandbServer, tmp_path: Path):
    big = record(history={"item": items({"big": "x" * 20_000, "_step": 1}), "step": {"num": 1}})
    before = [run_record(), *rows(0), big, *rows(2)]
    server.faults.add("status", kind="file_stream", status=413, over_bytes=10_000)
    synced(server, made(tmp_path, before))

    cursor = synced(server, made(tmp_path, [*before, *rows(3), EXIT], token="1111111"))

    assert xs(server) == [0, None, 2, 3]
    assert cursor.state == "synced"
    assert sum(cursor.not_shown.values()) == 1
    assert server.violations == []


def test_a_log_that_is_made_anew_under_our_hands_is_compared_before_the_next_line(
    server: WandbServer, tmp_path: Path
):
    run_dir = made(tmp_path, [run_record(), *rows(0, 1)])
    api = WandbApi(server.base_url, lambda: API_KEY)
    run = RunSync(run_dir, Sink(server.base_url, None, "demo", "run"), api, asked_for=True, steady_s=0.0)

    async def turns_until(is_time: Callable[[], object]) -> None:
        while not is_time():
            await run.turn(time.monotonic())
            await asyncio.sleep(0.01)

    async def both() -> None:
        await turns_until(lambda: server.runs() and xs(server) == [0, 1])
        made(tmp_path, [run_record(), *rows(0, 7, 1, 8), EXIT], token="1111111")
        await turns_until(lambda: run.parked)
        run.close()
        await api.close()

    asyncio.run(asyncio.wait_for(both(), DEADLINE_S))

    assert xs(server) == [0, 1]
    assert "row 1 of this run" in (run.error or "")


# -- what does not ---------------------------------------------------------------------------------------------


def test_a_row_that_was_damaged_and_is_there_now_stops_it(server: WandbServer, tmp_path: Path):
    synced(server, made(tmp_path, [run_record(), *rows(0, 1, 4, 5)]))

    cursor = synced(server, made(tmp_path, [run_record(), *rows(0, 1, 2, 3, 4, 5, 6), EXIT], token="1111111"))

    assert xs(server) == [0, 1, 4, 5]
    assert cursor.state == "parked"
    assert "row 2 of this run (step 2)" in (cursor.error or "")
    assert "completed or repaired" in (cursor.error or "")
    assert status_of(tmp_path / "demo" / "run").lacks_something


def test_a_first_file_that_grows_under_a_second_stops_it(server: WandbServer, tmp_path: Path):
    second = [run_record(), *rows(10, 11), EXIT]
    synced(server, made(tmp_path, [run_record(), *rows(0, 1)], second))

    cursor = synced(server, made(tmp_path, [run_record(), *rows(0, 1, 2, 3), EXIT], second, token="1111111"))

    assert xs(server) == [0, 1, 10, 11]
    assert cursor.state == "parked"


@pytest.mark.parametrize("choice", [APPEND, CONTINUE, "new-id"])
def test_each_way_out_of_it_works(server: WandbServer, tmp_path: Path, choice: str):
    synced(server, made(tmp_path, [run_record(), *rows(0, 2, 3), EXIT]))
    run_dir = made(tmp_path, [run_record(), *rows(0, 1, 2, 3), EXIT], token="1111111")
    parked = synced(server, run_dir)
    assert f"--force {choice}" in (parked.error or "")

    if choice == "new-id":
        new_id = sync_module.upload_as_new(run_dir)
        synced(server, run_dir)
        assert [line["x"] for line in server.run("ent", "demo", new_id).history] == [0, 1, 2, 3]
    else:
        synced(server, run_dir, choice=choice)

    expected = {APPEND: [0, 2, 3, 0, 1, 2, 3], CONTINUE: [0, 2, 3, 3], "new-id": [0, 2, 3]}
    assert xs(server) == expected[choice]
    assert cursor_of(run_dir).state == "synced"
    # Whoever takes other rows for the beginning may have a step twice.
    assert choice == CONTINUE or server.violations == []


def test_system_metrics_that_are_others_stop_it(server: WandbServer, tmp_path: Path):
    def sample(second: int) -> bytes:
        taken = {"seconds": 1_763_712_000 + second}
        return record(stats={"timestamp": taken, "item": [{"key": "cpu", "value_json": str(second)}]})

    synced(server, made(tmp_path, [run_record(), *rows(0), sample(1), sample(3)]))

    cursor = synced(
        server, made(tmp_path, [run_record(), *rows(0), *map(sample, (1, 2, 3, 4)), EXIT], token="1111111")
    )

    assert [line["system.cpu"] for line in there(server).events] == [1, 3]
    assert "system metrics" in (cursor.error or "")


def test_what_was_printed_is_said_again_in_its_places(server: WandbServer, tmp_path: Path):
    def printed(text: str) -> bytes:
        return record(
            output_raw={"output_type": "STDOUT", "timestamp": {"seconds": 1_763_712_000}, "line": text}
        )

    lines = [printed(f"{i}\n") for i in range(30)]
    synced(server, made(tmp_path, [run_record(), *rows(0), *lines[:20]]))

    synced(server, made(tmp_path, [run_record(), *rows(0), *lines, EXIT], token="1111111"))

    assert [line.split(" ")[-1] for line in there(server).console_lines] == [str(i) for i in range(30)]
    assert server.violations == []


# -- what a person has chosen ------------------------------------------------------------------------------------


def test_rows_that_a_person_took_for_there_are_counted_and_remembered(server: WandbServer, tmp_path: Path):
    server.seed_run("demo", "run", 7, entity="ent")
    run_dir = made(tmp_path, [run_record(), *rows(0, 1, 2), EXIT])

    cursor = synced(server, run_dir, choice=CONTINUE)

    assert cursor.attach is not None
    assert (cursor.attach["forced"], cursor.attach["unsent"]) == (CONTINUE, 3)
    status = status_of(run_dir)
    assert status.not_shown == {TAKEN_FOR_THERE: 3}
    # It was a person's wish.
    assert not status.lacks_something


def test_where_nobody_had_to_choose_nothing_is_forced(server: WandbServer, tmp_path: Path):
    cursor = synced(server, made(tmp_path, [run_record(), *rows(0), EXIT]), choice=CONTINUE)

    assert cursor.attach is not None
    assert (cursor.attach["forced"], cursor.attach["unsent"]) == (None, 0)
    assert cursor.not_shown == {}


def test_the_advice_names_a_command_that_knows_the_run(server: WandbServer, tmp_path: Path):
    server.faults.add("status", kind="file_stream", status=403)
    run_dir = made(tmp_path / "with a space", [run_record(), *rows(0), EXIT])

    cursor = synced(server, run_dir)

    assert f"`syncd sync '{run_dir}'` tries again, `--force new-id` uploads" in (cursor.error or "")


# -- going back --------------------------------------------------------------------------------------------------


def rewound(**branch_point: Any) -> list[bytes]:
    return [run_record(branch_point={"metric": "_step", **branch_point}), *rows(3, 4), EXIT]


def test_a_run_that_goes_back_is_stopped_before_anything_is_appended(server: WandbServer, tmp_path: Path):
    first, second = [run_record(), *rows(0, 1, 2, 3), EXIT], rewound(run="r", value=2)
    run_dir = made(tmp_path, first, second)

    cursor = synced(server, run_dir)

    assert xs(server) == [0, 1, 2, 3]
    assert cursor.state == "parked"
    assert "it goes back to step 2" in (cursor.error or "")

    synced(server, run_dir, choice=APPEND)
    assert xs(server) == [0, 1, 2, 3, 3, 4]
    assert server.violations == []


def test_a_run_that_begins_by_going_back_is_stopped_as_well(server: WandbServer, tmp_path: Path):
    server.seed_run("demo", "run", 4, entity="ent")

    cursor = synced(server, made(tmp_path, rewound(run="r", value=2)))

    assert len(there(server).history) == 4
    assert cursor.state == "parked"


def test_a_run_that_branches_off_another_is_a_run_of_its_own(server: WandbServer, tmp_path: Path):
    cursor = synced(server, made(tmp_path, rewound(run="another", value=2)))

    assert xs(server) == [3, 4]
    assert cursor.state == "synced"


# -- alerts ------------------------------------------------------------------------------------------------------


def alert(title: str) -> bytes:
    return record(alert={"title": title, "text": "t", "level": "INFO"})


def recent(*things: bytes | str) -> list[bytes]:
    """A run of these rows and alerts that began a minute ago: an older alert is no news."""
    began_s = int(time.time()) - 60
    payloads = [run_record(start_time={"seconds": began_s})]
    for i, thing in enumerate(things):
        if isinstance(thing, str):
            payloads.append(alert(thing))
        else:
            values = {"x": i, "_step": i, "_timestamp": began_s + i, "_runtime": i}
            payloads.append(record(history={"item": items(values), "step": {"num": i}}))
    return payloads


def test_alerts_of_the_part_that_is_new_are_sent_and_no_other_again(server: WandbServer, tmp_path: Path):
    A_ROW = b""
    whole = recent(A_ROW, "first", "second", "third", A_ROW, "fourth")
    # Cut between two alerts of the same time.
    synced(server, made(tmp_path, whole[:4]))
    assert [sent["title"] for sent in server.alerts] == ["first", "second"]

    cursor = synced(server, made(tmp_path, [*whole, EXIT], token="1111111"))

    assert [sent["title"] for sent in server.alerts] == ["first", "second", "third", "fourth"]
    assert ALERT_UNCERTAIN not in cursor.not_shown


def test_what_is_known_of_alerts_outlives_a_second_log_that_was_killed_early():
    once = in_a_log_made_anew({"writer": "main-0001", "seq": 7, "not_sent": {}, "time": 100, "nth": 2})
    assert once is not None

    twice = in_a_log_made_anew({**once, "writer": "main-0001", "seq": 3, "time": 50, "nth": 1})

    assert twice is not None
    assert twice["over"] == once["over"] == [100, 2]


# -- gone --------------------------------------------------------------------------------------------------------


def test_a_run_that_was_deleted_there_is_said_to_be_and_gets_a_new_id_when_asked(
    server: WandbServer, tmp_path: Path
):
    run_dir = made(tmp_path, [run_record(), *rows(0, 1), EXIT])
    synced(server, run_dir)
    server.delete_run("ent", "demo", "run")

    cursor = synced(server, run_dir)

    assert cursor.state == "parked"
    assert "does not have this run any more" in (cursor.error or "")
    assert f"`syncd sync {run_dir} --force new-id`" in (cursor.error or "")
    assert server.runs() == []

    new_id = sync_module.upload_as_new(run_dir)
    synced(server, run_dir)
    assert [line["x"] for line in server.run("ent", "demo", new_id).history] == [0, 1]


def test_a_run_that_was_deleted_there_is_not_begun_again_when_its_log_is_made_anew(
    server: WandbServer, tmp_path: Path
):
    synced(server, made(tmp_path, [run_record(), *rows(0, 1)]))
    server.delete_run("ent", "demo", "run")

    cursor = synced(server, made(tmp_path, [run_record(), *rows(0, 1, 2), EXIT], token="1111111"))

    assert "does not have this run any more" in (cursor.error or "")
    assert server.runs() == []


def test_a_run_of_which_rows_are_gone_is_said_to_be(server: WandbServer, tmp_path: Path):
    run_dir = made(tmp_path, [run_record(), *rows(0, 1, 2), EXIT])
    synced(server, run_dir)
    with server.lock:
        del there(server).lines[HISTORY][1:]

    cursor = synced(server, run_dir)

    assert cursor.state == "parked"
    assert "it has 1 rows of this run, and it has acknowledged 3" in (cursor.error or "")


def test_a_daemon_that_nobody_asked_does_not_ask(server: WandbServer, tmp_path: Path):
    run_dir = made(tmp_path, [run_record(), *rows(0), EXIT])
    synced(server, run_dir)
    server.delete_run("ent", "demo", "run")

    daemon: Daemon = sync(server, tmp_path)

    assert daemon.finished
    assert cursor_of(run_dir).state == "synced"
