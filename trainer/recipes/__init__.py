"""The recipes: named, complete training set-ups.  Listing them imports none of them.

A recipe is a module here with a `RECIPE`. What it must say is `Recipe`; the rest is the loop's.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainer.config import Settings
from trainer.errors import UnknownRecipe

if TYPE_CHECKING:  # torch is imported when a recipe is loaded, not when recipes are listed
    from pathlib import Path

    from trainer.collectors import Collector
    from trainer.loop import Course, State
    from trainer.problems import Problems
    from trainer.tasks import Task

SUMMARIES = {
    "base": "the calculator's problems, plain GRPO",
    "drgrpo": "the calculator's problems by Dr. GRPO, with the parts of its loss",
    "accelerate": "the calculator's problems on the devices that accelerate finds",
    "accelerate_ddp": "the calculator's problems in several processes: torchrun --nproc-per-node=2 -m trainer train …",
    "multiturn_qa": "questions about a text, each leaning on the one before",
    "multiturn_tool_calling": "the calculator's problems, with an example of each batch",
    "calculator": "GSM8K's arithmetic by multi-turn calculator calls; a tiny Qwen3 on the CPU, in about a minute",
    "calculator_trl": "the same, trained by TRL's GRPOTrainer in place of our loop; the same names of metrics",
    "joint_controller": "an adaptive model's depth, early exit and tokens, chosen for each sample under a latency budget",
    "email_agent": "questions about an inbox, answered by searching and reading it; ART-E's tools and reward",
    "mixture_judge": "six sources by domain ratios, graded by rule, by running code or by an LLM judge, with its costs",
}


def _none(settings: Any) -> Sequence[Collector]:
    return ()


def _nothing(settings: Any) -> Mapping[str, Any]:
    return {}


def _by_our_loop(course: Course, state: State) -> float | None:
    from trainer import loop

    return loop.train(course, state)


@dataclass(frozen=True)
class Recipe:
    name: str
    project: str  # the project of its runs, unless $WANDB_PROJECT or --wandb-project names one
    settings: type[Settings]
    quick: Mapping[str, Any]  # what --quick changes in the settings
    problems: Callable[[Any, Path | None], Problems]  # (settings, --data)
    task: Callable[[Any], Task]  # (settings)
    collectors: Callable[[Any], Sequence[Collector]] = _none  # (settings): what it logs beside the loop's own
    tags: tuple[str, ...] = ("grpo",)
    uploads: bool = True  # whether syncd uploads its runs, unless --wandb or --no-wandb says so
    tensorboard: bool = False  # whether its metrics are written for TensorBoard too
    compute: str = "single"  # or accelerate, or ddp: see `trainer.compute`
    auto_name: str = "{recipe}-{time}"  # of a run that nobody named; any setting may stand in it
    config: Callable[[Any], Mapping[str, Any]] = _nothing  # (settings): more of what the run's config says
    variables: Mapping[str, str] = field(default_factory=dict)  # environment variable → setting
    train: Callable[[Course, State], float | None] = _by_our_loop  # who trains; returns the held-out reward
    resumes: bool = True  # whether who trains can go on from a checkpoint


def load(name: str) -> Recipe:
    """Return the recipe of this name, with everything that it imports."""
    if name not in SUMMARIES:
        near = difflib.get_close_matches(name, SUMMARIES, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise UnknownRecipe(f"there is no recipe {name!r}. {hint}The recipes are: {', '.join(SUMMARIES)}.")
    recipe: Recipe = importlib.import_module(f"trainer.recipes.{name}").RECIPE
    return recipe
