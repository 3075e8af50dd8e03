"""One daemon per user and host, also where the state directory has no locks."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import time
from pathlib import Path

import pytest

from eventlog import roots
from eventlog.piece import this_boot_id, this_host
from syncd.instance import AlreadyRunning, Instance
from tests.locks import WITHOUT_LOCKS, no_locks


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory without locks."""
    monkeypatch.setattr(fcntl, "flock", no_locks())
    monkeypatch.setenv("TIDELOG_STATE_DIR", str(tmp_path))
    return tmp_path


def begun(state: Path, pid: int, ago_s: float = 0.0, **elsewhere: str) -> None:
    """Let a daemon have written its text so long ago."""
    text = {"host": this_host(), "boot_id": this_boot_id(), "pid": pid, "locked": False, **elsewhere}
    text["pid_namespace"] = os.stat("/proc/self/ns/pid").st_ino
    heartbeat = int((time.time() - ago_s) * 1e6)
    (state / "syncd.lock").write_text(json.dumps({**text, "heartbeat": heartbeat}) + "\n")


@pytest.mark.parametrize("says", WITHOUT_LOCKS)
def test_without_locks_a_daemon_begins_and_says_once_what_that_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, says: int
):
    monkeypatch.setattr(fcntl, "flock", no_locks(says))
    caplog.set_level(logging.INFO, "syncd")

    Instance(tmp_path).acquire()

    assert Instance(tmp_path).running_pid() == os.getpid()
    (said,) = caplog.messages
    assert "no locks" in said
    assert "TIDELOG_STATE_DIR" in said


def test_without_locks_one_that_lives_is_found_by_its_process(state: Path):
    with subprocess.Popen(["sleep", "60"]) as other:
        begun(state, other.pid)

        with pytest.raises(AlreadyRunning, match=str(other.pid)):
            Instance(state).acquire()
        is_seen = roots.daemon_is_watching()
        other.kill()

    assert is_seen
    assert not roots.daemon_is_watching()
    Instance(state).acquire()


def test_without_locks_neither_a_younger_process_nor_an_earlier_boots_nor_another_hosts_is_taken_for_it(
    state: Path,
):
    with subprocess.Popen(["sleep", "60"]) as other:
        for text in ({"ago_s": 60.0}, {"boot_id": "earlier"}, {"host": "another"}):
            begun(state, other.pid, **text)  # type: ignore[arg-type]
            assert Instance(state).running_pid() is None
        other.kill()


def test_without_locks_of_two_that_begin_at_the_same_moment_the_first_makes_way(state: Path):
    first = Instance(state)
    first.acquire()
    assert first.lost() is None

    begun(state, 1)

    assert "another syncd may run" in (first.lost() or "")


def test_without_locks_a_root_is_entered_in_the_list(state: Path):
    roots.register(state / "runs")

    assert roots.registered() == [state / "runs"]
