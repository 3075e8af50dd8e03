"""A child of ours imports what we import, wherever a person happens to be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eventlog import child

WHERE = "import os, sys\nimport mine\nprint(mine.__file__, sys.argv[1:], __name__)\n"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory that has modules of the same names as those on `PYTHONPATH`, and as one of Python's."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text("")
        (tmp_path / name / "shows.py").write_text(WHERE)
    (tmp_path / "here" / "queue.py").write_text("raise SystemExit('of the current directory')\n")
    return tmp_path / "here"


@pytest.mark.parametrize("command", [child.command, child.command_before_3_11])
def test_nothing_of_the_current_directory_is_imported_and_pythonpath_is_as_ever(here: Path, command) -> None:  # type: ignore[no-untyped-def]
    environment = {**child.environment(), "PYTHONPATH": str(here.parent / "there")}
    if command is child.command_before_3_11:
        del environment["PYTHONSAFEPATH"]

    shown = subprocess.run(
        command("shows", "--a", "b"), env=environment, cwd=here, capture_output=True, text=True, check=False
    )

    assert shown.stdout == f"{here.parent / 'there' / 'mine.py'} ['--a', 'b'] __main__\n", shown.stderr


DECODES = """
import sys
from pathlib import Path
from eventlog.decoder import Decoder
print([record.seq for group in Decoder().groups_of(Path(sys.argv[1]), "events") for record in group])
"""


@pytest.mark.parametrize("where", ["of the checkout", "a person's"])
def test_sealed_segments_are_decoded_where_a_person_has_a_queue_py(
    here: Path, tmp_path: Path, where: str
) -> None:
    from eventlog.seal import seal
    from tests.logs import handmade_run

    piece = handmade_run(tmp_path)
    piece.log(x=1, step=0)
    piece.log("exit", exitcode=0)
    piece.die()
    seal(piece.piece.dir.parent)
    (sealed,) = piece.piece.dir.glob("events-*.parquet")
    checkout = Path(child.__file__).parents[1]
    (tmp_path / "decodes.py").write_text(DECODES)

    decoded = subprocess.run(
        [sys.executable, tmp_path / "decodes.py", sealed],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        cwd=here if where == "a person's" else checkout,
        capture_output=True,
        text=True,
        check=False,
    )

    assert decoded.stdout == "[0, 1, 2]\n", decoded.stderr
