"""Questions about a text: what is generated, what is demonstrated, and what the parts share."""

from __future__ import annotations

import re

import pytest

from eventlog import Turn
from trainer.errors import DataError
from trainer.recipes.multiturn_qa import RECIPE, QASettings, problems_for
from trainer.tasks.qa import QATask, read_conversations

TASK = QATask()
SMALL = {"eval_size": 20, "warmup_problems": 300}


@pytest.mark.parametrize("facts", [1, 2])
def test_no_text_is_in_two_parts(facts):
    problems = problems_for(QASettings(**SMALL, facts=facts), None)

    texts = [
        conversation.text
        for part in (problems.held_out, problems.warmup, problems.train)
        for conversation in part
    ]
    assert len(set(texts)) == len(texts)


def test_each_answer_stands_in_its_text_and_earns_its_share():
    conversation = problems_for(QASettings(**SMALL), None).held_out[0]

    shown = TASK.demonstrate(conversation)
    one_wrong = [*shown[:-1], Turn(role="assistant", content="none")]

    assert set(conversation.answers) <= set(re.findall(r"\w+", conversation.text))
    assert TASK.grade(conversation, shown).reward == 1.0
    assert TASK.grade(conversation, one_wrong).reward == pytest.approx(2 / 3)


def test_guesses_are_demonstrated_and_never_rewarded_or_held_out():
    plain = problems_for(QASettings(**SMALL), None)
    guessing = problems_for(QASettings(**SMALL, warmup_guesses=True), None)

    right = [
        guess == answer
        for guessed, conversation in zip(guessing.warmup, plain.warmup, strict=True)
        for guess, answer in zip(guessed.answers, conversation.answers, strict=True)
    ]
    # A text of two facts has ten words, of which each answer is one, or a few where both facts share it.
    assert 0.05 < sum(right) / len(right) < 0.2
    assert all(set(c.answers) <= set(re.findall(r"\w+", c.text)) for c in guessing.warmup)
    assert (guessing.held_out, guessing.train) == (plain.held_out, plain.train)


@pytest.mark.parametrize(
    "row",
    [
        '{"text": "t", "questions": [{"question": 3, "answer": "a"}]}',
        '{"text": "t", "questions": [{"question": "q", "answer": 3}]}',
        '{"text": "t", "questions": [{"question": null, "answer": "a"}]}',
        '{"story": "t", "questions": [3], "answers": ["a"]}',
        '{"story": "t", "questions": [{"input_text": ["q"]}], "answers": ["a"]}',
        '{"text": ' + "[" * 100_000,
    ],
    ids=lambda row: row[:70],
)
def test_a_line_whose_questions_or_answers_are_no_text_is_refused_by_its_number(tmp_path, row):
    good = '{"text": "t", "questions": [{"question": "q", "answer": "a"}]}'
    (tmp_path / "train.jsonl").write_text(f"{good}\n{row}\n")

    with pytest.raises(DataError, match=r"line 2 of .* is no conversation"):
        read_conversations(tmp_path / "train.jsonl")


def test_a_pretrained_model_is_shown_no_guesses():
    settings = QASettings(**SMALL, warmup_guesses=True, model_name="Qwen/Qwen2.5-0.5B-Instruct")

    assert problems_for(settings, None).warmup == []


def test_only_quick_guesses():
    assert RECIPE.quick["warmup_guesses"]
    assert not QASettings().warmup_guesses
