"""Says to the person at the terminal what happened; and once, what a call does not do.

Invariants
----------
* A closed or broken stderr fails no training.
* Of one topic, `say_once` speaks once in a process.
"""

from __future__ import annotations

import sys
from contextlib import suppress

_said: set[str] = set()


def say(text: str) -> None:
    """Tell the person at the terminal."""
    with suppress(OSError, ValueError, AttributeError):
        print(f"eventlog: {text}", file=sys.stderr, flush=True)


def say_once(name: str, instead: str) -> None:
    """Say that a name does nothing, the first time that it is used."""
    if name not in _said:
        _said.add(name)
        say(f"{name} {instead}")
