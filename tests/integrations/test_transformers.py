"""The callback for transformers' Trainer, with the real Trainer, and with TRL's GRPOTrainer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog.piece import primaries
from eventlog.reader import read, writers
from eventlog.run import active
from tests.integrations import tiny
from tests.integrations.tb import records_of, rows_of

if find_spec("transformers") is None or find_spec("torch") is None or find_spec("accelerate") is None:
    pytest.skip("transformers, accelerate and torch cannot be installed here", allow_module_level=True)

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_run_is_left() -> Iterator[None]:
    """Do what the end of the process does: until then, the run is the script's."""
    yield
    if active() is not None:
        eventlog.finish()


def callback(tmp_path: Path, **options: Any) -> Any:
    from eventlog.integrations.transformers import EventlogCallback

    return EventlogCallback(**{"root": tmp_path / "runs", "id": "r", "quiet": True, **options})


def trainer(tmp_path: Path, *callbacks: Any, **options: Any) -> Any:
    from transformers import Trainer

    return Trainer(
        model=tiny.model(),
        args=tiny.arguments(tmp_path, **options),
        train_dataset=tiny.texts(),
        eval_dataset=tiny.texts(),
        callbacks=list(callbacks),
    )


def run_dir(tmp_path: Path, run_id: str = "r") -> Path:
    return tmp_path / "runs" / "huggingface" / run_id


def test_metrics_have_the_names_that_transformers_gives_them_in_wandb(tmp_path: Path):
    from transformers.integrations.integration_utils import rewrite_logs

    from eventlog.integrations.transformers import as_wandb_names

    logs = {
        "loss": 1,
        "eval_loss": 2,
        "eval_eval_x": 3,
        "test_acc": 4,
        "testing": 5,
        "rewards/a/mean": 6,
        "eval_": 7,
    }

    assert as_wandb_names(logs) == rewrite_logs(logs)


def test_a_training_is_a_run_over_the_global_step(tmp_path: Path):
    trainer(tmp_path, callback(tmp_path), eval_strategy="steps", eval_steps=2).train()
    eventlog.finish()

    rows = rows_of(run_dir(tmp_path))
    shown = [(step, row["train/global_step"], "train/loss" in row, "eval/loss" in row) for step, row in rows]
    # Transformers evaluates at the end as well; the last row is what is left of its summary.
    assert shown == [
        (0, 1, True, False),
        (1, 2, True, False),
        (2, 2, False, True),
        (3, 3, True, False),
        (4, 3, False, True),
        (5, 3, False, False),
    ]
    assert [record.data["name"] for record in records_of(run_dir(tmp_path), "define_metric")] == [
        "train/global_step",
        "*",
    ]
    (summary,) = records_of(run_dir(tmp_path), "summary")
    assert {path[0] for path, _ in summary.data["set"]} == {
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "train_loss",
        "total_flos",
    }
    assert [record.data for record in records_of(run_dir(tmp_path), "exit")] == [{"exitcode": 0}]


def test_the_config_is_that_of_the_arguments_and_of_the_model(tmp_path: Path):
    made = trainer(tmp_path, callback(tmp_path, config={"mine": 1}), learning_rate=0.25)
    made.train()

    (start,) = records_of(run_dir(tmp_path), "start")
    (config,) = records_of(run_dir(tmp_path), "config")
    assert start.data["config"] == {"mine": 1}
    assert (config.data["learning_rate"], config.data["hidden_size"]) == (0.25, 16)
    assert config.data["model/num_parameters"] == made.model.num_parameters()


def test_an_evaluation_after_the_training_continues_the_run(tmp_path: Path):
    made = trainer(tmp_path, callback(tmp_path), max_steps=1)
    made.train()
    made.evaluate()
    made.predict(tiny.texts())

    assert list((tmp_path / "runs/huggingface").iterdir()) == [run_dir(tmp_path)]
    assert primaries(run_dir(tmp_path)) == ["main-0001"]
    rows = rows_of(run_dir(tmp_path))
    assert [step for step, _ in rows] == [0, 1, 2, 3]
    assert "eval/loss" in rows[2][1]
    assert "test/loss" in rows[3][1]


def test_a_script_may_log_to_the_run_when_the_training_is_over(tmp_path: Path):
    trainer(tmp_path, callback(tmp_path), max_steps=1).train()
    eventlog.log({"final": 1.0})
    eventlog.finish()

    assert rows_of(run_dir(tmp_path))[-1][1] == {"final": 1.0}
    assert [record.data for record in records_of(run_dir(tmp_path), "exit")] == [{"exitcode": 0}]


def test_two_trainings_in_one_process_are_two_runs(tmp_path: Path):
    for run_id in ("a", "b"):
        made = trainer(tmp_path, callback(tmp_path, id=run_id), max_steps=1)
        made.train()
        made.evaluate()

    assert [len(rows_of(run_dir(tmp_path, run_id))) for run_id in ("a", "b")] == [3, 3]


def test_a_run_of_the_users_own_is_used_and_not_finished(tmp_path: Path):
    with eventlog.init(project="mine", id="own", root=tmp_path / "runs", quiet=True) as run:
        trainer(tmp_path, callback(tmp_path), max_steps=1).train()
        run.log({"after": 1})

    assert not run_dir(tmp_path).exists()
    assert rows_of(run.dir)[-1][1] == {"after": 1}
    assert "train/loss" in rows_of(run.dir)[0][1]
    assert len(records_of(run.dir, "exit")) == 1


def test_the_run_that_is_given_is_used(tmp_path: Path):
    with eventlog.init(project="mine", id="active", root=tmp_path / "runs", quiet=True) as active:
        run = eventlog.init(
            project="mine", id="given", root=tmp_path / "runs", quiet=True, reinit="create_new"
        )
        assert eventlog.run is active
        trainer(tmp_path, callback(tmp_path, run=run), max_steps=1).train()
        run.finish()

    assert rows_of(active.dir) == []
    assert len(rows_of(run.dir)) == 2


def stop(run_dir: Path) -> None:
    """Write down what `syncd` hears when somebody presses Stop on the run's page."""
    from eventlog.cursor import Cursor, Sink, save

    run_dir.mkdir(parents=True, exist_ok=True)
    save(run_dir, Cursor(Sink("http://localhost", None, "huggingface", "r"), stopped="main-0001"), 1)


def test_a_stop_on_the_runs_page_stops_the_training(tmp_path: Path):
    from transformers import TrainerCallback

    class PressesStop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 2:
                stop(run_dir(tmp_path))

    made = trainer(tmp_path, PressesStop(), callback(tmp_path), max_steps=1_000_000)
    made.train()
    eventlog.finish()

    # It is looked for now and then, not at each step.
    assert 3 <= made.state.global_step < 1_000_000
    assert [record.data for record in records_of(run_dir(tmp_path), "exit")] == [{"exitcode": 0}]


def test_a_process_that_is_not_the_first_logs_nothing_unless_ranks_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import TrainerControl, TrainerState

    args, state, control = tiny.arguments(tmp_path), TrainerState(), TrainerControl()
    state.is_world_process_zero = False
    monkeypatch.setenv("RANK", "1")

    def log_once(logger: Any) -> None:
        logger.on_train_begin(args, state, control, model=None)
        logger.on_log(args, state, control, logs={"loss": 1.0})
        logger.on_train_end(args, state, control)

    log_once(callback(tmp_path))
    assert not (tmp_path / "runs").exists()

    log_once(callback(tmp_path, upload_ranks="all", resume="allow"))
    (writer,) = writers(run_dir(tmp_path))
    assert writer.startswith("rank1-")
    assert [
        record.data["train/loss"]
        for record in read(run_dir(tmp_path), writer=writer)
        if record.kind == "metrics"
    ] == [1.0]


def test_a_training_from_a_checkpoint_continues_the_run_of_its_id(tmp_path: Path):
    trainer(tmp_path, callback(tmp_path), max_steps=2, save_strategy="steps", save_steps=2).train()

    made = trainer(tmp_path, callback(tmp_path), max_steps=4, save_strategy="steps", save_steps=2)
    made.train(resume_from_checkpoint=True)

    assert primaries(run_dir(tmp_path)) == ["main-0001", "main-0002"]
    steps = [row["train/global_step"] for _, row in rows_of(run_dir(tmp_path)) if "train/loss" in row]
    assert steps == [1, 2, 3, 4]


def test_without_a_checkpoint_the_same_id_is_another_run(tmp_path: Path):
    for _ in range(2):
        trainer(tmp_path, callback(tmp_path), max_steps=1).train()

    assert {path.name for path in (tmp_path / "runs/huggingface").iterdir()} == {"r", "r-2"}


def test_checkpoints_are_artifacts_only_if_asked_for(tmp_path: Path):
    trainer(
        tmp_path, callback(tmp_path, id="plain"), max_steps=2, save_strategy="steps", save_steps=1
    ).train()
    trainer(
        tmp_path,
        callback(tmp_path, id="each", log_model="checkpoint"),
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
    ).train()

    assert list(read(run_dir(tmp_path, "plain"), "files")) == []
    artifacts = [
        record.data for record in read(run_dir(tmp_path, "each"), "files") if record.kind == "artifact"
    ]
    assert [artifact["name"] for artifact in artifacts] == ["model-each"] * 2
    assert artifacts[1]["aliases"] == ["epoch_1.0", "checkpoint_global_step_2", "latest"]
    assert artifacts[1]["metadata"]["train/global_step"] == 2


def test_the_final_model_is_an_artifact_if_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    trainer(tmp_path, callback(tmp_path), max_steps=1, run_name="a name/with more").train()

    (artifact,) = [record.data for record in read(run_dir(tmp_path), "files") if record.kind == "artifact"]
    assert (artifact["name"], artifact["type"]) == ("model-a-name-with-more", "model")
    assert "final_model" in artifact["aliases"]
    manifest = (run_dir(tmp_path) / "files" / artifact["manifest"]).read_bytes()
    assert b"model.safetensors" in manifest


def test_an_artifact_that_cannot_be_stored_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    from transformers import TrainerCallback

    from eventlog import not_yet

    class MovesItAway(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            (tmp_path / f"out/checkpoint-{state.global_step}").rename(tmp_path / f"moved-{state.global_step}")

    monkeypatch.setattr(not_yet, "_said", set())
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, MovesItAway(), callback(tmp_path, log_model="checkpoint"), **options).train()

    assert capfd.readouterr().err.count("a checkpoint, as an artifact, could not be stored") == 1
    assert [row["train/global_step"] for _, row in rows_of(run_dir(tmp_path))] == [1, 2, 2]


def test_a_wrong_word_is_a_mistake_before_the_training(tmp_path: Path):
    with pytest.raises(ValueError, match="log_model is one of false, end, checkpoint"):
        callback(tmp_path, log_model="always")


def test_each_trial_of_a_search_is_a_run_of_its_own(tmp_path: Path):
    from transformers import TrainerControl, TrainerState

    logger, control = callback(tmp_path, id=None), TrainerControl()
    for trial in ("lr=1", "lr=2"):
        args, state = tiny.arguments(tmp_path, run_name="search"), TrainerState()
        state.is_hyper_param_search, state.trial_name = True, trial
        logger.on_train_begin(args, state, control, model=None)
        logger.on_log(args, state, control, logs={"loss": 1.0})
        logger.on_train_end(args, state, control)

    starts = [records_of(found, "start")[0].data for found in (tmp_path / "runs/huggingface").iterdir()]
    assert {(start["name"], start["group"]) for start in starts} == {("lr=1", "search"), ("lr=2", "search")}


def run_script_on_two_ranks(tmp_path: Path, environment: dict[str, str], *options: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = str(Path(__file__).with_name("on_each_rank.py"))
    of_the_job = {
        "EVENTLOG_ROOT": str(tmp_path / "runs"),
        "WANDB_PROJECT": "huggingface",
        "WANDB_RUN_ID": "r",
        "PYTHONPATH": str(PROJECT),
    }
    job = subprocess.Popen(
        [sys.executable, *launcher, script, str(tmp_path), *options],
        cwd=PROJECT,
        env={**environment, **of_the_job},
        start_new_session=True,
    )
    try:
        assert job.wait() == 0
    finally:
        # A rank that waits for another outlives the launcher.
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def test_the_script_of_a_user_runs_on_two_ranks_and_is_resumed(
    tmp_path: Path, script_environment: dict[str, str]
):
    run_script_on_two_ranks(tmp_path, script_environment)
    run_script_on_two_ranks(tmp_path, script_environment, "--steps", "6", "--resume")

    # Each process of the first rank is a piece, and the second rank has none.
    assert writers(run_dir(tmp_path)) == ["main-0001", "main-0002"]
    assert len(records_of(run_dir(tmp_path), "exit")) == 2
    rows = rows_of(run_dir(tmp_path))
    assert [row["train/global_step"] for _, row in rows if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
    assert records_of(run_dir(tmp_path), "start")[0].data["name"] == "tiny"


def test_both_ranks_stop_at_the_same_step(tmp_path: Path, script_environment: dict[str, str]):
    stop(run_dir(tmp_path))

    # If one of them went on alone, it would wait for the other until the test times out.
    run_script_on_two_ranks(tmp_path, script_environment, "--steps", "1000000")

    rows = rows_of(run_dir(tmp_path))
    assert [row["train/global_step"] for _, row in rows if "train/loss" in row] == [1]


# ── TRL ──────────────────────────────────────────────────────────────────────────────────────────────────────


def grpo(tmp_path: Path, prompts: list[Any], rewards: list[Any], *callbacks: Any, **options: Any) -> Any:
    datasets = pytest.importorskip("datasets", reason="datasets cannot be installed here")
    trl = pytest.importorskip("trl", reason="trl cannot be installed here")
    given: dict[str, Any] = {
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "num_generations": 2,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 5,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    return trl.GRPOTrainer(
        model=tiny.model(),
        reward_funcs=rewards,
        args=trl.GRPOConfig(**{**given, **options}),
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        eval_dataset=datasets.Dataset.from_dict({"prompt": prompts[:2]}),
        processing_class=tiny.tokenizer(),
        callbacks=list(callbacks),
    )


def trajectories(tmp_path: Path) -> list[Any]:
    return list(read(run_dir(tmp_path), "trajectories"))


def longer_is_better(completions: list[Any], log_extra: Any = None, **others: Any) -> list[float]:
    if log_extra is not None:
        log_extra("length", [len(completion) for completion in completions])
    return [float(len(completion)) for completion in completions]


def judges_every_other(completions: list[Any], **others: Any) -> list[float | None]:
    return [None if at % 2 else 1.0 for at, _ in enumerate(completions)]


def test_each_completion_of_grpo_is_a_trajectory_of_its_group(tmp_path: Path):
    seen: list[str] = []

    def remembers(prompts: list[str], completions: list[str], **others: Any) -> list[float]:
        seen.extend(completions)
        return [0.0] * len(completions)

    grpo(
        tmp_path,
        tiny.WORDS,
        [longer_is_better, judges_every_other, remembers],
        callback(tmp_path),
        reward_weights=[0.5, 2.0, 1.0],
    ).train()

    found = trajectories(tmp_path)
    # Two steps of two groups of two, all of them: also where TRL logs every second step only.
    assert [record.data["turns"][1]["content"] for record in found] == seen
    assert [record.data["id"] for record in found] == [
        f"train.{step}.0.{group}.{member}" for step in (1, 2) for group in (0, 1) for member in (0, 1)
    ]
    for record in found:
        assert [turn["role"] for turn in record.data["turns"]] == ["user", "assistant"]
        length = len(record.data["turns"][1]["content"])
        judged = {"judges_every_other": 1.0} if record.data["id"].endswith("0") else {}
        assert record.data["metrics"] == {"longer_is_better": length, **judged, "remembers": 0.0}
        assert record.data["reward"] == 0.5 * length + (2.0 if judged else 0.0)
        assert record.data["info"]["length"] == length
        assert record.data["group"] == record.data["id"][:-2]
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert first.data["turns"][0] == second.data["turns"][0]
        assert first.data["advantage"] == pytest.approx(-second.data["advantage"], abs=1e-6)
    # They stand beside the row that reports them.
    (row,) = [row for row in records_of(run_dir(tmp_path), "metrics") if "train/reward" in row.data]
    assert {record.step for record in found} == {row.step}
    rewards = [record.data["reward"] for record in found]
    assert row.data["train/reward"] == pytest.approx(sum(rewards) / len(rewards))


def test_completions_of_an_evaluation_are_told_apart(tmp_path: Path):
    made = grpo(tmp_path, tiny.WORDS, [longer_is_better], callback(tmp_path), max_steps=1)
    made.train()
    made.evaluate()

    splits = [record.data["info"]["split"] for record in trajectories(tmp_path)]
    assert splits == ["train"] * 4 + ["eval"] * 4
    # Each batch of an evaluation has groups of its own.
    assert len({record.data["group"] for record in trajectories(tmp_path)}) == 4


def test_conversations_are_turns(tmp_path: Path):
    prompts = [
        [{"role": "system", "content": "be brief"}, {"role": "user", "content": word}] for word in tiny.WORDS
    ]

    grpo(tmp_path, prompts, [judges_every_other], callback(tmp_path), max_steps=1).train()

    first = trajectories(tmp_path)[0].data
    assert [turn["role"] for turn in first["turns"]] == ["system", "user", "assistant"]
    assert first["turns"][0]["content"] == "be brief"


def test_generations_that_are_used_twice_are_logged_once(tmp_path: Path):
    grpo(
        tmp_path,
        tiny.WORDS,
        [longer_is_better],
        callback(tmp_path),
        max_steps=4,
        gradient_accumulation_steps=1,
        steps_per_generation=2,
        num_iterations=1,
    ).train()

    # Four steps, and two generations of two steps' completions each.
    assert [record.data["id"] for record in trajectories(tmp_path)] == [
        f"train.{step}.0.{group}.{member}" for step in (1, 3) for group in (0, 1) for member in (0, 1)
    ]


def test_generations_within_one_step_of_the_optimiser_are_all_logged(tmp_path: Path):
    grpo(
        tmp_path, tiny.WORDS, [longer_is_better], callback(tmp_path), max_steps=2, steps_per_generation=1
    ).train()

    # TRL keeps one generation at a time, and makes two of them for each step.
    assert [record.data["id"] for record in trajectories(tmp_path)] == [
        f"train.{step}.{batch}.0.{member}" for step in (1, 2) for batch in (0, 1) for member in (0, 1)
    ]


def test_a_callback_that_is_added_later_finds_its_trainer_as_well(tmp_path: Path):
    made = grpo(tmp_path, tiny.WORDS, [longer_is_better], max_steps=1)
    made.add_callback(callback(tmp_path))

    made.train()

    assert len(trajectories(tmp_path)) == 4


def test_a_trainer_whose_completions_are_kept_otherwise_is_said_and_trains_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from eventlog import not_yet

    monkeypatch.setattr(not_yet, "_said", set())
    logger = callback(tmp_path)
    made = grpo(tmp_path, tiny.WORDS, [longer_is_better], logger, max_steps=1)
    logger._completions._trainer, logger._completions._has_looked = None, False
    monkeypatch.setattr("eventlog.integrations.transformers._keeps_completions", lambda trainer: False)

    made.train()

    assert trajectories(tmp_path) == []
    assert "keeps no completions that are known here" in capfd.readouterr().err


def test_tool_calls_and_their_results_are_joined():
    from eventlog.integrations.transformers import _turns_of

    turns = _turns_of(
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"type": "function", "id": "a", "function": {"name": "add", "arguments": {"x": 1}}},
                    {"type": "function", "function": {"name": "sub", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "name": "add", "content": "2"},
            {"role": "tool", "name": "sub", "content": [{"type": "text", "text": "3"}, {"type": "image"}]},
        ],
        "assistant",
    )

    assert [(call.name, call.arguments, call.id, call.result) for call in turns[0].tool_calls] == [
        ("add", {"x": 1}, "a", "2"),
        ("sub", "{}", None, "3[image]"),
    ]
    assert [(turn.role, turn.content) for turn in turns] == [
        ("assistant", ""),
        ("tool", "2"),
        ("tool", "3[image]"),
    ]
