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
    "small": (
        {"lr": 9e-6, "optimizer": {"name": "adamw"}, "seed": 2, "mixed": 1},
        {"eval/reward": 0.5},
    ),
    "large": (
        {"lr": 1e-5, "optimizer": {"name": "sgd"}, "seed": 10, "amp": True, "mixed": True},
        {"eval/reward": 0.75},
    ),
    "text": (
        {"lr": "auto", "seed": 2**63 + 1, "say 'hi'": 1, "mixed": "true"},
        {"eval/reward": float("nan"), "loss": 3},
    ),
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
        ("config.mixed = true", ["large"]),
        ("config.mixed = 1", ["small"]),
        ("config.mixed = 'true'", ["text"]),
        ("config.mixed <> true", ["small", "text"]),
        ("config.mixed NOT IN (1)", ["large", "text"]),
        ("'true' != config.mixed", ["large", "small"]),
        ("config.mixed IS NOT NULL", ["large", "small", "text"]),
        ("config.lr NOT LIKE 'a%'", ["large", "small"]),
        ("config.seed = 'abc'", []),
        ("config.seed LIKE '1%'", []),
        ("config.seed > '5'::INT", ["large", "text"]),
        ('summary."eval/reward" > 0.6', ["large"]),
        ('summary."eval/reward" = 0.5', ["small"]),
        ('summary."eval/reward" <> 0.5', ["large", "text"]),
        ("run_id IN (SELECT run_id FROM summary WHERE summary.key = 'loss')", ["text"]),
        ("(config.seed) > 9 AND EXISTS (FROM config WHERE config.key = 'lr')", ["large", "text"]),
        ("config ->> 'lr' = 'auto' -- and not config.nothing", ["text"]),
        ("run_id = 'config.lr'", []),
    ],
)
def test_numbers_compare_as_numbers_texts_as_texts_and_unlike_things_are_unequal(
    root: Path, where: str, expected: list[str]
) -> None:
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
    assert lines[1].split()[-2:] == ["0.00001", "0.75"]


def test_what_is_compared_is_shown_as_it_is(root: Path) -> None:
    result = call(root, "--where", "config.mixed <> true", "--sort", "config.mixed")

    assert [line.split()[-1] for line in result.stdout.splitlines()] == ["config.mixed", "1", "true"]


@pytest.mark.parametrize(
    "where",
    [
        "true); COPY (SELECT 1) TO '{file}'; SELECT (1=1",
        "true) UNION SELECT * FROM runs WHERE (true",
        "true]; COPY (SELECT 1) TO '{file}'; SELECT [1",
        "true; COPY (SELECT 1) TO '{file}'",
        "(true",
        "run_id = 'small",
    ],
)
def test_a_condition_is_one_expression_and_nothing_else_runs(root: Path, tmp_path: Path, where: str) -> None:
    file = tmp_path / "written"

    result = call(root, "--where", where.format(file=file))

    assert (result.exit_code, result.stdout) == (2, "")
    assert "is one expression" in result.stderr or "Parser Error" in result.stderr
    assert not file.exists()


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
