"""What is kept of settled runs says what their logs say, for as long as they do; and it is only a cache."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

import analysis
import eventlog
from analysis import cached, index, naming
from eventlog.cursor import Cursor, Sink, save
from eventlog.reader import find_runs
from eventlog.seal import clean, seal
from tests.analysis.test_connect import VIEWS, ask
from tests.logs import HandmadePiece, handmade_run, resumed

EXTRA = ["system", "console", "files"]
# What is kept, and which files there are; all others stand on these.
KEPT = ["runs", "config", "summary", "rollup", "alerts", "checkpoints", "sync_state", "internal.pieces"]
QUESTIONS = [
    "SELECT project, step, value, text FROM curve('everything', 'loss')",
    "SELECT * FROM compare_runs('everything', 'plain')",
    "SELECT * FROM config_diff('everything', 'plain')",
    "SELECT project, run_id, step, value FROM curves(['plain', 'twin'], 'loss')",
]


@pytest.fixture(autouse=True)
def _each_run_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "WORTH_RUNS", 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def at_rest(root: Path) -> None:
    """Let all that is there have been there for an hour."""
    then = time.time() - 3600
    for path in [root, *root.rglob("*")]:
        os.utime(path, (then, then))


def finished(root: Path, run_id: str, project: str = "demo", **config: Any) -> HandmadePiece:
    run = handmade_run(root, run_id, project, config=config, name=f"the {run_id}")
    for step in range(3):
        run.log(step=step, commit=True, loss=1 / (step + 1), n=step)
    run.log("exit", exitcode=0)
    run.die()
    return run


def index_of(root: Path) -> Path | None:
    return cached.find(index._name(root))


def kept(root: Path) -> set[str]:
    con = duckdb.connect()
    return set(index.attach(con, root))


def answers(con: duckdb.DuckDBPyConnection, views: list[str] = KEPT) -> dict[str, list[str]]:
    asked = [f"SELECT * FROM {view}" for view in views] + QUESTIONS
    return {sql: sorted(repr([_plain(cell) for cell in row]) for row in ask(con, sql)) for sql in asked}


def _plain(cell: Any) -> Any:
    """JSON as what it says, and sums as far as they do not depend on their order."""
    if isinstance(cell, str) and cell[:1] == "{":
        return json.dumps(json.loads(cell), sort_keys=True)
    return float(f"{cell:.14g}") if isinstance(cell, float) else cell


def looked_at_anew(root: Path, views: list[str] = KEPT) -> dict[str, list[str]]:
    """The answers of a connection that keeps nothing and has nothing kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "WORTH_RUNS", 1_000_000)
        patch.setattr(cached, "find", lambda name: None)
        return answers(analysis.connect(root), views)


def log_everything(root: Path, files: Path) -> None:
    files.mkdir(exist_ok=True)
    (files / "a.txt").write_text("a")
    with eventlog.init(
        project="demo",
        id="everything",
        root=root,
        quiet=True,
        config={"lr": 0.1, "net": {"layers": 2}, "ü": [1]},
    ) as run:
        for step in range(20):
            run.log({"loss": 1 / (step + 1), "eval": {"acc": step}, "text": f"t{step}", "nan": float("nan")})
        run.log({"loss": 9.0}, step=3)
        run.summary["best"] = {"deep": 1}
        run.alert("late", "…")
        run.log_checkpoint(files / "a.txt", step=7)
        run.save(str(files / "a.txt"), base_path=files, policy="now")
        run.log_trajectory(eventlog.Trajectory([eventlog.Turn("user", "hi")], reward=0.5), step=3)
    with eventlog.init(project="demo", id="everything", root=root, quiet=True, resume="must") as run:
        run.log({"loss": 0.25, "späth": 2**70})


def acknowledge(run_dir: Path, seq: int) -> None:
    sink = Sink("https://api.example", "me", run_dir.parent.name, run_dir.name)
    save(run_dir, Cursor(sink, next={"writer": "main-0001", "seq": seq}), now_us=1_763_712_000_000_000 + seq)


@pytest.mark.parametrize("form", ["live", "sealed", "both"])
def test_every_view_and_macro_says_of_kept_runs_what_their_logs_say(
    root: Path, tmp_path: Path, form: str
) -> None:
    log_everything(root, tmp_path / "files")
    finished(root, "plain", lr=1, net={"layers": 3})
    finished(root, "twin", "demo", lr=2)
    finished(root, "twin", "another", lr=3)
    finished(root, "a/b", "odd/project", lr=4)
    crashed = handmade_run(root, "crashed")
    crashed.log(step=0, loss=0.5)
    crashed.die()
    if form != "live":
        for run_dir in find_runs(root):
            assert seal(run_dir).damage == []
            if form == "sealed":
                clean(run_dir)
    at_rest(root)
    views = list(dict.fromkeys([*VIEWS, *EXTRA, *KEPT]))
    before = looked_at_anew(root, views)

    assert answers(analysis.connect(root), views) == before
    assert kept(root) == {f"{run_dir.parent.name}/{run_dir.name}" for run_dir in find_runs(root)}
    assert answers(analysis.connect(root), views) == before


@pytest.mark.parametrize("form", ["live", "sealed"])
def test_a_view_of_some_runs_is_the_view_where_the_id_is_theirs(
    root: Path, tmp_path: Path, form: str
) -> None:
    log_everything(root, tmp_path / "files")
    finished(root, "twin", "another", lr=3)
    finished(root, "plain")
    if form == "sealed":
        for run_dir in find_runs(root):
            seal(run_dir)
            clean(run_dir)
    for run_dir in find_runs(root):
        acknowledge(run_dir, 2)
    at_rest(root)
    analysis.connect(root)
    # Of one run with the id something is kept, of the other nothing.
    finished(root, "twin", "demo", lr=2)
    con = analysis.connect(root)
    assert kept(root) == {"another/twin", "demo/everything", "demo/plain"}

    for view in naming.views(con):
        for ids in ("['twin', 'everything']", "['twin']", "['plain']", "['nobody']", "[]"):
            some, filtered = f"FROM {view}_of({ids})", f"FROM {view} WHERE list_contains({ids}, run_id)"
            assert sorted(map(repr, ask(con, some))) == sorted(map(repr, ask(con, filtered))), (view, ids)
        if view not in ("console", "system", "tool_calls"):
            assert ask(con, f"FROM {view}_of(['twin', 'everything'])"), view
        assert len(ask(con, f"FROM {view}_of(NULL)")) == len(ask(con, f"FROM {view}"))


def test_what_is_asked_of_all_kept_runs_opens_no_log(root: Path) -> None:
    for number in range(5):
        finished(root, f"run{number}", lr=number)
    at_rest(root)
    asked = "SELECT run_id, state, last_step, config ->> 'lr', summary ->> 'loss' FROM runs ORDER BY ALL"
    before = ask(analysis.connect(root), asked)

    for segment in root.rglob("*.jsonl"):
        with open(segment, "r+b") as file:
            file.truncate(0)  # In place: no directory of the run is told.
    con = analysis.connect(root)

    assert ask(con, asked) == before
    assert ask(con, "SELECT count(*), max(max) FROM rollup WHERE key = 'loss'") == [(5, 1.0)]
    assert ask(con, "SELECT count(*) FROM metrics") == [0]
    assert ask(analysis.connect(root, verify=True), "SELECT count(*) FROM config") == [0]


def remove(root: Path) -> None:
    for path in sorted((root / "demo" / "one").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (root / "demo" / "one").rmdir()


def resume(root: Path) -> None:
    run = resumed(eventlog.piece.RunIdentity.load(root / "demo" / "one"), root, config={"lr": 2})
    run.log(step=7, commit=True, loss=0.125)


def seal_and_clean(root: Path) -> None:
    assert seal(root / "demo" / "one").damage == []
    clean(root / "demo" / "one")


CHANGES: dict[str, Callable[[Path], object]] = {
    "resumed": resume,
    "sealed": seal_and_clean,
    "acknowledged": lambda root: acknowledge(root / "demo" / "one", 2),
    "removed": remove,
    "renamed": lambda root: os.rename(root / "demo" / "one", root / "demo" / "two"),
    "its project renamed": lambda root: os.rename(root / "demo", root / "other"),
    "another writer": lambda root: eventlog.piece.claim_secondary(root / "demo" / "one", "rank1"),
    "a new run": lambda root: finished(root, "new"),
    "a segment gone": lambda root: next((root / "demo" / "one").rglob("events*")).unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("acknowledged", [False, True])
def test_what_changes_after_it_was_kept_shows(root: Path, change: str, acknowledged: bool) -> None:
    for run_id in ("one", "plain"):
        finished(root, run_id, lr=1)
    if acknowledged:
        acknowledge(root / "demo" / "one", 1)
    at_rest(root)
    before = analysis.connect(root)
    assert kept(root) == {"demo/one", "demo/plain"}

    CHANGES[change](root)

    now = looked_at_anew(root)
    assert answers(analysis.connect(root)) == now
    analysis.refresh(before)
    assert answers(before) == now


def test_only_what_was_at_rest_and_is_closed_is_kept(root: Path) -> None:
    finished(root, "at-rest")
    handmade_run(root, "live").log(step=0, loss=1.0)
    elsewhere = handmade_run(root, "elsewhere")
    elsewhere.die()
    lock = elsewhere.piece.dir / "lock"
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"host": "another", "boot_id": "x"}))
    damaged = finished(root, "damaged")
    (damaged.piece.dir / "events-000000000000-000000000005.parquet").write_bytes(b"no such thing")
    at_rest(root)
    finished(root, "just-now")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        con = analysis.connect(root)

    assert kept(root) == {"demo/at-rest"}
    assert len(ask(con, "FROM runs")) == 5
    with pytest.warns(UserWarning, match="is damaged"):
        analysis.connect(root)


def test_a_run_that_lost_records_is_looked_at_each_time_and_makes_no_new_index(root: Path) -> None:
    finished(root, "whole")
    hurt = finished(root, "hurt")
    hurt.overwrite(hurt.offset_of(2) + 30, b"\x00\x00")
    torn = handmade_run(root, "torn")
    torn.log(step=0, loss=1.0)
    torn.cut(torn.segment.stat().st_size - 3)
    torn.die()
    at_rest(root)
    analysis.connect(root)
    written = index_of(root)

    for _ in range(2):
        con = analysis.connect(root)
        assert {run.run_dir: run.is_damaged for run in index.attach(duckdb.connect(), root).values()} == {
            "demo/whole": False,
            "demo/hurt": True,
            "demo/torn": False,
        }
        assert index_of(root) == written
        assert ask(con, "SELECT run_id FROM runs ORDER BY 1") == ["hurt", "torn", "whole"]
        assert analysis.passed_over(con) == {"demo/hurt": ["events"]}
        assert answers(con) == looked_at_anew(root)

    finished(root, "another")
    at_rest(root)
    analysis.connect(root)
    assert index.attach(duckdb.connect(), root)["demo/hurt"].is_damaged
    looking = duckdb.connect()
    index.attach(looking, root)
    assert ask(looking, "SELECT run_dir FROM kept.facts ORDER BY 1") == [
        "demo/another",
        "demo/torn",
        "demo/whole",
    ]


def test_runs_whose_times_lie_ahead_are_looked_at_each_time_and_make_no_new_index(root: Path) -> None:
    finished(root, "old")
    at_rest(root)
    analysis.connect(root)
    written = index_of(root)
    finished(root, "ahead")
    for path in [root / "demo" / "ahead", *(root / "demo" / "ahead").rglob("*")]:
        os.utime(path, (time.time() + 86400, time.time() + 86400))

    assert ask(analysis.connect(root), "SELECT run_id FROM runs ORDER BY 1") == ["ahead", "old"]
    assert index_of(root) == written
    assert kept(root) == {"demo/old"}


def test_new_runs_join_those_that_are_kept(root: Path) -> None:
    for run_id in ("one", "two"):
        finished(root, run_id)
        at_rest(root)
        analysis.connect(root)
    assert kept(root) == {"demo/one", "demo/two"}

    remove(root)
    finished(root, "three")
    at_rest(root)
    analysis.connect(root)

    assert kept(root) == {"demo/three", "demo/two"}


def test_few_runs_are_not_worth_an_index(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "WORTH_RUNS", 3)
    for number in range(2):
        finished(root, f"run{number}")
    at_rest(root)

    analysis.connect(root)

    assert kept(root) == set()
    assert index_of(root) is None


def break_at(fraction: float) -> Callable[[Path], object]:
    def breaks(path: Path) -> None:
        with open(path, "r+b") as file:
            file.truncate(int(path.stat().st_size * fraction))

    return breaks


def flipped(content: bytes, fraction: float) -> bytes:
    at = int(len(content) * fraction)
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": break_at(0),
    "cut at its head": break_at(0.01),
    "cut in the middle": break_at(0.5),
    "a bit in it": lambda path: path.write_bytes(flipped(path.read_bytes(), 0.7)),
    "a bit at its end": lambda path: path.write_bytes(flipped(path.read_bytes(), 0.999)),
    "something else": lambda path: path.write_bytes(b"x" * 10_000),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("what", ["runs", "schema"])
def test_a_broken_cache_costs_time_and_nothing_else(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, broken: str
) -> None:
    monkeypatch.setenv("TIDELOG_CACHE_DIR", str(tmp_path / "cache"))
    finished(root, "one")
    at_rest(root)
    before = answers(analysis.connect(root))
    (path,) = (tmp_path / "cache").glob(f"{what}-*")

    BROKEN[broken](path)

    assert answers(analysis.connect(root)) == before
    assert answers(analysis.connect(root)) == before
    if broken != "a directory":
        assert kept(root) == {"demo/one"}


@pytest.mark.parametrize("place", ["file/cache", "x" * 300])
def test_without_a_place_for_a_cache_there_is_none(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    finished(root, "one")
    at_rest(root)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TIDELOG_CACHE_DIR", str(tmp_path / place))

    assert len(ask(analysis.connect(root), "FROM runs")) == 1


def test_what_is_open_goes_on_when_another_replaces_the_index(root: Path) -> None:
    for number in range(2):
        finished(root, f"run{number}", lr=number)
    finished(root, "one", lr=2)
    at_rest(root)
    con = analysis.connect(root)
    before = ask(con, "SELECT run_id, config ->> 'lr' FROM runs ORDER BY ALL")
    remove(root)
    at_rest(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_WORTH_PART", -1.0)
        patch.setattr(index, "WORTH_RUNS", 0)
        analysis.connect(root)
    assert kept(root) == {"demo/run0", "demo/run1"}

    assert ask(con, "SELECT run_id, config ->> 'lr' FROM runs ORDER BY ALL") == before
    assert len(before) == 3


def test_an_index_is_for_its_user_only(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDELOG_CACHE_DIR", str(tmp_path / "cache"))
    finished(root, "one", secret="hidden")
    at_rest(root)
    old = os.umask(0)
    try:
        analysis.connect(root)
    finally:
        os.umask(old)

    for path in (tmp_path / "cache").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["runs", "schema"])
@pytest.mark.parametrize("how", ["another's", "others may write", "a link"])
def test_what_others_could_have_written_is_not_opened(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, what: str
) -> None:
    monkeypatch.setenv("TIDELOG_CACHE_DIR", str(tmp_path / "cache"))
    finished(root, "one", lr=1)
    at_rest(root)
    before = answers(analysis.connect(root))
    (path,) = (tmp_path / "cache").glob(f"{what}-*")
    name = "schema" if what == "schema" else index._name(root)
    assert cached.find(name) == path

    if how == "others may write":
        path.chmod(0o620)
    elif how == "a link":
        path.rename(tmp_path / "planted")
        path.symlink_to(tmp_path / "planted")
    else:
        # To root's processes root's files are their own; seen from another user's, so is this one.
        monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
        os.chown(path, 1234, 1234)

    assert cached.find(name) is None
    assert answers(analysis.connect(root)) == before


def being_made(root: Path) -> list[Path]:
    return list(cached.cache_dir().glob(f".{index._name(root)}-*"))


KEEP = """
import sys
from pathlib import Path
import analysis
from analysis import cached, index, naming
index.WORTH_RUNS, index._BATCH_RUNS = 1, 1
def told(done, of):
    print(done, flush=True)
    if done == int(sys.argv[2]):
        sys.stdin.read()
analysis.connect(sys.argv[1], progress=told)
"""


@pytest.mark.parametrize("done", [0, 1, 2])
def test_who_is_killed_while_it_keeps_leaves_the_old_index(root: Path, done: int) -> None:
    finished(root, "old")
    at_rest(root)
    analysis.connect(root)
    for number in range(2):
        finished(root, f"run{number}")
    at_rest(root)
    before = looked_at_anew(root)

    command = [sys.executable, "-c", KEEP, str(root), str(done)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()}
    ) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline().strip()) != str(done).encode():
            assert line
        process.send_signal(signal.SIGKILL)

    assert kept(root) == {"demo/old"}
    left = being_made(root)
    assert left
    for path in left:
        os.utime(path, (1, 1))
    assert answers(analysis.connect(root)) == before
    assert kept(root) == {"demo/old", "demo/run0", "demo/run1"}
    assert not being_made(root)
