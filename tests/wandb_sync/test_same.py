"""What `syncd sync` brings to a server is what `wandb sync` brings there, field by field."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract.clients import World, world
from tests.contract.comparable import comparable_config
from tests.contract.scripts import EVERYTHING, RESUMED, SCRIPTS
from tests.contract.test_files import READ_ELSEWHERE, metadata, said_of
from tests.wandb_sync.logged import ALL_ON, log_offline, syncd, wandb_sync

# Telemetry that says by whose command the run was brought.
BY_WANDB_SYNC = 76
GOLDEN = Path(__file__).parents[1] / "golden" / "wandb"
PARAMS = ("display_name", "notes", "tags", "group", "job_type", "complete", "exitcode")


@dataclass(frozen=True)
class Synced:
    """One logged run, brought to two servers."""

    ours: World
    theirs: World

    def each(self, what: Callable[[World], Any]) -> tuple[Any, Any]:
        return what(self.ours), what(self.theirs)


def by_both_commands(scripts: list[str], tmp_path: Path, **variables: str) -> Synced:
    logged = log_offline(tmp_path, scripts, **variables)
    with (
        world(tmp_path, "ours", logged, **variables) as ours,
        world(tmp_path, "theirs", logged, **variables) as theirs,
        ThreadPoolExecutor() as pool,
    ):
        by_them = pool.submit(wandb_sync, theirs, "wandb")
        by_us = syncd(ours, "sync", "wandb")
        assert by_us.returncode == 0, by_us.stdout + by_us.stderr
        assert by_them.result().returncode == 0, by_them.result().stderr
        assert ours.server.violations == []
        return Synced(ours, theirs)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Synced:
    return by_both_commands([EVERYTHING], tmp_path_factory.mktemp("everything"), **ALL_ON)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_run_is_the_same(script: str, tmp_path: Path):
    both = by_both_commands([script], tmp_path)

    ours, theirs = both.each(lambda world: world.run)
    # Not only comparable: the very times that the SDK had written down.
    assert exact(ours.history) == exact(theirs.history)
    assert exact(ours.summary) == exact(theirs.summary)
    assert config(ours) == config(theirs)
    assert [getattr(ours, name) for name in PARAMS] == [getattr(theirs, name) for name in PARAMS]
    assert set(ours.uploaded) == set(theirs.uploaded)


@pytest.mark.slow
def test_a_run_that_was_resumed_offline_goes_on_behind_its_first_rows(tmp_path: Path):
    both = by_both_commands([RESUMED[0], RESUMED[1].replace('"must"', '"allow"')], tmp_path)

    ours, theirs = both.each(lambda world: world.run)
    assert [row["_step"] for row in ours.history] == [0, 1, 2, 5, 6, 20]
    assert exact(ours.history) == exact(theirs.history)
    assert config(ours) == config(theirs)
    # `wandb sync` forgets what the first piece had put in the summary; the SDK online does not, and we do not.
    assert exact(ours.summary) == exact(theirs.summary) | {"open": 1}


@pytest.mark.slow
def test_rows_summary_and_config_of_a_run_with_everything_are_the_same(everything: Synced):
    ours, theirs = everything.each(lambda world: world.run)

    assert exact(ours.history) == exact(theirs.history)
    assert exact(ours.summary) == exact(theirs.summary)
    assert config(ours) == config(theirs)
    assert ours.params["host"] == theirs.params["host"]
    # W&B's command names itself here.
    assert ours.params["program"].endswith("train.py")


@pytest.mark.slow
def test_system_metrics_are_the_same(everything: Synced):
    ours, theirs = everything.each(lambda world: exact(world.run.events))

    assert ours == theirs
    assert ours


@pytest.mark.slow
def test_the_console_is_the_same_but_for_the_times_which_are_those_of_the_run(everything: Synced):
    def lines(world: World) -> list[str]:
        return [re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+ ", "TIME ", line) for line in world.run.console_lines]

    ours, theirs = everything.each(lines)

    assert ours == theirs
    assert "ERROR TIME trouble" in ours
    # W&B's command takes the time at which it sends the line.
    assert everything.ours.run.console_lines[0] < everything.theirs.run.console_lines[0]


@pytest.mark.slow
def test_files_are_the_same(everything: Synced):
    def stored(world: World) -> dict[str, bytes | None]:
        return {path: None if path in READ_ELSEWHERE else data for path, data in world.run.files.items()}

    ours, theirs = everything.each(stored)

    assert ours == theirs
    assert "model.bin" in ours
    assert set(everything.ours.run.uploaded) == set(everything.theirs.run.uploaded) == set(ours)
    one, other = everything.each(lambda world: world.run.files["requirements.txt"])
    assert one == other
    one, other = everything.each(metadata)
    assert one == other


@pytest.mark.slow
def test_artifacts_are_the_same(everything: Synced):
    def committed(world: World) -> dict[str, Any]:
        artifacts = world.server.store.artifacts.by_id
        return {artifact.name: said_of(artifact, artifacts) for artifact in artifacts.values()}

    ours, theirs = everything.each(committed)

    assert set(ours) == set(theirs) == {"weights", "pointer", "run-r-table", "run-r-pictures"}
    for name, said in theirs.items():
        assert ours[name] == said, name


@pytest.mark.slow
def test_what_an_artifact_is_called_by_its_client_is_kept(everything: Synced):
    """The rows point at tables by it."""
    ours, theirs = everything.each(
        lambda world: {a.input["clientID"] for a in world.server.store.artifacts.by_id.values()}
    )

    assert ours == theirs


@pytest.mark.slow
def test_an_alert_is_sent(everything: Synced):
    ours, theirs = everything.each(lambda world: world.server.alerts)

    assert [alert["title"] for alert in ours] == ["diverged"]
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.wandb")), ids=lambda path: path.stem)
def test_a_run_of_an_older_sdk_has_all_that_wandb_sync_brings(path: Path, tmp_path: Path):
    directory = tmp_path / "logged" / "wandb" / "offline-run-20260102_030405-golden"
    (directory / "files").mkdir(parents=True)
    (directory / "files" / "requirements.txt").write_text("numpy==2.0\n")
    shutil.copy(path, directory / "run-golden.wandb")
    with (
        world(tmp_path, "ours", tmp_path / "logged") as ours,
        world(tmp_path, "theirs", tmp_path / "logged") as theirs,
    ):
        done = syncd(ours, "sync", "wandb")
        wandb_sync(theirs, "wandb")

    assert done.returncode == 0, done.stdout
    (our,), (their,) = ours.server.runs(), theirs.server.runs()
    rows = [exact(row) for row in our.history]
    # Of what SDKs before 0.17 wrote, `wandb sync` loses a row with a NaN, and the summary.
    assert [row for row in rows if row in exact(their.history)] == exact(their.history)
    assert len(rows) == 5
    assert our.summary["_step"] == rows[-1]["_step"]
    assert (our.complete, our.exitcode) == (their.complete, their.exitcode)
    assert config(our)["telemetry"] == config(their)["telemetry"] | {"12": our.config["_wandb"]["t"]["12"]}


def exact(value: Any) -> Any:
    """JSON to the last bit, with a NaN that is itself."""
    if isinstance(value, dict):
        return {key: exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [exact(item) for item in value]
    return "NaN" if isinstance(value, float) and value != value else value


def config(run: Any) -> dict[str, Any]:
    said = comparable_config(run)
    telemetry = dict(run.config["_wandb"]["t"])
    telemetry["3"] = sorted(set(telemetry["3"]) - {BY_WANDB_SYNC})
    return said | {"telemetry": telemetry}
