from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from eventlog import process
from eventlog.process import facts, machine, rank_of, relative_code_path
from tests.wandb_server import WandbServer

PROJECT = Path(__file__).parents[2]

# The SDK and we, asked by the same process.
BOTH = """
import json, wandb
from eventlog import process
from eventlog.process import facts
run = wandb.init(project="p", id="r")
print(json.dumps(facts("0")))
run.finish()
"""


class Asked:
    """What the SDK and we say of a script in a repository."""

    def __init__(self, directory: Path, *command: str) -> None:
        repository = directory / "repository"
        (repository / "sub").mkdir(parents=True)
        (repository / "sub" / "script.py").write_text(BOTH)
        git = ["git", "-C", str(repository), "-c", "user.name=me", "-c", "user.email=me@example.org"]
        for arguments in (
            ["init", "--quiet"],
            ["add", "."],
            ["commit", "--quiet", "--message", "first"],
            ["config", "remote.origin.url", "git@host:me/repo.git"],
        ):
            subprocess.run([*git, *arguments], check=True)
        with WandbServer() as server:
            env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
            env |= server.env(directory) | {"PYTHONPATH": str(PROJECT), "SLURM_JOB_ID": "7"}
            del env["WANDB_DISABLE_GIT"]
            done = subprocess.run(
                [sys.executable, *command],
                env=env,
                cwd=repository / "sub",
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr
            self.theirs: dict[str, Any] = json.loads(server.run("ent", "p", "r").files["wandb-metadata.json"])
        self.ours: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(tmp_path_factory.mktemp("script"), "script.py", "--lr", "1")


def test_the_program_is_what_the_sdk_says(script):
    names = {"program": "program", "codePath": "code_path", "codePathLocal": "code_path_local", "git": "git"}
    names |= {"host": "host", "executable": "executable", "os": "os"}

    assert {name: script.ours[ours] for name, ours in names.items()} == {
        name: script.theirs[name] for name in names
    }
    assert script.ours["argv"][1:] == script.theirs["args"]
    assert f"{script.ours['implementation']} {script.ours['python']}" == script.theirs["python"]
    assert script.theirs["codePath"] == "sub/script.py"


def test_the_machine_is_what_the_sdk_says(script):
    theirs = {name: script.theirs[name] for name in script.ours["machine"]}
    # Protobuf writes its 64-bit integers as strings; what is used of the disk moves.
    theirs["memory"] = {"total": int(theirs["memory"]["total"])}
    theirs["disk"] = {"/": {name: int(size) for name, size in theirs["disk"]["/"].items()}}

    used = theirs["disk"]["/"].pop("used")
    assert script.ours["machine"]["disk"]["/"].pop("used") == pytest.approx(used, rel=0.1)
    assert script.ours["machine"] == theirs


def test_nothing_that_the_sdk_says_is_missing(script):
    of_the_machine = {"cpu_count", "cpu_count_logical", "cpu", "memory", "disk", "slurm"}
    under_other_names = {"args", "startedAt", "root", "writerId", "codePath", "codePathLocal"}

    assert script.ours["machine"].keys() == of_the_machine
    assert script.theirs.keys() - of_the_machine - under_other_names <= script.ours.keys()


def test_a_module_is_named_as_the_sdk_names_it(tmp_path: Path):
    module = Asked(tmp_path, "-m", "script")

    assert module.ours["program"] == module.theirs["program"] == "-m script"
    assert module.ours["code_path"] is None
    assert "codePath" not in module.theirs


def test_wandbs_variables_name_the_program_and_the_person(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_PROGRAM", "notebook.ipynb")
    monkeypatch.setenv("WANDB_USER_EMAIL", "me@example.org")

    found = facts("0")

    assert (found["program"], found["email"]) == ("notebook.ipynb", "me@example.org")


def test_a_program_outside_the_repository_has_no_place_in_it(tmp_path: Path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside.py").touch()

    assert relative_code_path(str(tmp_path / "outside.py"), tmp_path / "inside") is None
    assert relative_code_path(str(tmp_path / "missing.py"), tmp_path) is None
    assert relative_code_path(str(tmp_path / "outside.py"), tmp_path) == "outside.py"


def test_slurms_token_stays_where_it_is():
    found = machine({"SLURM_JOB_ID": "7", "SLURM_JWT": "secret", "HOME": "/root"})

    assert found["slurm"] == {"job_id": "7"}


def test_a_process_whose_directory_is_gone_still_has_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    found = facts("0")

    assert (found["cwd"], found["code_path"], found["git"]) == (None, None, None)


@pytest.mark.parametrize(
    ("rank", "size"),
    [
        ("RANK", "WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_NTASKS"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
        ("PMI_RANK", "PMI_SIZE"),
        ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
        ("PALS_RANKID", "PALS_NRANKS"),
        ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    ],
)
def test_every_launcher_says_which_rank_this_is(monkeypatch: pytest.MonkeyPatch, rank: str, size: str):
    for name in (*process._RANK, *process._WORLD_SIZE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(rank, "3")
    monkeypatch.setenv(size, "64")

    found = facts("0")

    assert (found["rank"], found["world_size"]) == (3, 64)


def test_the_rank_is_the_first_that_is_a_number():
    assert rank_of({"RANK": "2", "SLURM_PROCID": "5"}) == 2
    assert rank_of({"RANK": "x", "SLURM_PROCID": "5"}) == 5
    assert rank_of({}) == 0
