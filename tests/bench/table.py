"""Runs the measurements, each in processes of its own, and prints them beside what is aimed at."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.wandb_runs import wandb_runs_cost
from tests.wandb_server.server import API_KEY

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LOG_ROWS = 20_000
SYNC_ROWS = 10_000
REPEATS = 5


def main() -> None:
    table = Table(title="Tidelog, one run of every measurement on this machine", title_justify="left")
    for name in ("what", "peer", "value", "ratio", "aim"):
        table.add_column(name, justify="left" if name in ("what", "peer", "aim") else "right")
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as directory, console.status("measuring"):
        log_cost(table, directory)
        import_cost(table)
        sync_cost(table, Path(directory))
        wandb_runs_cost(table)
    console.print(table)


def log_cost(table: Table, directory: str) -> None:
    """`run.log` of ten floats, each call timed."""
    env = _environment(directory)
    p50: dict[str, float] = {}
    for peer in ("floor", "ours", "wandb"):
        seconds = sorted(
            json.loads(_run([sys.executable, "-m", "tests.bench.logging_cost", peer, str(LOG_ROWS)], env))
        )
        p50[peer] = seconds[len(seconds) // 2]
        p99 = seconds[len(seconds) * 99 // 100]
        value = f"{p50[peer] * 1e6:.1f} / {p99 * 1e6:.1f} µs"
        ratio = f"{p50[peer] / p50['floor']:.1f} × floor"
        table.add_row(f"log() p50 / p99, {LOG_ROWS:,} rows", peer, value, ratio, _aim(peer))
    table.add_row("", "ours to wandb", "", f"1 / {p50['wandb'] / p50['ours']:.0f}", "≤ 1 / 20")


def import_cost(table: Table) -> None:
    """A fresh interpreter with `import eventlog`, less one without."""
    times = {
        code: min(_seconds([sys.executable, "-c", code]) for _ in range(REPEATS))
        for code in ("pass", "import eventlog", "import wandb")
    }
    ours, theirs = times["import eventlog"] - times["pass"], times["import wandb"] - times["pass"]
    table.add_row("import", "ours", f"{ours * 1e3:.0f} ms", f"1 / {theirs / ours:.0f} of wandb", "≤ 50 ms")
    table.add_row("", "wandb", f"{theirs * 1e3:.0f} ms", "", "")


def sync_cost(table: Table, directory: Path) -> None:
    """The same rows from an offline run to one server, by both commands."""
    port_file = directory / "port"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.wandb_server", "--forget-requests", "--port-file", str(port_file)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
    )
    try:
        while not port_file.exists():
            time.sleep(0.01)
        env = _environment(str(directory)) | {
            "WANDB_BASE_URL": f"http://127.0.0.1:{port_file.read_text()}",
            "WANDB_API_KEY": API_KEY,
        }
        walls: dict[str, list[float]] = {"syncd sync": [], "wandb sync": []}
        for repeat in range(REPEATS):
            ours = _log_offline("ours", directory / f"ours-{repeat}", env)
            walls["syncd sync"].append(_seconds([str(BIN / "syncd"), "sync", "--json", str(ours)], env))
            theirs = _log_offline("wandb", directory / f"wandb-{repeat}", env)
            (run,) = theirs.glob("wandb/offline-run-*")
            walls["wandb sync"].append(_seconds([str(BIN / "wandb"), "sync", str(run)], env))
    finally:
        server.terminate()
        server.wait()
    median = {peer: statistics.median(seconds) for peer, seconds in walls.items()}
    for peer, wall_s in median.items():
        ratio = f"{wall_s / median['wandb sync']:.2f} × wandb" if peer == "syncd sync" else ""
        aim = "≤ 0.5 × wandb" if peer == "syncd sync" else ""
        table.add_row(f"{SYNC_ROWS:,} rows to one server, wall", peer, f"{wall_s:.2f} s", ratio, aim)


def _log_offline(peer: str, directory: Path, env: dict[str, str]) -> Path:
    directory.mkdir()
    module = "eventlog" if peer == "ours" else "wandb"
    where = f"root={str(directory)!r}" if peer == "ours" else f"dir={str(directory)!r}"
    code = (
        f"import {module} as wandb\n"
        f"run = wandb.init(project='bench', mode='offline', {where})\n"
        f"for i in range({SYNC_ROWS}):\n"
        "    run.log({f'train/metric_{k}': 0.1234567 * i + k for k in range(10)}, step=i)\n"
        "run.finish()\n"
    )
    _run([sys.executable, "-c", code], env)
    return directory


def _environment(directory: str) -> dict[str, str]:
    return {
        **os.environ,
        "HOME": directory,
        "TIDELOG_STATE_DIR": f"{directory}/state",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "PYTHONPATH": str(REPOSITORY),
    }


def _run(command: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _seconds(command: list[str], env: dict[str, str] | None = None) -> float:
    begin_s = time.perf_counter()
    _run(command, env)
    return time.perf_counter() - begin_s


def _aim(peer: str) -> str:
    return "≤ 5 × floor" if peer == "ours" else ""


if __name__ == "__main__":
    main()
