"""`make demo`: the whole of Tidelog on one machine, with everything going wrong that does on a cluster.

    trainer ──▶ runs/ ──▶ syncd ──▶ a W&B-compatible server        while a person would watch:
       ✗ killed once        ✗ killed once   ✗ away for a while

Then it compares what the server holds with what was logged, row for row, and asks three questions in SQL. Every
kill is a real SIGKILL; the server really stops listening. Exits with 1 if a single row is missing or doubled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import eventlog
from tests.wandb_server.check import differences

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PROJECT, RUN_ID = "demo", "calculator"
AWAY_S = 15.0
PATIENCE_S = 900.0
QUESTIONS = [
    (
        "Does the reward of what is rolled out rise?",
        "SELECT 10 * (step // 10) AS from_step, count(*) AS trajectories, round(avg(reward), 3) AS reward, "
        "round(avg(n_turns), 2) AS turns FROM trajectories GROUP BY ALL ORDER BY ALL",
    ),
    (
        "Do its tool calls fail less often?",
        "SELECT 10 * (step // 10) AS from_step, count(*) AS calls, "
        "round(100 * avg((error IS NOT NULL)::INT), 1) AS percent_failed FROM tool_calls GROUP BY ALL ORDER BY ALL",
    ),
    (
        "What does a solved problem look like by now?",
        "SELECT role, content, tool_calls ->> '$[0].arguments' AS calls FROM messages WHERE (writer, seq) = (SELECT "
        "(writer, seq) FROM trajectories WHERE reward = 1 ORDER BY step DESC, n_turns DESC LIMIT 1) ORDER BY turn",
    ),
]

console = Console()


@dataclass
class Stage:
    """Where everything of one demo lives, and the processes that it started."""

    directory: Path
    env: dict[str, str]
    url: str = ""

    @property
    def root(self) -> Path:
        return self.directory / "runs"

    @property
    def run_dir(self) -> Path:
        return self.root / PROJECT / RUN_ID

    def start(self, *command: str, log: str) -> subprocess.Popen[bytes]:
        with open(self.directory / log, "ab") as output:
            return subprocess.Popen(command, env=self.env, cwd=self.directory, stdout=output, stderr=output)

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.env, cwd=self.directory, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "demo-output")
    options = parser.parse_args()
    stage = prepare(options.directory)

    server = start_server(stage)
    training: subprocess.Popen[bytes] | None = None
    try:
        stage.call(str(BIN / "syncd"), "start", "--root", str(stage.root), "--flush", "1")
        training = train_through_trouble(stage)
        wait_until_acknowledged(stage)
        same = compare(stage)
        show(stage)
    finally:
        if training is not None and training.poll() is None:
            training.kill()
        stage.call(str(BIN / "syncd"), "stop")
        server.terminate()
        server.wait()
    if not same:
        raise SystemExit(1)


def prepare(directory: Path) -> Stage:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    env = {
        **os.environ,
        "TIDELOG_STATE_DIR": str(directory / "state"),
        "EVENTLOG_ROOT": str(directory / "runs"),
        "WANDB_PROJECT": PROJECT,
        "RUN_ID": RUN_ID,
        "PYTHONPATH": str(REPOSITORY),
    }
    console.rule("[bold]Tidelog: train, break everything, lose nothing")
    console.print(f"Everything below is in {directory}\n")
    return Stage(directory, env)


def start_server(stage: Stage) -> subprocess.Popen[bytes]:
    port_file = stage.directory / "port"
    server = stage.start(
        sys.executable, "-m", "tests.wandb_server", "--port-file", str(port_file), log="server.log"
    )
    until(port_file.exists, "the server", server)
    stage.url = f"http://127.0.0.1:{port_file.read_text()}"
    stage.env |= {"WANDB_BASE_URL": stage.url, "WANDB_API_KEY": "0123456789" * 4}
    console.print(f"✓ a W&B-compatible server listens at {stage.url}")
    return server


def train_through_trouble(stage: Stage) -> subprocess.Popen[bytes]:
    """Run the trainer to its end through one outage, one killed daemon and one killed trainer."""
    train = [
        str(BIN / "trainer"),
        "train",
        "calculator",
        "--quick",
        "--run-name",
        RUN_ID,
        "--output-dir",
        str(stage.directory / "checkpoints"),
    ]
    training = stage.start(*train, log="trainer.log")
    console.print("✓ syncd watches the logs; the trainer runs: SFT warm-up, then GRPO with real gradients")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("training")

        def step_is(at_least: int) -> Callable[[], bool]:
            def reached() -> bool:
                step = last_step(stage.run_dir)
                progress.update(task, description=f"training, step {step if step is not None else 'warm-up'}")
                return step is not None and step >= at_least

            return reached

        until(step_is(3), "step 3", training)
        httpx.post(f"{stage.url}/_test/down", json={"seconds": AWAY_S})
        progress.console.print(f"✗ step {last_step(stage.run_dir)}: the server is gone for {AWAY_S:.0f} s")

        until(step_is(6), "step 6", training)
        pid = json.loads(stage.call(str(BIN / "syncd"), "status", "--json"))["daemon"]["pid"]
        os.kill(pid, signal.SIGKILL)
        progress.console.print(f"✗ step {last_step(stage.run_dir)}: SIGKILL to syncd (process {pid})")
        stage.call(str(BIN / "syncd"), "start", "--root", str(stage.root), "--flush", "1")
        progress.console.print("✓ syncd was started again")

        until(step_is(10), "step 10", training)
        training.kill()
        training.wait()
        progress.console.print(f"✗ step {last_step(stage.run_dir)}: SIGKILL to the trainer")
        training = stage.start(*train, "--resume", log="trainer.log")
        progress.console.print("✓ the trainer was started again with --resume")

        def ended() -> bool:
            step_is(0)()
            return training.poll() is not None

        until(ended, "the end of the training", None)
    if training.returncode != 0:
        raise SystemExit(f"the trainer failed; its output is in {stage.directory / 'trainer.log'}")
    console.print("✓ training is over")
    return training


def wait_until_acknowledged(stage: Stage) -> None:
    def acknowledged() -> bool:
        (run,) = json.loads(stage.call(str(BIN / "syncd"), "status", "--json"))["runs"]
        return bool(run["backlog"] == 0 and run["state"] == "synced")

    with console.status("waiting until every record is acknowledged"):
        until(acknowledged, "everything to be acknowledged", None)


def compare(stage: Stage) -> bool:
    """Compare the server's history with the records, by W&B's step rule and nothing of syncd's."""
    wanted = rows_by_the_step_rule(stage.run_dir)
    held = httpx.get(f"{stage.url}/_test/runs/ent/{PROJECT}/{RUN_ID}").json()
    rows = [json.loads(line) for line in held["history_lines"]]
    found = differences(wanted, rows, ignoring=("_timestamp", "_runtime", "_step"))
    violations = httpx.get(f"{stage.url}/_test/violations").json()
    if not found and not violations:
        console.print(
            f"\n[bold green]✓ {len(rows)} rows were logged, {len(rows)} are on the server: each once, in order[/]\n"
        )
        return True
    for difference in [*found, *map(str, violations or [])]:
        console.print(f"[bold red]✗ {difference}", markup=True)
    return False


def rows_by_the_step_rule(run_dir: Path) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    current = 0
    for record in eventlog.read(run_dir):
        if record.kind == "start" and current in rows:
            current += 1
        if record.kind != "metrics" or record.step is None or record.step < current:
            continue
        current = record.step
        rows.setdefault(current, {}).update(record.data)
        if record.commit:
            current += 1
    return [rows[step] for step in sorted(rows)]


def show(stage: Stage) -> None:
    curve(stage)
    for title, command in [
        ("What syncd says", ["syncd", "status"]),
        ("W&B's copy, read back and compared", ["syncd", "verify", f"{PROJECT}/{RUN_ID}"]),
        *((title, ["analysis", "sql", query]) for title, query in QUESTIONS),
    ]:
        console.rule(title, align="left")
        shown = [part if " " not in part else f'"{part}"' for part in command]
        console.print(f"$ {' '.join(shown)}", style="dim", markup=False, highlight=False)
        console.print(stage.call(str(BIN / command[0]), *command[1:]), markup=False, highlight=False)
    console.rule("Where to look next", align="left")
    console.print(
        f"{stage.run_dir}/main-0001/*.jsonl   the log: one JSON object a line, `less` reads it\n"
        f"{stage.directory}/trainer.log       what the trainer said\n"
        f'EVENTLOG_ROOT={stage.root} {BIN}/analysis sql "SELECT * FROM runs"\n'
        f"EVENTLOG_ROOT={stage.root} {BIN}/eventlog show {PROJECT}/{RUN_ID}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def curve(stage: Stage) -> None:
    """Draw the learning curve: held-out reward over steps."""
    query = f"SELECT step, value FROM curve('{RUN_ID}', 'eval/reward')"
    answer = stage.call(str(BIN / "analysis"), "sql", "--format", "json", query)
    points = [json.loads(line) for line in answer.splitlines()]
    console.rule("eval/reward: greedy, on problems that the warm-up never saw", align="left")
    for point in points:
        bar = "█" * round(40 * max(0.0, point["value"]))
        console.print(f"step {point['step']:>3}  {point['value']:.3f}  {bar}", markup=False, highlight=False)
    console.print()


def last_step(run_dir: Path) -> int | None:
    """Return the newest step in the log, read from its end."""
    steps = [
        json.loads(line).get("step")
        for segment in sorted(run_dir.glob("main-*/events-*.jsonl"))[-1:]
        for line in segment.read_bytes().splitlines(keepends=True)[-5:]
        if line.endswith(b"\n")
    ]
    return max((step for step in steps if step is not None), default=None)


def until(condition: Callable[[], bool], what: str, alive: subprocess.Popen[bytes] | None) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        if alive is not None and alive.poll() is not None:
            raise SystemExit(f"process {alive.args!r} ended while waiting for {what}")
        if time.monotonic() > deadline_s:
            raise SystemExit(f"waited {PATIENCE_S:.0f} s for {what}")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
