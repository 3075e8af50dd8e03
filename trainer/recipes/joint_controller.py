"""A controller that learns, by GRPO, how much of an adaptive model to run for each sample under a latency budget.

    adaptive transformer from nothing (15 s) ─ measured here ─▶ a tiny Qwen3 writes depth, exit and tokens ─ GRPO ─▶
    more right answers, fewer budgets exceeded

What is real: the adaptive model, its three knobs and what they leave out; accuracy by running it on each sample;
latencies by timing it on this machine (`latency=counted`: multiply-accumulates, for equal numbers on every machine); the
controller's gradients. With `--model-name` the controller is a pretrained model, unchanged.
What is small: the adaptive model (0.4 M), and its samples (see `trainer.adaptive`): generated families stand where a
vision-language model has its data sets.

Invariants
----------
* The adaptive model is trained from the seed, or read from `model_path` (an empty directory gets the trained one).
  A resumed training has the one that it began with, and its latencies, from the checkpoint.
* Latencies decide rewards and nothing else: no prompt or problem depends on the machine.
* Every epoch is evaluated, at its beginning; and the last one at its end.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import adaptive
from trainer.adaptive import FAMILIES, LATENCIES, AdaptiveModel, Shape, Testbed
from trainer.collectors.controller import Controller
from trainer.config import Settings, require_at_least
from trainer.errors import DataError, SettingsError
from trainer.problems import Problems
from trainer.recipes import Recipe
from trainer.tasks.controller import ControllerTask, draw_problems


@dataclass(frozen=True)
class JointControllerSettings(Settings):
    # what is chosen for
    dataset_names: str = "direct,relay,chain,mixed"  # families of samples
    train_size: int = 2000  # samples of an epoch
    budgets: str = "50,60,75,90"  # percent of the full model's latency; one for each sample
    violation_weight: float = 1.0  # of the penalty for exceeding it
    latency: str = "measured"  # or counted: the same on every machine
    # what is run
    model_path: str = ""  # a directory with an adaptive model; empty: it is trained from nothing
    adaptive_layers: int = 5
    adaptive_hidden: int = 96
    adaptive_steps: int = 175  # of its training
    # the loop
    epochs: int = 20
    eval_interval: int = 0  # always an epoch, whatever is given
    rollouts_per_step: int = (
        64  # many samples and few tries of each: what a sample needs is learnt by comparing samples
    )
    group_size: int = 4
    kl_weight: float = 0.05  # less, and the policy settles on one choice for all samples
    max_turns: int = 1
    max_new_tokens: int = 16  # the knobs have 11 or 12
    warmup_target: float = 1.0  # demonstrations show the form, not the choice: the number of steps ends it
    warmup_max_steps: int = 200

    def __post_init__(self) -> None:
        n_problems = min(self.train_size, self.max_prompts or self.train_size)
        # Frozen, but not yet made: a curve over epochs has one point for each.
        object.__setattr__(self, "eval_interval", max(1, n_problems // max(1, self.rollouts_per_step)))
        super().__post_init__()
        require_at_least(
            self,
            {
                "train_size": self.rollouts_per_step,
                "violation_weight": 0.0,
                "adaptive_layers": 1,
                "adaptive_hidden": 8,
                "adaptive_steps": 1,
            },
        )
        if self.adaptive_hidden % 8:
            raise SettingsError(
                f"setting 'adaptive_hidden' is {self.adaptive_hidden!r}; it must be a multiple of 8: four heads of even size."
            )
        if self.latency not in LATENCIES:
            raise SettingsError(f"setting 'latency' is {self.latency!r}; it is {' or '.join(LATENCIES)}.")
        unknown = [name for name in self.families if name not in FAMILIES]
        if unknown or not self.families:
            raise SettingsError(
                f"setting 'dataset_names' is {self.dataset_names!r}; it is one or more of {', '.join(FAMILIES)}, "
                "with commas between them."
            )
        if not self.budget_percents or not all(0 < percent <= 100 for percent in self.budget_percents):
            raise SettingsError(
                f"setting 'budgets' is {self.budgets!r}; it is one or more whole percentages from 1 to 100, "
                "with commas between them."
            )

    @property
    def families(self) -> list[str]:
        return [name.strip() for name in self.dataset_names.split(",") if name.strip()]

    @property
    def budget_percents(self) -> list[int]:
        try:
            return [int(percent) for percent in self.budgets.split(",")]
        except ValueError:
            return []


def problems_for(settings: JointControllerSettings, data: Path | None) -> Problems:
    """Draw three parts from one stream."""
    if data is not None:
        raise DataError(
            "joint_controller generates its samples, and reads none from --data. "
            f"Choose their families with --dataset_names: {', '.join(FAMILIES)}."
        )
    n_warmup, n_held_out = settings.n_demonstrated, settings.eval_size
    drawn = draw_problems(
        n_warmup + n_held_out + settings.train_size,
        settings.families,
        settings.budget_percents,
        settings.seed,
    )
    return Problems(
        warmup=drawn[:n_warmup],
        held_out=drawn[n_warmup : n_warmup + n_held_out],
        train=drawn[n_warmup + n_held_out :],
        source=f"generated samples ({', '.join(settings.families)}), {_origin(settings)}",
        fingerprint=hashlib.sha256(repr(drawn).encode()).hexdigest()[:16],
    )


def _origin(settings: JointControllerSettings) -> str:
    if settings.model_path:
        return f"for the adaptive model in {settings.model_path!r}"
    return "for an adaptive model that is trained from nothing"


# Task and collector look at one testbed; it is gone with them, so that another launch makes its own.
_TESTBEDS: weakref.WeakValueDictionary[JointControllerSettings, Testbed] = weakref.WeakValueDictionary()


def testbed_for(settings: JointControllerSettings) -> Testbed:
    testbed = _TESTBEDS.get(settings)
    if testbed is None:
        testbed = Testbed(lambda: _model(settings), LATENCIES[settings.latency])
        if settings.model_path:
            _ = testbed.model  # now: one that cannot be read is refused before anything is begun
        _TESTBEDS[settings] = testbed
    return testbed


testbed_for.__test__ = False  # type: ignore[attr-defined]  # its name makes pytest think otherwise


def _model(settings: JointControllerSettings) -> AdaptiveModel:
    shape = Shape(settings.adaptive_layers, settings.adaptive_hidden)
    directory = Path(settings.model_path)
    if settings.model_path and (directory / adaptive.FILE_NAME).exists():
        model = adaptive.load(directory)
        if model.shape.layers != settings.adaptive_layers:
            raise SettingsError(
                f"the adaptive model in {settings.model_path!r} has {model.shape.layers} layers. "
                f"Give --set adaptive_layers={model.shape.layers}, or another --model_path."
            )
        return model
    model = adaptive.train_from_nothing(shape, settings.adaptive_steps, settings.seed)
    if settings.model_path:
        try:
            adaptive.save(model, directory)
        except OSError as error:
            raise DataError(
                f"the adaptive model cannot be kept in {settings.model_path!r}: {error}. "
                "Give another directory with --model_path, or none."
            ) from None
    return model


def task_for(settings: JointControllerSettings) -> ControllerTask:
    return ControllerTask(
        testbed_for(settings), settings.adaptive_layers, settings.violation_weight, settings.seed
    )


def collectors_for(settings: JointControllerSettings) -> Sequence[Controller]:
    return [Controller(testbed_for(settings))]


# About a minute and a half of one core, 15 s of it for the adaptive model.
QUICK = {
    "hidden": 64,
    "layers": 2,
    "train_size": 512,
    "epochs": 10,
    "lr": 7e-4,
    "warmup_problems": 500,
    "checkpoint_interval": 8,
}

RECIPE = Recipe(
    name="joint_controller",
    project="molmo-controller",
    settings=JointControllerSettings,
    quick=QUICK,
    problems=problems_for,
    task=task_for,
    collectors=collectors_for,
    tags=("grpo", "joint-controller"),
    auto_name="grpo-g{group_size}-lr{lr}-{time}",
    config=lambda settings: {"batch_size": settings.rollouts_per_step},
    uploads=False,
    tensorboard=True,
)
