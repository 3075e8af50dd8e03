"""What docs/clusters.md lets people paste."""

from __future__ import annotations

import re

from tests.clusters.hosts import REPOSITORY


def recipe(heading: str, number: int = 0) -> str:
    """Return the so many-th block of bash below a heading of the page."""
    page = (REPOSITORY / "docs" / "clusters.md").read_text()
    _, _, below = page.partition(f"\n## {heading}\n")
    blocks = re.findall(r"```bash\n(.*?)```", below.partition("\n## ")[0], re.DOTALL)
    return str(blocks[number])


def on(text: str, shared: str) -> str:
    """Return a script of the page, with this shared root in the place of the page's."""
    assert "SHARED=/project/me/runs" in text
    return text.replace("SHARED=/project/me/runs", f"SHARED={shared}")
