"""What a person or a script sees of the command `analysis`."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import analysis
from analysis.asking import execute
from analysis.cli import main
from tests.logs import TIME_US, handmade_run

# What rich takes for a terminal of 80 columns.
TERMINAL = {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    run = handmade_run(tmp_path, "first", config={"lr": 0.1})
    run.log(step=0, loss=0.123456789, note="[bold]two\nlines[/bold]")
    run.log(step=1, loss=float("nan"))
    run.log("exit", exitcode=0)
    handmade_run(tmp_path, "second").die()
    return tmp_path


def call(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False, **options)


def rows_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_sql_prints_a_table_for_people(root: Path) -> None:
    result = call("sql", "SELECT seq, value, text FROM metrics ORDER BY ALL", "--root", str(root))

    assert result.exit_code == 0
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "seq     value  text",
        "  1  0.123457",
        "  1            [bold]two lines[/bold]",
        "  2       nan",
    ]


def test_sql_prints_one_json_object_a_line_for_programs(root: Path) -> None:
    query = "SELECT step, value, value * 0.5 AS half, 0.5 AS exact, epoch_us(time) AS t FROM metrics WHERE key = 'loss'"

    result = call("sql", query + " ORDER BY step", "--json", "--root", str(root))

    assert rows_of(result) == [
        {"step": 0, "value": 0.123456789, "half": 0.0617283945, "exact": 0.5, "t": TIME_US + 1000},
        {"step": 1, "value": "NaN", "half": "NaN", "exact": 0.5, "t": TIME_US + 2000},
    ]


def test_json_columns_are_json_and_columns_of_one_name_are_told_apart(root: Path) -> None:
    result = call(
        "sql", "SELECT config, run_id, run_id FROM runs ORDER BY 2", "--format", "json", "--root", str(root)
    )

    assert rows_of(result)[0] == {"config": {"lr": 0.1}, "run_id": "first", "run_id_1": "first"}

    result = call("sql", "SELECT 1 AS a, 2 AS a, 3 AS a_1", "--json", "--root", str(root))

    assert rows_of(result) == [{"a": 1, "a_1": 2, "a_1_1": 3}]


def test_sql_prints_csv_with_whole_values(root: Path) -> None:
    result = call(
        "sql", "SELECT value, text FROM metrics ORDER BY seq, key", "--format", "csv", "--root", str(root)
    )

    rows = list(csv.reader(io.StringIO(result.stdout)))
    assert rows == [["value", "text"], ["0.123456789", ""], ["", "[bold]two\nlines[/bold]"], ["nan", ""]]


def test_the_query_may_come_from_a_file_or_a_pipe(root: Path, tmp_path: Path) -> None:
    (tmp_path / "query.sql").write_text("SELECT count(*) AS n\nFROM runs;\n")

    from_file = call("sql", "-f", str(tmp_path / "query.sql"), "--json", "--root", str(root))
    from_pipe = call("sql", "-f", "-", "--json", "--root", str(root), input="SELECT 2 AS n")

    assert rows_of(from_file) == [{"n": 2}]
    assert rows_of(from_pipe) == [{"n": 2}]


def test_a_query_that_is_no_text_is_wrong_usage(root: Path, tmp_path: Path) -> None:
    (tmp_path / "query.sql").write_bytes(b"SELECT '\xff'")

    result = call("sql", "-f", str(tmp_path / "query.sql"), "--root", str(root))

    assert result.exit_code == 2
    assert f"{str(tmp_path / 'query.sql')!r} is no text: invalid start byte at byte 8." in result.stderr


def test_without_a_query_it_says_what_can_be_asked(root: Path) -> None:
    result = call("sql", "--root", str(root))

    assert result.exit_code == 0
    assert "  metrics(project, run_id, writer, " in result.stdout
    assert "-- Which tools fail?" in result.stdout
    assert "internal" not in result.stdout


def test_bad_sql_is_shown_with_the_place(root: Path) -> None:
    result = call("sql", "SELECT stp FROM metrics", "--root", str(root))

    assert result.exit_code == 2
    assert "LINE 1: SELECT stp FROM metrics" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_view_is_answered_with_the_nearest(root: Path) -> None:
    near = call("sql", "SELECT * FROM metrcs", "--root", str(root))
    far = call("sql", "SELECT * FROM qqqq", "--root", str(root))

    assert near.exit_code == far.exit_code == 2
    assert "There is no view 'metrcs'. The nearest: metrics" in near.stderr
    assert "LINE 1: SELECT * FROM metrcs" in near.stderr
    assert "There are: alerts, checkpoints, config, console, files," in far.stderr


def test_an_empty_root_says_where_it_looked(tmp_path: Path) -> None:
    result = call("sql", "SELECT * FROM runs", "--json", "--root", str(tmp_path / "nothing"))

    assert result.exit_code == 0
    assert result.stdout == ""
    assert f"There is no run in {str(tmp_path / 'nothing')!r}" in result.stderr


def test_the_root_comes_from_the_environment(root: Path) -> None:
    result = call("sql", "SELECT count(*) AS n FROM runs", "--json", env={"EVENTLOG_ROOT": str(root)})

    assert rows_of(result) == [{"n": 2}]


def test_what_was_passed_over_is_said(root: Path) -> None:
    (root / "demo" / "second" / "run.json").write_text("{")

    result = call("sql", "SELECT count(*) AS n FROM runs", "--json", "--root", str(root))

    assert rows_of(result) == [{"n": 1}]
    assert "cannot be read" in result.stderr


def test_verify_leaves_out_a_flipped_digit(root: Path) -> None:
    segment = root / "demo" / "first" / "main-0001" / "events-000000000000.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b"0.123456789", b"0.923456789"))
    query = "SELECT count(*) AS n FROM metrics WHERE key = 'loss'"

    plain = call("sql", query, "--json", "--root", str(root))
    verified = call("sql", query, "--json", "--verify", "--root", str(root))

    assert rows_of(plain) == [{"n": 2}]
    assert rows_of(verified) == [{"n": 1}]


def test_a_table_ends_where_nobody_reads_on(root: Path) -> None:
    result = call("sql", "SELECT range AS n, repeat('x', 1000) AS long FROM range(2000)", "--root", str(root))

    lines = result.stdout.splitlines()
    assert len(lines) == 501
    assert max(map(len, lines)) < 220
    assert "the first 500 rows. `--json` prints all." in result.stderr


EVIL = "\x1b]0;pwned\x07\x9b31m\u202ered"
SAID = "\\x1b]0;pwned\\x07\\x9b31m\\u202ered"


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs",),
        ("compare", "evil", "first"),
        ("sql", "FROM metrics"),
        ("sql", "FROM metrics", "--format", "markdown"),
        ("sql", f"SELECT 1 AS '{EVIL}', 2 AS '{EVIL}'"),
        ("sql", "SELECT name::INT FROM runs"),
        ("sql", "SELECT * FROM metrics WHERE key = 'pwn'"),
        ("plot", "evil", EVIL),
        ("plot", "evil", "pwn"),
        ("export", "evil", "--metric", "pwn"),
    ],
)
def test_no_name_key_or_value_reaches_the_terminal_as_a_command(
    root: Path, arguments: tuple[str, ...]
) -> None:
    run = handmade_run(root, "evil", name=EVIL, config={EVIL: EVIL})
    run.log(step=0, **{EVIL: 1, "text": EVIL})
    run.die()

    result = call(*arguments, "--root", str(root))

    assert not set("\x1b\x07\x9b\u202e") & set(result.output)
    assert SAID in result.output.replace("\\\\", "\\")


def test_for_programs_values_stay_as_they_are(root: Path, tmp_path: Path) -> None:
    query = f"SELECT '{EVIL}' AS evil"

    lines = call("sql", query, "--json", "--root", str(root))
    table = call("sql", query, "--format", "csv", "--root", str(root))

    assert rows_of(lines) == [{"evil": EVIL}]
    assert table.stdout == f"evil\n{EVIL}\n"


def test_the_end_of_time_is_called_as_in_duckdb(root: Path) -> None:
    query = "SELECT 'infinity'::TIMESTAMP AS a, '-infinity'::TIMESTAMPTZ AS b, 'infinity'::DATE AS c"

    shown = [call("sql", query, "--format", shape, "--root", str(root)) for shape in ("json", "csv", "table")]

    assert rows_of(shown[0]) == [{"a": "infinity", "b": "-infinity", "c": "infinity"}]
    assert shown[1].stdout == "a,b,c\ninfinity,-infinity,infinity\n"
    assert shown[2].stdout.splitlines()[1].split() == ["infinity", "-infinity", "infinity"]


def test_many_columns_stand_below_each_other_in_a_terminal(root: Path) -> None:
    result = call("sql", "SELECT * FROM runs WHERE run_id = 'first'", "--root", str(root), env=TERMINAL)

    lines = [re.sub("\x1b\\[[0-9;]*m", "", line).split() for line in result.stdout.splitlines()]
    assert ["run_id", "first"] in lines
    assert ["state", "finished"] in lines


def test_a_table_fits_the_terminal(root: Path) -> None:
    query = "SELECT 7 AS n, repeat('x', 300) AS a, repeat('y', 300) AS b"

    result = call("sql", query, "--root", str(root), env=TERMINAL)

    last = re.sub("\x1b\\[[0-9;]*m", "", result.stdout.splitlines()[-1])
    assert last.rstrip() == "7  " + "x" * 36 + "…  " + "y" * 36 + "…"


def test_runs_lists_the_runs(root: Path) -> None:
    result = call("runs", "--root", str(root), "--sort", "-run_id")

    lines = result.stdout.splitlines()
    assert lines[0].split()[:7] == [
        "project",
        "run_id",
        "name",
        "state",
        "last_step",
        "records",
        "trajectories",
    ]
    assert lines[1].split()[:3] == ["demo", "second", "crashed"]
    assert lines[2].split()[:5] == ["demo", "first", "finished", "1", "4"]


def test_runs_can_be_chosen_and_printed_whole(root: Path) -> None:
    result = call("runs", "--root", str(root), "--where", "config ->> 'lr' = '0.1' -- mine", "--json")

    (run,) = rows_of(result)
    assert run["run_id"] == "first"
    assert run["config"] == {"lr": 0.1}
    assert run["summary"] == {"loss": "NaN", "note": "[bold]two\nlines[/bold]"}


def test_a_wrong_column_or_condition_is_wrong_usage(root: Path) -> None:
    column = call("runs", "--sort", "stat", "--root", str(root))
    condition = call("runs", "--where", "stat = 1", "--root", str(root))

    assert column.exit_code == condition.exit_code == 2
    assert "runs have no column 'stat'. The nearest: state" in column.stderr
    assert "stat" in condition.stderr


def test_a_file_that_vanished_costs_a_second_look(root: Path) -> None:
    con = analysis.connect(root)
    (root / "demo" / "second" / "main-0001" / "events-000000000000.jsonl").unlink()

    execute(con, "SELECT DISTINCT run_id FROM records")

    assert con.fetchall() == [("first",)]


def test_the_command_itself_runs_and_keeps_its_output_clean(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "sql", "SELECT step, time FROM metrics LIMIT 1", "--json"],
        env={**os.environ, "EVENTLOG_ROOT": str(root), "TZ": "Europe/Berlin"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"step": 0, "time": "2025-11-21T09:00:00.001000+01:00"}
