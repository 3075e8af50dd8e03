"""What a batch script runs: `python -m tests.clusters.job ROWS`.

Where it logs, and under which id, the environment says, as on a cluster.  Row i holds `x = i`, and each tenth comes with
a file.  It goes on after the last row of the log where the run exists, and prints the number of each row once `log` has
returned.  Before row `HOLD_AT` it waits until there is a file `go` in its home.  `SYNC_TIMEOUT` is for `finish`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import eventlog


def main() -> None:
    rows, hold_at, home = int(sys.argv[1]), os.environ.get("HOLD_AT"), Path(os.environ["HOME"])
    run = eventlog.init(config={"rows": rows})
    for i in range(run.step, rows):
        while str(i) == hold_at and not (home / "go").exists():
            time.sleep(0.01)
        if i % 10 == 0:
            state = home / f"state-{i}.txt"
            state.write_text(f"the state at {i}")
            run.save(str(state), base_path=str(state.parent))
        run.log({"x": i, "loss": 1 / (1 + i)}, step=i)
        print(i, flush=True)
    timeout_s = os.environ.get("SYNC_TIMEOUT")
    run.finish(sync_timeout=float(timeout_s) if timeout_s else None)
    print("finished", flush=True)


if __name__ == "__main__":
    main()
