r"""What kind of file system a path lies on, and whether the kernel tells there of what others write.

Decides by the kernel's table of mounts, which costs one read; the path itself is not touched.
"""

from __future__ import annotations

import os
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")

# Another machine writes on these, or the host below this one.
_NETWORK = frozenset(
    [
        "nfs",
        "nfs4",
        "lustre",
        "cifs",
        "smb3",
        "smbfs",
        "gpfs",
        "beegfs",
        "ceph",
        "glusterfs",
        "9p",
        "afs",
        "orangefs",
        "pvfs2",
        "panfs",
        "wekafs",
        "virtiofs",
        "vboxsf",
    ]
)
# A program of a user's answers for these, and what is behind it nobody can tell; but here it is a container's own disk.
_FUSE, _LOCAL_FUSE = "fuse", frozenset(["fuse.fuse-overlayfs"])


def tells_all(kind: str | None) -> bool:
    """Say whether inotify hears of everything that is written on this kind of file system, whoever writes it.

    >>> tells_all("ext4"), tells_all("nfs4"), tells_all("fuse.sshfs"), tells_all(None)
    (True, False, False, True)
    """
    if kind is None or kind in _LOCAL_FUSE:
        return True
    return kind not in _NETWORK and kind.partition(".")[0] != _FUSE


def kind_of(path: Path) -> str | None:
    """Return the kind of file system that `path`, which has no links in it, lies on; None where nobody says."""
    try:
        table = os.fsdecode(MOUNTS.read_bytes())
    except OSError:
        # Not Linux.
        return None
    return kind_in(table, path)


def kind_in(table: str, path: Path) -> str | None:
    r"""Return the kind of file system of a path by a table of mounts: the deepest above it, of equals the last.

    >>> table = "dev / ext4 rw 0 0\nsrv:/home /home nfs4 rw 0 0\nx /home/me/my\\040runs fuse.sshfs rw 0 0\n"
    >>> kind_in(table, Path("/home/me/runs")), kind_in(table, Path("/homes"))
    ('nfs4', 'ext4')
    >>> kind_in(table, Path("/home/me/my runs/a"))
    'fuse.sshfs'
    """
    found: tuple[int, str] | None = None
    # Of the signs that end a line elsewhere, the kernel escapes only this one in a name.
    for line in table.split("\n"):
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        name = os.fsencode(fields[1]).decode("unicode_escape").encode("latin-1")
        point = Path(os.fsdecode(name))
        if path.is_relative_to(point) and (found is None or len(point.parts) >= found[0]):
            found = len(point.parts), fields[2]
    return found[1] if found else None
