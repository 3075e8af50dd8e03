"""The settings of a training run, and `--set key=value`.

A recipe adds fields to `Settings` by subclassing it. Every field has a default: the full training; `--quick` is a set
of overrides that the recipe names.

Invariants
----------
* Settings are frozen, flat and plain (int, float, bool, str): the run's config and a checkpoint hold them as they are.
* A value outside its range is refused before anything is started.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from trainer.errors import SettingsError

# What may change when a run is resumed: none of these alters a step that is already done.
CHANGEABLE_ON_RESUME = frozenset({"steps", "eval_interval", "checkpoint_interval", "threads"})


@dataclass(frozen=True)
class Settings:
    """Settings of the GRPO loop; the defaults are tiny-grpo's where it has them."""

    seed: int = 0
    warmup_target: float = 0.35  # greedy reward on problems that are not demonstrated
    warmup_max_steps: int = 400
    steps: int = 200  # rollout batches
    rollouts_per_step: int = 32  # prompts, hence groups, of one rollout batch
    group_size: int = 12  # trajectories of one prompt
    train_batch_size: int = 0  # trajectories of one optimiser step; 0: all of a rollout batch
    epochs_per_step: int = 1  # passes over one rollout batch
    lr: float = 2e-4
    kl_weight: float = 0.01
    clip_eps: float = 0.2
    max_norm: float = 1.0  # gradients are clipped to this L2 norm
    temperature: float = 1.0
    max_turns: int = 3  # assistant turns of a trajectory
    max_new_tokens: int = 20  # sampled tokens of one turn
    max_length: int = 128  # tokens of a trajectory
    eval_size: int = 128  # held-out problems
    eval_interval: int = 10  # rollout batches
    checkpoint_interval: int = 5  # rollout batches
    threads: int = 0  # of torch; 0: its own default, one for each core
    trajectory_table: str = "sample"  # what W&B gets of each rollout batch: off, sample or all
    trajectory_table_rows: int = 10  # of a sample: the newest

    def __post_init__(self) -> None:
        least: dict[str, float] = {
            "seed": 0,
            "warmup_target": 0.0,
            "warmup_max_steps": 0,
            "steps": 1,
            "rollouts_per_step": 1,
            "group_size": 2,  # a group of one has no advantage
            "train_batch_size": 0,
            "epochs_per_step": 1,
            "lr": 0.0,
            "kl_weight": 0.0,
            "clip_eps": 0.0,
            "temperature": 0.01,  # 0 is greedy: every group would be all equal
            "max_turns": 1,
            "max_new_tokens": 1,
            "max_length": 16,
            "eval_size": 1,
            "eval_interval": 1,
            "checkpoint_interval": 1,
            "threads": 0,
            "trajectory_table_rows": 1,
        }
        require_at_least(self, least)
        if self.trajectory_table not in ("off", "sample", "all"):
            raise SettingsError(
                f"setting 'trajectory_table' is {self.trajectory_table!r}; it is off, sample or all."
            )

    @property
    def trajectories_per_step(self) -> int:
        return self.rollouts_per_step * self.group_size

    @property
    def shards_per_epoch(self) -> int:
        """How many optimiser steps one pass over a rollout batch has."""
        size = self.train_batch_size or self.trajectories_per_step
        return -(-self.trajectories_per_step // size)

    @property
    def updates_per_step(self) -> int:
        """How many rows of the log, one for each optimiser step, a rollout batch has."""
        return self.epochs_per_step * self.shards_per_epoch


def require_at_least(settings: Settings, least: Mapping[str, float]) -> None:
    """Refuse a setting below its least value, infinity and NaN."""
    for key, bound in least.items():
        value = getattr(settings, key)
        if not bound <= value < math.inf:
            raise SettingsError(f"setting {key!r} is {value!r}; it must be at least {bound:g}, and finite.")


S = TypeVar("S", bound=Settings)


def with_overrides(settings: S, overrides: Mapping[str, Any]) -> S:
    """Return these settings with some replaced; values may be text, as on a command line.

    >>> with_overrides(Settings(), {"lr": "1e-4"}).lr
    0.0001
    """
    defaults = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    values = {}
    for key, value in overrides.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise SettingsError(
                f"there is no setting {key!r}. {hint}The settings are: {', '.join(sorted(defaults))}."
            )
        values[key] = _coerced(key, value, type(defaults[key]))
    return dataclasses.replace(settings, **values)


def parse_pairs(pairs: Iterable[str]) -> dict[str, str]:
    """Return `key=value` arguments as a dict; of a repeated key, the last value."""
    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise SettingsError(
                f"{pair!r} is not a setting. Write it as key=value, for example --set lr=1e-4."
            )
        parsed[key.strip()] = value.strip()
    return parsed


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the keys whose change would make a resumed run another run."""
    return sorted(
        key
        for key in old.keys() | new.keys()
        if key not in CHANGEABLE_ON_RESUME and old.get(key) != new.get(key)
    )


def _coerced(key: str, value: Any, kind: type) -> Any:
    if not isinstance(value, str):
        return kind(value)
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                value.lower()
            ]
        return kind(value)
    except (ValueError, KeyError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, kind.__name__)
        raise SettingsError(f"setting {key!r} is {wanted}, not {value!r}.") from None
