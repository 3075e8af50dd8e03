"""What a run has saved, given back to its script.

Invariants
----------
* Content comes back only whole: it is checked against its name.
* Nothing is followed out of the run's directory, and nothing in it is changed.
* What is given back is its user's alone, as all of a run is.

Nothing is fetched from a server.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from eventlog.piece import primaries
from eventlog.reader import read
from eventlog.store import FILES_DIR, copied


def restore(run_dir: Path, name: str, where: Path) -> bool:
    """Write what was last saved as `name` to `where`; return whether there was such a file."""
    sha256 = None
    for writer in primaries(run_dir):
        for record in read(run_dir, "files", writer):
            if record.kind == "file" and record.data["path"] == name:
                sha256 = record.data["sha256"]
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        return False
    content = Path(run_dir, FILES_DIR, sha256)
    if content.is_symlink() or not content.is_file():
        return False
    for directory in reversed(where.parents):
        # `parents=True` would use the umask.
        if not directory.is_dir():
            directory.mkdir(0o700, exist_ok=True)
    temporary = where.with_name(f".{where.name}.{os.urandom(4).hex()}")
    if copied(content, temporary).sha256 != sha256:
        os.unlink(temporary)
        return False
    os.replace(temporary, where)
    return True
