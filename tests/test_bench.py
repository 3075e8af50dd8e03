"""The benchmark still measures everything.  What it measures depends on the machine, and is no test."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
# What there are rows of, and whose.
WANTED = {
    "log() tight": "floor, ours, wandb, trackio, tensorboard, ours to wandb",
    "bytes a record": "floor, ours, wandb",
    "log() at 1 kHz": "floor, ours, wandb, trackio, tensorboard",
    "log() tight, right after init": "floor, ours, wandb, trackio, tensorboard",
    "stalls over 5 ms, tight": "floor, ours",
    "import": "ours, wandb",
    "init, fresh process": "ours, wandb",
    "init, warm process": "ours, wandb",
    "threads at once, all read back": "1 thread, 64 threads",
    "log_trajectory()": "floor, ours",
    "what sealing imports": "pyarrow.parquet",
    "sealing, random doubles": "floor, ours",
    "sealing, float32 values": "floor, ours",
    "sealing, 4-digit values": "floor, ours",
    "sealing, realistic": "floor, ours",
    "sealed, random doubles": "floor, ours",
    "sealed, float32 values": "floor, ours",
    "sealed, 4-digit values": "floor, ours",
    "sealed, realistic": "floor, ours",
    "reading": "floor, ours, sealed",
    "asking: first connect": "ours",
    "asking: connect": "ours",
    "asking: one curve": "ours, trackio, tensorboard, mlflow",
    "asking: 100 curves": "ours",
    "asking: best run by config": "ours",
    "asking: summary table": "ours",
    "asking: 100 runs to pandas": "ours",
    "asking: memory": "ours",
    "backlog, one long run": "syncd sync, wandb sync, wandb beta sync",
    "backlog, some runs": "syncd sync, wandb sync, wandb beta sync",
    "backlog, many short runs": "syncd sync, wandb sync, wandb beta sync",
    "backlog, ten times as many": "syncd sync",
    "re-sync, the run goes on": "syncd sync, wandb sync",
    "re-sync, the run is resumed": "syncd sync, wandb sync",
    "live": "syncd, syncd, each second, syncd, as often as wandb, wandb beta sync --live",
    "restart and sweep": "a short log, a long log, a huge log",
}
# Not of the project's environment: without a place to install them in they have no numbers, and say so.
INSTALLED_APART = {"trackio", "tensorboard", "mlflow"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    env = {name: value for name, value in os.environ.items() if name != "TIDELOG_BENCH_CACHE"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--json", "log", "seal", "ask", "sync"],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_row_is_there_with_numbers(rows: list[dict[str, Any]]):
    found: dict[str, list[str]] = {}
    for row in rows:
        numbers = [*row["values"].values(), *([] if row["ratio"] is None else [row["ratio"]])]
        if row["peer"] in INSTALLED_APART:
            assert "TIDELOG_BENCH_CACHE" in row["skipped"]
        else:
            assert numbers, row
            assert all(map(math.isfinite, numbers)), row
        # pyarrow imports it where it is there.
        if row["peer"] != "pandas":
            found.setdefault(row["what"], []).append(row["peer"])

    assert {what: ", ".join(peers) for what, peers in found.items()} == WANTED
