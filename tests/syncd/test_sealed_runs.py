"""A run that is sealed, and whose log is removed, is uploaded like any other: the same lines, each once."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import eventlog
from eventlog import cursor as cursors
from eventlog import writer
from eventlog.seal import Verdict, clean, seal
from eventlog.sealed import records_of, table_of
from syncd.daemon import Daemon
from syncd.fold import Bases, Fold
from tests.eventlog.test_record import rows
from tests.eventlog.test_sealed import recorded
from tests.logs import resumed
from tests.syncd.syncing import finished_run, sync, sync_while, xs
from tests.wandb_server import WandbServer, wait_for
from tests.wandb_server.store import StoredRun


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer(entity="ent") as running:
        yield running


def sealed_and_gone(run_dir: Path) -> None:
    assert seal(run_dir).damage == []
    assert {verdict.kept_because for verdict in clean(run_dir)} == {None}
    assert not list(run_dir.glob("*/*.jsonl"))


def held(run: StoredRun) -> dict[str, Any]:
    """All that the server has of a run."""
    return {
        "history": run.history_lines,
        "events": run.events_lines,
        "console": run.console_lines,
        "summary": run.summary_text,
        "files": run.files,
        "exit": run.exitcode,
    }


def test_what_was_sealed_before_it_was_ever_sent_arrives_as_it_would_have_otherwise(
    server: WandbServer, tmp_path: Path
):
    with eventlog.init(project="p", id="r", root=tmp_path / "runs", quiet=True, config={"lr": 0.1}) as run:
        run.define_metric("eval/*", step_metric="n")
        for i in range(30):
            print("step", i)
            run.log(
                {"loss": 1 / (i + 1), "eval/acc": i, "n": 2 * i, "odd": math.nan if i % 3 else "text"}, step=i
            )
        run.summary["best"] = 1
        run.save(__file__, base_path=str(Path(__file__).parent))
    shutil.copytree(tmp_path / "runs", tmp_path / "sealed")
    sealed_and_gone(tmp_path / "sealed" / "p" / "r")

    sync(server, tmp_path / "runs")
    with WandbServer(entity="ent") as other:
        sync(other, tmp_path / "sealed")

        assert held(other.run("ent", "p", "r")) == held(server.run("ent", "p", "r"))
        assert other.violations == []


def test_a_lost_cursor_is_found_again_from_what_is_sealed(server: WandbServer, tmp_path: Path):
    # faults: 47
    piece = finished_run(tmp_path, rows=40)
    run_dir = piece.piece.dir.parent
    sync(server, tmp_path)
    sealed_and_gone(run_dir)
    later = resumed(piece.identity, tmp_path, step=40)
    later.log(step=40, x=40)
    later.log("exit", exitcode=0)
    later.die()
    for cursor in list(cursors.cursors(run_dir)):
        cursors.forget(run_dir, cursor.sink)

    sync(server, tmp_path)

    (run,) = server.runs()
    assert xs(run) == list(range(41))
    assert (run.replayed_lines, server.violations) == (0, [])


def test_another_destination_gets_all_of_a_run_whose_log_is_gone(server: WandbServer, tmp_path: Path):
    piece = finished_run(tmp_path, rows=40)
    sync(server, tmp_path)
    sealed_and_gone(piece.piece.dir.parent)

    with WandbServer(entity="ent") as other:
        sync(other, tmp_path)

        assert xs(other.runs()[0]) == list(range(40))


def test_what_is_acknowledged_is_sealed_and_removed_while_the_run_goes_on(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer, "ROTATE_BYTES", 2048)
    live = eventlog.init(project="demo", id="live", root=tmp_path, quiet=True)
    removed: list[Verdict] = []

    def play(daemon: Daemon) -> None:
        for i in range(200):
            live.log({"x": i})
            if i % 20 == 19:
                # The row before is closed by the next one.
                wait_for(lambda least=i: [r for r in server.runs() if len(r.history) >= least], f"row {i}")
                seal(live.dir)
                removed.extend(verdict for verdict in clean(live.dir) if verdict.kept_because is None)
        live.finish()
        wait_for(lambda: server.run("ent", "demo", "live").exitcode == 0, "the end")

    sync_while(server, tmp_path, play)

    assert xs(server.run("ent", "demo", "live")) == list(range(200))
    assert len(removed) >= 5
    assert server.violations == []


@given(
    things=st.lists(
        st.tuples(
            st.sampled_from(["metrics", "metrics", "config", "system"]),
            rows,
            st.integers(0, 9),
            st.booleans(),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_the_lines_of_what_is_sealed_are_those_of_what_was_logged(things):
    records = recorded([("start", {"config": {}}, None, False), *things])
    logged, sealed = Fold(Bases()), Fold(Bases())

    lines = [logged.feed(record) for record in records]
    sealed_lines = [sealed.feed(record) for record in records_of(table_of(records, "events"), "events")]

    assert sealed_lines == lines
    assert (sealed.end_piece(), sealed.summary_text()) == (logged.end_piece(), logged.summary_text())
