"""The same small script by W&B's client and by us: what it reads back, and which mistakes are mistakes.

Each runs with `wandb` for whichever it is, and leaves what is compared in `result`.  What the server gets is compared
elsewhere (`tests/contract`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]

BEGIN = 'run = wandb.init(project="p", config={"lr": 0.1, "layers": (1, 2), "model": {"size": 1}})\n'
READ_CONFIG = "result = dict(run.config)\n"
READ_SUMMARY = """
result = {key: value for key, value in run.summary._as_dict().items() if not key.startswith("_")}
"""
CONFIG = {
    "a tuple is a list": READ_CONFIG,
    "keys, items and get": "result = [list(run.config.keys()), [list(i) for i in run.config.items()], "
    'run.config.get("lr"), run.config.get("no", 5), run.config.get("no"), "lr" in run.config, "no" in run.config]\n',
    "attributes": 'run.config.epochs = 3\nresult = [run.config.epochs, run.config.lr, run.config["model"]["size"]]\n',
    "what is not there": 'result = hasattr(run.config, "no")\n',
    "an item that is not there": 'run.config["no"]\n',
    "a change by item": 'run.config["lr"] = 0.2\n',
    "a change by attribute": "run.config.lr = 0.2\n",
    "a change by update": 'run.config.update({"new": 1, "lr": 0.2})\n',
    "a change that is refused has no effect": """
try:
    run.config.update({"new": 1, "lr": 0.2})
except Exception:
    pass
"""
    + READ_CONFIG,
    "the same value again": 'run.config["lr"] = 0.1\nrun.config["layers"] = (1, 2)\n' + READ_CONFIG,
    "a change that is allowed": 'run.config.update({"lr": 0.2}, allow_val_change=True)\n' + READ_CONFIG,
    "defaults": 'run.config.setdefaults({"lr": 0.2, "new": 1})\n' + READ_CONFIG,
    "the dashes of a flag": 'run.config.update({"--batch-size": 8})\n' + READ_CONFIG,
    "no config": "run.config.update(5)\n",
    "a missing file": 'run.config.update("missing.yaml")\n',
    "a deletion": 'del run.config["lr"]\n',
    "as_dict": "result = run.config.as_dict()\n",
    "the static one": "static = run.config_static\nresult = [dict(static), static['lr'], static.lr]\n",
    "a change of the static one": "run.config_static['lr'] = 1\n",
    "odd values": """
import datetime, enum
import numpy as np
class Colour(enum.Enum):
    RED = "#f00"
def activation(x): return x
activation.__module__ = "models"
run.config.update({
    "colour": Colour.RED, "set": {3}, "bytes": b"abc", "function": activation, "day": datetime.date(2026, 1, 2),
    "slice": slice(1, 5), "number": np.float32(0.5), "array": np.arange(3), "none": None,
    "nested": {"colour": [Colour.RED], "tuple": ((1,),)},
})
"""
    + READ_CONFIG,
    "a namespace": """
import argparse
run.config.update(argparse.Namespace(batch=8, name="x"))
"""
    + READ_CONFIG,
    "absl flags": """
from absl import flags
values = flags.FlagValues()
flags.DEFINE_integer("batch", 8, "", flag_values=values)
flags.DEFINE_string("optimizer", "adam", "", flag_values=values)
values(["program"])
run.config.update(values)
"""
    + READ_CONFIG,
}
SUMMARY = {
    "the last value": 'run.log({"a": 1, "b": 2})\nrun.log({"a": 3})\n' + READ_SUMMARY,
    "nested": 'run.log({"n": {"x": 1, "y": 2}})\nrun.log({"n": {"x": 3}})\n'
    'result = [run.summary["n"]["x"], run.summary.n.y, run.summary["n"].keys() and sorted(run.summary["n"].keys())]\n',
    "set by hand": """
run.log({"a": 1})
run.summary["best"] = 7
run.summary.text = "x"
run.summary["d"] = {"in": {"side": 1}}
run.log({"logged": {"x": 1, "y": 2}})
run.summary["logged"]["x"] = 5
run.summary.logged.z = 3
run.summary.update({"u": 1, "v": [1, 2]})
"""
    + READ_SUMMARY,
    "deleted": 'run.log({"a": 1, "b": 2})\ndel run.summary["a"]\n' + READ_SUMMARY,
    "get": 'run.log({"a": 1})\nresult = [run.summary.get("a"), run.summary.get("no"), run.summary.get("no", 4)]\n',
    "an item that is not there": 'run.summary["no"]\n',
    "every statistic": """
run.define_metric("m", summary="min,max,mean,last,first")
for value in (2, 5, 3):
    run.log({"m": value, "other": value})
"""
    + READ_SUMMARY,
    "no summary": 'run.define_metric("m", summary="none")\nrun.log({"m": 1, "a": 1})\n' + READ_SUMMARY,
    "a glob": """
run.define_metric("val/*", summary="max")
run.define_metric("val/exact", summary="min")
for value in (2, 5, 3):
    run.log({"val/a": value, "val/exact": value, "train/a": value})
"""
    + READ_SUMMARY,
    "nested statistics": """
run.define_metric("val.acc", summary="max")
for value in (2, 5, 3):
    run.log({"val": {"acc": value, "loss": value}})
"""
    + READ_SUMMARY,
    "a row counts once": """
run.define_metric("m", summary="min,mean")
for step in range(3):
    run.log({"m": -1}, step=step)
    run.log({"m": step}, step=step)
run.log({"end": 1}, step=3, commit=True)
"""
    + READ_SUMMARY,
    "a value by hand switches the statistics off": """
run.define_metric("m", summary="max")
run.log({"m": 5})
run.summary["m"] = 1
run.log({"m": 3})
"""
    + READ_SUMMARY,
    "statistics add up": """
run.define_metric("m", summary="min")
run.define_metric("m", summary="max")
run.log({"m": 1})
run.log({"m": 2})
"""
    + READ_SUMMARY,
    "statistics overwritten": """
run.define_metric("m", summary="min")
run.define_metric("m", summary="max", overwrite=True)
run.log({"m": 1})
run.log({"m": 2})
"""
    + READ_SUMMARY,
    "defined after values were logged": """
for value in (2, 5, 3):
    run.log({"m": value})
run.define_metric("m", summary="min,max,mean")
run.log({"m": 4})
"""
    + READ_SUMMARY,
    "what is no number": """
run.define_metric("m", summary="max,last")
run.log({"m": "text"})
run.log({"m": 2})
run.log({"m": True})
"""
    + READ_SUMMARY,
}
METRICS = {
    "a metric": 'm = run.define_metric("a", summary="max,min", step_metric="s")\n'
    "result = [m.name, m.step_metric, m.step_sync, m.hidden, list(m.summary)]\n",
    "a plain metric": 'm = run.define_metric("a", hidden=True)\n'
    "result = [m.name, m.step_metric, m.step_sync, m.hidden, m.summary]\n",
    "over another metric": 's = run.define_metric("s")\nresult = run.define_metric("a", step_metric=s).step_metric\n',
    "capitals": 'result = list(run.define_metric("a", summary="Max").summary)\n',
    "of the module": 'result = wandb.define_metric("a", step_metric="s").step_metric\n',
}
RUNS = {
    "a second init": 'result = wandb.init(project="other", id="other") is None\n',
    "a second init returns the run": 'result = wandb.init(project="other") is run\n',
    "create_new stands beside": """
other = wandb.init(project="other", reinit="create_new")
result = [other is run, wandb.run is run]
other.finish()
result += [wandb.run is run]
""",
    "finish_previous": """
other = wandb.init(project="other", reinit="finish_previous")
result = [other is run, wandb.run is other]
""",
    "reinit=True": 'other = wandb.init(project="other", reinit=True)\nresult = [other is run, wandb.run is other]\n',
    "properties": """
result = [run.project, run.url, run.project_url, run.sweep_id, run.resumed, run.starting_step, run.step, run.offline,
          run.disabled, run.notes, list(run.tags), run.group, run.job_type, run.entity, type(run.dir + "/x").__name__]
""",
    "name, notes and tags change": """
run.name = "other"
run.notes = "note"
run.tags = ["a"]
run.tags += ("b",)
result = [run.name, run.notes, list(run.tags)]
""",
    "step counts": """
result = [run.step]
run.log({"a": 1}); result.append(run.step)
run.log({"a": 1}, step=5); result.append(run.step)
run.log({"a": 1}, commit=False); result.append(run.step)
""",
    "no log after the end": "run.finish()\nrun.log({'a': 1})\n",
    "no config after the end": "run.finish()\nrun.config['a'] = 1\n",
    "no module-level log after the end": "run.finish()\nwandb.log({'a': 1})\n",
    "no config before the start": "run.finish()\nresult = wandb.config.lr\n",
    "no run after the end": "run.finish()\nresult = wandb.run\n",
    "a copy of what holds a run": "import copy\nresult = copy.deepcopy({'run': run})['run'] is run\n",
    "code": """
open("train.py", "w").write("x")
result = run.log_code(".", name="mine").name
""",
    "no code": "import os\nos.makedirs('empty', exist_ok=True)\nresult = run.log_code('empty')\n",
    "not a model": "run.watch(5)\n",
    "a wrong word of watch": "import torch\nrun.watch(torch.nn.Linear(1, 1), log='everything')\n",
}
ENVIRONMENT = {
    "names": """
os.environ.update(WANDB_PROJECT="q", WANDB_NAME="n", WANDB_RUN_ID="i", WANDB_RUN_GROUP="g", WANDB_JOB_TYPE="j",
                  WANDB_TAGS="a,b", WANDB_NOTES="notes", WANDB_ENTITY="e")
run = wandb.init()
result = [run.project, run.name, run.id, run.group, run.job_type, list(run.tags), run.notes, run.entity]
""",
    "arguments go first": """
os.environ.update(WANDB_PROJECT="q", WANDB_NAME="n", WANDB_TAGS="a,b")
run = wandb.init(project="p", name="m", tags=["c"])
result = [run.project, run.name, list(run.tags)]
""",
    "settings go between": """
os.environ.update(WANDB_PROJECT="q", WANDB_NAME="n", WANDB_RUN_GROUP="g")
run = wandb.init(name="m", settings=wandb.Settings(run_name="s", run_group="sg", run_notes="notes"))
result = [run.project, run.name, run.group, run.notes, run.settings.run_group]
""",
    "settings may be a dict": """
run = wandb.init(settings={"project": "p", "run_id": "i", "run_tags": ["a"]})
result = [run.project, run.id, list(run.tags)]
""",
    "disabled": """
os.environ["WANDB_MODE"] = "disabled"
run = wandb.init(project="p", config={"lr": 1})
run.log({"a": 1})
run.define_metric("a")
run.config.update({"lr": 2}, allow_val_change=True)
result = [run.disabled, dict(run.config), run.url, run.summary["a"]]
""",
    "default project": "run = wandb.init()\nresult = run.project\n",
    "a config of all sources": """
open("config-defaults.yaml", "w").write("from: {value: defaults}\\na: {value: 1}\\n")
open("more.yaml", "w").write("wandb_version: 1\\nfrom: {desc: null, value: more}\\nc: {value: [1, 2]}\\n")
run = wandb.init(project="p", config={"from": "init", "b": 2})
result = [dict(run.config)]
run.finish()
wandb.teardown()
run = wandb.init(project="p", config="more.yaml")
result.append(dict(run.config))
""",
    "chosen keys": """
run = wandb.init(project="p", config={"a": 1, "b": 2}, config_exclude_keys=["a"])
result = [dict(run.config)]
run.finish()
run = wandb.init(project="p", config={"a": 1, "b": 2}, config_include_keys=["a"])
result.append(dict(run.config))
""",
    "a sweep": """
open("sweep.yaml", "w").write("wandb_version: 1\\nlr: {value: 0.5}\\nmodel: {value: {size: 9}}\\n")
os.environ.update(WANDB_SWEEP_ID="s", WANDB_SWEEP_PARAM_PATH="sweep.yaml", WANDB_PROJECT="q", WANDB_RUN_ID="i")
run = wandb.init(project="p", id="mine", config={"lr": 0.1, "b": 2, "model": {"size": 1, "kind": "x"}})
run.config["lr"] = 0.7
run.config.update({"b": 3}, allow_val_change=True)
result = [run.sweep_id, run.project, run.id, dict(run.config)]
""",
    "resume and fork exclude each other": 'wandb.init(project="p", resume="must", id="a", fork_from="b?_step=1")\n',
    "must without an id": 'wandb.init(project="p", resume="must", mode="never")\n',
    "an unknown mode": 'wandb.init(project="p", mode="sometimes")\n',
    "an unknown argument": 'wandb.init(project="p", colour="red")\n',
}
# The two are not one: name of the script, what we say, what W&B's client says, and why.
KNOWN_DIFFERENCES = {
    # It returns the first run, with whatever id is asked for. Here an id of its own is a run of its own.
    "a second init": (False, False),
    # Both refuse, in their own words: a mistake in a call is a ValueError or TypeError here.
    "resume and fork exclude each other": ("raises ValueError", "raises ValidationError"),
    "an unknown mode": ("raises ValueError", "raises ValidationError"),
    "must without an id": ("raises ValueError", "raises ValidationError"),
    "no config before the start": ("raises UsageError", "raises Error"),
    "no module-level log after the end": ("raises UsageError", "raises Error"),
}
SCRIPTS = {
    **{f"config: {name}": BEGIN + text for name, text in CONFIG.items()},
    **{f"summary: {name}": BEGIN + text for name, text in SUMMARY.items()},
    **{f"metrics: {name}": BEGIN + text for name, text in METRICS.items()},
    **{f"runs: {name}": BEGIN + text for name, text in RUNS.items()},
    **{f"environment: {name}": text for name, text in ENVIRONMENT.items()},
}
DRIVER = """
import json, os, sys, tempfile
before = dict(os.environ)
found = {}
for name, script in json.load(sys.stdin).items():
    os.environ.clear()
    os.environ.update(before)
    os.chdir(tempfile.mkdtemp(dir=sys.argv[1]))
    scope = {"wandb": wandb, "os": os}
    try:
        exec(script, scope)
        found[name] = scope.get("result")
    except Exception as error:
        found[name] = f"raises {type(error).__name__}"
    while wandb.run is not None:
        wandb.finish()
    wandb.teardown()
with open(sys.argv[2], "w") as file:
    json.dump(found, file, default=repr)
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    home = tmp_path_factory.mktemp("both")
    return run_all("import eventlog as wandb\n", home / "ours"), run_all("import wandb\n", home / "theirs")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_reads_back_the_same(name: str, both: tuple[dict[str, Any], dict[str, Any]]):
    ours, theirs = (found[name] for found in both)

    assert (ours, theirs) == KNOWN_DIFFERENCES.get(name.partition(": ")[2], (theirs, theirs))


def run_all(first_line: str, home: Path) -> dict[str, Any]:
    home.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env |= {
        "HOME": str(home),
        "PYTHONPATH": str(PROJECT),
        "TIDELOG_STATE_DIR": str(home / "state"),
        "WANDB_MODE": "offline",
        "WANDB_CONSOLE": "off",
        "WANDB_X_DISABLE_STATS": "true",
        "WANDB_ERROR_REPORTING": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", first_line + DRIVER, str(home), str(home / "found.json")],
        input=json.dumps(SCRIPTS),
        env=env,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert (home / "found.json").exists(), done.stdout + done.stderr
    return json.loads((home / "found.json").read_text())  # type: ignore[no-any-return]
