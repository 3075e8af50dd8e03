"""Multi-turn calculator calls on GSM8K's arithmetic, by a tiny model trained from nothing on the CPU.

    random Qwen3 (0.56 M) ─ warm-up on demonstrations, to a greedy reward of 0.35 ─▶ GRPO ─▶ about 0.7, held out

What is real: the gradients, the chat format, tool calls parsed from sampled JSON, several turns, the held-out reward.
What is small: the model, and the language (see `trainer.tasks.calculator`).

Problems come from the first of: `--data`, `$TIDELOG_DATA`, `shared/data/gsm8k/train_3000.jsonl` beside the
repository, the `datasets` library (GSM8K's own train split), a generator.

Invariants
----------
* Held-out problems are in neither of the other parts, and no question is in two.
* For one seed and one source the problems, the tokenizer and the first weights are the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.config import Settings, require_at_least
from trainer.errors import DataError
from trainer.problems import GENERATED, Problems, named_data, shared_data
from trainer.recipes import Recipe
from trainer.tasks.calculator import CalculatorTask, Problem, generate, problems_of, read_gsm8k

# A quarter of them has numbers of two digits: as many as GSM8K's.
N_GENERATED = 15_000


@dataclass(frozen=True)
class CalculatorSettings(Settings):
    warmup_problems: int = 2000
    number_digits: int = 3  # longer numbers are left out: they take longer to learn to copy

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, {"number_digits": 1})


def problems_for(settings: CalculatorSettings, data: Path | None) -> Problems:
    """Find problems, keep those with short whole numbers, and split them."""
    found, source = _find(settings, data)
    fitting = [problem for problem in found if _fits(problem, settings.number_digits)]
    n_held_out, n_warmup = settings.eval_size, settings.n_demonstrated
    least = n_held_out + n_warmup + settings.rollouts_per_step
    if len(fitting) < least:
        raise DataError(
            f"{source} has {len(fitting)} problems with numbers of at most {settings.number_digits} digits; these "
            f"settings need {least}. Give a larger file with --data, or lower warmup_problems or eval_size."
        )
    random.Random(f"split {settings.seed}").shuffle(fitting)
    return Problems(
        held_out=fitting[:n_held_out],
        warmup=fitting[n_held_out : n_held_out + n_warmup],
        train=fitting[n_held_out + n_warmup :],
        source=source,
        fingerprint=hashlib.sha256(repr(fitting).encode()).hexdigest()[:16],
    )


def _find(settings: CalculatorSettings, data: Path | None) -> tuple[Sequence[Problem], str]:
    path = named_data(data) or shared_data("gsm8k/train_3000.jsonl")
    if path is not None and path != GENERATED:
        return read_gsm8k(path), f"GSM8K's annotations in {str(path)!r}"
    solutions = [] if path else _solutions_from_datasets()
    if solutions:
        return problems_of(
            solutions, "openai/gsm8k"
        ), "GSM8K's annotations, by datasets.load_dataset('openai/gsm8k')"
    return generate(N_GENERATED, settings.seed), "generated problems (--data generated)"


def _solutions_from_datasets() -> list[str]:
    """Return the solutions of GSM8K's train split, or nothing if `datasets` is absent or cannot reach it."""
    if importlib.util.find_spec("datasets") is None:
        return []
    from datasets import load_dataset

    try:
        return list(load_dataset("openai/gsm8k", "main", split="train")["answer"])
    except (OSError, ValueError):  # offline without a cached copy: ConnectionError and its kin are OSErrors
        return []


def _fits(problem: Problem, digits: int) -> bool:
    text = " ".join([problem.question.rstrip("?"), problem.answer, *problem.expressions])
    return all(len(number) <= digits and "." not in number for number in re.findall(r"[\d.]+", text))


def task_for(settings: CalculatorSettings) -> CalculatorTask:
    return CalculatorTask()


# The smallest training that shows learning: about a minute on two cores.
QUICK = {
    "warmup_problems": 1000,
    "number_digits": 2,
    "steps": 50,
    "rollouts_per_step": 48,
    "group_size": 4,
    "lr": 3e-4,
    "max_new_tokens": 16,  # the longest call of two-digit numbers has 13
    "eval_interval": 10,
    "checkpoint_interval": 1,
}

RECIPE = Recipe(
    name="calculator",
    project="tiny_grpo_multiturn_tool_calling",
    settings=CalculatorSettings,
    quick=QUICK,
    problems=problems_for,
    task=task_for,
)
