"""A training script that only logs: `python -m tests.exactly_once.logging_trainer ROOT RUN_ID ROWS PAUSE_S`.

Row i holds `x = i`, so that who compares needs nothing but the numbers. It goes on after the last row of the log if
the run exists, and prints the number of each row once `log` has returned.
"""

from __future__ import annotations

import sys
import time

import eventlog


def main() -> None:
    root, run_id, rows, pause_s = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    run = eventlog.init(
        project="proof", id=run_id, root=root, resume="allow", config={"rows": rows, "run": run_id}
    )
    run.define_metric("eval/*", step_metric="x")
    for i in range(run.step, rows):
        row = {"x": i, "loss": 1.0 / (1 + i), "text": "é" * (i % 50), "nested": {"half": i / 2}}
        run.log({**row, "eval/x": i} if i % 10 == 0 else row, step=i)
        print(i, flush=True)
        time.sleep(pause_s)
    run.finish()


if __name__ == "__main__":
    main()
