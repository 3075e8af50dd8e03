"""`analysis gap`, `judge` and `cost`: the questions of a mixture, each by one command, with a verdict for people."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner, Result

import eventlog
from analysis.cli import main


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    with eventlog.init(project="demo", id="mix", root=root, quiet=True) as run:
        for step, (math, rate, right) in enumerate([(40.0, 0.9, 0.0), (45.0, 0.7, 50.0), (60.0, 0.85, 40.0)]):
            run.log(
                {
                    "dataset/gsm8k/accuracy": 80.0,
                    "dataset/math/accuracy": math,
                    "judge/success_rate": rate,
                    "cost/avg_cost_per_sample": 0.01,
                    "train/accuracy": right,
                },
                step=step,
            )
    with eventlog.init(project="other", id="mix", root=root, quiet=True) as run:
        run.log({"judge/success_rate": 0.1, "dataset/gsm8k/accuracy": 1.0}, step=0)
        run.log(
            {"dataset/math/accuracy": 1.0, "cost/avg_cost_per_sample": float("nan"), "train/accuracy": 1.0},
            step=1,
        )
    with eventlog.init(project="demo", id="plain", root=root, quiet=True) as run:
        run.log({"judge/success": 1.0, "train/accuracy": 1.0}, step=0)
    return root


def call(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--root", str(root)], catch_exceptions=False)


def rows_of(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_gap_is_in_points_with_its_slope(root: Path) -> None:
    rows = rows_of(call(root, "gap", "demo/mix", "--steps", "2", "--json"))

    assert [(row["step"], row["gap"], row["trend"]) for row in rows] == [
        (0, 40, None),
        (1, 35, -5),
        (2, 20, -15),
    ]


def test_the_judge_is_bad_below_four_fifths_and_has_a_moving_mean(root: Path) -> None:
    rows = rows_of(call(root, "judge", "demo/mix", "--steps", "2", "--json"))

    assert [(row["success_rate"], row["is_bad"]) for row in rows] == [
        (0.9, False),
        (0.7, True),
        (0.85, False),
    ]
    assert [row["mean"] for row in rows] == pytest.approx([0.9, 0.8, 0.775])


def test_the_cheapest_step_comes_first_and_one_without_a_right_answer_last(root: Path) -> None:
    rows = rows_of(call(root, "cost", "demo/mix", "--json"))

    assert [row["step"] for row in rows] == [1, 2, 0]
    assert [row["cost_per_correct"] for row in rows] == [0.02, pytest.approx(0.025), None]


def test_of_two_runs_of_one_id_the_other_project_counts_for_nothing(root: Path) -> None:
    assert [row["success_rate"] for row in rows_of(call(root, "judge", "other/mix", "--json"))] == [0.1]


def test_an_answer_goes_into_any_format(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "gap.parquet"

    csv = call(root, "cost", "demo/mix", "--format", "csv")
    parquet = call(root, "gap", "demo/mix", "-o", str(file))

    assert csv.stdout.splitlines()[:2] == ["step,cost,accuracy,cost_per_correct", "1,0.01,50.0,0.02"]
    assert (parquet.exit_code, parquet.output) == (0, "")
    assert duckdb.sql(f"SELECT gap FROM '{file}'").fetchall() == [(40.0,), (35.0,), (20.0,)]


@pytest.mark.parametrize(
    ("question", "verdict"),
    [
        ("gap", "MATH is 20 percentage points behind GSM8K at step 2"),
        ("judge", "The judge answers too seldom at 1 of 3 steps, first at step 1"),
        ("cost", "A right answer is cheapest at step 1: $0.02"),
    ],
)
def test_in_a_terminal_a_verdict_stands_above_the_table_and_in_a_pipe_it_does_not(
    root: Path, question: str, verdict: str
) -> None:
    command = [sys.executable, "-m", "analysis", question, "demo/mix", "--root", str(root)]
    here, there = pty.openpty()

    with subprocess.Popen(command, stdout=there, cwd=Path(__file__).parents[2]) as process:
        os.close(there)
        said = b""
        # The other end of a terminal that is gone is an error, on Linux.
        while chunk := _read(here):
            said += chunk
    os.close(here)
    piped = call(root, question, "demo/mix")

    assert process.returncode == 0
    assert said.decode().startswith(verdict)
    assert piped.stdout.split()[0] == "step"


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_a_run_without_the_keys_is_told_which_it_lacks(root: Path) -> None:
    none = call(root, "gap", "plain")
    one = call(root, "judge", "plain")
    apart = call(root, "gap", "other/mix")
    not_finite = call(root, "cost", "other/mix")

    assert none.exit_code == one.exit_code == apart.exit_code == not_finite.exit_code == 2
    assert (
        "demo/plain did not log 'dataset/gsm8k/accuracy' and 'dataset/math/accuracy'. This needs "
        "'dataset/gsm8k/accuracy' and 'dataset/math/accuracy' at the same step." in none.stderr
    )
    assert (
        "did not log 'judge/success_rate'. This needs 'judge/success_rate'. The nearest: judge/success."
        in one.stderr
    )
    assert "'dataset/math/accuracy', but no step has a finite number of each." in apart.stderr
    assert "'train/accuracy', but no step has a finite number of each." in not_finite.stderr
