"""`analysis sql` in pipes and files: formats, parameters, several statements, and what it says to bad input."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner, Result

import eventlog
from analysis.cli import main
from tests.logs import handmade_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    with eventlog.init(project="demo", id="baseline", config={"lr": 1e-6}, root=root, quiet=True) as run:
        for step in range(3):
            run.log({"train/loss": 1 / (step + 1), "note": "a|b"}, step=step)
    return root


def call(root: Path, *arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(
        main, ["sql", *arguments, "--root", str(root)], catch_exceptions=False, **options
    )


def test_markdown_is_a_table_for_a_report(root: Path) -> None:
    query = "SELECT step, text, value FROM metrics WHERE step = 1 ORDER BY key"

    result = call(root, query, "--format", "markdown")

    assert result.stdout.splitlines() == [
        "| step | text | value |",
        "| ---: | --- | ---: |",
        "| 1 | a\\|b |  |",
        "| 1 |  | 0.5 |",
    ]


def test_parquet_goes_into_a_file_and_nothing_to_stdout(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "it's.parquet"

    result = call(root, "SELECT step, sum(int) AS s, step FROM metrics GROUP BY step -- all", "-o", str(file))

    assert (result.exit_code, result.output) == (0, "")
    described = duckdb.sql(f"DESCRIBE FROM '{str(file).replace(chr(39), 2 * chr(39))}'").fetchall()
    assert [row[:2] for row in described] == [("step", "BIGINT"), ("s", "DOUBLE"), ("step_1", "BIGINT")]
    assert os.listdir(tmp_path) == ["it's.parquet"]


def test_parquet_for_a_terminal_is_wrong_usage(root: Path) -> None:
    result = call(root, "SELECT 1", "--format", "parquet")

    assert result.exit_code == 2
    assert "-o FILE.parquet" in result.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "n\n1\n"),
        ("a.jsonl", '{"n":1}\n'),
        ("a.md", "| n |\n| ---: |\n| 1 |\n"),
        ("a.txt", "n\n1\n"),
    ],
)
def test_a_file_has_the_format_that_its_name_says(
    root: Path, tmp_path: Path, name: str, content: str
) -> None:
    result = call(root, "SELECT 1 AS n", "-o", str(tmp_path / name))

    assert result.output == ""
    assert (tmp_path / name).read_text() == content


def test_a_query_that_fails_leaves_the_file_as_it_was(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("before")

    late = call(root, "SELECT error('late') FROM metrics", "-o", str(tmp_path / "a.csv"))
    parquet = call(root, "SELECT stp FROM metrics", "-o", str(tmp_path / "a.parquet"))
    nowhere = call(root, "SELECT 1", "-o", str(tmp_path / "no" / "a.csv"))

    assert (late.exit_code, parquet.exit_code, nowhere.exit_code) == (2, 2, 1)
    assert "LINE 1: SELECT stp FROM metrics\n               ^" in parquet.stderr
    assert "there is no directory" in nowhere.stderr
    assert (tmp_path / "a.csv").read_text() == "before"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_parameters_are_numbers_if_they_look_so_else_text(root: Path) -> None:
    query = "SELECT typeof($a) AS a, typeof($b) AS b, typeof($c) AS c, $d AS d"

    result = call(
        root, query, "-p", "a=3", "-p", "b=1e-5", "-p", "c=baseline", "-p", "d='007'", "--format", "json"
    )

    assert json.loads(result.stdout) == {"a": "INTEGER", "b": "DOUBLE", "c": "VARCHAR", "d": "007"}


def test_a_parameter_that_is_missing_or_not_asked_for_is_wrong_usage(root: Path) -> None:
    missing = call(root, "SELECT 1; SELECT $run", "-p", "rum=x")
    unused = call(root, "SELECT $run", "-p", "run=x", "-p", "rum=x")
    shapeless = call(root, "SELECT 1", "-p", "run")

    assert (missing.exit_code, unused.exit_code, shapeless.exit_code) == (2, 2, 2)
    assert "the query has $run, which has no value. Give -p run=…. Given are: rum." in missing.stderr
    assert missing.stdout == ""
    assert "the query has no $rum. The nearest: run." in unused.stderr
    assert "Write it as name=value" in shapeless.stderr


def test_several_statements_print_the_rows_of_those_that_have_some(root: Path) -> None:
    text = "SET threads = 1; CREATE TEMP TABLE t AS SELECT 1 AS a; INSERT INTO t VALUES (2); FROM t; SELECT $n AS n;"

    table = call(root, text, "-p", "n=5")
    lines = call(root, text, "-p", "n=5", "--json")

    assert table.stdout == "a\n1\n2\n\nn\n5\n"
    assert [json.loads(line) for line in lines.stdout.splitlines()] == [{"a": 1}, {"a": 2}, {"n": 5}]


def test_a_file_takes_one_result(root: Path, tmp_path: Path) -> None:
    result = call(root, "SELECT 1; SELECT 2", "-o", str(tmp_path / "a.csv"))

    assert result.exit_code == 2
    assert "the query has 2" in result.stderr
    assert os.listdir(tmp_path) == []


def test_no_rows_for_a_run_or_a_key_that_is_not_there_are_explained(root: Path) -> None:
    run = call(root, "SELECT * FROM curve('baselin', 'train/loss')")
    key = call(root, "SELECT * FROM metrics WHERE key = 'train/los'", "--json")
    of_run = call(root, "SELECT * FROM curve('baseline', 'lr')")
    neither = call(root, "SELECT * FROM metrics WHERE step > 100")

    assert run.exit_code == key.exit_code == neither.exit_code == 0
    assert "There is no run 'baselin'. The nearest: baseline." in run.stderr
    assert "No run has a key 'train/los'. The nearest: train/loss" in key.stderr
    assert "Run 'baseline' has no key 'lr'. There are: note, train/loss." in of_run.stderr
    assert (key.stdout, neither.stderr) == ("", "")


def test_an_unknown_macro_is_answered_with_the_nearest(root: Path) -> None:
    result = call(root, "SELECT * FROM curv('baseline', 'x')")

    assert result.exit_code == 2
    assert "There is no macro 'curv'. The nearest: curve(run, metric)" in result.stderr


def test_a_name_is_never_a_variable_of_the_program(root: Path) -> None:
    result = call(root, "SELECT * FROM query")

    assert result.exit_code == 2
    assert "There is no view 'query'." in result.stderr


def test_damage_is_counted_and_says_where_to_look(root: Path, tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="hurt", root=tmp_path, quiet=True) as run:
        for step in range(4):
            run.log({"x": step + 0.5}, step=step)
    (segment,) = (tmp_path / "demo" / "hurt" / "main-0001").glob("events-*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b'"x":1.5', b'"x":9.5').replace(b'"x":2.5', b'"x":8.5'))

    result = call(tmp_path, "SELECT value FROM metrics ORDER BY step", "--format", "csv", "--verify")

    assert result.stdout == "value\n0.5\n3.5\n"
    assert result.stderr == (
        "analysis: demo/hurt: 2 damaged records are left out. `eventlog verify demo/hurt` says where.\n"
    )


def three_hurt(root: Path) -> dict[str, Path]:
    """Log runs of which `hurt` has lost two records, `torn` nothing but what was being written, and `whole` nothing."""
    segments = {}
    for run_id in ("hurt", "torn", "whole"):
        run = handmade_run(root, run_id)
        for step in range(4):
            run.log(step=step, x=step + 0.5)
        if run_id == "hurt":
            for seq in (2, 3):
                run.overwrite(run.offset_of(seq) + 30, b"\x00\x00")
        elif run_id == "torn":
            run.cut(run.segment.stat().st_size - 7)
        run.die()
        segments[run_id] = run.segment
    return segments


HURT = "analysis: demo/hurt: 2 damaged records are left out. `eventlog verify demo/hurt` says where.\n"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT count(*) FROM metrics", HURT),
        ("SELECT count(*) FROM metrics WHERE run_id = 'hurt'", HURT),
        ("SELECT count(*) FROM metrics WHERE run_id <> 'hurt'", ""),
        ("FROM curve('whole', 'x')", ""),
        ("FROM summary", HURT),
        ("FROM trajectories", ""),
        ("CREATE TABLE x AS FROM metrics; SELECT 1", HURT),
    ],
)
def test_a_query_that_comes_upon_damage_says_how_much_and_of_which_run(
    tmp_path: Path, query: str, said: str
) -> None:
    three_hurt(tmp_path)

    result = call(tmp_path, query, "--format", "csv")

    assert result.exit_code == 0
    assert result.stderr == said


def test_damage_is_said_when_the_answer_is_a_parquet_file_and_once_with_verify(tmp_path: Path) -> None:
    three_hurt(tmp_path / "root")
    output = str(tmp_path / "x.parquet")

    assert call(tmp_path / "root", "FROM metrics", "-o", output).stderr == HURT
    assert call(tmp_path / "root", "FROM metrics", "--verify").stderr == HURT


def test_a_pipe_that_closes_early_ends_the_command_without_a_traceback(root: Path) -> None:
    command = (
        f"{sys.executable} -m analysis sql 'SELECT range AS n FROM range(1000000)' --format csv | head -n 2"
    )

    done = subprocess.run(
        command,
        shell=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "EVENTLOG_ROOT": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (done.stdout, done.stderr) == ("n\n0\n", "")


@pytest.mark.parametrize(
    "command",
    [
        ("sql", "SELECT 1"),
        ("sql", "FROM range(1000000)", "--format", "csv"),
        ("export", "baseline"),
        ("report", "baseline", "-o", "-"),
        ("compare", "baseline"),
        ("runs",),
        ("--help",),
    ],
)
def test_a_full_disk_behind_stdout_is_said_in_a_sentence(root: Path, command: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "analysis", *command],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "EVENTLOG_ROOT": str(root)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )

    assert done.returncode == 1
    assert done.stderr == (
        "Error: stdout could not be written to: No space left on device. It is not whole.\n"
    )


def test_a_link_is_written_through_and_stays_one(root: Path, tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "between.csv").symlink_to("real.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "between.csv")
    (tmp_path / "new.csv").symlink_to("made.csv")
    late = "SELECT CASE WHEN range > 20000 THEN error('late') ELSE range END FROM range(30000)"

    failed = call(root, late, "-o", str(tmp_path / "link.csv"))
    assert (failed.exit_code, (tmp_path / "real.csv").read_text()) == (2, "old")
    for name in ("link.csv", "new.csv"):
        assert call(root, "SELECT 1 AS one", "-o", str(tmp_path / name)).exit_code == 0

    assert [(tmp_path / name).is_symlink() for name in ("link.csv", "between.csv", "new.csv")] == [True] * 3
    assert (tmp_path / "real.csv").read_text() == (tmp_path / "made.csv").read_text() == "one\n1\n"
    assert len(os.listdir(tmp_path)) == 5


def test_a_link_to_itself_is_no_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "loop.csv").symlink_to("loop.csv")

    result = call(root, "SELECT 1 AS one", "-o", str(tmp_path / "loop.csv"))

    assert result.exit_code == 1
    assert "loop.csv' could not be written: Too many levels of symbolic links." in result.stderr


def test_what_stdout_is_open_on_is_written_to_and_not_replaced(root: Path, tmp_path: Path) -> None:
    with open(tmp_path / "out", "w+") as out:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "analysis",
                "sql",
                "SELECT 1 AS n",
                "-o",
                "/dev/stdout",
                "--format",
                "csv",
            ],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "EVENTLOG_ROOT": str(root)},
            stdout=out,
            timeout=120,
        )

        assert (done.returncode, out.read()) == (0, "n\n1\n")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_file_keeps_its_permissions_and_a_new_one_has_those_of_others(
    root: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).touch(0o600)

    for each in (tmp_path / name, tmp_path / f"new-{name}"):
        assert call(root, "SELECT 1", "-o", str(each)).exit_code == 0

    (tmp_path / "plain").touch()
    modes = [stat.S_IMODE((tmp_path / each).stat().st_mode) for each in (name, f"new-{name}", "plain")]
    assert modes == [0o600, modes[2], modes[2]]
