"""`syncd doctor`, `logs` and `service`, as a user types them, and what systemd is told."""

# ruff: noqa: F401, F811  The fixtures are those of test_cli.
from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventlog import roots as known_roots
from syncd import doctor as looked_at
from syncd.doctor import Finding, clock, watches
from tests.syncd.syncing import finished_run as handmade_finished_run
from tests.syncd.syncing import sync
from tests.syncd.test_cli import env, finished_run, foreground, server, syncd
from tests.syncd.test_status import AS_ORDINARY
from tests.wandb_server import WandbServer
from tests.wandb_server.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
Env = dict[str, str]


def doctor(env: Env, *arguments: str, before: Sequence[str] = ()) -> tuple[int, dict[str, dict[str, Any]]]:
    done = subprocess.run(
        [*before, sys.executable, "-m", "syncd", "doctor", "--json", *arguments],
        env=env,
        cwd=env["HOME"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, {each["what"]: each for each in json.loads(done.stdout)}


def test_where_all_is_well_nothing_is_to_be_mended(env: Env, tmp_path: Path) -> None:
    finished_run(tmp_path / "runs")
    assert syncd(env, "start", "--root", str(tmp_path / "runs")).returncode == 0

    code, found = doctor(env, "--root", str(tmp_path / "runs"))

    assert code == 0
    assert {name: each["mend"] for name, each in found.items() if each["state"] == "bad"} == {}
    assert list(found)[:5] == ["daemon", "key", "server", "clock", "state"]
    assert found["server"]["said"].endswith("answers, and knows the key: ent")
    assert found[f"root {tmp_path / 'runs'}"]["state"] == "well"
    assert env["WANDB_API_KEY"] not in json.dumps(found)


def test_each_trouble_is_named_with_its_mend(server: WandbServer, env: Env, tmp_path: Path) -> None:
    gone = tmp_path / "gone"

    code, found = doctor(env, "--root", str(gone))
    assert (code, found["daemon"]["mend"]) == (0, "syncd start, or once: syncd sync")
    assert found[f"root {gone}"]["state"] == "odd"

    code, found = doctor({**env, "WANDB_API_KEY": ""}, "--root", str(gone))
    assert (code, found["key"]["state"], found["key"]["mend"]) == (
        1,
        "bad",
        "wandb login, or set WANDB_API_KEY",
    )

    assert found["server"]["said"].endswith("was not asked: there is no key to ask with")

    code, found = doctor({**env, "WANDB_API_KEY": "f" * 40}, "--root", str(gone))
    assert (code, found["server"]["state"]) == (1, "bad")
    assert "refuses the key" in found["server"]["said"]

    server.down()
    code, found = doctor(env, "--root", str(gone))
    assert (code, found["server"]["state"], "clock" in found) == (1, "bad", False)
    assert "connection refused" in found["server"]["said"]

    (tmp_path / "file").write_text("")
    code, found = doctor({**env, "TIDELOG_STATE_DIR": str(tmp_path / "file" / "state")}, "--root", str(gone))
    assert (code, found["state"]["state"]) == (1, "bad")


def test_on_a_terminal_a_mend_is_below_what_it_mends(env: Env, tmp_path: Path) -> None:
    done = syncd(env, "doctor", "--root", str(tmp_path / "gone"))

    lines = done.stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if "no syncd runs here" in line)
    assert lines[at].startswith("!")
    assert "→ syncd start" in lines[at + 1]


def test_a_registered_root_that_is_gone_is_forgotten_as_it_is_said(
    env: Env, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDELOG_STATE_DIR", env["TIDELOG_STATE_DIR"])
    gone = tmp_path / "no longer"
    known_roots.register(tmp_path / "runs")
    known_roots.register(gone)

    _, found = doctor(env)
    (mend,) = re.findall(r"syncd (doctor --forget '.*')", found[f"root {gone}"]["mend"])
    done = syncd(env, *shlex.split(mend))
    again = syncd(env, *shlex.split(mend))

    assert done.returncode == 0, done.stderr
    assert known_roots.registered() == [tmp_path / "runs"]
    assert (again.returncode, f"there are: {tmp_path / 'runs'}" in again.stderr) == (2, True)


def test_a_list_of_roots_that_cannot_be_read_is_bad(env: Env) -> None:
    roots_file = Path(env["TIDELOG_STATE_DIR"]) / "roots.json"
    roots_file.parent.mkdir(parents=True)
    roots_file.write_text("{")

    code, found = doctor(env)

    assert (code, found["roots"]["state"]) == (1, "bad")
    assert str(roots_file) in found["roots"]["said"]
    assert "--root" in found["roots"]["mend"]


@pytest.mark.skipif(AS_ORDINARY and not shutil.which("setpriv"), reason="nothing is forbidden to root")
def test_runs_that_this_user_may_not_write_are_named_with_the_mend(
    server: WandbServer, env: Env, tmp_path: Path
) -> None:
    for name in ("mine", "theirs", "theirs-and-there", "damaged"):
        handmade_finished_run(tmp_path / "runs", name)
    there = tmp_path / "runs" / "demo" / "theirs-and-there"
    sync(server, tmp_path / "runs", asked_for=[there], roots=list)
    closed = tmp_path / "runs" / "demo" / "theirs"
    (tmp_path / "runs" / "demo" / "damaged" / "run.json").write_text("{}")
    for run_dir in (closed, there / "sync"):
        run_dir.chmod(0o500)

    code, found = doctor(env, "--root", str(tmp_path / "runs"), before=AS_ORDINARY)

    for run_dir in (closed, there / "sync"):
        run_dir.chmod(0o700)
    runs = found[f"runs of {tmp_path / 'runs'}"]
    assert (code, runs["state"]) == (1, "bad")
    assert runs["said"].startswith("2 cannot be uploaded by this user")
    assert f"demo/theirs: {str(closed)!r} may not be written by this user" in runs["said"]
    assert "restore the file from a copy" in runs["said"]
    assert doctor(env, "--root", str(tmp_path / "other"))[0] == 0


def test_of_very_many_runs_the_latest_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looked_at, "_LATEST_RUNS", 2)
    for number in range(3):
        piece = handmade_finished_run(tmp_path, f"run-{number}")
        os.utime(piece.piece.dir.parent, (number, number))
    (tmp_path / "demo" / "run-0" / "run.json").write_text("{}")
    os.utime(tmp_path / "demo" / "run-0", (0, 0))

    (finding,) = looked_at.runs(tmp_path)

    assert (finding.state, finding.said) == ("well", "the latest 2 of 3 can be read and written")


def test_a_daemon_that_was_started_for_other_roots_is_bad_for_this_one(env: Env, tmp_path: Path) -> None:
    here, other = tmp_path / "runs", tmp_path / "other"
    other.mkdir()
    page = Path(env["TIDELOG_STATE_DIR"]) / "syncd.json"
    with foreground(env, other) as daemon:
        wait_for(page.exists, "the daemon")
        page.write_text(
            json.dumps({**json.loads(page.read_text()), "has_chosen_roots": True, "roots": [str(other)]})
        )

        code, found = doctor(env, f"--root={here}", f"--root={other}")
        daemon.terminate()

    assert code == 1
    assert "syncd stop, then syncd start" in found[f"daemon on {here}"]["mend"]
    assert f"daemon on {other}" not in found


def test_too_few_watches_are_said_with_a_number_that_is_enough(tmp_path: Path) -> None:
    limits = tmp_path / "inotify"
    limits.mkdir()
    (limits / "max_user_instances").write_text("128\n")
    for number in range(9):
        (tmp_path / "runs" / f"run{number}").mkdir(parents=True)

    def said(most: int) -> list[tuple[str, bool]]:
        (limits / "max_user_watches").write_text(f"{most}\n")
        return [
            (each.state, "max_user_watches=524288" in (each.mend or ""))
            for each in watches([tmp_path / "runs"], limits)
        ]

    assert (said(9), said(15), said(100)) == ([("odd", True)], [("odd", True)], [("well", False)])
    assert list(watches([tmp_path / "runs"], tmp_path / "nowhere")) == []


def test_a_server_without_a_time_tells_nothing_of_ours() -> None:
    assert [clock(date, 0.0).state for date in (None, "", "soon")] == ["well"] * 3
    assert clock("Fri, 21 Nov 2025 08:00:00 GMT", 0.0) == Finding(
        "clock",
        "odd",
        "this machine is 1,763,712,000 s behind the server",
        clock("Fri, 21 Nov 2025 08:00:00 GMT", 0.0).mend,
    )


# -- logs ----------------------------------------------------------------------------------------------------------


def test_logs_shows_the_end_of_the_log(env: Env) -> None:
    assert "There is no log yet" in syncd(env, "logs").stderr
    log = Path(env["TIDELOG_STATE_DIR"]) / "syncd.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(f"line {n}\n" for n in range(100)))

    assert syncd(env, "logs", "-n", "2").stdout == "line 98\nline 99\n"
    assert len(syncd(env, "logs").stdout.splitlines()) == 50


@pytest.fixture
def following(env: Env) -> Iterator[subprocess.Popen[str]]:
    log = Path(env["TIDELOG_STATE_DIR"]) / "syncd.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("old\n")
    command = [sys.executable, "-u", "-m", "syncd", "logs", "-f", "-n", "1"]
    with subprocess.Popen(command, env=env, cwd=env["HOME"], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_logs_follows_what_is_added_and_what_takes_its_place(
    env: Env, following: subprocess.Popen[str]
) -> None:
    log = Path(env["TIDELOG_STATE_DIR"]) / "syncd.log"
    assert following.stdout is not None
    assert following.stdout.readline() == "old\n"

    with open(log, "a", encoding="utf-8") as file:
        file.write("ha")
        file.flush()
        file.write("lf\nnext\n")
    assert [following.stdout.readline() for _ in range(2)] == ["half\n", "next\n"]

    log.rename(log.with_suffix(".1"))
    log.write_text("anew, and longer than what was there before it\n")
    assert following.stdout.readline().startswith("anew")

    following.send_signal(signal.SIGINT)
    assert following.wait(timeout=20) == 0


# -- service -------------------------------------------------------------------------------------------------------


def test_the_unit_starts_this_syncd_and_holds_no_key(env: Env, tmp_path: Path) -> None:
    env["XDG_CONFIG_HOME"] = str(tmp_path / "config")

    shown = syncd(env, "service", "--root", str(tmp_path / "my runs"))
    installed = syncd(env, "service", "--install", "--root", str(tmp_path / "my runs"))

    path = tmp_path / "config" / "systemd" / "user" / "syncd.service"
    assert path.read_text() == shown.stdout.removesuffix("\n")
    assert (
        f'ExecStart="{sys.executable}" -m syncd start --foreground "--root={tmp_path / "my runs"}"'
        in shown.stdout
    )
    assert f'Environment="WANDB_BASE_URL={env["WANDB_BASE_URL"]}"' in shown.stdout
    assert env["WANDB_API_KEY"] not in shown.stdout
    assert "setsid nohup" in shown.stderr
    assert "systemctl --user enable --now syncd" in installed.stdout

    assert syncd(env, "service", "--install").returncode == 0
    path.write_text("[Service]\nExecStart=/mine\n")
    refused = syncd(env, "service", "--install")
    assert (refused.returncode, path.read_text()) == (2, "[Service]\nExecStart=/mine\n")
    assert "was not written by syncd" in refused.stderr


def test_the_unit_has_what_this_shell_would_say_to_syncd(env: Env) -> None:
    said = {
        "https_proxy": "http://me:secret@proxy:3128",
        "http_proxy": "http://proxy:3128",
        "all_proxy": "socks5://proxy",
        "no_proxy": "localhost",
        "ALL_PROXY": "socks5://proxy",
        "XDG_STATE_HOME": "/elsewhere/state",
        "NETRC": "/elsewhere/netrc",
        "WANDB_CONFIG_DIR": "/elsewhere/wandb",
    }

    shown = syncd({**env, **said}, "service")

    missing = [f'"{name}={value}"' for name, value in said.items()]
    assert [each for each in missing if f"Environment={each}\n" not in shown.stdout] == []


def test_a_unit_that_cannot_be_written_is_a_sentence_and_one_with_a_password_is_its_owners(
    env: Env, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    failed = syncd({**env, "XDG_CONFIG_HOME": str(tmp_path / "file")}, "service", "--install")
    syncd({**env, "XDG_CONFIG_HOME": str(tmp_path / "config")}, "service", "--install")

    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert "the unit cannot be written" in failed.stderr
    unit = tmp_path / "config" / "systemd" / "user" / "syncd.service"
    assert unit.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_is_told_when_the_daemon_is_ready_and_when_it_ends(
    env: Env,
    tmp_path: Path,
    is_abstract: bool,
) -> None:
    finished_run(tmp_path / "runs")
    address = f"\0tidelog-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(address)
        heard.settimeout(30)
        told = {**env, "NOTIFY_SOCKET": address.replace("\0", "@")}
        command = [sys.executable, "-m", "syncd", "start", "--foreground", f"--root={tmp_path / 'runs'}"]
        with subprocess.Popen(command, env=told, cwd=env["HOME"], stderr=subprocess.DEVNULL) as daemon:
            first = heard.recv(4096).decode()
            daemon.send_signal(signal.SIGTERM)
            wait_for(lambda: daemon.poll() is not None, "the end")
        last = first
        heard.setblocking(False)
        while True:
            try:
                last = heard.recv(4096).decode()
            except BlockingIOError:
                break

    assert re.fullmatch(r"READY=1\nSTATUS=.*", first)
    assert last == "STOPPING=1"
