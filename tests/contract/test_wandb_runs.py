"""What a run of the SDK's has besides rows is the same by `syncd sync` and by `wandb sync`: its config, its references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from syncd.metadata import MARK
from tests.contract.clients import World
from tests.contract.test_files import said_of
from tests.wandb_sync.test_same import Synced, by_both_commands, exact

INIT = 'run = wandb.init(project="p", id="r")\n'
CONFIGURED = """
inf, nan = float("inf"), float("nan")
run = wandb.init(
    project="p",
    id="r",
    config={"a": {"b": 1, "c": {"d": 2}}, "inf": inf, "nan": nan, "empty": {}, "below": {"empty": {}, "x": 1}},
)
run.log({"i": 0})
run.config.update({"a": {"b": 9}, "late": [-inf, nan, {"inf": inf}], "below": {}}, allow_val_change=True)
run.log({"i": 1})
run.finish()
"""
SHOWN = (
    INIT
    + """
import numpy as np
boxes = {"p": {"box_data": [{"position": {"minX": 0, "maxX": 0.5, "minY": 0, "maxY": 0.5}, "class_id": 1}],
               "class_labels": {1: "cat"}}}
masks = {"m": {"mask_data": np.zeros((4, 4)), "class_labels": {0: "sky"}}}
run.log({"image": wandb.Image(np.zeros((4, 4, 3), dtype=np.uint8), boxes=boxes, masks=masks)})
for title in ("one", "two"):
    table = wandb.Table(data=[[1, 2]], columns=["x", "y"])
    run.log({title: wandb.plot.line(table, "x", "y", title=title)})
open("a.py", "w").write("pass")
run.log_code(".")
run.finish()
"""
)
JOINED = (
    INIT
    + """
table = wandb.Table(columns=["a"], data=[[i] for i in range(3)])
run.log({"table": table})
run.log({"joined": wandb.JoinedTable(table, table, "a")})
run.finish()
"""
)


def own_block(world: World) -> dict[str, Any]:
    """What the config's `_wandb` says besides what each client says of itself."""
    said = world.run.config["_wandb"]
    return {key: exact(value) for key, value in said.items() if key not in ("e", "t", "m", "cli_version")}


def artifacts(world: World) -> dict[str, Any]:
    by_id = world.server.store.artifacts.by_id
    return {artifact.name: said_of(artifact, by_id) for artifact in by_id.values()}


@pytest.mark.slow
def test_the_config_is_the_same(tmp_path: Path):
    both = by_both_commands([CONFIGURED], tmp_path)

    ours, theirs = both.each(lambda world: exact(world.run.config))

    assert {key: value for key, value in ours.items() if key not in ("_wandb", MARK)} == {
        key: value for key, value in theirs.items() if key != "_wandb"
    }
    assert ours["a"] == {"b": 9, "c": {"d": 2}}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Synced:
    return by_both_commands([SHOWN], tmp_path_factory.mktemp("shown"))


@pytest.mark.slow
def test_how_images_charts_and_code_are_shown_is_the_same(shown: Synced):
    ours, theirs = shown.each(own_block)

    assert ours == theirs
    assert {"bounding_box/class_labels", "mask/class_labels", "visualize", "code_path"} <= set(ours)


@pytest.mark.slow
def test_a_table_that_is_joined_from_others_refers_to_what_is_there(tmp_path: Path):
    both = by_both_commands([JOINED], tmp_path)

    ours, theirs = both.each(artifacts)

    assert ours == theirs
    refs = [
        entry["ref"]
        for said in ours.values()
        for entry in said["manifest"]["contents"].values()
        if "ref" in entry
    ]
    assert refs
    assert all(ref.startswith("wandb-artifact://") for ref in refs)
