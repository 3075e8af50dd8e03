"""Which runs this process has, and what becomes of them when it ends.

    began(run) ──▶ the runs of this process ──▶ atexit: run.finish(exit code, traceback)
                                            └─▶ fork: run._after_fork(), in the child

Invariants
----------
* The exit code of a run is its process's, where that ends by an exception, by `sys.exit`, `exit` or `quit`, or at its
  last line; a `raise SystemExit` leaves no trace, and is taken for the last line. A killed process leaves no code.
* What was hooked before is called as before: nothing here swallows an exception or an exit, and a process that Ctrl-C
  ends dies of that signal, as its shell and its launcher expect.
* One run is the current one: that which was begun last, of those that were not begun beside it.

Nothing here knows what a run writes.
"""

from __future__ import annotations

import atexit
import builtins
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn, Protocol


class Ends(Protocol):
    """What is asked of a run."""

    def finish(
        self,
        exit_code: int | None = None,
        quiet: bool | None = None,
        sync_timeout: float | None = None,
        error: str | None = None,
    ) -> None: ...

    def _after_fork(self) -> None: ...


_runs: list[Any] = []
# Those that are not the current one, whatever else ends: `init(reinit="create_new")`.
_beside: list[Any] = []
# The code is None until something says it.
_ending: dict[str, Any] = {"code": None, "error": None}
_is_hooked = False
# The last exception that Python had reported when the first run began.
_reported_before: BaseException | None = None
_KEYBOARD_INTERRUPT = 255


def active() -> list[Any]:
    """Return the runs that are not finished, in the order in which they began."""
    return list(_runs)


def current() -> Any | None:
    """Return the run that stands for the module."""
    return next((run for run in reversed(_runs) if run not in _beside), None)


def began(run: Ends, is_beside: bool = False) -> None:
    """Take care of a run from now on."""
    global _is_hooked, _reported_before
    _runs.append(run)
    if is_beside:
        _beside.append(run)
    if _is_hooked:
        return
    _is_hooked = True
    _reported_before = getattr(sys, "last_value", None)
    atexit.register(_at_exit)
    os.register_at_fork(after_in_child=_after_fork_in_child)
    sys.excepthook = _noting_errors(sys.excepthook)
    sys.exit = _noting_codes(sys.exit)
    quitter: Any = type(getattr(builtins, "exit", None))
    if quitter.__module__ == "_sitebuiltins":
        quitter.__call__ = _noting_codes_of(quitter.__call__)


def ended(run: Ends) -> None:
    """Let go of a finished run."""
    for runs in (_runs, _beside):
        with suppress(ValueError):
            runs.remove(run)


def in_words(error: BaseException) -> str:
    """Return the traceback of an error."""
    import traceback

    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def exit_code_of(error: BaseException) -> int:
    """Return what a process that `error` ends exits with; 255 for Ctrl-C, as W&B's client says it."""
    if isinstance(error, SystemExit):
        return _code_of(error.code)
    return _KEYBOARD_INTERRUPT if isinstance(error, KeyboardInterrupt) else 1


def _at_exit() -> None:
    # An interactive interpreter goes on after an error.
    reported = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    if reported is _reported_before:
        reported = None
    if _ending["code"] is None and reported is not None:
        # Somebody else's hook, set after ours, has kept the error to itself.
        _note(reported)
    try:
        for run in active():
            run.finish(_ending["code"], error=_ending["error"])
    finally:
        if isinstance(reported, KeyboardInterrupt) and _ending["code"] == _KEYBOARD_INTERRUPT:
            # Whether a program ended by Ctrl-C is what Python knows of the text that it ran last; and many a module makes
            # its classes from texts, which whoever imports one just now does as well.
            with suppress(KeyboardInterrupt):
                exec("raise KeyboardInterrupt")


def _after_fork_in_child() -> None:
    for run in _runs:
        run._after_fork()


def _noting_errors(hook: Callable[..., Any]) -> Callable[..., Any]:
    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _note(error)
        hook(kind, error, trace)

    return excepthook


def _note(error: BaseException) -> None:
    _ending["code"] = exit_code_of(error)
    _ending["error"] = in_words(error)


def _noting_codes(leave: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
    # `atexit` is not told the exit code, and SystemExit never reaches the except hook.
    def exit(status: Any = None, /) -> NoReturn:
        _ending["code"] = _code_of(status)
        leave(status)

    return exit


def _noting_codes_of(leave: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
    def call(quitter: Any, code: Any = None) -> NoReturn:
        _ending["code"] = _code_of(code)
        leave(quitter, code)

    return call


def _code_of(status: Any) -> int:
    # Of a number, the system keeps the lowest byte.
    return status & 0xFF if isinstance(status, int) else int(status is not None)
