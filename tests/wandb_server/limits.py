"""Who asks how often: a project's requests are counted, and those over its limit refused.

Invariants
----------
* A window begins with the first request after the last one ended; within it, so many are let through and no more.
* Every request is counted, whether it is let through or not.

There is no clock here: the caller passes `now_s`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate

Project = tuple[str, str]


@dataclass(frozen=True)
class ProjectLimit:
    """`requests` file_stream requests per project in each window of `per_s` seconds.

    retry_after: how the 429 says when to come back: "seconds", "date", or None, which leaves it to `RateLimit-Reset`.
    """

    requests: int
    per_s: float
    retry_after: str | None = "seconds"

    def __post_init__(self) -> None:
        if self.retry_after not in ("seconds", "date", None):
            raise ValueError(f"retry_after {self.retry_after!r} is unknown; use 'seconds', 'date' or None")


@dataclass
class Traffic:
    """The requests of all projects, and the limit that they meet."""

    limit: ProjectLimit | None = None
    _windows: dict[Project, tuple[float, int]] = field(default_factory=dict)
    _arrivals: dict[Project, Counter[int]] = field(default_factory=dict)

    def count(self, project: Project, now_s: float) -> None:
        self._arrivals.setdefault(project, Counter())[math.floor(now_s)] += 1

    def per_second(self, project: Project) -> dict[int, int]:
        """How many requests of every kind came in each second of the clock; seconds without any are left out."""
        return dict(self._arrivals.get(project, {}))

    def admit(self, project: Project, now_s: float) -> tuple[bool, dict[str, str]]:
        """Return whether a file_stream request is let through, and the headers that say how much is left."""
        if self.limit is None:
            return True, {}
        began_s, used = self._windows.get(project, (-math.inf, 0))
        if now_s - began_s >= self.limit.per_s:
            began_s, used = now_s, 0
        self._windows[project] = (began_s, used + 1)
        left = max(0, self.limit.requests - used - 1)
        wait_s = began_s + self.limit.per_s - now_s
        # The service counts what remains on a scale to 1000, whatever the limit is.
        headers = {
            "RateLimit-Remaining": f"{1000 * left / self.limit.requests:g}",
            "RateLimit-Reset": f"{wait_s:g}",
        }
        if used < self.limit.requests:
            return True, headers
        if self.limit.retry_after == "seconds":
            headers["Retry-After"] = str(math.ceil(wait_s))
        elif self.limit.retry_after == "date":
            headers["Retry-After"] = formatdate(math.ceil(now_s + wait_s), usegmt=True)
        return False, headers
