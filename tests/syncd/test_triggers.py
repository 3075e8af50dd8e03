"""Which triggers are followed, when, and what becomes of them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from syncd.sync import NothingThere, Wishes
from syncd.triggers import (
    RETRY_MAX_S,
    Agenda,
    NotFollowed,
    Seen,
    UntilStopped,
    look,
    plan_of,
    watch,
)
from tests.logs import handmade_run

FIRST, ANEW = Seen(1, 7, 20), Seen(2, 7, 20)


def test_a_trigger_is_due_at_once_and_the_oldest_first():
    seen = {"b.command": Seen(1, 1, 9), "a.command": Seen(2, 2, 9)}

    assert Agenda().due(seen, 0.0) == ["b.command", "a.command"]


def test_a_failed_one_waits_ever_longer_up_to_a_minute():
    agenda, waits, now_s = Agenda(), [], 0.0
    for _ in range(9):
        agenda.failed("a.command", FIRST, now_s)
        wait_s = next(s for s in range(1, 100) if agenda.due({"a.command": FIRST}, now_s + s))
        waits.append(wait_s)
        now_s += wait_s

    assert waits == [1, 2, 4, 8, 16, 32, RETRY_MAX_S, RETRY_MAX_S, RETRY_MAX_S]


def test_one_that_is_written_anew_is_due_at_once():
    agenda = Agenda()
    agenda.failed("a.command", FIRST, 0.0)
    agenda.refused("b.command", FIRST)

    assert agenda.due({"a.command": ANEW, "b.command": ANEW}, 0.0) == ["a.command", "b.command"]


def test_one_that_cannot_be_followed_is_left_alone():
    agenda = Agenda()
    agenda.refused("a.command", FIRST)

    assert agenda.due({"a.command": FIRST}, 1e9) == []


def test_one_that_fails_delays_no_other():
    agenda = Agenda()
    agenda.failed("a.command", FIRST, 0.0)

    assert agenda.due({"a.command": FIRST, "b.command": FIRST}, 0.5) == ["b.command"]


def test_what_is_half_written_or_no_trigger_is_not_seen(tmp_path: Path):
    (tmp_path / "empty.command").touch()
    (tmp_path / "other.txt").write_text("/run")
    (tmp_path / "whole.command").write_text("/run")

    assert list(look(tmp_path)) == ["whole.command"]


# -- the loop --------------------------------------------------------------------------------------------------


class Stop(Exception):
    """Ends the loop from within."""


def followed(directory: Path, follow: Callable[[Path], str | None], looks: int = 1) -> list[str]:
    """Watch for some looks; return what was said."""
    said: list[str] = []
    times = iter(range(looks))

    def clock() -> float:
        # Asked for at each look that finds something, and at each failure: far enough apart to try all again.
        try:
            return 1000.0 * next(times)
        except StopIteration:
            raise Stop from None

    with pytest.raises(Stop):
        watch(directory, follow, said.append, clock, look_s=0.0)
    return said


def trigger(directory: Path, text: str = "/runs/offline-run-1", name: str = "a.command") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_what_is_acknowledged_is_removed(tmp_path: Path):
    path, asked = trigger(tmp_path), []

    followed(tmp_path, lambda run: asked.append(run))

    assert asked == [Path("/runs/offline-run-1")]
    assert not path.exists()


def test_what_is_not_stays_and_is_tried_again(tmp_path: Path):
    path, asked = trigger(tmp_path), []

    def follow(run: Path) -> str | None:
        asked.append(run)
        return "the network is away" if len(asked) == 1 else None

    said = followed(tmp_path, follow, looks=3)

    assert len(asked) == 2
    assert said == ["a.command: the network is away"]
    assert not path.exists()


def test_one_that_was_written_again_meanwhile_is_followed_once_more(tmp_path: Path):
    path, asked = trigger(tmp_path), []

    def follow(run: Path) -> str | None:
        asked.append(run)
        if len(asked) == 1:
            path.write_text("/runs/offline-run-1")
            os.utime(path, ns=(1, 1))
        return None

    followed(tmp_path, follow, looks=2)

    assert len(asked) == 2
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [("runs/offline-run-1", "absolute"), ("/" + "x" * 5000, "too long"), ("/a\0b", "absolute")],
)
def test_what_is_no_path_is_said_and_kept(tmp_path: Path, text: str, why: str):
    path = trigger(tmp_path, text)
    trigger(tmp_path, name="good.command")
    asked: list[Path] = []

    said = followed(tmp_path, lambda run: asked.append(run))

    assert why in said[0]
    assert path.exists()
    assert asked == [Path("/runs/offline-run-1")]


@pytest.mark.parametrize("kind", ["link", "directory", "pipe"])
def test_only_a_file_is_read(tmp_path: Path, kind: str):
    secret = tmp_path / "secret"
    secret.write_text("/secret")
    path = tmp_path / "a.command"
    {"link": lambda: path.symlink_to(secret), "directory": path.mkdir, "pipe": lambda: os.mkfifo(path)}[
        kind
    ]()
    asked: list[Path] = []

    followed(tmp_path, lambda run: asked.append(run))

    assert asked == []


def test_what_names_no_run_is_said_once(tmp_path: Path):
    path = trigger(tmp_path)

    def follow(run: Path) -> str | None:
        raise NotFollowed("there is no such path.")

    said = followed(tmp_path, follow, looks=3)

    assert said == ["a.command: there is no such path."]
    assert path.exists()


def test_one_that_is_emptied_after_it_was_seen_is_waited_for(tmp_path: Path):
    path = trigger(tmp_path, "\n")

    said = followed(tmp_path, lambda run: None, looks=2)

    assert said == []
    assert path.exists()


def test_the_same_trouble_is_said_once(tmp_path: Path):
    trigger(tmp_path)

    said = followed(tmp_path, lambda run: "the network is away", looks=6)

    assert said == ["a.command: the network is away"]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("a disk"), NothingThere("no such run.")])
def test_whatever_one_run_does_to_us_concerns_no_other(tmp_path: Path, error: Exception):
    bad = trigger(tmp_path, "/runs/bad")
    good = trigger(tmp_path, "/runs/good", "b.command")

    def follow(run: Path) -> None:
        if run.name == "bad":
            raise error

    (said,) = followed(tmp_path, follow, looks=2)

    assert str(error) in said
    assert bad.exists()
    assert not good.exists()


def test_a_run_that_is_seen_late_is_tried_again(tmp_path: Path):
    path, tries = trigger(tmp_path), iter([NothingThere("no such run."), None])

    def follow(run: Path) -> None:
        trouble = next(tries)
        if trouble is not None:
            raise trouble

    followed(tmp_path, follow, looks=3)

    assert not path.exists()


def test_a_directory_that_cannot_be_looked_at_is_looked_at_again(tmp_path: Path):
    directory = tmp_path / "triggers"
    directory.write_text("in the way")

    said = followed(directory, lambda run: None, looks=3)

    assert said == [f"{directory}: it cannot be looked at (File exists)."]


def test_the_directory_is_made(tmp_path: Path):
    followed(tmp_path / "a" / "b", lambda run: None)

    assert (tmp_path / "a" / "b").is_dir()


def test_one_that_a_killed_watcher_had_set_aside_is_followed_again(tmp_path: Path):
    aside, asked = trigger(tmp_path, name="a.command.done"), []

    followed(tmp_path, lambda run: asked.append(run), looks=2)

    assert len(asked) == 1
    assert not aside.exists()


# -- what is a run's directory ---------------------------------------------------------------------------------


def test_a_runs_directory_is_what_a_trigger_may_name(tmp_path: Path):
    handmade_run(tmp_path, "ours").die()
    theirs = tmp_path / "wandb" / "offline-run-1"
    theirs.mkdir(parents=True)
    (theirs / "run-r.wandb").touch()

    assert plan_of(tmp_path / "demo" / "ours", Wishes()).run_dirs == [tmp_path / "demo" / "ours"]
    assert [file.directory for file in plan_of(theirs, Wishes()).files] == [theirs]


@pytest.mark.parametrize(
    "name", [".", "wandb", "wandb/*", "wandb/offline-run-1/run-r.wandb", "loop", "nowhere"]
)
def test_many_runs_a_pattern_a_file_or_a_loop_is_none(tmp_path: Path, name: str):
    theirs = tmp_path / "wandb" / "offline-run-1"
    theirs.mkdir(parents=True)
    (theirs / "run-r.wandb").touch()
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(NothingThere):
        plan_of(tmp_path / name, Wishes())


# -- the end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_sync_that_ends_well_all_the_same_ends_the_watch(tmp_path: Path, number: int):
    first, second = trigger(tmp_path), trigger(tmp_path, "/runs/offline-run-2", "b.command")
    os.utime(first, ns=(1, 1))

    watch(
        tmp_path,
        lambda run: signal.pthread_kill(threading.get_ident(), number),
        lambda line: None,
        lambda: 0.0,
        look_s=0.0,
    )

    assert not first.exists()
    assert second.exists()


def test_a_signal_ends_the_sync_under_way_and_its_trigger_stays(tmp_path: Path):
    path = trigger(tmp_path)

    def follow(run: Path) -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        UntilStopped().uploading(2, 1, 0, None)
        pytest.fail("the sync went on")

    watch(tmp_path, follow, lambda line: None, lambda: 0.0, look_s=0.0)

    assert path.exists()
    assert not signal.sigpending()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
