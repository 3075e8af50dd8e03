"""How often a `log()` in a tight loop stalls: python -m tests.bench.stalls PEER CALLS SECONDS

Invariants
----------
* The floor is exposed to the machine for as long as we are: a stall that is the machine's own comes with the seconds
  spent in calls, not with the number of calls.
* The two take turns, each alone: what one leaves the kernel to do is not the other's.
* A stall in which the thread waited for a processor is told from the others, by the scheduler's own account.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.apart import measured
from tests.bench.log_calls import PEERS, row_of
from tests.bench.row import Row, at_most

ROUNDS = 4
# In one round; more than a segment holds, so that the change to the next is among them.
CALLS = 250_000
STALL_S = 0.005
# After so many calls the scheduler is asked how long the thread has waited: 10 µs each time.
_ASK_EVERY = 100
_DISTINCT_ROWS = 1000
_SCHEDSTAT = Path("/proc/thread-self/schedstat")


def rows(home: Path, scale: int) -> Iterator[Row]:
    calls, rounds = CALLS // scale, 1 if scale > 1 else ROUNDS
    found: dict[str, list[dict[str, float]]] = {"floor": [], "ours": []}
    for _ in range(rounds):
        ours = measured("stalls", "ours", calls, 0, home=home)
        found["ours"].append(ours)
        found["floor"].append(measured("stalls", "floor", 0, ours["in_calls_s"], home=home))
    total = {peer: _together(each) for peer, each in found.items()}
    what = f"stalls over {STALL_S * 1e3:.0f} ms, tight"
    size = f"{rounds * calls:,} calls, and the floor's for as long"
    for peer, values in total.items():
        floor = total["floor"]
        aims = ()
        if peer == "ours":
            own, floors = (each["stalls"] - each["of_them_waiting_for_a_cpu"] for each in (values, floor))
            aims = (at_most(own, floors, "not waiting for a CPU: ≤ the floor's"),)
        yield Row(what, peer, values, aims=aims, size=size)


def _together(found: list[dict[str, float]]) -> dict[str, float]:
    total = {name: sum(each[name] for each in found) for name in found[0]}
    return total | {"longest_ms": max(each["longest_ms"] for each in found)}


def main() -> None:
    peer, calls, in_calls_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    logged = [row_of(i) for i in range(_DISTINCT_ROWS)]
    stalls: list[float] = []
    waiting = 0
    longest_s = total_s = 0.0
    i = 0
    with tempfile.TemporaryDirectory() as directory:
        log, end = PEERS[peer](directory)
        waited_s = _waited_s()
        while i < calls or total_s < in_calls_s:
            row = logged[i % _DISTINCT_ROWS]
            begin_s = time.perf_counter()
            log(row, i)
            took_s = time.perf_counter() - begin_s
            total_s += took_s
            if took_s > longest_s:
                longest_s = took_s
            if took_s > STALL_S:
                stalls.append(took_s)
                waiting += took_s - (_waited_s() - waited_s) <= STALL_S
            i += 1
            if i % _ASK_EVERY == 0 or took_s > STALL_S:
                waited_s = _waited_s()
        end()
    print(
        json.dumps(
            {
                "stalls": len(stalls),
                "of_them_waiting_for_a_cpu": waiting,
                "longest_ms": longest_s * 1e3,
                "in_calls_s": total_s,
            }
        )
    )


def _waited_s() -> float:
    """Return how long this thread was ready to run and had no processor; 0 where nobody counts that."""
    try:
        return int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


if __name__ == "__main__":
    main()
