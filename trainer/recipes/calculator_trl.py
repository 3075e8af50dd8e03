"""The calculator's problems, trained by TRL's GRPOTrainer in place of our loop: the same start, task and names of metrics.

    warm-up ─▶ GRPOTrainer.train ── rollout_func ──▶ our `play`, on the policy that TRL trains
                   │  advantages, loss, clip, KL,            │
                   │  schedule, gradient steps  ◀── ids, mask, log-probs, rewards
                   └─ callbacks ─▶ one row of the log: our names, and TRL's own (`train/*`) by `EventlogCallback`,
                                   which logs the trajectories that are learnt from, too

Row n holds what row n of our loop holds: the evaluation of the policy before that update, its rollouts, its step.

What TRL says in another way, or cannot say
-------------------------------------------
* `training_step/loss` and `kl` are over all groups; our loop leaves out those whose rewards are equal. Over several
  micro-batches they are the mean of the micro-batches' means.
* `training_step/entropy` is the exact entropy of each token's distribution; our loop's is an estimate from the tokens drawn.
* `rollouts/kl_mean` is TRL's `kl` of the step: the policy that takes it is the one that sampled. With `kl_weight=0` TRL
  has no reference, and no KL is logged.
* `rollouts/kl_std`, `rollouts/kl_max` and the trajectories' `ref_logprobs`: TRL shows no KL token by token.
* `training/invalid_loss_count` is not logged: TRL takes a step whose loss is not finite like any other.
* A trajectory's token ids, mask, log-probs and counts stand in its `info`: TRL knows them as further columns of its table.

Invariants
----------
* `State` holds the model and the optimiser that TRL trains, so that `trainer eval` and `trainer bench` know its
  checkpoints. TRL's own state is in none of them: a run is not continued.
* One optimiser step for each rollout batch. Settings that TRL has no place for are refused.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from eventlog import Trajectory, Turn
from eventlog.integrations.transformers import EventlogCallback
from trainer import loop
from trainer.chat import END
from trainer.collectors import Metrics, UpdateStats
from trainer.collectors.grpo import epoch_metrics, update_metrics
from trainer.errors import SettingsError
from trainer.loop import Course, State
from trainer.models import save_pretrained
from trainer.recipes import calculator
from trainer.recipes.calculator import CalculatorSettings

if importlib.util.find_spec("trl") is None:
    raise SettingsError(
        "the recipe 'calculator_trl' needs `trl`, which is not installed. Install `trl>=1.16`, "
        "or train by the recipe 'calculator', which needs nothing more."
    )

# What only our loop does, and the value that asks for none of it.
OUR_LOOPS = {
    "model_name": "",
    "lora_rank": 0,
    "engine": "transformers",
    "train_batch_size": 0,
    "epochs_per_step": 1,
    "kl_estimator": "k3",
}


@dataclass(frozen=True)
class CalculatorTrlSettings(CalculatorSettings):
    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value in OUR_LOOPS.items():
            if getattr(self, key) != value:
                raise SettingsError(
                    f"setting {key!r} is {getattr(self, key)!r}, and TRL's trainer is given no such thing here: leave "
                    f"it at {value!r}, or train by the recipe 'calculator'."
                )


def train(course: Course, state: State) -> float | None:
    """Train until all rollout batches are done; return the held-out reward at the end."""
    course.engine.sync(state.model, state.totals.optimiser_steps)
    loop.save_if_due(course, state)
    episodes = _Episodes(course, state)
    rows = _Rows(course, state, episodes)
    _trainer(course, state, episodes, rows).train()
    return rows.reward_after


def _trainer(course: Course, state: State, episodes: _Episodes, rows: _Rows) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=state.chat.tokenizer,
        eos_token=END,
        pad_token=state.chat.tokenizer.id_to_token(state.chat.pad_id),
        padding_side="left",
    )
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        # That `rollout_func` is experimental, and what TRL's own defaults will be called one day.
        warnings.simplefilter("ignore")
        # TRL reads its reference from the files that the policy says it came from: here, those after the warm-up.
        save_pretrained(state.model, state.chat, Path(directory))
        state.model.config._name_or_path = directory
        trainer = GRPOTrainer(
            model=state.model,
            reward_funcs=episodes.task_reward,
            args=GRPOConfig(output_dir=str(course.checkpoints / "trl"), **arguments(course)),
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in episodes.prompts]),
            processing_class=tokenizer,
            # Ours first: what both log of a step is one row, which `EventlogCallback` closes.
            callbacks=[rows, EventlogCallback(run=course.run)],  # type: ignore[arg-type]
            optimizers=(state.optimiser, None),
            rollout_func=episodes.play,
        )
        state.model.config._name_or_path = ""
    trainer.remove_callback(PrinterCallback)
    return trainer


def arguments(course: Course) -> dict[str, Any]:
    """Return TRL's words for our settings."""
    settings = course.settings
    size = settings.trajectories_per_step
    micro = max(n for n in range(1, settings.micro_batch_size + 1) if size % n == 0)
    ramp = "constant_with_warmup" if settings.lr_ramp_steps else "constant"
    return {
        "max_steps": course.n_batches,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": size // micro,
        "num_generations": settings.group_size,
        "shuffle_dataset": False,  # the problems of a batch are chosen already
        "temperature": settings.temperature,
        "max_completion_length": settings.max_sampled_tokens,
        "loss_type": settings.variant,
        "scale_rewards": "none" if settings.variant == "dr_grpo" else "group",
        "beta": settings.kl_weight,
        "epsilon": settings.clip_eps,
        "epsilon_high": settings.clip_high_eps,
        "learning_rate": settings.lr,
        "lr_scheduler_type": ramp if settings.schedule == "constant" else settings.schedule,
        "warmup_steps": settings.lr_ramp_steps,
        "max_grad_norm": settings.max_norm,
        "seed": settings.seed,
        "logging_steps": 1,
        "save_strategy": "no",  # `State` is saved instead
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": course.compute.device.type == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
    }


# --- episodes ---------------------------------------------------------------------------------------------------------


class _Episodes:
    """TRL's rollout and reward functions: plays what TRL asks for, and keeps the newest batch for its row."""

    def __init__(self, course: Course, state: State) -> None:
        self._course, self._state = course, state
        self.trajectories: list[Trajectory] = []
        self.prompts: list[list[dict[str, Any]]] = []
        self._problems: dict[str, Any] = {}
        for batch_step in range(course.n_batches):
            n, seed = course.settings.rollouts_per_step, course.settings.seed
            for problem in course.problems.of_batch(batch_step, n, seed):
                self.prompts.append(_messages(course.task.opening(problem)))
                self._problems[_question(self.prompts[-1])] = problem
        self._trainer: Any = None

    def play(self, prompts: Sequence[list[dict[str, Any]]], trainer: Any) -> dict[str, Any]:
        """Return an episode for each prompt; TRL repeats the prompt of a group for each of its members."""
        course, settings, self._trainer = self._course, self._course.settings, trainer
        course.progress.generating(len(prompts) // settings.group_size)
        problems = [self._problems[_question(prompt)] for prompt in prompts]
        self.trajectories = loop.play_as(
            course, self._state, problems, "train", temperature=settings.temperature
        )
        begins = [t.mask.index(1) if any(t.mask) else len(t.mask) for t in self.trajectories]
        cut = list(zip(self.trajectories, begins, strict=True))
        # An episode that failed before its first token has nothing to learn, and TRL asks for a token nevertheless.
        nothing = [self._state.chat.end_id]
        return {
            "prompt_ids": [t.token_ids[:begin] for t, begin in cut],
            "completion_ids": [t.token_ids[begin:] or nothing for t, begin in cut],
            "logprobs": [_spread_out(t)[begin:] or [0.0] for t, begin in cut],
            "env_mask": [t.mask[begin:] or [0] for t, begin in cut],
            "trajectory": self.trajectories,
        }

    def task_reward(
        self,
        completions: list[list[dict[str, Any]]],
        trajectory: Sequence[Trajectory],
        log_extra: Callable[[str, list[Any]], None],
        **others: Any,
    ) -> list[float | None]:
        """Return the task's rewards; an episode that failed has none, and TRL learns nothing from it."""
        for completion, played in zip(completions, trajectory, strict=True):
            # TRL decodes all turns to one text, without their tags; what it keeps and logs is to be the conversation.
            n_given = next((i for i, turn in enumerate(played.turns) if turn.role == "assistant"), 0)
            completion[:] = _messages(played.turns[n_given:])
        for name in (
            *("token_ids", "mask", "logprobs", "prompt_tokens", "completion_tokens"),
            *("metrics", "stop_reason", "exception", "policy_version", "duration_s"),
        ):
            log_extra(name, [getattr(played, name) for played in trajectory])
        return [played.reward for played in trajectory]

    def with_advantages(self, global_step: int) -> list[Trajectory]:
        """Return the newest batch with what TRL made of it, under the names that `EventlogCallback` gives."""
        advantages = list(self._trainer._logs["advantages"])[-len(self.trajectories) :]
        size = self._course.settings.group_size
        for place, (trajectory, advantage) in enumerate(zip(self.trajectories, advantages, strict=True)):
            group, member = divmod(place, size)
            trajectory.group = f"train.{global_step}.0.{group}"
            trajectory.id = f"{trajectory.group}.{member}"
            trajectory.advantage = advantage
        return self.trajectories


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [
        {
            "role": turn.role,
            "content": turn.content,
            **({"tool_call_id": turn.tool_call_id} if turn.tool_call_id else {}),
            **({"tool_calls": [_call(call) for call in turn.tool_calls]} if turn.tool_calls else {}),
        }
        for turn in turns
    ]


def _call(call: Any) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _question(prompt: Sequence[Mapping[str, Any]]) -> str:
    return str(prompt[-1]["content"])


def _spread_out(trajectory: Trajectory) -> list[float]:
    """Return a log-prob for each token: 0 where it was given."""
    drawn = iter(trajectory.logprobs)
    return [next(drawn) if sampled else 0.0 for sampled in trajectory.mask]


# --- rows -------------------------------------------------------------------------------------------------------------


class _Rows(TrainerCallback):  # type: ignore[misc]
    """Logs TRL's numbers under our loop's names, with our evaluation and checkpoints between its steps."""

    def __init__(self, course: Course, state: State, episodes: _Episodes) -> None:
        self._course, self._state, self._episodes = course, state, episodes
        self._row: Metrics = {}
        self._started_s = 0.0
        self.reward_after: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._started_s = time.perf_counter()
        at = self._course.at(self._state.totals.batches)
        self._row = loop.opening_row(self._course, self._state, at)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._course.engine.sync(self._state.model, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        if "train_runtime" in logs:
            self._finish()
        else:
            self._update(logs, self._episodes.with_advantages(state.global_step))

    def _update(self, logs: Mapping[str, float], trajectories: list[Trajectory]) -> None:
        course, state, at = self._course, self._state, self._course.at(self._state.totals.batches)
        row = self._row | loop.rollout_row(course, state, at, trajectories, None, [])
        state.totals = replace(
            state.totals, batches=at.batch_step + 1, optimiser_steps=state.totals.optimiser_steps + 1
        )
        update = _stats(logs)
        row |= update_metrics(update) | epoch_metrics([update]) | {"global_step": at.global_step}
        for collector in course.watching:
            row |= collector.of_update(at, update, True)
        row |= {"rollouts/kl_mean": update.kl}
        if "kl" not in logs:
            row = {name: value for name, value in row.items() if "/kl" not in name}
        loop.log_row(course, row | loop.trajectory_table(course.settings, trajectories), at)
        course.progress.batch(at, row, trajectories, time.perf_counter() - self._started_s)
        loop.save_if_due(course, state)

    def _finish(self) -> None:
        self.reward_after = loop.log_the_end(self._course, self._state)


def _stats(logs: Mapping[str, float]) -> UpdateStats:
    return UpdateStats(
        policy=logs["loss"],  # with its KL part: TRL does not say how the sum is made up
        kl_part=0.0,
        kl=logs.get("kl", 0.0),
        clip_fraction=logs["clip_ratio/region_mean"],
        entropy=logs["entropy"],
        grad_norm=logs["grad_norm"],
        learning_rate=logs["learning_rate"],
    )


RECIPE = replace(
    calculator.RECIPE,
    name="calculator_trl",
    settings=CalculatorTrlSettings,
    # A step takes TRL three times as long as our loop: fewer of them, for about as many minutes.
    quick={**calculator.QUICK, "steps": 30},
    tags=("grpo", "trl"),
    train=train,
    resumes=False,
)
