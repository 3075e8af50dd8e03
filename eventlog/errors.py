"""What can go wrong for a caller of `eventlog`, as types.

A mistake in a call raises one of these (or `ValueError`/`TypeError`) before it has any effect. The world failing
(a full disk, a dead file system) never raises inside a training run: it is counted in `run.dropped`.
"""


class EventlogError(Exception):
    """Anything below."""


class RootNotWritable(EventlogError):
    """The root cannot be created or written to."""


class RunExists(EventlogError):
    """`resume="never"`, and the run is there."""


class RunNotFound(EventlogError):
    """`resume="must"`, or a name given to a command, and there is no such run."""


class NotARun(EventlogError):
    """A directory without a readable `run.json`."""
