"""What may keep uploads from happening on this machine, and what to do about each.

    machine, settings, roots, one question to the server  ──▶  Finding, Finding, …

Invariants
----------
* Each thing that is looked at has a finding, also where all is well: what is not listed was not looked at.
* Whatever is not well says how it is mended, in words that can be typed.
* Nothing is changed, and nothing but one question is sent.
* The key is never shown.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from eventlog import roots as known_roots
from eventlog.reader import find_runs
from syncd import credentials, mounts
from syncd.instance import Instance, NotToBeSeen
from syncd.status import lines_of, obstacle

if TYPE_CHECKING:
    from syncd.http import Answer

WELL, ODD, BAD = "well", "odd", "bad"

# A token or a signature may be refused beyond some minutes; W&B's own times are ours.
_CLOCK_OFF_S = 60.0
_DISK_ODD_BYTES, _DISK_BAD_BYTES = 2 * 1024**3, 100 * 1024**2
_INODES_ODD = 10_000
# Of the machine's watches so many may be ours before others have too few.
_WATCHES_PART = 0.5
_INOTIFY = Path("/proc/sys/fs/inotify")
_OLDEST_SDK = (0, 20)
# Of ten thousand runs nearly all were uploaded long ago; `status` lists every one that cannot be.
_LATEST_RUNS = 200
_NAMED_RUNS = 3


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    """What was looked at, the same in every run."""
    state: str
    """`well`, `odd` (it works, with a loss of speed or comfort) or `bad`."""
    said: str
    mend: str | None = None


def findings(
    instance: Instance, roots: Sequence[Path], url: str, probe: Callable[[], Answer]
) -> Iterator[Finding]:
    """Look at everything; `probe` asks the server who the key belongs to."""
    yield _daemon(instance)
    has_key = credentials.api_key(url) is not None
    yield _key(url, has_key)
    answer = probe()
    yield reached(url, answer, has_key)
    if answer.status is not None and has_key:
        yield clock(answer.headers.get("date"), time.time())
    yield _state_dir(instance.directory)
    damaged = known_roots.unreadable()
    if damaged is not None:
        what, _, mend = damaged.partition(". ")
        yield Finding("roots", BAD, what, mend)
    registered = set(known_roots.registered())
    page = instance.page()
    for root in roots:
        yield from _root(root, root in registered)
        if page and not known_roots.is_watched(root, page):
            yield Finding(
                f"daemon on {root}", BAD, "the syncd that runs was started for other roots",
                "syncd stop, then syncd start without --root: it looks at every root that a run was logged to",
            )  # fmt: skip
        yield from runs(root)
    yield from watches([root for root in roots if _is_watched(root)], _INOTIFY)
    yield _versions()


def _daemon(instance: Instance) -> Finding:
    try:
        holder = instance.holder()
    except NotToBeSeen as error:
        what, _, mend = str(error).partition(": ask ")
        return Finding("daemon", ODD, what, f"ask {mend}")
    if holder is None:
        return Finding("daemon", ODD, "no syncd runs here", "syncd start, or once: syncd sync")
    page = instance.page()
    if page.get("state") == "offline":
        return Finding(
            "daemon", ODD, f"{holder} is offline: {page.get('error') or 'no reason said'}", "see below"
        )
    if page.get("degraded"):
        return Finding(
            "daemon", ODD, f"{holder} runs, degraded: {page['degraded']}",
            "nothing is lost: it costs some seconds of latency, and is tried again by itself",
        )  # fmt: skip
    return Finding("daemon", WELL, f"{holder} runs")


def _key(url: str, has_key: bool) -> Finding:
    if not has_key:
        return Finding("key", BAD, f"there is no API key for {url}", "wandb login, or set WANDB_API_KEY")
    return Finding("key", WELL, f"there is one for {url}")


def reached(url: str, answer: Answer, has_key: bool = True) -> Finding:
    """
    >>> from syncd.http import Answer
    >>> reached("https://w", Answer(200, content={"data": {"viewer": {"entity": "me"}}})).said
    'https://w answers, and knows the key: me'
    >>> reached("https://w", Answer(None, error="no route to host")).mend
    'nothing is lost meanwhile; behind a proxy set HTTPS_PROXY, and for another server WANDB_BASE_URL'
    """
    if answer.status is None:
        return Finding(
            "server", BAD, f"{url} does not answer: {answer.error}",
            "nothing is lost meanwhile; behind a proxy set HTTPS_PROXY, and for another server WANDB_BASE_URL",
        )  # fmt: skip
    if not has_key:
        return Finding("server", WELL, f"{url} was not asked: there is no key to ask with")
    viewer = answer.data.get("viewer")
    if answer.status == 200 and isinstance(viewer, dict):
        return Finding(
            "server",
            WELL,
            f"{url} answers, and knows the key: {viewer.get('entity') or 'no default entity'}",
        )
    if answer.status in (200, 401, 403):
        return Finding(
            "server", BAD, f"{url} refuses the key", "wandb login --relogin, or another WANDB_API_KEY"
        )
    return Finding(
        "server",
        BAD,
        f"{url} answers with {answer.status}: {answer.error}",
        "wait; syncd tries again by itself",
    )


def clock(date: str | None, now_s: float) -> Finding:
    """
    >>> clock("Fri, 21 Nov 2025 08:00:00 GMT", 1_763_712_010.0).state
    'well'
    >>> clock("Fri, 21 Nov 2025 08:00:00 GMT", 1_763_715_600.0).said
    'this machine is 3,600 s ahead of the server'
    """
    try:
        theirs_s = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return Finding("clock", WELL, "the server does not say its time")
    off_s = now_s - theirs_s
    if abs(off_s) <= _CLOCK_OFF_S:
        return Finding("clock", WELL, "as the server's")
    way = "ahead of" if off_s > 0 else "behind"
    return Finding(
        "clock", ODD, f"this machine is {abs(off_s):,.0f} s {way} the server",
        "set it (timedatectl set-ntp true, or ask who runs the machine): W&B's pages show these times",
    )  # fmt: skip


def _state_dir(directory: Path) -> Finding:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = directory / f".doctor.{os.getpid()}"
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        return Finding(
            "state", BAD, f"{str(directory)!r} cannot be written: {error.strerror}",
            "set TIDELOG_STATE_DIR to a directory that can",
        )  # fmt: skip
    return Finding("state", WELL, str(directory))


def _root(root: Path, is_registered: bool) -> Iterator[Finding]:
    name = f"root {root}"
    if not os.path.isdir(root):
        gone = f"syncd doctor --forget {shlex.quote(str(root))}" if is_registered else "give another --root"
        yield Finding(
            name, ODD, "is not there, or not to be seen by this user", f"if it is gone for good: {gone}; else mount it",
        )  # fmt: skip
        return
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            name,
            BAD,
            "may not be read and written by this user",
            f"chown or chmod u+rwx {root}, or run syncd as who trains",
        )
        return
    kind = mounts.kind_of(root.resolve())
    if not mounts.tells_all(kind):
        yield Finding(
            name, ODD, f"lies on {kind}: what other machines write is found by looking, not heard of",
            "nothing to do: it costs some seconds of latency, and no data",
        )  # fmt: skip
    else:
        yield Finding(name, WELL, f"readable and writable, on {kind or 'an unknown file system'}")
    disk = os.statvfs(root)
    yield space(name, disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else None)


def space(name: str, free_bytes: int, free_inodes: int | None) -> Finding:
    """
    >>> space("root /r", 50 * 2**20, None).state, space("root /r", 2**30, None).state, space("root /r", 2**40, 5).said
    ('bad', 'odd', '5 files more fit, and 1,024.0 GiB')
    """
    what = f"disk of {name.removeprefix('root ')}"
    said = f"{free_bytes / 2**30:,.1f} GiB free"
    mend = "eventlog seal and eventlog clean make room; a training goes on when the disk is full, and counts what it drops"
    if free_inodes is not None and free_inodes < _INODES_ODD:
        return Finding(what, ODD, f"{free_inodes:,} files more fit, and {free_bytes / 2**30:,.1f} GiB", mend)
    if free_bytes < _DISK_ODD_BYTES:
        return Finding(what, BAD if free_bytes < _DISK_BAD_BYTES else ODD, said, mend)
    return Finding(what, WELL, said)


def runs(root: Path) -> Iterator[Finding]:
    """Say whether this user may read and write the runs of a root to which something came last."""
    found = sorted(((_changed_ns(run_dir), run_dir) for run_dir in find_runs(root)), reverse=True)
    latest = [run_dir for _, run_dir in found[:_LATEST_RUNS]]
    name = f"runs of {root}"
    # One that somebody else uploads, or has uploaded, has no error.
    obstacles = [
        (run_dir, said)
        for run_dir in latest
        if (said := obstacle(run_dir))
        and any(line.error for line in lines_of(run_dir, time.time_ns() // 1000))
    ]
    if not obstacles:
        if latest:
            of = (
                f"the latest {len(latest):,} of {len(found):,}"
                if len(found) > len(latest)
                else f"all {len(latest):,}"
            )
            yield Finding(name, WELL, f"{of} can be read and written")
        return
    named = "; ".join(
        f"{run_dir.parent.name}/{run_dir.name}: {said}" for run_dir, said in obstacles[:_NAMED_RUNS]
    )
    more = f"; and {len(obstacles) - _NAMED_RUNS:,} more" if len(obstacles) > _NAMED_RUNS else ""
    yield Finding(
        name, BAD, f"{len(obstacles):,} cannot be uploaded by this user: {named}{more}",
        "each is mended as it says, or uploaded by a syncd of who trains; syncd status lists all of them",
    )  # fmt: skip


def _changed_ns(run_dir: Path) -> int:
    try:
        return os.stat(run_dir).st_mtime_ns
    except OSError:
        return 0


def _is_watched(root: Path) -> bool:
    return os.path.isdir(root) and mounts.tells_all(mounts.kind_of(root.resolve()))


def watches(roots: Sequence[Path], limits: Path) -> Iterator[Finding]:
    """Say whether inotify has a watch for each directory below the roots."""
    try:
        most = int((limits / "max_user_watches").read_text())
        instances = int((limits / "max_user_instances").read_text())
    except (OSError, ValueError):
        # Not Linux: whatever it has there has other limits, and `start` says what it is refused.
        return
    needed = sum(1 for root in roots for _ in os.walk(root))
    said = f"{needed:,} directories, {most:,} watches and {instances:,} instances a user"
    mend = f"sysctl fs.inotify.max_user_watches={max(524_288, 4 * needed)} (or ask who may); until then what is new is found by looking, some seconds later"
    if needed > most:
        yield Finding("inotify", ODD, f"{said}: too few", mend)
    elif needed > most * _WATCHES_PART:
        yield Finding("inotify", ODD, f"{said}: nearly too few", mend)
    else:
        yield Finding("inotify", WELL, said)


def _versions() -> Finding:
    ours, sdk = _version("tidelog"), _version("wandb")
    said = f"tidelog {ours}, Python {platform.python_version()}, {sys.platform}"
    if sdk is None:
        return Finding(
            "versions",
            ODD,
            f"{said}, no wandb",
            "pip install 'tidelog[sync]': `syncd verify` reads back through it",
        )
    if tuple(int(part) for part in sdk.split(".")[:2] if part.isdigit()) < _OLDEST_SDK:
        return Finding(
            "versions", ODD, f"{said}, wandb {sdk}", "pip install --upgrade wandb: older ones were not tried"
        )
    return Finding("versions", WELL, f"{said}, wandb {sdk}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
