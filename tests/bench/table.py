"""Rows as a table for people, or as JSON lines for programs.  Decides how a number is written, and measures none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict

from rich.table import Table

from tests.bench.row import Row

# How each unit is written, and with how many digits below 10, below 100, and from there on.
_UNITS = {
    "per_s": ("/s", (1, 0, 0)),
    "bytes": ("B", (2, 1, 0)),
    "us": ("µs", (1, 1, 0)),
    "ms": ("ms", (1, 1, 0)),
    "mib": ("MiB", (0, 0, 0)),
    "mb": ("MB", (0, 0, 0)),
    "s": ("s", (2, 1, 0)),
}


def table_of(rows: Iterable[Row], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("what", "peer", "measured", "ratio", "aim"):
        table.add_column(name, justify="right" if name == "ratio" else "left")
    what = ""
    for row in rows:
        said = f"{row.what}: {row.size}" if row.size else row.what
        if what and said != what:
            table.add_section()
        table.add_row("" if said == what else said, row.peer, measured(row), ratio(row), aims(row))
        what = said
    return table


def json_of(row: Row) -> str:
    """Return the row as one line of JSON."""
    return json.dumps(asdict(row), ensure_ascii=False)


def measured(row: Row) -> str:
    """
    >>> measured(Row("log()", "ours", {"p50_us": 4.04, "p99_us": 17.5, "records": 20_000}))
    'p50 4.0 µs, p99 17.5 µs, records 20,000'
    >>> measured(Row("log()", "another", skipped="not installed"))
    'skipped: not installed'
    """
    if row.skipped:
        return f"skipped: {row.skipped}"
    return ", ".join(quantity(name, value) for name, value in row.values.items())


def quantity(name: str, value: float) -> str:
    """
    >>> quantity("wall_s", 1.333), quantity("records_per_s", 412_345.6), quantity("stalls", 3)
    ('wall 1.33 s', 'records 412,346/s', 'stalls 3')
    """
    for suffix, (unit, digits) in _UNITS.items():
        if name.endswith(f"_{suffix}"):
            words = name.removesuffix(f"_{suffix}").replace("_", " ")
            places = digits[0] if abs(value) < 10 else digits[1] if abs(value) < 100 else digits[2]
            return f"{words} {value:,.{places}f}{'' if unit == '/s' else ' '}{unit}"
    return f"{name.replace('_', ' ')} {value:,.0f}"


def ratio(row: Row) -> str:
    """
    >>> ratio(Row("log()", "ours", ratio=4.04)), ratio(Row("import", "ours", ratio=0.02, of="wandb"))
    ('4.0 × floor', '1 / 50 of wandb')
    """
    if row.ratio is None:
        return ""
    if row.ratio < 0.1:
        return f"1 / {1 / row.ratio:.0f} of {row.of}"
    return f"{row.ratio:.{1 if row.ratio >= 2 else 2}f} × {row.of}"


def aims(row: Row) -> str:
    return "\n".join(f"{'✓' if aim.is_met else '✗'} {aim.text}" for aim in row.aims)
