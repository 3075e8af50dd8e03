"""`analysis.Api()` on logs says what W&B's own `wandb.Api()` says of the same logs once `syncd` has uploaded them.

The real SDK runs in a process of its own against `tests/wandb_server`.  That server filters and orders nothing, so what a filter
means is `test_api.py`'s, and the doctests' of `analysis.mongo`.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import eventlog
from analysis.api import Api, Runs
from analysis.artifacts import Artifact
from analysis.run import File, Run
from eventlog.seal import seal
from tests.logs import handmade_run, resumed
from tests.syncd.syncing import sync
from tests.wandb_server import WandbServer

SCRIPT_LIMIT_S = 120
RUNS = ["plain", "odd", "failed", "killed", "resumed", "empty", "sealed"]

# Asked of both, by the same text: `api` is one or the other.
ASK = """
def ask(api, run_id):
    run = api.run(f"ent/demo/{run_id}")
    return {
        "id": run.id, "name": run.name, "state": run.state, "tags": run.tags, "group": run.group, "notes": run.notes,
        "job_type": run.job_type, "entity": run.entity, "project": run.project, "path": run.path, "url": run.url,
        "config": {key: value for key, value in run.config.items() if key != "_tidelog"},
        "summary": run.summary._json_dict, "summary_metrics": run.summary_metrics, "last_step": run.lastHistoryStep,
        "system_metrics": run.system_metrics,
        "metadata": {key: run.metadata.get(key) for key in ("os", "host", "program", "args", "root", "startedAt", "cpu_count")},
        "scan": list(run.scan_history()), "pages": list(run.scan_history(page_size=2)),
        "scan_keys": list(run.scan_history(keys=["loss", "x"])), "scan_loss": list(run.scan_history(keys=["loss"])),
        "window": list(run.scan_history(min_step=1, max_step=3)), "beyond": list(run.scan_history(min_step=1, max_step=99)),
        "history": run.history(pandas=False), "frame": run.history().to_dict("records"),
        "sampled_keys": run.history(keys=["loss"], pandas=False),
        "over_x": run.history(keys=["loss"], x_axis="x", pandas=False), "none": run.history(keys=["nowhere"], pandas=False),
        "system": run.history(stream="system", pandas=False),
        "logged": sorted(artifact.name for artifact in run.logged_artifacts()),
        "files": {file.name: [file.size, file.md5] for file in run.files()
            if file.name not in ("config.yaml", "wandb-summary.json", "wandb-metadata.json", "output.log", "requirements.txt")},
    }

def ask_all(api):
    runs = api.runs("ent/demo")
    best, first = api.artifact("ent/demo/ds:best"), api.artifact("ent/demo/ds:v0")
    return {
        "ids": sorted(run.id for run in runs), "count": len(runs),
        "listed": {run.id: [run.name, run.state, run.summary._json_dict, run.lastHistoryStep] for run in runs},
        "histories": sorted([row["run_id"], row["_step"], row["loss"]] for row in runs.histories(keys=["loss"])),
        "best": [best.name, best.version, best.type, best.description, best.metadata, best.size, best.state, best.digest],
        "aliases": [sorted(first.aliases), sorted(best.aliases)], "in_it": [file.name for file in best.files()],
        "content": [open(each.download(root=each.version) + "/data.txt").read() for each in (first, best)],
        "made_by": [first.logged_by().id, best.logged_by().id],
        "text": open(api.run("ent/demo/odd").file("notes.txt").download(root="down").name).read(),
    }
"""
READ_BACK = f"""
import json, sys, wandb
{ASK}
api = wandb.Api()
print(json.dumps([{{run_id: ask(api, run_id) for run_id in {RUNS!r}}}, ask_all(api)]))
"""


def make_runs(root: Path) -> None:
    plain = handmade_run(
        root,
        "plain",
        config={"lr": 0.1, "optimizer": {"betas": [0.9, 0.99]}},
        name="the first",
        tags=["a", "b"],
    )
    for step in range(7):
        plain.log(step=step, loss=1 / (step + 1), x=step)
    plain.log("exit", exitcode=0)
    plain.die()

    odd = handmade_run(
        root, "odd", config={"n": math.nan, "e": {}, "big": 2**70}, group="g", job_type="train", notes="note"
    )
    odd.log("define_metric", name="eval/*", step_metric="global_step")
    odd.log("define_metric", name="loss", summary=["min", "max"])
    odd.log("facts", name="renamed", tags=["later"])
    for step in range(5):
        odd.log(step=step, loss=2.0 - step, global_step=10 * step, nest={"x": step, "y.z": {"deep": 1}})
        odd.log("system", cpu=12.5 * step, **{"gpu.0.gpu": step})
        odd.log(step=step, **{"eval/score": step, "loss": 1.5})
    odd.log(step=2, loss=-99)
    odd.log(
        step=9,
        commit=True,
        **{"eval/score": math.inf, "nan": math.nan, "none": None, "list": [1, 2**64], "text": "t"},
    )
    odd.log(step=9, loss=-98)
    odd.log(step=10, commit=True)
    odd.log("summary", set=[[["best"], 7], [["by", "hand"], 1]], delete=[["text"]])
    odd.log("config", lr=0.5, more={"a": 1})
    odd.log(step=12, x=1, loss=0)
    odd.log("exit", exitcode=0)
    odd.die()

    failed = handmade_run(root, "failed")
    failed.log(step=0, loss=1.0, x=1)
    failed.log("exit", exitcode=3)
    failed.die()

    killed = handmade_run(root, "killed")
    killed.log(step=0, loss=1.0)
    killed.log(step=1, loss=0.5, x=2)
    killed.die()

    first = handmade_run(root, "resumed", config={"a": 1, "b": 1}, tags=["old"])
    first.log(step=0, loss=1.0)
    first.log(step=1, loss=0.5)
    first.die()
    second = resumed(first.identity, root, config={"b": 2}, step=2, resumed=True)
    second.log(step=1, loss=77.0)
    second.log(step=2, loss=0.25, x=1)
    second.log("exit", exitcode=0)
    second.die()

    handmade_run(root, "empty").die()

    sealed = handmade_run(root, "sealed", config={"lr": 1})
    for step in range(4):
        sealed.log(step=step, loss=0.1 * step, x=math.nan if step == 2 else step, nest={"a": {"b": step}})
    sealed.log("exit", exitcode=0)
    sealed.die()
    seal(root / "demo" / "sealed")


def log_files(root: Path, directory: Path) -> None:
    """Log what only a real run does, files and artifacts, in one of the runs, which it resumes."""
    notes = directory / "notes.txt"
    notes.write_text("what I saw")
    data = directory / "data.txt"
    with eventlog.init(project="demo", id="odd", resume="must", root=root, quiet=True) as run:
        run.save(str(notes), base_path=str(directory))
        # The last has the content of the first again.
        for text, alias in (("one", "best"), ("two", "best"), ("one", "again")):
            data.write_text(text)
            artifact = eventlog.Artifact("ds", type="dataset", description="d", metadata={"k": 1})
            artifact.add_file(str(data))
            run.log_artifact(artifact, aliases=[alias])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """What W&B's API says of the runs, and what ours does."""
    directory = tmp_path_factory.mktemp("api")
    root, there, here = directory / "runs", directory / "there", directory / "here"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "EVENTLOG_", "TIDELOG_"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(directory))
        patch.setenv("TIDELOG_STATE_DIR", str(directory / "state"))
        patch.setenv("WANDB_CONSOLE", "off")
        patch.setenv("WANDB_X_DISABLE_STATS", "true")
        patch.setenv("NO_PROXY", "*")
        make_runs(root)
        log_files(root, directory)
        # A run is over for this server as soon as its heartbeats end.
        with WandbServer(entity="ent", crashed_after_s=0.0) as server:
            sync(server, root)
            there.mkdir()
            done = subprocess.run(
                [sys.executable, "-c", READ_BACK],
                env={**os.environ, **server.env(directory)},
                cwd=there,
                capture_output=True,
                text=True,
                timeout=SCRIPT_LIMIT_S,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        here.mkdir()
        patch.chdir(here)
        ours: dict[str, Any] = {}
        # The text that the other process ran.
        exec(ASK, ours)
        api = Api(root=root)
        told = [{run_id: ours["ask"](api, run_id) for run_id in RUNS}, ours["ask_all"](api)]
        yield normal(json.loads(done.stdout)), normal(json.loads(json.dumps(told)))


def normal(value: Any) -> Any:
    """What the API itself does not keep apart: 1 and 1.0, and a NaN that a service writes as text."""
    if isinstance(value, dict):
        return {key: normal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [normal(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}[str(value)]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@pytest.mark.parametrize("run_id", RUNS)
def test_a_run_is_what_wandb_says_it_is(both: tuple[Any, Any], run_id: str) -> None:
    theirs, ours = (each[0][run_id] for each in both)

    assert {key: value for key, value in ours.items() if value != theirs[key]} == {}
    assert theirs == ours


def test_the_comparison_is_of_runs_with_something_in_them(both: tuple[Any, Any]) -> None:
    of_runs, of_all = both[1]

    assert [row["_step"] for row in of_runs["odd"]["scan"]] == [0, 1, 2, 3, 4, 9, 10, 12]
    assert [row["_step"] for row in of_runs["resumed"]["scan"]] == [0, 1, 2]
    assert of_runs["odd"]["scan"][5]["global_step"] == 40
    assert of_runs["odd"]["summary"]["loss"] == {"max": 1.5, "min": 0}
    assert [of_runs[run_id]["state"] for run_id in RUNS] == [
        "finished", "finished", "failed", "crashed", "finished", "crashed", "finished"
    ]  # fmt: skip
    assert len(of_runs["odd"]["system"]) == 5
    assert of_runs["odd"]["files"].keys() == {"notes.txt"}
    assert of_all["content"] == ["one", "two"]


def test_a_project_and_its_artifacts_are_what_wandb_says_they_are(both: tuple[Any, Any]) -> None:
    theirs, ours = (each[1] for each in both)

    assert {key: value for key, value in ours.items() if value != theirs[key]} == {}
    assert theirs == ours


def pairs() -> list[tuple[Callable[..., Any], Callable[..., Any]]]:
    import wandb
    from wandb.apis.public import Api as TheirApi
    from wandb.apis.public import File as TheirFile
    from wandb.apis.public import Run as TheirRun
    from wandb.apis.public import Runs as TheirRuns

    return [
        (TheirApi.__init__, Api.__init__),
        *(
            (getattr(TheirApi, name), getattr(Api, name))
            for name in ("runs", "run", "projects", "project", "flush")
        ),
        *(
            (getattr(TheirApi, name), getattr(Api, name))
            for name in ("artifact", "artifacts", "artifact_exists")
        ),
        *(
            (getattr(TheirRun, name), getattr(Run, name))
            for name in ("history", "scan_history", "files", "file", "load")
        ),
        *((getattr(TheirRun, name), getattr(Run, name)) for name in ("logged_artifacts", "used_artifacts")),
        (TheirRuns.histories, Runs.histories),
        (TheirFile.download, File.download),
        *(
            (getattr(wandb.Artifact, name), getattr(Artifact, name))
            for name in ("download", "get_entry", "file")
        ),
    ]


@pytest.mark.parametrize(("theirs", "ours"), pairs(), ids=lambda method: method.__qualname__)
def test_what_wandb_takes_is_taken(theirs: Callable[..., Any], ours: Callable[..., Any]) -> None:
    asked = inspect.signature(theirs).parameters
    taken = inspect.signature(ours).parameters

    assert list(taken)[: len(asked)] == list(asked)
    for name, parameter in asked.items():
        assert taken[name].default == parameter.default, name
        assert taken[name].kind == parameter.kind, name


def test_what_wandb_can_and_this_cannot_is_refused_in_words(tmp_path: Path) -> None:
    from wandb.apis.public import Api as TheirApi
    from wandb.apis.public import Run as TheirRun

    handmade_run(tmp_path, "one").die()
    api = Api(root=tmp_path)
    run = api.run("one")
    there = [(api, name) for name in vars(TheirApi) if not name.startswith("_")]
    there += [(run, name) for name in vars(TheirRun) if not name.startswith("_")]

    for thing, name in there:
        is_here = hasattr(type(thing), name) or name in vars(thing)
        if not is_here and name not in ("user_agent", "storage_id"):
            with pytest.raises(eventlog.errors.UnsupportedError, match="refused"):
                getattr(thing, name)()
