"""Questions of six sources by domain ratios; right or wrong, by rule, by tests that are run, or by a judge; with costs.

    trainer train mixture_judge --quick
    trainer train mixture_judge --model-name Qwen/Qwen2.5-3B-Instruct --data data/mixed --set judge_url=http://localhost:8002/v1

What is real: the gradients, the sampling by `domain_ratios`, the graders, code that is executed, the judge's protocol
and its failures, the accounts. What is small with `--quick`: the model, trained from nothing; the problems, made in
the form of each source (see `trainer.data.mixture`); and the judge, a rule in this process behind the same interface
unless `judge_url` names a server. The console and the run's config say which it was.

The judge's key is `$JUDGE_API_KEY` or `$OPENAI_API_KEY`: a setting would end up in the run's config. Prices are what
you pay per million tokens; the defaults are examples.

    python -m trainer.recipes.mixture_judge config/training.yaml       prints the command that such a file stands for
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import sandbox
from trainer.collectors import At, Collector, Metrics
from trainer.collectors.mixture import CostTracker, DatasetMetricsCollector, JudgeMetricsCollector, Prices
from trainer.config import Settings, require_at_least
from trainer.data.mixture import DOMAINS, SOURCES, Problem, draw, make, parse_ratios, read
from trainer.errors import DataError, SettingsError
from trainer.judge import HttpJudge, Judge, JudgePromptLoader, RuleJudge, key_from_environment
from trainer.problems import Problems, named_file
from trainer.recipes import Recipe
from trainer.tasks.mixture import MixtureTask, RewardComputer

# Of each source. Some forms of MATH's have no more than 400.
N_MADE = 1200
# Calls to a judge that are under way at once; a served model batches them.
JUDGE_CONCURRENCY = 16


@dataclass(frozen=True)
class MixtureSettings(Settings):
    group_size: int = 8  # K: answers to one question, normalised among themselves
    max_turns: int = 1
    max_new_tokens: int = 512
    max_length: int = 2048
    warmup_problems: int = 1200
    domain_ratios: str = "math=0.4,qa=0.4,code=0.2"
    use_llm_judge: bool = True  # where a rule cannot decide; without, such answers count as wrong
    judge_url: str = "http://localhost:8002/v1"  # empty: a rule in this process
    judge_model: str = "openai/gpt-oss-120b"
    judge_timeout_s: float = 120.0  # of one call
    judge_max_tokens: int = 512
    judge_prompts: str = ""  # a YAML or JSON file of prompts by source; empty: built in
    executor_prompt_price: float = 0.10  # dollars per million tokens, as are the next three
    executor_completion_price: float = 0.40
    judge_prompt_price: float = 0.10
    judge_completion_price: float = 0.50

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {
            "judge_timeout_s": 0.1,
            "judge_max_tokens": 1,
            "executor_prompt_price": 0.0,
            "executor_completion_price": 0.0,
            "judge_prompt_price": 0.0,
            "judge_completion_price": 0.0,
        }
        require_at_least(self, least)
        try:
            parse_ratios(self.domain_ratios)
        except ValueError as error:
            raise SettingsError(
                f"setting 'domain_ratios' is {self.domain_ratios!r}, and {error}. "
                "Write it as math=0.4,qa=0.4,code=0.2."
            ) from None


# --- problems ---------------------------------------------------------------------------------------------------------


def problems_for(settings: MixtureSettings, data: Path | None) -> Problems:
    """Read or make problems, and split each source alike."""
    path = named_file(data)
    if path is None:
        found, kept_apart = make(N_MADE, settings.seed), []
        source = "made in the form of six sources (no --data was given)"
    else:
        rows = read(path)
        found, kept_apart = rows.train, rows.held_out
        source = f"{len(found) + len(kept_apart)} rows of {str(path)!r}"
    ratios = parse_ratios(settings.domain_ratios)
    held_out: list[Problem] = []
    warmup: list[Problem] = []
    train: list[Problem] = []
    sources = [s for s in SOURCES if ratios.get(DOMAINS[s]) and any(p.source == s for p in found)]
    for name in sources:
        rng = random.Random(f"split {name} {settings.seed}")
        mine = _shuffled(found, name, rng)
        mine_apart = _shuffled(kept_apart, name, rng)
        n_held_out, n_warmup = settings.eval_size // len(sources), settings.n_demonstrated // len(sources)
        if mine_apart:
            held_out += mine_apart[:n_held_out]
        else:
            n_held_out = min(n_held_out, len(mine) // 4)
            held_out, mine = held_out + mine[:n_held_out], mine[n_held_out:]
        # A small source is not used up by what is demonstrated.
        n_warmup = min(n_warmup, len(mine) // 2)
        warmup, train = warmup + mine[:n_warmup], train + mine[n_warmup:]
    random.Random(f"order {settings.seed}").shuffle(train)
    train = train[: settings.max_prompts or None]
    pools = {name: [p for p in train if p.source == name] for name in sources}
    empty = [
        d
        for d, share in ratios.items()
        if share and not any(pools.get(s) for s in SOURCES if DOMAINS[s] == d)
    ]
    if empty or not held_out:
        raise DataError(
            f"{source}: there is no problem to train on in the domain {' nor in '.join(map(repr, empty))}."
            if empty
            else f"{source}: too few to hold any out."
            + " Give more rows with --data, or other domain_ratios."
        )
    return Problems(
        warmup=warmup,
        train=train,
        held_out=held_out,
        source=f"{source}; {_said_of_grading(settings)}",
        fingerprint=hashlib.sha256(repr((warmup, train, held_out)).encode()).hexdigest()[:16],
        choose=functools.partial(draw, pools, ratios),
    )


def _shuffled(problems: Sequence[Problem], source: str, rng: random.Random) -> list[Problem]:
    mine = [problem for problem in problems if problem.source == source]
    rng.shuffle(mine)
    return mine


def _said_of_grading(settings: MixtureSettings) -> str:
    if not settings.use_llm_judge:
        judge = "no judge"
    elif settings.judge_url:
        judge = f"judge: {settings.judge_model} at {settings.judge_url}"
    else:
        judge = "judge: a rule in this process, no model"
    return f"{judge}; code runs with {sandbox.isolation()}"


# --- grading and what is logged ---------------------------------------------------------------------------------------


def judge_for(settings: MixtureSettings) -> Judge | None:
    if not settings.use_llm_judge:
        return None
    if not settings.judge_url:
        return RuleJudge()
    return HttpJudge(
        settings.judge_url,
        settings.judge_model,
        prompts=JudgePromptLoader(Path(settings.judge_prompts) if settings.judge_prompts else None),
        timeout_s=settings.judge_timeout_s,
        max_tokens=settings.judge_max_tokens,
        key=key_from_environment(),
    )


def task_for(settings: MixtureSettings) -> MixtureTask:
    judge = judge_for(settings)
    waits = JUDGE_CONCURRENCY if isinstance(judge, HttpJudge) else 1
    # A sandbox is a process: as many as there are cores run at once.
    return MixtureTask(RewardComputer(judge), concurrency=max(waits, min(8, os.cpu_count() or 1)))


def collectors_for(settings: MixtureSettings) -> Sequence[Collector]:
    prices = Prices(
        settings.executor_prompt_price,
        settings.executor_completion_price,
        settings.judge_prompt_price,
        settings.judge_completion_price,
    )
    datasets, judge, cost = DatasetMetricsCollector(), JudgeMetricsCollector(), CostTracker(prices)
    return datasets, judge, cost, _Summaries(datasets, judge, cost)


class _Summaries(Collector):
    """Prints, after the last evaluation, how the last rollout batch did, and what all of it cost."""

    def __init__(self, *summarised: DatasetMetricsCollector | JudgeMetricsCollector | CostTracker) -> None:
        self._summarised = summarised

    def of_evaluation(self, at: At, trajectories: Sequence[Any]) -> Metrics:
        if at.is_final:
            for collector in self._summarised:
                collector.print_summary()
        return {}


# --- config/training.yaml ---------------------------------------------------------------------------------------------


def training_yaml(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the settings and the environment variables that a `config/training.yaml` asks for.

    Its keys: `wandb.mode`, `use_llm_judge`, `domain_ratios`; others are another program's, and are passed over.
    """
    import yaml  # type: ignore[import-untyped]  # comes with transformers

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read settings from {str(path)!r}: {error}") from None
    if not isinstance(given, dict):
        raise SettingsError(f"{str(path)!r} holds no settings: expected keys such as use_llm_judge: true.")
    settings: dict[str, str] = {}
    if "use_llm_judge" in given:
        settings["use_llm_judge"] = str(given["use_llm_judge"]).lower()
    ratios = given.get("domain_ratios")
    if ratios is not None:
        settings["domain_ratios"] = (
            ",".join(f"{domain}={share}" for domain, share in ratios.items())
            if isinstance(ratios, dict)
            else str(ratios)
        )
    mode = (given.get("wandb") or {}).get("mode") if isinstance(given.get("wandb"), dict) else None
    return settings, {"WANDB_MODE": str(mode)} if mode else {}


def command_of(path: Path) -> str:
    settings, variables = training_yaml(path)
    return shlex.join(
        [f"{name}={value}" for name, value in variables.items()]
        + ["trainer", "train", "mixture_judge"]
        + [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    )


# Six small languages at once: about a minute and a half on two idle cores.
QUICK = {
    "judge_url": "",
    "vocab_size": 1024,
    "warmup_problems": 1500,
    "warmup_target": 0.65,
    "steps": 80,
    "rollouts_per_step": 48,
    "group_size": 4,
    "train_batch_size": 48,  # four optimiser steps for each rollout batch
    "lr": 8e-4,
    "schedule": "linear",  # to 0: at a constant rate the last batches lose some of it again
    "max_new_tokens": 32,
    "max_length": 192,
    "eval_size": 144,
    "eval_interval": 20,
    "checkpoint_interval": 5,
}

RECIPE = Recipe(
    name="mixture_judge",
    project="grpo-mixture",
    settings=MixtureSettings,
    quick=QUICK,
    problems=problems_for,
    task=task_for,
    collectors=collectors_for,
    tags=("grpo", "mixture", "llm-judge"),
    variables={
        "JUDGE_BASE_URL": "judge_url",
        "JUDGE_MODEL": "judge_model",
        "LITELLM_TIMEOUT": "judge_timeout_s",
    },
)


if __name__ == "__main__":
    print(command_of(Path(sys.argv[1])))
