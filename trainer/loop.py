"""The GRPO loop: one path from rollout to loss, read from top to bottom.

    problems ─ rollout ─▶ trajectories ─ rewards ─▶ advantages ─ batch ─▶ loss ─▶ optimiser step ─▶ a row of the log

Steps.  A *global step* is one optimiser step, and one row of the log: `run.log(row, step=global_step)`, which also
holds `global_step`. A rollout batch takes `updates_per_step` of them (one, unless `train_batch_size` or
`epochs_per_step` ask for more). Its first row holds `rollouts/*` and `batch_returns/*`, and, when due, the evaluation of
the policy *before* that update and the mark of the checkpoint that holds it. So `eval/reward` at step n is the reward
after n updates; step 0 is the warmed-up policy. One last row, after the last update, holds `final/*`.

Invariants
----------
* A row is logged by one call, before the checkpoint that covers it. A step that a crash made the loop do again gives
  the same numbers, and W&B's step rule drops the repeated row: nothing is lost, nothing is shown twice.
* Groups whose rewards are all equal are left out of the loss (`batch_returns/zero_std_group_fraction` counts them). An
  optimiser step without trajectories, or with a loss or gradient that is not finite, is skipped; its row is logged
  without `training_step/*`, and `training/invalid_loss_count` counts the second kind.
* `State` is everything that the next step depends on. The order of the problems is a function of seed and step.
* The network, the sync daemon and a full disk cannot stop it: a checkpoint that cannot be written is reported and
  tried again at the next interval.

The warm-up, the command line and the choice of problems are elsewhere.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from eventlog import Table, Trajectory
from trainer import checkpoint, collectors
from trainer.algorithms import group_advantages, grpo_loss, k3
from trainer.batch import Batch, make_batch, shards
from trainer.chat import Chat
from trainer.collectors import Metrics, Totals, UpdateStats
from trainer.config import Settings
from trainer.policy.transformers import TransformersEngine, token_logprobs
from trainer.rollout import Limits, play
from trainer.tasks import Task
from trainer.warmup import WarmupPoint

# Trajectories of one forward and backward pass; the gradients of an optimiser step add up over them.
MICRO_BATCH_SIZE = 48


class Run(Protocol):
    """What the loop asks of `eventlog.init()`'s answer."""

    def log(self, data: Mapping[str, Any], *, step: int | None = None) -> None: ...

    def log_trajectory(self, trajectory: Trajectory, *, step: int | None = None) -> None: ...


@dataclass(frozen=True)
class Problems:
    """The problems of a training, in three parts that share none."""

    warmup: Sequence[Any]
    train: Sequence[Any]
    held_out: Sequence[Any]
    source: str  # in words, for the console and the config
    fingerprint: str  # equal for equal problems


@dataclass
class State:
    """What a checkpoint holds, and all that the next step depends on, with the random generators."""

    chat: Chat
    model: Any
    reference: Any  # the policy at the end of the warm-up: the KL is measured from it
    optimiser: torch.optim.Optimizer
    totals: Totals = field(default_factory=Totals)
    warmup: list[WarmupPoint] = field(default_factory=list)
    reward_before: float | None = None
    saved_at: int | None = None  # the global step whose checkpoint is on disk

    @classmethod
    def start(cls, chat: Chat, model: Any, lr: float, warmup: list[WarmupPoint]) -> State:
        return cls(
            chat=chat,
            model=model,
            reference=copy.deepcopy(model).requires_grad_(False),
            optimiser=torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0),
            warmup=warmup,
        )


def to_checkpoint(state: State) -> dict[str, Any]:
    return {
        "tokenizer": state.chat.to_json(),
        "model": state.model.state_dict(),
        "reference": state.reference.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "totals": asdict(state.totals),
        "warmup": [asdict(point) for point in state.warmup],
        "reward_before": state.reward_before,
        "saved_at": state.saved_at,
        "random": checkpoint.random_states(),
    }


def from_checkpoint(saved: Mapping[str, Any], build: Callable[[int], Any], lr: float) -> State:
    """Rebuild the state; `build` makes a model for a vocabulary size. Restores the random generators too."""
    chat = Chat.from_json(saved["tokenizer"])
    state = State.start(chat, build(chat.vocab_size), lr, [WarmupPoint(**p) for p in saved["warmup"]])
    state.model.load_state_dict(saved["model"])
    state.reference.load_state_dict(saved["reference"])
    state.optimiser.load_state_dict(saved["optimiser"])
    state.totals = Totals(**saved["totals"])
    state.reward_before = saved["reward_before"]
    state.saved_at = saved["saved_at"]
    checkpoint.restore_random_states(saved["random"])
    return state


# --- the path -------------------------------------------------------------------------------------------------------


def train(
    run: Run,
    settings: Settings,
    task: Task,
    problems: Problems,
    state: State,
    checkpoints: Path,
    say: Callable[[str], None],
) -> float:
    """Train until `settings.steps` rollout batches are done; return the held-out reward at the end."""
    engine = TransformersEngine(state.model, end_id=state.chat.end_id, pad_id=state.chat.pad_id)
    evaluate = functools.partial(
        evaluate_greedily, problems.held_out, task, state.chat, engine, limits_of(settings)
    )
    _save_if_due(state, settings, checkpoints, say)
    while state.totals.batches < settings.steps:
        started_s = time.perf_counter()
        row = _opening_row(state, settings, evaluate)
        trajectories = _rollout(settings, task, problems.train, state, engine)
        for trajectory in trajectories:
            run.log_trajectory(trajectory, step=state.totals.batches * settings.updates_per_step)
        batch = make_batch(trajectories, state.chat.pad_id)
        reference_BT = _reference_logprobs(settings, state, batch)
        row |= _rollout_row(state, trajectories, batch, reference_BT)
        _update(
            run, settings, state, batch, reference_BT, {**row, **trajectory_table(settings, trajectories)}
        )
        engine.sync(state.model)
        say(_step_line(state, settings, row, time.perf_counter() - started_s))
        _save_if_due(state, settings, checkpoints, say)

    step = state.totals.batches * settings.updates_per_step
    at_end = evaluate()
    row = {"global_step": step, **_mark(state, step), **at_end, **collectors.final_metrics(state.totals)}
    run.log(row, step=step)
    return at_end["eval/reward"]


def trajectory_table(settings: Settings, trajectories: Sequence[Trajectory]) -> dict[str, Table]:
    """Return what W&B shows of a rollout batch's trajectories; all of them are in the log, whatever is shown there."""
    if settings.trajectory_table == "off":
        return {}
    newest = None if settings.trajectory_table == "all" else -settings.trajectory_table_rows
    table = Table(columns=["id", "group", "reward", "advantage", "transcript"])
    for trajectory in trajectories[slice(newest, None)]:
        transcript = "\n".join(f"{turn.role}: {turn.content}" for turn in trajectory.turns)
        table.add_data(trajectory.id, trajectory.group, trajectory.reward, trajectory.advantage, transcript)
    return {"trajectories": table}


def _rollout(
    settings: Settings, task: Task, problems: Sequence[Any], state: State, engine: TransformersEngine
) -> list[Trajectory]:
    """Play a group for each problem of this step, and give each trajectory its advantage."""
    batch_step = state.totals.batches
    chosen = problems_of_step(batch_step, settings.rollouts_per_step, len(problems), settings.seed)
    episodes = [problems[i] for i in chosen for _ in range(settings.group_size)]
    trajectories = play(
        episodes, task, state.chat, engine, limits_of(settings), temperature=settings.temperature
    )
    rewards_GK = torch.tensor([t.reward for t in trajectories]).view(-1, settings.group_size)
    advantages = group_advantages(rewards_GK).flatten().tolist()
    for i, (trajectory, advantage) in enumerate(zip(trajectories, advantages, strict=True)):
        group, member = divmod(i, settings.group_size)
        # The same names when a step is done again: a reader can tell a repetition from a new trajectory.
        trajectory.group = f"{batch_step}.{group}"
        trajectory.id = f"{batch_step}.{group}.{member}"
        trajectory.advantage = advantage
    return trajectories


def _update(
    run: Run, settings: Settings, state: State, batch: Batch, reference_BT: Tensor, opening: Mapping[str, Any]
) -> None:
    """Learn from one rollout batch, and log a row after each optimiser step, the first with what opens it."""
    step = state.totals.batches * settings.updates_per_step
    state.totals = replace(state.totals, batches=state.totals.batches + 1)
    learning = batch.advantages_B.nonzero()[:, 0]
    row = dict(opening)
    for _ in range(settings.epochs_per_step):
        shuffled = learning[torch.randperm(len(learning))].tolist()
        updates: list[UpdateStats] = []
        for number, shard in enumerate(shards(shuffled, settings.shards_per_epoch), start=1):
            update = _optimiser_step(settings, state, batch, reference_BT, shard)
            updates += [update] if update else []
            row |= collectors.update_metrics(update)
            row |= {"global_step": step, "training/invalid_loss_count": state.totals.invalid_losses}
            if number == settings.shards_per_epoch:
                row |= collectors.epoch_metrics(updates)
            run.log(row, step=step)
            step, row = step + 1, {}


def _optimiser_step(
    settings: Settings, state: State, batch: Batch, reference_BT: Tensor, rows: Sequence[int]
) -> UpdateStats | None:
    """Take one clipped gradient step on these rows of the batch; None if there is nothing sound to step on."""
    if not rows:
        return None
    state.optimiser.zero_grad()
    loss = kl = 0.0
    for part in batch.micro_batches(rows, MICRO_BATCH_SIZE):
        micro = batch.of(part)
        width = micro.mask_BT.shape[1]
        micro_loss = grpo_loss(
            token_logprobs(state.model, micro.token_ids_BT, micro.mask_BT, settings.temperature),
            micro.old_BT,
            reference_BT[part, :width],
            micro.advantages_B,
            micro.mask_BT,
            clip=settings.clip_eps,
            kl_weight=settings.kl_weight,
        )
        share = len(part) / len(rows)
        (micro_loss.total * share).backward()
        loss += micro_loss.total.item() * share
        kl += micro_loss.kl_sum.item()
    kl /= batch.mask_BT[rows].sum().item()
    grad_norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), settings.max_norm).item()
    if not math.isfinite(loss) or not math.isfinite(grad_norm):
        state.totals = replace(state.totals, invalid_losses=state.totals.invalid_losses + 1)
        return None
    state.optimiser.step()
    state.totals = replace(state.totals, optimiser_steps=state.totals.optimiser_steps + 1)
    return UpdateStats(loss, kl, grad_norm, state.optimiser.param_groups[0]["lr"])


def _reference_logprobs(settings: Settings, state: State, batch: Batch) -> Tensor:
    reference_BT = torch.zeros_like(batch.old_BT)
    with torch.no_grad():
        for part in batch.micro_batches(range(len(batch)), MICRO_BATCH_SIZE):
            micro = batch.of(part)
            reference_BT[part, : micro.mask_BT.shape[1]] = token_logprobs(
                state.reference, micro.token_ids_BT, micro.mask_BT, settings.temperature
            )
    return reference_BT


# --- beside the path ------------------------------------------------------------------------------------------------


def problems_of_step(batch_step: int, n: int, n_problems: int, seed: int) -> list[int]:
    """Return which problems this step trains on: each once in an epoch, in an order of the epoch's own.

    A function of its arguments, so that a resumed run needs no sampler's state.

    >>> problems_of_step(0, 2, 4, seed=0) + problems_of_step(1, 2, 4, seed=0)
    [0, 2, 1, 3]
    """
    places = [divmod(place, n_problems) for place in range(batch_step * n, (batch_step + 1) * n)]
    orders = {
        epoch: random.Random(f"problems {seed} {epoch}").sample(range(n_problems), n_problems)
        for epoch, _ in places
    }
    return [orders[epoch][place] for epoch, place in places]


def limits_of(settings: Settings) -> Limits:
    return Limits(settings.max_turns, settings.max_new_tokens, settings.max_length)


def evaluate_greedily(
    problems: Sequence[Any], task: Task, chat: Chat, engine: TransformersEngine, limits: Limits
) -> Metrics:
    """Return `eval/*` of greedy decoding; draws nothing from the random generators."""
    return collectors.eval_metrics(play(problems, task, chat, engine, limits, temperature=0.0))


def _opening_row(state: State, settings: Settings, evaluate: Callable[[], Metrics]) -> Metrics:
    """Return what the first row of a rollout batch says about the policy before it."""
    batch_step = state.totals.batches
    row = _mark(state, batch_step * settings.updates_per_step) | _warmup_point(
        state, batch_step, settings.steps
    )
    if batch_step % settings.eval_interval == 0:
        row |= evaluate()
        if batch_step == 0:
            state.reward_before = row["eval/reward"]
    return row


def _rollout_row(
    state: State, trajectories: Sequence[Trajectory], batch: Batch, reference_BT: Tensor
) -> Metrics:
    """Count these trajectories, and return what the first row says about them."""
    state.totals = state.totals.with_rollouts(trajectories)
    kl_N = k3(batch.old_BT, reference_BT)[batch.mask_BT.bool()]
    return {
        **collectors.rollout_metrics(trajectories, kl_N.tolist(), state.totals),
        **collectors.batch_return_metrics(trajectories),
        "system/replay_buffer_size": int(batch.advantages_B.count_nonzero()),
        **_gpu_memory(),
    }


def _mark(state: State, step: int) -> Metrics:
    """Return `checkpoint/*` if the checkpoint of the state before this step is on disk.

    It is said by the row that follows the checkpoint, so that it is true when it is said.
    """
    return {"checkpoint/saved": 1, "checkpoint/step": step} if state.saved_at == step else {}


def _warmup_point(state: State, batch_step: int, n_rows: int) -> Metrics:
    """Return the point of the warm-up's curve that this row carries.

    W&B's steps only grow, and 0 is the first: a row logged during the warm-up would take step 0, and after a crash the
    real row 0 would be dropped as repeated. So the curve rides on the first rows, over its own axis `warmup/step`;
    if it has more points than there are rows, it is thinned, and its last point is kept.
    """
    n_points = min(len(state.warmup), n_rows)
    if batch_step >= n_points:
        return {}
    point = state.warmup[(batch_step + 1) * len(state.warmup) // n_points - 1]
    return {"warmup/step": point.step, "warmup/loss": point.loss, "warmup/reward": point.reward}


def _gpu_memory() -> Metrics:
    if not torch.cuda.is_available():
        return {}
    return {
        "system/gpu_memory_allocated_gb": torch.cuda.memory_allocated() / 2**30,
        "system/gpu_memory_reserved_gb": torch.cuda.memory_reserved() / 2**30,
    }


def _save_if_due(state: State, settings: Settings, checkpoints: Path, say: Callable[[str], None]) -> None:
    done = state.totals.batches
    step = done * settings.updates_per_step
    if state.saved_at == step or not (done % settings.checkpoint_interval == 0 or done == settings.steps):
        return
    saved_before, state.saved_at = state.saved_at, step
    try:
        checkpoint.save(checkpoints, step, to_checkpoint(state))
    except OSError as error:
        state.saved_at = saved_before
        say(
            f"the checkpoint before step {step} was not written ({error}); training goes on, the last one still serves."
        )


def _step_line(state: State, settings: Settings, row: Metrics, step_s: float) -> str:
    parts = [
        f"step {state.totals.batches}/{settings.steps}",
        f"reward {row['rollouts/returns_mean']:.3f}",
        f"kl {abs(row['rollouts/kl_mean']):.3f}",  # k3 is never negative, but its rounding can be
        f"{step_s:.1f} s",
    ]
    if "eval/reward" in row:
        parts.append(f"held-out before it: {row['eval/reward']:.3f}")
    return "   ".join(parts)
