"""The tracker for Accelerate, with a real Accelerator."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.piece import primaries
from tests.integrations.tb import records_of, rows_of

if find_spec("accelerate") is None or find_spec("torch") is None:
    pytest.skip("accelerate and torch cannot be installed here", allow_module_level=True)


def tracker(tmp_path: Path, **options: Any) -> Any:
    from eventlog.integrations.accelerate import EventlogTracker

    return EventlogTracker("demo", **{"root": tmp_path, "id": "r", "quiet": True, **options})


def accelerator(log_with: Any) -> Any:
    from accelerate import Accelerator

    return Accelerator(log_with=log_with, cpu=True)


def test_a_training_is_a_run(tmp_path: Path):
    import numpy as np
    import torch

    made = accelerator(tracker(tmp_path))
    made.init_trackers("not told to a tracker that is made by the user", config={"lr": 0.25})
    model = torch.nn.Linear(2, 1)
    model, optimizer = made.prepare(model, torch.optim.SGD(model.parameters(), lr=0.25))
    for step in range(3):
        loss = model(torch.ones(4, 2)).pow(2).mean()
        made.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        made.log({"loss": loss.detach()}, step=step)
    found = made.get_tracker("eventlog")
    found.log_images({"samples": [np.zeros((2, 3, 3), dtype=np.uint8)] * 2}, step=3)
    found.log_table("table", columns=["x"], data=[[1]], step=3)
    made.get_tracker("eventlog", unwrap=True).summary["best"] = 1
    made.end_training()

    rows = rows_of(tmp_path / "demo/r")
    assert [step for step, _ in rows] == [0, 1, 2, 3, 3]
    assert rows[2][1]["loss"] < rows[0][1]["loss"]
    assert rows[3][1]["samples"]["_type"] == "images/separated"
    assert rows[4][1]["table"]["_type"] == "table-file"
    assert [record.data for record in records_of(tmp_path / "demo/r", "config")] == [{"lr": 0.25}]
    assert [record.data for record in records_of(tmp_path / "demo/r", "exit")] == [{"exitcode": 0}]


def test_options_of_log_reach_the_run(tmp_path: Path):
    made = accelerator(tracker(tmp_path))
    made.init_trackers("demo")

    made.log({"a": 1}, step=5, log_kwargs={"eventlog": {"commit": True}})
    made.end_training()

    (row,) = records_of(tmp_path / "demo/r", "metrics")
    assert (row.step, row.commit) == (5, True)


def test_a_run_of_the_users_own_is_used_and_not_finished(tmp_path: Path):
    with eventlog.init(project="mine", id="own", root=tmp_path, quiet=True) as run:
        made = accelerator(tracker(tmp_path))
        made.init_trackers("demo")
        made.log({"loss": 1.0})
        made.end_training()
        run.log({"after": 1})

    assert not (tmp_path / "demo").exists()
    assert [row for _, row in rows_of(run.dir)] == [{"loss": 1.0}, {"after": 1}]


def test_what_is_logged_after_the_end_continues_the_run(tmp_path: Path):
    made = accelerator(tracker(tmp_path))
    made.init_trackers("demo")
    made.log({"loss": 1.0})
    made.end_training()
    made.log({"late": 1.0})
    made.end_training()

    assert primaries(tmp_path / "demo/r") == ["main-0001", "main-0002"]
    assert [step for step, _ in rows_of(tmp_path / "demo/r")] == [0, 1]


def test_a_registered_tracker_is_told_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from accelerate import tracking

    if not hasattr(tracking, "register_tracker_class"):
        pytest.skip("this version of Accelerate registers no trackers")
    from eventlog.integrations.accelerate import EventlogTracker

    monkeypatch.setattr(tracking, "LOGGER_TYPE_TO_CLASS", dict(tracking.LOGGER_TYPE_TO_CLASS))
    tracking.register_tracker_class(EventlogTracker)
    made = accelerator("eventlog")
    monkeypatch.setattr("accelerate.accelerator.LOGGER_TYPE_TO_CLASS", tracking.LOGGER_TYPE_TO_CLASS)

    made.init_trackers("told", init_kwargs={"eventlog": {"root": tmp_path, "id": "r", "quiet": True}})
    made.log({"loss": 1.0})
    made.end_training()

    assert len(rows_of(tmp_path / "told/r")) == 1


def test_other_processes_log_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from accelerate import DistributedType, PartialState

    made = accelerator(tracker(tmp_path))
    of_rank_1 = {"process_index": 1, "num_processes": 2, "distributed_type": DistributedType.MULTI_CPU}
    for name, value in of_rank_1.items():
        monkeypatch.setitem(PartialState._shared_state, name, value)

    made.init_trackers("demo", config={"lr": 1})
    made.log({"loss": 1.0})
    made.end_training()
    tracker(tmp_path).log({"loss": 1.0})

    assert list(tmp_path.iterdir()) == []
