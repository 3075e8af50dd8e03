"""Starting and resuming a training, with a real log: what is refused, what is continued, what comes out."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

import analysis
from trainer import recipes
from trainer.benchmark import benchmark, load_trained
from trainer.errors import CheckpointError, SettingsError
from trainer.launch import Request, launch, settings_of
from trainer.models import save_pretrained
from trainer.progress import Progress

TINY = {
    "steps": "2",
    "rollouts_per_step": "2",
    "group_size": "2",
    "eval_size": "4",
    "eval_interval": "1",
    "checkpoint_interval": "1",
    "warmup_problems": "20",
    "warmup_max_steps": "10",
    "warmup_target": "0",
    "hidden": "16",
    "layers": "1",
}


@pytest.fixture(autouse=True)
def _problems(own_machine):
    # GSM8K's own form; enough of it for the tiny settings.
    Path("train.jsonl").write_text(
        "".join(f'{{"answer": "<<{a}+{b}={a + b}>>"}}\n' for a in range(1, 10) for b in range(1, 10))
    )


def start(*, resume=False, name="try", data="train.jsonl", quick=False, **overrides):
    said = Console(file=io.StringIO())
    request = Request(
        TINY | {k: str(v) for k, v in overrides.items()},
        quick=quick,
        name=name,
        root=Path("runs"),
        data=Path(data),
        resume=resume,
    )
    outcome = launch(recipes.load("calculator"), request, said)
    return outcome, said.file.getvalue().splitlines()


def records(outcome, kind):
    found = []
    for path in sorted(outcome.run_dir.glob("main-*/*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record.get("kind") == kind:
                found.append(record)
    return found


def history(outcome):
    """The metrics rows of the whole run, as W&B's step rule keeps them: a repeated step is dropped."""
    rows = {}
    for record in records(outcome, "metrics"):
        rows.setdefault(record["step"], record["data"])
    for row in rows.values():
        # What a table is called is random in part, and in part the step at which it was logged; its content is neither.
        if "trajectories" in row:
            row["trajectories"] = row["trajectories"]["sha256"]
    return rows


def test_a_training_is_logged_row_by_row_and_trajectory_by_trajectory():
    outcome, said = start()

    assert [r["step"] for r in records(outcome, "metrics")] == [0, 1, 2]
    splits = [r["data"]["info"]["split"] for r in records(outcome, "trajectory")]
    assert (splits.count("train"), splits.count("eval")) == (2 * 2 * 2, 3 * 4)
    assert records(outcome, "exit")
    assert any("train.jsonl" in line for line in said)


@pytest.mark.parametrize("shows_episodes", [False, True])
def test_an_episode_of_each_batch_is_printed_for_who_asks(shows_episodes):
    said = Console(file=io.StringIO(), width=200)
    request = Request(
        TINY, name="try", root=Path("runs"), data=Path("train.jsonl"), shows_episodes=shows_episodes
    )

    launch(recipes.load("calculator"), request, said)

    episodes = said.file.getvalue().split("--- reward ")[1:]
    assert len(episodes) == 2 * shows_episodes
    assert all("user: " in episode for episode in episodes)


def test_each_checkpoint_that_is_kept_is_in_the_log_and_can_be_asked_for():
    outcome, _ = start(eval_interval=2)

    con = analysis.connect("runs")
    asked = "SELECT step, path, data ->> 'is_best' = 'true' FROM checkpoints ORDER BY seq"
    kept = con.execute(asked).fetchall()
    names = [(step, Path(path).name, best) for step, path, best in kept]
    assert {(1, "step-00000001.pt", False), (2, "step-00000002.pt", False), (0, "best.pt", True)} <= set(
        names
    )
    assert {Path(path).parent for _, path, _ in kept} == {outcome.checkpoints.absolute()}


def test_the_config_of_the_run_has_every_setting_and_the_source():
    outcome, _ = start(seed=7)

    config = records(outcome, "start")[0]["data"]["config"]
    assert config["seed"] == 7
    assert config["recipe"] == "calculator"
    assert "train.jsonl" in config["data"]


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    first, again, other = (start(name=f"try-{i}", seed=seed)[0] for i, seed in enumerate((1, 1, 2)))

    assert history(first) == history(again)
    assert history(first) != history(other)


def test_a_resumed_run_has_the_rows_of_an_uninterrupted_one():
    whole, _ = start(name="whole", steps=4)

    start(name="parts", steps=2)
    parts, said = start(name="parts", steps=4, resume=True)

    assert any("resumed before step 2 of 4" in line for line in said)
    rows, expected = history(parts), history(whole)
    # Row 2 was the first part's last: it holds `final/*`, and what is logged of step 2 later counts as repeated.
    assert {step: row for step, row in rows.items() if step != 2} == {
        s: r for s, r in expected.items() if s != 2
    }
    assert len(list(parts.run_dir.glob("main-*"))) == 2


def test_a_run_that_was_killed_in_its_warmup_is_continued_under_its_id():
    first, _ = start(name="try")
    for path in Path("checkpoints/try").glob("step-*.pt"):
        path.unlink()

    second, said = start(name="try", resume=True)

    assert second.run_dir == first.run_dir
    assert any(line.startswith("warm-up") for line in said)


def test_resume_without_flags_goes_on_with_the_settings_it_began_with():
    start()
    request = Request({}, name="try", root=Path("runs"), data=Path("train.jsonl"), resume=True)

    outcome = launch(recipes.load("calculator"), request, Console(file=io.StringIO()))

    assert max(history(outcome)) == 2


def test_a_training_that_was_lengthened_stays_so():
    start(steps=1)
    start(steps=2, resume=True)
    request = Request({}, name="try", root=Path("runs"), data=Path("train.jsonl"), resume=True)

    outcome = launch(recipes.load("calculator"), request, Console(file=io.StringIO()))

    assert max(history(outcome)) == 2


def test_a_damaged_checkpoint_is_refused_before_the_run_has_another_piece():
    outcome, _ = start()
    for path in Path("checkpoints/try").glob("step-*.pt"):
        path.write_bytes(b"")

    with pytest.raises(CheckpointError, match="none of the"):
        start(resume=True)

    assert len(list(outcome.run_dir.glob("main-*"))) == 1


def test_resume_of_nothing_starts():
    outcome, _ = start(resume=True)

    assert max(history(outcome)) == 2


def test_a_second_start_under_the_same_name_is_refused():
    start()

    with pytest.raises(CheckpointError, match=r"already holds the run .* --resume"):
        start()


def test_resume_with_another_setting_is_refused_by_name_and_value():
    start()

    with pytest.raises(CheckpointError, match=r"another 'lr': lr=0\.0002"):
        start(resume=True, lr="1e-5")


def test_resume_with_other_problems_is_refused():
    start()
    Path("other.jsonl").write_text("".join(f'{{"answer": "<<{a}+9={a + 9}>>"}}\n' for a in range(1, 90)))

    with pytest.raises(CheckpointError, match="other problems"):
        start(resume=True, data="other.jsonl")


def test_resume_where_the_log_is_not_is_refused():
    start()

    request = Request({}, name="try", root=Path("elsewhere"), data=Path("train.jsonl"), resume=True)
    with pytest.raises(CheckpointError, match=r"no log in .*elsewhere"):
        launch(recipes.load("calculator"), request, Console(file=io.StringIO()))

    assert not Path("elsewhere").exists()


def test_a_training_whose_checkpoints_are_gone_logs_no_trajectory_twice():
    outcome, _ = start()
    before = len(records(outcome, "trajectory"))
    for path in Path("checkpoints/try").glob("*.pt"):
        path.unlink()

    start(resume=True)

    assert len(records(outcome, "trajectory")) == before


def test_a_number_of_steps_stands_in_place_of_one_of_epochs():
    recipe = recipes.load("joint_controller")

    assert settings_of(recipe, Request({"steps": "7"})).epochs == 0
    assert settings_of(recipe, Request({"steps": "7", "epochs": "2"})).epochs == 2
    assert settings_of(recipe, Request({})).epochs > 0


def test_a_model_that_is_not_there_leaves_no_trace():
    with pytest.raises(SettingsError, match="no-such-model"):
        start(model_name="./no-such-model")

    assert not Path("runs").exists()
    assert not (Path("checkpoints") / "try" / "run.json").exists()


@pytest.mark.parametrize("name", ["my run", "a/b", "..", "é" * 150])
def test_any_name_of_a_run_will_do(name):
    outcome, _ = start(name=name)

    assert records(outcome, "exit")[0]["data"]["exitcode"] == 0
    assert records(outcome, "artifact") or list(outcome.run_dir.glob("main-*/files-*"))
    assert outcome.checkpoints.parent == Path("checkpoints")
    assert (outcome.checkpoints / "run.json").exists()


def test_other_problems_than_the_trainings_are_played_only_when_they_are_named(monkeypatch):
    outcome, _ = start()
    Path("other.jsonl").write_text("".join(f'{{"answer": "<<{a}+9={a + 9}>>"}}\n' for a in range(1, 90)))
    recipe = recipes.load("calculator")

    assert load_trained(recipe, outcome.checkpoints, "best", Path("train.jsonl")).is_same_data
    assert not load_trained(recipe, outcome.checkpoints, "best", Path("other.jsonl")).is_same_data
    monkeypatch.setenv("TIDELOG_DATA", "other.jsonl")
    with pytest.raises(CheckpointError, match="held out other problems"):
        load_trained(recipe, outcome.checkpoints, "best", None)


def test_resume_without_a_name_says_which_runs_there_are():
    start()

    with pytest.raises(CheckpointError, match="'try'"):
        launch(recipes.load("calculator"), Request(TINY, resume=True), Console(file=io.StringIO()))


def test_what_is_refused_leaves_no_trace():
    with pytest.raises(SettingsError):
        start(stepz=3)

    assert not Path("runs").exists()
    assert not Path("checkpoints").exists()


def test_quick_is_a_preset_that_settings_override():
    outcome, _ = start(quick=True, steps=1)

    config = records(outcome, "start")[0]["data"]["config"]
    assert (config["steps"], config["group_size"], config["lr"]) == (1, 2, 3e-4)


def test_a_disabled_log_trains_all_the_same(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")

    outcome, _ = start()

    assert outcome.reward_after >= 0
    assert not Path("runs").exists()


def test_the_threads_are_as_asked():
    torch.set_num_threads(2)
    try:
        start(threads=1, steps=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_a_run_that_nobody_named_is_called_by_its_recipe_or_its_settings():
    from dataclasses import replace

    recipe = recipes.load("calculator")
    named = replace(
        recipe, auto_name="grpo-g{group_size}-lr{lr}-{time}", config=lambda s: {"batch_size": s.group_size}
    )
    request = Request(TINY | {"lr": "1e-4"}, root=Path("runs"), data=Path("train.jsonl"))

    outcome = launch(named, request, Console(file=io.StringIO()))

    assert outcome.name.startswith("grpo-g2-lr0.0001-2")
    assert records(outcome, "start")[0]["data"]["config"]["batch_size"] == 2


# --- a pretrained model -----------------------------------------------------------------------------------------------


@pytest.fixture
def pretrained():
    """The directory of a model that is right now and then, as `from_pretrained` reads it."""
    outcome, _ = start(name="made", steps=1, warmup_max_steps=150, warmup_problems=40)
    recipe = recipes.load("calculator")
    made = load_trained(recipe, outcome.checkpoints, "newest", Path("train.jsonl"))
    save_pretrained(made.model, made.chat, Path("model"))
    return "model"


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_pretrained_model_is_not_warmed_up_and_its_checkpoint_is_what_it_has_become(pretrained, lora_rank):
    outcome, said = start(
        name="tuned", model_name=pretrained, lora_rank=lora_rank, lr=0.02, steps=3, temperature=1.5
    )

    assert not any(line.startswith("warm-up") for line in said)
    rows = history(outcome)
    assert not any(key.startswith("warmup/") for row in rows.values() for key in row)
    recipe, progress = recipes.load("calculator"), Progress("tuned")
    tuned = load_trained(recipe, outcome.checkpoints, "newest", Path("train.jsonl"))
    played = benchmark(recipe, tuned, limit=0, sequential=False, concurrency=0, progress=progress)
    last = {r["data"]["id"]: r["data"] for r in records(outcome, "trajectory") if r["step"] == 3}
    assert [t.token_ids for t in played.trajectories] == [t["token_ids"] for t in last.values()]


@pytest.mark.slow
def test_a_learning_rate_that_ruins_the_policy_is_an_alert():
    Path("sums.jsonl").write_text(
        "".join(f'{{"answer": "<<{a}+{b}={a + b}>>"}}\n' for a in range(1, 60) for b in range(1, 39))
    )
    request = Request(
        {"lr": "3e-3", "steps": "6", "eval_interval": "6"},
        quick=True,
        name="ruined",
        root=Path("runs"),
        data=Path("sums.jsonl"),
    )

    outcome = launch(recipes.load("calculator"), request, Console(file=io.StringIO()))

    rows = history(outcome)
    assert rows[0]["eval/reward"] > 0.3  # there was something to ruin
    assert rows[6]["eval/reward"] < 0.1
    (alert,) = [r["data"] for r in records(outcome, "alert") if "held-out" in r["data"]["title"]]
    assert alert["level"] == "ERROR"
    assert "at step 6" in alert["text"]
    assert "A lower lr" in alert["text"]
