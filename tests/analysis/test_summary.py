"""`summary` is what `syncd` tells W&B: two rooms that never meet apply one rule to the same log.

Two differences are left out of the logs here. What is set on `run.summary` while a row is open counts in log order, and not
when the row closes; and one `summary` record never names both a key and something below it (no writer writes such).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from eventlog.piece import claim_primary
from eventlog.reader import read
from eventlog.record import encode
from syncd.fold import Bases, Fold
from tests.logs import TIME_US, HandmadePiece, handmade_run

VALUES = st.recursive(
    st.none() | st.integers(0, 5) | st.just(float("nan")) | st.just("text"),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=3,
)
ROWS = st.dictionaries(st.sampled_from(["a", "b", "a.b"]), VALUES, max_size=3)
PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3)
STEPS = st.integers(0, 6)
RESUME = st.tuples(st.just("resume"))
# Each call is (name, *arguments).
LOGS = st.lists(st.tuples(st.just("log"), STEPS, st.booleans(), ROWS) | RESUME, max_size=8) | st.lists(
    st.tuples(st.just("log"), STEPS, st.just(True), ROWS)
    | st.tuples(st.just("set"), PATHS, st.integers(0, 5) | st.just("text"))
    | st.tuples(st.just("delete"), PATHS)
    | RESUME,
    max_size=8,
)


@pytest.fixture(scope="module")
def connected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, duckdb.DuckDBPyConnection]:
    root = tmp_path_factory.mktemp("root")
    return root, analysis.connect(root)


@settings(max_examples=30)
@given(calls=LOGS)
def test_the_summary_is_the_one_that_wandb_gets(
    connected: tuple[Path, duckdb.DuckDBPyConnection], calls: list[tuple[Any, ...]]
) -> None:
    root, con = connected
    shutil.rmtree(root / "demo", ignore_errors=True)
    run = written(root, calls)
    fold = Fold(Bases())
    for record in read(run.piece.dir.parent):
        fold.feed(record)
    fold.end_piece()

    analysis.refresh(con)
    rows = con.execute(
        "SELECT key, coalesce(text, value) FROM (SELECT key, text, value::VARCHAR AS value FROM summary)"
    )

    expected = [(key, shown(value)) for key, value in leaves(fold.summary()) if not key.startswith("_")]
    assert sorted(rows.fetchall()) == sorted(expected)
    run.die()


def written(root: Path, calls: list[tuple[Any, ...]]) -> HandmadePiece:
    run = handmade_run(root)
    step, row_is_open = 0, False
    for name, *arguments in calls:
        if name == "log":
            at, commit, data = arguments
            run.log(step=at, commit=commit, **data)
            if at >= step:
                step, row_is_open = (at + 1, False) if commit else (at, True)
        elif name == "set":
            run.log("summary", set=[arguments], delete=[])
        elif name == "delete":
            run.log("summary", set=[], delete=arguments)
        else:
            run.die()
            step, row_is_open = step + row_is_open, False
            run = HandmadePiece(run.identity, claim_primary(run.piece.dir.parent), seq=1)
            run.new_segment(first_seq=0)
            run.append(encode(0, TIME_US, "start", {"config": {}, "step": step}))
    return run


def leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


def shown(value: Any) -> str:
    return value if isinstance(value, str) else str(float(value))
