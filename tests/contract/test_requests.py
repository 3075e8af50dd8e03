"""The requests say the same: each GraphQL operation's variables, each PUT, each body of the file stream."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.clients import Both, World, by_both
from tests.contract.comparable import kind_of, own_headers, without_home
from tests.contract.scripts import SCRIPTS
from tests.wandb_server.artifacts import MANIFEST
from tests.wandb_server.graphql import flat

LEFT_OUT, NEVER, ASKED = "left out", "never asked", "asked"
# All in which our GraphQL requests are not the SDK's: operation, variable, what we say, what the SDK says.
KNOWN_DIFFERENCES = {
    # A log may have been sent before, from here or from another machine: we look before the first line.
    # The SDK looks only when it is told to resume.
    ("RunResumeStatus", "", ASKED, NEVER),
    # A log that was sent before is looked for where it went; the SDK knows nothing of before.
    ("RunResumeStatus", "entity", '"ent"', "null"),
    # Whose the key is decides nothing: the entity is the one that the first answer about the run names.
    ("Viewer", "", NEVER, ASKED),
    # We use nothing that a server may lack: bodies are not compressed, and console lines are plain.
    ("ServerFeaturesQuery", "", NEVER, ASKED),
    # The second request of the SDK's names the entity from the first one's answer. Ours says all in the first.
    ("UpsertBucket", "entity", "null", '"ent"'),
    # On resuming. The name is the run's id in its address, and enough to change it.
    ("UpsertBucket", "id", "null", "the id of the run"),
    # For W&B's own statistics.
    ("OrganizationCoreWeaveOrganizationID", "", NEVER, ASKED),
    # Whether the name is taken by another type. We leave that to the server: `syncd status` shows what it refuses.
    ("ArtifactType", "", NEVER, ASKED),
    # What GraphQL takes as null when it is left out, and what we have no use for: more than one collection,
    # organizations' registries, chosen regions, artifacts that expire or are written by several processes.
    ("CreateArtifact", "artifactCollectionNames", LEFT_OUT, "null"),
    ("CreateArtifact", "clientMutationId", LEFT_OUT, "null"),
    ("CreateArtifact", "description", LEFT_OUT, "null"),
    ("CreateArtifact", "distributedID", LEFT_OUT, "null"),
    ("CreateArtifact", "labels", LEFT_OUT, "null"),
    ("CreateArtifact", "storageRegion", LEFT_OUT, "null"),
    ("CreateArtifact", "tags.attributes", LEFT_OUT, "null"),
    ("CreateArtifact", "tags.tagCategoryName", LEFT_OUT, "null"),
    ("CreateArtifact", "ttlDurationSeconds", LEFT_OUT, "null"),
    ("CreateArtifactFiles", "clientMutationId", LEFT_OUT, "null"),
    ("CreateArtifactFiles", "cloudRegionID", LEFT_OUT, "null"),
    ("CreateArtifactFiles", "artifactFiles.mimetype", LEFT_OUT, "null"),
    # Each file goes in one request: see the README on what this does not do yet.
    ("CreateArtifactFiles", "artifactFiles.uploadPartsInput", LEFT_OUT, "null"),
    # An artifact without metadata: an empty object instead of nothing.
    ("CreateArtifact", "metadata", '"{}"', "null"),
}
# Random, or read elsewhere: the config by `test_state`, manifests by `test_files` (the SDK's name its local files).
BY_TYPE = {
    ("CreateArtifact", "clientID"),
    ("CreateArtifact", "sequenceClientID"),
    ("CreateArtifactManifest", "digest"),
    ("UpsertBucket", "config"),
}
# Both make these of facts, each in its own order of keys: `test_files` reads them.
MADE_OF_FACTS = {"wandb-metadata.json", "requirements.txt", "config.yaml", "wandb-summary.json", MANIFEST}


@pytest.fixture(params=["everything", "resumed"])
def both(request: pytest.FixtureRequest) -> Both:
    return request.getfixturevalue(request.param)


@pytest.mark.slow
def test_graphql_says_the_same_but_for_the_known_differences(everything: Both, resumed: Both):
    found = differences(everything) | differences(resumed)

    assert found == KNOWN_DIFFERENCES


@pytest.mark.slow
@pytest.mark.parametrize("started_as", ["module", "text"])
def test_a_program_that_is_no_file_is_called_the_same(started_as: str, tmp_path: Path):
    both = by_both([SCRIPTS["nothing logged"]], tmp_path, started_as=started_as)

    ours, theirs = both.each(lambda world: world.run.params["program"])

    assert ours == theirs


@pytest.mark.slow
def test_each_file_is_put_once_with_the_same_headers_and_bytes(everything: Both):
    ours, theirs = everything.each(puts)

    assert ours == theirs
    assert all(len(requests) == 1 for requests in ours.values())


@pytest.mark.slow
def test_the_file_stream_is_sent_to_the_same_place_in_the_same_way(both: Both):
    ours, theirs = both.each(
        lambda world: {
            (request.method, request.path, *own_headers(request).items()) for request in world.stream
        }
    )

    assert ours == theirs


@pytest.mark.slow
def test_the_file_stream_has_the_same_keys_and_files_over_a_whole_run(both: Both):
    ours, theirs = both.each(
        lambda world: {
            "keys": {key for request in world.stream for key in request.body},
            "files": {name for request in world.stream for name in request.body.get("files", {})},
            "chunks": {
                (name, key, kind_of(value))
                for request in world.stream
                for name, chunk in request.body.get("files", {}).items()
                for key, value in chunk.items()
            },
            "ends": [(r.body["complete"], r.body["exitcode"]) for r in world.stream if "complete" in r.body],
        }
    )

    assert ours == theirs
    assert "wandb-history.jsonl" in ours["files"]


@pytest.mark.slow
def test_an_alert_says_the_same(everything: Both):
    ours, theirs = everything.each(lambda world: world.server.alerts)

    assert ours == theirs
    assert len(ours) == 1


def differences(both: Both) -> set[tuple[str, str, str, str]]:
    """Operation, variable, our values, the SDK's, wherever these are not the same."""
    ours, theirs = both.each(said)
    found = set()
    for operation, subject in ours.keys() | theirs.keys():
        of_ours, of_theirs = ours.get((operation, subject)), theirs.get((operation, subject))
        if of_ours is None or of_theirs is None:
            found.add((operation, "", *(NEVER if of is None else ASKED for of in (of_ours, of_theirs))))
            continue
        for variable in of_ours.keys() | of_theirs.keys():
            values = [" | ".join(sorted(of.get(variable, {LEFT_OUT}))) for of in (of_ours, of_theirs)]
            if values[0] != values[1]:
                found.add((operation, variable, *values))
    return found


def said(world: World) -> dict[tuple[str, str], dict[str, set[str]]]:
    """All that each operation said of each subject: variable → values.

    Requests are taken together, since how much goes into one is a matter of timing.
    """
    found: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for request in world.server.requests:
        if request.operation is None:
            continue
        assert request.variables is not None
        variables = {name: value for name, value in flat(request.variables).items() if name != "input"}
        about = found[request.operation, subject(world, variables)]
        for variable, value in leaves(variables):
            is_by_type = (request.operation, variable) in BY_TYPE
            about[variable].add(kind_of(value) if is_by_type else named(world, value))
    for variables_of in found.values():
        for values in variables_of.values():
            # Null leaves the server's value alone; it says nothing beside another.
            if len(values) > 1:
                values.discard("null")
    return found


def subject(world: World, variables: dict[str, Any]) -> str:
    """The artifact that a request is about; empty if it is about the run."""
    artifact_ids = [variables.get("artifactID"), *(spec["artifactID"] for spec in files_of(variables))]
    names = [world.server.store.artifacts.by_id[found].name for found in artifact_ids if found]
    return variables.get("artifactCollectionName") or next(iter(names), "")


def files_of(variables: dict[str, Any]) -> list[dict[str, Any]]:
    return variables.get("artifactFiles") or []


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each plain value in variables, with the way to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for item in value:
            yield from leaves(item, path)
    else:
        yield path, value


def named(world: World, value: Any) -> str:
    """A value as JSON, with words for the ids that the server made, and without the way to the world's home."""
    ids = {found: artifact.name for found, artifact in world.server.store.artifacts.by_id.items()}
    ids[world.run.storage_id] = "the run"
    if isinstance(value, str) and value in ids:
        return f"the id of {ids[value]}"
    return without_home(world, json.dumps(value))


def puts(world: World) -> dict[str, list[Any]]:
    """What was put under each path: an artifact's name stands for its id."""
    found = defaultdict(list)
    for request in world.server.requests:
        if request.kind == "files":
            path = request.path
            for artifact_id, artifact in world.server.store.artifacts.by_id.items():
                path = path.replace(artifact_id, artifact.name)
            content = None if path.rpartition("/")[2] in MADE_OF_FACTS else request.body
            found[path].append((request.method, own_headers(request), content))
    return dict(found)
