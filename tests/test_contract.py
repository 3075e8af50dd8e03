"""The contract: for the same calls, the server gets from us what it gets from W&B's own SDK, field by field.

Each script runs twice, as it is: with `import wandb` against one server, and with `import eventlog as wandb` and
`syncd sync` against another. Times, ids and host facts are compared by type.

Not compared, since `syncd` does not send it yet: system metrics, console lines, and the files of the Files page.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from syncd.metadata import MARK
from tests.wandb_server import WandbServer
from tests.wandb_server.store import StoredRun

REPOSITORY = Path(__file__).parents[1]
TIMES = {"_timestamp": float, "_runtime": float}
# Facts of the host or of the client itself, at any depth of the config's internal block.
OF_THE_HOST = {"e", "t", "cli_version", "python_version"}

INIT = """
run = wandb.init(project="p", id="r", name="a name", notes="notes", tags=["a", "b"], group="g", job_type="train",
                 config={"lr": 0.1, "nested": {"x": 1, "t": (1, 2)}, "none": None, "nan": float("nan"), "s": "é"})
"""
SCRIPTS = {
    "explicit steps": INIT
    + """
for i in range(5):
    run.log({"loss": 1 / (i + 1), "i": i}, step=i)
run.log({"late": 1}, step=2)
run.log({"same": 1}, step=4)
run.log({"far": 1}, step=100)
run.finish()
""",
    "steps of its own": INIT
    + """
run.log({"a": 1})
run.log({"b": 2}, commit=False)
run.log({"c": 3})
run.log({})
run.log({"d": 4}, step=7, commit=True)
run.log({"e": 5})
run.finish()
""",
    "values": INIT
    + """
import numpy as np
run.log({"nan": float("nan"), "inf": float("inf"), "ninf": float("-inf"), "none": None, "bool": True, "text": "é\\n\\"",
         "int": 3, "big": 2**53, "float": 1.0, "small": 1e-300, "list": [1, 2.5, "x", None]})
run.log({"nested": {"x": 1, "y": {"z": 2}}, "dotted.key": 3, "slash/key": 4})
run.log({"np32": np.float32(0.1), "np64": np.float64(0.1), "npint": np.int64(7), "array": np.arange(4) / 2})
run.finish()
""",
    "definitions": INIT
    + """
run.define_metric("epoch")
run.define_metric("loss", summary="min,max,mean,last,first")
run.define_metric("hidden", hidden=True)
run.define_metric("gone", summary="none")
run.define_metric("eval/*", step_metric="epoch")
run.define_metric("free/*", step_metric="epoch", step_sync=False)
run.log({"eval/before": 1, "loss": 3})
run.log({"epoch": 1, "loss": 1.5, "gone": 1, "hidden": 2})
run.log({"eval/acc": 0.5, "loss": 2})
run.log({"free/x": 1, "eval/acc": 0.75, "epoch": 2})
run.log({"eval/acc": 1.0})
run.finish()
""",
    "summary": INIT
    + """
run.define_metric("m", summary="max")
run.log({"m": 1, "a": 1, "n": {"x": 1, "y": 2}})
run.log({"m": 0.5, "a": 2})
run.summary["best"] = 7
run.summary["m"] = 3
run.summary.update({"u": 1, "v": "text"})
run.summary["dict"] = {"in": {"side": 1}}
run.log({"m": 0.25})
del run.summary["a"]
run.finish()
""",
    "config": INIT
    + """
run.config["new"] = 0.2
run.config.update({"lr": 0.2, "more": [1, {"x": 2}], "text": "t"}, allow_val_change=True)
run.config.by_attribute = 5
run.log({"x": 1})
run.finish()
""",
    "a failure": INIT
    + """
run.log({"x": 1}, step=3)
run.finish(exit_code=3)
""",
    "nothing logged": INIT
    + """
run.finish()
""",
}
RESUMED = [
    INIT
    + """
for i in range(3):
    run.log({"x": i})
run.log({"open": 1}, step=5)
run.finish()
""",
    """
run = wandb.init(project="p", id="r", resume="must", config={"lr": 0.3, "second": 1})
run.log({"x": 10})
run.log({"x": 11}, step=20)
run.finish()
""",
]


@contextmanager
def world(tmp_path: Path, name: str) -> Iterator[tuple[WandbServer, dict[str, str]]]:
    """A server, and an environment in which a process can see nothing else."""
    home = tmp_path / name
    with WandbServer(entity="ent") as server:
        yield (
            server,
            {
                **os.environ,
                **server.env(home),
                "HOME": str(home),
                "TIDELOG_STATE_DIR": str(home / "state"),
                "EVENTLOG_ROOT": str(home / "runs"),
                "PYTHONPATH": str(REPOSITORY),
                "WANDB_CONSOLE": "off",
                "WANDB__DISABLE_STATS": "true",
            },
        )


def run_python(*arguments: str, env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], env=env, cwd=env["HOME"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def by_the_sdk(scripts: list[str], tmp_path: Path, mode: str = "online") -> tuple[WandbServer, StoredRun]:
    with world(tmp_path, "sdk") as (server, env):
        for script in scripts:
            run_python("-c", "import wandb\n" + script, env={**env, "WANDB_MODE": mode})
        if mode == "offline":
            (directory,) = Path(env["WANDB_DIR"]).glob("wandb/offline-run-*")
            run_python("-m", "wandb", "sync", str(directory), env=env)
        return server, server.run("ent", "p", "r")


def by_us(scripts: list[str], tmp_path: Path) -> tuple[WandbServer, StoredRun]:
    with world(tmp_path, "ours") as (server, env):
        for script in scripts:
            run_python("-c", "import eventlog as wandb\n" + script, env=env)
            run_python("-m", "syncd", "sync", env=env)
        assert server.violations == []
        return server, server.run("ent", "p", "r")


def comparable(value: Any) -> Any:
    """JSON as W&B means it: one number is another however it is written, NaN is itself, times are types."""
    if isinstance(value, dict):
        return {key: TIMES[key].__name__ if key in TIMES else comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if isinstance(value, float) and value != value:
        return "NaN"
    return value


def comparable_config(run: StoredRun) -> dict[str, Any]:
    config = comparable(run.config)
    assert isinstance(config, dict)
    internal = config.pop("_wandb")
    # The marks by which each client knows its own runs.
    config.pop(MARK, None)
    definitions = {entry.get("1") or entry.get("2"): dict(entry) for entry in internal.pop("m")}
    names = [entry.get("1") or entry.get("2") for entry in run.config["_wandb"]["m"]]
    for entry in definitions.values():
        # Positions in the list are free, as long as they point at the right entry.
        if "5" in entry:
            entry["5"] = names[entry["5"] - 1]
        entry["6"], entry["7"] = sorted(entry["6"]), sorted(entry["7"])
    config["definitions"] = definitions
    config["internal"] = sorted(internal)
    config["telemetry"] = {
        key: type(value).__name__ for key, value in internal["t"].items() if key not in "12"
    }
    return config


def comparable_summary(run: StoredRun) -> Any:
    summary = comparable(run.summary)
    summary["_wandb"] = {key: type(value).__name__ for key, value in summary.get("_wandb", {}).items()}
    return summary


def assert_same(ours: StoredRun, theirs: StoredRun) -> None:
    assert [comparable(row) for row in ours.history] == [comparable(row) for row in theirs.history]
    assert comparable_summary(ours) == comparable_summary(theirs)
    assert comparable_config(ours) == comparable_config(theirs)
    for name in ("display_name", "notes", "tags", "group", "job_type", "complete", "exitcode"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_server_holds_the_same_run(name: str, tmp_path: Path):
    _, theirs = by_the_sdk([SCRIPTS[name]], tmp_path)
    _, ours = by_us([SCRIPTS[name]], tmp_path)

    assert_same(ours, theirs)


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_the_sdk_would(tmp_path: Path):
    _, theirs = by_the_sdk(RESUMED, tmp_path)
    _, ours = by_us(RESUMED, tmp_path)

    assert_same(ours, theirs)


@pytest.mark.slow
def test_an_offline_run_is_what_wandb_sync_would_make_of_it(tmp_path: Path):
    script = SCRIPTS["definitions"]
    _, theirs = by_the_sdk([script], tmp_path, mode="offline")
    _, ours = by_us([script], tmp_path)

    assert_same(ours, theirs)


@pytest.mark.slow
def test_the_requests_have_the_same_fields(tmp_path: Path):
    """Names, variables and bodies, as they go over the wire."""
    script = SCRIPTS["definitions"]
    sdk_server, _ = by_the_sdk([script], tmp_path)
    our_server, _ = by_us([script], tmp_path)

    theirs, ours = sdk_server.requests, our_server.requests
    for operation in ("UpsertBucket",):
        kind = f"graphql:{operation}"
        first_of_theirs = next(r for r in theirs if r.kind == kind)
        first_of_ours = next(r for r in ours if r.kind == kind)
        assert first_of_ours.variables is not None
        assert first_of_theirs.variables is not None
        assert first_of_ours.variables.keys() == first_of_theirs.variables.keys()
        for name in (
            "name",
            "project",
            "displayName",
            "notes",
            "tags",
            "groupName",
            "jobType",
            "state",
            "debug",
        ):
            assert first_of_ours.variables[name] == first_of_theirs.variables[name], name
        assert type(json.loads(first_of_ours.variables["config"])) is dict
    stream_of_theirs = [r for r in theirs if r.kind == "file_stream"]
    stream_of_ours = [r for r in ours if r.kind == "file_stream"]
    assert {r.path for r in stream_of_ours} == {r.path for r in stream_of_theirs}
    allowed = {key for r in stream_of_theirs for key in r.body} | {"files"}
    assert {key for r in stream_of_ours for key in r.body} <= allowed
    for request in stream_of_ours:
        assert request.headers["content-type"] == "application/json"
        for chunk in request.body.get("files", {}).values():
            assert chunk.keys() == {"offset", "content"}
            assert all(isinstance(line, str) for line in chunk["content"])
