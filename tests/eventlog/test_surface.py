"""Every name of W&B's that a script may use is here: it works, or says once what it does not do."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.sdk.lib.runid import generate_id
from wandb.sdk.wandb_run import Run as WandbRun

import eventlog
from eventlog.errors import UnsupportedError

PROJECT = Path(__file__).parents[2]
_INTEGRATION = "an integration of W&B's client with a library: that library's own callback logs here"
_INNER = "an inner module of W&B's client, which its own guides do not name"
# Names of W&B's package that are not here, each with its reason.
LEFT_OUT = {
    "agents": _INNER,
    "analytics": _INNER,
    "apis": _INNER,
    "catboost": _INTEGRATION,
    "env": _INNER,
    "helper": _INNER,
    "integration": _INTEGRATION,
    "jupyter": "the notebook magic of W&B's client",
    "keras": _INTEGRATION,
    "lightgbm": _INTEGRATION,
    "patched": _INNER,
    "profiler": _INNER,
    "proto": _INNER,
    "sacred": _INTEGRATION,
    "sagemaker_auth": "writes W&B's key for SageMaker; nothing here has a key",
    "sdk": _INNER,
    "sklearn": _INTEGRATION,
    "tensorflow": _INTEGRATION,
    "termsetup": _INNER,
    "trigger": _INNER,
    "wandb": "the package in itself",
    "wandb_agent": _INNER,
    "wandb_lib": _INNER,
    "wandb_sdk": _INNER,
    "wandb_torch": _INNER,
    "xgboost": _INTEGRATION,
}
# Of what an earlier release had, and scripts still use.
OLDER = {
    "run": ["get_url", "get_project_url", "link_artifact", "log_code", "should_stop"],
    "module": ["plots", "link_artifact", "log_code", "Error"],
}


@pytest.fixture
def run(tmp_path: Path) -> eventlog.Run:
    return eventlog.init(project="demo", root=tmp_path / "root", quiet=True)


def public(names: list[str]) -> set[str]:
    return {name for name in names if not name.startswith("_")}


def test_every_public_name_of_a_run_is_here(run: eventlog.Run):
    missing = {name for name in public(dir(WandbRun)) if not hasattr(run, name)}

    assert missing == set()
    assert [name for name in OLDER["run"] if not hasattr(run, name)] == []


def test_every_public_name_of_the_package_is_here_or_left_out_for_a_reason():
    # A process of its own: which modules of its package are its attributes depends on what was imported.
    script = "import json, wandb; print(json.dumps([*dir(wandb), *wandb.__all__]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names = public(json.loads(done.stdout))

    assert {name for name in names if not hasattr(eventlog, name)} == LEFT_OUT.keys()
    assert [name for name in OLDER["module"] if not hasattr(eventlog, name)] == []


def test_every_argument_of_init_is_taken_in_the_same_place():
    theirs = list(inspect.signature(wandb.init).parameters)
    ours = list(inspect.signature(eventlog.init).parameters)

    assert ours[: len(theirs)] == theirs


@pytest.mark.parametrize("name", sorted(public(dir(WandbRun))))
def test_every_method_of_a_run_takes_the_same_arguments(name: str):
    theirs = getattr(WandbRun, name)
    if not callable(theirs):
        assert isinstance(theirs, property)
        return

    ours = inspect.signature(getattr(eventlog.Run, name)).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in ours.values())

    assert takes_any or [each for each in inspect.signature(theirs).parameters if each not in ours] == []


@pytest.mark.parametrize(
    "call",
    [
        lambda run: run.mark_preempting(),
        lambda run: run.link_artifact(eventlog.Artifact("a", "b"), "collection"),
        lambda run: run.finish_artifact(eventlog.Artifact("a", "b")),
        lambda run: run.use_artifact("a:latest"),
        lambda run: run.use_artifact(eventlog.Artifact("a", "b")),
        lambda run: run.restore("nothing.txt"),
        lambda run: eventlog.login(),
        lambda run: eventlog.Object3D([1]),
        lambda run: eventlog.Molecule("x"),
        lambda run: eventlog.Plotly(None),
        lambda run: eventlog.Graph(),
        lambda run: eventlog.tensorboard.patch(root_logdir="logs"),
        lambda run: eventlog.gym.monitor(),
        lambda run: eventlog.EvalTable(columns=["a"], data=[[1]], input_columns=["a"]),
    ],
)
def test_what_is_not_done_is_said_once(
    call: Callable[[eventlog.Run], Any], run: eventlog.Run, capsys: pytest.CaptureFixture[str]
):
    call(run)
    said = capsys.readouterr().err
    call(run)

    assert said.startswith("eventlog: ")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "call",
    [
        lambda run: eventlog.Api(),
        lambda run: eventlog.sweep({}),
        lambda run: eventlog.agent("id", function=print),
        lambda run: eventlog.controller("id"),
        lambda run: eventlog.api.viewer(),
        lambda run: run.use_model("m"),
        lambda run: run.use_artifact("a:latest").download(),
    ],
)
def test_what_only_the_servers_can_do_is_refused_with_the_way_out(
    call: Callable[[eventlog.Run], Any], run: eventlog.Run
):
    with pytest.raises(UnsupportedError, match=r"wandb|W&B"):
        call(run)


def test_a_callback_that_is_not_here_is_refused_with_the_way_out():
    with pytest.raises(AttributeError, match=r"run\.log.*eventlog\.integrations"):
        _ = eventlog.keras
    assert not hasattr(eventlog, "xgboost")
    assert not hasattr(eventlog.tensorboard, "__path__")


def test_settings_are_asked_as_wandbs_are(run: eventlog.Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    settings = eventlog.setup(eventlog.Settings(project="demo")).settings

    changed = settings.copy(update={"entity": "me"})
    changed.update_from_dict({"mode": "offline"})

    assert (settings.entity, changed.to_dict()) == (
        None,
        {"project": "demo", "entity": "me", "mode": "offline"},
    )
    assert (run.settings.sync_dir, run.settings.files_dir) == (str(run.dir), str(run.dir))
    assert eventlog.setup().settings.project is None
    assert eventlog.ensure_configured() is None
    assert eventlog.api.api_key == "k" * 40


def test_a_value_that_is_not_stored_costs_only_itself(run: eventlog.Run):
    run.log(
        {"loss": 1, "cloud": eventlog.Object3D([[1, 2, 3]]), "molecule": eventlog.Molecule.from_smiles("C")}
    )

    (record,) = [record for record in eventlog.read(run.dir) if record.kind == "metrics"]
    assert record.data == {"loss": 1, "cloud": "<Object3D: not stored>", "molecule": "<Molecule: not stored>"}
    assert set(record.lossy) == {("cloud",), ("molecule",)}


def test_the_errors_have_wandbs_names():
    from eventlog.errors import AuthenticationError, CommError, UsageError

    assert issubclass(UsageError, eventlog.Error)
    assert issubclass(CommError, eventlog.Error)
    assert issubclass(AuthenticationError, CommError)
    with pytest.raises(eventlog.errors.UsageError, match=r"eventlog\.init"):
        eventlog.log({"a": 1})


def test_ids_and_names_are_made_as_wandb_makes_them():
    name = "source-" + 70 * "a/b "

    assert eventlog.util.make_artifact_name_safe(name) == wandb.util.make_artifact_name_safe(name)
    assert eventlog.util.make_artifact_name_safe("a b") == wandb.util.make_artifact_name_safe("a b")
    assert len(eventlog.util.generate_id()) == len(generate_id())


def test_the_modules_beside_it_do_not_hide_a_name(tmp_path: Path):
    # A submodule is an attribute of its package once it is imported.
    script = """
import importlib, pkgutil, eventlog
names = [module.name for module in pkgutil.iter_modules(eventlog.__path__) if module.name not in ("__main__", "cli")]
with eventlog.init(project="p", root=".", quiet=True) as run:
    for name in names:
        importlib.import_module(f"eventlog.{name}") if name not in ("integrations", "importers") else None
    wrong = [name for name in eventlog.__all__ if type(getattr(eventlog, name)).__name__ == "module"]
    assert not wrong, wrong
    assert eventlog.summary is run.summary and eventlog.config is run.config
from eventlog import run
assert run is None
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(PROJECT)},
    )

    assert done.returncode == 0, done.stderr


def test_attach_returns_the_run_of_this_process(run: eventlog.Run):
    assert eventlog.attach(run.id) is run
    with pytest.raises(eventlog.UsageError, match="no run 'other'"):
        eventlog.attach("other")


def test_teardown_ends_every_run(tmp_path: Path):
    runs = [
        eventlog.init(project="demo", id=str(number), root=tmp_path, quiet=True, reinit="create_new")
        for number in range(2)
    ]

    eventlog.teardown(exit_code=3)

    for run in runs:
        assert list(eventlog.read(run.dir))[-1].data == {"exitcode": 3}


def test_in_its_place_a_module_that_is_not_here_is_not_found_and_the_error_says_what_to_use(tmp_path: Path):
    script = """
from eventlog.as_wandb import take_its_place
take_its_place()
import wandb, wandb.tensorboard
from wandb.gym import monitor
from wandb.sdk.lib.runid import generate_id
wandb.tensorboard.patch(root_logdir="logs")
for name in ("wandb.integration.sb3", "wandb.cli", "wandb.env"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        print(error.name, "|", error)
"""

    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(PROJECT)},
    )

    assert done.returncode == 0, done.stderr
    integration, command, env = done.stdout.splitlines()
    assert integration.startswith("wandb.integration | ")
    assert "run.log(…)" in integration
    assert command.startswith("wandb.cli | No module named 'wandb.cli'. Nothing here is in the place")
    assert env.startswith("wandb.env | ")
    assert done.stderr.count("is not logged. Log with run.log(…)") == 1
