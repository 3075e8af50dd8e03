"""Section F: killed while it seals, merges and cleans, and asked all the time."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

import analysis
from eventlog.parquet import TEMPORARY
from eventlog.reader import read
from tests.logs import HandmadePiece, handmade_run

REPOSITORY = Path(__file__).parents[2]
SEALS = 1000


class Sealer:
    """The process that seals; see `sealer`."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.faults.sealer"]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seal(self, run_dir: Path, kill_at: int | None = None) -> int | None:
        """Seal and clean; return how many calls that took, None if it was killed at one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"run_dir": str(run_dir), "kill_at": kill_at}), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if "calls" in answer:
            return int(answer["calls"])
        assert answer == {"killed": True}
        return None

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait() == 0


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one: it is kills that are tried here, and each seal syncs eight times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def sealer() -> Iterator[Sealer]:
    running = Sealer()
    yield running
    running.close()


def run_dir_of(piece: HandmadePiece) -> Path:
    return piece.piece.dir.parent


def half_sealed(root: Path, sealer: Sealer) -> HandmadePiece:
    """A run of several segments, of which some are sealed and gone, and the rest are closed now: all is to be done."""
    piece = handmade_run(root)
    for _ in range(2):
        for _ in range(40):
            piece.log(step=piece.seq, commit=True, x=piece.seq)
        piece.new_segment()
        sealer.seal(run_dir_of(piece))
    for _ in range(40):
        piece.log(step=piece.seq, commit=True, x=piece.seq)
    piece.die()
    return piece


# faults: 45 53 54
def test_killed_at_any_call_it_loses_nothing_and_the_next_one_ends_it(root: Path, sealer: Sealer):
    model = run_dir_of(half_sealed(root / "model", sealer))
    whole = list(read(model))
    before = root / "before"
    shutil.copytree(model, before)
    calls = sealer.seal(model)
    assert calls is not None
    assert calls > 20
    killed = {kill_at: root / "runs" / "demo" / f"killed-at-{kill_at}" for kill_at in range(1, calls + 1)}

    for kill_at, run_dir in killed.items():
        shutil.copytree(before, run_dir)
        assert sealer.seal(run_dir, kill_at) is None

    assert all(list(read(run_dir)) == whole for run_dir in killed.values())
    asked = "SELECT run_dir, count(*), sum(value), count(DISTINCT seq) FROM internal.leaf_of(NULL) WHERE path = 'x' GROUP BY ALL"
    xs = [record.data["x"] for record in whole if record.kind == "metrics"]
    found = {run_dir: rest for run_dir, *rest in analysis.connect(root / "runs").execute(asked).fetchall()}
    assert found == {f"demo/{run_dir.name}": [len(xs), sum(xs), len(xs)] for run_dir in killed.values()}
    for run_dir in killed.values():
        sealer.seal(run_dir)
    assert {tuple(names(run_dir)) for run_dir in killed.values()} == {tuple(names(model))}
    assert all(list(read(run_dir)) == whole for run_dir in killed.values())


def names(run_dir: Path) -> list[str]:
    found = sorted(path.name for path in run_dir.glob("*/*"))
    assert not any(name.startswith(TEMPORARY) for name in found)
    return found


# faults: 53 55
@pytest.mark.timeout(900)
def test_each_row_is_there_once_at_every_moment_of_a_thousand_seals_with_kills(root: Path, sealer: Sealer):
    piece = handmade_run(root)
    run_dir = run_dir_of(piece)
    asking = Asking(root, run_dir)
    dice = random.Random(7)
    seals, kills = 0, 0
    with asking:
        while seals < SEALS:
            asking.begun += 1
            piece.log(step=piece.seq, commit=True, x=piece.seq - 1)
            asking.logged += 1
            piece.new_segment()
            calls = sealer.seal(run_dir, dice.choice([None, None, dice.randint(1, 60)]))
            seals, kills = seals + (calls is not None), kills + (calls is None)

    assert asking.failures == []
    assert kills >= SEALS // 10
    assert min(asking.answers.values()) >= 50
    assert [record.data["x"] for record in read(run_dir) if record.kind == "metrics"] == list(
        range(asking.logged)
    )


class Asking:
    """Asks how many rows there are, in both ways in turns, as fast as it can; `x` counts them from 0."""

    def __init__(self, root: Path, run_dir: Path) -> None:
        self.begun = self.logged = 0
        self.failures: list[str] = []
        self.answers = {"duckdb": 0, "reader": 0}
        self._run_dir = run_dir
        self._con = analysis.connect(root)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._is_over.is_set() and not self.failures:
            self._judge("duckdb", self._by_duckdb)
            self._judge("reader", self._by_reader)

    def _judge(self, way: str, ask: Callable[[], tuple[int, float]]) -> None:
        least = self.logged
        try:
            count, total = ask()
        except duckdb.IOException:
            # A file that was listed is gone: that is said, and whoever asks again is told right.
            return
        most = self.begun
        self.answers[way] += 1
        if not least <= count <= most or total != count * (count - 1) // 2:
            self.failures.append(f"{way} found {count} rows with sum {total}, of {least} to {most}")

    def _by_duckdb(self) -> tuple[int, float]:
        query = "SELECT count(*), coalesce(sum(value), 0) FROM metrics WHERE key = 'x'"
        analysis.refresh(self._con)
        ((count, total),) = self._con.execute(query).fetchall()
        return count, total

    def _by_reader(self) -> tuple[int, float]:
        found = [record.data["x"] for record in read(self._run_dir) if record.kind == "metrics"]
        return len(found), sum(found)
