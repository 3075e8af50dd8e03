"""A log answers every question alike, sealed or not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import analysis
import eventlog
from eventlog.reader import find_runs
from eventlog.seal import clean, seal
from tests.analysis.test_connect import VIEWS, ask


def log_everything(root: Path) -> None:
    with eventlog.init(
        project="demo", id="all", root=root, quiet=True, config={"lr": 0.1, "n": {"a": 1}}
    ) as run:
        for step in range(100):
            run.log({"loss": 1 / (step + 1), "n": step, "text": f"t{step}"}, step=step)
            if step % 7 == 0:
                run.log({"eval": {"acc": step / 100, "deep": {"er": step}}, "loss": math.nan}, step=step)
        run.log(
            {"odd": [1, math.inf, {"a": None}], "big": 2**70, "u64": 2**63, "yes": True, "none": None},
            step=100,
        )
        run.log({"bytes": b"\xff", "minus": -math.inf, "zero": -0.0, "empty": {}}, step=101)
        run.log({}, step=102)
        run.log({"late": 1}, step=3)
        run.summary["best"] = 0.5
        run.log_trajectory(
            eventlog.Trajectory(
                [
                    eventlog.Turn("user", "hi"),
                    eventlog.Turn("assistant", "", [eventlog.ToolCall("add", {"a": [1, None]}, "c1", "3")]),
                ],
                reward=0.5,
                token_ids=[1, 2, 3],
                mask=[0, 1, 1],
                logprobs=[-0.5, -1.5],
                metrics={"m": 1.0},
                info={"why": None},
            ),
            step=3,
        )
        run.log_trajectory(eventlog.Trajectory([], reward=math.nan, info={"x": 1}), step=4)
    with eventlog.init(project="demo", id="all", root=root, quiet=True, resume="must") as run:
        run.log({"loss": 0.25})


def answers(root: Path, verify: bool = False) -> dict[str, Any]:
    con = analysis.connect(root, verify=verify)
    found: dict[str, Any] = {}
    for view in VIEWS:
        rows = con.execute(f"SELECT * FROM {view} ORDER BY ALL").fetchall()
        found[view] = sorted(repr([_plain(cell) for cell in row]) for row in rows)
    found["curve"] = repr(ask(con, "FROM curve('all', 'loss')"))
    return found


def _plain(cell: Any) -> Any:
    """JSON as what it says: the order of what DuckDB puts together is its own."""
    if isinstance(cell, str) and cell[:1] in "{[":
        try:
            return json.dumps(json.loads(cell), sort_keys=True)
        except ValueError:
            return cell
    return cell


def seal_all(root: Path, removes: bool = True) -> None:
    for run_dir in find_runs(root):
        assert seal(run_dir).damage == []
        if removes:
            assert all(verdict.kept_because is None for verdict in clean(run_dir))


@pytest.mark.parametrize("removes", [False, True])
def test_every_view_says_the_same_of_a_sealed_log(tmp_path: Path, removes: bool) -> None:
    log_everything(tmp_path)
    before = answers(tmp_path)

    seal_all(tmp_path, removes)

    after = answers(tmp_path)
    for view in before:
        assert after[view] == before[view], view
    assert bool(list(tmp_path.rglob("*.jsonl"))) is not removes
    assert len(list(tmp_path.rglob("events-*.parquet"))) == 2


@pytest.mark.parametrize("is_sealed", [False, True])
def test_every_view_goes_to_pandas_polars_and_arrow(tmp_path: Path, is_sealed: bool) -> None:
    log_everything(tmp_path)
    if is_sealed:
        seal_all(tmp_path)
    con = analysis.connect(tmp_path)

    for view in VIEWS:
        asked = con.sql(f"FROM {view}")
        rows, columns = len(asked.fetchall()), asked.columns
        frame, other, table = asked.df(), asked.pl(), asked.to_arrow_table()
        assert (list(frame.columns), other.columns, table.column_names) == (columns,) * 3, view
        assert (len(frame), other.height, table.num_rows) == (rows,) * 3, view
    (value,) = con.sql("SELECT value FROM metrics WHERE key = 'n' AND step = 7").pl()["value"]
    assert value == 7.0
