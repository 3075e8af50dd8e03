"""The recipe `email_agent`: where its mails and questions come from, what its variables set, and what a training logs."""

import io
import json
import sys
import types
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
from rich.console import Console

from eventlog import Trajectory
from trainer import problems as problems_module
from trainer import recipes
from trainer.collectors import At
from trainer.collectors.email import EmailMetrics
from trainer.config import with_overrides
from trainer.data.emails import create, generate
from trainer.errors import DataError, SettingsError
from trainer.launch import Request, launch, settings_of
from trainer.recipes.email_agent import QUICK, RECIPE, EmailSettings, problems_for, task_for

SMALL = with_overrides(EmailSettings(), {**QUICK, "warmup_problems": 50})
FULL = replace(SMALL, model_name="a pretrained model")


@pytest.fixture(autouse=True)
def _no_data(own_machine, monkeypatch, tmp_path):
    """A machine without mails, and without a way to the hub."""
    for name in RECIPE.variables:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(problems_module, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    monkeypatch.setitem(sys.modules, "datasets", None)


def mails_of(part):
    return {question.message_id for question in part}


# --- mails and questions ---


def test_no_mail_is_asked_about_in_two_parts():
    problems = problems_for(SMALL, None)

    assert "made up" in problems.source
    assert problems.train
    assert len(problems.held_out) == SMALL.eval_size
    assert not mails_of(problems.train) & mails_of(problems.held_out)


def test_demonstrations_are_of_mails_in_disguise_as_many_as_asked():
    problems = problems_for(SMALL, None)
    real = {mail.message_id: mail for mail in generate(400, SMALL.seed)}

    assert len(problems.warmup) == 50
    for question in problems.warmup:
        original = real.get(question.message_id)
        mail = question.inbox.mail(question.message_id)
        assert original is None or (original.date, original.body) != (mail.date, mail.body)


def test_a_pretrained_model_imitates_nothing_and_trains_on_more():
    tiny, pretrained = problems_for(SMALL, None), problems_for(FULL, None)

    assert pretrained.warmup == []
    assert len(pretrained.train) > len(tiny.train)
    assert pretrained.held_out == tiny.held_out


def test_the_sizes_are_the_most_that_is_taken():
    problems = problems_for(replace(FULL, train_size=20, eval_size=5), None)

    assert (len(problems.train), len(problems.held_out)) == (20, 5)


def test_too_few_mails_are_refused(tmp_path):
    (tmp_path / "few.jsonl").write_text('{"subject": "meter 1517", "body": "a", "date": "2000-01-01"}\n')

    with pytest.raises(DataError, match="too few"):
        problems_for(SMALL, tmp_path / "few.jsonl")


def test_the_split_depends_on_the_seed_and_the_fingerprint_tells():
    first, again, other = (problems_for(replace(SMALL, seed=seed), None) for seed in (1, 1, 2))

    assert first == again
    assert first.fingerprint != other.fingerprint


def database(tmp_path, questions=()):
    create(generate(300, seed=5), tmp_path / "enron_emails.db")
    if questions:
        text = "".join(json.dumps(question) + "\n" for question in questions)
        (tmp_path / "enron_emails.questions.jsonl").write_text(text)
    return tmp_path / "enron_emails.db"


def asked(number, split=None, **more):
    row = {
        "id": number,
        "question": f"What is in mail {number}?",
        "answer": "a lot",
        "message_ids": [f"made-up-{number:04}"],
        "inbox_address": "ann@example.com",
        "query_date": "2001-01-01",
        **({"split": split} if split else {}),
    }
    return row | more


def test_without_questions_they_are_made_from_the_databases_mails(tmp_path):
    problems = problems_for(SMALL, database(tmp_path))

    assert "enron_emails.db" in problems.source
    assert "made from them" in problems.source


def test_questions_beside_a_database_are_taken_with_their_split(tmp_path):
    rows = [asked(n, "train") for n in range(40)] + [asked(n, "test") for n in range(40, 60)]
    odd = [asked(70, message_ids=["a", "b"]), asked(71, message_ids=["not there"])]

    problems = problems_for(FULL, database(tmp_path, [*rows, *odd]))

    assert mails_of(problems.train) == {f"made-up-{n:04}" for n in range(40)}
    assert mails_of(problems.held_out) == {f"made-up-{n:04}" for n in range(40, 60)}
    assert "60 of the 62 questions" in problems.source
    question = problems.train[0]
    assert (question.owner, question.asked_on, question.answer) == ("ann@example.com", "2001-01-01", "a lot")
    assert question.message_id in question.inbox


def test_questions_without_a_split_are_split_here(tmp_path):
    problems = problems_for(FULL, database(tmp_path, [asked(n) for n in range(50)]))

    assert (len(problems.train), len(problems.held_out)) == (40, 10)
    assert not mails_of(problems.train) & mails_of(problems.held_out)


def test_the_hubs_questions_are_taken_where_it_can_be_reached(tmp_path, monkeypatch):
    hub = types.ModuleType("datasets")
    hub.__spec__ = types.SimpleNamespace()
    hub.load_dataset = lambda name: {"train": [asked(n) for n in range(30)], "test": [asked(40)]}
    monkeypatch.setitem(sys.modules, "datasets", hub)

    problems = problems_for(FULL, database(tmp_path))

    assert (len(problems.train), len(problems.held_out)) == (30, 1)
    assert "corbt/enron_emails_sample_questions" in problems.source


def test_a_hub_that_is_away_is_passed_over(tmp_path, monkeypatch):
    def away(name):
        raise ConnectionError("no network")

    hub = types.ModuleType("datasets")
    hub.__spec__ = types.SimpleNamespace()
    hub.load_dataset = away
    monkeypatch.setitem(sys.modules, "datasets", hub)

    assert "made from them" in problems_for(SMALL, database(tmp_path)).source


@pytest.mark.parametrize(
    "line", ["{", '{"question": "a", "answer": "b"}', '{"question": 1, "answer": "b", "message_ids": []}']
)
def test_a_damaged_question_is_refused_by_its_line(tmp_path, line):
    path = database(tmp_path, [asked(1)])
    with (tmp_path / "enron_emails.questions.jsonl").open("a") as file:
        file.write(line + "\n")

    with pytest.raises(DataError, match="line 2 of"):
        problems_for(FULL, path)


# --- settings ---


def test_the_variables_of_the_scripts_are_settings(monkeypatch):
    values = {
        "LEARNING_RATE": ("2e-5", "lr", 2e-5),
        "TRAINING_DATASET_SIZE": ("10", "train_size", 10),
        "VAL_SET_SIZE": ("5", "eval_size", 5),
        "TRAJECTORIES_PER_GROUP": ("2", "group_size", 2),
        "GROUPS_PER_STEP": ("2", "rollouts_per_step", 2),
        "EVAL_STEPS": ("1", "eval_interval", 1),
        "NUM_EPOCHS": ("2", "epochs", 2),
        "MAX_TURNS": ("5", "max_turns", 5),
        "MAX_TOKENS": ("512", "max_new_tokens", 512),
        "ROLLOUT_CONCURRENCY": ("5", "concurrency", 5),
        "LITELLM_TIMEOUT": ("120", "vllm_timeout_s", 120.0),
    }
    for name, (text, _, _) in values.items():
        monkeypatch.setenv(name, text)

    settings = settings_of(RECIPE, Request({}))

    assert {field: getattr(settings, field) for _, field, _ in values.values()} == {
        field: value for _, field, value in values.values()
    }
    assert set(values) == set(RECIPE.variables)


def test_the_defaults_are_those_of_the_scripts():
    settings = EmailSettings()

    assert (settings.train_size, settings.eval_size, settings.group_size, settings.rollouts_per_step) == (
        4000,
        100,
        6,
        8,
    )
    assert (settings.eval_interval, settings.epochs, settings.max_turns, settings.max_new_tokens) == (
        30,
        4,
        10,
        2048,
    )
    assert RECIPE.project == "qwen3-email-agent"
    assert RECIPE.tags == ("qwen3", "email-agent", "rl-training")


@pytest.mark.parametrize(
    "odd", [{"max_results": 11}, {"max_results": 0}, {"snippet_words": 65}, {"train_size": 0}]
)
def test_a_setting_that_the_tools_cannot_follow_is_refused(odd):
    with pytest.raises(SettingsError, match=next(iter(odd))):
        EmailSettings(**odd)


def test_a_judge_is_asked_many_at_once_and_none_is_without_an_address(monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)

    assert task_for(EmailSettings()).concurrency == 1
    assert task_for(EmailSettings(judge_url="http://localhost:8002/v1")).concurrency > 1


# --- what is logged ---


def trajectory(reward, *, correct=0.0, exception=None, **more):
    metrics = {
        "answer_correct": correct,
        "sources_correct": correct,
        "attempted_answer": 1.0,
        "num_turns": 3.0,
    }
    values = {"duration_s": 2.0, "prompt_tokens": 100, "completion_tokens": 40} | more
    return Trajectory(turns=[], reward=reward, metrics=metrics, exception=exception, **values)


RIGHT, WRONG = (
    trajectory(1.5, correct=1.0),
    trajectory(-0.5, duration_s=4.0, prompt_tokens=200, completion_tokens=60),
)
FAILED = Trajectory(
    turns=[], exception="TimeoutError: no answer", prompt_tokens=7, completion_tokens=7, duration_s=9.0
)


def at(batch_step, n_batches=10):
    return At(global_step=batch_step, batch_step=batch_step, batches_per_epoch=4, n_batches=n_batches)


EVALUATION = {
    "reward": 0.5,
    "answer_correct": 0.5,
    "sources_correct": 0.5,
    "num_turns": 3.0,
    "duration": 3.0,
    "prompt_tokens": 150.0,
    "completion_tokens": 50.0,
    "n_trajectories": 2,
    "exceptions": 1,
}


def test_an_evaluation_has_the_seeds_names_and_means_over_finished_trajectories():
    assert EmailMetrics().of_evaluation(at(0), [RIGHT, FAILED, WRONG]) == {
        f"eval/{name}": value for name, value in EVALUATION.items()
    }


def test_the_last_evaluation_is_the_final_one_too():
    assert EmailMetrics().of_evaluation(at(10), [RIGHT, FAILED, WRONG]) == {
        f"{part}/{name}": value for part in ("eval", "final_eval") for name, value in EVALUATION.items()
    }


def test_a_rollout_batch_has_the_seeds_names():
    assert EmailMetrics().of_rollouts(at(6), [RIGHT, WRONG, FAILED]) == {
        "train/total_trajectories": 3,
        "train/avg_reward": 0.5,
        "train/epoch": 1,
        "train/epoch_step": 2,
        "train/answer_correct": 0.5,
        "train/attempted_answer": 1.0,
        "train/num_turns": 3.0,
        "train/prompt_tokens": 150.0,
        "train/completion_tokens": 50.0,
    }


def test_a_mean_over_nothing_is_not_logged():
    assert EmailMetrics().of_rollouts(at(0), [FAILED]) == {
        "train/total_trajectories": 1,
        "train/epoch": 0,
        "train/epoch_step": 0,
    }
    assert EmailMetrics().of_evaluation(at(0), [FAILED]) == {"eval/n_trajectories": 0, "eval/exceptions": 1}


def test_every_metric_has_its_unit():
    logged = EmailMetrics().of_evaluation(at(10), [RIGHT]) | EmailMetrics().of_rollouts(at(0), [RIGHT])

    assert logged.keys() == EmailMetrics.units.keys()


# --- a training ---

# The sizes of the quick-train guide, with a model too small to learn.
STAGE = {
    "TRAINING_DATASET_SIZE": "10",
    "VAL_SET_SIZE": "3",
    "TRAJECTORIES_PER_GROUP": "2",
    "GROUPS_PER_STEP": "4",
    "EVAL_STEPS": "2",
    "NUM_EPOCHS": "2",
    "MAX_TURNS": "3",
    "MAX_TOKENS": "24",
}
TINY = {
    "warmup_problems": "30",
    "warmup_max_steps": "30",
    "warmup_target": "2",
    "hidden": "32",
    "layers": "1",
}


@pytest.fixture
def logged(monkeypatch):
    """The rows and trajectories of a small training of two epochs of two rollout batches each."""
    for name, value in STAGE.items():
        monkeypatch.setenv(name, value)
    said = Console(file=io.StringIO())
    request = Request(TINY, quick=True, name="small", root=Path("runs"))
    outcome = launch(recipes.load("email_agent"), request, said)
    rows, trajectories = defaultdict(dict), defaultdict(list)
    for path in outcome.run_dir.glob("main-*/*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record.get("kind") == "metrics":
                rows[record["step"]] |= record["data"]
            if record.get("kind") == "trajectory":
                trajectories[record["step"]].append(record["data"])
    return rows, trajectories, said.file.getvalue()


def test_a_training_logs_every_name_when_it_is_due_and_as_its_trajectories_say(logged):
    rows, trajectories, said = logged

    assert sorted(rows) == [0, 1, 2, 3, 4]
    assert [step for step in sorted(rows) if "eval/reward" in rows[step]] == [0, 2, 4]
    assert [step for step in sorted(rows) if "final_eval/reward" in rows[step]] == [4]
    for step in range(4):
        row = rows[step]
        played = [t for t in trajectories[step] if not t["id"].startswith("eval.")]
        assert row["train/total_trajectories"] == len(played) == 8
        assert (row["train/epoch"], row["train/epoch_step"]) == divmod(step, 2)
        assert row["train/avg_reward"] == pytest.approx(mean(t["reward"] for t in played))
        assert row["train/prompt_tokens"] == pytest.approx(mean(t["prompt_tokens"] for t in played))
        assert row["train/completion_tokens"] == pytest.approx(mean(sum(t["mask"]) for t in played))
        for name in ("answer_correct", "attempted_answer", "num_turns"):
            assert row[f"train/{name}"] == pytest.approx(mean(t["metrics"][name] for t in played))
        for t in played:
            assert t["reward"] == pytest.approx(sum(t["rewards"].values()))
            assert t["info"]["expected"]
    for step in (0, 2, 4):
        row = rows[step]
        played = [t for t in trajectories[step] if t["id"].startswith("eval.")]
        assert row["eval/n_trajectories"] == len(played) == 3
        assert row["eval/exceptions"] == 0
        for name, key in (
            ("reward", "reward"),
            ("duration", "duration_s"),
            ("prompt_tokens", "prompt_tokens"),
        ):
            assert row[f"eval/{name}"] == pytest.approx(mean(t[key] for t in played))
        assert row["eval/completion_tokens"] == pytest.approx(mean(sum(t["mask"]) for t in played))
        for name in ("answer_correct", "sources_correct", "num_turns"):
            assert row[f"eval/{name}"] == pytest.approx(mean(t["metrics"][name] for t in played))
    for name in EVALUATION:
        assert rows[4][f"final_eval/{name}"] == rows[4][f"eval/{name}"]
    assert "--- Evaluating at Global Step 2 ---" in said
    assert "Training step skipped" not in said
