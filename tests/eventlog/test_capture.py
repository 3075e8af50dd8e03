"""What a run records without being asked, in processes of their own, as a training script has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.cursor import Cursor, Sink, save
from eventlog.record import Record
from tests.conftest import NOTHING_UNASKED

SCRIPT = """
import sys, eventlog
run = eventlog.init(project="p", id="r", root={root!r}, quiet=True, settings={settings!r}, save_code={save_code!r})
print("hello")
print("trouble", file=sys.stderr)
run.log({{"x": 1}})
{rest}
"""


def script(
    root: Path, settings: dict[str, Any] | None = None, save_code: bool = False, rest: str = ""
) -> str:
    return SCRIPT.format(root=str(root), settings=settings or {}, save_code=save_code, rest=rest)


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in NOTHING_UNASKED}
    return {**kept, **variables}


def played(
    root: Path, text: str, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", text],
        env=environment(PYTHONPATH=os.getcwd(), **variables),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


def records(root: Path, stream: str) -> list[Record]:
    return list(eventlog.read(root / "p" / "r", stream))


def files(root: Path) -> dict[str, bytes]:
    run_dir = root / "p" / "r"
    return {
        record.data["path"]: (run_dir / "files" / record.data["sha256"]).read_bytes()
        for record in records(root, "files")
    }


def test_what_is_printed_is_kept_and_the_terminal_gets_it_too(tmp_path: Path):
    terminal = played(tmp_path, script(tmp_path, rest="run.finish()"))

    printed = [(r.data["source"], r.data["text"]) for r in records(tmp_path, "console")]
    assert printed == [("stdout", "hello\n"), ("stderr", "trouble\n")]
    assert (terminal.stdout, terminal.stderr) == ("hello\n", "trouble\n")


def test_a_machine_is_sampled_and_its_packages_are_a_file(tmp_path: Path):
    played(tmp_path, script(tmp_path, rest="import time; time.sleep(0.5); run.finish()"))

    kinds = Counter(record.kind for record in records(tmp_path, "events"))
    assert kinds["system"] >= 1
    assert b"orjson==" in files(tmp_path)["requirements.txt"]


def test_the_exit_is_the_last_record_whatever_was_found_out(tmp_path: Path):
    played(tmp_path, script(tmp_path, {"x_stats_sampling_interval": 0.1}))

    assert [record.kind for record in records(tmp_path, "events")][-1] == "exit"


@pytest.mark.parametrize("how", ["settings", "variables"])
def test_each_part_can_be_switched_off(tmp_path: Path, how: str):
    off = {"console": "off", "x_disable_stats": True, "x_save_requirements": False}
    variables = {f"WANDB_{name.upper()}": str(value) for name, value in off.items()}

    played(
        tmp_path,
        script(tmp_path, off if how == "settings" else None),
        **(variables if how == "variables" else {}),
    )

    assert [record.kind for record in records(tmp_path, "events")] == ["start", "metrics", "exit"]
    assert records(tmp_path, "console") == records(tmp_path, "files") == []


def test_changes_that_are_not_committed_are_kept_if_the_code_is_to_be_saved(tmp_path: Path):
    code = tmp_path / "code"
    code.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(code)]
    (code / "train.py").write_text("lr = 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    (code / "train.py").write_text("lr = 2\n")

    played(tmp_path / "without", script(tmp_path / "without"), cwd=code)
    played(tmp_path / "with", script(tmp_path / "with", save_code=True), cwd=code)

    assert "diff.patch" not in files(tmp_path / "without")
    assert b"+lr = 2" in files(tmp_path / "with")["diff.patch"]


def test_lines_printed_before_a_kill_are_there(tmp_path: Path):
    rest = "print('ready', flush=True)\nimport time; time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", script(tmp_path, rest=rest)],
        env=environment(PYTHONPATH=os.getcwd()),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "ready\n":
            pass
        # The record of a line is written by the print that ends it, just after the terminal got it.
        deadline_s = time.monotonic() + 10
        while not any("ready" in r.data["text"] for r in records(tmp_path, "console")):
            assert time.monotonic() < deadline_s
        process.send_signal(signal.SIGKILL)

    text = "".join(r.data["text"] for r in records(tmp_path, "console") if r.data["source"] == "stdout")
    assert text == "hello\nready\n"


def test_a_setting_that_does_nothing_here_says_so(tmp_path: Path):
    terminal = played(tmp_path, script(tmp_path, {"x_primary": True}))

    assert "Settings(x_primary=…) does nothing here" in terminal.stderr


def test_a_stop_from_the_runs_page_reaches_the_training_and_not_the_one_that_resumes_it(tmp_path: Path):
    run = eventlog.init(project="p", id="r", root=tmp_path, quiet=True)
    before = run.should_stop
    save(run.dir, Cursor(Sink("https://api.wandb.ai", None, "p", "r"), stopped="main-0001"), now_us=1)

    run._stop_look_at_s = 0.0
    assert (before, run.should_stop) == (False, True)
    run.finish()
    with eventlog.init(project="p", id="r", root=tmp_path, quiet=True, resume="must") as later:
        assert not later.should_stop


def test_with_redirect_what_a_child_prints_is_kept_too(tmp_path: Path):
    rest = "import subprocess; subprocess.run(['sh', '-c', 'echo from a child'])"

    terminal = played(tmp_path, script(tmp_path, {"console": "redirect"}, rest=rest))

    assert terminal.stdout == "hello\nfrom a child\n"
    text = "".join(r.data["text"] for r in records(tmp_path, "console") if r.data["source"] == "stdout")
    assert text == terminal.stdout
    assert not list((tmp_path / "p" / "r" / "main-0001").glob(".printed-*"))


def test_without_a_thread_to_spare_the_rows_are_logged_and_it_is_said(tmp_path: Path):
    text = f"""
import threading, eventlog
def refuse(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
with eventlog.init(project="p", id="r", root={str(tmp_path)!r}, quiet=True) as run:
    run.log({{"x": 1}})
"""
    terminal = played(tmp_path, text)

    assert "neither packages nor the machine's load are recorded: can't start new thread" in terminal.stderr
    assert "is synced when it is finished, and not each second" in terminal.stderr
    assert [r.kind for r in records(tmp_path, "events")] == ["start", "metrics", "exit"]


def test_without_a_descriptor_to_spare_nobody_is_told_to_stop_and_nothing_fails(tmp_path: Path):
    # faults: 63
    text = f"""
import resource, eventlog
with eventlog.init(project="p", id="r", root={str(tmp_path)!r}, quiet=True) as run:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    assert not run.should_stop
    run.log({{"x": 1}})
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
"""
    # What is found out beside the training needs descriptors, and would be a gap at this or that moment.
    played(tmp_path, text, WANDB_X_SAVE_REQUIREMENTS="false", WANDB_X_DISABLE_STATS="true")

    kinds = [r.kind for r in records(tmp_path, "events") if r.kind not in ("system", "machine")]
    assert kinds == ["start", "metrics", "exit"]
