"""From points to a table: a row for each step, a column for each key.

Invariants
----------
* A column is called as its key is, whatever that is; the empty key is called `''`, for SQL has no empty name.
* Keys that differ in capitals alone are two columns, and a key may be called as what stands before them: `step`, `project`.
* Of several cells of a key in a row, the last one counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis.sqltext import identifier, literal

EMPTY = "''"
"""Is how a column is called whose key is empty."""


def pivoted(points: str, by: Sequence[str], columns: Sequence[tuple[str, str]]) -> str:
    """Return the SQL for one row of each `by`, in their order.

    The query `points` has the columns of `by`, a key, a cell, and in `place` what the cells of a key are ordered by.  `columns`
    are the keys, each with the SQL for its value, where `{cell}` is its cell.

    >>> print(pivoted("FROM p", ["step"], [("loss", "{cell}.value"), ("Loss", "{cell}.text")]))
    SELECT wide."step", wide."0".value AS "loss", wide."1".text AS "Loss" FROM (
        PIVOT (SELECT "step", n, cell, place FROM (FROM p) JOIN (VALUES (0, 'loss'), (1, 'Loss')) names (n, key) USING (key))
        ON n IN (0, 1) USING arg_max(cell, place) GROUP BY "step"
    ) wide ORDER BY wide."step"
    """
    # By number: DuckDB's names know no capitals.
    names = ", ".join(f"({n}, {literal(key)})" for n, (key, _) in enumerate(columns))
    numbers = ", ".join(str(n) for n in range(len(columns)))
    values = [
        value.format(cell=f'wide."{n}"') + f" AS {identifier(key or EMPTY)}"
        for n, (key, value) in enumerate(columns)
    ]
    grouped = ", ".join(map(identifier, by))
    ordered = ", ".join(f"wide.{identifier(name)}" for name in by)
    return f"""SELECT {", ".join([ordered, *values])} FROM (
    PIVOT (SELECT {grouped}, n, cell, place FROM ({points}) JOIN (VALUES {names}) names (n, key) USING (key))
    ON n IN ({numbers}) USING arg_max(cell, place) GROUP BY {grouped}
) wide ORDER BY {ordered}"""
