"""What can go wrong for a notebook that reads its runs through `analysis.Api()`, under W&B's names.

Nothing here derives from W&B's own types, which only importing `wandb` would bring: a notebook that says `import analysis
as wandb` and catches `wandb.errors.CommError`, or `ValueError`, catches these.
"""

from __future__ import annotations

from eventlog import errors

Error = errors.EventlogError


class CommError(errors.CommError, ValueError):
    """What was asked for is not here: a run, a project, a file, an artifact."""


class UnsupportedError(errors.UnsupportedError):
    """Only W&B's servers can do it, or it would change what is only read here."""
