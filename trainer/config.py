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
from typing import Any, Literal, TypeVar, get_args

from trainer.errors import SettingsError

# What may change when a run is resumed: none of these alters a step that is already done.
CHANGEABLE_ON_RESUME = frozenset(
    {"steps", "epochs", "eval_interval", "checkpoint_interval", "checkpoints_kept", "concurrency", "threads"}
    | {"vllm_url", "vllm_timeout_s"}
)


# The names of what `trainer.algorithms` can do; here, where no torch is needed to refuse another.
Variant = Literal["grpo", "dr_grpo", "dapo"]
Estimator = Literal["k1", "k3"]
Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Settings:
    """Settings of the GRPO loop; the defaults are tiny-grpo's where it has them."""

    seed: int = 0
    # the policy
    model_name: str = ""  # a Hugging Face name, or a directory; empty: a tiny model, trained from nothing
    dtype: str = "float32"  # of a pretrained model: float32 or bfloat16
    lora_rank: int = 0  # 0: all weights are trained
    hidden: int = 128  # of the tiny model, as are layers and vocab_size
    layers: int = 3
    vocab_size: int = 512  # at most: what the texts of a task need
    split_words: bool = False  # a word is the same tokens wherever it stands: what is to be copied needs that
    engine: str = "transformers"  # what samples: the model in this process, or a vLLM server
    vllm_url: str = "http://127.0.0.1:8000"
    vllm_timeout_s: float = 120.0  # of one request
    # the warm-up
    warmup_problems: int = 1000  # that are demonstrated
    warmup_target: float = 0.35  # greedy reward on problems that are not demonstrated
    warmup_max_steps: int = 400  # 0: none; a pretrained model is never warmed up
    # the rollout
    steps: int = 200  # rollout batches
    epochs: int = 0  # passes over the problems, in place of steps; 0: steps
    rollouts_per_step: int = 32  # prompts, hence groups, of one rollout batch
    group_size: int = 12  # trajectories of one prompt
    temperature: float = 1.0
    max_turns: int = 3  # assistant turns of a trajectory
    max_new_tokens: int = 20  # sampled tokens of one turn
    max_length: int = 128  # tokens of a trajectory
    max_prompts: int = 0  # problems to train on, at most; 0: all
    concurrency: int = 0  # episodes that are answered and graded at once; 0: as the task likes
    # the update
    variant: Variant = "grpo"
    train_batch_size: int = 0  # trajectories of one optimiser step; 0: all of a rollout batch
    epochs_per_step: int = 1  # passes over one rollout batch
    micro_batch_size: int = 48  # trajectories of one forward and backward pass: what fits the memory
    lr: float = 2e-4
    schedule: Schedule = "constant"
    lr_ramp_steps: int = 0  # optimiser steps until the full learning rate
    kl_weight: float = 0.01
    kl_estimator: Estimator = "k3"
    clip_eps: float = 0.2
    clip_high: float = 0.0  # of ratios above 1; 0: as clip_eps, and 0.28 for dapo
    importance_cap: float = 2.0  # of the weights that correct for a sampler that is another program
    max_norm: float = 1.0  # gradients are clipped to this L2 norm
    # what is looked at, kept and shown
    eval_size: int = 128  # held-out problems
    eval_interval: int = 10  # rollout batches
    checkpoint_interval: int = 5  # rollout batches
    checkpoints_kept: int = 2  # the newest, beside the best
    threads: int = 0  # of torch; 0: its own default, one for each core
    trajectory_table: str = "sample"  # what W&B gets of each rollout batch: off, sample or all
    trajectory_table_rows: int = 10  # of a sample: the newest

    def __post_init__(self) -> None:
        least: dict[str, float] = {
            "seed": 0,
            "lora_rank": 0,
            "hidden": 8,
            "layers": 1,
            "vocab_size": 300,
            "vllm_timeout_s": 0.1,
            "warmup_problems": 1,
            "warmup_target": 0.0,
            "warmup_max_steps": 0,
            "steps": 1,
            "epochs": 0,
            "rollouts_per_step": 1,
            "group_size": 2,  # a group of one has no advantage
            "temperature": 0.01,  # 0 is greedy: every group would be all equal
            "max_turns": 1,
            "max_new_tokens": 1,
            "max_length": 16,
            "max_prompts": 0,
            "concurrency": 0,
            "train_batch_size": 0,
            "epochs_per_step": 1,
            "micro_batch_size": 1,
            "lr": 0.0,
            "lr_ramp_steps": 0,
            "max_norm": 0.0,
            "kl_weight": 0.0,
            "clip_eps": 0.0,
            "clip_high": 0.0,
            "importance_cap": 0.0,
            "eval_size": 1,
            "eval_interval": 1,
            "checkpoint_interval": 1,
            "checkpoints_kept": 1,
            "threads": 0,
            "trajectory_table_rows": 1,
        }
        require_at_least(self, least)
        if self.seed >= 2**32:
            raise SettingsError(
                f"setting 'seed' is {self.seed!r}; it must be below 2**32, as NumPy's seeds are."
            )
        choices = {
            "dtype": ("float32", "bfloat16"),
            "engine": ("transformers", "vllm"),
            "variant": get_args(Variant),
            "schedule": get_args(Schedule),
            "kl_estimator": get_args(Estimator),
            "trajectory_table": ("off", "sample", "all"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise SettingsError(
                    f"setting {key!r} is {getattr(self, key)!r}; it is {', '.join(allowed[:-1])} or {allowed[-1]}."
                )
        if self.hidden % 8:
            raise SettingsError(
                f"setting 'hidden' is {self.hidden!r}; it must be a multiple of 8: four heads, each of even size."
            )
        if self.engine == "vllm" and not self.lora_rank:
            raise SettingsError(
                "setting 'engine' is 'vllm', and its server takes new weights as a LoRA adapter: "
                "give --set lora_rank=16, or another rank."
            )

    @property
    def n_demonstrated(self) -> int:
        """How many problems are demonstrated in the warm-up: none to a pretrained model, which it would ruin."""
        return 0 if self.model_name else self.warmup_problems

    @property
    def clip_high_eps(self) -> float:
        """How far a ratio may rise above 1: DAPO's "clip-higher" is 0.28."""
        return self.clip_high or (0.28 if self.variant == "dapo" else self.clip_eps)

    @property
    def max_sampled_tokens(self) -> int:
        """The most tokens that the policy can have sampled in one trajectory: Dr. GRPO's L_max."""
        return min(self.max_turns * self.max_new_tokens, self.max_length)

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


def from_variables(variables: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that environment variables give; one that is set to nothing gives nothing.

    >>> from_variables({"LEARNING_RATE": "lr"}, {"LEARNING_RATE": "1e-5", "HOME": "/"})
    {'lr': '1e-5'}
    """
    return {setting: environ[name] for name, setting in variables.items() if environ.get(name)}


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
