"""A `syncd` that is wrong on purpose: it takes lines for acknowledged before they are sent.

Killed between the two, it loses lines: a proof that does not notice this proves nothing.
"""

from __future__ import annotations

from syncd import cli, daemon
from syncd.http import Answer
from syncd.run_sync import RunSync


class HastySync(RunSync):
    async def _ship(self, now_s: float) -> None:
        batch = self._shipper.next_batch(now_s, self._live and not self._events.more)
        if batch is None or self._attached is None:
            return
        self._acked(batch, Answer(200, {}, {}), now_s)
        there = self._attached
        await self._api.file_stream(there.entity, there.project, there.run_id, batch.body())


def main() -> None:
    daemon.RunSync = HastySync  # type: ignore[misc]
    cli.main()
