"""The two of W&B's small functions that scripts call by name: `wandb.util.generate_id` and `make_artifact_name_safe`.

Both are done elsewhere; nothing is here but their names.
"""

from __future__ import annotations

from eventlog.code import safe_name as make_artifact_name_safe
from eventlog.entry import random_id as generate_id

__all__ = ["generate_id", "make_artifact_name_safe"]
