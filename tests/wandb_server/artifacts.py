"""Artifacts: enough of them that the SDK can log a table, and that our client can.

Invariants
----------
* Equal content in one collection is one artifact: a digest that is COMMITTED already is answered, not stored again.
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
    state: str = "PENDING"
    manifest_digest: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    input: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.collection[2]

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads(self.files[MANIFEST])


@dataclass
class Artifacts:
    by_id: dict[str, Artifact] = field(default_factory=dict)
    content_by_md5: dict[str, bytes] = field(default_factory=dict)

    def create(self, spec: dict[str, Any]) -> Artifact:
        collection = (spec["entityName"], spec["projectName"], spec["artifactCollectionName"])
        if spec.get("enableDigestDeduplication"):
            for artifact in self.committed(collection):
                if artifact.digest == spec["digest"]:
                    artifact.aliases.extend(_new_aliases(artifact, spec))
                    return artifact
        artifact_id = base64.b64encode(f"Artifact:{len(self.by_id) + 1}".encode()).decode()
        run = (collection[0], collection[1], spec["runName"]) if spec.get("runName") else None
        artifact = Artifact(
            artifact_id=artifact_id,
            collection=collection,
            kind=spec["artifactTypeName"],
            digest=spec["digest"],
            run=run,
            aliases=[alias["alias"] for alias in spec.get("aliases") or []],
            client_id=spec.get("clientID"),
            sequence_client_id=spec.get("sequenceClientID"),
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

    def by_client_id(self, client_id: str) -> Artifact | None:
        return next((a for a in self.by_id.values() if client_id == a.client_id), None)

    def put(self, artifact_id: str, name: str, content: bytes) -> None:
        self.by_id[artifact_id].files[name] = content
        self.content_by_md5[_md5(content)] = content

    def missing(self, artifact_id: str) -> list[str]:
        """What keeps the artifact from being committed: names in its manifest without content."""
        artifact = self.by_id[artifact_id]
        if MANIFEST not in artifact.files:
            return [MANIFEST]
        contents = artifact.manifest["contents"]
        return [
            name
            for name, entry in contents.items()
            if "ref" not in entry and entry["digest"] not in self.content_by_md5
        ]

    def commit(self, artifact_id: str) -> Artifact:
        artifact = self.by_id[artifact_id]
        artifact.state = "COMMITTED"
        return artifact


def _new_aliases(artifact: Artifact, spec: dict[str, Any]) -> list[str]:
    return [a["alias"] for a in spec.get("aliases") or [] if a["alias"] not in artifact.aliases]


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
