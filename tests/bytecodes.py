"""Does something between two chosen bytecodes of our code, where CPython may run a signal handler, or Ctrl-C strike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import FrameType, ModuleType
from typing import Any

import pytest

at_every_bytecode = pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="sys.settrace shows only some of the bytecodes from Python 3.12 on"
)


class Interrupted(Exception):
    """What Ctrl-C is, under a name that pytest lets pass."""


def at_bytecode_of(
    modules: Iterable[ModuleType], n: int, act: Callable[[], None], call: Callable[[], Any]
) -> tuple[Any, bool]:
    """Run `call`, and `act` before the n-th bytecode of the modules; return its result and whether it has so many.

    This is where CPython may run a signal handler (3.10: between any two bytecodes; later versions: at fewer places).
    """
    left = n
    files = {module.__file__ for module in modules}

    def count(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        if event == "opcode" and left > 0:
            left -= 1
            if left == 0:
                act()
        return count

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        return count

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        result = call()
    finally:
        sys.settrace(before)
    return result, left == 0
