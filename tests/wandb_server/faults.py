"""Which fault, if any, befalls this request.  Decides only; `app` carries it out.

Invariants
----------
* The first fault added that matches is the one that happens; it counts as used whatever the client does then.
* A fault with `times` happens that often and no more; one with `for_s` lapses; any other stays until `clear()`.
* `/_test` is never faulted: the steering wheel works in every storm.

The clock is given. A lock makes it safe to add and clear from a test's thread.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Whether the request was carried out before the answer went wrong, unless the fault says otherwise.
_CARRIED_OUT = {
    "drop": False,  # the connection ends without a byte
    "hang": False,  # silence, until clear(), `hang_s` or the client's own time-out; then the request is answered
    "reset": False,  # RST after `after_bytes` of the request's body
    "slow_read": True,  # the request's body is read with a pause of `drip_s` between its parts
    "drip": True,  # the answer comes one byte per `drip_s`
    "truncate": True,  # half the answer, then the connection closes
    "status": False,  # an HTTP error
    "portal": False,  # a captive portal: 200 and a page of HTML
    "redirect": False,  # a captive portal: 302 to its page
}
# These happen while the body is on its way, so they are chosen by its head.
EARLY = frozenset({"reset", "slow_read"})


@dataclass(frozen=True)
class Fault:
    """One way to misbehave, and for which requests.

    kind: "any", "graphql", "graphql:<Operation>", "file_stream" or "files" (uploads and downloads).
    run: a run id, or "entity/project/run".  project: its name, or "entity/project".
    applied: whether the server carries the request out first (an answer lost after the commit).
    over_bytes: only for bodies longer than this.  containing: only for bodies with this text (a poison line).
        Faults that happen while the body is on its way ("reset", "slow_read") know the path alone: no `containing`,
        and of a GraphQL request neither operation nor run.
    retry_after: the header's text, seconds or a date.
    """

    action: str
    kind: str = "any"
    run: str | None = None
    project: str | None = None
    times: int | None = None
    for_s: float | None = None
    applied: bool | None = None
    status: int = 503
    retry_after: str | None = None
    over_bytes: int | None = None
    containing: str | None = None
    hang_s: float = 60.0
    drip_s: float = 0.1
    after_bytes: int = 0

    def __post_init__(self) -> None:
        if self.action not in _CARRIED_OUT:
            raise ValueError(f"fault {self.action!r} is unknown; use one of {', '.join(_CARRIED_OUT)}")

    @property
    def carried_out(self) -> bool:
        return _CARRIED_OUT[self.action] if self.applied is None else self.applied

    @property
    def early(self) -> bool:
        return self.action in EARLY

    def matches(self, kind: str, run: tuple[str, str, str] | None, body: bytes | int) -> bool:
        """Whether this befalls a request; of a body that is still on its way, only the length is known."""
        body_bytes = body if isinstance(body, int) else len(body)
        return (
            self.kind in ("any", kind, kind.partition(":")[0])
            and (self.run is None or (run is not None and self.run in (run[2], "/".join(run))))
            and (self.project is None or (run is not None and self.project in (run[1], "/".join(run[:2]))))
            and (self.over_bytes is None or body_bytes > self.over_bytes)
            and (self.containing is None or (isinstance(body, bytes) and self.containing.encode() in body))
        )


# What a careful client sends again: the outage is the network's or the server's, not the request's.
RETRYABLE: tuple[Fault, ...] = (
    Fault("drop"),
    Fault("drop", applied=True),
    Fault("truncate"),
    Fault("status", status=408),
    Fault("status", status=429, retry_after="0"),
    Fault("status", status=500),
    Fault("status", status=502, applied=True),
    Fault("status", status=503),
    Fault("hang", hang_s=0.05),
)


class Faults:
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._active: list[_Active] = []
        self._random: tuple[random.Random, float, Sequence[Fault]] | None = None
        self.clearings = 0  # a request that hangs goes on when this grows
        self.happened = 0

    def add(self, action: str | Fault, **fields: object) -> Fault:
        """`add("status", kind="file_stream", status=502, times=3)`; returns the fault."""
        fault = action if isinstance(action, Fault) else Fault(action, **fields)  # type: ignore[arg-type]
        with self._lock:
            self._active.append(_Active(fault, fault.times, self._now()))
        return fault

    def clear(self) -> None:
        """End every fault and release every request that hangs."""
        with self._lock:
            self._active.clear()
            self._random = None
            self.clearings += 1

    def random_misbehaviour(self, seed: int, rate: float, choose_from: Sequence[Fault] = RETRYABLE) -> None:
        """Let that share of the requests meet one of `choose_from`, the same ones for the same seed."""
        with self._lock:
            self._random = (random.Random(seed), rate, choose_from)

    def take(self, kind: str, run: tuple[str, str, str] | None, body: bytes) -> Fault | None:
        """Return the fault of this request, and count it as used."""
        with self._lock:
            fault = self._first_match(kind, run, body) or self._dice(kind, run, body)
            self.happened += fault is not None
            return fault

    def take_early(self, kind: str, run: tuple[str, str, str] | None, body_bytes: int) -> Fault | None:
        """Return the fault that befalls this request while its body comes, and count it as used."""
        with self._lock:
            fault = self._first_match(kind, run, body_bytes)
            self.happened += fault is not None
            return fault

    def _first_match(self, kind: str, run: tuple[str, str, str] | None, body: bytes | int) -> Fault | None:
        now_s = self._now()
        self._active = [active for active in self._active if not active.over(now_s)]
        for active in self._active:
            if active.fault.early is isinstance(body, int) and active.fault.matches(kind, run, body):
                if active.left is not None:
                    active.left -= 1
                return active.fault
        return None

    def _dice(self, kind: str, run: tuple[str, str, str] | None, body: bytes) -> Fault | None:
        if self._random is None:
            return None
        dice, rate, choose_from = self._random
        if dice.random() >= rate:
            return None
        fault = dice.choice(choose_from)
        return fault if fault.matches(kind, run, body) else None


@dataclass
class _Active:
    fault: Fault
    left: int | None
    since_s: float

    def over(self, now_s: float) -> bool:
        lapsed = self.fault.for_s is not None and now_s - self.since_s >= self.fault.for_s
        return lapsed or self.left == 0
