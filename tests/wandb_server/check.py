"""Compares the rows that were logged with the rows that a server holds.

Invariant: an empty list of differences means the same rows, each once, in the same order.

Rows are compared by value, NaN equal to itself; JSON key order and `1` against `1.0` do not matter.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

# The SDK and we take these at different moments; compare them by type elsewhere.
CLOCK_KEYS = ("_timestamp", "_runtime")
SHOWN = 5


def differences(
    logged: Iterable[Mapping[str, Any]],
    held: Iterable[Mapping[str, Any]],
    ignoring: Iterable[str] = CLOCK_KEYS,
) -> list[str]:
    """Return one sentence for each way in which `held` is not `logged`; none if they are the same.

    >>> rows = [{"loss": 1.0, "_step": 0}, {"loss": 0.5, "_step": 1}]
    >>> differences(rows, rows)
    []
    >>> differences(rows, [*rows, rows[1]])
    ['1 row is there too often: {"_step": 1.0, "loss": 0.5}']
    """
    ignored = frozenset(ignoring)
    wanted = [_canonical(row, ignored) for row in logged]
    found = [_canonical(row, ignored) for row in held]
    if wanted == found:
        return []
    wanted_counts, found_counts = Counter(wanted), Counter(found)
    extra = found_counts - wanted_counts
    lost = list((wanted_counts - found_counts).elements())
    doubled = [row for row in extra.elements() if row in wanted_counts]
    foreign = [row for row in extra.elements() if row not in wanted_counts]
    sentences = [
        *_sentence(lost, "lost"),
        *_sentence(doubled, "there too often"),
        *_sentence(foreign, "there that nobody logged"),
    ]
    return sentences or ["the rows are all there, each once, but in another order"]


def _canonical(row: Mapping[str, Any], ignored: frozenset[str]) -> str:
    kept = {key: _comparable(value) for key, value in row.items() if key not in ignored}
    return json.dumps(kept, sort_keys=True)


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _comparable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_comparable(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return value


def _sentence(rows: list[str], what: str) -> list[str]:
    if not rows:
        return []
    shown = ", ".join(rows[:SHOWN]) + (", …" if len(rows) > SHOWN else "")
    return [f"{len(rows)} {'row is' if len(rows) == 1 else 'rows are'} {what}: {shown}"]
