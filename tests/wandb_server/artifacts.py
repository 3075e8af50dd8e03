"""Artifacts: enough of them that the SDK can log a table, and that our client can.

Invariants
----------
* One client id is one artifact, whatever its state: who asks again after a lost answer is told of the same.
* Equal content in one collection is one artifact: a digest that is COMMITTED already is answered, not stored again.
* A version's number is its place among the committed ones; an alias names one version, the newest that asked for it.
* Content is kept once per MD5: a file whose MD5 is known needs no upload.
* Commit refuses an artifact whose manifest names content that nobody uploaded.

URLs are made by the caller; there is no HTTP here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

MANIFEST = "wandb_manifest.json"


@dataclass
class Artifact:
    artifact_id: str
    collection: tuple[str, str, str]
    kind: str
    digest: str
    run: tuple[str, str, str] | None
    aliases: list[str]
    client_id: str | None
    sequence_client_id: str | None
    created_s: float
    state: str = "PENDING"
    version: int | None = None
    manifest_digest: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    input: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.collection[2]

    @property
    def contents(self) -> dict[str, dict[str, Any]]:
        """What its manifest names; nothing before there is one."""
        return self.manifest["contents"] if MANIFEST in self.files else {}

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads(self.files[MANIFEST])


@dataclass
class Artifacts:
    by_id: dict[str, Artifact] = field(default_factory=dict)
    content_by_md5: dict[str, bytes] = field(default_factory=dict)

    def create(self, spec: dict[str, Any], now_s: float) -> Artifact:
        collection = (spec["entityName"], spec["projectName"], spec["artifactCollectionName"])
        asked_before = self.by_client_id(spec["clientID"]) if spec.get("clientID") else None
        if asked_before is not None:
            return asked_before
        if spec.get("enableDigestDeduplication"):
            for artifact in self.committed(collection):
                if artifact.digest == spec["digest"]:
                    self._name(artifact, _aliases(spec))
                    return artifact
        artifact_id = base64.b64encode(f"Artifact:{len(self.by_id) + 1}".encode()).decode()
        run = (collection[0], collection[1], spec["runName"]) if spec.get("runName") else None
        artifact = Artifact(
            artifact_id=artifact_id,
            collection=collection,
            kind=spec["artifactTypeName"],
            digest=spec["digest"],
            run=run,
            aliases=_aliases(spec),
            client_id=spec.get("clientID"),
            sequence_client_id=spec.get("sequenceClientID"),
            created_s=now_s,
            input=dict(spec),
        )
        self.by_id[artifact_id] = artifact
        return artifact

    def committed(self, collection: tuple[str, str, str]) -> list[Artifact]:
        """Oldest first."""
        return [a for a in self.by_id.values() if a.collection == collection and a.state == "COMMITTED"]

    def latest(self, collection: tuple[str, str, str]) -> Artifact | None:
        versions = self.committed(collection)
        return versions[-1] if versions else None

    def named(self, collection: tuple[str, str, str], alias: str) -> Artifact | None:
        """The committed version with that alias; `v0` is the first."""
        return next((a for a in self.committed(collection) if alias in (f"v{a.version}", *a.aliases)), None)

    def of_run(self, run: tuple[str, str, str]) -> list[Artifact]:
        """What the run logged, oldest first."""
        return [a for a in self.by_id.values() if a.run == run and a.state == "COMMITTED"]

    def content(self, artifact_id: str, name: str) -> bytes | None:
        """The content of one file, also when it was uploaded with another artifact."""
        artifact = self.by_id.get(artifact_id)
        if artifact is None:
            return None
        if name in artifact.files:
            return artifact.files[name]
        return self.content_by_md5.get(artifact.contents.get(name, {}).get("digest", ""))

    def by_client_id(self, client_id: str) -> Artifact | None:
        return next((a for a in self.by_id.values() if client_id == a.client_id), None)

    def put(self, artifact_id: str, name: str, content: bytes) -> None:
        self.by_id[artifact_id].files[name] = content
        self.content_by_md5[md5_of(content)] = content

    def missing(self, artifact_id: str) -> list[str]:
        """What keeps the artifact from being committed: names in its manifest without content."""
        artifact = self.by_id[artifact_id]
        if MANIFEST not in artifact.files:
            return [MANIFEST]
        return [
            name
            for name, entry in artifact.contents.items()
            if "ref" not in entry and entry["digest"] not in self.content_by_md5
        ]

    def commit(self, artifact_id: str) -> Artifact:
        artifact = self.by_id[artifact_id]
        if artifact.state != "COMMITTED":
            artifact.version = len(self.committed(artifact.collection))
            artifact.state = "COMMITTED"
            self._name(artifact, artifact.aliases)
        return artifact

    def _name(self, artifact: Artifact, aliases: list[str]) -> None:
        for other in self.committed(artifact.collection):
            other.aliases = [alias for alias in other.aliases if alias not in aliases]
        artifact.aliases += [alias for alias in aliases if alias not in artifact.aliases]


def _aliases(spec: dict[str, Any]) -> list[str]:
    return [alias["alias"] for alias in spec.get("aliases") or []]


def md5_of(content: bytes) -> str:
    """The MD5 as W&B writes it, in base64."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
