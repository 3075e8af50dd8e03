"""W&B's tables: rows with typed columns, as a file of the run and as an artifact.

    Table ──in_history──▶ media/table/<key>_<step>_<sha>.table.json      for the charts of the run
                 └──────▶ artifact run-<run id>-<key> of type run_table   the whole table, its media and its types

Invariants
----------
* Both files are byte for byte what W&B's own client writes, for cells that JSON or NumPy know.
* A row that does not fit its columns raises, and leaves the table as it was.
* An IMMUTABLE table (the default) is stored once: logged again, it is shown as it was.

Primary and foreign keys, and tables that are stored in increments, are not here.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from eventlog.artifact import run_table
from eventlog.columns import ANY, UNKNOWN, Type, assign, of_class, optional, type_of
from eventlog.media import AddsFiles, Keeper, Value, media_path
from eventlog.not_yet import say_once
from eventlog.record import json_of

# A longer vector would be a file of its own there.
_VECTOR_MAX = 150
_LOG_MODES = ("IMMUTABLE", "MUTABLE", "INCREMENTAL")


class Table(Value):
    """Rows under named columns; a cell may be an image or other media."""

    type = "table"
    # What W&B shows of a run's table, and of an artifact's; scripts set them.
    MAX_ROWS = 10_000
    MAX_ARTIFACT_ROWS = 200_000

    def __init__(
        self,
        columns: Sequence[str | int] | None = None,
        data: Any = None,
        rows: Any = None,
        dataframe: Any = None,
        dtype: Any = None,
        optional: bool | list[bool] = True,
        allow_mixed_types: bool = False,
        log_mode: str = "IMMUTABLE",
    ) -> None:
        if log_mode not in _LOG_MODES:
            raise ValueError(f"log_mode is one of {', '.join(_LOG_MODES)}, not {log_mode!r}.")
        if log_mode == "INCREMENTAL":
            say_once(
                'Table(log_mode="INCREMENTAL")', 'is not here: each log stores the whole table, as "MUTABLE".'
            )
            log_mode = "MUTABLE"
        given = dataframe if dataframe is not None else data if data is not None else rows
        if is_dataframe(given):
            columns = list(given.columns)
            given = zip(*(given[column].values for column in columns), strict=True)
        columns = ["Input", "Output", "Expected"] if columns is None else columns
        if isinstance(columns, str) or not all(type(column) in (str, int) for column in columns):
            raise TypeError(f"the columns of a table are a list of names, not {columns!r}.")
        self.columns: list[str | int] = list(columns)
        self.data: list[list[Any]] = []
        self.log_mode = log_mode
        self._types = _column_types(self.columns, ANY if allow_mixed_types else dtype, optional)
        # Of which run, and how it is shown there.
        self._logged: tuple[str, dict[str, Any]] | None = None
        for row in given if given is not None else ():
            self.add_data(*row)

    def add_data(self, *data: Any) -> None:
        """Add one row."""
        if len(data) != len(self.columns):
            raise ValueError(
                f"a row of this table has {len(self.columns)} cells, not {len(data)}: {self.columns}."
            )
        types = [assign(column, cell) for column, cell in zip(self._types, data, strict=True)]
        for name, column, found, cell in zip(self.columns, self._types, types, data, strict=True):
            if found is None:
                raise TypeError(
                    f"column {name!r} holds {_in_words(column)}, and {cell!r} is {_in_words(type_of(cell))}. "
                    "Convert it, or make the table with allow_mixed_types=True."
                )
        self._change()
        self._types = [found for found in types if found is not None]
        self.data.append(list(data))

    def add_row(self, *row: Any) -> None:
        """`add_data`, by its old name."""
        self.add_data(*row)

    def add_column(self, name: str, data: Any, optional: bool = False) -> None:
        """Add a column: one cell for each row."""
        if name in self.columns:
            raise ValueError(f"the table has a column {name!r} already.")
        cells = list(data)
        if self.columns and len(cells) != len(self.data):
            raise ValueError(f"the table has {len(self.data)} rows, and column {name!r} {len(cells)} cells.")
        (kind,) = _column_types([name], None, optional)
        for cell in cells:
            found = assign(kind, cell)
            if found is None:
                raise TypeError(
                    f"column {name!r} holds {_in_words(kind)}, and {cell!r} is {_in_words(type_of(cell))}."
                )
            kind = found
        self._change()
        if not self.columns:
            self.data = [[] for _ in cells]
        for row, cell in zip(self.data, cells, strict=True):
            row.append(cell)
        self.columns.append(name)
        self._types.append(kind)

    def add_computed_columns(self, fn: Callable[[int, dict[Any, Any]], dict[str, Any]]) -> None:
        """Add the columns that `fn(index, row as dict)` makes of each row."""
        made = [fn(index, dict(zip(self.columns, row, strict=True))) for index, row in enumerate(self.data)]
        for name in made[0] if made else ():
            self.add_column(name, [new[name] for new in made])

    def get_column(self, name: str | int, convert_to: str | None = None) -> Any:
        """Return the cells of a column, as a list or (`convert_to="numpy"`) as an array."""
        if name not in self.columns:
            raise ValueError(
                f"the table has no column {name!r}. It has: {', '.join(map(str, self.columns))}."
            )
        at = self.columns.index(name)
        cells = [row[at] for row in self.data]
        return importlib.import_module("numpy").array(cells) if convert_to == "numpy" else cells

    def get_dataframe(self) -> Any:
        """Return a `pandas.DataFrame` of the table."""
        return importlib.import_module("pandas").DataFrame.from_records(self.data, columns=self.columns)

    def get_index(self) -> list[int]:
        return list(range(len(self.data)))

    def iterrows(self) -> Iterator[tuple[int, list[Any]]]:
        """Yield each row's index and its cells."""
        yield from enumerate(self.data)

    # ── as it is stored ──────────────────────────────────────────────────────────────────────────────────────

    def in_history(self, key: str, step: int, keeper: Keeper) -> dict[str, Any]:
        if self._logged is None or self._logged[0] != keeper.run_id:
            self._logged = (keeper.run_id, self._store(key, step, keeper))
        shown = {"ncols": len(self.columns), "nrows": len(self.data), "log_mode": self.log_mode}
        return {"_type": "table-file", **self._logged[1], **shown}

    def _store(self, key: str, step: int, keeper: Keeper) -> dict[str, Any]:
        artifact = run_table(keeper.run_id, key)
        entry = artifact.add(self, key)
        path, stored = keeper.keep(
            self._file(), lambda found: media_path("table", key, step, found, ".table.json")
        )
        keeper.keep_artifact(artifact, ["latest"], [], step)
        address = "wandb-client-artifact://"
        return {
            "sha256": stored.sha256,
            "size": stored.size,
            "path": path,
            "artifact_path": f"{address}{artifact.client_id}/{entry}",
            "_latest_artifact_path": f"{address}{artifact.sequence_client_id}:latest/{entry}",
        }

    def _file(self) -> bytes:
        if len(self.data) > self.MAX_ROWS:
            say_once(
                "a table",
                f"of {len(self.data):,} rows is shown with its first {self.MAX_ROWS:,}; its artifact has more. "
                "Table.MAX_ROWS is how many are shown.",
            )
        # Cell by cell: a None or NaN costs only its own cell the shortest form of floats.
        rows = (",".join(json_of(_file_cell(cell)) for cell in row) for row in self.data[: self.MAX_ROWS])
        data = ",".join(f"[{row}]" for row in rows)
        return f'{{"columns":{json_of(self.columns)},"data":[{data}]}}'.encode("utf-8", "replace")

    def in_artifact(self, artifact: AddsFiles) -> dict[str, Any]:
        if len(self.data) > self.MAX_ARTIFACT_ROWS:
            say_once(
                "a table in an artifact",
                f"is cut to {self.MAX_ARTIFACT_ROWS:,} rows, as W&B does: it had {len(self.data):,}. "
                "Table.MAX_ARTIFACT_ROWS is how many are kept.",
            )
        data = [
            [_artifact_cell(cell, artifact) for cell in row] for row in self.data[: self.MAX_ARTIFACT_ROWS]
        ]
        # Sorted by name in the file, which numbers and texts together cannot be.
        is_mixed = len(set(map(type, self.columns))) > 1
        names = map(str, self.columns) if is_mixed else self.columns
        types = dict(zip(names, map(_without_arrays, self._types), strict=True))
        return {
            "_type": self.type,
            "columns": self.columns,
            "data": data,
            "ncols": len(self.columns),
            "nrows": len(data),
            "column_types": {"wb_type": "typedDict", "params": {"type_map": types}},
            "log_mode": self.log_mode,
        }

    def _change(self) -> None:
        if self.log_mode == "MUTABLE":
            self._logged = None
        elif self._logged is not None:
            say_once(
                "a Table that was logged",
                'and is changed afterwards stays there as it was. Make it with log_mode="MUTABLE" to log it again.',
            )


def of_dataframe(frame: Any) -> Table:
    """Return a data frame as a table; where a column holds values of several types, with columns of any type."""
    try:
        return Table(dataframe=frame)
    except TypeError:
        return Table(dataframe=frame, allow_mixed_types=True)


def is_dataframe(value: Any) -> bool:
    """Say whether `value` is a pandas data frame, without importing pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, pandas.DataFrame)


def _column_types(columns: Sequence[Any], dtype: Any, is_optional: bool | list[bool]) -> list[Type]:
    kinds = dtype if isinstance(dtype, list) else [dtype] * len(columns)
    optionals = is_optional if isinstance(is_optional, list) else [is_optional] * len(columns)
    if len(kinds) != len(columns) or len(optionals) != len(columns):
        raise ValueError(
            f"the table has {len(columns)} columns: give a dtype and optional for each, or one for all."
        )
    return [
        optional(_column_type(kind)) if may_be_none else _column_type(kind)
        for kind, may_be_none in zip(kinds, optionals, strict=True)
    ]


def _column_type(dtype: Any) -> Type:
    if dtype is None:
        return UNKNOWN
    declared: Type | None = ANY if dtype is ANY else of_class(dtype) if isinstance(dtype, type) else None
    if declared is not None:
        return declared
    say_once(f"Table(dtype={dtype!r})", "is not checked: the column takes the type of its first cell.")
    return UNKNOWN


def _without_arrays(kind: Type) -> Type:
    """Return a column's type as it is stored: arrays are stored as lists."""
    if kind["wb_type"] == "union":
        arrays = [one for one in kind["params"]["allowed_types"] if one["wb_type"] == "ndarray"]
        return _without_arrays(arrays[0]) if arrays else kind
    if kind["wb_type"] != "ndarray":
        return kind
    stored: Type = {"wb_type": "number"}
    for length in reversed(kind["params"]["shape"]):
        stored = {"wb_type": "list", "params": {"element_type": stored, "length": length}}
    return stored


def _in_words(kind: Type) -> str:
    if kind["wb_type"] == "union":
        return " or ".join(_in_words(one) for one in kind["params"]["allowed_types"])
    return str(kind["wb_type"])


def _file_cell(cell: Any) -> Any:
    """Return a cell as it stands in the run's file, where media are only named."""
    if cell is None or isinstance(cell, (str, int, float)):
        return cell
    if isinstance(cell, Value):
        return type(cell).__name__
    if isinstance(cell, Mapping):
        return {str(key): _file_cell(item) for key, item in cell.items()}
    if isinstance(cell, (list, tuple, set, frozenset)):
        return [_file_cell(item) for item in cell]
    if hasattr(cell, "tolist"):
        return _file_cell(cell.tolist())
    return _text_of(cell)


def _artifact_cell(cell: Any, artifact: AddsFiles) -> Any:
    """Return a cell as it stands in an artifact: its media are files there, and a time is in milliseconds."""
    if isinstance(cell, float):
        return None if cell != cell else cell
    if cell is None or isinstance(cell, (str, int)):
        return cell
    if isinstance(cell, Value):
        return cell.in_artifact(artifact)
    if isinstance(cell, Mapping):
        return {str(key): _artifact_cell(item, artifact) for key, item in cell.items()}
    if isinstance(cell, (list, tuple, set, frozenset)):
        return [_artifact_cell(item, artifact) for item in cell]
    if hasattr(cell, "tolist"):
        plain = cell.tolist()
        # Of nanoseconds NumPy makes a bare number.
        is_ns = type(cell).__name__ == "datetime64" and isinstance(plain, int)
        return plain / 1_000_000 if is_ns else _artifact_cell(plain, artifact)
    ms = _ms_of(cell)
    return _text_of(cell) if ms is None else ms


def _ms_of(moment: Any) -> int | None:
    import datetime

    if not isinstance(moment, datetime.date):
        return None
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime(*moment.timetuple()[:3])
    return int((moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)).timestamp() * 1000)


def _text_of(cell: Any) -> str:
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "replace")
    if hasattr(cell, "isoformat"):
        return str(cell.isoformat()).replace("+00:00", "Z")
    return str(cell)
