"""How soon the daemon hears of a run, and that it knows when it may not have heard.

Everything here is real: inotify and its limits, a process that is stopped, threads that die, file systems that go.
Only the clock is the test's: what is done every few seconds is done when the test says so.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from watchdog.observers.api import EventDispatcher, EventEmitter
from watchdog.observers.inotify_c import InotifyFD
from watchdog.utils import BaseThread

from eventlog import roots as known_roots
from eventlog.reader import read
from syncd import daemon as daemon_module
from syncd.cli import main
from syncd.daemon import Daemon
from syncd.doctor import findings
from syncd.http import Answer
from syncd.instance import Instance
from syncd.watch import NO_MORE, POLL_S, RETRY_S, Watch
from tests.faults.machine import Removable
from tests.logs import handmade_run, resumed
from tests.syncd.syncing import sync_while, xs
from tests.wandb_server import WandbServer
from tests.wandb_server.waiting import wait_for

REPOSITORY = Path(__file__).parents[2]
SOON_S = 20.0
# A machine may keep more events than a test has time to make.
MOST_EVENTS = 200_000


def at_once(call: Callable[[], None]) -> None:
    call()


class Watching:
    """A watch whose clock stands still, and what it has hinted."""

    def __init__(self, *roots: Path, kind: str | None = "ext4") -> None:
        self.now_s = 0.0
        self.hinted: list[Path] = []
        self.roots = list(roots)
        self.watch = Watch(self.hinted.append, at_once, clock=lambda: self.now_s, kind_of=lambda root: kind)

    def look(self, after_s: float = 0.0) -> bool:
        self.now_s += after_s
        return self.watch.look_after(self.roots)

    def begin(self) -> Watching:
        self.look()
        self.hinted.clear()
        return self

    def hears_of(self, run_dir: Path) -> None:
        wait_for(lambda: run_dir in self.hinted, f"a hint of {run_dir}", SOON_S)


@pytest.fixture
def watching(tmp_path: Path) -> Iterator[Watching]:
    root = tmp_path / "runs"
    root.mkdir()
    made = Watching(root)
    yield made
    made.watch.stop()


def written(run_dir: Path, name: str = "main-0001/events-000000000000.jsonl") -> Path:
    """Let something be written in a run; return its directory."""
    (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
    with open(run_dir / name, "a", encoding="ascii") as file:
        file.write("x\n")
    return run_dir


def a_run(root: Path, run_id: str = "run") -> Path:
    """Make a run as far as it is looked for; return its directory."""
    written(root / "demo" / run_id, "run.json")
    return written(root / "demo" / run_id)


# -- what is heard -------------------------------------------------------------------------------------------------


def test_what_is_written_in_a_run_is_hinted_at_once(watching: Watching) -> None:
    (root,) = watching.roots
    run_dir = a_run(root)
    watching.begin()

    written(run_dir)

    watching.hears_of(run_dir)
    assert watching.watch.polled == {}
    assert watching.watch.degraded is None


def test_of_a_run_that_is_over_one_directory_is_watched_and_what_resumes_it_is_heard(
    watching: Watching,
) -> None:
    (root,) = watching.roots
    piece = handmade_run(root)
    piece.die()
    run_dir = root / "demo" / "run"
    for name in ("sync", "files"):
        (run_dir / name).mkdir(exist_ok=True)
    before = watches()
    watching.begin()

    # The root, the project, the run.
    assert watches() - before == 3
    goes_on = resumed(piece.identity, root)
    watching.hears_of(run_dir)
    wait_for(lambda: watches() - before == 4, "the new piece to be watched")
    watching.hinted.clear()
    goes_on.log(x=1, step=1)
    watching.hears_of(run_dir)
    goes_on.die()


def watches() -> int:
    """Return how many directories this process watches."""
    told = [Path(f"/proc/self/fdinfo/{fd}") for fd in os.listdir("/proc/self/fdinfo")]
    return sum(each.read_text().count("inotify wd:") for each in told if each.exists())


def test_what_the_daemon_itself_reads_and_writes_is_no_hint(watching: Watching) -> None:  # faults: 42
    (root,) = watching.roots
    piece = handmade_run(root)
    piece.log(x=0, step=0)
    run_dir = root / "demo" / "run"
    watching.begin()

    for _ in range(10):
        assert [record.kind for record in read(run_dir)] == ["start", "metrics"]
        (run_dir / "run.json").read_bytes()
        os.listdir(run_dir)
    written(run_dir, "sync/cursor.json")
    os.replace(run_dir / "sync" / "cursor.json", run_dir / "sync" / "other.json")
    watching.hears_of(written(root / "demo" / "marker"))

    piece.die()
    assert set(watching.hinted) == {root / "demo" / "marker"}


def test_however_much_happens_the_daemon_is_woken_once_until_it_looks(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "runs", f"run{n}") for n in range(3)]
    calls: list[Callable[[], None]] = []
    hinted: list[Path] = []
    watch = Watch(hinted.append, calls.append, kind_of=lambda root: "ext4")

    watch.look_after([tmp_path / "runs"])
    for n in range(1000):
        written(runs[n % 2])
    assert len(calls) == 1
    calls.pop()()
    assert hinted == runs

    wait_for(lambda: (written(runs[2]), calls)[1], "the next call", SOON_S)
    watch.stop()


def test_a_root_is_watched_from_when_it_comes_until_nobody_asks_for_it(tmp_path: Path) -> None:
    watching = Watching(tmp_path / "runs", tmp_path / "others")
    watching.look()
    first = a_run(tmp_path / "runs")
    watching.look()
    assert watching.hinted == [first]

    watching.roots = [tmp_path / "others"]
    other = a_run(tmp_path / "others")
    watching.look()
    watching.hinted.clear()
    written(first)
    written(other)
    watching.hears_of(other)

    assert first not in watching.hinted
    watching.watch.stop()


# -- what was missed -----------------------------------------------------------------------------------------------

# It says what it hints and, when it is told to look, how each root is watched.
LISTENER = """
import logging, os, sys
from pathlib import Path
import orjson
from syncd.watch import Watch

def say(**said):
    os.write(1, orjson.dumps(said) + b"\\n")

logging.basicConfig(level=logging.INFO)
clock_s = [0.0]
watch = Watch(lambda run_dir: say(hint=str(run_dir)), lambda call: call(), clock=lambda: clock_s[0], kind_of=lambda root: "ext4")
for line in sys.stdin:
    told = orjson.loads(line)
    if "limit" in told:
        Path("/proc/sys/user/max_inotify_watches").write_text(str(told["limit"]))
        continue
    clock_s[0] += told["after_s"]
    watch.look_after([Path(sys.argv[1])])
    say(polled=list(watch.polled.values()), degraded=watch.degraded)
watch.stop()
"""


class Listener:
    """A watch in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], said: Path, log: Path) -> None:
        self.process = process
        self._said, self._log = said, log

    def tell(self, **told: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(orjson.dumps(told) + b"\n")
        self.process.stdin.flush()

    def look(self, after_s: float = 0.0) -> dict[str, Any]:
        count = len(self._answers())
        self.tell(after_s=after_s)
        wait_for(lambda: len(self._answers()) > count, "a look", SOON_S)
        return self._answers()[-1]

    def hints(self) -> list[Path]:
        return [Path(said["hint"]) for said in self._lines() if "hint" in said]

    def log(self) -> str:
        return self._log.read_text()

    def _answers(self) -> list[dict[str, Any]]:
        return [said for said in self._lines() if "polled" in said]

    def _lines(self) -> list[dict[str, Any]]:
        return [
            orjson.loads(line)
            for line in self._said.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n")
        ]


@contextmanager
def listener(directory: Path, root: Path, *before: str) -> Iterator[Listener]:
    said, log = directory / "said", directory / "log"
    with (
        open(said, "wb") as out,
        open(log, "wb") as errors,
        subprocess.Popen(
            [*before, sys.executable, "-c", LISTENER, str(root)],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        ) as process,
    ):
        try:
            yield Listener(process, said, log)
        finally:
            process.kill()


def test_what_happened_while_inotify_could_keep_no_more_is_hinted_as_soon_as_that_is_known(
    tmp_path: Path,
) -> None:  # faults: 36 37
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if most > MOST_EVENTS:
        pytest.skip(f"inotify keeps {most:,} events here")
    root = tmp_path / "runs"
    loud, quiet = a_run(root, "loud"), a_run(root, "quiet")
    with listener(tmp_path, root) as heard:
        heard.look()
        known = len(heard.hints())

        heard.process.send_signal(signal.SIGSTOP)
        # Two files in turn: equal events that follow each other are one.
        with (
            open(loud / "main-0001" / "a", "ab", buffering=0) as a,
            open(loud / "main-0001" / "b", "ab", buffering=0) as b,
        ):
            for _ in range(most // 2 + 1):
                a.write(b"x")
                b.write(b"x")
        written(quiet)
        born = a_run(root, "born")
        heard.process.send_signal(signal.SIGCONT)

        wait_for(lambda: {quiet, born} <= set(heard.hints()[known:]), "a hint of what was missed", SOON_S)
        # What came to be meanwhile is watched from now on.
        known = len(heard.hints())
        written(born)
        wait_for(lambda: born in heard.hints()[known:], "a hint of what is new", SOON_S)


# -- limits --------------------------------------------------------------------------------------------------------


@contextmanager
def limited(directory: Path, root: Path, watches: int) -> Iterator[Listener]:
    """A watch in a process that may have so many of inotify's: in a namespace of its own, so that nobody else lacks any."""
    enter = ["unshare", "--user", "--map-root-user"]
    limit = f"echo {watches} > /proc/sys/user/max_inotify_watches"
    if shutil.which("unshare") is None or subprocess.run([*enter, "sh", "-c", limit], check=False).returncode:
        pytest.skip("no user namespace may be made here")
    with listener(directory, root, *enter, "sh", "-c", f'{limit}; exec "$@"', "sh") as made:
        yield made


def test_a_root_with_more_directories_than_watches_is_polled_with_one_warning_until_there_are_more(
    tmp_path: Path,
) -> None:  # faults: 38
    root = tmp_path / "runs"
    runs = [a_run(root, f"run{n}") for n in range(5)]
    with limited(tmp_path, root, watches=4) as heard:
        first = heard.look()
        assert first["polled"] == [NO_MORE]
        assert NO_MORE in first["degraded"]
        assert set(heard.hints()) == set(runs)

        born = a_run(root, "born")
        heard.look(POLL_S)
        assert heard.hints()[len(runs) :] == [born]
        assert heard.look(RETRY_S)["polled"] == [NO_MORE]
        assert heard.log().count("WARNING") == 1

        heard.tell(limit=1000)
        assert heard.look(RETRY_S) == {"polled": [], "degraded": None}
        known = len(heard.hints())
        written(born)
        wait_for(lambda: born in heard.hints()[known:], "a hint", SOON_S)


def test_a_root_that_comes_to_have_more_directories_than_watches_is_polled_from_then_on(
    tmp_path: Path,
) -> None:  # faults: 38
    root = tmp_path / "runs"
    a_run(root)
    with limited(tmp_path, root, watches=6) as heard:
        assert heard.look() == {"polled": [], "degraded": None}

        runs = [a_run(root, f"run{n}") for n in range(5)]

        wait_for(lambda: heard.look()["polled"] == [NO_MORE], "the limit", SOON_S)
        assert set(runs) <= set(heard.hints())
        assert heard.log().count("WARNING") == 1


# -- roots that go and come back -----------------------------------------------------------------------------------


def removed(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def replaced(root: Path) -> None:
    root.rename(root.with_name("old"))
    root.mkdir()


@pytest.mark.parametrize("change", [removed, replaced])
def test_a_root_in_whose_place_another_came_is_watched_as_before(
    watching: Watching, change: Callable[[Path], None]
) -> None:  # faults: 39
    (root,) = watching.roots
    a_run(root)
    watching.begin()

    change(root)
    born = a_run(root, "born")

    def is_watched_again() -> bool:
        watching.look()
        return not watching.watch.polled

    # At the latest the second look finds it: a directory may look like the one before it.
    wait_for(lambda: is_watched_again() and born in watching.hinted, "the root's watch", SOON_S)
    watching.hinted.clear()
    written(born)
    watching.hears_of(born)


def test_a_root_that_is_gone_is_let_go_and_found_when_it_is_back(watching: Watching) -> None:  # faults: 39
    (root,) = watching.roots
    watching.begin()

    shutil.rmtree(root)
    watching.look()
    watching.look()
    assert watching.watch.polled == {}
    born = a_run(root, "born")
    watching.look()

    assert watching.hinted == [born]
    watching.hinted.clear()
    written(born)
    watching.hears_of(born)


@pytest.mark.needs_root
@pytest.mark.parametrize("is_seen_away", [True, False])
def test_a_root_that_was_unmounted_is_watched_as_soon_as_it_is_back(
    tmp_path: Path, is_seen_away: bool
) -> None:  # faults: 39
    with Removable(tmp_path / "disk") as disk:
        watching = Watching(disk.path).begin()
        watching.hears_of(a_run(disk.path))

        disk.remove()
        if is_seen_away:
            watching.look()
        disk.put_back()
        watching.hinted.clear()
        born = a_run(disk.path, "born")
        wait_for(lambda: watching.look() or born in watching.hinted, "a look at what came back", SOON_S)

        watching.hinted.clear()
        written(born)
        watching.hears_of(born)
        watching.watch.stop()


# -- threads that die ----------------------------------------------------------------------------------------------


def kill(kind: type[BaseThread], before: set[threading.Thread]) -> None:
    """End the thread of that kind which is not from before."""
    (thread,) = [each for each in threading.enumerate() if isinstance(each, kind) and each not in before]
    thread.stop()
    thread.join(SOON_S)
    assert not thread.is_alive()


KINDS = [EventDispatcher, EventEmitter, InotifyFD]


@pytest.mark.parametrize("kind", KINDS)
def test_when_a_thread_that_hears_dies_all_is_polled_and_then_watched_anew(
    tmp_path: Path, kind: type[BaseThread]
) -> None:  # faults: 41
    root = tmp_path / "runs"
    run_dir, before = a_run(root), set(threading.enumerate())
    watching = Watching(root).begin()
    assert watching.look() is False

    kill(kind, before)
    born = a_run(root, "born")
    watching.hinted.clear()
    assert watching.look() is True
    assert watching.watch.degraded is not None
    assert str(root) in watching.watch.degraded
    assert set(watching.hinted) == {run_dir, born}

    assert watching.look() is True
    assert watching.watch.degraded is None
    watching.hinted.clear()
    written(born)
    watching.hears_of(born)
    watching.watch.stop()
    # Neither the new ones nor the old ones.
    wait_for(lambda: set(threading.enumerate()) <= before, "the end of all threads", SOON_S)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_while_what_hears_is_dead_the_daemon_delivers_and_says_that_it_is_degraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # faults: 41
    monkeypatch.setattr(daemon_module, "ROOTS_S", 0.1)
    root = tmp_path / "runs"
    piece = handmade_run(root)
    piece.log(x=0, step=0, commit=True)
    deaths: list[threading.Thread] = []

    def hint(run_dir: Path) -> None:
        thread = threading.current_thread()
        if isinstance(thread, EventDispatcher) and not deaths:
            deaths.append(thread)
            raise RuntimeError("whatever goes wrong in this thread")

    watch = Watch(hint, at_once)
    said: list[str | None] = []

    with WandbServer(entity="ent") as server:

        def play(_: Daemon) -> None:
            wait_for(lambda: [xs(run) for run in server.runs()] == [[0]], "the first row")
            piece.log(x=1, step=1, commit=True)
            wait_for(lambda: [xs(run) for run in server.runs()] == [[0, 1]], "the row after that")
            wait_for(lambda: any(said) and said[-1] is None, "the watch that was begun anew")

        sync_while(
            server,
            root,
            play,
            watch_roots=watch.look_after,
            on_change=lambda _: said.append(watch.degraded),
        )

    watch.stop()
    piece.die()
    assert [thread.is_alive() for thread in deaths] == [False]
    assert list(filter(None, said)) == [f"{root}: a thread that hears of changes died"]


def test_that_the_daemon_is_degraded_is_shown_by_status_and_doctor() -> None:  # faults: 41
    instance = Instance(known_roots.state_dir())
    instance.acquire()
    instance.write_page({"state": "online", "base_url": "https://w", "degraded": "/runs: its watch ended"})

    shown = CliRunner().invoke(main, ["status"]).output
    as_json = orjson.loads(CliRunner().invoke(main, ["status", "--json"]).output)
    found = next(findings(instance, [], "https://w", lambda: Answer(None)))

    assert "degraded, some seconds slower: /runs: its watch ended" in shown
    assert as_json["daemon"]["degraded"] == "/runs: its watch ended"
    assert (found.state, "/runs: its watch ended" in found.said) == ("odd", True)


# -- file systems that do not tell ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "fuse.sshfs"])
def test_what_is_new_on_a_network_file_system_is_found_by_looking_every_few_seconds(
    tmp_path: Path, kind: str
) -> None:  # faults: 40
    root = tmp_path / "runs"
    known, before = a_run(root, "known"), set(threading.enumerate())
    watching = Watching(root, kind=kind)

    watching.look()
    assert list(watching.watch.polled.values()) == [f"it lies on {kind}, where others write unheard"]
    # It is as it should be.
    assert watching.watch.degraded is None
    assert set(threading.enumerate()) == before
    assert watching.hinted == [known]

    born = a_run(root, "born")
    watching.look(POLL_S / 2)
    assert watching.hinted == [known]
    watching.look(POLL_S / 2)
    assert watching.hinted == [known, born]

    # A resumed run; one that only grows is the daemon's own to look at.
    written(known, "main-0002/events-000000000000.jsonl")
    written(born)
    watching.look(POLL_S)
    assert watching.hinted == [known, born, known]


# -- the daemon's log ----------------------------------------------------------------------------------------------


def test_the_table_of_all_watches_is_not_written_to_the_daemons_log(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from syncd import daemon_log
from watchdog.observers.inotify_c import InotifyFD
daemon_log.begin(Path(sys.argv[1]))
ear = InotifyFD()
for _ in range(2):
    ear.add_callback(sys.argv[1].encode(), 0x2, ear, 1)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )

    assert done.stderr == ""
