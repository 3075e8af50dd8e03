"""Plays the held-out problems with a policy that was trained: `trainer eval` and `trainer bench`.

    checkpoints/<run>/run.json + best.pt or the newest ─▶ policy ─▶ episodes, all at once or one by one ─▶ means

It logs nothing and changes nothing on disk; decoding is greedy, so the same policy gives the same episodes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eventlog import Trajectory
from trainer import checkpoint
from trainer.chat import Chat
from trainer.collectors import At, Metrics, finished
from trainer.collectors.grpo import eval_metrics
from trainer.compute import Compute
from trainer.config import Settings, with_overrides
from trainer.errors import CheckpointError
from trainer.loop import limits_of
from trainer.models import chat_of, model_of, restore_weights, with_adapter
from trainer.policy.transformers import TransformersEngine
from trainer.progress import Progress
from trainer.recipes import Recipe
from trainer.rollout import play
from trainer.tasks import Task


@dataclass(frozen=True)
class Trained:
    """A policy as a checkpoint has it."""

    name: str
    settings: Settings
    task: Task
    held_out: Sequence[Any]  # problems
    source: str  # of these, in words
    is_same_data: bool  # as at the training: others may be some that it was trained on
    chat: Chat
    model: Any
    step: int


@dataclass(frozen=True)
class Result:
    name: str
    step: int  # optimiser steps that the policy had taken
    metrics: Metrics  # as an evaluation of the training logs them
    episodes: int
    duration_s: float
    tokens: int  # that were sampled
    trajectories: list[Trajectory]

    @property
    def episode_s(self) -> list[float]:
        return sorted(t.duration_s or 0.0 for t in finished(self.trajectories))


def load_trained(recipe: Recipe, checkpoints: Path, which: str, data: Path | None) -> Trained:
    """Return the policy of a training: `best`, or `newest`."""
    run = checkpoint.read_run_file(checkpoints)
    if run is None:
        raise CheckpointError(
            f"there is no training in {str(checkpoints)!r}. Give --run-name or --output-dir as it was trained with."
        )
    if run.recipe != recipe.name:
        raise CheckpointError(
            f"{str(checkpoints)!r} holds a run of the recipe {run.recipe!r}, not of {recipe.name!r}."
        )
    best = checkpoints / "best.pt"
    if which == "best" and best.exists():
        saved: dict[str, Any] | None = checkpoint.load(best)
    else:
        saved = checkpoint.load_newest(checkpoints, warn=lambda text: None)
    if saved is None:
        raise CheckpointError(f"the training in {str(checkpoints)!r} has no checkpoint yet.")
    settings = with_overrides(recipe.settings(), run.settings)
    task, problems = recipe.task(settings), recipe.problems(settings, data)
    is_same_data = problems.fingerprint == run.data
    if not is_same_data and data is None:
        raise CheckpointError(
            f"the training in {str(checkpoints)!r} held out other problems than {problems.source}: some of these it may "
            "have been trained on. Give the --data that it was trained with, or others that it cannot have seen."
        )
    chat = chat_of(settings, task, problems, saved["tokenizer"])
    torch.manual_seed(settings.seed)
    model = with_adapter(settings, model_of(settings, chat.vocab_size))
    restore_weights(settings, model, saved["model"])
    # What a task was measured by is kept with what watched it, before the loop's own.
    for collector, kept in zip(recipe.collectors(settings), saved["collectors"], strict=False):
        collector.restore(kept)
    return Trained(
        run.name,
        settings,
        task,
        problems.held_out,
        problems.source,
        is_same_data,
        chat,
        model.to(Compute().device),
        saved["totals"]["optimiser_steps"],
    )


def benchmark(
    recipe: Recipe,
    trained: Trained,
    *,
    limit: int,
    sequential: bool,
    concurrency: int,
    progress: Progress,
) -> Result:
    """Play the first `limit` held-out problems (0: all), together or one after the other."""
    problems = list(trained.held_out[: limit or None])
    engine = TransformersEngine(trained.model, end_id=trained.chat.end_id, pad_id=trained.chat.pad_id)
    progress.say(f"=== Benchmarking {trained.name} ===")
    progress.say(f"Evaluating on {len(problems)} test scenarios...")
    started_s = time.perf_counter()
    trajectories: list[Trajectory] = []
    for batch in [[problem] for problem in problems] if sequential else [problems]:
        trajectories += play(
            batch,
            trained.task,
            trained.chat,
            engine,
            limits_of(trained.settings),
            temperature=0.0,
            concurrency=concurrency,
        )
    duration_s = time.perf_counter() - started_s
    at = At(trained.step, trained.step, 1, trained.step + 1)
    metrics = eval_metrics(trajectories)
    for collector in recipe.collectors(trained.settings):
        metrics |= collector.of_evaluation(at, trajectories)
    tokens = sum(t.completion_tokens or 0 for t in finished(trajectories))
    return Result(trained.name, trained.step, metrics, len(problems), duration_s, tokens, trajectories)
