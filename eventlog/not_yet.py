"""W&B's names that do nothing yet, so that a script written for W&B runs.

Invariants
----------
* Each says once what it does not do; none raises, and none is silently wrong.
* An object of these types, logged, is kept as text and marked as such.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

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


alert = _nothing("alert")
log_artifact = _nothing("log_artifact")
log_code = _nothing("log_code")
save = _nothing("save")
unwatch = _nothing("unwatch")
use_artifact = _nothing("use_artifact")
watch = _nothing("watch")


def login(*args: Any, **options: Any) -> bool:
    """Return True: logging needs no account, and `syncd` finds W&B's key where `wandb login` left it."""
    say_once(
        "login()", "does nothing: only syncd needs the key, and takes it from `wandb login` or WANDB_API_KEY."
    )
    return True


class _Unstored:
    """A value of W&B's that is not stored yet."""

    def __init__(self, *args: Any, **options: Any) -> None:
        say_once(type(self).__name__, "is not stored yet: a text stands in its place.")

    def __getattr__(self, name: str) -> Callable[..., None]:
        # `table.add_data(…)`, `artifact.add_file(…)`: whatever is done to it, nothing comes of it.
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **options: None

    def __str__(self) -> str:
        return f"<{type(self).__name__}: not stored>"


class Artifact(_Unstored):
    """Stands in for `wandb.Artifact`."""


class Audio(_Unstored):
    """Stands in for `wandb.Audio`."""


class Histogram(_Unstored):
    """Stands in for `wandb.Histogram`."""


class Html(_Unstored):
    """Stands in for `wandb.Html`."""


class Image(_Unstored):
    """Stands in for `wandb.Image`."""


class Settings(_Unstored):
    """Stands in for `wandb.Settings`."""


class Table(_Unstored):
    """Stands in for `wandb.Table`."""


class Video(_Unstored):
    """Stands in for `wandb.Video`."""
