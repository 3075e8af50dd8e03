"""File systems without locks, as NFS without its lock service."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

# What the kernel and its file systems answer there.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)

# The first thing that a process runs which is to find none: see `no_locks`.
NO_LOCKS_AT_ALL = """
import fcntl
from tests.locks import no_locks
fcntl.flock = no_locks()
"""


def no_locks(says: int = errno.ENOLCK) -> Callable[[int, int], None]:
    """Return what stands in for `fcntl.flock` there."""

    def flock(fd: int, operation: int) -> None:
        raise OSError(says, os.strerror(says))

    return flock
