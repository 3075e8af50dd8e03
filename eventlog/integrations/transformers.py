"""Logs what the `Trainer` of transformers reports, and the trajectories of TRL's GRPO and RLOO trainers.

    Trainer(…, callbacks=[EventlogCallback()])
        on_log ──▶ train/… eval/… test/… over train/global_step, as transformers' own callback for W&B names them
        on_step_end ──▶ Run.should_stop; with TRL one trajectory for each completion

Invariants
----------
* One callback, one run. It is the run that is active, else one that this begins. That one stays open when `train`,
  `evaluate` or `predict` is over, as with transformers' own callback: for what the script itself logs then. It ends with the
  process, or when another callback's training begins.
* Only the first process of all logs, unless `upload_ranks` is "all"; trajectories come from the first process alone,
  which has those of all.
* All processes stop at the same step.
* The trainer is only looked at: nothing of it is replaced, wrapped or changed but `control`.
"""

from __future__ import annotations

import math
import numbers
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from eventlog.artifact import Artifact
from eventlog.integrations.held import HeldRun, said_if_it_fails
from eventlog.not_yet import say_once
from eventlog.run import Run
from eventlog.trajectory import ToolCall, Trajectory, Turn

if TYPE_CHECKING:
    TrainerCallback = object
else:
    from transformers import TrainerCallback

_DEFAULT_PROJECT = "huggingface"
_PREFIXES = {"eval_": "eval/", "test_": "test/"}
# The Trainer says these once, at the end: they are results, not curves.
_SUMMARY = frozenset(
    {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}
)
_LOG_MODELS = ("false", "end", "checkpoint")


class EventlogCallback(TrainerCallback):
    """Logs a `Trainer`'s run.  `options` are those of `eventlog.init`, for when it has to begin one.

    `log_model` is "false", "checkpoint" (each checkpoint becomes an artifact) or "end" (the final model does); without
    it, WANDB_LOG_MODEL says so.
    """

    def __init__(
        self,
        *,
        run: Run | None = None,
        log_model: str | None = None,
        upload_ranks: str | None = None,
        **options: Any,
    ) -> None:
        self._log_model = (log_model or os.environ.get("WANDB_LOG_MODEL") or "false").lower()
        if self._log_model not in _LOG_MODELS:
            raise ValueError(f"log_model is one of {', '.join(_LOG_MODELS)}, not {self._log_model!r}.")
        upload_ranks = upload_ranks or os.environ.get("EVENTLOG_UPLOAD_RANKS")
        self._logs_all_ranks = upload_ranks == "all"
        self._options = {**options, "upload_ranks": upload_ranks}
        self._held = HeldRun(run)
        self._is_training = False
        self._completions = _Completions()

    @property
    def run(self) -> Run | None:
        """The run that is logged to just now."""
        return self._held.current

    # ── events of the Trainer ────────────────────────────────────────────────────────────────────────────────

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        if state.is_hyper_param_search:
            # Each trial is a run of its own.
            self._held.forget()
        self._is_training = True
        self._enter(args, state, model)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._log_completions(args, state, "train", state.global_step)
        if self._is_stopped(args, state):
            control.should_training_stop = True

    def on_substep_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        # The step that these are for has no number yet.
        self._log_completions(args, state, "train", state.global_step + 1)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._log_completions(args, state, "eval", state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, model: Any = None, logs: Any = None, **others: Any
    ) -> None:
        run = self._enter(args, state, model)
        if run is None or not logs:
            return
        run.summary.update({name: value for name, value in logs.items() if name in _SUMMARY})
        row = as_wandb_names({name: value for name, value in logs.items() if name not in _SUMMARY})
        run.log({**row, "train/global_step": state.global_step})

    def on_evaluate(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._leave_unless_training()

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any = None, **others: Any) -> None:
        run = self._enter(args, state, others.get("model"))
        if run is not None and metrics:
            run.log(as_wandb_names(metrics))
        self._leave_unless_training()

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        run = self.run
        if self._log_model == "checkpoint" and run is not None and state.is_world_process_zero:
            directory = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
            aliases = [f"epoch_{round(state.epoch or 0, 2)}", f"checkpoint_global_step_{state.global_step}"]
            with said_if_it_fails("a checkpoint"):
                # A trial of a search, say, has its checkpoints elsewhere.
                os.stat(directory)
                _log_artifact(run, args, directory, aliases, {})

    def on_train_end(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        processing_class: Any = None,
        **others: Any,
    ) -> None:
        self._is_training = False
        if self._log_model == "end" and self.run is not None and state.is_world_process_zero:
            self._log_final_model(self.run, args, state, model, processing_class)
        self._leave_unless_training()

    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────

    def _enter(self, args: Any, state: Any, model: Any) -> Run | None:
        """Return the run to log to, begun or continued if need be; None if this process logs nothing."""
        if not (state.is_world_process_zero or self._logs_all_ranks):
            return None
        return self._held.enter(
            lambda: self._options_of(args, state), lambda run: _describe(run, args, model)
        )

    def _options_of(self, args: Any, state: Any) -> dict[str, Any]:
        options = {"project": os.environ.get("WANDB_PROJECT") or _DEFAULT_PROJECT, **self._options}
        if state.trial_name is not None:
            options.update(name=state.trial_name, group=args.run_name or args.output_dir)
        elif args.run_name is not None:
            options.setdefault("name", args.run_name)
        if state.global_step and options.get("resume") is None and not os.environ.get("WANDB_RESUME"):
            # The training goes on from a checkpoint: with an id, the run goes on as well.
            options["resume"] = "allow"
        return options

    def _leave_unless_training(self) -> None:
        if not self._is_training:
            self._held.leave()

    def _is_stopped(self, args: Any, state: Any) -> bool:
        """Say whether somebody pressed Stop: on all processes at the same step, or those left would wait for ever."""
        wants = self.run is not None and self.run.should_stop
        if args.world_size <= 1:
            return wants
        if state.global_step % max(1, int(state.logging_steps)):
            # The question costs a message to all: it is asked as often as there is something to log.
            return False
        import torch

        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            say_once("Stop, pressed on the run's page,", "is not obeyed here: the processes cannot be told.")
            return False
        answer = torch.tensor(int(wants), device=args.device)
        torch.distributed.all_reduce(answer, op=torch.distributed.ReduceOp.MAX)
        return bool(answer.item())

    # ── artifacts ────────────────────────────────────────────────────────────────────────────────────────────

    def _log_final_model(self, run: Run, args: Any, state: Any, model: Any, processing_class: Any) -> None:
        if (
            getattr(args, "fsdp", None)
            or getattr(args, "deepspeed", None)
            or not hasattr(model, "save_pretrained")
        ):
            say_once(
                'log_model="end"',
                'does nothing for a sharded model, or one that has no save_pretrained(): use log_model="checkpoint".',
            )
            return
        metadata: dict[str, Any] = {"final_model": True}
        if args.load_best_model_at_end:
            metadata[f"eval/{args.metric_for_best_model}"] = state.best_metric
        with said_if_it_fails("the final model"), tempfile.TemporaryDirectory() as directory:
            model.save_pretrained(directory)
            if hasattr(processing_class, "save_pretrained"):
                processing_class.save_pretrained(directory)
            _log_artifact(run, args, directory, ["final_model"], metadata)

    # ── trajectories ─────────────────────────────────────────────────────────────────────────────────────────

    def _log_completions(self, args: Any, state: Any, split: str, global_step: int) -> None:
        if state.is_world_process_zero and self._completions.may_come(self, args):
            for trajectory in self._completions.new(global_step, split):
                run = self._enter(args, state, None)
                assert run is not None, "the first process of all logs"
                # They belong to the row that the Trainer reports next.
                run.log_trajectory(trajectory)


def _describe(run: Run, args: Any, model: Any) -> None:
    config = {**_config_of(model), **args.to_dict()}
    parameters = getattr(model, "num_parameters", None)
    if callable(parameters):
        config["model/num_parameters"] = parameters()
    run.config.update(config, allow_val_change=True)
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step", step_sync=True)


def _log_artifact(run: Run, args: Any, directory: str, aliases: list[str], metadata: dict[str, Any]) -> None:
    numbers_ = {
        name: value
        for name, value in run.summary.items()
        if isinstance(value, numbers.Number) and not name.startswith("_")
    }
    named = args.run_name is not None and args.run_name != args.output_dir
    name = _fit_for_artifact(f"model-{run.name if named else run.id}")
    parameters = run.config.get("model/num_parameters")
    artifact = Artifact(name, "model", metadata={**numbers_, "model/num_parameters": parameters, **metadata})
    artifact.add_dir(directory)
    run.log_artifact(artifact, aliases=aliases)


def as_wandb_names(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics under the names that transformers gives them in W&B."""
    renamed = {}
    for name, value in logs.items():
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
        renamed[_PREFIXES.get(prefix, "train/") + name.removeprefix(prefix)] = value
    return renamed


def _config_of(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    peft_config = getattr(model, "peft_config", None)
    if peft_config is not None:
        found["peft_config"] = {
            name: each.to_dict() if hasattr(each, "to_dict") else each
            for name, each in dict(peft_config).items()
        }
    config = getattr(model, "config", None)
    if config is not None:
        found.update(config if isinstance(config, dict) else config.to_dict())
    return found


def _fit_for_artifact(name: str) -> str:
    return "".join(char if char.isascii() and (char.isalnum() or char in "_.-") else "-" for char in name)[
        :128
    ]


# ── what TRL's trainers keep of their completions ────────────────────────────────────────────────────────────


class _Completions:
    """Finds the completions that a trainer of TRL has made since the last look.

    TRL keeps the latest generation batch for its own tables (`_logs`: prompts, completions, rewards by function,
    advantages), gathered from all processes, groups one after the other. A callback is not told which trainer calls it,
    but is called by it.
    """

    def __init__(self) -> None:
        self._trainer: weakref.ref[Any] | None = None
        self._has_looked = False
        # A list of advantages is made of new floats each time: the last one that was seen says what is new.
        self._last_seen: Any = None
        self._batch_of_step: tuple[str, int, int] = ("", -1, 0)

    def may_come(self, callback: Any, args: Any) -> bool:
        """Say whether the callback's trainer makes completions."""
        if not self._has_looked:
            self._has_looked = True
            trainer = _caller_with(callback)
            if trainer is not None and _keeps_completions(trainer):
                self._trainer = weakref.ref(trainer)
            elif hasattr(args, "num_generations"):
                say_once(
                    "log_trajectory",
                    "gets nothing of this trainer: it keeps no completions that are known here.",
                )
        return self._trainer is not None

    def new(self, global_step: int, split: str) -> Iterator[Trajectory]:
        trainer = self._trainer() if self._trainer is not None else None
        if trainer is None:
            return
        logs = trainer._logs
        advantages = list(logs["advantages"])
        begin = 0
        for at in range(len(advantages) - 1, -1, -1):
            if advantages[at] is self._last_seen:
                begin = at + 1
                break
        if begin == len(advantages):
            return
        self._last_seen = advantages[-1]
        batch = self._number_of_batch(global_step, split)
        size = getattr(trainer, "num_generations" if split == "train" else "num_generations_eval", None) or 1
        weights = _weights_of(trainer)
        columns = {name: list(values) for name, values in logs["rewards"].items()}
        # A column that was not given with every batch does not say which of them it was.
        extra = {
            name: list(values)
            for name, values in logs.get("extra", {}).items()
            if len(values) == len(advantages)
        }
        prompts, completions = list(logs["prompt"]), list(logs["completion"])
        for at in range(begin, min(len(advantages), len(prompts), len(completions))):
            group, member = divmod(at - begin, size)
            rewards = {name: values[at] for name, values in columns.items() if at < len(values)}
            yield Trajectory(
                id=f"{split}.{global_step}.{batch}.{group}.{member}",
                group=f"{split}.{global_step}.{batch}.{group}",
                turns=[*_turns_of(prompts[at], "user"), *_turns_of(completions[at], "assistant")],
                reward=_reward_of(rewards, weights),
                advantage=advantages[at],
                metrics={name: value for name, value in rewards.items() if not math.isnan(value)},
                info={
                    "split": split,
                    "global_step": global_step,
                    **{name: values[at] for name, values in extra.items()},
                },
            )

    def _number_of_batch(self, global_step: int, split: str) -> int:
        last_split, last_step, number = self._batch_of_step
        number = number + 1 if (last_split, last_step) == (split, global_step) else 0
        self._batch_of_step = (split, global_step, number)
        return number


def _caller_with(callback: Any) -> Any:
    """Return the trainer that is calling `callback`, or None."""
    from transformers import Trainer

    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer) and any(
            each is callback for each in caller.callback_handler.callbacks
        ):
            return caller
        frame = frame.f_back
    return None


def _keeps_completions(trainer: Any) -> bool:
    logs = getattr(trainer, "_logs", None)
    return isinstance(logs, Mapping) and {"prompt", "completion", "rewards", "advantages"} <= logs.keys()


def _weights_of(trainer: Any) -> dict[str, float]:
    names = getattr(trainer, "reward_func_names", None) or []
    weights = getattr(trainer, "reward_weights", None)
    return dict(zip(names, weights.tolist(), strict=False)) if weights is not None else {}


def _reward_of(rewards: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    """Return the weighted sum of what the reward functions gave; None if none of them judged."""
    judged = [weights.get(name, 1.0) * value for name, value in rewards.items() if not math.isnan(value)]
    return math.fsum(judged) if judged else None


def _turns_of(text_or_messages: Any, role: str) -> list[Turn]:
    if not isinstance(text_or_messages, (list, tuple)):
        return [Turn(role, str(text_or_messages))]
    turns: list[Turn] = []
    waiting: list[ToolCall] = []
    for message in text_or_messages:
        turn = _turn_of(message, role)
        turns.append(turn)
        if turn.role == "tool" and waiting:
            # Answers come in the order of the calls, unless they name theirs.
            named = next(
                (call for call in waiting if call.id is not None and call.id == turn.tool_call_id), waiting[0]
            )
            named.result = turn.content
            waiting.remove(named)
        elif turn.tool_calls:
            waiting = list(turn.tool_calls)
    return turns


def _turn_of(message: Any, role: str) -> Turn:
    if not isinstance(message, Mapping):
        return Turn(role, str(message))
    return Turn(
        str(message.get("role", role)),
        _text_of(message.get("content")),
        [_call_of(call) for call in message.get("tool_calls") or ()],
        message.get("tool_call_id"),
    )


def _text_of(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence):
        return "".join(_text_of_part(part) for part in content)
    return str(content)


def _text_of_part(part: Any) -> str:
    if not isinstance(part, Mapping):
        return str(part)
    return str(part["text"]) if "text" in part else f"[{part.get('type', 'part')}]"


def _call_of(call: Any) -> ToolCall:
    said = call.get("function", call) if isinstance(call, Mapping) else {}
    name = str(said.get("name", call))
    return ToolCall(name, said.get("arguments"), call.get("id") if isinstance(call, Mapping) else None)
