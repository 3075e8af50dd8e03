"""Starts or continues a training: settings, problems, the run in the log, the warm-up, and then the loop.

    start     settings ─▶ problems ─▶ eventlog.init ─▶ run.json ─▶ warm-up ─▶ loop, or whom the recipe names
    resume    run.json ─▶ problems ─▶ eventlog.init(resume="allow") ─▶ newest checkpoint (none yet: warm-up) ─▶ loop

Invariants
----------
* Everything that can be refused is refused before the run exists: a bad setting leaves no trace.
* A directory holds one run. It is continued only by `resume`, and only with the settings and problems it began with.
* Killed at any instant, the same call with `resume` goes on; what was not in a checkpoint is done again, the same. A
  recipe whose trainer cannot do that says so, and is refused a second start.
* Of several ranks, the first one's directory, run id and first weights are everybody's.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import eventlog
from eventlog import reader
from eventlog.piece import RunIdentity
from eventlog.roots import root_of
from trainer import checkpoint, loop
from trainer.chat import Chat
from trainer.checkpoint import RunFile
from trainer.collectors import Collector
from trainer.collectors.ranks import Accelerate, Ranks
from trainer.compute import Compute, compute_of
from trainer.config import Settings, changed_keys, from_variables, with_overrides
from trainer.errors import CheckpointError
from trainer.loop import Course, Logged, State
from trainer.models import chat_of, count_parameters, model_of, with_adapter
from trainer.policy import Engine
from trainer.policy.transformers import TransformersEngine
from trainer.problems import Problems
from trainer.progress import Progress
from trainer.recipes import Recipe
from trainer.rollout import play
from trainer.tasks import Task
from trainer.warmup import WarmupPoint, warm_up

# Greedy reward during the warm-up: of problems to train on, so that the held-out ones stay unseen. 64 know it to ± 0.06.
WARMUP_EVAL_SIZE = 64
# W&B takes 128, and something is put behind it.
ARTIFACT_NAME_CHARS = 100


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
    project: str | None = None
    entity: str | None = None
    tensorboard: Path | bool = False  # where a mirror of the metrics goes, or that it goes beside the run
    uploads: bool = True  # whether syncd may upload by itself what is logged
    shows_episodes: bool = False  # whether one of each rollout batch is printed


@dataclass(frozen=True)
class Outcome:
    name: str
    run_dir: Path
    checkpoints: Path
    reward_before: float | None
    reward_after: float | None
    duration_s: float

    def in_words(self) -> str:
        before, after = self.reward_before, self.reward_after
        if before is None or after is None:
            news = "no held-out episode could be graded"
        else:
            news = f"held-out reward {before:.3f} → {after:.3f} ({after - before:+.3f})"
        return f"{self.name}: {news} in {self.duration_s:.0f} s"


def launch(recipe: Recipe, request: Request, console: Console) -> Outcome:
    """Run a recipe to its end, and return how it went."""
    started_s = time.perf_counter()
    compute = compute_of(recipe.compute)
    name = compute.gather([_name(recipe, request)])[0]
    checkpoints = request.output_dir or checkpoint.home_of(name)
    previous = _previous(recipe, request, checkpoints)
    name = previous.name if previous else name
    _refuse_another_log(recipe, request, previous, checkpoints)
    compute.wait()  # all have looked, before one writes there
    settings = _settings(recipe, request, previous, checkpoints)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    task = recipe.task(settings)
    problems = _problems(recipe, request, settings, previous, checkpoints)
    is_first = compute.index == 0
    progress = Progress(name, console if is_first else None, shows_episodes=request.shows_episodes)
    progress.say(f"problems: {problems.source}")
    collectors = [*recipe.collectors(settings), *_of_ranks(recipe, compute)]

    with checkpoint.locked(checkpoints) if is_first else nullcontext():
        saved = checkpoint.load_newest(checkpoints, warn=progress.say)
        _refuse_other_ranks(compute, saved)
        # Before the run: a name or a server that is mistyped leaves no trace.
        chat, model = _policy(settings, task, problems, compute, saved)
        sampler = _remote(settings, chat, checkpoints)
        with _run(recipe, request, settings, problems, previous, name) as run:
            _describe(run, recipe, compute, collectors)
            if is_first:
                # Written again on resume: its length may have changed.
                checkpoint.write_run_file(
                    checkpoints, RunFile(recipe.name, run.id, name, asdict(settings), problems.fingerprint)
                )
            state = _state(settings, task, problems, compute, chat, model, saved is None, progress)
            course = Course(
                run=run,
                settings=settings,
                task=task,
                problems=problems,
                engine=sampler or TransformersEngine(state.model, end_id=chat.end_id, pad_id=chat.pad_id),
                checkpoints=checkpoints,
                progress=progress,
                collectors=collectors,
                compute=compute,
                logged=_logged(run, compute, saved),
            )
            if saved is not None:
                loop.restore(course, state, saved)
                progress.say(
                    f"resumed before step {state.saved_at} of {course.n_batches * settings.updates_per_step}"
                )
                if is_first and run.starting_step > course.at(state.totals.batches).global_step:
                    progress.say(
                        f"the log has rows up to step {run.starting_step - 1} already: they stay as they are. Of a run that "
                        "had ended, the last one is the row of its final evaluation, and stands for that of the same step."
                    )
            n_parameters, n_trained = count_parameters(state.model)
            run.config.update(
                {"parameters": n_parameters, "parameters_trained": n_trained}, allow_val_change=True
            )
            progress.say(f"Starting training: {name}")
            with progress.of_run(Path(run.dir)):
                after = recipe.train(course, state)
            if is_first:
                _log_checkpoint(run, name, checkpoints)
    outcome = Outcome(
        name, Path(run.dir), checkpoints, state.reward_before, after, time.perf_counter() - started_s
    )
    progress.say(f"Training finished for {name}")
    progress.say(outcome.in_words())
    progress.say(f"log: {run.dir}   checkpoints: {checkpoints}")
    return outcome


# --- before the run ---------------------------------------------------------------------------------------------------


def _name(recipe: Recipe, request: Request) -> str:
    return (
        request.name or os.environ.get("WANDB_NAME") or os.environ.get("RUN_ID") or _new_name(recipe, request)
    )


def _new_name(recipe: Recipe, request: Request) -> str:
    if request.resume and request.output_dir is None:
        here = sorted(path.parent.name for path in Path("checkpoints").glob("*/run.json"))
        raise CheckpointError(
            "--resume needs to know which run: give --run-name or --output-dir. "
            f"In ./checkpoints there {'is ' + ', '.join(map(repr, here)) if here else 'is none'}."
        )
    settings = asdict(settings_of(recipe, request))
    return recipe.auto_name.format(recipe=recipe.name, time=time.strftime("%Y%m%d-%H%M%S"), **settings)


def _previous(recipe: Recipe, request: Request, checkpoints: Path) -> RunFile | None:
    previous = checkpoint.read_run_file(checkpoints)
    if previous is None:
        return None
    if not recipe.resumes:
        raise CheckpointError(
            f"{str(checkpoints)!r} already holds the run {previous.run_id!r}, and the recipe {recipe.name!r} cannot "
            "continue one: --resume is not for it. Choose another --run-name or --output-dir."
        )
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


def _refuse_another_log(
    recipe: Recipe, request: Request, previous: RunFile | None, checkpoints: Path
) -> None:
    """Refuse to continue a training whose log is elsewhere: it would be split in two without a word."""
    if previous is None or os.environ.get("WANDB_MODE") == "disabled" or not checkpoint.any_in(checkpoints):
        return
    project = request.project or os.environ.get("WANDB_PROJECT") or recipe.project
    log = RunIdentity.new(project, previous.run_id, None).directory(root_of(request.root))
    if not log.is_dir():
        raise CheckpointError(
            f"the run in {str(checkpoints)!r} has no log in {str(log)!r}. Give the --root and the project that it began "
            "with; if its log is gone, begin anew with another --run-name."
        )


def _refuse_other_ranks(compute: Compute, saved: Mapping[str, Any] | None) -> None:
    if saved is not None and len(saved["random"]) != compute.count:
        raise CheckpointError(
            f"the checkpoint is of {len(saved['random'])} processes, and {compute.count} were started. Start as many as "
            "then, or choose another --run-name."
        )


def settings_of(recipe: Recipe, request: Request) -> Settings:
    """Return what a person asked for: the recipe's defaults, `--quick`, the variables, the flags, the later the stronger."""
    quick = with_overrides(recipe.settings(), recipe.quick) if request.quick else recipe.settings()
    return with_overrides(quick, {**from_variables(recipe.variables, os.environ), **_asked(request)})


def _asked(request: Request) -> Mapping[str, Any]:
    """Return the settings of the command line: a number of steps stands in place of one of epochs."""
    counts = {"epochs": 0} if "steps" in request.overrides else {}
    return {**counts, **request.overrides}


def _settings(recipe: Recipe, request: Request, previous: RunFile | None, checkpoints: Path) -> Settings:
    if previous is None:
        return settings_of(recipe, request)
    # A resumed run needs no flags: it has its settings. What is given again must agree with them.
    settings = with_overrides(recipe.settings(), previous.settings)
    wanted = with_overrides(settings, _asked(request))
    changed = changed_keys(asdict(settings), asdict(wanted))
    if changed:
        raise CheckpointError(
            f"the run in {str(checkpoints)!r} began with another {' and '.join(map(repr, changed))}: "
            + ", ".join(f"{key}={asdict(settings)[key]!r}" for key in changed)
            + ". Leave that out to continue it, or choose another --run-name for a new run."
        )
    return wanted


def _problems(
    recipe: Recipe, request: Request, settings: Settings, previous: RunFile | None, checkpoints: Path
) -> Problems:
    problems = recipe.problems(settings, request.data)
    if settings.max_prompts:
        problems = replace(problems, train=problems.train[: settings.max_prompts])
    if previous is not None and previous.data != problems.fingerprint:
        raise CheckpointError(
            f"the run in {str(checkpoints)!r} began with other problems than {problems.source}. "
            "Give the same --data as then (it may have been `--data generated`), or choose another --run-name."
        )
    return problems


def _of_ranks(recipe: Recipe, compute: Compute) -> list[Collector]:
    def sync_gradients() -> bool:
        return compute.sync_gradients

    if recipe.compute == "accelerate":
        return [Accelerate(sync_gradients)]
    if recipe.compute == "ddp":
        return [Ranks(compute.count, compute.index, compute.local_index, sync_gradients)]
    return []


# --- the run ----------------------------------------------------------------------------------------------------------


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
        project=request.project or (None if os.environ.get("WANDB_PROJECT") else recipe.project),
        entity=request.entity,
        name=name,
        # A name that a person chose is the id too: the directory and the page on W&B are called by it.
        id=previous.run_id if previous else name,
        resume="allow" if previous else None,
        root=request.root,
        config={
            **asdict(settings),
            **recipe.config(settings),
            "recipe": recipe.name,
            "data": problems.source,
        },
        tags=list(recipe.tags),
        mode=None if request.uploads else "offline",
        tensorboard=str(request.tensorboard)
        if isinstance(request.tensorboard, Path)
        else request.tensorboard,
    )


def _describe(run: eventlog.Run, recipe: Recipe, compute: Compute, collectors: list[Collector]) -> None:
    """Tell the run what its metrics are: their x axes, and their units where one could be taken for another."""
    run.define_metric("eval/*", step_metric="global_step")
    run.define_metric("warmup/*", step_metric="warmup/step")
    units: dict[str, str] = {}
    for collector in collectors:
        units |= collector.units
        for metric, axis in collector.axes.items():
            run.define_metric(metric, step_metric=axis)
    if compute.index == 0:
        about: dict[str, Any] = {"device": str(compute.device)}
        if units:
            about["units"] = units
        if recipe.compute != "single":
            about["accelerate/device"] = str(compute.device)
            run.summary["accelerate/device"] = str(compute.device)
        run.config.update(about, allow_val_change=True)


def _logged(run: eventlog.Run, compute: Compute, saved: Mapping[str, Any] | None) -> Logged:
    """Return what the log holds already of the steps after the checkpoint: what a killed process did and did not save."""
    if run.disabled:
        return Logged()
    run_dir, saved_at = Path(run.dir), saved["saved_at"] if saved else 0
    pieces = [run_dir / name for name in reversed(reader.pieces_of(run_dir, compute.index))]
    rows = (r for piece in pieces for r in reader.newest_first(piece) if r.kind == "metrics")
    steps = (row.step for row in rows if row.step is not None)
    # The run's own answer is the first rank's.
    next_step = run.starting_step if compute.index == 0 else next(steps, -1) + 1
    known: set[str] = set()
    for record in (r for piece in pieces for r in reader.newest_first(piece, "trajectories")):
        if record.step is not None and record.step < saved_at:
            break
        known.add(record.data["id"])
    return Logged(next_step, frozenset(known))


def _log_checkpoint(run: eventlog.Run, name: str, checkpoints: Path) -> None:
    """Make the last and the best checkpoint outputs of the run, by reference: they stay where they are."""
    # W&B allows fewer names for an artifact than for a run.
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:ARTIFACT_NAME_CHARS]
    artifact = eventlog.Artifact(f"{plain}-checkpoint", type="model")
    for path in sorted(checkpoints.glob("*.pt")):
        artifact.add_reference(path.resolve().as_uri(), name=path.name)
    run.log_artifact(artifact, aliases=["latest", "final"])


# --- the policy -------------------------------------------------------------------------------------------------------


def _policy(
    settings: Settings, task: Task, problems: Problems, compute: Compute, saved: Mapping[str, Any] | None
) -> tuple[Chat, Any]:
    """Return the tokenizer, and the model with its first weights; all draws of a training begin here."""
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    chat = chat_of(settings, task, problems, saved["tokenizer"] if saved is not None else None)
    return chat, model_of(settings, chat.vocab_size).to(compute.device)


def _remote(settings: Settings, chat: Chat, checkpoints: Path) -> Engine | None:
    """Return the server that samples, if one does."""
    if settings.engine == "transformers":
        return None
    from trainer.policy.vllm import VLLMEngine

    return VLLMEngine(
        settings.vllm_url,
        settings.model_name,
        end_id=chat.end_id,
        temperature=settings.temperature,
        max_length=settings.max_length,
        # Beside the checkpoints: where a server can see it, and not in a temporary directory of this machine.
        adapters=checkpoints / "adapters",
        timeout_s=settings.vllm_timeout_s,
    )


def _state(
    settings: Settings,
    task: Task,
    problems: Problems,
    compute: Compute,
    chat: Chat,
    model: Any,
    is_new: bool,
    progress: Progress,
) -> State:
    """Return the policy before its first step; of a resumed training, one that is ready to be restored."""
    curve: list[WarmupPoint] = []
    if is_new and settings.warmup_max_steps and problems.warmup:
        curve = _warmed_up(settings, task, problems, chat, model, progress)
    state = State.start(chat, with_adapter(settings, model).to(compute.device), settings.lr, curve)
    if compute.index:
        # Each rank draws samples of its own, from here on.
        torch.manual_seed(settings.seed + 1_000_003 * compute.index)
    return state


def _warmed_up(
    settings: Settings, task: Task, problems: Problems, chat: Chat, model: Any, progress: Progress
) -> list[WarmupPoint]:
    engine = TransformersEngine(model, end_id=chat.end_id, pad_id=chat.pad_id)
    unseen = problems.train[:WARMUP_EVAL_SIZE]

    def reward() -> float:
        # Sampled weights change between two evaluations: nothing that was read before holds.
        engine.sync(model, -1)
        played = play(unseen, task, chat, engine, loop.limits_of(settings), temperature=0.0)
        rewards = [t.reward for t in played if t.exception is None and t.reward is not None]
        return sum(rewards) / max(len(rewards), 1)

    return warm_up(
        model,
        [chat.encode_demonstration(task.demonstrate(problem)) for problem in problems.warmup],
        reward,
        target=settings.warmup_target,
        max_steps=settings.warmup_max_steps,
        seed=settings.seed,
        pad_id=chat.pad_id,
        progress=lambda p: progress.say(f"warm-up {p.step}   loss {p.loss:.3f}   reward {p.reward:.3f}"),
    )
