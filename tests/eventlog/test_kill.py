"""The first promise: `log()` returned ⇒ the record survives `kill -9`, of the trainer or of its process group."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eventlog.piece import closed
from eventlog.reader import StreamReader, read, writers
from eventlog.segment import segments_in

PROJECT = Path(__file__).parents[2]

# Logs rows and, once `log` has returned, acknowledges each on the pipe: "<who> <i>". Some rows are large, so that a
# kill falls into the middle of a write; with `fork`, a child logs as well.
TRAINER = """
import os, sys
import eventlog
root, seed, fork = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "fork"
run = eventlog.init(project="proof", id="run", root=root, resume="allow", quiet=True)
who = "parent"
if fork and os.fork() == 0:
    who = "child"
i = 0
while True:
    size = (0, 300, 100_000, 3_000_000)[(i * seed) % 4] if i % 5 == 0 else 10
    run.log({"who": who, "i": i, "pad": "x" * size})
    assert run.dropped == 0
    os.write(1, f"{who} {i}\\n".encode())
    i += 1
"""


def killed_trainer(root: Path, seed: int, how: str) -> list[tuple[str, int]]:
    """Start the trainer, kill it at a random moment, and return what it acknowledged."""
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(root), str(seed), how],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert trainer.stdout is not None
    first = trainer.stdout.readline()
    time.sleep(random.Random(seed).uniform(0.0, 0.15))
    if how == "alone":
        trainer.kill()
    else:
        os.killpg(trainer.pid, signal.SIGKILL)
    rest = trainer.stdout.read()
    trainer.wait()
    # An acknowledgement cut short by the kill is none.
    lines = (first + rest).split(b"\n")[:-1]
    return [(who, int(i)) for who, i in (line.decode().split() for line in lines)]


def survivors(run_dir: Path) -> list[tuple[str, int]]:
    """Return the rows of all writers, after checking that each log is undamaged and in order."""
    found = []
    for writer in writers(run_dir):
        if not segments_in(os.listdir(run_dir / writer), "events"):
            # Killed after its mkdir: there may be no lock yet to tell that it is dead, and there is no record.
            continue
        assert closed(run_dir, writer)
        reader = StreamReader(run_dir / writer)
        while True:
            chunk = reader.read()
            assert chunk.damage == []
            found += [(r.data["who"], r.data["i"]) for r in chunk.records if r.kind == "metrics"]
            if not chunk.more:
                break
        assert reader.end() == []
    return found


@pytest.mark.parametrize("how", ["alone", "group", "fork"])
@pytest.mark.parametrize("seed", range(20))
def test_every_acknowledged_record_survives_a_kill_at_a_random_moment(tmp_path: Path, seed: int, how: str):
    # faults: 8, 58, 59
    acknowledged = killed_trainer(tmp_path, seed, how)

    found = survivors(tmp_path / "proof" / "run")

    assert acknowledged
    assert set(acknowledged) <= set(found)
    for who in {who for who, _ in found}:
        # Each once, in order, and at most the one under way beyond what was acknowledged.
        rows = [i for each, i in found if each == who]
        assert rows == list(range(len(rows)))
        assert len(rows) <= 1 + len([i for each, i in acknowledged if each == who])


def test_a_run_killed_again_and_again_goes_on_after_its_last_row(tmp_path: Path):
    # faults: 56, 60
    for seed in range(4):
        killed_trainer(tmp_path, seed, "alone")

    run_dir = tmp_path / "proof" / "run"
    steps = []
    for writer in writers(run_dir):
        reader = StreamReader(run_dir / writer)
        more = True
        while more:
            chunk = reader.read()
            steps += [record.step for record in chunk.records if record.kind == "metrics"]
            more = chunk.more
    assert writers(run_dir) == ["main-0001", "main-0002", "main-0003", "main-0004"]
    assert steps == list(range(len(steps)))


FEW_ROWS = """
import os, sys
import eventlog
with eventlog.init(project="proof", id="run", root=sys.argv[1], resume="allow", quiet=True) as run:
    for _ in range(4):
        run.log({"step": run.step})
        os.write(1, f"{run.step - 1}\\n".encode())
    run.flush(durable=True)
"""
SYSTEM_CALLS = [
    *(("mkdir", n) for n in range(1, 6)),
    *(("link", n) for n in range(1, 2)),
    *(("flock", n) for n in range(1, 4)),
    *(("write", n) for n in range(1, 14)),
    *(("pwrite64", n) for n in range(1, 2)),
    *(("fsync", n) for n in range(1, 6)),
    *(("fdatasync", n) for n in range(1, 3)),
    *(("unlink", n) for n in range(1, 2)),
]


@pytest.mark.needs_root
@pytest.mark.parametrize(("call", "nth"), SYSTEM_CALLS)
def test_a_run_killed_in_any_system_call_keeps_its_rows_and_can_be_resumed(
    tmp_path: Path, call: str, nth: int
):
    # faults: 101
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trainer = [sys.executable, "-c", FEW_ROWS, str(tmp_path)]
    inject = f"inject={call}:signal=KILL:when={nth}"

    killed = subprocess.run(
        ["strace", "-f", "-o", "/dev/null", "-e", inject, *trainer],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    again = subprocess.run(trainer, cwd=PROJECT, capture_output=True, text=True)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert again.returncode == 0, again.stderr
    acknowledged = [int(line) for line in (killed.stdout + again.stdout).split()]
    steps = [r.step for r in read(tmp_path / "proof" / "run") if r.kind == "metrics"]
    assert set(acknowledged) <= set(steps)
    assert steps == list(range(len(steps)))
