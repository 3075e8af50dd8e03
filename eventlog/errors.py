"""What can go wrong for a caller of `eventlog`, as types.

A mistake in a call raises one of these (or `ValueError`/`TypeError`) before it has any effect. The world failing
(a full disk, a dead file system) never raises inside a training run: it is counted in `run.dropped`.
"""


class EventlogError(Exception):
    """Anything below."""


class UsageError(EventlogError):
    """A call that does not make sense now: before `init`, or after `finish`."""


class UnsupportedError(UsageError):
    """Only W&B's servers can do it, and nothing here talks to them."""


class ConfigError(EventlogError, ValueError):
    """A value of the config would change without `allow_val_change=True`, or a config file cannot be taken."""


class CommError(EventlogError):
    """Never raised: nothing here talks to a server.  It is for the scripts that catch it."""


class AuthenticationError(CommError):
    """Never raised, as `CommError`."""


class RootNotWritable(EventlogError):
    """The root cannot be created or written to, or what is written there would not be found."""


class RunExists(EventlogError):
    """`resume="never"`, and the run is there."""


class RunNotFound(EventlogError):
    """`resume="must"`, or a name given to a command, and there is no such run."""


class NotARun(EventlogError):
    """A directory without a readable `run.json`."""


class PyarrowMissing(EventlogError):
    """What is sealed cannot be read by this installation; it is intact."""


# W&B's name of the first of them.
Error = EventlogError
