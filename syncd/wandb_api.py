"""Speaks to one W&B server: asks, and returns what came back.  Decides nothing.

Invariants
----------
* An answer is a value: whatever happens to a request, nothing raises.
* The key goes with requests to `base_url`, and with no other.
* A URL or a header that a server wants used for an upload is not believed: it leads nowhere less safe than
  `base_url`, and says nothing about the connection, the length or who we are.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterable, Callable, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from syncd.http import Answer, Http, message_of

# Of all runs together: more would only share the line, and cost a look at each connection for each request.
UPLOADS_AT_ONCE = 8

# A line on which a word takes longer is of no use to the lines of a run either.
PROBE_PATIENCE_S = 20.0

_VIEWER = "query Viewer { viewer { id entity username } }"
_RESUME_STATUS = """
query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    id
    name
    entity { id name }
    bucket(name: $name, missingOk: true) {
      id name summaryMetrics displayName logLineCount historyLineCount eventsLineCount historyTail eventsTail
      config tags notes wandbConfig(keys: ["t"])
    }
  }
}"""
_UPSERT = """
mutation UpsertBucket($id: String, $name: String, $project: String, $entity: String, $groupName: String,
  $description: String, $displayName: String, $notes: String, $commit: String, $config: JSONString, $host: String,
  $debug: Boolean, $program: String, $repo: String, $jobType: String, $state: String, $sweep: String,
  $tags: [String!], $summaryMetrics: JSONString) {
  upsertBucket(input: {id: $id, name: $name, groupName: $groupName, modelName: $project, entityName: $entity,
    description: $description, displayName: $displayName, notes: $notes, commit: $commit, config: $config,
    host: $host, debug: $debug, jobProgram: $program, jobRepo: $repo, jobType: $jobType, state: $state,
    sweep: $sweep, tags: $tags, summaryMetrics: $summaryMetrics}) {
    bucket {
      id name displayName description config sweepName historyLineCount
      project { id name entity { id name } }
    }
    inserted
  }
}"""
_CREATE_RUN_FILES = """
mutation CreateRunFiles($entity: String!, $project: String!, $run: String!, $files: [String!]!) {
  createRunFiles(input: {entityName: $entity, projectName: $project, runName: $run, files: $files}) {
    runID uploadHeaders files { name uploadUrl }
  }
}"""
_CREATE_ARTIFACT = """
mutation CreateArtifact($input: CreateArtifactInput!) {
  createArtifact(input: $input) {
    artifact { id state artifactSequence { latestArtifact { id } } }
  }
}"""
_CREATE_ARTIFACT_MANIFEST = """
mutation CreateArtifactManifest($artifactID: ID!, $baseArtifactID: ID, $name: String!, $digest: String!,
  $entityName: String!, $projectName: String!, $runName: String!, $manifestType: ArtifactManifestType!,
  $includeUpload: Boolean!) {
  createArtifactManifest(input: {artifactID: $artifactID, baseArtifactID: $baseArtifactID, name: $name,
    digest: $digest, entityName: $entityName, projectName: $projectName, runName: $runName, type: $manifestType}) {
    artifactManifest {
      id
      file { id uploadUrl @include(if: $includeUpload) uploadHeaders @include(if: $includeUpload) }
    }
  }
}"""
_CREATE_ARTIFACT_FILES = """
mutation CreateArtifactFiles($artifactFiles: [CreateArtifactFileSpecInput!]!,
  $storageLayout: ArtifactStorageLayout!) {
  createArtifactFiles(input: {artifactFiles: $artifactFiles, storageLayout: $storageLayout}) {
    files { edges { node { storagePath uploadUrl uploadHeaders artifact { id } } } }
  }
}"""
_COMMIT_ARTIFACT = """
mutation CommitArtifact($artifactID: ID!) {
  commitArtifact(input: {artifactID: $artifactID}) { artifact { id digest } }
}"""
_CLIENT_ID_MAPPING = """
query ClientIDMapping($clientID: ID!) {
  clientIDMapping(clientID: $clientID) { serverID }
}"""
_ALERT = """
mutation NotifyScriptableRunAlert($entityName: String!, $projectName: String!, $runName: String!,
  $title: String!, $text: String!, $severity: AlertSeverity = INFO, $waitDuration: Duration) {
  notifyScriptableRunAlert(input: {entityName: $entityName, projectName: $projectName, runName: $runName,
    title: $title, text: $text, severity: $severity, waitDuration: $waitDuration}) { success }
}"""
# What an upload may not be told by the server: these belong to the connection, to its length, or to us.
_OUR_HEADERS = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t]*)")
# All are always sent; null leaves the server's value alone.
_UPSERT_VARIABLES = re.findall(r"\$(\w+):", _UPSERT)


class WandbApi:
    """One server, one key."""

    def __init__(self, base_url: str, key: Callable[[], str | None]) -> None:
        self.base_url = base_url
        # Asked for at each request, so that a rotated key is noticed.
        self._key = key
        self._http = Http()
        # They usually go to another host.
        self._uploads = Http()
        self._room = asyncio.Semaphore(UPLOADS_AT_ONCE)

    @property
    def key(self) -> str | None:
        """The key as it is now."""
        return self._key()

    @property
    def sent(self) -> tuple[int, int]:
        """How many requests were begun, and how many bytes their bodies had."""
        both = (self._http, self._uploads)
        return sum(http.requests for http in both), sum(http.sent_bytes for http in both)

    async def close(self) -> None:
        await self._http.close()
        await self._uploads.close()

    async def forget_connections(self) -> None:
        """Let the next request begin on a connection of its own."""
        await self._http.forget_connections()
        await self._uploads.forget_connections()

    async def probe(self) -> Answer:
        """Ask who the key belongs to: the cheapest question that only W&B can answer, on a connection of its own."""
        http = Http(connect_s=PROBE_PATIENCE_S, silence_s=PROBE_PATIENCE_S, answer_s=PROBE_PATIENCE_S)
        try:
            return await self._graphql("Viewer", _VIEWER, {}, http)
        finally:
            await http.close()

    async def resume_status(self, entity: str | None, project: str, run_id: str) -> Answer:
        return await self._graphql(
            "RunResumeStatus", _RESUME_STATUS, {"entity": entity, "project": project, "name": run_id}
        )

    async def upsert_run(self, **variables: Any) -> Answer:
        return await self._graphql(
            "UpsertBucket", _UPSERT, {name: variables.get(name) for name in _UPSERT_VARIABLES}
        )

    async def file_stream(self, entity: str, project: str, run_id: str, body: bytes) -> Answer:
        path = "/".join(quote(part, safe="") for part in (entity, project, run_id))
        return await self._post(f"/files/{path}/file_stream", body, self._http)

    async def create_run_files(self, entity: str, project: str, run_id: str, paths: list[str]) -> Answer:
        """Ask where these files of a run are to be put."""
        return await self._graphql(
            "CreateRunFiles",
            _CREATE_RUN_FILES,
            {"entity": entity, "project": project, "run": run_id, "files": paths},
        )

    async def put(
        self, url: str, upload_headers: Sequence[str], content: AsyncIterable[bytes], size: int
    ) -> Answer:
        """Put content of that size to a URL that the server gave, with the headers that it wants, and no key."""
        schemes = ("https://", "http://") if self._is_plain else ("https://",)
        if not url.lower().startswith(schemes):
            return Answer(403, error="the server gave an upload URL that is not https")
        headers = {**headers_of(upload_headers), "Content-Length": str(size)}
        async with self._room:
            return await self._uploads.send("PUT", url, content, headers)

    async def create_artifact(self, artifact: dict[str, Any]) -> Answer:
        """Begin an artifact, or find that its content is there: `artifact` is W&B's CreateArtifactInput."""
        return await self._graphql("CreateArtifact", _CREATE_ARTIFACT, {"input": artifact})

    async def create_artifact_manifest(
        self,
        entity: str,
        project: str,
        run_id: str,
        artifact_id: str,
        base_artifact_id: str | None,
        digest: str | None = None,
    ) -> Answer:
        """Begin an artifact's manifest; with its `digest`, ask where it is to be put."""
        return await self._graphql(
            "CreateArtifactManifest",
            _CREATE_ARTIFACT_MANIFEST,
            {
                "artifactID": artifact_id,
                "baseArtifactID": base_artifact_id,
                "name": "wandb_manifest.json",
                "digest": digest or "",
                "entityName": entity,
                "projectName": project,
                "runName": run_id,
                "manifestType": "FULL",
                "includeUpload": digest is not None,
            },
        )

    async def create_artifact_files(self, files: list[dict[str, Any]]) -> Answer:
        """Ask where these files of an artifact are to be put: each is W&B's CreateArtifactFileSpecInput."""
        return await self._graphql(
            "CreateArtifactFiles", _CREATE_ARTIFACT_FILES, {"artifactFiles": files, "storageLayout": "V2"}
        )

    async def commit_artifact(self, artifact_id: str) -> Answer:
        return await self._graphql("CommitArtifact", _COMMIT_ARTIFACT, {"artifactID": artifact_id})

    async def client_id_mapping(self, client_id: str) -> Answer:
        """Ask what the artifact is called there that a client knew under that id."""
        return await self._graphql("ClientIDMapping", _CLIENT_ID_MAPPING, {"clientID": client_id})

    async def alert(
        self, entity: str, project: str, run_id: str, title: str, text: str, level: str, wait_ms: int
    ) -> Answer:
        """Notify people once: W&B stays quiet about equal titles for `wait_ms`."""
        variables = {
            "entityName": entity,
            "projectName": project,
            "runName": run_id,
            "title": title,
            "text": text,
            "severity": level,
            "waitDuration": wait_ms,
        }
        return await self._graphql("NotifyScriptableRunAlert", _ALERT, variables)

    @property
    def _is_plain(self) -> bool:
        return self.base_url.lower().startswith("http://")

    async def _graphql(
        self, operation: str, query: str, variables: dict[str, Any], http: Http | None = None
    ) -> Answer:
        body = orjson.dumps({"query": query, "operationName": operation, "variables": variables})
        answer = await self._post("/graphql", body, http or self._http)
        errors = (answer.content or {}).get("errors")
        if answer.status is not None and answer.status < 300 and errors:
            # GraphQL reports trouble inside a 200; to the caller it is no acknowledgement, and worth another try.
            return Answer(500, answer.headers, None, f"{operation}: {message_of(errors)}")
        return answer

    async def _post(self, path: str, body: bytes, http: Http) -> Answer:
        key = self._key()
        if key is None:
            return Answer(401, error="no API key is set")
        return await http.send("POST", self.base_url + path, body, {"Content-Type": "application/json"}, key)


def headers_of(lines: Sequence[str]) -> dict[str, str]:
    """Return those of a server's upload headers that may be sent.

    >>> headers_of(["Content-Type: image/png", "x-token:a", "Host: elsewhere", "x-evil: a\\r\\nCookie: b", "odd"])
    {'Content-Type': 'image/png', 'x-token': 'a'}
    """
    found = [match.groups() for line in lines if (match := _HEADER.fullmatch(line))]
    return {name: value.strip() for name, value in found if name.lower() not in _OUR_HEADERS}
