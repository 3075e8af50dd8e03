"""`analysis runs`: `config.KEY` and `summary.KEY` as typed values, to choose and to sort by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import eventlog
from analysis.cli import main

RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": ({"lr": 9e-6, "optimizer": {"name": "adamw"}, "seed": 2}, {"eval/reward": 0.5}),
    "large": ({"lr": 1e-5, "optimizer": {"name": "sgd"}, "seed": 10, "amp": True}, {"eval/reward": 0.75}),
    "text": ({"lr": "auto", "seed": 2**63 + 1, "say 'hi'": 1}, {"eval/reward": float("nan"), "loss": 3}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for run_id, (config, values) in RUNS.items():
        with eventlog.init(project="demo", id=run_id, config=config, root=root, quiet=True) as run:
            run.log(values, step=0)
    return root


def call(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["runs", *arguments, "--root", str(root)], catch_exceptions=False)


def ids(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [json.loads(line)["run_id"] for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("config.lr > 9.5e-6", ["large"]),
        ("config.lr = 1e-5 OR config.lr = 'auto'", ["large", "text"]),
        ("1e-5 > config.lr", ["small"]),
        ("config.seed > 9", ["large", "text"]),
        ("config.seed = 9223372036854775809", ["text"]),
        ("config.optimizer.name = 'adamw'", ["small"]),
        ("config.\"optimizer\".name LIKE 's%'", ["large"]),
        ("runs.config.amp", ["large"]),
        ("config.amp = true", ["large"]),
        ("config.\"say 'hi'\" = 1", ["text"]),
        ('summary."eval/reward" < 0.6', ["small"]),
        ('isnan(summary."eval/reward")', ["text"]),
        ("config ->> 'lr' = 'auto' -- and not config.nothing", ["text"]),
        ("run_id = 'config.lr'", []),
    ],
)
def test_numbers_compare_as_numbers_and_texts_as_texts(root: Path, where: str, expected: list[str]) -> None:
    result = call(root, "--where", where, "--sort", "run_id", "--json")

    assert ids(result) == expected


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("config.seed", ["small", "large", "text"]),
        ('-summary."eval/reward"', ["large", "small", "text"]),
        ("summary.eval/reward", ["small", "large", "text"]),
        ("-config.lr", ["large", "small", "text"]),
        ("config.optimizer.name", ["small", "large", "text"]),
        ("summary.loss", ["text", "large", "small"]),
    ],
)
def test_nan_comes_behind_all_numbers_and_nothing_last(root: Path, sort: str, expected: list[str]) -> None:
    result = call(root, "--sort", sort, "--json")

    assert ids(result) == expected


def test_what_was_asked_for_is_shown_beside_the_rest(root: Path) -> None:
    result = call(root, "--where", "config.lr > 0", "--sort", "-summary.eval/reward")

    lines = result.stdout.splitlines()
    assert lines[0].split()[-2:] == ["config.lr", "summary.eval/reward"]
    assert lines[1].split()[-2:] == ["1e-05", "0.75"]


def test_a_key_that_no_run_has_names_the_nearest(root: Path) -> None:
    where = call(root, "--where", "config.lrr > 1")
    sort = call(root, "--sort", "-summary.reward")
    without_quotes = call(root, "--where", "summary.eval/reward > 0.5")

    assert where.exit_code == sort.exit_code == without_quotes.exit_code == 2
    assert "no run has 'config.lrr'. The nearest: config.lr" in where.stderr
    assert "no run has 'summary.reward'. The nearest: summary.\"eval/reward\"" in sort.stderr
    assert 'The nearest: summary."eval/reward"' in without_quotes.stderr


def test_where_there_is_no_run_there_is_no_wrong_key(tmp_path: Path) -> None:
    result = call(tmp_path, "--where", "config.lr > 1", "--sort", "config.lr")

    assert result.exit_code == 0
    assert "There is no run in" in result.stderr
