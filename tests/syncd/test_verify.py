"""`syncd verify` against a real server, read through the real `wandb.Api()`: what is wrong there is said exactly."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eventlog.cursor import Cursor, Sink, cursors, save
from syncd import read_back as read_back_module
from syncd.daemon import Daemon
from syncd.read_back import CannotRead
from syncd.verify import CannotVerify, ExpectedRow, Verification, compare_rows, verify
from syncd.wandb_api import WandbApi
from tests.logs import HandmadePiece, handmade_run, resumed
from tests.wandb_server import API_KEY, StoredRun, WandbServer
from tests.wandb_server.store import HISTORY

DEADLINE_S = 60.0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    monkeypatch.setenv("NO_PROXY", "*")
    with WandbServer(entity="ent") as running:
        yield running


def sync(server: WandbServer, root: Path) -> None:
    """Upload everything below `root`."""
    daemon = Daemon(
        roots=lambda: [root],
        api=WandbApi(server.base_url, lambda: API_KEY),
        until_synced=True,
        steady_s=0.0,
        flush_s=0.05,
    )
    asyncio.run(asyncio.wait_for(daemon.run(), DEADLINE_S))


def logged(root: Path, rows: int = 5, exitcode: int | None = 0) -> HandmadePiece:
    """A run of rows {"x": i}, each begun by the record i + 1, that ended."""
    piece = handmade_run(root, config={"lr": 0.1, "nested": {"depth": [1, float("nan")]}})
    for i in range(rows):
        piece.log(x=i, step=i)
    if exitcode is not None:
        piece.log("exit", exitcode=exitcode)
    piece.die()
    return piece


def verified(server: WandbServer, root: Path) -> Verification:
    [found] = verify(root / "demo" / "run", server.base_url, API_KEY)
    return found


def held(server: WandbServer) -> StoredRun:
    return server.run("ent", "demo", "run")


def tamper(server: WandbServer, change: Callable[[list[str]], Any]) -> None:
    """Change the history lines behind everybody's back."""
    with server.lock:
        change(held(server).lines[HISTORY])
        held(server)._changes += 1


def sentences(found: Verification) -> list[str]:
    return [str(difference) for difference in found.differences]


def cursor_of(root: Path) -> Cursor:
    [cursor] = cursors(root / "demo" / "run")
    return cursor


# What is right


@pytest.mark.parametrize("exitcode", [0, 3, None])
def test_a_run_that_was_uploaded_is_there_whole(server: WandbServer, tmp_path: Path, exitcode: int | None):
    logged(tmp_path, exitcode=exitcode)
    sync(server, tmp_path)

    found = verified(server, tmp_path)

    assert sentences(found) == []
    assert (found.rows, found.there, found.not_yet, found.not_compared) == (5, 5, 0, [])
    assert "all 5 rows are there" in found.describe()
    assert json.loads(json.dumps(found.as_json()))["is_good"] is True


def test_values_of_every_kind_are_read_back_as_they_were_logged(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.log("define_metric", name="nest.x", step_metric="a.b", summary=["min", "mean"])
    piece.log(
        step=0, nan=float("nan"), up=float("inf"), one=1.0, big=2**60, text="ü\u2028", none=None, yes=True
    )
    piece.log(step=1, **{"a.b": 2, "nest": {"x": -0.5, "deep": {"y": [1, float("-inf"), {"z": None}]}}})
    piece.log("summary", set=[[["best"], 0.5]], delete=[["up"]])
    piece.log("exit", exitcode=0)
    piece.die()
    sync(server, tmp_path)

    found = verified(server, tmp_path)

    assert (sentences(found), found.there, found.not_compared) == ([], 2, [])


def test_a_resumed_run_and_steps_far_apart_are_read_back(server: WandbServer, tmp_path: Path):
    first = logged(tmp_path, rows=2, exitcode=None)
    later = resumed(first.identity, tmp_path)
    later.log(x=2, step=5_000_000)
    later.log(x=3, step=5_000_000_000)
    later.die()
    sync(server, tmp_path)

    found = verified(server, tmp_path)

    assert (sentences(found), found.there) == ([], 4)


def test_rows_that_were_there_before_us_are_nobodys_business(server: WandbServer, tmp_path: Path):
    server.seed_run("demo", "run", 7, config={"theirs": 1}, summary={"theirs": 2, "_step": 6})
    logged(tmp_path)
    sync(server, tmp_path)

    found = verified(server, tmp_path)

    assert (sentences(found), found.rows, found.there) == ([], 5, 5)


def test_a_stub_is_no_error_and_is_counted(server: WandbServer, tmp_path: Path):
    server.faults.add("status", status=422, kind="file_stream", containing="POISON")
    piece = handmade_run(tmp_path)
    for step, text in enumerate(["fine", "POISON", "fine"]):
        piece.log(text=text, step=step)
    piece.log("exit", exitcode=0)
    piece.die()
    sync(server, tmp_path)

    found = verified(server, tmp_path)

    assert [d for d in found.differences if d.of == "row"] == []
    assert (found.there, found.stubs) == (3, 1)


def test_what_w_and_b_never_shows_is_explained(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    piece.log(x=1, step=1)
    piece.log(x=0, step=0)
    piece.log("exit", exitcode=0)
    piece.die()
    sync(server, tmp_path)

    found = verified(server, tmp_path)

    assert (sentences(found), found.not_shown) == ([], {"step repeated or in the past": 1})


def test_rows_in_the_backlog_are_not_there_yet_and_not_missing(server: WandbServer, tmp_path: Path):
    piece = handmade_run(tmp_path)
    for i in range(3):
        piece.log(x=i, step=i)
    piece.die()
    sync(server, tmp_path)
    later = resumed(piece.identity, tmp_path)
    later.log(x=9, step=9)
    later.die()

    found = verified(server, tmp_path)

    assert (sentences(found), found.rows, found.there, found.not_yet) == ([], 4, 3, 1)


def test_twenty_thousand_rows_are_compared_window_by_window(server: WandbServer, tmp_path: Path):
    logged(tmp_path, rows=20_000)
    sync(server, tmp_path)
    tamper(server, lambda lines: lines.pop(15_000))

    found = verified(server, tmp_path)

    assert (found.rows, found.there, found.counts) == (20_000, 19_999, {"missing": 1})


# What is wrong there


def test_a_lost_row_is_missing(server: WandbServer, tmp_path: Path):
    logged(tmp_path)
    sync(server, tmp_path)
    tamper(server, lambda lines: lines.pop(2))

    found = verified(server, tmp_path)

    assert sentences(found) == ["line 2 (step 2, main-0001 seq 3) is missing there"]
    assert "4 of 5 rows are there" in found.describe()
    assert not found.is_good


def test_a_row_that_is_there_twice_is_doubled(server: WandbServer, tmp_path: Path):
    logged(tmp_path)
    sync(server, tmp_path)
    tamper(server, lambda lines: lines.append(lines[3]))

    found = verified(server, tmp_path)

    assert sentences(found) == ["line 3 (step 3, main-0001 seq 4) is there more than once"]


def test_a_changed_value_is_named_with_both(server: WandbServer, tmp_path: Path):
    logged(tmp_path)
    sync(server, tmp_path)
    tamper(server, lambda lines: lines.__setitem__(1, lines[1].replace('"x":1', '"x":7,"y":8')))

    found = verified(server, tmp_path)

    assert sentences(found) == [
        "line 1 (step 1, main-0001 seq 2) differs: x is 1 here and 7 there; y is (absent) here and 8 there"
    ]


def test_two_rows_that_changed_places_both_differ(server: WandbServer, tmp_path: Path):
    logged(tmp_path)
    sync(server, tmp_path)

    def swap(lines: list[str]) -> None:
        lines[1], lines[2] = (
            lines[2].replace('"_step":2', '"_step":1'),
            lines[1].replace('"_step":1', '"_step":2'),
        )

    tamper(server, swap)

    found = verified(server, tmp_path)

    assert [(d.number, {c.key for c in d.changes}) for d in found.differences] == [
        (1, {"x", "_timestamp", "_runtime"}),
        (2, {"x", "_timestamp", "_runtime"}),
    ]


@pytest.mark.parametrize("step", [2, 99])
def test_a_row_that_the_log_does_not_have_is_extra(server: WandbServer, tmp_path: Path, step: int):
    logged(tmp_path)
    sync(server, tmp_path)
    tamper(server, lambda lines: lines.append(f'{{"_step":{step},"alien":1}}'))

    found = verified(server, tmp_path)

    [sentence] = sentences(found)
    assert sentence.startswith(f"a row of step {step} is there and not in the log")
    assert "alien is (absent) here and 1 there" in sentence


def test_lines_that_the_server_counts_but_does_not_show_are_found(server: WandbServer, tmp_path: Path):
    logged(tmp_path)
    sync(server, tmp_path)
    tamper(server, lambda lines: lines.append('{"_step":-1}'))

    found = verified(server, tmp_path)

    assert sentences(found) == ["count is there and not in the log: history lines is 5 here and 6 there"]


def test_a_run_that_was_deleted_there_is_missing(server: WandbServer, tmp_path: Path):
    logged(tmp_path)
    sync(server, tmp_path)
    server.store.delete(held(server).storage_id)

    found = verified(server, tmp_path)

    assert sentences(found) == ["run is missing there"]


def test_summary_config_and_state_are_compared(server: WandbServer, tmp_path: Path):
    logged(tmp_path)
    sync(server, tmp_path)
    run = held(server)
    run.summary_text = json.dumps({**run.summary, "x": 5})
    run.config_text = json.dumps({**run.raw_config, "lr": {"value": 0.2}})
    run.complete = False

    found = verified(server, tmp_path)

    assert sentences(found) == [
        "summary differs: x is 4 here and 5 there",
        "config differs: lr is 0.1 here and 0.2 there",
        'state differs: state is "finished" here and "running" there',
    ]


# Files


def file_record(run_dir: Path, piece: HandmadePiece, path: str, content: bytes) -> None:
    """Log a file: the record is the next of the stream `files` of that piece."""
    sha256 = hashlib.sha256(content).hexdigest()
    (run_dir / "files").mkdir(exist_ok=True)
    (run_dir / "files" / sha256).write_bytes(content)
    piece.log("file", path=path, sha256=sha256, size=len(content))


@pytest.fixture
def filed(server: WandbServer, tmp_path: Path) -> Path:
    """A run with the files a.txt and b.txt, both of which W&B has acknowledged, and c.txt in the backlog."""
    events = logged(tmp_path)
    sync(server, tmp_path)
    run_dir = tmp_path / "demo" / "run"
    files = HandmadePiece(events.identity, events.piece, "files")
    for path in ("a.txt", "b.txt", "c.txt"):
        file_record(run_dir, files, path, path.encode())
    for path in ("a.txt", "b.txt"):
        held(server).files[path] = path.encode()
        held(server).file_times_s[path] = 0.0
    place = {"writer": "main-0001", "seq": 2, "place": None, "lost": 0}
    save(run_dir, replace(cursor_of(tmp_path), files=place), 0)
    return run_dir


def test_files_are_compared_by_size_and_md5(server: WandbServer, tmp_path: Path, filed: Path):
    found = verified(server, tmp_path)

    assert (sentences(found), found.files, found.files_not_yet) == ([], 2, 1)


def test_a_file_that_is_gone_or_changed_there_is_named(server: WandbServer, tmp_path: Path, filed: Path):
    del held(server).files["a.txt"]
    held(server).files["b.txt"] = b"B.txt"

    found = verified(server, tmp_path)

    [missing, different] = sentences(found)
    assert missing == "file a.txt is missing there"
    assert different.startswith("file b.txt differs: md5 is ")


def test_a_file_whose_content_is_damaged_here_was_never_sent(
    server: WandbServer, tmp_path: Path, filed: Path
):
    del held(server).files["a.txt"]
    (filed / "files" / hashlib.sha256(b"a.txt").hexdigest()).write_bytes(b"damaged")

    found = verified(server, tmp_path)

    assert sentences(found) == []


# What cannot be verified


def test_a_run_that_was_never_uploaded_says_so(server: WandbServer, tmp_path: Path):
    logged(tmp_path)

    with pytest.raises(CannotVerify, match="there is no cursor for demo/run"):
        verified(server, tmp_path)


def test_a_run_that_goes_to_another_server_says_to_which(server: WandbServer, tmp_path: Path):
    logged(tmp_path)
    sync(server, tmp_path)

    with pytest.raises(CannotVerify, match=f"goes to {server.base_url}, not to https://api.wandb.ai"):
        verify(tmp_path / "demo" / "run", "https://api.wandb.ai", API_KEY)


def test_a_run_that_was_parked_before_it_began_says_why(server: WandbServer, tmp_path: Path):
    logged(tmp_path)
    run_dir = tmp_path / "demo" / "run"
    save(run_dir, Cursor(Sink(server.base_url, None, "demo", "run"), state="parked", error="another log"), 0)

    with pytest.raises(CannotVerify, match=r"was never begun at .*: another log"):
        verified(server, tmp_path)


def test_the_cursor_of_another_log_is_not_believed(server: WandbServer, tmp_path: Path):
    logged(tmp_path)
    sync(server, tmp_path)
    cursor = cursor_of(tmp_path)
    assert cursor.attach is not None
    save(tmp_path / "demo" / "run", replace(cursor, attach={**cursor.attach, "log_id": "other"}), 0)

    with pytest.raises(CannotVerify, match="belongs to another log"):
        verified(server, tmp_path)


def test_a_cursor_of_another_version_is_not_guessed_at(server: WandbServer, tmp_path: Path):
    logged(tmp_path)
    sync(server, tmp_path)
    cursor = cursor_of(tmp_path)
    assert cursor.attach is not None
    kept = {name: value for name, value in cursor.attach.items() if name != "history_base"}
    save(tmp_path / "demo" / "run", replace(cursor, attach=kept), 0)

    with pytest.raises(CannotVerify, match="of another version"):
        verified(server, tmp_path)


def test_a_refused_key_is_said_and_not_shown(server: WandbServer, tmp_path: Path):
    logged(tmp_path)
    sync(server, tmp_path)

    with pytest.raises(CannotRead, match=r"could not be read.*`wandb login`") as raised:
        verify(tmp_path / "demo" / "run", server.base_url, "f" * 40)

    assert "f" * 40 not in str(raised.value)


def test_a_server_that_is_away_proves_nothing(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    logged(tmp_path)
    sync(server, tmp_path)
    monkeypatch.setattr(read_back_module, "API_TIMEOUT_S", 1)
    server.down()

    with pytest.raises(CannotRead, match="could not be read"):
        verified(server, tmp_path)


def test_a_reading_process_that_does_not_end_keeps_nobody_waiting(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(read_back_module, "LEAVE_S", 0.1)

    with read_back_module.read_back(server.base_url, API_KEY, "ent/demo/run") as api:
        os.kill(api._process.pid, signal.SIGSTOP)

    assert api._process.returncode == -signal.SIGKILL


def test_what_lies_where_the_user_stands_is_neither_run_nor_added_to(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    logged(tmp_path / "root")
    sync(server, tmp_path / "root")
    here, home = tmp_path / "here", Path(os.environ["HOME"])
    here.mkdir()
    (here / "wandb.py").write_text("raise RuntimeError('not the SDK')")
    monkeypatch.chdir(here)
    before = sorted(home.rglob("*"))

    found = verified(server, tmp_path / "root")

    assert found.is_good
    assert list(here.iterdir()) == [here / "wandb.py"]
    assert sorted(home.rglob("*")) == before


# The comparison itself


def rows(*steps: int) -> list[ExpectedRow]:
    return [ExpectedRow(step, {"_step": step, "x": step}, 0, "main-0001", step) for step in steps]


def test_the_text_nan_stands_for_nan_and_an_integer_for_the_same_float():
    here = [ExpectedRow(0, {"_step": 0, "n": float("nan"), "i": 2**60, "f": 1.0}, 0, "main-0001", 1)]
    found = Verification("run", "url")

    compare_rows(here, [{"_step": 0, "n": "NaN", "i": float(2**60), "f": 1}], 1, found)

    assert found.is_good


def test_true_is_not_one():
    here = [ExpectedRow(0, {"_step": 0, "yes": True}, 0, "main-0001", 1)]
    found = Verification("run", "url")

    compare_rows(here, [{"_step": 0, "yes": 1}], 1, found)

    assert found.counts == {"different": 1}


def test_a_row_in_the_backlog_that_is_there_already_is_right():
    found = Verification("run", "url")

    compare_rows(rows(0, 1), [{"_step": 0, "x": 0}, {"_step": 1, "x": 1}], 1, found)

    assert (found.there, found.not_yet, found.is_good) == (2, 0, True)


def test_every_difference_is_counted_and_the_first_are_listed():
    found = Verification("run", "url")

    compare_rows(rows(*range(250)), [], 250, found)

    assert (found.counts, len(found.differences)) == ({"missing": 250}, 100)
    assert "WRONG: and 150 more" in found.describe()
