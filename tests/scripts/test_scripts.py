"""Training scripts that say `import wandb` run here as they are, and W&B has the same of them as of its own client.

Each script runs twice: by W&B's client, and by `python -m eventlog.as_wandb` with an upload afterwards.  The two servers
are compared run by run.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import eventlog
from tests.contract.clients import REPOSITORY, World, world
from tests.contract.comparable import comparable, kind_of
from tests.wandb_server import StoredRun

HERE = Path(__file__).parent
# What a script measures of itself, and is another number each time.
MEASURED = ("runtime", "per_second", "time", "flos", "artifact_path", "sha256", "size", "path", "filenames")
# `watch(log_graph=True)`: said once to be left out.
NOT_STORED = {"graph_0"}
SWEEP = "wandb_version: 1\nlr:\n  value: 0.5\n"


@dataclass(frozen=True)
class Script:
    """A script, what it needs, and what it is known to come to."""

    name: str
    rows: int
    """At least so many, in all of its runs."""
    keys: set[str]
    """Some of what it logs, by which it is known."""
    needs: tuple[str, ...] = ()
    runs: int = 1
    times: int = 1
    """How often it is started."""
    env: dict[str, str] = field(default_factory=dict)


SCRIPTS = [
    Script("plain/first_steps.py", 16, {"acc", "loss"}, runs=2),
    Script("plain/arguments.py", 6, {"train/loss", "weights", "epoch", "error"}, needs=("numpy",)),
    Script("plain/old_style.py", 6, {"loss", "examples", "table"}),
    Script("plain/pictures.py", 3, {"examples", "single", "weights", "predictions"}, needs=("numpy", "PIL")),
    Script("plain/charts.py", 5, {"sine_table", "confusion_table", "both_table"}, needs=("numpy",)),
    Script("plain/folds.py", 10, {"val/score", "mean"}, runs=4),
    Script("plain/continued.py", 6, {"epoch", "loss"}, times=2),
    Script("plain/artifacts.py", 2, {"epoch"}),
    Script("plain/settings.py", 3, {"loss", "inner", "nan", "text"}),
    Script(
        "plain/trial.py",
        3,
        {"val_loss"},
        env={
            "WANDB_SWEEP_ID": "sweep1",
            "WANDB_SWEEP_PARAM_PATH": "sweep.yaml",
            "WANDB_PROJECT": "of-the-sweep",
            "WANDB_RUN_ID": "trial1",
        },
    ),
    Script(
        "pytorch/classifier.py",
        18,
        {"train/loss", "val/accuracy", "val/examples", "gradients/first.weight", "parameters/second.bias"},
        needs=("torch",),
    ),
    Script(
        "huggingface/trainer.py",
        7,
        {"train/loss", "train/global_step", "eval/loss"},
        needs=("transformers", "accelerate", "tokenizers"),
    ),
    Script(
        "huggingface/accelerated.py", 5, {"loss", "step_squared", "examples"}, needs=("accelerate", "torch")
    ),
    Script(
        "huggingface/grpo.py",
        3,
        {"train/reward", "train/global_step", "completions"},
        needs=("trl", "datasets", "transformers", "accelerate"),
    ),
    Script(
        "lightning/module.py",
        12,
        {"train/loss", "val/loss", "trainer/global_step", "examples", "pixels"},
        needs=("lightning", "torch"),
    ),
]


def needed(script: Script) -> None:
    for library in script.needs:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{script.name} needs {library}, which is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_for_wandb_runs_as_it_is(script: Script, tmp_path: Path):
    needed(script)

    with ThreadPoolExecutor() as pool:
        theirs = pool.submit(by_wandb, script, tmp_path)
        ours = by_us(script, tmp_path)

    compare(script, ours.server.runs(), theirs.result().server.runs())
    logs = [path.parent for path in (ours.home / "runs").glob("*/*/run.json")]
    assert len(logs) == script.runs
    for log in logs:
        assert [record for record in eventlog.read(log) if record.kind == "gap"] == []
        assert list(eventlog.read(log))[-1].data == {"exitcode": 0}


def by_wandb(script: Script, tmp_path: Path) -> World:
    with world(
        tmp_path, "theirs", prepared(script, tmp_path / "files of theirs"), **env_of(script)
    ) as theirs:
        for _ in range(script.times):
            theirs.command(Path(script.name).name)
        return theirs


def by_us(script: Script, tmp_path: Path) -> World:
    with world(tmp_path, "ours", prepared(script, tmp_path / "files of ours"), **env_of(script)) as ours:
        for _ in range(script.times):
            ours.command("-m", "eventlog.as_wandb", Path(script.name).name)
            ours.command("-m", "syncd", "sync")
        assert ours.server.violations == []
        return ours


def prepared(script: Script, directory: Path) -> Path:
    """A directory with the script, what lies beside it, and what a sweep's agent would leave there."""
    shutil.copytree(HERE / Path(script.name).parent, directory)
    (directory / "sweep.yaml").write_text(SWEEP)
    return directory


def env_of(script: Script) -> dict[str, str]:
    return {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", **script.env}


def compare(script: Script, ours: list[StoredRun], theirs: list[StoredRun]) -> None:
    assert len(ours) == len(theirs) == script.runs
    assert sum(len(run.history) for run in ours) >= script.rows
    logged = {key for run in ours for row in run.history for key in row}
    assert script.keys <= logged
    for our, their in zip(in_order(ours), in_order(theirs), strict=True):
        assert [known(row) for row in our.history] == [known(row) for row in their.history]
        assert known(our.summary) == known(
            {key: v for key, v in their.summary.items() if key not in NOT_STORED}
        )
        assert known(config_of(our)) == known(config_of(their))
        for name in ("project", "notes", "tags", "group", "job_type", "complete", "exitcode"):
            assert getattr(our, name) == getattr(their, name), name
        assert our.params.get("sweep") == their.params.get("sweep")
        assert name_of(our) == name_of(their)
        assert files_of(our) == files_of(their)


def in_order(runs: list[StoredRun]) -> list[StoredRun]:
    # Where there are several, the script names them.
    return sorted(runs, key=lambda run: (run.display_name, run.run_id)) if len(runs) > 1 else runs


def name_of(run: StoredRun) -> str:
    return "its id" if run.display_name in ("", run.run_id) else run.display_name


def config_of(run: StoredRun) -> dict[str, Any]:
    own = {key: value for key, value in run.config.items() if key not in ("_tidelog", "_wandb")}
    told = run.config["_wandb"]
    return {**own, "visualize": told.get("visualize"), "code_path": told.get("code_path")}


def files_of(run: StoredRun) -> set[str]:
    """What the script saved: media have names with a digest, and each client has files of its own."""
    own = (
        "wandb-",
        "config.yaml",
        "requirements.txt",
        "output.log",
        "media/",
        "diff.patch",
        "conda-environment",
    )
    return {name for name in run.files if not name.startswith(own)}


def known(value: Any, key: str = "") -> Any:
    """A value without what is measured or random: its type stands for it."""
    if isinstance(value, dict):
        return {name: known(item, name) for name, item in value.items() if name != "_wandb"}
    if isinstance(value, list) and key not in MEASURED:
        return [known(item) for item in value]
    if key.startswith("_") or any(word in key.lower() for word in MEASURED):
        return value if key == "_step" else kind_of(value)
    if isinstance(value, float) and value == value:
        return float(f"{value:.4g}")
    return comparable(value)


def test_the_module_runs_a_script_with_its_arguments_and_its_directory(tmp_path: Path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "beside.py").write_text("WORD = 'found'\n")
    (tmp_path / "lib" / "main.py").write_text(
        "import sys, wandb, wandb.errors, beside\n"
        "from wandb.sdk.lib.config_util import ConfigError\n"
        "from wandb.sdk.wandb_run import Run\n"
        "import wandb.sdk\n"
        "assert __name__ == '__main__' and wandb.sdk.lib.config_util.ConfigError is ConfigError\n"
        "assert issubclass(ConfigError, wandb.errors.Error) and Run is wandb.Run\n"
        "print(sys.argv, beside.WORD, wandb.__name__)\n"
    )

    done = run("-m", "eventlog.as_wandb", "lib/main.py", "--lr", "1", cwd=tmp_path)

    assert done == ["['lib/main.py', '--lr', '1'] found eventlog"]


def test_the_module_runs_a_module(tmp_path: Path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "train.py").write_text("import sys, wandb\nprint(sys.argv[1:], wandb.__name__)\n")

    done = run("-m", "eventlog.as_wandb", "-m", "pack.train", "--lr", "1", cwd=tmp_path)

    assert done == ["['--lr', '1'] eventlog"]


def test_its_place_is_not_taken_from_the_client_that_is_there_already(tmp_path: Path):
    script = (
        "import sys, types\n"
        "sys.modules['wandb'] = types.ModuleType('wandb')\n"
        "from eventlog.as_wandb import take_its_place\n"
        "try:\n    take_its_place()\n"
        "except Exception as error:\n    print(error)\n"
    )

    (said,) = run("-c", script, cwd=tmp_path)

    assert "python -m eventlog.as_wandb SCRIPT" in said


def run(*arguments: str, cwd: Path) -> list[str]:
    import os
    import subprocess

    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
