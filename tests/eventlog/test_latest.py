"""`<root>/latest`: the newest run, for people; to everything else it is not there."""

from __future__ import annotations

import os
from pathlib import Path

import analysis
import eventlog
from eventlog.reader import find_runs, read
from syncd.sync import Wishes, plan


def log_one(root: Path, project: str, run_id: str) -> Path:
    with eventlog.init(project=project, id=run_id, root=root, quiet=True) as run:
        run.log({"x": 1})
    return Path(run.dir)


def test_latest_leads_to_the_run_that_was_begun_last(tmp_path: Path):
    log_one(tmp_path, "p", "a")
    newest = log_one(tmp_path, "q", "b/c")

    assert os.readlink(tmp_path / "latest") == f"q/{newest.name}"
    assert (tmp_path / "latest").resolve() == newest
    assert len(list(read(tmp_path / "latest"))) == 3


def test_a_root_that_was_moved_keeps_its_latest(tmp_path: Path):
    log_one(tmp_path / "old", "p", "a")

    os.rename(tmp_path / "old", tmp_path / "new")

    assert (tmp_path / "new" / "latest").resolve() == tmp_path / "new" / "p" / "a"


def test_nothing_that_looks_for_runs_finds_one_twice(tmp_path: Path):
    run_dir = log_one(tmp_path, "p", "a")

    assert list(find_runs(tmp_path)) == [run_dir]
    assert plan([str(tmp_path)], [], Wishes()).run_dirs == [run_dir]
    assert plan([str(tmp_path / "latest")], [], Wishes()).run_dirs == [run_dir]
    assert analysis.connect(tmp_path).execute("SELECT count(*) FROM runs").fetchall() == [(1,)]


def test_a_project_of_that_name_gets_a_directory_and_no_link(tmp_path: Path):
    first = log_one(tmp_path, "p", "a")

    run_dir = log_one(tmp_path, "latest", "b")
    log_one(tmp_path, "p", "c")

    assert run_dir == tmp_path / "latest" / "b"
    assert not (tmp_path / "latest").is_symlink()
    assert [path.name for path in find_runs(tmp_path)] == ["b", "a", "c"]
    assert {path.name for path in first.parent.iterdir()} == {"a", "c"}


def test_a_root_without_links_costs_no_more_than_the_link(tmp_path: Path, monkeypatch):
    def refuse(*args: object, **options: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)

    run_dir = log_one(tmp_path, "p", "a")

    assert len(list(read(run_dir))) == 3
