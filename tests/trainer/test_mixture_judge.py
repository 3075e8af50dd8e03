"""The recipe as a whole: its problems, its settings, and trainings whose rows are computed again by SQL."""

import io
import itertools
import threading
from collections import Counter
from pathlib import Path

import duckdb
import pytest
from rich.console import Console

import eventlog
from tests.trainer.judge_server import completion, judge_server
from tests.trainer.test_mixture_data import ROWS, write
from trainer import recipes
from trainer.config import with_overrides
from trainer.data.mixture import DOMAINS, SOURCES
from trainer.errors import DataError, SettingsError
from trainer.judge import HttpJudge, RuleJudge
from trainer.launch import Request, launch, settings_of
from trainer.recipes.mixture_judge import (
    QUICK,
    MixtureSettings,
    command_of,
    judge_for,
    problems_for,
    task_for,
    training_yaml,
)

SMALL = with_overrides(MixtureSettings(), {**QUICK, "eval_size": 12, "warmup_problems": 30})


pytestmark = pytest.mark.usefixtures("own_machine")


def mixed(n=12):
    """Rows of every source, in its own form."""
    rows = [{"source": source, **row} for source, row in ROWS.items() for _ in range(n)]
    for i, row in enumerate(rows):
        for key in ("question", "problem", "prompt"):
            if key in row:
                row[key] = f"{row[key].rstrip()} # {i}\n"
    return rows


# --- problems ---------------------------------------------------------------------------------------------------------


def test_the_three_parts_share_no_question_and_each_has_every_source():
    problems = problems_for(SMALL, None)

    parts = [{p.asked for p in part} for part in (problems.held_out, problems.warmup, problems.train)]
    assert [len(part) for part in parts[:2]] == [12, 30]
    assert len(set.union(*parts)) == sum(map(len, parts))
    for part in (problems.held_out, problems.warmup, problems.train):
        assert {p.source for p in part} == set(SOURCES)


def test_the_console_and_the_config_are_told_what_is_made_and_who_judges():
    made = problems_for(SMALL, None).source
    judged = problems_for(with_overrides(SMALL, {"judge_url": "http://judge:8002/v1"}), None).source

    assert "no --data was given" in made
    assert "a rule in this process" in made
    assert "code runs with" in made
    assert "openai/gpt-oss-120b at http://judge:8002/v1" in judged
    assert "no judge" in problems_for(with_overrides(SMALL, {"use_llm_judge": False}), None).source


def test_a_directory_of_rows_is_mixed_by_the_ratios(tmp_path):
    write(tmp_path / "mixed.jsonl", mixed())
    settings = with_overrides(SMALL, {"domain_ratios": "math=3,qa=6,code=1"})

    problems = problems_for(settings, tmp_path)

    batch = problems.of_batch(0, 20, seed=0)
    assert Counter(problem.domain for problem in batch) == {"math": 6, "qa": 12, "code": 2}
    assert all(problem in problems.train for problem in batch)


def test_rows_that_are_kept_apart_are_what_is_held_out(tmp_path):
    rows = mixed()
    write(tmp_path / "train.jsonl", rows[1::2])
    write(tmp_path / "val.jsonl", rows[::2])

    problems = problems_for(SMALL, tmp_path)

    assert len(problems.held_out) == 12
    assert len(problems.train) + len(problems.warmup) == len(rows) // 2


def test_a_domain_that_is_asked_for_and_not_there_is_refused(tmp_path):
    write(tmp_path / "mixed.jsonl", [row for row in mixed() if row["source"] != "humaneval"])

    with pytest.raises(DataError, match="no problem to train on in the domain 'code'"):
        problems_for(SMALL, tmp_path)

    assert problems_for(with_overrides(SMALL, {"domain_ratios": "math=1,qa=1"}), tmp_path).train


def test_a_limit_on_the_prompts_holds_for_what_is_drawn():
    problems = problems_for(with_overrides(SMALL, {"max_prompts": 40}), None)

    drawn = {problem.asked for step in range(30) for problem in problems.of_batch(step, 20, seed=0)}
    assert len(problems.train) == 40
    assert drawn <= {problem.asked for problem in problems.train}


def test_a_pretrained_model_is_not_warmed_up():
    assert list(problems_for(with_overrides(SMALL, {"model_name": "Qwen/Qwen2.5-3B"}), None).warmup) == []


def test_the_problems_depend_on_the_seed_and_the_fingerprint_tells():
    first, again, other = (problems_for(with_overrides(SMALL, {"seed": seed}), None) for seed in (1, 1, 2))

    assert first.fingerprint == again.fingerprint != other.fingerprint


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"domain_ratios": "maths=1"}, "'maths' is no domain.*math=0.4,qa=0.4,code=0.2"),
        ({"judge_timeout_s": "0"}, "judge_timeout_s"),
        ({"judge_prompt_price": "-1"}, "judge_prompt_price"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, reason):
    with pytest.raises(SettingsError, match=reason):
        with_overrides(MixtureSettings(), overrides)


def test_the_judges_time_out_and_address_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("LITELLM_TIMEOUT", "7.5")
    monkeypatch.setenv("JUDGE_BASE_URL", "http://there/v1")

    settings = settings_of(recipes.load("mixture_judge"), Request({}, quick=True))

    assert (settings.judge_timeout_s, settings.judge_url) == (7.5, "http://there/v1")


def test_who_judges_is_a_matter_of_settings():
    assert MixtureSettings().judge_timeout_s == 120.0
    assert judge_for(with_overrides(SMALL, {"use_llm_judge": False})) is None
    assert isinstance(judge_for(SMALL), RuleJudge)
    assert isinstance(judge_for(with_overrides(SMALL, {"judge_url": "http://there/v1"})), HttpJudge)


def test_many_answers_are_judged_at_once_where_the_judge_is_on_a_network():
    assert task_for(with_overrides(SMALL, {"judge_url": "http://there/v1"})).concurrency >= 8


def test_a_training_yaml_is_read_as_settings_and_variables(tmp_path):
    (tmp_path / "training.yaml").write_text(
        "wandb:\n  mode: offline\n  project: x\nuse_llm_judge: false\nlearning_rate: 1e-5\n"
        "domain_ratios:\n  math: 0.5\n  qa: 0.3\n  code: 0.2\n"
    )

    settings, variables = training_yaml(tmp_path / "training.yaml")

    assert settings == {"use_llm_judge": "false", "domain_ratios": "math=0.5,qa=0.3,code=0.2"}
    assert variables == {"WANDB_MODE": "offline"}
    assert with_overrides(MixtureSettings(), settings).use_llm_judge is False
    assert command_of(tmp_path / "training.yaml") == (
        "WANDB_MODE=offline trainer train mixture_judge --set use_llm_judge=false "
        "--set domain_ratios=math=0.5,qa=0.3,code=0.2"
    )


@pytest.mark.parametrize("text", ["- a list", "wandb: [", ""])
def test_a_training_yaml_without_settings_gives_none_or_is_refused(tmp_path, text):
    (tmp_path / "training.yaml").write_text(text)

    if text:
        with pytest.raises(SettingsError, match=r"training\.yaml"):
            training_yaml(tmp_path / "training.yaml")
    else:
        assert training_yaml(tmp_path / "training.yaml") == ({}, {})


# --- trainings --------------------------------------------------------------------------------------------------------

TINY = {
    "hidden": 16,
    "layers": 1,
    "warmup_problems": 60,
    "warmup_max_steps": 0,
    "steps": 3,
    "rollouts_per_step": 10,
    "group_size": 2,
    "train_batch_size": 10,
    "eval_size": 12,
    "eval_interval": 2,
    "checkpoint_interval": 1,
    "max_new_tokens": 8,
}


def train(name, resume=False, **overrides):
    said = Console(file=io.StringIO(), width=500)
    request = Request(
        {k: str(v) for k, v in {**TINY, **overrides}.items()},
        quick=True,
        name=name,
        root=Path("runs"),
        output_dir=Path(name),
        resume=resume,
    )
    outcome = launch(recipes.load("mixture_judge"), request, said)
    return outcome, said.file.getvalue()


def rows_of(outcome):
    return {r.step: r.data for r in eventlog.read(outcome.run_dir) if r.kind == "metrics"}


def misbehaving():
    """Answer in turn: a verdict, chatter, an error, another verdict."""
    turns, lock = itertools.count(), threading.Lock()

    def answer(request):
        with lock:
            turn = next(turns) % 4
        return [
            completion("Verdict: correct", 90, 9),
            "Let us talk of something else.",
            503,
            "Verdict: incorrect",
        ][turn]

    return answer


# One row for each trajectory: what SQL needs of it, from the log itself.
TRAJECTORIES = """
create table played as
select step,
       data->>'$.info.split' as split,
       data->>'$.info.source' as source,
       data->>'$.info.domain' as domain,
       (data->>'$.reward')::double as reward,
       data->>'$.info.judge.result' as verdict,
       (data->>'$.metrics.num_turns')::bigint as calls,
       ((data->>'$.prompt_tokens')::bigint * 0.10 + (data->>'$.completion_tokens')::bigint * 0.40
        + coalesce((data->>'$.info.judge.prompt_tokens')::bigint, 0) * 0.10
        + coalesce((data->>'$.info.judge.completion_tokens')::bigint, 0) * 0.50) / 1e6 as cost
from read_json(?, columns={kind: 'VARCHAR', step: 'BIGINT', data: 'JSON'}, format='newline_delimited')
where kind = 'trajectory'
"""
BY_SOURCE = """
select source, 100 * avg(reward), count(*), avg(reward), avg(cost) from played
where step = ? and split = ? group by source
"""
VERDICTS = """
select count(verdict), count(*) filter (verdict = 'correct'), count(*) filter (verdict = 'incorrect'),
       count(*) filter (verdict = 'parse_failure'), count(*) filter (verdict = 'api_failure')
from played where step = ? and split = 'train'
"""


@pytest.fixture
def judged():
    """A training whose judge misbehaves: its rows, its trajectories in a database, the server, and what was said."""
    with judge_server(misbehaving()) as server:
        outcome, said = train("judged", judge_url=server.url)
    db = duckdb.connect()
    db.execute(TRAJECTORIES, [str(outcome.run_dir / "main-*" / "trajectories-*.jsonl")])
    return rows_of(outcome), db, server, said


def test_every_row_follows_from_the_trajectories_while_the_judge_misbehaves(judged):
    rows, db, server, said = judged
    assert sorted(rows) == [0, 1, 2, 3, 4, 5, 6]  # two optimiser steps for each of three batches, and the end

    for batch_step, step in enumerate((0, 2, 4)):
        row = rows[step]
        by_source = db.execute(BY_SOURCE, [step, "train"]).fetchall()
        assert sum(count for _, _, count, _, _ in by_source) == 20
        for source, percent, count, reward, _ in by_source:
            assert row[f"dataset/{source}/accuracy"] == pytest.approx(percent)
            assert row[f"dataset/{source}/count"] == count
            assert row[f"dataset/{source}/avg_reward"] == pytest.approx(reward)
        by_domain = db.execute(
            "select domain, 100 * avg(reward) from played where step = ? and split = 'train' group by 1",
            [step],
        ).fetchall()
        assert {domain: row[f"train/accuracy_{domain}"] for domain, _ in by_domain} == pytest.approx(
            dict(by_domain)
        )
        (accuracy,) = db.execute(
            "select 100 * avg(reward) from played where step = ? and split = 'train'", [step]
        ).fetchone()
        assert row["train/accuracy"] == pytest.approx(accuracy)
        assert row["train/step"] == batch_step

        calls, right, wrong, unread, failed = db.execute(VERDICTS, [step]).fetchone()
        assert calls == right + wrong + unread + failed > 0
        assert row["judge/success_rate"] == pytest.approx((right + wrong) / calls)
        assert row["judge/parse_failure_rate"] == pytest.approx(unread / calls)
        assert row["judge/api_failure_rate"] == pytest.approx(failed / calls)
        if right + wrong:
            assert row["judge/correct_ratio"] == pytest.approx(right / (right + wrong))
            assert row["judge/incorrect_ratio"] == pytest.approx(wrong / (right + wrong))

    for step in (0, 2, 4, 6):
        # Of all that was played until then, validations too.
        cost, mean_cost, calls, verdicts = db.execute(
            "select sum(cost), avg(cost), sum(calls), count(verdict) from played where step <= ?", [step]
        ).fetchone()
        assert rows[step]["cost/total_cost"] == pytest.approx(cost)
        assert rows[step]["cost/avg_cost_per_sample"] == pytest.approx(mean_cost)
        assert rows[step]["cost/executor_calls"] == calls
        assert rows[step]["cost/judge_calls"] == verdicts

    for step in (0, 4, 6):
        by_source = db.execute(BY_SOURCE, [step, "eval"]).fetchall()
        assert {source for source, *_ in by_source} == set(SOURCES)
        for source, percent, count, _, cost in by_source:
            assert rows[step][f"val/{source}/accuracy"] == pytest.approx(percent)
            assert rows[step][f"val/{source}/count"] == count == 2
            assert rows[step][f"val/{source}/avg_cost"] == pytest.approx(cost)

    # There was no warm-up: nothing was asked but for what is counted.
    assert rows[6]["cost/judge_calls"] == len(server.requests)
    assert f"judge: openai/gpt-oss-120b at {server.url}" in said


def test_the_last_thing_it_prints_is_how_the_sources_the_judge_and_the_costs_came_out(capsys):
    outcome, _ = train("summaries", steps=1)

    rows, summaries = rows_of(outcome), capsys.readouterr().out.splitlines()
    assert summaries[0] == "数据集统计摘要:"
    assert any(line.startswith("LLM Judge统计 (总计: ") for line in summaries)
    assert summaries[-1] == f"  总成本: ${rows[2]['cost/total_cost']:.4f}"


def test_a_judge_that_is_not_there_stops_nothing_and_is_said():
    outcome, said = train("alone", judge_url="http://127.0.0.1:9/v1", steps=1)

    row = rows_of(outcome)[0]
    assert row["judge/api_failure_rate"] == 1.0
    assert "judge/correct_ratio" not in row
    assert row["cost/judge_calls"] > 0
    (alert,) = [
        r.data for r in eventlog.read(outcome.run_dir) if r.kind == "alert" and "judge" in r.data["title"]
    ]
    assert "Connection refused" in alert["text"]
    assert "The judge fails" in said


def test_the_units_are_in_the_runs_config():
    outcome, _ = train("units", steps=1)

    (start, *more) = [r.data for r in eventlog.read(outcome.run_dir) if r.kind in ("start", "config")]
    units = {k: v for data in more for k, v in data.get("units", {}).items()}
    assert units["dataset/gsm8k/accuracy"] == "percent"
    assert units["judge/success_rate"] == "fraction"
    assert "a rule in this process" in start["config"]["data"]


def test_a_resumed_training_costs_what_an_unbroken_one_does():
    unbroken, _ = train("unbroken", steps=4)
    train("broken", steps=2)

    resumed, _ = train("broken", resume=True, steps=4)

    whole, parts = rows_of(unbroken), rows_of(resumed)
    for step in (6, 8):
        of_step = {
            key: value for key, value in whole[step].items() if key.startswith(("cost/", "val/", "train/"))
        }
        assert of_step.items() <= parts[step].items()
    assert whole[8]["cost/total_cost"] > whole[6]["cost/total_cost"] > 0


def test_every_domain_of_the_surface_has_a_source():
    assert set(DOMAINS.values()) == {"math", "qa", "code"}
