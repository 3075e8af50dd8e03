"""GraphQL operations → the store.  Answers by the operation's name; the query text is never interpreted.

Invariants
----------
* An answer holds every field that any known client selects, in the shape of its query; more does no harm.
* An operation that is not here is an error that names it: it is never answered with something empty.

Each operation takes (context, variables) and returns the answer's `data`, or raises `Rejected`.
"""

from __future__ import annotations

import datetime
import fnmatch
import json
import math
import mimetypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from tests.wandb_server.artifacts import MANIFEST, Artifact, md5_of
from tests.wandb_server.store import EVENTS, HISTORY, Rejected, RunKey, Store, StoredRun, opaque_id

Data = dict[str, Any]

# Signed URLs of some clouds are valid only together with a header. (Azure's own, x-ms-blob-type, would make the
# SDK speak Azure's protocol.)
UPLOAD_HEADER = "x-upload-token: tidelog"


@dataclass(frozen=True)
class Context:
    store: Store
    files_url: str
    features: frozenset[str]
    now_s: float


def operation_name(body: Data) -> str:
    """The operation of a GraphQL request: as named beside the query, else in it."""
    if body.get("operationName"):
        return body["operationName"]
    found = re.search(r"\b(?:query|mutation)\s+(\w+)", body.get("query") or "")
    return found.group(1) if found else ""


def run_key(store: Store, variables: Data) -> RunKey | None:
    """The run that a request is about, whichever names its operation has for it."""
    fields = flat(variables)
    entity = fields.get("entity") or fields.get("entityName") or store.entity
    project = fields.get("project") or fields.get("projectName")
    run_id = next((fields[name] for name in ("name", "run", "runName", "runId") if fields.get(name)), None)
    return (entity, project, run_id) if project and isinstance(run_id, str) else None


def flat(variables: Data) -> Data:
    """The variables with those of `input` beside them: clients differ in which they nest."""
    nested = variables.get("input")
    return {**variables, **nested} if isinstance(nested, dict) else variables


def execute(context: Context, operation: str, variables: Data) -> Data:
    if operation not in OPERATIONS:
        raise Rejected(
            200, f"operation {operation!r} is unknown to this server; add it to graphql.OPERATIONS"
        )
    try:
        return OPERATIONS[operation](context, flat(variables))
    except KeyError as missing:
        raise Rejected(400, f"operation {operation!r} lacks {missing} in {variables!r}") from None


# People and the server


def viewer(context: Context, variables: Data) -> Data:
    entity = context.store.entity
    return {
        "viewer": {
            "id": opaque_id("User", "1"),
            "name": entity,
            "entity": entity,
            "username": entity,
            "email": f"{entity}@example.com",
            "admin": False,
            "flags": "{}",
            "deletedAt": None,
            "apiKeys": {"edges": []},
            "teams": {"edges": [{"node": {"name": entity}}]},
        }
    }


def server_features(context: Context, variables: Data) -> Data:
    features = [{"name": name, "isEnabled": True} for name in sorted(context.features)]
    return {"serverInfo": {"features": features}}


def server_info(context: Context, variables: Data) -> Data:
    versions = {"max_cli_version": "99.0.0", "min_cli_version": "0.0.1"}
    return {"serverInfo": {"cliVersionInfo": versions, "latestLocalVersionInfo": None}}


def capabilities(context: Context, variables: Data) -> Data:
    """What SDKs before 0.21 ask: which fields the service knows."""
    known = {"QueryType": ["serverInfo"], "MutationType": [], "ServerInfoType": ["cliVersionInfo"]}
    return {kind: {"fields": [{"name": name} for name in names]} for kind, names in known.items()}


def organization(context: Context, variables: Data) -> Data:
    return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}


# Writing a run


def upsert_bucket(context: Context, variables: Data) -> Data:
    run, inserted = context.store.upsert(variables, context.now_s)
    counts, _ = context.store.resume_view(run, context.now_s, counted=False)
    bucket = {**_run_node(context, run), "historyLineCount": counts.history}
    return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}


def run_resume_status(context: Context, variables: Data) -> Data:
    key = run_key(context.store, variables)
    if key is None or not any(run.key[:2] == key[:2] for run in context.store.runs.values()):
        return {"model": None}
    run = context.store.runs.get(key)
    model = {**_project_node(key[0], key[1]), "bucket": _resume_node(context, run) if run else None}
    return {"model": model}


def create_run_files(context: Context, variables: Data) -> Data:
    run = _run(context, variables)
    run.promised.update(variables["files"])
    files = [{"name": name, "uploadUrl": run_file_url(context, run, name)} for name in variables["files"]]
    return {"createRunFiles": {"runID": run.storage_id, "uploadHeaders": [UPLOAD_HEADER], "files": files}}


def mark_run_files_uploaded(context: Context, variables: Data) -> Data:
    context.store.announce(_run(context, variables), variables["files"])
    return {"markRunFilesUploaded": {"success": True}}


def alert(context: Context, variables: Data) -> Data:
    _run(context, variables)
    context.store.alerts.append(dict(variables))
    return {"notifyScriptableRunAlert": {"success": True}}


def stop_run(context: Context, variables: Data) -> Data:
    context.store.run_by_id(variables["id"]).stopped = True
    return {"stopRun": {"success": True}}


def delete_run(context: Context, variables: Data) -> Data:
    context.store.delete(variables["id"])
    return {"deleteRun": {"clientMutationId": None}}


# Reading a run (wandb.Api)


def read_run(context: Context, variables: Data) -> Data:
    """Everything about one run but its rows and files: Run, RunState, RunHistoryKeys, QueryRunInfo …"""
    run = _find(context, variables)
    return _in_project(variables, context, _run_node(context, run) if run else None)


def read_runs(context: Context, variables: Data) -> Data:
    entity, project = variables.get("entity") or context.store.entity, variables["project"]
    found = [run for run in context.store.runs.values() if run.key[:2] == (entity, project)]
    if not found:
        return {"project": None}
    first = int(variables.get("cursor") or 0)
    page = found[first : first + (variables.get("perPage") or 50)]
    end = first + len(page)
    edges = [{"node": _run_node(context, run), "cursor": str(end)} for run in page]
    page_info = {"endCursor": str(end), "hasNextPage": end < len(found)}
    runs = {"edges": edges, "pageInfo": page_info}
    return {
        "project": {
            **_project_node(entity, project),
            "runCount": len(found),
            "readOnly": False,
            "runs": runs,
        }
    }


def history_page(context: Context, variables: Data) -> Data:
    run = _run(context, variables)
    lines = _lines_between(run, variables["minStep"], variables["maxStep"])
    return _in_project(variables, context, {"history": lines})


def sampled_history_page(context: Context, variables: Data) -> Data:
    rows = _sampled(_run(context, variables), json.loads(variables["spec"]))
    return _in_project(variables, context, {"sampledHistory": [rows]})


def run_sampled_history(context: Context, variables: Data) -> Data:
    run = _run(context, variables)
    rows = [_sampled(run, json.loads(spec)) for spec in variables["specs"]]
    return _in_project(variables, context, {"sampledHistory": rows})


def run_full_history(context: Context, variables: Data) -> Data:
    run, samples = _run(context, variables), variables.get("samples")
    lines = {"history": run.history_lines, "events": run.events_lines}
    return _in_project(variables, context, {name: _thinned(those, samples) for name, those in lines.items()})


def run_parquet_history(context: Context, variables: Data) -> Data:
    steps = [step for step in _run(context, variables).steps() if step is not None]
    # Nothing was exported to Parquet: every row is live, from the lowest step on.
    live = [{"_step": min(steps)}] if steps else []
    return _in_project(variables, context, {"parquetHistory": {"parquetUrls": [], "liveData": live}})


def run_files(context: Context, variables: Data) -> Data:
    run = _run(context, variables)
    names = [name for name in run.files if _wanted(name, variables)]
    first = int(variables.get("fileCursor") or 0)
    page = names[first : first + (variables.get("fileLimit") or 50)]
    end = first + len(page)
    edges = [{"node": _file_node(context, run, name), "cursor": str(end)} for name in page]
    files = {"edges": edges, "pageInfo": {"endCursor": str(end), "hasNextPage": end < len(names)}}
    return _in_project(variables, context, {"fileCount": len(names), "files": files})


# Artifacts


def create_artifact(context: Context, variables: Data) -> Data:
    artifact = context.store.artifacts.create(variables, context.now_s)
    latest = context.store.artifacts.latest(artifact.collection)
    sequence = {"id": opaque_id("ArtifactSequence", *artifact.collection)}
    sequence["latestArtifact"] = {"id": latest.artifact_id} if latest else None  # type: ignore[assignment]
    node = {**_artifact_node(artifact), "artifactSequence": sequence}
    return {"createArtifact": {"artifact": node}}


def artifact_type(context: Context, variables: Data) -> Data:
    """The type of the collection that `name:alias` is in; null while nothing was committed to it."""
    name = variables["name"].partition(":")[0]
    latest = context.store.artifacts.latest((variables["entity"], variables["project"], name))
    artifact = {"artifactType": {"name": latest.kind}} if latest else None
    return {"project": {"artifact": artifact}}


def create_artifact_manifest(context: Context, variables: Data) -> Data:
    artifact = _artifact(context, variables["artifactID"])
    artifact.manifest_digest = variables.get("digest") or artifact.manifest_digest
    return {"createArtifactManifest": {"artifactManifest": _manifest_node(context, artifact)}}


def update_artifact_manifest(context: Context, variables: Data) -> Data:
    # A manifest's id is its artifact's: there is one manifest per artifact here.
    artifact = _artifact(context, variables["artifactManifestID"])
    artifact.manifest_digest = variables.get("digest") or artifact.manifest_digest
    return {"updateArtifactManifest": {"artifactManifest": _manifest_node(context, artifact)}}


def create_artifact_files(context: Context, variables: Data) -> Data:
    nodes = [_artifact_file_node(context, spec) for spec in variables["artifactFiles"]]
    return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}


def commit_artifact(context: Context, variables: Data) -> Data:
    artifact = _artifact(context, variables["artifactID"])
    missing = context.store.artifacts.missing(artifact.artifact_id)
    if missing:
        context.store.violate(f"artifact {artifact.name!r} is committed without {', '.join(missing)}")
        raise Rejected(400, f"artifact {artifact.name!r} lacks {', '.join(missing)}")
    context.store.artifacts.commit(artifact.artifact_id)
    return {"commitArtifact": {"artifact": _artifact_node(artifact)}}


def use_artifact(context: Context, variables: Data) -> Data:
    return {"useArtifact": {"artifact": _artifact_node(_artifact(context, variables["artifactID"]))}}


def artifact_manifest(context: Context, variables: Data) -> Data:
    artifact = _artifact(context, variables["artifact_id"])
    url = artifact_file_url(context, artifact.artifact_id, MANIFEST)
    return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}


def client_id_mapping(context: Context, variables: Data) -> Data:
    artifact = context.store.artifacts.by_client_id(variables["clientID"])
    return {"clientIDMapping": {"serverID": artifact.artifact_id} if artifact else None}


# Reading artifacts (wandb.Api)


def artifact_by_id(context: Context, variables: Data) -> Data:
    return {"artifact": _artifact_node(_artifact(context, variables["id"]))}


def artifact_created_by(context: Context, variables: Data) -> Data:
    run = context.store.runs.get(_artifact(context, variables["id"]).run or ("", "", ""))
    return {"artifact": {"createdBy": _run_node(context, run) if run else None}}


def artifact_manifest_by_id(context: Context, variables: Data) -> Data:
    return artifact_manifest(context, {"artifact_id": variables["id"]})


def artifact_membership(context: Context, variables: Data) -> Data:
    """The version that `name:alias` means, or null."""
    name, _, alias = variables["name"].partition(":")
    collection = (variables["entity"], variables["project"], name)
    artifact = context.store.artifacts.named(collection, alias or "latest")
    return {"project": {"artifactCollectionMembership": _membership_node(artifact) if artifact else None}}


def artifact_membership_files(context: Context, variables: Data) -> Data:
    collection = (variables["entity"], variables["project"], variables["collection"])
    artifact = context.store.artifacts.named(collection, variables["alias"])
    if artifact is None:
        return {"project": {"artifactCollection": None}}
    wanted = variables.get("fileNames")
    # A reference leads elsewhere: it is no file here.
    stored = [name for name, entry in artifact.contents.items() if "ref" not in entry]
    names = [name for name in stored if not wanted or name in wanted]
    connection = _connection([_content_node(context, artifact, name) for name in names], variables)
    membership = {"files": {**connection, "totalCount": len(names)}}
    return {
        "project": {
            "artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": membership}
        }
    }


def run_output_artifacts(context: Context, variables: Data) -> Data:
    run = _find(context, variables)
    logged = context.store.artifacts.of_run(run.key) if run else []
    connection = _connection([_artifact_node(artifact) for artifact in logged], variables)
    artifacts = {"artifacts": {**connection, "totalCount": len(logged)}}
    return _in_project(variables, context, artifacts if run else None)


OPERATIONS: dict[str, Callable[[Context, Data], Data]] = {
    "Viewer": viewer,
    "GetViewer": viewer,
    "GetDefaultEntity": viewer,
    "ServerFeaturesQuery": server_features,
    "ServerInfo": server_info,
    "ProbeServerCapabilities": capabilities,
    "OrganizationCoreWeaveOrganizationID": organization,
    "UpsertBucket": upsert_bucket,
    "RunResumeStatus": run_resume_status,
    "CreateRunFiles": create_run_files,
    "MarkRunFilesUploaded": mark_run_files_uploaded,
    "NotifyScriptableRunAlert": alert,
    "StopRun": stop_run,
    "DeleteRun": delete_run,
    "Run": read_run,
    "RunState": read_run,
    "RunHistoryKeys": read_run,
    "RunStoppedStatus": read_run,
    "QueryRunInfo": read_run,
    "Runs": read_runs,
    "HistoryPage": history_page,
    "SampledHistoryPage": sampled_history_page,
    "RunSampledHistory": run_sampled_history,
    "RunFullHistory": run_full_history,
    "RunParquetHistory": run_parquet_history,
    "RunFiles": run_files,
    "ArtifactType": artifact_type,
    "CreateArtifact": create_artifact,
    "CreateArtifactManifest": create_artifact_manifest,
    "UpdateArtifactManifest": update_artifact_manifest,
    "CreateArtifactFiles": create_artifact_files,
    "CommitArtifact": commit_artifact,
    "UseArtifact": use_artifact,
    "ArtifactManifest": artifact_manifest,
    "ClientIDMapping": client_id_mapping,
    "ArtifactByID": artifact_by_id,
    "ArtifactCreatedBy": artifact_created_by,
    "FetchArtifactManifest": artifact_manifest_by_id,
    "ArtifactMembershipByName": artifact_membership,
    "ArtifactMembershipFiles": artifact_membership_files,
    "GetArtifactMembershipFileUrls": artifact_membership_files,
    "RunOutputArtifacts": run_output_artifacts,
}


# Where files are put and fetched, without a key


def run_file_url(context: Context, run: StoredRun, name: str) -> str:
    return _signed(context, ["runs", *run.key], name)


def artifact_file_url(context: Context, artifact_id: str, name: str) -> str:
    return _signed(context, ["artifacts", artifact_id], name)


def _signed(context: Context, parts: list[str], name: str) -> str:
    path = "/".join(quote(part, safe="") for part in parts)
    return f"{context.files_url}/_files/{path}/{quote(name)}?signature={context.store.signature}"


# Nodes


def _run(context: Context, variables: Data) -> StoredRun:
    run = _find(context, variables)
    if run is None:
        raise Rejected(404, f"run {run_key(context.store, variables)!r} is unknown")
    return run


def _find(context: Context, variables: Data) -> StoredRun | None:
    key = run_key(context.store, variables)
    return context.store.runs.get(key) if key else None


def _artifact(context: Context, artifact_id: str) -> Artifact:
    if artifact_id not in context.store.artifacts.by_id:
        raise Rejected(404, f"artifact {artifact_id!r} is unknown")
    return context.store.artifacts.by_id[artifact_id]


def _project_node(entity: str, project: str) -> Data:
    return {
        "id": opaque_id("Project", project, entity),
        "internalId": "1",
        "name": project,
        "entity": {"id": opaque_id("Entity", entity), "name": entity},
    }


def _in_project(variables: Data, context: Context, run_node: Data | None) -> Data:
    key = run_key(context.store, variables)
    if run_node is None or key is None:
        return {"project": None}
    # Both names: clients ask the project for `run` or for `bucket`.
    project = {**_project_node(key[0], key[1]), "run": run_node, "bucket": run_node}
    return {"project": project}


def _run_node(context: Context, run: StoredRun) -> Data:
    last_event = run.lines[EVENTS][-1] if run.lines[EVENTS] else "{}"
    return {
        "__typename": "Run",
        "id": run.storage_id,
        "name": run.run_id,
        "displayName": run.display_name,
        "description": run.params.get("description"),
        "notes": run.notes,
        "tags": list(run.tags),
        "group": run.group,
        "jobType": run.job_type,
        "commit": run.params.get("commit"),
        "sweepName": run.params.get("sweep"),
        "state": run.state(context.now_s),
        "stopped": run.stopped,
        "config": run.config_text,
        "summaryMetrics": run.summary_text,
        "systemMetrics": last_event,
        "historyLineCount": len(run.lines[HISTORY]),
        "historyKeys": {"lastStep": run.last_step},
        "readOnly": False,
        "createdAt": _iso(run.created_s),
        "heartbeatAt": _iso(run.heartbeat_s),
        "projectId": "1",
        "project": _project_node(run.entity, run.project),
        "user": {"name": run.entity, "username": run.entity},
    }


def _resume_node(context: Context, run: StoredRun) -> Data:
    counts, seen = context.store.resume_view(run, context.now_s)
    started_block = {"t": run.config["_wandb"]["t"]} if run.started else {}
    return {
        "id": run.storage_id,
        "name": run.run_id,
        "displayName": run.display_name,
        "summaryMetrics": seen.summary_text,
        "historyLineCount": counts.history,
        "eventsLineCount": counts.events,
        "logLineCount": counts.console,
        "historyTail": json.dumps(run.lines[HISTORY][: seen.history][-1:]),
        "eventsTail": json.dumps(run.lines[EVENTS][: seen.events][-1:]),
        "config": run.config_text,
        "tags": list(run.tags),
        "notes": run.notes,
        "wandbConfig": json.dumps(started_block),
    }


def _file_node(context: Context, run: StoredRun, name: str) -> Data:
    url = run_file_url(context, run, name)
    return {
        "id": opaque_id("File", *run.key, name),
        "name": name,
        "url": url,
        "directUrl": url,
        "sizeBytes": str(len(run.files[name])),
        "mimetype": mimetypes.guess_type(name)[0],
        "updatedAt": _iso(run.file_times_s[name]),
        "md5": md5_of(run.files[name]),
    }


def _artifact_node(artifact: Artifact) -> Data:
    entity, project, name = artifact.collection
    collection = {"name": name, "project": _project_node(entity, project)}
    in_collection = {"__typename": "ArtifactSequence", **collection}
    aliases = [{**alias, "artifactCollection": in_collection} for alias in _alias_nodes(artifact)]
    sizes = [entry.get("size", 0) for entry in artifact.contents.values()]
    return {
        "__typename": "Artifact",
        "id": artifact.artifact_id,
        "artifactSequence": in_collection,
        "versionIndex": artifact.version,
        "artifactType": {"name": artifact.kind},
        "description": artifact.input.get("description"),
        "metadata": artifact.input.get("metadata"),
        "ttlDurationSeconds": -2,
        "ttlIsInherited": True,
        "tags": [],
        "historyStep": artifact.input.get("historyStep"),
        "state": artifact.state,
        "size": sum(sizes),
        "digest": artifact.digest,
        "digestAlgorithm": artifact.input.get("digestAlgorithm"),
        "commitHash": artifact.artifact_id,
        "fileCount": len(sizes),
        "createdAt": _iso(artifact.created_s),
        "updatedAt": None,
        "aliases": aliases,
    }


def _alias_nodes(artifact: Artifact) -> list[Data]:
    return [
        {"__typename": "ArtifactAlias", "id": opaque_id("Alias", *artifact.collection, alias), "alias": alias}
        for alias in artifact.aliases
    ]


def _membership_node(artifact: Artifact) -> Data:
    node = _artifact_node(artifact)
    return {
        "__typename": "ArtifactCollectionMembership",
        "id": opaque_id("Membership", artifact.artifact_id),
        "versionIndex": artifact.version,
        "createdAt": node["createdAt"],
        "aliases": _alias_nodes(artifact),
        "artifactCollection": node["artifactSequence"],
        "artifact": node,
    }


def _content_node(context: Context, artifact: Artifact, name: str) -> Data:
    entry = artifact.contents[name]
    url = artifact_file_url(context, artifact.artifact_id, name)
    return {
        "__typename": "File",
        "id": opaque_id("File", artifact.artifact_id, name),
        "name": name,
        "url": url,
        "sizeBytes": entry.get("size", 0),
        "storagePath": name,
        "mimetype": mimetypes.guess_type(name)[0],
        "updatedAt": None,
        "digest": entry["digest"],
        "md5": entry["digest"],
        "directUrl": url,
    }


def _connection(nodes: list[Data], variables: Data) -> Data:
    """One page of nodes, as GraphQL's lists are read."""
    first = int(variables.get("cursor") or 0)
    end = first + (variables.get("perPage") or 50)
    edges = [{"node": node, "cursor": str(end)} for node in nodes[first:end]]
    return {"edges": edges, "pageInfo": {"endCursor": str(end), "hasNextPage": end < len(nodes)}}


def _manifest_node(context: Context, artifact: Artifact) -> Data:
    url = artifact_file_url(context, artifact.artifact_id, MANIFEST)
    file = {"id": artifact.artifact_id, "uploadUrl": url, "uploadHeaders": [UPLOAD_HEADER]}
    return {"id": artifact.artifact_id, "file": file}


def _artifact_file_node(context: Context, spec: Data) -> Data:
    artifact = _artifact(context, spec["artifactID"])
    known = spec["md5"] in context.store.artifacts.content_by_md5
    return {
        "storagePath": spec["name"],
        "uploadUrl": None if known else artifact_file_url(context, artifact.artifact_id, spec["name"]),
        "uploadHeaders": [UPLOAD_HEADER],
        "uploadMultipartUrls": None,
        "artifact": {"id": artifact.artifact_id},
    }


def _lines_between(run: StoredRun, min_step: int, max_step: int) -> list[str]:
    lines = run.history_lines
    return [
        line
        for step, line in zip(run.steps(), lines, strict=True)
        if step is not None and min_step <= step < max_step
    ]


def _sampled(run: StoredRun, spec: Data) -> list[Data]:
    """Rows that have every key asked for, cut to these keys."""
    keys = list(dict.fromkeys(spec["keys"]))
    low, high = spec.get("minStep", 0), spec.get("maxStep", math.inf)
    rows = (json.loads(line) for line in _lines_between(run, low, high + 1))
    return [
        {key: _plain(row[key]) for key in keys}
        for row in _thinned([row for row in rows if all(key in row for key in keys)], spec.get("samples"))
    ]


def _thinned(rows: list[Any], samples: int | None) -> list[Any]:
    """At most `samples` of the rows, spread evenly; first come their order, then their number."""
    if not samples or len(rows) <= samples:
        return rows
    return [rows[i * len(rows) // samples] for i in range(samples)]


def _plain(value: Any) -> Any:
    """The service writes the values that JSON lacks as strings when rows are JSON objects."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def _wanted(name: str, variables: Data) -> bool:
    if variables.get("fileNames"):
        return name in variables["fileNames"]
    pattern = variables.get("pattern")
    return not pattern or fnmatch.fnmatchcase(name, pattern.replace("%", "*").replace("_", "?"))


def _iso(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
