"""`eventlog.files`: what of a run lies in files, when it is stored, and what happens if it cannot be."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.files import matches
from eventlog.piece import primaries
from eventlog.reader import read
from eventlog.record import Record

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    while eventlog.run is not None:
        eventlog.finish()


def begin(root: Path, **options: Any) -> eventlog.Run:
    return eventlog.init(**{"project": "demo", "id": "run", "root": root / "runs", "quiet": True, **options})


def in_files(run: eventlog.Run) -> list[Record]:
    return list(read(run.dir, "files"))


def saved(run: eventlog.Run) -> list[tuple[str, bytes]]:
    """Return each file record's name and content, in order."""
    return [
        (record.data["path"], (run.dir / "files" / record.data["sha256"]).read_bytes())
        for record in in_files(run)
        if record.kind == "file"
    ]


@contextmanager
def no_large_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ── saved files ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_saved_now_is_stored_at_once_and_never_again(tmp_path: Path):
    run = begin(tmp_path)
    (tmp_path / "a.txt").write_text("1")

    names = run.save("a.txt", policy="now")
    there_at_once = saved(run)
    (tmp_path / "a.txt").write_text("22")
    run.finish()

    assert names == ["a.txt"]
    assert there_at_once == saved(run) == [("a.txt", b"1")]


def test_a_file_saved_for_the_end_is_stored_at_the_end(tmp_path: Path):
    run = begin(tmp_path)
    (tmp_path / "a.txt").write_text("1")

    assert run.save("a.txt", policy="end") == ["a.txt"]
    there_at_once = saved(run)
    (tmp_path / "a.txt").write_text("22")
    run.finish()

    assert there_at_once == []
    assert saved(run) == [("a.txt", b"22")]


def test_a_live_file_is_stored_whenever_it_changed_and_at_the_end(tmp_path: Path):
    run = begin(tmp_path)
    (tmp_path / "a.txt").write_text("1")

    run.save("a.txt")
    run._files.look_again()
    (tmp_path / "a.txt").write_text("22")
    run._files.look_again()
    os.utime("a.txt", ns=(1, 1))
    run._files.look_again()
    (tmp_path / "a.txt").write_text("333")
    run.finish()

    assert saved(run) == [("a.txt", b"1"), ("a.txt", b"22"), ("a.txt", b"333")]


def test_a_live_file_that_is_replaced_by_one_of_the_same_size_and_time_is_stored(tmp_path: Path):
    run = begin(tmp_path)
    for name, text in (("a.txt", "1"), ("b.txt", "2")):
        (tmp_path / name).write_text(text)
        os.utime(name, ns=(5, 5))
    run.save("a.txt")

    os.replace("b.txt", "a.txt")
    run._files.look_again()

    assert saved(run) == [("a.txt", b"1"), ("a.txt", b"2")]


def test_a_live_file_is_looked_at_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("eventlog.files.LOOK_INTERVAL_S", 0.01)
    run = begin(tmp_path)
    (tmp_path / "a.txt").write_text("1")
    run.save("a.txt", policy="live")

    (tmp_path / "a.txt").write_text("22")
    tries = threading.Event()
    for _ in range(3000):
        if len(saved(run)) == 2:
            break
        tries.wait(0.01)

    assert saved(run) == [("a.txt", b"1"), ("a.txt", b"22")]


def test_saving_what_has_not_changed_stores_nothing(tmp_path: Path):
    run = begin(tmp_path)
    (tmp_path / "a.txt").write_text("1")

    for policy in ("now", "live", "now"):
        run.save("a.txt", policy=policy)

    assert saved(run) == [("a.txt", b"1")]


def test_a_file_that_vanished_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begin(tmp_path)
    (tmp_path / "a.txt").write_text("1")
    run.save("a.txt")

    (tmp_path / "a.txt").unlink()
    run._files.look_again()
    run._files.look_again()
    run.finish()

    said = capsys.readouterr().err
    assert said.count("is not there any more") == 1
    assert saved(run) == [("a.txt", b"1")]


def test_a_pattern_that_matches_nothing_saves_nothing_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = begin(tmp_path)

    assert run.save("*.ckpt") == []
    assert "save('*.ckpt') found no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "base", "names"),
    [
        ("d/*", None, ["d/a.txt", "d/b.txt"]),
        ("d/*", "d", ["a.txt", "b.txt"]),
        ("{here}/d/a.txt", None, ["d/a.txt"]),
        ("{here}/d/*.txt", "{here}", ["d/a.txt", "d/b.txt"]),
        ("d/../d/a.txt", None, ["d/a.txt"]),
        ("d", None, []),
        ("*/b.txt", None, ["d/b.txt"]),
    ],
)
def test_names_are_relative_to_the_base(tmp_path: Path, pattern: str, base: str | None, names: list[str]):
    (tmp_path / "d" / "e").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "e/c.txt"):
        (tmp_path / "d" / name).write_text(name)

    found = matches(
        pattern.format(here=tmp_path), base.format(here=tmp_path) if base is not None else None, True
    )

    assert [name for name, _ in found] == names


@pytest.mark.parametrize(
    ("pattern", "base"), [("../x", None), ("/x", "/elsewhere"), (".", None), ("d/..", "d")]
)
def test_a_name_that_would_leave_the_run_is_refused(pattern: str, base: str | None):
    with pytest.raises(ValueError, match="base_path"):
        matches(pattern, base, True)


def test_a_name_with_brackets_can_be_meant_as_it_is(tmp_path: Path):
    (tmp_path / "a[1].txt").write_text("1")

    assert matches("a[1].txt", None, True) == []
    assert [name for name, _ in matches("a[1].txt", None, False)] == ["a[1].txt"]


def test_a_save_that_cannot_be_is_refused(tmp_path: Path):
    run = begin(tmp_path)

    with pytest.raises(ValueError, match="policy is one of"):
        run.save("a", policy="soon")


def test_what_is_no_local_file_is_not_saved_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = begin(tmp_path)

    assert run.save("s3://bucket/a") == []
    assert "run.log_artifact('s3://bucket/a')" in capsys.readouterr().err


# ── artifacts ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_artifact_is_a_record_and_its_content_is_stored(tmp_path: Path):
    run = begin(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"weights")
    artifact = eventlog.Artifact("model", "model", "d", {"lr": 1.0})
    artifact.add_file("model.pt")
    artifact.add_reference("https://host/x", checksum=False)

    logged = run.log_artifact(artifact, aliases=["best"], tags=["a tag"])

    (record,) = in_files(run)
    data = record.data
    assert logged is artifact
    assert (record.kind, data["name"], data["type"]) == ("artifact", "model", "model")
    assert (data["description"], data["metadata"]) == ("d", {"lr": 1.0})
    assert (data["aliases"], data["tags"]) == (["best", "latest"], ["a tag"])
    assert (data["digest"], data["size"]) == (artifact.digest, 7)
    manifest = json.loads((run.dir / "files" / data["manifest"]).read_bytes())
    assert manifest["x"] == {"digest": "https://host/x", "ref": "https://host/x"}
    assert (run.dir / "files" / manifest["model.pt"]["sha256"]).read_bytes() == b"weights"


def test_a_file_that_was_said_to_be_immutable_and_changed_is_logged_as_it_is(tmp_path: Path):
    run = begin(tmp_path)
    (tmp_path / "a").write_bytes(b"old")
    artifact = eventlog.Artifact("n", "t")
    artifact.add_file("a", policy="immutable")

    (tmp_path / "a").write_bytes(b"newer")
    run.log_artifact(artifact)

    fresh = eventlog.Artifact("n", "t")
    fresh.add_file("a")
    (record,) = in_files(run)
    assert (record.data["digest"], record.data["size"]) == (fresh.digest, 5)


def test_a_logged_artifact_takes_no_more_files(tmp_path: Path):
    run = begin(tmp_path)
    artifact = run.log_artifact(__file__, name="n")

    with pytest.raises(eventlog.EventlogError, match="was logged"):
        artifact.add_file(__file__, name="more")


# ── the end, and what goes wrong ─────────────────────────────────────────────────────────────────────────────


def test_nothing_is_written_after_the_exit(tmp_path: Path):
    run = begin(tmp_path)
    (tmp_path / "a.txt").write_text("1")
    run.save("a.txt", policy="end")
    run.log({"page": eventlog.Html("x")})

    run.finish()
    (tmp_path / "a.txt").write_text("22")
    run._files.look_again()
    run._files.finish()

    (exit_record,) = (record for record in read(run.dir) if record.kind == "exit")
    assert [record.kind for record in in_files(run)] == ["file", "file"]
    assert all(record.time_us <= exit_record.time_us for record in in_files(run))
    with pytest.raises(eventlog.EventlogError, match="is finished"):
        run.save("a.txt")


def test_content_that_finds_no_space_costs_its_value_and_is_counted_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # faults: 61
    run = begin(tmp_path)
    with no_large_files():
        for i in range(2):
            run.log({"i": i, "page": eventlog.Html("x" * 9000), "small": eventlog.Html("s")})
    run.log({"i": 2, "page": eventlog.Html("x" * 9000)})
    run.finish()

    rows = [record for record in read(run.dir) if record.kind == "metrics"]
    assert [row.data["i"] for row in rows] == [0, 1, 2]
    assert [row.lossy for row in rows] == [(("page",),), (("page",),), ()]
    assert rows[0].data["small"]["_type"] == "html-file"
    assert run.dropped == 2
    gaps = [record.data for record in read(run.dir) if record.kind == "gap"]
    assert sum(gap["dropped"] for gap in gaps) == 2
    assert all("could not be stored: File too large" in gap["reason"] for gap in gaps)
    assert capsys.readouterr().err.count("could not be stored") == 1


def test_a_saved_file_that_finds_no_space_is_stored_when_there_is_some(tmp_path: Path):
    # faults: 61
    run = begin(tmp_path)
    (tmp_path / "large").write_bytes(b"x" * 9000)
    with no_large_files():
        run.save("large", policy="now")
        run.save("large", policy="live")
        run._files.look_again()
    before_there_was_space = saved(run)
    run.finish()

    assert before_there_was_space == []
    assert saved(run) == [("large", b"x" * 9000)]
    assert run.dropped == 1


def test_an_artifact_of_which_a_file_is_gone_is_not_recorded_and_counted(tmp_path: Path):
    run = begin(tmp_path)
    (tmp_path / "a").write_bytes(b"a")
    artifact = eventlog.Artifact("n", "t")
    artifact.add_file("a", policy="immutable")
    (tmp_path / "a").unlink()

    run.log_artifact(artifact)

    assert in_files(run) == []
    assert run.dropped == 1


def test_a_disabled_run_stores_nothing(tmp_path: Path):
    run = begin(tmp_path, mode="disabled")
    (tmp_path / "a.txt").write_text("1")

    run.log({"page": eventlog.Html("x")})
    run.save("a.txt")
    run.log_artifact("a.txt")
    run.alert("title", "text")

    assert not (tmp_path / "runs").exists()


def test_threads_log_media_each_once(tmp_path: Path):
    run = begin(tmp_path)
    threads = [
        threading.Thread(target=lambda k=k: [run.log({"p": eventlog.Html(f"{k} {n}")}) for n in range(20)])
        for k in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({content for _, content in saved(run)}) == len(saved(run)) == 80
    assert len([record for record in read(run.dir) if record.kind == "metrics"]) == 80


def test_a_killed_writer_leaves_no_row_that_names_a_file_which_is_not_there(tmp_path: Path):
    # faults: 59
    script = """
import eventlog, os, sys
run = eventlog.init(project="demo", id="run", root=sys.argv[1], quiet=True)
for i in range(10**9):
    run.log({"page": eventlog.Html(str(i)), "table": eventlog.Table(columns=["i"], data=[[i]])})
    os.write(1, b".")
"""
    trainer = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "runs")], cwd=PROJECT, stdout=subprocess.PIPE
    )
    assert trainer.stdout is not None
    trainer.stdout.read(30)

    trainer.kill()
    trainer.communicate()

    run_dir = tmp_path / "runs" / "demo" / "run"
    named = {record.data["path"]: record.data for record in read(run_dir, "files") if record.kind == "file"}
    manifests = [record.data["manifest"] for record in read(run_dir, "files") if record.kind == "artifact"]
    rows = [record.data for record in read(run_dir) if record.kind == "metrics"]
    assert len(rows) >= 30
    for row in rows:
        for shown in row.values():
            content = (run_dir / "files" / named[shown["path"]]["sha256"]).read_bytes()
            assert len(content) == named[shown["path"]]["size"] == shown["size"]
    for manifest in manifests:
        for entry in json.loads((run_dir / "files" / manifest).read_bytes()).values():
            assert (run_dir / "files" / entry["sha256"]).stat().st_size == entry["size"]


def test_a_resumed_run_shares_its_files(tmp_path: Path):
    begin(tmp_path).log({"p": eventlog.Html("x")})
    eventlog.finish()

    run = begin(tmp_path, resume="must")
    run.log({"p": eventlog.Html("x")})

    assert len(primaries(run.dir)) == 2
    assert [name for name, _ in saved(run)] == [saved(run)[0][0], saved(run)[0][0].replace("p_0_", "p_1_")]
    assert len(os.listdir(run.dir / "files")) == 1
