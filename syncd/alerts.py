"""Brings a run's alerts to W&B, each at most once: a person is told twice of nothing.

    records ──note──▶ waiting ──step──▶ cursor: "sent" ──▶ server
                                              └─◀── taken back by who knows that it did not arrive

Invariants
----------
* An alert is remembered as sent, durably, before it is: whoever is killed in between sends it to nobody.
* What may not have arrived is counted and never sent again.
* An alert that is refused, or too old to be news, holds nothing up; nor does a server that wants no more of them now.
* Memory is what was read at once: the caller reads no more while `is_full`.
* In a log that was made anew an alert is known by its time, and by how many there were at that time before it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from eventlog.record import Record
from syncd.attach import Attached
from syncd.shipper import Backoff, Outcome, Verdict
from syncd.status import ALERT_TOO_OLD, ALERT_UNCERTAIN
from syncd.transfer import outcome_of_answer
from syncd.wandb_api import WandbApi

MAX_AGE_S = 3600.0
WAITING_MAX = 100
# W&B counts it in a 32-bit number of milliseconds, we guess; nobody waits for a week to hear again of the same.
WAIT_MAX_S = 7 * 24 * 3600.0
# What is known not to have been carried out may be asked for again; everything else about an alert is asked once.
_NOT_CARRIED_OUT = (401, 407, 408, 425, 429)
_ACK = Outcome(Verdict.ACK)

# Where the last alert stands that is over, how many did not arrive and why: the cursor's `alerted`.
Alerted = dict[str, Any]


def in_a_log_made_anew(alerted: Alerted | None) -> Alerted | None:
    """Return what holds of `alerted` where records have other numbers now."""
    if alerted is None:
        return None
    begun: Alerted = {"writer": "", "seq": -1, "not_sent": alerted["not_sent"]}
    if "time" not in alerted:
        # Nothing is known of when it was: none of those before now is sent.
        return {**begun, "until_us": time.time_ns() // 1000}
    over = max((alerted["time"], alerted["nth"]), tuple(alerted.get("over", (0, 0))))
    return {**begun, "until_us": alerted.get("until_us", 0), "over": list(over)}


class Alerts:
    """What one run still has to tell people through one sink."""

    def __init__(
        self,
        api: WandbApi,
        attached: Attached,
        alerted: Alerted | None,
        save: Callable[[Alerted | None], object],
    ) -> None:
        """`save` makes the cursor's `alerted` durable before it returns."""
        self.alerted = alerted
        self.backoff = Backoff()
        """When the next may be sent: the lines do not wait for it."""
        self._api = api
        self._run = (attached.entity, attached.project, attached.run_id)
        self._save = save
        self._waiting: deque[tuple[str, Record]] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= WAITING_MAX

    @property
    def not_sent(self) -> dict[str, int]:
        """How many did not arrive, or may not have, by reason."""
        return dict((self.alerted or {}).get("not_sent", {}))

    def note(self, writer: str, record: Record, pieces: Sequence[str]) -> None:
        """Take the next alert of the run, unless it is over; `pieces` are the run's, in order."""
        if self.alerted is not None:
            before = self.alerted["writer"]
            done = (pieces.index(before) if before in pieces else -1, self.alerted["seq"])
            if (pieces.index(writer), record.seq) <= done:
                return
            after = self._after(writer, record)
            if [after["time"], after["nth"]] <= after.get("over", []):
                # Over in an earlier log of the run, and counted there if it did not arrive.
                self.alerted = after
                return
        self._waiting.append((writer, record))
        if len(self._waiting) == 1:
            # A backlog of old ones is none.
            self._give_up_without_asking()

    def _give_up_without_asking(self) -> bool:
        """Whether the next one need not be sent, and is counted."""
        writer, record = self._waiting[0]
        after = self._after(writer, record)
        if time.time() - record.time_us / 1e6 > MAX_AGE_S:
            self._over(after, ALERT_TOO_OLD)
            return True
        if record.time_us <= after.get("until_us", 0):
            self._over(after, ALERT_UNCERTAIN)
            return True
        return False

    def _after(self, writer: str, record: Record) -> Alerted:
        before = self.alerted or {}
        # A clock set back makes no alert an earlier one.
        time_us = max(record.time_us, before.get("time", 0))
        nth = 1 + (before.get("nth", 0) if time_us == before.get("time") else 0)
        at = {"writer": writer, "seq": record.seq, "time": time_us, "nth": nth}
        return {"not_sent": {}, **before, **at}

    async def step(self) -> Outcome:
        """Send the next one; return the trouble that others may meet as well, or an ack."""
        if self._give_up_without_asking():
            return _ACK
        writer, record = self._waiting[0]
        before, after = self.alerted, self._after(writer, record)
        # Killed before the answer, nobody knows whether it arrived; who does, takes that back.
        self._save(_counted(after, ALERT_UNCERTAIN))
        answer = await self._api.alert(
            *self._run,
            str(record.data.get("title") or ""),
            str(record.data.get("text") or ""),
            str(record.data.get("level") or "INFO"),
            _wait_ms(record.data.get("wait_s")),
        )
        outcome = outcome_of_answer(answer)
        if outcome.verdict is Verdict.ACK:
            return self._over(after)
        if answer.never_left or answer.status in _NOT_CARRIED_OUT:
            self._save(before)
            return outcome
        if answer.status is not None and 400 <= answer.status < 500:
            # Some keys may log and not alert: that is no reason to hold the rows up.
            return self._over(after, f"alert refused by the server ({outcome.reason})")
        self._over(after, ALERT_UNCERTAIN)
        return outcome

    def _over(self, after: Alerted, not_sent: str | None = None) -> Outcome:
        self._waiting.popleft()
        self.alerted = _counted(after, not_sent) if not_sent else after
        return _ACK


def _wait_ms(wait_s: Any) -> int:
    """
    >>> _wait_ms(60.0), _wait_ms(None), _wait_ms(float("nan")), _wait_ms(1e20)
    (60000, 0, 0, 604800000)
    """
    wait_s = wait_s if isinstance(wait_s, (int, float)) and wait_s > 0 else 0
    return int(1000 * min(wait_s, WAIT_MAX_S))


def _counted(alerted: Alerted, reason: str) -> Alerted:
    counts = alerted["not_sent"]
    return {**alerted, "not_sent": {**counts, reason: counts.get(reason, 0) + 1}}
