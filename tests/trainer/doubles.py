"""What the tests of this room put in place of a trained policy, a task and a run."""

import os
import sys
from dataclasses import dataclass, field

import torch

from eventlog import Table, ToolCall, Trajectory, Turn
from trainer.batch import make_batch
from trainer.chat import Chat
from trainer.policy import Completion
from trainer.policy.transformers import token_logprobs
from trainer.progress import Progress
from trainer.tasks import Grade
from trainer.tasks.calculator import CalculatorTask, chain

PROBLEMS = [chain([(str(a), sign, str(b))]) for a in range(2, 10) for sign in "+*" for b in range(2, 10)]


def learned_chat():
    task = CalculatorTask()
    return Chat.learn([task.demonstrate(problem) for problem in PROBLEMS], vocab_size=400)


def call(expression):
    return Turn(role="assistant", tool_calls=[ToolCall("calculator", {"expression": expression})])


class ScriptedEngine:
    """A policy that writes given turns: one list of turns for each prompt, in the order of the first call."""

    def __init__(self, chat, scripts):
        self.chat = chat
        self.scripts = [list(script) for script in scripts]
        self.prompts = []

    exact = True

    def sync(self, model, version):
        pass

    def complete(self, prompts, max_new, temperature):
        self.prompts.append([list(prompt) for prompt in prompts])
        playing = [script for script in self.scripts if script]
        return [self._written(script.pop(0), max_new) for script in playing[: len(prompts)]]

    def _written(self, turn, max_new):
        ids, mask = self.chat.encode_demonstration([Turn(role="user", content="?"), turn])
        written = [i for i, m in zip(ids, mask, strict=True) if m][:max_new]
        return Completion(written, [-0.5] * len(written))


class OddLengthTask:
    """Rewards a turn of odd length: an untrained policy succeeds half of the time, so there is something to learn."""

    tools = ()
    concurrency = 1

    def opening(self, problem):
        return [Turn(role="user", content=str(problem))]

    def respond(self, problem, turns):
        return []

    def grade(self, problem, turns):
        return Grade(float(len(turns[-1].content) % 2), {"length": float(len(turns[-1].content))})

    def demonstrate(self, problem):
        return [*self.opening(problem), Turn(role="assistant", content="1")]


@dataclass
class RecordingRun:
    rows: list = field(default_factory=list)  # (step, metrics)
    trajectories: list = field(default_factory=list)  # (step, trajectory)
    alerts: list = field(default_factory=list)  # (title, text, level)
    checkpoints: list = field(default_factory=list)  # (file name, step, facts)

    def log(self, data, *, step=None):
        # Tables have no equality; their rows have.
        self.rows.append((step, {k: v.data if isinstance(v, Table) else v for k, v in data.items()}))

    def log_trajectory(self, trajectory, step=None):
        self.trajectories.append((step, trajectory))

    def log_checkpoint(self, path, step=None, **facts):
        self.checkpoints.append((path.name, step, facts))

    def alert(self, title, text, level=None):
        self.alerts.append((title, text, level))


class SayingProgress(Progress):
    """Keeps what is said."""

    def __init__(self):
        super().__init__("test")
        self.said = []

    def say(self, text):
        self.said.append(text)


# The calculator's recipe at its smallest: with the problems below there is something to learn after seconds.
SMALL = {
    "steps": 8,
    "rollouts_per_step": 4,
    "group_size": 4,
    "train_batch_size": 8,
    "eval_size": 8,
    "eval_interval": 2,
    "checkpoint_interval": 2,
    "warmup_problems": 20,
    "warmup_max_steps": 60,
    "warmup_target": 2,
    "temperature": 0.7,
    "hidden": 32,
    "layers": 1,
    "lr": 3e-3,
    "threads": 1,
    "trajectory_table": "off",
}


def small_training(directory, recipe, name, *more, launcher=(), **settings):
    """Return the command of a training of that size below `directory`, and its environment.

    Its problems all have the answer 50: even the smallest policy is soon right, now and then.
    """
    problems = directory / "train.jsonl"
    problems.write_text("".join(f'{{"answer": "<<{a}+{50 - a}=50>>"}}\n' for a in range(1, 50)))
    command = [
        sys.executable, *launcher, "-m", "trainer", "train", recipe, "--run-name", name,
        "--root", str(directory / "runs"), "--output-dir", str(directory / name), "--data", str(problems),
        *(f"--set={key}={value}" for key, value in {**SMALL, **settings}.items()), *more,
    ]  # fmt: skip
    env = {**os.environ, "HOME": str(directory), "OMP_NUM_THREADS": "1", "WANDB_CONSOLE": "off"}
    return command, env


def logprobs_of(model, prompts, completions, temperature, pad_id):
    """Return the log-probs of the training forward, and those that the engine recorded, side by side."""
    batch = make_batch(
        [
            Trajectory(
                turns=[],
                token_ids=[*prompt, *completion.token_ids],
                mask=[0] * len(prompt) + [1] * len(completion.token_ids),
                logprobs=completion.logprobs,
            )
            for prompt, completion in zip(prompts, completions, strict=True)
        ],
        pad_id,
    )
    with torch.no_grad():
        return token_logprobs(model, batch.token_ids_BT, batch.mask_BT, temperature), batch.old_BT
