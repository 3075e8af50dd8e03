"""A process that seals and cleans runs when it is told to, each time in a child that may be killed at its nth call.

    stdin: {"run_dir": …, "kill_at": n or null}    stdout: {"calls": how many it made} or {"killed": true}

The calls that count are those that change something on the disk. A fork costs milliseconds, a new interpreter with
pyarrow half a second.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute
import pyarrow.parquet

from eventlog import parquet, seal

# Loaded here, with what they load in turn, so that the children need not.
assert pyarrow.parquet.ParquetWriter
assert pyarrow.compute.sum(pyarrow.array([1.0])).as_py() == 1.0
CALLS = ["open", "write", "fsync", "replace", "unlink", "ftruncate", "mkdir"]


class Calls:
    """Counts what changes the disk, and dies on the way into one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.count = 0
        self._kill_at = kill_at
        for name in CALLS:
            setattr(os, name, self._counted(getattr(os, name)))
        parquet._create = self._with_writes(parquet._create)  # type: ignore[assignment]

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.tick()
            return call(*args, **options)

        return counted

    def _with_writes(self, create: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def created(path: Path) -> Any:
            file = create(path)
            write = file.write
            # Half of what is written is what a kill in the middle leaves.
            return _Writing(
                file, lambda data: (write(data[: len(data) // 2]), self.tick(), write(data[len(data) // 2 :]))
            )

        return created

    def tick(self) -> None:
        self.count += 1
        if self.count == self._kill_at:
            signal.pthread_kill(threading.get_ident(), signal.SIGKILL)


class _Writing:
    def __init__(self, file: Any, write: Callable[[bytes], object]) -> None:
        self._file = file
        self._write = write

    def write(self, data: bytes) -> int:
        self._write(bytes(data))
        self._file.flush()
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def main() -> None:
    for line in sys.stdin:
        wanted = json.loads(line)
        said, says = os.pipe()
        child = os.fork()
        if child == 0:
            calls = Calls(wanted["kill_at"])
            run_dir = Path(wanted["run_dir"])
            seal.seal(run_dir)
            seal.clean(run_dir)
            count = calls.count
            calls = Calls(None)
            os.write(says, str(count).encode())
            os._exit(0)
        os.close(says)
        with os.fdopen(said, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        print(
            json.dumps({"calls": int(answer)} if answer else {"killed": os.WIFSIGNALED(status)}), flush=True
        )


if __name__ == "__main__":
    main()
