"""Questions about a text, one leaning on the other, by a tiny model trained from nothing on the CPU.

What is real: the gradients, the conversation of several turns, answers that must be found in the text, the held-out
reward. What is small: the model, and the texts: two sentences, or one with `--quick`. `--data` takes real ones (CoQA's
JSONL), for a pretrained model.

With `--quick` the warm-up shows the form and no more: each answer is a word of the text, any of them. Which word answers
which question GRPO finds out from the reward alone: in 50 steps the greedy held-out reward rises from 0.18 to 0.60,
0.17 to 0.77 and 0.22 to 0.56 (seeds 0 to 2). Which of two facts a question is about takes a model of this size longer
(500 steps of right demonstrations leave it at 0.64): hence one fact, about which 30 steps of right demonstrations would
have taught it nearly all (0.94), and left nothing to see.

Invariants
----------
* Held-out conversations are in neither of the other parts; where texts are generated, nor are their texts.
* Only the warm-up of a tiny model ever sees an answer that is not the right one; the reward never does.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.collectors import Collector
from trainer.collectors.grpo import Examples
from trainer.config import Settings
from trainer.errors import DataError
from trainer.problems import Problems, named_file
from trainer.recipes import Recipe
from trainer.tasks.qa import QATask, generate, guessed, read_conversations

# Of 9,216 texts with one fact.
N_GENERATED = 8000


@dataclass(frozen=True)
class QASettings(Settings):
    warmup_problems: int = 2000
    warmup_guesses: bool = False  # a tiny model is shown any word of the text as an answer: the form alone
    facts: int = 2  # of a generated text
    max_turns: int = 3
    max_new_tokens: int = 4  # an answer is a word
    split_words: bool = True


def problems_for(settings: QASettings, data: Path | None) -> Problems:
    """Read or make conversations, and split them."""
    path = named_file(data)
    found = read_conversations(path) if path else generate(N_GENERATED, settings.seed, settings.facts)
    source = f"the conversations in {str(path)!r}" if path else "generated conversations (no file was given)"
    least = settings.eval_size + settings.n_demonstrated + settings.rollouts_per_step
    if len(found) < least:
        raise DataError(
            f"{source}: {len(found)} of them; these settings need {least}. Give a larger file with --data, or lower "
            "warmup_problems or eval_size."
        )
    random.Random(f"split {settings.seed}").shuffle(found)
    n_held_out, n_warmup = settings.eval_size, settings.n_demonstrated
    warmup = found[n_held_out : n_held_out + n_warmup]
    if settings.warmup_guesses:
        rng = random.Random(f"guesses {settings.seed}")
        warmup = [guessed(conversation, rng) for conversation in warmup]
    return Problems(
        held_out=found[:n_held_out],
        warmup=warmup,
        train=found[n_held_out + n_warmup :],
        source=source,
        fingerprint=hashlib.sha256(repr(found).encode()).hexdigest()[:16],
    )


def task_for(settings: QASettings) -> QATask:
    return QATask()


def collectors_for(settings: QASettings) -> Sequence[Collector]:
    return [Examples()]


RECIPE = Recipe(
    name="multiturn_qa",
    project="tiny_grpo_multiturn_qa",
    settings=QASettings,
    quick={
        "facts": 1,
        "warmup_guesses": True,
        "warmup_target": 1.0,  # guessing does not reach it: all the steps are taken
        "warmup_max_steps": 120,  # by then, what is guessed is a word of this text
        "steps": 50,
        "rollouts_per_step": 24,
        "group_size": 8,
        "train_batch_size": 48,  # four optimiser steps for each rollout batch
        "lr": 1e-3,
        "schedule": "linear",  # to 0
        "eval_interval": 10,
        "checkpoint_interval": 5,
    },
    problems=problems_for,
    task=task_for,
    collectors=collectors_for,
)
