"""Many processes of one job write one run: each its own log, rank 0's the history, nothing in anybody's way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from eventlog.reader import read, writers
from eventlog.segment import rank_of_writer

REPOSITORY = Path(__file__).parents[2]
RANKS = 64
ROWS = 50

# One interpreter, forked: 64 of them would take the test's time to start.
JOB = f"""
import os, sys
import eventlog

def rank(number):
    os.environ.update(RANK=str(number), WORLD_SIZE="{RANKS}", WANDB_RUN_ID="job", WANDB_SILENT="true")
    with eventlog.init(project="demo") as run:
        for i in range({ROWS}):
            run.log({{"rank": number, "i": i}}, step=i)
    return 0 if run.dropped == 0 else 1

children = []
for number in range({RANKS}):
    child = os.fork()
    if child == 0:
        try:
            code = rank(number)
        except BaseException as error:
            print(number, repr(error), file=sys.stderr)
            code = 2
        os._exit(code)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_64_ranks_write_one_run_at_once(tmp_path: Path):
    env = {
        **os.environ,
        "EVENTLOG_ROOT": str(tmp_path),
        "TIDELOG_STATE_DIR": str(tmp_path / "state"),
        "PYTHONPATH": str(REPOSITORY),
        "WANDB_X_DISABLE_STATS": "true",
        "WANDB_CONSOLE": "off",
    }

    done = subprocess.run([sys.executable, "-c", JOB], env=env, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    run_dir = tmp_path / "demo" / "job"
    found = {name: list(read(run_dir, writer=name)) for name in writers(run_dir)}
    assert next(iter(found)) == "main-0001"
    assert sorted(rank_of_writer(name) or 0 for name in found) == list(range(RANKS))
    for name, records in found.items():
        number = rank_of_writer(name) or 0
        assert (records[0].kind, records[0].data["rank"], records[0].data["world_size"]) == (
            "start",
            number,
            RANKS,
        )
        rows = [record.data for record in records if record.kind == "metrics"]
        assert rows == [{"rank": number, "i": i} for i in range(ROWS)]
        assert records[-1].kind == "exit"
    assert [r.data["rank"] for r in read(run_dir) if r.kind == "metrics"] == [0] * ROWS
