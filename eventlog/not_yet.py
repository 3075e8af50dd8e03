"""W&B's names that do nothing yet, so that a script written for W&B runs.

Invariants
----------
* Each says once what it does not do; none raises, and none is silently wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from eventlog.capture import Wanted

_said: set[str] = set()


def say_once(name: str, instead: str) -> None:
    """Say that a name does nothing, the first time that it is used."""
    if name not in _said:
        _said.add(name)
        with suppress(OSError, ValueError, AttributeError):
            print(f"eventlog: {name} {instead}", file=sys.stderr, flush=True)


def _nothing(name: str, result: Any = None) -> Callable[..., Any]:
    def does_nothing(*args: Any, **options: Any) -> Any:
        say_once(f"{name}()", "does nothing yet: nothing is stored.")
        return result

    does_nothing.__name__ = does_nothing.__qualname__ = name
    does_nothing.__doc__ = f"Stand in for `wandb.{name}`: say once that it does nothing, and do nothing."
    return does_nothing


log_code = _nothing("log_code")
unwatch = _nothing("unwatch")
use_artifact = _nothing("use_artifact")
watch = _nothing("watch")


def login(*args: Any, **options: Any) -> bool:
    """Return True: logging needs no account, and `syncd` finds W&B's key where `wandb login` left it."""
    say_once(
        "login()", "does nothing: only syncd needs the key, and takes it from `wandb login` or WANDB_API_KEY."
    )
    return True


class Settings:
    """Stands in for `wandb.Settings`: takes anything, and keeps it for the few parts that are here."""

    def __init__(self, **given: Any) -> None:
        self.given = given

    @classmethod
    def of(cls, settings: Settings | Mapping[str, Any] | None) -> Settings:
        """Return the settings that `init(settings=…)` was given; say once which of them do nothing."""
        found = settings if isinstance(settings, cls) else cls(**dict(settings or {}))
        known = {part.name for part in fields(Wanted)}
        for name in sorted(found.given.keys() - known):
            say_once(f"Settings({name}=…)", "does nothing here.")
        return found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "given":
            raise AttributeError(name)
        return self.given.get(name)
