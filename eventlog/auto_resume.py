"""`resume="auto"`: which run ended badly here, so that the next process of the same script continues it.

    <root>/<project>/.auto-resume.json   {"run_id": …}     while a run that was begun so has not finished well

Invariants
----------
* The file is replaced by rename: it names a run, or is not there.
* A disk that refuses it costs the resumption, never the run.

Whether the run can be continued is decided by `entry`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import orjson

from eventlog.segment import directory_name

_FILE = ".auto-resume.json"


def remembered(root: Path, project: str) -> str | None:
    """Return the id of the run that did not finish well, if there is one."""
    try:
        found = orjson.loads(_file(root, project).read_bytes())["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and found else None


def remember(root: Path, project: str, run_id: str) -> None:
    """Let the next process continue this run, unless it is forgotten first."""
    file = _file(root, project)
    temporary = file.with_name(f"{_FILE}.{os.urandom(4).hex()}")
    with suppress(OSError):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, orjson.dumps({"run_id": run_id}) + b"\n")
        finally:
            os.close(fd)
        os.replace(temporary, file)


def forget(root: Path, project: str, run_id: str | None = None) -> None:
    """Let the next process begin anew; with `run_id`, only if this is the run that it would continue."""
    if run_id is None or remembered(root, project) == run_id:
        with suppress(OSError):
            _file(root, project).unlink()


def _file(root: Path, project: str) -> Path:
    return root / directory_name(project) / _FILE
