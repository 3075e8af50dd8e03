"""The logger for Lightning, with a real Trainer."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.piece import primaries
from eventlog.reader import read
from tests.integrations.tb import records_of, rows_of

if find_spec("lightning") is None or find_spec("torch") is None:
    pytest.skip("lightning and torch cannot be installed here", allow_module_level=True)

PROJECT = Path(__file__).parents[2]


def logger(tmp_path: Path, **options: Any) -> Any:
    from eventlog.integrations.lightning import EventlogLogger

    return EventlogLogger(
        **{"project": "demo", "version": "r", "save_dir": tmp_path, "quiet": True, **options}
    )


def trainer(tmp_path: Path, made: Any, **options: Any) -> Any:
    import lightning

    given: dict[str, Any] = {
        "logger": made,
        "default_root_dir": tmp_path,
        "accelerator": "cpu",
        "max_steps": 4,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return lightning.Trainer(**{**given, **options})


def module(**options: Any) -> Any:
    from tests.integrations.train_lightning import Regression

    return Regression(**options)


def data() -> Any:
    from tests.integrations import train_lightning

    return train_lightning.data()


def run_dir(tmp_path: Path, run_id: str = "r") -> Path:
    return tmp_path / "runs" / "demo" / run_id


def test_a_fit_is_a_run_over_the_global_step(tmp_path: Path):
    trainer(tmp_path, logger(tmp_path)).fit(module(lr=0.25), data())

    rows = [row for _, row in rows_of(run_dir(tmp_path))]
    assert [row["trainer/global_step"] for row in rows] == [0, 1, 2, 3]
    assert all({"loss", "epoch"} <= row.keys() for row in rows)
    assert [record.data["name"] for record in records_of(run_dir(tmp_path), "define_metric")] == [
        "trainer/global_step",
        "*",
    ]
    (config,) = records_of(run_dir(tmp_path), "config")
    assert config.data == {"lr": 0.25, "width": 3}
    assert primaries(run_dir(tmp_path)) == ["main-0001"]
    assert [record.data for record in records_of(run_dir(tmp_path), "exit")] == [{"exitcode": 0}]


def test_a_fit_that_fails_ends_the_run_with_its_traceback(tmp_path: Path):
    made = module()

    def fails(batch: Any, batch_idx: int) -> float:
        return 1 / 0

    made.training_step = fails

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, logger(tmp_path)).fit(made, data())

    (exit_,) = records_of(run_dir(tmp_path), "exit")
    assert exit_.data["exitcode"] == 1
    assert exit_.data["error"].rstrip().endswith("ZeroDivisionError: division by zero")


def test_a_test_after_the_fit_continues_the_run(tmp_path: Path):
    made, fitted = trainer(tmp_path, logger(tmp_path)), module()
    made.fit(fitted, data())
    made.test(fitted, data(), verbose=False)

    assert primaries(run_dir(tmp_path)) == ["main-0001", "main-0002"]
    assert "test_loss" in rows_of(run_dir(tmp_path))[-1][1]


def test_a_run_of_the_users_own_is_used_and_not_finished(tmp_path: Path):
    with eventlog.init(project="mine", id="own", root=tmp_path / "runs", quiet=True) as run:
        made = logger(tmp_path)
        trainer(tmp_path, made).fit(module(), data())
        run.log({"after": 1})

        assert (made.name, made.version) == ("mine", "own")
    assert not run_dir(tmp_path).exists()
    assert "loss" in rows_of(run.dir)[0][1]
    assert rows_of(run.dir)[-1][1] == {"after": 1}


def test_checkpoints_lie_where_the_logger_says(tmp_path: Path):
    trainer(tmp_path, logger(tmp_path), enable_checkpointing=True).fit(module(), data())

    assert [path.suffix for path in (tmp_path / "demo/r/checkpoints").iterdir()] == [".ckpt"]
    assert list(read(run_dir(tmp_path), "files")) == []


@pytest.mark.parametrize(("log_model", "expected"), [(True, 1), ("all", 2)])
def test_checkpoints_are_artifacts_if_asked_for(tmp_path: Path, log_model: bool | str, expected: int):
    from lightning.pytorch.callbacks import ModelCheckpoint

    keeps = ModelCheckpoint(every_n_train_steps=2, save_top_k=1, monitor="loss", mode="max")
    # The loss grows, so that each checkpoint is a better one.
    trainer(
        tmp_path, logger(tmp_path, log_model=log_model), enable_checkpointing=True, callbacks=[keeps]
    ).fit(module(lr=5.0), data())

    artifacts = [record.data for record in read(run_dir(tmp_path), "files") if record.kind == "artifact"]
    assert len(artifacts) == expected
    assert {artifact["name"] for artifact in artifacts} == {"model-r"}
    assert artifacts[-1]["aliases"] == ["latest", "best"]
    assert artifacts[-1]["metadata"]["ModelCheckpoint"]["monitor"] == "loss"
    assert artifacts[-1]["metadata"]["score"] > 0


def test_a_checkpoint_that_cannot_be_read_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    from eventlog import not_yet
    from eventlog.artifact import Artifact

    def fails(artifact: Artifact, *args: Any, **options: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(not_yet, "_said", set())
    monkeypatch.setattr(Artifact, "add_file", fails)
    trainer(tmp_path, logger(tmp_path, log_model=True), enable_checkpointing=True).fit(module(), data())

    assert "a checkpoint, as an artifact, could not be stored" in capfd.readouterr().err
    assert [record.data for record in records_of(run_dir(tmp_path), "exit")] == [{"exitcode": 0}]


def test_hyperparameters_may_be_anything_that_lightning_takes(tmp_path: Path):
    made = logger(tmp_path)

    made.log_hyperparams(Namespace(lr=0.1, inner=Namespace(act=len, layers=(1, Namespace(n=2)))))
    made.log_hyperparams({"lr": 0.2}, more=1)
    made.log_hyperparams(None)
    made.finalize("success")

    first, second = records_of(run_dir(tmp_path), "config")
    assert first.data == {"lr": 0.1, "inner": {"act": "len", "layers": [1, {"n": 2}]}}
    assert second.data == {"lr": 0.2, "more": 1}


def test_media_and_tables(tmp_path: Path):
    import numpy as np

    made = logger(tmp_path, prefix="val")
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)

    made.log_image("samples", [pixels, pixels], step=7, caption=["a", "b"])
    made.log_table("table", columns=["x"], data=[[1]])
    made.log_text("text", columns=["said"], data=[["hi"]])
    made.log_audio("sound", [np.zeros(8)], sample_rate=[8])
    made.finalize("success")

    rows = [row for _, row in rows_of(run_dir(tmp_path))]
    assert rows[0]["trainer/global_step"] == 7
    assert rows[0]["val-samples"]["captions"] == ["a", "b"]
    assert [row[key]["_type"] for row, key in zip(rows[1:3], ("val-table", "val-text"), strict=True)] == [
        "table-file"
    ] * 2
    with pytest.raises(ValueError, match="give one for each"):
        made.log_image("samples", [pixels], caption=[])
    with pytest.raises(TypeError, match="takes a list"):
        made.log_image("samples", pixels)
    made.finalize("success")


def test_before_the_run_begins_nothing_is_written(tmp_path: Path):
    made = logger(tmp_path, version=None)

    assert (made.name, made.version, made.save_dir) == ("demo", None, str(tmp_path))
    made.save()
    made.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_slurm_putting_the_job_back_into_its_queue_ends_no_run(tmp_path: Path):
    made = logger(tmp_path)
    made.log_metrics({"loss": 1.0}, 0)

    made.finalize("finished")
    made.log_metrics({"loss": 0.5}, 1)

    assert records_of(run_dir(tmp_path), "exit") == []
    assert primaries(run_dir(tmp_path)) == ["main-0001"]
    made.finalize("success")


def test_other_ranks_log_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    made = logger(tmp_path)

    made.experiment.log({"loss": 1.0})
    made.log_metrics({"loss": 1.0}, 0)
    made.log_hyperparams({"lr": 1})
    made.finalize("success")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("copied", [lambda made: pickle.loads(pickle.dumps(made)), copy.deepcopy])
def test_a_spawned_process_gets_the_run_handed_over(tmp_path: Path, copied: Any):
    made = logger(tmp_path, version=None)
    made.log_metrics({"loss": 1.0}, 0)
    run_id = made.version

    other = copied(made)
    other.log_metrics({"loss": 0.5}, 1)
    other.finalize("success")

    assert other.version == run_id
    assert [row["loss"] for _, row in rows_of(run_dir(tmp_path, run_id))] == [1.0, 0.5]
    assert primaries(run_dir(tmp_path, run_id)) == ["main-0001", "main-0002"]


def test_a_logger_of_a_run_that_was_given_can_be_sent_to_another_process_too(tmp_path: Path):
    with eventlog.init(project="mine", id="own", root=tmp_path / "runs", quiet=True) as run:
        made = logger(tmp_path, experiment=run)
        made.log_metrics({"loss": 1.0}, 0)

        assert pickle.loads(pickle.dumps(made)).version == "own"
        made.log_metrics({"loss": 0.5}, 1)

    assert len(rows_of(run.dir)) == 2


def test_the_old_package_takes_it_for_a_logger_of_its_own(tmp_path: Path):
    pytorch_lightning = pytest.importorskip(
        "pytorch_lightning", reason="pytorch_lightning cannot be installed here"
    )
    import lightning

    made = logger(tmp_path)

    assert isinstance(made, pytorch_lightning.loggers.Logger)
    assert isinstance(made, lightning.pytorch.loggers.Logger)


def test_where_only_the_old_package_is_in_use_the_new_one_is_not_loaded(script_environment: dict[str, str]):
    pytest.importorskip("pytorch_lightning", reason="pytorch_lightning cannot be installed here")
    script = (
        "import sys, pytorch_lightning; from eventlog.integrations.lightning import EventlogLogger; "
        "print('lightning.pytorch' in sys.modules, issubclass(EventlogLogger, pytorch_lightning.loggers.Logger))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        env=script_environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "False True\n"


def test_a_wrong_word_is_a_mistake_before_the_training(tmp_path: Path):
    with pytest.raises(ValueError, match='log_model is True, False or "all"'):
        logger(tmp_path, log_model="always")


def test_the_script_of_a_user_that_is_killed_goes_on_in_the_same_run(
    tmp_path: Path, script_environment: dict[str, str]
):
    script = str(Path(__file__).with_name("train_lightning.py"))
    command = [sys.executable, script, str(tmp_path), "r"]
    environment = {**script_environment, "PYTHONPATH": str(PROJECT)}
    killed = subprocess.Popen(
        [*command, "--steps", "1000000"], cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    while killed.stdout.readline() != "step 4\n":
        assert killed.poll() is None
    os.kill(killed.pid, signal.SIGKILL)
    killed.stdout.read()
    killed.wait()
    # Lightning logs a step after it has told its callbacks of it.
    logged = len(rows_of(run_dir(tmp_path)))

    subprocess.run(command, cwd=PROJECT, env=environment, check=True)

    assert logged >= 3
    assert primaries(run_dir(tmp_path)) == ["main-0001", "main-0002"]
    rows = rows_of(run_dir(tmp_path))
    # The steps of the run go on, and the new fit's own begin anew.
    assert [step for step, _ in rows] == list(range(logged + 4))
    assert [row["trainer/global_step"] for _, row in rows[logged:]] == [0, 1, 2, 3]
    assert [record.data for record in records_of(run_dir(tmp_path), "exit")] == [{"exitcode": 0}]
