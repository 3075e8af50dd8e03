"""Seals runs that are over, so that they are small and quickly asked, in a child that ends when it is done.

    Daemon ──a run is over and uploaded──▶ offer ──▶ `eventlog seal`, some runs at a time

Invariants
----------
* One child at a time, with the least right to the processor; uploads wait for none.
* Nothing is removed: that is `eventlog clean`'s, when a person says so.
* A child that fails, or is killed with the daemon, costs nothing: the log is whole. What it left is said once, and tried again
  by the next daemon.
* A child that cannot be started, as where no process or no file may be opened, is tried again and again; that is said once.

What is sealed, and how it is proven, is `eventlog/seal.py`'s; here is when.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from eventlog.child import command, environment
from eventlog.seal import to_seal

log = logging.getLogger("syncd")

# A child costs half a second before it seals anything.
_AT_ONCE = 16
_NICE = 19
# What a machine lacks now it may have in a while.
_AGAIN_S = 60.0


class Sealer:
    """Takes runs that are over, and seals them while `run` runs."""

    def __init__(
        self, sealing_command: Sequence[str] = tuple(command("eventlog", "seal")), again_s: float = _AGAIN_S
    ) -> None:
        self._command = sealing_command
        self._again_s = again_s
        self._is_hindered = False
        self._offered: dict[Path, None] = {}
        self._is_offered = asyncio.Event()
        self._failed: set[Path] = set()

    def offer(self, run_dir: Path) -> None:
        """Take a run that is over; one of which nothing is left to seal, or that could not be sealed, is left alone."""
        if run_dir not in self._failed and to_seal(run_dir):
            self._offered[run_dir] = None
            self._is_offered.set()

    async def run(self) -> None:
        """Seal what is offered, until this is cancelled."""
        while True:
            await self._is_offered.wait()
            batch = list(self._offered)[:_AT_ONCE]
            child = await self._begin(batch)
            if child is None:
                await asyncio.sleep(self._again_s)
                continue
            await self._seal(batch, child)
            for run_dir in batch:
                del self._offered[run_dir]
            if not self._offered:
                self._is_offered.clear()

    async def _begin(self, run_dirs: list[Path]) -> asyncio.subprocess.Process | None:
        """Return a child that seals these runs, or None if none can be started just now."""
        nothing, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
        try:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                *map(str, run_dirs),
                env=environment(),
                stdin=nothing,
                stdout=nothing,
                stderr=pipe,
            )
        except OSError as error:
            if not self._is_hindered:
                log.warning(
                    "no process can be started that seals runs: %s; it is tried again every %g s, and costs nothing but room",
                    error,
                    self._again_s,
                )
            self._is_hindered = True
            return None
        if self._is_hindered:
            log.info("runs are sealed again")
        self._is_hindered = False
        return child

    async def _seal(self, run_dirs: list[Path], child: asyncio.subprocess.Process) -> None:
        try:
            # It may be over already.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, child.pid, _NICE)
            _, said = await child.communicate()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
            raise
        left = [run_dir for run_dir in run_dirs if to_seal(run_dir)]
        # Damage is said once, not at each look.
        self._failed.update(left)
        if left:
            log.warning(
                "not everything was sealed: %s", said.decode(errors="replace").strip() or child.returncode
            )


def can_seal() -> bool:
    """Whether what sealing needs is installed."""
    return find_spec("pyarrow") is not None
