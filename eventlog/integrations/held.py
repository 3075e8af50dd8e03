"""The run that an integration logs to: found or begun, finished if it was begun here, and continued later.

    HeldRun.enter() ──▶ the run that was given, else the active one, else one that is begun
            finish() ─▶ ends it if it was begun here, and remembers which it was
            leave() ──▶ lets it stay the active one, for what the script itself logs
            enter() ──▶ … the same run again

Invariants
----------
* One holder, one run: what a library reports after its training is over (an evaluation, a test) continues the run.
* A run that the user began is never finished here.
* A run that was left ends with the process, or when another holder has something to log: two trainings are two runs.
* No disk ends a training for the sake of an artifact.

What is logged to it is the integrations' business.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from eventlog.not_yet import say_once
from eventlog.run import Run, active, init

# The runs whose holders have nothing to log for now.
_left: weakref.WeakSet[Run] = weakref.WeakSet()


class HeldRun:
    """One integration's run."""

    def __init__(self, given: Run | None = None) -> None:
        self.current: Run | None = None
        """The run, while it is open."""
        self._given = given
        self._is_own = False
        self.known: tuple[str, str] | None = None
        """The project and the id of the run, once there is one."""

    def enter(
        self,
        options: Callable[[], Mapping[str, Any]],
        describe: Callable[[Run], object] = lambda run: None,
    ) -> Run:
        """Return the run; `options` are those of `eventlog.init` if it has to be begun, and `describe` is called once."""
        if self.current is not None and not self.current._is_finished:
            _left.discard(self.current)
            return self.current
        given = self._given if self._given is not None and not self._given._is_finished else active()
        if given is not None and given in _left:
            given.finish()
            given = active()
        if given is not None:
            run, self._is_own = given, False
        else:
            how = dict(options())
            if self.known is not None:
                how["project"], how["id"] = self.known
                how["resume"] = "allow"
            run, self._is_own = init(**how), True
        self.current = run
        if self.known != (run.project, run.id):
            self.known = (run.project, run.id)
            describe(run)
        return run

    def finish(self, exit_code: int = 0, error: str | None = None) -> None:
        """Let the run go: it is finished if it was begun here."""
        if self.current is not None and self._is_own:
            self.current.finish(exit_code, error=error)
        self.current, self._is_own = None, False

    def leave(self) -> None:
        """Have nothing to log for now: the script may, and another holder may begin a run."""
        if self.current is not None and self._is_own:
            _left.add(self.current)

    def forget(self) -> None:
        """Finish, and begin another run the next time."""
        self.finish()
        self.known = None


@contextmanager
def said_if_it_fails(what: str) -> Iterator[None]:
    """Say once that `what` could not become an artifact, where a file could not be read or written, and go on."""
    try:
        yield
    except OSError as error:
        say_once(
            f"{what}, as an artifact,", f"could not be stored ({error}). The training and the log go on."
        )
