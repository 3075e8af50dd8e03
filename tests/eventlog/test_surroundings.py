from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eventlog import surroundings
from tests.wandb_server import WandbServer, wait_for

PROJECT = Path(__file__).parents[2]


def git(*arguments: str | Path) -> str:
    names = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    done = subprocess.run(["git", *names, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, around the working directory."""
    root = tmp_path / "repository"
    (root / "sub").mkdir(parents=True)
    monkeypatch.chdir(root)
    git("init", "--quiet")
    (root / "train.py").write_text("lr = 1\n")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    return root


def is_dead(pid: str) -> bool:
    try:
        return "State:\tZ" in Path("/proc", pid, "status").read_text()
    except OSError:
        return True


def files_of_the_sdk(directory: Path) -> dict[str, bytes]:
    """Run the SDK in the current directory; return the files it uploads."""
    directory.mkdir()
    with WandbServer() as server:
        env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        env |= server.env(directory) | {"WANDB_SAVE_CODE": "true"}
        del env["WANDB_DISABLE_GIT"]
        Path("sub", "script.py").write_text("import wandb; wandb.init(project='p', id='r').finish()\n")
        subprocess.run([sys.executable, "sub/script.py"], env=env, timeout=120, check=True)
        return dict(server.run("ent", "p", "r").files)


# What is installed


def test_requirements_are_the_lines_of_the_sdk_in_the_order_of_their_names(repository: Path, tmp_path: Path):
    theirs = files_of_the_sdk(tmp_path / "sdk")["requirements.txt"].decode()

    ours = surroundings.requirements()

    assert ours.endswith("\n")
    assert ours.splitlines() == sorted(
        set(theirs.splitlines()), key=lambda line: line.partition("==")[0].lower()
    )


def test_a_package_without_metadata_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "half_removed-1.0.dist-info").mkdir()
    (tmp_path / "whole-2.0.dist-info").mkdir()
    (tmp_path / "whole-2.0.dist-info" / "METADATA").write_text("Name: whole\nVersion: 2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    lines = surroundings.requirements().splitlines()

    assert "whole==2.0" in lines
    assert not any("half" in line or "None" in line for line in lines)


# What is changed


def test_a_patch_is_byte_for_byte_that_of_the_sdk(repository: Path, tmp_path: Path):
    (repository / "train.py").write_text("lr = 2\n")
    (repository / "staged.txt").write_text("staged, and ü\n")
    (repository / "binary").write_bytes(b"\0\xff")
    git("add", "staged.txt", "binary")
    (repository / "unknown.txt").write_text("not known to git\n")

    theirs = files_of_the_sdk(tmp_path / "sdk")["diff.patch"]

    assert surroundings.patch() == theirs
    assert b"+lr = 2" in theirs
    assert b"not known" not in theirs


def test_a_patch_taken_in_a_directory_below_brings_the_whole_tree_back(repository: Path, monkeypatch):
    (repository / "train.py").write_text("lr = 2\n")
    monkeypatch.chdir(repository / "sub")

    patch = surroundings.patch()
    git("-C", "..", "checkout", "train.py")
    subprocess.run(["git", "apply", "-"], cwd=repository, input=patch, check=True)

    assert (repository / "train.py").read_text() == "lr = 2\n"


def test_a_patch_says_what_changed_in_a_submodule(repository: Path, tmp_path: Path):
    git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", repository, "library")
    git("commit", "--quiet", "--message", "second")
    Path("library", "train.py").write_text("lr = 3\n")

    patch = surroundings.patch()

    assert patch is not None
    assert b"+lr = 3" in patch


def test_a_clean_repository_has_no_patch(repository: Path):
    (repository / "unknown.txt").write_text("not known to git\n")

    assert surroundings.patch() is None


def test_a_repository_without_a_commit_has_no_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")

    assert surroundings.patch() is None


def test_there_is_no_patch_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    assert surroundings.patch() is None


def test_there_is_no_patch_on_a_machine_without_git(repository: Path, monkeypatch: pytest.MonkeyPatch):
    (repository / "train.py").write_text("lr = 2\n")
    monkeypatch.setenv("PATH", "/nonexistent")

    assert surroundings.patch() is None


def test_a_patch_holds_no_credentials(repository: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    (repository / "train.py").write_text("key = '0123456789abcdef'\nurl = 'https://me:hunter2@host/x.git'\n")

    patch = surroundings.patch()

    assert patch is not None
    assert b"+key = '[redacted]'\n+url = 'https://host/x.git'\n" in patch


def test_changed_data_too_large_for_a_patch_are_left_out(repository: Path):
    (repository / "train.py").write_text("0123456789\n" * (surroundings.PATCH_MAX_BYTES // 10))

    assert surroundings.patch() is None


def test_a_git_that_hangs_is_given_up_with_all_that_it_started(repository: Path, tmp_path: Path):
    # What git has said before it hangs is no patch.
    (repository / "a.txt").touch()
    git("add", "a.txt")
    (repository / "a.txt").write_text("changed\n" * 100_000)
    (repository / ".gitattributes").write_text("*.py filter=hangs\n")
    git("config", "filter.hangs.clean", f"echo $$ > {tmp_path}/filter; exec sleep 1000")
    (repository / "train.py").write_text("lr = 2\n")

    assert surroundings.patch(timeout_s=3.0) is None

    filter_pid = (tmp_path / "filter").read_text().strip()
    wait_for(lambda: is_dead(filter_pid), "the filter's end")
