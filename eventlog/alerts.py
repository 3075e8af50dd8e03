"""An alert, as W&B is to send it to people.

Invariants
----------
* A call that is no alert raises before anything is recorded.

Pure: whether and when it is sent is `syncd`'s.
"""

from __future__ import annotations

import math
from datetime import timedelta
from enum import Enum
from typing import Any

# W&B's: how long it stays quiet about alerts of one title.
_WAIT_S = 60.0


class AlertLevel(Enum):
    """How loud an alert is."""

    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"


def alert_record(
    title: str, text: str, level: AlertLevel | str | None, wait_duration: float | timedelta | None
) -> dict[str, Any]:
    """Return the data of an `alert` record, or raise `ValueError`."""
    word = level.value if isinstance(level, AlertLevel) else level or "INFO"
    if word not in AlertLevel.__members__:
        raise ValueError(f"level is one of {', '.join(AlertLevel.__members__)}, not {level!r}.")
    wait_s = wait_duration.total_seconds() if isinstance(wait_duration, timedelta) else wait_duration
    if wait_s is not None and not (isinstance(wait_s, (int, float)) and 0 <= wait_s < math.inf):
        raise ValueError(f"wait_duration is seconds or a timedelta, not {wait_duration!r}.")
    return {"title": str(title), "text": str(text), "level": word, "wait_s": float(wait_s or _WAIT_S)}
