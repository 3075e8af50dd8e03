"""The command line: what `wandb sync` takes, taken as it takes it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from eventlog import cursor as cursors
from tests.contract.clients import World, world
from tests.contract.scripts import INIT
from tests.wandb_sync.logged import dotwandb, log_offline, numbers, syncd, synced, wandb_sync

SCRIPT = INIT + "for i in range(5):\n    run.log({'i': i})\nrun.finish()\n"


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return log_offline(tmp_path_factory.mktemp("command"), [SCRIPT])


@pytest.fixture
def there(logged: Path, tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, "there", logged) as one:
        yield one


def as_online(there: World) -> Path:
    """Let the run look as if it had been logged online; return its directory."""
    directory = dotwandb(there).parent
    return directory.rename(directory.with_name(directory.name.removeprefix("offline-")))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wandb", "directory", "file", "glob", "parent", "nothing"])
def test_a_run_is_found_however_it_is_named(there: World, way: str):
    path = dotwandb(there).relative_to(there.directory)
    named = {
        "wandb": ["wandb"],
        "directory": [str(path.parent)],
        "file": [str(path)],
        "glob": ["wandb/offline-run-*"],
        "parent": ["."],
        "nothing": [],
    }

    synced(there, *named[way])

    assert numbers(there) == list(range(5))


@pytest.mark.slow
def test_without_a_path_the_sdks_own_directory_is_looked_at(there: World):
    (there.directory / "wandb").rename(there.home / "wandb")
    there.env["WANDB_DIR"] = str(there.home)

    synced(there)

    assert numbers(there) == list(range(5))


@pytest.mark.slow
def test_one_run_and_its_link_are_one(there: World):
    said = synced(there, "wandb", str(dotwandb(there)), "wandb/latest-run")

    assert len(said["taken"]) == 1


@pytest.mark.slow
def test_a_copy_that_followed_the_links_is_one_run(there: World):
    copied = shutil.copytree(there.directory / "wandb", there.home / "copied" / "wandb", symlinks=False)
    assert not (copied / "latest-run").is_symlink()

    said = synced(there, str(copied))

    assert numbers(there) == list(range(5))
    assert len(said["taken"]) == 1
    assert "a copy of" in said["remarks"][0]
    again = syncd(there, "sync", str(copied))
    assert again.returncode == 0
    assert "There are no runs to sync here." in again.stdout


@pytest.mark.slow
def test_a_path_that_is_no_text_is_said_to_scripts(there: World):
    place = there.home / os.fsdecode(b"runs-\xff")
    place.mkdir()
    wandb = (there.directory / "wandb").rename(place / "wandb")

    for options in (["--dry-run", "--json"], ["--json"], ["--include-synced"]):
        done = syncd(there, "sync", str(wandb), *options)
        assert done.returncode == 0, done.stdout + done.stderr
        if "--json" in options:
            said = json.loads(done.stdout)
            (path,) = said.get("would_sync") or [Path(one["path"]).parent for one in said["taken"]]
            assert Path(path).parent == wandb
    cleaned = json.loads(syncd(there, "clean", str(wandb), "--yes", "--json").stdout)
    assert len(cleaned["removed"]) == 1
    assert numbers(there) == list(range(5))


@pytest.mark.slow
def test_a_run_of_ours_and_one_of_wandbs_go_together(there: World):
    (there.directory / "train.py").write_text(
        "import eventlog as wandb\n" + SCRIPT.replace('id="r"', 'id="ours"')
    )
    there.command("train.py")

    synced(there)

    assert len(there.server.run("ent", "p", "ours").history) == len(there.run.history) == 5


@pytest.mark.slow
def test_an_id_is_for_wandbs_runs_and_nothing_else_is_uploaded_under_it(there: World):
    (there.directory / "train.py").write_text(
        "import eventlog as wandb\n" + SCRIPT.replace('id="r"', 'id="ours"')
    )
    there.command("train.py")

    for paths in ([], [str(there.home / "runs")]):
        done = syncd(there, "sync", "--id", "other", *paths)
        assert done.returncode == 2
        assert "--id is for W&B's runs" in done.stderr
    assert there.server.runs() == []

    synced(there, "--id", "other", "wandb")
    assert [run.run_id for run in there.server.runs()] == ["other"]


@pytest.mark.slow
def test_what_another_project_has_of_a_run_of_ours_is_no_word_about_its_own(there: World):
    (there.directory / "train.py").write_text(
        "import eventlog as wandb\n" + SCRIPT.replace('id="r"', 'id="ours"')
    )
    there.command("train.py")
    shutil.rmtree(there.directory / "wandb")
    synced(there, "-p", "q")

    synced(there)

    assert [(run.project, len(run.history)) for run in there.server.runs()] == [("q", 5), ("p", 5)]
    assert "There are no runs to sync here." in syncd(there, "sync").stdout


@pytest.mark.slow
def test_without_a_path_only_what_is_not_synced_is_taken(there: World):
    (there.directory / "train.py").write_text(
        "import eventlog as wandb\n" + SCRIPT.replace('id="r"', 'id="ours"')
    )
    there.command("train.py")
    assert syncd(there, "sync", "--dry-run").stdout.startswith("2 runs are to be uploaded:")
    synced(there)

    assert "There are no runs to sync here." in syncd(there, "sync").stdout
    # Another project, or another server, has none of it yet.
    assert syncd(there, "sync", "--dry-run", "-p", "q").stdout.startswith("1 run is to be uploaded:")
    there.env["WANDB_BASE_URL"] = "http://127.0.0.1:1"
    assert syncd(there, "sync", "--dry-run").stdout.startswith("1 run is to be uploaded:")


@pytest.mark.slow
def test_a_dry_run_says_what_it_would_do_and_does_nothing(there: World):
    done = syncd(there, "sync", "--dry-run", "wandb")

    assert done.returncode == 0
    assert str(dotwandb(there).parent) in done.stdout
    assert there.server.requests == []
    assert not (there.directory / "wandb" / ".tidelog").exists()


@pytest.mark.slow
def test_project_entity_id_job_type_and_tags_can_be_others(there: World):
    options = [
        "-p",
        "q",
        "-e",
        "team",
        "--id",
        "other",
        "--job-type",
        "eval",
        "--replace-tags",
        "a=one,b=two",
    ]
    synced(there, "wandb", *options)
    wandb_sync(there, "wandb", "--include-synced", *options[:4], "--id", "theirs", *options[6:])

    ours, theirs = (there.server.run("team", "q", name) for name in ("other", "theirs"))
    assert (ours.job_type, ours.tags) == (theirs.job_type, theirs.tags) == ("eval", ["one", "two"])
    assert ours.history == theirs.history


@pytest.mark.slow
def test_wrong_tag_replacements_and_paths_are_said(there: World):
    assert "OLD=NEW" in syncd(there, "sync", "wandb", "--replace-tags", "a").stderr
    for path in ("nowhere", "no*where", "train.py"):
        done = syncd(there, "sync", path)
        assert done.returncode == 2
        assert path in done.stderr


@pytest.mark.slow
def test_runs_that_were_logged_online_are_taken_when_asked_for(there: World):
    as_online(there)

    done = syncd(there, "sync", "wandb")
    assert done.returncode == 0
    assert "--include-online" in done.stdout
    assert there.server.requests == []

    synced(there, "wandb", "--include-online")
    assert numbers(there) == list(range(5))


@pytest.mark.slow
def test_what_is_marked_as_synced_is_looked_at_when_asked_for(there: World):
    synced(there, "wandb")
    there.server.clear_requests()

    done = syncd(there, "sync", "wandb")
    assert (done.returncode, there.server.requests) == (0, [])
    assert "--include-synced" in done.stdout

    said = synced(there, "wandb", "--include-synced")
    assert [run["state"] for run in said["runs"]] == ["synced"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--sync-all"],
        ["--include-offline"],
        ["--sync-all", "--append"],
        ["--skip-online"],
        ["--yes", "-n", "2"],
    ],
)
def test_what_older_scripts_say_is_understood(there: World, options: list[str]):
    synced(there, *options)

    assert numbers(there) == list(range(5))


@pytest.mark.slow
def test_offline_runs_can_be_left_out(there: World):
    done = syncd(there, "sync", "--no-include-offline", "wandb")

    assert done.returncode == 0
    assert there.server.requests == []


@pytest.mark.slow
def test_the_marker_is_wandbs_own(there: World, logged: Path, tmp_path: Path):
    with world(tmp_path, "theirs", logged) as theirs:
        wandb_sync(theirs, "wandb")
        expected = _markers(theirs)
    assert len(expected) == 1

    synced(there, "wandb")

    assert _markers(there) == expected


def _markers(there: World) -> dict[str, bytes]:
    return {
        str(path.relative_to(there.directory)): path.read_bytes()
        for path in there.directory.glob("wandb/offline-run-*/*.synced")
    }


@pytest.mark.slow
def test_wandb_clean_removes_what_is_marked(there: World):
    synced(there, "wandb")
    directory = dotwandb(there).parent

    command = [sys.executable, "-m", "wandb", "clean", "--force", "--min-hours", "0"]
    done = subprocess.run(
        command, env=there.env, cwd=there.directory, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert not directory.exists()


@pytest.mark.slow
def test_no_marker_is_written_when_not_wanted(there: World):
    synced(there, "wandb", "--no-mark-synced")

    assert list(there.directory.glob("wandb/*/*.synced")) == []


@pytest.mark.slow
def test_the_exit_code_says_that_something_did_not_get_there(there: World):
    there.server.down()

    done = syncd(there, "sync", "wandb", "--patience", "0.5")

    assert done.returncode == 1
    assert "Not everything is uploaded" in done.stderr
    assert list(there.directory.glob("wandb/*/*.synced")) == []


@pytest.mark.slow
def test_a_file_that_is_gone_is_named_and_the_rest_arrives(logged: Path, tmp_path: Path):
    script = INIT + "run.log({'i': 0, 'image': wandb.Html('<b>1</b>')})\nrun.finish()\n"
    here = log_offline(tmp_path, [script])
    with world(tmp_path, "gone", here) as there:
        (media,) = there.directory.glob("wandb/offline-run-*/files/media/html/*")
        media.unlink()

        done = syncd(there, "sync", "wandb")

        assert done.returncode == 1
        assert f"{media.name}, which is gone from this machine" in " ".join(done.stdout.split())
        assert numbers(there) == [0]
        assert there.run.complete


# -- syncd clean -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_clean_removes_what_wandb_has_and_keeps_the_log(there: World):
    synced(there, "wandb")
    directory = dotwandb(there).parent

    assert "removable" in syncd(there, "clean", "--dry-run").stdout
    assert directory.exists()

    done = syncd(there, "clean", "--yes")

    assert done.returncode == 0, done.stderr
    assert not directory.exists()
    shown = syncd(there, "verify", "wandb/.tidelog/p/r")
    assert "all 5 rows are there" in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("why", ["not synced", "grown", "deleted there", "away", "damaged", "young"])
def test_clean_keeps_what_is_not_confirmed(there: World, why: str):
    options = ["--older-than", "1"] if why == "young" else []
    path = dotwandb(there)
    if why == "damaged":
        with open(path, "r+b") as file:
            file.seek(1200)
            file.write(b"\xff" * 8)
    if why != "not synced":
        syncd(there, "sync", "wandb")
    if why == "grown":
        with open(path, "ab") as file:
            file.write(b"more")
    if why == "deleted there":
        there.server.delete_run("ent", "p", "r")
    if why == "away":
        there.server.down()

    done = syncd(there, "clean", "--yes", "--json", *options)

    said = json.loads(done.stdout)
    assert said["removed"] == []
    assert list(said["kept"]) == [str(path.parent)]
    assert path.exists()


@pytest.mark.slow
def test_clean_keeps_a_directory_for_any_file_in_it(there: World):
    path = dotwandb(there)
    synced(there, "wandb")
    (path.parent / "run-other.wandb").write_bytes(path.read_bytes()[:2000])

    for named in ("wandb", str(path)):
        said = json.loads(syncd(there, "clean", named, "--yes", "--json").stdout)
        assert said["removed"] == []
        assert "run-other.wandb" in said["kept"][str(path.parent)]
    assert path.exists()


@pytest.mark.slow
def test_clean_keeps_what_was_taken_for_uploaded_by_a_persons_word(there: World):
    there.server.seed_run("p", "r", 7, entity="ent")
    done = syncd(there, "sync", "wandb", "--force", "continue")
    assert done.returncode == 0, done.stdout
    run_dir = there.directory / "wandb" / ".tidelog" / "p" / "r"
    (cursor,) = cursors.cursors(run_dir)
    assert cursor.attach is not None
    # As it is kept of a run that was continued by force.
    forced = replace(cursor, attach={**cursor.attach, "forced": cursors.CONTINUE})
    cursors.save(run_dir, forced, cursor.time)

    said = json.loads(syncd(there, "clean", "--yes", "--json").stdout)

    assert said["removed"] == []
    assert "--force continue" in said["kept"][str(dotwandb(there).parent)]


@pytest.mark.slow
def test_clean_as_an_option_of_sync_removes_what_is_a_day_old(there: World):
    synced(there, "wandb")
    directory = dotwandb(there).parent

    syncd(there, "sync", "--clean", "--clean-force")
    assert directory.exists()

    syncd(there, "sync", "--clean", "--clean-force", "--clean-old-hours", "0")
    assert not directory.exists()


@pytest.mark.slow
def test_a_run_that_is_resumed_after_it_was_cleaned_goes_on(there: World, tmp_path: Path):
    synced(there, "wandb")
    syncd(there, "clean", "--yes")
    resumed = "run = wandb.init(project='p', id='r', resume='allow')\nrun.log({'i': 5})\nrun.finish()\n"
    here = log_offline(tmp_path, [resumed])
    (directory,) = here.glob("wandb/offline-run-*")
    shutil.copytree(directory, there.directory / "wandb" / directory.name, symlinks=True)

    synced(there, "wandb")

    assert numbers(there) == list(range(6))
    assert [row["_step"] for row in there.run.history] == list(range(6))
