"""The warm-up: to a target and no further, from the seed and nothing else."""

import pytest
import torch

from tests.trainer.doubles import PROBLEMS, learned_chat
from trainer.policy.transformers import tiny_qwen3
from trainer.tasks.calculator import CalculatorTask
from trainer.warmup import EVAL_INTERVAL, warm_up


@pytest.fixture(scope="module")
def chat():
    return learned_chat()


def warmed_up(chat, rewards, *, target=0.5, max_steps=40, seed=0):
    torch.manual_seed(0)
    model = tiny_qwen3(chat.vocab_size, hidden=16, layers=1, max_tokens=128)
    task = CalculatorTask()
    seen = []
    answers = iter(rewards)
    curve = warm_up(
        model,
        [chat.encode_demonstration(task.demonstrate(problem)) for problem in PROBLEMS],
        lambda: next(answers),
        target=target,
        max_steps=max_steps,
        seed=seed,
        pad_id=chat.pad_id,
        progress=seen.append,
    )
    assert seen == curve
    return curve, model


def test_it_stops_at_the_first_evaluation_that_reaches_the_target(chat):
    curve, _ = warmed_up(chat, [0.1, 0.5, 0.9])

    assert [(p.step, p.reward) for p in curve] == [(EVAL_INTERVAL, 0.1), (2 * EVAL_INTERVAL, 0.5)]


def test_it_stops_at_its_cap_and_evaluates_there(chat):
    curve, _ = warmed_up(chat, [0.0] * 9, max_steps=EVAL_INTERVAL + 5)

    assert [p.step for p in curve] == [EVAL_INTERVAL, EVAL_INTERVAL + 5]


def test_no_steps_leave_the_model_as_it_was(chat):
    torch.manual_seed(0)
    untouched = tiny_qwen3(chat.vocab_size, hidden=16, layers=1, max_tokens=128)

    curve, model = warmed_up(chat, [], max_steps=0)

    assert curve == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


def test_the_loss_falls(chat):
    curve, _ = warmed_up(chat, [0.0] * 9)

    assert curve[-1].loss < 0.75 * curve[0].loss


def test_done_again_it_comes_out_the_same(chat):
    first, model = warmed_up(chat, [0.0] * 9, max_steps=20)
    second, again = warmed_up(chat, [0.0] * 9, max_steps=20)

    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
