"""Speaks to one W&B server over HTTP: asks, and returns what came back.  Decides nothing.

Invariants
----------
* An answer is a value: no status, time-out, refusal or garbage raises.
* The key goes into the `Authorization` header of requests to `base_url` and nowhere else; redirects are not
  followed, so it cannot be carried off.
* What a server sends is untrusted and bounded in size.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import orjson

# Black holes must end. A body may take long on a slow line; silence may not.
TIMEOUT = httpx.Timeout(60.0, connect=10.0, pool=None)
ANSWER_MAX_BYTES = 64 * 1024 * 1024
ERROR_MAX_CHARS = 200

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
# All are always sent; null leaves the server's value alone.
_UPSERT_VARIABLES = re.findall(r"\$(\w+):", _UPSERT)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `status` is None if no answer did, `content` is None unless it is a JSON object."""

    status: int | None
    headers: dict[str, str] = field(default_factory=dict)
    content: dict[str, Any] | None = None
    error: str = ""

    @property
    def data(self) -> dict[str, Any]:
        """A GraphQL answer's data."""
        data = (self.content or {}).get("data")
        return data if isinstance(data, dict) else {}


class WandbApi:
    """One server, one key."""

    def __init__(self, base_url: str, key: Callable[[], str | None]) -> None:
        self.base_url = base_url
        # Asked for at each request, so that a rotated key is noticed.
        self._key = key
        self._client = httpx.AsyncClient(
            timeout=TIMEOUT,
            follow_redirects=False,
            headers={"User-Agent": f"tidelog-syncd (python {platform.python_version()})"},
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=16),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def viewer(self) -> Answer:
        """Ask who the key belongs to: the cheapest question that only W&B can answer."""
        return await self._graphql("Viewer", _VIEWER, {})

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
        return await self._post(f"/files/{path}/file_stream", body)

    async def _graphql(self, operation: str, query: str, variables: dict[str, Any]) -> Answer:
        body = orjson.dumps({"query": query, "operationName": operation, "variables": variables})
        answer = await self._post("/graphql", body)
        errors = (answer.content or {}).get("errors")
        if answer.status is not None and answer.status < 300 and errors:
            # GraphQL reports trouble inside a 200; to the caller it is no acknowledgement, and worth another try.
            return Answer(500, answer.headers, None, f"{operation}: {_message(errors)}")
        return answer

    async def _post(self, path: str, body: bytes) -> Answer:
        key = self._key()
        if key is None:
            return Answer(401, error="no API key is set")
        try:
            async with self._client.stream(
                "POST",
                self.base_url + path,
                content=body,
                auth=("api", key),
                headers={"Content-Type": "application/json"},
            ) as response:
                received = bytearray()
                async for part in response.aiter_bytes():
                    received += part
                    if len(received) > ANSWER_MAX_BYTES:
                        return Answer(None, error="the answer is too large to be W&B's")
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            return Answer(None, error=f"{type(error).__name__}: {error}"[:ERROR_MAX_CHARS])
        content = _object(bytes(received))
        message = _message((content or {}).get("error") or (content or {}).get("errors"))
        return Answer(
            response.status_code,
            dict(response.headers),
            content,
            message if response.status_code >= 400 else "",
        )


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None


def _message(errors: Any) -> str:
    """Return an error body in words, for people; control characters would end up in their terminal."""
    first = errors[0] if isinstance(errors, list) and errors else errors
    text = first.get("message") if isinstance(first, dict) else first
    cleaned = "".join(c for c in str(text or "") if c.isprintable())
    return cleaned[:ERROR_MAX_CHARS]
