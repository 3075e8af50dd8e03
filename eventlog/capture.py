"""What a run records without being asked: the console, the machine, the packages, the changes not committed.

    print ────▶ Console, or Redirect ─▶ `console` records
    machine ──▶ System ──▶ `system` records
    packages, git diff ──▶ requirements.txt, diff.patch

Invariants
----------
* Each part can be switched off, by the argument or variable that switches it off in W&B's client.
* Nothing is recorded once `stop` has returned, if it waits.

How each part finds out what it records is its own: `console`, `redirect`, `system`, `surroundings`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventlog.console import Console
from eventlog.errors import UsageError
from eventlog.system import System, gpu_facts

if TYPE_CHECKING:
    from eventlog.redirect import Redirect

# A repository on a slow file system delays the end of a short run at most by this.
_SURROUNDINGS_WAIT_S = 5.0
_INTERVAL_MIN_S = 0.1
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which parts are wanted; named and defaulted as W&B's settings."""

    console: str = "auto"
    x_disable_stats: bool = False
    x_stats_sampling_interval: float = 15.0
    x_save_requirements: bool = True
    save_code: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Wanted:
        """Return what `init(settings=…)` says, else the variables.

        >>> wanted = Wanted.of({"console": "wrap"}, {"WANDB_CONSOLE": "off", "WANDB_SAVE_CODE": "true"})
        >>> wanted.console, wanted.save_code, wanted.x_disable_stats
        ('wrap', True, False)
        """
        defaults = cls()
        found = {}
        for part in fields(cls):
            default = getattr(defaults, part.name)
            given = settings.get(part.name)
            text = str(environ.get(f"WANDB_{part.name.upper()}", "") if given is None else given)
            found[part.name] = _read(text, default)
        return cls(**found)


class Capture:
    """Records for one run, between `start` and `stop`."""

    def __init__(
        self,
        wanted: Wanted,
        write_console: Callable[[str, str], None],
        write: Callable[[str, Mapping[str, Any]], None],
        add_file: Callable[[str, bytes], None],
        say_once: Callable[[str, str], None],
        directory: Path,
    ) -> None:
        """`directory` is where what is printed may wait for `write_console`."""
        self._wanted = wanted
        self._write = write
        self._add_file = add_file
        self._say_once = say_once
        self._console = _console(wanted.console, write_console, directory)
        self._system = System(lambda sample: write("system", sample), wanted.x_stats_sampling_interval)
        self._surroundings: threading.Thread | None = None
        self._is_stopped = False

    def start(self) -> None:
        """Begin; what cannot be is said."""
        surroundings = threading.Thread(target=self._look_around, name="eventlog surroundings", daemon=True)
        try:
            if not self._wanted.x_disable_stats:
                self._system.start()
            surroundings.start()
        except RuntimeError as error:
            self._say_once("capture", f"neither packages nor the machine's load are recorded: {error}.")
        else:
            self._surroundings = surroundings
        for source in [] if self._wanted.console == "off" else self._console.start():
            self._say_once(f"console {source}", f"what is printed to {source} cannot be captured.")

    def flush(self) -> None:
        """Record what was printed and has no newline yet; to be called every second."""
        self._console.flush()

    def stop(self, waits: bool = True) -> None:
        """End, with what was found out so far; unless `waits`, without what other threads are about to write."""
        try:
            if self._surroundings is not None and waits:
                self._surroundings.join(_SURROUNDINGS_WAIT_S)
        finally:
            # Also after Ctrl-C.
            self._is_stopped = True
            self._system.stop(waits)
            self._console.stop()

    def _look_around(self) -> None:
        try:
            self._record_surroundings()
        except UsageError:
            # The run has ended meanwhile.
            pass
        except OSError as error:
            self._say_once("surroundings", f"what the run runs with could not be recorded: {error}.")

    def _record_surroundings(self) -> None:
        from eventlog import surroundings

        if self._wanted.x_save_requirements:
            self._add_file("requirements.txt", surroundings.requirements().encode())
        patch = surroundings.patch() if self._wanted.save_code else None
        if patch is not None:
            self._add_file("diff.patch", patch)
        machine = gpu_facts() if not self._wanted.x_disable_stats else {}
        if machine and not self._is_stopped:
            self._write("machine", machine)


def _console(mode: str, write: Callable[[str, str], None], directory: Path) -> Console | Redirect:
    if mode == "redirect":
        # Imported by who asks for it: it needs what only a terminal does.
        from eventlog.redirect import Redirect

        return Redirect(write, directory)
    return Console(write)


def _read(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        return text.lower() in _TRUE if text.lower() in (*_TRUE, *_FALSE) else default
    if isinstance(default, float):
        try:
            return max(_INTERVAL_MIN_S, float(text))
        except ValueError:
            return default
    return text or default
