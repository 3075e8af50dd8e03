"""Starts or continues a training: settings, problems, the run in the log, the warm-up, and then the loop.

    start     settings ─▶ problems ─▶ eventlog.init ─▶ run.json ─▶ warm-up ─▶ loop
    resume    run.json ─▶ problems ─▶ eventlog.init(resume="allow") ─▶ newest checkpoint (none yet: warm-up) ─▶ loop

Invariants
----------
* Everything that can be refused is refused before the run exists: a bad setting leaves no trace.
* A directory holds one run. It is continued only by `resume`, and only with the settings and problems it began with.
* Killed at any instant, the same call with `resume` goes on; what was not in a checkpoint is done again, the same.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eventlog
from trainer import checkpoint, loop
from trainer.checkpoint import RunFile
from trainer.config import Settings, changed_keys, with_overrides
from trainer.errors import CheckpointError
from trainer.loop import Problems, State
from trainer.policy.transformers import TransformersEngine
from trainer.recipes import Recipe
from trainer.warmup import WarmupPoint, warm_up

# Greedy reward during the warm-up: of problems to train on, so that the held-out ones stay unseen. 64 know it to ± 0.06.
WARMUP_EVAL_SIZE = 64


@dataclass(frozen=True)
class Request:
    """What a person asked for."""

    overrides: Mapping[str, Any]
    quick: bool = False
    name: str | None = None
    root: Path | None = None
    output_dir: Path | None = None
    data: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class Outcome:
    name: str
    run_dir: Path
    checkpoints: Path
    reward_before: float
    reward_after: float
    duration_s: float


def launch(recipe: Recipe, request: Request, say: Callable[[str], None]) -> Outcome:
    """Run a recipe to its end, and return how it went."""
    started_s = time.perf_counter()
    name = (
        request.name or os.environ.get("WANDB_NAME") or os.environ.get("RUN_ID") or _new_name(recipe, request)
    )
    checkpoints = request.output_dir or Path("checkpoints") / name
    previous = _previous(recipe, request, checkpoints)
    settings = _settings(recipe, request, previous, checkpoints)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    problems = recipe.problems(settings, request.data)
    say(f"problems: {problems.source}")
    if previous is not None and previous.data != problems.fingerprint:
        raise CheckpointError(
            f"the run in {str(checkpoints)!r} began with other problems than {problems.source}. "
            "Give the same --data as then, or choose another --run-name."
        )

    with checkpoint.locked(checkpoints):
        saved = checkpoint.load_newest(checkpoints, warn=say)
        with _run(recipe, request, settings, problems, previous, name) as run:
            run.define_metric("eval/*", step_metric="global_step")
            run.define_metric("warmup/*", step_metric="warmup/step")
            # Written again on resume: its length may have changed.
            checkpoint.write_run_file(
                checkpoints,
                RunFile(
                    recipe.name,
                    run.id,
                    previous.name if previous else name,
                    asdict(settings),
                    problems.fingerprint,
                ),
            )
            if saved is None:
                state = _warmed_up(recipe, settings, problems, say)
            else:
                state = _restored(recipe, settings, saved, say)
            parameters = sum(p.numel() for p in state.model.parameters())
            run.config.update({"parameters": parameters}, allow_val_change=True)
            after = loop.train(run, settings, recipe.task(), problems, state, checkpoints, say)
    assert state.reward_before is not None
    return Outcome(name, run.dir, checkpoints, state.reward_before, after, time.perf_counter() - started_s)


def _run(
    recipe: Recipe,
    request: Request,
    settings: Settings,
    problems: Problems,
    previous: RunFile | None,
    name: str,
) -> eventlog.Run:
    return eventlog.init(
        # An explicit project would win over the variable.
        project=None if os.environ.get("WANDB_PROJECT") else recipe.project,
        name=previous.name if previous else name,
        # A name that a person chose is the id too: the directory and the page on W&B are called by it.
        id=previous.run_id if previous else name,
        resume="allow" if previous else None,
        root=request.root,
        config={**asdict(settings), "recipe": recipe.name, "data": problems.source},
        tags=["grpo", recipe.name],
    )


def _new_name(recipe: Recipe, request: Request) -> str:
    if request.resume and request.output_dir is None:
        here = sorted(path.parent.name for path in Path("checkpoints").glob("*/run.json"))
        raise CheckpointError(
            "--resume needs to know which run: give --run-name or --output-dir. "
            f"In ./checkpoints there {'is ' + ', '.join(map(repr, here)) if here else 'is none'}."
        )
    return f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _previous(recipe: Recipe, request: Request, checkpoints: Path) -> RunFile | None:
    previous = checkpoint.read_run_file(checkpoints)
    if previous is None:
        return None
    if not request.resume:
        raise CheckpointError(
            f"{str(checkpoints)!r} already holds the run {previous.run_id!r}. "
            "Add --resume to continue it, or choose another --run-name or --output-dir."
        )
    if previous.recipe != recipe.name:
        raise CheckpointError(
            f"{str(checkpoints)!r} holds a run of the recipe {previous.recipe!r}, not of {recipe.name!r}. "
            f"Continue it by `trainer train {previous.recipe} --resume`, or choose another --run-name."
        )
    return previous


def _settings(recipe: Recipe, request: Request, previous: RunFile | None, checkpoints: Path) -> Settings:
    if previous is None:
        quick = with_overrides(recipe.settings(), recipe.quick) if request.quick else recipe.settings()
        return with_overrides(quick, request.overrides)
    # A resumed run needs no flags: it has its settings. What is given again must agree with them.
    settings = with_overrides(recipe.settings(), previous.settings)
    wanted = with_overrides(settings, request.overrides)
    changed = changed_keys(asdict(settings), asdict(wanted))
    if changed:
        raise CheckpointError(
            f"the run in {str(checkpoints)!r} began with another {' and '.join(map(repr, changed))}: "
            + ", ".join(f"{key}={asdict(settings)[key]!r}" for key in changed)
            + ". Leave that out to continue it, or choose another --run-name for a new run."
        )
    return wanted


def _restored(
    recipe: Recipe, settings: Settings, saved: Mapping[str, Any], say: Callable[[str], None]
) -> State:
    state = loop.from_checkpoint(saved, lambda vocab_size: recipe.model(settings, vocab_size), settings.lr)
    say(f"resumed before step {state.saved_at} of {settings.steps * settings.updates_per_step}")
    return state


def _warmed_up(recipe: Recipe, settings: Settings, problems: Problems, say: Callable[[str], None]) -> State:
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    task, chat = recipe.task(), recipe.chat(settings, problems)
    model = recipe.model(settings, chat.vocab_size)
    engine = TransformersEngine(model, end_id=chat.end_id, pad_id=chat.pad_id)
    unseen = problems.train[:WARMUP_EVAL_SIZE]
    curve = warm_up(
        model,
        [chat.encode_demonstration(task.demonstrate(problem)) for problem in problems.warmup],
        lambda: loop.evaluate_greedily(unseen, task, chat, engine, loop.limits_of(settings))["eval/reward"],
        target=settings.warmup_target,
        max_steps=settings.warmup_max_steps,
        seed=settings.seed,
        pad_id=chat.pad_id,
        progress=lambda point: say(_warmup_line(point, settings)),
    )
    return State.start(chat, model, settings.lr, curve)


def _warmup_line(point: WarmupPoint, settings: Settings) -> str:
    return f"warm-up {point.step}   loss {point.loss:.3f}   reward {point.reward:.3f}"
