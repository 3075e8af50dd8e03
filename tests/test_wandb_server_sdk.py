"""The real wandb SDK against tests/wandb_server: what it sends, what it reads back, and that nothing is amiss.

Each script runs in a process of its own, because the SDK keeps a service and settings per process.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.wandb_server import StoredRun, WandbServer, wait_for
from tests.wandb_server.graphql import OPERATIONS

SCRIPT_LIMIT_S = 120

# One run with everything; its steps 0..1099 need two pages of a scan, and one row holds a NaN.
ONLINE = """
import wandb
run = wandb.init(project="p", id="online", name="shown", notes="note", tags=["a"], group="g", job_type="train",
                 config={"lr": 0.1, "nested": {"depth": 2}})
run.define_metric("eval/*", step_metric="global_step")
run.define_metric("loss", summary="min,max")
for step in range(1100):
    run.log({"loss": 1 / (step + 1), "global_step": 10 * step, "odd": float("nan") if step == 3 else 1}, step=step)
run.log({"table": wandb.Table(columns=["x"], data=[[1], [2]])}, step=1100)
run.summary["best"] = 7
print("hello from the trainer")
run.alert("title", "text")
run.finish()
"""

READ_BACK = """
import json, wandb
api = wandb.Api()
run = api.run("ent/p/online")
scanned = list(run.scan_history())
print(json.dumps({
    "config": run.config, "summary": dict(run.summary), "state": run.state, "name": run.name, "tags": run.tags,
    "steps": [row["_step"] for row in scanned], "odd": str(scanned[3]["odd"]),
    "losses": [row["loss"] for row in run.scan_history(keys=["loss"])],
    "sampled": run.history(samples=10, pandas=False), "sampled_loss": run.history(keys=["loss"], pandas=False),
    "files": {file.name: [file.size, file.md5] for file in run.files()},
    "output": open(run.file("output.log").download(root="downloads").name).read(),
    "run_ids": [each.id for each in api.runs("ent/p")],
}, default=str))
"""

RESUME = """
import wandb
run = wandb.init(project="p", id={run_id!r}, resume={resume!r}, config={{"mine": 2}})
run.log({{"a": 1}})
run.finish()
"""

OFFLINE = """
import wandb
run = wandb.init(project="p", id="offline", mode="offline")
for i in range(300):
    run.log({"i": i})
run.finish(exit_code=3)
"""

ENDLESS = """
import time, wandb
run = wandb.init(project="p", id="killed", settings=wandb.Settings(x_file_stream_transmit_interval=1))
while True:
    run.log({"a": 1})
    time.sleep(0.02)
"""

UPLOAD_AND_STOP = """
import pathlib, wandb
pathlib.Path("notes.txt").write_text("hello")
run = wandb.Api().run("ent/p/seeded")
run.upload_file("notes.txt")
run.notes = "edited"
run.update()
run.stop()
"""


ARTIFACT = """
import pathlib, wandb
run = wandb.init(project="p", id="maker")
for text in ("one", "two"):
    pathlib.Path("data.txt").write_text(text)
    artifact = wandb.Artifact("ds", type="dataset", description="d", metadata={"k": 1})
    artifact.add_file("data.txt")
    run.log_artifact(artifact, aliases=["best"]).wait()
run.log({"table": wandb.Table(columns=["x"], data=[[1]])})
run.finish()
"""

READ_ARTIFACTS = """
import json, pathlib, wandb
api = wandb.Api()
best, first = api.artifact("ent/p/ds:best"), api.artifact("ent/p/ds:v0")
print(json.dumps({
    "logged": sorted(artifact.name for artifact in api.run("ent/p/maker").logged_artifacts()),
    "best": [best.name, best.version, best.type, best.description, best.metadata, best.size, best.state],
    "aliases": [first.aliases, sorted(best.aliases)],
    "contents": [pathlib.Path(each.download(root=each.version), "data.txt").read_text() for each in (first, best)],
    "files": [file.name for file in best.files()],
    "made_by": best.logged_by().id,
    "table": api.artifact("ent/p/run-maker-table:latest").get("table").data,
}))
"""


class Bench:
    """A server and a directory in which the SDK may write."""

    def __init__(self, server: WandbServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        self.env = {**kept, **server.env(directory)}

    def run(self, script: str, succeeds: bool = True) -> str:
        return self._finish([sys.executable, "-c", script], succeeds)

    def sync(self, run_directory: Path) -> str:
        return self._finish([sys.executable, "-m", "wandb", "sync", str(run_directory)], succeeds=True)

    def _finish(self, command: list[str], succeeds: bool) -> str:
        done = subprocess.run(
            command,
            env=self.env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=SCRIPT_LIMIT_S,
            check=False,
        )
        assert (done.returncode == 0) is succeeds, done.stderr
        return done.stdout


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with WandbServer() as server:
        yield Bench(server, tmp_path)


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench on which ONLINE ran to its end. Read only."""
    with WandbServer() as server:
        bench = Bench(server, tmp_path_factory.mktemp("online"))
        bench.run(ONLINE)
        yield bench


@pytest.fixture(scope="module")
def read_back(online: Bench) -> dict[str, Any]:
    return json.loads(online.run(READ_BACK))


def online_run(online: Bench) -> StoredRun:
    return online.server.run("ent", "p", "online")


# Online


def test_the_sdk_does_nothing_amiss(online):
    assert online.server.violations == []
    assert {request.status for request in online.server.requests} == {200}


def test_no_operation_of_the_sdk_is_unknown_here(online, read_back):
    sent = {request.operation for request in online.server.requests if request.operation is not None}

    assert sent <= set(OPERATIONS)


def test_every_row_arrives_in_order(online):
    history = online_run(online).history

    assert [row["_step"] for row in history] == list(range(1101))
    assert history[10]["global_step"] == 100


def test_identity_and_params_arrive(online):
    run = online_run(online)

    shown = (run.display_name, run.notes, run.tags, run.group, run.job_type)
    assert shown == ("shown", "note", ["a"], "g", "train")


def test_the_config_arrives_wrapped_with_the_telemetry(online):
    run = online_run(online)

    assert run.config["lr"] == 0.1
    assert run.raw_config["nested"] == {"value": {"depth": 2}}
    assert run.started


def test_metric_definitions_arrive_in_the_config(online):
    definitions = online_run(online).config["_wandb"]["m"]

    globs = [definition for definition in definitions if definition.get("2") == "eval/*"]
    assert definitions[globs[0]["5"] - 1]["1"] == "global_step"


def test_the_summary_is_nested_and_whole(online):
    summary = online_run(online).summary

    assert summary["loss"]["max"] == 1
    assert summary["best"] == 7
    assert summary["_step"] == 1100


def test_a_finished_run_is_finished(online):
    run = online_run(online)

    assert (online.server.state(run), run.exitcode) == ("finished", 0)


def test_console_and_system_metrics_arrive(online):
    run = online_run(online)

    assert run.console_lines[0].endswith(" hello from the trainer")
    assert run.events[0]["_wandb"] is True


def test_files_are_stored_and_announced(online):
    run = online_run(online)

    expected = {"config.yaml", "output.log", "requirements.txt", "wandb-metadata.json", "wandb-summary.json"}
    assert expected <= set(run.files)
    assert set(run.files) == set(run.uploaded)
    assert b"hello from the trainer" in run.files["output.log"]


def test_a_table_becomes_a_committed_artifact(online):
    [artifact] = online.server.store.artifacts.by_id.values()

    assert (artifact.name, artifact.kind, artifact.state) == ("run-online-table", "run_table", "COMMITTED")
    assert json.loads(artifact.files["table.table.json"])["data"] == [[1], [2]]


def test_an_alert_arrives(online):
    [alert] = online.server.alerts

    assert (alert["title"], alert["severity"], alert["waitDuration"]) == ("title", "INFO", 60_000)


# Read back through wandb.Api


def test_scan_history_returns_every_row(read_back):
    assert read_back["steps"] == list(range(1101))
    assert read_back["odd"] == "nan"


def test_scan_history_by_key_returns_the_rows_that_have_it(read_back):
    assert read_back["losses"] == pytest.approx([1 / (step + 1) for step in range(1100)])


def test_history_samples(read_back):
    assert len(read_back["sampled"]) == 10
    assert set(read_back["sampled_loss"][0]) == {"_step", "loss"}


def test_config_summary_and_state_are_read_back(read_back):
    assert read_back["config"] == {"lr": 0.1, "nested": {"depth": 2}}
    assert read_back["summary"]["best"] == 7
    assert (read_back["state"], read_back["name"], read_back["tags"]) == ("finished", "shown", ["a"])


def test_files_are_listed_and_downloaded(read_back):
    assert "wandb-metadata.json" in read_back["files"]
    assert "hello from the trainer" in read_back["output"]


def test_files_are_listed_with_size_and_md5(online, read_back):
    content = online_run(online).files["output.log"]

    md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    assert read_back["files"]["output.log"] == [len(content), md5]


def test_the_runs_of_a_project_are_listed(read_back):
    assert read_back["run_ids"] == ["online"]


def test_the_public_api_uploads_edits_and_stops(bench):
    run = bench.server.seed_run("p", "seeded", 2)

    bench.run(UPLOAD_AND_STOP)

    assert (run.files["notes.txt"], run.notes, run.stopped) == (b"hello", "edited", True)
    assert bench.server.violations == []


def test_artifacts_are_listed_found_by_name_and_downloaded(bench):
    bench.run(ARTIFACT)

    found = json.loads(bench.run(READ_ARTIFACTS))

    assert found == {
        "logged": ["ds:v0", "ds:v1", "run-maker-table:v0"],
        "best": ["ds:best", "v1", "dataset", "d", {"k": 1}, 3, "COMMITTED"],
        "aliases": [[], ["best", "latest"]],
        "contents": ["one", "two"],
        "files": ["data.txt"],
        "made_by": "maker",
        "table": [[1]],
    }
    assert bench.server.violations == []


# Resume


@pytest.mark.parametrize("resume", ["allow", "must"])
def test_a_resumed_run_continues_behind_its_last_line(bench, resume):
    run = bench.server.seed_run("p", "seeded", 5, config={"theirs": 1}, console=["old"], tags=["kept"])

    bench.run(RESUME.format(run_id="seeded", resume=resume))

    assert [row["_step"] for row in run.history] == [0, 1, 2, 3, 4, 5]
    assert (run.config["theirs"], run.config["mine"], run.tags) == (1, 2, ["kept"])
    assert run.console_lines[0] == "old"
    assert bench.server.violations == []


def test_a_run_without_t_cannot_be_resumed(bench):
    bench.server.seed_run("p", "seeded", 5, started=False)

    bench.run(RESUME.format(run_id="seeded", resume="must"), succeeds=False)


def test_a_run_without_t_that_may_be_resumed_is_damaged_and_this_is_noticed(bench):
    run = bench.server.seed_run("p", "seeded", 5, config={"theirs": 1}, started=False)

    bench.run(RESUME.format(run_id="seeded", resume="allow"))

    assert "theirs" not in run.config
    assert any("_step" in violation for violation in bench.server.violations)


# Offline, faults, death


def test_an_offline_run_is_synced(bench):
    bench.run(OFFLINE)
    [run_directory] = (bench.directory / "wandb-dir" / "wandb").glob("offline-run-*")

    bench.sync(run_directory)

    run = bench.server.run("ent", "p", "offline")
    assert [row["i"] for row in run.history] == list(range(300))
    assert (bench.server.state(run), run.exitcode) == ("failed", 3)
    assert bench.server.violations == []


@pytest.mark.slow
def test_the_sdk_outlives_a_503_and_a_lost_answer(bench):
    bench.server.faults.add("status", status=503, kind="file_stream", times=1)
    bench.server.faults.add("drop", applied=True, kind="file_stream", times=1)

    bench.run(RESUME.format(run_id="r", resume="allow"))

    run = bench.server.run("ent", "p", "r")
    assert [row["a"] for row in run.history] == [1]
    assert run.replayed_lines > 0
    assert bench.server.violations == []


def test_a_killed_run_is_crashed_once_its_heartbeats_are_missed(bench):
    trainer = subprocess.Popen(
        [sys.executable, "-c", ENDLESS], env=bench.env, cwd=bench.directory, start_new_session=True
    )
    try:
        wait_for(lambda: any(run.history_lines for run in bench.server.runs()), "the first row")
    finally:
        # The whole session: the SDK's service would outlive its trainer.
        os.killpg(trainer.pid, signal.SIGKILL)
        trainer.wait()

    run = bench.server.run("ent", "p", "killed")
    last_sign_s = run.heartbeat_s
    assert run.state(last_sign_s + 300) == "running"
    assert run.state(last_sign_s + 301) == "crashed"
