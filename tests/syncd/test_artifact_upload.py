"""One artifact on its way to a real server: the sequence, its repetition, and W&B's own SDK reading it back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd.artifacts import ASK_AT_ONCE, UNKNOWN_REFERENCE, manifest_digest
from syncd.http import Answer
from syncd.shipper import Verdict
from syncd.transfer import DAMAGED, MISSING
from syncd.uploads import Uploads
from syncd.wandb_api import WandbApi
from tests.syncd.test_uploads import DEADLINE_S, RUN, TROUBLE, WRITER, Bringing, FileLog, dies_at
from tests.wandb_server import Fault, WandbServer
from tests.wandb_server.artifacts import Artifact
from tests.wandb_server.server import API_KEY

OPERATIONS = ["CreateArtifact", "CreateArtifactManifest", "CreateArtifactFiles", "CommitArtifact"]


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer(entity="ent") as running:
        running.seed_run("demo", "run")
        yield running


@pytest.fixture
def log(tmp_path: Path) -> FileLog:
    return FileLog(tmp_path / "root")


@pytest.fixture
def bringing(server: WandbServer, log: FileLog) -> Bringing:
    return Bringing(server, log)


def log_artifact(log: FileLog, contents: dict[str, bytes], client_id: str = "c1", **record: Any) -> None:
    """Log an artifact as `eventlog` does."""
    entries: dict[str, dict[str, Any]] = {
        path: {
            "digest": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "size": len(content),
            "sha256": log.store(content),
        }
        for path, content in contents.items()
    }
    entries.update(record.pop("references", {}))
    data = {
        "name": "data",
        "type": "dataset",
        "description": None,
        "metadata": {},
        "aliases": [],
        "tags": [],
        "client_id": client_id,
        "sequence_client_id": "s" + client_id,
        "digest": manifest_digest(entries),
        "size": sum(map(len, contents.values())),
        "manifest": log.store(json.dumps(entries).encode()),
    }
    log.stream.log("artifact", **{**data, **record})


def committed(server: WandbServer, name: str = "data") -> list[Artifact]:
    return server.store.artifacts.committed(("ent", "demo", name))


def puts(server: WandbServer) -> list[str]:
    return [r.path.rpartition("/")[2] for r in server.requests if r.kind == "files" and r.method == "PUT"]


def test_an_artifact_arrives_in_the_order_of_the_sdk(server: WandbServer, log: FileLog, bringing: Bringing):
    log_artifact(log, {"x.txt": b"hello"}, description="d", metadata={"k": 1}, aliases=["best"], tags=["tg"])

    bringing.run()

    (artifact,) = committed(server)
    asked = [r.operation or "PUT" for r in server.requests]
    assert asked == [
        "CreateArtifact",
        "CreateArtifactManifest",
        "CreateArtifactFiles",
        "PUT",
        "CreateArtifactManifest",
        "PUT",
        "CommitArtifact",
    ]
    assert artifact.aliases == ["latest", "best"]
    assert artifact.run == RUN
    assert json.loads(artifact.input["metadata"]) == {"k": 1}
    assert artifact.input["tags"] == [{"tagName": "tg"}]
    assert artifact.files["x.txt"] == b"hello"
    assert bringing.cursor.place == (WRITER, 1)
    assert server.violations == []


def test_a_reference_to_another_artifact_of_the_run_is_by_the_servers_id(
    server: WandbServer, log: FileLog, bringing: Bringing
):
    log_artifact(log, {"t.table.json": b"{}"}, client_id="0a1b", name="table")
    ref = "wandb-client-artifact://0a1b/t.table.json"
    log_artifact(log, {}, client_id="c2", name="joined", references={"x": {"digest": "d", "ref": ref}})

    bringing.run()

    (table,), (joined,) = committed(server, "table"), committed(server, "joined")
    server_id = base64.b64decode(table.artifact_id).hex()
    assert joined.contents["x"]["ref"] == f"wandb-artifact://{server_id}/t.table.json"
    assert server.violations == []


def test_an_artifact_that_refers_to_none_that_is_there_is_counted(
    server: WandbServer, log: FileLog, bringing: Bringing
):
    reference = {"x": {"digest": "d", "ref": "wandb-client-artifact://0a1b/t.table.json"}}
    log_artifact(log, {}, references=reference)

    bringing.run()

    assert committed(server) == []
    assert bringing.cursor.not_stored == {UNKNOWN_REFERENCE: 1}


def test_the_manifest_is_w_and_bs(server: WandbServer, log: FileLog, bringing: Bringing):
    reference = {"digest": "https://example.com/x", "ref": "https://example.com/x", "size": 3}
    log_artifact(log, {"x.txt": b"hello"}, references={"x": reference})

    bringing.run()

    (artifact,) = committed(server)
    assert artifact.manifest == {
        "version": 1,
        "storagePolicy": "wandb-storage-policy-v1",
        "storagePolicyConfig": {"storageLayout": "V2"},
        "contents": {
            "x": reference,
            "x.txt": {
                "digest": "XUFAKrxLKna5cZ2REBfFkg==",
                "size": 5,
                "birthArtifactID": artifact.artifact_id,
            },
        },
    }
    md5 = hashlib.md5(artifact.files["wandb_manifest.json"]).digest()
    assert artifact.manifest_digest == base64.b64encode(md5).decode()


def test_w_and_bs_sdk_downloads_what_was_logged(
    server: WandbServer, log: FileLog, bringing: Bringing, tmp_path: Path
):
    contents = {
        "x.txt": b"hello",
        "deep/er/model.bin": os.urandom(400_000),
        "empty": b"",
        "same.txt": b"hello",
    }
    log_artifact(log, contents, aliases=["best"])
    bringing.run()
    code = (
        "import sys, wandb\n"
        "artifact = wandb.Api().artifact('ent/demo/data:best')\n"
        "assert wandb.Api().artifact('ent/demo/data:latest').id == artifact.id\n"
        "artifact.download(sys.argv[1])\n"
        "artifact.verify(sys.argv[1])"
    )
    env = {**os.environ, **server.env(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "down")],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    found = {
        str(path.relative_to(tmp_path / "down")): path.read_bytes()
        for path in (tmp_path / "down").rglob("*")
        if path.is_file()
    }
    assert found == contents


def test_the_same_content_again_is_not_sent_again(server: WandbServer, log: FileLog, bringing: Bringing):
    log_artifact(log, {"x.txt": b"hello"})
    log_artifact(log, {"x.txt": b"hello"}, client_id="c2", aliases=["again"])

    bringing.run()

    (artifact,) = committed(server)
    assert "again" in artifact.aliases
    assert puts(server) == ["x.txt", "wandb_manifest.json"]
    assert bringing.cursor.place == (WRITER, 2)


def test_a_new_version_sends_only_what_is_new(server: WandbServer, log: FileLog, bringing: Bringing):
    log_artifact(log, {"x.txt": b"hello", "y.txt": b"1"})
    log_artifact(log, {"x.txt": b"hello", "y.txt": b"2"}, client_id="c2")

    bringing.run()

    assert len(committed(server)) == 2
    assert sorted(puts(server)) == sorted(
        ["x.txt", "y.txt", "wandb_manifest.json", "y.txt", "wandb_manifest.json"]
    )


def test_many_files_are_asked_for_a_few_at_a_time(server: WandbServer, log: FileLog, bringing: Bringing):
    log_artifact(log, {f"{i}.txt": b"%d" % i for i in range(ASK_AT_ONCE + 1)})

    bringing.run()

    (artifact,) = committed(server)
    assert len(artifact.files) == ASK_AT_ONCE + 2
    assert [r.operation for r in server.requests].count("CreateArtifactFiles") == 2


def test_files_and_artifacts_keep_their_order(server: WandbServer, log: FileLog, bringing: Bringing):
    log.file("a.txt", b"a")
    log_artifact(log, {"x.txt": b"hello"})
    log.file("b.txt", b"b")

    run = bringing.run()

    assert puts(server) == ["a.txt", "x.txt", "wandb_manifest.json", "b.txt"]
    assert run.uploaded == ["a.txt", "b.txt"]
    assert bringing.cursor.place == (WRITER, 3)


def test_an_artifact_that_is_not_whole_is_counted_and_nothing_of_it_is_sent(
    server: WandbServer, log: FileLog, bringing: Bringing
):  # faults: 31
    log_artifact(log, {"x.txt": b"hello", "gone.txt": b"gone"})
    log.path_of(hashlib.sha256(b"gone").hexdigest()).unlink()
    log.file("after.txt", b"after")

    run = bringing.run()

    assert bringing.not_stored == {f"artifact with a {MISSING}": 1}
    assert puts(server) == ["after.txt"]
    assert run.files == {"after.txt": b"after"}
    assert server.store.artifacts.by_id == {}


def test_an_artifact_with_a_damaged_file_is_never_committed(
    server: WandbServer, log: FileLog, bringing: Bringing
):
    log_artifact(log, {"x.txt": b"hello", "odd.txt": b"odd"})
    log.path_of(hashlib.sha256(b"odd").hexdigest()).write_bytes(b"bad")

    bringing.run()

    assert bringing.not_stored == {f"artifact with a {DAMAGED}": 1}
    assert committed(server) == []


@pytest.mark.parametrize("record", [{"digest": "0" * 32}, {"manifest": "f" * 64}, {"manifest": None}])
def test_a_record_that_does_not_fit_its_manifest_is_counted(
    server: WandbServer, log: FileLog, bringing: Bringing, record: dict[str, Any]
):
    log_artifact(log, {"x.txt": b"hello"}, **record)

    bringing.run()

    assert sum(bringing.not_stored.values()) == 1
    assert server.requests == []


@pytest.mark.parametrize("manifest", [b"", b"[]", b'{"a":1}', b'{"a":{"digest":"d"}}'])
def test_a_manifest_that_is_none_is_counted(
    server: WandbServer, log: FileLog, bringing: Bringing, manifest: bytes
):
    log_artifact(log, {}, manifest=log.store(manifest))

    bringing.run()

    assert bringing.not_stored == {f"artifact with a {DAMAGED}": 1}


@pytest.mark.parametrize("kind", [*(f"graphql:{operation}" for operation in OPERATIONS), "files"])
@pytest.mark.parametrize("fault", TROUBLE, ids=lambda fault: f"{fault.action}-{fault.status}-{fault.applied}")
def test_trouble_at_any_request_delays_and_changes_nothing(
    server: WandbServer, log: FileLog, bringing: Bringing, kind: str, fault: Fault
):  # faults: 68, 72
    log_artifact(log, {"x.txt": b"hello", "y.txt": b"there"})
    fields = {name: getattr(fault, name) for name in Fault.__dataclass_fields__}
    server.faults.add(Fault(**{**fields, "kind": kind, "times": 2}))

    bringing.run()

    (artifact,) = committed(server)
    assert set(artifact.manifest["contents"]) == {"x.txt", "y.txt"}
    assert artifact.aliases == ["latest"]
    assert bringing.not_stored == {}
    assert bringing.cursor.place == (WRITER, 1)
    assert server.violations == []


@pytest.mark.parametrize("at", range(17))
def test_a_process_that_dies_at_any_request_leaves_an_artifact_that_the_next_one_ends(
    server: WandbServer, log: FileLog, bringing: Bringing, at: int
):  # faults: 44
    log_artifact(log, {"x.txt": b"hello", "y.txt": b"there"})

    died = dies_at(server, log, at)
    bringing.run()

    (artifact,) = committed(server)
    assert died == (at < 16)
    assert set(artifact.manifest["contents"]) == {"x.txt", "y.txt"}
    assert bringing.not_stored == {}
    assert server.violations == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_artifact_that_the_server_refuses_is_counted_and_the_rest_goes_on(
    server: WandbServer, log: FileLog, bringing: Bringing, operation: str
):  # faults: 70
    log_artifact(log, {"x.txt": b"hello"})
    log.file("after.txt", b"after")
    server.faults.add("status", kind=f"graphql:{operation}", status=400)

    run = bringing.run()

    assert bringing.not_stored == {"artifact refused by the server (HTTP 400: injected 400)": 1}
    assert run.files == {"after.txt": b"after"}


def test_an_artifact_that_is_gone_from_the_server_is_begun_again(
    server: WandbServer, log: FileLog, bringing: Bringing
):
    log_artifact(log, {"x.txt": b"hello"})
    server.faults.add("status", kind="graphql:CreateArtifactFiles", status=404, times=1)

    bringing.run()

    assert len(committed(server)) == 1
    assert [r.operation for r in server.requests].count("CreateArtifact") == 2


def test_a_refusal_of_the_run_is_the_callers_to_handle(
    server: WandbServer, log: FileLog, bringing: Bringing
):  # faults: 71
    log_artifact(log, {"x.txt": b"hello"})
    server.faults.add("status", kind="graphql:CreateArtifact", status=403)

    bringing.run(tries=1)

    assert [outcome.verdict for outcome in bringing.outcomes] == [Verdict.FORBIDDEN]
    assert bringing.cursor.place == (WRITER, 0)


class OddApi(WandbApi):
    """A server that gives one operation whatever answer it likes."""

    odd: tuple[str, Any] = ("", None)

    async def _graphql(self, operation: str, query: str, variables: dict[str, Any]) -> Answer:
        if operation == self.odd[0]:
            return Answer(200, content={"data": self.odd[1]})
        return await super()._graphql(operation, query, variables)


@pytest.mark.parametrize(
    ("operation", "data"),
    [
        ("CreateArtifact", None),
        ("CreateArtifact", {"createArtifact": {"artifact": {"id": 7, "state": "PENDING"}}}),
        ("CreateArtifact", {"createArtifact": {"artifact": {"id": "a", "state": "BROKEN"}}}),
        ("CreateArtifactManifest", {"createArtifactManifest": {"artifactManifest": []}}),
        ("CreateArtifactFiles", {"createArtifactFiles": {"files": {"edges": []}}}),
        ("CreateArtifactFiles", {"createArtifactFiles": {"files": 1}}),
    ],
)
def test_an_answer_that_makes_no_sense_is_trouble_and_nothing_is_built_on_it(
    server: WandbServer, log: FileLog, operation: str, data: Any
):
    log_artifact(log, {"x.txt": b"hello"})

    async def main() -> Verdict:
        api = OddApi(server.base_url, lambda: API_KEY)
        api.odd = (operation, data)
        uploads = Uploads(log.run_dir, api, *RUN)
        uploads.offer(log.records(), WRITER)
        outcome = await uploads.step()
        await api.close()
        return outcome.verdict

    verdict = asyncio.run(asyncio.wait_for(main(), DEADLINE_S))

    assert verdict is Verdict.RETRY
    assert [r.operation for r in server.requests] == OPERATIONS[: OPERATIONS.index(operation)]


def test_a_commit_whose_answer_is_lost_is_asked_about_and_not_repeated(
    server: WandbServer, log: FileLog, bringing: Bringing
):  # faults: 68
    log_artifact(log, {"x.txt": b"hello"})
    server.faults.add("drop", kind="graphql:CommitArtifact", applied=True, times=1)

    bringing.run()

    assert [r.operation for r in server.requests][-2:] == ["CommitArtifact", "CreateArtifact"]
    assert len(committed(server)) == 1


def test_an_alert_arrives_once(server: WandbServer):
    async def main() -> Answer:
        api = WandbApi(server.base_url, lambda: API_KEY)
        answer = await api.alert(*RUN, "title", "text", "WARN", 60_000)
        await api.close()
        return answer

    answer = asyncio.run(asyncio.wait_for(main(), DEADLINE_S))

    assert answer.status == 200
    (alert,) = server.alerts
    assert (alert["title"], alert["severity"], alert["waitDuration"]) == ("title", "WARN", 60_000)
