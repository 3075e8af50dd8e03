"""Brings one artifact to W&B: the whole sequence of requests, in its order.

    artifact record ──▶ CreateArtifact ──▶ manifest begun ──▶ files asked for, PUT ──▶ manifest PUT ──▶ commit
                             └─ COMMITTED: the same content is there, done

Invariants
----------
* Nothing is sent of an artifact that is not whole here: its manifest is proved by record and content, and every
  file is looked at, before the first request.
* What refers to another artifact of the run by its client's id refers to it by the server's there.
* Commit comes last, when the server has every file and the manifest: before it, nobody sees the artifact.
* Doing all of it again, from any point and in any process, ends in the same: the ids are the record's, equal
  content is found by its digest, and only files that the server lacks are put.

One request carries each file, whatever its size.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from eventlog.nested import as_sent
from syncd.http import Answer, dig
from syncd.shipper import Outcome, Verdict
from syncd.transfer import (
    DAMAGED,
    TRIES,
    Content,
    Made,
    NotSent,
    Stored,
    Target,
    nothing_comes,
    outcome_of_answer,
    put,
    put_all,
    read_stored,
)
from syncd.wandb_api import WandbApi

# Signed URLs are asked for when they are needed: they expire.
ASK_AT_ONCE = 50
_ACK = Outcome(Verdict.ACK)
_ENTRY_KEYS = ("digest", "ref", "size", "extra")
_BY_CLIENT_ID, _BY_SERVER_ID = "wandb-client-artifact://", "wandb-artifact://"
UNKNOWN_REFERENCE = "artifact that refers to another which W&B does not know"


class ArtifactUpload:
    """One artifact on its way.  `step` until it is over."""

    def __init__(
        self,
        run_dir: Path,
        api: WandbApi,
        entity: str,
        project: str,
        run_id: str,
        record: dict[str, Any],
        may_come: Callable[[], bool] = nothing_comes,
    ) -> None:
        self.is_over = False
        self.stored: tuple[str, ...] = ()
        """Always empty: an artifact's files are no files of the run."""
        self.not_stored: Counter[str] = Counter()
        """Why it was not stored, if it is over without."""
        self._run_dir = run_dir
        self._may_come = may_come
        self._api = api
        self._run = (entity, project, run_id)
        self._record = record
        self._entries: dict[str, dict[str, Any]] | None = None
        self._server_ids: dict[str, str] = {}
        """The ids of other artifacts, in hex digits, by what their client called them."""
        self._tries: Counter[str] = Counter()
        self._start_anew()

    def _start_anew(self) -> None:
        self._id = self._manifest_id = ""
        self._base_id: str | None = None
        self._has_manifest = False
        # Per file that the server has, the artifact in which it was first put there.
        self._births: dict[str, str] = {}

    async def step(self) -> Outcome:
        """Go as far as one try gets; anything but `ACK` wants to be tried again later."""
        try:
            if self._entries is None:
                self._entries = await self._proved_entries()
            for act in (
                self._create,
                self._begin_manifest,
                self._put_files,
                self._resolve_references,
                self._put_manifest,
                self._commit,
            ):
                outcome = await act()
                if outcome.verdict is not Verdict.ACK or self.is_over:
                    return outcome
        except NotSent as not_sent:
            return self._not_put("", not_sent.outcome)
        return outcome

    # -- what is here ------------------------------------------------------------------------------------------

    async def _proved_entries(self) -> dict[str, dict[str, Any]]:
        entries = parse_entries(read_stored(self._run_dir, str(self._record.get("manifest")), self._may_come))
        if entries is None or manifest_digest(entries) != self._record.get("digest"):
            raise NotSent(Outcome(Verdict.REFUSED, DAMAGED))
        for content in self._contents(entries).values():
            await content.prepare()
        return entries

    def _contents(self, entries: dict[str, dict[str, Any]]) -> dict[str, Content]:
        return {
            path: Stored(self._run_dir, entry["sha256"], entry["size"], self._may_come)
            for path, entry in entries.items()
            if "ref" not in entry
        }

    # -- the sequence ------------------------------------------------------------------------------------------

    async def _create(self) -> Outcome:
        if self._id:
            return _ACK
        answer = await self._api.create_artifact(artifact_input(self._record, *self._run))
        outcome = outcome_of_answer(answer)
        if outcome.verdict is not Verdict.ACK:
            return self._refused(outcome) if _is_about_content(outcome) else outcome
        artifact = dig(answer.data, "createArtifact", "artifact")
        artifact_id, state = artifact.get("id"), artifact.get("state")
        if state == "COMMITTED":
            self.is_over = True
            return outcome
        # DELETED: so old servers call what is pending.
        if not isinstance(artifact_id, str) or state not in ("PENDING", "DELETED"):
            return _senseless("createArtifact")
        latest = dig(artifact, "artifactSequence", "latestArtifact").get("id")
        self._id, self._base_id = artifact_id, latest if isinstance(latest, str) else None
        return outcome

    async def _begin_manifest(self) -> Outcome:
        if self._manifest_id:
            return _ACK
        answer = await self._api.create_artifact_manifest(*self._run, self._id, self._base_id)
        outcome = self._passed(answer)
        if outcome.verdict is Verdict.ACK:
            manifest_id = dig(answer.data, "createArtifactManifest", "artifactManifest").get("id")
            if not isinstance(manifest_id, str):
                return _senseless("createArtifactManifest")
            self._manifest_id = manifest_id
        return outcome

    async def _put_files(self) -> Outcome:
        assert self._entries is not None
        contents = self._contents(self._entries)
        outcome = _ACK
        while left := [path for path in contents if path not in self._births]:
            asked = left[:ASK_AT_ONCE]
            specs = [
                {
                    "artifactID": self._id,
                    "artifactManifestID": self._manifest_id,
                    "name": path,
                    "md5": self._entries[path]["digest"],
                }
                for path in asked
            ]
            answer = await self._api.create_artifact_files(specs)
            outcome = self._passed(answer)
            if outcome.verdict is not Verdict.ACK:
                return outcome
            nodes = _nodes(answer)
            # The answers have no names of ours: only their order says which is which.
            if len(nodes) != len(asked):
                return _senseless("createArtifactFiles")
            births = {
                path: str(dig(node, "artifact").get("id") or self._id)
                for path, node in zip(asked, nodes, strict=True)
            }
            targets = {
                path: Target.of(node.get("uploadUrl"), node.get("uploadHeaders"))
                for path, node in zip(asked, nodes, strict=True)
            }
            # What has no URL is there already.
            self._births.update((path, births[path]) for path in asked if targets[path] is None)
            jobs = {path: (contents[path], target) for path, target in targets.items() if target is not None}
            for path, result in (await put_all(self._api, jobs)).items():
                if result.verdict is Verdict.ACK:
                    self._births[path] = births[path]
                elif outcome.verdict is Verdict.ACK:
                    outcome = self._not_put(path, result)
            if outcome.verdict is not Verdict.ACK or self.is_over:
                return outcome
        return outcome

    async def _resolve_references(self) -> Outcome:
        assert self._entries is not None
        outcome = _ACK
        for client_id in dict.fromkeys(map(_client_id, self._entries.values())):
            if client_id is None or client_id in self._server_ids:
                continue
            answer = await self._api.client_id_mapping(client_id)
            outcome = self._passed(answer)
            if outcome.verdict is not Verdict.ACK or self.is_over:
                return outcome
            server_id = dig(answer.data, "clientIDMapping").get("serverID")
            if not isinstance(server_id, str):
                return self._give_up(UNKNOWN_REFERENCE)
            try:
                self._server_ids[client_id] = base64.b64decode(server_id, validate=True).hex()
            except ValueError:
                return self._give_up(UNKNOWN_REFERENCE)
        return outcome

    def _resolved_entries(self) -> dict[str, dict[str, Any]]:
        assert self._entries is not None
        resolved = {}
        for path, entry in self._entries.items():
            client_id = _client_id(entry)
            if client_id is not None:
                below = entry["ref"].removeprefix(_BY_CLIENT_ID + client_id)
                entry = {**entry, "ref": _BY_SERVER_ID + self._server_ids[client_id] + below}
            resolved[path] = entry
        return resolved

    async def _put_manifest(self) -> Outcome:
        if self._has_manifest:
            return _ACK
        manifest = Made(manifest_json(self._resolved_entries(), self._births))
        md5 = base64.b64encode(hashlib.md5(manifest.data, usedforsecurity=False).digest()).decode()
        answer = await self._api.create_artifact_manifest(*self._run, self._id, self._base_id, md5)
        outcome = self._passed(answer)
        if outcome.verdict is not Verdict.ACK:
            return outcome
        file = dig(answer.data, "createArtifactManifest", "artifactManifest", "file")
        target = Target.of(file.get("uploadUrl"), file.get("uploadHeaders"))
        if target is None:
            return _senseless("createArtifactManifest")
        outcome = await put(self._api, manifest, target)
        if outcome.verdict is not Verdict.ACK:
            return self._not_put("", outcome)
        self._has_manifest = True
        return outcome

    async def _commit(self) -> Outcome:
        artifact_id = self._id
        # An answer that is lost leaves open whether it was carried out: the first request of the sequence tells.
        self._id = ""
        outcome = outcome_of_answer(await self._api.commit_artifact(artifact_id))
        if outcome.verdict is Verdict.ACK:
            self.is_over = True
            return outcome
        self._start_anew()
        return self._refused(outcome) if _is_about_content(outcome) else self._gone(outcome)

    # -- answers -----------------------------------------------------------------------------------------------

    def _passed(self, answer: Answer) -> Outcome:
        outcome = outcome_of_answer(answer)
        return self._refused(outcome) if _is_about_content(outcome) else self._gone(outcome)

    def _gone(self, outcome: Outcome) -> Outcome:
        """The run was let in before: what is refused now is the artifact that was begun, so another is."""
        if outcome.verdict is not Verdict.FORBIDDEN:
            return outcome
        self._start_anew()
        return self._try_again("", _refusal(outcome))

    def _refused(self, outcome: Outcome) -> Outcome:
        return self._give_up(_refusal(outcome))

    def _not_put(self, path: str, outcome: Outcome) -> Outcome:
        """Say what follows from a file that is not stored."""
        reason = f"artifact with a {outcome.reason}"
        if outcome.verdict is Verdict.REFUSED:
            return self._give_up(reason)
        return self._try_again(path, reason) if outcome.verdict is Verdict.FORBIDDEN else outcome

    def _try_again(self, what: str, reason: str) -> Outcome:
        self._tries[what] += 1
        return self._give_up(reason) if self._tries[what] >= TRIES else Outcome(Verdict.RETRY, reason)

    def _give_up(self, reason: str) -> Outcome:
        self.is_over = True
        self.not_stored[reason] += 1
        return _ACK


def parse_entries(manifest: bytes) -> dict[str, dict[str, Any]] | None:
    """Return what a logged manifest lists, or None if it is none."""
    try:
        entries = orjson.loads(manifest)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
        return None
    return entries


def manifest_digest(entries: dict[str, dict[str, Any]]) -> str:
    """Return W&B's digest of an artifact: MD5 over its paths and their digests.

    >>> manifest_digest({"x.txt": {"digest": "XUFAKrxLKna5cZ2REBfFkg=="}})
    '863244898d432037ae3026ae926a7e48'
    """
    lines = [f"{path}:{entry['digest']}\n" for path, entry in sorted(entries.items())]
    text = "wandb-artifact-manifest-v1\n" + "".join(lines)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def manifest_json(entries: dict[str, dict[str, Any]], births: dict[str, str]) -> bytes:
    """Return the manifest as W&B keeps it; it finds a file by its digest and the artifact of its birth."""
    contents = {}
    for path, entry in sorted(entries.items()):
        # A reference whose size nobody knows has 0 there.
        contents[path] = {"size": 0, **{key: entry[key] for key in _ENTRY_KEYS if key in entry}}
        if path in births:
            contents[path]["birthArtifactID"] = births[path]
    return orjson.dumps(
        {
            "version": 1,
            "storagePolicy": "wandb-storage-policy-v1",
            "storagePolicyConfig": {"storageLayout": "V2"},
            "contents": contents,
        }
    )


def artifact_input(record: dict[str, Any], entity: str, project: str, run_id: str) -> dict[str, Any]:
    """Return the record as W&B's CreateArtifactInput, without what it leaves open."""
    name = record.get("name")
    aliases = dict.fromkeys(("latest", *_texts(record.get("aliases"))))
    wanted = {
        "entityName": entity,
        "projectName": project,
        "runName": run_id,
        "artifactTypeName": record.get("type"),
        "artifactCollectionName": name,
        "digest": record.get("digest"),
        "digestAlgorithm": "MANIFEST_MD5",
        "description": record.get("description"),
        "aliases": [{"artifactCollectionName": name, "alias": alias} for alias in aliases],
        "tags": [{"tagName": tag} for tag in _texts(record.get("tags"))] or None,
        "metadata": orjson.dumps(as_sent(record.get("metadata") or {})).decode(),
        "enableDigestDeduplication": True,
        "clientID": record.get("client_id"),
        "sequenceClientID": record.get("sequence_client_id"),
        "historyStep": record.get("step"),
    }
    return {key: value for key, value in wanted.items() if value is not None}


def _client_id(entry: dict[str, Any]) -> str | None:
    """
    >>> _client_id({"digest": "", "ref": "wandb-client-artifact://0a1b/t.table.json"})
    '0a1b'
    """
    ref = entry.get("ref", "")
    return ref.removeprefix(_BY_CLIENT_ID).partition("/")[0] if ref.startswith(_BY_CLIENT_ID) else None


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("digest"), str):
        return False
    if "ref" in entry:
        return isinstance(entry["ref"], str)
    return isinstance(entry.get("sha256"), str) and type(entry.get("size")) is int


def _refusal(outcome: Outcome) -> str:
    return f"artifact refused by the server ({outcome.reason})"


def _is_about_content(outcome: Outcome) -> bool:
    return outcome.verdict in (Verdict.REFUSED, Verdict.TOO_LARGE)


def _nodes(answer: Answer) -> list[dict[str, Any]]:
    edges = dig(answer.data, "createArtifactFiles", "files").get("edges")
    return [dig(edge, "node") for edge in edges] if isinstance(edges, list) else []


def _senseless(operation: str) -> Outcome:
    return Outcome(Verdict.RETRY, f"the server's answer makes no sense: {operation}")
