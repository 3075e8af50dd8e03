"""The same files arrive: media in rows and tables, the console, what the machine says of itself, artifacts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from syncd.metadata import MARK
from tests.contract.clients import Both, World, by_both
from tests.contract.comparable import OF_THE_SDK, comparable, without_home
from tests.contract.scripts import SCRIPTS
from tests.eventlog.test_surroundings import git
from tests.wandb_server.artifacts import Artifact

# Read by value in the tests of this module: each client writes their keys in its own order.
READ_ELSEWHERE = {"wandb-metadata.json", "requirements.txt", "config.yaml", "wandb-summary.json"}
# What the SDK alone writes into a manifest: where its copy of a file is on this machine, and how it caches.
OF_THE_SDKS_CACHE = {"local_path", "skip_cache"}


@pytest.mark.slow
def test_rows_with_media_are_the_same(everything: Both):
    ours, theirs = everything.each(lambda world: [comparable(row) for row in world.run.history])

    assert ours == theirs
    kinds = {
        value["_type"]
        for row in ours
        for value in row.values()
        if isinstance(value, dict) and "_type" in value
    }
    assert kinds == {"image-file", "html-file", "histogram", "table-file", "audio-file", "video-file"}


@pytest.mark.slow
@pytest.mark.parametrize("is_error", [False, True], ids=["stdout", "stderr"])
def test_the_console_has_the_same_lines_in_order(everything: Both, is_error: bool):
    def lines(world: World) -> list[str]:
        shown = [re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+ ", "TIME ", line) for line in world.run.console_lines]
        return [line for line in shown if line.startswith("ERROR") is is_error]

    ours, theirs = everything.each(lines)

    assert ours == theirs
    assert ("ERROR TIME trouble" if is_error else "TIME 2 of 3") in ours


@pytest.mark.slow
def test_the_machine_is_described_by_the_same_metrics(everything: Both):
    ours, theirs = everything.each(lambda world: {name for line in world.run.events for name in line})

    assert ours == theirs
    assert all(line["_wandb"] is True for line in everything.ours.run.events)


@pytest.mark.slow
def test_the_same_files_are_stored_and_announced(everything: Both):
    def stored(world: World) -> dict[str, bytes | None]:
        return {path: None if path in READ_ELSEWHERE else data for path, data in world.run.files.items()}

    ours, theirs = everything.each(stored)

    assert ours == theirs
    assert "model.bin" in ours
    assert everything.each(lambda world: set(world.run.uploaded)) == (set(ours), set(ours))


@pytest.mark.slow
def test_the_metadata_says_the_same(everything: Both):
    ours, theirs = everything.each(metadata)

    assert ours == theirs
    assert ours["program"] == "~/here/train.py"
    assert ours["args"] == ["--lr", "0.1"]


@pytest.mark.slow
def test_the_summary_file_says_the_same(everything: Both):
    ours, theirs = everything.each(
        lambda world: comparable(json.loads(world.run.files["wandb-summary.json"]))
    )

    assert ours == theirs


@pytest.mark.slow
def test_the_config_file_says_the_same(everything: Both):
    def said(world: World) -> dict[str, Any]:
        config = comparable(yaml.safe_load(without_home(world, world.run.files["config.yaml"].decode())))
        config.pop(MARK, None)
        internal = config.pop("_wandb")["value"]
        # Each writer is listed under its random id, and has used other features of its own client.
        return {
            "config": config,
            "environment": list(internal.pop("e").values()),
            "telemetry": {
                key: value for key, value in internal.pop("t").items() if key not in {*OF_THE_SDK, "3"}
            },
            "internal": internal,
        }

    ours, theirs = everything.each(said)

    assert ours == theirs


@pytest.mark.slow
def test_the_packages_are_the_same(everything: Both):
    ours, theirs = everything.each(lambda world: set(world.run.files["requirements.txt"].decode().split()))

    assert ours == theirs


@pytest.mark.slow
def test_the_artifacts_are_the_same(everything: Both):
    def committed(world: World) -> dict[str, Any]:
        artifacts = world.server.store.artifacts.by_id
        return {artifact.name: said_of(artifact, artifacts) for artifact in artifacts.values()}

    ours, theirs = everything.each(committed)

    assert ours == theirs
    assert set(ours) == {"weights", "pointer", "run-r-table", "run-r-pictures"}


@pytest.mark.slow
def test_code_that_is_not_committed_arrives_as_the_same_patch(tmp_path: Path):
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "lr.txt").write_text("0.1\n")
    git("-C", repository, "init", "--quiet")
    git("-C", repository, "remote", "add", "origin", "https://example.com/me/repository.git")
    git("-C", repository, "add", ".")
    git("-C", repository, "commit", "--quiet", "--message", "first")
    (repository / "lr.txt").write_text("0.2\n")

    both = by_both(
        [SCRIPTS["nothing logged"]],
        tmp_path,
        directory=repository,
        WANDB_DISABLE_GIT="false",
        WANDB_SAVE_CODE="true",
    )

    ours, theirs = both.each(lambda world: world.run)
    assert b"+0.2" in theirs.files["diff.patch"]
    assert ours.files["diff.patch"] == theirs.files["diff.patch"]
    assert set(ours.uploaded) == set(theirs.uploaded)
    for name in ("commit", "repo", "program"):
        assert without_home(both.ours, ours.params[name]) == without_home(both.theirs, theirs.params[name])
    for fact in ("git", "codePath", "codePathLocal"):
        assert metadata(both.ours)[fact] == metadata(both.theirs)[fact]


def metadata(world: World) -> dict[str, Any]:
    return comparable(json.loads(without_home(world, world.run.files["wandb-metadata.json"].decode())))


def said_of(artifact: Artifact, artifacts: dict[str, Artifact]) -> dict[str, Any]:
    """What the server holds of an artifact, with names for ids."""
    contents = {
        path: {key: value for key, value in entry.items() if key not in OF_THE_SDKS_CACHE}
        for path, entry in artifact.contents.items()
    }
    for entry in contents.values():
        if "birthArtifactID" in entry:
            entry["birthArtifactID"] = artifacts[entry["birthArtifactID"]].name
    return {
        "type": artifact.kind,
        "digest": artifact.digest,
        "state": artifact.state,
        "aliases": sorted(artifact.aliases),
        "description": artifact.input.get("description"),
        # The server has no tags of its own: it keeps what it was asked for.
        "tags": [tag["tagName"] for tag in artifact.input.get("tags") or []],
        "metadata": json.loads(artifact.input.get("metadata") or "{}"),
        "step": artifact.input.get("historyStep"),
        "manifest": {**artifact.manifest, "contents": contents},
        "files": {path: data for path, data in artifact.files.items() if path in contents},
    }
