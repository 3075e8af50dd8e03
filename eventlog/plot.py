"""W&B's charts: a table in the history, and in the run's config which of W&B's charts shows it how.

    run.log({"pr": plot.pr_curve(y_true, y_probas)})
        ├─▶ the row:     "pr_table": Table
        └─▶ the config:  _wandb.visualize.pr = {panel_type, panel_config}

Invariants
----------
* The table is whole in the log, whoever shows it.
* A chart is one of W&B's presets by name: what it looks like is W&B's.
* The curves have the points that scikit-learn would give; it is not needed.

NumPy is imported by the functions that count.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from eventlog.record import DEPTH_MAX
from eventlog.table import Table

_DIGITS = 3


@dataclass(frozen=True, slots=True)
class CustomChart:
    """A table, and the preset that shows it."""

    table: Table
    preset: str
    fields: dict[str, Any]
    strings: dict[str, Any]
    split_table: bool = False
    told_under: ClassVar[str] = "visualize"
    """Where in the `_wandb` block of the config the panel stands."""

    def table_key(self, key: str) -> str:
        """Return where in the history the table of the chart `key` stands."""
        return f"Custom Chart Tables/{key}_table" if self.split_table else f"{key}_table"

    def panel(self, key: str) -> dict[str, Any]:
        """Return what W&B is told of the chart `key`."""
        table = {
            "name": "summaryTable",
            "args": [{"name": "tableKey", "value": self.table_key(key)}],
            "fields": [],
        }
        plain: list[dict[str, Any]] = [
            {"name": name, "fields": []} for name in ("id", "name", "_defaultColorIndex")
        ]
        run_sets = {
            "name": "runSets",
            "args": [{"name": "runSets", "value": "${runSets}"}],
            "fields": [*plain, table],
        }
        config = {
            "panelDefId": self.preset,
            "fieldSettings": self.fields,
            "stringSettings": self.strings,
            "transform": {"name": "tableWithLeafColNames"},
            "userQuery": {"queryFields": [run_sets]},
        }
        return {"panel_type": "Vega2", "panel_config": config}


@dataclass(frozen=True, slots=True)
class Visualize:
    """A table, and the name of the chart that shows it: W&B's older form."""

    table: Table
    name: str
    told_under: ClassVar[str] = "viz"

    def table_key(self, key: str) -> str:
        return key

    def panel(self, key: str) -> dict[str, Any]:
        return {"id": self.name, "historyFieldSettings": {"x-axis": "_step", "key": key}}


def taken_out(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, CustomChart | Visualize]]:
    """Return `row` with the table of each chart in its place, and the charts by their dotted keys."""
    charts: dict[str, CustomChart | Visualize] = {}
    left = _without_charts(row, (), (), charts)
    return {**left, **{chart.table_key(key): chart.table for key, chart in charts.items()}}, charts


def plot_table(
    vega_spec_name: str,
    data_table: Table,
    fields: dict[str, Any],
    string_fields: dict[str, Any] | None = None,
    split_table: bool = False,
) -> CustomChart:
    """Return a chart of a table by one of W&B's presets, or one of your own there."""
    if not isinstance(data_table, Table):
        raise TypeError(f"a chart shows an eventlog.Table, not {data_table!r}.")
    return CustomChart(data_table, vega_spec_name, dict(fields), dict(string_fields or {}), split_table)


def visualize(id: str, value: Table) -> Visualize:
    """Return a chart of a table, by the chart's name."""
    if not isinstance(value, Table):
        raise TypeError(f"a chart shows an eventlog.Table, not {value!r}.")
    return Visualize(value, id)


def line(
    table: Table, x: str, y: str, stroke: str | None = None, title: str = "", split_table: bool = False
) -> CustomChart:
    """Return a line of one column over another; `stroke` is the column that says which line."""
    fields = {"x": x, "y": y, "stroke": stroke}
    return plot_table("wandb/line/v0", table, fields, {"title": title}, split_table)


def scatter(table: Table, x: str, y: str, title: str = "", split_table: bool = False) -> CustomChart:
    """Return the points of two columns."""
    return plot_table("wandb/scatter/v0", table, {"x": x, "y": y}, {"title": title}, split_table)


def bar(table: Table, label: str, value: str, title: str = "", split_table: bool = False) -> CustomChart:
    """Return a bar for each row."""
    fields = {"label": label, "value": value}
    return plot_table("wandb/bar/v0", table, fields, {"title": title}, split_table)


def histogram(table: Table, value: str, title: str = "", split_table: bool = False) -> CustomChart:
    """Return the distribution of a column."""
    return plot_table("wandb/histogram/v0", table, {"value": value}, {"title": title}, split_table)


def line_series(
    xs: Any,
    ys: Any,
    keys: Sequence[str] | None = None,
    title: str = "",
    xname: str = "x",
    split_table: bool = False,
) -> CustomChart:
    """Return several lines; `xs` are those of each line, or one for all."""
    lines = [list(values) for values in ys]
    places = list(xs)
    if not places or not hasattr(places[0], "__iter__") or isinstance(places[0], (str, bytes)):
        places = [places] * len(lines)
    names = [f"line_{number}" for number in range(len(lines))] if keys is None else list(keys)
    if not len(places) == len(lines) == len(names):
        raise ValueError(
            f"each line needs its xs and its key: there are {len(lines)} lines, {len(places)} xs and {len(names)} keys."
        )
    rows = [
        [x, name, y]
        for place, name, values in zip(places, names, lines, strict=True)
        for x, y in zip(place, values, strict=False)
    ]
    table = Table(columns=["step", "lineKey", "lineVal"], data=rows)
    fields = {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"}
    return plot_table("wandb/lineseries/v0", table, fields, {"title": title, "xname": xname}, split_table)


def confusion_matrix(
    probs: Any = None,
    y_true: Any = None,
    preds: Any = None,
    class_names: Sequence[str] | None = None,
    title: str = "Confusion Matrix Curve",
    split_table: bool = False,
) -> CustomChart:
    """Return how often each class was taken for which; give `probs` (examples × classes) or `preds`."""
    if (probs is None) == (preds is None):
        raise ValueError("confusion_matrix takes probs or preds: one of them.")
    if probs is not None:
        preds = importlib.import_module("numpy").argmax(probs, axis=1)
    predicted, actual = _plain(preds), _plain(y_true)
    if len(predicted) != len(actual):
        raise ValueError(f"there are {len(predicted)} predictions and {len(actual)} true labels.")
    classes = sorted({*predicted, *actual}) if class_names is None else list(range(len(class_names)))
    names = list(class_names) if class_names is not None else [f"Class_{n + 1}" for n in range(len(classes))]
    place = {found: number for number, found in enumerate(classes)}
    if unknown := {*predicted, *actual} - place.keys():
        raise ValueError(f"there are {len(names)} class names, and the class {min(unknown)!r}.")
    counts = [[0.0] * len(classes) for _ in classes]
    for truth, guess in zip(actual, predicted, strict=True):
        counts[place[truth]][place[guess]] += 1
    rows = [[a, b, counts[i][j]] for i, a in enumerate(names) for j, b in enumerate(names)]
    columns = ["Actual", "Predicted", "nPredictions"]
    fields = {name: name for name in columns}
    table = Table(columns=columns, data=rows)
    return plot_table("wandb/confusion_matrix/v1", table, fields, {"title": title}, split_table)


def roc_curve(
    y_true: Any = None,
    y_probas: Any = None,
    labels: Sequence[str] | None = None,
    classes_to_plot: Sequence[Any] | None = None,
    title: str = "ROC Curve",
    split_table: bool = False,
) -> CustomChart:
    """Return true against false positives of each class, over all thresholds."""
    rows = []
    for name, is_true, scores in _each_class(y_true, y_probas, labels, classes_to_plot):
        false_rate, true_rate = _roc(is_true, scores)
        rows += [
            [name, round(x, _DIGITS), round(y, _DIGITS)] for x, y in zip(false_rate, true_rate, strict=True)
        ]
    axes = {"x-axis-title": "False positive rate", "y-axis-title": "True positive rate"}
    return _curve("fpr", "tpr", ["class", "fpr", "tpr"], rows, {"title": title, **axes}, split_table)


def pr_curve(
    y_true: Any = None,
    y_probas: Any = None,
    labels: Sequence[str] | None = None,
    classes_to_plot: Sequence[Any] | None = None,
    interp_size: int = 21,
    title: str = "Precision-Recall Curve",
    split_table: bool = False,
) -> CustomChart:
    """Return the precision of each class at `interp_size` recalls from 1 to 0."""
    numpy: Any = importlib.import_module("numpy")
    recalls = numpy.linspace(0, 1, interp_size)[::-1]
    rows = []
    for name, is_true, scores in _each_class(y_true, y_probas, labels, classes_to_plot):
        precision, recall = _precision_recall(is_true, scores)
        at = numpy.searchsorted(recall, recalls, side="left")
        rows += [
            [name, round(float(y), _DIGITS), round(float(x), _DIGITS)]
            for x, y in zip(recalls, precision[at], strict=True)
        ]
    axes = {"x-axis-title": "Recall", "y-axis-title": "Precision"}
    return _curve(
        "recall", "precision", ["class", "precision", "recall"], rows, {"title": title, **axes}, split_table
    )


def _curve(
    x: str, y: str, columns: list[str], rows: list[list[Any]], strings: dict[str, Any], split_table: bool
) -> CustomChart:
    table = Table(columns=columns, data=rows)
    fields = {"x": x, "y": y, "class": "class"}
    return plot_table("wandb/area-under-curve/v0", table, fields, strings, split_table)


def _each_class(
    y_true: Any, y_probas: Any, labels: Sequence[str] | None, wanted: Sequence[Any] | None
) -> Any:
    """Yield the name of each class, which examples are of it, and their scores for it."""
    if y_true is None or y_probas is None:
        raise ValueError("a curve takes y_true and y_probas (examples × classes).")
    numpy: Any = importlib.import_module("numpy")
    truth, scores = numpy.asarray(y_true), numpy.asarray(y_probas)
    for number, found in enumerate(numpy.unique(truth)):
        if wanted is None or found in wanted:
            is_number = numpy.issubdtype(truth.dtype, numpy.integer)
            name = labels[found] if labels is not None and is_number else found.item()
            yield name, truth == found, scores[:, number]


def _roc(is_true: Any, scores: Any) -> tuple[list[float], list[float]]:
    """Return false and true positive rates, without the points that lie on a line between others."""
    numpy: Any = importlib.import_module("numpy")
    true, false = _counts(is_true, scores)
    if len(true) > 2:
        bends = numpy.logical_or(numpy.diff(false, 2), numpy.diff(true, 2))
        kept = numpy.r_[True, bends, True]
        true, false = true[kept], false[kept]
    true, false = numpy.r_[0, true], numpy.r_[0, false]
    return _shares(false), _shares(true)


def _shares(counts: Any) -> list[float]:
    """Return counts as shares of the last one; of nothing there is no share."""
    return [found / counts[-1] if counts[-1] else float("nan") for found in counts.tolist()]


def _precision_recall(is_true: Any, scores: Any) -> tuple[Any, Any]:
    """Return precision over rising recall; each precision is the best of those at a recall as high."""
    numpy: Any = importlib.import_module("numpy")
    true, false = _counts(is_true, scores)
    precision = true / numpy.maximum(true + false, 1)
    recall = true / true[-1] if true[-1] else numpy.ones_like(true, dtype=float)
    # From recall 0, where nothing is wrong yet, to 1; and looking back from there.
    precision, recall = numpy.r_[1.0, precision], numpy.r_[0.0, recall]
    return numpy.maximum.accumulate(precision[::-1])[::-1], recall


def _counts(is_true: Any, scores: Any) -> tuple[Any, Any]:
    """Return how many true and false examples score at least each threshold, from the highest one down."""
    numpy: Any = importlib.import_module("numpy")
    order = numpy.argsort(scores, kind="stable")[::-1]
    ranked, truth = scores[order], is_true[order]
    last_of_each = numpy.r_[numpy.nonzero(numpy.diff(ranked))[0], truth.size - 1]
    true = numpy.cumsum(truth)[last_of_each]
    return true, 1 + last_of_each - true


def _without_charts(
    row: Mapping[str, Any],
    above: tuple[str, ...],
    ids_above: tuple[int, ...],
    charts: dict[str, CustomChart | Visualize],
) -> dict[str, Any]:
    left: dict[str, Any] = {}
    ids_above = (*ids_above, id(row))
    for name, value in row.items():
        path = (*above, str(name))
        if isinstance(value, (CustomChart, Visualize)):
            charts[".".join(path)] = value
        elif type(value) is dict and id(value) not in ids_above and len(ids_above) < DEPTH_MAX:
            left[name] = _without_charts(value, path, ids_above, charts)
        else:
            left[name] = value
    return left


def _plain(values: Any) -> list[Any]:
    return list(values.tolist() if hasattr(values, "tolist") else values)
