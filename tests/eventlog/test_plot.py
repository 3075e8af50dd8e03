"""`wandb.plot`: W&B's charts as a table in the row and a panel in the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import eventlog
from eventlog import plot
from tests.contract.clients import by_both

# The whole of a run with every chart that needs no further library.
SCRIPT = """
run = wandb.init(project="p", id="r")
table = wandb.Table(columns=["x", "y", "name"], data=[[1, 2.5, "a"], [2, 3.5, "b"]])
run.log({"line": wandb.plot.line(table, "x", "y", title="A line"), "loss": 1})
run.log({"stroke": wandb.plot.line(table, "x", "y", stroke="name", split_table=True)})
run.log({"scatter": wandb.plot.scatter(table, "x", "y"), "bar": wandb.plot.bar(table, "name", "y", title="Bars")})
run.log({"histogram": wandb.plot.histogram(table, "y")})
run.log({"series": wandb.plot.line_series([1, 2], [[3, 4], [5, 6]], keys=["u", "v"], xname="epoch")})
run.log({"more": wandb.plot.line_series([[1, 2], [3, 4, 5]], [[3, 4], [5, 6, 7]], title="Lines")})
run.log({"confusion": wandb.plot.confusion_matrix(y_true=[0, 1, 1, 2], preds=[0, 1, 2, 2], class_names=["a", "b", "c"])})
run.log({"guessed": wandb.plot.confusion_matrix(probs=[[0.9, 0.1], [0.4, 0.6]], y_true=[0, 0])})
run.log({"own": wandb.plot_table("me/chart", table, {"x": "x"}, {"title": "Own"})})
run.log({"old": wandb.visualize("wandb/old/v1", table)})
run.log({"nested": {"deep": wandb.plot.scatter(table, "x", "y"), "value": 3}})
run.finish()
"""


def begin(root: Path, **options: Any) -> eventlog.Run:
    return eventlog.init(project="demo", id="run", root=root, quiet=True, **options)


@pytest.mark.slow
def test_charts_are_those_of_wandbs_client(tmp_path: Path):
    both = by_both([SCRIPT], tmp_path)

    ours, theirs = both.each(lambda world: world.run.config["_wandb"])
    assert len(ours["visualize"]) == 11
    assert ours["visualize"] == theirs["visualize"]
    assert ours["viz"] == theirs["viz"]
    ours, theirs = both.each(lambda world: [shown(row) for row in world.run.history])
    assert ours == theirs


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says of its tables, but for ids made at random."""
    own = ("_step", "ncols", "nrows", "sha256", "size", "_type", "log_mode")
    return {
        key: {name: value[name] for name in own if name in value} if isinstance(value, dict) else value
        for key, value in row.items()
        if key not in ("_timestamp", "_runtime")
    }


def test_a_chart_is_a_table_in_the_row(tmp_path: Path):
    run = begin(tmp_path)
    table = eventlog.Table(columns=["x", "y"], data=[[1, 2]])

    run.log({"curve": plot.line(table, "x", "y"), "loss": 0.5})

    (row,) = [record.data for record in eventlog.read(run.dir) if record.kind == "metrics"]
    assert (row["curve_table"]["_type"], row["curve_table"]["nrows"], row["loss"]) == ("table-file", 1, 0.5)
    assert "curve" not in row


def test_a_panel_is_told_once_and_stays_when_the_run_is_resumed(tmp_path: Path):
    table = eventlog.Table(columns=["x", "y"], data=[[1, 2]], log_mode="MUTABLE")
    with begin(tmp_path) as run:
        for _ in range(3):
            run.log({"first": plot.line(table, "x", "y")})

    with begin(tmp_path, resume="must") as run:
        run.log({"second": plot.bar(table, "x", "y")})

    told = [record.data["wandb"] for record in eventlog.read(run.dir) if record.kind == "facts"]
    assert [list(each["visualize"]) for each in told] == [["first"], ["first", "second"]]


def of_second_class(scores: list[float]) -> list[list[float]]:
    return [[1 - score, score] for score in scores]


def test_a_roc_curve_has_the_points_where_it_bends():
    # As scikit-learn has it; the point between the two false ones lies on a line.
    truth, scores = [1, 1, 0, 0, 1, 0], [0.9, 0.8, 0.7, 0.6, 0.5, 0.1]

    chart = plot.roc_curve(truth, of_second_class(scores), labels=["no", "yes"])

    assert [row[1:] for row in chart.table.data if row[0] == "yes"] == [
        [0.0, 0.0],
        [0.0, 0.333],
        [0.0, 0.667],
        [0.667, 0.667],
        [0.667, 1.0],
        [1.0, 1.0],
    ]


def test_a_pr_curve_has_the_best_precision_at_each_recall():
    truth, scores = [0, 1, 1], [0.9, 0.8, 0.7]

    chart = plot.pr_curve(truth, of_second_class(scores), interp_size=5, classes_to_plot=[1])

    assert chart.table.columns == ["class", "precision", "recall"]
    assert chart.table.data == [
        [1, 0.667, 1.0],
        [1, 0.667, 0.75],
        [1, 0.667, 0.5],
        [1, 0.667, 0.25],
        [1, 1.0, 0.0],
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: plot.line([[1, 2]], "x", "y"),  # type: ignore[arg-type]
        lambda: plot.visualize("chart", {"x": 1}),  # type: ignore[arg-type]
        lambda: plot.line_series([1, 2], [[1, 2]], keys=["a", "b"]),
        lambda: plot.confusion_matrix(y_true=[1], preds=[1], probs=[[1]]),
        lambda: plot.confusion_matrix(y_true=[1], preds=[1, 2]),
        lambda: plot.confusion_matrix(y_true=[5], preds=[0], class_names=["a", "b"]),
        lambda: plot.roc_curve([0, 1]),
    ],
)
def test_what_is_no_chart_is_refused(make: Any):
    with pytest.raises((TypeError, ValueError)):
        make()
