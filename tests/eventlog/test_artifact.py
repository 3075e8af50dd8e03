"""`eventlog.artifact`: the same content has the digest that W&B's own client gives it."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import wandb

import eventlog
from eventlog import not_yet
from eventlog.artifact import of_path, run_table, with_latest


@pytest.fixture(autouse=True)
def _somewhere_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(not_yet, "_said", set())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "a.txt").write_text("a")
    (tmp_path / "data" / "deep" / "b.bin").write_bytes(b"\0" * 300_000)
    (tmp_path / "data" / "empty").write_bytes(b"")


def new_file(artifact: Any) -> None:
    with artifact.new_file("made/here.txt", encoding="utf-8") as file:
        file.write("ü")


def two_of_one_name(artifact: Any) -> None:
    artifact.add_file("data/a.txt", name="x")
    artifact.add_file("data/empty", name="x", overwrite=True)


def through_links(artifact: Any) -> None:
    os.symlink("deep", "data/link")
    os.symlink("a.txt", "data/b.txt")
    artifact.add_dir("data")


WAYS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda artifact: None,
    "a file": lambda artifact: artifact.add_file("data/a.txt"),
    "a file under a name": lambda artifact: artifact.add_file("data/a.txt", name="./x//y.txt"),
    "a temporary file": lambda artifact: artifact.add_file("data/deep/b.bin", name="d/n.a.b", is_tmp=True),
    "a directory": lambda artifact: artifact.add_dir("data"),
    "a directory under a name": lambda artifact: artifact.add_dir("data", name="here"),
    "links": through_links,
    "a new file": new_file,
    "another file of the same name": two_of_one_name,
    "a page": lambda artifact: artifact.add_reference("https://host/d/x.html", checksum=False),
    "a bucket": lambda artifact: artifact.add_reference("other://bucket/key/x", name="n", checksum=False),
    "a local reference": lambda artifact: artifact.add_reference(f"file://{os.getcwd()}/data/a.txt"),
    "a local directory": lambda artifact: artifact.add_reference(f"file://{os.getcwd()}/data", name="n"),
    "a local path only": lambda artifact: artifact.add_reference(
        f"file://{os.getcwd()}/data/a.txt", checksum=False
    ),
    "all but what was removed": lambda artifact: (artifact.add_dir("data"), artifact.remove("deep")),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_digest_is_wandbs(way: str):
    ours, theirs = eventlog.Artifact("n", "t"), wandb.Artifact("n", "t")

    WAYS[way](theirs)
    if way == "links":
        os.unlink("data/link")
        os.unlink("data/b.txt")
    WAYS[way](ours)

    assert sorted(ours.entries) == sorted(theirs.manifest.entries)
    assert ours.digest == theirs.digest
    assert ours.size == theirs.size


def test_a_link_to_a_directory_above_ends():
    os.symlink("..", "data/deep/up")
    artifact = eventlog.Artifact("n", "t")

    artifact.add_dir("data")

    assert sorted(artifact.entries) == ["a.txt", "deep/b.bin", "empty"]


def test_nothing_is_fetched_for_a_reference_and_that_is_said(capsys: pytest.CaptureFixture[str]):
    artifact = eventlog.Artifact("n", "t")

    artifact.add_reference("s3://bucket/some/key")

    (entry,) = artifact.entries.items()
    assert (entry[0], entry[1].ref, entry[1].digest) == (
        "some/key",
        "s3://bucket/some/key",
        "s3://bucket/some/key",
    )
    assert "fetches nothing" in capsys.readouterr().err


def test_a_table_in_an_artifact_has_wandbs_digest():
    ours, theirs = eventlog.Artifact("n", "t"), wandb.Artifact("n", "t")

    for module, artifact in ((eventlog, ours), (wandb, theirs)):
        table = module.Table(columns=["a", "h"], data=[[1, module.Html("<b>x</b>")], [None, None]])
        artifact.add(table, "my/table")
        artifact["page"] = module.Html("<i>y</i>")

    assert sorted(ours.entries) == sorted(theirs.manifest.entries)
    assert ours.digest == theirs.digest


@pytest.mark.parametrize("path", ["../x", "/x", ".", "a/../../x"])
def test_a_path_that_leaves_the_artifact_is_refused(path: str):
    artifact = eventlog.Artifact("n", "t")

    with pytest.raises(ValueError, match="relative and has no"):
        artifact.add_file("data/a.txt", name=path)

    assert artifact.entries == {}


def test_another_file_under_a_name_that_is_taken_is_refused():
    artifact = eventlog.Artifact("n", "t")
    artifact.add_file("data/a.txt", name="x")

    artifact.add_file("data/a.txt", name="x")
    with pytest.raises(ValueError, match="has another 'x' already"):
        artifact.add_file("data/empty", name="x")


@pytest.mark.parametrize("name", ["a/b", "", "x" * 129, "ü", None])
def test_a_name_that_wandb_would_refuse_is_refused(name: Any):
    with pytest.raises(ValueError, match="the name of an artifact"):
        eventlog.Artifact(name, "t")


def test_what_only_the_server_knows_is_refused_in_words():
    artifact = eventlog.Artifact("n", "t")

    assert artifact.wait() is artifact
    with pytest.raises(eventlog.EventlogError, match="known to the server alone"):
        _ = artifact.version
    with pytest.raises(eventlog.EventlogError, match=r"wandb\.Api"):
        artifact.download()
    with pytest.raises(AttributeError):
        _ = artifact.colour


def test_latest_is_always_an_alias():
    assert with_latest(None) == ["latest"]
    assert with_latest("best") == ["best", "latest"]
    assert with_latest(["latest", "v2"]) == ["latest", "v2"]
    with pytest.raises(ValueError, match="alias"):
        with_latest(["a:b"])


def test_a_path_becomes_an_artifact_of_its_name():
    file, directory, reference = (
        of_path(path, "r1", None, None) for path in ("data/a.txt", "data", "s3://bucket/x")
    )

    assert (file.name, file.type, list(file.entries)) == ("run-r1-a.txt", "unspecified", ["a.txt"])
    assert (directory.name, len(directory.entries)) == ("run-r1-data", 3)
    assert list(reference.entries) == ["x"]
    with pytest.raises(ValueError, match="nothing to log"):
        of_path("nowhere", "r1", None, None)


def test_a_tables_artifact_is_named_as_wandb_names_it():
    from wandb.sdk.artifacts._internal_artifact import sanitize_artifact_name

    for key in ("table", "eval/table 1", "tür"):
        assert run_table("r1", key).name == sanitize_artifact_name(f"run-r1-{key}")


def stored(run: eventlog.Run) -> dict[str, bytes]:
    """The content of all artifacts of a run, by their paths."""
    found = {}
    for record in eventlog.read(run.dir, "files"):
        if record.kind == "artifact":
            manifest = orjson.loads((run.dir / "files" / record.data["manifest"]).read_bytes())
            found |= {
                path: (run.dir / "files" / each["sha256"]).read_bytes() for path, each in manifest.items()
            }
    return found


def test_a_file_is_in_the_artifact_as_it_was_when_it_was_added(tmp_path: Path):
    run = eventlog.init(project="demo", root=tmp_path, quiet=True)
    artifact = eventlog.Artifact("checkpoints", "model")
    for epoch in range(2):
        Path("ckpt.pt").write_text(f"weights of epoch {epoch}")
        artifact.add_file("ckpt.pt", name=f"epoch{epoch}.pt")
    os.unlink("ckpt.pt")
    Path("sound.wav").write_bytes(b"first")
    artifact.add(eventlog.Audio("sound.wav"), "sound")
    Path("sound.wav").write_bytes(b"second")

    run.log_artifact(artifact)
    run.finish()

    content = stored(run)
    assert (content["epoch0.pt"], content["epoch1.pt"]) == (b"weights of epoch 0", b"weights of epoch 1")
    assert [each for path, each in content.items() if path.endswith(".wav")] == [b"first"]
    assert run.dropped == 0


def test_a_file_of_a_temporary_directory_is_kept(tmp_path: Path):
    artifact = eventlog.Artifact("tmp", "model")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "best.pt").write_text("best weights")
        artifact.add_dir(directory)

    run = eventlog.init(project="demo", root=tmp_path, quiet=True)
    run.log_artifact(artifact)
    run.finish()

    assert stored(run) == {"best.pt": b"best weights"}


def test_the_copies_take_no_space_again_and_go_with_the_artifact(tmp_path: Path):
    run = eventlog.init(project="demo", root=tmp_path, quiet=True)
    artifact = eventlog.Artifact("n", "t")
    artifact.add_file("data/a.txt")
    (copy,) = (entry.content for entry in artifact.entries.values())
    assert isinstance(copy, Path)

    run.log_artifact(artifact)

    (content,) = (path for path in (run.dir / "files").iterdir() if path.is_file() and path.samefile(copy))
    del artifact
    gc.collect()
    assert not copy.parent.exists()
    assert content.read_text() == "a"
    run.finish()


def test_a_file_that_nobody_changes_is_not_copied_before_it_is_logged():
    artifact = eventlog.Artifact("n", "t")

    artifact.add_file("data/a.txt", policy="immutable")

    assert [entry.content for entry in artifact.entries.values()] == [Path("data/a.txt").absolute()]
    with pytest.raises(ValueError, match="mutable, immutable"):
        artifact.add_file("data/a.txt", policy="now")


def test_a_file_that_cannot_be_copied_is_taken_as_it_will_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    artifact = eventlog.Artifact("n", "t")
    with artifact.new_file("first"):
        pass
    # Never by way of what the artifact says: a mistake in it would be a whole temporary directory.
    shutil.rmtree(elsewhere)

    artifact.add_file("data/a.txt")

    assert artifact.entries["a.txt"].content == Path("data/a.txt").absolute()
    assert "it could not be copied (No such file" in capsys.readouterr().err
