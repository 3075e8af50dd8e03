"""Bars for long work, on stderr.

Invariants
----------
* There is a bar on a terminal only, and nothing of it is left when the work is over.
* What it takes to know how much there is, is done only where that is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


@contextmanager
def progress(total_bytes: Callable[[], int]) -> Iterator[Callable[[int], object]]:
    """Show how far a long work is; yield what is to be told of the bytes of each step."""
    total = total_bytes() if _is_shown() else 0
    if total == 0:
        yield lambda size: None
        return
    from rich.progress import DownloadColumn

    with _bar(DownloadColumn(binary_units=True)) as update:
        update(total=total)
        yield lambda size: update(advance=size)


@contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[[int, int], object]]:
    """Show how many are done, and of how many; yield what is told both.  Before that nothing shows."""
    from rich.progress import MofNCompleteColumn, TextColumn

    columns = (TextColumn(what), MofNCompleteColumn(), TextColumn(unit))
    is_shown = _is_shown()
    with ExitStack() as bars:
        updates: list[Callable[..., object]] = []

        def told(done: int, of: int) -> None:
            if is_shown:
                if not updates:
                    updates.append(bars.enter_context(_bar(*columns)))
                updates[0](completed=done, total=of)

        yield told


def _is_shown() -> bool:
    from rich.console import Console

    return Console(stderr=True).is_terminal


@contextmanager
def _bar(*columns: ProgressColumn) -> Iterator[Callable[..., object]]:
    """Yield what moves a bar, by the words of `rich.progress.Progress.update`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TimeRemainingColumn

    shown = (BarColumn(), *columns, TimeRemainingColumn())
    with Progress(*shown, console=Console(stderr=True), transient=True) as bar:
        yield partial(bar.update, bar.add_task(""))
