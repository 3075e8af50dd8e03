"""`run.watch`: histograms of a model, as W&B's client logs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eventlog
from tests.wandb_server import WandbServer

torch = pytest.importorskip("torch")
PROJECT = Path(__file__).parents[2]

# Of each kind of tensor one; the model is the same in any process.
SCRIPT = """
import torch
torch.manual_seed(0)
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        self.words = torch.nn.Embedding(10, 4, sparse=True)
        self.constant = torch.nn.Parameter(torch.full((3,), 0.5))
        self.frozen = torch.nn.Parameter(torch.arange(5.0), requires_grad=False)
        self.wide = torch.nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))
        self.infinite = torch.nn.Parameter(torch.tensor([1.0, float("inf"), float("nan"), 3.0]))
    def forward(self, ids):
        grown = self.words(ids).mean(dim=1) * self.constant.sum() * self.wide.pow(2).sum().float()
        return self.layers(grown) + 0 * self.infinite[0]
model = Model()
run = wandb.init(project="p", id="r")
wandb.watch(model, log="all", log_freq=2)
second = torch.nn.Linear(3, 1)
run.watch(second, log="gradients", log_freq=1)
for step in range(5):
    loss = model(torch.arange(6).reshape(2, 3)).pow(2).mean() + second(torch.ones(1, 3)).sum()
    loss.backward()
    run.log({"loss": loss.item()})
    if step == 3:
        run.unwatch(second)
run.unwatch()
model(torch.arange(6).reshape(2, 3)).sum().backward()
run.log({"end": 1})
run.finish()
"""


def begin(root: Path) -> eventlog.Run:
    return eventlog.init(project="demo", id="run", root=root, quiet=True)


def rows(run: eventlog.Run) -> list[tuple[int | None, dict[str, Any]]]:
    return [(record.step, record.data) for record in eventlog.read(run.dir) if record.kind == "metrics"]


def step_of(model: Any) -> None:
    model(torch.ones(1, 2)).sum().backward()


@pytest.mark.slow
def test_histograms_are_those_of_wandbs_client(tmp_path: Path):
    with WandbServer() as server:
        env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        env |= server.env(tmp_path) | {"PYTHONPATH": str(PROJECT), "EVENTLOG_ROOT": str(tmp_path / "runs")}
        env |= {
            "WANDB_CONSOLE": "off",
            "WANDB_X_DISABLE_STATS": "true",
            "TIDELOG_STATE_DIR": str(tmp_path / "state"),
        }
        for first_line in ("import wandb\n", "import eventlog as wandb\n"):
            command = [sys.executable, "-c", first_line + SCRIPT]
            subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, check=True, timeout=200)
        theirs = server.run("ent", "p", "r").history
    ours: list[dict[str, Any]] = [{} for _ in theirs]
    for record in eventlog.read(tmp_path / "runs" / "p" / "r"):
        if record.kind == "metrics":
            ours[record.step or 0] |= record.data

    theirs = [{key: value for key, value in row.items() if not key.startswith("_")} for row in theirs]
    assert sum(len(row) for row in theirs) > 30
    assert json.loads(json.dumps(ours)) == theirs


def test_histograms_join_the_next_row_and_move_no_step(tmp_path: Path):
    run, model = begin(tmp_path), torch.nn.Linear(2, 1)
    run.watch(model, log="all", log_freq=1)

    step_of(model)
    run.log({"loss": 1})

    found = rows(run)
    assert {step for step, _ in found} == {0}
    assert {key for _, row in found for key in row} == {
        "parameters/weight",
        "parameters/bias",
        "gradients/weight",
        "gradients/bias",
        "loss",
    }
    assert run.step == 1


def test_only_each_nth_pass_is_counted(tmp_path: Path):
    run, model = begin(tmp_path), torch.nn.Linear(2, 1)
    run.watch(model, log_freq=3)

    for _ in range(7):
        step_of(model)
        run.log({"loss": 1})

    assert [step for step, row in rows(run) if "gradients/weight" in row] == [2, 5]


def test_a_second_model_has_names_of_its_own(tmp_path: Path):
    run, models = begin(tmp_path), [torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)]
    run.watch(models, log_freq=1)

    for model in models:
        step_of(model)

    assert {key for _, row in rows(run) for key in row if "weight" in key} == {
        "gradients/weight",
        "gradients/graph_1weight",
    }


def test_unwatch_takes_the_hooks_of_one_model_or_of_all(tmp_path: Path):
    run, first, second = begin(tmp_path), torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    run.watch([first, second], log="all", log_freq=1)

    run.unwatch(first)
    step_of(first)
    assert rows(run) == []
    step_of(second)
    assert rows(run) != []
    eventlog.unwatch()
    logged = rows(run)
    step_of(second)

    assert rows(run) == logged
    assert (first._forward_hooks, second._forward_hooks) == ({}, {})


def test_a_model_may_be_watched_again(tmp_path: Path):
    run, model = begin(tmp_path), torch.nn.Linear(2, 1)

    run.watch(model, idx=0)
    with pytest.raises(ValueError, match="watched already"):
        run.watch(model, idx=0)
    run.unwatch(model)

    run.watch(model, idx=0, log_freq=1)
    step_of(model)
    assert {key for _, row in rows(run) for key in row} == {"gradients/weight", "gradients/bias"}


def test_a_pass_after_the_end_fails_nothing(tmp_path: Path):
    run, model = begin(tmp_path), torch.nn.Linear(2, 1)
    run.watch(model, log="all", log_freq=1)
    loss = model(torch.ones(1, 2)).sum()

    run.finish()
    loss.backward()

    assert model._forward_hooks == {}
    # Another thread may be in the middle of its pass.
    run._log_watched({"gradients/weight": eventlog.Histogram([1])})
    assert [row for _, row in rows(run) if "gradients/weight" in row] == []


def test_the_graph_is_not_stored_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    begin(tmp_path).watch(torch.nn.Linear(2, 1), log_graph=True)

    assert "the graph of the model is not stored" in capsys.readouterr().err


@pytest.mark.parametrize("model", [5, "model", np.zeros(3), [torch.nn.Linear(1, 1), 5]], ids=repr)
def test_what_is_no_model_is_refused(tmp_path: Path, model: Any):
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        begin(tmp_path).watch(model)


def test_torch_is_imported_by_nobody_who_has_no_model(tmp_path: Path):
    script = """
import sys, eventlog
run = eventlog.init(project="p", root=".", quiet=True)
try:
    run.watch(object())
except TypeError:
    print("torch" in sys.modules)
"""
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )

    assert done.stdout == "False\n"
