"""Whether a run arrived: each row once, in order, line for line what its log makes, and its files."""

from __future__ import annotations

from pathlib import Path

from tests.exactly_once.test_exactly_once import folded
from tests.wandb_server import WandbServer
from tests.wandb_server.store import StoredRun


def rows_of(server: WandbServer, run_id: str = "run") -> int:
    """Return how many rows of a run are there; 0 while there is no such run."""
    return next((len(run.history_lines) for run in server.runs() if run.run_id == run_id), 0)


def is_complete(server: WandbServer, run_id: str = "run") -> bool:
    return any(run.complete for run in server.runs() if run.run_id == run_id)


def assert_arrived(server: WandbServer, rows: int, run_dir: Path, run_id: str = "run") -> StoredRun:
    """Fail unless rows 0 to `rows` of the job are there once, in order, and the file of each tenth."""
    run = server.run("ent", "demo", run_id)
    assert server.violations == []
    assert [row["x"] for row in run.history] == list(range(rows))
    assert run.history_lines == folded(run_dir)
    assert {f"state-{i}.txt": f"the state at {i}".encode() for i in range(0, rows, 10)}.items() <= (
        run.files.items()
    )
    return run
