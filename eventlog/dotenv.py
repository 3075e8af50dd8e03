"""What a `.env` file says: variables for whoever is started beside it.

Reading it puts nothing into the environment: that is for a command to decide.
"""

from __future__ import annotations

import re
from pathlib import Path

# A name, and a value that is quoted, or ends before a comment.
_LINE = re.compile(r"""\s*(?:export\s+)?(\w+)\s*=\s*(?:'([^']*)'|"([^"]*)"|(.*?))\s*(?:(?<!\S)\#.*)?""")


def variables_in(text: str) -> dict[str, str]:
    """
    >>> variables_in("export WANDB_PROJECT='my runs'  # ours")
    {'WANDB_PROJECT': 'my runs'}
    """
    lines = (_LINE.fullmatch(line) for line in text.splitlines())
    return {line[1]: line[2] or line[3] or line[4] or "" for line in lines if line}


def load_dotenv(path: Path = Path(".env")) -> dict[str, str]:
    """Return the variables in a `.env` file; none if there is no such file, or it cannot be read."""
    # A pipe or a directory of that name is somebody else's.
    if not path.is_file():
        return {}
    try:
        return variables_in(path.read_text(encoding="utf-8-sig", errors="replace"))
    except OSError:
        return {}
