"""An agent that answers questions about an inbox by searching and reading it; ART·E's task, tools and reward.

    trainer train email_agent --quick
    trainer data emails maildir/ -o enron_emails.db
    trainer train email_agent --data enron_emails.db --model-name Qwen/Qwen2.5-3B-Instruct --set judge_url=… --set judge_model=…

What is real: the mails (Enron's, where they are), SQLite's full-text search, tool calls parsed from sampled JSON, several
turns, the gradients, the reward on mails that nothing else asks about. What is small with `--quick`: the model, trained
from nothing; and the questions, which are made from the mails and name a mail by a number in it (see
`trainer.tasks.email`). The small model learns the form from mails in disguise, to a greedy reward of 0; GRPO takes it
to about 0.6 in 25 steps, which is three of five answers right where it was two.

Mails come from the first of: `--data`, `$TIDELOG_DATA` (each a database of `trainer data emails`, or anything that it
reads), `shared/data/enron/mails_400.jsonl` beside the repository, a generator. Questions about a database come from
`<its name>.questions.jsonl` beside it, else from `datasets.load_dataset("corbt/enron_emails_sample_questions")`, else
they are made. A question of a person's needs a judge to see through other words for the same answer: without `judge_url`,
only the same words are right. The judge's key is `$JUDGE_API_KEY` or `$OPENAI_API_KEY`.

Invariants
----------
* No mail is asked about in two of the parts, where the questions are made; asked ones keep their own split.
* For one seed and one source of mails the questions are the same, in the same order.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.collectors import Collector
from trainer.collectors.email import EmailMetrics
from trainer.config import Settings, require_at_least
from trainer.data.emails import MAX_RESULTS, SNIPPET_WORDS, Inbox, disguised, generate, read
from trainer.errors import DataError, SettingsError
from trainer.judge import HttpJudge, key_from_environment
from trainer.problems import GENERATED, Problems, named_data, shared_data
from trainer.recipes import Recipe
from trainer.tasks.email import EmailTask, Question, common_words, questions_of

N_GENERATED = 400
# Calls to a judge that are under way at once; a served model batches them.
JUDGE_CONCURRENCY = 16
HUB_QUESTIONS = "corbt/enron_emails_sample_questions"


@dataclass(frozen=True)
class EmailSettings(Settings):
    lr: float = 1.2e-5  # ART·E's
    epochs: int = 4
    rollouts_per_step: int = 8
    group_size: int = 6
    train_size: int = 4000  # questions to train on, at most
    eval_size: int = 100  # at most
    eval_interval: int = 30
    max_turns: int = 10
    max_new_tokens: int = 2048
    max_length: int = 16_384
    warmup_problems: int = 3000
    warmup_target: float = 0.2  # more than a policy gets that gives no wrong answer because it gives none
    max_results: int = MAX_RESULTS
    snippet_words: int = SNIPPET_WORDS
    body_chars: int = 10_000  # of a mail that is read
    judge_url: str = ""  # the base of an OpenAI-compatible server; empty: only the expected words are right
    judge_model: str = "openai/gpt-oss-120b"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, {"train_size": 1, "max_results": 1, "snippet_words": 1, "body_chars": 1})
        if self.max_results > MAX_RESULTS:
            raise SettingsError(
                f"setting 'max_results' is {self.max_results!r}; a search returns at most {MAX_RESULTS}."
            )
        if self.snippet_words > 64:
            raise SettingsError(f"setting 'snippet_words' is {self.snippet_words!r}; FTS5 allows at most 64.")


# --- problems ---------------------------------------------------------------------------------------------------------


def problems_for(settings: EmailSettings, data: Path | None) -> Problems:
    """Find the mails and the questions about them, and split these."""
    path = named_data(data)
    inbox = _inbox(path, settings.seed)
    rows, where = _asked(path)
    if rows:
        train, held_out, warmup_mails, said = _split_asked(rows, inbox, settings.seed)
        said = f"{said} of {where}"
    else:
        train, held_out, warmup_mails = _split_made(inbox, settings)
        said = "questions made from them"
    train, held_out = train[: settings.train_size], held_out[: settings.eval_size]
    if len(train) < settings.rollouts_per_step or not held_out:
        raise DataError(
            f"{inbox.source}: {len(train)} questions to train on and {len(held_out)} held out are too few for "
            f"rollout batches of {settings.rollouts_per_step}. Give more mails with --data, or lower rollouts_per_step."
        )
    warmup = _demonstrated(inbox, warmup_mails, settings)
    return Problems(
        warmup=warmup,
        train=train,
        held_out=held_out,
        source=f"{inbox.source}; {said}{_said_of_grading(settings)}",
        fingerprint=hashlib.sha256(repr((warmup, train, held_out)).encode()).hexdigest()[:16],
    )


def _inbox(path: Path | None, seed: int) -> Inbox:
    if path is not None and path != GENERATED:
        return (
            Inbox.open(path)
            if path.suffix in (".db", ".sqlite")
            else Inbox.of(read(path), f"mails of {str(path)!r}")
        )
    beside = shared_data("enron/mails_400.jsonl")
    if path is None and beside is not None:
        return Inbox.of(read(beside), f"Enron's mails in {str(beside)!r}")
    return Inbox.of(generate(N_GENERATED, seed), "mails that were made up (no --data was given)")


def _split_made(inbox: Inbox, settings: EmailSettings) -> tuple[list[Question], list[Question], list[str]]:
    """Return questions to train on, held-out ones, and the mails that the demonstrations are made from."""
    questions = questions_of(inbox, settings.seed, body_chars=settings.body_chars)
    mails = sorted({question.message_id for question in questions})
    random.Random(f"split {settings.seed}").shuffle(mails)
    n_held_out = max(1, len(mails) // 5)
    n_warmup = len(mails) * 2 // 5 if settings.n_demonstrated else 0
    held_out = set(mails[:n_held_out])
    warmup = mails[n_held_out : n_held_out + n_warmup]
    train = set(mails[n_held_out + n_warmup :])
    return (
        [question for question in questions if question.message_id in train],
        [question for question in questions if question.message_id in held_out],
        warmup,
    )


def _demonstrated(inbox: Inbox, message_ids: Sequence[str], settings: EmailSettings) -> list[Question]:
    """Return questions about these mails in disguise, about each of them several times; none for a pretrained model."""
    mails = [mail for mail in map(inbox.mail, message_ids) if mail is not None]
    found: list[Question] = []
    words, seed = common_words(inbox), settings.seed
    while mails and len(found) < settings.n_demonstrated:
        drawn = Inbox.of(disguised(mails, seed), "mails in disguise")
        questions = questions_of(drawn, seed, body_chars=settings.body_chars, words=words)
        if not questions:
            break
        found += questions
        seed += 1
    return found[: settings.n_demonstrated]


# --- questions that were asked ----------------------------------------------------------------------------------------


def _asked(path: Path | None) -> tuple[list[Mapping[str, Any]], str]:
    """Return the questions that belong to a database, and where they were found."""
    if path is None or path.suffix not in (".db", ".sqlite"):
        return [], ""
    beside = path.with_suffix(".questions.jsonl")
    if beside.exists():
        return _rows(beside), repr(str(beside))
    return _rows_of_hub(), HUB_QUESTIONS


def _rows(path: Path) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the questions from {str(path)!r}: {error}.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            assert isinstance(row["question"], str)
            assert isinstance(row["answer"], str)
            assert isinstance(row["message_ids"], list)
        except (ValueError, TypeError, KeyError, AssertionError):
            raise DataError(
                f"line {number} of {str(path)!r} is no question: expected a JSON object with 'question', 'answer' and "
                f"a list 'message_ids', found {line.strip()[:60]!r}. Mend the line, or take the file away."
            ) from None
        rows.append(row)
    return rows


def _rows_of_hub() -> list[Mapping[str, Any]]:
    """Return ART·E's questions, or nothing if `datasets` is absent or cannot reach them."""
    if importlib.util.find_spec("datasets") is None:
        return []
    from datasets import load_dataset

    try:
        loaded = load_dataset(HUB_QUESTIONS)
    except (OSError, ValueError):  # offline without a cached copy: ConnectionError and its kin are OSErrors
        return []
    return [{**row, "split": split} for split in loaded for row in loaded[split]]


def _split_asked(
    rows: Iterable[Mapping[str, Any]], inbox: Inbox, seed: int
) -> tuple[list[Question], list[Question], list[str], str]:
    """Return train, held-out (their own test split, else a fifth), mails for demonstrations, and what was left out."""
    parts: dict[str, list[Question]] = {"train": [], "test": []}
    n_rows = 0
    for row in rows:
        n_rows += 1
        ids = row["message_ids"]
        # As in ART·E: one mail has the answer.
        if len(ids) == 1 and ids[0] in inbox:
            parts.setdefault(str(row.get("split") or "train"), []).append(_question(row, inbox))
    for part in parts.values():
        random.Random(f"questions {seed}").shuffle(part)
    train, test = parts["train"], parts["test"]
    if not test:
        test, train = train[: len(train) // 5], train[len(train) // 5 :]
    kept = len(train) + len(test)
    return train, test, [question.message_id for question in train], f"{kept:,} of the {n_rows:,} questions"


def _question(row: Mapping[str, Any], inbox: Inbox) -> Question:
    return Question(
        text=row["question"],
        answer=row["answer"],
        message_id=row["message_ids"][0],
        owner=row.get("inbox_address") or "",
        asked_on=str(row.get("query_date") or ""),
        id=str(row.get("id") or ""),
        inbox=inbox,
    )


# --- grading and what is logged ---------------------------------------------------------------------------------------


def task_for(settings: EmailSettings) -> EmailTask:
    judge = None
    if settings.judge_url:
        judge = HttpJudge(
            settings.judge_url,
            settings.judge_model,
            timeout_s=settings.vllm_timeout_s,
            key=key_from_environment(),
        )
    return EmailTask(
        max_turns=settings.max_turns,
        max_results=settings.max_results,
        snippet_words=settings.snippet_words,
        body_chars=settings.body_chars,
        # A small model learns what the tools are from the demonstrations.
        with_instructions=bool(settings.model_name),
        judge=judge,
        concurrency=JUDGE_CONCURRENCY if judge else 1,
    )


def _said_of_grading(settings: EmailSettings) -> str:
    return f"; judge: {settings.judge_model} at {settings.judge_url}" if settings.judge_url else ""


def collectors_for(settings: EmailSettings) -> Sequence[Collector]:
    return (EmailMetrics(),)


# The smallest training that shows learning: about a minute and a half on two cores.
QUICK = {
    "vocab_size": 640,
    "warmup_target": 0.0,
    "warmup_max_steps": 250,
    "steps": 25,
    "epochs": 0,
    "rollouts_per_step": 12,
    "group_size": 8,
    "lr": 3e-4,
    "max_turns": 4,
    "max_new_tokens": 48,  # the longest call has about 30
    "max_length": 2048,
    "eval_size": 64,
    "eval_interval": 5,
    "max_results": 3,
    "snippet_words": 5,
    "body_chars": 60,
}

VARIABLES = {
    "LEARNING_RATE": "lr",
    "TRAINING_DATASET_SIZE": "train_size",
    "VAL_SET_SIZE": "eval_size",
    "TRAJECTORIES_PER_GROUP": "group_size",
    "GROUPS_PER_STEP": "rollouts_per_step",
    "EVAL_STEPS": "eval_interval",
    "NUM_EPOCHS": "epochs",
    "MAX_TURNS": "max_turns",
    "MAX_TOKENS": "max_new_tokens",
    "ROLLOUT_CONCURRENCY": "concurrency",
    "LITELLM_TIMEOUT": "vllm_timeout_s",
}

RECIPE = Recipe(
    name="email_agent",
    project="qwen3-email-agent",
    settings=EmailSettings,
    quick=QUICK,
    problems=problems_for,
    task=task_for,
    collectors=collectors_for,
    tags=("qwen3", "email-agent", "rl-training"),
    variables=VARIABLES,
)
