"""How the daemon is kept running by others: a systemd user unit, and what to type where there is no systemd.

Invariants
----------
* The unit names this environment's own interpreter, so that it starts what the user typed.
* A unit that somebody else wrote is never replaced.
* Who is not systemd's child tells it nothing.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Sequence
from pathlib import Path

UNIT = "syncd.service"
_OURS = "# Written by `syncd service --install`."


class NotOurs(Exception):
    """There is a unit of that name, which we did not write."""


def unit(interpreter: str, roots: Sequence[Path], environment: dict[str, str]) -> str:
    r"""Return the text of the unit.

    >>> text = unit("/venv/bin/python", [Path("/data/my runs")], {"WANDB_BASE_URL": "https://w"})
    >>> [line for line in text.splitlines() if line.startswith(("ExecStart", "Environment"))]
    ['Environment="PYTHONSAFEPATH=1"', 'Environment="WANDB_BASE_URL=https://w"', 'ExecStart="/venv/bin/python" -m syncd start --foreground "--root=/data/my runs"']
    """
    arguments = "".join(f" {_quoted(f'--root={root}')}" for root in roots)
    # systemd starts it in the home directory, of which nothing is to be imported.
    given = {"PYTHONSAFEPATH": "1", **environment}
    variables = "".join(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in given.items())
    return f"""{_OURS}
[Unit]
Description=Uploads event logs to Weights & Biases
Documentation=man:systemd.service(5)

[Service]
Type=notify
{variables}ExecStart={_quoted(interpreter)} -m syncd start --foreground{arguments}
Restart=on-failure
RestartSec=10
# Exit code 3: another syncd runs already.
RestartPreventExitStatus=3
TimeoutStopSec=30
UMask=0077
NoNewPrivileges=true
LockPersonality=true
RestrictRealtime=true
RestrictSUIDSGID=true

[Install]
WantedBy=default.target
"""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def install(text: str, directory: Path) -> Path:
    """Write the unit where systemd looks for a user's, or raise `NotOurs` or `OSError`."""
    path = directory / UNIT
    if path.exists() and not path.read_text(errors="replace").startswith(_OURS):
        raise NotOurs(
            f"{path} is there, and was not written by syncd. Remove it, or add what `syncd service` prints to it."
        )
    directory.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{UNIT}.{os.getpid()}")
    # A proxy's address may have a password in it.
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    os.replace(temporary, path)
    return path


def unit_directory(environ: dict[str, str]) -> Path:
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def without_systemd(interpreter: str, roots: Sequence[Path]) -> str:
    """Return what to type on a machine that has none, as login nodes of clusters."""
    arguments = " ".join(f"--root={shlex.quote(str(root))}" for root in roots)
    command = f"{shlex.quote(interpreter)} -m syncd start --foreground {arguments}".strip()
    return f"""On a login node without systemd, one of these survives the logout (where the cluster allows it):

  syncd start                                    # in the background; where logout ends it, one of the next two
  setsid nohup {command} >/dev/null 2>&1 &
  tmux new-session -d -s syncd {shlex.quote(command)}

On a compute node whose disk is wiped when the job ends, upload before it does: run.finish(sync_timeout=600), or, at the end of
the batch script, syncd sync --drain. Without network there, copy the runs to a shared file system, and upload them here: docs/clusters.md.
"""


def notify(state: str, address: str | None = None) -> None:
    """Tell systemd `READY=1`, `STATUS=…` or `STOPPING=1`, if it has started this process (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET") if address is None else address
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        try:
            # One that begins with @ is in the abstract namespace.
            to.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
        except OSError:
            # systemd waits for it, and says so; uploads need nothing of it.
            return
