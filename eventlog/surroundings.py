"""What a run ran with, as the files that W&B's client makes of it: the packages, and the changes not committed.

Invariants
----------
* What cannot be found out is left out; nothing here raises for the world.
* Nothing here is for the thread that trains: a large repository takes seconds.
* No credential leaves in a patch.

Writing the files down is the caller's.  What a moment suffices to find out stands in the `start` record (`process`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from typing import Any

from eventlog.redact import key_in_bytes, without_credentials, without_key

# A larger one holds data, not code.
PATCH_MAX_BYTES = 10 * 1024 * 1024
_PATCH_TIMEOUT_S = 30.0
# So many packages are read in a millisecond: a `log` that waits for the interpreter waits no longer.
_AT_ONCE = 10
_PAUSE_S = 0.0005


def environment_of(start: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a `start` record says of where and how the run was started, by the names of W&B's `wandb-metadata.json`."""
    return {
        "os": start.get("os"),
        "startedAt": start.get("started_at"),
        "args": (start.get("argv") or [])[1:],
        "program": start.get("program"),
        "codePath": start.get("code_path"),
        "codePathLocal": start.get("code_path_local"),
        "email": start.get("email"),
        "git": start.get("git"),
        "root": start.get("cwd"),
        "host": start.get("host"),
        "executable": start.get("executable"),
        "cpu_count": start.get("cpu_count"),
    }


def requirements() -> str:
    """Return the installed packages, one `name==version` a line, as `pip install -r` reads them."""
    from importlib.metadata import distributions

    found: dict[str, str] = {}
    for n, distribution in enumerate(distributions()):
        if n % _AT_ONCE == 0:
            # Somebody trains meanwhile, and has the interpreter only while nothing is to be done here. Not by
            # `time.sleep`, which fails where a library fakes the clock.
            threading.Event().wait(_PAUSE_S)
        try:
            # Not `distribution.metadata`: the parser of mails takes five times as long, for what is not asked.
            text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
            # Old installations are one file, and not a directory.
            head = _head(text or distribution.read_text("") or "")
        except (ValueError, OSError):
            continue
        # Half-removed packages leave directories without metadata.
        if "name" in head and "version" in head:
            # The first of a name is the one that an import finds.
            found.setdefault(head["name"], head["version"])
    return "".join(f"{name}=={found[name]}\n" for name in sorted(found, key=str.lower))


def _head(text: str) -> dict[str, str]:
    """Return the fields of a package's metadata, by their names in lower case, the first of each."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if not line:
            break
        name, _, value = line.partition(":")
        fields.setdefault(name.lower(), value.strip())
    return fields


def patch(timeout_s: float = _PATCH_TIMEOUT_S) -> bytes | None:
    """Return what the working tree around the current directory has changed since its commit, for `git apply`.

    None outside a repository, where nothing has changed, and where it is too large or takes too long.  Files that git
    does not know are not in it.
    """
    command = ["git", "diff", "HEAD", "--submodule=diff", "--no-ext-diff", "--no-color"]
    try:
        git = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return None
    assert git.stdout is not None
    with git:
        # With the whole group: a filter that git runs would keep the pipe open.
        limit = threading.Timer(timeout_s, _kill_group, [git])
        limit.daemon = True
        limit.start()
        found = git.stdout.read(PATCH_MAX_BYTES + 1)
        if len(found) > PATCH_MAX_BYTES:
            _kill_group(git)
        git.wait()
        limit.cancel()
    if git.returncode != 0 or not found or len(found) > PATCH_MAX_BYTES:
        return None
    clean = without_credentials(found.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    return without_key(clean, key_in_bytes(os.environ.get("WANDB_API_KEY")))


def _kill_group(git: subprocess.Popen[bytes]) -> None:
    # Not yet waited for, so that the number is still its own.
    if git.returncode is None:
        os.killpg(git.pid, signal.SIGKILL)
