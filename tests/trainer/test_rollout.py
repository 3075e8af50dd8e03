"""Episodes: what the policy sees and writes, turn by turn, and when they end."""

import pytest

from eventlog import Turn
from tests.trainer.doubles import PROBLEMS, ScriptedEngine, call, learned_chat
from trainer.rollout import Limits, play
from trainer.tasks.calculator import CalculatorTask, chain

LIMITS = Limits(max_turns=3, max_new_tokens=40, max_tokens=200)
TWO_STEPS = chain([("8", "/", "2"), ("+", "5")])


@pytest.fixture(scope="module")
def chat():
    return learned_chat()


def answer(text):
    return Turn(role="assistant", content=text)


def play_script(chat, problem, *turns, limits=LIMITS):
    engine = ScriptedEngine(chat, [turns])
    (trajectory,) = play([problem], CalculatorTask(), chat, engine, limits, temperature=1.0)
    return trajectory, engine


def test_an_episode_goes_from_call_to_call_to_the_answer(chat):
    trajectory, _ = play_script(chat, TWO_STEPS, call("8/2"), call("4+5"), answer("#### 9"))

    assert [(t.role, t.content) for t in trajectory.turns] == [
        ("user", "What is 8 divided by 2, then plus 5?"),
        ("assistant", ""),
        ("tool", "4"),
        ("assistant", ""),
        ("tool", "9"),
        ("assistant", "#### 9"),
    ]
    assert trajectory.reward == 1.0
    assert trajectory.metrics["num_turns"] == 3.0


def test_each_prompt_is_exactly_what_was_seen_and_written_so_far(chat):
    trajectory, engine = play_script(chat, TWO_STEPS, call("8/2"), call("4+5"), answer("#### 9"))

    for (prompt,) in engine.prompts:
        assert trajectory.token_ids[: len(prompt)] == prompt


def test_the_mask_is_one_on_what_the_policy_wrote_and_on_nothing_else(chat):
    trajectory, _ = play_script(chat, TWO_STEPS, call("8/2"), call("4+5"), answer("#### 9"))

    demonstrated = chat.encode_demonstration(CalculatorTask().demonstrate(TWO_STEPS))
    assert (trajectory.token_ids, trajectory.mask) == demonstrated
    assert len(trajectory.logprobs) == sum(trajectory.mask) == trajectory.completion_tokens


def test_episodes_of_different_lengths_play_side_by_side(chat):
    scripts = [
        [call("8/2"), call("4+5"), answer("#### 9")],
        [answer("#### 1")],
        [call("2+2"), answer("#### 4")],
    ]
    problems = [TWO_STEPS, PROBLEMS[1], PROBLEMS[0]]

    trajectories = play(
        problems, CalculatorTask(), chat, ScriptedEngine(chat, scripts), LIMITS, temperature=1.0
    )

    assert [t.reward for t in trajectories] == [1.0, 0.0, 1.0]


def test_an_episode_that_only_calls_ends_after_its_last_turn_with_a_sampled_token(chat):
    trajectory, engine = play_script(chat, TWO_STEPS, call("8/2"), call("8/2"), call("8/2"), call("8/2"))

    assert len(engine.prompts) == 3
    assert trajectory.reward == 0.0
    assert trajectory.mask[-1] == 1
    assert trajectory.token_ids[-1] == chat.end_id


def test_a_turn_without_an_end_is_not_answered(chat):
    limits = Limits(max_turns=3, max_new_tokens=3, max_tokens=200)

    trajectory, engine = play_script(chat, TWO_STEPS, call("8/2"), limits=limits)

    assert len(engine.prompts) == 1
    assert trajectory.metrics["truncated"] == 1.0
    assert trajectory.reward == 0.0


def test_an_episode_without_room_for_another_turn_ends(chat):
    limits = Limits(max_turns=3, max_new_tokens=40, max_tokens=70)

    trajectory, engine = play_script(chat, TWO_STEPS, call("8/2"), call("4+5"), limits=limits)

    assert len(engine.prompts) == 1
    assert trajectory.metrics["truncated"] == 1.0
    assert len(trajectory.token_ids) <= limits.max_tokens


def test_a_first_prompt_that_leaves_no_room_fails_and_says_what_would_help(chat):
    limits = Limits(max_turns=3, max_new_tokens=40, max_tokens=16)

    trajectory, engine = play_script(chat, TWO_STEPS, call("8/2"), limits=limits)

    assert engine.prompts == []
    assert (trajectory.reward, trajectory.stop_reason) == (None, "exception")
    assert "max_length is 16" in trajectory.exception
    assert "max_new_tokens" in trajectory.exception
    assert len(trajectory.token_ids) <= limits.max_tokens


@pytest.mark.parametrize("room", range(30, 90, 4))
def test_no_trajectory_is_longer_than_it_may_be(chat, room):
    limits = Limits(max_turns=3, max_new_tokens=20, max_tokens=room)

    trajectory, _ = play_script(chat, TWO_STEPS, call("8/2"), call("4+5"), answer("#### 9"), limits=limits)

    assert len(trajectory.token_ids) <= room


def test_an_answer_that_cannot_be_encoded_is_that_episodes_fault_and_the_others_go_on(chat):
    class Numbers(CalculatorTask):
        def respond(self, problem, turns):
            return [Turn(role="user", content=3)] if problem is TWO_STEPS else super().respond(problem, turns)

    scripts = [[call("8/2")], [answer("#### 4")]]
    engine = ScriptedEngine(chat, scripts)

    failed, played = play([TWO_STEPS, PROBLEMS[0]], Numbers(), chat, engine, LIMITS, temperature=1.0)

    assert failed.stop_reason == "exception"
    assert played.reward == 1.0


def test_a_malformed_call_is_answered_and_the_policy_may_try_again(chat):
    trajectory, _ = play_script(
        chat, PROBLEMS[0], answer("<tool_call>{</tool_call>"), call("2+2"), answer("#### 4")
    )

    assert trajectory.turns[2].content == "error: the call is not JSON"
    assert trajectory.metrics["tool_errors"] == 1.0
    assert trajectory.reward == 1.0


def test_a_trajectory_says_when_it_began_and_how_long_it_took(chat):
    trajectory, _ = play_script(chat, PROBLEMS[0], call("2+2"), answer("#### 4"))

    assert trajectory.started_us > 1.5e15
    assert trajectory.duration_s >= 0
    assert trajectory.prompt_tokens > trajectory.completion_tokens > 0
    assert trajectory.turns[-1].duration_s >= 0
