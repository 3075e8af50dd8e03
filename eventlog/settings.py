"""`wandb.Settings` as a script uses it: names and values, of which the ones that mean something here are known.

Invariants
----------
* Any name may be given, as in any release of W&B's client; one that does nothing here is said once.
* A name that nobody gave is None.

What the known ones mean is decided in `wishes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from eventlog.capture import Wanted
from eventlog.not_yet import say_once

# The arguments of `init` that are settings too: the setting's name, and the argument's.
ARGUMENTS = {
    "project": "project",
    "entity": "entity",
    "run_id": "id",
    "run_name": "name",
    "run_notes": "notes",
    "run_tags": "tags",
    "run_group": "group",
    "run_job_type": "job_type",
    "mode": "mode",
    "resume": "resume",
    "reinit": "reinit",
    "root_dir": "dir",
    "allow_val_change": "allow_val_change",
    "fork_from": "fork_from",
    "resume_from": "resume_from",
    "sync_tensorboard": "sync_tensorboard",
    "anonymous": "anonymous",
    "force": "force",
}
# Settings that mean something here, without an argument of their own.
OF_THEIR_OWN = frozenset(
    {
        "config_paths",
        "disable_code",
        "disable_git",
        "email",
        "git_commit",
        "git_remote_url",
        "host",
        "program",
        "quiet",
        "silent",
        "sweep_id",
        "sweep_param_path",
    }
)
# What is so whatever they say: logging starts no process, waits for no server and uploads nothing.
_TRUE_ANYWAY = frozenset(
    {
        "_disable_stats",
        "_service_wait",
        "disable_job_creation",
        "finish_timeout",
        "finish_timeout_raises",
        "init_timeout",
        "label_disable",
        "login_timeout",
        "relogin",
        "sagemaker_disable",
        "show_emoji",
        "show_info",
        "start_method",
        "strict",
        "summary_timeout",
        "symlink",
        "x_service_wait",
    }
)
_WHERE_ELSE = {
    "api_key": "is for syncd: it takes the key from WANDB_API_KEY or `wandb login`.",
    "base_url": "is for syncd: set WANDB_BASE_URL where syncd starts.",
    "http_proxy": "is for syncd: set HTTP_PROXY where syncd starts.",
    "https_proxy": "is for syncd: set HTTPS_PROXY where syncd starts.",
}


class Settings:
    """Stands in for `wandb.Settings`; `init(settings=…)` takes a dict as well."""

    def __init__(self, **given: Any) -> None:
        object.__setattr__(self, "given", given)

    @classmethod
    def of(cls, settings: Settings | Mapping[str, Any] | None) -> Settings:
        """Return the settings that `init(settings=…)` was given; say once which of them do nothing."""
        found = settings if isinstance(settings, cls) else cls(**dict(settings or {}))
        known = {part.name for part in fields(Wanted)} | ARGUMENTS.keys() | OF_THEIR_OWN | _TRUE_ANYWAY
        for name in sorted(found.given.keys() - known):
            say_once(f"Settings({name}=…)", _WHERE_ELSE.get(name, "does nothing here."))
        return found

    def copy(self, *, update: Mapping[str, Any] | None = None, **options: Any) -> Settings:
        """Return the same settings, with what `update` says."""
        return Settings(**{**self.given, **(update or {})})

    model_copy = copy

    def update_from_dict(self, settings: Mapping[str, Any]) -> None:
        self.given.update(settings)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.given)

    model_dump = to_dict

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "given":
            raise AttributeError(name)
        return self.given.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.given[name] = value

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.given.items())})"
