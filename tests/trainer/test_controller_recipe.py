"""The recipe `joint_controller`, run small and whole: what it logs is what its trajectories say, also after a resume."""

import io
import statistics
from pathlib import Path

import pytest
import torch
from rich.console import Console

import eventlog
from trainer import adaptive, recipes
from trainer.config import with_overrides
from trainer.errors import DataError, SettingsError
from trainer.launch import Request, launch
from trainer.recipes import joint_controller
from trainer.recipes.joint_controller import JointControllerSettings, problems_for, task_for

TINY = {
    "epochs": "2",
    "train_size": "4",
    "rollouts_per_step": "2",
    "group_size": "3",
    "train_batch_size": "3",
    "eval_size": "4",
    "checkpoint_interval": "1",
    "warmup_problems": "20",
    "warmup_max_steps": "20",
    "temperature": "0.7",
    "hidden": "16",
    "layers": "1",
    "adaptive_layers": "2",
    "adaptive_hidden": "16",
    "adaptive_steps": "2",
    "latency": "counted",
}


pytestmark = pytest.mark.usefixtures("own_machine")


def start(name="try", *, resume=False, **overrides):
    request = Request(
        TINY | {key: str(value) for key, value in overrides.items()},
        name=name,
        root=Path("runs"),
        resume=resume,
        uploads=False,
    )
    return launch(recipes.load("joint_controller"), request, Console(file=io.StringIO()))


def rows(outcome):
    return [r for r in eventlog.read(outcome.run_dir) if r.kind == "metrics"]


def trajectories(outcome, split):
    found = [r for r in eventlog.read(outcome.run_dir, "trajectories") if r.kind == "trajectory"]
    return [r for r in found if r.data["info"].get("split") == split]


def curves(outcome, part):
    """Return epoch → the metrics `part`/… of its row."""
    found = {}
    for row in rows(outcome):
        of_part = {k: v for k, v in row.data.items() if k.startswith(f"{part}/")}
        if of_part:
            found[row.data["epoch"]] = of_part
    return found


def test_every_curve_of_an_epoch_can_be_computed_again_from_its_trajectories():
    outcome = start()

    # 2 batches of 2 groups of 3 in an epoch, each learnt from in 2 optimiser steps: rows 0-3 and 4-7, and a last one.
    train = curves(outcome, "Train")
    assert sorted(train) == [0, 1]
    for epoch, logged in train.items():
        of_epoch = [r.data for r in trajectories(outcome, "train") if r.step // 4 == epoch]
        rewards = [t["reward"] for t in of_epoch]
        accuracies, latencies, violations, unparsable = (
            [t["metrics"][key] for t in of_epoch]
            for key in ("accuracy", "latency_ms", "budget_violation", "unparsable")
        )
        losses = [
            r.data["training_step/loss"]
            for r in rows(outcome)
            if r.step // 4 == epoch and "training_step/loss" in r.data
        ]
        assert len(of_epoch) == 12
        expected = {
            "Train/Reward_Mean": statistics.fmean(rewards),
            "Train/Reward_Std": statistics.pstdev(rewards),
            "Train/Accuracy_Mean": statistics.fmean(accuracies),
            "Train/Accuracy_Std": statistics.pstdev(accuracies),
            "Train/Latency_Mean": statistics.fmean(latencies),
            "Train/Latency_Std": statistics.pstdev(latencies),
            "Train/Budget_Violation_Rate": statistics.fmean(violations),
            "Train/Unparsable_Count": sum(unparsable),
        }
        if losses:
            expected["Train/Loss"] = statistics.fmean(losses)
        assert logged == pytest.approx(expected, abs=1e-12)


def test_the_greedy_choice_is_logged_before_each_epoch_and_after_the_last():
    outcome = start()

    val = curves(outcome, "Val")
    assert sorted(val) == [0, 1, 2]
    for epoch, logged in val.items():
        played = [r.data for r in trajectories(outcome, "eval") if r.step == 4 * epoch]
        assert len(played) == 4
        assert logged == pytest.approx(
            {
                "Val/Reward_Mean": statistics.fmean(t["reward"] for t in played),
                "Val/Accuracy_Mean": statistics.fmean(t["metrics"]["accuracy"] for t in played),
                "Val/Latency_Mean": statistics.fmean(t["metrics"]["latency_ms"] for t in played),
                "Val/Budget_Violation_Rate": statistics.fmean(
                    t["metrics"]["budget_violation"] for t in played
                ),
                "Val/Unparsable_Count": sum(t["metrics"]["unparsable"] for t in played),
            }
        )


def test_a_violation_is_a_latency_over_the_share_of_the_full_models():
    outcome = start(budgets="30,90")
    full_ms = adaptive.count(adaptive.AdaptiveModel(adaptive.Shape(2, 16)))["2/64/0"]

    for record in trajectories(outcome, "train"):
        metrics, budget = record.data["metrics"], record.data["info"]["budget_percent"]
        assert metrics["budget_ms"] == pytest.approx(full_ms * budget / 100)
        assert metrics["budget_violation"] == float(metrics["latency_ms"] > metrics["budget_ms"])
        assert record.data["reward"] == pytest.approx(sum(record.data["rewards"].values()))


def test_the_axes_the_units_and_the_hyper_parameters_are_in_the_log():
    outcome = start(dataset_names="direct,chain")

    records = list(eventlog.read(outcome.run_dir))
    (config,) = [r.data["config"] for r in records if r.kind == "start"]
    for later in (r.data for r in records if r.kind == "config"):
        config |= later
    assert config["dataset_names"] == "direct,chain"
    assert (config["group_size"], config["lr"], config["model_path"]) == (3, 2e-4, "")
    assert "device" in str(config)
    assert any("Train/Latency_Mean" in str(r.data) and "ms" in str(r.data) for r in records)
    defined = {r.data["name"]: r.data for r in records if r.kind == "define_metric"}
    assert defined["Train/*"]["step_metric"] == "epoch"
    assert defined["Val/*"]["step_metric"] == "epoch"
    assert outcome.run_dir.parent.name == "molmo-controller"


@pytest.mark.parametrize("latency", ["counted", "measured"])
def test_a_resumed_training_has_the_curves_of_an_unbroken_one(latency, monkeypatch):
    # What is measured differs from one process to the next; the same table for both first parts, and none for the second.
    table = adaptive.measure(adaptive.AdaptiveModel(adaptive.Shape(2, 16)))
    monkeypatch.setitem(adaptive.LATENCIES, "measured", lambda model: dict(table))
    whole = start("whole", latency=latency)
    start("parts", latency=latency, epochs=1)

    def never(*_):
        raise AssertionError("a resumed training keeps its adaptive model and its latencies")

    monkeypatch.setattr(adaptive, "train_from_nothing", never)
    monkeypatch.setitem(adaptive.LATENCIES, latency, never)
    parts = start("parts", latency=latency, resume=True, epochs=2)

    assert curves(parts, "Train") == curves(whole, "Train")
    assert curves(parts, "Val") == curves(whole, "Val")


def test_training_the_controller_leaves_the_adaptive_model_as_it_was():
    settings = JointControllerSettings(
        adaptive_layers=2, adaptive_hidden=16, adaptive_steps=2, latency="counted"
    )
    task = task_for(settings)
    before = {k: v.clone() for k, v in joint_controller.testbed_for(settings).model.state_dict().items()}

    start()

    del task
    again = adaptive.train_from_nothing(adaptive.Shape(2, 16), 2, seed=0).state_dict()
    for name, weights in before.items():
        assert torch.equal(weights, again[name])


# --- the adaptive model's directory -----------------------------------------------------------------------------------


def test_an_empty_model_path_gets_the_trained_model_and_the_next_training_reads_it(tmp_path, monkeypatch):
    first = start("first", model_path=tmp_path / "adaptive")

    monkeypatch.setattr(
        adaptive, "train_from_nothing", lambda *_: (_ for _ in ()).throw(AssertionError("it is there"))
    )
    second = start("second", model_path=tmp_path / "adaptive")

    assert (tmp_path / "adaptive" / adaptive.FILE_NAME).exists()
    assert curves(second, "Val") == curves(first, "Val")


def test_a_model_path_that_holds_no_model_is_refused_before_the_run_exists(tmp_path):
    (tmp_path / adaptive.FILE_NAME).write_bytes(b"no model")

    with pytest.raises(DataError, match="--model_path"):
        start(model_path=tmp_path)

    assert not Path("runs").exists()


def test_a_model_with_another_number_of_layers_is_refused_with_the_setting(tmp_path):
    start("first", model_path=tmp_path / "adaptive")

    with pytest.raises(SettingsError, match="adaptive_layers=2"):
        start("second", model_path=tmp_path / "adaptive", adaptive_layers=3)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match="cannot be kept"):
        start(model_path=tmp_path / "file")


# --- settings and problems --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("dataset_names", "direct,maze", "direct, relay, chain, mixed"),
        ("dataset_names", "", "dataset_names"),
        ("budgets", "50,120", "from 1 to 100"),
        ("budgets", "half", "whole percentages"),
        ("budgets", "0", "from 1 to 100"),
        ("latency", "guessed", "measured or counted"),
        ("adaptive_hidden", "20", "multiple of 8"),
        ("adaptive_layers", "0", "at least 1"),
        ("train_size", "3", "train_size"),
        ("violation_weight", "-1", "violation_weight"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(setting, value, message):
    with pytest.raises(SettingsError, match=message):
        with_overrides(JointControllerSettings(), {setting: value})


@pytest.mark.parametrize(
    ("given", "batches"),
    [
        ({"train_size": 2000, "rollouts_per_step": 1}, 2000),
        ({"train_size": 100, "rollouts_per_step": 8}, 12),
        ({"train_size": 100, "rollouts_per_step": 8, "max_prompts": 40}, 5),
        ({"train_size": 100, "rollouts_per_step": 8, "eval_interval": 1}, 12),
    ],
)
def test_an_epoch_is_what_is_evaluated_whatever_its_length(given, batches):
    settings = with_overrides(JointControllerSettings(), given)

    assert settings.eval_interval == batches


def test_the_three_parts_share_no_sample_and_each_budget_and_family_is_there():
    settings = JointControllerSettings(train_size=300)
    problems = problems_for(settings, None)

    parts = [problems.warmup, problems.held_out, problems.train]
    assert [len(part) for part in parts] == [1000, 128, 300]
    assert len({p.sample for part in parts for p in part}) == 1428
    assert {p.budget_percent for p in problems.train} == {50, 60, 75, 90}
    assert {p.sample.family for p in problems.train} == {"direct", "relay", "chain", "mixed"}
    assert problems.fingerprint == problems_for(settings, None).fingerprint
    assert (
        problems.fingerprint
        != problems_for(JointControllerSettings(train_size=300, seed=1), None).fingerprint
    )


def test_a_data_file_is_refused_since_samples_are_generated():
    with pytest.raises(DataError, match="--dataset_names"):
        problems_for(JointControllerSettings(), Path("somewhere"))


def test_task_and_collector_share_a_testbed_that_does_not_outlive_them():
    settings = JointControllerSettings(seed=12345)

    testbed = joint_controller.testbed_for(settings)
    assert joint_controller.testbed_for(settings) is testbed

    del testbed
    assert settings not in joint_controller._TESTBEDS


def test_the_quick_training_needs_no_more_tokens_than_it_may_use():
    recipe = recipes.load("joint_controller")
    settings = with_overrides(recipe.settings(), recipe.quick)
    task, problems = task_for(settings), problems_for(settings, None)

    from trainer.models import chat_of

    chat = chat_of(settings, task, problems)
    for problem in problems.warmup[:100]:
        opening = chat.encode_opening(task.opening(problem))
        _, mask = chat.encode_demonstration(task.demonstrate(problem))
        assert sum(mask) <= settings.max_new_tokens
        assert len(opening) + settings.max_new_tokens <= settings.max_length
