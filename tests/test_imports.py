"""What importing costs, and who may import whom."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

# A training script imports none of these by logging.
NOT_LOADED = {
    "asyncio",
    "click",
    "duckdb",
    "httpx",
    "numpy",
    "platformdirs",
    "psutil",
    "pyarrow",
    "rich",
    "torch",
    "wandb",
    "watchdog",
}


def run_fresh(script: str) -> str:
    """Run `script` in a fresh interpreter and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_importing_eventlog_loads_nothing_heavy():
    loaded = json.loads(run_fresh("import eventlog, json, sys; print(json.dumps(sorted(sys.modules)))"))

    assert NOT_LOADED & {name.partition(".")[0] for name in loaded} == set()


def test_logging_loads_nothing_heavy(tmp_path: Path):
    script = f"""
import json, os, sys
os.environ["TIDELOG_STATE_DIR"] = {str(tmp_path / "state")!r}
import eventlog
with eventlog.init(project="demo", root={str(tmp_path)!r}, quiet=True) as run:
    run.log({{"loss": float("nan"), "text": "null"}})
    run.log_trajectory(eventlog.Trajectory([eventlog.Turn("user", "hi")]))
print(json.dumps(sorted(sys.modules)))
"""
    loaded = json.loads(run_fresh(script))

    assert NOT_LOADED & {name.partition(".")[0] for name in loaded} == set()


def test_importing_eventlog_takes_a_moment():
    # No bound is asserted: on a shared machine a time proves nothing. The aim is under 50 ms.
    script = "import time; a = time.perf_counter(); import eventlog; print(1e3 * (time.perf_counter() - a))"

    took_ms = sorted(float(run_fresh(script)) for _ in range(5))

    print(f"import eventlog: {took_ms[2]:.1f} ms")


def test_the_import_contracts_hold():
    lint_imports = Path(sys.executable).with_name("lint-imports")
    if not lint_imports.exists() and shutil.which("lint-imports") is None:
        pytest.skip("import-linter is not installed")

    done = subprocess.run([str(lint_imports), "--no-cache"], cwd=PROJECT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
