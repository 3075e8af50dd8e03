"""SIGKILL at every system call of one full attach, ship and finish, and then again from there.

    a cycle, traced ──▶ how often it makes each call ──▶ once more for each of them, killed on entry ──▶ sync ──▶ whole?

The calls that count are those in `CALLS`: they change something that outlives the process, on the disk, on the server or
in a lock, or they read an answer.  Any other call of a cycle is in `CHANGES_NOTHING`, and leaves what was there before
it: killed at it, the next process finds what it finds after a kill at the next call that counts.  A call in neither set
fails `test_a_cycle_makes_no_call_that_is_not_accounted_for`.

Three kinds of calls that count are not tried one by one, for the same reason:

* an `openat` or a `close` of what is not the cursor's (code, the log, sockets): the first only reads, and the second
  is what the kernel does for a killed process anyway;
* what is written to the standard output, once all is done;
* what another thread than the first does, since strace counts each thread's calls from 1: that is to look up the
  server's address, and to write `output.log` to a file that has no name, and that is gone with its process.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import Queue
from typing import NamedTuple

import certifi
import orjson
import pytest

from eventlog.artifact import base64_md5, digest_of
from eventlog.cursor import SYNC_DIR, Sink, cursors, new_suffix
from eventlog.record import encode
from eventlog.store import Store
from syncd.status import ALERT_UNCERTAIN
from tests.logs import HandmadePiece, handmade_run, resumed
from tests.syncd.syncing import sync
from tests.wandb_server import StoredRun, WandbServer

SYNCD, HASTY_SYNCD = "syncd.cli", "tests.exactly_once.hasty_syncd"
REPOSITORY = Path(__file__).parents[2]
OF_THE_CURSOR = ["openat", "close"]
"""Calls that count only where they touch the cursor's files: a Python that starts makes hundreds of them."""
CALLS = [
    *["connect", "sendto", "recvfrom"],
    *["write", "fsync", "rename", "link", "unlink", "mkdir", "flock", "pwrite64", "ftruncate"],
    *OF_THE_CURSOR,
]
CHANGES_NOTHING = {
    # They look at files.
    *[
        "access",
        "fstat",
        "getcwd",
        "getdents64",
        "lseek",
        "lstat",
        "newfstatat",
        "pread64",
        "read",
        "readlink",
    ],
    *["stat", "statx"],
    # They make, look at or wait for what only this process has.
    *["dup", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "fcntl", "getpeername"],
    *["getsockname", "getsockopt", "ioctl", "pipe2", "poll", "ppoll", "pselect6", "select", "setsockopt"],
    *["socket", "socketpair"],
    # Memory, threads, clocks and the end.
    *["brk", "clock_gettime", "clock_nanosleep", "clone", "clone3", "exit", "exit_group", "futex", "getpid"],
    *["getrandom", "gettid", "madvise", "mmap", "mprotect", "mremap", "munmap", "restart_syscall"],
    *["rseq", "rt_sigaction", "rt_sigprocmask", "sched_yield", "set_robust_list", "uname"],
}
# Cycles at once: most of one is to wait.
AT_ONCE = 8
# Answers that come together or apart make a call more or less.
MORE_OR_LESS = 4
ROWS = 20

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


class Call(NamedTuple):
    """One line of strace."""

    thread: str
    name: str
    arguments: str

    def touches(self, paths: list[Path]) -> bool:
        return any(f'"{path}"' in self.arguments or f"<{path}>" in self.arguments for path in paths)


class Kind(NamedTuple):
    """How a run was written.  All its pieces but the last were killed, and so was that one if it has no exit code."""

    name: str
    pieces: int
    exitcode: int | None


RESUMED, FINISHED, KILLED = Kind("resumed", 2, 0), Kind("finished", 1, 0), Kind("killed", 1, None)


class Setting(NamedTuple):
    """A server, and processes of `killable_syncd` that know of no other."""

    server: WandbServer
    idle: Queue[subprocess.Popen[str]]

    def run(self, root: Path, *strace: str, program: str = SYNCD) -> tuple[int, str]:
        """Run `syncd sync` on `root` until it ends; return how it did, and what it said."""
        output = root / "output"
        asked = {"strace": strace, "program": program, "root": str(root), "output": str(output)}
        process = self.idle.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps(asked), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        finally:
            self.idle.put(process)
        return int(answer), output.read_text()

    def cursor_paths(self, root: Path, run_id: str) -> list[Path]:
        """Return all that `syncd` makes on the disk for one run."""
        directory = root / "demo" / run_id / SYNC_DIR
        stem = Sink(self.server.base_url, None, "demo", run_id).name
        ends = [".lock", ".json", new_suffix(), f"{new_suffix()}.durable", ".json.previous"]
        return [directory, *(directory / f"{stem}{end}" for end in ends)]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        # Each new connection would load some 150 authorities, for a server that has no certificate.
        one, ends, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----")
        (home / "one.pem").write_text(f"{one}{ends}\n")
        patch.setenv("SSL_CERT_FILE", str(home / "one.pem"))
        yield from _setting(home)


def _setting(home: Path) -> Iterator[Setting]:
    with WandbServer(entity="ent") as server, ExitStack() as processes:
        own = {**server.env(home), "HOME": str(home), "TIDELOG_STATE_DIR": str(home / "state")}
        idle: Queue[subprocess.Popen[str]] = Queue()
        for _ in range(AT_ONCE):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.exactly_once.killable_syncd"],
                cwd=REPOSITORY,
                env={**os.environ, **own},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            # Leaving closes its standard input, at which it ends.
            idle.put(processes.enter_context(process))
        yield Setting(server, idle)


@pytest.fixture(scope="module")
def undisturbed(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Call], list[Path]]:
    """All system calls of a cycle in which nothing happens, in order, and the cursor's paths."""
    root, trace = tmp_path_factory.mktemp("undisturbed"), tmp_path_factory.mktemp("trace") / "calls"
    run_with_everything(root, "undisturbed", RESUMED)
    code, said = setting.run(root, f"--output={trace}", "--decode-fds=path")
    assert code == 0, said
    assert_whole(setting.server, root, "undisturbed", RESUMED, "undisturbed")
    lines = trace.read_text(errors="replace").splitlines()
    found = [re.match(r"(\d+) +(\w+)\((.*)", line) for line in lines]
    return [Call(*match.groups()) for match in found if match], setting.cursor_paths(root, "undisturbed")


def killed_at(call: str, number: int, setting: Setting, root: Path, run_id: str, program: str) -> bool:
    """Run `syncd sync`, killed on entry to the number-th such call; False if it got to its end before."""
    paths = setting.cursor_paths(root, run_id) if call in OF_THE_CURSOR else []
    code, said = setting.run(
        root,
        "--output=/dev/null",
        f"--trace={call}",
        f"--inject={call}:signal=KILL:when={number}",
        *(f"--trace-path={path}" for path in paths),
        program=program,
    )
    assert code in (0, -signal.SIGKILL), f"not killed at {call} {number}: {said}"
    return code != 0


def run_with_everything(root: Path, run_id: str, kind: Kind) -> None:
    """A run with rows, a config, a summary, samples, an alert, a console, files and an artifact."""
    for piece in range(1, kind.pieces + 1):
        config = {"piece": piece, f"of piece {piece}": True}
        if piece == 1:
            events = handmade_run(root, run_id, config=config)
        else:
            events = resumed(events.identity, root, config=config)
        console = HandmadePiece(events.identity, events.piece, "console")
        for i in range(ROWS * (piece - 1) // kind.pieces, ROWS * piece // kind.pieces):
            events.log(x=i, step=i)
            console.log("console", source="stdout", text=f"row {i}\n")
        if piece == 1:
            events.log("system", cpu=12.5)
            events.log("summary", set=[[["best"], 0.5]])
            log_an_alert(events, run_id)
            log_files(events, root / "demo" / run_id, run_id)
        if piece == kind.pieces:
            events.log("config", rate=0.1)
            if kind.exitcode is not None:
                events.log("exit", exitcode=kind.exitcode)
        events.die()


def log_an_alert(events: HandmadePiece, title: str) -> None:
    """Log one that is news."""
    alert = {"title": title, "text": "", "level": "WARN", "wait_s": 0.0}
    events.append(encode(events.seq, int(time.time() * 1e6), "alert", alert))
    events.seq += 1


def log_files(events: HandmadePiece, run_dir: Path, run_id: str) -> None:
    files = HandmadePiece(events.identity, events.piece, "files")
    store = Store(run_dir, is_durable=False)
    for name in ("a.txt", "media/b.bin"):
        stored = store.put(f"{name} of {run_id}".encode())
        files.log("file", path=name, sha256=stored.sha256, size=stored.size)
    entry = {"digest": base64_md5(stored), "size": stored.size, "sha256": stored.sha256}
    manifest = store.put(orjson.dumps({"b.bin": entry}))
    files.log(
        "artifact",
        name=f"data-{run_id}",
        type="dataset",
        description=None,
        metadata={},
        aliases=["latest"],
        tags=[],
        client_id=f"client{run_id}",
        sequence_client_id=f"sequence{run_id}",
        digest=digest_of({"b.bin": entry["digest"]}),
        size=stored.size,
        manifest=manifest.sha256,
    )


def assert_whole(server: WandbServer, root: Path, run_id: str, kind: Kind, why: str) -> None:
    """Everything of the run is there, each once, and next to nothing of it was sent twice."""
    run = server.run("ent", "demo", run_id)
    assert server.violations == [], why
    assert [row["x"] for row in run.history] == list(range(ROWS)), why
    assert [line["system.cpu"] for line in run.events] == [12.5], why
    assert [line.partition(" ")[2] for line in run.console_lines] == [f"row {i}" for i in range(ROWS)], why
    assert logged(run.summary) == {"x": ROWS - 1, "best": 0.5}, why
    of_pieces = {f"of piece {piece}": True for piece in range(1, kind.pieces + 1)}
    assert logged(run.config) == {"piece": kind.pieces, **of_pieces, "rate": 0.1}, why
    assert len(run.config["_tidelog"]["pieces"]) == kind.pieces, why
    # A killed run never says that it is complete: W&B shows it as crashed, which it was.
    assert (run.complete, run.exitcode) == (kind.exitcode is not None, kind.exitcode), why
    assert run.replayed_lines <= lines_in_flight(server, run), why
    for name in ("a.txt", "media/b.bin"):
        assert run.files[name] == f"{name} of {run_id}".encode(), why
    assert run.files["output.log"] == "".join(f"row {i}\n" for i in range(ROWS)).encode(), why
    made = {"config.yaml", "wandb-metadata.json", "wandb-summary.json", "output.log"}
    assert set(run.uploaded) == set(run.files) == {"a.txt", "media/b.bin"} | made, why
    artifacts = [a for a in list(server.store.artifacts.by_id.values()) if a.name == f"data-{run_id}"]
    assert [a.state for a in artifacts] == ["COMMITTED"], why
    (cursor,) = cursors(root / "demo" / run_id)
    sent = [alert for alert in server.alerts if alert["title"] == run_id]
    assert len(sent) == 1 or (sent == [] and cursor.not_shown == {ALERT_UNCERTAIN: 1}), why


def logged(values: dict[str, object]) -> dict[str, object]:
    """Return what a script gave, without what W&B's clients and we add."""
    return {key: value for key, value in values.items() if not key.startswith("_")}


def lines_in_flight(server: WandbServer, run: StoredRun) -> int:
    """Return the lines of the run's largest batch: one kill, so one batch, is what may have been sent twice."""
    bodies = [
        seen.body for seen in list(server.requests) if seen.run == run.key and seen.kind == "file_stream"
    ]
    return max(sum(len(run_lines(body, file)) for file in run.lines) for body in bodies)


def run_lines(body: dict[str, dict[str, dict[str, list[str]]]], file: str) -> list[str]:
    return body.get("files", {}).get(file, {}).get("content", [])


def kill_at_each(call: str, times: int, setting: Setting, directory: Path, program: str = SYNCD) -> int:
    """Kill a cycle at each such call, and let it be ended; return at how many.

    `times` is how many it is thought to make: beyond that, they are tried until a cycle gets to its end.
    """

    def is_killed(number: int, kind: Kind) -> bool:
        root, run_id = directory / f"{kind.name}{number}", f"{program}-{call}-{kind.name}{number}"
        run_with_everything(root, run_id, kind)
        was_killed = killed_at(call, number, setting, root, run_id, program)
        # Counts need no time to stand still here: the server is honest.
        sync(setting.server, root, steady_s=0.0)
        assert_whole(setting.server, root, run_id, kind, f"killed at {call} {number}, {kind.name}")
        return was_killed

    def is_tried(number: int) -> bool:
        # The longest cycle there is: it does all that the others do, so that those need not be tried as often.
        was_killed = is_killed(number, RESUMED)
        if was_killed and number % 3 == 1:
            is_killed(number, KILLED if number % 2 else FINISHED)
        return was_killed

    with ThreadPoolExecutor(AT_ONCE) as pool:
        kills = sum(pool.map(is_tried, range(1, times + 1)))
    number = times + 1
    while is_tried(number):
        number += 1
    return kills + number - times - 1


def times(call: str, undisturbed: tuple[list[Call], list[Path]]) -> int:
    """Return how often an undisturbed cycle makes that call where it counts."""
    calls, paths = undisturbed
    counted = [
        made
        for made in calls
        if (made.thread, made.name) == (calls[0].thread, call)
        and (call not in OF_THE_CURSOR or made.touches(paths))
    ]
    return len(counted)


@pytest.mark.slow
@pytest.mark.needs_root
@needs_strace
@pytest.mark.parametrize("call", CALLS)
def test_a_kill_at_any_system_call_loses_and_doubles_nothing(
    call: str, setting: Setting, undisturbed: tuple[list[Call], list[Path]], tmp_path: Path
):  # faults: 44 45 101
    expected = times(call, undisturbed)

    kills = kill_at_each(call, expected, setting, tmp_path)

    print(f"{kills} kills at {call}, {expected} expected")
    assert kills >= max(1, expected - MORE_OR_LESS)
    assert setting.server.violations == []


@pytest.mark.slow
@pytest.mark.needs_root
@needs_strace
def test_a_cycle_makes_no_call_that_is_not_accounted_for(undisturbed: tuple[list[Call], list[Path]]):
    calls, paths = undisturbed
    (directory, *files) = paths
    root = directory.parents[2]
    first = next(i for i, call in enumerate(calls) if call.name != "execve" and call.touches([root]))
    cycle = calls[first:]

    assert {call.name for call in cycle} - CHANGES_NOTHING == set(CALLS)
    changing = re.compile("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
    opened = [call for call in cycle if call.name == "openat" and changing.search(call.arguments)]
    assert [call for call in opened if not call.touches(paths)] == []
    elsewhere = [call for call in cycle if call.thread != calls[0].thread]
    assert [call for call in elsewhere if call.touches(files)] == []
    assert {call.name for call in elsewhere if call.name in CALLS} <= {
        *["connect", "sendto", "openat", "close"],
        # A file without a name.
        "write",
    }


@pytest.mark.slow
@pytest.mark.needs_root
@needs_strace
def test_a_cursor_that_is_saved_before_the_ack_is_found_out(
    setting: Setting, undisturbed: tuple[list[Call], list[Path]], tmp_path: Path
):
    """The negative control: what the other tests trust in must be able to fail."""
    with pytest.raises(AssertionError, match=r"^killed at sendto"):
        kill_at_each("sendto", times("sendto", undisturbed), setting, tmp_path, HASTY_SYNCD)
