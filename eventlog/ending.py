"""Which runs this process has, and what becomes of them when it ends.

    began(run) ──▶ the runs of this process ──▶ atexit: run.finish(exit code, traceback)
                                            └─▶ fork: run._after_fork(), in the child

Invariants
----------
* The exit code of a run is its process's, whichever way that ends; a killed process leaves none.
* What was hooked before is called as before: nothing here swallows an exception or an exit.
* One run is the current one: that which was begun last, of those that were not begun beside it.

Nothing here knows what a run writes.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
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
_ending: dict[str, Any] = {"code": 0, "error": None}
_is_hooked = False


def active() -> list[Any]:
    """Return the runs that are not finished, in the order in which they began."""
    return list(_runs)


def current() -> Any | None:
    """Return the run that stands for the module."""
    return next((run for run in reversed(_runs) if run not in _beside), None)


def began(run: Ends, is_beside: bool = False) -> None:
    """Take care of a run from now on."""
    global _is_hooked
    _runs.append(run)
    if is_beside:
        _beside.append(run)
    if _is_hooked:
        return
    _is_hooked = True
    atexit.register(_at_exit)
    os.register_at_fork(after_in_child=_after_fork_in_child)
    sys.excepthook = _noting_errors(sys.excepthook)
    sys.exit = _noting_codes(sys.exit)


def ended(run: Ends) -> None:
    """Let go of a finished run."""
    for runs in (_runs, _beside):
        if run in runs:
            runs.remove(run)


def in_words(error: BaseException) -> str:
    """Return the traceback of an error."""
    import traceback

    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _at_exit() -> None:
    for run in active():
        run.finish(_ending["code"], error=_ending["error"])


def _after_fork_in_child() -> None:
    for run in _runs:
        run._after_fork()


def _noting_errors(hook: Callable[..., Any]) -> Callable[..., Any]:
    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _ending["code"] = 255 if issubclass(kind, KeyboardInterrupt) else 1
        _ending["error"] = in_words(error)
        hook(kind, error, trace)

    return excepthook


def _noting_codes(leave: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
    # `atexit` is not told the exit code, and SystemExit never reaches the except hook.
    def exit(status: Any = None, /) -> NoReturn:
        _ending["code"] = status if isinstance(status, int) else int(status is not None)
        leave(status)

    return exit
