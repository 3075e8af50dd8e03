"""The GRPO loop: one path from rollout to loss, read from top to bottom.

    problems ─ rollout ─▶ trajectories ─ rewards ─▶ advantages ─ batch ─▶ loss ─▶ optimiser step ─▶ a row of the log

Steps.  A *global step* is one optimiser step, and one row of the log: `run.log(row, step=global_step)`, which also
holds `global_step`. A rollout batch takes `updates_per_step` of them (one, unless `train_batch_size` or
`epochs_per_step` ask for more). Its first row holds what the rollout says, and, when due, the evaluation of the policy
*before* that update and the mark of the checkpoint that holds it. So `eval/reward` at step n is the reward after n
updates; step 0 is the policy before any. One last row, after the last update, holds `final/*`.

Invariants
----------
* A row is logged by one call, before the checkpoint that covers it. A step that a crash made the loop do again gives
  the same numbers, and neither its row nor its trajectories are logged again: nothing is lost, nothing is there twice.
* Groups whose rewards are all equal are left out of the loss (`batch_returns/zero_std_group_fraction` counts them). An
  optimiser step without trajectories, or with a loss or gradient that is not finite, is skipped; its row is logged
  without `training_step/*`, and `training/invalid_loss_count` counts the second kind.
* `State` is everything that the next step depends on. What a batch plays is a function of seed and batch.
* Ranks differ in the episodes that they play, and in nothing that decides: they skip, step and save together.
* The network, the sync daemon and a full disk cannot stop it: a checkpoint that cannot be written is reported and
  tried again at the next interval.

The warm-up, the command line and the choice of problems are elsewhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from eventlog import AlertLevel, Table, Trajectory
from trainer import checkpoint
from trainer.algorithms import (
    Objective,
    StepSize,
    group_advantages,
    importance_weights,
    k3,
    learning_rate_factor,
    policy_loss,
)
from trainer.batch import Batch, make_batch, of_each_trajectory, shards
from trainer.chat import Chat
from trainer.collectors import At, Collector, Metrics, UpdateStats, finished, mean
from trainer.collectors.grpo import (
    Totals,
    batch_return_metrics,
    epoch_metrics,
    eval_metrics,
    final_metrics,
    rollout_metrics,
    transcript,
    update_metrics,
)
from trainer.compute import Compute
from trainer.config import Settings
from trainer.models import Reference, restore_weights, weights_to_keep
from trainer.monitor import Monitor
from trainer.policy import Engine
from trainer.policy.transformers import token_logprobs
from trainer.problems import Problems
from trainer.progress import Progress
from trainer.rollout import Limits, play
from trainer.tasks import Task
from trainer.warmup import WarmupPoint


class Run(Protocol):
    """What the loop asks of `eventlog.init()`'s answer."""

    def log(self, data: Mapping[str, Any], *, step: int | None = None) -> None: ...

    def log_trajectory(self, trajectory: Trajectory, step: int | None = None) -> None: ...

    def log_checkpoint(self, path: Path, step: int | None = None, **facts: Any) -> None: ...

    def alert(self, title: str, text: str, level: AlertLevel | str | None = None) -> None: ...


@dataclass(frozen=True)
class Logged:
    """What the log already holds of steps that a resumed training does again."""

    next_step: int = 0
    trajectories: frozenset[str] = frozenset()


@dataclass
class State:
    """What a checkpoint holds, and all that the next step depends on, with the random generators."""

    chat: Chat
    model: Any
    reference: Reference
    optimiser: torch.optim.Optimizer
    totals: Totals = field(default_factory=Totals)
    warmup: list[WarmupPoint] = field(default_factory=list)
    reward_before: float | None = None
    best_reward: float | None = None  # of an evaluation
    saved_at: int | None = None  # the global step whose checkpoint is on disk

    @classmethod
    def start(cls, chat: Chat, model: Any, lr: float, warmup: list[WarmupPoint]) -> State:
        trained = [p for p in model.parameters() if p.requires_grad]
        return cls(
            chat=chat,
            model=model,
            reference=Reference(model),
            optimiser=torch.optim.AdamW(trained, lr=lr, weight_decay=0.0),
            warmup=warmup,
        )


@dataclass(frozen=True)
class Course:
    """What stays as it is during a training, and what it talks to."""

    run: Run
    settings: Settings
    task: Task
    problems: Problems
    engine: Engine
    checkpoints: Path
    progress: Progress
    collectors: Sequence[Collector] = ()
    compute: Compute = field(default_factory=Compute)
    monitor: Monitor = field(default_factory=Monitor)
    logged: Logged = field(default_factory=Logged)

    @property
    def watching(self) -> Sequence[Collector]:
        return (*self.collectors, self.monitor)

    @property
    def batches_per_epoch(self) -> int:
        return self.problems.batches_per_epoch(self.settings.rollouts_per_step)

    @property
    def n_batches(self) -> int:
        epochs = self.settings.epochs
        return epochs * self.batches_per_epoch if epochs else self.settings.steps

    @property
    def objective(self) -> Objective:
        settings = self.settings
        return Objective(
            settings.variant,
            settings.clip_eps,
            settings.clip_high_eps,
            settings.kl_weight,
            settings.kl_estimator,
        )

    def at(self, batch_step: int, update: int = 0) -> At:
        return At(
            batch_step * self.settings.updates_per_step + update,
            batch_step,
            self.batches_per_epoch,
            self.n_batches,
        )


def to_checkpoint(course: Course, state: State) -> dict[str, Any]:
    return {
        "tokenizer": None if course.settings.model_name else state.chat.to_json(),
        "model": weights_to_keep(course.settings, state.model),
        "reference": state.reference.state(),
        "optimiser": state.optimiser.state_dict(),
        "totals": asdict(state.totals),
        "warmup": [asdict(point) for point in state.warmup],
        "reward_before": state.reward_before,
        "best_reward": state.best_reward,
        "saved_at": state.saved_at,
        "collectors": [collector.state() for collector in course.watching],
        # Of each rank: they draw different samples.
        "random": course.compute.gather([checkpoint.random_states()]),
    }


def restore(course: Course, state: State, saved: Mapping[str, Any]) -> None:
    """Bring a state, and what watches it, to where `to_checkpoint` saw it; the random generators too."""
    restore_weights(course.settings, state.model, saved["model"])
    state.reference.restore(saved["reference"])
    state.optimiser.load_state_dict(saved["optimiser"])
    state.totals = Totals(**saved["totals"])
    state.warmup = [WarmupPoint(**point) for point in saved["warmup"]]
    state.reward_before, state.best_reward = saved["reward_before"], saved["best_reward"]
    state.saved_at = saved["saved_at"]
    for collector, kept in zip(course.watching, saved["collectors"], strict=True):
        collector.restore(kept)
    checkpoint.restore_random_states(saved["random"][course.compute.index])


# --- the path -------------------------------------------------------------------------------------------------------


def train(course: Course, state: State) -> float | None:
    """Train until all rollout batches are done; return the held-out reward at the end."""
    settings, compute, progress = course.settings, course.compute, course.progress
    course.engine.sync(state.model, state.totals.optimiser_steps)
    save_if_due(course, state)
    while state.totals.batches < course.n_batches:
        started_s = time.perf_counter()
        at = course.at(state.totals.batches)
        row = opening_row(course, state, at)
        mine = _rollout(course, state, at)
        batch: Batch | None = None
        drift_N: list[float] = []
        if any(t.token_ids for t in mine):
            batch, drift_N = _asked_again(course, state, make_batch(mine, state.chat.pad_id))
            for trajectory, values in zip(
                mine, of_each_trajectory(batch.reference_BT, batch.mask_BT), strict=True
            ):
                trajectory.ref_logprobs = values
        _log_trajectories(course, mine, at)
        trajectories = compute.gather(mine)
        row |= rollout_row(course, state, at, trajectories, batch, drift_N)
        _update(course, state, at, batch, {**row, **trajectory_table(settings, trajectories)})
        course.engine.sync(state.model, state.totals.optimiser_steps)
        progress.batch(at, row, trajectories, time.perf_counter() - started_s)
        save_if_due(course, state)

    return log_the_end(course, state)


def log_the_end(course: Course, state: State) -> float | None:
    """Log the row of the policy after its last update; return its held-out reward."""
    at = course.at(state.totals.batches)
    row = mark(state, at) | evaluate_and_keep(course, state, at) | final_metrics(state.totals)
    log_row(course, {"global_step": at.global_step, **row}, at)
    return row.get("eval/reward")


def evaluate(course: Course, state: State, at: At) -> Metrics:
    """Return what greedy decoding of the held-out problems says; draws nothing from the random generators."""
    course.progress.evaluating(at, len(course.problems.held_out))
    numbered = course.compute.share(list(enumerate(course.problems.held_out)))
    mine = play_as(course, state, [problem for _, problem in numbered], "eval", temperature=0.0)
    for (number, _), trajectory in zip(numbered, mine, strict=True):
        trajectory.id = trajectory.group = f"eval.{at.global_step}.{number}"
    _log_trajectories(course, mine, at)
    trajectories = course.compute.gather(mine)
    row = eval_metrics(trajectories)
    for collector in course.watching:
        row |= collector.of_evaluation(at, trajectories)
    course.progress.evaluated(at, row)
    return row


def play_as(
    course: Course, state: State, problems: Sequence[Any], split: str, *, temperature: float
) -> list[Trajectory]:
    """Play an episode of each problem; the trajectories say what for, and by which policy."""
    trajectories = play(
        problems,
        course.task,
        state.chat,
        course.engine,
        limits_of(course.settings),
        temperature=temperature,
        concurrency=course.settings.concurrency,
    )
    for trajectory in trajectories:
        trajectory.policy_version = state.totals.optimiser_steps
        trajectory.info = {**trajectory.info, "split": split}
    return trajectories


def limits_of(settings: Settings) -> Limits:
    return Limits(settings.max_turns, settings.max_new_tokens, settings.max_length)


def opening_row(course: Course, state: State, at: At) -> Metrics:
    """Return what the first row of a rollout batch says about the policy before it."""
    row = mark(state, at) | _warmup_point(state, at)
    if at.batch_step % course.settings.eval_interval == 0:
        row |= evaluate_and_keep(course, state, at)
        if at.batch_step == 0:
            state.reward_before = row.get("eval/reward")
    return row


def evaluate_and_keep(course: Course, state: State, at: At) -> Metrics:
    """Evaluate, and keep the policy if it is the best so far."""
    row = evaluate(course, state, at)
    reward = row.get("eval/reward")
    if reward is not None and (state.best_reward is None or reward > state.best_reward):
        state.best_reward = reward
        _try_to_save(course, state, at.global_step, best=True)
    return row


def _rollout(course: Course, state: State, at: At) -> list[Trajectory]:
    """Play a group for each problem of this rank, and give each trajectory its advantage."""
    settings, size = course.settings, course.settings.group_size
    problems = course.problems.of_batch(at.batch_step, settings.rollouts_per_step, settings.seed)
    numbered = course.compute.share(list(enumerate(problems)))
    course.progress.generating(len(problems))
    episodes = [problem for _, problem in numbered for _ in range(size)]
    trajectories = play_as(course, state, episodes, "train", temperature=settings.temperature)
    for place, (number, _) in enumerate(numbered):
        group = trajectories[place * size : (place + 1) * size]
        for member, trajectory in enumerate(group):
            # The same names when a step is done again: a reader can tell a repetition from a new trajectory.
            trajectory.group = f"{at.batch_step}.{number}"
            trajectory.id = f"{at.batch_step}.{number}.{member}"
        graded = [t for t in group if t.exception is None and t.reward is not None]
        rewards = torch.tensor([[t.reward for t in graded]], dtype=torch.float64)
        advantages = group_advantages(rewards, settings.variant)[0].tolist()
        for trajectory, advantage in zip(graded, advantages, strict=True):
            trajectory.advantage = advantage
    return trajectories


def _asked_again(course: Course, state: State, batch: Batch) -> tuple[Batch, list[float]]:
    """Return the batch with the reference's log-probs and, if the sampler is another program, the policy's own.

    Then also how far the two were apart: |difference| of each sampled token's log-probs.
    """
    batch = batch.to(course.compute.device)
    with state.reference.model() as reference:
        batch = replace(batch, reference_BT=_logprobs(course.settings, reference, batch))
    if course.engine.exact:
        return batch, []
    trained_BT = _logprobs(course.settings, state.model, batch)
    drift_N = (trained_BT - batch.old_BT).abs()[batch.mask_BT.bool()].tolist()
    weights_BT = importance_weights(trained_BT, batch.old_BT, course.settings.importance_cap)
    return replace(batch, old_BT=trained_BT, importance_BT=weights_BT), drift_N


def _logprobs(settings: Settings, model: Any, batch: Batch) -> torch.Tensor:
    logprobs_BT = torch.zeros_like(batch.old_BT)
    sampled = batch.mask_BT.any(dim=1).nonzero()[:, 0].tolist()
    with torch.no_grad():
        for part in batch.micro_batches(sampled, settings.micro_batch_size):
            micro = batch.of(part)
            width = micro.mask_BT.shape[1]
            logprobs_BT[part, :width] = token_logprobs(
                model, micro.token_ids_BT, micro.mask_BT, settings.temperature
            )
    return logprobs_BT


def _update(course: Course, state: State, at: At, batch: Batch | None, opening: Mapping[str, Any]) -> None:
    """Learn from one rollout batch, and log a row after each optimiser step, the first with what opens it."""
    settings = course.settings
    state.totals = replace(state.totals, batches=state.totals.batches + 1)
    learning = torch.zeros(0, dtype=torch.long) if batch is None else batch.advantages_B.nonzero()[:, 0].cpu()
    row = dict(opening)
    update_number = 0
    for _ in range(settings.epochs_per_step):
        shuffled = learning[torch.randperm(len(learning))].tolist()
        updates: list[UpdateStats] = []
        for number, shard in enumerate(shards(shuffled, settings.shards_per_epoch), start=1):
            here = course.at(at.batch_step, update_number)
            update = _optimiser_step(course, state, here, batch, shard)
            updates += [update] if update else []
            row |= update_metrics(update)
            row |= {
                "global_step": here.global_step,
                "training/invalid_loss_count": state.totals.invalid_losses,
            }
            if number == settings.shards_per_epoch:
                row |= epoch_metrics(updates)
            update_number += 1
            is_last = update_number == settings.updates_per_step
            for collector in course.watching:
                row |= collector.of_update(here, update, is_last)
            log_row(course, row, here)
            row = {}


def _optimiser_step(
    course: Course, state: State, at: At, batch: Batch | None, rows: Sequence[int]
) -> UpdateStats | None:
    """Take one clipped gradient step on these rows of the batch; None if there is nothing sound to step on."""
    settings, compute = course.settings, course.compute
    n_mine = int(batch.mask_BT[list(rows)].sum()) if batch is not None else 0
    n_trajectories, n_tokens = map(int, compute.total([len(rows), n_mine]))
    if n_trajectories == 0:
        return None
    step = StepSize(n_trajectories, n_tokens, settings.max_sampled_tokens)
    rate = settings.lr * learning_rate_factor(
        settings.schedule,
        at.global_step,
        course.n_batches * settings.updates_per_step,
        settings.lr_ramp_steps,
    )
    for group in state.optimiser.param_groups:
        group["lr"] = rate
    state.optimiser.zero_grad()
    policy = kl_part = k3_sum = clipped = surprise = 0.0
    for part in batch.micro_batches(rows, settings.micro_batch_size) if batch is not None else ():
        micro = batch.of(part)  # type: ignore[union-attr]
        logprobs_BT = token_logprobs(state.model, micro.token_ids_BT, micro.mask_BT, settings.temperature)
        loss = policy_loss(
            logprobs_BT,
            micro.old_BT,
            micro.reference_BT,
            micro.advantages_B,
            micro.mask_BT,
            course.objective,
            step,
            None if course.engine.exact else micro.importance_BT,
        )
        loss.total.backward()
        policy, kl_part = policy + loss.policy.item(), kl_part + loss.kl.item()
        k3_sum, clipped = k3_sum + loss.k3_sum.item(), clipped + loss.clipped_sum.item()
        surprise -= float(logprobs_BT.detach().sum())
    compute.sum_gradients(state.model.parameters())
    policy, kl_part, k3_sum, clipped, surprise = compute.total([policy, kl_part, k3_sum, clipped, surprise])
    grad_norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), settings.max_norm).item()
    if not math.isfinite(policy + kl_part) or not math.isfinite(grad_norm):
        state.totals = replace(state.totals, invalid_losses=state.totals.invalid_losses + 1)
        return None
    state.optimiser.step()
    state.totals = replace(state.totals, optimiser_steps=state.totals.optimiser_steps + 1)
    return UpdateStats(
        policy, kl_part, k3_sum / n_tokens, clipped / n_tokens, surprise / n_tokens, grad_norm, rate
    )


# --- rows -----------------------------------------------------------------------------------------------------------


def log_row(course: Course, row: Metrics, at: At) -> None:
    """Log the row of a step, on the first rank; the others log what they say of themselves."""
    own: Metrics = {}
    for collector in course.collectors:
        own |= collector.of_process(at)
    row = {**row, **own} if course.compute.index == 0 else own
    alarms = course.monitor.alarms()
    if not row or at.global_step < course.logged.next_step:
        return
    course.run.log(row, step=at.global_step)
    if course.compute.index == 0:
        for alarm in alarms:
            course.run.alert(alarm.title, alarm.text, alarm.level)
            course.progress.say(f"{alarm.title}: {alarm.text}")


def _log_trajectories(course: Course, trajectories: Sequence[Trajectory], at: At) -> None:
    for trajectory in trajectories:
        if trajectory.id not in course.logged.trajectories:
            course.run.log_trajectory(trajectory, step=at.global_step)


def rollout_row(
    course: Course,
    state: State,
    at: At,
    trajectories: Sequence[Trajectory],
    batch: Batch | None,
    drift_N: list[float],
) -> Metrics:
    """Count these trajectories of all ranks, and return what the first row says about them."""
    state.totals = state.totals.with_rollouts(trajectories)
    kl_N = [] if batch is None else k3(batch.old_BT, batch.reference_BT)[batch.mask_BT.bool()].tolist()
    kl_N, drift_N = course.compute.gather(kl_N), course.compute.gather(drift_N)
    row: Metrics = {
        **rollout_metrics(trajectories, kl_N, state.totals),
        **batch_return_metrics(trajectories),
        "system/replay_buffer_size": sum(bool(t.advantage) for t in finished(trajectories)),
        **_gpu_memory(),
    }
    if drift_N:
        row |= {"rollouts/sampler_drift_mean": mean(drift_N), "rollouts/sampler_drift_max": max(drift_N)}
        course.monitor.of_drift(at, mean(drift_N))
    for collector in course.watching:
        row |= collector.of_rollouts(at, trajectories)
    return row


def trajectory_table(settings: Settings, trajectories: Sequence[Trajectory]) -> dict[str, Table]:
    """Return what W&B shows of a rollout batch's trajectories; all of them are in the log, whatever is shown there."""
    if settings.trajectory_table == "off":
        return {}
    newest = None if settings.trajectory_table == "all" else -settings.trajectory_table_rows
    table = Table(columns=["id", "group", "reward", "advantage", "transcript"])
    for trajectory in trajectories[slice(newest, None)]:
        table.add_data(
            trajectory.id,
            trajectory.group,
            trajectory.reward,
            trajectory.advantage,
            transcript(trajectory.turns),
        )
    return {"trajectories": table}


def mark(state: State, at: At) -> Metrics:
    """Return `checkpoint/*` if the checkpoint of the state before this step is on disk.

    It is said by the row that follows the checkpoint, so that it is true when it is said.
    """
    if state.saved_at != at.global_step:
        return {}
    return {"checkpoint/saved": 1, "checkpoint/step": at.global_step}


def _warmup_point(state: State, at: At) -> Metrics:
    """Return the point of the warm-up's curve that this row carries.

    W&B's steps only grow, and 0 is the first: a row logged during the warm-up would take step 0, and after a crash the
    real row 0 would be dropped as repeated. So the curve rides on the first rows, over its own axis `warmup/step`;
    if it has more points than there are rows, it is thinned, and its last point is kept.
    """
    n_points = min(len(state.warmup), at.n_batches)
    if at.batch_step >= n_points:
        return {}
    point = state.warmup[(at.batch_step + 1) * len(state.warmup) // n_points - 1]
    return {"warmup/step": point.step, "warmup/loss": point.loss, "warmup/reward": point.reward}


def _gpu_memory() -> Metrics:
    if not torch.cuda.is_available():
        return {}
    return {
        "system/gpu_memory_allocated_gb": torch.cuda.memory_allocated() / 2**30,
        "system/gpu_memory_reserved_gb": torch.cuda.memory_reserved() / 2**30,
    }


# --- checkpoints ----------------------------------------------------------------------------------------------------


def save_if_due(course: Course, state: State) -> None:
    done = state.totals.batches
    step = course.at(done).global_step
    due = done % course.settings.checkpoint_interval == 0 or done == course.n_batches
    if state.saved_at == step or not due:
        return
    saved_before, state.saved_at = state.saved_at, step
    if not _try_to_save(course, state, step, best=False):
        state.saved_at = saved_before


def _try_to_save(course: Course, state: State, step: int, *, best: bool) -> bool:
    """Save the state before a step; a disk that does not take it is said, and stops nothing."""
    kept = to_checkpoint(course, state)  # by every rank: it gathers
    ok = True
    if course.compute.index == 0:
        try:
            if best:
                path = checkpoint.save_best(course.checkpoints, kept)
            else:
                path = checkpoint.save(course.checkpoints, step, kept, course.settings.checkpoints_kept)
            course.run.log_checkpoint(path.absolute(), step, is_best=best, best_reward=state.best_reward)
        except OSError as error:
            ok = False
            course.progress.say(
                f"the checkpoint before step {step} was not written ({error}); training goes on, the last one still serves."
            )
    # The ranks must agree on what is on disk: the next row says so.
    return course.compute.total([float(ok)]) == [float(course.compute.count)]
