"""Every scenario of the sections A, B, C, E, H and K has a test that runs in both modes of watching, or a reason.

A test carries its numbers in a comment above it. In which modes it runs is asked of pytest, which knows its parameters.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SECTIONS = {"A": (1, 12), "B": (13, 21), "C": (22, 35), "E": (44, 52), "H": (68, 75), "K": (88, 90)}
MODES = {"inotify", "sweep"}
NOT_HERE: dict[int, str] = {}
"""Numbers that no test in both modes could say more about, and why."""

# Between the numbers and the name there are decorators, and never another test.
_TAGGED = re.compile(r"^# faults:([ ,\d]+)\n(?:(?!def |async def |#).*\n)*def (test_\w+)", re.MULTILINE)
_COLLECTED = re.compile(r"^\S*?(\w+\.py)::(test_\w+)\[(.*)\]$", re.MULTILINE)


def test_every_number_has_a_test_in_both_modes_or_a_reason():
    modes = modes_of_tests()

    covered = {
        int(number)
        for path in HERE.glob("test_*.py")
        for numbers, name in _TAGGED.findall(path.read_text())
        for number in re.findall(r"\d+", numbers)
        if modes.get((path.name, name), set()) >= MODES
    }

    wanted = {number for first, last in SECTIONS.values() for number in range(first, last + 1)}
    assert wanted - covered == NOT_HERE.keys()


def modes_of_tests() -> dict[tuple[str, str], set[str]]:
    """Return the parameters of each test, of all its variants together; the modes are among them."""
    # An option of its own, so that the answer's form does not hang on the project's.
    options = ["-o", "addopts=", "--collect-only", "-q", "-p", "no:cacheprovider"]
    asked = [sys.executable, "-m", "pytest", *options, str(HERE)]
    told = subprocess.run(asked, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[tuple[str, str], set[str]] = {}
    for file, name, parameters in _COLLECTED.findall(told):
        found.setdefault((file, name), set()).update(parameters.split("-"))
    return found
