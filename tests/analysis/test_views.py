"""The views over what is beside metrics and trajectories, on what `eventlog` itself wrote: sealed, live, and some of both."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

import analysis
import eventlog
from eventlog.piece import claim_secondary
from eventlog.reader import find_runs, read
from eventlog.seal import clean, seal
from tests.analysis.test_connect import ask
from tests.logs import HandmadePiece, handmade_run, resumed

VIEWS = ["rollup", "system", "alerts", "checkpoints", "console", "files"]


def seal_all(root: Path, removes: bool) -> None:
    for run_dir in find_runs(root):
        assert seal(run_dir).damage == []
        if removes:
            clean(run_dir)


def answers(con: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    found = {}
    for view in VIEWS:
        rows = con.execute(f"SELECT * FROM {view}").fetchall()
        found[view] = sorted(repr([_rounded(cell) for cell in row]) for row in rows)
    return found


def _rounded(cell: Any) -> Any:
    """A sum that was made in another order differs in its last digit."""
    return float(f"{cell:.14g}") if isinstance(cell, float) else cell


def log_everything(root: Path, files: Path) -> None:
    def write(name: str, content: str) -> str:
        (files / name).write_text(content)
        return str(files / name)

    settings = eventlog.Settings(console="wrap", x_disable_stats=False, x_stats_sampling_interval=0.1)
    with eventlog.init(project="demo", id="all", root=root, quiet=True, settings=settings) as run:
        run.alert("before any step", "…", wait_duration=5)
        for step in range(80):
            run.log(
                {
                    "loss": 1 / (step + 1),
                    "n": step % 7,
                    "mixed": step if step % 2 else step / 3,
                    "t": f"{step}",
                }
            )
            if step % 9 == 0:
                run.log({"loss": math.inf, "eval": {"acc": 0.5}, "yes": True, "big": 2**64, "ключ": -step})
        run.log({"only_nan": math.nan})
        run.alert("späth", "two\nlines", level="ERROR")
        print("one\n\nthree\r", end="")
        print("wörld")
        sys.stderr.write("no newline")
        run.save(write("a.txt", "old"), base_path=files, policy="now")
        run.save(write("a.txt", "newer"), base_path=files, policy="now")
        artifact = eventlog.Artifact("model", "model", description="d", metadata={"layers": 2})
        artifact.add_file(write("weights", "w"))
        run.log_artifact(artifact, aliases=["best"], tags=["small"])
        while "system" not in {record.kind for record in read(root / "demo" / "all")}:
            time.sleep(0.01)
    with eventlog.init(
        project="demo", id="all", root=root, quiet=True, resume="must", settings=settings
    ) as run:
        run.log({"loss": -1.0, "n": 3})


@pytest.mark.parametrize("removes", [False, True])
def test_every_view_says_the_same_of_a_sealed_log(tmp_path: Path, removes: bool) -> None:
    (tmp_path / "files").mkdir()
    log_everything(tmp_path / "root", tmp_path / "files")
    live = analysis.connect(tmp_path / "root")
    before = answers(live)

    seal_all(tmp_path / "root", removes)

    for verify in (False, True):
        after = answers(analysis.connect(tmp_path / "root", verify=verify))
        for view in VIEWS:
            assert after[view] == before[view], view
    assert all(before[view] for view in VIEWS if view != "checkpoints")
    analysis.refresh(live)
    assert answers(live) == before


def test_the_views_have_the_same_columns_whatever_there_is(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    none = analysis.connect(tmp_path / "none")
    log_everything(tmp_path / "root", tmp_path / "files")
    some = analysis.connect(tmp_path / "root")
    described = [(ask(none, f"DESCRIBE {view}"), ask(some, f"DESCRIBE {view}")) for view in VIEWS]
    seal_all(tmp_path / "root", removes=True)
    analysis.refresh(some)

    for view, (without, live) in zip(VIEWS, described, strict=True):
        assert without == live == ask(some, f"DESCRIBE {view}")
        assert ask(none, f"SELECT * FROM {view}") == []


def three_runs(root: Path) -> None:
    """Log one row of each view in each of the runs a, b and c."""
    for run_id in ("a", "b", "c"):
        run = handmade_run(root, run_id)
        run.log(step=0, x=1)
        run.log("system", cpu=1.0)
        run.log("alert", title="t")
        run.log("checkpoint", step=None)
        for stream, kind in (("console", "console"), ("files", "file")):
            HandmadePiece(run.identity, run.piece, stream=stream).log(kind, text="x", path="p", sha256="s")
        run.die()


OF_B = ["{view} WHERE run_id = 'b'", "{view}_of(['b'])", "{view}_of(['nobody', 'b'])"]


@pytest.mark.parametrize("of_b", OF_B)
@pytest.mark.parametrize("view", VIEWS)
def test_of_one_run_no_other_is_read(tmp_path: Path, view: str, of_b: str) -> None:
    three_runs(tmp_path)
    con = analysis.connect(tmp_path)
    for file in [f for run_id in ("a", "c") for f in (tmp_path / "demo" / run_id).rglob("*.jsonl")]:
        os.truncate(file, 200 * 1024 * 1024)

    rows = ask(con, f"SELECT * FROM {of_b.format(view=view)}")

    assert len(rows) == 1
    with pytest.raises(duckdb.Error, match="maximum_object_size"):
        ask(con, f"SELECT * FROM {view}")


@pytest.mark.parametrize("of_b", OF_B)
@pytest.mark.parametrize("view", VIEWS)
def test_of_one_sealed_run_no_other_is_read(tmp_path: Path, view: str, of_b: str) -> None:
    three_runs(tmp_path)
    seal_all(tmp_path, removes=True)
    con = analysis.connect(tmp_path)
    for file in (tmp_path / "demo" / "c" / "main-0001").rglob("*-*"):
        file.write_bytes(b"x" * 1000)

    rows = ask(con, f"SELECT * FROM {of_b.format(view=view)}")

    assert len(rows) == 1


# -- rollup ---------------------------------------------------------------------------------------------------

COLUMNS = "n, sum, mean, min, min_step, max, max_step, last, last_step, last_seq"


def in_plain_python(logged: list[tuple[int, int, Any]]) -> tuple[Any, ...]:
    """Return a rollup's columns of (seq, step, value)."""
    numbers = [
        (seq, step, float(value))
        for seq, step, value in logged
        if type(value) is float or (type(value) is int and -(2**63) <= value < 2**63)
    ]
    finite = [(value, step) for _, step, value in numbers if math.isfinite(value)]
    total = math.fsum(value for value, _ in finite)
    low = min(finite, key=lambda each: each[0], default=(None, None))
    high = max(finite, key=lambda each: each[0], default=(None, None))
    last = numbers[-1]
    return (
        len(finite),
        total,
        total / len(finite) if finite else None,
        *low,
        *high,
        last[2],
        last[1],
        last[0],
    )


VALUES = [3.0, -1, math.nan, 2.5, True, "text", 2**70, -1.0, 9, math.inf, [1], 9.0, None, {"inner": 100}]


def test_a_rollup_is_what_plain_python_says_of_the_numbers(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    for step, value in enumerate(VALUES):
        run.log(step=step, x=value)
    con = analysis.connect(tmp_path)

    rows = ask(con, f"SELECT {COLUMNS} FROM rollup WHERE key = 'x'")

    assert rows == [in_plain_python([(step + 1, step, value) for step, value in enumerate(VALUES)])]


@pytest.mark.parametrize("which", ["live", "sealed", "mixed", "without a brief", "with a torn brief"])
def test_a_rollup_is_exact_whatever_is_sealed(tmp_path: Path, which: str) -> None:
    run = handmade_run(tmp_path)
    logged = []
    for step in range(90):
        if step % 30 == 29:
            run.new_segment()
        value = [step / 7, -step, math.nan, "t"][step % 4] if step % 5 else 2**step
        logged.append((run.seq, step, value))
        run.log(step=step, x=value)
    if which != "mixed":
        run.die()
    if which != "live":
        assert seal(run.piece.dir.parent).sealed
        clean(run.piece.dir.parent)
    for brief in run.piece.dir.glob("*.json"):
        if which == "without a brief":
            brief.unlink()
        elif which == "with a torn brief":
            os.truncate(brief, 200)
    con = analysis.connect(tmp_path)

    ((total, mean, *others),) = con.execute(
        "SELECT sum, mean, n, min, min_step, max, max_step, last, last_step, last_seq FROM rollup"
    ).fetchall()

    n, expected_total, expected_mean, *expected = in_plain_python(logged)
    assert others == [n, *expected]
    assert total == pytest.approx(expected_total, rel=1e-14)
    assert mean == pytest.approx(expected_mean, rel=1e-14)
    assert bool(list(tmp_path.rglob("*.parquet"))) is (which != "live")


def test_a_rollup_counts_records_that_were_written_twice_once(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    for step in range(4):
        run.log(step=step, x=step)
    run.new_segment(first_seq=2)
    run.append(b"".join(run.lines[2:]))
    run.log(step=4, x=4)
    run.die()
    before = ask(analysis.connect(tmp_path), f"SELECT {COLUMNS} FROM rollup")
    seal_all(tmp_path, removes=True)

    after = ask(analysis.connect(tmp_path), f"SELECT {COLUMNS} FROM rollup")

    assert after == before == [in_plain_python([(step + 1, step, step) for step in range(5)])]


def test_a_rollup_is_read_from_the_brief_alone(tmp_path: Path) -> None:
    for run_id in ("a", "b"):
        run = handmade_run(tmp_path, run_id)
        run.log(step=0, x=1)
        run.die()
    seal_all(tmp_path, removes=True)
    con = analysis.connect(tmp_path)
    for file in (tmp_path / "demo").rglob("*.parquet"):
        os.truncate(file, 0)

    assert ask(con, "SELECT run_id, n FROM rollup ORDER BY ALL") == [("a", 1), ("b", 1)]


def test_a_rollup_tells_writers_and_pieces_apart(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=0, x=1)
    HandmadePiece(run.identity, claim_secondary(run.piece.dir.parent, "rank3")).log(step=0, x=2)
    run.die()
    resumed(run.identity, tmp_path).log(step=1, x=3)
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT rank, max FROM rollup ORDER BY writer")

    assert rows == [(0, 1.0), (0, 3.0), (3, 2.0)]


def test_five_thousand_keys_have_a_rollup_each(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log(step=0, **{f"层/{n}": n for n in range(5000)})
    run.die()
    live = ask(analysis.connect(tmp_path), "SELECT count(*), sum(max), min(key) FROM rollup")
    seal_all(tmp_path, removes=True)

    sealed = ask(analysis.connect(tmp_path), "SELECT count(*), sum(max), min(key) FROM rollup")

    assert sealed == live == [(5000, 12497500.0, "层/0")]


# -- the others -----------------------------------------------------------------------------------------------


def test_a_sample_of_the_system_is_a_row_for_each_number(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log("system", **{"cpu": 12.5, "gpu.0.gpu": 90, "odd": math.nan})
    run.log(cpu=1)
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT run_id, rank, seq, key, value FROM system ORDER BY key")

    assert repr(rows) == repr(
        [("run", 0, 1, "cpu", 12.5), ("run", 0, 1, "gpu.0.gpu", 90.0), ("run", 0, 1, "odd", math.nan)]
    )


def test_an_alert_says_at_which_step_it_came(tmp_path: Path) -> None:
    with eventlog.init(project="demo", id="loud", root=tmp_path, quiet=True) as run:
        run.alert("early", "nothing yet")
        run.log({"x": 1}, step=4)
        run.log({"x": 1}, step=2)
        run.alert("loss", "it is NaN\n…", level="ERROR", wait_duration=30)
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT step, level, title, text, wait_s FROM alerts ORDER BY seq")

    assert rows == [
        (None, "INFO", "early", "nothing yet", 60.0),
        (4, "ERROR", "loss", "it is NaN\n…", 30.0),
    ]


def test_a_checkpoint_is_what_its_record_says(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    run.log("checkpoint", path="checkpoints/7", size=3)
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT run_id, seq, step, path, data FROM checkpoints")

    assert rows == [("run", 1, None, "checkpoints/7", '{"path":"checkpoints/7","size":3}')]


def test_the_console_is_lines(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    console = HandmadePiece(run.identity, run.piece, stream="console")
    for source, text in (("stdout", "a\n\n\x1b[1mb\rc\n"), ("stderr", "half"), ("stderr", " done\n")):
        console.log("console", source=source, text=text)
    console.log("console", source="stdout", text=7)
    console.log("console", source="stdout")
    con = analysis.connect(tmp_path)

    rows = ask(con, "SELECT seq, line, source, text FROM console ORDER BY seq, line")

    assert rows == [
        (0, 0, "stdout", "a"),
        (0, 1, "stdout", ""),
        (0, 2, "stdout", "\x1b[1mb\rc"),
        (1, 0, "stderr", "half"),
        (2, 0, "stderr", " done"),
        (3, 0, "stdout", "7"),
    ]


def test_files_say_where_their_content_is(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    log_everything(tmp_path / "root", tmp_path / "files")
    con = analysis.connect(tmp_path / "root")

    of_a = ask(con, "SELECT name, size, content FROM files WHERE name = 'a.txt' ORDER BY seq")
    artifact = ask(
        con,
        "SELECT type, description, metadata, aliases, tags, step, content FROM files WHERE kind = 'artifact'",
    )

    assert [(name, size, Path(content).read_text()) for name, size, content in of_a] == [
        ("a.txt", 3, "old"),
        ("a.txt", 5, "newer"),
    ]
    ((*said, manifest),) = artifact
    assert said == ["model", "d", '{"layers":2}', ["best", "latest"], ["small"], 90]
    assert json.loads(Path(manifest).read_text())["weights"]["sha256"] == hashlib.sha256(b"w").hexdigest()


def test_records_have_the_files_too(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    log_everything(tmp_path / "root", tmp_path / "files")
    con = analysis.connect(tmp_path / "root")

    streams = ask(con, "SELECT DISTINCT stream FROM records ORDER BY ALL")

    assert streams == ["console", "events", "files"]


def test_damage_costs_no_other_record_of_any_view(tmp_path: Path) -> None:
    run = handmade_run(tmp_path)
    for step in range(3):
        run.log(step=step, x=step)
        run.log("alert", title=f"{step}")
    run.overwrite(run.offset_of(3), b"\0" * (len(run.lines[3]) - 1))
    run.overwrite(run.offset_of(4), b"#" * (len(run.lines[4]) - 1))
    con = analysis.connect(tmp_path)

    assert ask(con, "SELECT title, step FROM alerts ORDER BY seq") == [("0", 0), ("2", 2)]
    assert ask(con, "SELECT n, sum FROM rollup") == [(2, 2.0)]
