"""The command `eventlog`: what it prints, and what it exits with."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

import eventlog
from eventlog.cli import main
from eventlog.overview import follow_run
from eventlog.reader import StreamReader
from tests.logs import HandmadePiece, handmade_run, resumed

PROJECT = Path(__file__).parents[2]


def call(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--root", str(root)], catch_exceptions=False)


def objects(result: Result) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in result.stdout.splitlines()]


def finished_run(root: Path, run_id: str = "run", exitcode: int = 0) -> HandmadePiece:
    log = handmade_run(root, run_id, config={"lr": 0.5})
    for step in range(5):
        log.log(step=step, commit=True, loss=1 / (1 + step))
    log.log("exit", exitcode=exitcode)
    log.die()
    return log


# ── ls ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ls_says_how_each_run_is(tmp_path: Path):
    finished_run(tmp_path, "done")
    finished_run(tmp_path, "wrong", exitcode=1)
    handmade_run(tmp_path, "dead").die()
    alive = handmade_run(tmp_path, "alive")
    again = finished_run(tmp_path, "again")
    resumed(again.identity, tmp_path).die()

    listed = objects(call(tmp_path, "ls", "--json"))

    assert {each["run"]: each["state"] for each in listed} == {
        "demo/again": "crashed",
        "demo/alive": "live",
        "demo/dead": "crashed",
        "demo/done": "finished",
        "demo/wrong": "failed",
    }
    done = next(each for each in listed if each["run"] == "demo/done")
    assert (done["pieces"], done["records"], done["last_step"]) == (1, 7, 4)
    assert done["size_bytes"] > 1000
    assert done["started_us"] == 1_763_712_000_000_000
    alive.die()


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (b"", "live"),
        (b'{"host":"node17","boot_id":"other","pid":1,"heartbeat":1}', "stale"),
        (b'{"host":"node17","boot_id":"other","pid":1,"heartbeat":4000000000000000}', "live"),
    ],
    ids=["just being born", "long silent elsewhere", "heard of elsewhere"],
)
def test_a_writer_whose_lock_tells_nothing_is_judged_by_its_heartbeat(
    tmp_path: Path, text: bytes, state: str
):
    log = handmade_run(tmp_path)
    log.die()
    (log.piece.dir / "lock").write_bytes(text)

    (listed,) = objects(call(tmp_path, "ls", "--json"))

    assert listed["state"] == state


def test_ls_for_people_is_a_table(tmp_path: Path):
    finished_run(tmp_path)

    result = call(tmp_path, "ls")

    assert result.exit_code == 0
    headings, row = result.stdout.splitlines()[:2]
    assert headings.split()[:4] == ["run", "state", "pieces", "records"]
    assert row.split()[:4] == ["demo/run", "finished", "1", "7"]


def test_ls_of_nothing_says_where_it_looked(tmp_path: Path):
    result = call(tmp_path / "nowhere", "ls")

    assert result.exit_code == 0
    assert "nowhere" in result.stderr


def test_ls_takes_its_root_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    finished_run(tmp_path)
    monkeypatch.setenv("EVENTLOG_ROOT", str(tmp_path))

    assert "demo/run" in CliRunner().invoke(main, ["ls"]).stdout


def test_the_last_step_is_found_behind_a_long_end_without_steps(tmp_path: Path):
    log = handmade_run(tmp_path)
    log.log(step=7, commit=True, loss=1.0)
    for _ in range(40):
        log.log("config", text="x" * 10_000)
    log.append(b'{"crc":"torn')
    log.die()

    (listed,) = objects(call(tmp_path, "ls", "--json"))

    assert (listed["last_step"], listed["records"]) == (7, 42)


def test_a_record_without_its_newline_counts_for_nothing(tmp_path: Path):
    # faults: 3
    log = finished_run(tmp_path)
    log.cut(log.segment.stat().st_size - 1)

    (listed,) = objects(call(tmp_path, "ls", "--json"))

    assert (listed["state"], listed["records"]) == ("crashed", 6)


# ── show ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_show_folds_a_run_into_one_page(tmp_path: Path):
    first = finished_run(tmp_path)
    second = resumed(first.identity, tmp_path, config={"lr": 0.5, "new": True})
    second.log("config", lr=0.25)
    second.log(step=5, commit=True, loss=0.1, extra=float("inf"))
    second.log("summary", set=[[["eval"], {"acc": 1, "loss": 2}], [["best"], 3]], delete=[["eval", "loss"]])
    second.log("gap", dropped=4, reason="ENOSPC")
    second.die()

    (shown,) = objects(call(tmp_path, "show", "run", "--json"))

    assert shown["config"] == {"lr": 0.25, "new": True}
    assert shown["last"] == {"loss": 0.1, "extra": "Infinity"}
    assert shown["as_text"] == [["float", "last", "extra"]]
    assert shown["summary"] == {"eval": {"acc": 1}, "best": 3}
    assert [each["writer"] for each in shown["pieces"]] == ["main-0001", "main-0002"]
    assert shown["dropped"] == 4


def test_show_for_people_treats_no_key_as_markup(tmp_path: Path):
    log = handmade_run(tmp_path, config={"[bold]key[/nope]": "[red]"})
    log.die()

    result = call(tmp_path, "show", "run")

    assert result.exit_code == 0
    assert "[bold]key[/nope]" in result.stdout


def test_show_counts_damage(tmp_path: Path):
    log = finished_run(tmp_path)
    log.overwrite(log.offset_of(2) + 30, b"#")

    assert "1 damaged places" in call(tmp_path, "show", "run").stdout


def test_show_counts_damage_at_the_very_end_of_a_dead_writer_too(tmp_path: Path):
    # faults: 7
    log = finished_run(tmp_path)
    log.overwrite(log.offset_of(6) + 30, b"#")

    assert "1 damaged places" in call(tmp_path, "show", "run").stdout


def test_an_integer_of_any_length_is_shown(tmp_path: Path):
    log = handmade_run(tmp_path)
    log.log(step=0, n=10**5000)
    log.die()

    for command in ("show", "tail"):
        result = call(tmp_path, command, "run")

        assert (result.exit_code, "0x" in result.stdout) == (0, True)


# ── what cannot be read ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def refused(tmp_path: Path) -> Path:
    """A root with three runs, of which the second has a piece that cannot be listed, whoever asks."""
    for run_id in ("a", "b", "c"):
        finished_run(tmp_path, run_id)
    piece_dir = tmp_path / "demo" / "b" / "main-0001"
    piece_dir.rename(tmp_path / "aside")
    piece_dir.symlink_to(piece_dir)
    return tmp_path


@pytest.mark.parametrize("command", ["ls", "verify", "clean"])
def test_a_run_that_cannot_be_read_is_said_to_be_and_the_others_are_seen_to(refused: Path, command: str):
    # faults: 34
    result = call(refused, command)

    assert result.exit_code == 1
    assert "demo/b is left out: " in result.stderr
    seen = {each["run"] for each in objects(call(refused, command, "--json"))}
    assert seen == {"demo/a", "demo/c"}


@pytest.mark.parametrize("command", ["show", "tail"])
def test_what_cannot_be_read_of_one_run_is_said_in_words(refused: Path, command: str):
    result = call(refused, command, "b")

    assert result.exit_code == 1
    assert "Error: demo/b: " in result.stderr


@pytest.mark.parametrize("command", ["show", "tail", "verify"])
def test_what_needs_pyarrow_says_so_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
):
    finished_run(tmp_path)
    call(tmp_path, "seal")
    call(tmp_path, "clean")
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    result = call(tmp_path, command, "run")

    assert result.exit_code == 1
    assert "pip install 'tidelog[sync]'" in result.stderr
    assert "1 runs, " not in result.stdout


@pytest.mark.parametrize("command", ["verify", "seal", "clean"])
def test_a_root_that_is_not_there_is_wrong_usage(tmp_path: Path, command: str):
    result = call(tmp_path / "nowhere", command)

    assert result.exit_code == 2
    assert "nowhere" in result.stderr


# ── which run ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["demo/run", "run"])
def test_a_run_is_found_by_its_name_or_id(tmp_path: Path, name: str):
    finished_run(tmp_path)

    assert call(tmp_path, "show", name).exit_code == 0


def test_a_run_is_found_by_its_path(tmp_path: Path):
    finished_run(tmp_path)

    assert call(tmp_path / "elsewhere", "show", str(tmp_path / "demo" / "run")).exit_code == 0


def test_a_run_is_found_by_an_id_that_is_too_long_for_a_file(tmp_path: Path):
    finished_run(tmp_path, "l" * 300)

    assert call(tmp_path, "show", "l" * 300).exit_code == 0


def test_an_unknown_run_is_wrong_usage_and_the_nearest_are_named(tmp_path: Path):
    finished_run(tmp_path, "baseline")

    result = call(tmp_path, "show", "baselin")

    assert result.exit_code == 2
    assert "'baselin'" in result.stderr
    assert "baseline" in result.stderr.partition("nearest")[2]


def test_an_id_in_two_projects_must_be_said_in_full(tmp_path: Path):
    for project in ("one", "two"):
        handmade_run(tmp_path, "run", project).die()

    result = call(tmp_path, "show", "run")

    assert result.exit_code == 2
    assert "one/run, two/run" in result.stderr


# ── tail ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tail_prints_the_newest_records(tmp_path: Path):
    finished_run(tmp_path)

    printed = objects(call(tmp_path, "tail", "run", "-n", "3", "--json"))

    assert [(each["seq"], each["kind"]) for each in printed] == [(4, "metrics"), (5, "metrics"), (6, "exit")]
    assert printed[0] == {
        "seq": 4,
        "time": printed[0]["time"],
        "kind": "metrics",
        "step": 3,
        "commit": True,
        "data": {"loss": 0.25},
    }


def test_tail_reaches_back_over_pieces(tmp_path: Path):
    first = finished_run(tmp_path)
    second = resumed(first.identity, tmp_path)
    second.log(step=5, commit=True, loss=0.1)
    second.die()

    printed = objects(call(tmp_path, "tail", "run", "-n", "3", "--json"))

    assert [each["kind"] for each in printed] == ["exit", "start", "metrics"]


def test_following_goes_over_segments_and_pieces_and_ends_with_the_run(tmp_path: Path):
    # faults: 1, 22
    first = handmade_run(tmp_path)
    first.log(step=0, loss=0)
    following = subprocess.Popen(
        [sys.executable, "-m", "eventlog", "tail", "run", "-f", "-n", "1", "--json", "--root", str(tmp_path)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
    )
    assert following.stdout is not None
    seen = [orjson.loads(following.stdout.readline())]

    line = first.log(step=1, loss=1)
    first.cut(first.segment.stat().st_size - len(line) // 2)
    first.append(line[len(line) - len(line) // 2 :])
    first.new_segment()
    first.log(step=2, loss=2)
    seen += [orjson.loads(following.stdout.readline()) for _ in range(2)]
    second = resumed(first.identity, tmp_path)
    first.die()
    second.log(step=3, loss=3)
    seen += [orjson.loads(following.stdout.readline()) for _ in range(2)]
    second.log("exit", exitcode=0)
    rest = following.stdout.read()

    assert [(each["kind"], each.get("step")) for each in [*seen, orjson.loads(rest)]] == [
        ("metrics", 0),
        ("metrics", 1),
        ("metrics", 2),
        ("start", None),
        ("metrics", 3),
        ("exit", None),
    ]
    assert following.wait() == 0
    second.die()


def test_following_a_killed_run_ends(tmp_path: Path):
    log = handmade_run(tmp_path)
    log.die()

    assert call(tmp_path, "tail", "run", "-f").exit_code == 0


def test_following_a_run_that_is_deleted_ends_with_a_word(tmp_path: Path):
    # faults: 39
    log = handmade_run(tmp_path)
    following = subprocess.Popen(
        [sys.executable, "-m", "eventlog", "tail", "run", "-f", "--root", str(tmp_path)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert following.stdout is not None
    following.stdout.readline()

    shutil.rmtree(tmp_path / "demo")
    _, said = following.communicate()

    assert following.returncode == 1
    assert b"it was deleted or moved" in said
    log.die()


def test_following_what_cannot_be_read_just_now_looks_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # faults: 34
    log = handmade_run(tmp_path)
    log.log(step=0)
    aside = log.segment.with_suffix(".aside")
    log.segment.rename(aside)
    slept: list[float] = []

    def sleep(duration_s: float) -> None:
        slept.append(duration_s)
        if len(slept) == 3:
            aside.rename(log.segment)
            log.log("exit", exitcode=0)

    monkeypatch.setattr("eventlog.overview.time.sleep", sleep)
    monkeypatch.setattr(StreamReader, "has_grown", lambda reader: True)

    found = list(follow_run(tmp_path / "demo" / "run", "events", None))

    assert len(slept) == 3
    assert [record.seq for record in found] == [0, 1, 2]
    log.die()


@pytest.mark.parametrize("has_piece", [True, False])
def test_a_claim_that_nobody_followed_up_is_stale_after_a_while(tmp_path: Path, has_piece: bool):
    log = handmade_run(tmp_path)
    log.die()
    shutil.rmtree(log.piece.dir)
    if has_piece:
        log.piece.dir.mkdir()
    claimed = log.piece.dir if has_piece else log.piece.dir.parent

    (young,) = objects(call(tmp_path, "ls", "--json"))
    os.utime(claimed, (1_700_000_000, 1_700_000_000))
    (old,) = objects(call(tmp_path, "ls", "--json"))

    assert (young["state"], old["state"]) == ("live", "stale")
    assert call(tmp_path, "tail", "-f", "run").exit_code == 0


def test_ctrl_c_ends_following_without_a_traceback(tmp_path: Path):
    log = handmade_run(tmp_path)
    following = subprocess.Popen(
        [sys.executable, "-m", "eventlog", "tail", "run", "-f", "--root", str(tmp_path)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # What a shell starts in the background ignores it, and so would all that it starts in turn.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert following.stdout is not None
    following.stdout.readline()

    following.send_signal(signal.SIGINT)
    _, said = following.communicate()

    assert b"Traceback" not in said
    log.die()


def test_tail_of_another_stream(tmp_path: Path):
    with eventlog.init(project="demo", id="run", root=tmp_path, quiet=True) as run:
        run.log_trajectory(eventlog.Trajectory([], reward=0.5), step=3)

    (printed,) = objects(call(tmp_path, "tail", "run", "--stream", "trajectories", "--json"))

    assert (printed["kind"], printed["step"], printed["data"]["reward"]) == ("trajectory", 3, 0.5)


# ── verify ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_whole_log_is_verified(tmp_path: Path):
    finished_run(tmp_path)

    result = call(tmp_path, "verify")

    assert result.exit_code == 0
    assert "1 runs, 7 records: all whole." in result.stdout


def test_damage_is_reported_with_file_seqs_and_cause(tmp_path: Path):
    # faults: 13
    log = finished_run(tmp_path)
    log.overwrite(log.offset_of(2) + 30, b"#")

    result = call(tmp_path, "verify", "run")

    assert result.exit_code == 1
    assert f"at byte {log.offset_of(1) + len(log.lines[1]):,} of events-000000000000.jsonl" in result.stdout
    assert "the checksum does not match (seq 2 to 2)" in result.stdout
    (proof,) = objects(call(tmp_path, "verify", "run", "--json"))
    assert (proof["records"], proof["lost"]) == (6, 1)
    assert (proof["damage"][0]["first_seq"], proof["damage"][0]["last_seq"]) == (2, 2)


def test_damage_to_the_last_record_of_a_dead_writer_is_damage(tmp_path: Path):
    # faults: 7
    log = finished_run(tmp_path)
    log.overwrite(log.offset_of(6) + 30, b"#")

    result = call(tmp_path, "verify", "run")

    assert result.exit_code == 1
    assert "(seq 6 to 6)" in result.stdout


def test_a_deleted_segment_is_reported_with_its_seqs(tmp_path: Path):
    # faults: 31
    log = handmade_run(tmp_path)
    log.new_segment()
    gone = log.segment
    for step in range(3):
        log.log(step=step)
    log.new_segment()
    log.log(step=3)
    log.die()
    gone.unlink()

    result = call(tmp_path, "verify")

    assert result.exit_code == 1
    assert "(seq 1 to 3)" in result.stdout


def test_a_torn_tail_is_normal(tmp_path: Path):
    # faults: 6
    log = handmade_run(tmp_path)
    line = log.log(step=0, loss=0.5)
    log.cut(log.segment.stat().st_size - len(line) // 2)
    log.die()

    result = call(tmp_path, "verify")

    assert result.exit_code == 0
    assert f"{len(line) - len(line) // 2:,} bytes after the last record" in result.stdout


def test_damage_among_trajectories_and_in_other_writers_is_found_too(tmp_path: Path):
    with eventlog.init(project="demo", id="run", root=tmp_path, quiet=True) as run:
        for _ in range(3):
            run.log_trajectory(eventlog.Trajectory([]))
    path = run.dir / "main-0001" / "trajectories-000000000000.jsonl"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)

    result = call(tmp_path, "verify")

    assert result.exit_code == 1
    assert "demo/run main-0001 trajectories: damaged" in result.stdout


def test_a_later_format_is_reported_and_the_other_segments_are_read(tmp_path: Path):
    # faults: 18
    from eventlog.record import frame

    log = handmade_run(tmp_path)
    log.segment = log.piece.dir / "events-000000000001.jsonl"
    log.segment.write_bytes(frame(b'"format":2}') + b"whatever\n")
    log.seq = 2
    log.new_segment()
    log.log(step=1)
    log.die()

    (proof,) = objects(call(tmp_path, "verify", "--json"))

    assert proof["records"] == 2
    assert "Update tidelog" in proof["damage"][0]["cause"]


def test_a_segment_of_another_log_is_damage(tmp_path: Path):
    # faults: 30
    log = finished_run(tmp_path, "one")
    log.segment.write_bytes(finished_run(tmp_path, "two").segment.read_bytes())

    result = call(tmp_path, "verify", "one")

    assert result.exit_code == 1
    assert "belongs to another log" in result.stdout


def test_an_identity_that_cannot_be_read_is_damage(tmp_path: Path):
    log = finished_run(tmp_path)
    (log.piece.dir.parent / "run.json").write_bytes(b"not JSON")

    result = call(tmp_path, "verify")

    assert result.exit_code == 1
    assert "restore the file from a copy" in result.stdout


def test_a_piece_that_is_not_there_is_damage(tmp_path: Path):
    first = finished_run(tmp_path)
    resumed(first.identity, tmp_path).die()
    shutil.rmtree(first.piece.dir)

    result = call(tmp_path, "verify")

    assert result.exit_code == 1
    assert "main-0001: there are later pieces, but not this" in result.stdout


def test_a_piece_without_its_events_is_damage_once_it_is_closed(tmp_path: Path):
    log = finished_run(tmp_path)
    beside = HandmadePiece(log.identity, log.piece, "console")
    beside.log("console", source="stdout", text="x")
    log.segment.unlink()

    result = call(tmp_path, "verify")

    assert result.exit_code == 1
    assert "it has no events" in result.stdout


@pytest.mark.parametrize("damage", [Path.unlink, lambda content: content.write_bytes(b"less")])
def test_content_that_is_not_there_is_damage(tmp_path: Path, damage: Callable[[Path], object]):
    with eventlog.init(project="demo", id="run", root=tmp_path, quiet=True) as run:
        (tmp_path / "notes.txt").write_text("some notes")
        run.save(str(tmp_path / "notes.txt"), base_path=str(tmp_path))
    assert call(tmp_path, "verify").exit_code == 0
    damage(tmp_path / "demo" / "run" / "files" / hashlib.sha256(b"some notes").hexdigest())

    result = call(tmp_path, "verify")

    assert result.exit_code == 1
    assert "the content of 'notes.txt' is missing" in result.stdout


def test_every_command_is_listed_and_explains_itself():
    listed = CliRunner().invoke(main, ["--help"]).stdout

    for name in ("ls", "show", "tail", "verify"):
        assert name in listed
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_the_module_is_the_command(tmp_path: Path):
    finished_run(tmp_path)

    done = subprocess.run(
        [sys.executable, "-m", "eventlog", "ls", "--json"],
        cwd=PROJECT,
        env={**os.environ, "EVENTLOG_ROOT": str(tmp_path)},
        capture_output=True,
    )

    assert orjson.loads(done.stdout)["run"] == "demo/run"
