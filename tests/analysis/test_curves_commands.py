"""`analysis compare`, `plot` and `export`: several runs side by side, as tables, curves and files."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner, Result

import analysis
import eventlog
from analysis.cli import main

# What rich takes for a terminal of 80 columns.
TERMINAL = {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}
_ESCAPES = re.compile("\x1b\\[[0-9;]*m")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for run_id, name, lr in (("base1", "baseline", 1e-6), ("base2", "hot", 3e-6), ("dup", "twin", 0.1)):
        config = {"lr": lr, "optimizer": {"name": "adamw"}, "seed": 1}
        with eventlog.init(project="demo", id=run_id, name=name, config=config, root=root, quiet=True) as run:
            for step in range(50):
                run.log({"train/loss": lr * 1e6 / (step + 1), "train/reward": step / 50}, step=step)
            run.log({"note": "end", "flag": True, "only": run_id == "base1"}, step=50)
    with eventlog.init(project="other", id="dup", name="twin", root=root, quiet=True) as run:
        run.log({"x": float("nan"), "n": 2**60}, step=0)
        run.log({"x": -1.0}, step=1)
    return root


def call(root: Path, *arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(main, [*arguments, "--root", str(root)], catch_exceptions=False, **options)


def lines_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# ── which run ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_named_by_its_id_its_name_its_project_and_id_or_its_directory(root: Path) -> None:
    words = ["base1", "hot", "demo/dup", str(root / "other" / "dup")]

    result = call(root, "export", *words, "--metric", "*", "--json")

    assert {line["run_id"] + line["project"] for line in lines_of(result)} == {
        "base1demo",
        "base2demo",
        "dupdemo",
        "dupother",
    }


def test_an_unknown_run_names_the_nearest_and_an_ambiguous_one_its_choices(root: Path) -> None:
    unknown = call(root, "compare", "base1", "baselin")
    same_id = call(root, "compare", "base1", "dup")
    same_name = call(root, "export", "twin")

    assert unknown.exit_code == same_id.exit_code == same_name.exit_code == 2
    assert "there is no run 'baselin'. The nearest: baseline" in unknown.stderr
    assert "several runs have the id 'dup'. Say which: demo/dup, other/dup." in same_id.stderr
    assert "several runs are named 'twin'. Say which: demo/dup, other/dup." in same_name.stderr


# ── compare ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_compare_shows_what_differs_and_the_last_values(root: Path) -> None:
    result = call(root, "compare", "base1", "hot", "other/dup")

    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["config", "base1", "base2", "dup"]
    assert ["lr", "1e-06", "3e-06", "–"] in rows
    assert ["optimizer.name", "adamw", "adamw", "–"] in rows
    assert ["train/loss", "0.02", "0.06", "–"] in rows
    assert ["flag", "true", "true", "–"] in rows
    assert ["x", "–", "–", "-1"] in rows


def test_settings_that_are_the_same_are_only_counted(root: Path) -> None:
    result = call(root, "compare", "base1", "base2")

    assert "seed" not in result.stdout
    assert "2 settings are the same." in result.stdout


def test_compare_draws_the_curves_that_are_asked_for(root: Path) -> None:
    result = call(root, "compare", "base1", "base2", "--metric", "train/reward", env=TERMINAL)

    text = _ESCAPES.sub("", result.stdout)
    assert "train/loss" not in text
    assert "⠤" in text or "⡠" in text
    assert "━━ base2   last 0.98" in text
    assert max(map(len, text.splitlines())) <= 80


def test_compare_for_programs_has_all_settings_and_whole_curves(root: Path) -> None:
    result = call(root, "compare", "base1", "base2", "--metric", "train/reward", "--json")

    lines = lines_of(result)
    assert {
        "part": "config",
        "key": "seed",
        "differs": False,
        "values": {"demo/base1": 1, "demo/base2": 1},
    } in lines
    assert {
        "part": "metric",
        "key": "only",
        "differs": True,
        "values": {"demo/base1": "true", "demo/base2": "false"},
    } in lines
    curves = [line for line in lines if line["part"] == "curve"]
    assert [(curve["run"], curve["step"][-1], curve["value"][-1]) for curve in curves] == [
        ("demo/base1", 49, 0.98),
        ("demo/base2", 49, 0.98),
    ]


# ── plot ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_words_that_name_no_run_are_keys(root: Path) -> None:
    result = call(root, "plot", "base1", "hot", "train/*", "--json")

    assert [(curve["key"], curve["run"]) for curve in lines_of(result)] == [
        ("train/loss", "demo/base1"),
        ("train/loss", "demo/base2"),
        ("train/reward", "demo/base1"),
        ("train/reward", "demo/base2"),
    ]


def test_a_word_that_is_neither_a_run_nor_a_key_names_the_nearest_of_both(root: Path) -> None:
    key = call(root, "plot", "base1", "train/los")
    run = call(root, "plot", "base3", "train/loss")
    metric = call(root, "plot", "base1", "--metric", "train/rewards")
    none = call(root, "plot", "base1")

    assert key.exit_code == run.exit_code == metric.exit_code == none.exit_code == 2
    assert "'train/los' is neither a run nor a metric of demo/base1. The nearest: train/loss" in key.stderr
    assert "there is no run 'base3'. The nearest: base2, base1" in run.stderr
    assert "demo/base1 logged no metric 'train/rewards'. The nearest: train/reward" in metric.stderr
    assert "which metric? There are: flag, note, only, train/loss, train/reward." in none.stderr


def test_a_plot_fits_a_terminal_and_is_in_colour(root: Path) -> None:
    result = call(root, "plot", "base1", "demo/dup", "train/loss", "--log-y", env=TERMINAL)

    assert "\x1b[36m" in result.stdout
    text = _ESCAPES.sub("", result.stdout)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[0] == "train/loss"
    assert re.search(r"^ *1000 ┤|^ *1e\+04 ┤|^ *100 ┤", text, re.MULTILINE)


def test_without_colours_runs_have_marks_of_their_own(root: Path) -> None:
    result = call(root, "plot", "base1", "base2", "train/loss", env={"COLUMNS": "80"})

    assert "* base1   last 0.02" in result.stdout
    assert "+ base2   last 0.06" in result.stdout
    assert "\x1b" not in result.stdout


def test_on_a_dumb_terminal_all_is_ascii(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "plot", "base1", "train/loss", "--root", str(root)],
        cwd=Path(__file__).parents[2],
        env={"TERM": "dumb", "PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("ascii").count("*") > 20


def test_smoothing_is_that_of_wandb(root: Path) -> None:
    import analysis
    from analysis.curves import read_curves, smoothed
    from analysis.naming import find_run

    con = analysis.connect(root)
    (curve,) = read_curves(con, [find_run(con, "base1")], ["train/reward"])

    smooth = smoothed(curve, 0.5)

    # 0 / 1, then (0.25 · 0 + 0.5 · 0.02) / 0.75, …
    assert smooth.values[:3] == pytest.approx([0.0, 0.5 * 0.02 / 0.75, (0.25 * 0.02 + 0.5 * 0.04) / 0.875])


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_goes_into_a_file(root: Path, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"curves{suffix}"

    result = call(
        root, "plot", "base1", "base2", "train/*", "--smooth", "0.9", "--x", "time", "-o", str(file)
    )

    assert (result.exit_code, result.output) == (0, "")
    assert file.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_another_kind_of_picture_is_wrong_usage_and_a_missing_library_is_said(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')")
    command = [sys.executable, "-m", "analysis", "plot", "base1", "train/loss", "-o", str(tmp_path / "a.png")]

    kind = call(root, "plot", "base1", "train/loss", "-o", "a.gif")
    missing = subprocess.run(
        [*command, "--root", str(root)],
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert kind.exit_code == 2
    assert "ends in .png or .svg" in kind.stderr
    assert missing.returncode == 1
    assert "'matplotlib' is not installed" in missing.stderr
    assert not (tmp_path / "a.png").exists()


def test_what_cannot_be_drawn_is_counted(root: Path) -> None:
    plain = call(root, "plot", "other/dup", "x")
    log = call(root, "plot", "other/dup", "x", "--log-y")
    text = call(root, "plot", "base1", "note")

    assert plain.exit_code == log.exit_code == 0
    assert "x: 1 value is not drawn: NaN or infinite." in plain.stderr
    assert "x: 2 values are not drawn: not above zero, NaN or infinite." in log.stderr
    assert text.exit_code == 2
    assert "'note' has no numbers to draw." in text.stderr


def test_damage_is_said_with_how_much_it_is(tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="hurt", root=tmp_path, quiet=True) as run:
        for step in range(4):
            run.log({"x": step + 0.5}, step=step)
    (segment,) = (tmp_path / "demo" / "hurt" / "main-0001").glob("events-*.jsonl")
    segment.write_bytes(segment.read_bytes().replace(b'"x":1.5', b'"x:1.5}'))

    result = call(tmp_path, "plot", "hurt", "x")

    assert result.exit_code == 0
    assert "demo/hurt: 1 damaged record is left out. `eventlog verify demo/hurt` says where." in result.stderr


# ── export ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_export_has_one_row_for_each_step_and_a_column_for_each_metric(root: Path) -> None:
    result = call(root, "export", "base1", "other/dup")

    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 51 + 2
    assert rows[1]["train/loss"] == "0.5"
    assert (rows[50]["flag"], rows[50]["note"], rows[50]["train/loss"]) == ("true", "end", "")
    assert (rows[51]["project"], rows[51]["n"], rows[51]["x"]) == ("other", str(2**60), "nan")


def test_an_exported_parquet_file_has_numbers_as_numbers(root: Path, tmp_path: Path) -> None:
    wide, long = tmp_path / "wide.parquet", tmp_path / "long.parquet"

    first = call(root, "export", "base1", "other/dup", "-o", str(wide))
    second = call(root, "export", "base1", "--long", "--metric", "train/loss", "-o", str(long))

    assert (first.exit_code, second.exit_code, first.output + second.output) == (0, 0, "")
    types = {row[0]: row[1] for row in duckdb.sql(f"DESCRIBE FROM '{wide}'").fetchall()}
    assert [types[name] for name in ("step", "train/loss", "n", "note", "flag")] == [
        "BIGINT",
        "DOUBLE",
        "BIGINT",
        "VARCHAR",
        "VARCHAR",
    ]
    assert duckdb.sql(f"SELECT count(*), min(step), max(key) FROM '{long}'").fetchall() == [
        (50, 0, "train/loss")
    ]


def test_of_several_values_at_one_step_the_last_one_logged_counts(tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="again", root=tmp_path, quiet=True) as run:
        run.log({"x": 1, "y": 1}, step=0)
        run.log({"x": 2}, step=0)

    wide = call(tmp_path, "export", "again")
    long = call(tmp_path, "export", "again", "--long", "--json")

    (row,) = csv.DictReader(io.StringIO(wide.stdout))
    assert (row["x"], row["y"]) == ("2", "1")
    assert [line["value"] for line in lines_of(long)] == [1, 1, 2]


def test_any_key_is_a_column_of_its_own(tmp_path: Path) -> None:
    named = {"step": 7, "time": 1.5, "project": "p", "run_id": True, "": "e", '"': 2}
    with eventlog.init(project="demo", id="odd", root=tmp_path, quiet=True) as run:
        for step in range(2):
            run.log({"Loss": step, "loss": step * 10, **named})
    keys = ["''", '"', "Loss", "loss", "project", "run_id", "step", "time"]

    header, *rows = csv.reader(io.StringIO(call(tmp_path, "export", "odd").stdout))
    first, second = lines_of(call(tmp_path, "export", "odd", "--json"))
    history = analysis.history(analysis.connect(tmp_path), "odd").fetchall()

    assert header == [
        "project",
        "run_id",
        "step",
        "time",
        "''",
        '"',
        "Loss",
        "loss",
        *(f"{key}_1" for key in keys[4:]),
    ]
    assert [row[4:] for row in rows] == [
        ["e", "2", "0", "0", "p", "true", "7", "1.5"],
        ["e", "2", "1", "10", "p", "true", "7", "1.5"],
    ]
    assert [(row["Loss"], row["loss"], row["step"], row["step_1"]) for row in (first, second)] == [
        (0, 0, 0, 7),
        (1, 10, 1, 7),
    ]
    assert history[1] == ("demo", 1, "e", 2.0, 1.0, 10.0, "p", 1.0, 7.0, 1.5)
